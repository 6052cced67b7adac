//! Where UDP does not pass: the whole pair over TLS, and back to QUIC when it passes again. And what a peer or a
//! stranger may do to a connection over TLS.
#![allow(missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::transfers::{LARGE, receive, send};
use common::{LOOPBACK, Node, PATIENCE, Wall, paired_over, paired_through_wall};
use flocker_transport::{
    ConnectError, ControlError, CountTries, DownReason, Fingerprint, Identity, Invitation,
    InvitationEvent, LaneKind, LaneMode, LinkStatus, LocalNode, NoTry, PairError, PairingCode,
    PeerEvent, SendError,
};

async fn transfer(a: &Node, b: &mut Node, bytes: Option<u64>) -> LaneKind {
    let sender = a.manager.open_bulk(&b.key(), b"header", bytes).await.unwrap();
    let kind = sender.kind();
    let sending = send(40, sender);
    let (_, receiver) = b.bulk().await;
    let received = receive(receiver).await.unwrap().unwrap();
    assert_eq!(sending.await.unwrap().unwrap(), received);
    kind
}

fn link(node: &Node, peer: &Fingerprint) -> LinkStatus {
    let status = node.manager.peers().into_iter().find(|status| status.fingerprint == *peer);
    status.and_then(|status| status.link).expect("connected")
}

async fn control(node: &mut Node) -> Bytes {
    node.until(|event| match event {
        PeerEvent::Control { payload, .. } => Some(payload),
        PeerEvent::Down { reason, .. } => panic!("down: {reason}"),
        _ => None,
    })
    .await
}

