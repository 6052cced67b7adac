//! From the words of a command that failed to a typed error.
//!
//! Owns: what OpenZFS 2.1 to 2.4 and zfs-fuse print when they refuse (`tests/golden/cli`, seen on
//! OpenZFS 2.3.9 and zfs-fuse 0.7.0; the sentences of other versions from `lib/libzfs` of OpenZFS,
//! read for facts). Leaves to others: checks made beforehand, which are preferred because they do not
//! depend on words. What is not recognised stays a [`StoreError::Command`] with everything said.

use flocker_store::{DatasetName, Guid, StoreError};

use crate::run::Finished;

/// What a command was about, for errors that name it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About<'a> {
    /// The dataset worked on.
    pub(crate) dataset: &'a DatasetName,
    /// The guid an incremental receive starts from.
    pub(crate) base: Option<Guid>,
}

impl<'a> About<'a> {
    /// A command about one dataset.
    pub(crate) fn dataset(dataset: &'a DatasetName) -> Self {
        Self { dataset, base: None }
    }
}

const PERMISSION: &[&str] = &["permission denied", "must be run as root", "not permitted"];
const NO_SPACE: &[&str] = &["out of space", "no space left", "quota exceeded", "exceeds quota"];
const DAMAGED: &[&str] = &[
    "checksum mismatch",
    "incomplete stream",
    "invalid stream",
    "invalid backup stream",
    "failed to read from stream",
    "bad magic number",
    "resume token is corrupt",
    "invalid record type",
];
const UNSUPPORTED: &[&str] = &[
    "raw receive",
    "raw encrypted",
    "unsupported feature",
    "unsupported version",
    "stream has unsupported",
    "pool must be upgraded",
    "incompatible embedded data",
    "large block",
    "requires the",
    "redacted",
    "encryption property",
    "key must be loaded",
];
const BUSY: &[&str] = &[
    "dataset is busy",
    "target is busy",
    "device is busy",
    "device or resource busy",
    "resource busy",
    "umount failed",
    "unmount failed",
    "partially-complete state",
];
const MISSING: &[&str] =
    &["does not exist", "could not find any snapshots", "no such pool", "no such dataset"];

/// Whether any of the sentences is in the text, whatever the line breaks and the case.
fn says(flat: &str, sentences: &[&str]) -> bool {
    sentences.iter().any(|sentence| flat.contains(sentence))
}

/// The typed error for a command that failed.
pub(crate) fn explain(finished: &Finished, about: About<'_>) -> StoreError {
    let flat = flat(&finished.stderr, about);
    let dataset = || about.dataset.clone();
    let detail = || finished.stderr.trim().replace('\n', " ");
    if says(&flat, PERMISSION) {
        return StoreError::Permission { command: finished.command.clone(), detail: detail() };
    }
    if says(&flat, NO_SPACE) {
        return StoreError::NoSpace { dataset: dataset(), detail: detail() };
    }
    if flat.contains("been modified since most recent snapshot")
        || flat.contains("more recent snapshots")
    {
        return StoreError::Modified { dataset: dataset(), detail: detail() };
    }
    if flat.contains("does not match incremental source") {
        return no_base(finished, about);
    }
    if let Some(error) = about_names(finished, &flat, about) {
        return error;
    }
    if says(&flat, DAMAGED) {
        return StoreError::BadStream { dataset: dataset(), detail: detail() };
    }
    if says(&flat, UNSUPPORTED) {
        return StoreError::Unsupported {
            dataset: dataset(),
            feature: format!("this stream ({})", detail()),
        };
    }
    if says(&flat, BUSY) {
        return StoreError::Busy { dataset: dataset(), holders: Vec::new() };
    }
    unknown(finished)
}

/// The sentences alone: lower case, on one line, without the names, which may hold any words at all
/// (`tank/out of space` is a dataset).
fn flat(stderr: &str, about: About<'_>) -> String {
    let between_quotes = stderr.split('\'').enumerate();
    let unquoted: Vec<&str> =
        between_quotes.filter_map(|(n, text)| (n % 2 == 0).then_some(text)).collect();
    unquoted
        .join(" ")
        .replace(about.dataset.as_str(), " ")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .to_lowercase()
}

/// A failure whose words mean nothing to us.
pub(crate) fn unknown(finished: &Finished) -> StoreError {
    StoreError::Command {
        command: finished.command.clone(),
        status: finished.ending.to_string(),
        stderr: finished.stderr.clone(),
    }
}

