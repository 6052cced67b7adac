//! Names as libzfs_core takes them: checked, because it copies them into buffers and cuts them off.

use std::ffi::CString;
use std::fmt;

use crate::error::{LzcError, Operation};

/// Bytes of the longest name: `ZFS_MAX_DATASET_NAME_LEN` less the NUL.
pub(crate) const MAX_BYTES: usize = 255;

/// What is wrong with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameProblem {
    /// Nothing.
    Empty,
    /// More than 255 bytes, which the library would cut off silently.
    TooLong,
    /// A NUL byte.
    Nul,
    /// A `%`: ZFS's own temporary datasets.
    Percent,
    /// Not a dataset's name.
    NotADataset,
    /// Not a snapshot's full name.
    NotASnapshot,
    /// Not a bookmark's full name.
    NotABookmark,
    /// Not a user property's name: a `:`, and of lower-case letters, digits and `-_.:` only.
    NotAUserProperty,
    /// A user property's value of more than 8191 bytes.
    ValueTooLong,
}

impl fmt::Display for NameProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "an empty name",
            Self::TooLong => "longer than 255 bytes",
            Self::Nul => "a NUL byte inside",
            Self::Percent => "a name of ZFS's own (%)",
            Self::NotADataset => "not the name of a dataset",
            Self::NotASnapshot => "not the full name of a snapshot",
            Self::NotABookmark => "not the full name of a bookmark",
            Self::NotAUserProperty => "not the name of a user property",
            Self::ValueTooLong => "its value is longer than 8191 bytes",
        })
    }
}

/// What a name has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `pool/fs`.
    Dataset,
    /// `pool/fs@snap`.
    Snapshot,
    /// `pool/fs#mark`.
    Bookmark,
    /// `pool/fs@snap` or `pool/fs#mark`.
    SnapshotOrBookmark,
    /// `pool/fs` or `pool/fs@snap`.
    DatasetOrSnapshot,
}

/// Checks a name; the result is ready for C.
pub(crate) fn check(name: &str, kind: Kind) -> Result<CString, LzcError> {
    let bad = |problem| LzcError::Name { name: name.to_owned(), problem };
    if name.is_empty() {
        return Err(bad(NameProblem::Empty));
    }
    if name.len() > MAX_BYTES {
        return Err(bad(NameProblem::TooLong));
    }
    if name.contains('%') {
        return Err(bad(NameProblem::Percent));
    }
    let parts: Vec<&str> = name.split(['@', '#']).collect();
    let (whole, at) = (parts.iter().all(|part| !part.is_empty()), name.contains('@'));
    let is = match parts.len() {
        1 => Some(Kind::Dataset),
        2 if whole && at => Some(Kind::Snapshot),
        2 if whole => Some(Kind::Bookmark),
        _ => None,
    };
    let (fits, problem) = match kind {
        Kind::Dataset => (is == Some(Kind::Dataset), NameProblem::NotADataset),
        Kind::Snapshot => (is == Some(Kind::Snapshot), NameProblem::NotASnapshot),
        Kind::Bookmark => (is == Some(Kind::Bookmark), NameProblem::NotABookmark),
        Kind::SnapshotOrBookmark => {
            (is == Some(Kind::Snapshot) || is == Some(Kind::Bookmark), NameProblem::NotASnapshot)
        }
        Kind::DatasetOrSnapshot => {
            (is == Some(Kind::Dataset) || is == Some(Kind::Snapshot), NameProblem::NotADataset)
        }
    };
    if !fits {
        return Err(bad(problem));
    }
    CString::new(name).map_err(|_| bad(NameProblem::Nul))
}

/// The pool of a name.
pub(crate) fn pool(name: &str) -> &str {
    name.split(['/', '@', '#']).next().unwrap_or(name)
}

