//! A lane that harms what it carries, and a sender that lies: the receiver finds out, writes nothing that
//! was not proven, and tells the sender.
#![allow(missing_docs)]

mod common;

use std::io::Cursor;
use std::thread;

use bytes::Bytes;
use common::{golden, synthetic};
use flocker_transport::bulk::codec::{BatchError, Codec};
use flocker_transport::frame::bulk::{Abort, AbortCode, End};
use flocker_transport::frame::{self, FrameError, FrameType};
use flocker_transport::lane::{Lane, LaneError, LaneSend, Until, memory};
use flocker_transport::{
    BulkReceiver, BulkSender, Progress, ReceiveError, Refusal, Resources, SendError, SendOptions,
    receive_stream, send_stream,
};

const BLOCK: usize = 128 << 10;

/// Flips one bit of the byte at `at` of all that passes.
struct Harming {
    inner: Box<dyn LaneSend>,
    at: usize,
    passed: usize,
}

impl LaneSend for Harming {
    fn send(&mut self, parts: &mut [Bytes], until: Until<'_>) -> Result<(), LaneError> {
        for part in parts.iter_mut() {
            let from = self.passed;
            self.passed += part.len();
            if (from..self.passed).contains(&self.at) {
                let mut harmed = part.to_vec();
                harmed[self.at - from] ^= 0x20;
                *part = Bytes::from(harmed);
            }
        }
        self.inner.send(parts, until)
    }

    fn finish(&mut self) -> Result<(), LaneError> {
        self.inner.finish()
    }

    fn drained(&mut self, until: Until<'_>) -> Result<(), LaneError> {
        self.inner.drained(until)
    }
}

type Received = (Vec<u8>, Result<(), ReceiveError>);

fn receiving(lane: Lane) -> thread::JoinHandle<Received> {
    thread::spawn(move || {
        let mut receiver = BulkReceiver::over(lane, Resources::start().unwrap());
        let mut out = Vec::new();
        let result = receive_stream(&mut receiver, &mut out, &Progress::default()).map(drop);
        let refusal = |e: &ReceiveError| Refusal { code: 7, reason: e.to_string() };
        let _ = receiver.finish(result.as_ref().map(drop).map_err(refusal));
        (out, result)
    })
}

/// Sends `stream` with the byte at `at` of the lane harmed.
fn harmed(stream: Vec<u8>, at: usize) -> (Result<(), SendError>, Received) {
    let (a, b, _) = memory::pair();
    let received = receiving(b);
    let lane = Lane { send: Box::new(Harming { inner: a.send, at, passed: 0 }), recv: a.recv };
    let sender = BulkSender::over(lane, Resources::start().unwrap());
    let (options, progress) = (SendOptions::default(), Progress::default());
    let sent = send_stream(Cursor::new(stream), |_| Ok(()), sender, options, &progress);
    (sent.map(drop), received.join().unwrap())
}

#[test]
fn a_batch_harmed_on_its_way_is_named_and_none_of_it_is_written() {
    let stream = synthetic(40, BLOCK, true);
    // Well within the third batch: two have passed.
    let (sent, (out, result)) = harmed(stream.clone(), 2_500_000);
    let error = result.unwrap_err();
    let named = matches!(error, ReceiveError::Batch { source: BatchError::Hash { seq: 2 } });
    assert!(named, "{error}");
    assert!(out.len() > 1 << 20 && out.len() < 2_500_000 && stream.starts_with(&out));
    let error = sent.unwrap_err();
    assert!(matches!(&error, SendError::Refused { code: 7, reason } if reason.contains("batch 2")));
}

#[test]
fn no_harm_anywhere_goes_unnoticed() {
    let stream = golden("incr-plain");
    let (mut whole, mut at) = (0, 0);
    while at < 60_000 {
        let (sent, (out, result)) = harmed(stream.clone(), at);
        assert!(stream.starts_with(&out), "harmed at {at}: what was written is from the stream");
        match result {
            // A few bits of a zstd frame mean nothing; then nothing was harmed that matters.
            Ok(()) => {
                assert!(out == stream, "harmed at {at}");
                whole += 1;
            }
            Err(_) => assert!(sent.is_err(), "harmed at {at}"),
        }
        at += if at < 100 { 1 } else { 1777 };
    }
    assert!(whole < 10, "{whole} times the harm did not matter");
}

