//! What arrived of a receive that was interrupted: kept with its dataset, and said as ZFS's resume token.
//!
//! ```text
//!   nothing ──checkpoint──▶ kept ──checkpoint──▶ kept ──commit──▶ a snapshot
//!      ▲                     │
//!      └── abort, or a BEGIN that does not resume ──┘
//! ```
//! A checkpoint makes the blocks and the row durable in one transaction, so a crash leaves the one before or
//! this one. What is kept is an object set like a snapshot's, which the collector knows as a root; only
//! records that the seal of a later one has proven are in it.
//!
//! Owns: the row, its token, and the dataset that is there for its sake. Leaves when to keep to
//! [`crate::receive`]. Source of the token's fields: `get_receive_resume_token_impl` in
//! `module/zfs/dsl_dataset.c` of OpenZFS.

use flocker_store::{DatasetKind, DatasetName, Guid, Partial, StoreError};
use serde::{Deserialize, Serialize};
use zfs_stream::Features;
use zfs_stream::record::Begin;
use zfs_stream::token::ResumeToken;

use crate::inner::Inner;
use crate::keydata::Point;
use crate::meta::{Change, DatasetId};
use crate::objset::SetRoot;

type Result<T> = std::result::Result<T, StoreError>;

/// What arrived of a receive that was interrupted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartialRecord {
    pub(crate) to_guid: u64,
    /// 0 for a full stream.
    pub(crate) from_guid: u64,
    /// Name of the snapshot on its sender.
    to_name: String,
    /// Features that the streams so far announced.
    pub(crate) features: u64,
    /// Where the rest begins: at the last OBJECT or WRITE that arrived, again.
    pub(crate) point: Point,
    /// Bytes of stream that arrived, as ZFS counts them: without the header of BEGIN.
    pub(crate) bytes: u64,
    /// The object set with everything applied so far.
    pub(crate) root: SetRoot,
    /// Bytes that packs grew by for it.
    pub(crate) new_bytes: u64,
    /// The dataset was made for it, and goes when it goes.
    pub(crate) made_dataset: bool,
}

impl PartialRecord {
    /// The record of a stream that stands at `point`.
    pub(crate) fn new(begin: &Begin, point: Point, bytes: u64) -> Self {
        PartialRecord {
            to_guid: begin.to_guid,
            from_guid: begin.from_guid,
            to_name: begin.name().into_owned(),
            features: begin.features.0 & !Features::RESUMING.0,
            point,
            bytes,
            root: SetRoot::default(),
            new_bytes: 0,
            made_dataset: false,
        }
    }

    /// Whether it is of a raw stream.
    pub(crate) fn is_raw(&self) -> bool {
        Features(self.features).contains(Features::RAW)
    }

    /// The token that `zfs send -t` goes on from.
    pub(crate) fn token(&self) -> ResumeToken {
        let has = |feature| Features(self.features).contains(feature);
        ResumeToken {
            object: self.point.object,
            offset: self.point.offset,
            bytes: self.bytes,
            to_guid: self.to_guid,
            to_name: self.to_name.clone(),
            from_guid: (self.from_guid != 0).then_some(self.from_guid),
            large_block_ok: has(Features::LARGE_BLOCKS),
            embed_ok: has(Features::EMBED_DATA),
            compress_ok: has(Features::COMPRESSED),
            raw_ok: has(Features::RAW),
            ..ResumeToken::default()
        }
    }

    /// As the store reports it.
    pub(crate) fn report(&self) -> Partial {
        let token = self.token();
        Partial {
            to: Some(Guid(token.to_guid)),
            from: token.from_guid.map(Guid),
            bytes: token.bytes,
            compressed: token.compress_ok,
            large_blocks: token.large_block_ok,
            raw: token.raw_ok,
            token: token.to_string(),
        }
    }

    /// Why a stream that goes on at `point` is not the rest of this one, if it is not.
    pub(crate) fn goes_on(&self, begin: &Begin, point: Point) -> std::result::Result<(), String> {
        if (begin.to_guid, begin.from_guid) != (self.to_guid, self.from_guid) {
            return Err(format!("it is not the rest of {}, of which a part is here", self.to_name));
        }
        if begin.features.contains(Features::RAW) != self.is_raw() {
            return Err("one part of it is raw and the other is not".into());
        }
        if point != self.point {
            return Err(format!(
                "it goes on at object {} byte {}, what is here ends at object {} byte {}",
                point.object, point.offset, self.point.object, self.point.offset
            ));
        }
        Ok(())
    }
}

/// Writes a partial with its dataset, which is made where it does not exist. Returns the dataset.
pub(crate) fn keep(
    inner: &Inner,
    change: &Change<'_>,
    place: Place<'_>,
    partial: PartialRecord,
) -> Result<DatasetId> {
    let (id, made) = match place.id {
        Some(id) => {
            (id, change.dataset(id)?.and_then(|d| d.partial).is_some_and(|p| p.made_dataset))
        }
        None => (inner.add_dataset(change, place.name, place.kind)?, true),
    };
    change.edit_dataset(id, |record| {
        if record.origin.is_none() {
            record.origin = place.origin;
        }
        record.partial = Some(PartialRecord { made_dataset: made, ..partial });
    })?;
    Ok(id)
}

/// Where a partial is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'n> {
    /// The dataset, if it exists.
    pub(crate) id: Option<DatasetId>,
    pub(crate) name: &'n DatasetName,
    pub(crate) kind: DatasetKind,
    /// Guid of the origin, for a clone.
    pub(crate) origin: Option<Guid>,
}

impl Inner {
    /// Takes a partial away; with it the dataset that was made for it. Returns whether the dataset is still
    /// there. The blocks go with the next collection.
    pub(crate) fn discard_partial(&self, id: DatasetId) -> Result<bool> {
        let txn = self.db.write()?;
        let change = Change::new(&self.db, &txn);
        let Some(record) = change.dataset(id)? else {
            return Ok(false);
        };
        let Some(partial) = &record.partial else {
            return Ok(true);
        };
        let goes = partial.made_dataset && change.snapshots(id)?.is_empty();
        if goes {
            change.remove_dataset(id, &record.name)?;
        } else {
            change.edit_dataset(id, |record| record.partial = None)?;
        }
        self.db.commit(txn)?;
        self.destroyed();
        Ok(!goes)
    }
}
