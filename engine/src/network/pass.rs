//! One client's connection: held until the workload can take it, then passed on both ways.
//!
//! Owns: waiting, trying again, and the bytes. Leaves to others: where the workload is
//! (`whereabouts`), what is measured (`clients`), and the ports (`forward`).
//!
//! While a connection is held nothing is read from it: what the client sends meanwhile waits in its
//! socket and is the first thing that the workload reads. A backend that refuses is tried again by one
//! of those that wait, in turn; the others follow when it has succeeded.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_keepalive;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{sleep, timeout, timeout_at};

use super::clients::{Connection, End};
use super::forward::{Port, Shared, Targets};
use super::whereabouts::Whereabouts;

/// How long one attempt to reach the backend may take: longer than a packet that is lost and sent again.
const CONNECT_LIMIT: Duration = Duration::from_millis(2500);

/// Pause between attempts: a tenth of what a cutover's gap may be worth telling apart, and little work.
const RETRY: Duration = Duration::from_millis(5);

/// Pause once the backend has refused so often in a row that it is no cutover any more.
const RETRY_LATER: Duration = Duration::from_millis(50);
const LATER_AFTER: u32 = 400;

/// Bytes that are read at once, each way.
const BUFFER_BYTES: usize = 16 * 1024;

/// Whether a port's backend answers: one tries at a time while it does not.
#[derive(Debug, Default)]
pub(super) struct Gate {
    turn: tokio::sync::Mutex<()>,
    /// Refusals since it last answered.
    refusals: AtomicU32,
}

impl Gate {
    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        if self.refusals.load(Ordering::Acquire) == 0 {
            return self.attempt(to).await;
        }
        let turn = self.turn.lock().await;
        let refusals = self.refusals.load(Ordering::Acquire);
        if refusals == 0 {
            drop(turn);
            return self.attempt(to).await;
        }
        // The pause is the turn's: however many wait, the backend sees one attempt at a time.
        sleep(if refusals < LATER_AFTER { RETRY } else { RETRY_LATER }).await;
        self.attempt(to).await
    }

    async fn attempt(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let connected = timeout(CONNECT_LIMIT, TcpStream::connect(to)).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match &connected {
            Ok(_) => self.refusals.store(0, Ordering::Release),
            // Saturates after years of refusals.
            Err(_) => drop(self.refusals.fetch_add(1, Ordering::AcqRel)),
        }
        connected
    }
}

/// What a connection needs to know.
pub(super) struct Passing {
    pub(super) shared: Arc<Shared>,
    pub(super) port: Arc<Port>,
    pub(super) targets: watch::Receiver<Targets>,
    /// One of the places of those that are held.
    pub(super) hold: OwnedSemaphorePermit,
    /// How long it may be held.
    pub(super) limit: Duration,
}

/// Takes care of one connection until it ends.
pub(super) async fn pass(client: TcpStream, passing: Passing) {
    let Passing { shared, port, targets, hold, limit } = passing;
    let mut whereabouts = shared.whereabouts.subscribe();
    let mut measured = Measured::new(Arc::clone(&shared));
    set_up(&client);
    port.held.fetch_add(1, Ordering::Relaxed);
    let deadline = tokio::time::Instant::now() + limit;
    let found = timeout_at(deadline, find(&port, &targets, &mut whereabouts, &mut measured));
    let found = found.await;
    port.held.fetch_sub(1, Ordering::Relaxed);
    let Ok(Some((mut backend, place))) = found else {
        tracing::debug!(listen = %port.listen, "a connection could not be passed on");
        measured.how = End::Error;
        return;
    };
    // A client that has reset its connection meanwhile wants nothing any more.
    if let Ok(Some(_)) | Err(_) = client.take_error() {
        return;
    }
    set_up(&backend);
    measured.passed_on(&client);
    drop(hold);
    port.open.fetch_add(1, Ordering::Relaxed);
    let mut client = Watched { inner: client, measured, client_ended: false };
    let copied = tokio::select! {
        copied = copy_bidirectional_with_sizes(&mut client, &mut backend, BUFFER_BYTES, BUFFER_BYTES) => copied.map(drop),
        () = moved_on(&mut whereabouts, place) => Err(io::ErrorKind::ConnectionAborted.into()),
    };
    if copied.is_err() && !client.client_ended {
        client.measured.how = End::Backend;
    }
    port.open.fetch_sub(1, Ordering::Relaxed);
}

