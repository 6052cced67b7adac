//! # flocker-transport
//!
//! Moves bytes between two nodes that trust each other: opaque control payloads and ZFS send streams.
//!
//! Owns: identities and pinned keys, the endpoint (QUIC, and TLS over TCP), frames, warm connections and their redialling,
//! the bulk pipeline, pairing by a one-time code. Leaves to others: what control payloads say, what a
//! peer may do (grants), where streams come from and go to, what is kept durably.
//!
//! Read next: `WIRE.md` for every byte on the wire; [`peers`] for the connections, [`bulk`] for the data
//! path, [`pairing`] for how trust begins, [`endpoint`] for what is beneath.
//!
//! Invariants:
//! * A peer is its key. Each connection proves both keys afresh; nothing but Hello and Reject is
//!   served to a key that is not trusted.
//! * Bulk and control travel apart: bulk never passes through the event channel.
//! * No length from a peer is allocated before it is bounded, no byte of a batch is written before its
//!   hash is proven, and no transfer is acknowledged before the application says so.

pub mod bulk;
pub mod cancel;
mod congestion;
pub mod counters;
pub mod endpoint;
pub mod error;
pub mod frame;
pub mod framed;
pub mod fuzzing;
mod greeting;
pub mod identity;
pub mod lane;
mod link;
pub mod pairing;
pub mod peers;
pub mod tcp;
pub mod tls;
pub mod trust;
pub mod tuning;
mod udp;
mod wake;
pub mod words;

pub use bulk::{
    Bucket, BulkReceiver, BulkSender, Compression, Learned, Limit, Pace, Progress, ReceiveError,
    ReceiveReport, Refusal, Resources, SendError, SendOptions, SendReport, receive_stream,
    send_stream,
};
pub use cancel::Cancel;
pub use endpoint::{Arrival, CloseCode, Connection, Endpoint, LocalNode, PeerInfo};
pub use error::{BindError, ConnectError, RefusedPeer};
pub use flocker_core::ids::Fingerprint;
pub use identity::{Identity, IdentityError};
pub use lane::choice::{LaneKind, LaneMode, LaneStatus};
pub use lane::probe::Figures;
pub use link::{Gone, LinkStatus};
pub use pairing::{
    CodeError, CountTries, Invitation, InvitationEvent, NoTry, PairError, Paired, PairingCode,
};
pub use peers::{ControlError, DownReason, OpenBulkError, PeerEvent, PeerManager, PeerStatus};
pub use trust::{Trust, TrustSet};
pub use tuning::UdpMode;
pub use words::words;
