//! Payloads of pairing.
//!
//! Owns: their bytes and bounds. Leaves to others: the exchange itself ([`crate::pairing`]).

use super::cursor::{Put, Take};
use super::{FrameError, FrameType};

/// Length of a SPAKE2 message over the Ed25519 group: a side byte and a point.
pub const SPAKE_LEN: usize = 33;

/// Length of a proof, in bytes.
pub const PROOF_LEN: usize = 32;

/// Most addresses a node may name for itself.
pub const MAX_ADDRESSES: usize = 16;

/// Longest address (`host:port`), in bytes.
pub const MAX_ADDRESS: usize = 255;

/// Longest reason, in bytes.
pub const MAX_REASON: usize = 512;

/// A PAKE message and where its sender can be reached: PairStart and PairAnswer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The SPAKE2 message.
    pub spake: [u8; SPAKE_LEN],
    /// Addresses (`host:port`) its sender wants to be dialled at; may be empty.
    pub addresses: Vec<String>,
}

impl Opening {
    /// The payload.
    ///
    /// # Panics
    /// With more than [`MAX_ADDRESSES`]: callers bound them.
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.addresses.len() <= MAX_ADDRESSES, "{} addresses", self.addresses.len());
        let count = u8::try_from(self.addresses.len()).unwrap_or(u8::MAX);
        let put = Put::default().bytes(&self.spake).u8(count);
        self.addresses.iter().fold(put, |put, address| put.text(address, MAX_ADDRESS)).done()
    }

    /// From the payload of a frame of type `kind`.
    ///
    /// # Errors
    /// [`FrameError::Payload`].
    pub fn decode(kind: FrameType, payload: &[u8]) -> Result<Self, FrameError> {
        let mut take = Take::new(kind, payload);
        let spake = take.array()?;
        let count = usize::from(take.u8()?);
        if count > MAX_ADDRESSES {
            return Err(FrameError::Payload { kind, what: "it names too many addresses" });
        }
        let addresses = (0..count).map(|_| take.text(MAX_ADDRESS)).collect::<Result<_, _>>()?;
        take.end()?;
        Ok(Self { spake, addresses })
    }
}

/// Why the inviter refused. The numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum PairRefusal {
    /// Something this version does not know.
    Other = 0,
    /// The proof was not right: another code, or somebody in between.
    WrongCode = 1,
    /// No invitation is open.
    NoInvitation = 2,
    /// The invitation's time is over.
    Expired = 3,
    /// The invitation's tries are used up.
    Exhausted = 4,
    /// Both ends have the same key.
    Myself = 5,
}

impl PairRefusal {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Other,
        Self::WrongCode,
        Self::NoInvitation,
        Self::Expired,
        Self::Exhausted,
        Self::Myself,
    ];

    /// The number on the wire.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The meaning of a number; one this version does not know is [`PairRefusal::Other`].
    pub fn from_code(code: u16) -> Self {
        Self::ALL.into_iter().find(|c| c.code() == code).unwrap_or(Self::Other)
    }
}

/// The inviter says no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairRefused {
    /// Why.
    pub code: PairRefusal,
    /// Tries the invitation still allows.
    pub tries_left: u8,
    /// Why, in words.
    pub reason: String,
}

impl PairRefused {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let put = Put::default().u16(self.code.code()).u8(self.tries_left);
        put.text(&self.reason, MAX_REASON).done()
    }

    /// From a payload.
    ///
    /// # Errors
    /// [`FrameError::Payload`].
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let mut take = Take::new(FrameType::PairRefused, payload);
        let refused = Self {
            code: PairRefusal::from_code(take.u16()?),
            tries_left: take.u8()?,
            reason: take.text(MAX_REASON)?,
        };
        take.end()?;
        Ok(refused)
    }
}
