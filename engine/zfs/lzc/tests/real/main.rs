//! libzfs_core against real ZFS: every function, what it refuses, and that none of it starts a process.
//!
//! See `lab` for what it needs. Each test has a place of its own in the pool.

mod lab;
mod metadata;
mod properties;
mod quiet;
mod streams;
