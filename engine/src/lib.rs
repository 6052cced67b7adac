//! flocker-engine acts: what `flocker_core` decides is done here.
//!
//! Owns: the node's one loop, the journal, the configuration, the local API, workloads, bulk
//! transfers, mirrors, history and metrics. Leaves to others: every decision (`flocker_core`),
//! what a store is (`flocker_vault`, `flocker_zfs`), how bytes travel (`flocker_transport`), and
//! what is printed (`cli`).
//!
//! Read next: [`config`], [`api`] and [`client`] (what a program that talks to a node needs),
//! [`serve`](mod@serve) (the node put together), then its parts.

pub mod api;
pub mod client;
pub mod config;
mod failpoint;
pub mod journal;
pub mod serve;
pub mod workload;

pub use serve::{ServeError, ServeOptions, serve};
