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
