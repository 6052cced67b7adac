//! The numbers of the format: sizes, limits, flags, feature bits, and their names.
//!
//! Owns: constants and the small newtypes over them. Leaves records to [`crate::record`].
//! Source: `include/sys/zfs_ioctl.h`, `include/sys/dmu.h`, `include/sys/zio_compress.h` of OpenZFS 2.3.

use std::fmt;

/// Bytes of a record's header: every record begins with one.
pub const HEADER_LEN: usize = 312;

/// Where the seal (the running fletcher4, 32 bytes) begins in every header except BEGIN's.
pub const SEAL_OFFSET: usize = HEADER_LEN - 32;

/// The magic number in BEGIN.
pub const MAGIC: u64 = 0x2_F5BA_CBAC;

/// Bytes of the name field in BEGIN, the closing NUL included.
pub const NAME_LEN: usize = 256;

/// Longest data block, and so the longest payload of WRITE and SPILL (`SPA_MAXBLOCKSIZE`), bytes.
pub const MAX_PAYLOAD: usize = 16 << 20;

/// Longest block without the `large_blocks` feature (`SPA_OLD_MAXBLOCKSIZE`), bytes.
pub const MAX_SMALL_BLOCK: u64 = 128 << 10;

/// Longest payload of BEGIN: the nvlist of a package (the default of `ZFS_SENDRECV_MAX_NVLIST`), bytes.
pub const MAX_BEGIN_PAYLOAD: usize = 64 << 20;

/// Longest bonus payload of OBJECT: a dnode is at most 16 KiB (`DNODE_MAX_SIZE`), bytes.
pub const MAX_BONUS: usize = 16 << 10;

/// Longest payload of WRITE_EMBEDDED: what fits into a block pointer (`BPE_PAYLOAD_SIZE`), bytes.
pub const MAX_EMBEDDED: usize = 112;

/// Object numbers end here (`DN_MAX_OBJECT`).
pub const MAX_OBJECT: u64 = 1 << 48;

/// Dnode slots in a block of dnodes: what one OBJECT_RANGE covers (`DNODES_PER_BLOCK`).
pub const DNODES_PER_BLOCK: u64 = 32;

/// The length in FREE that means "to the end of the object" (`DMU_OBJECT_END`).
pub const TO_OBJECT_END: u64 = u64::MAX;

/// `DRR_FLAG_*` in BEGIN.
pub mod begin_flag {
    /// The stream is for a clone: it is an increment from its origin.
    pub const CLONE: u32 = 1 << 0;
    /// The dataset ignores case.
    pub const CI_DATA: u32 = 1 << 1;
    /// A full stream that carries FREE and FREEOBJECTS, so it may be received as a clone.
    pub const FREERECORDS: u32 = 1 << 2;
    /// [`super::object_flag::SPILL`] and [`super::spill_flag::UNMODIFIED`] mean something in this stream.
    pub const SPILL_BLOCK: u32 = 1 << 3;

    /// The names of the flags that are set and known, lowest bit first.
    pub fn names(flags: u32) -> Vec<&'static str> {
        [
            (CLONE, "clone"),
            (CI_DATA, "ci_data"),
            (FREERECORDS, "freerecords"),
            (SPILL_BLOCK, "spill_block"),
        ]
        .into_iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|(_, name)| name)
        .collect()
    }
}

/// `DRR_*` flags of WRITE, WRITE_BYREF and OBJECT_RANGE; those of OBJECT and SPILL share the first two.
pub mod data_flag {
    /// The checksum is strong enough for dedup.
    pub const CHECKSUM_DEDUP: u8 = 1 << 0;
    /// The raw block is in the other byte order than the stream.
    pub const RAW_BYTESWAP: u8 = 1 << 1;
}

/// `DRR_OBJECT_*` flags of OBJECT.
pub mod object_flag {
    /// The object has a spill block.
    pub const SPILL: u8 = 1 << 2;
}

/// `DRR_SPILL_*` flags of SPILL.
pub mod spill_flag {
    /// The spill block did not change; only old receivers need it.
    pub const UNMODIFIED: u8 = 1 << 2;
}

/// Object set types (`DMU_OST_*`) in BEGIN.
pub mod objset {
    /// No object set: the outer BEGIN of a package.
    pub const NONE: u32 = 0;
    /// The meta object set of a pool; never sent.
    pub const META: u32 = 1;
    /// A filesystem.
    pub const ZFS: u32 = 2;
    /// A volume.
    pub const ZVOL: u32 = 3;

    /// The name of an object set type, if it is one that is sent.
    pub fn name(objset: u32) -> Option<&'static str> {
        match objset {
            NONE => Some("none"),
            ZFS => Some("filesystem"),
            ZVOL => Some("volume"),
            _ => None,
        }
    }
}

/// The byte order of a stream. ZFS sends in the sender's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "lowercase"))]
pub enum Endian {
    /// Least significant byte first.
    #[default]
    Little,
    /// Most significant byte first.
    Big,
}

/// The compression of a payload (`enum zio_compress`); 0 in a WRITE means "as it is".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Compression(pub u8);

impl Compression {
    /// The payload is not compressed (WRITE and SPILL outside raw streams).
    pub const NONE: Self = Self(0);
    /// `ZIO_COMPRESS_OFF`: a raw or embedded block that is not compressed.
    pub const OFF: Self = Self(2);
    /// LZJB.
    pub const LZJB: Self = Self(3);
    /// gzip, level 1; levels up to 9 follow.
    pub const GZIP_1: Self = Self(5);
    /// gzip, level 9.
    pub const GZIP_9: Self = Self(13);
    /// Zero-length encoding.
    pub const ZLE: Self = Self(14);
    /// LZ4, with ZFS's 4-byte big-endian length in front.
    pub const LZ4: Self = Self(15);
    /// Zstandard, with ZFS's 8-byte header in front.
    pub const ZSTD: Self = Self(16);

