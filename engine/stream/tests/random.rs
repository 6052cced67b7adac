//! Streams that no sender made: arbitrary records, arbitrary pieces, arbitrary bytes, and damage with
//! checksums that were made to match.

mod common;

use common::{Owned, read_cut};
use proptest::collection::vec;
use proptest::prelude::*;
use zfs_stream::fletcher::Fletcher4;
use zfs_stream::format::{MAX_PAYLOAD, SEAL_OFFSET};
use zfs_stream::record::{
    Begin, Crypt, DedupKey, End, Free, FreeObjects, Header, HeaderType, Object, ObjectRange,
    Redact, Spill, Write, WriteByRef, WriteEmbedded,
};
use zfs_stream::{
    Compression, Endian, Features, HEADER_LEN, Kind, Part, Problem, Reader, Record, Seal, Writer,
};

const GUID: u64 = 0x1234_5678_9ABC_DEF0;

fn crypt() -> impl Strategy<Value = Crypt> {
    any::<([u8; 8], [u8; 12], [u8; 16])>().prop_map(|(salt, iv, mac)| Crypt { salt, iv, mac })
}

fn key() -> impl Strategy<Value = DedupKey> {
    any::<([u64; 4], u64)>().prop_map(|(checksum, prop)| DedupKey { checksum, prop })
}

/// An object number and a range that the format allows.
fn place() -> impl Strategy<Value = (u64, u64)> {
    (1u64..1 << 48, 0u64..1 << 60)
}

fn words(max: u32) -> impl Strategy<Value = u32> {
    (1..=max / 4).prop_map(|words| words * 4)
}

fn object(raw: bool) -> impl Strategy<Value = Record> {
    let sizes = (1u8..=32).prop_flat_map(|slots| (Just(slots), 0..=u32::from(slots) * 512 - 192));
    (
        1u64..1 << 48,
        1u32..60,
        any::<(u32, u8, u8, u8)>(),
        1u32..512,
        sizes,
        any::<(u8, u8, u8, u64)>(),
    )
        .prop_map(
            move |(
                object,
                object_type,
                (bonus_type, checksum_type, compress, flags),
                blocks,
                (dn_slots, bonus),
                tree,
            )| {
                let bonus = bonus / 8 * 8;
                Record::Object(Object {
                    object,
                    object_type,
                    bonus_type,
                    block_size: blocks * 512,
                    bonus_len: bonus.saturating_sub(3),
                    checksum_type,
                    compress,
                    dn_slots,
                    flags,
                    raw_bonus_len: if raw { bonus } else { 0 },
                    to_guid: GUID,
                    indblkshift: tree.0,
                    nlevels: tree.1,
                    nblkptr: tree.2,
                    maxblkid: tree.3,
                })
            },
        )
}

fn write(raw: bool) -> impl Strategy<Value = Record> {
    let data = (any::<bool>(), words(4096), 1u8..17);
    (place(), any::<(u32, u8, u8)>(), data, key(), crypt()).prop_map(
        move |(
            (object, offset),
            (object_type, checksum_type, flags),
            (compressed, bytes, algorithm),
            key,
            crypt,
        )| {
            let compressed = compressed || raw;
            Record::Write(Write {
                object,
                object_type,
                offset,
                logical_size: u64::from(bytes.max(512)) + if compressed { 512 } else { 0 },
                to_guid: GUID,
                checksum_type,
                flags,
                compression: if compressed { Compression(algorithm) } else { Compression::NONE },
                key,
                compressed_size: if compressed { u64::from(bytes) } else { 0 },
                crypt,
            })
        },
    )
}

fn spill(raw: bool) -> impl Strategy<Value = Record> {
    (1u64..1 << 48, words(1024), any::<(u8, u32)>(), 0u8..17, crypt()).prop_map(
        move |(object, bytes, (flags, object_type), algorithm, crypt)| {
            Record::Spill(Spill {
                object,
                length: u64::from(bytes) + 512,
                to_guid: GUID,
                flags,
                compression: Compression(algorithm),
                compressed_size: if raw { u64::from(bytes) } else { 0 },
                crypt,
                object_type,
            })
        },
    )
}

fn embedded() -> impl Strategy<Value = Record> {
    (place(), 0u8..17, any::<u8>(), 1u32..=112, 0u32..400).prop_map(
        |((object, offset), algorithm, embedded_type, physical_size, more)| {
            Record::WriteEmbedded(WriteEmbedded {
                object,
                offset,
                length: 512,
                to_guid: GUID,
                compression: Compression(algorithm),
                embedded_type,
                logical_size: physical_size + more,
                physical_size,
            })
        },
    )
}

