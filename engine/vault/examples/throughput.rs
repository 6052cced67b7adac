//! How fast a vault receives and sends one big file, and with how much memory.
//!
//! `cargo run --release -p flocker-vault --example throughput -- DIRECTORY [MIB] [BLOCK_KIB]`

use std::io::{Read, Write};
use std::time::Instant;

use flocker_store::{Guid, ReceiveSpec, SendSpec, SnapshotName, Store};
use flocker_vault::Vault;
use zfs_stream::format::objset;
use zfs_stream::record::{Begin, End, Object, Record};
use zfs_stream::{Compression, Seal, Writer};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: throughput DIRECTORY [MIB] [BLOCK_KIB]")?;
    let mib: u64 = args.next().map_or(Ok(1024), |a| a.parse())?;
    let block: u64 = args.next().map_or(Ok(128), |a| a.parse::<u64>())? << 10;
    for (what, noise) in [("noise", true), ("text", false)] {
        let vault = Vault::create(format!("{dir}/{what}"))?;
        let to: SnapshotName = "vault/d@1".parse()?;
        let start = Instant::now();
        receive(&vault, &to, mib << 20, block, noise)?;
        report(what, "received", mib, start);
        let start = Instant::now();
        let spec = SendSpec {
            from: None,
            to,
            compressed: true,
            large_blocks: true,
            raw: false,
            resume: None,
        };
        let (mut stream, mut buffer, mut sent) = (vault.send(&spec)?, vec![0; 1 << 20], 0u64);
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                n => sent += n as u64,
            }
        }
        stream.finish()?;
        report(what, "sent", sent >> 20, start);
    }
    Ok(())
}

fn receive(vault: &Vault, to: &SnapshotName, bytes: u64, block: u64, noise: bool) -> Outcome<()> {
    let guid = 42;
    let mut writer = Writer::new(Seal::PerRecord);
    let mut incoming = vault.receive(&ReceiveSpec {
        dataset: to.dataset().clone(),
        snapshot: to.clone(),
        to_guid: Guid(guid),
        from_guid: None,
        resumable: false,
        origin: None,
    })?;
    let mut chunk = Vec::new();
    let begin = Begin { objset_type: objset::ZVOL, to_guid: guid, ..Begin::default() };
    writer.record(&Record::Begin(begin), &[], &mut chunk)?;
    let object = Object {
        object: 1,
        object_type: 23,
        block_size: u32::try_from(block)?,
        to_guid: guid,
        ..Object::default()
    };
    writer.record(&Record::Object(object), &[], &mut chunk)?;
    let mut payload = vec![0; usize::try_from(block)?];
    let mut state = 1u64;
    for at in 0..bytes / block {
        fill(&mut payload, &mut state, noise);
        let write = zfs_stream::record::Write {
            object: 1,
            object_type: 23,
            offset: at * block,
            logical_size: block,
            compression: Compression::NONE,
            to_guid: guid,
            ..Default::default()
        };
        writer.record(&Record::Write(write), &payload, &mut chunk)?;
        if chunk.len() >= 1 << 20 {
            incoming.write_all(&chunk)?;
            chunk.clear();
        }
    }
    let end = End { to_guid: guid, ..End::default() };
    writer.record(&Record::End(end), &[], &mut chunk)?;
    incoming.write_all(&chunk)?;
    incoming.commit()?;
    Ok(())
}

/// xorshift; for text only a few bits of each word, so that it compresses.
fn fill(payload: &mut [u8], state: &mut u64, noise: bool) {
    for word in payload.chunks_exact_mut(8) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        let value = if noise { *state } else { *state & 0x0303_0003_0000_0301 };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

fn report(what: &str, verb: &str, mib: u64, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or_default();
    println!(
        "{what}: {verb} {mib} MiB in {seconds:.2} s, {:.0} MiB/s; {peak}",
        mib as f64 / seconds
    );
}
