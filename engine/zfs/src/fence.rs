//! The fence: nobody can write a dataset's live data any more, and that was read back.
//!
//! Owns: unmounting, `canmount=noauto`, `readonly=on`, and remembering what was before. Leaves to others:
//! stopping the workload (its cgroup is empty or frozen before this is called), finding who holds on
//! ([`crate::holders`]), the way back ([`crate::activate`]), the proof that nothing was written since the
//! final snapshot ([`crate::check`]).
//!
//! Measured, and what follows:
//! * `zfs unmount` in one namespace succeeds while another namespace goes on writing: everybody else's
//!   mounts are looked for first, and again afterwards.
//! * OpenZFS: `readonly=on` takes effect although `zfs set` returns 255 with a writer open: read back.
//! * zfs-fuse: `readonly=on` does not stop an open descriptor, and `zfs get` then says `off`
//!   (source `temporary`): there only unmounting fences, and `readonly` is left alone.
//! * zfs-fuse: `zfs mount` while another namespace still has the dataset mounted is refused as busy, and
//!   from then on every access to the mountpoint hangs until the daemon is killed. So nothing here or in
//!   [`crate::activate`] mounts while anybody else may have it mounted.
//! * zfs-fuse finishes an unmount after the command has returned: the FUSE connection is waited for. That
//!   it is gone is also the proof that no namespace, pinned or not, has the filesystem any more.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use flocker_store::store::Result;
use flocker_store::{DatasetName, Holder, PropertySource, StoreError};

use crate::ZfsStore;
use crate::errors::About;
use crate::mounts;
use crate::properties::Native;

/// What `canmount` was before we took the dataset over.
pub const WAS_CANMOUNT: &str = "flocker-repl:was-canmount";
/// What `readonly` was; [`INHERIT`] where it was not set on this dataset.
pub const WAS_READONLY: &str = "flocker-repl:was-readonly";
/// What `mountpoint` was; [`INHERIT`] where it was not set on this dataset.
pub const WAS_MOUNTPOINT: &str = "flocker-repl:was-mountpoint";
/// Stands for a value that was not set locally.
pub const INHERIT: &str = "(inherit)";

/// How long the FUSE connection of an unmounted filesystem may take to close.
const CONNECTION_GRACE: Duration = Duration::from_secs(5);

impl ZfsStore {
    pub(crate) fn fence_dataset(&self, dataset: &DatasetName) -> Result<()> {
        let before = self.native(dataset, &["type", "canmount", "readonly"])?;
        if before["type"].value != "filesystem" {
            return self.fence_zvol(dataset, &before);
        }
        self.refuse_if_held(dataset)?;
        if self.mounted_here(dataset)?.is_some() {
            self.unmount(dataset)?;
        }
        let automatic = before["canmount"].value == "on";
        let open = !self.dialect.fuse && before["readonly"].value != "on";
        if automatic {
            self.remember(dataset, WAS_CANMOUNT, &before["canmount"])?;
            self.set_words(dataset, &["canmount=noauto".to_owned()])?;
        }
        if open {
            self.remember(dataset, WAS_READONLY, &before["readonly"])?;
            self.set_and_ignore_status(dataset, "readonly=on")?;
        }
        if automatic || open {
            self.read_back(dataset)?;
        }
        // Somebody may have mounted it since we looked.
        self.refuse_if_writable(dataset)
    }

    /// The properties of a fence, as ZFS says they are now.
    fn read_back(&self, dataset: &DatasetName) -> Result<()> {
        let now = self.native(dataset, &["canmount", "readonly"])?;
        let wrong = if now["canmount"].value == "on" {
            Some("canmount")
        } else if !self.dialect.fuse && now["readonly"].value != "on" {
            Some("readonly")
        } else {
            None
        };
        match wrong {
            None => Ok(()),
            Some(property) => Err(StoreError::Output {
                command: format!("zfs get {property} {dataset}"),
                detail: format!("{property} is still {}", now[property].value),
            }),
        }
    }

    /// A zvol has no mount: its open block device counts, and `readonly` stops even an open one.
    fn fence_zvol(&self, dataset: &DatasetName, before: &BTreeMap<String, Native>) -> Result<()> {
        if before["readonly"].value == "on" {
            return Ok(());
        }
        self.remember(dataset, WAS_READONLY, &before["readonly"])?;
        self.set_and_ignore_status(dataset, "readonly=on")?;
        let now = self.native(dataset, &["readonly"])?;
        if now["readonly"].value == "on" {
            return Ok(());
        }
        Err(StoreError::Busy {
            dataset: dataset.clone(),
            holders: vec![Holder {
                pid: 0,
                command: "unknown".to_owned(),
                what: format!("/dev/zvol/{dataset} stays writable"),
            }],
        })
    }

