//! The body of the fuzz target `dedup`: both sides of dedup without threads, in any order of steps, with
//! crashes, lost connections, rotten disks, caches that let go, and peers that lie.
//!
//! Owns: the world in which the two sides meet, and what must hold there: what is written is always the
//! beginning of what was sent; with honest peers nothing ever fails, and everything arrives.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use flocker_core::ids::Fingerprint;

use crate::bulk::budget::{Account, Budget, Held, Limits};
use crate::bulk::codec::{BatchError, Codec, Encoded};
use crate::bulk::cut::Batch;
use crate::bulk::dedup::cache::{Cache, MIN_CACHE};
use crate::bulk::dedup::receiving::{Assembly, Blocks, Resolving, Unpacked, assemble};
use crate::bulk::dedup::sending::Referring;
use crate::bulk::dedup::{Dedup, DedupError, MIN_CREDIT};
use crate::bulk::reseed::held::Held as OldBlocks;
use crate::bulk::reseed::{PATIENCE, Place, SEED_WINDOW};
use crate::cancel::Cancel;
use crate::frame::bulk::{BATCH_HEADER_LEN, BatchHeader};
use crate::frame::dedup::{CacheOffer, MIN_BLOCK, Missing, Recipe, Resolved, batch_cost};
use crate::frame::reseed::{Seed, Seeds};
use crate::frame::{FrameError, HEADER_LEN};

const PEER: Fingerprint = Fingerprint([7; 32]);

/// Different blocks: few, so that they return.
const POOL: u8 = 24;

/// One step. Each input byte is one; the next bytes are what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// The sender packs a batch and sends it, unless one waits for credit.
    Send,
    /// The receiver's lane thread takes a frame.
    Take,
    /// The receiver's writer makes a step.
    Write,
    /// The sender hears a frame.
    Hear,
    /// The sender sends blocks that it owes.
    Supply,
    /// The receiver reads a block of an old copy, and announces what it has read.
    ReadOld,
    /// The connection is lost; the transfer starts again, with an old copy or without.
    Cut,
    /// The sender crashes.
    CrashSender,
    /// The receiver crashes.
    CrashReceiver,
    /// Other transfers of the pair fill the cache.
    Fill,
    /// The cache's disk rots.
    Rot,
    /// A frame of the receiver is replaced by a lie.
    LieToSender,
    /// A frame of the sender is damaged or replaced.
    LieToReceiver,
}

impl Op {
    fn from_byte(byte: u8) -> Self {
        match byte {
            0..=71 => Self::Send,
            72..=79 => Self::ReadOld,
            80..=139 => Self::Take,
            140..=189 => Self::Write,
            190..=229 => Self::Hear,
            230..=239 => Self::Supply,
            240..=241 => Self::Cut,
            242..=243 => Self::CrashSender,
            244..=245 => Self::CrashReceiver,
            246..=249 => Self::Fill,
            250..=251 => Self::Rot,
            252..=253 => Self::LieToSender,
            254..=255 => Self::LieToReceiver,
        }
    }
}

/// What happened, so that a test can see that everything does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Batches written.
    pub written: u64,
    /// Batches that held references.
    pub referring: u64,
    /// Times that blocks were asked for.
    pub asked: u64,
    /// Times that a batch had to wait for credit.
    pub waited: u64,
    /// Transfers that a lie ended.
    pub refused: u64,
    /// Transfers that arrived whole.
    pub whole: u64,
}

enum Frame {
    Batch { head: Bytes, body: Vec<u8> },
    Blocks { seq: u64, bytes: Vec<u8> },
    Passed(Place),
}

/// What the receiver's writer takes, in order.
enum Piece {
    Batch { seq: u64, recipe: bool, unpacked: Unpacked },
    Passed(Place),
}

/// Why a side ends the transfer.
#[derive(Debug)]
#[expect(dead_code, reason = "they are printed")]
enum Failure {
    Dedup(DedupError),
    Frame(FrameError),
    Batch(BatchError),
}

impl From<DedupError> for Failure {
    fn from(error: DedupError) -> Self {
        Self::Dedup(error)
    }
}

impl From<FrameError> for Failure {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<BatchError> for Failure {
    fn from(error: BatchError) -> Self {
        Self::Batch(error)
    }
}

/// One transfer: both sides, and what is between them.
struct Transfer {
    referring: Referring,
    resolving: Resolving,
    sent: Vec<u8>,
    written: Vec<u8>,
    next_seq: u64,
    waiting: Option<(Encoded, Held)>,
    to_receiver: VecDeque<Frame>,
    to_sender: VecDeque<(u8, Vec<u8>)>,
    pieces: VecDeque<Piece>,
    /// What is held of an old copy, where there is one, and how many blocks of it were read.
    old: Option<(Arc<OldBlocks>, u64)>,
    /// Blocks sent.
    blocks: u64,
    /// Where the blocks of the batch begin that waits.
    from: Option<Place>,
    asking: Option<Assembly>,
    supplied: Option<Vec<u8>>,
    /// Somebody lied: it may end early, but not wrongly.
    lied: bool,
}

struct World<'a> {
    input: std::slice::Iter<'a, u8>,
    codec: Codec,
    account: Account,
    here: Arc<Dedup>,
    cache: Arc<Cache>,
    transfer: Transfer,
    junk: u64,
    /// The next transfer has an old copy.
    old: bool,
    stats: Stats,
}

