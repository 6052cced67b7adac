//! Every line of `unsafe` of this crate: symbol tables, nvlists, calls, and the mask of signals.
//!
//! What is safe to call from outside is safe whatever it is given: pointers never leave this module.

mod calls;
mod device;
mod nvlist;
mod signals;
mod symbols;

pub(crate) use calls::{Incoming, Outcome, Session, Stream};
pub(crate) use device::{Command, Question};
pub(crate) use nvlist::NvList;
pub use symbols::Function;
pub(crate) use symbols::load_nvpair;
