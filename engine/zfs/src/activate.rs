//! The way back from the fence: mounting a dataset, and giving it back for good.
//!
//! Owns: `zfs mount` and everything that must hold before and after it. Leaves to others: whether this
//! node may be the writer at all (the engine's journal says so, before it calls here).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flocker_store::store::Result;
use flocker_store::{DatasetName, Holder, PropertySource, StoreError};

use crate::ZfsStore;
use crate::datasets::{is_node, node_of};
use crate::errors::About;
use crate::fence::{INHERIT, WAS_CANMOUNT, WAS_MOUNTPOINT, WAS_READONLY};
use crate::mounts;
use crate::properties::{Native, OURS};
use crate::rest::Watch;
use crate::room::WAS_LIMITS;

impl ZfsStore {
    pub(crate) fn activate_dataset(&self, dataset: &DatasetName) -> Result<Option<PathBuf>> {
        let known = self.take_path(dataset);
        self.forget_rest(dataset);
        if self.dialect.fuse
            && let Some((path, nobody)) = known
            && self.mount_known(dataset, &path, nobody)?
        {
            return Ok(Some(path));
        }
        let mut asked = vec!["type", "canmount", "readonly", "mountpoint"];
        if !self.dialect.fuse {
            asked.extend(["receive_resume_token", WAS_LIMITS]);
        }
        let now = self.native_with_key(dataset, &asked)?;
        if !self.dialect.fuse {
            self.discard_any_partial(dataset, &now["receive_resume_token"])?;
            self.restore_limits(dataset, &now[WAS_LIMITS])?;
        }
        if now["type"].value != "filesystem" {
            return self.activate_zvol(dataset, &now["readonly"]).map(Some);
        }
        let own = mounts::own()?;
        let mounted = own.iter().find(|mount| mount.is_live_of(dataset));
        if mounted.is_none() {
            // Before anything is changed: whoever still has it would write beside us.
            self.refuse_if_held(dataset)?;
        }
        self.open_up(dataset, &now)?;
        let path = match mounted {
            Some(mount) => mount.mountpoint.clone(),
            None => {
                let path = self.mount_path(dataset, &now["mountpoint"])?;
                refuse_taken_path(dataset, &path)?;
                self.zfs_patiently(&["mount", dataset.as_str()], About::dataset(dataset))?;
                path
            }
        };
        self.check_mounted(dataset, &path)?;
        Ok(Some(path))
    }

    /// Mounts a dataset that is read-only.
    pub(crate) fn show_dataset(&self, dataset: &DatasetName) -> Result<Option<PathBuf>> {
        let now = self.native_with_key(dataset, &["type", "mountpoint"])?;
        if now["type"].value != "filesystem" {
            return wait_for_node(dataset).map(Some);
        }
        let path = self.mount_path(dataset, &now["mountpoint"])?;
        refuse_taken_path(dataset, &path)?;
        self.set_words(dataset, &["canmount=noauto".to_owned()])?;
        self.zfs_patiently(&["mount", dataset.as_str()], About::dataset(dataset))?;
        let own = mounts::own()?;
        match own.iter().find(|mount| mount.is_live_of(dataset)) {
            // zfs-fuse refuses writers itself, and its mounts do not say so.
            Some(mount) if mount.mountpoint == path && (mount.readonly || self.dialect.fuse) => {
                Ok(Some(path))
            }
            other => Err(StoreError::Output {
                command: format!("zfs mount {dataset}"),
                detail: format!("expected it read-only at {}: {other:?}", path.display()),
            }),
        }
    }

    /// What an interrupted receive left would go on with a lineage that ends here.
    fn discard_any_partial(&self, dataset: &DatasetName, token: &Native) -> Result<()> {
        match token.value.as_str() {
            "-" | "" => Ok(()),
            _ => self.discard_partial(dataset),
        }
    }

    /// Native properties of a dataset whose key is loaded, if it needs one.
    fn native_with_key(
        &self,
        dataset: &DatasetName,
        names: &[&str],
    ) -> Result<BTreeMap<String, Native>> {
        if self.dialect.fuse {
            return self.native(dataset, names);
        }
        let now = self.native(dataset, &[names, &["keystatus", "encryptionroot"]].concat())?;
        self.refuse_without_key(dataset, &now)?;
        Ok(now)
    }

    /// An encrypted dataset whose key nobody has loaded has neither mount nor device.
    fn refuse_without_key(
        &self,
        dataset: &DatasetName,
        now: &BTreeMap<String, Native>,
    ) -> Result<()> {
        if now["keystatus"].value != "unavailable" {
            return Ok(());
        }
        let root = &now["encryptionroot"].value;
        Err(self.not_capable(format!(
            "using {dataset}, whose encryption key is not loaded (run `zfs load-key {root}` there),"
        )))
    }

