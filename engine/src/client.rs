//! The client's end of the local API. Blocking, so that any program can use it.
//!
//! Owns: connecting, one request, the lines of its answer. Leaves to others: what they mean
//! ([`crate::api`]).

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flocker_core::Failure;

use crate::api::{Answer, Request, Response};
use crate::config::Config;

/// Longest line of an answer a client reads, in bytes: a status of some thousand units, a history.
const MAX_RESPONSE_BYTES: u64 = 256 * 1024 * 1024;

/// Why a node did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error(
        "no flocker-repl daemon answers at {}: start it with `flocker-repl --config {} serve`",
        socket.display(),
        config.display()
    )]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// The configuration it belongs to.
        config: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The socket is another user's.
    #[error(
        "{} belongs to another user: run this as the user that runs the daemon, or as root",
        socket.display()
    )]
    NotAllowed {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The connection broke off.
    #[error("the connection to the daemon at {} broke off: {source}", socket.display())]
    Io {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The daemon ended before it had answered.
    #[error("the daemon at {} ended before it had answered; its log says why", socket.display())]
    Ended {
        /// The socket.
        socket: PathBuf,
    },
    /// A line that is not an answer: another version of the program.
    #[error(
        "the daemon at {} answered what this program cannot read ({source}): are both of the same version?",
        socket.display()
    )]
    Answer {
        /// The socket.
        socket: PathBuf,
        /// What was wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The node said no.
    #[error(transparent)]
    Refused(Failure),
}

/// A connection to a node, good for one request.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    stream: UnixStream,
}

impl Client {
    /// Connects to the node of this configuration.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`], [`ClientError::NotAllowed`].
    pub fn connect(config: &Config) -> Result<Self, ClientError> {
        Self::connect_to(&config.socket_path(), config.path())
    }

    /// Connects to a socket; `config` is only named in errors.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_to(socket: &Path, config: &Path) -> Result<Self, ClientError> {
        match UnixStream::connect(socket) {
            Ok(stream) => Ok(Self { socket: socket.to_owned(), stream }),
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                Err(ClientError::NotAllowed { socket: socket.to_owned(), source })
            }
            Err(source) => Err(ClientError::NotRunning {
                socket: socket.to_owned(),
                config: config.to_owned(),
                source,
            }),
        }
    }

    /// Sends the request and hands out the answer's lines as they come.
    ///
    /// # Errors
    /// [`ClientError::Io`] when it could not be sent.
    pub fn request(self, request: &Request) -> Result<Responses, ClientError> {
        let Self { socket, mut stream } = self;
        let mut line = serde_json::to_vec(request)
            .map_err(|source| ClientError::Answer { socket: socket.clone(), source })?;
        line.push(b'\n');
        match stream.write_all(&line) {
            Ok(()) => Ok(Responses { socket, lines: BufReader::new(stream), ended: false }),
            Err(source) => Err(ClientError::Io { socket, source }),
        }
    }

    /// Sends the request, passes whatever comes before its end to `on`, and returns the end.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the node's own words; otherwise as [`Responses`].
    pub fn ask(
        self,
        request: &Request,
        mut on: impl FnMut(Response),
    ) -> Result<Answer, ClientError> {
        let responses = self.request(request)?;
        let socket = responses.socket.clone();
        for response in responses {
            match response? {
                Response::Ok(answer) => return Ok(answer),
                Response::Error(failure) => return Err(ClientError::Refused(failure)),
                other @ (Response::Event(_) | Response::Progress(_) | Response::InviteOpen(_)) => {
                    on(other);
                }
            }
        }
        Err(ClientError::Ended { socket })
    }
}

/// The lines of an answer; the last one is [`Response::Ok`] or [`Response::Error`].
#[derive(Debug)]
pub struct Responses {
    socket: PathBuf,
    lines: BufReader<UnixStream>,
    ended: bool,
}

impl Responses {
    /// How long [`Iterator::next`] waits before it gives [`ClientError::Io`] with
    /// [`io::ErrorKind::WouldBlock`], after which it may be called again only if no part of a line
    /// had come; `None`: for ever.
    ///
    /// # Errors
    /// The system refused the time limit.
    pub fn set_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.lines.get_ref().set_read_timeout(limit)
    }

    fn read(&mut self) -> Result<Response, ClientError> {
        use std::io::Read;
        let mut line = Vec::new();
        let io = |source| ClientError::Io { socket: self.socket.clone(), source };
        (&mut self.lines).take(MAX_RESPONSE_BYTES).read_until(b'\n', &mut line).map_err(io)?;
        if line.last() != Some(&b'\n') {
            return Err(ClientError::Ended { socket: self.socket.clone() });
        }
        serde_json::from_slice(&line)
            .map_err(|source| ClientError::Answer { socket: self.socket.clone(), source })
    }
}

impl Iterator for Responses {
    type Item = Result<Response, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let response = self.read();
        self.ended = match &response {
            Ok(Response::Ok(_) | Response::Error(_)) => true,
            Ok(Response::Event(_) | Response::Progress(_) | Response::InviteOpen(_)) => false,
            Err(ClientError::Io { source, .. }) => source.kind() != io::ErrorKind::WouldBlock,
            Err(_) => true,
        };
        Some(response)
    }
}
