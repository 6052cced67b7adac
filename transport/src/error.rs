//! Why two nodes do not talk.
//!
//! Owns: the errors of binding, dialling and being dialled, each saying what to do next. Leaves to
//! others: errors within a connection, which stand where they arise.

use std::net::SocketAddr;

use flocker_core::ids::Fingerprint;

use crate::endpoint::CloseCode;
use crate::frame::hello::{Reject, RejectCode};
use crate::framed::FramedError;
use crate::link::Gone;

/// Why a node cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be bound.
    #[error("cannot listen on {address} (UDP): {source}")]
    Socket {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The address cannot be bound over TCP, and this node uses nothing else.
    #[error(
        "cannot listen on {address} (TCP), and `[transport] lane = \"tls\"` allows nothing else: {source}"
    )]
    Listener {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// TLS does not take our own key.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The crypto provider lacks what every QUIC handshake begins with.
    #[error("the TLS library lacks AES-128-GCM")]
    NoInitialCipher,
    /// Called outside of a tokio runtime.
    #[error("no tokio runtime is running")]
    NoRuntime,
    /// The worker threads cannot be started.
    #[error("cannot start the workers: {0}")]
    Workers(#[source] std::io::Error),
}

/// Why a dial did not lead to a connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers.
    #[error("{address} cannot be reached: {reason}")]
    Unreachable {
        /// Where it was tried.
        address: SocketAddr,
        /// What went wrong.
        reason: String,
    },
    /// Nothing answers over UDP, while over TCP the expected node does, and this node uses QUIC alone.
    #[error(
        "{address} does not answer over UDP, though over TCP the expected node does: UDP is blocked on the \
         way, or that node takes TLS alone; open UDP port {} between the two, or set `[transport] lane = \
         \"auto\"` here, which goes over TLS then", address.port()
    )]
    UdpBlocked {
        /// Where it was tried.
        address: SocketAddr,
    },
    /// The name has no address.
    #[error("`{host}` has no address: {reason}")]
    Unresolved {
        /// `host:port` as configured.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// Somebody else answers.
    #[error(
        "the node at {address} is not the one expected: its key is {found}, expected was {expected}; \
         pair again if it was reinstalled"
    )]
    WrongKey {
        /// Where it was tried.
        address: SocketAddr,
        /// The pinned key.
        expected: Fingerprint,
        /// The key that was shown.
        found: Fingerprint,
    },
    /// The two speak different protocol versions.
    #[error("{}", version_text(*.ours, *.theirs, .name))]
    Version {
        /// Protocol version of this node.
        ours: u16,
        /// Protocol version of the peer.
        theirs: u16,
        /// The peer's name.
        name: String,
    },
    /// The peer does not know this node's key.
    #[error("node {name} does not know this node (fingerprint {ours}): pair the two first")]
    NotPaired {
        /// The peer's name; empty when it closed before it could say.
        name: String,
        /// This node's fingerprint.
        ours: Fingerprint,
    },
    /// The peer refused for another reason.
    #[error("node {name} refused the connection: {reason}")]
    Rejected {
        /// The peer's name.
        name: String,
        /// Its words.
        reason: String,
    },
    /// The peer closed the connection while greeting.
    #[error("the connection was closed while greeting: {reason}")]
    Closed {
        /// Why.
        reason: String,
    },
    /// What the peer said is no greeting.
    #[error("what answers at the address is no flocker-repl node: {reason}")]
    Protocol {
        /// What is wrong with it.
        reason: String,
    },
    /// Both ends are this node.
    #[error("that address leads to this node itself")]
    Myself,
    /// TLS does not take our own key.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The crypto provider lacks what every QUIC handshake begins with.
    #[error("the TLS library lacks AES-128-GCM")]
    NoInitialCipher,
}

fn version_text(ours: u16, theirs: u16, name: &str) -> String {
    let name = if name.is_empty() { "the peer" } else { name };
    let older = if ours < theirs { "this node" } else { name };
    format!("this node speaks protocol {ours}, {name} speaks {theirs}: upgrade {older}")
}

impl ConnectError {
    /// Whether waiting alone cannot help: somebody must pair, upgrade or correct an address.
    pub fn needs_a_person(&self) -> bool {
        matches!(
            self,
            Self::WrongKey { .. }
                | Self::Version { .. }
                | Self::NotPaired { .. }
                | Self::Myself
                | Self::Tls(_)
                | Self::NoInitialCipher
        )
    }

    pub(crate) fn close_code(&self) -> CloseCode {
        match self {
            Self::Version { .. } => CloseCode::Version,
            Self::NotPaired { .. } => CloseCode::NotPaired,
            _ => CloseCode::Protocol,
        }
    }

    /// A short word for metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Version { .. } => "version",
            Self::NotPaired { .. } => "not paired",
            Self::Myself => "myself",
            _ => "protocol",
        }
    }

    pub(crate) fn from_gone(address: SocketAddr, gone: &Gone) -> Self {
        match gone {
            Gone::Closed { reason, .. } => Self::Closed { reason: reason.clone() },
            Gone::Broken { reason } => Self::Protocol { reason: reason.clone() },
            Gone::Silent | Gone::Here | Gone::Lost { .. } | Gone::Failed { .. } => {
                Self::Unreachable { address, reason: gone.to_string() }
            }
        }
    }

    pub(crate) fn from_quic(address: SocketAddr, error: &quinn::ConnectionError) -> Self {
        use quinn::ConnectionError as E;
        match error {
            E::ApplicationClosed(close) => {
                Self::Closed { reason: String::from_utf8_lossy(&close.reason).into_owned() }
            }
            E::TransportError(_) | E::VersionMismatch => {
                Self::Protocol { reason: error.to_string() }
            }
            E::ConnectionClosed(_)
            | E::Reset
            | E::TimedOut
            | E::LocallyClosed
            | E::CidsExhausted => Self::Unreachable { address, reason: error.to_string() },
        }
    }

    /// From a Reject frame; `ours` is this node's version and key.
    pub(crate) fn from_reject(reject: Reject, protocol: u16, ours: Fingerprint) -> Self {
        let Reject { code, protocol: theirs, name, reason } = reject;
        match code {
            RejectCode::Version => Self::Version { ours: protocol, theirs, name },
            RejectCode::NotPaired => Self::NotPaired { name, ours },
            RejectCode::Other => Self::Rejected { name, reason },
        }
    }

    /// From what broke the greeting off. A close can overtake the Reject frame that explains it, so its
    /// code is understood too.
    pub(crate) fn from_framed(error: &FramedError, ours: Fingerprint) -> Self {
        match error.gone() {
            Some(Gone::Closed { code: Some(CloseCode::NotPaired), .. }) => {
                Self::NotPaired { name: String::new(), ours }
            }
            Some(Gone::Closed { reason, .. }) => Self::Closed { reason: reason.clone() },
            Some(gone) => Self::Closed { reason: gone.to_string() },
            None => Self::Protocol { reason: error.to_string() },
        }
    }
}

/// A caller that proved a key and was turned away.
#[derive(Debug, Clone)]
pub struct RefusedPeer {
    /// The key.
    pub fingerprint: Fingerprint,
    /// Where it called from.
    pub address: SocketAddr,
    /// Why.
    pub error: ConnectError,
}
