//! Who has a dataset mounted: `/proc/*/mountinfo` of every mount namespace.
//!
//! Owns: reading mount tables, our own and everybody's. Leaves to others: open files
//! ([`crate::holders`]) and what to do about it ([`crate::fence`]).
//!
//! A kernel ZFS mount has the type `zfs`, one of zfs-fuse `fuse.zfs`; both have the dataset's name as
//! their source, and a superblock of their own whose device number is the same in every namespace. The
//! format is that of `proc_pid_mountinfo(5)`; space, tab, line break and backslash come as octal.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use flocker_store::store::Result;
use flocker_store::{DatasetName, StoreError};

/// One line of a mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Its id in its namespace.
    pub(crate) id: u32,
    /// The id of the mount it lies on.
    pub(crate) parent: u32,
    /// Major and minor of the superblock's device.
    pub(crate) dev: (u32, u32),
    /// Which directory of the filesystem is mounted: `/` but for bind mounts.
    pub(crate) root: PathBuf,
    /// Where, seen from that namespace.
    pub(crate) mountpoint: PathBuf,
    /// Whether this mount or its superblock is read-only.
    pub(crate) readonly: bool,
    /// Peer groups it sends to (`shared:`) or receives from (`master:`).
    pub(crate) groups: Vec<u32>,
    /// Filesystem type.
    pub(crate) fstype: String,
    /// What is mounted.
    pub(crate) source: String,
}

impl Mount {
    /// Whether it shows any part of the dataset's live data.
    pub(crate) fn is_of(&self, dataset: &DatasetName) -> bool {
        self.is_zfs() && self.source == dataset.as_str()
    }

    /// Whether it shows the dataset's live data from the top, as `zfs mount` does.
    pub(crate) fn is_live_of(&self, dataset: &DatasetName) -> bool {
        self.is_of(dataset) && self.root == Path::new("/")
    }

    fn is_zfs(&self) -> bool {
        matches!(self.fstype.as_str(), "zfs" | "fuse.zfs")
    }
}

/// A mount namespace.
#[derive(Debug, Clone)]
pub(crate) struct Namespace {
    /// A process that lives in it; 0 for one that is only pinned by a file.
    pub(crate) pid: u32,
    /// That process's command, or the file.
    pub(crate) command: String,
    /// Its mount table.
    pub(crate) mounts: Vec<Mount>,
}

/// Every mount namespace there is.
#[derive(Debug, Clone)]
pub(crate) struct Namespaces {
    /// Our own mount table.
    pub(crate) own: Vec<Mount>,
    /// All others.
    pub(crate) others: Vec<Namespace>,
    /// Namespaces that are pinned by a file and could not be looked into.
    pub(crate) opaque: Vec<PathBuf>,
}

/// Our own mount table.
///
/// # Errors
/// [`StoreError::Io`] without `/proc`.
pub(crate) fn own() -> Result<Vec<Mount>> {
    let path = "/proc/self/mountinfo";
    let bytes = fs::read(path).map_err(|e| StoreError::io(path, e))?;
    parse(&bytes)
}

/// The mount tables of every namespace in which a thread lives, or which a file pins.
///
/// Some processes do not let even root see which namespace they are in (hardened kernels, a daemon without
/// `CAP_SYS_PTRACE`), but their mount table can be read all the same; mount ids tell namespaces apart then,
/// since no two mounts of a system have the same.
///
/// # Errors
/// [`StoreError::Permission`] where a mount table may not be read: what is not seen is not free.
pub(crate) fn everywhere() -> Result<Namespaces> {
    in_namespaces(tasks)
}

/// As [`everywhere`], but a thread is taken to live where its process does: for where something else proves
/// afterwards that no thread was anywhere else.
///
/// # Errors
/// As [`everywhere`].
pub(crate) fn everywhere_by_process() -> Result<Namespaces> {
    in_namespaces(|pid| vec![PathBuf::from(format!("/proc/{pid}"))])
}

fn in_namespaces(places: impl Fn(u32) -> Vec<PathBuf>) -> Result<Namespaces> {
    let own = own()?;
    let mut seen: BTreeMap<PathBuf, Option<Namespace>> = BTreeMap::new();
    if let Ok(link) = fs::read_link("/proc/self/ns/mnt") {
        seen.insert(link, None);
    }
    let mut veiled: Vec<Namespace> = Vec::new();
    for pid in processes()? {
        for task in places(pid) {
            let link = match fs::read_link(task.join("ns/mnt")) {
                Ok(link) if seen.contains_key(&link) => continue,
                Ok(link) => Some(link),
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => None,
                // It has ended.
                Err(_) => continue,
            };
            let Some(bytes) = gone_is_none(fs::read(task.join("mountinfo")), &task)? else {
                continue;
            };
            // A zombie has a namespace no more and an empty table.
            let found = Namespace { pid, command: command_of(pid), mounts: parse(&bytes)? };
            match link {
                Some(link) => drop(seen.insert(link, Some(found))),
                None => veiled.push(found),
            }
        }
    }
    let opaque = look_into_pinned(&own, &mut seen);
    let mut others: Vec<Namespace> = seen.into_values().flatten().collect();
    for namespace in veiled {
        let first = namespace.mounts.first().map(|mount| mount.id);
        let same = |mounts: &[Mount]| mounts.iter().any(|mount| Some(mount.id) == first);
        if !same(&own) && !others.iter().any(|other| same(&other.mounts)) {
            others.push(namespace);
        }
    }
    Ok(Namespaces { own, others, opaque })
}

