//! Payloads that open a lane and measure one.
//!
//! Owns: their bytes. Leaves to others: connections ([`crate::tcp`]), what is made of figures
//! ([`crate::peers`]).

use super::cursor::{Put, Take};
use super::{FrameError, FrameType};

/// Longest filler of a Probe, in bytes.
pub const MAX_FILLER: usize = 64 << 10;

/// Length of a LaneOpen payload, in bytes.
pub const LANE_OPEN_LEN: usize = 19;

/// Length of a Probed payload, in bytes.
pub const PROBED_LEN: usize = 24;

/// The first words on a TLS connection over TCP: to which connection of the pair it belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneOpen {
    /// Protocol version of the one who dials.
    pub protocol: u16,
    /// Incarnation of the one who dials.
    pub dialler: u64,
    /// Incarnation of the one who is dialled, as the dialler knows it: another one has restarted since.
    pub acceptor: u64,
    /// Whether the one who is dialled will send on it: then it is kept until that is so.
    pub reverse: bool,
}

impl LaneOpen {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let put = Put::default().u16(self.protocol).u64(self.dialler).u64(self.acceptor);
        put.u8(self.reverse.into()).done()
    }

    /// From a payload.
    ///
    /// # Errors
    /// [`FrameError::Payload`].
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let mut take = Take::new(FrameType::LaneOpen, payload);
        let (protocol, dialler, acceptor) = (take.u16()?, take.u64()?, take.u64()?);
        let reverse = match take.u8()? {
            0 => false,
            1 => true,
            _ => {
                let what = "who sends on it is neither of the two";
                return Err(FrameError::Payload { kind: FrameType::LaneOpen, what });
            }
        };
        take.end()?;
        Ok(Self { protocol, dialler, acceptor, reverse })
    }
}

/// What came of a probe, on the side that it came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probed {
    /// Bytes of filler in the half that was timed: the later one.
    pub bytes: u64,
    /// How long that half took, in microseconds.
    pub elapsed_us: u64,
    /// Processor time of the whole process during the whole probe, in microseconds.
    pub cpu_us: u64,
}

impl Probed {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        Put::default().u64(self.bytes).u64(self.elapsed_us).u64(self.cpu_us).done()
    }

    /// From a payload.
    ///
    /// # Errors
    /// [`FrameError::Payload`].
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let mut take = Take::new(FrameType::Probed, payload);
        let probed = Self { bytes: take.u64()?, elapsed_us: take.u64()?, cpu_us: take.u64()? };
        take.end()?;
        Ok(probed)
    }
}
