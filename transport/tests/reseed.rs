//! Reseeding over lanes: what the old copy has does not go again, in whatever way it differs; and what no peer may do.
#![allow(missing_docs)]

mod common;
#[path = "reseed/rules.rs"]
mod rules;

use std::io::{self, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::rogue::Rogue;
use common::{PATIENCE, golden, golden_names, paired_over};
use flocker_transport::bulk::OldCopy;
use flocker_transport::bulk::dedup::{CacheOptions, DedupError, MIN_CREDIT};
use flocker_transport::bulk::reseed::{self, Place};
use flocker_transport::frame::dedup::{CacheOffer, MIN_BLOCK, Missing};
use flocker_transport::frame::reseed::{MAX_SEED, Passed, SEED_WINDOW, Seed, Seeds};
use flocker_transport::frame::{self, FrameError, FrameType};
use flocker_transport::lane::memory;
use flocker_transport::{
    BulkReceiver, BulkSender, Fingerprint, LaneMode, Progress, ReceiveError, Refusal, Resources,
    SendError, SendOptions, SendReport, receive_stream, send_stream,
};
use proptest::prelude::*;
use zfs_stream::record::{Begin, End, Object, Write};
use zfs_stream::{Features, Reader, Record, Seal, Writer};

const SENDER: Fingerprint = Fingerprint([1; 32]);
const RECEIVER: Fingerprint = Fingerprint([2; 32]);

/// A block: object, offset, what is in it, length.
type Block = (u64, u64, u64, usize);

/// A sound stream of these blocks of noise: equal numbers, equal blocks.
fn stream_of(blocks: &[Block], features: Features) -> Vec<u8> {
    let (mut writer, mut out) = (Writer::new(Seal::PerRecord), Vec::new());
    let mut add = |record: &Record, payload: &[u8]| {
        writer.record(record, payload, &mut out).expect("a record of a valid stream");
    };
    add(
        &Record::Begin(Begin {
            objset_type: zfs_stream::format::objset::ZVOL,
            features,
            to_guid: 7,
            to_name: b"tank/vol@s1".to_vec(),
            ..Begin::default()
        }),
        &[],
    );
    let (mut block, mut last) = (Vec::new(), 0);
    for (object, offset, number, len) in blocks.iter().copied() {
        if object != last {
            add(
                &Record::Object(Object {
                    object,
                    object_type: 23,
                    block_size: u32::try_from(len).expect("a block"),
                    checksum_type: 7,
                    dn_slots: 1,
                    to_guid: 7,
                    ..Object::default()
                }),
                &[],
            );
            last = object;
        }
        block.resize(len, 0);
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut block);
        add(
            &Record::Write(Write {
                object,
                object_type: 23,
                offset,
                logical_size: len as u64,
                to_guid: 7,
                checksum_type: 7,
                ..Write::default()
            }),
            &block,
        );
    }
    add(&Record::End(End { to_guid: 7, ..End::default() }), &[]);
    out
}

fn plain(blocks: &[Block]) -> Vec<u8> {
    stream_of(blocks, Features::LARGE_BLOCKS)
}

/// `count` blocks of one object.
fn blocks(count: u64, len: usize) -> Vec<Block> {
    (0..count).map(|n| (1, n * len as u64, n, len)).collect()
}

/// Every `nth` block is another one.
fn changed(blocks: &[Block], nth: u64) -> Vec<Block> {
    let change = |(at, (object, offset, number, len)): (u64, &Block)| {
        let number = if at % nth == 0 { number + (1 << 40) } else { *number };
        (*object, *offset, number, *len)
    };
    (0..).zip(blocks).map(change).collect()
}

/// A node, with a cache of blocks or without.
fn node(cache: bool) -> Arc<Resources> {
    let resources = Resources::start().expect("workers");
    if cache {
        let directory = tempfile::tempdir().unwrap().keep();
        resources.dedup().keep_caches(CacheOptions { directory, bytes: 64 << 20 }).unwrap();
    }
    resources
}

