//! How transfers end, in the core's words.

use flocker_core::{Failure, FailureCode, Remedy};
use flocker_store::StoreError;
use flocker_transport::{ReceiveError, SendError};

/// Codes as a refusal carries them, by position; 0 is "anything else". Only ever added to.
const CODES: [FailureCode; 17] = [
    FailureCode::Other,
    FailureCode::NoSpace,
    FailureCode::Modified,
    FailureCode::NoBase,
    FailureCode::BadStream,
    FailureCode::Unsupported,
    FailureCode::Busy,
    FailureCode::NotFound,
    FailureCode::Exists,
    FailureCode::ConnectionLost,
    FailureCode::TimedOut,
    FailureCode::NotGranted,
    FailureCode::Conflict,
    FailureCode::Workload,
    FailureCode::BadRequest,
    FailureCode::Cancelled,
    FailureCode::NoOrigin,
];

/// The number by which a refusal says why.
pub(super) fn number(code: FailureCode) -> u32 {
    CODES.iter().position(|c| *c == code).and_then(|at| u32::try_from(at).ok()).unwrap_or(0)
}

fn code(number: u32) -> FailureCode {
    usize::try_from(number).ok().and_then(|at| CODES.get(at).copied()).unwrap_or(FailureCode::Other)
}

fn retry(code: FailureCode, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Remedy::Retry, code, error.to_string())
}

pub(super) fn cancelled() -> Failure {
    Failure::new(Remedy::Retry, FailureCode::Cancelled, "the transfer was cancelled")
}

pub(super) fn panicked() -> Failure {
    Failure::new(
        Remedy::Retry,
        FailureCode::Other,
        "a transfer panicked: a bug; its message is in the daemon's log",
    )
}

pub(super) fn over_limit(limit_bytes: u64) -> Failure {
    Failure::new(
        Remedy::Operator,
        FailureCode::NotGranted,
        format!(
            "the stream is larger than the quota leaves ({limit_bytes} bytes): raise the quota of the grant, or make room below its dataset"
        ),
    )
}

/// Of the sending side.
pub(super) fn of_send(error: &SendError) -> Failure {
    match error {
        SendError::Source { source } => match source.downcast_ref::<StoreError>() {
            Some(store) => Failure::from(store),
            None => retry(FailureCode::Other, error),
        },
        SendError::Damaged { .. } => retry(FailureCode::BadStream, error),
        SendError::Refused { code: number, .. } => retry(code(*number), error),
        SendError::ReceiverGone | SendError::ConnectionLost { .. } => {
            retry(FailureCode::ConnectionLost, error)
        }
        SendError::Cancelled { .. } => cancelled(),
        SendError::Read { .. }
        | SendError::Protocol { .. }
        | SendError::Dedup { .. }
        | SendError::Miscounted { .. }
        | SendError::Thread { .. } => retry(FailureCode::Other, error),
    }
}

/// Of the receiving side, where the store itself has nothing to say.
pub(super) fn of_receive(error: &ReceiveError) -> Failure {
    match error {
        ReceiveError::Batch { .. }
        | ReceiveError::OutOfOrder { .. }
        | ReceiveError::Totals { .. } => retry(FailureCode::BadStream, error),
        ReceiveError::SenderGone | ReceiveError::ConnectionLost { .. } => {
            retry(FailureCode::ConnectionLost, error)
        }
        ReceiveError::Cancelled { .. } => cancelled(),
        ReceiveError::Write { .. }
        | ReceiveError::Aborted { .. }
        | ReceiveError::Protocol { .. }
        | ReceiveError::Dedup { .. }
        | ReceiveError::Thread { .. } => retry(FailureCode::Other, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_kind_on_the_way() {
        for kind in CODES {
            assert_eq!(code(number(kind)), kind);
        }
        assert_eq!(code(4711), FailureCode::Other);
    }
}
