//! Failures and refusals as they travel: what can be done, which kind, and the words for people.

use std::fmt;

use flocker_store::{Recovery, StoreError};
use serde::{Deserialize, Serialize};

/// What a failure lets one do; the wire's form of [`Recovery`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// The same again, later.
    Retry,
    /// Look at both inventories again.
    Replan,
    /// It cannot succeed as it stands.
    Abort,
    /// A person has to do something; it is looked at again from time to time.
    Operator,
}

/// Which kind of failure: what tests and exit codes go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The store, the disk or a quota is full.
    NoSpace,
    /// The standby was written, or has snapshots of its own.
    Modified,
    /// No common snapshot.
    NoBase,
    /// The snapshot that a volume is a clone of is not there.
    NoOrigin,
    /// The stream was damaged.
    BadStream,
    /// The target cannot apply the stream.
    Unsupported,
    /// Somebody holds the dataset.
    Busy,
    /// A dataset or snapshot is not there.
    NotFound,
    /// The store is not there, a pool that is not imported, so that nobody knows what is in it.
    StoreAway,
    /// A name is taken.
    Exists,
    /// The connection was lost or the peer is not connected.
    ConnectionLost,
    /// It took longer than its limit.
    TimedOut,
    /// The peer may not do this here.
    NotGranted,
    /// Epochs disagree.
    Conflict,
    /// The workload did not do what it should.
    Workload,
    /// The workload ran, and did not become healthy in time.
    Unhealthy,
    /// A move would leave something of the workload behind that nobody has accepted to lose.
    LeftBehind,
    /// The workload's command never ran, so nobody can have been answered.
    NotStarted,
    /// A request that makes no sense as things are.
    BadRequest,
    /// It would be down for longer than it may.
    OverBudget,
    /// A failover without a proof that the primary is off.
    NoProof,
    /// A person or a newer plan ended it.
    Cancelled,
    /// Anything else; the message has the words.
    Other,
}

impl FailureCode {
    /// It has to do with the moment or the link, not with what was asked for.
    pub(crate) fn is_passing(self) -> bool {
        use FailureCode as C;
        matches!(
            self,
            C::StoreAway | C::ConnectionLost | C::TimedOut | C::Cancelled | C::Busy | C::NoSpace
        )
    }
}

/// Something that did not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What can be done.
    pub remedy: Remedy,
    /// Which kind.
    pub code: FailureCode,
    /// What happened, to which dataset, and what to do next.
    pub message: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(remedy: Remedy, code: FailureCode, message: impl Into<String>) -> Self {
        Self { remedy, code, message: message.into() }
    }

    /// A request that is refused without having changed anything.
    pub fn refused(code: FailureCode, message: impl Into<String>) -> Self {
        Self::new(Remedy::Abort, code, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<&StoreError> for Failure {
    fn from(error: &StoreError) -> Self {
        use FailureCode as C;
        let code = match error {
            StoreError::NoDataset { .. } | StoreError::NoSnapshot { .. } => C::NotFound,
            StoreError::Away { .. } => C::StoreAway,
            StoreError::Exists { .. } => C::Exists,
            StoreError::NoBase { .. } => C::NoBase,
            StoreError::Modified { .. } => C::Modified,
            StoreError::BadStream { .. } | StoreError::BadToken { .. } => C::BadStream,
            StoreError::Unsupported { .. } | StoreError::NotCapable { .. } => C::Unsupported,
            StoreError::NoSpace { .. } => C::NoSpace,
            StoreError::Busy { .. } | StoreError::Kept { .. } => C::Busy,
            StoreError::Cancelled => C::Cancelled,
            StoreError::Permission { .. }
            | StoreError::Command { .. }
            | StoreError::Output { .. }
            | StoreError::Corrupt { .. }
            | StoreError::Name(_)
            | StoreError::Io { .. } => C::Other,
        };
        let remedy = match error.recovery() {
            Recovery::Retry => Remedy::Retry,
            Recovery::Replan => Remedy::Replan,
            Recovery::Abort => Remedy::Abort,
            Recovery::Operator => Remedy::Operator,
        };
        Failure::new(remedy, code, error.to_string())
    }
}