    /// Sets a property whose effect is read back: OpenZFS returns 255 for some that took effect.
    pub(crate) fn set_and_ignore_status(&self, dataset: &DatasetName, word: &str) -> Result<()> {
        match self.zfs(&["set", word, dataset.as_str()], About::dataset(dataset)) {
            Ok(_) => Ok(()),
            Err(
                error @ (StoreError::NoDataset { .. }
                | StoreError::Permission { .. }
                | StoreError::NoSpace { .. }
                | StoreError::Io { .. }),
            ) => Err(error),
            Err(error) => {
                tracing::debug!(%dataset, word, %error, "set says it failed; reading back");
                Ok(())
            }
        }
    }

    /// Keeps the first value that a property had, for [`flocker_store::Store::give_back`].
    pub(crate) fn remember(&self, dataset: &DatasetName, name: &str, was: &Native) -> Result<()> {
        let known = self.native(dataset, &[name])?;
        if known[name].source == PropertySource::Local {
            return Ok(());
        }
        // `canmount` cannot be inherited, so its value is always set again.
        let value = if was.source == PropertySource::Local || name == WAS_CANMOUNT {
            was.value.as_str()
        } else {
            INHERIT
        };
        self.set_words(dataset, &[format!("{name}={value}")])
    }

    /// Unmounts in our namespace, names the holders where that does not work, and makes sure that the
    /// filesystem is gone from every namespace.
    pub(crate) fn unmount(&self, dataset: &DatasetName) -> Result<()> {
        let dev = mounts::own()?
            .into_iter()
            .find(|mount| mount.is_live_of(dataset))
            .map(|mount| mount.dev);
        match self.zfs(&["unmount", dataset.as_str()], About::dataset(dataset)) {
            Ok(_) => {}
            Err(StoreError::Busy { .. }) => {
                return Err(StoreError::Busy {
                    dataset: dataset.clone(),
                    holders: self.holders(dataset)?,
                });
            }
            // Somebody else has unmounted it in between.
            Err(error) if self.mounted_here(dataset)?.is_some() => return Err(error),
            Err(_) => {}
        }
        let everywhere = mounts::everywhere()?;
        let left = everywhere
            .others
            .iter()
            .find(|namespace| namespace.mounts.iter().any(|mount| mount.is_of(dataset)));
        let pinned = match (left, dev) {
            (Some(namespace), _) => Some((namespace.pid, namespace.command.clone())),
            (None, Some((0, minor))) if self.dialect.fuse && !connection_closes(minor) => {
                Some((0, "unknown".to_owned()))
            }
            (None, _) => None,
        };
        match pinned {
            None => Ok(()),
            Some((pid, command)) => Err(StoreError::Busy {
                dataset: dataset.clone(),
                holders: vec![Holder {
                    pid,
                    command,
                    what: "still has it after it was unmounted here".to_owned(),
                }],
            }),
        }
    }
}

/// Waits for a FUSE connection, whose number is the minor of its filesystem's device, to be closed.
/// Where neither sysfs nor the daemon's descriptors tell, the mount tables have to do.
fn connection_closes(minor: u32) -> bool {
    let deadline = Instant::now() + CONNECTION_GRACE;
    let mut pause = Duration::from_millis(1);
    while connection_is_open(minor) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    true
}

fn connection_is_open(minor: u32) -> bool {
    let control = Path::new("/sys/fs/fuse/connections");
    let listed = fs::read_dir(control).is_ok_and(|mut entries| entries.next().is_some());
    if listed {
        return control.join(minor.to_string()).exists();
    }
    // Without fusectl: kernels since 6.17 name the connection of each descriptor of the daemon.
    let wanted = format!("fuse_connection:\t{minor}");
    let daemons = mounts::processes().unwrap_or_default();
    daemons
        .into_iter()
        .filter(|pid| mounts::command_of(*pid) == "zfs-fuse")
        .filter_map(|pid| fs::read_dir(format!("/proc/{pid}/fdinfo")).ok())
        .flat_map(|entries| entries.flatten())
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .any(|info| info.lines().any(|line| line == wanted))
}
