//! zfs-fuse for tests: a daemon shared by every test process, and pools on files.

use std::path::{Path, PathBuf};

/// Why zfs-fuse cannot be used here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip(pub String);

/// A pool on a file, destroyed when dropped.
#[derive(Debug)]
pub struct FusePool {
    name: String,
    dir: PathBuf,
}

impl FusePool {
    /// Makes a pool of `mib` MiB whose name holds `label` and this process's id; starts the daemon
    /// when it does not run.
    ///
    /// # Errors
    /// [`Skip`] where zfs-fuse cannot run here.
    pub fn create(_label: &str, _mib: u64) -> Result<Self, Skip> {
        Err(Skip("not built yet".into()))
    }

    /// The pool's name, `zfspool…`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.dir
    }
}

/// [`FusePool::create`], or `None` after saying loudly that `test` is skipped and why.
pub fn pool_or_skip(label: &str, mib: u64, test: &str) -> Option<FusePool> {
    match FusePool::create(label, mib) {
        Ok(pool) => Some(pool),
        Err(Skip(why)) => {
            eprintln!("SKIPPED: zfs-fuse: {why} ({test})");
            None
        }
    }
}
