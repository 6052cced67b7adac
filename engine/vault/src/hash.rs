//! The name of a block: the BLAKE3 of what it holds, and the kinds of blocks there are.
//!
//! Owns: hashing with the kinds kept apart, so that no file's content can ever be taken for a node of a tree.
//! Leaves storage to [`crate::blocks`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a stored block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Payload of a record: a block of an object, or a spill block. Hashed without a key, so that the name
    /// is the plain BLAKE3 of the payload.
    Data,
    /// A node of the tree from object number to object.
    Objset,
    /// One object.
    Object,
    /// A node of the tree from block number to block.
    Blocks,
    /// The same, of a sealed object.
    Sealed,
    /// A node of the tree from the number of a block of dnodes to what seals it.
    Ranges,
}

impl Kind {
    const ALL: [Kind; 6] =
        [Kind::Data, Kind::Objset, Kind::Object, Kind::Blocks, Kind::Sealed, Kind::Ranges];

    /// The number of this kind in a pack.
    pub(crate) fn number(self) -> u8 {
        match self {
            Kind::Data => 1,
            Kind::Objset => 2,
            Kind::Object => 3,
            Kind::Blocks => 4,
            Kind::Sealed => 5,
            Kind::Ranges => 6,
        }
    }

    /// The kind with this number.
    pub(crate) fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// The name of a block of this kind with these bytes.
    pub(crate) fn hash(self, bytes: &[u8]) -> Hash {
        match self {
            Kind::Data => Hash(*blake3::hash(bytes).as_bytes()),
            Kind::Objset | Kind::Object | Kind::Blocks | Kind::Sealed | Kind::Ranges => {
                Hash(*blake3::keyed_hash(&[self.number(); 32], bytes).as_bytes())
            }
        }
    }
}

/// The name of a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Hash(pub(crate) [u8; 32]);

impl Hash {
    /// The first eight bytes, as evenly spread as the whole.
    pub(crate) fn prefix(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(8).try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_can_never_have_the_name_of_a_node() {
        let mut names: Vec<Hash> = Kind::ALL.iter().map(|k| k.hash(b"same bytes")).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
