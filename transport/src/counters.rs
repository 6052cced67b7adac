//! The names of this crate's metrics, in one place.
//!
//! Owns: names and what they count. Leaves to others: recording and exporting (the `metrics` facade).

/// Counter: bytes of streams given to the pipeline to send, before compression.
pub const BULK_RAW_SENT: &str = "flocker_bulk_raw_sent_bytes_total";
/// Counter: bytes handed to the lane, with frames, after compression.
pub const BULK_WIRE_SENT: &str = "flocker_bulk_wire_sent_bytes_total";
/// Counter: bytes written to the receiving store, after decompression.
pub const BULK_RAW_RECEIVED: &str = "flocker_bulk_raw_received_bytes_total";
/// Counter: bytes taken from the lane, with frames.
pub const BULK_WIRE_RECEIVED: &str = "flocker_bulk_wire_received_bytes_total";
/// Counter: batches sent.
pub const BATCHES_SENT: &str = "flocker_bulk_batches_sent_total";
/// Counter: batches sent as they are, because compression did not pay.
pub const BATCHES_STORED: &str = "flocker_bulk_batches_stored_total";
/// Counter: batches verified and written.
pub const BATCHES_RECEIVED: &str = "flocker_bulk_batches_received_total";
/// Counter: batches that did not match their hash.
pub const BATCHES_DAMAGED: &str = "flocker_bulk_batches_damaged_total";
/// Counter: bytes of streams that were sent as references.
pub const DEDUP_REFERENCED: &str = "flocker_dedup_referenced_bytes_total";
/// Counter: blocks that were sent as references.
pub const DEDUP_HITS: &str = "flocker_dedup_hits_total";
/// Counter: references that the receiver could not resolve, so that their blocks were sent after all.
pub const DEDUP_MISSING: &str = "flocker_dedup_missing_total";
/// Counter: bytes hashed to find what may be referred to.
pub const DEDUP_HASHED: &str = "flocker_dedup_hashed_bytes_total";
/// Counter: bytes of blocks written to this node's caches.
pub const DEDUP_CACHED: &str = "flocker_dedup_cached_bytes_total";
/// Counter, label `to`: times that dedup was switched by what it saves.
pub const DEDUP_SWITCHED: &str = "flocker_dedup_switched_total";
/// Counter: bytes of old copies that were read to reseed from.
pub const RESEED_READ: &str = "flocker_reseed_read_bytes_total";
/// Counter: bytes of blocks of old copies that were announced to a sender.
pub const RESEED_ANNOUNCED: &str = "flocker_reseed_announced_bytes_total";
/// Counter: bytes that were taken from an old copy instead of being sent.
pub const RESEED_REFERENCED: &str = "flocker_reseed_referenced_bytes_total";
/// Gauge, label `direction`: bytes of batches held in memory.
pub const BYTES_IN_FLIGHT: &str = "flocker_bulk_in_flight_bytes";
/// Gauge: connections with paired peers.
pub const CONNECTIONS: &str = "flocker_connections";
/// Counter: connections that came up, by either side's dialling.
pub const CONNECTIONS_OPENED: &str = "flocker_connections_opened_total";
/// Counter, label `reason`: incoming connections refused.
pub const CONNECTIONS_REFUSED: &str = "flocker_connections_refused_total";
/// Counter: failed dials.
pub const DIALS_FAILED: &str = "flocker_dials_failed_total";
/// Counter, label `outcome`: pairing tries answered by this node's invitations.
pub const PAIRING_TRIES: &str = "flocker_pairing_tries_total";
