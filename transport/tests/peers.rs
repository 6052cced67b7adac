//! Two nodes on loopback: greetings, trust, control, loss over real QUIC; bulk over QUIC and over TLS.
#![allow(missing_docs)]

mod common;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Node, PATIENCE, Synthetic, golden, paired, paired_over, paired_through_wire};
use flocker_transport::frame::{MAX_BULK_HEADER, MAX_CONTROL};
use flocker_transport::{
    BulkReceiver, BulkSender, ConnectError, ControlError, DownReason, Endpoint, Identity, LaneMode,
    LocalNode, OpenBulkError, PeerEvent, Progress, ReceiveError, ReceiveReport, Refusal, SendError,
    SendOptions, SendReport, TrustSet, receive_stream, send_stream,
};
use tokio::task::{JoinHandle, spawn_blocking};

const BLOCK: usize = 128 << 10;

/// As large as it takes to have the choice of a lane.
const LARGE: Option<u64> = Some(u64::MAX);

/// Each of these is a test over each lane.
macro_rules! over_each_lane {
    ($($name:ident,)*) => {
        mod quic {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(super::LaneMode::Quic).await })*
        }
        mod tls {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(super::LaneMode::Tls).await })*
        }
    };
}

over_each_lane! {
    golden_streams_arrive_side_by_side,
    more_transfers_than_places_wait_their_turn_and_all_arrive,
    control_and_a_small_transfer_pass_a_large_one,
    a_damaged_stream_is_refused_with_its_record_on_both_sides,
    a_refusal_reaches_a_sender_in_full_swing,
    a_lost_connection_ends_transfers_on_both_sides_and_is_redialled,
    control_passes_while_every_transfer_there_may_be_hangs,
}

fn send(
    read: impl io::Read + Send + 'static,
    sender: BulkSender,
) -> JoinHandle<Result<SendReport, SendError>> {
    spawn_blocking(move || {
        send_stream(read, |_| Ok(()), sender, SendOptions::default(), &Progress::default())
    })
}

type Received = (Vec<u8>, Result<ReceiveReport, ReceiveError>);

fn receive(mut receiver: BulkReceiver) -> JoinHandle<Received> {
    spawn_blocking(move || {
        let mut out = Vec::new();
        let result = receive_stream(&mut receiver, &mut out, &Progress::default());
        let refusal = |e: &ReceiveError| Refusal { code: 1, reason: e.to_string() };
        let _ = receiver.finish(result.as_ref().map(drop).map_err(refusal));
        (out, result)
    })
}

async fn failed_dial(node: &mut Node) -> ConnectError {
    node.until(|event| match event {
        PeerEvent::DialFailed { error, .. } => Some(error),
        _ => None,
    })
    .await
}

async fn refused(node: &mut Node) -> ConnectError {
    node.until(|event| match event {
        PeerEvent::Refused(refused) => Some(refused.error),
        _ => None,
    })
    .await
}

