//! What `zfs list` and `zfs get` read, by the calls that they make: of one dataset or snapshot at a time, without a
//! process, without waiting for a transaction group, and without a trace in the pool's history.
//!
//! Whoever may open `/dev/zfs` may read (`zfs_secpolicy_read`), as with the command. The module takes the pool's
//! configuration for one snapshot at a time, so that a long listing holds nobody up; it is not of one moment.
//!
//! libzfs_core has none of this. Channel programs have, and were used before: each run is written to the pool's history
//! (program, arguments and answer), which dirties an idle pool; they need root; and they hold the pool's configuration for
//! as long as they run (19 s for the 1000 snapshots of an unmounted dataset in a virtual machine, where the command took 8.5).

use std::collections::BTreeMap;

use crate::bookmarks::Bookmark;
use crate::error::{Errno, LzcError, Operation};
use crate::name::{Kind, check, one_pool};
use crate::nv::{Entries, Value};
use crate::session::{About, Lzc};
use crate::sys::{Command, Question};

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The part of its name after `@`.
    pub name: String,
    /// Its guid, the same wherever it is received.
    pub guid: u64,
    /// The transaction group it was taken in.
    pub createtxg: u64,
    /// When it was taken, in seconds since 1970.
    pub creation_unix_s: u64,
    /// Number of user holds.
    pub userrefs: u64,
    /// Number of clones.
    pub clones: u64,
}

/// What one dataset has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inventory {
    /// Its snapshots, oldest first (by `createtxg`, then by name).
    pub snapshots: Vec<Snapshot>,
    /// Its bookmarks, by the part of their names after `#`.
    pub bookmarks: BTreeMap<String, Bookmark>,
    /// The token of a receive that was interrupted (`receive_resume_token`).
    pub resume_token: Option<String>,
}

/// A property's value, as the kernel gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PropertyValue {
    /// A number: sizes in bytes, times in seconds since 1970, and what the command has words for (`canmount`).
    Number(u64),
    /// A text.
    Text(String),
    /// Names (`clones`).
    Names(Vec<String>),
}

impl PropertyValue {
    /// The number, if it is one.
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Number(n) => Some(*n),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Where a property's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PropertySource {
    /// Nowhere: it is read-only.
    None,
    /// Set on this very dataset.
    Local,
    /// Brought by a receive.
    Received,
    /// Inherited from this dataset.
    Inherited(String),
}

impl PropertySource {
    fn of(source: Option<&str>, dataset: &str) -> Self {
        match source {
            None | Some("") => Self::None,
            Some("$recvd") => Self::Received,
            Some(name) if name == dataset => Self::Local,
            Some(name) => Self::Inherited(name.to_owned()),
        }
    }
}

/// A property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    /// Its value.
    pub value: PropertyValue,
    /// Where that comes from.
    pub source: PropertySource,
}

/// What a dataset is (`dmu_objset_type_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjsetType {
    /// A filesystem.
    Filesystem,
    /// A volume.
    Zvol,
    /// Another number.
    Other(u8),
}

/// A dataset or a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// Its guid.
    pub guid: u64,
    /// What it is.
    pub objset_type: ObjsetType,
    /// The transaction group it was made in.
    pub createtxg: u64,
    /// Of a snapshot: its clones.
    pub clones: u64,
    /// A receive is under way, or was interrupted: its data are of no moment.
    pub inconsistent: bool,
    /// Its properties: those that are set or inherited, and what the kernel counts. One that has its default is not
    /// there.
    pub properties: BTreeMap<String, Property>,
}

impl Stats {
    /// A property's number.
    pub fn number(&self, property: &str) -> Option<u64> {
        self.properties.get(property)?.value.number()
    }

    /// A property's text.
    pub fn text(&self, property: &str) -> Option<&str> {
        self.properties.get(property)?.value.text()
    }

    /// The newest snapshot of a dataset, by its full name.
    pub fn newest_snapshot(&self) -> Option<&str> {
        self.text("prevsnap")
    }

    fn read(about: About<'_>, command: &Command, name: &str) -> Result<Self, LzcError> {
        let list = command.properties().map_err(|error| about.answer(error.to_string()))?;
        let fast = command.stats();
        let properties = about
            .read(list.as_ref())?
            .into_iter()
            .filter_map(|(key, value)| Some((key, property(value.list()?, name)?)))
            .collect();
        Ok(Self {
            guid: fast.guid,
            objset_type: match fast.objset_type {
                2 => ObjsetType::Filesystem,
                3 => ObjsetType::Zvol,
                other => ObjsetType::Other(other),
            },
            createtxg: fast.createtxg,
            clones: fast.clones,
            inconsistent: fast.inconsistent,
            properties,
        })
    }