    /// Makes a zvol writable and waits for its device node, which udev makes in its own time.
    fn activate_zvol(&self, dataset: &DatasetName, readonly: &Native) -> Result<PathBuf> {
        if !readonly.is_set_to("off") {
            self.remember(dataset, WAS_READONLY, readonly)?;
            self.set_and_ignore_status(dataset, "readonly=off")?;
            let now = self.native(dataset, &["readonly"])?;
            if now["readonly"].value != "off" {
                return Err(StoreError::Output {
                    command: format!("zfs get readonly {dataset}"),
                    detail: format!("readonly is still {}", now["readonly"].value),
                });
            }
        }
        wait_for_node(dataset)
    }

    /// Mounts what was looked at before, and sees whether it came out as expected; what was asked then is
    /// asked again while the mount runs. `false`: the long way has to be gone.
    fn mount_known(&self, dataset: &DatasetName, path: &Path, nobody: bool) -> Result<bool> {
        if !nobody {
            self.refuse_if_held(dataset)?;
        }
        refuse_taken_path(dataset, path)?;
        let (mounted, properties) = std::thread::scope(|scope| {
            let asked = scope.spawn(|| self.native(dataset, &["canmount", "readonly"]));
            let words = ["mount", dataset.as_str()];
            (self.zfs_patiently(&words, About::dataset(dataset)), asked.join())
        });
        let as_expected = matches!(&properties, Ok(Ok(now))
            if now["canmount"].value == "noauto" && now["readonly"].is_set_to("off"));
        if mounted.is_err() || (as_expected && self.check_mounted(dataset, path).is_ok()) {
            return Ok(mounted.is_ok());
        }
        // Nobody has been told of it yet. What zfs-fuse was told of `readonly` counts when it mounts.
        self.unmount(dataset)?;
        Ok(false)
    }

    /// Where a filesystem is mounted when it is activated.
    pub(crate) fn live_path_of(&self, dataset: &DatasetName) -> Result<Option<PathBuf>> {
        let now = self.native_with_key(dataset, &["type", "mountpoint"])?;
        match now["type"].value == "filesystem" {
            true => self.mount_path(dataset, &now["mountpoint"]).map(Some),
            false => Ok(None),
        }
    }

    /// Nobody holds it, and the path it belongs to is free. Where it goes is remembered.
    pub(crate) fn rehearse_dataset(&self, dataset: &DatasetName) -> Result<()> {
        if self.dialect.fuse
            && let Some((path, nobody)) = self.known_path(dataset)
        {
            // What its properties say is asked again when it is mounted.
            return match nobody {
                true => refuse_taken_path(dataset, &path),
                false => self.rehearse_at(dataset, path),
            };
        }
        let asked = ["type", "canmount", "readonly", "mountpoint"];
        let now = self.native_with_key(dataset, &asked)?;
        if now["type"].value != "filesystem" {
            return Ok(());
        }
        match now["mountpoint"].value.as_str() {
            path if path.starts_with('/') => {
                let path = PathBuf::from(path);
                if now["canmount"].value == "noauto" && now["readonly"].is_set_to("off") {
                    return self.rehearse_at(dataset, path);
                }
                if self.mounted_here(dataset)?.is_none() {
                    self.refuse_if_held(dataset)?;
                    refuse_taken_path(dataset, &path)?;
                }
                Ok(())
            }
            // Where it would go is said by the options; `activate` looks there.
            _ if self.mounted_here(dataset)?.is_some() => Ok(()),
            _ => self.refuse_if_held(dataset),
        }
    }

    /// Looks for holders, and remembers the path with a watch that was there before.
    fn rehearse_at(&self, dataset: &DatasetName, path: PathBuf) -> Result<()> {
        let watch = Watch::new();
        if self.mounted_here(dataset)?.is_some() {
            self.forget_rest(dataset);
            return Ok(());
        }
        self.refuse_if_held(dataset)?;
        refuse_taken_path(dataset, &path)?;
        self.note_path(dataset, path, watch);
        Ok(())
    }

    /// `canmount=noauto` and writable, remembering what was.
    fn open_up(&self, dataset: &DatasetName, now: &BTreeMap<String, Native>) -> Result<()> {
        if now["canmount"].value != "noauto" {
            self.remember(dataset, WAS_CANMOUNT, &now["canmount"])?;
            self.set_words(dataset, &["canmount=noauto".to_owned()])?;
        }
        if !now["readonly"].is_set_to("off") {
            // zfs-fuse still shows what the last mount said for a moment after it is gone; then nobody knows
            // what is set, and what was remembered before stays.
            if !now["readonly"].temporary {
                self.remember(dataset, WAS_READONLY, &now["readonly"])?;
            }
            self.set_and_ignore_status(dataset, "readonly=off")?;
        }
        Ok(())
    }

