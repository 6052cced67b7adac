//! Who holds a tree: open files, working directories, memory maps, mounts.
//!
//! A file that is mapped and not open is found only in `maps`, which the kernel writes out at length for each
//! process: that is read once, after a rename, and not in the look before it, which only saves moving a tree
//! that is plainly in use.
//!
//! Owns: reading `/proc` for it. What this user may not see of other users' processes is not found: without
//! root only one's own processes are. Our own process is left out.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flocker_store::Holder;

/// Holders that are listed, at most: enough to act on, not a page of one server's descriptors.
const MAX_HOLDERS: usize = 32;

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Everything but memory maps.
    Glance,
    /// Everything.
    Whole,
}

/// Everybody found who holds something in the trees at these paths (one tree, by its names now and before).
pub(crate) fn find(paths: &[&Path], look: Look) -> Vec<Holder> {
    let mut found = Vec::new();
    let mut namespaces = BTreeSet::new();
    let regions: Vec<Region> = paths.iter().filter_map(|p| Region::of(p)).collect();
    let own = std::process::id();
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return found;
    };
    for entry in processes.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        if found.len() >= MAX_HOLDERS {
            break;
        }
        let proc = entry.path();
        let what = if pid == own { None } else { held(&proc, paths, look) };
        let what = what.or_else(|| {
            // Threads of one namespace see the same mounts.
            let namespace = std::fs::read_link(proc.join("ns/mnt")).ok()?;
            if !namespaces.insert(namespace) {
                return None;
            }
            let mounts = std::fs::read(proc.join("mountinfo")).ok()?;
            mounted(&mounts, paths, &regions)
        });
        if let Some(what) = what {
            found.push(Holder { pid, command: command(&proc), what });
        }
    }
    found.extend(loop_devices(paths));
    found
}

/// Loop devices over a file in these trees: the kernel holds it, so no process shows it.
fn loop_devices(paths: &[&Path]) -> Vec<Holder> {
    let Ok(devices) = std::fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    let over = |device: std::fs::DirEntry| {
        let name = device.file_name().to_str().filter(|name| name.starts_with("loop"))?.to_owned();
        let file = std::fs::read(device.path().join("loop/backing_file")).ok()?;
        let file = file.strip_suffix(b"\n").unwrap_or(&file);
        let file = PathBuf::from(OsString::from_vec(file.to_vec()));
        let what = format!("loop device over {}", file.display());
        within(&file, paths).then_some(Holder { pid: 0, command: name, what })
    };
    devices.flatten().filter_map(over).take(MAX_HOLDERS).collect()
}

