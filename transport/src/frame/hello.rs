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
    /// Whether it takes connections over TLS, on the TCP port of the same number.
    pub tls: bool,
    /// Whether it takes connections over QUIC, on the UDP port of that number.
    pub quic: bool,
    /// How its dialler came to this connection; of the one who is dialled always [`Call::First`].
    pub call: Call,
    /// What its UDP socket may hold of what it has not read yet, in KiB; 0: it does not say.
    pub udp_room_kib: u32,
}

/// How a dialler came to its connection. The numbers are the wire's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Call {
    /// By the way that it tries first.
    #[default]
    First = 0,
    /// It carries on the session that the two have, over a better way.
    Continues = 1,
    /// Over TLS, because nothing answered over QUIC.
    NoUdp = 2,
}

impl Call {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::First, Self::Continues, Self::NoUdp];

    /// The number on the wire.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The meaning of a number; one this version does not know is [`Call::First`].
    pub fn from_code(code: u8) -> Self {
        Self::ALL.into_iter().find(|c| c.code() == code).unwrap_or_default()
    }
}

/// Bits of what a node takes.
const TAKES_TLS: u8 = 1;
const TAKES_QUIC: u8 = 2;

impl Hello {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        Put::default()
            .u16(self.protocol)
            .u64(self.incarnation)
            .text(&self.name, MAX_NAME)
            .text(&self.software, MAX_SOFTWARE)
            .u8(if self.tls { TAKES_TLS } else { 0 } | if self.quic { TAKES_QUIC } else { 0 })
            .u8(self.call.code())
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
        // A version that says nothing of these parts over its version anyway.
        let rest = take.rest();
        let takes = rest.first().copied().unwrap_or_default();
        let call = Call::from_code(rest.get(1).copied().unwrap_or_default());
        let (tls, quic) = (takes & TAKES_TLS != 0, takes & TAKES_QUIC != 0);
        let room = rest.get(2..6).and_then(|bytes| bytes.try_into().ok());
        let udp_room_kib = room.map_or(0, u32::from_le_bytes);
        Ok(Self { protocol, incarnation, name, software, tls, quic, call, udp_room_kib })
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
