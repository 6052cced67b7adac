//! What can go wrong in a store, sorted so that a planner knows what to do: see [`Recovery`].

use std::fmt;
use std::path::PathBuf;

use crate::name::{DatasetName, NameError};
use crate::types::Guid;

/// What an error lets one do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// The same again, later.
    Retry,
    /// Look at both inventories again and plan anew.
    Replan,
    /// This operation cannot succeed; its own machine stops and says so.
    Abort,
    /// A person has to do something, which the message names.
    Operator,
}

/// Somebody who keeps a dataset from being fenced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id in our namespace; 0 where it is not known.
    pub pid: u32,
    /// Its command name.
    pub command: String,
    /// What it holds: an open file, a working directory, a mount in another namespace.
    pub what: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({}): {}", self.pid, self.command, self.what)
    }
}

/// What follows "is in use".
fn by(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return ", and nobody was found who uses it".to_owned();
    }
    let names: Vec<String> = holders.iter().map(ToString::to_string).collect();
    format!(" by {}", names.join("; "))
}

/// An operation on a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such dataset.
    #[error("dataset {dataset} does not exist")]
    NoDataset {
        /// The name asked for.
        dataset: DatasetName,
    },
    /// The store itself is not there, so that nothing can be said of what is in it: its pool is not imported, its
    /// root was renamed or destroyed.
    #[error("{store} is not there: {detail}")]
    Away {
        /// As [`crate::Store::describe`] says it.
        store: String,
        /// What to look at, and to run.
        detail: String,
    },
    /// No such snapshot or bookmark.
    #[error("{name} does not exist")]
    NoSnapshot {
        /// The full name asked for.
        name: String,
    },
    /// The name is taken.
    #[error("{name} exists already")]
    Exists {
        /// The full name.
        name: String,
    },
    /// The incremental source is not on the target (ENODEV).
    #[error("{dataset} does not have the incremental source with guid {base}")]
    NoBase {
        /// The receiving dataset.
        dataset: DatasetName,
        /// The guid the stream starts from.
        base: Guid,
    },
    /// The target was written since its newest snapshot, or has newer snapshots than the base
    /// (ETXTBSY). Nothing is destroyed.
    #[error("{dataset} was modified since its last received snapshot: {detail}")]
    Modified {
        /// The receiving dataset.
        dataset: DatasetName,
        /// What was found.
        detail: String,
    },
    /// The stream is damaged or not what was announced.
    #[error("the stream for {dataset} cannot be applied: {detail}")]
    BadStream {
        /// The receiving dataset.
        dataset: DatasetName,
        /// Where and what, from the stream's reader or from `zfs receive`.
        detail: String,
    },
    /// A resume token that cannot be followed. What it belongs to has to be discarded.
    #[error("the resume token for {snapshot} cannot be followed: {detail}")]
    BadToken {
        /// The snapshot that was to be sent.
        snapshot: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The stream is sound, but uses what this store cannot apply.
    #[error("{dataset}: this store cannot apply {feature}")]
    Unsupported {
        /// The receiving dataset.
        dataset: DatasetName,
        /// The feature by its ZFS name, such as `raw` or `embedded_data`.
        feature: String,
    },
    /// The operation does not exist for this kind of store or dataset.
    #[error("{what} is not possible on {store}")]
    NotCapable {
        /// The store's description.
        store: String,
        /// What was asked for.
        what: String,
    },
    /// No room.
    #[error("{dataset} is out of space: {detail}")]
    NoSpace {
        /// The dataset being written.
        dataset: DatasetName,
        /// What ran out: the pool, the disk, a quota.
        detail: String,
    },
    /// Held open, or mounted elsewhere; the holders are named.
    #[error("{dataset} is in use{}", by(holders))]
    Busy {
        /// The dataset.
        dataset: DatasetName,
        /// Everybody found; empty where the store says busy and nobody was found.
        holders: Vec<Holder>,
    },
    /// A hold or a clone keeps a snapshot from being destroyed.
    #[error("{name} is kept by {by}")]
    Kept {
        /// The snapshot.
        name: String,
        /// The hold tags or the clones.
        by: String,
    },
    /// Not allowed for this user.
    #[error("{command}: permission denied: {detail}")]
    Permission {
        /// What was run.
        command: String,
        /// What the system said.
        detail: String,
    },
    /// A command failed with words that we do not know.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// The words of the command.
        command: String,
        /// Exit status or signal.
        status: String,
        /// Everything it wrote to stderr.
        stderr: String,
    },
    /// A command printed what we cannot read.
    #[error("`{command}` printed what cannot be read: {detail}")]
    Output {
        /// The words of the command.
        command: String,
        /// The line and what was expected.
        detail: String,
    },
    /// A store's own files are damaged. Nothing is guessed.
    #[error("{} is damaged: {detail}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What does not hold.
        detail: String,
    },
    /// A name that is not one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The system said no.
    #[error("{context}")]
    Io {
        /// What was being done, to which path.
        context: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The operation was cancelled by its caller.
    #[error("cancelled")]
    Cancelled,
}

impl StoreError {
    /// Wraps an I/O error with what was being done.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        StoreError::Io { context: format!("{}: {source}", context.into()), source }
    }

    /// What can be done about it.
    pub fn recovery(&self) -> Recovery {
        use StoreError as E;
        match self {
            E::NoBase { .. } | E::NoSnapshot { .. } | E::Exists { .. } | E::BadToken { .. } => {
                Recovery::Replan
            }
            E::Away { .. } | E::NoSpace { .. } | E::Busy { .. } | E::Io { .. } | E::Cancelled => {
                Recovery::Retry
            }
            E::BadStream { .. } | E::Command { .. } | E::Output { .. } => Recovery::Retry,
            E::Kept { .. } => Recovery::Replan,
            E::Unsupported { .. } | E::NotCapable { .. } | E::Name(_) => Recovery::Abort,
            E::NoDataset { .. } | E::Modified { .. } | E::Permission { .. } | E::Corrupt { .. } => {
                Recovery::Operator
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(holders: Vec<Holder>) -> String {
        let dataset = DatasetName::new("tank/a").unwrap();
        StoreError::Busy { dataset, holders }.to_string()
    }

    #[test]
    fn what_is_busy_names_its_holders_and_says_so_where_none_was_found() {
        assert_eq!(busy(Vec::new()), "tank/a is in use, and nobody was found who uses it");
        let holder = |pid, command: &str, what: &str| Holder {
            pid,
            command: command.to_owned(),
            what: what.to_owned(),
        };
        let two = vec![holder(7, "postgres", "open file"), holder(8, "sh", "working directory")];
        let words =
            "tank/a is in use by pid 7 (postgres): open file; pid 8 (sh): working directory";
        assert_eq!(busy(two), words);
    }
}
