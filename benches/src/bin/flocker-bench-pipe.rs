//! The product's bulk path between pipes: `flocker-bench-pipe send` reads a stream from standard input,
//! `flocker-bench-pipe receive` in another process writes it to standard output. Between them is what the daemon has:
//! two nodes with their keys, the same connection, lanes, frames, hashes, dedup and answers, by the same calls.
//!
//! With files instead of standard input each is a transfer of its own, at the same time, through a `cat`; the receiver
//! then passes each to a `cat >/dev/null`.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use flocker_benches::nodes::{Keys, Node, runtime};
use flocker_benches::{pipes, streams};
use flocker_transport::{
    Compression, LaneMode, Progress, SendOptions, receive_stream, send_stream,
};

#[derive(Parser)]
#[command(about = "The product's bulk path between pipes")]
struct Cli {
    #[command(subcommand)]
    command: What,
}

#[derive(Subcommand)]
enum What {
    /// Read a stream from standard input and send it.
    Send(Send),
    /// Receive a stream and write it to standard output.
    Receive(Receive),
    /// Write a stream to measure with into a file.
    Make(Make),
}

#[derive(Clone, Copy, ValueEnum)]
enum Lane {
    Auto,
    Quic,
    Tls,
}

impl From<Lane> for LaneMode {
    fn from(lane: Lane) -> Self {
        match lane {
            Lane::Auto => Self::Auto,
            Lane::Quic => Self::Quic,
            Lane::Tls => Self::Tls,
        }
    }
}

#[derive(Args)]
struct Send {
    /// Directory with the keys of both nodes.
    #[arg(long)]
    keys: PathBuf,
    /// Where the receiver listens.
    #[arg(long)]
    to: SocketAddr,
    #[arg(long, value_enum, default_value = "auto")]
    lane: Lane,
    /// `auto`, `off`, or a level of zstd.
    #[arg(long, allow_negative_numbers = true, default_value = "off", value_parser = compression)]
    compression: Compression,
    /// Estimated bytes of each transfer, which the choice of a lane goes by.
    #[arg(long, default_value_t = u64::MAX)]
    bytes: u64,
    /// Where to write what was sent, as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Streams to send, each in a transfer of its own; none: standard input.
    files: Vec<PathBuf>,
}

fn compression(text: &str) -> Result<Compression, String> {
    match text {
        "auto" => Ok(Compression::Adaptive),
        "off" => Ok(Compression::Off),
        level => level.parse().map(Compression::Level).map_err(|error| format!("{level}: {error}")),
    }
}

#[derive(Args)]
struct Receive {
    #[arg(long)]
    keys: PathBuf,
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    #[arg(long, value_enum, default_value = "auto")]
    lane: Lane,
    /// Directory of the cache of blocks; without it nothing is deduplicated.
    #[arg(long)]
    cache: Option<PathBuf>,
    /// File that gets the address once it listens.
    #[arg(long)]
    ready: PathBuf,
    /// Discard so many transfers instead of writing one to standard output.
    #[arg(long)]
    discard: Option<usize>,
}

#[derive(Args)]
struct Make {
    #[arg(value_enum)]
    kind: streams::Kind,
    file: PathBuf,
    #[arg(long, default_value_t = 1024)]
    mib: u64,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        What::Send(args) => runtime()?.block_on(send(args)),
        What::Receive(args) => runtime()?.block_on(receive(args)),
        What::Make(args) => make(&args),
    }
}

async fn send(args: Send) -> anyhow::Result<()> {
    let node = Node::sender(&Keys::load_or_create(&args.keys)?, args.to, args.lane.into()).await?;
    let mut inputs: Vec<(Option<Child>, File)> = Vec::new();
    for file in &args.files {
        let (child, out) = pipes::reading(file)?;
        inputs.push((Some(child), out));
    }
    if inputs.is_empty() {
        inputs.push((None, pipes::input()?));
    }
    let started = Instant::now();
    let mut sending = Vec::new();
    for (child, input) in inputs {
        let sink = node.open(Some(args.bytes)).await?;
        let (lane, options) =
            (sink.kind(), SendOptions { compression: args.compression, ..SendOptions::default() });
        sending.push(tokio::task::spawn_blocking(move || {
            let sent = send_stream(input, |_| Ok(()), sink, options, &Progress::default());
            child.map_or(Ok(None), |mut child| child.wait().map(Some))?;
            anyhow::Ok((sent?, lane))
        }));
    }
    let (mut raw, mut wire, mut saved, mut lanes) = (0, 0, 0, Vec::new());
    for sent in sending {
        let (report, lane) = sent.await??;
        raw += report.raw_bytes;
        wire += report.wire_bytes;
        saved += report.saved_bytes;
        lanes.push(lane.to_string());
    }
    let seconds = started.elapsed().as_secs_f64();
    if let Some(file) = &args.report {
        let report = serde_json::json!({
            "raw_bytes": raw, "wire_bytes": wire, "saved_bytes": saved, "lanes": lanes, "seconds": seconds,
        });
        std::fs::write(file, report.to_string())?;
    }
    node.manager.close().await;
    Ok(())
}

async fn receive(args: Receive) -> anyhow::Result<()> {
    let keys = Keys::load_or_create(&args.keys)?;
    let mut node = Node::receiver(&keys, args.listen, args.lane.into())?;
    if let Some(directory) = &args.cache {
        node.keep_cache(directory)?;
    }
    say_ready(&args.ready, node.manager.local_addr()?)?;
    let mut receiving = Vec::new();
    for _ in 0..args.discard.unwrap_or(1) {
        let mut receiver = node.opened().await?;
        let (child, mut output) = match args.discard {
            Some(_) => {
                let (child, output) = pipes::discarding()?;
                (Some(child), output)
            }
            None => (None, pipes::output()?),
        };
        receiving.push(tokio::task::spawn_blocking(move || {
            receive_stream(&mut receiver, &mut output, &Progress::default())?;
            drop(output);
            let ended = child.map(|mut child| child.wait()).transpose()?;
            ensure!(ended.is_none_or(|status| status.success()), "cat failed");
            // A sender that has heard it may be gone before this knows that it has.
            let _ = receiver.finish(Ok(()));
            Ok(())
        }));
    }
    for received in receiving {
        received.await??;
    }
    node.manager.close().await;
    Ok(())
}

/// Whoever waits for the file finds it whole.
fn say_ready(file: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let part = file.with_extension("part");
    std::fs::write(&part, address.to_string())
        .and_then(|()| std::fs::rename(&part, file))
        .with_context(|| format!("cannot write {}", file.display()))
}

fn make(args: &Make) -> anyhow::Result<()> {
    let file =
        File::create(&args.file).with_context(|| format!("cannot make {}", args.file.display()))?;
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    let bytes = streams::write(args.kind, args.mib << 20, &mut out)?;
    out.into_inner()?;
    println!("{bytes}");
    Ok(())
}
