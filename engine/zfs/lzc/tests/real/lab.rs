//! A place in a real pool for one test, and what tests do to it: mounting, writing, pumping streams.
//!
//! `FLOCKER_LZC_POOL=tank`: where. Without it, or without the library, a test skips, loudly and counted
//! (`FLOCKER_SKIP_LOG=FILE`: each reason is there once). `FLOCKER_LZC_ELSEWHERE` set: not counted, since they run
//! in a guest of the lab (`lab_store`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use flocker_lzc::{
    BEGIN_LEN, DatasetType, Errno, Lzc, LzcError, Properties, Receive, Received, ResumePoint,
    SendFlags, Setting,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use zfs_stream::token::ResumeToken;

/// One test's datasets, below one that goes with all of them when the test ends.
pub(crate) struct Lab {
    pub(crate) lzc: Lzc,
    pub(crate) root: String,
    mounts: PathBuf,
}

/// Says loudly that a test was skipped, and writes the reason down where `FLOCKER_SKIP_LOG` says.
fn skipped(why: &str, test: &str) {
    if std::env::var_os("FLOCKER_LZC_ELSEWHERE").is_some_and(|v| !v.is_empty()) {
        eprintln!("not here but in the lab: {test}");
        return;
    }
    eprintln!("SKIPPED: libzfs_core: {why} ({test})");
    if let Some(log) = std::env::var_os("FLOCKER_SKIP_LOG") {
        let file = fs::OpenOptions::new().create(true).append(true).open(log);
        file.and_then(|mut file| writeln!(file, "libzfs_core's own tests: {why}")).unwrap();
    }
}

impl Lab {
    /// `None` after saying why.
    pub(crate) fn or_skip(test: &str) -> Option<Self> {
        let Ok(pool) = std::env::var("FLOCKER_LZC_POOL") else {
            skipped("FLOCKER_LZC_POOL names no pool", test);
            return None;
        };
        match Lzc::open() {
            Ok(lzc) => Some(Self::new(lzc, &pool, test)),
            Err(error) => {
                skipped(&error.to_string(), test);
                None
            }
        }
    }

    fn new(lzc: Lzc, pool: &str, test: &str) -> Self {
        let name = format!("lzc-{}-{}", std::process::id(), &test[..test.len().min(40)]);
        let root = format!("{pool}/{name}");
        lzc.create(&root, DatasetType::Filesystem, &noauto()).unwrap();
        let mounts = std::env::temp_dir().join(name);
        fs::create_dir(&mounts).unwrap();
        Self { lzc, root, mounts }
    }

    pub(crate) fn pool(&self) -> &str {
        self.root.split('/').next().unwrap()
    }

