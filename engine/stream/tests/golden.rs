//! Real streams of OpenZFS and zfs-fuse: read, understood as `zstream dump` understands them, written again
//! to the byte.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use common::{
    golden, golden_dir, names, read, read_cut, seal_of, unzstd, verify, whole_names, write,
};
use zfs_stream::inspect::inspect;
use zfs_stream::record::HeaderType;
use zfs_stream::{Endian, Features, Kind, Part, Problem, Record, Seal};

#[test]
fn every_golden_stream_is_read_whole_and_written_again_to_the_byte() {
    for name in whole_names() {
        let stream = golden(&name);
        let items = read(&stream);
        assert!(write(&items, seal_of(&name)) == stream, "{name} came back changed");
        let sealed = items
            .iter()
            .filter(|item| matches!(item.part, Part::Body | Part::End))
            .all(|i| i.sealed);
        assert_eq!(sealed, seal_of(&name) == Seal::PerRecord, "{name}");
    }
}

/// A directory of streams outside the repository may be checked too: `ZFS_STREAM_CORPUS=DIR cargo test`.
#[test]
fn every_stream_of_a_named_directory_is_written_again_to_the_byte() {
    let Ok(dir) = std::env::var("ZFS_STREAM_CORPUS") else {
        eprintln!("SKIPPED: ZFS_STREAM_CORPUS names no directory");
        return;
    };
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if name.ends_with(".zstream") && !name.contains("truncated") {
            let stream = std::fs::read(&path).expect("a file");
            let items = read(&stream);
            let seal =
                if items[1].sealed || items[2].sealed || items.get(3).is_some_and(|i| i.sealed) {
                    Seal::PerRecord
                } else {
                    Seal::EndOnly
                };
            assert!(write(&items, seal) == stream, "{name} came back changed");
            eprintln!("{name}: {} records", items.len());
        }
    }
}

#[test]
fn an_interrupted_stream_is_truncated_where_it_was_cut() {
    if names().is_empty() {
        return;
    }
    let (items, end) = read_cut(&golden("resume-part1-truncated"), std::iter::empty());
    let error = end.expect_err("half a stream");
    assert!(matches!(error.problem, Problem::Truncated { .. }), "{error}");
    assert_eq!(error.record, items.len() as u64);
}

#[test]
fn records_and_payload_bytes_are_those_that_zstream_counts() {
    if names().is_empty() {
        return;
    }
    let table = std::fs::read_to_string(golden_dir().join("totals.tsv")).expect("totals");
    let mut lines = table.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let columns = lines.next().expect("a head line");
    let mut checked = 0;
    for row in lines {
        let stated: BTreeMap<&str, &str> =
            columns.iter().copied().zip(row.iter().copied()).collect();
        let stream = golden(row[0]);
        let summary = inspect(&stream[..]).expect("memory does not fail");
        assert!(summary.is_whole(), "{}: {:?}", row[0], summary.verdict);
        for kind in Kind::ALL {
            let tally = summary.totals.get(&kind).copied().unwrap_or_default();
            let got = (tally.records.to_string(), tally.payload_bytes.to_string());
            let bytes = format!("{kind}_bytes");
            let want = (stated[kind.name()].to_string(), stated[bytes.as_str()].to_string());
            assert_eq!(got, want, "{} {kind}", row[0]);
        }
        assert_eq!(summary.records.to_string(), stated["records"], "{}", row[0]);
        assert_eq!(summary.bytes.to_string(), stated["stream_bytes"], "{}", row[0]);
        checked += 1;
    }
    assert_eq!(checked, 38, "every stream that has a dump");
}

#[test]
fn every_field_is_the_one_that_zstream_prints() {
    if names().is_empty() {
        return;
    }
    let mut lines = 0;
    for name in whole_names().iter().filter(|name| !name.starts_with("fuse-")) {
        let dump = String::from_utf8(unzstd(&format!("dumps/{name}.dump.txt.zst"))).expect("UTF-8");
        let stated = dump.lines().filter(|line| is_record_line(line)).map(str::to_string);
        let got: String = read(&golden(name))
            .iter()
            .map(|item| dump_record(&item.record, item.payload.len()))
            .collect();
        let mut got = got.lines().map(str::to_string);
        for want in stated {
            assert_eq!(got.next().as_deref(), Some(want.as_str()), "{name}");
            lines += 1;
        }
        assert_eq!(got.next(), None, "{name}");
    }
    assert!(lines > 4000, "only {lines} lines compared");
}

/// Lines of `zstream dump -v` that come from a record's header; the rest is nvlists and the summary.
fn is_record_line(line: &str) -> bool {
    const BEGIN_FIELDS: [&str; 9] = [
        "hdrtype",
        "features",
        "magic",
        "creation_time",
        "type",
        "flags",
        "toguid",
        "fromguid",
        "payloadlen",
    ];
    let field = line.trim_start().split(" = ").next().unwrap_or_default();
    if line.starts_with('\t') {
        return line.matches('\t').count() == 1
            && (BEGIN_FIELDS.contains(&field) || field == "toname");
    }
    let word = line.split(' ').next().unwrap_or_default();
    Kind::ALL.iter().any(|kind| kind.name() == word)
}

