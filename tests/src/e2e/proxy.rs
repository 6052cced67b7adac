//! A UDP proxy between two nodes, which can be cut one way or both.
//!
//! Owns: passing datagrams on and dropping them. Each node dials its peer at an address of the proxy
//! in its own namespace; from there on a datagram goes to where the peer really listens. What is
//! dropped is dropped in silence, as a broken link does it: nobody is told that the other is away.
//! Leaves to others: the clients' way to the database, which is not through here.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::netns::{self, Wire};

/// Port of the proxy in each namespace; the nodes' own is another.
pub const PORT: u16 = 7101;

/// Largest datagram of UDP.
const MAX_DATAGRAM_BYTES: usize = 65_536;

/// How often a thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// Which way is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// What the first node says is not heard.
    FromA,
    /// What the second node says is not heard.
    FromB,
    /// Neither hears the other.
    Both,
}

#[derive(Debug, Default)]
struct Ways {
    /// What comes from the first node, what comes from the second.
    cut: [AtomicBool; 2],
    dropped: AtomicU64,
    stop: AtomicBool,
}

/// The proxy; ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    ways: Arc<Ways>,
    threads: Vec<JoinHandle<()>>,
}

impl Proxy {
    /// Begins to pass on between the nodes, which listen at `listen`.
    ///
    /// # Panics
    /// When its sockets cannot be had.
    pub fn start(wire: &Wire, listen: [SocketAddr; 2]) -> Self {
        let ways = Arc::new(Ways::default());
        let threads = [0, 1]
            .map(|end: usize| {
                let (ways, name) = (Arc::clone(&ways), wire.names[end].clone());
                let here = SocketAddr::new(listen[end].ip(), PORT);
                let there = listen[1 - end];
                std::thread::spawn(move || {
                    netns::enter(&name);
                    let socket = UdpSocket::bind(here).unwrap_or_else(|e| panic!("{here}: {e}"));
                    pass_on(&socket, end, there, &ways);
                })
            })
            .into();
        Self { ways, threads }
    }

    /// Cuts.
    pub fn cut(&self, cut: Cut) {
        self.set([cut != Cut::FromB, cut != Cut::FromA]);
    }

    /// Joins what was cut.
    pub fn heal(&self) {
        self.set([false; 2]);
    }

    fn set(&self, cut: [bool; 2]) {
        for (way, cut) in self.ways.cut.iter().zip(cut) {
            way.store(cut, Ordering::SeqCst);
        }
    }

    /// How many datagrams were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.ways.dropped.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ways.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Takes what a node in this namespace sends and hands it to its peer; answers come back on a socket
/// of their own for each of the node's sockets, since a connection is known by its addresses.
fn pass_on(socket: &UdpSocket, from: usize, there: SocketAddr, ways: &Arc<Ways>) {
    let mut onward = BTreeMap::<SocketAddr, Arc<UdpSocket>>::new();
    let mut answers = Vec::new();
    receive_each(socket, ways, |datagram, node| {
        let out = onward.entry(node).or_insert_with(|| {
            let out = Arc::new(UdpSocket::bind((socket_ip(socket), 0)).expect("a socket"));
            let back = socket.try_clone().expect("the same socket");
            let (answered, ways) = (Arc::clone(&out), Arc::clone(ways));
            answers.push(std::thread::spawn(move || {
                receive_each(&answered, &ways, |datagram, _| {
                    send(&ways, 1 - from, || back.send_to(datagram, node));
                });
            }));
            out
        });
        send(ways, from, || out.send_to(datagram, there));
    });
    for thread in answers {
        let _ = thread.join();
    }
}

fn socket_ip(socket: &UdpSocket) -> std::net::IpAddr {
    socket.local_addr().expect("it is bound").ip()
}

fn send(ways: &Ways, from: usize, out: impl FnOnce() -> std::io::Result<usize>) {
    // A peer that is not there is as good as a lost datagram.
    if ways.cut[from].load(Ordering::SeqCst) || out().is_err() {
        ways.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

fn receive_each(socket: &UdpSocket, ways: &Ways, mut each: impl FnMut(&[u8], SocketAddr)) {
    socket.set_read_timeout(Some(LOOK)).expect("a timeout");
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    while !ways.stop.load(Ordering::SeqCst) {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => each(&buffer[..length], from),
            // Nothing came; or the peer's port was closed when we last sent, which UDP tells late.
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {}
                ErrorKind::ConnectionRefused | ErrorKind::Interrupted => {}
                _ => panic!("{error}"),
            },
        }
    }
}
