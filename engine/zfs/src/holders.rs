//! Who keeps a dataset's live data in use: mounts, working directories, open files, mappings.
//!
//! Owns: finding them, in every mount namespace, and naming them. Leaves to others: what to do about
//! them ([`crate::fence`]).
//!
//! Files are matched by the device number of what `/proc/PID/fd/N` leads to, never by its path: a path
//! means something else in another namespace, and nothing after a lazy unmount. Asking does not wait for
//! the filesystem (`AT_STATX_DONT_SYNC`): a wedged FUSE daemon must not wedge us.
//!
//! A process that does not let us look at its files (hardened kernels protect some even from root) is
//! passed over: its mounts are seen all the same, in our own namespace it makes the unmount fail, and in
//! another one it shows as a mount.
//!
//! Files of threads that share nothing with their process (`unshare(CLONE_FILES)`) are not looked for;
//! the unmount that follows, and the proof that the FUSE connection is gone, catch them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flocker_store::store::Result;
use flocker_store::{DatasetName, Holder, StoreError};
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statfs, statx};

use crate::ZfsStore;
use crate::fusectl::Connections;
use crate::mounts::{self, Mount, Namespaces};

/// Most holders named in one error.
pub const MAX_HOLDERS: usize = 50;

/// `FUSE_SUPER_MAGIC` of `linux/magic.h`.
const FUSE_SUPER_MAGIC: rustix::fs::FsWord = 0x6573_5546;

/// A device number.
type Dev = (u32, u32);

impl ZfsStore {
    /// Everybody who uses the live data of a dataset, but for its own plain mount in our namespace.
    pub(crate) fn holders(&self, dataset: &DatasetName) -> Result<Vec<Holder>> {
        let namespaces = mounts::everywhere()?;
        let mut found = foreign_mounts(&namespaces, dataset);
        found.extend(own_extra_mounts(&namespaces.own, dataset));
        let all = || {
            let others = namespaces.others.iter().flat_map(|n| &n.mounts);
            namespaces.own.iter().chain(others)
        };
        let search = Search {
            devs: all().filter(|m| m.is_of(dataset)).map(|m| m.dev).collect(),
            mounted: all().map(|m| m.dev).collect(),
            orphans: self.dialect.fuse,
        };
        for pid in mounts::processes()? {
            search.process(pid, &mut found);
            if found.len() > MAX_HOLDERS {
                found.truncate(MAX_HOLDERS);
                break;
            }
        }
        Ok(found)
    }

    /// Whether it is mounted nowhere, and every FUSE connection belongs to something that is mounted: then
    /// there is nobody to look for, since a filesystem that anybody uses has a connection.
    fn nobody_can_hold(&self, dataset: &DatasetName) -> Result<bool> {
        let Some(connections) = self.dialect.fuse.then(Connections::open).flatten() else {
            return Ok(false);
        };
        // In this order: a mount that comes meanwhile is a connection we have not listed.
        let Ok(minors) = connections.minors() else { return Ok(false) };
        // By process is enough: what only a thread has mounted is a connection without a mount.
        let namespaces = mounts::everywhere_by_process()?;
        let others = namespaces.others.iter().flat_map(|n| &n.mounts);
        let mut mounted = BTreeSet::new();
        for mount in namespaces.own.iter().chain(others) {
            if mount.is_of(dataset) {
                return Ok(false);
            }
            mounted.insert(mount.dev);
        }
        // One that has gone meanwhile is nobody's any more.
        let gone = |minor: &u32| connections.gone_within(*minor, Duration::ZERO);
        let orphan = |minor: &&u32| !mounted.contains(&(0, **minor)) && !gone(minor);
        Ok(namespaces.opaque.is_empty() && !minors.iter().any(|minor| orphan(&minor)))
    }

    /// # Errors
    /// [`StoreError::Busy`] naming everybody found.
    pub(crate) fn refuse_if_held(&self, dataset: &DatasetName) -> Result<()> {
        if self.nobody_can_hold(dataset)? {
            return Ok(());
        }
        let holders = self.holders(dataset)?;
        if holders.is_empty() {
            return Ok(());
        }
        Err(StoreError::Busy { dataset: dataset.clone(), holders })
    }

