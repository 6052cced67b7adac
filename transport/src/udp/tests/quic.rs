//! QUIC over sockets that gather, with a fault beneath.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, ConnectionError, Endpoint};
use rustix::io::Errno;

use super::super::{CAREFUL_SEGMENTS, GatherRuntime, GatherSocket};
use super::TestPort;
use crate::identity::Identity;
use crate::tls::{self, ALPN_PEER};
use crate::tuning::{self, MAX_PACKET_BYTES};

/// Long enough for anything on a busy machine, short enough to fail.
const PATIENCE: Duration = Duration::from_secs(30);

/// An endpoint over this port.
fn endpoint(port: &Arc<TestPort>, roomy: &[&Arc<TestPort>]) -> Endpoint {
    use super::Port;
    let identity = Identity::ephemeral().unwrap();
    let tls = tls::server_config(&identity, &[ALPN_PEER]).unwrap();
    let server = tuning::server(QuicServerConfig::try_from(tls).unwrap(), MAX_PACKET_BYTES);
    let socket = GatherSocket::over(port.clone(), MAX_PACKET_BYTES);
    for peer in roomy {
        socket.is_roomy(peer.local_addr().unwrap());
    }
    let (config, runtime) = (tuning::endpoint(MAX_PACKET_BYTES), Arc::new(GatherRuntime));
    let mut endpoint =
        Endpoint::new_with_abstract_socket(config, Some(server), Arc::new(socket), runtime)
            .unwrap();
    let tls = tls::client_config(&identity, ALPN_PEER, None, Arc::default()).unwrap();
    let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    client.transport_config(tuning::transport(MAX_PACKET_BYTES));
    endpoint.set_default_client_config(client);
    endpoint
}

/// Two endpoints and a connection between them, dialled by the first.
struct Pair {
    ends: [Endpoint; 2],
    connections: [Connection; 2],
    ports: [Arc<TestPort>; 2],
}

async fn pair() -> Pair {
    let ports = [TestPort::on_loopback(), TestPort::on_loopback()];
    let ends = [endpoint(&ports[0], &[&ports[1]]), endpoint(&ports[1], &[&ports[0]])];
    let address = ends[1].local_addr().unwrap();
    let accepting = ends[1].clone();
    let accepted = tokio::spawn(async move { accepting.accept().await.unwrap().await.unwrap() });
    let dialled = ends[0].connect(address, "flocker-repl").unwrap().await.unwrap();
    Pair { connections: [dialled, accepted.await.unwrap()], ends, ports }
}

fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

