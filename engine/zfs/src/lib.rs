//! flocker-zfs

#[cfg(feature = "fixture")]
pub mod fixture;
pub mod options;
pub mod store;

pub use options::ZfsOptions;
pub use store::{Availability, Probe, ZfsStore};
