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
//! * zfs-fuse hangs for good when a filesystem is unmounted while the closing of files has not reached
//!   it: the connection is drained first ([`crate::fusectl`]).
//! * zfs-fuse finishes an unmount after the command has returned: the connection's end is waited for. That
//!   it is gone is also the proof that no namespace, pinned or not, has the filesystem any more, and no
//!   process a file of it: so nobody is looked for there unless the unmount says busy, or the connection
//!   stays. The properties are read back while the unmount runs.

use std::collections::BTreeMap;
use std::time::Duration;

use flocker_store::store::Result;
use flocker_store::{DatasetName, Holder, PropertySource, StoreError};

use crate::ZfsStore;
use crate::errors::About;
use crate::fusectl::Connections;
use crate::holders::other_mounts;
use crate::mounts;
use crate::properties::Native;
use crate::rest::Watch;
use crate::room;

/// What `canmount` was before we took the dataset over.
pub const WAS_CANMOUNT: &str = "flocker-repl:was-canmount";
/// What `readonly` was; [`INHERIT`] where it was not set on this dataset.
pub const WAS_READONLY: &str = "flocker-repl:was-readonly";
/// What `mountpoint` was; [`INHERIT`] where it was not set on this dataset.
pub const WAS_MOUNTPOINT: &str = "flocker-repl:was-mountpoint";
/// Stands for a value that was not set locally.
pub const INHERIT: &str = "(inherit)";

/// How long zfs-fuse may take to be done with an unmount before it is asked who keeps it from that.
const SETTLED: Duration = Duration::from_millis(200);

const AFTER: &str = "still has it after it was unmounted here";

impl ZfsStore {
    pub(crate) fn fence_dataset(&self, dataset: &DatasetName) -> Result<()> {
        if self.dialect.fuse && (self.is_at_rest(dataset) || self.fence_by_connection(dataset)?) {
            return Ok(());
        }
        let mut asked = vec!["type", "canmount", "readonly"];
        if !self.dialect.fuse {
            asked.extend(room::ASKED);
        }
        let before = self.native(dataset, &asked)?;
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
        self.lift_limits(dataset, &before)?;
        // Somebody may have mounted it since we looked.
        self.refuse_if_writable(dataset)
    }

    /// The fence of a filesystem that zfs-fuse has mounted for us. That its connection is gone after the
    /// unmount proves that nobody in any namespace has it, so nobody is looked for unless the unmount fails
    /// or the connection stays; a mount that would stay is looked for before, since then nothing is changed.
    /// What else there is to ask is asked while the unmount runs. `false`: it is not mounted here, or the
    /// kernel has no word of connections.
    fn fence_by_connection(&self, dataset: &DatasetName) -> Result<bool> {
        let namespaces = mounts::everywhere_by_process()?;
        let Some(mount) = namespaces.own.iter().find(|mount| mount.is_live_of(dataset)) else {
            return Ok(false);
        };
        let Some(connections) = Connections::open() else {
            return Ok(false);
        };
        let minor = mount.dev.1;
        let busy = |holders| StoreError::Busy { dataset: dataset.clone(), holders };
        if other_mounts(&namespaces, dataset) {
            return Err(busy(self.holders(dataset)?));
        }
        if !connections.drain(minor) {
            return Err(self.still_held(dataset, 0, "zfs-fuse", "does not answer its requests"));
        }
        let (unmounted, properties) = std::thread::scope(|scope| {
            let asked = scope.spawn(|| self.native(dataset, &["type", "canmount", "mountpoint"]));
            let unmounted = self.zfs(&["unmount", dataset.as_str()], About::dataset(dataset));
            (unmounted, asked.join())
        });
        match unmounted {
            Ok(_) => {}
            Err(StoreError::Busy { .. }) => return Err(busy(self.holders(dataset)?)),
            // Somebody else has unmounted it in between.
            Err(error) if self.mounted_here(dataset)?.is_some() => return Err(error),
            Err(_) => {}
        }
        // From here on every mount is seen; before, there is none but those whose connection must go.
        let (watch, for_path) = (Watch::new(), Watch::new());
        if let Some(path) = self.mounted_here(dataset)? {
            let what = format!("has mounted it again at {}", path.display());
            return Err(self.still_held(dataset, 0, "somebody", &what));
        }
        if !connections.gone_within(minor, SETTLED) {
            self.refuse_who_still_has_it(dataset)?;
            if !connections.gone(minor) {
                return Err(self.still_held(dataset, 0, "somebody unknown", AFTER));
            }
        }
        let properties = match properties {
            Ok(properties) => properties?,
            Err(_) => self.native(dataset, &["type", "canmount", "mountpoint"])?,
        };
        if properties["canmount"].value == "on" {
            self.remember(dataset, WAS_CANMOUNT, &properties["canmount"])?;
            self.set_words(dataset, &["canmount=noauto".to_owned()])?;
            self.read_back(dataset)?;
        }
        let mountpoint = &properties["mountpoint"].value;
        if mountpoint.starts_with('/') && properties["canmount"].value == "noauto" {
            self.note_path(dataset, mountpoint.into(), for_path);
        }
        self.note_rest(dataset, watch);
        Ok(true)
    }

    /// # Errors
    /// [`StoreError::Busy`] naming a namespace that has it mounted.
    fn refuse_who_still_has_it(&self, dataset: &DatasetName) -> Result<()> {
        let everywhere = mounts::everywhere()?;
        let has = |mount: &mounts::Mount| mount.is_of(dataset);
        match everywhere.others.iter().find(|namespace| namespace.mounts.iter().any(has)) {
            None => Ok(()),
            Some(namespace) => {
                Err(self.still_held(dataset, namespace.pid, &namespace.command, AFTER))
            }
        }
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
            return self.lift_limits(dataset, before);
        }
        self.remember(dataset, WAS_READONLY, &before["readonly"])?;
        self.set_and_ignore_status(dataset, "readonly=on")?;
        let now = self.native(dataset, &["readonly"])?;
        if now["readonly"].value == "on" {
            return self.lift_limits(dataset, before);
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
        let own = mounts::own()?;
        let mount = own.iter().find(|mount| mount.is_live_of(dataset));
        let minor = mount.filter(|_| self.dialect.fuse).map(|mount| mount.dev.1);
        let connections = minor.and_then(|_| Connections::open());
        let connection = connections.as_ref().zip(minor);
        if let Some((connections, minor)) = connection
            && !connections.drain(minor)
        {
            return Err(self.still_held(dataset, 0, "zfs-fuse", "does not answer its requests"));
        }
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
        self.refuse_who_still_has_it(dataset)?;
        match connection {
            Some((connections, minor)) if !connections.gone(minor) => {
                Err(self.still_held(dataset, 0, "somebody unknown", AFTER))
            }
            _ => Ok(()),
        }
    }

    fn still_held(&self, dataset: &DatasetName, pid: u32, command: &str, what: &str) -> StoreError {
        let holder = Holder { pid, command: command.to_owned(), what: what.to_owned() };
        StoreError::Busy { dataset: dataset.clone(), holders: vec![holder] }
    }
}
