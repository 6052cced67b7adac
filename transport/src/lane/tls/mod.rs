//! A lane over TLS 1.3 over one TCP connection.
//!
//! Owns: both halves of the lane over a socket whose handshake is done, each on the blocking thread that
//! calls it, and [`chunk`]s. Leaves to others: how the connection comes to be, and to whom it leads
//! ([`crate::tcp`]).
//!
//! The two halves share one TLS connection behind a lock that is held to encrypt and to decrypt, never to
//! wait: the socket does not block, and a thread that finds it full or empty waits in `poll`, where a
//! cancel or a lost connection wakes it. Nothing is queued here beyond the chunk that is being written, so a
//! full socket stops the sender.
//!
//! What a TCP connection says of itself is not proven, what TLS carries is: only a `Chunk::End` ends a half
//! well. A connection that ends before it, by whomever it was cut, is [`LaneError::Lost`].

pub mod chunk;
mod recv;
mod send;

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::Connection;

use super::{CODE_CANCELLED, Lane, LaneError, Until};
use crate::cancel::Cancel;
use crate::identity::Identity;
use crate::tls as rules;
use crate::wake::Wake;
use chunk::{CHUNK_HEADER_LEN, Chunk};

/// Bytes of a half that are encrypted before they are written: with the chunk's header 16 full records, which
/// go out in one call and are still in the processor's cache.
const CHUNK_BYTES: usize = (256 << 10) - CHUNK_HEADER_LEN;

/// TLS bytes taken from the socket at once.
const RAW_BYTES: usize = 256 << 10;

/// A lane over this connection, and the means to lose it.
///
/// # Errors
/// The process has no file descriptors left.
pub(crate) fn lane(socket: TcpStream, mut tls: Connection) -> io::Result<(Lane, Hangup)> {
    socket.set_nonblocking(true)?;
    // What is given to it was measured before: one chunk, and only when the last has gone.
    tls.set_buffer_limit(None);
    let shared = Arc::new(Shared {
        socket,
        tls: Mutex::new(tls),
        incoming: Mutex::default(),
        stopped: OnceLock::new(),
        taken: AtomicBool::new(false),
        lost: OnceLock::new(),
        send_wake: Arc::new(Wake::new()?),
        recv_wake: Arc::new(Wake::new()?),
    });
    let hangup = Hangup(Arc::downgrade(&shared));
    let send = Box::new(send::TlsSend::new(Arc::clone(&shared)));
    Ok((Lane { send, recv: Box::new(recv::TlsRecv::new(shared)) }, hangup))
}

/// Loses a lane's connection. It keeps no lane alive.
#[derive(Debug, Clone)]
pub struct Hangup(Weak<Shared>);

impl Hangup {
    /// Both halves here now find their connection lost for this reason; the other side finds it lost too.
    pub fn hang_up(&self, reason: &str) {
        if let Some(shared) = self.0.upgrade() {
            shared.lose(reason);
        }
    }

    /// Whether the lane is gone.
    pub(crate) fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// Two lanes over a TCP connection of this host with itself, each the other's far end, for tests and benches.
///
/// # Errors
/// Of the sockets, or of TLS.
pub fn pair() -> io::Result<((Lane, Hangup), (Lane, Hangup))> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let dialled = TcpStream::connect(listener.local_addr()?)?;
    let (accepted, _) = listener.accept()?;
    over(dialled, accepted)
}

/// Two lanes over two sockets that lead to each other in whatever way, for tests and benches.
///
/// # Errors
/// Of the sockets, or of TLS.
pub fn over(
    dialled: TcpStream,
    accepted: TcpStream,
) -> io::Result<((Lane, Hangup), (Lane, Hangup))> {
    let identity = Identity::ephemeral().map_err(io::Error::other)?;
    let config = rules::server_config(&identity, &[rules::ALPN_BULK]).map_err(io::Error::other)?;
    let server = rustls::ServerConnection::new(Arc::new(config)).map_err(io::Error::other)?;
    let expected = Some(identity.fingerprint());
    let config = rules::client_config(&identity, rules::ALPN_BULK, expected, Arc::default())
        .map_err(io::Error::other)?;
    let name = rules::server_name();
    let client = rustls::ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let accepting = thread::spawn(move || shaken(accepted, server.into()));
    let near = shaken(dialled, client.into())?;
    let far = accepting.join().map_err(|_| io::Error::other("the handshake panicked"))??;
    Ok((near, far))
}

fn shaken(mut socket: TcpStream, mut tls: Connection) -> io::Result<(Lane, Hangup)> {
    socket.set_nodelay(true)?;
    while tls.is_handshaking() || tls.wants_write() {
        tls.complete_io(&mut socket)?;
    }
    lane(socket, tls)
}