fn command(proc: &Path) -> String {
    let name = std::fs::read_to_string(proc.join("comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

fn within(path: &Path, paths: &[&Path]) -> bool {
    // A file that was unlinked is shown with " (deleted)" behind its path, which keeps its beginning.
    paths.iter().any(|p| path.starts_with(p))
}

fn held(proc: &Path, paths: &[&Path], look: Look) -> Option<String> {
    for (link, what) in
        [("cwd", "working directory"), ("root", "root directory"), ("exe", "program")]
    {
        if let Ok(target) = std::fs::read_link(proc.join(link))
            && within(&target, paths)
        {
            return Some(format!("{what} {}", target.display()));
        }
    }
    if let Ok(descriptors) = std::fs::read_dir(proc.join("fd")) {
        for descriptor in descriptors.flatten() {
            if let Ok(target) = std::fs::read_link(descriptor.path())
                && within(&target, paths)
            {
                return Some(format!("open file {}", target.display()));
            }
        }
    }
    if look == Look::Glance {
        return None;
    }
    let maps = std::fs::read(proc.join("maps")).ok()?;
    // Most processes map nothing of it, and that is seen without cutting the text up.
    let prefixes: Vec<&[u8]> = paths.iter().map(|path| beginning(path)).collect();
    if !prefixes.iter().any(|prefix| contains(&maps, prefix)) {
        return None;
    }
    maps.split(|b| *b == b'\n').find_map(|line| {
        let at = line.iter().position(|b| *b == b'/')?;
        let target = PathBuf::from(OsString::from_vec(unescape(&line[at..])));
        within(&target, paths).then(|| format!("memory map of {}", target.display()))
    })
}

/// The part of a path that `maps` shows as it is, whatever it escapes.
fn beginning(path: &Path) -> &[u8] {
    let bytes = path.as_os_str().as_bytes();
    let plain = |b: &u8| !matches!(b, b'\n' | b'\\' | b' ' | b'\t');
    let end = bytes.iter().position(|b| !plain(b)).unwrap_or(bytes.len());
    &bytes[..end]
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    let Some((first, rest)) = part.split_first() else { return true };
    let mut at = text;
    while let Some(found) = at.iter().position(|b| b == first) {
        at = &at[found + 1..];
        if at.starts_with(rest) {
            return true;
        }
    }
    false
}

/// Where a tree lies on its file system, whatever is mounted where.
struct Region {
    device: String,
    path: PathBuf,
}

impl Region {
    fn of(path: &Path) -> Option<Region> {
        let meta = std::fs::symlink_metadata(path).ok()?;
        let device = format!("{}:{}", rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
        let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
        // The innermost mount that the path lies below.
        let mount = mounts
            .split(|b| *b == b'\n')
            .filter_map(Mount::parse)
            .filter(|m| path.starts_with(&m.point))
            .max_by_key(|m| m.point.components().count())?;
        let below = path.strip_prefix(&mount.point).ok()?;
        Some(Region { device, path: mount.root.join(below) })
    }
}

struct Mount {
    device: String,
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// One line of `mountinfo` (proc(5)): id, parent, device, root, mount point, ...
    fn parse(line: &[u8]) -> Option<Mount> {
        let mut fields = line.split(|b| *b == b' ').skip(2);
        let device = String::from_utf8(fields.next()?.to_vec()).ok()?;
        let mut path = || Some(PathBuf::from(OsString::from_vec(unescape(fields.next()?))));
        Some(Mount { device, root: path()?, point: path()? })
    }
}

fn mounted(mounts: &[u8], paths: &[&Path], regions: &[Region]) -> Option<String> {
    mounts
        .split(|b| *b == b'\n')
        .filter_map(Mount::parse)
        .find(|mount| {
            let bound =
                regions.iter().any(|r| r.device == mount.device && mount.root.starts_with(&r.path));
            bound || within(&mount.point, paths)
        })
        .map(|mount| format!("mount at {}", mount.point.display()))
}

/// Octal escapes, as `mountinfo` and `maps` write blanks and line ends.
fn unescape(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        let octal = |b: &u8| (b'0'..=b'7').contains(b).then(|| u32::from(b - b'0'));
        let value = match (first, tail) {
            (b'\\', [a, b, c, ..]) => octal(a)
                .zip(octal(b))
                .zip(octal(c))
                .and_then(|((a, b), c)| u8::try_from(a * 64 + b * 8 + c).ok()),
            _ => None,
        };
        match value {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// The holder that says that we ourselves are busy.
pub(crate) fn ourselves(what: &str) -> Holder {
    Holder { pid: std::process::id(), command: "flocker-repl".into(), what: what.into() }
}

/// A path as the kernel shows it, with every symlink on the way resolved.
pub(crate) fn real(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_in_mount_points_are_read() {
        assert_eq!(unescape(br"/a\040b\134c"), b"/a b\\c");
        let line = br"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw";
        let mount = Mount::parse(line).expect("a line");
        assert_eq!(mount.device, "98:0");
        assert_eq!(mount.point.as_os_str().as_bytes(), b"/mnt 2");
    }

    #[test]
    fn a_bind_mount_of_a_part_of_the_tree_holds_it_and_one_of_what_is_above_does_not() {
        let regions = [Region { device: "8:1".into(), path: "/srv/vault/live/v".into() }];
        let line = |root: &str| format!("1 2 8:1 {root} /elsewhere rw - ext4 /dev/sda1 rw");
        assert!(mounted(line("/srv/vault/live/v/data").as_bytes(), &[], &regions).is_some());
        assert!(mounted(line("/srv/vault").as_bytes(), &[], &regions).is_none());
        assert!(mounted(line("/srv/vault/live/v2").as_bytes(), &[], &regions).is_none());
    }
}
