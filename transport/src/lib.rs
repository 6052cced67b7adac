//! flocker-transport
