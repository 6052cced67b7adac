//! A UDP socket for QUIC that sends more datagrams in a system call than quinn hands it at once.
//!
//! ```text
//! quinn's driver ── try_send ─▶ GatherSocket ─▶ the driver's Batch ── flush ─▶ Port ─▶ kernel
//!        ▲                                          (up to 64 datagrams, one sendmsg)
//!        └── polled by Driver, which lends it the batch and flushes before it returns
//! ```
//!
//! quinn caps a send at ten datagrams by a private constant, and the cost of a system call is most of what
//! QUIC costs. quinn lets its runtime and its socket be replaced, so this one gathers, without a change to
//! quinn. It also caps what quinn sends at once to what one call takes, without which datagrams beyond 6550
//! bytes fail without a word.
//!
//! Owns: the runtime that wraps quinn's drivers ([`driver`]), the socket ([`mod@socket`]), what goes together
//! ([`batch`]), what is known of destinations ([`paths`]), the seam to the kernel ([`port`]). Leaves to
//! others: QUIC. It knows nothing of frames, peers, or what a datagram holds.

mod batch;
mod driver;
mod paths;
mod port;
mod socket;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};

use driver::Driver;
use port::KernelPort;
pub(crate) use socket::GatherSocket;

/// Datagrams that Linux takes in one call (`UDP_MAX_SEGMENTS`; 128 since 6.9, which old ones refuse).
const MAX_SEGMENTS: usize = 64;

/// The same towards a peer whose socket may hold little: 20 datagrams of 1452 bytes take some 50 KiB of its
/// buffer, a quarter of what Linux grants unless told otherwise.
const CAREFUL_SEGMENTS: usize = 20;

/// Bytes that go in one call: what an IPv4 packet of 65,535 bytes has room for.
const MAX_BATCH_BYTES: usize = 65_507;

/// Bytes that the kernel puts together in one buffer when it receives.
const MAX_RECEIVED_BYTES: usize = 65_535;

/// How many datagrams quinn may send in one call, so that the longest still fit one call.
fn segments_at_once(max_datagram: u16) -> usize {
    // Not more than fill a batch in whole calls: 7 × 6 of 1452 bytes.
    (MAX_BATCH_BYTES / usize::from(max_datagram)).clamp(1, MAX_SEGMENTS)
}

/// The runtime to give quinn with a [`GatherSocket`]: tokio, where each driver has its batch.
#[derive(Debug)]
pub(crate) struct GatherRuntime;

impl Runtime for GatherRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        TokioRuntime.spawn(Box::pin(Driver::new(future)));
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// A gathering socket over this one, for datagrams of up to `max_datagram` bytes; within a tokio runtime.
///
/// # Errors
/// What the system says.
pub(crate) fn socket(
    socket: std::net::UdpSocket,
    max_datagram: u16,
) -> io::Result<Arc<GatherSocket>> {
    let port = Arc::new(KernelPort::new(socket)?);
    Ok(Arc::new(GatherSocket::over(port, max_datagram)))
}
