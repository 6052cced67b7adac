//! User holds on snapshots.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{LzcError, NameErrors, Operation};
use crate::name::{Kind, check, one_pool};
use crate::nv::{Entries, Value};
use crate::session::{About, Lzc, texts};

impl Lzc {
    /// Puts holds in one transaction group: from a snapshot to the tag. They last until they are released
    /// (no clean-up descriptor), and are all put or none, but for snapshots that do not exist: these are passed
    /// over, and returned with `ENOENT`.
    ///
    /// # Errors
    /// By name: `EEXIST` (has that tag already), `E2BIG` (tag too long). [`LzcError::Pools`],
    /// [`LzcError::Name`].
    pub fn hold(&self, holds: &BTreeMap<String, String>) -> Result<NameErrors, LzcError> {
        let Some(about) = batch(Operation::Hold, holds)? else {
            return Ok(NameErrors::default());
        };
        about.by_name(&self.session.hold(&about.list(&texts(holds))?)?)
    }

    /// Releases holds in one transaction group: from a snapshot to its tags. Those that are not there are passed
    /// over, and returned: a snapshot by its name, a tag as `snapshot#tag`. A snapshot that was destroyed with
    /// `defer` goes with its last hold.
    ///
    /// # Errors
    /// By name; nothing is released then. [`LzcError::Pools`], [`LzcError::Name`].
    pub fn release(
        &self,
        holds: &BTreeMap<String, BTreeSet<String>>,
    ) -> Result<NameErrors, LzcError> {
        let Some(about) = batch(Operation::Release, holds)? else {
            return Ok(NameErrors::default());
        };
        let tags = |tags: &BTreeSet<String>| {
            Value::List(tags.iter().map(|tag| (tag.clone(), Value::Flag)).collect())
        };
        let entries: Entries = holds.iter().map(|(name, set)| (name.clone(), tags(set))).collect();
        about.by_name(&self.session.release(&about.list(&entries)?)?)
    }

    /// The tags that hold a snapshot, each with the time it was put, in seconds since 1970. Reads only.
    ///
    /// # Errors
    /// `ENOENT`: no such snapshot.
    pub fn holds(&self, snapshot: &str) -> Result<BTreeMap<String, u64>, LzcError> {
        let about = About::new(Operation::Holds, snapshot);
        let name = check(snapshot, Kind::Snapshot)?;
        let outcome = self.session.get_holds(&name)?;
        about.done(&outcome)?;
        let entries = about.read(outcome.out.as_ref())?;
        let time = |(tag, value): (String, Value)| match value.bits() {
            Some(time) => Ok((tag, time)),
            None => Err(about.answer(format!("{tag}: not a time"))),
        };
        entries.into_iter().map(time).collect()
    }
}

fn batch<T>(
    operation: Operation,
    holds: &BTreeMap<String, T>,
) -> Result<Option<About<'_>>, LzcError> {
    for name in holds.keys() {
        check(name, Kind::Snapshot)?;
    }
    one_pool(operation, holds.keys().map(String::as_str))?;
    Ok(holds.keys().next().map(|first| About::new(operation, first)))
}