/// Says whatever it is told, as a sender that is broken or means harm.
fn saying(frames: &[Vec<u8>], finish: bool) -> Received {
    let (mut a, b, _) = memory::pair();
    let received = receiving(b);
    let cancel = flocker_transport::Cancel::default();
    for frame in frames {
        let mut parts = [Bytes::from(frame.clone())];
        if a.send.send(&mut parts, Until::Cancelled(&cancel)).is_err() {
            break;
        }
    }
    if finish {
        let _ = a.send.finish();
    } else {
        drop(a.send);
    }
    // Nobody here wants the answer.
    drop(a.recv);
    received.join().unwrap()
}

fn batch(seq: u64) -> Vec<u8> {
    let encoded = Codec::new().unwrap().encode(seq, b"a record".to_vec(), None);
    [&encoded.head[..], &encoded.body[..]].concat()
}

fn end(batches: u64, raw_bytes: u64, digest: [u8; 32]) -> Vec<u8> {
    frame::encode(FrameType::End, &End { raw_bytes, batches, digest }.encode())
}

fn digest(batches: usize) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for _ in 0..batches {
        hasher.update(blake3::hash(b"a record").as_bytes());
    }
    *hasher.finalize().as_bytes()
}

#[test]
fn the_totals_must_be_right() {
    let (out, result) = saying(&[batch(0), batch(1), end(2, 16, digest(2))], true);
    assert!(result.is_ok() && out == b"a recorda record");
    for wrong in [end(3, 16, digest(2)), end(2, 17, digest(2)), end(2, 16, digest(1))] {
        let (_, result) = saying(&[batch(0), batch(1), wrong], true);
        assert!(matches!(result, Err(ReceiveError::Totals { .. })), "{result:?}");
    }
}

#[test]
fn a_batch_that_is_missing_or_comes_twice_is_named() {
    for (frames, expected, found) in [([batch(0), batch(2)], 1, 2), ([batch(0), batch(0)], 1, 0)] {
        let (_, result) = saying(&frames, true);
        let Err(ReceiveError::OutOfOrder { expected: e, found: f }) = result else {
            panic!("{result:?}")
        };
        assert_eq!((e, f), (expected, found));
    }
}

#[test]
fn a_sender_that_ends_without_its_totals_has_not_finished() {
    for finish in [true, false] {
        let (_, result) = saying(&[batch(0)], finish);
        assert!(matches!(result, Err(ReceiveError::SenderGone)), "{result:?}");
        let (_, result) = saying(&[batch(0)[..30].to_vec()], finish);
        assert!(matches!(result, Err(ReceiveError::SenderGone)), "{result:?}");
    }
}

#[test]
fn frames_that_may_not_come_are_refused() {
    let hello = frame::encode(FrameType::Control, b"psst");
    let (_, result) = saying(&[batch(0), hello], true);
    let Err(ReceiveError::Protocol { source }) = result else { panic!("{result:?}") };
    assert!(matches!(source, FrameError::Unexpected { found: FrameType::Control, .. }));
    let (_, result) = saying(&[b"GET / HTTP/1.1\r\n\r\n".to_vec()], true);
    let Err(ReceiveError::Protocol { source }) = result else { panic!("{result:?}") };
    assert_eq!(source, FrameError::Magic { found: *b"GET " });
}

#[test]
fn an_abort_carries_its_reason() {
    let abort = Abort { code: AbortCode::Source, reason: "dataset is busy".into() };
    let (_, result) = saying(&[batch(0), frame::encode(FrameType::Abort, &abort.encode())], true);
    let Err(ReceiveError::Aborted { code, reason }) = result else { panic!("{result:?}") };
    assert_eq!((code, reason.as_str()), (AbortCode::Source, "dataset is busy"));
}