fn small(raw: bool) -> BoxedStrategy<Record> {
    let to_guid = GUID;
    let free = (place(), 0u64..1 << 60).prop_map(move |((object, offset), length)| {
        Record::Free(Free { object, offset, length, to_guid })
    });
    let free_objects = (0u64..1 << 48, 0u64..1 << 48)
        .prop_map(move |(first, count)| Record::FreeObjects(FreeObjects { first, count, to_guid }));
    let redact = (place(), 0u64..1 << 60).prop_map(move |((object, offset), length)| {
        Record::Redact(Redact { object, offset, length, to_guid })
    });
    if raw {
        let range = (0u64..1 << 40, any::<u8>(), crypt()).prop_map(move |(block, flags, crypt)| {
            Record::ObjectRange(ObjectRange { first: block * 32, slots: 32, to_guid, crypt, flags })
        });
        prop_oneof![free, free_objects, redact, range].boxed()
    } else {
        let by_ref = (place(), any::<(u64, u64, u8, u8)>(), 512u64..1 << 20, key()).prop_map(
            move |((object, offset), (ref_guid, ref_object, checksum_type, flags), length, key)| {
                Record::WriteByRef(WriteByRef {
                    object,
                    offset,
                    length,
                    to_guid,
                    ref_guid,
                    ref_object,
                    ref_offset: offset,
                    checksum_type,
                    flags,
                    key,
                })
            },
        );
        prop_oneof![free, free_objects, redact, by_ref].boxed()
    }
}

fn body(raw: bool) -> BoxedStrategy<Record> {
    let other = if raw { write(raw).boxed() } else { embedded().boxed() };
    prop_oneof![object(raw), write(raw), spill(raw), other, small(raw)].boxed()
}

fn begin(raw: bool) -> impl Strategy<Value = Record> {
    let names = "[a-z/]{1,40}@[a-z0-9:_.-]{1,60}";
    (any::<(u64, u32, u32, u64)>(), names, 0u32..64).prop_map(
        move |((creation_time_s, objset_type, flags, from_guid), to_name, payload)| {
            let all = Features(Features::NONE.0 | 0x3FFB_0007);
            Record::Begin(Begin {
                payload_len: payload * 4,
                header_type: HeaderType::Substream,
                features: if raw { all } else { Features(all.0 & !Features::RAW.0) },
                creation_time_s,
                objset_type,
                flags,
                to_guid: GUID,
                from_guid,
                to_name: to_name.into_bytes(),
            })
        },
    )
}

#[derive(Debug, Clone)]
struct Made {
    records: Vec<Record>,
    /// The padding of each header, if it is not zero.
    paddings: Vec<Header>,
    seal: Seal,
    endian: Endian,
}

fn stream() -> impl Strategy<Value = Made> {
    let dialect = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<u8>());
    dialect.prop_flat_map(|(raw, package, sealed, big, padding)| {
        let substream = (begin(raw), vec(body(raw), 0..8));
        vec(substream, if package { 0..3 } else { 1..2 }).prop_map(move |substreams| {
            let end = |to_guid| Record::End(End { to_guid, ..End::default() });
            let mut records = Vec::new();
            if package {
                let header_type = HeaderType::Compound;
                records.push(Record::Begin(Begin {
                    header_type,
                    payload_len: 40,
                    ..Begin::default()
                }));
                records.push(end(0));
            }
            for (begin, body) in substreams {
                records.push(begin);
                records.extend(body);
                records.push(end(GUID));
            }
            if package {
                records.push(end(0));
            }
            let paddings = records.iter().map(|record| padding_of(record, padding)).collect();
            let seal = if sealed { Seal::PerRecord } else { Seal::EndOnly };
            Made { records, paddings, seal, endian: if big { Endian::Big } else { Endian::Little } }
        })
    })
}

/// END that nothing seals has to be bare; every other header may hold anything in its padding.
fn padding_of(record: &Record, padding: u8) -> Header {
    if record.kind() == Kind::End { [0; HEADER_LEN] } else { [padding; HEADER_LEN] }
}

/// The bytes of a stream whose payloads are noise.
fn encode(made: &Made) -> Vec<u8> {
    let mut writer = Writer::with_endian(made.seal, made.endian);
    let mut out = Vec::new();
    for (n, (record, padding)) in made.records.iter().zip(&made.paddings).enumerate() {
        let len = record.payload_len().expect("within limits");
        let payload: Vec<u8> = (0..len).map(|i| (i * 31 + n * 17) as u8 ^ (i >> 3) as u8).collect();
        writer.record_over(record, padding, &payload, &mut out).expect("a valid stream");
    }
    assert!(writer.is_done());
    out
}

