//! What the tests of this crate share: streams to send, and nodes to send them between.
#![allow(dead_code, missing_docs, reason = "each test binary uses a part of it")]

pub(crate) mod rogue;
pub(crate) mod transfers;

use std::collections::VecDeque;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flocker_transport::frame::PROTOCOL_VERSION;
use flocker_transport::{
    BulkReceiver, BulkSender, Fingerprint, Identity, LaneMode, LocalNode, PeerEvent, PeerManager,
    Resources, TrustSet, lane,
};
use tokio::sync::mpsc;
use zfs_stream::record::{Begin, End, Object, Write};
use zfs_stream::{Record, Seal, Writer};

/// Long enough for anything on a busy machine, short enough to fail.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Address of a node that picks its own port.
pub(crate) const LOOPBACK: &str = "127.0.0.1:0";

pub(crate) fn golden_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/streams")
}

/// Names of the golden streams that are whole.
pub(crate) fn golden_names() -> Vec<String> {
    let dir = std::fs::read_dir(golden_dir()).expect("the golden streams");
    let mut names: Vec<String> = dir
        .map(|entry| entry.expect("listing").file_name().into_string().expect("UTF-8"))
        .filter_map(|file| file.strip_suffix(".zstream.zst").map(String::from))
        .filter(|name| name != "resume-part1-truncated")
        .collect();
    names.sort();
    assert!(names.len() >= 40, "golden streams are missing: {names:?}");
    names
}

pub(crate) fn golden(name: &str) -> Vec<u8> {
    let path = golden_dir().join(format!("{name}.zstream.zst"));
    zstd::decode_all(std::fs::File::open(path).expect(name)).expect(name)
}

/// A sound stream of any length, made while it is read.
pub(crate) struct Synthetic {
    writer: Writer,
    made: VecDeque<u8>,
    block: Vec<u8>,
    next: u64,
    blocks: u64,
    noise: bool,
}

impl Synthetic {
    /// `blocks` WRITE records of `block_len` bytes each, random or not.
    pub(crate) fn new(blocks: u64, block_len: usize, noise: bool) -> Self {
        let mut this = Self {
            writer: Writer::new(Seal::PerRecord),
            made: VecDeque::new(),
            block: vec![0; block_len],
            next: 0,
            blocks,
            noise,
        };
        this.record(&Record::Begin(Begin {
            objset_type: zfs_stream::format::objset::ZVOL,
            features: zfs_stream::Features::LARGE_BLOCKS,
            to_guid: 7,
            to_name: b"tank/vol@s1".to_vec(),
            ..Begin::default()
        }));
        this.record(&Record::Object(Object {
            object: 1,
            object_type: 23,
            block_size: u32::try_from(block_len).expect("a block"),
            checksum_type: 7,
            dn_slots: 1,
            to_guid: 7,
            ..Object::default()
        }));
        this
    }

    pub(crate) fn len(blocks: u64, block_len: usize) -> u64 {
        3 * 312 + blocks * (312 + block_len as u64)
    }

    fn record(&mut self, record: &Record) {
        let payload: &[u8] = if matches!(record, Record::Write(_)) { &self.block } else { &[] };
        let mut out = Vec::new();
        self.writer.record(record, payload, &mut out).expect("a record of a valid stream");
        self.made.extend(out);
    }

    fn make(&mut self) {
        if self.next == self.blocks {
            if !self.writer.is_done() {
                self.record(&Record::End(End { to_guid: 7, ..End::default() }));
            }
            return;
        }
        let number = self.next;
        self.next += 1;
        let mut xof = blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof();
        if self.noise {
            xof.fill(&mut self.block);
        } else {
            let start: Vec<u8> = format!("row {number} of a table that repeats itself; ").into();
            self.block.iter_mut().zip(start.iter().cycle()).for_each(|(to, from)| *to = *from);
        }
        let len = self.block.len() as u64;
        self.record(&Record::Write(Write {
            object: 1,
            object_type: 23,
            offset: number * len,
            logical_size: len,
            to_guid: 7,
            checksum_type: 7,
            ..Write::default()
        }));
    }
}