    /// # Errors
    /// [`StoreError::Busy`] when the dataset is mounted anywhere so that it can be written.
    pub(crate) fn refuse_if_writable(&self, dataset: &DatasetName) -> Result<()> {
        let namespaces = mounts::everywhere()?;
        let mut holders: Vec<Holder> = namespaces
            .own
            .iter()
            .filter(|mount| mount.is_of(dataset) && !mount.readonly)
            .map(|mount| Holder {
                pid: std::process::id(),
                command: "our namespace".to_owned(),
                what: format!("mounted writable at {}", mount.mountpoint.display()),
            })
            .collect();
        for namespace in &namespaces.others {
            let writable = |m: &&Mount| m.is_of(dataset) && !m.readonly;
            holders.extend(namespace.mounts.iter().find(writable).map(|mount| Holder {
                pid: namespace.pid,
                command: namespace.command.clone(),
                what: in_another_namespace(mount),
            }));
        }
        if holders.is_empty() {
            return Ok(());
        }
        Err(StoreError::Busy { dataset: dataset.clone(), holders })
    }
}

/// Mounts of a dataset, by the tables alone, that an unmount in our namespace will not take away.
pub(crate) fn other_mounts(namespaces: &Namespaces, dataset: &DatasetName) -> bool {
    !foreign_mounts(namespaces, dataset).is_empty()
        || !own_extra_mounts(&namespaces.own, dataset).is_empty()
}

fn in_another_namespace(mount: &Mount) -> String {
    format!("mounted at {} in another mount namespace", mount.mountpoint.display())
}

/// Mounts in other namespaces that our unmount will not reach.
///
/// A mount that is tied to one of ours by propagation (`shared:`/`master:`, as in the namespaces that
/// systemd makes for its services) goes away with ours; whether it did is read back after the unmount.
fn foreign_mounts(namespaces: &Namespaces, dataset: &DatasetName) -> Vec<Holder> {
    let ours: BTreeSet<u32> = namespaces
        .own
        .iter()
        .filter(|mount| mount.is_live_of(dataset))
        .flat_map(|mount| mount.groups.iter().copied())
        .collect();
    let follows = |mount: &Mount| mount.groups.iter().any(|group| ours.contains(group));
    let mut found: Vec<Holder> = namespaces
        .others
        .iter()
        .filter_map(|namespace| {
            let mount =
                namespace.mounts.iter().find(|mount| mount.is_of(dataset) && !follows(mount))?;
            Some(Holder {
                pid: namespace.pid,
                command: namespace.command.clone(),
                what: in_another_namespace(mount),
            })
        })
        .collect();
    found.extend(namespaces.opaque.iter().map(|file| Holder {
        pid: 0,
        command: file.display().to_string(),
        what: "a pinned mount namespace that could not be looked into".to_owned(),
    }));
    found
}

/// Bind mounts of the dataset, and whatever is mounted below it.
fn own_extra_mounts(own: &[Mount], dataset: &DatasetName) -> Vec<Holder> {
    let Some(main) = own.iter().find(|mount| mount.is_live_of(dataset)) else {
        return own
            .iter()
            .filter(|mount| mount.is_of(dataset))
            .map(|mount| mount_holder(mount, "bind mount"))
            .collect();
    };
    own.iter()
        .filter(|mount| mount.id != main.id)
        .filter_map(|mount| {
            if mount.is_of(dataset) {
                Some(mount_holder(mount, "bind mount"))
            } else if mount.parent == main.id && !is_own_snapshot(mount, dataset) {
                Some(mount_holder(mount, "mount below it"))
            } else {
                None
            }
        })
        .collect()
}

/// OpenZFS mounts snapshots below `.zfs/snapshot` by itself and takes them away on unmount.
fn is_own_snapshot(mount: &Mount, dataset: &DatasetName) -> bool {
    mount.source.starts_with(&format!("{dataset}@"))
}

fn mount_holder(mount: &Mount, kind: &str) -> Holder {
    Holder {
        pid: 0,
        command: "mount".to_owned(),
        what: format!("{kind}: {} at {}", mount.source, mount.mountpoint.display()),
    }
}

/// What is looked for in each process.
struct Search {
    /// Devices of the dataset.
    devs: BTreeSet<Dev>,
    /// Devices of everything that is mounted anywhere.
    mounted: BTreeSet<Dev>,
    /// Whether files on FUSE filesystems that are mounted nowhere count: after a lazy unmount nothing
    /// says which dataset they belong to.
    orphans: bool,
}

impl Search {
    fn process(&self, pid: u32, found: &mut Vec<Holder>) {
        let mut here = Vec::new();
        for task in mounts::tasks(pid) {
            for (name, what) in [("cwd", "working directory"), ("root", "root directory")] {
                self.look(&task.join(name), what, &mut here);
            }
        }
        let process = PathBuf::from(format!("/proc/{pid}"));
        self.look(&process.join("exe"), "running program", &mut here);
        let files = fs::read_dir(process.join("fd"));
        if let Some(files) = visible(files, &process) {
            for file in files.flatten() {
                self.look(&file.path(), "open file", &mut here);
            }
        }
        let maps = fs::read(process.join("maps"));
        if let Some(maps) = visible(maps, &process) {
            here.extend(self.mapped(&maps));
        }
        here.sort();
        here.dedup();
        found.extend(here.into_iter().take(MAX_HOLDERS).map(|what| Holder {
            pid,
            command: mounts::command_of(pid),
            what,
        }));
    }