async fn control(node: &mut Node) -> Bytes {
    node.until(|event| match event {
        PeerEvent::Control { payload, .. } => Some(payload),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn paired_nodes_come_up_and_know_each_other() {
    let (mut a, mut b) = (Node::start("alpha"), Node::start("beta"));
    b.trust.insert(a.key());
    a.knows(&b);
    let of = |event| match event {
        PeerEvent::Up { peer, .. } => Some((peer.fingerprint, peer.name)),
        _ => None,
    };
    assert_eq!(a.until(of).await, (b.key(), "beta".to_owned()));
    assert_eq!(b.until(of).await, (a.key(), "alpha".to_owned()));
    assert!(a.manager.is_up(&b.key()));
    let status = a.manager.peers();
    let (peer, rtt) = status[0].up.clone().expect("up");
    assert_eq!(peer.name, "beta");
    assert!(rtt < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_version_is_named_on_both_sides() {
    let (mut a, mut b) = (Node::start("a"), Node::speaking("b", 2));
    b.trust.insert(a.key());
    a.knows(&b);
    let error = failed_dial(&mut a).await;
    assert_eq!(error.to_string(), "this node speaks protocol 1, b speaks 2: upgrade this node");
    let error = refused(&mut b).await;
    assert_eq!(error.to_string(), "this node speaks protocol 2, a speaks 1: upgrade a");
    assert!(!a.manager.is_up(&b.key()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpaired_node_is_told_so_in_words() {
    let (mut a, mut b) = (Node::start("a"), Node::start("b"));
    a.knows(&b);
    let error = failed_dial(&mut a).await;
    let text =
        format!("node b does not know this node (fingerprint {}): pair the two first", a.key());
    assert_eq!(error.to_string(), text);
    assert!(matches!(refused(&mut b).await, ConnectError::NotPaired { .. }));
    // Once it is trusted, the dialler finds its way by itself.
    b.trust.insert(a.key());
    a.up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_than_the_pinned_one_is_refused_with_both_named() {
    let (a, b, other) = (Node::start("a"), Node::start("b"), Node::start("other"));
    let mut a = a;
    a.trust.insert(other.key());
    a.manager.set_peer(other.key(), vec![b.address.clone()]);
    let error = failed_dial(&mut a).await;
    let ConnectError::WrongKey { expected, found, .. } = error else { panic!("{error}") };
    assert_eq!((expected, found), (other.key(), b.key()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dials_itself_is_told() {
    let mut a = Node::start("a");
    let (key, address) = (a.key(), a.address.clone());
    a.trust.insert(key);
    a.manager.set_peer(key, vec![address]);
    assert!(matches!(failed_dial(&mut a).await, ConnectError::Myself));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_where_nobody_answers_is_unreachable() {
    let identity = Arc::new(Identity::ephemeral().unwrap());
    let (here, _arrivals) = Endpoint::bind(
        "127.0.0.1:0".parse().unwrap(),
        identity,
        LocalNode::new("a"),
        Arc::new(TrustSet::new([])),
    )
    .unwrap();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = here.connect(silent.local_addr().unwrap(), here.fingerprint()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn control_arrives_in_order_both_ways_at_once() {
    let (mut a, mut b) = paired().await;
    let (from_a, from_b) = (a.manager.clone(), b.manager.clone());
    let (to_a, to_b) = (a.key(), b.key());
    let sending = tokio::spawn(async move {
        for n in 0..2000u32 {
            let payload = Bytes::from(n.to_le_bytes().to_vec());
            from_a.send_control(&to_b, payload.clone()).await.unwrap();
            from_b.send_control(&to_a, payload).await.unwrap();
        }
    });
    let check = |node: Node| async move {
        let mut node = node;
        for n in 0..2000u32 {
            assert_eq!(control(&mut node).await, n.to_le_bytes().to_vec());
        }
        node
    };
    let (_a, _b) = tokio::join!(tokio::spawn(check(a)), tokio::spawn(check(b)));
    sending.await.unwrap();
    (a, b) = (_a.unwrap(), _b.unwrap());
    assert!(a.manager.is_up(&b.key()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_control_payload_passes_and_a_larger_one_is_refused_here() {
    let (a, mut b) = paired().await;
    let large = Bytes::from(vec![7; MAX_CONTROL]);
    a.manager.send_control(&b.key(), large.clone()).await.unwrap();
    assert_eq!(control(&mut b).await, large);
    let error = a.manager.send_control(&b.key(), vec![0; MAX_CONTROL + 1].into()).await;
    assert_eq!(error, Err(ControlError::TooLong { len: MAX_CONTROL + 1 }));
    let error = a.manager.open_bulk(&b.key(), &vec![0; MAX_BULK_HEADER + 1], LARGE).await;
    assert!(matches!(error, Err(OpenBulkError::TooLong { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn control_to_an_engine_that_does_not_listen_is_bounded() {
    let (a, b) = paired().await;
    let payload = Bytes::from(vec![1; MAX_CONTROL]);
    let queue_until_full = async {
        loop {
            match a.manager.try_send_control(&b.key(), payload.clone()) {
                Ok(()) => {}
                Err(ControlError::Full { .. }) => {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    if a.manager.try_send_control(&b.key(), payload.clone()).is_err() {
                        break;
                    }
                }
                Err(other) => panic!("{other}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, queue_until_full).await.expect("the queue has a bound");
    assert!(a.manager.is_up(&b.key()), "a full queue is no reason to part");
}

async fn golden_streams_arrive_side_by_side(lane: LaneMode) {
    let (a, mut b) = paired_over(lane).await;
    let names = ["full-plain", "incr-multi-I", "raw-full", "full-large-Lec", "incr-empty"];
    let mut sending = Vec::new();
    for name in names {
        let sender = a.manager.open_bulk(&b.key(), name.as_bytes(), LARGE).await.unwrap();
        sending.push(send(io::Cursor::new(golden(name)), sender));
    }
    for _ in names {
        let (header, receiver) = b.bulk().await;
        let name = String::from_utf8(header).unwrap();
        let (out, result) = receive(receiver).await.unwrap();
        result.unwrap();
        assert!(out == golden(&name), "{name} arrived changed");
    }
    for sent in sending {
        sent.await.unwrap().unwrap();
    }
}

async fn more_transfers_than_places_wait_their_turn_and_all_arrive(lane: LaneMode) {
    let (a, mut b) = paired_over(lane).await;
    let (manager, to) = (a.manager.clone(), b.key());
    let opening = tokio::spawn(async move {
        let mut sending = Vec::new();
        for n in 0..30u8 {
            let sender = manager.open_bulk(&to, &[n], LARGE).await.unwrap();
            sending.push(send(Synthetic::new(8, BLOCK, true), sender));
        }
        for sent in sending {
            sent.await.unwrap().unwrap();
        }
    });
    for _ in 0..30 {
        let (_, receiver) = b.bulk().await;
        tokio::spawn(async { receive(receiver).await.unwrap().1.unwrap() });
    }
    tokio::time::timeout(PATIENCE, opening).await.unwrap().unwrap();
}

async fn control_and_a_small_transfer_pass_a_large_one(lane: LaneMode) {
    let (a, mut b) = paired_over(lane).await;
    let large = a.manager.open_bulk(&b.key(), b"large", LARGE).await.unwrap();
    let large = send(Synthetic::new(1 << 20, BLOCK, true), large);
    let (_, receiver) = b.bulk().await;
    let cancel = receiver.cancel_handle();
    let receiving = spawn_blocking(move || {
        let mut receiver = receiver;
        receive_stream(&mut receiver, &mut io::sink(), &Progress::default())
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let started = Instant::now();
    a.manager.send_control(&b.key(), Bytes::from_static(b"ping")).await.unwrap();
    assert_eq!(control(&mut b).await, "ping");
    let small = a.manager.open_bulk(&b.key(), b"small", LARGE).await.unwrap();
    let small = send(io::Cursor::new(golden("incr-plain")), small);
    let (header, receiver) = b.bulk().await;
    assert_eq!(header, b"small");
    receive(receiver).await.unwrap().1.unwrap();
    small.await.unwrap().unwrap();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(!large.is_finished());
    cancel.cancel("enough");
    receiving.await.unwrap().unwrap_err();
    large.await.unwrap().unwrap_err();
}

async fn a_damaged_stream_is_refused_with_its_record_on_both_sides(lane: LaneMode) {
    let (a, mut b) = paired_over(lane).await;
    let mut stream = golden("full-plain");
    let at = stream.len() / 2;
    stream[at] ^= 1;
    let sender = a.manager.open_bulk(&b.key(), b"", LARGE).await.unwrap();
    let sending = send(io::Cursor::new(stream), sender);
    let (_, receiver) = b.bulk().await;
    let (_, result) = receive(receiver).await.unwrap();
    let Err(ReceiveError::Aborted { reason, .. }) = result else { panic!("{result:?}") };
    let error = sending.await.unwrap().unwrap_err();
    assert!(matches!(error, SendError::Damaged { .. }), "{error}");
    assert_eq!(reason, error.to_string());
    assert!(a.manager.is_up(&b.key()), "the connection goes on");
}

async fn a_refusal_reaches_a_sender_in_full_swing(lane: LaneMode) {
    let (a, mut b) = paired_over(lane).await;
    let sender = a.manager.open_bulk(&b.key(), b"", LARGE).await.unwrap();
    let sending = send(Synthetic::new(1 << 20, BLOCK, true), sender);
    let (_, receiver) = b.bulk().await;
    let refusal = Refusal { code: 4, reason: "outside of the grant".into() };
    let started = Instant::now();
    spawn_blocking(move || receiver.finish(Err(refusal))).await.unwrap().unwrap();
    let error = sending.await.unwrap().unwrap_err();
    assert!(matches!(error, SendError::Refused { code: 4, .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(3));
}

async fn a_lost_connection_ends_transfers_on_both_sides_and_is_redialled(lane: LaneMode) {
    let (mut a, mut b) = paired_over(lane).await;
    let sender = a.manager.open_bulk(&b.key(), b"", LARGE).await.unwrap();
    let sending = send(Synthetic::new(1 << 20, BLOCK, true), sender);
    let (_, receiver) = b.bulk().await;
    let receiving = receive(receiver);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let started = Instant::now();
    // b forgets a and remembers it again: the connection is closed, then dialled anew.
    b.trust.remove(&a.key());
    let error = sending.await.unwrap().unwrap_err();
    assert!(matches!(error, SendError::ConnectionLost { .. }), "{error}");
    let result = receiving.await.unwrap().1;
    assert!(matches!(result, Err(ReceiveError::ConnectionLost { .. })), "{result:?}");
    assert!(started.elapsed() < Duration::from_secs(3));
    assert_eq!((a.down().await, b.down().await), (DownReason::Unpaired, DownReason::Unpaired));
    b.trust.insert(a.key());
    a.up().await;
    b.up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unpairing_closes_the_connection_on_both_sides() {
    let (mut a, mut b) = paired().await;
    a.trust.remove(&b.key());
    a.manager.remove_peer(&b.key());
    assert_eq!(a.down().await, DownReason::Unpaired);
    assert_eq!(b.down().await, DownReason::Unpaired);
    // The event is said by the session; that it is gone is known once the keeper has heard so.
    let gone = async {
        while !a.manager.peers().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("a removed peer is listed no more");
    let error = a.manager.send_control(&b.key(), Bytes::new()).await;
    assert_eq!(error, Err(ControlError::Down { peer: b.key() }));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_both_dial_at_once_one_connection_stays_and_works() {
    for _ in 0..5 {
        let (mut a, mut b) = (Node::start("a"), Node::start("b"));
        a.trust.insert(b.key());
        b.trust.insert(a.key());
        a.knows(&b);
        b.knows(&a);
        tokio::time::sleep(Duration::from_millis(700)).await;
        // Whatever was exchanged in between, the two agree now, and nothing is in flux.
        assert!(a.manager.is_up(&b.key()) && b.manager.is_up(&a.key()));
        a.manager.send_control(&b.key(), Bytes::from_static(b"hi")).await.unwrap();
        b.manager.send_control(&a.key(), Bytes::from_static(b"ho")).await.unwrap();
        assert_eq!(control(&mut b).await, "hi");
        assert_eq!(control(&mut a).await, "ho");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_restarts_is_up_again_soon_at_its_old_address() {
    let (mut a, b) = (Node::start("a"), Arc::new(Identity::ephemeral().unwrap()));
    let mut first = Node::with("b", 1, b.clone(), common::LOOPBACK);
    first.trust.insert(a.key());
    a.knows(&first);
    let session = a.up().await;
    first.up().await;
    let address = first.address.clone();
    first.manager.close().await;
    assert!(matches!(a.down().await, DownReason::ClosedByPeer { .. }));
    drop(first);
    let started = Instant::now();
    let second = loop {
        // The old socket is let go a moment after the old node.
        tokio::time::sleep(Duration::from_millis(50)).await;
        if std::net::UdpSocket::bind(&address).is_ok() {
            break Node::with("b", 1, b.clone(), &address);
        }
        assert!(started.elapsed() < PATIENCE);
    };
    second.trust.insert(a.key());
    assert!(a.up().await > session);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_cannot_exhaust_a_node() {
    let (a, b) = paired().await;
    let mut dials = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let address = b.address.parse().unwrap();
        let key = b.key();
        dials.spawn(async move {
            let identity = Arc::new(Identity::ephemeral().unwrap());
            let trust = Arc::new(TrustSet::new([]));
            let bound = Endpoint::bind(
                "127.0.0.1:0".parse().unwrap(),
                identity,
                LocalNode::new("x"),
                trust,
            );
            bound.unwrap().0.connect(address, key).await.unwrap_err()
        });
    }
    let mut told = 0;
    while let Some(error) = dials.join_next().await {
        told += usize::from(matches!(error.unwrap(), ConnectError::NotPaired { .. }));
    }
    assert!(told > 10, "{told} were told that they are not paired");
    assert!(a.manager.is_up(&b.key()), "the pair never noticed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_goes_silent_in_mid_transfer_is_noticed_on_both_sides_and_found_again() {
    let (mut a, mut b, wire) = paired_through_wire(LaneMode::Auto).await;
    let sender = a.manager.open_bulk(&b.key(), b"", LARGE).await.unwrap();
    let sending = send(Synthetic::new(1 << 20, BLOCK, true), sender);
    let (_, receiver) = b.bulk().await;
    let receiving = receive(receiver);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let started = Instant::now();
    wire.cut(true);
    let error = sending.await.unwrap().unwrap_err();
    assert!(matches!(error, SendError::ConnectionLost { .. }), "{error}");
    let result = receiving.await.unwrap().1;
    assert!(matches!(result, Err(ReceiveError::ConnectionLost { .. })), "{result:?}");
    assert_eq!((a.down().await, b.down().await), (DownReason::Silent, DownReason::Silent));
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
    wire.cut(false);
    a.up().await;
    b.up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_stays_up_far_beyond_the_idle_timeout() {
    let (mut a, b) = paired().await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(a.manager.is_up(&b.key()));
    assert!(a.events.try_recv().is_err(), "nothing happened");
}

async fn control_passes_while_every_transfer_there_may_be_hangs(lane: LaneMode) {
    let (a, mut b) = paired_over(lane).await;
    let (mut sending, mut hanging) = (Vec::new(), Vec::new());
    for n in 0..8 {
        let sender = a.manager.open_bulk(&b.key(), &[n], LARGE).await.unwrap();
        sending.push(send(Synthetic::new(1 << 20, BLOCK, true), sender));
        hanging.push(b.bulk().await.1);
    }
    // Until nothing moves any more.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let started = Instant::now();
    for n in 0..100u8 {
        a.manager.send_control(&b.key(), Bytes::from(vec![n; 100_000])).await.unwrap();
        assert_eq!(control(&mut b).await[0], n);
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    drop(hanging);
    for sent in sending {
        assert!(matches!(sent.await.unwrap(), Err(SendError::ReceiverGone)));
    }
}
