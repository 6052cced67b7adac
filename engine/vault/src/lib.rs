//! flocker-vault
