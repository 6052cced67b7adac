//! Streams whose records say something else than their sender meant: sealed rightly, so that nothing but the
//! vault stands between them and the data. Each is refused or applied, and nothing panics; what was applied is
//! sound and can be sent. `FLOCKER_MUTATIONS=100` tries a hundred times as many.

mod common;

use common::*;
use flocker_store::{CloneAccess, Guid, ReceiveSpec, SendSpec, Store, StoreError};
use flocker_vault::Vault;
use zfs_stream::record::{Begin, Record};
use zfs_stream::{Compression, Reader, Seal, Writer};

type Items = Vec<(Record, Vec<u8>)>;

/// xorshift, so that a failure repeats.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    /// A number that is near one that counts.
    fn number(&mut self, was: u64) -> u64 {
        match self.roll(9) {
            0 => 0,
            1 => was.wrapping_add(1),
            2 => was.wrapping_sub(1),
            3 => was.wrapping_mul(2),
            4 => u64::MAX - self.roll(2048),
            5 => 1 << self.roll(64),
            6 => was ^ 512,
            7 => self.roll(128),
            _ => self.roll(1 << 20) * 512,
        }
    }

    fn small(&mut self, was: u8) -> u8 {
        u8::try_from(self.number(was.into()) % 256).unwrap_or(0)
    }
}

fn items(stream: &[u8]) -> Items {
    let (mut reader, mut rest, mut found) = (Reader::new(), stream, Vec::new());
    while let Some(item) = reader.next(&mut rest).expect("sound") {
        found.push((item.record.clone(), item.payload().to_vec()));
    }
    found
}

fn change_object(o: &mut zfs_stream::record::Object, dice: &mut Dice) {
    match dice.roll(10) {
        0 => o.object = dice.number(o.object),
        1 => o.block_size = dice.number(o.block_size.into()) as u32,
        2 => o.dn_slots = dice.small(o.dn_slots),
        3 => o.flags = dice.small(o.flags),
        4 => o.object_type = dice.number(o.object_type.into()) as u32,
        5 => o.bonus_type = dice.number(o.bonus_type.into()) as u32,
        6 => o.maxblkid = dice.number(o.maxblkid),
        7 => o.indblkshift = dice.small(o.indblkshift),
        8 => o.nlevels = dice.small(o.nlevels),
        _ => o.nblkptr = dice.small(o.nblkptr),
    }
}

fn change(record: &mut Record, payload: &mut [u8], dice: &mut Dice) {
    match record {
        Record::Begin(b) => match dice.roll(3) {
            0 => b.flags = dice.number(b.flags.into()) as u32,
            1 => b.features.0 = dice.number(b.features.0) & ((1 << 30) - 1),
            _ => b.objset_type = dice.roll(5) as u32,
        },
        Record::Object(o) => change_object(o, dice),
        Record::FreeObjects(f) => match dice.roll(2) {
            0 => f.first = dice.number(f.first),
            _ => f.count = dice.number(f.count),
        },
        Record::Write(w) => match dice.roll(4) {
            0 => w.object = dice.number(w.object),
            1 => w.offset = dice.number(w.offset),
            2 => w.compression = Compression(dice.small(w.compression.0) % 17),
            _ => w.flags = dice.small(w.flags),
        },
        Record::Free(f) => match dice.roll(3) {
            0 => f.object = dice.number(f.object),
            1 => f.offset = dice.number(f.offset),
            _ => f.length = dice.number(f.length),
        },
        Record::Spill(s) => match dice.roll(2) {
            0 => s.object = dice.number(s.object),
            _ => s.flags = dice.small(s.flags),
        },
        Record::WriteEmbedded(w) => match dice.roll(5) {
            0 => w.object = dice.number(w.object),
            1 => w.offset = dice.number(w.offset),
            2 => w.length = dice.number(w.length),
            3 => w.logical_size = dice.number(w.logical_size.into()) as u32,
            _ => w.compression = Compression(dice.small(w.compression.0) % 17),
        },
        Record::ObjectRange(r) => r.first = dice.roll(4) * 32,
        Record::End(_) | Record::WriteByRef(_) | Record::Redact(_) => {}
    }
    if dice.roll(4) == 0 && !payload.is_empty() {
        let at = dice.roll(payload.len() as u64) as usize;
        payload[at] ^= 1 << dice.roll(8);
    }
}

