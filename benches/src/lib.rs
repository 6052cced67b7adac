//! Benches: what the parts of the data path cost, each beside a floor in the same run.
//!
//! `cargo bench -p flocker-benches`. Absolute figures belong to the machine they were taken on; the
//! ratio to the floor is what is compared over time.
