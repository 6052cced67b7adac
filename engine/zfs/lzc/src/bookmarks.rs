//! Bookmarks: made of snapshots or of other bookmarks, listed, destroyed.

use std::collections::BTreeMap;

use crate::error::{LzcError, Operation};
use crate::name::{Kind, check, one_pool};
use crate::nv::Entries;
use crate::session::{About, Lzc, flags, texts};
use crate::snapshots::batch;

/// A bookmark: a snapshot's guid and place, without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bookmark {
    /// The guid of the snapshot it was made from.
    pub guid: u64,
    /// That snapshot's transaction group.
    pub createtxg: u64,
    /// When that snapshot was taken, in seconds since 1970.
    pub creation_unix_s: u64,
}

/// The properties that are asked for.
const ASKED: [&str; 3] = ["guid", "createtxg", "creation"];

impl Lzc {
    /// Makes bookmarks in one transaction group, all or none: from the new bookmark's full name to the full
    /// name of its source, a snapshot or a bookmark.
    ///
    /// # Errors
    /// By name: `EEXIST`, `ENOENT`, `ENOTSUP` (the pool has no bookmarks),
    /// `ZFS_ERR_BOOKMARK_SOURCE_NOT_ANCESTOR`. [`LzcError::Pools`], [`LzcError::Name`].
    pub fn bookmark(&self, bookmarks: &BTreeMap<String, String>) -> Result<(), LzcError> {
        let operation = Operation::Bookmark;
        for (name, source) in bookmarks {
            check(name, Kind::Bookmark)?;
            check(source, Kind::SnapshotOrBookmark)?;
        }
        let all = bookmarks.iter().flat_map(|(name, source)| [name.as_str(), source.as_str()]);
        one_pool(operation, all)?;
        let Some(first) = bookmarks.keys().next() else {
            return Ok(());
        };
        let about = About::new(operation, first);
        let list = about.list(&texts(bookmarks))?;
        about.by_name(&self.session.bookmark(&list)?).map(drop)
    }

    /// The bookmarks of one dataset, by the part of their names after `#`. Reads only; does not wait for a
    /// transaction group.
    ///
    /// # Errors
    /// `ENOENT`: no such dataset.
    pub fn bookmarks(&self, dataset: &str) -> Result<BTreeMap<String, Bookmark>, LzcError> {
        let about = About::new(Operation::Bookmarks, dataset);
        let name = check(dataset, Kind::Dataset)?;
        let outcome = self.session.get_bookmarks(&name, &about.list(&flags(&ASKED))?)?;
        about.done(&outcome)?;
        let mut found = BTreeMap::new();
        for (short, properties) in about.read(outcome.out.as_ref())? {
            let number = |property: &str| {
                let value = properties.list().and_then(|properties| number(properties, property));
                value.ok_or_else(|| about.answer(format!("#{short}: no {property}")))
            };
            let [guid, createtxg, creation_unix_s] =
                [number(ASKED[0])?, number(ASKED[1])?, number(ASKED[2])?];
            found.insert(short, Bookmark { guid, createtxg, creation_unix_s });
        }
        Ok(found)
    }

    /// Destroys bookmarks of one pool in one transaction group, all or none. One that does not exist is not an
    /// error.
    ///
    /// # Errors
    /// By name. [`LzcError::Pools`], [`LzcError::Name`].
    pub fn destroy_bookmarks<S: AsRef<str>>(&self, names: &[S]) -> Result<(), LzcError> {
        let Some(about) = batch(Operation::DestroyBookmarks, names, Kind::Bookmark)? else {
            return Ok(());
        };
        let outcome = self.session.destroy_bookmarks(&about.list(&flags(names))?)?;
        about.by_name(&outcome).map(drop)
    }
}

/// `{property: {"value": number}}`
fn number(properties: &Entries, property: &str) -> Option<u64> {
    properties.get(property)?.list()?.get("value")?.bits()
}
