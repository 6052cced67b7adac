//! Identities: newtypes, so that none is taken for another.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Hexadecimal digits where people or other programs read it (JSON knows no 128-bit number), the
/// bare value on the wire and in the journal.
macro_rules! hex_serde {
    ($type:ident, $inner:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
                } else {
                    <$inner>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

/// A node's identity: BLAKE3-256 of the SubjectPublicKeyInfo (DER) of its Ed25519 key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);

hex_serde!(Fingerprint, [u8; 32]);

impl Fingerprint {
    /// The first four bytes in hexadecimal: enough to tell peers apart in a log, not to trust one.
    pub fn short(&self) -> String {
        self.0[..4].iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({})", self.short())
    }
}

impl std::str::FromStr for Fingerprint {
    type Err = FingerprintError;
    fn from_str(s: &str) -> Result<Self, FingerprintError> {
        let bad = || FingerprintError { text: s.to_owned() };
        if s.len() != 64 || !s.is_ascii() {
            return Err(bad());
        }
        let mut bytes = [0u8; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&s[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(bytes))
    }
}

/// A text that is not a fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a fingerprint (64 hexadecimal digits)")]
pub struct FingerprintError {
    /// What was given.
    pub text: String,
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(pub u128);

        hex_serde!($type, u128);

        impl $type {
            /// The first eight hexadecimal digits, for names and logs.
            pub fn short(&self) -> String {
                format!("{:08x}", (self.0 >> 96) as u32)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($type), "({})"), self.short())
            }
        }

        impl std::str::FromStr for $type {
            type Err = std::num::ParseIntError;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                u128::from_str_radix(s, 16).map(Self)
            }
        }
    };
}

hex_id!(
    /// A unit: what moves as one. Random, made by the node that protects it first.
    UnitId
);
hex_id!(
    /// A volume under protection: its identity on every node, whatever its dataset is called.
    VolumeId
);

/// One life of a journal: made at random with the journal, so that a node that lost it is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

/// One attempt to change a unit's primary. Its number is never used again by its issuer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// The node that began it.
    pub issuer: Fingerprint,
    /// Grows with each attempt of this issuer for this unit; durable before it is used.
    pub number: u64,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.issuer.short(), self.number)
    }
}

impl fmt::Debug for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AttemptId({self})")
    }
}

/// Who may write a unit. Grows with each change of primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Compared first; the larger one is right.
    pub number: u64,
    /// The node that owns the unit in this epoch.
    pub owner: Fingerprint,
    /// The attempt that brought it about.
    pub attempt: AttemptId,
}

/// How one epoch stands to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpochOrder {
    /// The very same.
    Same,
    /// The other one is older: refuse it.
    Stale,
    /// The other one is newer: we missed a change.
    Newer,
    /// Equal numbers, different owners or attempts: never a tie, always a conflict.
    Conflict,
}

impl Epoch {
    /// How `other` stands to `self`.
    pub fn judge(&self, other: &Epoch) -> EpochOrder {
        match other.number.cmp(&self.number) {
            std::cmp::Ordering::Less => EpochOrder::Stale,
            std::cmp::Ordering::Greater => EpochOrder::Newer,
            std::cmp::Ordering::Equal if other == self => EpochOrder::Same,
            std::cmp::Ordering::Equal => EpochOrder::Conflict,
        }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, attempt {})", self.number, self.owner.short(), self.attempt)
    }
}

/// One bulk transfer: named by its sender, unique over the sender's restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TransferId {
    /// The sender's boot, a random number given when its core starts.
    pub boot: u64,
    /// Counts up within that boot.
    pub number: u64,
}

/// A question whose answer counts only for the moment it was asked in: an answer that comes late, or
/// again, names another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QuestionId {
    /// The asking node's boot, a random number given when its core starts.
    pub boot: u64,
    /// Counts up within that boot.
    pub number: u64,
}

/// An action handed out, to be answered by exactly one `Input::Done`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId(pub u64);

/// A command of a person, to be answered by exactly one `Effect::Reply`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// The moment an input arrives. Core has no clock of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Now {
    /// Milliseconds on a clock that never jumps; only differences mean something.
    pub mono_ms: u64,
    /// Milliseconds since 1970 by the wall clock; for people and for lag as seen across nodes.
    pub wall_ms: i64,
}
