//! What streams of a dataset have need of, and what its pool receives.

use std::fs;

use super::{DATASET, FIND, FOUND, LIST, begin, case, dataset, missing};
use flocker_store::{Store, StreamFeature};
use zfs_stream::Features;

const POOL: &str = "zpool get -H -o property,value all tank";
const SHAPE: &str = "zfs get -Hp -o property,value recordsize,volblocksize,dnodesize,compression";

/// A pool with these features, each `enabled` but lz4, which is `active` as soon as it is enabled.
fn pool(features: &[StreamFeature]) -> String {
    let state = |f: &StreamFeature| match (features.contains(f), f) {
        (false, _) => "disabled",
        (true, StreamFeature::Lz4Compress) => "active",
        (true, _) => "enabled",
    };
    let known = StreamFeature::ALL.into_iter().filter(|f| *f != StreamFeature::Longname);
    let lines = known.map(|f| format!("feature@{f}\t{}\n", state(&f)));
    format!("size\t1\n{}", lines.collect::<String>())
}

#[test]
fn features_of_streams_are_what_the_properties_ask_for_and_the_pool_can() {
    use StreamFeature as F;
    let case = case("exit 1");
    let shape = "recordsize\t1048576\nvolblocksize\t-\ndnodesize\tauto\ncompression\tzstd-3\n";
    // It does not exist yet: what it would inherit counts.
    case.fake.on(&format!("{SHAPE} tank/a"), 1, "", &missing("tank/a"));
    case.fake.on(&format!("{SHAPE} tank"), 0, shape, "");
    case.fake.on(POOL, 0, &pool(&F::ALL), "");
    let found = case.store.stream_features(&dataset()).unwrap();
    let most = [F::LargeBlocks, F::LargeDnode, F::Lz4Compress, F::ZstdCompress];
    assert_eq!(found.sends, most.into());
    assert!(!found.receives.contains(&F::Longname), "this ZFS does not know it");
    assert_eq!(found.receives.len(), F::ALL.len() - 1);
    assert!(case.fake.asked().iter().all(|words| !words.contains("longname")));

    let case = self::case("exit 1");
    case.fake.on(&format!("{SHAPE} tank/a"), 1, "", &missing("tank/a"));
    case.fake.on(&format!("{SHAPE} tank"), 0, shape, "");
    case.fake.on(POOL, 0, &pool(&[F::LargeDnode]), "");
    let found = case.store.stream_features(&dataset()).unwrap();
    assert_eq!(found.sends, [F::LargeDnode].into(), "a pool does what it can");
    assert_eq!(found.receives, [F::LargeDnode].into());
}

#[test]
fn a_feature_that_a_dataset_uses_is_in_its_stream_whatever_its_properties_say_by_now() {
    use StreamFeature as F;
    let case = case("echo \"$@\" > asked; cat stream");
    let flags = Features::COMPRESSED | Features::LZ4 | Features::LARGE_BLOCKS;
    fs::write(case.dir.path().join("stream"), begin(12, 0, flags)).unwrap();
    case.fake.on(POOL, 0, &pool(&F::ALL), "");
    let shape = "recordsize\t131072\nvolblocksize\t-\ndnodesize\tlegacy\ncompression\toff\n";
    case.fake.on(&format!("{SHAPE} tank/a"), 0, shape, "");
    case.fake.on(LIST, 0, "tank/a\t9\t2\t100\t-\t-\ntank/a@s2\t12\t20\t200\t0\t-\n", "");
    let words = DATASET.strip_suffix("tank").unwrap();
    let info =
        "type\tfilesystem\nguid\t1\nused\t2\nreferenced\t3\nreadonly\toff\nencryption\toff\n";
    let info: String = info.lines().map(|line| format!("tank/a\t{line}\n")).collect();
    case.fake.on(&format!("zfs {words}tank/a"), 0, &info, "");
    case.fake.on(FIND, 0, FOUND, "");
    let found = case.store.stream_features(&dataset()).unwrap();
    assert_eq!(found.sends, [F::LargeBlocks, F::Lz4Compress].into());
    let asked = fs::read_to_string(case.dir.path().join("asked")).unwrap();
    assert_eq!(asked.trim(), "send -L -c tank/a@s2", "as we send it");
}