/// Adds the namespaces that no process lives in and that a file keeps (`unshare --mount=FILE`, snapd);
/// returns the files that could not be looked into.
fn look_into_pinned(
    own: &[Mount],
    seen: &mut BTreeMap<PathBuf, Option<Namespace>>,
) -> Vec<PathBuf> {
    let mut opaque = Vec::new();
    for mount in own.iter().filter(|mount| mount.fstype == "nsfs") {
        let name = mount.root.clone();
        if !name.to_string_lossy().starts_with("mnt:[") || seen.contains_key(&name) {
            continue;
        }
        let mut enter = OsString::from("--mount=");
        enter.push(&mount.mountpoint);
        let output = std::process::Command::new("nsenter")
            .arg(enter)
            .args(["cat", "/proc/self/mountinfo"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        let mounts = output
            .ok()
            .filter(|output| output.status.success())
            .and_then(|output| parse(&output.stdout).ok());
        match mounts {
            Some(mounts) => {
                let found =
                    Namespace { pid: 0, command: mount.mountpoint.display().to_string(), mounts };
                seen.insert(name, Some(found));
            }
            None => opaque.push(mount.mountpoint.clone()),
        }
    }
    opaque
}

/// The ids of all processes.
pub(crate) fn processes() -> Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").map_err(|e| StoreError::io("/proc", e))?;
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
    Ok(names.filter_map(|name| name.to_str()?.parse().ok()).collect())
}

/// `/proc/PID/task/TID` of every thread; empty when the process is gone.
pub(crate) fn tasks(pid: u32) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// The name of a process's command.
pub(crate) fn command_of(pid: u32) -> String {
    let read = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(&read).trim_end().to_owned()
}

/// A process that has ended has nothing; one that we may not look at may have everything.
pub(crate) fn gone_is_none<T>(outcome: io::Result<T>, path: &Path) -> Result<Option<T>> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(StoreError::Permission {
            command: format!("looking at {}", path.display()),
            detail: format!("{e}; only root can see every process's mounts"),
        }),
        // ENOENT, ESRCH, and EINVAL of a zombie.
        Err(_) => Ok(None),
    }
}

/// Reads a mount table.
fn parse(bytes: &[u8]) -> Result<Vec<Mount>> {
    bytes
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            mount(line).ok_or_else(|| StoreError::Output {
                command: "/proc/PID/mountinfo".to_owned(),
                detail: String::from_utf8_lossy(line).into_owned(),
            })
        })
        .collect()
}

fn mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let mut next = || fields.next();
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let id = text(next()?).parse().ok()?;
    let parent = text(next()?).parse().ok()?;
    let dev = text(next()?);
    let (major, minor) = dev.split_once(':')?;
    let root = path(next()?);
    let mountpoint = path(next()?);
    let options = text(next()?);
    let mut groups = Vec::new();
    loop {
        let optional = text(next()?);
        if optional == "-" {
            break;
        }
        if let Some((_, group)) = optional.split_once(':') {
            groups.extend(group.parse::<u32>());
        }
    }
    let fstype = text(next()?);
    let source = String::from_utf8_lossy(&unescape(next()?)).into_owned();
    let super_options = text(next()?);
    let readonly = |options: &str| options.split(',').any(|option| option == "ro");
    Some(Mount {
        id,
        parent,
        dev: (major.parse().ok()?, minor.parse().ok()?),
        root,
        mountpoint,
        readonly: readonly(&options) || readonly(&super_options),
        groups,
        fstype,
        source,
    })
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

/// Undoes `\040` and the like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.first_chunk::<3>().filter(|digits| {
            first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)) && digits[0] <= b'3'
        });
        match octal {
            Some([a, b, c]) => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = &tail[3..];
            }
            None => {
                plain.push(first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_zfs_mount_are_known_by_their_source() {
        let table = b"45 43 0:42 / /srv/d\\0401 rw,relatime - fuse.zfs pool/d\\0401 rw,user_id=0\n\
            77 72 0:46 / /srv/f1 rw shared:12 master:3 - zfs tank/f1 ro,xattr\n\
            78 72 0:46 /sub /srv/b rw - zfs tank/f1 rw\n";
        let mounts = parse(table).unwrap();
        let name = |name: &str| DatasetName::new(name).unwrap();
        assert!(mounts[0].is_live_of(&name("pool/d 1")) && !mounts[0].readonly);
        assert_eq!(mounts[0].mountpoint, Path::new("/srv/d 1"));
        assert!(mounts[1].is_live_of(&name("tank/f1")) && mounts[1].readonly);
        assert_eq!(mounts[1].groups, [12, 3]);
        assert!(mounts[2].is_of(&name("tank/f1")) && !mounts[2].is_live_of(&name("tank/f1")));
    }

    #[test]
    fn a_line_that_is_no_mount_is_an_error_not_a_free_dataset() {
        assert!(parse(b"garbage\n").is_err());
        assert!(parse(b"1 2 0:3 / / rw - ext4\n").is_err());
    }

    #[test]
    fn this_machine_has_a_root_mount() {
        assert!(own().unwrap().iter().any(|m| m.mountpoint == Path::new("/")));
    }
}
