//! Chunks: what stands between TLS and the frames of a lane.
//!
//! Owns: their header. A TCP connection has one end for both directions and no code for it; chunks give each
//! half of a lane its own end, reset and stop, with a code, as a QUIC stream has them, and proven by TLS. The
//! connection that carries control (`crate::link`) has what a QUIC connection has beside: signs of life, and
//! a last word.

/// Length of a chunk's header, in bytes.
pub const CHUNK_HEADER_LEN: usize = 8;

/// What a chunk says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    /// This many bytes of the half follow; at least one.
    Data(u32),
    /// The half is complete.
    End,
    /// The half is given up in the middle, with a code.
    Reset(u32),
    /// No more of the other half is taken, with a code.
    Stop(u32),
    /// The other half's End was read, so all of it was.
    Taken,
    /// A sign of life, which is answered. Not on a lane.
    Ping(u32),
    /// The answer to the Ping with this number. Not on a lane.
    Pong(u32),
    /// The connection is closed; a code and the reason in words follow, so many bytes. Not on a lane.
    Close(u32),
}

impl Chunk {
    /// The numbers on the wire.
    pub const KINDS: [(&'static str, u8); 8] = [
        ("Data", 0),
        ("End", 1),
        ("Reset", 2),
        ("Stop", 3),
        ("Taken", 4),
        ("Ping", 5),
        ("Pong", 6),
        ("Close", 7),
    ];

    /// As bytes: kind, three zeros, length or code.
    pub fn encode(self) -> [u8; CHUNK_HEADER_LEN] {
        let (kind, value) = match self {
            Self::Data(len) => (0, len),
            Self::End => (1, 0),
            Self::Reset(code) => (2, code),
            Self::Stop(code) => (3, code),
            Self::Taken => (4, 0),
            Self::Ping(number) => (5, number),
            Self::Pong(number) => (6, number),
            Self::Close(len) => (7, len),
        };
        let [a, b, c, d] = u32::to_le_bytes(value);
        [kind, 0, 0, 0, a, b, c, d]
    }

    /// From bytes; `None` for what no chunk begins with.
    pub fn decode(bytes: [u8; CHUNK_HEADER_LEN]) -> Option<Self> {
        let [kind, 0, 0, 0, a, b, c, d] = bytes else { return None };
        match (kind, u32::from_le_bytes([a, b, c, d])) {
            (0, len) if len > 0 => Some(Self::Data(len)),
            (1, 0) => Some(Self::End),
            (2, code) => Some(Self::Reset(code)),
            (3, code) => Some(Self::Stop(code)),
            (4, 0) => Some(Self::Taken),
            (5, number) => Some(Self::Ping(number)),
            (6, number) => Some(Self::Pong(number)),
            (7, len) => Some(Self::Close(len)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_comes_back_and_anything_else_is_none() {
        for chunk in
            [Chunk::Data(1), Chunk::Data(u32::MAX), Chunk::End, Chunk::Reset(7), Chunk::Stop(0)]
        {
            assert_eq!(Chunk::decode(chunk.encode()), Some(chunk));
        }
        assert_eq!(Chunk::decode(Chunk::Taken.encode()), Some(Chunk::Taken));
        for chunk in [Chunk::Ping(1), Chunk::Pong(u32::MAX), Chunk::Close(4)] {
            assert_eq!(Chunk::decode(chunk.encode()), Some(chunk));
        }
        for wrong in
            [[0; 8], [8, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0, 0, 0], [2, 1, 0, 0, 0, 0, 0, 0]]
        {
            assert_eq!(Chunk::decode(wrong), None);
        }
    }
}
