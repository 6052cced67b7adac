//! What is read and set by channel programs: Lua that runs in the kernel, without a process.
//!
//! The programs that read do not wait for a transaction group, and each sees one moment of the pool. What to
//! know of them:
//!
//! * They need `root` (`zfs_secpolicy_config`); others get `EPERM`, even where `zfs allow` would do for the
//!   command.
//! * **Every run is written to the pool's history**, program, arguments and answer (up to 1 MiB,
//!   `zfs_history_output_max`), those that only read included (`zfs_ioc_channel_program` is registered with
//!   `allow_log`). So a poll by channel program dirties an idle pool, and pushes what people want to find in
//!   `zpool history` out of its ring. Ask seldom, or after something has changed; [`Lzc::bookmarks`],
//!   [`Lzc::holds`] and [`Lzc::exists`] leave no trace.
//! * While one runs, it holds the pool's configuration: no transaction group in which a snapshot, a dataset or a
//!   property is made or changed can finish, and with it everything that waits for one. Hence [`SNAPSHOTS`].
//!
//! Time of an inventory against that of `zfs list` with the same columns, OpenZFS 2.3.9 in a virtual machine
//! without hardware support (some ten times slower than a real one; the process itself is 0.1 s of it):
//!
//! | snapshots | mounted, program | mounted, command | unmounted, program | unmounted, command |
//! | --- | --- | --- | --- | --- |
//! | 100 | 0.8 s | 0.5 s | | |
//! | 400 | 2.8 s | 1.5 s | | |
//! | 1000 | 6.5 s | 3.5 s | 19 s | 8.5 s |
//!
//! Of a dataset that nobody has open, which a standby is, each look at a snapshot reads the table of all of them
//! (up to some 2000): the time grows with the square. The command takes the pool's configuration for one snapshot
//! at a time.

use std::collections::BTreeMap;
use std::ffi::CString;

use crate::bookmarks::Bookmark;
use crate::error::{Errno, Limit, LzcError, NameErrors, Operation};
use crate::lua;
use crate::name::{Kind, check, check_user_property, one_pool, pool};
use crate::nv::{Entries, Value};
use crate::session::{About, Lzc};

/// Lua instructions that a program may take: ZFS's own default. An inventory takes some 50 a snapshot.
pub const INSTRUCTIONS: u64 = 10_000_000;

/// Bytes of memory that a program may take, and its answer: the kernel's limit is 100 MiB
/// (`zfs_lua_max_memlimit`), its default 10. An inventory takes less than 1 KiB a snapshot.
pub const MEMORY_BYTES: u64 = 32 << 20;

/// Snapshots of one dataset that [`Lzc::inventory`] lists at most; see the [module](self) for what they cost the
/// pool meanwhile. Of more, the command does it better.
pub const SNAPSHOTS: usize = 500;

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

/// A property's value, as the kernel's Lua gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PropertyValue {
    /// A number: sizes in bytes, times in seconds since 1970.
    Number(u64),
    /// A text, or the word of an index (`on`, `noauto`, `lz4`).
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
    /// Not set. (Also of what is inherited from a *pool* by the name of `default`: the kernel gives the same
    /// word for both.)
    Default,
    /// Set on this very dataset.
    Local,
    /// Brought by a receive.
    Received,
    /// Of this mount only.
    Temporary,
    /// Inherited from this dataset.
    Inherited(String),
}

