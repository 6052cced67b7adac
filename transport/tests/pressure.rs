//! What holds a transfer back: a rate, and a sink that does not take.
#![allow(missing_docs)]

mod common;

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use common::{Node, Over, PATIENCE, Synthetic, between, paired_over};
use flocker_transport::{
    Bucket, Compression, LaneMode, Limit, Pace, Progress, SendOptions, SendReport, receive_stream,
    send_stream,
};
use tokio::task::spawn_blocking;

const BLOCK: usize = 128 << 10;
const MIB: u64 = 1 << 20;

/// Sends `blocks` over a lane of TLS at this pace; returns how long it took.
fn timed(blocks: u64, pace: Pace) -> (Duration, SendReport) {
    watched(blocks, pace, &Progress::default())
}

/// The same; how far it has come is seen in `progress`.
fn watched(blocks: u64, pace: Pace, progress: &Progress) -> (Duration, SendReport) {
    let (sender, mut receiver, _cable) = between(Over::Tls);
    let receiving = std::thread::spawn(move || {
        receive_stream(&mut receiver, &mut io::sink(), &Progress::default()).unwrap();
        receiver.finish(Ok(())).unwrap();
    });
    let (read, options) = (
        Synthetic::new(blocks, BLOCK, true),
        SendOptions { compression: Compression::Off, ..SendOptions::default() },
    );
    let start = Instant::now();
    let sent = send_stream(read, |_| Ok(()), sender.at_pace(pace), options, progress).unwrap();
    let took = start.elapsed();
    receiving.join().unwrap();
    (took, sent)
}

fn bucket(rate: Option<u64>) -> Arc<Bucket> {
    let bucket = Bucket::default();
    bucket.set(rate);
    Arc::new(bucket)
}

#[test]
fn a_rate_holds_on_the_wire_and_a_higher_one_is_faster_as_it_is_higher() {
    let at = |rate| timed(24, Pace { unit: bucket(Some(rate)), ..Pace::default() });
    let ((slow, sent), (fast, _)) = (at(2 * MIB), at(8 * MIB));
    assert!(slow > 2 * fast, "{slow:?} at a quarter of the rate, {fast:?}");
    // Never faster than the rate, but for one burst.
    let least = sent.wire_bytes as f64 / (2 * MIB) as f64 - 0.2;
    assert!(slow.as_secs_f64() > least, "{slow:?} for {} bytes", sent.wire_bytes);
}

#[test]
fn a_rate_that_holds_a_transfer_back_is_named_as_its_limit_and_none_is_not() {
    let limit = |pace| {
        let progress = Progress::default();
        watched(400, pace, &progress);
        progress.compressed().map(|(_, limit)| limit)
    };
    let rate = Some(24 * MIB);
    assert_eq!(limit(Pace { peer: bucket(rate), ..Pace::default() }), Some(Limit::Rate));
    assert_eq!(limit(Pace { unit: bucket(rate), ..Pace::default() }), Some(Limit::Rate));
    assert_ne!(limit(Pace::default()), Some(Limit::Rate));
}

#[test]
fn the_last_step_of_a_move_passes_a_rate_that_holds_others_back() {
    let peer = bucket(Some(2 * MIB));
    let pace = |exempt| Pace { peer: Arc::clone(&peer), exempt, ..Pace::default() };
    let (held, _) = timed(24, pace(false));
    let (exempt, _) = timed(24, pace(true));
    assert!(held > 2 * exempt, "{held:?} held back, {exempt:?} exempt");
}

#[test]
fn a_rate_that_is_lifted_lets_a_running_transfer_go() {
    let peer = bucket(Some(64 << 10));
    let lifting = Arc::clone(&peer);
    let thread = std::thread::spawn(move || {
        // At the first rate it would take more than an hour.
        std::thread::sleep(Duration::from_millis(200));
        lifting.set(None);
    });
    let (took, _) = timed(2000, Pace { peer, ..Pace::default() });
    assert!(took < PATIENCE, "{took:?}");
    thread.join().unwrap();
}

/// Counts what is read of a stream.
struct Counted(Synthetic, Arc<AtomicU64>);

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.0.read(buf)?;
        self.1.fetch_add(len as u64, Ordering::SeqCst);
        Ok(len)
    }
}

/// Takes nothing until it is opened.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

impl Write for Gate {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut open = self.0.0.lock().unwrap();
        while !*open {
            open = self.0.1.wait(open).unwrap();
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What may be between a source and a sink that stands, bytes: 16 MiB of batches and pieces on each side, and what
/// QUIC's windows (20 MiB) or the kernel's TCP buffers hold.
const MOST_BETWEEN: u64 = 64 << 20;

async fn a_sink_that_stands_stops_the_source(lane: LaneMode) {
    let (a, mut b): (Node, Node) = paired_over(lane).await;
    let sender = a.manager.open_bulk(&b.key(), b"", Some(1 << 40)).await.unwrap();
    let (blocks, read) = (1600, Arc::new(AtomicU64::new(0)));
    let total = Synthetic::len(blocks, BLOCK);
    assert!(total > 3 * MOST_BETWEEN);
    let source = Counted(Synthetic::new(blocks, BLOCK, true), Arc::clone(&read));
    let sending = spawn_blocking(move || {
        let options = SendOptions { compression: Compression::Off, ..SendOptions::default() };
        send_stream(source, |_| Ok(()), sender, options, &Progress::default())
    });
    let (_, mut receiver) = b.bulk().await;
    let gate = Gate::default();
    let mut sink = gate.clone();
    let receiving = spawn_blocking(move || {
        let received = receive_stream(&mut receiver, &mut sink, &Progress::default());
        receiver.finish(Ok(())).unwrap();
        received
    });
    // Until nothing was read for a while.
    let (mut before, mut still, start) = (0, 0, Instant::now());
    while still < 20 {
        assert!(start.elapsed() < PATIENCE, "the source is read on and on");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = read.load(Ordering::SeqCst);
        still = if now == before && now > 0 { still + 1 } else { 0 };
        before = now;
    }
    assert!(before < MOST_BETWEEN, "{before} bytes are between the source and the sink");
    gate.open();
    assert_eq!(sending.await.unwrap().unwrap().raw_bytes, total);
    assert_eq!(receiving.await.unwrap().unwrap().raw_bytes, total);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_stands_stops_the_source_over_quic() {
    a_sink_that_stands_stops_the_source(LaneMode::Quic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_stands_stops_the_source_over_tls() {
    a_sink_that_stands_stops_the_source(LaneMode::Tls).await;
}
