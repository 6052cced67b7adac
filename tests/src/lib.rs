//! flocker-tests proves the parts together: the simulator lives here, the tests beside it.
//!
//! Owns: [`sim`], which runs the very core that `serve` links against a model of network, stores,
//! runtimes and people; [`search`], which tries everything that can happen to one migration; `e2e`,
//! which runs the binary. Leaves to `tests/tests/`: what is run in every
//! test run, and the tests on real stores and of the binary.

#[cfg(feature = "platform")]
pub mod e2e;
#[cfg(feature = "platform")]
pub mod lab;
pub mod search;
pub mod sim;
#[cfg(feature = "platform")]
pub mod suite;
