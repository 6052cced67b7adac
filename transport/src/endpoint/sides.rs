//! The two sides of a connection: what each says of itself, and the codes by which one ends it.

use std::net::SocketAddr;

use flocker_core::ids::Fingerprint;

use crate::frame::PROTOCOL_VERSION;
use crate::frame::hello::{Call, Hello};
use crate::lane::choice::LaneMode;
use crate::tuning::UdpMode;

/// Codes with which connections are closed, see `WIRE.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum CloseCode {
    /// The node stops.
    Shutdown = 0,
    /// The key is not, or no longer, paired.
    NotPaired = 1,
    /// The protocol versions differ.
    Version = 2,
    /// Both dialled at once, or again; the other connection stays.
    Duplicate = 3,
    /// The peer broke the protocol.
    Protocol = 4,
    /// Too much at once.
    Busy = 5,
    /// Pairing is over, well or not.
    PairingOver = 6,
}

impl CloseCode {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Shutdown,
        Self::NotPaired,
        Self::Version,
        Self::Duplicate,
        Self::Protocol,
        Self::Busy,
        Self::PairingOver,
    ];

    /// The number on the wire.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The meaning of a number.
    pub fn from_code(code: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|c| u64::from(c.code()) == code)
    }
}

/// What this node says of itself.
#[derive(Debug, Clone)]
pub struct LocalNode {
    /// Its name, for people; at most 64 bytes.
    pub name: String,
    /// Its software version, for people.
    pub software: String,
    /// The protocol version it speaks: [`PROTOCOL_VERSION`], but for tests.
    pub protocol: u16,
    /// Drawn when the process starts, so that peers see a restart.
    pub incarnation: u64,
    /// Which lanes it uses for bulk.
    pub lane: LaneMode,
    /// How its UDP socket sends.
    pub udp: UdpMode,
    /// Whether it listens for TLS: the endpoint finds out when it binds.
    pub(crate) tls: bool,
    /// What its UDP socket was granted to hold unread, in KiB; found out in the same way.
    pub(crate) udp_room_kib: u32,
}

impl LocalNode {
    /// This build, under a name.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            software: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL_VERSION,
            incarnation: random_u64(),
            lane: LaneMode::default(),
            udp: UdpMode::default(),
            tls: false,
            udp_room_kib: 0,
        }
    }

    /// The same, with other lanes.
    #[must_use]
    pub fn with_lane(self, lane: LaneMode) -> Self {
        Self { lane, ..self }
    }

    /// The same, with another way to send over UDP: for measuring one against the other.
    #[must_use]
    pub fn with_udp(self, udp: UdpMode) -> Self {
        Self { udp, ..self }
    }

    pub(crate) fn hello(&self, call: Call) -> Hello {
        Hello {
            protocol: self.protocol,
            incarnation: self.incarnation,
            name: self.name.clone(),
            software: self.software.clone(),
            tls: self.tls,
            quic: self.lane != LaneMode::Tls,
            call,
            udp_room_kib: self.udp_room_kib,
        }
    }
}

/// Eight random bytes. Without entropy nothing here is safe, TLS least of all.
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    let drawn = getrandom::fill(&mut bytes);
    assert!(drawn.is_ok(), "the system has no entropy: {drawn:?}");
    u64::from_le_bytes(bytes)
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its key, proven.
    pub fingerprint: Fingerprint,
    /// Its name, claimed.
    pub name: String,
    /// Its software version, claimed.
    pub software: String,
    /// Changes when its process restarts.
    pub incarnation: u64,
    /// Where its packets come from.
    pub address: SocketAddr,
    /// Whether it listens for TLS, on the TCP port of the number that it listens on.
    pub tls: bool,
    /// Whether it listens for QUIC, on the UDP port of that number.
    pub quic: bool,
    /// What its UDP socket may hold unread, in KiB; 0: it does not say.
    pub udp_room_kib: u32,
}
