//! The server's end of the local API: the socket, who may use it, one request a connection.
//!
//! Owns: the socket's mode and its owner's check, reading a request within bounds, writing lines.
//! Leaves to others: what requests do (`requests`, `pairing`), their words ([`crate::api`]).

mod browse;
mod holds;
mod pairing;
mod requests;
#[cfg(test)]
mod tests;
mod trees;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flocker_core::{Failure, FailureCode, Remedy};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::api::{Answer, MAX_REQUEST_BYTES, Request, Response};
pub(crate) use requests::{Api, tell_progress};
pub(crate) use trees::watch as watch_trees;

/// Clients at the same time.
const MAX_CLIENTS: usize = 128;

/// How long a client may take to say what it wants.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Binds the socket: `0600`, in the place of one that a dead daemon left.
///
/// The state's lock is held, so no living daemon has it.
///
/// # Errors
/// The system said no.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // The directory is 0700, so nobody comes in between.
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers clients for ever.
pub(crate) async fn serve(listener: UnixListener, api: Arc<Api>) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let api = Arc::clone(&api);
                tokio::spawn(async move {
                    client(stream, &api).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a client of the local API was not taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Whether whoever is at the other end may ask anything: our own user, or root.
fn may_ask(stream: &UnixStream) -> io::Result<bool> {
    let peer = stream.peer_cred()?.uid();
    Ok(peer == 0 || peer == rustix::process::geteuid().as_raw())
}

async fn client(stream: UnixStream, api: &Arc<Api>) {
    let allowed = may_ask(&stream);
    let (read, write) = stream.into_split();
    let mut lines = Lines { write, gone: false };
    let request = match allowed {
        Ok(true) => read_request(read).await,
        Ok(false) => Err(refused(
            FailureCode::NotGranted,
            "only the user that runs the daemon, or root, may ask it anything",
        )),
        Err(error) => Err(refused(FailureCode::NotGranted, error.to_string())),
    };
    let end = match request {
        Ok((request, rest)) => requests::answer(api, request, rest, &mut lines).await,
        Err(failure) => Err(failure),
    };
    lines
        .send(&match end {
            Ok(answer) => Response::Ok(answer),
            Err(failure) => Response::Error(failure),
        })
        .await;
}

async fn read_request(read: OwnedReadHalf) -> Result<(Request, OwnedReadHalf), Failure> {
    let mut reader = BufReader::new(read);
    let mut line = Vec::new();
    let limit = MAX_REQUEST_BYTES as u64 + 1;
    let read =
        tokio::time::timeout(REQUEST_LIMIT, (&mut reader).take(limit).read_until(b'\n', &mut line))
            .await;
    match read {
        Err(_) => return Err(refused(FailureCode::TimedOut, "no request came")),
        Ok(Err(error)) => return Err(refused(FailureCode::BadRequest, error.to_string())),
        Ok(Ok(_)) => {}
    }
    if line.last() != Some(&b'\n') {
        return Err(refused(
            FailureCode::BadRequest,
            format!("a request is one line of at most {MAX_REQUEST_BYTES} bytes"),
        ));
    }
    let request = serde_json::from_slice(&line).map_err(|error| {
        refused(FailureCode::BadRequest, format!("not a request this daemon knows: {error}"))
    })?;
    Ok((request, reader.into_inner()))
}

fn refused(code: FailureCode, message: impl Into<String>) -> Failure {
    Failure::refused(code, message)
}

/// The daemon is ending; nobody answers any more.
fn ending() -> Failure {
    Failure::new(Remedy::Retry, FailureCode::Other, "the daemon is ending")
}

/// The lines of one answer. A client that goes away stops nothing: what follows is not written.
pub(crate) struct Lines {
    write: OwnedWriteHalf,
    gone: bool,
}

impl Lines {
    async fn send(&mut self, response: &Response) {
        if self.gone {
            return;
        }
        let mut line = match serde_json::to_vec(response) {
            Ok(line) => line,
            Err(error) => {
                tracing::error!(%error, "an answer cannot be written as JSON");
                return;
            }
        };
        line.push(b'\n');
        self.gone = self.write.write_all(&line).await.is_err();
    }
}

/// What a request ends in.
type End = Result<Answer, Failure>;

/// Where the socket is, to be removed when the daemon ends in good order.
pub(crate) struct SocketFile(pub(crate) PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The next start removes it anyway.
        let _ = std::fs::remove_file(&self.0);
    }
}
