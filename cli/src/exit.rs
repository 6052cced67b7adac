//! Exit codes, and how an error becomes one and is printed.
//!
//! Owns: the table of exit codes that README and `--help` document. Leaves to others: the words of the
//! errors, which come from where they arose.

use std::io;
use std::process::ExitCode;

use flocker_core::{Failure, FailureCode, Remedy};
use flocker_engine::client::ClientError;
use flocker_engine::config::{ConfigError, InitError};
use serde::Serialize;

use crate::out::{Out, clean};

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// It failed.
    Failed = 1,
    /// The command line makes no sense; clap's own number too.
    Usage = 2,
    /// Nobody answers on the node's socket.
    NotRunning = 3,
    /// Refused; nothing was changed.
    Refused = 4,
    /// It ran, and the answer is no.
    Negative = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// The command ran, and what it found has been printed; the answer is no.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Negative(pub(crate) String);

/// Refused before a node was asked to do anything.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refusal(pub(crate) Failure);

impl Refusal {
    /// A refusal of this kind, as the error that ends the command.
    pub(crate) fn error(code: FailureCode, message: impl Into<String>) -> anyhow::Error {
        Self(Failure::refused(code, message)).into()
    }
}

/// Whoever read our output went away: nobody is left to tell.
#[derive(Debug, thiserror::Error)]
#[error("the reader of the output went away")]
pub(crate) struct OutputGone;

/// The exit code of a failure that a node reports.
pub(crate) fn of_failure(failure: &Failure) -> Exit {
    match failure.code {
        FailureCode::NotGranted
        | FailureCode::Conflict
        | FailureCode::BadRequest
        | FailureCode::NotFound
        | FailureCode::Exists
        | FailureCode::Unsupported
        | FailureCode::Modified
        | FailureCode::NoBase
        | FailureCode::NoOrigin
        | FailureCode::OverBudget
        | FailureCode::LeftBehind
        | FailureCode::NoProof
        | FailureCode::NoSpace
        | FailureCode::Busy => Exit::Refused,
        FailureCode::StoreAway
        | FailureCode::BadStream
        | FailureCode::ConnectionLost
        | FailureCode::TimedOut
        | FailureCode::Workload
        | FailureCode::Unhealthy
        | FailureCode::NotStarted
        | FailureCode::Cancelled
        | FailureCode::Other => Exit::Failed,
    }
}

/// The exit code of an error, by the first cause that says something about it.
pub(crate) fn of_error(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if let Some(client) = cause.downcast_ref::<ClientError>() {
            return match client {
                ClientError::NotRunning { .. } => Exit::NotRunning,
                ClientError::Refused(failure) => of_failure(failure),
                ClientError::NotAllowed { .. } => Exit::Refused,
                ClientError::Io { .. } | ClientError::Ended { .. } | ClientError::Answer { .. } => {
                    Exit::Failed
                }
            };
        }
        if let Some(Refusal(failure)) = cause.downcast_ref() {
            return of_failure(failure);
        }
        if let Some(InitError::Exists { .. } | InitError::AnotherNode { .. }) = cause.downcast_ref()
        {
            return Exit::Refused;
        }
        if cause.is::<Negative>() {
            return Exit::Negative;
        }
    }
    Exit::Failed
}

/// An error as `--json` prints it.
#[derive(Debug, Serialize)]
struct ErrorObject {
    error: ErrorBody,
}

#[derive(Debug, Serialize)]
struct ErrorBody {
    message: String,
    exit_code: u8,
    code: FailureCode,
    remedy: Remedy,
}

/// What a node said, where an error came from one, or we in its place.
pub(crate) fn failure_in(error: &anyhow::Error) -> Option<&Failure> {
    error.chain().find_map(|cause| match cause.downcast_ref::<ClientError>() {
        Some(ClientError::Refused(failure)) => Some(failure),
        _ => cause.downcast_ref::<Refusal>().map(|refusal| &refusal.0),
    })
}

/// What kind of error it is and what can be done, for programs, also where no node has said it.
fn kind_of(error: &anyhow::Error, exit: Exit) -> (FailureCode, Remedy) {
    if let Some(failure) = failure_in(error) {
        return (failure.code, failure.remedy);
    }
    for cause in error.chain() {
        match cause.downcast_ref::<ClientError>() {
            Some(ClientError::NotRunning { .. }) => {
                return (FailureCode::ConnectionLost, Remedy::Operator);
            }
            Some(ClientError::NotAllowed { .. }) => {
                return (FailureCode::NotGranted, Remedy::Operator);
            }
            Some(ClientError::Io { .. } | ClientError::Ended { .. }) => {
                return (FailureCode::ConnectionLost, Remedy::Retry);
            }
            Some(ClientError::Answer { .. } | ClientError::Refused(_)) | None => {}
        }
        if let Some(InitError::Exists { .. } | InitError::AnotherNode { .. }) = cause.downcast_ref()
        {
            return (FailureCode::Exists, Remedy::Operator);
        }
        if cause.is::<ConfigError>() {
            return (FailureCode::BadRequest, Remedy::Operator);
        }
    }
    match exit {
        Exit::Usage => (FailureCode::BadRequest, Remedy::Abort),
        Exit::Ok | Exit::Failed | Exit::NotRunning | Exit::Refused | Exit::Negative => {
            (FailureCode::Other, Remedy::Operator)
        }
    }
}

