//! Whether streams of what is introduced can be received here, and those of this node where it comes from.
//!
//! Asked once, when a person wants the protection: what cannot be is refused then and not at a cutover, or after it.
//! Decided here, since it takes what this store is like and what the primary has said of its own.

use std::collections::BTreeSet;

use flocker_store::{DatasetKind, DatasetName, StreamFeature, StreamFeatures};

use crate::failure::{Failure, FailureCode};
use crate::io::StoreFacts;
use crate::message::{TakesBack, VolumeIntro};

/// What accepts that nothing comes back.
const ONE_WAY: &str = "protect with `--one-way` if nothing is to come back";

/// Whether a volume can be kept at `dataset` and come back. `streams`: what was found there; `takes_back`: what its
/// primary, called `peer`, receives, if it wants anything back.
///
/// # Errors
/// Which feature which node lacks, and what to run where.
pub(crate) fn check(
    me: &StoreFacts,
    peer: &str,
    volume: &VolumeIntro,
    dataset: &DatasetName,
    streams: &StreamFeatures,
    takes_back: Option<&TakesBack>,
) -> Result<(), Failure> {
    let lacks: BTreeSet<_> = volume.needs.difference(&streams.receives).copied().collect();
    if !lacks.is_empty() {
        let (lacks, enable) = words(&lacks, dataset.pool());
        return refuse(format!(
            "{} cannot be received into {dataset}: its streams need {lacks}, which this node's pool has not enabled; \
             run {enable} here",
            volume.leaf
        ));
    }
    // A node where it cannot be primary sends back nothing but what came.
    let Some(takes_back) = takes_back.filter(|_| me.live_kinds.contains(&volume.kind)) else {
        return Ok(());
    };
    let modern = me.modern_streams.unwrap_or(volume.modern_streams);
    if modern && volume.kind == DatasetKind::Filesystem && !takes_back.modern_streams {
        return refuse(format!(
            "{dataset} could not go back to {peer}, which cannot receive an OpenZFS filesystem; {ONE_WAY}"
        ));
    }
    let mut later = streams.sends.clone();
    if volume.kind == DatasetKind::Zvol {
        // The others are of files, or come with the volume.
        let packs = [StreamFeature::Lz4Compress, StreamFeature::ZstdCompress];
        later.retain(|feature| packs.contains(feature));
    }
    later.extend(&volume.needs);
    let lacks: BTreeSet<_> = later.difference(&takes_back.features).copied().collect();
    if lacks.is_empty() {
        return Ok(());
    }
    let (lacks, enable) = words(&lacks, &takes_back.pool);
    refuse(format!(
        "{dataset}, once it is written on this node, could not go back to {peer}: its streams would need {lacks}, which \
         the pool of {peer} has not enabled; run {enable} on {peer}, or {ONE_WAY}"
    ))
}

fn refuse(text: String) -> Result<(), Failure> {
    Err(Failure::refused(FailureCode::Unsupported, text))
}

