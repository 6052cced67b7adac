//! What the kernel knows of zfs-fuse's connections: fusectl, mounted nowhere.
//!
//! Owns: asking whether a FUSE filesystem still exists, and whether its daemon has work in hand. Leaves to
//! others: when that matters ([`crate::fence`], the fixture of the tests).
//!
//! Why it matters: `close` of a file on FUSE returns before the daemon is told (RELEASE is sent in the
//! background). When the last mount goes away in that moment, the kernel drops what the daemon has not read
//! yet; zfs-fuse then believes for ever that a file is open, tries to unmount in a loop while it holds the
//! lock of its listeners, and *every* pool's filesystems hang until it is killed. Reproduced with 8000 files
//! closed right before `umount`, seen by chance with one on a busy machine. So before an unmount the requests
//! that wait are waited for: with that, the same 8000 files do no harm.
//!
//! A connection's number is the minor of its filesystem's device. systemd mounts fusectl at
//! `/sys/fs/fuse/connections`; a mount of our own that is attached nowhere needs no such place.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// How long a connection may take to be idle, or to be gone.
pub const CONNECTION_GRACE: Duration = Duration::from_secs(10);

/// fusectl, opened.
#[derive(Debug)]
pub(crate) struct Connections(OwnedFd);

impl Connections {
    /// `None` where the kernel has no fusectl, or does not let us.
    pub(crate) fn open() -> Option<Self> {
        let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC);
        let mounted = context.and_then(|context| {
            fsconfig_create(&context)?;
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        });
        let place = || rustix::fs::open("/sys/fs/fuse/connections", directory, Mode::empty());
        match mounted.or_else(|_| place()) {
            Ok(fd) => Some(Self(fd)),
            Err(error) => {
                tracing::debug!(%error, "no fusectl: unmounting without looking at the connection");
                None
            }
        }
    }

    /// Requests that the daemon has not answered yet; `None` when there is no such connection.
    fn waiting(&self, minor: u32) -> Option<u64> {
        let path = format!("{minor}/waiting");
        let file = rustix::fs::openat(&self.0, &path, OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut bytes = [0; 32];
        let n = rustix::io::read(&file, &mut bytes).ok()?;
        std::str::from_utf8(&bytes[..n]).ok()?.trim().parse().ok()
    }

    /// Waits until the daemon has answered everything; `false` when it does not.
    pub(crate) fn drain(&self, minor: u32) -> bool {
        wait_for(CONNECTION_GRACE, || self.waiting(minor).is_none_or(|waiting| waiting == 0))
    }

    /// Waits until the connection is gone: nobody in any mount namespace has the filesystem any more.
    pub(crate) fn gone(&self, minor: u32) -> bool {
        self.gone_within(minor, CONNECTION_GRACE)
    }

    /// As [`Connections::gone`], but not for longer than `limit`.
    pub(crate) fn gone_within(&self, minor: u32, limit: Duration) -> bool {
        wait_for(limit, || self.waiting(minor).is_none())
    }

    /// The minors of all connections there are.
    ///
    /// # Errors
    /// The kernel does not let us list them.
    pub(crate) fn minors(&self) -> std::io::Result<BTreeSet<u32>> {
        let mut found = BTreeSet::new();
        for entry in rustix::fs::Dir::read_from(&self.0)? {
            let entry = entry?;
            found.extend(entry.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()));
        }
        Ok(found)
    }
}

fn wait_for(limit: Duration, done: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_micros(100);
    while !done() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(pause);
        // Short at first: it is mostly a matter of a millisecond, and somebody waits for us.
        pause = (pause * 5 / 4).min(Duration::from_millis(20));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fuse_mount_of_this_machine_has_a_connection_and_no_other_device_has() {
        let Some(connections) = Connections::open() else {
            eprintln!("SKIPPED: no fusectl for this user");
            return;
        };
        for mount in crate::mounts::own().unwrap() {
            if mount.fstype.starts_with("fuse.") && mount.dev.0 == 0 {
                // It may be unmounted while we look; what counts is that numbers are read at all.
                println!("{:?} waits for {:?}", mount.source, connections.waiting(mount.dev.1));
            }
        }
        assert_eq!(connections.waiting(u32::MAX), None);
        assert!(connections.gone(u32::MAX) && connections.drain(u32::MAX));
    }
}
