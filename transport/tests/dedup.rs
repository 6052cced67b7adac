//! Dedup over real lanes: what shrinks, what is asked for, and what no peer may do.
#![allow(missing_docs)]

mod common;

use std::collections::VecDeque;
use std::io::{self, Cursor, Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use common::rogue::Rogue;
use common::{PATIENCE, blocks_stream, paired};
use flocker_transport::bulk::codec::{Codec, Encoded};
use flocker_transport::bulk::dedup::cache::MIN_CACHE;
use flocker_transport::bulk::dedup::{CacheOptions, DedupError, MIN_CREDIT, recipe};
use flocker_transport::frame::bulk::{Done, End};
use flocker_transport::frame::dedup::{CACHE_LEN, CacheOffer, Missing, Part, Recipe, Resolved};
use flocker_transport::frame::{self, FrameError, FrameType};
use flocker_transport::lane::memory;
use flocker_transport::{
    BulkReceiver, BulkSender, Fingerprint, Progress, ReceiveError, Refusal, Resources, SendError,
    SendOptions, SendReport, receive_stream, send_stream,
};

const BLOCK: usize = 64 << 10;
const SENDER: Fingerprint = Fingerprint([1; 32]);
const RECEIVER: Fingerprint = Fingerprint([2; 32]);
const OTHER: Fingerprint = Fingerprint([3; 32]);

/// A node with a cache, and the directory that goes when it does.
struct Store {
    resources: Arc<Resources>,
    _dir: tempfile::TempDir,
}

impl Store {
    fn new(bytes: u64) -> Self {
        let (resources, dir) = (Resources::start().unwrap(), tempfile::tempdir().unwrap());
        let options = CacheOptions { directory: dir.path().join("dedup"), bytes };
        resources.dedup().keep_caches(options).unwrap();
        Self { resources, _dir: dir }
    }
}

/// Reads the first record at once and the rest when the receiver has offered its cache.
struct Patient {
    inner: Cursor<Vec<u8>>,
    progress: Arc<Progress>,
    wait: bool,
}

impl Read for Patient {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let started = Instant::now();
        while self.wait && !self.progress.deduplicates() {
            assert!(started.elapsed() < PATIENCE, "no cache was offered");
            thread::yield_now();
        }
        self.inner.read(buf)
    }
}

type Received = (Vec<u8>, Result<(), ReceiveError>);

fn receiving(mut receiver: BulkReceiver) -> thread::JoinHandle<Received> {
    thread::spawn(move || {
        let mut out = Vec::new();
        let result = receive_stream(&mut receiver, &mut out, &Progress::default()).map(drop);
        let refusal = |e: &ReceiveError| Refusal { code: 7, reason: e.to_string() };
        let _ = receiver.finish(result.as_ref().map(drop).map_err(refusal));
        (out, result)
    })
}

/// Sends `stream` and proves that it arrives as it is.
fn transfer(stream: &[u8], sender: BulkSender, receiver: BulkReceiver, wait: bool) -> SendReport {
    let received = receiving(receiver);
    let progress = Arc::new(Progress::default());
    let inner = Cursor::new(stream.to_vec());
    let read = Patient { inner, progress: progress.clone(), wait };
    let sent = send_stream(read, |_| Ok(()), sender, SendOptions::default(), &progress);
    let (out, result) = received.join().unwrap();
    result.unwrap();
    let report = sent.unwrap();
    assert!(out == stream, "the stream arrived changed");
    assert_eq!(report.saved_bytes, progress.saved_bytes());
    assert_eq!(report.wire_bytes, progress.wire_bytes());
    report
}

/// The same from one node to another, in memory.
fn over_memory(stream: &[u8], from: &Store, to: &Store, sender: Fingerprint) -> SendReport {
    let (a, b, _) = memory::pair();
    let here = BulkSender::over(a, from.resources.clone()).to_peer(RECEIVER);
    let there = BulkReceiver::over(b, to.resources.clone()).from_peer(sender);
    transfer(stream, here, there, true)
}