/// Runs one input through both sides.
///
/// # Panics
/// When one of our promises does not hold, which is what the fuzzer looks for.
pub fn fuzz_dedup(data: &[u8]) -> Stats {
    let mut world = World::new(data);
    while let Some(byte) = world.input.next().copied() {
        let step = world.step(Op::from_byte(byte));
        world.judge(step);
    }
    world.drain();
    world.stats
}

fn cache() -> Arc<Cache> {
    Arc::new(Cache::create(&std::env::temp_dir(), MIN_CACHE).expect("a file"))
}

fn block(number: u64) -> Vec<u8> {
    let mut block = vec![0; MIN_BLOCK];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut block);
    block
}

impl Transfer {
    fn begin(here: &Arc<Dedup>, cache: &Arc<Cache>, old: bool) -> Self {
        let held = old.then(|| Arc::new(OldBlocks::default()));
        let blocks = Blocks { held: held.clone(), ..Blocks::cached(Arc::clone(cache)) };
        let resolving = Resolving::new(blocks);
        let referring = Referring::new(Arc::clone(here), PEER);
        let offer = (0, resolving.offer(MIN_CREDIT).encode());
        Self {
            referring: if old { referring.reseeding(PATIENCE) } else { referring },
            resolving,
            sent: Vec::new(),
            written: Vec::new(),
            next_seq: 0,
            waiting: None,
            to_receiver: VecDeque::new(),
            to_sender: VecDeque::from([offer]),
            pieces: VecDeque::new(),
            old: held.map(|held| (held, 0)),
            blocks: 0,
            from: None,
            asking: None,
            supplied: None,
            lied: false,
        }
    }

    fn is_quiet(&self) -> bool {
        self.waiting.is_none()
            && self.to_receiver.is_empty()
            && self.to_sender.is_empty()
            && self.pieces.is_empty()
            && self.asking.is_none()
            && self.referring.is_settled()
    }
}

impl<'a> World<'a> {
    fn new(data: &'a [u8]) -> Self {
        let limits = Limits { own: 1 << 30, shared: 0, cap: 1 << 30 };
        let (here, cache) = (Arc::new(Dedup::default()), cache());
        Self {
            input: data.iter(),
            codec: Codec::new().expect("memory for zstd"),
            account: Budget::new(limits, None).account(),
            transfer: Transfer::begin(&here, &cache, false),
            old: true,
            here,
            cache,
            junk: 1 << 32,
            stats: Stats::default(),
        }
    }

    fn byte(&mut self) -> u8 {
        self.input.next().copied().unwrap_or(0)
    }

    fn restart(&mut self) {
        self.transfer = Transfer::begin(&self.here, &self.cache, self.old);
        self.old = !self.old;
    }

    fn judge(&mut self, step: Result<(), Failure>) {
        let Transfer { sent, written, lied, .. } = &self.transfer;
        assert!(sent.starts_with(written), "something else was written than was sent");
        if let Err(failure) = step {
            assert!(*lied, "with honest peers: {failure:?}");
            self.stats.refused += 1;
            self.restart();
        }
    }

    fn step(&mut self, op: Op) -> Result<(), Failure> {
        match op {
            Op::Send => self.send(),
            Op::Take => return self.take(),
            Op::Write => return self.write(),
            Op::Hear => return self.hear(),
            Op::Supply => self.supply(),
            Op::ReadOld => self.read_old(),
            Op::Cut => self.restart(),
            Op::CrashSender => {
                self.here = Arc::default();
                self.restart();
            }
            Op::CrashReceiver => {
                self.cache = cache();
                self.restart();
            }
            Op::Fill => {
                for _ in 0..self.byte() / 4 {
                    self.junk += 1;
                    let junk = block(self.junk);
                    self.cache.insert(blake3::hash(&junk).as_bytes(), &junk);
                }
            }
            Op::Rot => self.cache.rot(),
            Op::LieToSender => self.lie_to_sender(),
            Op::LieToReceiver => self.lie_to_receiver(),
        }
        Ok(())
    }

