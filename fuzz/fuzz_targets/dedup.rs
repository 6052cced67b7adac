//! Fuzzes both sides of dedup, in any order of steps; see `flocker_transport::fuzzing::dedup`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flocker_transport::fuzzing::dedup::fuzz_dedup(data);
});