/// The pool that all names are in; `None` for no names.
pub(crate) fn one_pool<'a>(
    operation: Operation,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<Option<&'a str>, LzcError> {
    let mut names = names.into_iter();
    let Some(first) = names.next() else {
        return Ok(None);
    };
    match names.find(|name| pool(name) != pool(first)) {
        None => Ok(Some(pool(first))),
        Some(other) => {
            Err(LzcError::Pools { operation, first: first.to_owned(), other: other.to_owned() })
        }
    }
}

/// Checks a user property as `zfs_prop_user` in `zfs_prop.c` and `dsl_props_set_check` do. The kernel's
/// channel programs *do not* check what they inherit.
pub(crate) fn check_user_property(name: &str, value: Option<&str>) -> Result<(), LzcError> {
    let bad = |problem| Err(LzcError::Name { name: name.to_owned(), problem });
    let taken = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_.:".contains(&c);
    if name.len() > MAX_BYTES {
        return bad(NameProblem::TooLong);
    }
    if !name.contains(':') || !name.bytes().all(taken) {
        return bad(NameProblem::NotAUserProperty);
    }
    match value {
        Some(value) if value.len() > 8191 => bad(NameProblem::ValueTooLong),
        Some(value) if value.contains('\0') => bad(NameProblem::Nul),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(name: &str, kind: Kind, why: NameProblem) {
        match check(name, kind) {
            Err(LzcError::Name { problem, .. }) => assert_eq!(problem, why, "{name:?}"),
            other => panic!("{name:?}: {other:?}"),
        }
    }

    #[test]
    fn a_name_is_of_its_kind_or_refused() {
        for (name, kind) in [
            ("tank", Kind::Dataset),
            ("tank/a b:c", Kind::Dataset),
            ("tank/a@b", Kind::Snapshot),
            ("tank/a#b", Kind::Bookmark),
            ("tank/a#b", Kind::SnapshotOrBookmark),
            ("tank/a", Kind::DatasetOrSnapshot),
        ] {
            check(name, kind).unwrap();
        }
        refused("", Kind::Dataset, NameProblem::Empty);
        refused("tank/a@b", Kind::Dataset, NameProblem::NotADataset);
        refused("tank/a", Kind::Snapshot, NameProblem::NotASnapshot);
        refused("tank/a@", Kind::Snapshot, NameProblem::NotASnapshot);
        refused("@a", Kind::Snapshot, NameProblem::NotASnapshot);
        refused("tank/a@b@c", Kind::Snapshot, NameProblem::NotASnapshot);
        refused("tank/a@b#c", Kind::DatasetOrSnapshot, NameProblem::NotADataset);
        refused("tank/a@b", Kind::Bookmark, NameProblem::NotABookmark);
        refused("tank/%recv", Kind::Dataset, NameProblem::Percent);
        refused("tank/a\0b", Kind::Dataset, NameProblem::Nul);
        refused(&"a".repeat(256), Kind::Dataset, NameProblem::TooLong);
        check(&"a".repeat(255), Kind::Dataset).unwrap();
    }

    #[test]
    fn names_of_one_call_are_in_one_pool() {
        let one = |names: &[&'static str]| one_pool(Operation::Properties, names.iter().copied());
        assert_eq!(one(&[]).unwrap(), None);
        assert_eq!(one(&["tank", "tank/a", "tank@b", "tank#c"]).unwrap(), Some("tank"));
        assert!(matches!(one(&["tank", "tankb/a"]), Err(LzcError::Pools { .. })));
    }

    #[test]
    fn a_user_property_is_checked_before_the_kernel_sees_it() {
        check_user_property("flocker-repl:id", Some("x")).unwrap();
        check_user_property("a:b", None).unwrap();
        for name in ["", "mountpoint", "A:b", "a:b c", "a:ä"] {
            assert!(check_user_property(name, None).is_err(), "{name:?}");
        }
        assert!(check_user_property(&format!("a:{}", "b".repeat(254)), None).is_err());
        assert!(check_user_property("a:b", Some(&"x".repeat(8192))).is_err());
        assert!(check_user_property("a:b", Some("x\0y")).is_err());
        check_user_property("a:b", Some(&"x".repeat(8191))).unwrap();
    }
}
