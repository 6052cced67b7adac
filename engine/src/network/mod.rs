//! What a unit's clients see of it: where its addresses are.
//!
//! Owns: [`addresses`] (put on an interface, announced, taken off) and [`announce`] (the packets
//! that say so). Leaves to others: when an address moves (`flocker_core`).

pub(crate) mod addresses;
mod announce;
#[cfg(test)]
mod tests;
