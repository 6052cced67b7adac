//! flocker-core decides: sans-IO state machines, planners and messages.
//!
//! Owns: who may write a unit (epochs, the cutover, the start-up rule), what is replicated when,
//! and every snapshot and hold that we make. Leaves to others: doing any of it. No tokio, files,
//! clock or entropy; `now` is an argument, ids come from outside, collections are ordered, so the
//! same inputs give the same effects.
//!
//! Read next: [`io`] (the vocabulary), [`record`] (what is durable), [`message`] (what nodes say),
//! [`node`] (the one entry), then the machines: [`plan`], `replicate`, `cutover`, `failover`, `lease`,
//! `service`.

mod ctx;
mod cutover;
mod drill;
mod failover;
pub mod failure;
pub mod ids;
pub mod io;
mod lease;
mod limits;
pub mod message;
mod network;
pub mod node;
pub mod plan;
pub mod record;
mod replicate;
mod service;
mod standby;
pub mod status;
pub mod tree;
mod unit;
mod upkeep;

pub use failure::{Failure, FailureCode, Remedy};
pub use io::{Action, Boot, Command, Effect, Event, EventKind, Input, Outcome, Reply, StoreFacts};
pub use message::{Body, Message};
pub use node::Node;
