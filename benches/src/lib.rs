//! flocker-benches
