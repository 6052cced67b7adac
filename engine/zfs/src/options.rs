//! Settings of the store: where the commands are and how long they may take.

use std::path::PathBuf;
use std::time::Duration;

/// Longest time a metadata command (all but send and receive) may take.
pub const METADATA_LIMIT: Duration = Duration::from_secs(60);

/// By which way ZFS is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// libzfs_core where it is there and can do it, else the commands.
    #[default]
    Auto,
    /// The commands alone.
    Command,
    /// As `Auto`, and an error where the library is not there.
    Library,
}

impl std::str::FromStr for Engine {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Self::Auto),
            "command" => Ok(Self::Command),
            "library" => Ok(Self::Library),
            other => Err(format!("`{other}` is none of auto, command, library")),
        }
    }
}

/// Settings of a [`crate::ZfsStore`].
#[derive(Debug, Clone)]
pub struct ZfsOptions {
    /// The `zfs` command: a path, or a name looked up in `PATH`.
    pub zfs: PathBuf,
    /// The `zpool` command.
    pub zpool: PathBuf,
    /// Where a dataset without a mountpoint of its own is mounted (`mount_root/leaf`).
    pub mount_root: Option<PathBuf>,
    /// Longest time of a metadata command; then it is killed.
    pub metadata_limit: Duration,
    /// By which way ZFS is spoken to.
    pub engine: Engine,
}

impl Default for ZfsOptions {
    fn default() -> Self {
        Self {
            zfs: "zfs".into(),
            zpool: "zpool".into(),
            mount_root: None,
            metadata_limit: METADATA_LIMIT,
            engine: Engine::Auto,
        }
    }
}
