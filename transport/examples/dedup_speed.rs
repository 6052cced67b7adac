//! What dedup saves and costs: `cargo run --release -p flocker-transport --example dedup_speed [noise|text]
//! [MiB] [rounds] [percent]`. A stream of 128 KiB records, `percent` of them copies of earlier ones drawn from
//! all that went before, goes between two nodes over QUIC, in turn without and with dedup, each time between
//! nodes that know nothing of each other. Both are in this one process, so the CPU seconds are those of
//! both ends; the stream is sound and made in memory before the clock starts.

mod common;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use common::{BLOCK, Failure, cpu_time, nodes, open};
use flocker_transport::bulk::dedup::CacheOptions;
use flocker_transport::{LaneMode, Progress, SendOptions, receive_stream, send_stream};
use zfs_stream::record::{Begin, End, Write};
use zfs_stream::{Record, Seal, Writer};

/// The cache's size, in bytes: the default of a node.
const CACHE: u64 = 4 << 30;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let noise = args.next().as_deref() != Some("text");
    let mib: u64 = args.next().map_or(Ok(1280), |n| n.parse())?;
    let rounds: u32 = args.next().map_or(Ok(3), |n| n.parse())?;
    let percent: u64 = args.next().map_or(Ok(50), |n| n.parse())?;
    let stream: Arc<[u8]> = stream(mib * 8, noise, percent)?.into();
    peak_memory(0)?;
    for _ in 0..rounds {
        for dedup in [false, true] {
            run(Arc::clone(&stream), dedup).await?;
        }
    }
    Ok(())
}

async fn run(stream: Arc<[u8]>, dedup: bool) -> Result<(), Failure> {
    let (a, b, mut events) = nodes(LaneMode::Quic).await?;
    let directory = std::env::temp_dir().join(format!("dedup-speed-{}", std::process::id()));
    if dedup {
        let options = CacheOptions { directory: directory.clone(), bytes: CACHE };
        b.resources().dedup().keep_caches(options)?;
    }
    let (sender, mut receiver) = open(&a, &b, &mut events, None).await?;
    let (started, cpu) = (Instant::now(), cpu_time()?);
    let receiving = tokio::task::spawn_blocking(move || {
        receive_stream(&mut receiver, &mut io::sink(), &Progress::default())?;
        receiver.finish(Ok(()))?;
        Ok::<_, Failure>(())
    });
    let sending = tokio::task::spawn_blocking(move || {
        let (read, options) = (io::Cursor::new(stream), SendOptions::default());
        send_stream(read, |_| Ok(()), sender, options, &Progress::default())
    });
    let report = sending.await??;
    receiving.await??;
    let (wall, cpu) = (started.elapsed(), cpu_time()?.saturating_sub(cpu));
    let gb = report.raw_bytes as f64 / 1e9;
    println!(
        "dedup {}: {:.2} GB/s, {:.2} cpu-s/GB, {} bytes on the wire of {}, {} saved, {}",
        if dedup { "on " } else { "off" },
        gb / wall.as_secs_f64(),
        cpu.as_secs_f64() / gb,
        report.wire_bytes,
        report.raw_bytes,
        report.saved_bytes,
        peak_memory(report.raw_bytes)?
    );
    a.close().await;
    b.close().await;
    if dedup {
        std::fs::remove_dir(directory)?;
    }
    Ok(())
}

/// A sound stream of `blocks` blocks, `percent` of them copies.
fn stream(blocks: u64, noise: bool, percent: u64) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::with_capacity(usize::try_from(blocks)? * (BLOCK + 312) + 936);
    let mut writer = Writer::new(Seal::PerRecord);
    let begin =
        Begin { objset_type: 3, to_guid: 7, to_name: b"p/v@s".to_vec(), ..Begin::default() };
    writer.record(&Record::Begin(begin), &[], &mut out)?;
    let (mut block, mut seed, mut unique) = (vec![0; BLOCK], 1_u64, 0_u64);
    for at in 0..blocks {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let copy = unique > 0 && (seed >> 33) % 100 < percent;
        let number = if copy { (seed >> 20) % unique } else { unique };
        unique += u64::from(!copy);
        let mut random = blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof();
        if noise {
            random.fill(&mut block);
        } else {
            // A page of a table: half of it is random, half of it repeats.
            for row in block.chunks_mut(128) {
                random.fill(&mut row[..64]);
                row[64..].copy_from_slice(
                    b"a row of a table whose columns repeat themselves, one by one    ",
                );
            }
        }
        let write = Write {
            object: 1,
            offset: at * BLOCK as u64,
            logical_size: BLOCK as u64,
            to_guid: 7,
            ..Write::default()
        };
        writer.record(&Record::Write(write), &block, &mut out)?;
    }
    writer.record(&Record::End(End { to_guid: 7, ..End::default() }), &[], &mut out)?;
    Ok(out)
}

/// The most this process held since the last call, without the stream of this many bytes.
fn peak_memory(stream_bytes: u64) -> io::Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or_default();
    let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    std::fs::write("/proc/self/clear_refs", "5")?;
    Ok(format!("{} MiB of memory", kib.saturating_sub(stream_bytes / 1024) / 1024))
}
