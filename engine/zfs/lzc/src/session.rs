//! [`Lzc`]: both libraries and `/dev/zfs`, open; and what its parts share.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Errno, LzcError, NameErrors, OpenError, Operation};
use crate::nv::{Entries, NvError, Value};
use crate::sys::{Function, NvList, Outcome, Session};

/// libzfs_core, open. Cheap to clone; the last one closes it. All calls block, and run side by side.
#[derive(Debug, Clone)]
pub struct Lzc {
    pub(crate) session: Arc<Session>,
}

impl Lzc {
    /// Loads the libraries and opens `/dev/zfs`. Cheap enough to be tried again later.
    ///
    /// # Errors
    /// [`OpenError`]: which of the libraries, the device or the permission is missing.
    pub fn open() -> Result<Self, OpenError> {
        Session::open().map(|session| Self { session: Arc::new(session) })
    }

    /// Whether the installed library has a function. Without one its callers answer
    /// [`LzcError::NotAvailable`].
    pub fn offers(&self, function: Function) -> bool {
        self.session.has(function)
    }
}

/// What an operation is and what it is about, to make errors of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About<'a> {
    pub(crate) operation: Operation,
    pub(crate) subject: &'a str,
}

impl<'a> About<'a> {
    pub(crate) fn new(operation: Operation, subject: &'a str) -> Self {
        Self { operation, subject }
    }

    pub(crate) fn failed(self, errno: Errno) -> LzcError {
        LzcError::failed(self.operation, self.subject, errno)
    }

    pub(crate) fn answer(self, detail: impl Into<String>) -> LzcError {
        LzcError::answer(self.operation, self.subject, detail)
    }

    /// An nvlist of what goes in.
    pub(crate) fn list(self, entries: &Entries) -> Result<NvList, LzcError> {
        let operation = self.operation;
        NvList::build(entries).map_err(|source| LzcError::Argument { operation, source })
    }

    /// What has come out.
    pub(crate) fn read(self, list: Option<&NvList>) -> Result<Entries, LzcError> {
        let unreadable = |error: NvError| self.answer(error.to_string());
        list.map_or_else(|| Ok(Entries::new()), |list| list.read().map_err(unreadable))
    }

    /// The verdict of a call without an answer.
    pub(crate) fn done<T>(self, outcome: &Outcome<T>) -> Result<(), LzcError> {
        outcome.error().map_or(Ok(()), |errno| Err(self.failed(errno)))
    }

    /// The verdict of a call with an error number for each name that failed. On success: the names that were
    /// passed over.
    pub(crate) fn by_name(self, outcome: &Outcome<Option<NvList>>) -> Result<NameErrors, LzcError> {
        let names = name_errors(&self.read(outcome.out.as_ref())?);
        match outcome.error() {
            None => Ok(names),
            Some(errno) => Err(LzcError::Failed {
                operation: self.operation,
                subject: names
                    .by_name
                    .keys()
                    .next()
                    .map_or(self.subject, String::as_str)
                    .to_owned(),
                errno,
                names,
            }),
        }
    }
}

/// Entry that `nvlist_smush` in `zfs_ioctl.c` leaves when not all errors fit.
const MORE: &str = "N_MORE_ERRORS";

/// Error numbers by name, from what the kernel calls an errlist.
pub(crate) fn name_errors(entries: &Entries) -> NameErrors {
    let mut found = NameErrors::default();
    for (name, value) in entries {
        match value.errno() {
            Some(Errno(count)) if name == MORE => found.omitted = count.unsigned_abs(),
            Some(errno) => {
                found.by_name.insert(name.clone(), errno);
            }
            None => found.omitted += 1,
        }
    }
    found
}

/// Names without values.
pub(crate) fn flags<S: AsRef<str>>(names: &[S]) -> Entries {
    names.iter().map(|name| (name.as_ref().to_owned(), Value::Flag)).collect()
}

/// Names with texts.
pub(crate) fn texts(pairs: &BTreeMap<String, String>) -> Entries {
    pairs.iter().map(|(name, text)| (name.clone(), Value::Text(text.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errlist_says_how_many_it_left_out() {
        let entries: Entries = [
            ("tank@a".to_owned(), Value::Int(17)),
            ("tank@b".to_owned(), Value::Int(2)),
            (MORE.to_owned(), Value::Int(40)),
        ]
        .into();
        let errors = name_errors(&entries);
        assert_eq!(errors.by_name["tank@a"], Errno::EEXIST);
        assert_eq!((errors.by_name.len(), errors.omitted), (2, 40));
        assert!(name_errors(&Entries::new()).is_empty());
    }

    #[test]
    fn lzc_can_be_shared_among_threads() {
        fn shared<T: Send + Sync + Clone>() {}
        shared::<Lzc>();
    }
}