/// Waits until the workload is somewhere that takes the connection; `None`: nobody is to wait for it.
async fn find(
    port: &Port,
    targets: &watch::Receiver<Targets>,
    whereabouts: &mut watch::Receiver<Whereabouts>,
    measured: &mut Measured,
) -> Option<(TcpStream, Whereabouts)> {
    loop {
        let place = *whereabouts.borrow_and_update();
        let to = *targets.borrow();
        let to = match place {
            Whereabouts::Here => to.local,
            Whereabouts::Elsewhere => to.remote,
            Whereabouts::Stopped => return None,
            Whereabouts::Nowhere => {
                measured.held();
                whereabouts.changed().await.ok()?;
                continue;
            }
        };
        let attempt = tokio::select! {
            attempt = port.gate.connect(to) => attempt,
            changed = whereabouts.changed() => {
                changed.ok()?;
                continue;
            }
        };
        match attempt {
            // One that was reached just before it was stopped is not it any more.
            Ok(backend) if *whereabouts.borrow() == place => return Some((backend, place)),
            Ok(_) => {}
            Err(error) => {
                tracing::trace!(%to, %error, "the backend does not answer");
                measured.held();
            }
        }
    }
}

/// Ends once the workload is known to be at the other place: from this one nobody is answered any more.
async fn moved_on(whereabouts: &mut watch::Receiver<Whereabouts>, place: Whereabouts) {
    let other = match place {
        Whereabouts::Here => Whereabouts::Elsewhere,
        _ => Whereabouts::Here,
    };
    if whereabouts.wait_for(|now| *now == other).await.is_err() {
        // The unit is not forwarded any more; what stands goes on.
        std::future::pending::<()>().await;
    }
}

fn set_up(stream: &TcpStream) {
    // Neither is needed for it to work.
    let _ = stream.set_nodelay(true);
    let _ = set_socket_keepalive(stream, true);
}

/// A connection's part in what clients feel; said to have ended when dropped.
struct Measured {
    shared: Arc<Shared>,
    connection: Connection,
    how: End,
}

impl Measured {
    fn new(shared: Arc<Shared>) -> Self {
        Self { shared, connection: Connection::default(), how: End::Client }
    }

    fn held(&mut self) {
        self.shared.clients().held(&mut self.connection, Instant::now());
    }

    fn passed_on(&mut self, client: &TcpStream) {
        let mut one = [0u8; 1];
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        let asked = rustix::net::recv(client, &mut one[..], flags).is_ok_and(|(_, n)| n > 0);
        self.shared.clients().passed_on(&mut self.connection, asked, Instant::now());
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        self.shared.clients().ended(&mut self.connection, self.how, Instant::now());
    }
}

/// The client's side: what is read from it is a request, what is written to it an answer.
struct Watched {
    inner: TcpStream,
    measured: Measured,
    client_ended: bool,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, buffer));
        if read.is_ok() && buffer.filled().len() > before {
            let Measured { shared, connection, .. } = &mut self.measured;
            shared.clients().request(connection, Instant::now());
        } else {
            self.client_ended = true;
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes));
        match &written {
            Ok(_) => {
                let Measured { shared, connection, .. } = &mut self.measured;
                shared.clients().answer(connection, Instant::now());
            }
            Err(_) => self.client_ended = true,
        }
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.client_ended {
            self.measured.how = End::Backend;
        }
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