/// What both halves use.
#[derive(Debug)]
struct Shared {
    socket: TcpStream,
    tls: Mutex<Connection>,
    incoming: Mutex<Incoming>,
    /// The peer takes no more of our half.
    stopped: OnceLock<u32>,
    /// The peer has read our half to its end.
    taken: AtomicBool,
    /// The connection was given up on this side.
    lost: OnceLock<String>,
    send_wake: Arc<Wake>,
    recv_wake: Arc<Wake>,
}

/// What has come and was not taken yet. Either half may take: the sending one looks for `Stop` and `Taken`.
#[derive(Debug, Default)]
struct Incoming {
    /// TLS as it came, from `start` to `end`; allocated with the first bytes.
    raw: Vec<u8>,
    start: usize,
    end: usize,
    header: [u8; CHUNK_HEADER_LEN],
    header_len: usize,
    /// What is left of the data chunk that is being read, in bytes.
    left: usize,
    over: Option<Over>,
}

/// How the peer's half ended.
#[derive(Debug, Clone, Copy)]
enum Over {
    Finished,
    Reset(u32),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn lose(&self, reason: &str) {
        let _ = self.lost.set(reason.to_owned());
        // Not connected any more is as good.
        let _ = self.socket.shutdown(Shutdown::Both);
        self.send_wake.wake();
        self.recv_wake.wake();
    }

    fn lost(&self, otherwise: impl Into<String>) -> LaneError {
        LaneError::Lost { reason: self.lost.get().cloned().unwrap_or_else(|| otherwise.into()) }
    }

    fn check(&self) -> Result<(), LaneError> {
        if self.lost.get().is_some() { Err(self.lost("")) } else { Ok(()) }
    }

    /// Encrypts a chunk; the caller flushes. It is taken whole, so that another may always follow.
    fn put(
        &self,
        tls: &mut Connection,
        chunk: Chunk,
        data: &[bytes::Bytes],
    ) -> Result<(), LaneError> {
        let header = chunk.encode();
        let slices: Vec<_> = [&header[..]]
            .into_iter()
            .chain(data.iter().map(|d| &d[..]))
            .map(IoSlice::new)
            .collect();
        let len: usize = slices.iter().map(|slice| slice.len()).sum();
        match tls.writer().write_vectored(&slices) {
            Ok(put) if put == len => Ok(()),
            Ok(_) => Err(self.lost("TLS took a part of a chunk")),
            Err(error) => Err(self.lost(error.to_string())),
        }
    }

