//! What the data path costs, and how it stands beside what people use today.
//!
//! * `cargo bench -p flocker-benches`: the parts, by criterion. Absolute figures belong to the machine they were
//!   taken on; the benchmarks keep a floor (a plain copy) beside what they measure.
//! * `benches/peers/run`: whole transfers, side by side with other tools, in one run.
//!
//! Owns: the inputs of both ([`streams`]), two nodes with a connection between them ([`nodes`]), and pipes as the
//! product makes them ([`pipes`]). Leaves to others: the tools and the table (`flocker-bench-peers`).

pub mod nodes;
pub mod pipes;
pub mod streams;
