//! What a unit's clients see of it: where its addresses and its ports are.
//!
//! Owns: [`addresses`] (put on an interface, announced, taken off) and [`forward`] (ports behind which
//! the workload is found wherever it runs, and what clients felt of a move), [`quiet`] (nothing
//! reaches a workload that is being restored). Leaves to others: when a
//! workload moves (`flocker_core`).

pub(crate) mod addresses;
mod announce;
mod clients;
pub(crate) mod forward;
#[cfg(test)]
mod forward_tests;
mod pass;
pub(crate) mod quiet;
#[cfg(test)]
mod tests;
mod whereabouts;
