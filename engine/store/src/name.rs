//! Names of datasets, snapshots, bookmarks and holds, checked once when they enter the program.
//!
//! The grammar is that of OpenZFS (`module/zcommon/zfs_namecheck.c`): components of ASCII letters,
//! digits and `-_.: ` separated by `/`, 255 bytes in all. Names that ZFS itself reports are accepted
//! through [`DatasetName::reported`], which is as lenient as ZFS is (`%` in a temporary clone).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest full name ZFS accepts, in bytes (`ZFS_MAX_DATASET_NAME_LEN` less the terminator).
pub const MAX_NAME_BYTES: usize = 255;

/// Why a name is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing between two separators, or nothing at all.
    #[error("`{name}` has an empty component")]
    Empty {
        /// The whole name as given.
        name: String,
    },
    /// A character ZFS does not take.
    #[error("`{name}` contains `{character}`, which ZFS does not allow in a name")]
    Character {
        /// The whole name as given.
        name: String,
        /// The first offending character.
        character: char,
    },
    /// Longer than [`MAX_NAME_BYTES`].
    #[error("`{name}` is {bytes} bytes long; ZFS allows {MAX_NAME_BYTES}")]
    TooLong {
        /// The whole name as given.
        name: String,
        /// Its length in bytes.
        bytes: usize,
    },
    /// `.` or `..` as a component.
    #[error("`{name}` has the component `{component}`, which would leave its place")]
    Dots {
        /// The whole name as given.
        name: String,
        /// The component.
        component: String,
    },
    /// The separator of this kind of name is missing or there twice.
    #[error("`{name}` is not of the form {form}")]
    Form {
        /// The whole name as given.
        name: String,
        /// What was expected, such as `dataset@snapshot`.
        form: &'static str,
    },
}

fn check_component(name: &str, component: &str, reported: bool) -> Result<(), NameError> {
    if component.is_empty() {
        return Err(NameError::Empty { name: name.into() });
    }
    if component == "." || component == ".." {
        return Err(NameError::Dots { name: name.into(), component: component.into() });
    }
    let bad = component
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || "-_.: ".contains(*c) || (reported && *c == '%')));
    match bad {
        Some(character) => Err(NameError::Character { name: name.into(), character }),
        None => Ok(()),
    }
}

fn check_length(name: &str) -> Result<(), NameError> {
    if name.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong { name: name.into(), bytes: name.len() });
    }
    Ok(())
}

/// The name of a filesystem, a zvol or a vault dataset, such as `tank/db`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DatasetName(String);

impl DatasetName {
    /// Checks a name that a person or a peer gave.
    ///
    /// # Errors
    /// [`NameError`] where ZFS would not accept it, or where a component is `.` or `..`.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        Self::checked(name.into(), false)
    }

    /// Checks a name that a store itself reported; `%` is allowed besides.
    ///
    /// # Errors
    /// As [`DatasetName::new`].
    pub fn reported(name: impl Into<String>) -> Result<Self, NameError> {
        Self::checked(name.into(), true)
    }

    fn checked(name: String, reported: bool) -> Result<Self, NameError> {
        check_length(&name)?;
        for component in name.split('/') {
            check_component(&name, component, reported)?;
        }
        Ok(Self(name))
    }

    /// The name as ZFS writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The pool: the first component.
    pub fn pool(&self) -> &str {
        self.0.split('/').next().unwrap_or(&self.0)
    }

    /// The last component.
    pub fn leaf(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The dataset above, or `None` for a pool's own.
    pub fn parent(&self) -> Option<DatasetName> {
        self.0.rsplit_once('/').map(|(above, _)| Self(above.to_owned()))
    }

    /// `self/component`.
    ///
    /// # Errors
    /// [`NameError`] as for [`DatasetName::new`].
    pub fn child(&self, component: &str) -> Result<DatasetName, NameError> {
        Self::new(format!("{}/{component}", self.0))
    }

    /// Whether `self` is `above` or lies below it.
    pub fn is_within(&self, above: &DatasetName) -> bool {
        self.0 == above.0
            || (self.0.starts_with(&above.0) && self.0.as_bytes().get(above.0.len()) == Some(&b'/'))
    }

    /// `self@snapshot`.
    ///
    /// # Errors
    /// [`NameError`] where the snapshot's part is not a name.
    pub fn snapshot(&self, snapshot: &str) -> Result<SnapshotName, NameError> {
        SnapshotName::from_parts(self.clone(), snapshot)
    }
}

