//! flocker-store
