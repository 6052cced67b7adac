//! QUIC's numbers, each with its reason.
//!
//! Owns: quinn's transport and server configuration, the socket and its buffers. Leaves to others: TLS
//! ([`crate::tls`]) and every limit above QUIC.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use rustix::net::sockopt;

use crate::congestion::ShortQueues;

/// A peer that says nothing for this long is lost. Short, because a lag promised in seconds cannot
/// wait for the half minute that is usual.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often an idle connection shows that it lives: four chances within [`IDLE_TIMEOUT`].
pub const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// What one stream may have in flight unread: a tenth of a second at 40 MB/s, and so small that a
/// receiver that stands still holds no more than this in quinn.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// The same for all streams of a connection. Every bulk stream and the control stream fit, so that
/// transfers whose receivers hang, however many, never keep control from passing. Two windows more,
/// because quinn gives credit back only by eighths of this; what is held is still bounded by the
/// streams' own windows.
pub const CONNECTION_WINDOW_BYTES: u32 = (MAX_BULK_STREAMS + 3) * STREAM_WINDOW_BYTES;

/// What a connection keeps of sent bytes until they are acknowledged.
pub const SEND_WINDOW_BYTES: u64 = 16 << 20;

/// Bulk transfers that a connection may have open in one direction; the node's own limit is the same
/// ([`crate::bulk::MAX_TRANSFERS`]). Beyond it, opening waits.
pub const MAX_BULK_STREAMS: u32 = 8;

/// Largest packet looked for, in bytes: what a jumbo frame of 9000 bytes holds beside the headers of IPv6
/// and UDP. Loopback and jumbo paths find it, others stay near 1452.
pub const MAX_PACKET_BYTES: u16 = 8952;

/// The same with quinn's own socket: it sends ten packets at once, and ten of these still fit the 64 KiB
/// that one call takes. Longer ones fail without a word, and the connection falls to 1200 bytes.
const MAX_PLAIN_PACKET_BYTES: u16 = 6500;

/// What the kernel may hold of packets each way: 30 ms of 2 GB/s, for as long as a thread may not get to run.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// A peer whose socket holds this much, in KiB, is sent full batches. Linux grants 416 KiB unless told
/// otherwise, and counts about double: 150 packets, which two or three full batches overflow.
pub const ROOMY_KIB: u32 = 1024;

/// How a node sends over UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpMode {
    /// Whether it gathers packets into larger sends; else as quinn does it.
    pub gather: bool,
    /// Largest packet looked for, in bytes.
    pub max_packet_bytes: u16,
    /// What its socket is asked to hold each way, in bytes.
    pub socket_bytes: usize,
}

impl Default for UdpMode {
    fn default() -> Self {
        Self::GATHER
    }
}

impl UdpMode {
    /// The usual one.
    pub const GATHER: Self = Self {
        gather: true,
        max_packet_bytes: MAX_PACKET_BYTES,
        socket_bytes: SOCKET_BUFFER_BYTES,
    };

    /// As quinn does it.
    pub const PLAIN: Self = Self {
        gather: false,
        max_packet_bytes: MAX_PLAIN_PACKET_BYTES,
        socket_bytes: SOCKET_BUFFER_BYTES,
    };

    /// The same, but for this largest packet, in bytes.
    #[must_use]
    pub const fn up_to(self, max_packet_bytes: u16) -> Self {
        Self { max_packet_bytes, ..self }
    }
}

/// Connection attempts that wait for our handshake; each costs a packet or two of memory.
const MAX_INCOMING: usize = 64;

/// Bytes kept for one attempt, and for all together, before it is accepted.
const INCOMING_BUFFER_BYTES: u64 = 64 << 10;
const INCOMING_BUFFER_TOTAL_BYTES: u64 = 1 << 20;

/// An acknowledgement for this many packets, or after [`MAX_ACK_DELAY`]: fewer packets back, less
/// CPU on both ends. The delay is what counts on slow links, where what is in flight is less than that many
/// packets: it must not be above what a queue may hold (`congestion`), or the link runs dry meanwhile.
const ACK_THRESHOLD: u32 = 128;
const MAX_ACK_DELAY: Duration = Duration::from_millis(2);

/// Congestion window at the start: more than [`ACK_THRESHOLD`] packets, or the first rounds would
/// each wait for [`MAX_ACK_DELAY`].
const INITIAL_WINDOW_BYTES: u64 = 256 << 10;

/// The transport configuration of every connection, before a peer is trusted: one stream, for Hello.
pub(crate) fn transport(max_packet_bytes: u16) -> Arc<TransportConfig> {
    let mut ack = AckFrequencyConfig::default();
    ack.ack_eliciting_threshold(VarInt::from_u32(ACK_THRESHOLD)).max_ack_delay(Some(MAX_ACK_DELAY));
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(max_packet_bytes);
    let mut cubic = quinn::congestion::CubicConfig::default();
    cubic.initial_window(INITIAL_WINDOW_BYTES);
    let idle = u32::try_from(IDLE_TIMEOUT.as_millis()).unwrap_or(u32::MAX);

    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(ack))
        .congestion_controller_factory(Arc::new(ShortQueues::over(cubic)));
    Arc::new(config)
}

/// quinn's configuration of the accepting side.
pub(crate) fn server(
    crypto: quinn::crypto::rustls::QuicServerConfig,
    max_packet_bytes: u16,
) -> quinn::ServerConfig {
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(transport(max_packet_bytes))
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER_BYTES)
        .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL_BYTES);
    config
}

/// quinn's configuration of the socket's side.
pub(crate) fn endpoint(max_packet_bytes: u16) -> quinn::EndpointConfig {
    let mut config = quinn::EndpointConfig::default();
    // The limit is far below what quinn refuses (65,527); were it not, its default would serve too.
    let _ = config.max_udp_payload_size(max_packet_bytes);
    config
}

/// The UDP socket at `listen`, with buffers of so many bytes each way where the kernel grants them.
///
/// # Errors
/// The address cannot be bound.
pub(crate) fn socket(listen: SocketAddr, bytes: usize) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(listen)?;
    // Smaller buffers cost speed, never correctness: what the kernel refuses is let be. Root may ask for
    // more than `net.core.rmem_max`, which most systems leave at 208 KiB.
    if sockopt::set_socket_recv_buffer_size_force(&socket, bytes).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(&socket, bytes);
    }
    if sockopt::set_socket_send_buffer_size_force(&socket, bytes).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(&socket, bytes);
    }
    Ok(socket)
}

/// What the kernel grants the socket to hold of what was not read yet, in KiB; 0 where it does not say.
pub(crate) fn room_kib(socket: &UdpSocket) -> u32 {
    let bytes = sockopt::socket_recv_buffer_size(socket).unwrap_or(0);
    u32::try_from(bytes >> 10).unwrap_or(u32::MAX)
}