fn patient() -> SendOptions {
    // Whoever gets stuck fails by nextest's own limit.
    SendOptions { reseed: Some(Duration::from_secs(3600)), ..SendOptions::default() }
}

type Received = (Vec<u8>, Result<(), ReceiveError>);

fn receiving(mut receiver: BulkReceiver, old: Option<OldCopy>) -> thread::JoinHandle<Received> {
    if let Some(old) = old {
        receiver.reseed_from(old);
    }
    thread::spawn(move || {
        let mut out = Vec::new();
        let result = receive_stream(&mut receiver, &mut out, &Progress::default()).map(drop);
        let refusal = |e: &ReceiveError| Refusal { code: 7, reason: e.to_string() };
        let _ = receiver.finish(result.as_ref().map(drop).map_err(refusal));
        (out, result)
    })
}

/// Sends `stream` to a receiver that reads `old` along, and proves that it arrives as it is.
fn reseed_with(
    stream: &[u8],
    old: OldCopy,
    options: SendOptions,
    receiver: Arc<Resources>,
) -> SendReport {
    let (a, b, _) = memory::pair();
    let sender = BulkSender::over(a, node(false)).to_peer(RECEIVER);
    let receiver = BulkReceiver::over(b, receiver).from_peer(SENDER);
    let received = receiving(receiver, Some(old));
    let (read, progress) = (Cursor::new(stream.to_vec()), Progress::default());
    let sent = send_stream(read, |_| Ok(()), sender, options, &progress);
    let (out, result) = received.join().unwrap();
    result.unwrap();
    assert!(out == stream, "the stream arrived changed");
    let report = sent.unwrap();
    assert_eq!(report.wire_bytes, progress.wire_bytes());
    report
}

fn reseed(stream: &[u8], old: Vec<u8>) -> SendReport {
    reseed_with(stream, OldCopy::new(Cursor::new(old)), patient(), node(false))
}

/// Both ways together.
fn wire(report: &SendReport) -> u64 {
    report.wire_bytes + report.announced_wire_bytes
}

#[test]
fn with_a_lost_base_and_five_percent_changed_since_at_most_eight_percent_go_over_the_wire() {
    for (len, count) in [(16 << 10, 6000), (128 << 10, 800), (1 << 20, 100)] {
        for cache in [false, true] {
            let old = blocks(count, len);
            let (stream, copy) = (plain(&changed(&old, 20)), plain(&old));
            let read = OldCopy::new(Cursor::new(copy));
            let report = reseed_with(&stream, read, patient(), node(cache));
            let SendReport { raw_bytes, wire_bytes, announced_wire_bytes, .. } = report;
            println!(
                "records of {len}: {wire_bytes} and back {announced_wire_bytes} of {raw_bytes}"
            );
            assert!(wire(&report) * 100 <= report.raw_bytes * 8, "{len}: {report:?}");
            // It costs more than what changed, so the figure is of this, not of something else.
            assert!(wire(&report) * 100 >= report.raw_bytes * 5, "{len}: {report:?}");
        }
    }
}

#[test]
fn over_the_lanes_of_two_nodes_it_is_the_same() {
    for lane in [LaneMode::Quic, LaneMode::Tls] {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (a, mut b) = runtime.block_on(paired_over(lane));
        let old = blocks(400, 128 << 10);
        let (stream, copy) = (plain(&changed(&old, 20)), plain(&old));
        let sender =
            runtime.block_on(a.manager.open_bulk(&b.key(), b"a volume", None)).expect("a lane");
        let (_, receiver) = runtime.block_on(b.bulk());
        let received = receiving(receiver, Some(OldCopy::new(Cursor::new(copy))));
        let progress = Progress::default();
        let read = Cursor::new(stream.clone());
        let report = send_stream(read, |_| Ok(()), sender, patient(), &progress).unwrap();
        assert!(received.join().unwrap().0 == stream);
        assert!(wire(&report) * 100 <= report.raw_bytes * 8, "{lane:?}: {report:?}");
    }
}

