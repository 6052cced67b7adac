//! The bytes: as `WIRE.md` says, as they always were, and whatever a peer may send instead.
//!
//! `FLOCKER_BLESS=1 cargo test -p flocker-transport --test wire` writes the golden bytes and the seeds of the
//! fuzz corpus anew, after a change of the protocol that is meant.
#![allow(missing_docs)]

mod common;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use flocker_transport::bulk::codec::Codec;
use flocker_transport::bulk::dedup::MIN_CREDIT;
use flocker_transport::bulk::dedup::recipe;
use flocker_transport::endpoint::CloseCode;
use flocker_transport::frame::bulk::{
    Abort, AbortCode, BATCH_HEADER_LEN, BatchHeader, Done, Encoding, End, Failed,
};
use flocker_transport::frame::dedup::{
    CacheOffer, MAX_PARTS, MAX_REFERRING, MAX_TABLE, MIN_BLOCK, MIN_COST, Missing, Part, Recipe,
    Resolved,
};
use flocker_transport::frame::hello::{Call, Hello, Reject, RejectCode};
use flocker_transport::frame::lane::{LaneOpen, Probed};
use flocker_transport::frame::pair::{Opening, PROOF_LEN, PairRefusal, PairRefused, SPAKE_LEN};
use flocker_transport::frame::reseed::{MAX_SEED, Passed, Place, SEED_WINDOW, Seed, Seeds};
use flocker_transport::frame::{
    self, FRAME_VERSION, FrameError, FrameType, HEADER_LEN, Header, MAGIC, MAX_BATCH_RAW,
    PROTOCOL_VERSION,
};
use flocker_transport::fuzzing::fuzz_frames;
use flocker_transport::lane::tls::chunk::{CHUNK_HEADER_LEN, Chunk};
use proptest::prelude::*;

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn blessing() -> bool {
    std::env::var_os("FLOCKER_BLESS").is_some()
}

/// One frame of every type.
fn samples() -> Vec<(FrameType, Vec<u8>)> {
    let hello = Hello {
        protocol: 1,
        incarnation: 0x0123_4567_89ab_cdef,
        name: "alpha".into(),
        software: "0.1.0".into(),
        tls: true,
        quic: true,
        call: Call::NoUdp,
        udp_room_kib: 8192,
    };
    let reject = Reject {
        code: RejectCode::NotPaired,
        protocol: 1,
        name: "beta".into(),
        reason: "pair first".into(),
    };
    let opening = |side: u8| Opening {
        spake: std::array::from_fn(|i| if i == 0 { side } else { i as u8 }),
        addresses: vec!["10.0.0.1:7001".into(), "[fd00::1]:7001".into()],
    };
    let text = b"the same row again and again; ".repeat(20);
    let batch = Codec::new().unwrap().encode(0, b"stored".to_vec(), None);
    let packed = Codec::new().unwrap().encode(1, text, Some(1));
    assert_eq!(packed.header.encoding, Encoding::Zstd);
    let block = [0x0b; MIN_BLOCK];
    let parts = vec![
        Part::Run { len: 4 },
        Part::Block { len: MIN_BLOCK },
        Part::Reference { len: MIN_BLOCK, hash: *blake3::hash(&block).as_bytes() },
    ];
    let raw = [&b"head"[..], &[0x0a; MIN_BLOCK], &block].concat();
    let plan = Recipe::new(parts, raw.len()).unwrap();
    let hashes = [&raw[4..4 + MIN_BLOCK], &block].map(|b| *blake3::hash(b).as_bytes());
    let seal = recipe::seal(&raw, plan.places(), &hashes);
    let literal = raw[..4 + MIN_BLOCK].to_vec();
    let cooked = Codec::new().unwrap().encode_recipe(2, &plan, seal, literal, Some(1));
    assert_eq!(cooked.header.encoding, Encoding::RecipeZstd);
    let offer = CacheOffer { id: [0xca; 16], window_bytes: 4 << 30, credit_bytes: 10 << 20 };
    let (place, reached) = (Place { object: 2, offset: 0 }, Place { object: 3, offset: 512 });
    let seeds = Seeds { reached, seeds: vec![Seed { place, len: 1 << 17, prefix: 0x0102_0304 }] };
    let blocks = [&2_u64.to_le_bytes()[..], b"a block"].concat();
    let body =
        |b: flocker_transport::bulk::codec::Encoded| [&b.head[HEADER_LEN..], &b.body].concat();
    let end = End { raw_bytes: 606, batches: 2, digest: [0xd1; 32] };
    let abort = Abort { code: AbortCode::Damaged, reason: "record 7 at byte 2184".into() };
    let failed = Failed { code: 28, reason: "no space".into() };
    let lane = LaneOpen { protocol: 1, dialler: 0x0123_4567_89ab_cdef, acceptor: 7, reverse: true };
    let probed = Probed { bytes: 1 << 24, elapsed_us: 9_000, cpu_us: 12_000 };
    let refused =
        PairRefused { code: PairRefusal::WrongCode, tries_left: 4, reason: "wrong".into() };
    vec![
        (FrameType::Hello, hello.encode()),
        (FrameType::Reject, reject.encode()),
        (FrameType::Accept, Vec::new()),
        (FrameType::Control, b"opaque".to_vec()),
        (FrameType::Moved, Vec::new()),
        (FrameType::BulkOpen, b"header".to_vec()),
        (FrameType::Batch, body(batch)),
        (FrameType::Batch, body(packed)),
        (FrameType::Batch, body(cooked)),
        (FrameType::End, end.encode()),
        (FrameType::Abort, abort.encode()),
        (FrameType::Done, Done { raw_bytes: 606 }.encode()),
        (FrameType::Failed, failed.encode()),
        (FrameType::LaneOpen, lane.encode()),
        (FrameType::Probe, vec![0; 16]),
        (FrameType::Probed, probed.encode()),
        (FrameType::Cache, offer.encode()),
        (FrameType::Resolved, Resolved { seq: 2 }.encode()),
        (FrameType::Missing, Missing { seq: 2, parts: vec![2] }.encode()),
        (FrameType::Blocks, blocks),
        (FrameType::Seeds, seeds.encode()),
        (FrameType::Passed, Passed { place: Place { object: 2, offset: 1 << 17 } }.encode()),
        (FrameType::PairStart, opening(b'A').encode()),
        (FrameType::PairAnswer, opening(b'B').encode()),
        (FrameType::PairProof, vec![0xa5; PROOF_LEN]),
        (FrameType::PairConfirm, vec![0x5a; PROOF_LEN]),
        (FrameType::PairRefused, refused.encode()),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("to a string");
        text
    })
}