impl Read for Synthetic {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.made.is_empty() {
            self.make();
        }
        self.made.read(buf)
    }
}

/// The whole of a synthetic stream.
pub(crate) fn synthetic(blocks: u64, block_len: usize, noise: bool) -> Vec<u8> {
    let mut out = Vec::new();
    Synthetic::new(blocks, block_len, noise).read_to_end(&mut out).expect("made in memory");
    assert_eq!(out.len() as u64, Synthetic::len(blocks, block_len));
    out
}

/// A sound stream of blocks of noise: equal numbers, equal blocks.
pub(crate) fn blocks_stream(numbers: impl Iterator<Item = u64>, block_len: usize) -> Vec<u8> {
    blocks_of(numbers, block_len, zfs_stream::Features::LARGE_BLOCKS)
}

/// The same with these features.
pub(crate) fn blocks_of(
    numbers: impl Iterator<Item = u64>,
    block_len: usize,
    features: zfs_stream::Features,
) -> Vec<u8> {
    let (mut writer, mut out) = (Writer::new(Seal::PerRecord), Vec::new());
    let mut add = |record: &Record, payload: &[u8]| {
        writer.record(record, payload, &mut out).expect("a record of a valid stream");
    };
    let begin = Begin {
        objset_type: zfs_stream::format::objset::ZVOL,
        features,
        to_guid: 7,
        to_name: b"tank/vol@s1".to_vec(),
        ..Begin::default()
    };
    add(&Record::Begin(begin), &[]);
    let mut block = vec![0; block_len];
    let len = block_len as u64;
    for (at, number) in (0..).zip(numbers) {
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut block);
        let write = Write {
            object: 1,
            object_type: 23,
            offset: at * len,
            logical_size: len,
            to_guid: 7,
            checksum_type: 7,
            ..Write::default()
        };
        add(&Record::Write(write), &block);
    }
    add(&Record::End(End { to_guid: 7, ..End::default() }), &[]);
    out
}

/// What is between a sender and a receiver that have no nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Memory,
    Tls,
}

/// Cuts what is between the two.
pub(crate) struct Cable(Box<dyn Fn()>);

impl Cable {
    pub(crate) fn cut(&self) {
        (self.0)();
    }
}

/// A sender and a receiver with a lane in between, and the cable to cut.
pub(crate) fn between(over: Over) -> (BulkSender, BulkReceiver, Cable) {
    let (a, b, cable) = match over {
        Over::Memory => {
            let (a, b, cable) = lane::memory::pair();
            (a, b, Cable(Box::new(move || cable.cut())))
        }
        Over::Tls => {
            // Hung up on the near side: the far side sees its connection end.
            let ((a, hangup), (b, _)) = lane::tls::pair().expect("a connection");
            (a, b, Cable(Box::new(move || hangup.hang_up("the cable was cut"))))
        }
    };
    let resources = || Resources::start().expect("workers");
    (BulkSender::over(a, resources()), BulkReceiver::over(b, resources()), cable)
}

/// A node with its events.
pub(crate) struct Node {
    pub(crate) manager: PeerManager,
    pub(crate) events: mpsc::Receiver<PeerEvent>,
    pub(crate) trust: Arc<TrustSet>,
    pub(crate) address: String,
}

impl Node {
    pub(crate) fn start(name: &str) -> Self {
        Self::speaking(name, PROTOCOL_VERSION)
    }

    pub(crate) fn speaking(name: &str, protocol: u16) -> Self {
        let identity = Identity::ephemeral().expect("an identity");
        Self::with(name, protocol, Arc::new(identity), LOOPBACK)
    }

    pub(crate) fn over(name: &str, lane: LaneMode) -> Self {
        let identity = Arc::new(Identity::ephemeral().expect("an identity"));
        Self::local(LocalNode::new(name).with_lane(lane), identity, LOOPBACK)
    }

    pub(crate) fn with(name: &str, protocol: u16, identity: Arc<Identity>, listen: &str) -> Self {
        let mut local = LocalNode::new(name);
        local.protocol = protocol;
        Self::local(local, identity, listen)
    }

