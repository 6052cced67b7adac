//! The first words on a connection: [`Hello`] both ways, then Accept or [`Reject`].
//!
//! Owns: their bytes. Their first fields stay where they are in every protocol version, and what a
//! later version appends is skipped, so that two versions can always tell each other why they part.

use super::cursor::{Put, Take};
use super::{FrameError, FrameType};

/// Longest name of a node, in bytes.
pub const MAX_NAME: usize = 64;

/// Longest software version, in bytes.
pub const MAX_SOFTWARE: usize = 64;

/// Longest reason given in words, in bytes.
pub const MAX_REASON: usize = 1024;

/// Who is speaking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Protocol version it speaks.
    pub protocol: u16,
    /// Drawn at random when its process started: another one means that it restarted.
    pub incarnation: u64,
    /// Its name, for people; it proves nothing.
    pub name: String,
    /// Its software version, for people.
    pub software: String,
    /// Whether it takes bulk over TLS, on the TCP port of the same number.
    pub tls: bool,
    /// What its UDP socket may hold of what it has not read yet, in KiB; 0: it does not say.
    pub udp_room_kib: u32,
}

impl Hello {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        Put::default()
            .u16(self.protocol)
            .u64(self.incarnation)
            .text(&self.name, MAX_NAME)
            .text(&self.software, MAX_SOFTWARE)
            .u8(self.tls.into())
            .u32(self.udp_room_kib)
            .done()
    }

    /// From a payload.
    ///
    /// # Errors
    /// [`FrameError::Payload`].
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let mut take = Take::new(FrameType::Hello, payload);
        let (protocol, incarnation) = (take.u16()?, take.u64()?);
        let (name, software) = (take.text(MAX_NAME)?, take.text(MAX_SOFTWARE)?);
        // A version that does not say so has no such lane, and no such room; the two part over their
        // versions anyway.
        let rest = take.rest();
        let tls = rest.first() == Some(&1);
        let room = rest.get(1..5).and_then(|bytes| bytes.try_into().ok());
        let udp_room_kib = room.map_or(0, u32::from_le_bytes);
        Ok(Self { protocol, incarnation, name, software, tls, udp_room_kib })
    }
}

/// Why a connection is refused. The numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum RejectCode {
    /// Something this version does not know.
    Other = 0,
    /// The two speak different protocol versions.
    Version = 1,
    /// The acceptor does not know the dialler's key.
    NotPaired = 2,
}

impl RejectCode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Other, Self::Version, Self::NotPaired];

    /// The number on the wire.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The meaning of a number; one this version does not know is [`RejectCode::Other`].
    pub fn from_code(code: u16) -> Self {
        Self::ALL.into_iter().find(|c| c.code() == code).unwrap_or(Self::Other)
    }
}

/// A refusal that the other side can print.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Why.
    pub code: RejectCode,
    /// Protocol version of the one who refuses.
    pub protocol: u16,
    /// Name of the one who refuses, for people.
    pub name: String,
    /// Why, in words.
    pub reason: String,
}

impl Reject {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        Put::default()
            .u16(self.code.code())
            .u16(self.protocol)
            .text(&self.name, MAX_NAME)
            .text(&self.reason, MAX_REASON)
            .done()
    }

    /// From a payload.
    ///
    /// # Errors
    /// [`FrameError::Payload`].
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let mut take = Take::new(FrameType::Reject, payload);
        Ok(Self {
            code: RejectCode::from_code(take.u16()?),
            protocol: take.u16()?,
            name: take.text(MAX_NAME)?,
            reason: take.text(MAX_REASON)?,
        })
    }
}