fn no_base(finished: &Finished, about: About<'_>) -> StoreError {
    match about.base {
        Some(base) => StoreError::NoBase { dataset: about.dataset.clone(), base },
        None => unknown(finished),
    }
}

/// Errors that turn on a name: it is there, it is not there, something hangs on it.
fn about_names(finished: &Finished, flat: &str, about: About<'_>) -> Option<StoreError> {
    let name = quoted(&finished.stderr).unwrap_or_else(|| about.dataset.to_string());
    if flat.contains("dependent clones")
        || flat.contains("has children")
        || flat.contains("is cloned")
    {
        return Some(StoreError::Kept { name, by: dependents(&finished.stderr) });
    }
    if flat.contains("must specify -f to overwrite")
        || flat.contains("already exists")
        || flat.contains("bookmark exists")
    {
        let name = after(&finished.stderr, "cannot restore to ").unwrap_or(name);
        return Some(StoreError::Exists {
            name: after(&finished.stderr, "destination '").unwrap_or(name),
        });
    }
    if flat.contains("not an earlier snapshot from the same fs") {
        return Some(StoreError::NoSnapshot {
            name: format!("the given base as an earlier snapshot of the filesystem of {name}"),
        });
    }
    if !says(flat, MISSING) {
        return None;
    }
    if let Some(base) = after(&finished.stderr, "incremental source (") {
        return Some(StoreError::NoSnapshot { name: base });
    }
    let name = after(&finished.stderr, "could not send ").unwrap_or(name);
    let name = after(&finished.stderr, "destination '").unwrap_or(name);
    if name.contains(['@', '#']) {
        return Some(StoreError::NoSnapshot { name });
    }
    let missing = DatasetName::reported(name).unwrap_or_else(|_| about.dataset.clone());
    Some(StoreError::NoDataset { dataset: missing })
}

/// The first name between quotes; ZFS names hold none.
fn quoted(stderr: &str) -> Option<String> {
    let (_, rest) = stderr.split_once('\'')?;
    let (name, _) = rest.split_once('\'')?;
    (!name.is_empty() && !name.starts_with('-')).then(|| name.to_owned())
}

/// What follows `marker`, to the next quote, bracket or colon that is followed by a space.
fn after(stderr: &str, marker: &str) -> Option<String> {
    let (_, rest) = stderr.split_once(marker)?;
    let end =
        rest.find(['\'', ')', '\n']).into_iter().chain(rest.find(": ")).min().unwrap_or(rest.len());
    Some(rest[..end].to_owned())
}

/// The names that ZFS lists under "use '-r' to destroy the following datasets:".
fn dependents(stderr: &str) -> String {
    let names: Vec<&str> = stderr
        .lines()
        .skip_while(|line| !line.starts_with("use '-"))
        .skip(1)
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    if names.is_empty() { "clones or children".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Ending;

    fn explained(dataset: &str, stderr: &str) -> StoreError {
        let finished = Finished {
            command: "zfs x".to_owned(),
            ending: Ending::Code(1),
            stdout: Vec::new(),
            stderr: stderr.to_owned(),
        };
        explain(&finished, About::dataset(&DatasetName::new(dataset).unwrap()))
    }

    #[test]
    fn the_words_of_a_name_are_not_taken_for_words_of_zfs() {
        let name = "tank/out of space redacted";
        let busy = explained(name, &format!("cannot destroy '{name}': dataset is busy"));
        assert!(matches!(busy, StoreError::Busy { .. }), "{busy}");
        let modified = format!("destination {name} has been modified\nsince most recent snapshot");
        let modified = explained(name, &modified);
        assert!(matches!(modified, StoreError::Modified { .. }), "{modified}");
    }

    #[test]
    fn what_is_not_recognised_keeps_everything_that_was_said() {
        let error = explained("tank", "internal error: \u{fffd} of a new kind\nsecond line");
        let StoreError::Command { status, stderr, .. } = &error else { panic!("{error}") };
        assert_eq!(status, "exit status 1");
        assert!(stderr.ends_with("second line"));
    }

    #[test]
    fn names_are_taken_from_what_zfs_says_in_each_of_its_manners() {
        let cases = [
            ("cannot open 'a b@s:1': dataset does not exist", "a b@s:1"),
            ("WARNING: could not send a b@s:1: does not exist", "a b@s:1"),
            ("cannot send 'a@b': incremental source (@nope) does not exist", "@nope"),
        ];
        for (stderr, expect) in cases {
            let StoreError::NoSnapshot { name } = explained("tank", stderr) else {
                panic!("{stderr}")
            };
            assert_eq!(name, expect);
        }
    }
}