    /// The old copy has a block for each of the stream's, or its neighbour's, and few are the same.
    fn read_old(&mut self) {
        let Some((held, read)) = &mut self.transfer.old else { return };
        let place = Place { object: 1 + *read / 8, offset: *read % 8 };
        let old = block(*read * 7 % u64::from(POOL));
        *read += 1;
        // Who reads would wait for room, and nobody is here who makes it.
        if held.bytes() + old.len() <= SEED_WINDOW && held.wants(place) {
            assert_eq!(held.add(place, *blake3::hash(&old).as_bytes(), &old), Ok(()));
        }
        if let Some(seeds) = held.to_announce() {
            self.transfer.to_sender.push_back((3, seeds.encode()));
        }
    }

    fn send(&mut self) {
        if self.transfer.waiting.is_none() {
            let (count, mut batch) = (self.byte() % 5, Batch::default());
            batch.bytes.extend_from_slice(b"a header");
            for _ in 0..count {
                let number = self.byte() % POOL;
                let start = batch.bytes.len();
                batch.bytes.extend_from_slice(&block(number.into()));
                batch.blocks.push(start..batch.bytes.len());
                let at = self.transfer.blocks;
                self.transfer.blocks += 1;
                let place = Place { object: 1 + at / 8, offset: at % 8 };
                let (from, _) = batch.places.unwrap_or((place, place));
                batch.places = Some((from, place));
            }
            self.transfer.from = batch.places.map(|(from, _)| from);
            self.transfer.sent.extend_from_slice(&batch.bytes);
            let seq = self.transfer.next_seq;
            self.transfer.next_seq += 1;
            let Some(held) = self.account.acquire(batch.bytes.len(), &Cancel::default()) else {
                unreachable!("nobody cancels");
            };
            let encoded = self.transfer.referring.encode(&mut self.codec, seq, batch, Some(1));
            self.stats.referring += u64::from(encoded.referenced > 0);
            self.transfer.waiting = Some((encoded, held));
        }
        let Some((encoded, held)) = self.transfer.waiting.take() else { return };
        match self.transfer.referring.admit(&encoded, held) {
            Ok(_) => {
                let announced = self.transfer.referring.announced.as_ref();
                if let (Some(announced), Some(place)) = (announced, self.transfer.from) {
                    announced.passed(place);
                    self.transfer.to_receiver.push_back(Frame::Passed(place));
                }
                let frame = Frame::Batch { head: encoded.head, body: encoded.body.to_vec() };
                self.transfer.to_receiver.push_back(frame);
            }
            Err(held) => {
                self.stats.waited += 1;
                self.transfer.waiting = Some((encoded, held));
            }
        }
    }

    fn take(&mut self) -> Result<(), Failure> {
        let transfer = &mut self.transfer;
        match transfer.to_receiver.pop_front() {
            None => Ok(()),
            Some(Frame::Passed(place)) => {
                transfer.pieces.push_back(Piece::Passed(place));
                Ok(())
            }
            Some(Frame::Blocks { seq, bytes }) => {
                transfer.resolving.supplied(seq, bytes.len())?;
                transfer.supplied = Some(bytes);
                Ok(())
            }
            Some(Frame::Batch { head, body }) => {
                let payload = &head[HEADER_LEN..];
                let Some((header, table)) = payload.split_first_chunk::<BATCH_HEADER_LEN>() else {
                    unreachable!("a head holds its header");
                };
                let body_len = table.len() + body.len();
                let header = BatchHeader::decode(header, body_len)?;
                if header.table_len != table.len() {
                    let what = "its table is of another length";
                    return Err(
                        FrameError::Payload { kind: crate::frame::FrameType::Batch, what }.into()
                    );
                }
                let (mut referenced, mut recipe) = (0, None);
                if header.encoding.has_recipe() {
                    let parts = Recipe::decode(table, header.raw_len)?;
                    referenced = parts.referenced_len();
                    recipe = Some(parts);
                }
                let cost = batch_cost(body_len, header.raw_len, referenced);
                transfer.resolving.arriving(header.seq, cost, referenced > 0)?;
                let unpacked = match recipe {
                    Some(recipe) => {
                        let blocks = &transfer.resolving.blocks;
                        assemble(&mut self.codec, &header, recipe, body, blocks)?
                    }
                    None => self.codec.decode(&header, body).map(Unpacked::Whole)?,
                };
                let (seq, recipe) = (header.seq, header.encoding.has_recipe());
                transfer.pieces.push_back(Piece::Batch { seq, recipe, unpacked });
                Ok(())
            }
        }
    }