    fn look(&self, link: &Path, what: &str, found: &mut Vec<String>) {
        let flags = AtFlags::STATX_DONT_SYNC;
        let asked = statx(CWD, link, flags, StatxFlags::TYPE).map_err(std::io::Error::from);
        let Some(stat) = visible(asked, link) else {
            return;
        };
        let dev = (stat.stx_dev_major, stat.stx_dev_minor);
        let to = || fs::read_link(link).unwrap_or_default();
        if self.devs.contains(&dev) {
            found.push(format!("{what} {}", to().display()));
        } else if self.orphans && dev.0 == 0 && !self.mounted.contains(&dev) {
            let kind = FileType::from_raw_mode(u32::from(stat.stx_mode));
            let stored = matches!(kind, FileType::RegularFile | FileType::Directory);
            // It may have been mounted since the tables were read.
            let mounted_now =
                || mounts::own().is_ok_and(|own| own.iter().any(|mount| mount.dev == dev));
            if stored
                && statfs(link).is_ok_and(|fs| fs.f_type == FUSE_SUPER_MAGIC)
                && !mounted_now()
            {
                let path = to();
                found.push(format!(
                    "{what} {} on a FUSE filesystem that is mounted nowhere any more",
                    path.display()
                ));
            }
        }
    }

    /// Mapped files: their descriptor may be closed. The device is the fourth field, hexadecimal.
    fn mapped(&self, maps: &[u8]) -> Vec<String> {
        String::from_utf8_lossy(maps)
            .lines()
            .filter_map(|line| {
                let mut fields = line.split_ascii_whitespace();
                let (major, minor) = fields.nth(3)?.split_once(':')?;
                let dev =
                    (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
                let path = line.splitn(6, ' ').last().unwrap_or_default().trim();
                self.devs.contains(&dev).then(|| format!("mapped file {path}"))
            })
            .collect()
    }
}

/// `None` for what a process that has ended, or that may not be looked at, had.
fn visible<T>(outcome: std::io::Result<T>, path: &Path) -> Option<T> {
    if let Err(error) = &outcome
        && error.kind() == std::io::ErrorKind::PermissionDenied
    {
        tracing::trace!(path = %path.display(), "not visible");
    }
    outcome.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_is_found_by_its_device_whatever_its_path_says() {
        let search = Search { devs: [(0, 0x2e)].into(), mounted: BTreeSet::new(), orphans: false };
        let maps = b"7f0-7f1 rw-s 00000000 00:2e 6                          /a b (deleted)\n\
            7f2-7f3 r-xp 00000000 fe:00 6 /lib/x.so\n7f4-7f5 rw-p 00000000 00:00 0 \n";
        assert_eq!(search.mapped(maps), ["mapped file /a b (deleted)"]);
    }

    #[test]
    fn an_open_file_of_this_very_process_is_found_by_its_device() {
        let file = tempfile::tempfile().unwrap();
        let stat = statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE).unwrap();
        let search = Search {
            devs: [(stat.stx_dev_major, stat.stx_dev_minor)].into(),
            mounted: BTreeSet::new(),
            orphans: false,
        };
        let mut found = Vec::new();
        search.process(std::process::id(), &mut found);
        assert!(found.iter().any(|h| h.what.starts_with("open file")), "{found:?}");
        assert!(found.iter().all(|h| h.pid == std::process::id()));
    }

    #[test]
    fn a_mount_tied_to_ours_by_propagation_is_not_a_holder_and_a_private_one_is() {
        let name = DatasetName::new("tank/a").unwrap();
        let mount = |groups: &[u32]| Mount {
            id: 1,
            parent: 0,
            dev: (0, 9),
            root: "/".into(),
            mountpoint: "/a".into(),
            readonly: false,
            groups: groups.to_vec(),
            fstype: "zfs".into(),
            source: "tank/a".into(),
        };
        let namespaces = |theirs: &[u32]| Namespaces {
            own: vec![mount(&[7])],
            others: vec![mounts::Namespace {
                pid: 5,
                command: "x".into(),
                mounts: vec![mount(theirs)],
            }],
            opaque: Vec::new(),
        };
        assert!(foreign_mounts(&namespaces(&[7]), &name).is_empty());
        assert_eq!(foreign_mounts(&namespaces(&[]), &name).len(), 1);
        assert_eq!(foreign_mounts(&namespaces(&[8]), &name).len(), 1);
    }
}
