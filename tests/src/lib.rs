//! flocker-tests
