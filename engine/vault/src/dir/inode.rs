//! One inode as an object.
//!
//! Owns: its stored form, which travels in streams, and refusing one that would lead outside its tree.

use flocker_store::StoreError;
use serde::{Deserialize, Serialize};

use crate::blocks::{ReadBlocks, WriteBlocks};
use crate::hash::{Hash, Kind};
use crate::object::{BlockRef, Data, Object, SpillRef};

type Result<T> = std::result::Result<T, StoreError>;

/// Object type of every inode; ZFS has none by this number.
const OBJECT_TYPE: u32 = 0x464C_0001;
/// Type of the bonus that holds the attributes.
const BONUS_TYPE: u32 = 0x464C_0002;
/// Longest bonus of a dnode of one slot (512 - 192); longer attributes go to the spill block.
const MAX_BONUS: usize = 320;
/// Blocks of files above this size have this size, as ZFS has by default; bytes.
pub(crate) const BLOCK_BYTES: u64 = 128 << 10;

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FileKind {
    Directory,
    File,
    Symlink,
    Fifo,
}

/// A name of an inode.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Link {
    /// Object number of the directory.
    pub(crate) parent: u64,
    pub(crate) name: Vec<u8>,
}

/// The attributes of an inode. What the system keeps for itself (inode number, ctime, atime) is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inode {
    pub(crate) kind: FileKind,
    /// Permission bits, set-id and sticky bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_s: i64,
    pub(crate) mtime_ns: u32,
    /// Of a file, bytes.
    pub(crate) size: u64,
    /// In ascending order; of the root directory, none.
    pub(crate) links: Vec<Link>,
    /// Of a symlink.
    pub(crate) target: Vec<u8>,
    /// Extended attributes of the user, in ascending order.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

fn damaged(detail: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt {
        path: "packs".into(),
        detail: format!("an inode of a directory: {detail}"),
    }
}

/// Bytes of the blocks of a file of this size: one block for a small file, as ZFS does.
pub(crate) fn block_size(size: u64) -> u32 {
    let size = size.clamp(1, BLOCK_BYTES).next_multiple_of(512);
    u32::try_from(size).unwrap_or(128 << 10)
}

impl Inode {
    /// The object without blocks that has these attributes.
    pub(crate) fn to_object(&self, blocks: &impl WriteBlocks) -> Result<Object> {
        let mut bytes = postcard::to_stdvec(self).map_err(damaged)?;
        let block_size = block_size(self.size);
        let wide = u64::from(block_size);
        let mut object = Object {
            object_type: OBJECT_TYPE,
            bonus_type: BONUS_TYPE,
            block_size,
            dn_slots: 1,
            end: self.size.max(1).div_ceil(wide) * wide,
            data: Data::default(),
            ..Object::default()
        };
        if bytes.len() <= MAX_BONUS {
            object.bonus_len = u32::try_from(bytes.len()).map_err(damaged)?;
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            object.bonus = bytes;
            return Ok(object);
        }
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let length = u32::try_from(bytes.len()).map_err(damaged)?;
        object.spill = Some(SpillRef {
            length,
            block: BlockRef {
                hash: blocks.put(Kind::Data, &bytes)?,
                payload_len: length,
                compression: 0,
                envelope: None,
            },
        });
        object.payload_bytes = u64::from(length);
        Ok(object)
    }

    /// The attributes that an object has, checked: whoever sent them, they stay inside their tree.
    pub(crate) fn of(blocks: &impl ReadBlocks, object: &Object) -> Result<Self> {
        let spilled;
        let bytes: &[u8] = match &object.spill {
            Some(spill) => {
                spilled = blocks.get(Kind::Data, &spill.block.hash)?;
                &spilled
            }
            None => &object.bonus,
        };
        if object.object_type != OBJECT_TYPE {
            return Err(damaged(format!("object type {}", object.object_type)));
        }
        // What is behind it is padding.
        let (inode, _) = postcard::take_from_bytes::<Inode>(bytes).map_err(damaged)?;
        inode.check()?;
        Ok(inode)
    }

    /// Loads an object with its attributes.
    pub(crate) fn load(blocks: &impl ReadBlocks, hash: &Hash) -> Result<(Object, Self)> {
        let object = Object::load(blocks, hash)?;
        let inode = Self::of(blocks, &object)?;
        Ok((object, inode))
    }

    fn check(&self) -> Result<()> {
        for link in &self.links {
            let name = &link.name[..];
            let sound = !name.is_empty()
                && name.len() <= 255
                && name != b"."
                && name != b".."
                && !name.contains(&b'/')
                && !name.contains(&0);
            if !sound {
                return Err(damaged(format!("the name {:?}", String::from_utf8_lossy(name))));
            }
        }
        let single = self.kind == FileKind::Directory && self.links.len() > 1;
        let xattr =
            |(name, _): &(Vec<u8>, Vec<u8>)| !name.starts_with(b"user.") || name.contains(&0);
        if single || self.target.contains(&0) || self.xattrs.iter().any(xattr) {
            return Err(damaged("attributes that no directory has"));
        }
        if self.mode > 0o7777 || self.mtime_ns >= 1_000_000_000 {
            return Err(damaged("attributes out of range"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::tests::Memory;

    fn inode(name: &[u8], xattr_bytes: usize) -> Inode {
        Inode {
            kind: FileKind::File,
            mode: 0o644,
            uid: 1,
            gid: 2,
            mtime_s: -5,
            mtime_ns: 7,
            size: 1000,
            links: vec![Link { parent: 1, name: name.to_vec() }],
            target: Vec::new(),
            xattrs: vec![(b"user.x".to_vec(), vec![9; xattr_bytes])],
        }
    }

    #[test]
    fn attributes_come_back_from_bonus_and_from_spill() {
        let blocks = Memory::default();
        for (xattr, spilled) in [(3, false), (5000, true)] {
            let inode = inode(b"name", xattr);
            let object = inode.to_object(&blocks).expect("object");
            assert_eq!(object.spill.is_some(), spilled);
            assert_eq!(Inode::of(&blocks, &object).expect("inode"), inode);
        }
    }

    #[test]
    fn a_name_that_leads_out_of_the_tree_is_damage() {
        let blocks = Memory::default();
        for name in [&b".."[..], b".", b"", b"a/b", b"a\0b", &[b'x'; 256]] {
            let object = inode(name, 1).to_object(&blocks).expect("object");
            assert!(Inode::of(&blocks, &object).is_err(), "{name:?}");
        }
    }

    #[test]
    fn small_files_have_one_block_and_large_ones_blocks_of_128_kib() {
        let sizes = [0, 1, 512, 513, 131_072, 131_073, u64::MAX];
        assert_eq!(sizes.map(block_size), [512, 512, 512, 1024, 131_072, 131_072, 131_072]);
    }
}