    /// A name in this test's place.
    pub(crate) fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }

    /// A new, unmounted filesystem.
    pub(crate) fn filesystem(&self, name: &str) -> String {
        let name = self.at(name);
        self.lzc.create(&name, DatasetType::Filesystem, &noauto()).unwrap();
        name
    }

    pub(crate) fn snapshot(&self, name: &str) {
        self.lzc.snapshot(&[name], &BTreeMap::new()).unwrap();
    }

    /// Does something with a filesystem while it is mounted, by a system call.
    pub(crate) fn mounted<T>(&self, dataset: &str, work: impl FnOnce(&Path) -> T) -> T {
        let path = self.mounts.join(dataset.replace('/', "_"));
        fs::create_dir_all(&path).unwrap();
        mount(dataset, &path, "zfs", MountFlags::empty(), Some(c"zfsutil")).unwrap();
        let done = work(&path);
        unmount(&path, UnmountFlags::empty()).unwrap();
        done
    }

    pub(crate) fn write(&self, dataset: &str, file: &str, bytes: usize) {
        let bytes = noise(bytes, file.len() as u64 + bytes as u64);
        self.mounted(dataset, |path| fs::write(path.join(file), &bytes).unwrap());
    }

    pub(crate) fn read(&self, dataset: &str, file: &str) -> Vec<u8> {
        self.mounted(dataset, |path| fs::read(path.join(file)).unwrap())
    }

    pub(crate) fn property(&self, dataset: &str, property: &str) -> Option<flocker_lzc::Property> {
        let found = self.lzc.stats(dataset).unwrap();
        found.unwrap_or_else(|| panic!("{dataset} exists")).properties.remove(property)
    }

    pub(crate) fn number(&self, dataset: &str, property: &str) -> u64 {
        self.property(dataset, property).unwrap().value.number().unwrap()
    }

    pub(crate) fn text(&self, dataset: &str, property: &str) -> String {
        self.property(dataset, property).unwrap().value.text().unwrap().to_owned()
    }

    pub(crate) fn token(&self, dataset: &str) -> Option<ResumeToken> {
        let token = self.lzc.inventory(dataset).unwrap().resume_token?;
        Some(token.parse().unwrap())
    }

    /// A whole stream.
    pub(crate) fn stream(&self, snapshot: &str, from: Option<&str>, flags: SendFlags) -> Vec<u8> {
        self.collect(|lzc, to| lzc.send(snapshot, from, to, flags)).unwrap()
    }

    /// What is missing of a stream.
    pub(crate) fn rest(&self, snapshot: &str, flags: SendFlags, point: ResumePoint) -> Vec<u8> {
        self.collect(|lzc, to| lzc.send_resume(snapshot, None, to, flags, point)).unwrap()
    }

    /// What a send writes into its pipe.
    pub(crate) fn collect(
        &self,
        send: impl FnOnce(&Lzc, OwnedFd) -> Result<(), LzcError>,
    ) -> Result<Vec<u8>, LzcError> {
        let (from, to) = rustix::pipe::pipe().unwrap();
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            File::from(from).read_to_end(&mut bytes).unwrap();
            bytes
        });
        // The pipe's end goes with the send.
        send(&self.lzc, to)?;
        Ok(reader.join().unwrap())
    }

    /// Receives a stream, or as much of it as there is, as a standby: `canmount=noauto`.
    pub(crate) fn receive(&self, snapshot: &str, stream: &[u8]) -> Result<Received, LzcError> {
        self.receive_with(snapshot, stream, None, &noauto(), false)
    }

    pub(crate) fn receive_resumable(
        &self,
        snapshot: &str,
        stream: &[u8],
    ) -> Result<Received, LzcError> {
        self.receive_with(snapshot, stream, None, &noauto(), true)
    }

    pub(crate) fn receive_with(
        &self,
        snapshot: &str,
        stream: &[u8],
        origin: Option<&str>,
        local: &Properties,
        resumable: bool,
    ) -> Result<Received, LzcError> {
        let (from, to) = rustix::pipe::pipe().unwrap();
        let begin: [u8; BEGIN_LEN] = stream[..BEGIN_LEN].try_into().unwrap();
        let rest = stream[BEGIN_LEN..].to_vec();
        let writer = thread::spawn(move || {
            // A receive that refuses does not read to the end.
            let _ = File::from(to).write_all(&rest);
        });
        let received = self.lzc.receive(Receive {
            snapshot,
            origin,
            received: &Properties::new(),
            local,
            resumable,
            begin: &begin,
            input: from.as_fd(),
        });
        drop(from);
        writer.join().unwrap();
        received
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Whatever the test has left: it is the pool's last resort, and no part of what is tested.
        let held = Command::new("zfs")
            .args(["list", "-Hrt", "snapshot", "-o", "name", &self.root])
            .output();
        for snapshot in String::from_utf8_lossy(&held.unwrap().stdout).lines() {
            let tags = self.lzc.holds(snapshot).unwrap_or_default().into_keys().collect();
            let _ = self.lzc.release(&[(snapshot.to_owned(), tags)].into());
        }
        let gone = Command::new("zfs").args(["destroy", "-R", &self.root]).output().unwrap();
        if !gone.status.success() && !thread::panicking() {
            panic!("{}", String::from_utf8_lossy(&gone.stderr));
        }
        let _ = fs::remove_dir_all(&self.mounts);
    }
}

pub(crate) fn noauto() -> Properties {
    [("canmount".to_owned(), Setting::CANMOUNT_NOAUTO)].into()
}

/// Bytes that do not compress.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    std::iter::repeat_with(|| next().to_le_bytes()).flatten().take(len).collect()
}

/// Runs the command; its output, trimmed.
pub(crate) fn zfs(words: &[&str]) -> String {
    let done = Command::new("zfs").args(words).output().unwrap();
    assert!(done.status.success(), "zfs {words:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

/// The error number of what has to fail.
#[track_caller]
pub(crate) fn errno<T: std::fmt::Debug>(outcome: Result<T, LzcError>) -> Errno {
    let error = outcome.unwrap_err();
    error.errno().unwrap_or_else(|| panic!("{error}"))
}

/// The error numbers by name of what has to fail.
#[track_caller]
pub(crate) fn names<T: std::fmt::Debug>(outcome: Result<T, LzcError>) -> Vec<(String, Errno)> {
    let error = outcome.unwrap_err();
    let names = error.names().unwrap_or_else(|| panic!("{error}"));
    names.by_name.clone().into_iter().collect()
}