async fn failed_dial(node: &mut Node) -> ConnectError {
    node.until(|event| match event {
        PeerEvent::DialFailed { error, .. } => Some(error),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_goes_over_tls_both_ways_through_a_wall_that_passes_tcp_one_way() {
    let (mut a, mut b, _wall) = paired_through_wall().await;
    for (node, peer, why) in
        [(&a, b.key(), "nothing answered over UDP"), (&b, a.key(), "got no answer")]
    {
        let link = link(node, &peer);
        assert_eq!((link.kind, link.udp_blocked), (LaneKind::Tls, true));
        assert!(link.why.as_ref().unwrap().contains(why), "{link:?}");
    }
    for n in 0..200u8 {
        a.manager.send_control(&b.key(), Bytes::from(vec![n; 5000])).await.unwrap();
        b.manager.send_control(&a.key(), Bytes::from(vec![n; 5000])).await.unwrap();
    }
    for n in 0..200u8 {
        assert_eq!(control(&mut b).await, vec![n; 5000]);
        assert_eq!(control(&mut a).await, vec![n; 5000]);
    }
    for bytes in [None, Some(1000), LARGE] {
        assert_eq!(transfer(&a, &mut b, bytes).await, LaneKind::Tls);
        assert_eq!(transfer(&b, &mut a, bytes).await, LaneKind::Tls, "b cannot dial a");
    }
    let (_, rtt) = a.manager.peers()[0].up.clone().unwrap();
    assert!(rtt > Duration::ZERO && rtt < Duration::from_secs(5), "{rtt:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_transfers_than_are_kept_ready_run_at_once_from_either_side() {
    let (mut a, mut b, _wall) = paired_through_wall().await;
    let (keys, mut all) = ([a.key(), b.key()], Vec::new());
    for n in 0..8u8 {
        for (from, to) in [(&a, keys[1]), (&b, keys[0])] {
            let sender = from.manager.open_bulk(&to, &[n], LARGE).await.unwrap();
            all.push(send(40, sender));
        }
        for node in [&mut a, &mut b] {
            let (_, receiver) = node.bulk().await;
            tokio::spawn(async { receive(receiver).await.unwrap().unwrap() });
        }
    }
    for sent in all {
        sent.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_udp_passes_again_the_session_goes_on_over_quic_with_nothing_lost_and_transfers_unbroken()
 {
    let (a, mut b, wall) = paired_through_wall().await;
    let mut a = a;
    // One in each direction that lasts beyond the change.
    let mut running = Vec::new();
    let sender = a.manager.open_bulk(&b.key(), b"", LARGE).await.unwrap();
    running.push((sender.cancel_handle(), send(1 << 24, sender), receive(b.bulk().await.1)));
    let sender = b.manager.open_bulk(&a.key(), b"", LARGE).await.unwrap();
    running.push((sender.cancel_handle(), send(1 << 24, sender), receive(a.bulk().await.1)));
    wall.let_udp_through();
    let (keys, started) = ([a.key(), b.key()], Instant::now());
    let mut said = 0u32;
    while [(&a, keys[1]), (&b, keys[0])].iter().any(|(n, peer)| link(n, peer).kind == LaneKind::Tls)
    {
        for _ in 0..20 {
            let payload = Bytes::from(said.to_le_bytes().to_vec());
            a.manager.send_control(&keys[1], payload.clone()).await.unwrap();
            b.manager.send_control(&keys[0], payload.clone()).await.unwrap();
            assert_eq!(control(&mut b).await, payload);
            assert_eq!(control(&mut a).await, payload);
            said += 1;
        }
        assert!(started.elapsed() < PATIENCE, "it stays on TLS");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for n in 0..100u8 {
        a.manager.send_control(&keys[1], Bytes::from(vec![n])).await.unwrap();
        b.manager.send_control(&keys[0], Bytes::from(vec![n])).await.unwrap();
        assert_eq!(control(&mut b).await, vec![n]);
        assert_eq!(control(&mut a).await, vec![n]);
    }
    let status = link(&a, &keys[1]);
    assert_eq!((status.kind, status.why, status.udp_blocked), (LaneKind::Quic, None, false));
    assert_eq!(transfer(&a, &mut b, None).await, LaneKind::Quic, "small ones ride it now");
    assert_eq!(transfer(&b, &mut a, None).await, LaneKind::Quic);
    for (cancel, sending, receiving) in running {
        assert!(!sending.is_finished() && !receiving.is_finished(), "a transfer broke");
        cancel.cancel("enough");
        assert!(matches!(sending.await.unwrap(), Err(SendError::Cancelled { .. })));
        assert!(receiving.await.unwrap().is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_tls_alone_uses_no_udp_and_goes_with_one_of_both() {
    let (mut a, mut b) = (Node::over("a", LaneMode::Auto), Node::over("b", LaneMode::Tls));
    std::net::UdpSocket::bind(&b.address).expect("its UDP port is free");
    a.trust.insert(b.key());
    b.trust.insert(a.key());
    a.knows(&b);
    a.up().await;
    b.up().await;
    let at = |node: &Node, peer: &Fingerprint| {
        let LinkStatus { kind, why, udp_blocked, .. } = link(node, peer);
        assert_eq!((kind, udp_blocked), (LaneKind::Tls, false));
        why.unwrap()
    };
    assert_eq!(at(&a, &b.key()), "the peer takes TLS alone");
    assert_eq!(at(&b, &a.key()), "this node is configured so");
    assert_eq!(transfer(&a, &mut b, None).await, LaneKind::Tls);
    assert_eq!(transfer(&b, &mut a, LARGE).await, LaneKind::Tls);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_use_no_common_way_are_told_what_to_change() {
    let (mut quic, mut tls) = (Node::over("a", LaneMode::Quic), Node::over("b", LaneMode::Tls));
    quic.trust.insert(tls.key());
    tls.trust.insert(quic.key());
    quic.knows(&tls);
    tls.knows(&quic);
    let error = failed_dial(&mut quic).await;
    assert!(matches!(error, ConnectError::UdpBlocked { .. }), "{error}");
    assert!(error.to_string().contains("lane = \"auto\""), "{error}");
    let error = failed_dial(&mut tls).await;
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_not_trusted_is_told_so_over_tls_and_served_nothing() {
    let (mut a, b) = (Node::over("a", LaneMode::Tls), Node::over("b", LaneMode::Auto));
    a.knows(&b);
    let error = failed_dial(&mut a).await;
    let text =
        format!("node b does not know this node (fingerprint {}): pair the two first", a.key());
    assert_eq!(error.to_string(), text);
    b.trust.insert(a.key());
    a.up().await;
}

struct Tries(AtomicU8);

impl CountTries for Tries {
    fn count_try(&self) -> Result<u8, NoTry> {
        let before = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        before.map(|n| n - 1).map_err(|_| NoTry::Exhausted)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_pair_through_a_wall_and_a_wrong_code_is_refused_there_too() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    let wall = Wall::before(&a.address).await;
    let code: PairingCode = "7K3F-M2QX-9".parse().unwrap();
    let invitation = Invitation {
        code: code.clone(),
        addresses: vec!["a.example:7001".into()],
        valid_for: Duration::from_secs(60),
        counter: Arc::new(Tries(AtomicU8::new(5))),
    };
    let mut events = a.manager.invite(invitation).await;
    let wrong = "8K3F-M2QX-9".parse().unwrap();
    let refused = b.manager.join(&wall.address, &wrong, &[]).await;
    assert!(matches!(refused, Err(PairError::WrongCode { tries_left: 4 })), "{refused:?}");
    let paired = b.manager.join(&wall.address, &code, &["b.example:7002".into()]).await.unwrap();
    assert_eq!((paired.fingerprint, paired.name.as_str()), (a.key(), "a"));
    let heard = loop {
        match tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap() {
            InvitationEvent::Paired(paired) => break paired,
            InvitationEvent::Failed { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((heard.fingerprint, heard.addresses), (b.key(), vec!["b.example:7002".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_over_tls_that_falls_silent_is_noticed_on_both_sides_and_found_again() {
    let (mut a, mut b, wall) = paired_through_wall().await;
    let sender = a.manager.open_bulk(&b.key(), b"", LARGE).await.unwrap();
    let sending = send(1 << 20, sender);
    let receiving = receive(b.bulk().await.1);
    wall.cut(true);
    assert_eq!((a.down().await, b.down().await), (DownReason::Silent, DownReason::Silent));
    let sent = sending.await.unwrap();
    assert!(matches!(sent, Err(SendError::ConnectionLost { .. })), "{sent:?}");
    assert!(receiving.await.unwrap().is_err());
    wall.cut(false);
    a.up().await;
    b.up().await;
    transfer(&a, &mut b, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_tells_its_peer_over_tls_too() {
    let (a, mut b) = paired_over(LaneMode::Tls).await;
    a.manager.close().await;
    let down = b.down().await;
    assert!(
        matches!(&down, DownReason::ClosedByPeer { reason } if reason == "this node stops"),
        "{down}"
    );
}

/// A peer that is trusted and does as it likes: its end of a link, greeted.
struct Rogue {
    stream: tokio_rustls::client::TlsStream<tokio::net::TcpStream>,
}

mod rogue {
    use super::*;
    use flocker_transport::frame::hello::{Call, Hello};
    use flocker_transport::frame::{self, FrameType, PROTOCOL_VERSION};
    use flocker_transport::lane::tls::chunk::Chunk;
    use flocker_transport::tls;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    impl Rogue {
        /// Dials `node` with this key, and greets it.
        pub(super) async fn greeted(node: &Node, identity: &Identity) -> Self {
            let mut rogue = Self::dialled(node, identity).await;
            let hello = Hello {
                protocol: PROTOCOL_VERSION,
                incarnation: 7,
                name: "rogue".into(),
                software: "0".into(),
                tls: false,
                quic: false,
                call: Call::First,
                udp_room_kib: 0,
            };
            let hello = frame::encode(FrameType::Hello, &hello.encode());
            rogue.chunk(Chunk::Data(u32::try_from(hello.len()).unwrap()), &hello).await;
            rogue
        }

        pub(super) async fn dialled(node: &Node, identity: &Identity) -> Self {
            let config =
                tls::client_config(identity, tls::ALPN_PEER, Some(node.key()), Arc::default());
            let tcp = tokio::net::TcpStream::connect(&node.address).await.unwrap();
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config.unwrap()));
            let name = std::net::IpAddr::from([0, 0, 0, 0]).into();
            Self { stream: connector.connect(name, tcp).await.unwrap() }
        }

        pub(super) async fn chunk(&mut self, chunk: Chunk, payload: &[u8]) {
            self.raw(&[&chunk.encode()[..], payload].concat()).await;
        }

        pub(super) async fn raw(&mut self, bytes: &[u8]) {
            // The node may have had enough already.
            let _ = self.stream.write_all(bytes).await;
            let _ = self.stream.flush().await;
        }

        /// Whether the node ends the connection.
        pub(super) async fn is_dropped(&mut self) -> bool {
            let end =
                async { while self.stream.read(&mut [0; 4096]).await.is_ok_and(|len| len > 0) {} };
            tokio::time::timeout(PATIENCE, end).await.is_ok()
        }
    }
}

async fn with_rogue() -> (Node, Rogue, Fingerprint) {
    let identity = Identity::ephemeral().unwrap();
    let mut node = Node::start("b");
    node.trust.insert(identity.fingerprint());
    let rogue = Rogue::greeted(&node, &identity).await;
    node.up().await;
    (node, rogue, identity.fingerprint())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_chunk_ends_the_session_and_says_so() {
    use flocker_transport::lane::tls::chunk::Chunk;
    for bad in [
        [9; 8],
        Chunk::Data(1 << 20).encode(),
        Chunk::Close(100_000).encode(),
        Chunk::Reset(1).encode(),
    ] {
        let (mut node, mut rogue, _) = with_rogue().await;
        rogue.raw(&bad).await;
        let down = node.down().await;
        assert!(matches!(down, DownReason::Protocol { .. }), "{bad:?}: {down}");
        assert!(rogue.is_dropped().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_may_not_come_ends_the_session_and_says_so() {
    use flocker_transport::frame::{self, FrameType};
    use flocker_transport::lane::tls::chunk::Chunk;
    let (mut node, mut rogue, _) = with_rogue().await;
    let frame = frame::encode(FrameType::Probe, b"");
    rogue.chunk(Chunk::Data(u32::try_from(frame.len()).unwrap()), &frame).await;
    let down = node.down().await;
    assert!(matches!(&down, DownReason::Protocol { reason } if reason.contains("Probe")), "{down}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_reads_and_says_nothing_or_one_byte_at_a_time_is_gone() {
    for drips in [false, true] {
        let (mut node, mut rogue, key) = with_rogue().await;
        let dripping = tokio::spawn(async move {
            if !drips {
                return rogue.is_dropped().await;
            }
            loop {
                rogue.raw(&[0]).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        // What it does not read waits, up to a bound.
        let mut queued = 0;
        while queued < 100 {
            match node.manager.try_send_control(&key, Bytes::from(vec![0; 1 << 20])) {
                Ok(()) => queued += 1,
                Err(ControlError::Full { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(queued < 100, "the queue has a bound");
        assert_eq!(node.down().await, DownReason::Silent);
        dripping.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_that_shake_hands_and_do_not_greet_are_dropped_and_the_pair_goes_on() {
    let (mut a, mut b) = paired_over(LaneMode::Tls).await;
    let identity = Identity::ephemeral().unwrap();
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(Rogue::dialled(&b, &identity).await);
    }
    a.manager.send_control(&b.key(), Bytes::from_static(b"hi")).await.unwrap();
    assert_eq!(control(&mut b).await, "hi");
    assert_eq!(transfer(&a, &mut b, None).await, LaneKind::Tls);
    assert_eq!(transfer(&b, &mut a, None).await, LaneKind::Tls);
    for mut rogue in silent {
        assert!(rogue.is_dropped().await, "a silent connection was kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_tls_alone_whose_port_is_taken_says_so() {
    let taken = std::net::TcpListener::bind(LOOPBACK).unwrap();
    let (identity, local) =
        (Identity::ephemeral().unwrap(), LocalNode::new("a").with_lane(LaneMode::Tls));
    let trust = Arc::new(flocker_transport::TrustSet::new([]));
    let listen = taken.local_addr().unwrap();
    let error = flocker_transport::PeerManager::start(listen, Arc::new(identity), local, trust);
    let error = error.map(drop).unwrap_err().to_string();
    assert!(error.contains("(TCP)") && error.contains("lane = \"tls\""), "{error}");
}
