//! `stream inspect` and `stream verify`: files that `zfs send` made.
//!
//! Owns: opening them and printing the report. Leaves to others: reading and checking (`zfs_stream`).

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use zfs_stream::inspect::{Substream, Summary, Tally, Verdict, inspect};

use super::Context;
use crate::args::StreamCommand;
use crate::exit::{Exit, Negative};
use crate::out::{Align, Theme, clean, table};
use crate::quantity::{bytes, count};
use crate::render::rounds::moment;

/// Files from this size on get a progress bar on a terminal, bytes.
const BAR_FROM: u64 = 64 << 20;

/// What `stream inspect --json` prints.
#[derive(Serialize)]
struct Inspection<'a> {
    file: &'a Path,
    whole: bool,
    #[serde(flatten)]
    summary: &'a Summary,
}

/// What `stream verify --json` prints.
#[derive(Serialize)]
struct Verification<'a> {
    file: &'a Path,
    whole: bool,
    verdict: &'a Verdict,
    records: u64,
    bytes: u64,
    snapshots: Vec<&'a str>,
}

/// `stream inspect`, `stream verify`
pub(super) fn stream(context: &Context<'_>, command: &StreamCommand) -> anyhow::Result<Exit> {
    let out = context.out;
    let (file, verify) = match command {
        StreamCommand::Inspect(args) => (args.file.as_path(), false),
        StreamCommand::Verify(args) => (args.file.as_path(), true),
    };
    let summary = read(context, file)?;
    let whole = summary.is_whole();
    match (out.json, verify) {
        (true, false) => out.object(&Inspection { file, whole, summary: &summary })?,
        (true, true) => out.object(&Verification {
            file,
            whole,
            verdict: &summary.verdict,
            records: summary.records,
            bytes: summary.bytes,
            snapshots: summary
                .substreams
                .iter()
                .map(|substream| substream.to_name.as_str())
                .collect(),
        })?,
        (false, false) => out.text(&inspected(&summary, out.theme))?,
        (false, true) if whole => out.line(verified(&summary, out.theme))?,
        (false, true) => {}
    }
    match &summary.verdict {
        Verdict::Whole => Ok(Exit::Ok),
        Verdict::Bad {
            record,
            offset,
            message,
            ..
        } => Err(Negative(format!(
            "{}: record {record} at byte {offset}: {message}\n\
             Nothing from this record on may be used: send the snapshot again, or copy the file again",
            file.display()
        ))
        .into()),
    }
}

fn read(context: &Context<'_>, file: &Path) -> anyhow::Result<Summary> {
    let failed = || format!("cannot read {}", file.display());
    if file == Path::new("-") {
        if io::stdin().is_terminal() {
            return Err(anyhow::anyhow!(
                "standard input is a terminal: pipe a stream into it, as in \
                 `zfs send tank/db@monday | flocker-repl stream verify -`"
            ));
        }
        return inspect(io::stdin().lock()).with_context(failed);
    }
    let source = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let meta = source.metadata().with_context(failed)?;
    if meta.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory)).with_context(failed);
    }
    if context.out.terminal && meta.len() >= BAR_FROM {
        let bar = ProgressBar::new(meta.len()).with_style(
            ProgressStyle::with_template(
                "{bar:30.cyan} {binary_bytes} of {binary_total_bytes} at {binary_bytes_per_sec}, {eta} left",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        let summary = inspect(bar.wrap_read(source)).with_context(failed);
        bar.finish_and_clear();
        return summary;
    }
    inspect(Unbuffered(source)).with_context(failed)
}

/// Only `Read`, so that nothing else about the file is used.
struct Unbuffered(File);

impl Read for Unbuffered {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

fn verified(summary: &Summary, theme: Theme) -> String {
    format!(
        "{} whole: {}, {}, {}",
        theme.mark(true),
        count(summary.substreams.len() as u64 + summary.substreams_unlisted, "snapshot"),
        count(summary.records, "record"),
        bytes(summary.bytes)
    )
}

fn inspected(summary: &Summary, theme: Theme) -> String {
    let mut text = String::new();
    if summary.package {
        text.push_str(&format!(
            "package of {}\n",
            count(summary.substreams.len() as u64 + summary.substreams_unlisted, "snapshot")
        ));
    }
    for substream in &summary.substreams {
        one(&mut text, substream, theme);
    }
    if summary.substreams_unlisted > 0 {
        text.push_str(&format!("and {} more\n", count(summary.substreams_unlisted, "snapshot")));
    }
    text.push_str(&tallies(
        "in all",
        summary.totals.iter().map(|(kind, tally)| (kind.name(), tally)),
        theme,
    ));
    if summary.is_whole() {
        text.push_str(&format!("{}\n", verified(summary, theme)));
    }
    text
}

fn one(text: &mut String, substream: &Substream, theme: Theme) {
    let base =
        substream.from_guid.map_or_else(|| "full".to_owned(), |guid| format!("from guid {guid}"));
    text.push_str(&format!(
        "{}  {}, guid {}, {base}\n",
        theme.strong(&clean(&substream.to_name)),
        substream.objset,
        substream.to_guid
    ));
    let created_ms =
        i64::try_from(substream.creation_time_s).unwrap_or(i64::MAX).saturating_mul(1000);
    let mut facts = vec![format!("made {}", moment(created_ms))];
    facts.push(match substream.sealed {
        Some(true) => "every record sealed".into(),
        Some(false) => "one checksum at the end".into(),
        None => "no records".into(),
    });
    if let Some(resumed) = substream.resumed {
        facts.push(match (resumed.object, resumed.offset) {
            (Some(object), Some(offset)) => {
                format!("resumed at object {object}, offset {offset}")
            }
            _ => "resumed".into(),
        });
    }
    if !substream.complete {
        facts.push(theme.bad("not complete"));
    }
    text.push_str(&format!("  {}\n", facts.join(" · ")));
    for (what, words) in [("features", &substream.features), ("flags", &substream.flags)] {
        if !words.is_empty() {
            text.push_str(&format!("  {what} {}\n", words.join(" ")));
        }
    }
    if !substream.compressions.is_empty() {
        let parts: Vec<String> = substream
            .compressions
            .iter()
            .map(|(name, tally)| {
                format!(
                    "{name}: {} in {}",
                    bytes(tally.payload_bytes),
                    count(tally.records, "block")
                )
            })
            .collect();
        text.push_str(&format!(
            "  blocks {}; {} when decompressed\n",
            parts.join(", "),
            bytes(substream.logical_bytes)
        ));
    }
}

fn tallies<'a>(
    title: &str,
    tallies: impl Iterator<Item = (&'a str, &'a Tally)>,
    theme: Theme,
) -> String {
    let header = [(title, Align::Left), ("records", Align::Right), ("payload", Align::Right)];
    let rows: Vec<Vec<String>> = tallies
        .map(|(name, tally)| {
            vec![name.to_owned(), tally.records.to_string(), bytes(tally.payload_bytes)]
        })
        .collect();
    table(theme, 2, &header, &rows)
}
