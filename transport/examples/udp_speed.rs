//! What the gathering socket brings: `cargo run --release -p flocker-transport --example udp_speed
//! [MiB] [rounds] [bare] [case...]`. Sends noise over QUIC between two nodes in this process, by quinn's own socket and by
//! ours, one after the other in each round, and prints medians: GB/s, CPU seconds per GB (10^9 bytes) of both ends,
//! and how long a small message takes there and back on the very connection that carries the bulk. `bare` leaves the
//! pipeline out: no cutting, no hashes, only bytes through the lane.

mod common;

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{BLOCK, Failure, cpu_time, nodes_over, open, stream};
use flocker_transport::lane::Until;
use flocker_transport::{
    BulkReceiver, BulkSender, Cancel, Compression, Fingerprint, LaneMode, PeerEvent, PeerManager,
    Progress, SendOptions, UdpMode, receive_stream, send_stream,
};
use tokio::sync::mpsc;

/// What is compared: a name, and how both nodes send.
const CASES: [(&str, UdpMode); 5] = [
    ("plain-1452", UdpMode::PLAIN.up_to(1452)),
    ("gather-1452", UdpMode::GATHER.up_to(1452)),
    ("plain-6500", UdpMode::PLAIN.up_to(6500)),
    ("plain-8952", UdpMode::PLAIN.up_to(8952)),
    ("gather-8952", UdpMode::GATHER.up_to(8952)),
];

/// As `serve` has it.
const EVENT_INTERVAL: u32 = 16;

struct Round {
    gb_s: f64,
    cpu_s_gb: f64,
    trips: Vec<Duration>,
}

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let mib: usize = args.next().map_or(Ok(1024), |n| n.parse())?;
    let rounds: usize = args.next().map_or(Ok(5), |n| n.parse())?;
    let mut only: Vec<String> = args.collect();
    let bare = only.first().is_some_and(|first| first == "bare");
    if bare {
        only.remove(0);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .event_interval(EVENT_INTERVAL)
        .enable_all()
        .build()?;
    let stream = Bytes::from(stream(mib * (1 << 20) / BLOCK, true)?);
    let cases: Vec<_> = CASES
        .into_iter()
        .filter(|(name, _)| only.is_empty() || only.iter().any(|o| o == name))
        .collect();
    let mut results: Vec<Vec<Round>> = cases.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for ((name, udp), rounds) in cases.iter().zip(&mut results) {
            let round = runtime.block_on(run(*udp, stream.clone(), bare))?;
            eprintln!("{name}: {:.2} GB/s, {:.2} cpu-s/GB", round.gb_s, round.cpu_s_gb);
            rounds.push(round);
        }
    }
    println!("{:12} {:>6} {:>9} {:>9} {:>9}", "", "GB/s", "cpu-s/GB", "trip p50", "p99");
    for ((name, _), rounds) in cases.iter().zip(results) {
        let median = |pick: fn(&Round) -> f64| {
            let mut all: Vec<f64> = rounds.iter().map(pick).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied().unwrap_or_default()
        };
        let mut trips: Vec<_> = rounds.iter().flat_map(|r| r.trips.iter().copied()).collect();
        trips.sort();
        let at = |share: usize| trips.get(trips.len() * share / 100).copied().unwrap_or_default();
        println!(
            "{name:12} {:6.2} {:9.2} {:6} us {:6} us",
            median(|r| r.gb_s),
            median(|r| r.cpu_s_gb),
            at(50).as_micros(),
            at(99).as_micros()
        );
    }
    Ok(())
}

async fn run(udp: UdpMode, stream: Bytes, bare: bool) -> Result<Round, Failure> {
    let (a, b, mut from_a, mut from_b) = nodes_over(LaneMode::Quic, udp).await?;
    let len = stream.len();
    let (sender, receiver) = open(&a, &b, &mut from_b, Some(len as u64)).await?;
    let (key, b) = (b.fingerprint(), std::sync::Arc::new(b));
    let echo = tokio::spawn({
        let (b, a) = (std::sync::Arc::clone(&b), a.fingerprint());
        async move { answer(&b, &a, &mut from_b).await }
    });
    let (started, cpu) = (Instant::now(), cpu_time()?);
    let receiving = tokio::task::spawn_blocking(move || receive(receiver, bare));
    let mut sending = tokio::task::spawn_blocking(move || send(sender, stream, bare));
    let mut trips = Vec::new();
    loop {
        tokio::select! {
            sent = &mut sending => {
                sent??;
                break;
            }
            trip = trip(&a, &key, &mut from_a) => trips.push(trip?),
        }
    }
    receiving.await??;
    let (wall, cpu) = (started.elapsed(), cpu_time()?.saturating_sub(cpu));
    echo.abort();
    let gb = len as f64 / 1e9;
    Ok(Round { gb_s: gb / wall.as_secs_f64(), cpu_s_gb: cpu.as_secs_f64() / gb, trips })
}

/// What a worker compresses at once, and the lane is given.
const PIECE: usize = 1 << 20;

fn send(sender: BulkSender, stream: Bytes, bare: bool) -> Result<(), Failure> {
    if !bare {
        let (options, progress) = (
            SendOptions { compression: Compression::Off, ..SendOptions::default() },
            Progress::default(),
        );
        send_stream(io::Cursor::new(stream), |_| Ok(()), sender, options, &progress)?;
        return Ok(());
    }
    let (mut lane, never) = (sender.into_lane(), Cancel::default());
    for at in (0..stream.len()).step_by(PIECE) {
        let piece = stream.slice(at..stream.len().min(at + PIECE));
        lane.send.send(&mut [piece], Until::Cancelled(&never))?;
    }
    lane.send.finish()?;
    Ok(lane.send.drained(Until::Cancelled(&never))?)
}

fn receive(mut receiver: BulkReceiver, bare: bool) -> Result<(), Failure> {
    if !bare {
        receive_stream(&mut receiver, &mut io::sink(), &Progress::default())?;
        return Ok(receiver.finish(Ok(()))?);
    }
    let (mut lane, never) = (receiver.into_lane(), Cancel::default());
    let mut buf = vec![0; PIECE];
    // The last piece is shorter, and its end an error; the sender says whether all was taken.
    while lane.recv.fill(&mut buf, Until::Cancelled(&never)) == Ok(true) {}
    Ok(())
}

/// One small message there and back, a little after the last one.
async fn trip(
    a: &PeerManager,
    b: &Fingerprint,
    events: &mut mpsc::Receiver<PeerEvent>,
) -> Result<Duration, Failure> {
    tokio::time::sleep(Duration::from_millis(2)).await;
    let started = Instant::now();
    a.send_control(b, Bytes::from_static(b"ping")).await?;
    loop {
        match events.recv().await {
            Some(PeerEvent::Control { .. }) => return Ok(started.elapsed()),
            Some(_) => {}
            None => return Err("the node ended".into()),
        }
    }
}

async fn answer(b: &PeerManager, a: &Fingerprint, events: &mut mpsc::Receiver<PeerEvent>) {
    while let Some(event) = events.recv().await {
        if let PeerEvent::Control { payload, .. } = event {
            let _ = b.send_control(a, payload).await;
        }
    }
}
