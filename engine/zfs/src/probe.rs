//! Which ZFS is here, and what it can do.
//!
//! Owns: telling OpenZFS from zfs-fuse, and what follows for the words we may use. Leaves to others:
//! using them. `zfs version` exists since OpenZFS 0.8; what does not know it is judged by its own usage
//! text, so that an in-between version gets what it offers and nothing more.

use flocker_store::{Capabilities, DatasetKind, StoreError};

use crate::ZfsOptions;
use crate::errors;
use crate::run::{Finished, Program, Runner, SystemRunner};

/// Whether real ZFS can be used here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Availability {
    /// It can.
    Available {
        /// The version for people, such as `OpenZFS 2.3.9` or `zfs-fuse (pool version 23)`.
        version: String,
    },
    /// It cannot.
    Missing {
        /// Why, and what to install or start.
        reason: String,
    },
}

impl Availability {
    /// Whether it can be used.
    pub fn is_available(&self) -> bool {
        matches!(self, Availability::Available { .. })
    }
}

/// Looks for a working `zfs` command.
#[derive(Debug)]
pub struct Probe;

impl Probe {
    /// Whether the `zfs` command exists and works here: its library starts and its pools can be read.
    pub fn available(options: &ZfsOptions) -> Availability {
        let runner = SystemRunner::new(options);
        match Dialect::find(&runner) {
            Ok(dialect) => Availability::Available { version: dialect.version },
            Err(error) => Availability::Missing { reason: error.to_string() },
        }
    }
}

/// What the commands here understand beyond what every ZFS does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dialect {
    /// For people.
    pub(crate) version: String,
    /// zfs-fuse or as old: one thing a call, no `list -p`, no `holds`, kept mounted by FUSE.
    pub(crate) fuse: bool,
    /// `bookmark`
    pub(crate) bookmarks: bool,
    /// `receive -s`, `send -t`, `receive_resume_token`
    pub(crate) resumable: bool,
    /// `send -c`
    pub(crate) compressed: bool,
    /// `send -w`
    pub(crate) raw: bool,
    /// `send -L`
    pub(crate) large_blocks: bool,
    /// `send -nP`
    pub(crate) estimate: bool,
    /// zvols
    pub(crate) zvols: bool,
}

impl Dialect {
    /// Asks the commands.
    ///
    /// # Errors
    /// [`StoreError::Io`] when there is no command, [`StoreError::NotCapable`] with what to do when
    /// it does not work here, [`StoreError::Permission`].
    pub(crate) fn find(runner: &dyn Runner) -> Result<Self, StoreError> {
        let version = runner.run(Program::Zfs, &["version"])?;
        let dialect = if version.ending.is_success() {
            Self::openzfs(&String::from_utf8_lossy(&version.stdout))
        } else if version.stderr.contains("unrecognized command") {
            let upgrade = runner.run(Program::Zpool, &["upgrade", "-v"])?;
            let pool_version = pool_version(&String::from_utf8_lossy(&upgrade.stdout));
            Self::by_usage(&version.stderr, pool_version)
        } else {
            return Err(does_not_work(&version));
        };
        // `zfs version` answers even where the kernel module is missing: reading the pools does not.
        let pools = runner.run(Program::Zpool, &["list", "-H", "-o", "name"])?;
        if pools.ending.is_success() { Ok(dialect) } else { Err(does_not_work(&pools)) }
    }

    fn openzfs(version: &str) -> Self {
        let first = version.lines().next().unwrap_or_default();
        let number = first.strip_prefix("zfs-").unwrap_or(first);
        let number = number.split('-').next().unwrap_or(number);
        Self {
            version: format!("OpenZFS {number}"),
            fuse: false,
            bookmarks: true,
            resumable: true,
            compressed: true,
            raw: true,
            large_blocks: true,
            estimate: true,
            zvols: true,
        }
    }