/// `count` blocks of noise, numbered from `first`.
fn unique(first: u64, count: u64) -> Vec<u8> {
    blocks_stream(first..first + count, BLOCK)
}

#[test]
fn a_stream_whose_second_half_repeats_its_first_shrinks_by_nearly_half() {
    let (from, to) = (Store::new(64 << 20), Store::new(64 << 20));
    let stream = blocks_stream((0..256).chain(0..256), BLOCK);
    let report = over_memory(&stream, &from, &to, SENDER);
    assert!(report.wire_bytes < report.raw_bytes * 55 / 100, "{report:?}");
    assert!(report.saved_bytes > report.raw_bytes * 45 / 100, "{report:?}");
}

#[test]
fn copies_next_to_each_other_are_found_before_the_receiver_has_resolved_the_first() {
    let (from, to) = (Store::new(64 << 20), Store::new(64 << 20));
    let stream = blocks_stream((0..256).flat_map(|n| [n, n]), BLOCK);
    let report = over_memory(&stream, &from, &to, SENDER);
    assert!(report.wire_bytes < report.raw_bytes * 55 / 100, "{report:?}");
}

#[test]
fn a_second_transfer_refers_to_what_the_first_brought() {
    let (from, to) = (Store::new(64 << 20), Store::new(64 << 20));
    let stream = unique(0, 256);
    let first = over_memory(&stream, &from, &to, SENDER);
    assert_eq!(first.saved_bytes, 0);
    let second = over_memory(&stream, &from, &to, SENDER);
    // Its first MiB goes as it is.
    assert!(second.wire_bytes < second.raw_bytes / 10, "{second:?}");
}

#[test]
fn a_receiver_that_restarted_has_another_cache_and_nothing_is_asked_for() {
    let (from, to) = (Store::new(64 << 20), Store::new(64 << 20));
    let stream = unique(0, 128);
    over_memory(&stream, &from, &to, SENDER);
    let restarted = Store::new(64 << 20);
    let report = over_memory(&stream, &from, &restarted, SENDER);
    assert_eq!(report.saved_bytes, 0);
    assert!(report.wire_bytes < report.raw_bytes + report.batches * 1000, "{report:?}");
    let again = over_memory(&stream, &from, &restarted, SENDER);
    assert!(again.saved_bytes > again.raw_bytes / 2);
}

#[test]
fn a_sender_that_restarted_knows_nothing_and_learns_again() {
    let (from, to) = (Store::new(64 << 20), Store::new(64 << 20));
    let stream = unique(0, 128);
    over_memory(&stream, &from, &to, SENDER);
    let restarted = Store::new(64 << 20);
    assert_eq!(over_memory(&stream, &restarted, &to, SENDER).saved_bytes, 0);
    let again = over_memory(&stream, &restarted, &to, SENDER);
    assert!(again.saved_bytes > again.raw_bytes / 2);
}

#[test]
fn a_cache_that_lets_go_behind_the_senders_back_is_asked_about_and_nothing_is_wrong() {
    // Two senders with the same identity: each fills the cache behind the other's back.
    let (one, two, to) = (Store::new(1 << 20), Store::new(1 << 20), Store::new(4 << 20));
    let stream = unique(0, 48);
    over_memory(&stream, &one, &to, SENDER);
    over_memory(&unique(1000, 100), &two, &to, SENDER);
    let report = over_memory(&stream, &one, &to, SENDER);
    assert_eq!(report.saved_bytes, 0);
    // Everything was asked for and sent, each block once.
    assert!(report.wire_bytes > report.raw_bytes * 99 / 100, "{report:?}");
    assert!(report.wire_bytes < report.raw_bytes + (report.batches + 48) * 1000, "{report:?}");
    let again = over_memory(&stream, &one, &to, SENDER);
    assert!(again.saved_bytes > again.raw_bytes / 2, "what was missing is known again: {again:?}");
}

