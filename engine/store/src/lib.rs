//! The `Store` trait and its types, in ZFS's own terms.
//!
//! Owns: the vocabulary every store answers in (datasets, snapshots, bookmarks, holds, guids), and
//! the typed errors a planner can act on. Leaves to others: all I/O (`flocker-vault`, `flocker-zfs`)
//! and all decisions (`flocker-core`). It knows nobody.
//!
//! Read next: [`name`] (names and their grammar), [`types`] (what a store reports), [`features`] (what a
//! pool has to have for a stream),
//! [`error`] (what can go wrong, sorted by what can be done about it), [`store`] (the trait).

pub mod error;
pub mod features;
pub mod name;
pub mod store;
pub mod types;

pub use error::{Holder, Recovery, StoreError};
pub use features::{StreamFeature, StreamFeatures};
pub use name::{BookmarkName, DatasetName, HoldTag, NameError, SnapshotName};
pub use store::{ASIDE, CLONE, ReceiveStream, SendStream, Store};
pub use types::{
    Bookmark, Capabilities, Change, CloneAccess, DatasetInfo, DatasetKind, Finding, Guid,
    Inventory, Level, Origin, Partial, Property, PropertySource, ReceiveSpec, SendBase, SendSpec,
    Snapshot, SnapshotHold, SnapshotSpec, Space,
};
