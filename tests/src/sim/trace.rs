//! What happened, line by line. Off in ordinary runs: a seed that fails is run again with it on.

use std::collections::VecDeque;

/// Most lines that are kept; the hash covers all of them.
const KEPT_LINES: usize = 400;

/// The trace of a run.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    on: bool,
    print: bool,
    hash: u64,
    lines: VecDeque<String>,
}

impl Trace {
    /// `on`: keep lines and hash them. `print`: write each to standard output as well.
    pub fn new(on: bool, print: bool) -> Self {
        Self { on, print, hash: 0xcbf2_9ce4_8422_2325, lines: VecDeque::new() }
    }

    /// Whether lines are wanted at all.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// One more line.
    pub fn push(&mut self, line: &str) {
        let line = shorten(line);
        for byte in line.bytes() {
            // FNV-1a: enough to see whether two runs were the same.
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.print {
            println!("{line}");
        }
        if self.lines.len() == KEPT_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// Over every line since the start.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The newest lines, oldest first.
    pub fn tail(&self, count: usize) -> Vec<String> {
        let skip = self.lines.len().saturating_sub(count);
        self.lines.iter().skip(skip).cloned().collect()
    }
}

/// What `Debug` prints of our types, as a person would say it.
fn shorten(line: &str) -> String {
    let mut text = line.to_owned();
    for index in 0..4u8 {
        let long = format!("Fingerprint({0:02x}{0:02x}{0:02x}{0:02x})", index + 1);
        text = text.replace(&long, &format!("n{index}"));
        let long = format!("AttemptId({0:02x}{0:02x}{0:02x}{0:02x}.", index + 1);
        text = text.replace(&long, &format!("attempt(n{index}."));
    }
    const SHORT: [(&str, &str); 14] = [
        ("Message { peer:", "{ from:"),
        ("message: Message {", "{"),
        ("Failure { remedy: Retry, code: Other, message: \"a fault was injected", "Failure { \""),
        ("DatasetName(", "("),
        ("partial: None", ""),
        ("bookmarks: [], ", ""),
        ("kind: Filesystem, ", ""),
        ("kind: Directory, ", ""),
        ("createtxg", "txg"),
        ("Snapshot { name: SnapshotName", "{ "),
        ("UnitId", "unit"),
        ("VolumeId", "volume"),
        ("dataset: ", ""),
        ("Inventory ", ""),
    ];
    for (long, short) in SHORT {
        text = text.replace(long, short);
    }
    text
}
