//! Two pools of zfs-fuse with a store on each, and the few words the tests are written in.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of it")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;

use flocker_store::{
    DatasetKind, DatasetName, HoldTag, ReceiveSpec, SendBase, SendSpec, SendStream, Snapshot,
    SnapshotSpec, Store, StoreError,
};
use flocker_zfs::fixture::{FusePool, pool_or_skip};
use flocker_zfs::{ZfsOptions, ZfsStore};

/// A primary's pool and a standby's.
pub struct Pair {
    pub from: ZfsStore,
    pub to: ZfsStore,
    // After the stores, so that a pool goes when nobody uses it any more.
    pub a: FusePool,
    pub b: FusePool,
}

impl Pair {
    pub fn new(label: &str, test: &str) -> Option<Self> {
        Self::sized(label, 128, 128, test)
    }

    pub fn sized(label: &str, from_mib: u64, to_mib: u64, test: &str) -> Option<Self> {
        let a = pool_or_skip(&format!("{label}A"), from_mib, test)?;
        let b = pool_or_skip(&format!("{label}B"), to_mib, test)?;
        let open = |pool: &FusePool| ZfsStore::open(&pool.root(), ZfsOptions::default()).unwrap();
        Some(Self { from: open(&a), to: open(&b), a, b })
    }

    /// A new dataset of the primary, mounted and writable.
    pub fn live(&self, name: &str) -> (DatasetName, PathBuf) {
        let dataset = self.a.dataset(name);
        self.from.create(&dataset, DatasetKind::Filesystem).unwrap();
        let path = self.from.activate(&dataset).unwrap().unwrap();
        (dataset, path)
    }

    pub fn snap(&self, dataset: &DatasetName, short: &str) -> Snapshot {
        let spec = SnapshotSpec {
            names: vec![dataset.snapshot(short).unwrap()],
            quiesced: false,
            properties: BTreeMap::new(),
        };
        self.from.snapshot(&spec).unwrap().remove(0)
    }

    /// One step, as the engine would do it.
    pub fn replicate(
        &self,
        base: Option<&Snapshot>,
        target: &Snapshot,
        into: &DatasetName,
    ) -> Result<Snapshot, StoreError> {
        let mut receive = self.to.receive(&receive_spec(into, base, target))?;
        let mut send = self.from.send(&spec(base, target))?;
        pump(&mut *send, &mut *receive);
        let sent = send.finish();
        let received = receive.commit()?;
        sent?;
        Ok(received)
    }

    pub fn bytes(&self, base: Option<&Snapshot>, target: &Snapshot) -> Vec<u8> {
        let mut stream = self.from.send(&spec(base, target)).unwrap();
        let bytes = read_all(&mut *stream);
        stream.finish().unwrap();
        bytes
    }
}

fn spec(base: Option<&Snapshot>, target: &Snapshot) -> SendSpec {
    match base {
        Some(base) => increment(base, target),
        None => full(target),
    }
}

pub fn full(target: &Snapshot) -> SendSpec {
    SendSpec {
        from: None,
        to: target.name.clone(),
        compressed: false,
        large_blocks: false,
        raw: false,
        resume: None,
    }
}

pub fn increment(base: &Snapshot, target: &Snapshot) -> SendSpec {
    SendSpec { from: Some(SendBase::Snapshot(base.name.clone())), ..full(target) }
}

pub fn receive_spec(into: &DatasetName, base: Option<&Snapshot>, to: &Snapshot) -> ReceiveSpec {
    ReceiveSpec {
        dataset: into.clone(),
        snapshot: into.snapshot(to.name.short()).unwrap(),
        to_guid: to.guid,
        from_guid: base.map(|base| base.guid),
        resumable: false,
        origin: None,
    }
}

pub fn tag(text: &str) -> HoldTag {
    HoldTag(text.to_owned())
}

pub fn read_all(stream: &mut dyn SendStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Copies until one side ends; the verdicts come from `finish` and `commit`.
pub fn pump(from: &mut (impl Read + ?Sized), to: &mut (impl Write + ?Sized)) {
    let mut chunk = vec![0; 1 << 16];
    while let Ok(n) = from.read(&mut chunk) {
        if n == 0 || to.write_all(&chunk[..n]).is_err() {
            break;
        }
    }
}

/// Bytes that do not compress, the same for the same seed (xorshift64).
pub fn unique_bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Runs `zfs` as a person would.
pub fn zfs(args: &[&str]) -> String {
    let output = Command::new("zfs").args(args).output().unwrap();
    assert!(output.status.success(), "zfs {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
