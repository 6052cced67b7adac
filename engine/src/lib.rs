//! flocker-engine acts: what `flocker_core` decides is done here.
//!
//! Owns: the node's one loop, the journal, the configuration, the local API, workloads, bulk
//! transfers, mirrors, history and metrics. Leaves to others: every decision (`flocker_core`),
//! what a store is (`flocker_vault`, `flocker_zfs`), how bytes travel (`flocker_transport`), and
//! what is printed (`cli`).
//!
//! ```text
//!   person ─ socket ─▶ server ─┐                      ┌─▶ journal   (durable before what follows)
//!   peers ── QUIC ──▶ links ───┼─▶ turn: the loop ────┼─▶ ops       (store, workloads)
//!   ops, transfer, workload ───┘   around the core    ├─▶ transfer  (bulk, on threads of its own)
//!                                                     └─▶ hub       (log, history, metrics, watchers)
//! ```
//!
//! Read next: [`config`], [`api`] and [`client`] (what a program that talks to a node needs),
//! [`serve`](mod@serve) (the node put together), `turn` (the loop), then its parts.

pub mod api;
pub mod client;
mod clock;
pub mod config;
pub mod doctor;
#[expect(dead_code, reason = "the loop does not use it yet")]
mod driver;
mod failpoint;
mod fencing;
mod history;
mod hook;
mod hub;
pub mod journal;
mod links;
mod metrics;
mod mirror;
mod network;
mod old_copy;
mod ops;
mod rates;
pub mod serve;
mod server;
mod store;
mod transfer;
mod turn;
pub mod workload;

pub use serve::{ServeError, ServeOptions, serve};
pub use turn::EXIT_JOURNAL;
