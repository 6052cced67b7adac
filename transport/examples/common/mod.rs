//! What the examples that measure have in common: two nodes in one process, a transfer between them, its price.

#![allow(dead_code, reason = "each example uses a part of it")]

use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flocker_transport::{
    BulkReceiver, BulkSender, Identity, LaneMode, LocalNode, PeerEvent, PeerManager, TrustSet,
    UdpMode,
};
use zfs_stream::record::{Begin, End, Object, Write};
use zfs_stream::{Record, Seal, Writer};

/// Length of a record's payload, in bytes.
pub(crate) const BLOCK: usize = 128 << 10;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

pub(crate) type Events = tokio::sync::mpsc::Receiver<PeerEvent>;

/// Two nodes whose connection is up, and the second one's events. Dropping a node closes its connection.
pub(crate) async fn nodes(lane: LaneMode) -> Result<(PeerManager, PeerManager, Events), Failure> {
    let (a, b, _, from_b) = nodes_over(lane, UdpMode::default()).await?;
    Ok((a, b, from_b))
}

/// The same with this way to send over UDP, and the events of both.
pub(crate) async fn nodes_over(
    lane: LaneMode,
    udp: UdpMode,
) -> Result<(PeerManager, PeerManager, Events, Events), Failure> {
    let listen: SocketAddr = "127.0.0.1:0".parse()?;
    let (one, two) = (Arc::new(Identity::ephemeral()?), Arc::new(Identity::ephemeral()?));
    let trust = Arc::new(TrustSet::new([one.fingerprint(), two.fingerprint()]));
    let local = |name| LocalNode::new(name).with_lane(lane).with_udp(udp);
    let (a, mut from_a) = PeerManager::start(listen, one, local("a"), trust.clone())?;
    let (b, from_b) = PeerManager::start(listen, two, local("b"), trust)?;
    a.set_peer(b.fingerprint(), vec![b.local_addr()?.to_string()]);
    while !matches!(from_a.recv().await, Some(PeerEvent::Up { .. }) | None) {}
    Ok((a, b, from_a, from_b))
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

/// A sound stream of `blocks` blocks.
pub(crate) fn stream(blocks: usize, noise: bool) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::with_capacity(blocks * (BLOCK + 312) + 936);
    let mut writer = Writer::new(Seal::PerRecord);
    let begin =
        Begin { objset_type: 3, to_guid: 7, to_name: b"p/v@s".to_vec(), ..Begin::default() };
    writer.record(&Record::Begin(begin), &[], &mut out)?;
    let object = Object {
        object: 1,
        object_type: 23,
        block_size: BLOCK as u32,
        dn_slots: 1,
        to_guid: 7,
        ..Object::default()
    };
    writer.record(&Record::Object(object), &[], &mut out)?;
    let text = text();
    let mut block = vec![0; BLOCK];
    for number in 0..blocks {
        if noise {
            blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut block);
        } else {
            let from = (number * 40_009) % text.len();
            block.iter_mut().zip(text.iter().cycle().skip(from)).for_each(|(to, b)| *to = *b);
        }
        let write = Write {
            object: 1,
            object_type: 23,
            offset: (number * BLOCK) as u64,
            logical_size: BLOCK as u64,
            to_guid: 7,
            checksum_type: 7,
            ..Write::default()
        };
        writer.record(&Record::Write(write), &block, &mut out)?;
    }
    writer.record(&Record::End(End { to_guid: 7, ..End::default() }), &[], &mut out)?;
    Ok(out)
}

/// Something that compresses as programs do: this very program.
fn text() -> Vec<u8> {
    let mut out = Vec::new();
    let read =
        std::fs::File::open("/proc/self/exe").and_then(|f| f.take(8 << 20).read_to_end(&mut out));
    if read.is_err() || out.is_empty() {
        out = include_bytes!("mod.rs").to_vec();
    }
    out
}
