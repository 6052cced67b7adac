//! Fuzzes everything in `zfs-stream` that decodes; see `zfs_stream::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| zfs_stream::fuzzing::fuzz_one(data));
