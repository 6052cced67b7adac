//! Carrying a session on over QUIC, once UDP passes again, without ending it.
//!
//! ```text
//! dialler of the session                                   the other side
//!   a QUIC connection, greeted as one that continues ──────▶  takes it
//!   ◀──────────────────── Moved, on the old stream ──   from here on it writes on the new one
//!   ── Moved, on the old stream ───────────────────────▶
//!   from here on it writes on the new one
//! ```
//!
//! Each direction is read to its Moved on the old connection and then on the new one, so control stays whole and in
//! order, and the engine sees nothing. Transfers that run go on: each has a connection of its own. If either
//! connection is lost in between the session is, and is dialled anew.
//!
//! Owns: when it is tried, these steps, and what the session is told of them. Leaves to others: which connection of the
//! two may continue ([`super::keeper`]), reading and writing ([`super::session`]).

use std::future::pending;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{sleep, timeout};

use super::DownReason;
use super::handle::Standing;
use super::session::trusted;
use super::spares::Spares;
use crate::endpoint::{CloseCode, Connection, Endpoint, PeerInfo, random_u64};
use crate::lane::choice::{Choice, LaneKind, LaneMode};
use crate::link::{Link, Receiving, Sending};

/// First wait before QUIC is tried again; it doubles up to [`LONGEST_SEEK`].
const FIRST_SEEK: Duration = Duration::from_secs(5);

/// Longest wait: a few packets a minute for what may be blocked for good.
const LONGEST_SEEK: Duration = Duration::from_secs(60);

/// How long the other side may take to move: what it wrote before has to pass first.
const MOVE_TIME: Duration = Duration::from_secs(30);

/// What the reader, the writer and the mover of a session share.
#[derive(Debug)]
pub(super) struct Crossing {
    /// Where the writer goes on.
    writer: mpsc::Sender<Sending>,
    /// Where the reader goes on.
    reader: Mutex<Option<Receiving>>,
    reader_set: Notify,
    reader_moved: Notify,
}

impl Crossing {
    pub(super) fn new() -> (Self, mpsc::Receiver<Sending>) {
        let (writer, moves) = mpsc::channel(1);
        let (reader_set, reader_moved) = (Notify::new(), Notify::new());
        (Self { writer, reader: Mutex::default(), reader_set, reader_moved }, moves)
    }

    fn set_reader(&self, recv: Option<Receiving>) {
        *self.reader.lock().unwrap_or_else(PoisonError::into_inner) = recv;
        self.reader_set.notify_one();
    }

    /// The peer has moved: where its next frame is to be read.
    pub(super) async fn follow(&self) -> Result<Receiving, DownReason> {
        let set = async {
            loop {
                let next = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
                match next {
                    Some(recv) => break recv,
                    // It may have moved before its Accept reached us.
                    None => self.reader_set.notified().await,
                }
            }
        };
        let recv = timeout(MOVE_TIME, set).await.map_err(|_| DownReason::Protocol {
            reason: "it moved to a connection that there is not".into(),
        })?;
        self.reader_moved.notify_one();
        Ok(recv)
    }

    /// Moves, as the side that was dialled.
    pub(super) async fn first(&self, send: Sending, recv: Receiving) {
        self.set_reader(Some(recv));
        // A writer that is gone ends the session by itself.
        let _ = self.writer.send(send).await;
    }

    /// Completes when the peer has moved.
    pub(super) async fn peer_moved(&self) -> Result<(), DownReason> {
        timeout(MOVE_TIME, self.reader_moved.notified()).await.map_err(|_| DownReason::Protocol {
            reason: "it did not move to the connection that it opened".into(),
        })
    }

    /// Moves, as the side that dialled: after the peer has. `false` when the peer does not take it.
    pub(super) async fn second(&self, connection: Connection) -> Result<bool, DownReason> {
        let Connection { link, send, recv, .. } = connection;
        self.set_reader(Some(recv));
        tokio::select! {
            biased;
            moved = timeout(MOVE_TIME, self.reader_moved.notified()) => if moved.is_err() {
                self.set_reader(None);
                link.close(CloseCode::Duplicate, "the other side does not move");
                return Ok(false);
            },
            gone = link.closed() => {
                self.set_reader(None);
                tracing::debug!(%gone, "the session stays where it is");
                return Ok(false);
            }
        }
        let _ = self.writer.send(send).await;
        Ok(true)
    }
}

/// Looks for a way over QUIC until there is one.
pub(super) async fn seek(endpoint: &Endpoint, peer: &PeerInfo) -> Connection {
    if endpoint.local().lane != LaneMode::Auto || !peer.quic {
        std::future::pending::<()>().await;
    }
    let mut wait = FIRST_SEEK;
    loop {
        // Up to a quarter more, so that many pairs that lost UDP together do not look in step.
        sleep(wait + wait.mul_f64((random_u64() % 256) as f64 / 1024.0)).await;
        match endpoint.connect_to_continue(peer.address, peer.fingerprint).await {
            Ok(connection) if connection.peer.incarnation == peer.incarnation => return connection,
            Ok(connection) => connection.close(CloseCode::Duplicate, "another process answers"),
            Err(error) => tracing::debug!(%error, "nothing over QUIC yet"),
        }
        wait = (wait * 2).min(LONGEST_SEEK);
    }
}

/// Takes the session over to QUIC.
pub(super) struct Mover<'a> {
    pub(super) dialled: bool,
    pub(super) peer: &'a PeerInfo,
    pub(super) endpoint: &'a Endpoint,
    pub(super) link: &'a watch::Sender<Link>,
    pub(super) standing: &'a Mutex<Standing>,
    pub(super) choice: &'a Choice,
    pub(super) spares: &'a Spares,
    pub(super) crossing: &'a Crossing,
}

impl Mover<'_> {
    /// Runs until it fails in the middle.
    pub(super) async fn run(&self, mut continuing: mpsc::Receiver<Connection>) -> DownReason {
        let kind = self.link.borrow().kind();
        let moved = match (kind, self.dialled) {
            (LaneKind::Quic, _) => Ok(()),
            (LaneKind::Tls, true) => self.as_dialler().await,
            (LaneKind::Tls, false) => self.as_dialled(&mut continuing).await,
        };
        match moved {
            Ok(()) => pending().await,
            Err(reason) => reason,
        }
    }

    async fn as_dialler(&self) -> Result<(), DownReason> {
        loop {
            let connection = seek(self.endpoint, self.peer).await;
            let link = connection.link.clone();
            if self.crossing.second(connection).await? {
                self.arrived(link);
                return Ok(());
            }
        }
    }

    async fn as_dialled(
        &self,
        continuing: &mut mpsc::Receiver<Connection>,
    ) -> Result<(), DownReason> {
        let Some(connection) = continuing.recv().await else { return Ok(()) };
        let Connection { link, send, recv, .. } = connection;
        self.crossing.first(send, recv).await;
        self.arrived(link);
        self.crossing.peer_moved().await
    }

    fn arrived(&self, link: Link) {
        trusted(&link);
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = Standing::usual();
        self.choice.rides(link.kind());
        tracing::info!(peer = %self.peer.fingerprint.short(), "UDP passes again: control rides on QUIC");
        self.link.send_replace(link);
        // Whatever waits there is of no use to QUIC.
        self.spares.clear();
    }
}
