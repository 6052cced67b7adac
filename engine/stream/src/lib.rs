//! zfs-stream