fn same_but_for_checksums(a: &Record, b: &Record) -> bool {
    match (a, b) {
        (Record::End(a), Record::End(b)) => a.to_guid == b.to_guid,
        _ => a == b,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_records_come_back_from_any_pieces_and_are_written_to_the_same_bytes(
        made in stream(),
        mut cuts in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let bytes = encode(&made);
        let mut at: Vec<usize> = cuts.drain(..).map(|index| index.index(bytes.len() + 1)).collect();
        at.sort_unstable();
        let (items, end) = read_cut(&bytes, at.into_iter());
        prop_assert_eq!(end, Ok(()));
        prop_assert_eq!(items.len(), made.records.len());
        for (item, record) in items.iter().zip(&made.records) {
            prop_assert!(same_but_for_checksums(&item.record, record), "{:?} came back as {:?}", record, item.record);
        }
        prop_assert!(write_over(&items, made.seal) == bytes, "written differently");
    }

    #[test]
    fn byte_by_byte_gives_what_the_whole_gives(made in stream()) {
        let bytes = encode(&made);
        let (whole, _) = read_cut(&bytes, std::iter::empty());
        let (single, end) = read_cut(&bytes, 1..bytes.len());
        prop_assert_eq!(end, Ok(()));
        prop_assert!(whole == single);
    }

    #[test]
    fn any_header_is_decoded_and_encoded_to_the_same_bytes(
        number in 1u32..11,
        noise in vec(any::<u8>(), HEADER_LEN),
        big in any::<bool>(),
    ) {
        let endian = if big { Endian::Big } else { Endian::Little };
        let mut header: Header = noise.try_into().expect("its length");
        header[..4].copy_from_slice(&if big { number.to_be_bytes() } else { number.to_le_bytes() });
        let record = Record::decode(&header, endian).expect("a known type");
        let mut over = header;
        record.encode_over(&mut over, endian).expect("no name to refuse");
        prop_assert!(over == header, "encoding over the original changed it");
        let mut bare = [0; HEADER_LEN];
        record.encode_over(&mut bare, endian).expect("no name to refuse");
        prop_assert_eq!(Record::decode(&bare, endian), Ok(record));
    }

    #[test]
    fn random_bytes_are_refused_without_panic_and_without_memory(noise in vec(any::<u8>(), 0..4000), kind in 0u8..11) {
        let mut bytes = noise;
        // A head start: a real BEGIN, then a plausible type.
        let mut head = Vec::new();
        Writer::new(Seal::EndOnly)
            .record(&Record::Begin(Begin { to_guid: GUID, ..Begin::default() }), &[], &mut head)
            .expect("a BEGIN");
        if let Some(first) = bytes.first_chunk_mut::<4>() {
            *first = u32::from(kind).to_le_bytes();
        }
        if bytes.len() >= HEADER_LEN {
            bytes[SEAL_OFFSET..HEADER_LEN].fill(0);
        }
        head.extend(bytes);
        survives(&head);
    }

    #[test]
    fn damage_with_matching_seals_does_no_harm(
        made in stream(),
        hits in vec((any::<prop::sample::Index>(), 0usize..SEAL_OFFSET, any::<u8>()), 1..6),
    ) {
        let mut bytes = encode(&made);
        let (items, _) = read_cut(&bytes, std::iter::empty());
        for (record, byte, value) in hits {
            bytes[items[record.index(items.len())].offset as usize + byte] = value;
        }
        reseal(&mut bytes, &items);
        survives(&bytes);
    }
}

fn write_over(items: &[Owned], seal: Seal) -> Vec<u8> {
    let mut writer = Writer::with_endian(seal, items[0].endian);
    let mut out = Vec::new();
    for item in items {
        writer
            .record_over(&item.record, &item.header, &item.payload, &mut out)
            .expect("what was read");
    }
    out
}

/// Reads to the end or the first error; memory stays within what came.
fn survives(bytes: &[u8]) {
    let mut reader = Reader::new();
    let mut room = 0;
    for mut piece in bytes.chunks(97) {
        while let Ok(Some(item)) = reader.next(&mut piece) {
            assert!(item.payload().len() <= MAX_PAYLOAD.max(bytes.len()));
        }
        room = room.max(reader.buffered_capacity());
    }
    let _ = reader.finish();
    assert!(room <= 2 * bytes.len() + 4096, "{room} bytes of memory for {} of stream", bytes.len());
}

/// Makes the seals and END's checksums right again, as someone would who wants to deceive us.
fn reseal(bytes: &mut [u8], items: &[Owned]) {
    let put = |at: &mut [u8], sum: &Fletcher4, endian: Endian| {
        for (word, out) in sum.value().iter().zip(at.chunks_exact_mut(8)) {
            out.copy_from_slice(&match endian {
                Endian::Little => word.to_le_bytes(),
                Endian::Big => word.to_be_bytes(),
            });
        }
    };
    let mut sum = Fletcher4::new();
    for item in items {
        let from = item.offset as usize;
        let record = &mut bytes[from..from + HEADER_LEN + item.payload.len()];
        match item.part {
            Part::Begin | Part::PackageBegin => sum = Fletcher4::new(),
            Part::End | Part::PackageHeaderEnd => put(&mut record[8..40], &sum, item.endian),
            Part::Body | Part::PackageEnd => {}
        }
        sum.update(&record[..SEAL_OFFSET], item.endian);
        if item.sealed {
            put(&mut record[SEAL_OFFSET..HEADER_LEN], &sum, item.endian);
        }
        sum.update(&record[SEAL_OFFSET..], item.endian);
    }
}

#[test]
fn a_claimed_length_is_not_believed_before_the_bytes_come() {
    let mut bytes = Vec::new();
    let begin = Begin { payload_len: 64 << 20, to_guid: GUID, ..Begin::default() };
    let mut header = [0; HEADER_LEN];
    Record::Begin(begin).encode_over(&mut header, Endian::Little).expect("a BEGIN");
    bytes.extend_from_slice(&header);
    let mut reader = Reader::new();
    assert!(reader.next(&mut &bytes[..]).expect("so far so good").is_none());
    assert!(reader.buffered_capacity() < 4096);
}

#[test]
fn a_length_above_the_limit_is_refused_with_the_limit() {
    let begin = Begin { payload_len: (64 << 20) + 4, ..Begin::default() };
    let mut header = [0; HEADER_LEN];
    Record::Begin(begin).encode_over(&mut header, Endian::Little).expect("a BEGIN");
    let error = Reader::new().next(&mut &header[..]).expect_err("too long");
    assert_eq!(
        error.to_string(),
        "stream record 0 at byte 0: BEGIN claims a payload of 67108868 bytes, the limit is 67108864"
    );
}

#[test]
fn a_lower_limit_for_begin_is_kept_and_memory_never_exceeds_the_record() {
    let begin =
        |payload_len| Record::Begin(Begin { payload_len, to_guid: GUID, ..Begin::default() });
    let mut bytes = Vec::new();
    let payload = vec![7; 3 << 20];
    Writer::new(Seal::PerRecord).record(&begin(3 << 20), &payload, &mut bytes).expect("BEGIN");

    let mut small = Reader::with_begin_limit(1 << 20);
    let error = small.next(&mut &bytes[..]).expect_err("above the limit");
    assert!(matches!(error.problem, Problem::PayloadTooLong { limit: 1_048_576, .. }), "{error}");

    let mut reader = Reader::new();
    for mut piece in bytes.chunks(1000) {
        reader.next(&mut piece).expect("valid so far");
        assert!(reader.buffered_capacity() <= bytes.len());
    }
    assert_eq!(reader.records(), 1);
}

#[test]
fn the_writer_refuses_what_the_reader_would_refuse_and_stays_as_it_was() {
    let mut writer = Writer::new(Seal::PerRecord);
    let mut out = Vec::new();
    let begin = Record::Begin(Begin { to_guid: GUID, ..Begin::default() });
    let free = Record::Free(Free { object: 1, to_guid: GUID, ..Free::default() });
    let stranger = Record::Free(Free { object: 1, to_guid: 1, ..Free::default() });
    assert!(writer.record(&free, &[], &mut out).is_err());
    writer.record(&begin, &[], &mut out).expect("BEGIN");
    let before = out.clone();
    assert!(writer.record(&begin, &[], &mut out).is_err());
    assert!(writer.record(&stranger, &[], &mut out).is_err());
    assert!(writer.record(&free, &[0; 8], &mut out).is_err());
    let long = Record::Begin(Begin { to_name: vec![b'a'; 256], ..Begin::default() });
    assert!(Writer::new(Seal::PerRecord).record(&long, &[], &mut out).is_err());
    assert_eq!(out, before);
    writer.record(&free, &[], &mut out).expect("FREE");
    writer
        .record(&Record::End(End { to_guid: GUID, ..End::default() }), &[], &mut out)
        .expect("END");
    common::verify(&out).expect("a whole stream");
}