impl PropertySource {
    fn of(source: Option<&str>, dataset: &str) -> Self {
        match source {
            None => Self::None,
            Some("$recvd") => Self::Received,
            Some(name) if name == dataset => Self::Local,
            Some("" | "default") => Self::Default,
            Some("temporary") => Self::Temporary,
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

/// By dataset; `None` for one that does not exist. By property; one that a dataset has not is not there.
pub type PropertiesOf = BTreeMap<String, Option<BTreeMap<String, Property>>>;

/// One change of a user property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserChange<'a> {
    /// A dataset or a snapshot.
    pub dataset: &'a str,
    /// Its name, with a `:` in it.
    pub property: &'a str,
    /// Its value; `None` removes the local one, so that it is inherited or gone.
    pub value: Option<&'a str>,
}

impl Lzc {
    /// Snapshots, bookmarks and an interrupted receive of one dataset, in two calls: snapshots and token by a
    /// channel program, of one moment; bookmarks after them, since Lua cannot read theirs.
    ///
    /// # Errors
    /// `ENOENT`, `EPERM`. [`LzcError::TooBig`]: more than [`SNAPSHOTS`], or out of memory or instructions; the
    /// `zfs` command has no such limits.
    pub fn inventory(&self, dataset: &str) -> Result<Inventory, LzcError> {
        self.inventory_up_to(dataset, SNAPSHOTS)
    }

    /// As [`Lzc::inventory`], of a dataset with at most `most` snapshots.
    ///
    /// # Errors
    /// As [`Lzc::inventory`].
    pub fn inventory_up_to(&self, dataset: &str, most: usize) -> Result<Inventory, LzcError> {
        let about = About::new(Operation::Inventory, dataset);
        check(dataset, Kind::Dataset)?;
        let arguments = [
            ("d".to_owned(), Value::Text(dataset.to_owned())),
            ("n".to_owned(), Value::Int(i64::try_from(most).unwrap_or(i64::MAX))),
        ];
        let mut answer = self.read_by_program(about, lua::INVENTORY, &arguments.into())?;
        if answer.contains_key("e") {
            return Err(about.failed(Errno::ENOENT));
        }
        if answer.contains_key("m") {
            return Err(too_big(about, Limit::Snapshots(most)));
        }
        let Some(Value::List(found)) = answer.remove("s") else {
            return Err(about.answer("no snapshots"));
        };
        let snapshot = |(name, value): (String, Value)| {
            let parsed = value.text().and_then(|text| parse_snapshot(&name, text));
            parsed.ok_or_else(|| about.answer(format!("@{name}: {value:?}")))
        };
        let mut snapshots: Vec<_> = found.into_iter().map(snapshot).collect::<Result<_, _>>()?;
        snapshots.sort_by(|a, b| (a.createtxg, &a.name).cmp(&(b.createtxg, &b.name)));
        let resume_token = answer.get("t").and_then(Value::text).map(str::to_owned);
        Ok(Inventory { snapshots, bookmarks: self.bookmarks(dataset)?, resume_token })
    }

    /// Properties of datasets and snapshots of one pool, all of one moment.
    ///
    /// # Errors
    /// [`LzcError::Program`]: one that ZFS does not know, or that cannot be read now (`version` of an encrypted
    /// dataset without its key). [`LzcError::TooBig`], [`LzcError::Pools`], [`LzcError::Name`], `EPERM`.
    pub fn properties(&self, asked: &[(&str, &[&str])]) -> Result<PropertiesOf, LzcError> {
        let operation = Operation::Properties;
        let mut found = PropertiesOf::new();
        let (mut datasets, mut names) = (Vec::new(), Vec::new());
        for (dataset, properties) in asked {
            check(dataset, Kind::DatasetOrSnapshot)?;
            for property in *properties {
                datasets.push((*dataset).to_owned());
                names.push((*property).to_owned());
            }
        }
        one_pool(operation, datasets.iter().map(String::as_str))?;
        let Some(first) = datasets.first() else {
            return Ok(found);
        };
        let about = About::new(operation, first);
        let arguments = [
            ("d".to_owned(), Value::Texts(datasets.clone())),
            ("p".to_owned(), Value::Texts(names.clone())),
        ];
        let answer = self.read_by_program(about, lua::PROPERTIES, &arguments.into())?;
        for (place, (dataset, name)) in datasets.iter().zip(&names).enumerate() {
            let entry = at(about, &answer, place)?;
            if entry.contains_key("e") {
                found.insert(dataset.clone(), None);
                continue;
            }
            let of = found.entry(dataset.clone()).or_insert_with(|| Some(BTreeMap::new()));
            if let (Some(of), Some(property)) = (of, property(entry, dataset)) {
                of.insert(name.clone(), property);
            }
        }
        Ok(found)
    }

    /// All user properties of datasets and snapshots of one pool, inherited ones too, all of one moment.
    ///
    /// # Errors
    /// [`LzcError::TooBig`], [`LzcError::Pools`], [`LzcError::Name`], `EPERM`.
    pub fn user_properties<S: AsRef<str>>(&self, datasets: &[S]) -> Result<PropertiesOf, LzcError> {
        let operation = Operation::UserProperties;
        let mut found = PropertiesOf::new();
        let Some(about) = crate::snapshots::batch(operation, datasets, Kind::DatasetOrSnapshot)?
        else {
            return Ok(found);
        };
        let names: Vec<String> = datasets.iter().map(|name| name.as_ref().to_owned()).collect();
        let arguments = [("d".to_owned(), Value::Texts(names.clone()))];
        let answer = self.read_by_program(about, lua::USER_PROPERTIES, &arguments.into())?;
        for (place, dataset) in names.into_iter().enumerate() {
            let entry = at(about, &answer, place)?;
            let properties = entry.get("p").and_then(Value::list).map(|all| {
                all.iter()
                    .filter_map(|(name, value)| {
                        Some((name.clone(), property(value.list()?, &dataset)?))
                    })
                    .collect()
            });
            found.insert(dataset, properties);
        }
        Ok(found)
    }

    /// `written@snapshot` of a dataset, in bytes: of synced transaction groups only, and without what was
    /// freed. `snapshot` is a full name.
    ///
    /// # Errors
    /// `ENOENT`: one of them does not exist. [`LzcError::Program`]: not a snapshot of that dataset.
    pub fn written_since(&self, dataset: &str, snapshot: &str) -> Result<u64, LzcError> {
        let about = About::new(Operation::Properties, dataset);
        check(dataset, Kind::Dataset)?;
        check(snapshot, Kind::Snapshot)?;
        one_pool(about.operation, [dataset, snapshot])?;
        let arguments = [
            ("d".to_owned(), Value::Text(dataset.to_owned())),
            ("s".to_owned(), Value::Text(snapshot.to_owned())),
        ];
        let answer = self.read_by_program(about, lua::WRITTEN, &arguments.into())?;
        if answer.contains_key("e") {
            return Err(about.failed(Errno::ENOENT));
        }
        answer.get("w").and_then(Value::bits).ok_or_else(|| about.answer("no number"))
    }

    /// Sets and removes local user properties on several datasets of one pool, in one transaction group: on
    /// disk when this returns. All are checked before the first is set, so that it is all or none, but for a
    /// pool that has no room left in the middle of it (`ENOSPC`).
    ///
    /// # Errors
    /// By name (`dataset property`): `ENOENT`, `E2BIG`, `ENOSPC`. [`LzcError::Pools`], [`LzcError::Name`],
    /// `EPERM`. [`LzcError::TooBig`] may come after a part was done; the same call again finishes it.
    pub fn change_user_properties(&self, changes: &[UserChange<'_>]) -> Result<(), LzcError> {
        let operation = Operation::ChangeUserProperties;
        for change in changes {
            check(change.dataset, Kind::DatasetOrSnapshot)?;
            check_user_property(change.property, change.value)?;
        }
        one_pool(operation, changes.iter().map(|change| change.dataset))?;
        let Some(first) = changes.first() else {
            return Ok(());
        };
        let about = About::new(operation, first.dataset);
        let texts =
            |text: fn(&UserChange<'_>) -> String| Value::Texts(changes.iter().map(text).collect());
        let kind = |c: &UserChange<'_>| if c.value.is_some() { "s" } else { "i" }.to_owned();
        let arguments = [
            ("d".to_owned(), texts(|c| c.dataset.to_owned())),
            ("p".to_owned(), texts(|c| c.property.to_owned())),
            ("k".to_owned(), texts(kind)),
            ("v".to_owned(), texts(|c| c.value.unwrap_or_default().to_owned())),
        ];
        let answer = self.run_program(about, true, lua::CHANGE, &arguments.into())?;
        let mut names = NameErrors::default();
        for (place, errno) in answer.get("r").and_then(Value::list).into_iter().flatten() {
            let change = place.parse::<usize>().ok().and_then(|n| changes.get(n.checked_sub(1)?));
            let (Some(change), Some(errno)) = (change, errno.errno()) else {
                return Err(about.answer(format!("{place}: {errno:?}")));
            };
            names.by_name.insert(format!("{} {}", change.dataset, change.property), errno);
        }
        let done = answer.get("n").and_then(Value::bits);
        match names.by_name.values().next().copied() {
            None if done == Some(changes.len() as u64) => Ok(()),
            None => Err(about.answer(format!("{done:?} of {} changes", changes.len()))),
            Some(errno) => {
                let subject = about.subject.to_owned();
                Err(LzcError::Failed { operation, subject, errno, names })
            }
        }
    }

    fn read_by_program(
        &self,
        about: About<'_>,
        program: &str,
        arguments: &Entries,
    ) -> Result<Entries, LzcError> {
        self.run_program(about, false, program, arguments)
    }

    fn run_program(
        &self,
        about: About<'_>,
        sync: bool,
        program: &str,
        arguments: &Entries,
    ) -> Result<Entries, LzcError> {
        let name = check(pool(about.subject), Kind::Dataset)?;
        let program = CString::new(program).map_err(|_| about.answer("a NUL in a program"))?;
        let limits = (INSTRUCTIONS, MEMORY_BYTES);
        let list = about.list(arguments)?;
        let outcome = self.session.program(sync, &name, &program, limits, &list)?;
        let mut entries = about.read(outcome.out.as_ref())?;
        // As libzfs_core.c documents lzc_channel_program.
        match outcome.error() {
            None => match entries.remove("return") {
                Some(Value::List(answer)) => Ok(answer),
                other => Err(about.answer(format!("{other:?} instead of a table"))),
            },
            Some(Errno::ENOSPC | Errno::ENOMEM) => Err(too_big(about, Limit::Memory)),
            Some(Errno::ETIME) => Err(too_big(about, Limit::Instructions)),
            Some(errno) => match entries.get("error").and_then(Value::text) {
                Some(message) => Err(LzcError::Program {
                    operation: about.operation,
                    subject: about.subject.to_owned(),
                    message: message.to_owned(),
                }),
                None => Err(about.failed(errno)),
            },
        }
    }
}

fn too_big(about: About<'_>, limit: Limit) -> LzcError {
    LzcError::TooBig { operation: about.operation, subject: about.subject.to_owned(), limit }
}

/// `guid createtxg creation userrefs`, each as an `i64`.
fn parse_snapshot(name: &str, text: &str) -> Option<Snapshot> {
    let mut numbers = text.split(' ').map(|word| word.parse::<i64>().map(i64::cast_unsigned).ok());
    let mut next = || numbers.next().flatten();
    let [guid, createtxg, creation_unix_s, userrefs] = [next()?, next()?, next()?, next()?];
    let name = name.to_owned();
    Some(Snapshot { name, guid, createtxg, creation_unix_s, userrefs })
}

/// The entry of the array `r` at a place counted from 0.
fn at<'a>(about: About<'_>, answer: &'a Entries, place: usize) -> Result<&'a Entries, LzcError> {
    let entry = answer.get("r").and_then(Value::list).and_then(|r| r.get(&(place + 1).to_string()));
    entry.and_then(Value::list).ok_or_else(|| about.answer(format!("no entry {}", place + 1)))
}

/// `{v=value, s=source}`; none where the value is missing.
fn property(entry: &Entries, dataset: &str) -> Option<Property> {
    let value = match entry.get("v")? {
        Value::Text(text) => PropertyValue::Text(text.clone()),
        // `clones`: an array, the keys of which are places.
        Value::List(names) => PropertyValue::Names(
            names.iter().map(|(key, name)| name.text().unwrap_or(key).to_owned()).collect(),
        ),
        value => PropertyValue::Number(value.bits()?),
    };
    let source = PropertySource::of(entry.get("s").and_then(Value::text), dataset);
    Some(Property { value, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_four_numbers_of_which_a_guid_may_be_negative() {
        let snapshot = parse_snapshot("a", "-1 12 1700000000 0").unwrap();
        assert_eq!(snapshot.guid, u64::MAX);
        assert_eq!((snapshot.createtxg, snapshot.userrefs), (12, 0));
        assert_eq!(parse_snapshot("a", "1 2 3"), None);
        assert_eq!(parse_snapshot("a", "1 2 3 x"), None);
    }

    #[test]
    fn a_source_is_told_by_its_word() {
        let of = |source| PropertySource::of(source, "tank/a");
        assert_eq!(of(None), PropertySource::None);
        assert_eq!(of(Some("tank/a")), PropertySource::Local);
        assert_eq!(of(Some("tank")), PropertySource::Inherited("tank".to_owned()));
        assert_eq!(of(Some("$recvd")), PropertySource::Received);
        assert_eq!(of(Some("default")), PropertySource::Default);
        assert_eq!(of(Some("temporary")), PropertySource::Temporary);
        assert_eq!(PropertySource::of(Some("default"), "default"), PropertySource::Local);
    }

    #[test]
    fn the_programs_are_short_because_each_run_is_logged() {
        for program in [lua::INVENTORY, lua::PROPERTIES, lua::WRITTEN, lua::USER_PROPERTIES] {
            assert!(program.len() < 400, "{} bytes:\n{program}", program.len());
        }
    }
}
