//! Features of streams that the receiving pool has to have enabled, since nothing is split, unpacked or decompressed
//! on its way in.
//!
//! Owns: their names, what gives a dataset's streams the need of one, and their flags in a stream. Leaves to others:
//! finding out (the stores) and refusing (`flocker-core`).
//!
//! Source: `setup_featureflags` in OpenZFS's `module/zfs/dmu_send.c` for what a send makes of a dataset, and
//! `recv_begin_check_feature_flags_impl` in `dmu_recv.c` for what a receive asks of the pool; only those that sends
//! with `-L`, `-c` and `-w` can have. (`embedded_data` takes `-e`, or `-w` of what is not encrypted.)

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// One of them, named as in `zpool-features(7)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamFeature {
    /// `large_blocks`
    LargeBlocks,
    /// `large_dnode`
    LargeDnode,
    /// `lz4_compress`
    Lz4Compress,
    /// `zstd_compress`
    ZstdCompress,
    /// `encryption`
    Encryption,
    /// `longname`
    Longname,
    /// `large_microzap`
    LargeMicrozap,
}

impl StreamFeature {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::LargeBlocks,
        Self::LargeDnode,
        Self::Lz4Compress,
        Self::ZstdCompress,
        Self::Encryption,
        Self::Longname,
        Self::LargeMicrozap,
    ];

    /// As in `zpool get feature@…`.
    pub fn name(self) -> &'static str {
        match self {
            Self::LargeBlocks => "large_blocks",
            Self::LargeDnode => "large_dnode",
            Self::Lz4Compress => "lz4_compress",
            Self::ZstdCompress => "zstd_compress",
            Self::Encryption => "encryption",
            Self::Longname => "longname",
            Self::LargeMicrozap => "large_microzap",
        }
    }

    /// What of a dataset gives its streams the need of it.
    pub fn cause(self) -> &'static str {
        match self {
            Self::LargeBlocks => "records of more than 128 KiB",
            Self::LargeDnode => "dnodesize other than legacy",
            Self::Lz4Compress => "blocks compressed with lz4",
            Self::ZstdCompress => "blocks compressed with zstd",
            Self::Encryption => "encrypted volumes",
            Self::Longname => "file names of more than 255 bytes",
            Self::LargeMicrozap => "large directories in one block of more than 128 KiB",
        }
    }

    /// Its flag in the first record of a stream (`DMU_BACKUP_FEATURE_…` in `zfs_ioctl.h`).
    pub fn flag(self) -> u64 {
        match self {
            Self::LargeBlocks => 1 << 19,
            Self::LargeDnode => 1 << 23,
            Self::Lz4Compress => 1 << 17,
            Self::ZstdCompress => 1 << 25,
            Self::Encryption => 1 << 24,
            Self::Longname => 1 << 28,
            Self::LargeMicrozap => 1 << 29,
        }
    }

    /// Those that a stream with these flags has need of.
    pub fn of_flags(flags: u64) -> BTreeSet<Self> {
        Self::ALL.into_iter().filter(|feature| flags & feature.flag() != 0).collect()
    }
}

impl fmt::Display for StreamFeature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What streams of a dataset have need of, and what is received where it lies.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StreamFeatures {
    /// What streams of the dataset have need of now, or will once it is written.
    pub sends: BTreeSet<StreamFeature>,
    /// What can be received there now.
    pub receives: BTreeSet<StreamFeature>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_a_stream_are_the_features_that_it_has_need_of() {
        // As of `zfs send -Lc` from a pool with lz4: SA_SPILL, LZ4, LARGE_BLOCKS, COMPRESSED.
        let flags = 1 << 2 | 1 << 17 | 1 << 19 | 1 << 22;
        let needs = [StreamFeature::LargeBlocks, StreamFeature::Lz4Compress];
        assert_eq!(StreamFeature::of_flags(flags), needs.into());
        assert_eq!(StreamFeature::of_flags(u64::MAX), StreamFeature::ALL.into());
    }
}
