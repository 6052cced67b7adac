//! flocker-zfs