    /// Where the dataset belongs: its mountpoint, or a place below the configured one.
    fn mount_path(&self, dataset: &DatasetName, mountpoint: &Native) -> Result<PathBuf> {
        if mountpoint.value.starts_with('/') {
            return Ok(PathBuf::from(&mountpoint.value));
        }
        let Some(root) = &self.options.mount_root else {
            return Err(self.not_capable(format!(
                "mounting {dataset} (its mountpoint is {}: set one, or configure mount_root)",
                mountpoint.value
            )));
        };
        let path = root.join(dataset.leaf());
        let Some(word) = path.to_str().filter(|word| word.starts_with('/')) else {
            return Err(self.not_capable(format!("the mountpoint {}", path.display())));
        };
        self.remember(dataset, WAS_MOUNTPOINT, mountpoint)?;
        self.set_words(dataset, &[format!("mountpoint={word}")])?;
        Ok(path)
    }

    fn check_mounted(&self, dataset: &DatasetName, path: &Path) -> Result<()> {
        let own = mounts::own()?;
        let detail = match own.iter().find(|mount| mount.is_live_of(dataset)) {
            Some(mount) if mount.mountpoint != path => {
                format!("it is mounted at {}", mount.mountpoint.display())
            }
            Some(mount) if mount.readonly => "it is mounted read-only".to_owned(),
            Some(_) => return Ok(()),
            None => "it is not in our mount table".to_owned(),
        };
        Err(StoreError::Output {
            command: format!("zfs mount {dataset}"),
            detail: format!("expected it writable at {}: {detail}", path.display()),
        })
    }

    pub(crate) fn give_dataset_back(&self, dataset: &DatasetName) -> Result<()> {
        if !self.dialect.fuse {
            let now = self.native(dataset, &[WAS_LIMITS])?;
            self.restore_limits(dataset, &now[WAS_LIMITS])?;
        }
        let properties = self.get_user_properties(dataset)?;
        let local = |name: &str| {
            properties
                .get(name)
                .filter(|property| property.source == PropertySource::Local)
                .map(|property| property.value.clone())
        };
        // `canmount` last: setting it to `on` may mount, and then the rest has to be right.
        for (ours, native) in
            [(WAS_MOUNTPOINT, "mountpoint"), (WAS_READONLY, "readonly"), (WAS_CANMOUNT, "canmount")]
        {
            match local(ours) {
                None => {}
                Some(was) if was == INHERIT => self.inherit(dataset.as_str(), native, dataset)?,
                Some(was) => {
                    self.set_and_ignore_status(dataset, &format!("{native}={was}"))?;
                    let now = self.native(dataset, &[native])?;
                    if now[native].value != was {
                        return Err(StoreError::Output {
                            command: format!("zfs get {native} {dataset}"),
                            detail: format!("{native} is {} and not {was}", now[native].value),
                        });
                    }
                }
            }
        }
        let changes: BTreeMap<String, Option<String>> = properties
            .into_iter()
            .filter(|(name, p)| name.starts_with(OURS) && p.source == PropertySource::Local)
            .map(|(name, _)| (name, None))
            .collect();
        self.change_user_properties(dataset, &changes)
    }
}

/// How long udev may take to make the node of a zvol.
const NODE_LIMIT: Duration = Duration::from_secs(30);

/// The device node of a zvol, which udev makes in its own time.
fn wait_for_node(dataset: &DatasetName) -> Result<PathBuf> {
    let path = node_of(dataset);
    let deadline = Instant::now() + NODE_LIMIT;
    let mut pause = Duration::from_millis(5);
    while !is_node(&path) {
        if Instant::now() >= deadline {
            return Err(StoreError::Io {
                context: format!(
                    "{} did not appear within {} s (is udev running, and volmode of {dataset} not none?)",
                    path.display(),
                    NODE_LIMIT.as_secs()
                ),
                source: io::ErrorKind::TimedOut.into(),
            });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
    Ok(path)
}

/// A mount hides what lies under it, and OpenZFS mounts over it without a word (`overlay=on`).
fn refuse_taken_path(dataset: &DatasetName, path: &Path) -> Result<()> {
    let taken = |what: String| StoreError::Busy {
        dataset: dataset.clone(),
        holders: vec![Holder { pid: 0, command: "path".to_owned(), what }],
    };
    let shown = path.display();
    if let Some(mount) = mounts::own()?.iter().rev().find(|m| m.mountpoint == path) {
        return Err(taken(format!("{} is mounted at {shown}", mount.source)));
    }
    match fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(taken(format!("{shown} is not empty"))),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            Err(taken(format!("{shown} is not a directory")))
        }
        Err(e) => Err(StoreError::io(format!("looking at {shown}"), e)),
    }
}
