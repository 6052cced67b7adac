//! A peer that says what it is told, whatever the rules are.

use bytes::Bytes;
use flocker_transport::Cancel;
use flocker_transport::bulk::codec::Encoded;
use flocker_transport::frame::{self, FrameType, HEADER_LEN, Header};
use flocker_transport::lane::{Lane, Until};

use super::PATIENCE;

/// One end of a lane.
pub(crate) struct Rogue {
    lane: Lane,
    cancel: Cancel,
}

impl Rogue {
    pub(crate) fn on(lane: Lane) -> Self {
        Self { lane, cancel: Cancel::default() }
    }

    pub(crate) fn say(&mut self, kind: FrameType, payload: &[u8]) {
        self.put(&mut [Bytes::from(frame::encode(kind, payload))]);
    }

    pub(crate) fn batch(&mut self, batch: &Encoded) {
        self.put(&mut [batch.head.clone(), batch.body.clone()]);
    }

    fn put(&mut self, parts: &mut [Bytes]) {
        // Whoever had enough hangs up.
        let _ = self.lane.send.send(parts, Until::Cancelled(&self.cancel));
    }

    /// The next frame; `None` at the end.
    pub(crate) fn hear(&mut self) -> Option<(FrameType, Vec<u8>)> {
        let (mut header, until) = ([0; HEADER_LEN], Until::Elapsed(PATIENCE));
        if !self.lane.recv.fill(&mut header, until).ok()? {
            return None;
        }
        let header = Header::decode(&header).unwrap();
        let mut payload = vec![0; header.len];
        if header.len > 0 {
            self.lane.recv.fill(&mut payload, until).ok()?;
        }
        Some((header.kind, payload))
    }
}
