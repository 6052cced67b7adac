//! Pairing: two nodes come to trust each other's key through a one-time code that people carry.
//!
//! ```text
//! joiner                                   inviter
//!   ── Hello ─────────────────────────────▶   versions compared by both
//!   ◀───────────────────────────── Hello ──
//!   ── PairStart: SPAKE2, addresses ──────▶   the try is counted, durably
//!   ◀────── PairAnswer: SPAKE2, addresses ──
//!   ── PairProof ─────────────────────────▶   verified, or refused
//!   ◀────────────────────────── PairProof ──
//!   verified: stores
//!   ── PairConfirm ───────────────────────▶   verified: stores
//! ```
//!
//! Owns: the code ([`code`]), the exchange ([`exchange`]), both ends of it ([`Invitation`], [`join`]).
//! Leaves to others: storing whom we paired with, showing words, counting tries durably
//! ([`CountTries`]), grants.
//!
//! # What it proves
//!
//! A proof is a MAC under the PAKE's key over the role, both fingerprints, the protocol version, names,
//! addresses, both PAKE messages and the TLS exporter of *this* connection. Somebody in between has two
//! connections with two exporters and other keys, so neither proof verifies; a recorded message is of
//! no use on another connection. Without the code, each try is one guess in 2^45, and an invitation
//! allows [`MAX_TRIES`].
//!
//! # Who stores when
//!
//! Nobody before both proofs were verified. The joiner has that when the inviter's proof verifies (it
//! was sent only after the joiner's own had been verified); the inviter when PairConfirm does. If that
//! last message is lost, the joiner alone has stored: harmless, since it only dials and is told
//! that the inviter does not know it. The invitation stays open, so joining again with the same code
//! repairs it.

pub mod code;
pub mod exchange;
mod inviter;
mod joiner;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flocker_core::ids::Fingerprint;

use crate::error::ConnectError;
use crate::framed::FramedError;

pub use code::{CodeError, PairingCode};
pub(crate) use exchange::EXPORTER_LABEL;
pub(crate) use inviter::InviterSlot;
pub use joiner::join;

/// Tries that an invitation allows at most, whatever its counter says.
pub const MAX_TRIES: u8 = 5;

/// How long either side waits for the other's next message.
pub(crate) const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// The node on the other side, proven. Store its fingerprint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paired {
    /// Its key.
    pub fingerprint: Fingerprint,
    /// Its name.
    pub name: String,
    /// Its software version.
    pub software: String,
    /// Where it wants to be dialled (`host:port`); may be empty.
    pub addresses: Vec<String>,
    /// Where its packets came from. For the joiner this is the address it dialled.
    pub observed: SocketAddr,
}

/// Why pairing did not succeed, as the joiner sees it.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// The inviter could not be reached, or speaks another protocol version.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The code is not the invitation's, or somebody stands in between.
    #[error(
        "the code is wrong ({}); if it was typed right, somebody may stand between the two nodes",
        tries_text(*.tries_left)
    )]
    WrongCode {
        /// Tries the invitation still allows.
        tries_left: u8,
    },
    /// The other node has no invitation open.
    #[error("the other node has no invitation open: run `pair --invite` there")]
    NotOpen,
    /// The invitation's time is over.
    #[error("the invitation has expired: run `pair --invite` on the other node again")]
    Expired,
    /// The invitation's tries are used up.
    #[error("the invitation was ended by wrong codes: run `pair --invite` on the other node again")]
    Exhausted,
    /// Both ends are this node.
    #[error("that address leads to this node itself")]
    Myself,
    /// The inviter could not go on.
    #[error("the other node could not go on: {reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
    /// The other side accepted our proof and could not give its own: it is not the inviter.
    #[error("the other node did not prove that it knows the code: it is not the one that invited")]
    NotProven,
    /// The connection broke off, or what came is no pairing.
    #[error("pairing broke off: {0}")]
    Broken(#[from] FramedError),
    /// The other side went silent.
    #[error("the other node went silent while pairing")]
    Silent,
    /// The connection has no keying material.
    #[error("the connection cannot be bound to: {reason}")]
    NoExporter {
        /// What the library said.
        reason: String,
    },
}

fn tries_text(left: u8) -> String {
    match left {
        0 => "the invitation has ended".into(),
        1 => "one try is left".into(),
        n => format!("{n} tries are left"),
    }
}

/// Counts tries where a crash cannot undo it.
pub trait CountTries: Send + Sync + 'static {
    /// Counts one try durably and says how many are left after it. Called before the try is answered;
    /// may block.
    ///
    /// # Errors
    /// [`NoTry`]: then the try is refused unanswered.
    fn count_try(&self) -> Result<u8, NoTry>;
}

/// Why a try is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoTry {
    /// The invitation is not open any more.
    #[error("no invitation is open")]
    Closed,
    /// Its time is over.
    #[error("the invitation has expired")]
    Expired,
    /// Its tries are used up.
    #[error("the invitation's tries are used up")]
    Exhausted,
    /// The count could not be stored.
    #[error("the try could not be counted: {reason}")]
    NotCounted {
        /// What went wrong.
        reason: String,
    },
}

/// An invitation to be opened.
pub struct Invitation {
    /// The code that the joiner must know.
    pub code: PairingCode,
    /// Where this node wants to be dialled (`host:port`), at most 16.
    pub addresses: Vec<String>,
    /// From now on for this long.
    pub valid_for: Duration,
    /// Counts the tries.
    pub counter: Arc<dyn CountTries>,
}

impl std::fmt::Debug for Invitation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invitation")
            .field("addresses", &self.addresses)
            .field("valid_for", &self.valid_for)
            .finish_non_exhaustive()
    }
}

/// What happens to an open invitation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InvitationEvent {
    /// Both sides have proven themselves: store it. The invitation is over.
    Paired(Paired),
    /// A try failed: a wrong code, or somebody who went away in the middle.
    Failed {
        /// Who tried.
        from: SocketAddr,
        /// Tries left.
        tries_left: u8,
    },
    /// The joiner proved itself, but its last message did not come; it may have stored this node. The
    /// invitation stays open: joining again repairs it.
    Unconfirmed {
        /// The joiner's key.
        fingerprint: Fingerprint,
        /// The joiner's name.
        name: String,
    },
    /// The invitation is over, and nobody was paired.
    Ended(NoTry),
}