/// A few changes; `None` when no sender's writer would make such a stream.
fn mutate(items: &Items, dice: &mut Dice) -> Option<Vec<u8>> {
    let mut items = items.clone();
    for _ in 0..=dice.roll(3) {
        let at = dice.roll(items.len() as u64 - 1) as usize;
        match dice.roll(8) {
            0 if at > 0 => drop(items.remove(at)),
            1 if at > 0 => {
                let again = items[at].clone();
                items.insert(at, again);
            }
            2 if at > 1 => items.swap(at, at - 1),
            _ => {
                let (record, payload) = &mut items[at];
                change(record, payload, dice);
            }
        }
    }
    let (mut writer, mut out) = (Writer::new(Seal::PerRecord), Vec::new());
    for (record, payload) in &items {
        writer.record(record, payload, &mut out).ok()?;
    }
    Some(out)
}

fn try_one(vault: &Vault, to: &str, begin: &Begin, stream: &[u8], raw: bool) -> bool {
    let snapshot = snap(to);
    let spec = ReceiveSpec {
        dataset: snapshot.dataset().clone(),
        snapshot,
        to_guid: Guid(begin.to_guid),
        from_guid: (!begin.is_full()).then_some(Guid(begin.from_guid)),
        resumable: true,
        origin: None,
    };
    match receive_spec(vault, &spec, stream) {
        Ok(_) => {}
        Err(StoreError::BadStream { .. } | StoreError::Unsupported { .. }) => return false,
        Err(StoreError::NoDataset { .. } | StoreError::Exists { .. }) => return false,
        Err(other) => panic!("{to}: {other:?}"),
    }
    let spec = SendSpec { raw, ..send_spec(None, to) };
    match send_with(vault, &spec) {
        Ok(sent) => assert!(!sent.is_empty()),
        // What makes no stream (a payload that does not decompress, a shape that no writer makes) is said.
        Err(StoreError::Corrupt { .. } | StoreError::NotCapable { .. }) => {}
        Err(other) => panic!("{to}: {other:?}"),
    }
    true
}

fn check(full: &str, step: Option<&str>, rounds: u64, raw: bool) {
    let (_dir, vault) = new_vault();
    let more = std::env::var("FLOCKER_MUTATIONS").ok().and_then(|n| n.parse().ok());
    let rounds = rounds * more.unwrap_or(1);
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15 ^ rounds);
    let (base, mutated) = match step {
        Some(step) => (Some(golden(full)), items(&golden(step))),
        None => (None, items(&golden(full))),
    };
    if let Some(base) = &base {
        receive(&vault, "vault/base@0", base).expect("the base");
    }
    let Record::Begin(begin) = mutated[0].0.clone() else { panic!("no BEGIN") };
    let (mut tried, mut applied) = (0, 0);
    for round in 0..rounds {
        let Some(stream) = mutate(&mutated, &mut dice) else {
            continue;
        };
        let dataset = format!("vault/m{round}");
        if base.is_some() {
            vault
                .clone_snapshot(&snap("vault/base@0"), &name(&dataset), CloneAccess::Writable)
                .expect("a copy");
        }
        tried += 1;
        applied += u64::from(try_one(&vault, &format!("{dataset}@x"), &begin, &stream, raw));
        let _ = vault.destroy_dataset(&name(&dataset));
    }
    vault.gc().expect("collected");
    vault.verify().expect("sound");
    assert!(tried > rounds / 4 && applied > 0, "{full}: {tried} tried, {applied} applied");
}

#[test]
fn no_full_stream_that_lies_does_more_than_be_refused_or_applied() {
    check("comp-gzip-c", None, 150, false);
    check("large-dnode-Lec", None, 150, false);
}

#[test]
fn no_raw_stream_that_lies_does_more_than_be_refused_or_applied() {
    check("raw-full", None, 80, true);
    check("raw-full", Some("raw-incr"), 200, true);
}

#[test]
fn no_step_that_lies_does_more_than_be_refused_or_applied() {
    check("holes-full", Some("holes-incr-c"), 100, false);
    check("zvol-full-c", Some("zvol-incr"), 100, false);
}