    /// Writes what is encrypted; `false` when the socket takes no more of it now.
    fn flush(&self, tls: &mut Connection) -> Result<bool, LaneError> {
        while tls.wants_write() {
            match tls.write_tls(&mut &self.socket) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.write_error(&e)),
            }
        }
        Ok(true)
    }

    fn write_error(&self, error: &io::Error) -> LaneError {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        let closed = matches!(error.kind(), BrokenPipe | ConnectionReset | ConnectionAborted);
        if closed && self.lost.get().is_none() {
            // Why it closed stands in what it said before, which the other half reads.
            return LaneError::Stopped {
                code: self.stopped.get().copied().unwrap_or(CODE_CANCELLED),
            };
        }
        self.lost(error.to_string())
    }

    /// Encrypts a word of this side and sends it if there is room; what is left goes with the next write.
    fn say(&self, chunk: Chunk) {
        let mut tls = lock(&self.tls);
        // Whom it cannot reach any more finds the connection lost.
        let _ = self.put(&mut tls, chunk, &[]).and_then(|()| self.flush(&mut tls));
    }

    /// Moves what has come into `buf`, and obeys the chunks in between. Returns how much it was: less than
    /// there is room for when nothing more is there, or the half is over.
    fn take(&self, incoming: &mut Incoming, buf: &mut [u8]) -> Result<usize, LaneError> {
        let mut tls = lock(&self.tls);
        let mut filled = 0;
        while filled < buf.len() {
            let Incoming { header, header_len, left, .. } = incoming;
            let is_data = *left > 0;
            let into = if is_data {
                let most = (buf.len() - filled).min(*left);
                &mut buf[filled..filled + most]
            } else {
                &mut header[*header_len..]
            };
            match tls.reader().read(into) {
                Ok(0) if incoming.over.is_some() => break,
                Ok(0) => return Err(self.lost("it was closed before its end")),
                Ok(len) if is_data => (filled, *left) = (filled + len, *left - len),
                Ok(len) => {
                    *header_len += len;
                    if *header_len == CHUNK_HEADER_LEN {
                        *header_len = 0;
                        let chunk = Chunk::decode(*header);
                        self.obey(chunk, incoming, &mut tls)?;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !self.feed(incoming, &mut tls)? {
                        break;
                    }
                }
                Err(e) => return Err(self.lost(e.to_string())),
            }
        }
        Ok(filled)
    }

    /// Gives TLS some of what has come; `false` when there is nothing.
    fn feed(&self, incoming: &mut Incoming, tls: &mut Connection) -> Result<bool, LaneError> {
        let mut raw = &incoming.raw[incoming.start..incoming.end];
        if raw.is_empty() {
            return Ok(false);
        }
        tls.read_tls(&mut raw).map_err(|e| self.lost(e.to_string()))?;
        incoming.start = incoming.end - raw.len();
        tls.process_new_packets().map_err(|e| self.lost(e.to_string()))?;
        if tls.wants_write() {
            // An answer to new keys; what finds no room goes with the next write.
            self.flush(tls)?;
        }
        Ok(true)
    }

    fn obey(
        &self,
        chunk: Option<Chunk>,
        incoming: &mut Incoming,
        tls: &mut Connection,
    ) -> Result<(), LaneError> {
        match chunk {
            Some(Chunk::Data(len)) if incoming.over.is_none() => incoming.left = len as usize,
            Some(Chunk::End) if incoming.over.is_none() => {
                incoming.over = Some(Over::Finished);
                // Should the peer be gone already, then it does not wait for this.
                let _ = self.put(tls, Chunk::Taken, &[]).and_then(|()| self.flush(tls));
            }
            Some(Chunk::Reset(code)) if incoming.over.is_none() => {
                incoming.over = Some(Over::Reset(code));
            }
            Some(Chunk::Stop(code)) => {
                let _ = self.stopped.set(code);
                self.send_wake.wake();
            }
            Some(Chunk::Taken) => {
                self.taken.store(true, Ordering::SeqCst);
                self.send_wake.wake();
            }
            Some(
                Chunk::Data(_)
                | Chunk::End
                | Chunk::Reset(_)
                | Chunk::Ping(_)
                | Chunk::Pong(_)
                | Chunk::Close(_),
            )
            | None => {
                self.lose("what it carries is no chunk that may come");
                return Err(self.lost(""));
            }
        }
        Ok(())
    }

    /// Takes TLS bytes from the socket when all of the last were used; `false` when none are there.
    fn refill(&self, incoming: &mut Incoming) -> Result<bool, LaneError> {
        incoming.raw.resize(RAW_BYTES, 0);
        loop {
            match (&self.socket).read(&mut incoming.raw) {
                Ok(0) => return Err(self.lost("it ended before its end was said")),
                Ok(len) => {
                    (incoming.start, incoming.end) = (0, len);
                    return Ok(true);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.lost(e.to_string())),
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let tls = self.tls.get_mut().unwrap_or_else(PoisonError::into_inner);
        tls.send_close_notify();
        // Politeness: what counts was said in chunks.
        let _ = tls.write_tls(&mut &self.socket);
    }
}

/// How long a call may still wait.
#[derive(Debug, Clone, Copy)]
struct Patience<'a> {
    until: Until<'a>,
    deadline: Option<Instant>,
}

impl<'a> Patience<'a> {
    fn new(until: Until<'a>) -> Self {
        let deadline = match until {
            Until::Cancelled(_) => None,
            Until::Elapsed(limit) => Some(Instant::now() + limit),
        };
        Self { until, deadline }
    }

    /// What is left; `None` is for ever.
    fn left(&self) -> Result<Option<Duration>, LaneError> {
        let over = match self.until {
            Until::Cancelled(cancel) => cancel.is_cancelled(),
            Until::Elapsed(_) => self.deadline.is_some_and(|at| at <= Instant::now()),
        };
        if over {
            return Err(LaneError::Interrupted);
        }
        Ok(self.deadline.map(|at| at.saturating_duration_since(Instant::now())))
    }
}

/// The waiting of one half.
#[derive(Debug)]
struct Waiter {
    wake: Arc<Wake>,
    /// The cancel that wakes it.
    known: Option<Cancel>,
}

impl Waiter {
    fn new(wake: &Arc<Wake>) -> Self {
        Self { wake: Arc::clone(wake), known: None }
    }

    /// Waits until the socket may be tried again, or something else is to be looked at.
    fn wait(
        &mut self,
        shared: &Shared,
        want: PollFlags,
        patience: &Patience<'_>,
    ) -> Result<(), LaneError> {
        if let Until::Cancelled(cancel) = patience.until
            && !self.known.as_ref().is_some_and(|known| known.is_same(cancel))
        {
            cancel.wakes(&self.wake);
            self.known = Some(cancel.clone());
        }
        let left = patience.left()?;
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        let mut fds = [PollFd::new(&shared.socket, want), PollFd::new(&self.wake, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(shared.lost(error.to_string())),
        }
        self.wake.clear();
        shared.check()
    }
}
