//! Where the checks work: one store, the shell beside it, and the steps that every check takes.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use flocker_store::{
    DatasetName, Guid, Inventory, ReceiveSpec, SendBase, SendSpec, Snapshot, SnapshotSpec, Store,
    StoreError,
};

use flocker_zfs::ZfsOptions;

use super::{NotHere, Trouble};

/// One store and a check's own corner in it.
pub struct Site {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Below which this check works.
    pub root: DatasetName,
    /// A second pool, if there is one to use up.
    pub spare: Option<DatasetName>,
    /// How stores are opened.
    pub options: ZfsOptions,
}

impl Site {
    /// `root/leaf`.
    pub fn at(&self, leaf: &str) -> DatasetName {
        self.root.child(leaf).expect("a name")
    }

    /// Runs a command that has to succeed, and returns its stdout.
    ///
    /// # Errors
    /// Its words, status and stderr.
    pub fn run(&self, words: &[&str]) -> Result<String, Trouble> {
        let done = Command::new(words[0]).args(&words[1..]).env("LC_ALL", "C").output()?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            return Err(format!("{}: {}: {said}", words.join(" "), done.status).into());
        }
        Ok(String::from_utf8_lossy(&done.stdout).trim_end().to_owned())
    }

    /// Runs a shell script that has to succeed.
    ///
    /// # Errors
    /// As [`Site::run`].
    pub fn shell(&self, script: &str) -> Result<String, Trouble> {
        self.run(&["sh", "-ec", script])
    }

    /// One property of a dataset, as `zfs get` says it.
    ///
    /// # Errors
    /// As [`Site::run`].
    pub fn get(&self, property: &str, name: &str) -> Result<String, Trouble> {
        self.run(&["zfs", "get", "-Hp", "-o", "value", property, name])
    }

    /// Makes a filesystem with these `-o` options, and mounts it through the store.
    ///
    /// # Errors
    /// ZFS says no.
    pub fn filesystem(
        &self,
        leaf: &str,
        options: &[&str],
    ) -> Result<(DatasetName, PathBuf), Trouble> {
        let dataset = self.at(leaf);
        let mut words = vec!["zfs", "create", "-p"];
        for option in options {
            words.extend(["-o", option]);
        }
        words.push(dataset.as_str());
        self.run(&words)?;
        let path = self.store.activate(&dataset)?.ok_or("no path")?;
        Ok((dataset, path))
    }

    /// Takes one snapshot.
    ///
    /// # Errors
    /// The store says no.
    pub fn snapshot(&self, dataset: &DatasetName, short: &str) -> Result<Snapshot, Trouble> {
        let spec = SnapshotSpec {
            names: vec![dataset.snapshot(short)?],
            quiesced: false,
            properties: Default::default(),
        };
        Ok(self.store.snapshot(&spec)?.remove(0))
    }

    /// Whether the store can make raw streams; else the check does not apply.
    ///
    /// # Errors
    /// [`NotHere`].
    pub fn needs(&self, can: bool, what: &str) -> Result<(), Trouble> {
        if can {
            return Ok(());
        }
        Err(NotHere(format!("{} has no {what}", self.store.capabilities().version)).into())
    }

    /// The send of `to` from `from`, with the flags that the engine would use.
    pub fn send_spec(&self, from: Option<&Snapshot>, to: &Snapshot, raw: bool) -> SendSpec {
        let can = self.store.capabilities();
        SendSpec {
            from: from.map(|s| SendBase::Snapshot(s.name.clone())),
            to: to.name.clone(),
            compressed: can.compressed_send,
            large_blocks: can.large_block_send,
            raw,
            resume: None,
        }
    }

    /// What receives that send into `into`.
    ///
    /// # Errors
    /// The name is too long.
    pub fn receive_spec(
        &self,
        from: Option<Guid>,
        to: &Snapshot,
        into: &DatasetName,
    ) -> Result<ReceiveSpec, Trouble> {
        Ok(ReceiveSpec {
            dataset: into.clone(),
            snapshot: into.snapshot(to.name.short())?,
            to_guid: to.guid,
            from_guid: from,
            resumable: false,
            origin: None,
        })
    }

    /// Sends and receives, and returns what was received and the length of the stream.
    ///
    /// # Errors
    /// Either side's.
    pub fn pass(&self, send: &SendSpec, receive: &ReceiveSpec) -> Result<(Snapshot, u64), Trouble> {
        let mut from = self.store.send(send)?;
        let mut into = self.store.receive(receive)?;
        let mut buffer = vec![0; 256 << 10];
        let mut bytes = 0;
        loop {
            let n = from.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            bytes += n as u64;
            if into.write_all(&buffer[..n]).is_err() {
                // The store's own words come from its verdict.
                return Err(into.commit().err().map_or("a write failed".into(), Trouble::from));
            }
        }
        from.finish()?;
        Ok((into.commit()?, bytes))
    }

    /// One step as the engine makes it: from the newest snapshot that `into` has.
    ///
    /// # Errors
    /// Either side's.
    pub fn step(&self, to: &Snapshot, into: &DatasetName, raw: bool) -> Result<u64, Trouble> {
        let base = match self.store.inventory(into) {
            Ok(there) => there.latest().map(|s| s.guid),
            Err(StoreError::NoDataset { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let ours = self.store.inventory(to.name.dataset())?;
        let from = base.map(|guid| ours.snapshot(guid).cloned().ok_or("the base is not here"));
        let from = from.transpose()?;
        let send = self.send_spec(from.as_ref(), to, raw);
        let (received, bytes) = self.pass(&send, &self.receive_spec(base, to, into)?)?;
        crate::ensure!(received.guid == to.guid, "received {} for {}", received.guid, to.guid);
        Ok(bytes)
    }

    /// Inventory of a dataset.
    ///
    /// # Errors
    /// The store's.
    pub fn inventory(&self, dataset: &DatasetName) -> Result<Inventory, Trouble> {
        Ok(self.store.inventory(dataset)?)
    }
}