    pub(crate) fn local(local: LocalNode, identity: Arc<Identity>, listen: &str) -> Self {
        let trust = Arc::new(TrustSet::new([]));
        let listen = listen.parse().expect("an address");
        let (manager, events) =
            PeerManager::start(listen, identity, local, trust.clone()).expect("a node");
        let address = manager.local_addr().expect("bound").to_string();
        Self { manager, events, trust, address }
    }

    pub(crate) fn key(&self) -> Fingerprint {
        self.manager.fingerprint()
    }

    /// Trusts `other` and dials it.
    pub(crate) fn knows(&self, other: &Node) {
        self.trust.insert(other.key());
        self.manager.set_peer(other.key(), vec![other.address.clone()]);
    }

    /// The next event that `pick` takes; others are dropped.
    pub(crate) async fn until<T>(&mut self, mut pick: impl FnMut(PeerEvent) -> Option<T>) -> T {
        let picked = tokio::time::timeout(PATIENCE, async {
            loop {
                let event = self.events.recv().await.expect("the node runs");
                if let Some(picked) = pick(event) {
                    return picked;
                }
            }
        });
        picked.await.expect("the event that is waited for")
    }

    pub(crate) async fn up(&mut self) -> u64 {
        self.until(|event| match event {
            PeerEvent::Up { session, .. } => Some(session),
            _ => None,
        })
        .await
    }

    pub(crate) async fn down(&mut self) -> flocker_transport::DownReason {
        self.until(|event| match event {
            PeerEvent::Down { reason, .. } => Some(reason),
            _ => None,
        })
        .await
    }

    pub(crate) async fn bulk(&mut self) -> (Vec<u8>, BulkReceiver) {
        self.until(|event| match event {
            PeerEvent::Bulk { header, receiver, .. } => Some((header.to_vec(), receiver)),
            _ => None,
        })
        .await
    }
}

/// Two nodes that know each other and whose connection is up, with a wire in between that passes UDP alone.
pub(crate) async fn paired_through_wire(lane: LaneMode) -> (Node, Node, Wire) {
    let (mut a, mut b) = (Node::over("a", lane), Node::over("b", lane));
    let wire = Wire::to(&b.address).await;
    b.trust.insert(a.key());
    a.trust.insert(b.key());
    a.manager.set_peer(b.key(), vec![wire.address.clone()]);
    a.up().await;
    b.up().await;
    (a, b, wire)
}

/// Two nodes that know each other, and their connection up.
pub(crate) async fn paired() -> (Node, Node) {
    paired_over(LaneMode::Auto).await
}

/// The same, with bulk over these lanes.
pub(crate) async fn paired_over(lane: LaneMode) -> (Node, Node) {
    let (mut a, mut b) = (Node::over("a", lane), Node::over("b", lane));
    b.trust.insert(a.key());
    a.knows(&b);
    a.up().await;
    b.up().await;
    (a, b)
}

/// A piece of network between two nodes that can be cut: packets to its address reach `to`, and answers
/// come back.
pub(crate) struct Wire {
    pub(crate) address: String,
    cut: Arc<std::sync::atomic::AtomicBool>,
}

impl Wire {
    pub(crate) async fn to(target: &str) -> Self {
        use std::sync::atomic::{AtomicBool, Ordering};
        let near = Arc::new(tokio::net::UdpSocket::bind(LOOPBACK).await.expect("a socket"));
        let far = Arc::new(tokio::net::UdpSocket::bind(LOOPBACK).await.expect("a socket"));
        far.connect(target).await.expect("the target");
        let address = near.local_addr().expect("bound").to_string();
        let cut = Arc::new(AtomicBool::new(false));
        let caller = Arc::new(std::sync::Mutex::new(None));
        let (n, f, c, who) = (near.clone(), far.clone(), cut.clone(), caller.clone());
        tokio::spawn(async move {
            let mut buf = vec![0; 65536];
            while let Ok((len, from)) = n.recv_from(&mut buf).await {
                *who.lock().expect("unpoisoned") = Some(from);
                if !c.load(Ordering::SeqCst) {
                    let _ = f.send(&buf[..len]).await;
                }
            }
        });
        let c = cut.clone();
        tokio::spawn(async move {
            let mut buf = vec![0; 65536];
            while let Ok(len) = far.recv(&mut buf).await {
                let to = *caller.lock().expect("unpoisoned");
                if let (Some(to), false) = (to, c.load(Ordering::SeqCst)) {
                    let _ = near.send_to(&buf[..len], to).await;
                }
            }
        });
        Self { address, cut }
    }

