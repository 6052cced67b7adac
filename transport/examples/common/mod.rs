//! What the examples that measure have in common: two nodes in one process, a transfer between them, its price.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flocker_transport::{
    BulkReceiver, BulkSender, Identity, LaneMode, LocalNode, PeerEvent, PeerManager, TrustSet,
};

/// Length of a record's payload, in bytes.
pub(crate) const BLOCK: usize = 128 << 10;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

pub(crate) type Events = tokio::sync::mpsc::Receiver<PeerEvent>;

/// Two nodes whose connection is up, and the second one's events. Dropping a node closes its connection.
pub(crate) async fn nodes(lane: LaneMode) -> Result<(PeerManager, PeerManager, Events), Failure> {
    let listen: SocketAddr = "127.0.0.1:0".parse()?;
    let (one, two) = (Arc::new(Identity::ephemeral()?), Arc::new(Identity::ephemeral()?));
    let trust = Arc::new(TrustSet::new([one.fingerprint(), two.fingerprint()]));
    let local = |name| LocalNode::new(name).with_lane(lane);
    let (a, mut from_a) = PeerManager::start(listen, one, local("a"), trust.clone())?;
    let (b, from_b) = PeerManager::start(listen, two, local("b"), trust)?;
    a.set_peer(b.fingerprint(), vec![b.local_addr()?.to_string()]);
    while !matches!(from_a.recv().await, Some(PeerEvent::Up { .. }) | None) {}
    Ok((a, b, from_b))
}

/// Both ends of a transfer of about so many bytes.
pub(crate) async fn open(
    a: &PeerManager,
    b: &PeerManager,
    events: &mut Events,
    bytes: Option<u64>,
) -> Result<(BulkSender, BulkReceiver), Failure> {
    let sender = a.open_bulk(&b.fingerprint(), b"", bytes).await?;
    loop {
        match events.recv().await {
            Some(PeerEvent::Bulk { receiver, .. }) => return Ok((sender, receiver)),
            Some(_) => {}
            None => return Err("the node ended".into()),
        }
    }
}

/// Processor time of this process so far.
pub(crate) fn cpu_time() -> io::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields.iter().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}
