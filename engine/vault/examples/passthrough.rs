//! Applies ZFS send streams to a vault in a temporary directory, and writes to stdout what the vault makes of
//! them: so that it can be given to `zfs receive`.
//!
//! ```text
//! passthrough [FLAGS] STREAM... > out.zstream
//!   STREAM            a stream, or a package of streams, also compressed with zstd; applied in this order
//!   --from-short S    an increment from the snapshot @S; without it the last snapshot in full
//!   --to-short S      the snapshot to send; without it the last one that arrived
//!   --raw             as `zfs send -w`, which a sealed dataset needs
//!   --plain           neither -c nor -L
//!   --resume-cut N    write only the first N bytes, as a connection that breaks off
//!   --token TOKEN     as `zfs send -t`: only the rest
//! ```
//! A stream that is cut off leaves its part in the vault and its token on stderr, and the next STREAM may be
//! the rest that `zfs send -t` made of it. To try both ways:
//!
//! ```text
//! passthrough full.zstream --resume-cut 500000 | zfs receive -s tank/x
//! passthrough full.zstream --token $(zfs get -Ho value receive_resume_token tank/x) | zfs receive -s tank/x
//! ```

use std::collections::BTreeMap;
use std::io::{Read, Write};

use flocker_store::{
    DatasetName, Guid, ReceiveSpec, SendBase, SendSpec, SnapshotName, Store, StoreError,
};
use flocker_vault::Vault;
use zfs_stream::format::begin_flag;
use zfs_stream::record::{Begin, Record};
use zfs_stream::{Features, Part, Reader};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "usage: passthrough [--from-short S] [--to-short S] [--raw] [--plain] \
                     [--resume-cut N] [--token TOKEN] STREAM...";

#[derive(Default)]
struct Options {
    streams: Vec<String>,
    from: Option<String>,
    to: Option<String>,
    raw: bool,
    plain: bool,
    cut: Option<u64>,
    token: Option<String>,
}

fn main() -> Outcome<()> {
    let options = options()?;
    let dir = tempfile::tempdir()?;
    let vault = Vault::create(dir.path().join("vault"))?;
    let mut applied = Applied::default();
    for path in &options.streams {
        for stream in split(&read(path)?)? {
            applied.apply(&vault, path, &stream)?;
        }
    }
    let mut spec = applied.spec(&options)?;
    spec.resume = options.token;
    let mut stream = vault.send(&spec)?;
    let mut out = std::io::stdout().lock();
    match options.cut {
        Some(bytes) => {
            std::io::copy(&mut (&mut stream).take(bytes), &mut out)?;
        }
        None => {
            std::io::copy(&mut stream, &mut out)?;
            stream.finish()?;
        }
    }
    out.flush()?;
    Ok(())
}

fn options() -> Outcome<Options> {
    let mut options = Options::default();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(USAGE);
        match arg.as_str() {
            "--from-short" => options.from = Some(value()?),
            "--to-short" => options.to = Some(value()?),
            "--raw" => options.raw = true,
            "--plain" => options.plain = true,
            "--resume-cut" => options.cut = Some(value()?.parse()?),
            "--token" => options.token = Some(value()?),
            flag if flag.starts_with("--") => return Err(USAGE.into()),
            _ => options.streams.push(arg),
        }
    }
    if options.streams.is_empty() { Err(USAGE.into()) } else { Ok(options) }
}

fn read(path: &str) -> Outcome<Vec<u8>> {
    const ZSTD: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
    let bytes = std::fs::read(path).map_err(|e| format!("{path}: {e}"))?;
    Ok(if bytes.starts_with(&ZSTD) { zstd::decode_all(&bytes[..])? } else { bytes })
}

/// The streams inside a package; a single stream as it is.
fn split(bytes: &[u8]) -> Outcome<Vec<Vec<u8>>> {
    let (mut reader, mut rest) = (Reader::new(), bytes);
    let mut found: Vec<Vec<u8>> = Vec::new();
    let mut package = false;
    while let Ok(Some(item)) = reader.next(&mut rest) {
        match item.part {
            Part::PackageBegin => package = true,
            Part::PackageHeaderEnd | Part::PackageEnd => {}
            Part::Begin if !package => return Ok(vec![bytes.to_vec()]),
            Part::Begin => found.push(item.bytes().to_vec()),
            Part::Body | Part::End => {
                found.last_mut().ok_or("a record before BEGIN")?.extend_from_slice(item.bytes());
            }
        }
    }
    reader.finish()?;
    Ok(found)
}

fn begin_of(stream: &[u8]) -> Outcome<Begin> {
    let mut rest = stream;
    match Reader::new().next(&mut rest)?.map(|item| item.record) {
        Some(Record::Begin(begin)) => Ok(begin),
        _ => Err("it is too short for a stream".into()),
    }
}

/// Which snapshots are where.
#[derive(Default)]
struct Applied {
    dataset_of: BTreeMap<u64, DatasetName>,
    names: Vec<SnapshotName>,
    datasets: usize,
}

impl Applied {
    fn apply(&mut self, vault: &Vault, path: &str, stream: &[u8]) -> Outcome<()> {
        let begin = begin_of(stream).map_err(|e| format!("{path}: {e}"))?;
        let clone = begin.flags & begin_flag::CLONE != 0;
        let resumes = begin.features.contains(Features::RESUMING);
        let known = if resumes { begin.to_guid } else { begin.from_guid };
        let dataset = match self.dataset_of.get(&known) {
            Some(dataset) if resumes || !clone => dataset.clone(),
            _ => {
                self.datasets += 1;
                format!("vault/d{}", self.datasets).parse()?
            }
        };
        let name = begin.name().into_owned();
        let snapshot = dataset.snapshot(name.rsplit('@').next().unwrap_or("s"))?;
        self.dataset_of.insert(begin.to_guid, dataset.clone());
        let mut incoming = vault.receive(&ReceiveSpec {
            dataset: dataset.clone(),
            snapshot: snapshot.clone(),
            to_guid: Guid(begin.to_guid),
            from_guid: (!begin.is_full()).then_some(Guid(begin.from_guid)),
            resumable: true,
            origin: None,
        })?;
        // An error is said by commit.
        let _ = incoming.write_all(stream);
        match incoming.commit() {
            Ok(_) => {
                eprintln!("{path}: {name} is {snapshot}");
                self.names.push(snapshot);
                Ok(())
            }
            Err(error @ StoreError::BadStream { .. }) => {
                let found = vault.inventory(&dataset)?;
                let kept = found.partial.ok_or_else(|| format!("{path}: {error}"))?;
                eprintln!("{path}: {error}; it goes on with\n{}", kept.token);
                Ok(())
            }
            Err(error) => Err(format!("{path}: {error}").into()),
        }
    }

    fn named(&self, short: &str) -> Outcome<SnapshotName> {
        let found = self.names.iter().rev().find(|name| name.short() == short);
        found.cloned().ok_or_else(|| format!("no snapshot @{short} arrived").into())
    }

    fn spec(&self, options: &Options) -> Outcome<SendSpec> {
        let to = match &options.to {
            Some(short) => self.named(short)?,
            None => self.names.last().cloned().ok_or("no snapshot arrived")?,
        };
        let from = options.from.as_ref().map(|short| self.named(short)).transpose()?;
        Ok(SendSpec {
            from: from.map(SendBase::Snapshot),
            to,
            compressed: !options.plain,
            large_blocks: !options.plain,
            raw: options.raw,
            resume: None,
        })
    }
}