    /// The name that `zfs get compression` uses, or `None` for a number that OpenZFS 2.3 does not have.
    pub fn name(self) -> Option<&'static str> {
        const NAMES: [&str; 17] = [
            "none", "on", "off", "lzjb", "empty", "gzip-1", "gzip-2", "gzip-3", "gzip-4", "gzip-5",
            "gzip-6", "gzip-7", "gzip-8", "gzip-9", "zle", "lz4", "zstd",
        ];
        NAMES.get(usize::from(self.0)).copied()
    }

    /// Whether OpenZFS 2.3 knows this number.
    pub fn is_known(self) -> bool {
        self.name().is_some()
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "compression {}", self.0),
        }
    }
}

/// The feature flags of a stream (`DMU_BACKUP_FEATURE_*`), as they stand above the two bits of the header
/// type. Bits that no version defines are kept, so that what is read is what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Features(pub u64);

impl Features {
    /// No feature.
    pub const NONE: Self = Self(0);
    /// `zfs send -D` of the past: WRITE_BYREF records.
    pub const DEDUP: Self = Self(1 << 0);
    /// As [`Self::DEDUP`], with the checksums' properties.
    pub const DEDUPPROPS: Self = Self(1 << 1);
    /// System attributes: bonus of type SA, SPILL records.
    pub const SA_SPILL: Self = Self(1 << 2);
    /// WRITE_EMBEDDED records.
    pub const EMBED_DATA: Self = Self(1 << 16);
    /// LZ4 payloads.
    pub const LZ4: Self = Self(1 << 17);
    /// Blocks above 128 KiB.
    pub const LARGE_BLOCKS: Self = Self(1 << 19);
    /// The rest of an interrupted stream.
    pub const RESUMING: Self = Self(1 << 20);
    /// A redacted stream: REDACT records, or an increment from a redaction bookmark.
    pub const REDACTED: Self = Self(1 << 21);
    /// Compressed payloads in WRITE.
    pub const COMPRESSED: Self = Self(1 << 22);
    /// Dnodes above 512 bytes.
    pub const LARGE_DNODE: Self = Self(1 << 23);
    /// Blocks of an encrypted dataset as they are on disk.
    pub const RAW: Self = Self(1 << 24);
    /// Zstandard payloads.
    pub const ZSTD: Self = Self(1 << 25);
    /// The package carries holds.
    pub const HOLDS: Self = Self(1 << 26);
    /// An increment with large blocks may follow a step without.
    pub const SWITCH_TO_LARGE_BLOCKS: Self = Self(1 << 27);
    /// File names above 255 bytes.
    pub const LONGNAME: Self = Self(1 << 28);
    /// Directories whose only block is above 128 KiB.
    pub const LARGE_MICROZAP: Self = Self(1 << 29);

    const NAMED: [(Self, &'static str); 16] = [
        (Self::DEDUP, "dedup"),
        (Self::DEDUPPROPS, "dedupprops"),
        (Self::SA_SPILL, "sa_spill"),
        (Self::EMBED_DATA, "embed_data"),
        (Self::LZ4, "lz4"),
        (Self::LARGE_BLOCKS, "large_blocks"),
        (Self::RESUMING, "resuming"),
        (Self::REDACTED, "redacted"),
        (Self::COMPRESSED, "compressed"),
        (Self::LARGE_DNODE, "large_dnode"),
        (Self::RAW, "raw"),
        (Self::ZSTD, "zstd"),
        (Self::HOLDS, "holds"),
        (Self::SWITCH_TO_LARGE_BLOCKS, "switch_to_large_blocks"),
        (Self::LONGNAME, "longname"),
        (Self::LARGE_MICROZAP, "large_microzap"),
    ];

    /// Whether every bit of `other` is set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits that no version of OpenZFS up to 2.4 defines.
    pub fn unknown(self) -> Self {
        Self(Self::NAMED.iter().fold(self.0, |rest, (bit, _)| rest & !bit.0))
    }

    /// The names of the bits that are set and known, lowest bit first.
    pub fn names(self) -> Vec<&'static str> {
        Self::NAMED.iter().filter(|(bit, _)| self.contains(*bit)).map(|(_, name)| *name).collect()
    }
}

impl std::ops::BitOr for Features {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = self.names().join(" ");
        if self.unknown() != Self::NONE {
            names.push_str(&format!(" unknown:{:#x}", self.unknown().0));
        }
        f.write_str(names.trim_start())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feature_names_follow_the_bits_and_unknown_ones_stand_apart() {
        let features = Features::COMPRESSED | Features::SA_SPILL | Features(1 << 5);
        assert_eq!(features.names(), ["sa_spill", "compressed"]);
        assert_eq!(features.unknown(), Features(1 << 5));
        assert_eq!(features.to_string(), "sa_spill compressed unknown:0x20");
    }

    #[test]
    fn compression_numbers_have_the_names_zfs_gives_them() {
        assert_eq!(Compression(10).name(), Some("gzip-6"));
        assert_eq!(Compression::ZSTD.name(), Some("zstd"));
        assert_eq!(Compression(17).name(), None);
    }
}
