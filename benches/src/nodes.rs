//! Two nodes, each known to the other, as the daemon starts them; each may be in a process of its own.
//!
//! Owns: their keys, and opening transfers. Leaves to others: what is transferred.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use flocker_transport::bulk::dedup::CacheOptions;
use flocker_transport::{
    BulkReceiver, BulkSender, Identity, LaneMode, LocalNode, PeerEvent, PeerManager, TrustSet,
};
use tokio::sync::mpsc;

/// Bytes of a cache of blocks: the default of a node.
const CACHE_BYTES: u64 = 4 << 30;

/// Threads and events of the daemon's runtime (`flocker-engine`'s `serve`).
const RUNTIME_THREADS: usize = 2;
const EVENT_INTERVAL: u32 = 16;

/// A runtime as the daemon's.
///
/// # Errors
/// No thread can be started.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .event_interval(EVENT_INTERVAL)
        .enable_all()
        .build()
}

/// The keys of both.
#[derive(Debug, Clone)]
pub struct Keys {
    sender: Arc<Identity>,
    receiver: Arc<Identity>,
}

impl Keys {
    /// Those in a directory, made if they are not there.
    ///
    /// # Errors
    /// They cannot be read or written.
    pub fn load_or_create(directory: &Path) -> anyhow::Result<Self> {
        let one = |name: &str| -> anyhow::Result<_> {
            let directory = directory.join(name);
            std::fs::create_dir_all(&directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
            Ok(Arc::new(Identity::load_or_create(&directory)?))
        };
        Ok(Self { sender: one("sender")?, receiver: one("receiver")? })
    }

    /// New ones that are kept nowhere.
    ///
    /// # Errors
    /// There is no entropy.
    pub fn ephemeral() -> anyhow::Result<Self> {
        Ok(Self {
            sender: Arc::new(Identity::ephemeral()?),
            receiver: Arc::new(Identity::ephemeral()?),
        })
    }
}

/// A node with its events.
pub struct Node {
    /// Its connections.
    pub manager: PeerManager,
    /// What happens on them.
    pub events: mpsc::Receiver<PeerEvent>,
    peer: flocker_transport::Fingerprint,
}

impl Node {
    fn start(keys: &Keys, sends: bool, listen: SocketAddr, lane: LaneMode) -> anyhow::Result<Self> {
        let (own, other, name) = match sends {
            true => (&keys.sender, &keys.receiver, "sender"),
            false => (&keys.receiver, &keys.sender, "receiver"),
        };
        let trust = Arc::new(TrustSet::new([own.fingerprint(), other.fingerprint()]));
        let local = LocalNode::new(name).with_lane(lane);
        let (manager, events) = PeerManager::start(listen, Arc::clone(own), local, trust)?;
        Ok(Self { manager, events, peer: other.fingerprint() })
    }

    /// The one that receives.
    ///
    /// # Errors
    /// It cannot listen.
    pub fn receiver(keys: &Keys, listen: SocketAddr, lane: LaneMode) -> anyhow::Result<Self> {
        Self::start(keys, false, listen, lane)
    }

    /// The one that sends, its connection up.
    ///
    /// # Errors
    /// It cannot listen, or nobody answers at `to`.
    pub async fn sender(keys: &Keys, to: SocketAddr, lane: LaneMode) -> anyhow::Result<Self> {
        let any = match to {
            SocketAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
            SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
        };
        let mut node = Self::start(keys, true, any, lane)?;
        node.manager.set_peer(node.peer, vec![to.to_string()]);
        loop {
            match node.events.recv().await {
                Some(PeerEvent::Up { .. }) => return Ok(node),
                Some(PeerEvent::DialFailed { error, .. }) => return Err(error.into()),
                Some(_) => {}
                None => return Err(anyhow!("the node ended")),
            }
        }
    }

    /// Both, in this process, and their connection up.
    ///
    /// # Errors
    /// As [`Node::sender`].
    pub async fn pair(lane: LaneMode) -> anyhow::Result<(Self, Self)> {
        let keys = Keys::ephemeral()?;
        let mut receiver = Self::receiver(&keys, SocketAddr::from(([127, 0, 0, 1], 0)), lane)?;
        let sender = Self::sender(&keys, receiver.manager.local_addr()?, lane).await?;
        while !matches!(receiver.events.recv().await, Some(PeerEvent::Up { .. }) | None) {}
        Ok((sender, receiver))
    }

    /// Offers the other side a cache of blocks in this directory.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn keep_cache(&self, directory: &Path) -> anyhow::Result<()> {
        let options = CacheOptions { directory: directory.to_owned(), bytes: CACHE_BYTES };
        Ok(self.manager.resources().dedup().keep_caches(options)?)
    }

    /// Opens a transfer of about `bytes` to the other one.
    ///
    /// # Errors
    /// The connection is down.
    pub async fn open(&self, bytes: Option<u64>) -> anyhow::Result<BulkSender> {
        Ok(self.manager.open_bulk(&self.peer, b"", bytes).await?)
    }

    /// The next transfer that the other one opens.
    ///
    /// # Errors
    /// The connection is down.
    pub async fn opened(&mut self) -> anyhow::Result<BulkReceiver> {
        loop {
            match self.events.recv().await {
                Some(PeerEvent::Bulk { receiver, .. }) => return Ok(receiver),
                Some(PeerEvent::Down { reason, .. }) => {
                    return Err(anyhow!("the connection is down: {reason}"));
                }
                Some(_) => {}
                None => return Err(anyhow!("the node ended")),
            }
        }
    }

    /// The other one's key.
    pub fn peer(&self) -> &flocker_transport::Fingerprint {
        &self.peer
    }
}
