//! transfer tests
