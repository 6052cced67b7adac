//! Spoils the demo's result before it is checked: the proof that the check can fail.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

use super::{ledger, preload};
use crate::args::Sabotage;

/// Spoils what lies in `dir`.
///
/// # Errors
/// There are too few records to spoil, or the system's.
pub(crate) fn spoil(dir: &Path, how: Sabotage) -> anyhow::Result<()> {
    let path = match how {
        Sabotage::Preload => dir.join(preload::FILE),
        Sabotage::Lose | Sabotage::Repeat | Sabotage::Swap | Sabotage::Alter => {
            dir.join(ledger::FILE)
        }
    };
    let mut bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    if how == Sabotage::Preload {
        let middle = bytes.len() / 2;
        *bytes.get_mut(middle).context("the file is empty")? ^= 1;
    } else {
        let mut lines: Vec<Vec<u8>> =
            bytes.chunks(ledger::LINE_BYTES).map(<[u8]>::to_vec).collect();
        // The second record: acknowledged for sure, and not the end of the file.
        anyhow::ensure!(lines.len() >= 4, "too few records to spoil one");
        match how {
            Sabotage::Lose => drop(lines.remove(1)),
            Sabotage::Repeat => lines.insert(2, lines[1].clone()),
            Sabotage::Swap => lines.swap(1, 2),
            Sabotage::Alter | Sabotage::Preload => lines[1][30] ^= 1,
        }
        bytes = lines.concat();
    }
    fs::write(&path, bytes).with_context(|| path.display().to_string())
}