impl fmt::Display for DatasetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for DatasetName {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        Self::new(s)
    }
}

impl TryFrom<String> for DatasetName {
    type Error = NameError;
    fn try_from(s: String) -> Result<Self, NameError> {
        Self::reported(s)
    }
}

impl From<DatasetName> for String {
    fn from(n: DatasetName) -> String {
        n.0
    }
}

macro_rules! dataset_point {
    ($(#[$doc:meta])* $type:ident, $separator:literal, $form:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type {
            dataset: DatasetName,
            short: String,
        }

        impl $type {
            /// Joins a dataset and the part behind the separator.
            ///
            /// # Errors
            /// [`NameError`] where the part is not a name or the whole is too long.
            pub fn from_parts(dataset: DatasetName, short: &str) -> Result<Self, NameError> {
                let full = format!("{dataset}{}{short}", $separator);
                check_length(&full)?;
                if short.contains(['/', '@', '#']) {
                    return Err(NameError::Form { name: full, form: $form });
                }
                check_component(&full, short, true)?;
                Ok(Self { dataset, short: short.to_owned() })
            }

            /// The dataset it belongs to.
            pub fn dataset(&self) -> &DatasetName {
                &self.dataset
            }

            /// The part behind the separator.
            pub fn short(&self) -> &str {
                &self.short
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}{}", self.dataset, $separator, self.short)
            }
        }

        impl std::str::FromStr for $type {
            type Err = NameError;
            fn from_str(s: &str) -> Result<Self, NameError> {
                let Some((dataset, short)) = s.split_once($separator) else {
                    return Err(NameError::Form { name: s.into(), form: $form });
                };
                Self::from_parts(DatasetName::reported(dataset)?, short)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(s: String) -> Result<Self, NameError> {
                s.parse()
            }
        }

        impl From<$type> for String {
            fn from(n: $type) -> String {
                n.to_string()
            }
        }
    };
}

dataset_point!(
    /// The name of a snapshot, `dataset@short`.
    SnapshotName,
    '@',
    "dataset@snapshot"
);
dataset_point!(
    /// The name of a bookmark, `dataset#short`.
    BookmarkName,
    '#',
    "dataset#bookmark"
);

/// The tag of a user hold; ours begin with `flocker-repl:` and carry the pair.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HoldTag(pub String);

impl fmt::Display for HoldTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_zfs_takes_are_taken_and_others_are_named_with_the_reason() {
        for good in ["tank", "tank/a b", "tank/a:b-c_d.e", "tank/autosnap_2026-01-01_00:00:00"] {
            assert!(DatasetName::new(good).is_ok(), "{good}");
        }
        assert!(matches!(DatasetName::new("tank//x"), Err(NameError::Empty { .. })));
        assert!(matches!(DatasetName::new(""), Err(NameError::Empty { .. })));
        assert!(matches!(DatasetName::new("tank/../x"), Err(NameError::Dots { .. })));
        assert!(matches!(
            DatasetName::new("tank/é"),
            Err(NameError::Character { character: 'é', .. })
        ));
        assert!(matches!(DatasetName::new("a".repeat(256)), Err(NameError::TooLong { .. })));
        assert!(
            DatasetName::new("tank/%recv").is_err() && DatasetName::reported("tank/%recv").is_ok()
        );
    }

    #[test]
    fn a_sibling_with_the_same_beginning_is_not_within() {
        let root = DatasetName::new("tank/recv").unwrap();
        assert!(DatasetName::new("tank/recv/x").unwrap().is_within(&root));
        assert!(root.is_within(&root));
        assert!(!DatasetName::new("tank/recv2").unwrap().is_within(&root));
    }

    #[test]
    fn snapshot_names_parse_and_print_alike() {
        let s: SnapshotName = "tank/a b@x:y".parse().unwrap();
        assert_eq!(s.to_string(), "tank/a b@x:y");
        assert_eq!((s.dataset().as_str(), s.short()), ("tank/a b", "x:y"));
        assert!("tank/a".parse::<SnapshotName>().is_err());
        assert!("tank/a@x@y".parse::<SnapshotName>().is_err());
        assert!("tank/a#b".parse::<BookmarkName>().is_ok());
    }
}
