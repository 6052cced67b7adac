//! How fast a stream moves, and what it costs: `cargo run --release -p flocker-transport --example
//! lane_speed [noise|text] [MiB] [quic|tls|auto|memory|small]`. `auto` measures both lanes first and prints
//! what it chose. `small` sends 128 KiB steps one after another over a warm connection and prints how long one takes,
//! from asking for it to its acknowledgement. Both nodes are in this one process, so the CPU seconds are those of both
//! ends; the stream is sound and made in memory before the clock starts.

mod common;

use std::io;
use std::time::Instant;

use common::{Failure, cpu_time, nodes, open, stream};
use flocker_transport::{
    BulkReceiver, BulkSender, LaneMode, Progress, Resources, SendOptions, lane, receive_stream,
    send_stream,
};

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let noise = args.next().as_deref() != Some("text");
    let mib: usize = args.next().map_or(Ok(1024), |n| n.parse())?;
    let lane = args.next().unwrap_or_default();
    if lane == "small" {
        return small(stream(1, noise)?).await;
    }
    let memory = lane == "memory";
    let stream = stream(mib * 8, noise)?;
    // Held until the end: dropping a node closes its connection.
    let mode = match lane.as_str() {
        "tls" => LaneMode::Tls,
        "auto" => LaneMode::Auto,
        _ => LaneMode::Quic,
    };
    let mut nodes = if memory { None } else { Some(nodes(mode).await?) };
    let (sender, receiver) = match &mut nodes {
        Some((a, b, events)) => {
            let opened = open(a, b, events, Some(stream.len() as u64)).await?;
            if let Some(status) = a.peers().into_iter().find_map(|peer| peer.lane) {
                println!("{status:?}");
            }
            opened
        }
        None => {
            let (a, b, _) = lane::memory::pair();
            let (here, there) = (Resources::start()?, Resources::start()?);
            (BulkSender::over(a, here), BulkReceiver::over(b, there))
        }
    };
    let (started, cpu) = (Instant::now(), cpu_time()?);
    let receiving = tokio::task::spawn_blocking(move || {
        let mut receiver = receiver;
        receive_stream(&mut receiver, &mut io::sink(), &Progress::default())?;
        receiver.finish(Ok(()))?;
        Ok::<_, Failure>(())
    });
    let sending = tokio::task::spawn_blocking(move || {
        let options = SendOptions::default();
        send_stream(io::Cursor::new(stream), |_| Ok(()), sender, options, &Progress::default())
    });
    let report = sending.await??;
    receiving.await??;
    let (wall, cpu) = (started.elapsed(), cpu_time()?.saturating_sub(cpu));
    let gb = report.raw_bytes as f64 / 1e9;
    println!(
        "{:.2} GB/s, {:.2} cpu-s/GB, ratio {:.2}, {} batches ({} stored), {}",
        gb / wall.as_secs_f64(),
        cpu.as_secs_f64() / gb,
        report.raw_bytes as f64 / report.wire_bytes as f64,
        report.batches,
        report.stored_batches,
        peak_memory()?
    );
    Ok(())
}

async fn small(stream: Vec<u8>) -> Result<(), Failure> {
    let (a, b, mut events) = nodes(LaneMode::Quic).await?;
    let mut took = Vec::new();
    for _ in 0..300 {
        let (started, stream) = (Instant::now(), stream.clone());
        let (sender, receiver) = open(&a, &b, &mut events, None).await?;
        let receiving = tokio::task::spawn_blocking(move || {
            let mut receiver = receiver;
            receive_stream(&mut receiver, &mut io::sink(), &Progress::default())?;
            receiver.finish(Ok(()))?;
            Ok::<_, Failure>(())
        });
        let sending = tokio::task::spawn_blocking(move || {
            let options = SendOptions::default();
            send_stream(io::Cursor::new(stream), |_| Ok(()), sender, options, &Progress::default())
        });
        sending.await??;
        took.push(started.elapsed());
        receiving.await??;
    }
    took.sort();
    println!("one step: p50 {:?}, p90 {:?}, p99 {:?}", took[150], took[270], took[297]);
    Ok(())
}

fn peak_memory() -> io::Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        |name: &str| status.lines().find(|l| l.starts_with(name)).unwrap_or_default().to_owned();
    Ok(format!("{} (the stream itself included)", line("VmHWM")))
}
