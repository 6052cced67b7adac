//! What a cutover's parts cost on zfs-fuse, next to the bare commands: medians, milliseconds.
//!
//! `cargo run --release -p flocker-zfs --example fence -- [ROUNDS]`

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Instant;

use flocker_store::{DatasetKind, SnapshotSpec, Store};
use flocker_zfs::fixture::FusePool;
use flocker_zfs::{ZfsOptions, ZfsStore};

#[derive(Default)]
struct Table(BTreeMap<&'static str, Vec<f64>>);

impl Table {
    fn time<T>(&mut self, part: &'static str, run: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let outcome = run();
        self.0.entry(part).or_default().push(begun.elapsed().as_secs_f64() * 1000.0);
        outcome
    }

    fn print(&mut self) {
        for (part, times) in &mut self.0 {
            times.sort_by(f64::total_cmp);
            let median = times[times.len() / 2];
            println!("{part:24} {median:8.1} ms   (of {}, least {:.1})", times.len(), times[0]);
        }
    }
}

fn zfs(args: &[&str]) {
    assert!(Command::new("zfs").args(args).status().expect("zfs").success(), "zfs {args:?}");
}

fn main() {
    let rounds: u32 = std::env::args().nth(1).map_or(15, |n| n.parse().expect("a number"));
    let pool = FusePool::create("bench", 256).expect("zfs-fuse");
    let store = ZfsStore::open(&pool.root(), ZfsOptions::default()).expect("a store");
    let dataset = pool.dataset("v");
    store.create(&dataset, DatasetKind::Filesystem).expect("created");
    let path = store.activate(&dataset).expect("activated").expect("a path");
    let mut table = Table::default();
    for round in 0..rounds {
        fs::write(path.join("f"), format!("{round}")).expect("written");
        table.time("fence", || store.fence(&dataset)).expect("fenced");
        let name = dataset.snapshot(&format!("s{round}")).expect("a name");
        let spec =
            SnapshotSpec { names: vec![name.clone()], quiesced: true, properties: BTreeMap::new() };
        table.time("snapshot", || store.snapshot(&spec)).expect("a snapshot");
        table.time("verify unwritten", || store.verify_unwritten(&name)).expect("unwritten");
        table.time("activate (own fence)", || store.activate(&dataset)).expect("activated");

        // By the bare commands, as often.
        fs::write(path.join("f"), format!("{round}!")).expect("written");
        table.time("zfs unmount", || zfs(&["unmount", dataset.as_str()]));
        table.time("zfs mount", || zfs(&["mount", dataset.as_str()]));
        fs::write(path.join("f"), format!("{round}?")).expect("written");
        table.time("zfs unmount", || zfs(&["unmount", dataset.as_str()]));

        // A standby that we have never had mounted.
        let fresh = ZfsStore::open(&pool.root(), ZfsOptions::default()).expect("a store");
        table.time("rehearse", || fresh.rehearse(&dataset)).expect("rehearsed");
        table.time("activate (rehearsed)", || fresh.activate(&dataset)).expect("activated");
    }
    store.fence(&dataset).expect("fenced");
    table.print();
}
