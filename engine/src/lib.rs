//! flocker-engine