    fn write(&mut self) -> Result<(), Failure> {
        let transfer = &mut self.transfer;
        let (seq, raw) = if let Some(asking) = transfer.asking.take() {
            let Some(blocks) = transfer.supplied.take() else {
                transfer.asking = Some(asking);
                return Ok(());
            };
            (Some(asking.seq()), asking.supply(&blocks, &transfer.resolving.blocks)?)
        } else {
            match transfer.pieces.pop_front() {
                None => return Ok(()),
                Some(Piece::Passed(place)) => {
                    if let Some((held, _)) = &transfer.old {
                        held.passed(place);
                    }
                    return Ok(());
                }
                Some(Piece::Batch { seq, recipe, unpacked: Unpacked::Whole(raw) }) => {
                    (recipe.then_some(seq), raw)
                }
                Some(Piece::Batch { seq, unpacked: Unpacked::Lacking(mut assembly), .. }) => {
                    if !assembly.look_again(&transfer.resolving.blocks) {
                        self.stats.asked += 1;
                        transfer.resolving.ask(&assembly);
                        transfer.to_sender.push_back((2, assembly.question().encode()));
                        transfer.asking = Some(assembly);
                        return Ok(());
                    }
                    (Some(seq), assembly.supply(&[], &transfer.resolving.blocks)?)
                }
            }
        };
        if let Some(seq) = seq {
            transfer.resolving.resolved(seq);
            transfer.to_sender.push_back((1, Resolved { seq }.encode()));
        }
        transfer.written.extend_from_slice(&raw);
        self.stats.written += 1;
        Ok(())
    }

    fn hear(&mut self) -> Result<(), Failure> {
        let Transfer { referring, to_sender, .. } = &mut self.transfer;
        match to_sender.pop_front() {
            None => {}
            Some((0, payload)) => referring.offered(&CacheOffer::decode(&payload)?)?,
            Some((1, payload)) => referring.resolved(Resolved::decode(&payload)?)?,
            Some((3, payload)) => {
                referring.announced(&Seeds::decode(&payload)?, payload.len())?;
            }
            Some((_, payload)) => referring.missing(&Missing::decode(&payload)?)?,
        }
        Ok(())
    }

    fn supply(&mut self) {
        if let Some(owed) = self.transfer.referring.owed() {
            let (seq, bytes) = (owed.seq, owed.blocks.concat());
            self.transfer.to_receiver.push_back(Frame::Blocks { seq, bytes });
        }
    }

    fn lie_to_sender(&mut self) {
        let (kind, seq, part) = (self.byte() % 4, self.byte() % 64, self.byte() % 8);
        let payload = match kind {
            0 => CacheOffer {
                id: [9; 16],
                window_bytes: u64::from(part) << 30,
                credit_bytes: u32::MAX,
            }
            .encode(),
            1 => Resolved { seq: seq.into() }.encode(),
            3 => {
                let reached = Place { object: seq.into(), offset: 0 };
                let (len, prefix) = (MIN_BLOCK as u32 * u32::from(part % 2 + 1), part.into());
                let place = Place { object: part.into(), offset: 0 };
                let seeds =
                    if part.is_multiple_of(2) { vec![] } else { vec![Seed { place, len, prefix }] };
                Seeds { reached, seeds }.encode()
            }
            _ => Missing { seq: seq.into(), parts: vec![part.into()] }.encode(),
        };
        self.transfer.lied = true;
        self.transfer.to_sender.push_front((kind, payload));
    }

    fn lie_to_receiver(&mut self) {
        let (at, bit, seq) = (usize::from(self.byte()), self.byte() % 8, self.byte() % 64);
        self.transfer.lied = true;
        match self.transfer.to_receiver.front_mut() {
            Some(Frame::Batch { head, .. }) if at < 128 => {
                let mut harmed = head.to_vec();
                let at = HEADER_LEN + at % (harmed.len() - HEADER_LEN);
                harmed[at] ^= 1 << bit;
                *head = Bytes::from(harmed);
            }
            Some(Frame::Batch { body: bytes, .. } | Frame::Blocks { bytes, .. })
                if !bytes.is_empty() =>
            {
                let at = at % bytes.len();
                bytes[at] ^= 1 << bit;
            }
            _ => {
                let bytes = vec![bit; at * 200];
                self.transfer.to_receiver.push_front(Frame::Blocks { seq: seq.into(), bytes });
            }
        }
    }

    /// Lets both sides go on until nothing is under way.
    fn drain(&mut self) {
        let mut rounds = 0;
        while !self.transfer.is_quiet() {
            for op in [Op::Take, Op::Write, Op::Hear, Op::Supply, Op::Send] {
                if op != Op::Send || self.transfer.waiting.is_some() {
                    let step = self.step(op);
                    self.judge(step);
                }
            }
            rounds += 1;
            if rounds > 10_000 {
                assert!(self.transfer.lied, "both sides wait for each other");
                return;
            }
        }
        let Transfer { sent, written, lied, .. } = &self.transfer;
        assert!(*lied || written == sent, "something did not arrive");
        self.stats.whole += 1;
    }
}