#[test]
fn the_bytes_of_every_frame_are_what_they_always_were() {
    let mut text = String::new();
    for (kind, payload) in samples() {
        writeln!(text, "{kind:?} {}", hex(&frame::encode(kind, &payload))).unwrap();
    }
    let golden = here("tests/wire/golden.txt");
    if blessing() {
        std::fs::write(&golden, &text).unwrap();
    }
    let expected = std::fs::read_to_string(golden).expect("the golden bytes");
    // Other versions of zstd may pack these batches otherwise; reading them is tested elsewhere.
    let steady = |text: &str| {
        let lines = text.lines().enumerate().filter(|(n, _)| !(7..=8).contains(n));
        lines.map(|(_, line)| line.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(steady(&text), steady(&expected), "if meant, change WIRE.md too and bless");
}

#[test]
fn golden_bytes_decode_on_this_version() {
    let golden = std::fs::read_to_string(here("tests/wire/golden.txt")).unwrap();
    for line in golden.lines() {
        let (name, digits) = line.split_once(' ').unwrap();
        let bytes: Vec<u8> = (0..digits.len() / 2)
            .map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap())
            .collect();
        let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
        assert_eq!(format!("{:?}", header.kind), name);
        assert_eq!(bytes.len(), HEADER_LEN + header.len);
        if header.kind == FrameType::Batch {
            let (head, body) = bytes[HEADER_LEN..].split_first_chunk::<BATCH_HEADER_LEN>().unwrap();
            let head = BatchHeader::decode(head, body.len()).unwrap();
            let (table, literal) = body.split_at(head.table_len);
            let mut codec = Codec::new().unwrap();
            let raw = if head.encoding.has_recipe() {
                let recipe = Recipe::decode(table, head.raw_len).unwrap();
                let mut raw = codec.unpack(&head, recipe.literal_len(), literal.to_vec()).unwrap();
                recipe::spread(&recipe, &mut raw);
                raw
            } else {
                codec.decode(&head, literal.to_vec()).unwrap()
            };
            assert_eq!(raw.len(), head.raw_len);
        }
        fuzz_frames(&bytes);
    }
}

#[test]
fn every_number_stands_in_wire_md() {
    let text = std::fs::read_to_string(here("WIRE.md")).unwrap();
    let row = |name: String, number: u64| {
        let found = text.contains(&format!("| `{name}` | {number} |"));
        assert!(found, "WIRE.md lacks `{name}` | {number}");
    };
    for kind in FrameType::ALL {
        row(format!("{kind:?}"), kind.code().into());
        let whole = format!("| `{kind:?}` | {} | {} |", kind.code(), kind.max_payload());
        assert!(text.contains(&whole), "WIRE.md lacks {whole}");
    }
    CloseCode::ALL.into_iter().for_each(|c| row(format!("{c:?}"), c.code().into()));
    RejectCode::ALL.into_iter().for_each(|c| row(format!("{c:?}"), c.code().into()));
    AbortCode::ALL.into_iter().for_each(|c| row(format!("{c:?}"), c.code().into()));
    PairRefusal::ALL.into_iter().for_each(|c| row(format!("{c:?}"), c.code().into()));
    for (name, kind) in Chunk::KINDS {
        row(name.into(), kind.into());
    }
    row("Stored".into(), Encoding::Stored as u64);
    row("Zstd".into(), Encoding::Zstd as u64);
    row("RecipeStored".into(), Encoding::RecipeStored as u64);
    row("RecipeZstd".into(), Encoding::RecipeZstd as u64);
    for (name, number) in [
        ("FRAME_VERSION", u64::from(FRAME_VERSION)),
        ("PROTOCOL_VERSION", u64::from(PROTOCOL_VERSION)),
        ("HEADER_LEN", HEADER_LEN as u64),
        ("CHUNK_HEADER_LEN", CHUNK_HEADER_LEN as u64),
        ("SEED_WINDOW", SEED_WINDOW as u64),
        ("MAX_SEED", MAX_SEED as u64),
        ("BATCH_HEADER_LEN", BATCH_HEADER_LEN as u64),
        ("SPAKE_LEN", SPAKE_LEN as u64),
        ("PROOF_LEN", PROOF_LEN as u64),
        ("MIN_BLOCK", MIN_BLOCK as u64),
        ("MAX_REFERRING", MAX_REFERRING as u64),
        ("MAX_PARTS", MAX_PARTS as u64),
        ("MIN_COST", MIN_COST as u64),
        ("MIN_CREDIT", MIN_CREDIT as u64),
    ] {
        assert!(text.contains(&format!("`{name}` = {number}")), "WIRE.md lacks {name} = {number}");
    }
    assert!(text.contains(&format!("{MAX_BATCH_RAW} (`MAX_BATCH_RAW`)")));
    assert!(text.contains(std::str::from_utf8(&MAGIC).unwrap()));
}

#[test]
fn what_a_later_version_appends_to_hello_and_reject_is_skipped() {
    for (kind, mut payload) in samples() {
        payload.extend_from_slice(b"from the future");
        match kind {
            FrameType::Hello => assert_eq!(Hello::decode(&payload).unwrap().name, "alpha"),
            FrameType::Reject => assert_eq!(Reject::decode(&payload).unwrap().name, "beta"),
            FrameType::End => assert!(End::decode(&payload).is_err()),
            _ => {}
        }
    }
}

#[test]
fn a_header_is_refused_for_each_field_that_is_wrong() {
    let good = Header::new(FrameType::Control, 5).encode();
    let with = |at: usize, byte: u8| {
        let mut bytes = good;
        bytes[at] = byte;
        Header::decode(&bytes).unwrap_err()
    };
    assert!(matches!(with(0, b'X'), FrameError::Magic { .. }));
    assert_eq!(with(4, 2), FrameError::Version { found: 2 });
    assert_eq!(with(5, 99), FrameError::UnknownType { code: 99 });
    assert_eq!(with(6, 1), FrameError::Reserved { kind: FrameType::Control });
    assert!(matches!(with(11, 1), FrameError::TooLong { .. }));
}

#[test]
fn a_batch_header_that_lies_about_its_lengths_is_refused_before_anything_is_allocated() {
    let with = |raw_len, encoding, table_len| BatchHeader {
        seq: 0,
        raw_len,
        encoding,
        table_len,
        hash: [0; 32],
    };
    let header = |raw_len, encoding| with(raw_len, encoding, 0);
    let refused = |h: BatchHeader, body| BatchHeader::decode(&h.encode(), body).is_err();
    assert!(refused(header(0, Encoding::Stored), 0), "empty");
    assert!(refused(header(MAX_BATCH_RAW + 1, Encoding::Zstd), 100), "too long");
    assert!(refused(header(100, Encoding::Stored), 99), "stored, another length");
    assert!(refused(header(100, Encoding::Zstd), 100), "compressed, not shorter");
    assert!(!refused(header(MAX_BATCH_RAW, Encoding::Zstd), 100));
    assert!(refused(with(100, Encoding::Zstd, 4), 50), "a table without a recipe");
    assert!(refused(header(100, Encoding::RecipeZstd), 50), "a recipe without a table");
    assert!(refused(with(100, Encoding::RecipeStored, 51), 50), "a table beyond the body");
    assert!(refused(with(100, Encoding::RecipeStored, 4), 105), "more than it makes");
    assert!(refused(with(100, Encoding::RecipeZstd, 4), 104), "compressed, not shorter");
    assert!(
        refused(with(MAX_BATCH_RAW, Encoding::RecipeZstd, MAX_TABLE + 1), 1 << 20),
        "a long table"
    );
    assert!(!refused(with(100, Encoding::RecipeStored, 4), 104));
}

fn corpus() -> PathBuf {
    here("../fuzz/corpus/frames")
}

/// Seeds: each frame alone, a whole transfer, a whole pairing, and some of them spoilt.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let frames: Vec<(FrameType, Vec<u8>)> = samples()
        .into_iter()
        .map(|(kind, payload)| (kind, frame::encode(kind, &payload)))
        .collect();
    let mut seeds: Vec<(String, Vec<u8>)> = frames
        .iter()
        .enumerate()
        .map(|(n, (kind, bytes))| (format!("{n:02}-{kind:?}").to_lowercase(), bytes.clone()))
        .collect();
    let all: Vec<u8> = frames.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    for (n, at) in [4, 5, 8, 40, 300, 600].into_iter().enumerate() {
        let mut spoilt = all.clone();
        spoilt[at] ^= 0x41;
        seeds.push((format!("spoilt-{n}"), spoilt));
    }
    seeds.push(("cut".into(), all[..all.len() / 2].to_vec()));
    seeds.push(("all".into(), all));
    seeds.push(("code".into(), b"7K3F-M2QX-9".to_vec()));
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let params = rcgen::CertificateParams::new(vec!["flocker-repl".to_owned()]).unwrap();
    seeds.push(("certificate".into(), params.self_signed(&key).unwrap().der().to_vec()));
    seeds
}

