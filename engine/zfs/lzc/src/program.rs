//! What is set by a channel program: Lua that runs in the kernel, without a process, in a transaction group of its own.
//!
//! It needs `root` (`zfs_secpolicy_config`); others get `EPERM`, even where `zfs allow` would do for the command. Each run
//! is written to the pool's history, as each `zfs set` is.

use std::ffi::CString;

use crate::error::{Errno, Limit, LzcError, NameErrors, Operation};
use crate::lua;
use crate::name::{Kind, check, check_user_property, one_pool, pool};
use crate::nv::{Entries, Value};
use crate::session::{About, Lzc};

/// Lua instructions that a program may take: ZFS's own default.
pub const INSTRUCTIONS: u64 = 10_000_000;

/// Bytes of memory that a program may take, and its answer: the kernel's limit is 100 MiB
/// (`zfs_lua_max_memlimit`), its default 10.
pub const MEMORY_BYTES: u64 = 32 << 20;

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
        let answer = self.run_program(about, lua::CHANGE, &arguments.into())?;
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

    fn run_program(
        &self,
        about: About<'_>,
        program: &str,
        arguments: &Entries,
    ) -> Result<Entries, LzcError> {
        let name = check(pool(about.subject), Kind::Dataset)?;
        let program = CString::new(program).map_err(|_| about.answer("a NUL in a program"))?;
        let limits = (INSTRUCTIONS, MEMORY_BYTES);
        let list = about.list(arguments)?;
        let outcome = self.session.program(&name, &program, limits, &list)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_short_because_each_run_is_logged() {
        assert!(lua::CHANGE.len() < 600, "{} bytes", lua::CHANGE.len());
    }
}
