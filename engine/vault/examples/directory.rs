//! How long a directory volume of many files takes to snapshot, to send, to check out and to activate.
//!
//! `cargo run --release -p flocker-vault --example directory -- DIRECTORY [FILES]`

use std::io::{Read, Write};
use std::time::Instant;

use flocker_store::{
    DatasetKind, DatasetName, Guid, ReceiveSpec, SendBase, SendSpec, Snapshot, SnapshotSpec, Store,
};
use flocker_vault::Vault;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: directory DIRECTORY [FILES]")?;
    let files: usize = args.next().map_or(Ok(50_000), |a| a.parse())?;
    let dataset = DatasetName::new("vault/d")?;
    let (source, target) =
        (Vault::create(format!("{dir}/source"))?, Vault::create(format!("{dir}/target"))?);
    source.create(&dataset, DatasetKind::Directory)?;
    let live = source.live_path(&dataset);
    timed("made the files", || {
        for at in 0..files {
            let below = live.join(format!("{}", at % 100));
            std::fs::create_dir_all(&below)?;
            std::fs::write(below.join(format!("{at}")), format!("{at}").repeat(at % 500))?;
        }
        Ok(())
    })?;
    let first = timed("first snapshot", || take(&source, "1"))?;
    let mut base = timed("second snapshot, what was fresh is read again", || take(&source, "2"))?;
    timed("full step", || step(&source, &target, None, &base))?;
    timed("checkout of everything", || Ok(target.prepare(&dataset)?))?;
    source.destroy_snapshots(&[first.name])?;
    for round in 3..6 {
        std::fs::write(live.join("5/5"), format!("round {round}"))?;
        std::thread::sleep(std::time::Duration::from_millis(40));
        let now = timed("snapshot after one change", || take(&source, &round.to_string()))?;
        timed("step", || step(&source, &target, Some(&base), &now))?;
        timed("checkout of the step", || Ok(target.prepare(&dataset)?))?;
        base = now;
    }
    timed("fence", || Ok(source.fence(&dataset)?))?;
    let last = timed("last snapshot", || take(&source, "last"))?;
    timed("proof that nothing was written", || Ok(source.verify_unwritten(&last.name)?))?;
    timed("last step", || step(&source, &target, Some(&base), &last))?;
    timed("activation", || Ok(target.activate(&dataset)?))?;
    Ok(())
}

fn timed<T>(what: &str, work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    let start = Instant::now();
    let done = work()?;
    println!("{:9.1} ms  {what}", start.elapsed().as_secs_f64() * 1000.0);
    Ok(done)
}

fn take(vault: &Vault, name: &str) -> Outcome<Snapshot> {
    let spec = SnapshotSpec {
        names: vec![format!("vault/d@{name}").parse()?],
        quiesced: true,
        properties: Default::default(),
    };
    Ok(vault.snapshot(&spec)?.remove(0))
}

fn step(source: &Vault, target: &Vault, from: Option<&Snapshot>, to: &Snapshot) -> Outcome<()> {
    let mut stream = source.send(&SendSpec {
        from: from.map(|from| SendBase::Snapshot(from.name.clone())),
        to: to.name.clone(),
        compressed: true,
        large_blocks: true,
        raw: false,
        resume: None,
    })?;
    let mut incoming = target.receive(&ReceiveSpec {
        dataset: to.name.dataset().clone(),
        snapshot: to.name.clone(),
        to_guid: to.guid,
        from_guid: from.map(|from| Guid(from.guid.0)),
        resumable: false,
        origin: None,
    })?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            n => incoming.write_all(&buffer[..n])?,
        }
    }
    stream.finish()?;
    incoming.commit()?;
    Ok(())
}
