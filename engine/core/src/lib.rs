//! flocker-core
