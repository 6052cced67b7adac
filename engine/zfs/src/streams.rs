//! What streams of a dataset have need of, and what its pool receives.
//!
//! Owns: reading that from the pool's features, the dataset's properties, and the first record of what a send of its
//! newest snapshot would be: a feature of a dataset, once in use, stays so whatever its properties say by now.
//! Leaves to others: what a feature is ([`flocker_store::features`]), and refusing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read};

use flocker_store::store::Result;
use flocker_store::{DatasetName, SendSpec, StoreError, StreamFeature, StreamFeatures};
use zfs_stream::{Reader, Record};

use crate::ZfsStore;
use crate::errors::About;
use crate::run::{Finished, Program};
use crate::{errors, parse};

/// Records of more than this need `large_blocks`, bytes (`SPA_OLD_MAXBLOCKSIZE`).
const OLD_MAX_BLOCK: u64 = 128 << 10;

/// Read at once of a stream whose first record is all that is wanted, bytes.
const CHUNK_BYTES: usize = 4 << 10;

/// Features of a pool by their names, from what `zpool get -H -o property,value all` prints.
pub(crate) fn features_of_pool(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.strip_prefix("feature@")?.split_once('\t')).collect()
}

/// Whether streams that need it are received; `None`: this ZFS does not know it.
pub(crate) fn receives(states: &BTreeMap<&str, &str>, feature: StreamFeature) -> Option<bool> {
    states.get(feature.name()).map(|state| matches!(*state, "enabled" | "active"))
}

impl ZfsStore {
    pub(crate) fn find_stream_features(&self, dataset: &DatasetName) -> Result<StreamFeatures> {
        if self.dialect.fuse {
            // It is older than all of them.
            return Ok(StreamFeatures::default());
        }
        let args = ["get", "-H", "-o", "property,value", "all", self.root.pool()];
        let finished = self.runner.run(Program::Zpool, &args)?;
        if !finished.ending.is_success() {
            return Err(errors::explain(&finished, About::dataset(&self.root)));
        }
        let states = features_of_pool(parse::text(&finished)?);
        let has = |feature: &StreamFeature| receives(&states, *feature) == Some(true);
        let receives: BTreeSet<_> = StreamFeature::ALL.into_iter().filter(has).collect();
        let longname = states.contains_key(StreamFeature::Longname.name());
        let (exists, properties) = self.shaping_properties(dataset, longname)?;
        let mut sends = of_properties(&properties)?;
        // It is in use from the moment on in which it is enabled, and any compressed send says so.
        if states.get(StreamFeature::Lz4Compress.name()) == Some(&"active") {
            sends.insert(StreamFeature::Lz4Compress);
        }
        // What a property asks for is done where the pool can.
        sends.retain(|feature| receives.contains(feature));
        if exists {
            sends.extend(self.of_newest(dataset)?);
        }
        Ok(StreamFeatures { sends, receives })
    }

    /// The properties that shape what is written there, and whether the dataset exists: otherwise they are those
    /// that it would inherit.
    fn shaping_properties(
        &self,
        dataset: &DatasetName,
        longname: bool,
    ) -> Result<(bool, Finished)> {
        let mut asked = "recordsize,volblocksize,dnodesize,compression".to_owned();
        if longname {
            asked.push_str(",longname");
        }
        let mut at = dataset.clone();
        loop {
            let args = ["get", "-Hp", "-o", "property,value", asked.as_str(), at.as_str()];
            match self.zfs(&args, About::dataset(&at)) {
                Ok(finished) => return Ok((at == *dataset, finished)),
                Err(StoreError::NoDataset { .. }) if at != self.root => {
                    at = at.parent().unwrap_or_else(|| self.root.clone());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What the stream of its newest snapshot says; nothing where it has none.
    fn of_newest(&self, dataset: &DatasetName) -> Result<BTreeSet<StreamFeature>> {
        let Some(newest) = self.list_inventory(dataset)?.latest().cloned() else {
            return Ok(BTreeSet::new());
        };
        let spec = SendSpec {
            from: None,
            to: newest.name,
            compressed: true,
            large_blocks: true,
            raw: self.get_dataset(dataset)?.encrypted,
            resume: None,
        };
        let mut stream = match self.start_send(&spec) {
            // It went away meanwhile.
            Err(StoreError::NoSnapshot { .. }) => return Ok(BTreeSet::new()),
            stream => stream?,
        };
        let (mut reader, mut bytes) = (Reader::new(), [0; CHUNK_BYTES]);
        loop {
            let count = match stream.read(&mut bytes) {
                // The sender says why.
                Ok(0) => return stream.finish().map(|()| BTreeSet::new()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(StoreError::io(format!("reading a send of {dataset}"), error));
                }
            };
            match reader.next(&mut &bytes[..count]) {
                Ok(None) => {}
                Ok(Some(item)) => {
                    return Ok(match &item.record {
                        Record::Begin(begin) => StreamFeature::of_flags(begin.features.0),
                        _ => BTreeSet::new(),
                    });
                }
                Err(error) => {
                    return Err(StoreError::BadStream {
                        dataset: dataset.clone(),
                        detail: format!("a send of its newest snapshot: {error}"),
                    });
                }
            }
        }
    }
}

/// What is written under these properties has need of this.
fn of_properties(finished: &Finished) -> Result<BTreeSet<StreamFeature>> {
    let mut found = BTreeSet::new();
    for row in parse::rows(finished, 2)? {
        let value = row.str(1);
        let feature = match row.str(0) {
            "recordsize" | "volblocksize" if row.number_or(1, 0_u64)? > OLD_MAX_BLOCK => {
                StreamFeature::LargeBlocks
            }
            "dnodesize" if !matches!(value, "legacy" | "-") => StreamFeature::LargeDnode,
            "compression" if value.starts_with("zstd") => StreamFeature::ZstdCompress,
            "longname" if value == "on" => StreamFeature::Longname,
            _ => continue,
        };
        found.insert(feature);
    }
    Ok(found)
}