#[test]
fn sealed_blocks_that_are_truly_the_same_are_found_too() {
    let old = blocks(400, 64 << 10);
    let raw = Features::LARGE_BLOCKS | Features::RAW;
    let report = reseed(&stream_of(&changed(&old, 20), raw), stream_of(&old, raw));
    assert!(wire(&report) * 100 <= report.raw_bytes * 8, "{report:?}");
}

#[test]
fn an_old_copy_with_nothing_in_common_costs_what_a_full_send_does() {
    let stream = plain(&blocks(1000, 64 << 10));
    let other: Vec<Block> =
        blocks(2000, 64 << 10).iter().map(|b| (b.0, b.1, b.2 + 9999, b.3)).collect();
    let report = reseed(&stream, plain(&other));
    assert_eq!(report.saved_bytes, 0);
    assert!(wire(&report) < report.raw_bytes * 101 / 100, "{report:?}");
}

#[test]
fn what_was_removed_inserted_or_cut_is_no_reason_to_send_the_rest() {
    // An old copy with much more between the blocks that stayed than may be announced ahead, and the other way round.
    let big = 1 << 20;
    let of = |object: u64, count: u64, number: u64| -> Vec<Block> {
        (0..count).map(|n| (object, n * big as u64, number + n, big)).collect()
    };
    let (first, last) = (of(1, 20, 0), of(9000, 20, 100));
    let between: Vec<Block> = (2..6).flat_map(|o| of(o, 15, o * 1000)).collect();
    let sparse = [first.clone(), last.clone()].concat();
    let dense = [first.clone(), between, last].concat();
    for (new, old, least) in [(&sparse, &dense, 38), (&dense, &sparse, 38), (&first, &dense, 18)] {
        let report = reseed(&plain(new), plain(old));
        assert!(report.saved_bytes > least * big as u64, "{report:?}");
    }
}

#[test]
fn objects_under_other_numbers_are_found_while_they_are_near() {
    let old = blocks(500, 64 << 10);
    let moved: Vec<Block> = old.iter().map(|(_, at, n, len)| (3, *at + 512, *n, *len)).collect();
    // A volume that was copied elsewhere lies at other places: what is read before them is gone by then.
    let near = moved.iter().map(|(_, at, n, len)| (1, *at, *n, *len)).collect::<Vec<_>>();
    let report = reseed(&plain(&near), plain(&old));
    assert!(report.saved_bytes > 0, "{report:?}");
    reseed(&plain(&moved), plain(&old));
}

#[test]
fn streams_in_any_order_arrive_whole() {
    let old = blocks(600, 64 << 10);
    let backwards: Vec<Block> = old.iter().rev().copied().collect();
    for (new, old) in [(&backwards, &old), (&old, &backwards), (&backwards, &backwards)] {
        reseed(&plain(new), plain(old));
    }
}

/// Fails after so many bytes, as a store does.
struct Breaks(Cursor<Vec<u8>>, u64);

impl Read for Breaks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.0.position() >= self.1 {
            return Err(io::Error::other("the pool is gone"));
        }
        self.0.read(buf)
    }
}

#[test]
fn an_old_copy_that_is_gone_or_breaks_off_or_is_no_stream_leaves_an_ordinary_full_send() {
    let all = blocks(400, 64 << 10);
    let stream = plain(&all);
    let half = stream.len() as u64 / 2;
    let mut torn = stream.clone();
    torn.truncate(stream.len() / 2);
    let mut damaged = stream.clone();
    damaged[stream.len() / 2] ^= 1;
    let gone = reseed_with(&stream, OldCopy::gone(), patient(), node(false));
    assert_eq!(gone.saved_bytes, 0);
    for old in [
        OldCopy::new(Breaks(Cursor::new(stream.clone()), half)),
        OldCopy::new(Cursor::new(torn)),
        OldCopy::new(Cursor::new(damaged)),
    ] {
        let report = reseed_with(&stream, old, patient(), node(false));
        assert!(report.saved_bytes > half * 8 / 10, "{report:?}");
        assert!(report.saved_bytes < half * 12 / 10, "{report:?}");
    }
    for nothing in [Vec::new(), b"no stream".repeat(1000), vec![0; 1 << 20]] {
        assert_eq!(reseed(&stream, nothing).saved_bytes, 0);
    }
}

