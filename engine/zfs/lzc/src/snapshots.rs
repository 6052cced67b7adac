//! Snapshots: taking and destroying them.

use std::collections::BTreeMap;

use crate::error::{LzcError, Operation};
use crate::name::{Kind, check, check_user_property, one_pool};
use crate::session::{About, Lzc, flags, texts};

impl Lzc {
    /// Takes snapshots in one transaction group, all or none; they have to be in one pool, and of different
    /// datasets. `properties`: user properties that each of them gets. No names: nothing to do.
    ///
    /// # Errors
    /// By name: `ENOENT` (no dataset), `EEXIST`, `ENOSPC`, `EDQUOT`. [`LzcError::Pools`], [`LzcError::Name`].
    pub fn snapshot<S: AsRef<str>>(
        &self,
        names: &[S],
        properties: &BTreeMap<String, String>,
    ) -> Result<(), LzcError> {
        let Some(about) = batch(Operation::Snapshot, names, Kind::Snapshot)? else {
            return Ok(());
        };
        for (name, value) in properties {
            check_user_property(name, Some(value))?;
        }
        let list = about.list(&flags(names))?;
        let properties = match properties.is_empty() {
            true => None,
            false => Some(about.list(&texts(properties))?),
        };
        let outcome = self.session.snapshot(&list, properties.as_ref())?;
        about.by_name(&outcome).map(drop)
    }

    /// Destroys snapshots of one pool in one transaction group. One that does not exist is not an error.
    /// Without `defer` all or none; with it, one that is held or has clones is marked, and goes with the last
    /// of these.
    ///
    /// # Errors
    /// By name: `EBUSY` (held, or being sent), `EEXIST` (has clones). [`LzcError::Pools`], [`LzcError::Name`].
    pub fn destroy_snapshots<S: AsRef<str>>(
        &self,
        names: &[S],
        defer: bool,
    ) -> Result<(), LzcError> {
        let Some(about) = batch(Operation::DestroySnapshots, names, Kind::Snapshot)? else {
            return Ok(());
        };
        let list = about.list(&flags(names))?;
        let outcome = self.session.destroy_snaps(&list, defer)?;
        about.by_name(&outcome).map(drop)
    }
}

/// Checks the names of one call; `None` when there are none.
pub(crate) fn batch<'a, S: AsRef<str>>(
    operation: Operation,
    names: &'a [S],
    kind: Kind,
) -> Result<Option<About<'a>>, LzcError> {
    for name in names {
        check(name.as_ref(), kind)?;
    }
    one_pool(operation, names.iter().map(AsRef::as_ref))?;
    Ok(names.first().map(|first| About::new(operation, first.as_ref())))
}