/// Sends so many bytes from one end to the other; each is compared. `between` is called for every mebibyte.
async fn transfer(from: &Connection, to: &Connection, len: usize, between: impl Fn(usize) + Send) {
    let (mut send, _recv) = from.open_bi().await.unwrap();
    let sending = async {
        let mut sent = 0;
        while sent < len {
            between(sent >> 20);
            let piece: Vec<u8> = (sent..len.min(sent + (1 << 20))).map(byte).collect();
            send.write_all(&piece).await.unwrap();
            sent += piece.len();
        }
        send.finish().unwrap();
        send.stopped().await.unwrap();
    };
    let receiving = async {
        let (_send, mut recv) = to.accept_bi().await.unwrap();
        let (mut at, mut buf) = (0, vec![0; 1 << 16]);
        while let Some(read) = recv.read(&mut buf).await.unwrap() {
            let right = buf[..read].iter().enumerate().all(|(i, b)| *b == byte(at + i));
            assert!(right, "wrong bytes after {at}");
            at += read;
        }
        assert_eq!(at, len);
    };
    let both = async { tokio::join!(sending, receiving) };
    tokio::time::timeout(PATIENCE, both).await.expect("it ends");
}

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn jumbo_packets_are_found_and_used_and_what_one_poll_sends_goes_together() {
    let Pair { connections: [a, b], ports, .. } = pair().await;
    transfer(&a, &b, 32 * MIB, |_| {}).await;
    assert_eq!(a.stats().path.current_mtu, MAX_PACKET_BYTES);
    assert_eq!(a.stats().path.black_holes_detected, 0);
    let calls = ports[0].take_lengths();
    let long = calls.iter().filter(|call| call.len() == 7 && call[0] == 8952).count();
    assert!(long > 100, "{long} of {} calls are full", calls.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_without_room_costs_time_and_not_a_packet() {
    let Pair { connections: [a, b], ports, .. } = pair().await;
    let number = AtomicUsize::new(0);
    // Every third call finds no room.
    ports[0]
        .fails(move |_| (number.fetch_add(1, Ordering::SeqCst) % 3 == 2).then_some(Errno::AGAIN));
    let (port, over) = (ports[0].clone(), Arc::new(AtomicBool::new(false)));
    let ended = over.clone();
    let kernel = std::thread::spawn(move || {
        let mut times = 0;
        while !ended.load(Ordering::SeqCst) {
            if port.full.load(Ordering::SeqCst) {
                port.set_full(false);
                times += 1;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        times
    });
    transfer(&a, &b, 8 * MIB, |_| {}).await;
    over.store(true, Ordering::SeqCst);
    assert!(kernel.join().unwrap() > 20);
    // Whatever the batch lost would have to be sent again. The kernel loses nothing on loopback, and QUIC
    // takes for lost what is merely late: both are far from a batch of ten and more for every refusal.
    let lost = a.stats().path.lost_packets;
    assert!(lost < 20, "{lost} packets were lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_survives_a_drop_of_the_mtu_and_gathers_at_the_smaller_one() {
    let Pair { connections: [a, b], ports, .. } = pair().await;
    let port = ports[0].clone();
    transfer(&a, &b, 24 * MIB, move |mib| {
        if mib == 12 {
            assert!(port.take_lengths().iter().flatten().any(|len| *len == 8952));
            port.fails(|transmit| {
                let longest = transmit.segment_size.unwrap_or(transmit.contents.len());
                (longest > 1472).then_some(Errno::MSGSIZE)
            });
        }
    })
    .await;
    assert!(a.stats().path.black_holes_detected > 0);
    let calls = ports[0].take_lengths();
    let gathered = calls.iter().filter(|call| call.len() > 10 && call[0] <= 1472).count();
    assert!(gathered > 20, "{gathered} of {} calls", calls.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_survives_a_device_that_cannot_cut() {
    let Pair { connections: [a, b], ports, .. } = pair().await;
    ports[0].fails(|transmit| transmit.segment_size.map(|_| Errno::IO));
    transfer(&a, &b, 8 * MIB, |_| {}).await;
    assert!(ports[0].take_lengths().iter().all(|call| call.len() == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_probe_of_the_mtu_leaves_alone_in_a_real_transfer() {
    let Pair { connections: [a, b], ports, .. } = pair().await;
    transfer(&a, &b, 16 * MIB, |_| {}).await;
    let mut longest = 0;
    for call in ports[0].take_lengths() {
        for len in &call {
            assert!(*len <= longest || call.len() == 1, "{len} bytes first left in {call:?}");
        }
        longest = call.into_iter().fold(longest, usize::max);
    }
    assert_eq!(longest, usize::from(MAX_PACKET_BYTES));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_changes_its_address_in_the_middle_goes_on_receiving() {
    let Pair { ends, connections: [a, b], ports, .. } = pair().await;
    let fresh = TestPort::on_loopback();
    let moved = endpoint_socket(&fresh);
    let at = moved.local();
    let rebinding = ends[0].clone();
    // The dialler moves; the other side sends.
    let once = std::sync::Mutex::new(Some(moved.0));
    transfer(&b, &a, 24 * MIB, move |mib| {
        if mib == 8
            && let Some(socket) = once.lock().unwrap().take()
        {
            rebinding.rebind_abstract(socket).unwrap();
        }
    })
    .await;
    assert_eq!(b.remote_address(), at);
    let calls = ports[1].take();
    let there: Vec<_> =
        calls.iter().filter(|call| call.to == at).map(|c| c.lengths.len()).collect();
    assert!(there.len() > 100, "{} calls", there.len());
    assert!(there.iter().all(|many| *many <= CAREFUL_SEGMENTS), "nothing is known of that address");
}

struct Moved(Arc<GatherSocket>);

impl Moved {
    fn local(&self) -> std::net::SocketAddr {
        quinn::AsyncUdpSocket::local_addr(self.0.as_ref()).unwrap()
    }
}

fn endpoint_socket(port: &Arc<TestPort>) -> Moved {
    Moved(Arc::new(GatherSocket::over(port.clone(), MAX_PACKET_BYTES)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_is_told_although_there_was_no_room_for_it() {
    let Pair { ends, connections: [a, b], ports, .. } = pair().await;
    transfer(&a, &b, MIB, |_| {}).await;
    // What the other side says to a connection that is gone would be answered by a reset.
    ports[0].deaf.store(true, Ordering::SeqCst);
    ports[0].set_full(true);
    a.close(7u32.into(), b"it is over");
    drop(a);
    // quinn has done with the connection, and its driver has ended.
    tokio::time::timeout(PATIENCE, ends[0].wait_idle()).await.unwrap();
    ports[0].set_full(false);
    let closed = tokio::time::timeout(PATIENCE, b.closed()).await.unwrap();
    assert!(matches!(closed, ConnectionError::ApplicationClosed(_)), "{closed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn small_receive_buffers_are_told_in_the_greeting_and_heeded() {
    use crate::endpoint::{Arrival, LocalNode};
    use crate::trust::TrustSet;
    let (one, two) = (Identity::ephemeral().unwrap(), Identity::ephemeral().unwrap());
    let keys = [one.fingerprint(), two.fingerprint()];
    let trust = Arc::new(TrustSet::new(keys));
    let listen = "127.0.0.1:0".parse().unwrap();
    let node = |name: &str, small| {
        let mut local = LocalNode::new(name);
        local.udp.socket_bytes = if small { 64 << 10 } else { local.udp.socket_bytes };
        local
    };
    let bind = |identity, small| {
        let local = node("node", small);
        crate::Endpoint::bind(listen, Arc::new(identity), local, trust.clone()).unwrap()
    };
    let ((small, mut arrivals), (large, _)) = (bind(one, true), bind(two, false));
    let to_small = large.connect(small.local_addr().unwrap(), keys[0]).await.unwrap();
    let Some(Arrival::Connected(to_large)) = arrivals.recv().await else { panic!("it arrives") };
    assert!(to_small.peer.udp_room_kib < tuning::ROOMY_KIB, "{:?}", to_small.peer);
    assert_eq!(large.most_at_once(to_small.peer.address), CAREFUL_SEGMENTS);
    if to_large.peer.udp_room_kib < tuning::ROOMY_KIB {
        println!("skipped half: this kernel grants no more than {:?}", to_large.peer);
        return;
    }
    assert_eq!(small.most_at_once(to_large.peer.address), super::super::MAX_SEGMENTS);
}