#[test]
fn peers_share_nothing() {
    let (from, to) = (Store::new(64 << 20), Store::new(64 << 20));
    let stream = unique(0, 128);
    over_memory(&stream, &from, &to, SENDER);
    let report = over_memory(&stream, &from, &to, OTHER);
    assert_eq!(report.saved_bytes, 0, "another peer has another cache");
    // Not even by guessing: what a peer never sent is not found for it.
    let cache = block_of(0);
    let missing = ask_for(&to, OTHER_STILL, *blake3::hash(&cache).as_bytes());
    assert!(missing, "a peer learns whether another one sent a block");
}

const OTHER_STILL: Fingerprint = Fingerprint([4; 32]);

#[test]
fn a_changed_grant_begins_with_an_empty_cache() {
    let (from, to) = (Store::new(64 << 20), Store::new(64 << 20));
    let stream = unique(0, 128);
    to.resources.dedup().set_grant(SENDER, "tank/a");
    over_memory(&stream, &from, &to, SENDER);
    to.resources.dedup().set_grant(SENDER, "tank/a");
    assert!(over_memory(&stream, &from, &to, SENDER).saved_bytes > 0);
    to.resources.dedup().set_grant(SENDER, "tank/b");
    assert_eq!(over_memory(&stream, &from, &to, SENDER).saved_bytes, 0);
}

#[test]
fn a_node_without_a_cache_receives_as_before() {
    let from = Store::new(64 << 20);
    let (a, b, _) = memory::pair();
    let here = BulkSender::over(a, from.resources.clone()).to_peer(RECEIVER);
    let there = BulkReceiver::over(b, Resources::start().unwrap()).from_peer(SENDER);
    let stream = blocks_stream((0..64).chain(0..64), BLOCK);
    assert_eq!(transfer(&stream, here, there, false).saved_bytes, 0);
}

#[test]
fn dedup_that_saves_nothing_turns_itself_off() {
    let (from, to) = (Store::new(32 << 20), Store::new(32 << 20));
    let copies = blocks_stream((0..100).chain(0..100), BLOCK);
    assert!(over_memory(&copies, &from, &to, SENDER).saved_bytes > 0);
    // More than two windows of 256 MiB.
    assert_eq!(over_memory(&unique(1000, 8400), &from, &to, SENDER).saved_bytes, 0);
    assert_eq!(over_memory(&copies, &from, &to, SENDER).saved_bytes, 0, "it is still on");
}

#[test]
fn a_raw_stream_is_left_alone() {
    let (from, to) = (Store::new(64 << 20), Store::new(64 << 20));
    let stream = common::blocks_of(
        (0..64).chain(0..64),
        BLOCK,
        zfs_stream::Features::LARGE_BLOCKS | zfs_stream::Features::RAW,
    );
    let report = over_memory(&stream, &from, &to, SENDER);
    assert_eq!(report.saved_bytes, 0);
}

#[test]
fn records_of_all_sizes_arrive_twice() {
    for block in [512, 16 << 10, 128 << 10, 1 << 20, 2 << 20, 4 << 20, 16 << 20] {
        let (from, to) = (Store::new(256 << 20), Store::new(256 << 20));
        let count = ((8 << 20) / block as u64).clamp(2, 200);
        let stream = blocks_stream(0..count, block);
        over_memory(&stream, &from, &to, SENDER);
        let report = over_memory(&stream, &from, &to, SENDER);
        let saves = (16 << 10..=2 << 20).contains(&block);
        assert_eq!(report.saved_bytes > 0, saves, "{block}: {report:?}");
    }
}