#[test]
fn the_fuzz_corpus_is_replayed() {
    if blessing() {
        std::fs::create_dir_all(corpus()).unwrap();
        for (name, bytes) in seeds() {
            std::fs::write(corpus().join(name), bytes).unwrap();
        }
    }
    let mut replayed = 0;
    for entry in std::fs::read_dir(corpus()).expect("the corpus") {
        fuzz_frames(&std::fs::read(entry.unwrap().path()).unwrap());
        replayed += 1;
    }
    assert!(replayed >= 20, "{replayed} inputs");
}

proptest! {
    #[test]
    fn random_bytes_break_nothing(data in proptest::collection::vec(any::<u8>(), 0..2000)) {
        fuzz_frames(&data);
    }

    #[test]
    fn random_payloads_behind_a_good_header_break_nothing(
        kind in 0..FrameType::ALL.len(),
        payload in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let kind = FrameType::ALL[kind];
        let payload = &payload[..payload.len().min(kind.max_payload())];
        fuzz_frames(&frame::encode(kind, payload));
    }

    #[test]
    fn flipped_frames_break_nothing(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut all: Vec<u8> =
            samples().iter().flat_map(|(kind, payload)| frame::encode(*kind, payload)).collect();
        let at = at.index(all.len());
        all[at] ^= 1 << bit;
        fuzz_frames(&all);
    }

    #[test]
    fn what_is_said_is_what_is_heard(
        protocol in any::<u16>(),
        incarnation in any::<u64>(),
        name in "[a-zA-Z0-9 äöü-]{0,30}",
        reason in "\\PC{0,100}",
    ) {
        let (tls, software) = (incarnation % 2 == 0, "1".into());
        let (quic, call) = (incarnation % 3 == 0, Call::ALL[(incarnation % 3) as usize]);
        let udp_room_kib = (incarnation % 9_000) as u32;
        let name_ = name.clone();
        let hello =
            Hello { protocol, incarnation, name: name_, software, tls, quic, call, udp_room_kib };
        prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        let failed = Failed { code: 1, reason };
        let heard = Failed::decode(&failed.encode()).unwrap();
        prop_assert_eq!(heard.code, 1);
        let reject = Reject { code: RejectCode::Version, protocol, name, reason: "later".into() };
        prop_assert_eq!(Reject::decode(&reject.encode()), Ok(reject));
    }

    #[test]
    fn batches_come_back_whatever_they_hold(
        raw in proptest::collection::vec(any::<u8>(), 1..5000),
        repeat in 1..20usize,
        level in -5..6i32,
        seq in any::<u64>(),
    ) {
        let raw = raw.repeat(repeat);
        let mut codec = Codec::new().unwrap();
        let packed = codec.encode(seq, raw.clone(), Some(level));
        let head = packed.head[HEADER_LEN..].first_chunk().unwrap();
        let header = BatchHeader::decode(head, packed.body.len()).unwrap();
        prop_assert_eq!(codec.decode(&header, packed.body.to_vec()), Ok(raw));
    }
}
