//! The bodies of the fuzz targets `frames` and [`dedup`], as plain functions, so that their corpora are
//! replayed by `cargo test` on any toolchain. They check what has to hold for every input.
//!
//! Owns: those checks. Not part of the API that others should build on.

pub mod dedup;

use std::cell::RefCell;

use crate::bulk::codec::Codec;
use crate::bulk::dedup::recipe;
use crate::frame::bulk::{Abort, BATCH_HEADER_LEN, BatchHeader, Done, Encoding, End, Failed};
use crate::frame::dedup::{CacheOffer, Missing, Recipe, Resolved};
use crate::frame::hello::{Hello, Reject};
use crate::frame::lane::{LaneOpen, MAX_FILLER, Probed};
use crate::frame::pair::{Opening, PROOF_LEN, PairRefused};
use crate::frame::reseed::{Passed, Seeds};
use crate::frame::{FrameError, FrameType, HEADER_LEN, Header, MAX_BATCH_RAW};
use crate::identity::fingerprint_of;
use crate::pairing::PairingCode;

thread_local! {
    static CODEC: RefCell<Codec> = RefCell::new(Codec::new().expect("memory for zstd"));
}

/// Runs one input through everything that decodes what a peer sends: as a run of frames, as a
/// certificate, as a code.
///
/// # Panics
/// When one of our promises does not hold, which is what the fuzzer looks for.
pub fn fuzz_frames(data: &[u8]) {
    let mut rest = data;
    while let Some((header, behind)) = rest.split_first_chunk::<HEADER_LEN>() {
        let Ok(header) = Header::decode(header) else { break };
        assert!(header.len <= header.kind.max_payload(), "a length beyond its limit");
        let Some((payload, next)) = behind.split_at_checked(header.len) else { break };
        assert!(Header::decode(&header.encode()) == Ok(header), "a header came back changed");
        // What is wrong with a payload is for its reader to say; here it only must not break anything.
        let _ = check_payload(header.kind, payload);
        rest = next;
    }
    let _ = fingerprint_of(&data.to_vec().into());
    if let Ok(code) = std::str::from_utf8(data).unwrap_or_default().parse::<PairingCode>() {
        assert!(code.to_string().parse() == Ok(code), "a code came back changed");
    }
}

/// Decodes a payload; what it decodes to must encode to something that decodes to the same.
fn check_payload(kind: FrameType, payload: &[u8]) -> Result<(), FrameError> {
    match kind {
        FrameType::Hello => same(Hello::decode(payload)?, |h| Hello::decode(&h.encode())),
        FrameType::Reject => same(Reject::decode(payload)?, |r| Reject::decode(&r.encode())),
        FrameType::End => same(End::decode(payload)?, |e| End::decode(&e.encode())),
        FrameType::Abort => same(Abort::decode(payload)?, |a| Abort::decode(&a.encode())),
        FrameType::Done => same(Done::decode(payload)?, |d| Done::decode(&d.encode())),
        FrameType::Failed => same(Failed::decode(payload)?, |f| Failed::decode(&f.encode())),
        FrameType::LaneOpen => same(LaneOpen::decode(payload)?, |o| LaneOpen::decode(&o.encode())),
        FrameType::Probed => same(Probed::decode(payload)?, |p| Probed::decode(&p.encode())),
        FrameType::Probe => assert!(payload.len() <= MAX_FILLER, "filler beyond its limit"),
        FrameType::PairStart | FrameType::PairAnswer => {
            same(Opening::decode(kind, payload)?, |o| Opening::decode(kind, &o.encode()));
        }
        FrameType::PairRefused => {
            same(PairRefused::decode(payload)?, |r| PairRefused::decode(&r.encode()));
        }
        FrameType::Batch => check_batch(payload)?,
        FrameType::Cache => same(CacheOffer::decode(payload)?, |c| CacheOffer::decode(&c.encode())),
        FrameType::Resolved => same(Resolved::decode(payload)?, |r| Resolved::decode(&r.encode())),
        FrameType::Missing => same(Missing::decode(payload)?, |m| Missing::decode(&m.encode())),
        FrameType::Seeds => same(Seeds::decode(payload)?, |s| Seeds::decode(&s.encode())),
        FrameType::Passed => same(Passed::decode(payload)?, |p| Passed::decode(&p.encode())),
        FrameType::PairProof => assert!(payload.len() <= PROOF_LEN, "a proof beyond its limit"),
        FrameType::Accept
        | FrameType::Moved
        | FrameType::Control
        | FrameType::BulkOpen
        | FrameType::Blocks
        | FrameType::PairConfirm => {}
    }
    Ok(())
}

fn same<T: PartialEq>(decoded: T, again: impl FnOnce(&T) -> Result<T, FrameError>) {
    assert!(again(&decoded).as_ref() == Ok(&decoded), "a payload came back changed");
}

fn check_batch(payload: &[u8]) -> Result<(), FrameError> {
    let Some((bytes, body)) = payload.split_first_chunk::<BATCH_HEADER_LEN>() else {
        return Ok(());
    };
    let header = BatchHeader::decode(bytes, body.len())?;
    assert!(header.encode() == *bytes, "a batch header came back changed");
    assert!((1..=MAX_BATCH_RAW).contains(&header.raw_len), "a batch beyond its limit");
    if header.encoding.has_recipe() {
        let recipe = Recipe::decode(&body[..header.table_len], header.raw_len)?;
        assert!(recipe.encode() == body[..header.table_len], "a recipe came back changed");
        assert!(recipe.places().map(|(_, place)| place.len()).sum::<usize>() == header.raw_len);
        let literal = body[header.table_len..].to_vec();
        let unpacked =
            CODEC.with_borrow_mut(|codec| codec.unpack(&header, recipe.literal_len(), literal));
        if let Ok(mut raw) = unpacked {
            recipe::spread(&recipe, &mut raw);
            assert!(raw.len() == header.raw_len, "a batch of another length than announced");
        }
        return Ok(());
    }
    let decoded = CODEC.with_borrow_mut(|codec| codec.decode(&header, body.to_vec()));
    if let Ok(raw) = decoded {
        assert!(raw.len() == header.raw_len, "a batch of another length than announced");
        assert!(*blake3::hash(&raw).as_bytes() == header.hash, "a batch with another hash");
        assert!(header.encoding == Encoding::Zstd || raw == body, "a stored batch changed");
    }
    Ok(())
}
