//! Directories as object sets: the vault's own kind of live volume.
//!
//! ```text
//!             create / activate                fence
//!   Absent ──────────────────────▶  Open  ───────────────▶ Fenced
//!      ▲  \                          ▲  ◀───────────────     │
//!      │   \ checkout                │       activate         │ receive, when it equals its
//!      │    ▼                        │                        │ newest snapshot
//!      └─ Updating ──────────────▶ Clean ◀────────────────────┘
//!   crash          checked out       activate: Open
//! ```
//! Open is at `live/<dataset name>`; Fenced, Clean and Updating are at `hidden/<id>/tree`, where nobody's
//! path leads. A row of the database says which; what a crash left between a rename and its row is put right
//! by [`live`].
//!
//! One object for each inode: its attributes and its names (parent object, name) are the bonus, or the spill
//! block when they are long; its content are the blocks. A directory has no content: its entries are the
//! names of its children. So a rename changes one object, whatever hangs below.
//!
//! Owns: the private object set type and what its objects mean. Read next: [`inode`] (the object),
//! [`scan`] (tree → object set), [`checkout`] (object set → tree), [`seen`] (what need not be read again),
//! [`holders`] (who is in the way), [`live`] (the machine above), [`image`] (the live data of a zvol, which
//! goes through the same machine).

pub(crate) mod checkout;
pub(crate) mod content;
pub(crate) mod holders;
pub(crate) mod image;
pub(crate) mod inode;
pub(crate) mod live;
pub(crate) mod scan;
pub(crate) mod seen;

/// The object set type in BEGIN. ZFS knows 0 to 4 (`DMU_OST_NUMTYPES`) and refuses others as an invalid
/// stream, which is what we want of it.
pub(crate) const OBJSET_DIRECTORY: u32 = 0x464C_4B44;

/// BEGIN flag of a directory stream: the snapshot is fuzzy. Bits 24 to 31 are left to vendors.
pub(crate) const FLAG_FUZZY: u32 = 1 << 24;

/// Object number of the directory itself.
pub(crate) const ROOT_OBJECT: u64 = 1;