/// A record as `zstream dump -v` of OpenZFS 2.3 prints it.
fn dump_record(record: &Record, payload: usize) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let crypt = |c: &zfs_stream::record::Crypt| {
        format!("salt = {} iv = {} mac = {}", hex(&c.salt), hex(&c.iv), hex(&c.mac))
    };
    let mut out = String::new();
    match record {
        Record::Begin(r) => {
            let header_type = match r.header_type {
                HeaderType::Substream => 1,
                HeaderType::Compound => 2,
            };
            let _ = writeln!(
                out,
                "BEGIN record\n\thdrtype = {header_type}\n\tfeatures = {:x}",
                r.features.0
            );
            let _ = writeln!(out, "\tmagic = 2f5bacbac\n\tcreation_time = {:x}", r.creation_time_s);
            let _ = writeln!(out, "\ttype = {}\n\tflags = 0x{:x}", r.objset_type, r.flags);
            let _ = writeln!(out, "\ttoguid = {:x}\n\tfromguid = {:x}", r.to_guid, r.from_guid);
            let _ = write!(out, "\ttoname = {}\n\tpayloadlen = {}", r.name(), r.payload_len);
        }
        Record::Object(r) => {
            let _ = write!(
                out,
                "OBJECT object = {} type = {} bonustype = {} blksz = {} bonuslen = {} dn_slots = {} \
                 raw_bonuslen = {} flags = {} maxblkid = {} indblkshift = {} nlevels = {} nblkptr = {}",
                r.object,
                r.object_type,
                r.bonus_type,
                r.block_size,
                r.bonus_len,
                r.dn_slots,
                r.raw_bonus_len,
                r.flags,
                r.maxblkid,
                r.indblkshift,
                r.nlevels,
                r.nblkptr
            );
        }
        Record::FreeObjects(r) => {
            let _ = write!(out, "FREEOBJECTS firstobj = {} numobjs = {}", r.first, r.count);
        }
        Record::Write(r) => {
            let _ = write!(
                out,
                "WRITE object = {} type = {} checksum type = {} compression type = {} flags = {} offset = {} \
                 logical_size = {} compressed_size = {} payload_size = {payload} props = {:x} {}",
                r.object,
                r.object_type,
                r.checksum_type,
                r.compression.0,
                r.flags,
                r.offset,
                r.logical_size,
                r.compressed_size,
                r.key.prop,
                crypt(&r.crypt)
            );
        }
        Record::Free(r) => {
            let _ = write!(
                out,
                "FREE object = {} offset = {} length = {}",
                r.object, r.offset, r.length as i64
            );
        }
        Record::End(r) => {
            let [a, b, c, d] = r.checksum;
            let _ = write!(out, "END checksum = {a:x}/{b:x}/{c:x}/{d:x}");
        }
        Record::Spill(r) => {
            let _ = write!(
                out,
                "SPILL block for object = {} length = {} flags = {} compression type = {} compressed_size = {} \
                 payload_size = {payload} {}",
                r.object,
                r.length,
                r.flags,
                r.compression.0,
                r.compressed_size,
                crypt(&r.crypt)
            );
        }
        Record::WriteEmbedded(r) => {
            let _ = write!(
                out,
                "WRITE_EMBEDDED object = {} offset = {} length = {} toguid = {:x} comp = {} etype = {} \
                 lsize = {} psize = {}",
                r.object,
                r.offset,
                r.length,
                r.to_guid,
                r.compression.0,
                r.embedded_type,
                r.logical_size,
                r.physical_size
            );
        }
        Record::ObjectRange(r) => {
            let _ = write!(
                out,
                "OBJECT_RANGE firstobj = {} numslots = {} flags = {} {}",
                r.first,
                r.slots,
                r.flags,
                crypt(&r.crypt)
            );
        }
        Record::Redact(r) => {
            let _ = write!(
                out,
                "REDACT object = {} offset = {} length = {}",
                r.object, r.offset, r.length
            );
        }
        Record::WriteByRef(_) => panic!("no golden stream has WRITE_BYREF"),
    }
    out.push('\n');
    out
}

#[test]
fn the_golden_streams_cover_every_record_type_but_write_byref() {
    if names().is_empty() {
        return;
    }
    let mut seen: BTreeMap<Kind, usize> = BTreeMap::new();
    for name in whole_names() {
        read(&golden(&name))
            .iter()
            .for_each(|item| *seen.entry(item.record.kind()).or_default() += 1);
    }
    for kind in Kind::ALL {
        assert_eq!(seen.contains_key(&kind), kind != Kind::WriteByRef, "{kind}: {seen:?}");
    }
}