    fn snapshot(&self, about: About<'_>, short: &str) -> Result<Snapshot, LzcError> {
        let number = |property: &str| {
            let missing = || about.answer(format!("@{short}: no {property}"));
            self.number(property).ok_or_else(missing)
        };
        Ok(Snapshot {
            name: short.to_owned(),
            guid: self.guid,
            createtxg: self.createtxg,
            creation_unix_s: number("creation")?,
            userrefs: number("userrefs")?,
            clones: self.clones,
        })
    }
}

impl Lzc {
    /// One dataset or snapshot; `None` where there is none.
    ///
    /// # Errors
    /// [`LzcError::Name`]; `EIO` and what else a pool in trouble says.
    pub fn stats(&self, name: &str) -> Result<Option<Stats>, LzcError> {
        let about = About::new(Operation::Properties, name);
        let mut command = Command::new(&check(name, Kind::DatasetOrSnapshot)?);
        match self.session.device().ask(Question::Stats, &mut command) {
            Ok(()) => Stats::read(about, &command, name).map(Some),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(about.failed(errno)),
        }
    }

    /// One snapshot; `None` where there is none. `name` is its full name.
    ///
    /// # Errors
    /// As [`Lzc::stats`].
    pub fn find_snapshot(&self, name: &str) -> Result<Option<Snapshot>, LzcError> {
        check(name, Kind::Snapshot)?;
        let about = About::new(Operation::Properties, name);
        let Some(stats) = self.stats(name)? else { return Ok(None) };
        let (_, short) = name.split_once('@').ok_or_else(|| about.answer("no @"))?;
        stats.snapshot(about, short).map(Some)
    }

    /// Snapshots, bookmarks and an interrupted receive of one dataset.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn inventory(&self, dataset: &str) -> Result<Inventory, LzcError> {
        let about = About::new(Operation::Inventory, dataset);
        let name = check(dataset, Kind::Dataset)?;
        let Some(own) = self.stats(dataset)? else { return Err(about.failed(Errno::ENOENT)) };
        let mut snapshots = Vec::new();
        let mut command = Command::new(&name);
        loop {
            command.set_name(&name);
            match self.session.device().ask(Question::NextSnapshot, &mut command) {
                Ok(()) => {}
                Err(Errno::ESRCH) => break,
                Err(errno) => return Err(about.failed(errno)),
            }
            let found = command.name();
            let Some((_, short)) = found.split_once('@') else {
                return Err(about.answer(format!("{found} among the snapshots")));
            };
            snapshots.push(Stats::read(about, &command, &found)?.snapshot(about, short)?);
        }
        snapshots.sort_by(|a, b| (a.createtxg, &a.name).cmp(&(b.createtxg, &b.name)));
        let resume_token = own.text("receive_resume_token").map(str::to_owned);
        Ok(Inventory { snapshots, bookmarks: self.bookmarks(dataset)?, resume_token })
    }

    /// `written@snapshot` of a dataset, in bytes: of synced transaction groups only, and without what was
    /// freed. `snapshot` is a full name.
    ///
    /// # Errors
    /// `ENOENT`: one of them does not exist. `EINVAL`: not an earlier snapshot of that dataset.
    pub fn written_since(&self, dataset: &str, snapshot: &str) -> Result<u64, LzcError> {
        let about = About::new(Operation::Properties, dataset);
        let mut command = Command::new(&check(dataset, Kind::Dataset)?);
        command.set_value(&check(snapshot, Kind::Snapshot)?);
        one_pool(about.operation, [dataset, snapshot])?;
        match self.session.device().ask(Question::Written, &mut command) {
            Ok(()) => Ok(command.cookie()),
            Err(errno) => Err(about.failed(errno)),
        }
    }
}

/// `{value: …, source: …}`; none where the value is missing.
fn property(entry: &Entries, name: &str) -> Option<Property> {
    let value = match entry.get("value")? {
        Value::Text(text) => PropertyValue::Text(text.clone()),
        // `clones`: names without values.
        Value::List(names) => PropertyValue::Names(names.keys().cloned().collect()),
        value => PropertyValue::Number(value.bits()?),
    };
    let source = PropertySource::of(entry.get("source").and_then(Value::text), name);
    Some(Property { value, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_told_by_its_word() {
        let of = |source| PropertySource::of(source, "tank/a");
        assert_eq!(of(None), PropertySource::None);
        assert_eq!(of(Some("tank/a")), PropertySource::Local);
        assert_eq!(of(Some("tank")), PropertySource::Inherited("tank".to_owned()));
        assert_eq!(of(Some("$recvd")), PropertySource::Received);
    }
}
