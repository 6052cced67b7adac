//! HTTP/1.1 over a Unix socket: what podman and docker are asked by.
//!
//! Owns: one request at a time on a connection of its own, its time limit, bodies that are files. Leaves to
//! others: what is asked, and what an answer means. Blocking: called on the threads on which drivers work.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// Most bytes of an answer that is kept in memory: the description of a container has some 20 KiB.
const ANSWER_BYTES: usize = 16 << 20;

/// Bytes read from a file at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// A connection to a local socket takes no time; a service that systemd starts for it may.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    /// Nobody listens there.
    #[error("{}: {source}", socket.display())]
    Absent {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The connection ended before the answer did.
    #[error("the connection to {} broke: {source}", socket.display())]
    Broken {
        socket: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It took longer than its limit.
    #[error("{what} took longer than {} s", limit.as_secs())]
    TimedOut { what: String, limit: Duration },
    /// A file of ours.
    #[error("a file cannot be read or written: {0}")]
    File(#[source] io::Error),
}

/// What came back, with an HTTP status of whatever kind.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

/// Who is asked.
#[derive(Debug, Clone)]
pub(super) struct Client {
    socket: PathBuf,
}

/// What is sent along.
#[derive(Debug)]
pub(super) enum Payload<'a> {
    Nothing,
    Json(&'a serde_json::Value),
    /// A file's whole content, with its media type.
    File(File, &'static str),
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Asks, and keeps the answer in memory. `limit`: for all of it; `None`: for as long as it takes.
    ///
    /// # Errors
    /// [`HttpError`]; a status that says no is an answer.
    pub(super) fn ask(
        &self,
        method: Method,
        path: &str,
        payload: Payload<'_>,
        limit: Option<Duration>,
    ) -> Result<Answer, HttpError> {
        let what = format!("{method} {path}");
        self.within(&what, limit, async {
            let response = self.send(method, path, payload).await?;
            let status = response.status().as_u16();
            Ok(Answer { status, body: self.read(response).await? })
        })
    }

    /// Asks, and writes the answer's body to a file; where the status says no, the body is returned.
    ///
    /// # Errors
    /// [`HttpError`]; what is in the file then is not the whole.
    pub(super) fn ask_into(
        &self,
        method: Method,
        path: &str,
        file: &mut File,
        limit: Option<Duration>,
    ) -> Result<Answer, HttpError> {
        let what = format!("{method} {path}");
        self.within(&what, limit, async {
            let mut response = self.send(method, path, Payload::Nothing).await?;
            let status = response.status();
            if status != StatusCode::OK {
                return Ok(Answer { status: status.as_u16(), body: self.read(response).await? });
            }
            while let Some(frame) = response.body_mut().frame().await {
                let frame = frame.map_err(|error| self.broken(error))?;
                if let Some(data) = frame.data_ref() {
                    file.write_all(data).map_err(HttpError::File)?;
                }
            }
            Ok(Answer { status: status.as_u16(), body: Bytes::new() })
        })
    }

    fn within<T>(
        &self,
        what: &str,
        limit: Option<Duration>,
        doing: impl Future<Output = Result<T, HttpError>>,
    ) -> Result<T, HttpError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| self.broken(error))?;
        let done = runtime.block_on(async {
            match limit {
                None => doing.await,
                Some(limit) => match tokio::time::timeout(limit, doing).await {
                    Ok(done) => done,
                    Err(_) => Err(HttpError::TimedOut { what: what.to_owned(), limit }),
                },
            }
        });
        runtime.shutdown_background();
        done
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        payload: Payload<'_>,
    ) -> Result<Response<Incoming>, HttpError> {
        let connect = tokio::time::timeout(CONNECT_LIMIT, UnixStream::connect(&self.socket));
        let stream = match connect.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => return Err(self.absent(source)),
            Err(_) => return Err(self.absent(io::ErrorKind::TimedOut.into())),
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))?;
        tokio::spawn(async move {
            // Its failure is the request's as well.
            let _ = connection.await;
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONNECTION, "close");
        let request = match payload {
            Payload::Nothing => request.body(Either::Left(Full::new(Bytes::new()))),
            Payload::Json(value) => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(Either::Left(Full::new(Bytes::from(value.to_string())))),
            Payload::File(file, media) => {
                let body = FileBody::new(file).map_err(HttpError::File)?;
                request.header(header::CONTENT_TYPE, media).body(Either::Right(body))
            }
        };
        let request = request.map_err(|error| self.broken(error))?;
        sender.send_request(request).await.map_err(|error| self.broken(error))
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Bytes, HttpError> {
        let limited = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES);
        let whole = limited
            .collect()
            .await
            .map_err(|source| HttpError::Broken { socket: self.socket.clone(), source })?;
        Ok(whole.to_bytes())
    }

    fn absent(&self, source: io::Error) -> HttpError {
        HttpError::Absent { socket: self.socket.clone(), source }
    }

    fn broken(&self, error: impl std::error::Error + Send + Sync + 'static) -> HttpError {
        HttpError::Broken { socket: self.socket.clone(), source: Box::new(error) }
    }
}

/// A file as a body. Reads block: the runtime has nothing else to do.
#[derive(Debug)]
struct FileBody {
    file: File,
    left_bytes: u64,
}

impl FileBody {
    fn new(file: File) -> io::Result<Self> {
        let left_bytes = file.metadata()?.len();
        Ok(Self { file, left_bytes })
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.left_bytes == 0 {
            return Poll::Ready(None);
        }
        let want = usize::try_from(self.left_bytes).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let mut chunk = vec![0; want];
        Poll::Ready(Some(match self.file.read(&mut chunk) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                chunk.truncate(read);
                self.left_bytes -= u64::try_from(read).unwrap_or(self.left_bytes);
                Ok(Frame::data(Bytes::from(chunk)))
            }
            Err(error) => Err(error),
        }))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left_bytes)
    }
}

/// A path's component or a query's value, with everything escaped that is not plain (RFC 3986, 2.3).
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