#[test]
fn many_transfers_at_once_with_a_tiny_cache_all_arrive() {
    let (from, to) = (Arc::new(Store::new(1 << 20)), Arc::new(Store::new(MIN_CACHE)));
    let threads: Vec<_> = (0..6)
        .map(|n| {
            let (from, to) = (from.clone(), to.clone());
            thread::spawn(move || {
                let numbers = (0..80).map(move |i| (i * 7 + n * 5) % 30);
                let stream = blocks_stream(numbers, 32 << 10);
                let (a, b, _) = memory::pair();
                let here = BulkSender::over(a, from.resources.clone()).to_peer(RECEIVER);
                let there = BulkReceiver::over(b, to.resources.clone()).from_peer(SENDER);
                transfer(&stream, here, there, false);
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn over_quic_the_wire_shrinks_too() {
    let (a, mut b) = paired().await;
    let dir = tempfile::tempdir().unwrap();
    let options = CacheOptions { directory: dir.path().into(), bytes: 256 << 20 };
    b.manager.resources().dedup().keep_caches(options).unwrap();
    let stream = Arc::new(blocks_stream((0..256).chain(0..256), BLOCK));
    for round in 0..2 {
        let sender = a.manager.open_bulk(&b.key(), b"x", None).await.unwrap();
        let (_, receiver) = b.bulk().await;
        let stream = stream.clone();
        let sending = move || transfer(&stream, sender, receiver, true);
        let report = tokio::task::spawn_blocking(sending).await.unwrap();
        let percent = if round == 0 { 55 } else { 10 };
        assert!(report.wire_bytes < report.raw_bytes * percent / 100, "{round}: {report:?}");
    }
}

fn block_of(number: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut block);
    block
}

/// A batch that refers to one block, with a few bytes before it.
fn referring(seq: u64, hash: [u8; 32], len: usize) -> Encoded {
    let parts = vec![Part::Run { len: 4 }, Part::Reference { len, hash }];
    let plan = Recipe::new(parts, 4 + len).unwrap();
    let raw = [b"head".to_vec(), vec![0; len]].concat();
    let seal = recipe::seal(&raw, plan.places(), &[hash]);
    Codec::new().unwrap().encode_recipe(seq, &plan, seal, b"head".to_vec(), None)
}

/// A rogue sender's transfer to this node.
fn rogue_sender(to: &Store, peer: Fingerprint) -> (Rogue, thread::JoinHandle<Received>) {
    let (a, b, _) = memory::pair();
    let received = receiving(BulkReceiver::over(b, to.resources.clone()).from_peer(peer));
    let mut rogue = Rogue::on(a);
    assert_eq!(rogue.hear().unwrap().0, FrameType::Cache);
    (rogue, received)
}

/// Whether a reference to this block leads to nothing.
fn ask_for(to: &Store, peer: Fingerprint, hash: [u8; 32]) -> bool {
    let (mut rogue, received) = rogue_sender(to, peer);
    rogue.batch(&referring(0, hash, BLOCK));
    let (kind, _) = rogue.hear().unwrap();
    drop(rogue);
    let _ = received.join().unwrap();
    kind == FrameType::Missing
}

/// How a transfer ended; nobody hears its answer.
fn ended(rogue: Rogue, received: thread::JoinHandle<Received>) -> Received {
    drop(rogue);
    received.join().unwrap()
}

fn dedup_error(rogue: Rogue, received: thread::JoinHandle<Received>) -> DedupError {
    let (out, result) = ended(rogue, received);
    assert!(out.is_empty(), "something was written");
    match result {
        Err(ReceiveError::Dedup { source }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_sender_that_refers_to_nothing_and_cannot_supply_it_is_named() {
    let to = Store::new(64 << 20);
    let (mut rogue, received) = rogue_sender(&to, SENDER);
    rogue.batch(&referring(0, [9; 32], BLOCK));
    let (kind, payload) = rogue.hear().unwrap();
    assert_eq!(kind, FrameType::Missing);
    assert_eq!(Missing::decode(&payload).unwrap(), Missing { seq: 0, parts: vec![1] });
    let end = End { raw_bytes: 4 + BLOCK as u64, batches: 1, digest: [0; 32] };
    rogue.say(FrameType::End, &end.encode());
    assert_eq!(rogue.hear().unwrap().0, FrameType::Failed, "the sender is told");
    assert_eq!(dedup_error(rogue, received), DedupError::NotSupplied { seq: 0 });
}

#[test]
fn a_sender_that_supplies_other_bytes_writes_nothing() {
    let to = Store::new(64 << 20);
    let (mut rogue, received) = rogue_sender(&to, SENDER);
    rogue.batch(&referring(0, *blake3::hash(&block_of(1)).as_bytes(), BLOCK));
    assert_eq!(rogue.hear().unwrap().0, FrameType::Missing);
    rogue.say(FrameType::Blocks, &[&0_u64.to_le_bytes()[..], &block_of(2)].concat());
    let (out, result) = ended(rogue, received);
    assert!(matches!(result, Err(ReceiveError::Batch { .. })), "{result:?}");
    assert!(out.is_empty());
}

#[test]
fn blocks_that_were_not_asked_for_or_are_of_another_length_end_the_transfer() {
    for len in [BLOCK, BLOCK + 1, 0] {
        let to = Store::new(64 << 20);
        let (mut rogue, received) = rogue_sender(&to, SENDER);
        if len != BLOCK {
            rogue.batch(&referring(0, [9; 32], BLOCK));
            assert_eq!(rogue.hear().unwrap().0, FrameType::Missing);
        }
        rogue.say(FrameType::Blocks, &[&0_u64.to_le_bytes()[..], &vec![0; len]].concat());
        assert_eq!(dedup_error(rogue, received), DedupError::NotAsked { seq: 0, len });
    }
}

#[test]
fn a_sender_that_goes_on_without_supplying_is_stopped_at_its_credit() {
    let to = Store::new(64 << 20);
    let (mut rogue, received) = rogue_sender(&to, SENDER);
    rogue.batch(&referring(0, [9; 32], BLOCK));
    for seq in 1..200 {
        rogue.batch(&referring(seq, [9; 32], BLOCK));
    }
    let error = dedup_error(rogue, received);
    assert!(matches!(error, DedupError::OverCredit { seq: 30..=60, .. }), "{error}");
}

#[test]
fn a_reference_with_a_lying_length_is_missing_and_then_wrong() {
    let to = Store::new(64 << 20);
    let from = Store::new(64 << 20);
    over_memory(&unique(0, 64), &from, &to, SENDER);
    let hash = *blake3::hash(&block_of(63)).as_bytes();
    assert!(!ask_for(&to, SENDER, hash), "with its own length it is there");
    let (mut rogue, received) = rogue_sender(&to, SENDER);
    rogue.batch(&referring(0, hash, BLOCK / 2));
    assert_eq!(rogue.hear().unwrap().0, FrameType::Missing);
    let half = &block_of(63)[..BLOCK / 2];
    rogue.say(FrameType::Blocks, &[&0_u64.to_le_bytes()[..], half].concat());
    let (out, result) = ended(rogue, received);
    assert!(matches!(result, Err(ReceiveError::Batch { .. })), "{result:?}");
    assert!(out.is_empty());
}

#[test]
fn a_wrong_seal_writes_nothing() {
    let to = Store::new(64 << 20);
    let from = Store::new(64 << 20);
    over_memory(&unique(0, 64), &from, &to, SENDER);
    let (mut rogue, received) = rogue_sender(&to, SENDER);
    let good = referring(0, *blake3::hash(&block_of(63)).as_bytes(), BLOCK);
    rogue.batch(&Encoded { body: Bytes::from_static(b"hexd"), ..good });
    let (out, result) = ended(rogue, received);
    assert!(matches!(result, Err(ReceiveError::Batch { .. })), "{result:?}");
    assert!(out.is_empty());
}

#[test]
fn a_recipe_for_a_receiver_that_offered_no_cache_is_refused() {
    let (a, b, _) = memory::pair();
    let received = receiving(BulkReceiver::over(b, Resources::start().unwrap()));
    let mut rogue = Rogue::on(a);
    rogue.batch(&referring(0, [9; 32], BLOCK));
    assert_eq!(dedup_error(rogue, received), DedupError::NotOffered { seq: 0 });
}

/// A sender of this node, and a receiver that says what it is told, having offered a cache.
fn rogue_receiver() -> (Rogue, thread::JoinHandle<Result<SendReport, SendError>>) {
    let (a, b, _) = memory::pair();
    let sender = BulkSender::over(a, Resources::start().unwrap()).to_peer(RECEIVER);
    let progress = Arc::new(Progress::default());
    let inner = Cursor::new(blocks_stream((0..16).flat_map(|n| [n, n]), BLOCK));
    let read = Patient { inner, progress: progress.clone(), wait: true };
    let sending = thread::spawn(move || {
        send_stream(read, |_| Ok(()), sender, SendOptions::default(), &progress)
    });
    let mut rogue = Rogue::on(b);
    let credit_bytes = u32::try_from(MIN_CREDIT).unwrap();
    let offer = CacheOffer { id: [5; 16], window_bytes: 1 << 30, credit_bytes };
    rogue.say(FrameType::Cache, &offer.encode());
    (rogue, sending)
}

/// Hears batches until one that refers to something, and says which, with its first reference.
fn until_reference(rogue: &mut Rogue) -> (u64, u16) {
    loop {
        let (kind, payload) = rogue.hear().expect("batches");
        assert_eq!(kind, FrameType::Batch);
        let (head, body) = payload.split_first_chunk().unwrap();
        let head = frame::bulk::BatchHeader::decode(head, body.len()).unwrap();
        if head.encoding.has_recipe() {
            let recipe = Recipe::decode(&body[..head.table_len], head.raw_len).unwrap();
            let reference = |part: &Part| matches!(part, Part::Reference { .. });
            if let Some(at) = recipe.parts().iter().position(reference) {
                return (head.seq, u16::try_from(at).unwrap());
            }
        }
    }
}

fn send_error(
    rogue: Rogue,
    sending: thread::JoinHandle<Result<SendReport, SendError>>,
) -> DedupError {
    let result = sending.join().unwrap();
    drop(rogue);
    match result {
        Err(SendError::Dedup { source }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_receiver_gets_what_it_misses_once_and_asking_again_ends_the_transfer() {
    let (mut rogue, sending) = rogue_receiver();
    let (seq, part) = until_reference(&mut rogue);
    let missing = Missing { seq, parts: vec![part] }.encode();
    rogue.say(FrameType::Missing, &missing);
    let blocks = loop {
        let (kind, payload) = rogue.hear().expect("blocks");
        if kind == FrameType::Blocks {
            break payload;
        }
    };
    assert_eq!(blocks.len(), 8 + BLOCK);
    assert_eq!(blocks[..8], seq.to_le_bytes());
    rogue.say(FrameType::Missing, &missing);
    assert_eq!(send_error(rogue, sending), DedupError::AskedTwice { seq });
}

#[test]
fn a_receiver_that_misses_what_was_never_referred_to_ends_the_transfer() {
    for part in [0, 999] {
        let (mut rogue, sending) = rogue_receiver();
        let (seq, _) = until_reference(&mut rogue);
        rogue.say(FrameType::Missing, &Missing { seq, parts: vec![part] }.encode());
        assert_eq!(send_error(rogue, sending), DedupError::NotReferenced { seq });
    }
    let (mut rogue, sending) = rogue_receiver();
    until_reference(&mut rogue);
    rogue.say(FrameType::Missing, &Missing { seq: 77, parts: vec![1] }.encode());
    assert_eq!(send_error(rogue, sending), DedupError::NotReferenced { seq: 77 });
}

#[test]
fn a_receiver_that_resolves_what_it_was_not_sent_or_offers_twice_ends_the_transfer() {
    let (mut rogue, sending) = rogue_receiver();
    until_reference(&mut rogue);
    rogue.say(FrameType::Resolved, &Resolved { seq: 99 }.encode());
    assert_eq!(send_error(rogue, sending), DedupError::NotSent { seq: 99 });
    let (mut rogue, sending) = rogue_receiver();
    until_reference(&mut rogue);
    let offer = CacheOffer { id: [6; 16], window_bytes: 1 << 30, credit_bytes: 10 << 20 };
    assert_eq!(offer.encode().len(), CACHE_LEN);
    rogue.say(FrameType::Cache, &offer.encode());
    assert_eq!(send_error(rogue, sending), DedupError::OfferedTwice);
}

#[test]
fn a_receiver_that_never_resolves_stops_the_sender_within_its_memory() {
    let (mut rogue, sending) = rogue_receiver();
    until_reference(&mut rogue);
    // The rest of the stream is 2 MiB: more than the credit leaves is not sent, and no end.
    let mut heard = VecDeque::new();
    rogue
        .say(FrameType::Failed, &frame::bulk::Failed { code: 1, reason: "enough".into() }.encode());
    while let Some((kind, _)) = rogue.hear() {
        heard.push_back(kind);
    }
    assert!(!heard.contains(&FrameType::End), "{heard:?}");
    assert!(matches!(sending.join().unwrap(), Err(SendError::Refused { code: 1, .. })));
}

#[test]
fn without_a_peer_the_frames_of_dedup_may_not_come() {
    let (a, b, _) = memory::pair();
    let sender = BulkSender::over(a, Resources::start().unwrap());
    let mut rogue = Rogue::on(b);
    rogue.say(FrameType::Resolved, &Resolved { seq: 0 }.encode());
    let stream = Cursor::new(unique(0, 4));
    let (options, progress) = (SendOptions::default(), Progress::default());
    let error = send_stream(stream, |_| Ok(()), sender, options, &progress).unwrap_err();
    let SendError::Protocol { source } = &error else { panic!("{error}") };
    assert!(matches!(source, FrameError::Unexpected { found: FrameType::Resolved, .. }));
}

#[test]
fn a_done_in_between_is_no_answer() {
    let (mut rogue, sending) = rogue_receiver();
    until_reference(&mut rogue);
    rogue.say(FrameType::Done, &Done { raw_bytes: 1 }.encode());
    assert!(matches!(sending.join().unwrap(), Err(SendError::Protocol { .. })));
}

#[test]
fn a_slow_writer_and_a_forgetful_cache_together_do_not_get_stuck() {
    struct Slow(Vec<u8>);
    impl Write for Slow {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            thread::sleep(std::time::Duration::from_millis(2));
            self.0.extend_from_slice(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (from, to) = (Store::new(1 << 20), Store::new(MIN_CACHE));
    // Blocks return when the cache has just let go of them, and neighbours repeat.
    let stream = blocks_stream((0..600).map(|n| n / 2 % 18 + n / 100 * 3), BLOCK);
    let (a, b, _) = memory::pair();
    let sender = BulkSender::over(a, from.resources.clone()).to_peer(RECEIVER);
    let mut receiver = BulkReceiver::over(b, to.resources.clone()).from_peer(SENDER);
    let received = thread::spawn(move || {
        let mut out = Slow(Vec::new());
        receive_stream(&mut receiver, &mut out, &Progress::default()).unwrap();
        receiver.finish(Ok(())).unwrap();
        out.0
    });
    let progress = Progress::default();
    let options = SendOptions::default();
    send_stream(Cursor::new(stream.clone()), |_| Ok(()), sender, options, &progress).unwrap();
    assert!(received.join().unwrap() == stream);
}