/// The error and its causes, each said once.
pub(crate) fn words(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let words = clean(&cause.to_string());
        if text.contains(&words) {
            continue; // many messages already hold their cause's
        }
        if !text.is_empty() {
            text.push_str("\n  because: ");
        }
        text.push_str(&words);
    }
    text
}

/// Prints an error: one line or more on stderr, and with `--json` an object on stdout.
pub(crate) fn report(out: &Out, error: &anyhow::Error) -> Exit {
    if error.chain().any(|cause| cause.is::<OutputGone>()) {
        return Exit::Ok;
    }
    let exit = of_error(error);
    let text = words(error);
    let (code, remedy) = kind_of(error, exit);
    // What is negative has been printed in full by whoever found it, as the command's own object.
    if out.json && exit != Exit::Negative {
        let object = ErrorObject {
            error: ErrorBody { message: text.clone(), exit_code: exit as u8, code, remedy },
        };
        // The exit code still tells whoever does not read it.
        let _ = out.object(&object);
    }
    let label = out.err_theme().bad("error:");
    write_stderr(&format!("{label} {text}\n"));
    exit
}

/// Prints what clap says: help and version on stdout, a line that makes no sense on stderr, and where
/// `--json` is on that line an object too.
pub(crate) fn report_usage(error: &clap::Error) -> Exit {
    // Nobody is left to tell if this cannot be printed.
    let _ = error.print();
    if !error.use_stderr() {
        return Exit::Ok;
    }
    let json = std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json");
    if json {
        let message = error.render().to_string();
        let object = ErrorObject {
            error: ErrorBody {
                message: message.trim().to_owned(),
                exit_code: Exit::Usage as u8,
                code: FailureCode::BadRequest,
                remedy: Remedy::Abort,
            },
        };
        let _ = Out::new(true).object(&object);
    }
    Exit::Usage
}

/// Writes to stderr and does not mind if nobody reads it.
pub(crate) fn write_stderr(text: &str) {
    use io::Write;
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    fn refused(code: FailureCode) -> anyhow::Error {
        ClientError::Refused(Failure::refused(code, "no")).into()
    }

    #[test]
    fn each_kind_of_error_has_its_exit_code() {
        assert_eq!(of_error(&refused(FailureCode::NotGranted)), Exit::Refused);
        assert_eq!(of_error(&refused(FailureCode::NoSpace)), Exit::Refused);
        assert_eq!(of_error(&refused(FailureCode::TimedOut)), Exit::Failed);
        assert_eq!(of_error(&Negative("x".into()).into()), Exit::Negative);
        assert_eq!(of_error(&anyhow::anyhow!("x")), Exit::Failed);
        let not_running = ClientError::NotRunning {
            socket: "s".into(),
            config: "c".into(),
            source: io::ErrorKind::NotFound.into(),
        };
        assert_eq!(of_error(&not_running.into()), Exit::NotRunning);
    }

    #[test]
    fn an_error_says_its_kind_also_where_no_node_was_asked() {
        let kind = |error: anyhow::Error| {
            let exit = of_error(&error);
            kind_of(&error, exit)
        };
        let refusal = Refusal::error(FailureCode::Conflict, "x");
        assert_eq!(of_error(&refusal), Exit::Refused);
        assert_eq!(kind(refusal), (FailureCode::Conflict, Remedy::Abort));
        assert_eq!(kind(anyhow::anyhow!("x")), (FailureCode::Other, Remedy::Operator));
        let ended = ClientError::Ended { socket: "s".into() };
        assert_eq!(kind(ended.into()), (FailureCode::ConnectionLost, Remedy::Retry));
    }

    #[test]
    fn context_around_a_failure_does_not_change_its_exit_code() {
        let error =
            Err::<(), _>(refused(FailureCode::Conflict)).context("while moving db").unwrap_err();
        assert_eq!(of_error(&error), Exit::Refused);
    }

    #[test]
    fn causes_are_printed_once_each() {
        let error = Err::<(), _>(io::Error::other("disk gone"))
            .context("cannot read x: disk gone")
            .context("cannot load")
            .unwrap_err();
        assert_eq!(words(&error), "cannot load\n  because: cannot read x: disk gone");
    }
}
