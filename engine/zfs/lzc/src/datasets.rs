//! Whole datasets: creating, cloning, promoting, renaming, destroying, rolling back. None of these mounts or
//! unmounts anything.

use std::ffi::CString;

use crate::error::{Errno, LzcError, NameErrors, Operation};
use crate::name::{Kind, NameProblem, check, pool};
use crate::nv::{Entries, Value};
use crate::receive::{Properties, setting_entries};
use crate::session::{About, Lzc};

/// What [`Lzc::create`] makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatasetType {
    /// A filesystem.
    Filesystem,
    /// A volume; wants the properties `volsize` and, usually, `volblocksize`, both numbers of bytes.
    Volume,
}

impl Lzc {
    /// Whether a dataset, a snapshot or a bookmark's dataset is there. `false`, too, when the kernel would not
    /// say: the library keeps the reason to itself. For a reason ask [`Lzc::stats`].
    ///
    /// # Errors
    /// [`LzcError::Name`].
    pub fn exists(&self, name: &str) -> Result<bool, LzcError> {
        self.session.exists(&check(name, Kind::DatasetOrSnapshot)?)
    }

    /// Creates a dataset, whose parent has to exist. Not mounted. For the types of the properties see
    /// [`Properties`].
    ///
    /// # Errors
    /// `EEXIST`, `ENOENT` (no parent), `EINVAL` (a property of the wrong type or value, or a volume without
    /// `volsize`), `ENOSPC`, `EDQUOT`.
    pub fn create(
        &self,
        name: &str,
        kind: DatasetType,
        properties: &Properties,
    ) -> Result<(), LzcError> {
        let about = About::new(Operation::Create, name);
        // enum lzc_dataset_type
        let number = match kind {
            DatasetType::Filesystem => 2,
            DatasetType::Volume => 3,
        };
        let list = about.list(&setting_entries(properties))?;
        about.done(&self.session.create(&check(name, Kind::Dataset)?, number, &list)?)
    }

    /// Makes a writable clone of a snapshot. Not mounted.
    ///
    /// # Errors
    /// `EEXIST`, `ENOENT` (no snapshot, or no parent), `EXDEV` (another pool), `EINVAL` (properties).
    pub fn clone_snapshot(
        &self,
        name: &str,
        origin: &str,
        properties: &Properties,
    ) -> Result<(), LzcError> {
        let about = About::new(Operation::Clone, name);
        let (name, origin) = (check(name, Kind::Dataset)?, check(origin, Kind::Snapshot)?);
        let list = about.list(&setting_entries(properties))?;
        about.done(&self.session.clone_dataset(&name, &origin, &list)?)
    }

    /// Swaps a clone with its origin: the snapshots up to the origin belong to it afterwards.
    ///
    /// # Errors
    /// `EEXIST`: both have a snapshot of the same name; [`LzcError::names`] then has one, by its short name.
    /// `EINVAL`: not a clone. `ENOENT`, `ENOSPC`, `EDQUOT`.
    pub fn promote(&self, clone: &str) -> Result<(), LzcError> {
        let outcome = self.session.promote(&check(clone, Kind::Dataset)?)?;
        let Some(errno) = outcome.error() else {
            return Ok(());
        };
        let by_name = outcome.out.into_iter().map(|name| (name, errno)).collect();
        Err(LzcError::Failed {
            operation: Operation::Promote,
            subject: clone.to_owned(),
            errno,
            names: NameErrors { by_name, omitted: 0 },
        })
    }

    /// Renames a dataset within its pool, or a snapshot within its dataset.
    ///
    /// A mounted filesystem stays mounted where it is, and the mount table goes on showing the old name:
    /// unmount it before.
    ///
    /// # Errors
    /// `EEXIST`, `ENOENT` (no dataset, or no parent), `EXDEV` (another pool; another dataset, of a snapshot),
    /// `EBUSY`.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), LzcError> {
        let kind = if from.contains('@') { Kind::Snapshot } else { Kind::Dataset };
        let (old, new) = (check(from, kind)?, check(to, kind)?);
        About::new(Operation::Rename, from).done(&self.session.rename(&old, &new)?)
    }

    /// Destroys one dataset that has no snapshots and no children, for good. What an interrupted receive has
    /// left in it goes with it.
    ///
    /// # Errors
    /// `EEXIST` (has children), `EBUSY` (has snapshots, is mounted or in use; of a zvol also for the moment in
    /// which udev looks at it after it was made), `ENOENT`.
    pub fn destroy(&self, dataset: &str) -> Result<(), LzcError> {
        let name = check(dataset, Kind::Dataset)?;
        if pool(dataset) == dataset {
            // The kernel refuses, too; a pool is not a dataset that anybody destroys by this name.
            let problem = NameProblem::NotADataset;
            return Err(LzcError::Name { name: dataset.to_owned(), problem });
        }
        About::new(Operation::Destroy, dataset).done(&self.session.destroy(&name)?)
    }

    /// Discards what an interrupted, resumable receive into an existing dataset has left (`fs/%recv`), as
    /// `zfs receive -A` does. `false`: there was nothing. A *full* receive leaves the dataset itself
    /// (`inconsistent` = 1): that one is [`Lzc::destroy`]ed.
    ///
    /// # Errors
    /// `EBUSY`: the receive is still running.
    pub fn discard_partial(&self, dataset: &str) -> Result<bool, LzcError> {
        check(dataset, Kind::Dataset)?;
        let about = About::new(Operation::DiscardPartial, dataset);
        let hidden = CString::new(format!("{dataset}/%recv"))
            .map_err(|_| about.answer("a NUL byte in a name that was checked"))?;
        let outcome = self.session.destroy(&hidden)?;
        match outcome.error() {
            None => Ok(true),
            Some(Errno::ENOENT) => Ok(false),
            Some(errno) => Err(about.failed(errno)),
        }
    }

    /// Sets a dataset back to its newest snapshot, which has to be the one given: nothing that has a name is
    /// destroyed. A mounted filesystem is held still meanwhile, and goes on with the old content.
    ///
    /// # Errors
    /// `EEXIST` (there is a newer snapshot or bookmark), `ESRCH` (not a snapshot of this dataset), `EBUSY`
    /// (a zvol that is open, or a receive), `EDQUOT`, `ENOSPC`. `EAGAIN`: the snapshot is of this very
    /// transaction group; again after [`Lzc::sync`].
    pub fn rollback_to(&self, dataset: &str, snapshot: &str) -> Result<(), LzcError> {
        let (name, target) = (check(dataset, Kind::Dataset)?, check(snapshot, Kind::Snapshot)?);
        let outcome = self.session.rollback_to(&name, &target)?;
        About::new(Operation::Rollback, snapshot).done(&outcome)
    }

    /// Waits until all that was done to the pool before is on disk. Writes nothing of its own.
    ///
    /// # Errors
    /// `ENOENT` (no such pool), `EAGAIN` (suspended).
    pub fn sync(&self, pool: &str) -> Result<(), LzcError> {
        let about = About::new(Operation::Sync, pool);
        let name = check(pool, Kind::Dataset)?;
        // The kernel insists on this argument; true would write a label for the sake of it.
        let arguments: Entries = [("force".to_owned(), Value::Bool(false))].into();
        about.done(&self.session.sync(&name, &about.list(&arguments)?)?)
    }
}