/// Yields nothing more after so many bytes until it is told to.
struct Stalls(Cursor<Vec<u8>>, u64, Arc<AtomicBool>);

impl Read for Stalls {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.0.position() >= self.1 && !self.2.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let left = usize::try_from(self.1.saturating_sub(self.0.position())).unwrap_or(usize::MAX);
        let len = if left == 0 { buf.len() } else { buf.len().min(left) };
        self.0.read(&mut buf[..len])
    }
}

#[test]
fn an_old_copy_that_stands_still_is_waited_for_only_so_long() {
    let stream = plain(&blocks(200, 64 << 10));
    let over = Arc::new(AtomicBool::new(false));
    let half = stream.len() as u64 / 2;
    let old = OldCopy::new(Stalls(Cursor::new(stream.clone()), half, over.clone()));
    let options = SendOptions { reseed: Some(Duration::from_millis(300)), ..patient() };
    let report = reseed_with(&stream, old, options, node(false));
    assert!(report.saved_bytes > 0 && report.saved_bytes < half * 12 / 10, "{report:?}");
    over.store(true, Ordering::SeqCst);
}

#[test]
fn a_third_reseed_at_once_goes_without() {
    let receiver = node(false);
    let over = Arc::new(AtomicBool::new(false));
    let stream = plain(&blocks(100, 64 << 10));
    let begin = || {
        let (a, b, _) = memory::pair();
        let old = OldCopy::new(Stalls(Cursor::new(stream.clone()), 1 << 20, over.clone()));
        let there = BulkReceiver::over(b, receiver.clone()).from_peer(SENDER);
        let received = receiving(there, Some(old));
        let here = BulkSender::over(a, node(false)).to_peer(RECEIVER);
        let progress = Arc::new(Progress::default());
        let (read, watched) = (Cursor::new(stream.clone()), progress.clone());
        let sent = thread::spawn(move || send_stream(read, |_| Ok(()), here, patient(), &watched));
        (received, sent, progress)
    };
    let first = [begin(), begin()];
    let started = std::time::Instant::now();
    while first.iter().any(|(_, _, progress)| !progress.deduplicates()) {
        assert!(started.elapsed() < PATIENCE, "no blocks were offered");
        thread::yield_now();
    }
    let report = reseed_with(
        &stream,
        OldCopy::new(Cursor::new(stream.clone())),
        patient(),
        receiver.clone(),
    );
    assert_eq!(report.saved_bytes, 0, "no place was left");
    over.store(true, Ordering::SeqCst);
    for (received, sent, _) in first {
        assert!(sent.join().unwrap().unwrap().saved_bytes > 0);
        assert!(received.join().unwrap().0 == stream);
    }
    let again =
        reseed_with(&stream, OldCopy::new(Cursor::new(stream.clone())), patient(), receiver);
    assert!(again.saved_bytes > 0, "the places came back");
}

// ---- the golden streams ---------------------------------------------------------------------------

/// The places of the blocks of a stream; a package has several.
fn places(stream: &[u8]) -> Vec<Vec<Place>> {
    let (mut reader, mut input) = (Reader::new(), stream);
    let mut all = Vec::new();
    while let Some(item) = reader.next(&mut input).unwrap() {
        if matches!(item.record, Record::Begin(_)) {
            all.push(Vec::new());
        }
        if let (Some(place), Some(last)) = (reseed::place(&item.record), all.last_mut()) {
            last.push(place);
        }
    }
    all
}

