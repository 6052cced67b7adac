//! flocker-core decides.
pub mod ids;