    fn by_usage(usage: &str, pool_version: Option<u32>) -> Self {
        let line = |word: &str| {
            usage
                .lines()
                .map(str::trim_start)
                .find(|line| line.starts_with(word))
                .unwrap_or_default()
        };
        let send_flags = line("send ").split(']').next().unwrap_or_default();
        let receive_flags = line("receive ").split(']').next().unwrap_or_default();
        let old = !usage.contains("bookmark");
        Self {
            version: match pool_version {
                Some(pool) if old => format!("zfs-fuse (pool version {pool})"),
                _ => "ZFS without a version".to_owned(),
            },
            fuse: old,
            bookmarks: !old,
            resumable: receive_flags.contains('s'),
            compressed: send_flags.contains('c'),
            raw: send_flags.contains('w'),
            large_blocks: send_flags.contains('L'),
            estimate: send_flags.contains('P'),
            zvols: !old,
        }
    }

    /// The same in the words of the trait.
    pub(crate) fn capabilities(&self) -> Capabilities {
        let mut kinds = vec![DatasetKind::Filesystem];
        if self.zvols {
            kinds.push(DatasetKind::Zvol);
        }
        Capabilities {
            version: self.version.clone(),
            live_kinds: kinds.clone(),
            replica_kinds: kinds,
            bookmarks: self.bookmarks,
            holds: true,
            resumable: self.resumable,
            compressed_send: self.compressed,
            raw_send: self.raw,
            large_block_send: self.large_blocks,
            estimate: self.estimate,
            clones: true,
            atomic_group_snapshot: !self.fuse,
            live_snapshot: true,
            modern_streams: Some(!self.fuse),
            receives_modern: !self.fuse,
        }
    }
}

fn pool_version(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("pool version ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Says what to do about a `zfs` that is installed and does not work.
fn does_not_work(finished: &Finished) -> StoreError {
    let said = finished.stderr.trim().replace('\n', " ");
    let lower = said.to_lowercase();
    let hint = if lower.contains("permission denied") || lower.contains("run as root") {
        return StoreError::Permission {
            command: finished.command.clone(),
            detail: format!("{said} (ZFS needs root, or /dev/zfs for this user)"),
        };
    } else if lower.contains("zfs-fuse daemon") {
        "start the daemon: zfs-fuse"
    } else if lower.contains("module") || lower.contains("/dev/zfs") {
        "load the kernel module: modprobe zfs (Debian: zfs-dkms)"
    } else {
        return errors::unknown(finished);
    };
    StoreError::NotCapable {
        store: "this machine".to_owned(),
        what: format!("`{}` ({said}; {hint})", finished.command),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_openzfs_is_read_from_its_first_line() {
        let dialect = Dialect::openzfs("zfs-2.3.9-0+deb13u1\nzfs-kmod-2.3.9-0+deb13u1\n");
        assert_eq!(dialect.version, "OpenZFS 2.3.9");
        assert!(dialect.capabilities().receives_modern && !dialect.fuse);
    }

    #[test]
    fn zfs_fuse_is_known_by_what_its_usage_offers() {
        let usage = include_str!("../../../tests/golden/cli/fuse-version.txt");
        let dialect = Dialect::by_usage(usage, Some(23));
        assert_eq!(dialect.version, "zfs-fuse (pool version 23)");
        let can = dialect.capabilities();
        assert!(dialect.fuse && can.holds);
        assert!(!can.bookmarks && !can.resumable && !can.compressed_send && !can.raw_send);
        assert!(!can.estimate && !can.atomic_group_snapshot && !can.receives_modern);
        assert_eq!(can.replica_kinds, [DatasetKind::Filesystem]);
    }

    #[test]
    fn the_pool_version_is_read_from_zpool_upgrade() {
        let text = "This system is currently running ZFS pool version 23.\n\nThe following";
        assert_eq!(pool_version(text), Some(23));
        assert_eq!(pool_version("nothing"), None);
    }
}