#[test]
fn real_streams_have_their_blocks_in_the_order_of_their_places() {
    let mut seen = 0;
    for name in golden_names() {
        for places in places(&golden(&name)) {
            seen += places.len();
            let wrong = places.windows(2).find(|two| two[0] >= two[1]);
            assert_eq!(wrong, None, "{name}");
        }
    }
    assert!(seen > 1000, "{seen}");
}

#[test]
fn every_real_stream_is_reseeded_from_itself_and_from_another() {
    for name in golden_names() {
        let stream = golden(&name);
        reseed(&stream, stream.clone());
        reseed(&stream, golden("full-plain"));
    }
    for (new, old) in
        [("zvol-full", "zvol-full"), ("full-plain", "full-plain"), ("raw-full", "raw-full")]
    {
        let report = reseed(&golden(new), golden(old));
        assert!(report.saved_bytes * 2 > report.raw_bytes, "{new}: {report:?}");
    }
}

// ---- any difference -------------------------------------------------------------------------------

fn dataset() -> impl Strategy<Value = Vec<Block>> {
    let object =
        (1_usize..40, prop::sample::select(vec![MIN_BLOCK, 128 << 10, MAX_SEED - 100_000]));
    prop::collection::vec(object, 1..6).prop_map(|objects| {
        let mut all = Vec::new();
        for (at, (count, len)) in objects.into_iter().enumerate() {
            let count = count.min((24 << 20) / len) as u64;
            let object = at as u64 * 3 + 1;
            all.extend((0..count).map(|n| (object, n * len as u64, object << 32 | n, len)));
        }
        all
    })
}

#[derive(Debug, Clone)]
enum Edit {
    Change(prop::sample::Index),
    Remove(prop::sample::Index, usize),
    Insert(prop::sample::Index),
    Truncate(prop::sample::Index),
    Swap(prop::sample::Index, prop::sample::Index),
    Twice(prop::sample::Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = || any::<prop::sample::Index>();
    prop_oneof![
        at().prop_map(Edit::Change),
        (at(), 1_usize..30).prop_map(|(at, count)| Edit::Remove(at, count)),
        at().prop_map(Edit::Insert),
        at().prop_map(Edit::Truncate),
        (at(), at()).prop_map(|(a, b)| Edit::Swap(a, b)),
        at().prop_map(Edit::Twice),
    ]
}

fn edited(mut blocks: Vec<Block>, edits: &[Edit]) -> Vec<Block> {
    for (at, edit) in (0..).zip(edits) {
        if blocks.is_empty() {
            break;
        }
        let len = blocks.len();
        match edit {
            Edit::Change(index) => blocks[index.index(len)].2 = u64::MAX - at,
            Edit::Remove(index, count) => {
                let from = index.index(len);
                blocks.drain(from..(from + count).min(len));
            }
            Edit::Insert(index) => {
                let from = index.index(len);
                let (object, offset, _, len) = blocks[from];
                blocks.insert(from, (object + 1, offset, u64::MAX / 2 - at, len));
            }
            Edit::Truncate(index) => blocks.truncate(index.index(len)),
            Edit::Swap(a, b) => blocks.swap(a.index(len), b.index(len)),
            Edit::Twice(index) => blocks.insert(index.index(len), blocks[index.index(len)]),
        }
    }
    blocks
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_differs_the_stream_arrives_and_nobody_gets_stuck(
        old in dataset(),
        edits in prop::collection::vec(edit(), 0..12),
        forth in any::<bool>(),
    ) {
        let new = edited(old.clone(), &edits);
        let (new, old) = if forth { (new, old) } else { (old, new) };
        let report = reseed(&plain(&new), plain(&old));
        let in_order = |blocks: &[Block]| blocks.is_sorted_by_key(|b| (b.0, b.1));
        if edits.is_empty() && in_order(&new) {
            let bytes: usize = new.iter().map(|b| b.3).sum();
            prop_assert_eq!(report.saved_bytes, bytes as u64);
        }
    }
}