/// The features with what needs them, and what enables them in `pool`.
fn words(lacks: &BTreeSet<StreamFeature>, pool: &str) -> (String, String) {
    let named: Vec<_> = lacks.iter().map(|f| format!("{f} ({})", f.cause())).collect();
    let enable: Vec<_> =
        lacks.iter().map(|f| format!("`zpool set feature@{f}=enabled {pool}`")).collect();
    let update = "(a newer ZFS, should it not know that)";
    (named.join(", "), format!("{} {update}", enable.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::VolumeId;
    use StreamFeature as F;

    fn facts(modern: Option<bool>, live: &[DatasetKind]) -> StoreFacts {
        StoreFacts {
            describe: "zfs:tank".into(),
            root: name("tank"),
            live_kinds: live.to_vec(),
            replica_kinds: live.to_vec(),
            modern_streams: modern,
            receives_modern: modern != Some(false),
            freeze_for_snapshot: false,
            compressed_send: true,
            large_block_send: true,
            raw: true,
            resumable: true,
            holds: true,
            bookmarks: true,
            pin_limit_ms: 0,
            clones: true,
            atomic_group_snapshot: true,
            fencing_hook: false,
        }
    }

    fn name(text: &str) -> DatasetName {
        DatasetName::new(text).expect("a name")
    }

    fn volume(kind: DatasetKind, needs: &[F]) -> VolumeIntro {
        VolumeIntro {
            place: String::new(),
            id: VolumeId(1),
            leaf: "db".into(),
            kind,
            modern_streams: true,
            raw: false,
            needs: needs.iter().copied().collect(),
            known: Vec::new(),
        }
    }

    fn back(modern_streams: bool, features: &[F]) -> TakesBack {
        let features = features.iter().copied().collect();
        TakesBack { pool: "data".into(), modern_streams, features }
    }

    /// What is said to a volume of this kind whose streams need `needs`, by a standby whose own have `sends`.
    fn said(
        kind: DatasetKind,
        needs: &[F],
        (sends, receives): (&[F], &[F]),
        takes_back: Option<TakesBack>,
    ) -> String {
        let set = |all: &[F]| all.iter().copied().collect();
        let streams = StreamFeatures { sends: set(sends), receives: set(receives) };
        let me = facts(Some(true), &[DatasetKind::Filesystem, DatasetKind::Zvol]);
        let volume = volume(kind, needs);
        match check(&me, "alpha", &volume, &name("tank/in/db"), &streams, takes_back.as_ref()) {
            Ok(()) => "yes".into(),
            Err(failure) => {
                assert_eq!(failure.code, FailureCode::Unsupported);
                failure.message
            }
        }
    }

    #[test]
    fn what_cannot_be_received_is_named_with_what_enables_it() {
        let kind = DatasetKind::Filesystem;
        let all = (&[][..], &F::ALL[..]);
        assert_eq!(said(kind, &[F::LargeBlocks], all, None), "yes");
        let few = (&[][..], &[F::Lz4Compress][..]);
        assert_eq!(said(kind, &[F::Lz4Compress], few, None), "yes");
        assert_eq!(
            said(kind, &[F::LargeBlocks, F::Lz4Compress], few, Some(back(true, &F::ALL))),
            "db cannot be received into tank/in/db: its streams need large_blocks (records of more than 128 KiB), \
             which this node's pool has not enabled; run `zpool set feature@large_blocks=enabled tank` (a newer ZFS, \
             should it not know that) here"
        );
    }

    #[test]
    fn what_could_not_come_back_is_refused_unless_nothing_is_wanted_back() {
        let kind = DatasetKind::Filesystem;
        let ours = (&[F::LargeDnode, F::Lz4Compress][..], &F::ALL[..]);
        assert_eq!(said(kind, &[], ours, Some(back(true, &F::ALL))), "yes");
        assert_eq!(said(kind, &[], ours, None), "yes", "one way");
        let text = said(kind, &[], ours, Some(back(true, &[F::Lz4Compress])));
        let words = "could not go back to alpha: its streams would need large_dnode (dnodesize other than legacy), \
                     which the pool of alpha has not enabled; run `zpool set feature@large_dnode=enabled data`";
        assert!(
            text.contains(words) && text.contains("on alpha") && text.contains("--one-way"),
            "{text}"
        );
        // What came once may have to go back, too.
        let text = said(kind, &[F::LargeBlocks], ours, Some(back(true, &[F::Lz4Compress])));
        assert!(text.contains("large_blocks (") && text.contains("large_dnode ("), "{text}");
    }

    #[test]
    fn an_openzfs_filesystem_goes_to_zfs_fuse_neither_way() {
        let ours = (&[][..], &F::ALL[..]);
        let text = said(DatasetKind::Filesystem, &[], ours, Some(back(false, &[])));
        assert!(text.contains("cannot receive an OpenZFS filesystem"), "{text}");
        assert_eq!(said(DatasetKind::Filesystem, &[], ours, None), "yes");
        // As it came, from a vault, and by a store that is zfs-fuse itself.
        let streams = StreamFeatures { receives: F::ALL.into(), ..StreamFeatures::default() };
        let old = VolumeIntro { modern_streams: false, ..volume(DatasetKind::Filesystem, &[]) };
        for modern in [None, Some(false)] {
            let me = facts(modern, &[DatasetKind::Filesystem]);
            let takes_back = back(false, &[]);
            let dataset = name("v/in/db");
            check(&me, "alpha", &old, &dataset, &streams, Some(&takes_back)).expect("it can");
        }
    }

    #[test]
    fn of_a_zvol_only_compression_is_the_standbys_own() {
        let sends = [F::LargeBlocks, F::LargeDnode, F::Longname, F::ZstdCompress];
        let ours = (&sends[..], &F::ALL[..]);
        let takes_back = back(true, &[F::ZstdCompress]);
        assert_eq!(said(DatasetKind::Zvol, &[], ours, Some(takes_back)), "yes");
        let text = said(DatasetKind::Zvol, &[], ours, Some(back(true, &[])));
        assert!(text.contains("zstd_compress") && !text.contains("large_"), "{text}");
    }

    #[test]
    fn a_node_that_only_keeps_it_sends_back_what_came() {
        let me = facts(None, &[DatasetKind::Directory]);
        let streams = StreamFeatures { sends: F::ALL.into(), receives: F::ALL.into() };
        let volume = volume(DatasetKind::Filesystem, &[]);
        let (dataset, takes_back) = (name("v/in/db"), back(true, &[]));
        check(&me, "alpha", &volume, &dataset, &streams, Some(&takes_back)).expect("it can");
    }
}
