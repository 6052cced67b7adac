//! What an nvlist holds, as owned values. The lists themselves are built, read and freed in `sys`.

use std::collections::BTreeMap;

use crate::error::{Errno, OpenError};
use crate::sys::NvList;

/// Lists in lists that are read at most; the kernel's Lua returns no more than 20.
pub(crate) const MAX_DEPTH: usize = 32;

/// A value of an nvlist. All widths of a sign are read as the widest; 64 bits are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `DATA_TYPE_BOOLEAN`: a name without a value, true by being there.
    Flag,
    /// `DATA_TYPE_BOOLEAN_VALUE`.
    Bool(bool),
    /// `DATA_TYPE_INT8` to `INT64`.
    Int(i64),
    /// `DATA_TYPE_BYTE`, `UINT8` to `UINT64`.
    Uint(u64),
    /// `DATA_TYPE_STRING`. What is not UTF-8 is replaced when it is read.
    Text(String),
    /// `DATA_TYPE_STRING_ARRAY`.
    Texts(Vec<String>),
    /// `DATA_TYPE_UINT64_ARRAY`; read only.
    Uints(Vec<u64>),
    /// `DATA_TYPE_NVLIST`.
    List(Entries),
    /// A type that this crate has no use for, by its number; read only.
    Other(i32),
}

/// The entries of an nvlist. Each name is there once.
pub type Entries = BTreeMap<String, Value>;

/// An nvlist could not be built or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NvError {
    /// A name or a text with a NUL byte in it.
    #[error("{name:?}: a NUL byte inside")]
    Nul {
        /// The entry's name.
        name: String,
    },
    /// libnvpair said no.
    #[error("{name:?}: {errno}")]
    Refused {
        /// The entry's name.
        name: String,
        /// Why.
        errno: Errno,
    },
    /// A value that is only read, or too many of them.
    #[error("{name:?}: this cannot be put into an nvlist")]
    Unsupported {
        /// The entry's name.
        name: String,
    },
    /// More lists in lists than anybody has a use for.
    #[error("too many lists in lists")]
    TooDeep,
    /// libnvpair could not be loaded.
    #[error("{0}")]
    Library(String),
}

impl Value {
    /// The number, of either sign's type. The kernel's Lua knows signed numbers only, so that a guid comes as
    /// the `i64` of the same bits.
    pub fn bits(&self) -> Option<u64> {
        match self {
            Self::Uint(n) => Some(*n),
            Self::Int(n) => Some(n.cast_unsigned()),
            _ => None,
        }
    }

    /// The text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The list.
    pub fn list(&self) -> Option<&Entries> {
        match self {
            Self::List(entries) => Some(entries),
            _ => None,
        }
    }

    /// The number as an error number.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Int(n) => i32::try_from(*n).ok().map(Errno),
            Self::Uint(n) => i32::try_from(*n).ok().map(Errno),
            _ => None,
        }
    }
}

/// Builds a real nvlist of these entries and reads it back: what the kernel would see.
///
/// # Errors
/// [`NvError`], one of which is that libnvpair is not there.
pub fn round_trip(entries: &Entries) -> Result<Entries, NvError> {
    NvList::build(entries)?.read()
}

/// Whether libnvpair is there.
///
/// # Errors
/// Why it is not.
pub fn available() -> Result<(), OpenError> {
    crate::sys::load_nvpair().map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// `false`, loudly and counted, where there is no libnvpair.
    fn there_or_skip(test: &str) -> bool {
        let Err(error) = available() else {
            return true;
        };
        let line = format!("libnvpair: {error} ({test})");
        eprintln!("SKIPPED: {line}");
        if let Some(log) = std::env::var_os("FLOCKER_SKIP_LOG") {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(log);
            file.and_then(|mut file| writeln!(file, "{line}")).unwrap();
        }
        false
    }

    fn entries<const N: usize>(pairs: [(&str, Value); N]) -> Entries {
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    #[test]
    fn what_goes_into_an_nvlist_comes_out_again() {
        if !there_or_skip("what_goes_into_an_nvlist_comes_out_again") {
            return;
        }
        let text = |text: &str| Value::Text(text.to_owned());
        let all = entries([
            ("flag", Value::Flag),
            ("no", Value::Bool(false)),
            ("yes", Value::Bool(true)),
            ("low", Value::Int(i64::MIN)),
            ("high", Value::Uint(u64::MAX)),
            ("text", text("für immer")),
            ("empty", text("")),
            ("", text("without a name")),
            ("texts", Value::Texts(vec!["a".to_owned(), String::new(), "ß".to_owned()])),
            ("none", Value::List(Entries::new())),
            (
                "list",
                Value::List(entries([("inner", Value::List(entries([("n", Value::Int(7))])))])),
            ),
        ]);
        assert_eq!(round_trip(&all).unwrap(), all);
        assert_eq!(round_trip(&Entries::new()).unwrap(), Entries::new());
    }

    #[test]
    fn thousands_of_entries_come_out_again() {
        if !there_or_skip("thousands_of_entries_come_out_again") {
            return;
        }
        let one = |n: u64| (format!("tank/a@snapshot-{n}"), Value::Uint(n));
        let all: Entries = (0..20_000).map(one).collect();
        assert_eq!(round_trip(&all).unwrap(), all);
        let texts = Value::Texts((0..20_000).map(|n| format!("tank/{n}")).collect());
        let all = entries([("d", texts)]);
        assert_eq!(round_trip(&all).unwrap(), all);
    }

    #[test]
    fn a_nul_inside_is_an_error_that_names_the_entry() {
        if !there_or_skip("a_nul_inside_is_an_error_that_names_the_entry") {
            return;
        }
        for bad in [
            entries([("a", Value::Text("x\0y".to_owned()))]),
            entries([("a", Value::Texts(vec!["fine".to_owned(), "x\0y".to_owned()]))]),
            entries([("b", Value::List(entries([("a", Value::Text("\0".to_owned()))])))]),
        ] {
            assert_eq!(round_trip(&bad), Err(NvError::Nul { name: "a".to_owned() }));
        }
        let bad = entries([("a\0b", Value::Flag)]);
        assert_eq!(round_trip(&bad), Err(NvError::Nul { name: "a\0b".to_owned() }));
    }

    #[test]
    fn lists_in_lists_have_a_limit() {
        if !there_or_skip("lists_in_lists_have_a_limit") {
            return;
        }
        let deep =
            |depth| (0..depth).fold(Value::Flag, |inner, _| Value::List(entries([("l", inner)])));
        let fits = entries([("l", deep(MAX_DEPTH))]);
        assert_eq!(round_trip(&fits).unwrap(), fits);
        let over = round_trip(&entries([("l", deep(MAX_DEPTH + 1))]));
        assert_eq!(over, Err(NvError::TooDeep));
    }

    #[test]
    fn a_guid_keeps_its_bits_through_the_signed_numbers_of_lua() {
        assert_eq!(Value::Int(-1).bits(), Some(u64::MAX));
        assert_eq!(Value::Uint(5).bits(), Some(5));
        assert_eq!(Value::Flag.bits(), None);
        assert_eq!(Value::Int(i64::MAX).errno(), None);
    }
}