    pub(crate) fn cut(&self, cut: bool) {
        self.cut.store(cut, std::sync::atomic::Ordering::SeqCst);
    }
}

/// A wall between two nodes at one port: TCP passes until it is cut, UDP once it may.
pub(crate) struct Wall {
    pub(crate) address: String,
    udp: Arc<std::sync::atomic::AtomicBool>,
    tcp: tokio::sync::watch::Sender<bool>,
}

impl Wall {
    pub(crate) async fn before(target: &str) -> Self {
        use std::sync::atomic::{AtomicBool, Ordering};
        let (listener, near) = loop {
            let listener = tokio::net::TcpListener::bind(LOOPBACK).await.expect("a port");
            let address = listener.local_addr().expect("bound");
            if let Ok(near) = tokio::net::UdpSocket::bind(address).await {
                break (listener, Arc::new(near));
            }
        };
        let address = listener.local_addr().expect("bound").to_string();
        let far = Arc::new(tokio::net::UdpSocket::bind(LOOPBACK).await.expect("a socket"));
        far.connect(target).await.expect("the target");
        let udp = Arc::new(AtomicBool::new(false));
        let caller = Arc::new(std::sync::Mutex::new(None));
        let (n, f, open, who) = (near.clone(), far.clone(), udp.clone(), caller.clone());
        tokio::spawn(async move {
            let mut buf = vec![0; 65536];
            while let Ok((len, from)) = n.recv_from(&mut buf).await {
                *who.lock().expect("unpoisoned") = Some(from);
                if open.load(Ordering::SeqCst) {
                    let _ = f.send(&buf[..len]).await;
                }
            }
        });
        tokio::spawn(async move {
            let mut buf = vec![0; 65536];
            while let Ok(len) = far.recv(&mut buf).await {
                let to = *caller.lock().expect("unpoisoned");
                if let Some(to) = to {
                    let _ = near.send_to(&buf[..len], to).await;
                }
            }
        });
        let (tcp, passes) = tokio::sync::watch::channel(true);
        let target = target.to_owned();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (target, passes) = (target.clone(), passes.clone());
                tokio::spawn(async move {
                    let far = tokio::net::TcpStream::connect(&target).await.expect("the target");
                    let (near_read, near_write) = near.into_split();
                    let (far_read, far_write) = far.into_split();
                    tokio::join!(
                        pass_on(near_read, far_write, passes.clone()),
                        pass_on(far_read, near_write, passes),
                    );
                });
            }
        });
        Self { address, udp, tcp }
    }

    pub(crate) fn let_udp_through(&self) {
        self.udp.store(true, std::sync::atomic::Ordering::SeqCst);
    }

    /// From now on nothing passes, and nobody is told.
    pub(crate) fn cut(&self, cut: bool) {
        self.tcp.send_replace(!cut);
    }
}

async fn pass_on(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut passes: tokio::sync::watch::Receiver<bool>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buf = vec![0; 65536];
    while let Ok(len) = from.read(&mut buf).await {
        if passes.wait_for(|passes| *passes).await.is_err() {
            return;
        }
        if len == 0 || to.write_all(&buf[..len]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

/// Two nodes with a wall in between through which `a` dials, and which lets TCP through alone.
pub(crate) async fn paired_through_wall() -> (Node, Node, Wall) {
    let (mut a, mut b) = (Node::over("a", LaneMode::Auto), Node::over("b", LaneMode::Auto));
    let wall = Wall::before(&b.address).await;
    b.trust.insert(a.key());
    a.trust.insert(b.key());
    a.manager.set_peer(b.key(), vec![wall.address.clone()]);
    a.up().await;
    b.up().await;
    (a, b, wall)
}