#[test]
fn a_report_says_what_the_stream_is() {
    if names().is_empty() {
        return;
    }
    let report = |name: &str| inspect(&golden(name)[..]).expect("memory does not fail");

    let full = report("full-Lec");
    let [substream] = &full.substreams[..] else { panic!("one substream") };
    assert_eq!(substream.to_name, "tank/g/plain@s1");
    assert_eq!(substream.objset, "filesystem");
    assert_eq!(
        (substream.from_guid, substream.sealed, substream.complete),
        (None, Some(true), true)
    );
    assert!(
        substream.features.contains(&"embed_data") && substream.features.contains(&"compressed")
    );
    assert_eq!(substream.records[&Kind::WriteEmbedded].records, 44);
    assert!(substream.compressions.contains_key("lz4"), "{:?}", substream.compressions);

    let package = report("repl-R-incr-I");
    assert!(package.package);
    assert_eq!(package.substreams.len(), 6);
    assert!(package.substreams.iter().all(|s| s.from_guid.is_some() && s.complete));

    let resumed = report("resume-part2").substreams[0].resumed.expect("a resumed stream");
    assert_eq!((resumed.object, resumed.offset), (Some(2), Some(0x40000)));

    assert!(report("raw-full").substreams[0].raw);
    assert!(report("redacted").substreams[0].redacted);
    assert_eq!(report("zvol-full").substreams[0].objset, "volume");
    assert_eq!(report("fuse-full-s1").substreams[0].sealed, Some(false));
    assert!(report("comp-zstd-c").substreams[0].compressions.contains_key("zstd"));

    let half = report("resume-part1-truncated");
    assert!(!half.is_whole());
    assert!(!half.substreams[0].complete);
    assert_eq!(
        half.bytes,
        half.totals.values().map(|t| t.payload_bytes + 312 * t.records).sum::<u64>()
    );
}

#[cfg(feature = "serde")]
#[test]
fn a_report_becomes_json_with_names_instead_of_numbers() {
    if names().is_empty() {
        return;
    }
    let json = |bytes: &[u8]| {
        serde_json::to_value(inspect(bytes).expect("memory does not fail")).expect("plain structs")
    };
    let report = json(&golden("zvol-incr"));
    assert_eq!(report["verdict"]["state"], "whole");
    assert_eq!(report["endian"], "little");
    assert_eq!(report["totals"]["free_objects"]["records"], 1);
    assert_eq!(report["substreams"][0]["objset"], "volume");
    assert_eq!(report["substreams"][0]["sealed"], true);

    let bad = json(&golden("zvol-incr")[..1000]);
    assert_eq!(bad["verdict"]["state"], "bad");
    assert_eq!(bad["verdict"]["record"], 3);
    assert_eq!(bad["verdict"]["message"], "the stream is cut off here: 64 of 312 bytes");
}

/// The guids in the streams are those that `zfs get guid` said.
#[test]
fn guids_are_those_of_the_snapshots() {
    if names().is_empty() {
        return;
    }
    let facts = std::fs::read_to_string(golden_dir().join("fuse-guids.tsv")).expect("guids");
    let guids: BTreeMap<&str, u64> = facts
        .lines()
        .filter_map(|l| l.split_once('\t'))
        .map(|(n, g)| (n, g.parse().expect("a number")))
        .collect();
    let summary = inspect(&golden("fuse-incr-s1-s3")[..]).expect("memory");
    assert_eq!(summary.substreams[0].to_guid, guids["streampool/d@s3"]);
    assert_eq!(summary.substreams[0].from_guid, Some(guids["streampool/d@s1"]));
}

#[test]
fn a_big_endian_stream_gives_the_same_records_and_comes_back_to_the_byte() {
    for name in whole_names() {
        let little = read(&golden(&name));
        let mut swapped = little.clone();
        swapped.iter_mut().for_each(|item| item.endian = Endian::Big);
        let big = write(&swapped, seal_of(&name));
        let items = read(&big);
        assert_eq!(items.len(), little.len());
        for (a, b) in items.iter().zip(&little) {
            assert_eq!(b.endian, Endian::Little);
            assert_eq!(a.endian, Endian::Big);
            assert!(a.payload == b.payload);
            match (&a.record, &b.record) {
                (Record::End(a), Record::End(b)) => assert_eq!(a.to_guid, b.to_guid),
                (a, b) => assert_eq!(a, b),
            }
        }
        assert!(write(&items, seal_of(&name)) == big, "{name}");
    }
}

#[test]
fn features_of_every_golden_stream_are_known() {
    for name in whole_names() {
        for item in read(&golden(&name)) {
            if let Record::Begin(begin) = item.record {
                assert_eq!(begin.features.unknown(), Features::NONE, "{name}: {}", begin.features);
            }
        }
    }
}

#[test]
fn verifying_alone_takes_every_golden_stream() {
    for name in whole_names() {
        verify(&golden(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
