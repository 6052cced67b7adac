//! Fuzzes everything in `flocker-transport` that decodes what a peer sends; see
//! `flocker_transport::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| flocker_transport::fuzzing::fuzz_frames(data));
