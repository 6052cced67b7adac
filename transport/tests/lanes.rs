//! Which lane a transfer takes between two nodes, what is done when TLS cannot be had, and what strangers
//! cost at its port.
#![allow(missing_docs)]

mod common;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use common::transfers::{BLOCK, LARGE, receive, send};
use common::{LOOPBACK, Node, PATIENCE, Synthetic, paired, paired_over, paired_through_wire};
use flocker_transport::{
    DownReason, Fingerprint, Identity, LaneKind, LaneMode, LaneStatus, LocalNode, ReceiveError,
    SendError,
};
use tokio::task::spawn_blocking;

fn lane(node: &Node, peer: &Fingerprint) -> LaneStatus {
    let status = node.manager.peers().into_iter().find(|status| status.fingerprint == *peer);
    status.and_then(|status| status.lane).expect("connected")
}

/// One transfer from `a` to `b`; returns the lane that it took.
async fn transfer(a: &Node, b: &mut Node, bytes: Option<u64>) -> LaneKind {
    let sender = a.manager.open_bulk(&b.key(), b"header", bytes).await.unwrap();
    let kind = sender.kind();
    let sending = send(40, sender);
    let (header, receiver) = b.bulk().await;
    assert_eq!(header, b"header");
    let received = receive(receiver).await.unwrap().unwrap();
    assert_eq!(sending.await.unwrap().unwrap(), received);
    assert_eq!(received, Synthetic::len(40, BLOCK));
    kind
}

#[tokio::test(flavor = "multi_thread")]
async fn every_transfer_takes_the_lane_that_is_configured() {
    for (mode, kind) in [(LaneMode::Quic, LaneKind::Quic), (LaneMode::Tls, LaneKind::Tls)] {
        let (mut a, mut b) = paired_over(mode).await;
        for bytes in [LARGE, None, Some(1000)] {
            assert_eq!(transfer(&a, &mut b, bytes).await, kind);
            assert_eq!(transfer(&b, &mut a, bytes).await, kind, "and back");
        }
        let status = lane(&a, &b.key());
        assert_eq!((status.chosen, status.quic, status.tls), (kind, None, None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_measures_both_lanes_before_the_first_large_transfer_and_shows_what_it_found() {
    let (a, mut b) = paired().await;
    transfer(&a, &mut b, None).await;
    assert_eq!(lane(&a, &b.key()).quic, None, "a small one is not worth it");
    let kind = transfer(&a, &mut b, LARGE).await;
    let status = lane(&a, &b.key());
    assert_eq!(status.chosen, kind);
    let (quic, tls) = (status.quic.unwrap(), status.tls.unwrap());
    assert!(quic.bytes_per_second > 0 && tls.bytes_per_second > 0, "{quic:?} {tls:?}");
    assert_eq!(transfer(&a, &mut b, LARGE).await, kind);
    assert_eq!(lane(&a, &b.key()), status, "measured once");
    assert_eq!(lane(&b, &a.key()).quic, None, "the other direction is the other node's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_uses_quic_alone_is_sent_to_over_quic() {
    let (mut a, mut b) = (Node::over("a", LaneMode::Auto), Node::over("b", LaneMode::Quic));
    assert!(TcpStream::connect(&b.address).is_err(), "it does not listen");
    b.trust.insert(a.key());
    a.knows(&b);
    a.up().await;
    b.up().await;
    assert_eq!(transfer(&a, &mut b, LARGE).await, LaneKind::Quic);
    assert_eq!(lane(&a, &b.key()).why, "the peer does not listen for TLS");
    assert_eq!(transfer(&b, &mut a, LARGE).await, LaneKind::Quic);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_tcp_is_blocked_quic_takes_over_and_the_reason_is_shown() {
    // It passes UDP alone.
    let (a, mut b, _wire) = paired_through_wire(LaneMode::Auto).await;
    assert_eq!(transfer(&a, &mut b, LARGE).await, LaneKind::Quic);
    let status = lane(&a, &b.key());
    assert_eq!(status.chosen, LaneKind::Quic);
    assert!(status.why.contains("cannot be reached over TCP"), "{}", status.why);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_goes_silent_takes_its_tls_transfers_with_it() {
    let (mut a, mut b) = paired_over(LaneMode::Tls).await;
    let sender = a.manager.open_bulk(&b.key(), b"", LARGE).await.unwrap();
    assert_eq!(sender.kind(), LaneKind::Tls);
    let sending = send(1 << 20, sender);
    let (_, receiver) = b.bulk().await;
    let receiving = receive(receiver);
    a.manager.remove_peer(&b.key());
    let sent = tokio::time::timeout(PATIENCE, sending).await.unwrap().unwrap();
    assert!(matches!(sent, Err(SendError::ConnectionLost { .. })), "{sent:?}");
    let received = tokio::time::timeout(PATIENCE, receiving).await.unwrap().unwrap();
    assert!(matches!(received, Err(ReceiveError::ConnectionLost { .. })), "{received:?}");
    assert_eq!((a.down().await, b.down().await), (DownReason::Unpaired, DownReason::Unpaired));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_that_connect_and_say_nothing_keep_no_transfer_out() {
    let (a, mut b) = paired_over(LaneMode::Tls).await;
    let silent: Vec<_> = (0..200).map(|_| TcpStream::connect(&b.address).unwrap()).collect();
    let mut talking: Vec<_> = (0..50).map(|_| TcpStream::connect(&b.address).unwrap()).collect();
    for stream in &mut talking {
        // Nobody reads it any more when the connection was one too many.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
    }
    assert_eq!(transfer(&a, &mut b, LARGE).await, LaneKind::Tls);
    // Whatever was too old is closed, not kept.
    let closed = spawn_blocking(move || {
        silent.iter().all(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            match stream.read(&mut [0; 16]) {
                Ok(len) => len == 0,
                Err(e) => e.kind() == io::ErrorKind::ConnectionReset,
            }
        })
    });
    assert!(closed.await.unwrap(), "a silent connection was kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_tcp_port_is_taken_goes_on_without_tls() {
    let taken = std::net::TcpListener::bind(LOOPBACK).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let identity = Arc::new(Identity::ephemeral().unwrap());
    let mut b = Node::local(LocalNode::new("b"), identity, &address);
    let mut a = Node::start("a");
    b.trust.insert(a.key());
    a.knows(&b);
    a.up().await;
    b.up().await;
    assert_eq!(transfer(&a, &mut b, LARGE).await, LaneKind::Quic);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transfer_to_a_slow_reader_waits_and_can_be_cancelled() {
    let (a, mut b) = paired_over(LaneMode::Tls).await;
    let sender = a.manager.open_bulk(&b.key(), b"", LARGE).await.unwrap();
    let cancel = sender.cancel_handle();
    let sending = send(1 << 20, sender);
    // Taken, and never read.
    let (_, receiver) = b.bulk().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!sending.is_finished());
    cancel.cancel("enough");
    let sent = tokio::time::timeout(PATIENCE, sending).await.unwrap().unwrap();
    assert!(matches!(sent, Err(SendError::Cancelled { .. })), "{sent:?}");
    let received = receive(receiver).await.unwrap();
    assert!(received.is_err(), "what was cancelled is not whole");
}
