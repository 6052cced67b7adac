//! QUIC's numbers, each with its reason.
//!
//! Owns: quinn's transport and server configuration, the socket and its buffers. Leaves to others: TLS
//! ([`crate::tls`]) and every limit above QUIC.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

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

/// Largest packet looked for, in bytes. quinn sends ten packets at once, and ten of these still fit
/// the 64 KiB that a socket takes; larger ones fail silently. Loopback and jumbo paths find it,
/// others stay near 1452.
pub const MAX_PACKET_BYTES: u16 = 6500;

/// What the kernel may hold of packets each way; what it grants is at most its own limit.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// Connection attempts that wait for our handshake; each costs a packet or two of memory.
const MAX_INCOMING: usize = 64;

/// Bytes kept for one attempt, and for all together, before it is accepted.
const INCOMING_BUFFER_BYTES: u64 = 64 << 10;
const INCOMING_BUFFER_TOTAL_BYTES: u64 = 1 << 20;

/// An acknowledgement for this many packets, or after [`MAX_ACK_DELAY`]: fewer packets back, less
/// CPU on both ends.
const ACK_THRESHOLD: u32 = 32;
const MAX_ACK_DELAY: Duration = Duration::from_millis(5);

/// Congestion window at the start: more than [`ACK_THRESHOLD`] packets, or the first rounds would
/// each wait for [`MAX_ACK_DELAY`].
const INITIAL_WINDOW_BYTES: u64 = 128 << 10;

/// The transport configuration of every connection, before a peer is trusted: one stream, for Hello.
pub(crate) fn transport() -> Arc<TransportConfig> {
    let mut ack = AckFrequencyConfig::default();
    ack.ack_eliciting_threshold(VarInt::from_u32(ACK_THRESHOLD)).max_ack_delay(Some(MAX_ACK_DELAY));
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MAX_PACKET_BYTES);
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
        .congestion_controller_factory(Arc::new(cubic));
    Arc::new(config)
}

/// quinn's configuration of the accepting side.
pub(crate) fn server(crypto: quinn::crypto::rustls::QuicServerConfig) -> quinn::ServerConfig {
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(transport())
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER_BYTES)
        .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL_BYTES);
    config
}

/// quinn's configuration of the socket's side.
pub(crate) fn endpoint() -> quinn::EndpointConfig {
    let mut config = quinn::EndpointConfig::default();
    // The limit is far below what quinn refuses (65,527); were it not, its default would serve too.
    let _ = config.max_udp_payload_size(MAX_PACKET_BYTES);
    config
}

/// The UDP socket at `listen`, with large buffers where the kernel grants them.
///
/// # Errors
/// The address cannot be bound.
pub(crate) fn socket(listen: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(listen)?;
    // Smaller buffers cost speed, never correctness: what the kernel refuses is let be.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    Ok(socket)
}
