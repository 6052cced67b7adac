//! What a small difference waits for while everything of another volume is on its way over the same link.
#![allow(missing_docs)]

mod common;
mod link;

use std::io;
use std::time::{Duration, Instant};

use common::{Node, Synthetic, synthetic};
use flocker_transport::{
    BulkReceiver, Compression, LaneMode, PeerEvent, Progress, SendOptions, receive_stream,
    send_stream,
};
use link::{Link, Rate};
use tokio::task::spawn_blocking;

/// 40 Mbit/s with an eighth of a second of queue, which loss-based control fills: so slow that two cores
/// are not the limit.
const RATE: Rate = Rate { bytes_per_second: 5e6, queue_bytes: 640e3, mtu: 1472 };

const BLOCK: usize = 64 << 10;

fn receive(mut receiver: BulkReceiver) {
    // What becomes of it is the sender's to say; nobody waits for it at the end.
    std::thread::spawn(move || {
        if receive_stream(&mut receiver, &mut io::sink(), &Progress::default()).is_ok() {
            let _ = receiver.finish(Ok(()));
        }
    });
}

/// How long each of so many differences takes, from asking for it to its acknowledgement.
async fn deltas(a: &Node, to: &Node, many: usize) -> Vec<Duration> {
    let mut took = Vec::new();
    for _ in 0..many {
        let stream = synthetic(1, BLOCK, true);
        let started = Instant::now();
        let sender = a.manager.open_bulk(&to.key(), b"", Some(stream.len() as u64)).await.unwrap();
        let sending = spawn_blocking(move || {
            let options = SendOptions { compression: Compression::Off, ..SendOptions::default() };
            send_stream(io::Cursor::new(stream), |_| Ok(()), sender, options, &Progress::default())
        });
        sending.await.unwrap().unwrap();
        took.push(started.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    took.sort();
    took
}

fn share(sorted: &[Duration], percent: usize) -> f64 {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)].as_secs_f64() * 1e3
}

struct Compared {
    alone: Vec<Duration>,
    beside: Vec<Duration>,
    /// What the large one carried meanwhile, as a share of the link.
    used: f64,
}

/// The differences alone, and while everything of another volume is sent, all over QUIC.
async fn compare(many: usize) -> Compared {
    let (mut a, mut b) = (Node::over("a", LaneMode::Quic), Node::over("b", LaneMode::Quic));
    let link = Link::to(&b.address, RATE).await;
    b.trust.insert(a.key());
    a.trust.insert(b.key());
    a.manager.set_peer(b.key(), vec![link.address.clone()]);
    a.up().await;
    b.up().await;
    let mut events = std::mem::replace(&mut b.events, tokio::sync::mpsc::channel(1).1);
    let taking = tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if let PeerEvent::Bulk { receiver, .. } = event {
                receive(receiver);
            }
        }
    });
    deltas(&a, &b, 5).await;
    let alone = deltas(&a, &b, many).await;

    let sender = a.manager.open_bulk(&b.key(), b"", Some(1 << 30)).await.unwrap();
    let (cancel, progress) = (sender.cancel_handle(), std::sync::Arc::new(Progress::default()));
    let told = progress.clone();
    let sending = spawn_blocking(move || {
        let options = SendOptions { compression: Compression::Off, ..SendOptions::default() };
        send_stream(Synthetic::new(1 << 20, BLOCK, true), |_| Ok(()), sender, options, &told)
    });
    // Until it has found the link's limit.
    while progress.raw_bytes() < 8 << 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (started, before) = (Instant::now(), progress.raw_bytes());
    let beside = deltas(&a, &b, many).await;
    let sent = (progress.raw_bytes() - before) as f64 + (many * BLOCK) as f64;
    let used = sent / started.elapsed().as_secs_f64() / RATE.bytes_per_second;
    cancel.cancel("enough was seen");
    let _ = sending.await;
    taking.abort();
    for (what, took) in [("alone", &alone), ("beside", &beside)] {
        let [p50, p90, p99] = [50, 90, 99].map(|percent| share(took, percent));
        println!("{what:6} p50 {p50:6.1} ms, p90 {p90:6.1} ms, p99 {p99:6.1} ms");
    }
    println!("link used {:.0} %, {} datagrams dropped", used * 100.0, link.dropped());
    Compared { alone, beside, used }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_difference_does_not_wait_for_what_a_full_send_has_queued() {
    let Compared { alone, beside, used } = compare(60).await;
    // The nineteenth of twenty: the very last ones are this machine's.
    let (alone, beside) = (share(&alone, 90), share(&beside, 90));
    assert!(beside <= 3.0 * alone, "{beside} ms beside a full send, {alone} ms alone");
    assert!(used > 0.6, "a short queue is no use on an idle link: {used}");
}

/// `cargo nextest run -p flocker-transport --run-ignored only -E 'binary(fairness)' --no-capture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement; it takes half a minute"]
async fn how_long_a_small_difference_waits_beside_a_full_send() {
    compare(400).await;
}
