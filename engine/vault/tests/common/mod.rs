//! What the tests of the vault share: golden streams, receiving, sending, and copies of a vault.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flocker_store::{
    DatasetName, Guid, ReceiveSpec, SendBase, SendSpec, Snapshot, SnapshotName, SnapshotSpec,
    Store, StoreError,
};
use flocker_vault::Vault;
use zfs_stream::record::{Begin, Record};
use zfs_stream::{Part, Reader, Seal, Writer};

pub(crate) fn name(name: &str) -> DatasetName {
    DatasetName::new(name).expect("a dataset's name")
}

pub(crate) fn snap(name: &str) -> SnapshotName {
    name.parse().expect("a snapshot's name")
}

pub(crate) fn new_vault() -> (tempfile::TempDir, Vault) {
    let dir = tempfile::tempdir().expect("a directory");
    let vault = Vault::create(dir.path().join("v")).expect("a vault");
    (dir, vault)
}

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

/// A golden stream.
pub(crate) fn golden(stream: &str) -> Vec<u8> {
    let path = golden_dir().join(format!("streams/{stream}.zstream.zst"));
    let packed = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    zstd::decode_all(&packed[..]).expect("a zstd file")
}

/// The names of all golden streams.
pub(crate) fn golden_names() -> Vec<String> {
    let files = std::fs::read_dir(golden_dir().join("streams")).expect("the streams").flatten();
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> =
        names.filter_map(|name| name.strip_suffix(".zstream.zst").map(str::to_owned)).collect();
    names.sort();
    names
}

/// A stream of these records, sealed anew.
pub(crate) fn written(items: &[(Record, Vec<u8>)]) -> Vec<u8> {
    let (mut writer, mut out) = (Writer::new(Seal::PerRecord), Vec::new());
    for (record, payload) in items {
        writer.record(record, payload, &mut out).unwrap_or_else(|e| panic!("{record:?}: {e}"));
    }
    out
}

/// A golden listing.
pub(crate) fn tree(listing: &str) -> String {
    let path = golden_dir().join("trees").join(listing);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The streams inside a package, each by itself.
pub(crate) fn substreams(package: &[u8]) -> Vec<Vec<u8>> {
    let (mut reader, mut rest, mut found) = (Reader::new(), package, Vec::new());
    while let Some(item) = reader.next(&mut rest).expect("a sound package") {
        match item.part {
            Part::Begin => found.push(item.bytes().to_vec()),
            Part::Body | Part::End => {
                let last: &mut Vec<u8> = found.last_mut().expect("a stream is open");
                last.extend_from_slice(item.bytes());
            }
            Part::PackageBegin | Part::PackageHeaderEnd | Part::PackageEnd => {}
        }
    }
    found
}

/// The BEGIN of a stream.
pub(crate) fn begin(stream: &[u8]) -> Begin {
    let mut rest = stream;
    match Reader::new().next(&mut rest).expect("a stream") {
        Some(item) => match item.record {
            Record::Begin(begin) => begin,
            other => panic!("{other:?}"),
        },
        None => panic!("too short"),
    }
}

/// The spec that fits a stream.
pub(crate) fn spec_for(stream: &[u8], to: &str) -> ReceiveSpec {
    let begin = begin(stream);
    let snapshot = snap(to);
    ReceiveSpec {
        dataset: snapshot.dataset().clone(),
        snapshot,
        to_guid: Guid(begin.to_guid),
        from_guid: (begin.from_guid != 0).then_some(Guid(begin.from_guid)),
        resumable: false,
        origin: None,
    }
}

pub(crate) fn receive_spec(
    vault: &Vault,
    spec: &ReceiveSpec,
    stream: &[u8],
) -> Result<Snapshot, StoreError> {
    let mut incoming = vault.receive(spec)?;
    // In odd pieces, as a pipe gives them.
    for piece in stream.chunks(100_003) {
        if incoming.write_all(piece).is_err() {
            break; // commit says why
        }
    }
    incoming.commit()
}

pub(crate) fn receive(vault: &Vault, to: &str, stream: &[u8]) -> Result<Snapshot, StoreError> {
    receive_spec(vault, &spec_for(stream, to), stream)
}

/// A send of the blocks as they are stored.
pub(crate) fn send_spec(from: Option<&str>, to: &str) -> SendSpec {
    SendSpec {
        from: from.map(|from| SendBase::Snapshot(snap(from))),
        to: snap(to),
        compressed: true,
        large_blocks: true,
        raw: false,
        resume: None,
    }
}

pub(crate) fn send_with(vault: &Vault, spec: &SendSpec) -> Result<Vec<u8>, StoreError> {
    let mut stream = vault.send(spec)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("reading a send");
    stream.finish()?;
    Ok(bytes)
}

pub(crate) fn send(vault: &Vault, from: Option<&str>, to: &str) -> Vec<u8> {
    send_with(vault, &send_spec(from, to)).unwrap_or_else(|e| panic!("sending {to}: {e}"))
}

pub(crate) fn snapshot_spec(snapshot: &str) -> SnapshotSpec {
    SnapshotSpec { names: vec![snap(snapshot)], quiesced: true, properties: Default::default() }
}

pub(crate) fn take(vault: &Vault, snapshot: &str) -> Snapshot {
    vault.snapshot(&snapshot_spec(snapshot)).expect("a snapshot").remove(0)
}

/// sha256 in hexadecimal, by coreutils.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sha256sum");
    child.stdin.take().expect("stdin").write_all(bytes).expect("writing");
    let out = child.wait_with_output().expect("sha256sum");
    String::from_utf8_lossy(&out.stdout)[..64].to_owned()
}

/// The checksums of all plain files of a snapshot.
pub(crate) fn file_sums(vault: &Vault, snapshot: &str) -> BTreeSet<String> {
    const PLAIN_FILE: u32 = 19;
    let at = snap(snapshot);
    let (_, objects) = vault.objects(&at).expect("objects");
    let mut sums = BTreeSet::new();
    for (object, _) in objects.into_iter().filter(|(_, t)| *t == PLAIN_FILE) {
        let (mut bytes, size) =
            vault.read_object(&at, object).expect("an object").expect("is there");
        let size = size.unwrap_or_else(|| panic!("object {object} has no size"));
        bytes.resize(usize::try_from(size).expect("small"), 0);
        sums.insert(sha256(&bytes));
    }
    sums
}

/// The checksums in a listing.
pub(crate) fn listed_sums(listing: &str) -> BTreeSet<String> {
    let is_sum = |word: &str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    tree(listing)
        .lines()
        .filter_map(|line| line.split_whitespace().next().filter(|w| is_sum(w)))
        .map(str::to_owned)
        .collect()
}

/// A copy of a whole vault as its files are now.
pub(crate) fn copy_vault(from: &Path, to: &Path) {
    let status =
        Command::new("cp").args(["-a", "--sparse=always"]).args([from, to]).status().expect("cp");
    assert!(status.success());
}

/// Says loudly that a test could not run.
pub(crate) fn skip(test: &str, reason: &str) {
    println!("SKIPPED: {test}: {reason}");
    eprintln!("SKIPPED: {test}: {reason}");
    if let Ok(log) = std::env::var("FLOCKER_SKIP_LOG") {
        let line = format!("{test}: {reason}\n");
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log);
        if let Ok(mut file) = file {
            let _ = file.write_all(line.as_bytes());
        }
    }
}
