//! What is known of the ways to single destinations.
//!
//! Owns: how many datagrams may go there in one call, and which lengths were refused when they did. Leaves
//! to others: finding it out ([`super::batch`] for refusals, [`crate::endpoint`] for the peer's room).
//!
//! A destination that nothing is known of has the careful limit, so that one that is forgotten, or an
//! address that a peer has just moved to, is never treated worse than it can bear.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{CAREFUL_SEGMENTS, MAX_SEGMENTS};

/// Destinations of which something is kept: more than a node has peers, and some kilobytes at most.
const MAX_PATHS: usize = 256;

/// Which datagrams may not be handed over several at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Refused {
    /// None were refused.
    #[default]
    Nothing,
    /// Those of this many bytes and more: longer than the way's MTU.
    From(usize),
    /// All: the system or the device cannot cut them.
    Everything,
}

#[derive(Debug, Clone, Copy, Default)]
struct Path {
    roomy: bool,
    refused: Refused,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Paths(Mutex<BTreeMap<SocketAddr, Path>>);

impl Paths {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Path>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, to: SocketAddr, change: impl FnOnce(&mut Path)) {
        let mut paths = self.lock();
        if paths.len() >= MAX_PATHS && !paths.contains_key(&to) {
            // Any one: it gets the careful limit, and what it refuses it refuses again.
            paths.pop_first();
        }
        change(paths.entry(to).or_default());
    }

    /// How many datagrams of so many bytes may go to `to` in one call; one: none together.
    pub(crate) fn segments(&self, to: SocketAddr, bytes: usize) -> usize {
        let path = self.lock().get(&to).copied().unwrap_or_default();
        match path.refused {
            Refused::Everything => 1,
            Refused::From(least) if bytes >= least => 1,
            Refused::From(_) | Refused::Nothing if path.roomy => MAX_SEGMENTS,
            Refused::From(_) | Refused::Nothing => CAREFUL_SEGMENTS,
        }
    }

    /// The peer at `to` said that its socket holds a lot.
    pub(crate) fn is_roomy(&self, to: SocketAddr) {
        self.change(to, |path| path.roomy = true);
    }

    /// Datagrams of so many bytes were refused when they went together, and when they went alone too.
    pub(crate) fn too_long(&self, to: SocketAddr, bytes: usize) {
        self.change(to, |path| {
            path.refused = match path.refused {
                Refused::Nothing => Refused::From(bytes),
                Refused::From(least) => Refused::From(least.min(bytes)),
                Refused::Everything => Refused::Everything,
            };
        });
    }

    /// Datagrams were refused when they went together, and taken when they went alone.
    pub(crate) fn refuses_together(&self, to: SocketAddr) {
        self.change(to, |path| path.refused = Refused::Everything);
    }

    /// A lone datagram of so many bytes was taken: they are not too long any more.
    pub(crate) fn passed(&self, to: SocketAddr, bytes: usize) {
        let mut paths = self.lock();
        if let Some(path) = paths.get_mut(&to)
            && matches!(path.refused, Refused::From(least) if bytes >= least)
        {
            path.refused = Refused::Nothing;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn an_unknown_destination_has_the_careful_limit_and_a_roomy_one_the_full() {
        let paths = Paths::default();
        assert_eq!(paths.segments(to(1), 1452), CAREFUL_SEGMENTS);
        paths.is_roomy(to(1));
        assert_eq!(paths.segments(to(1), 1452), MAX_SEGMENTS);
        assert_eq!(paths.segments(to(2), 1452), CAREFUL_SEGMENTS, "a peer that has moved");
    }

    #[test]
    fn what_is_too_long_goes_alone_until_one_as_long_gets_through() {
        let paths = Paths::default();
        paths.too_long(to(1), 8952);
        assert_eq!(paths.segments(to(1), 8952), 1);
        assert_eq!(paths.segments(to(1), 1200), CAREFUL_SEGMENTS);
        paths.passed(to(1), 1452);
        assert_eq!(paths.segments(to(1), 8952), 1, "a shorter one proves nothing");
        paths.passed(to(1), 8952);
        assert_eq!(paths.segments(to(1), 8952), CAREFUL_SEGMENTS);
    }

    #[test]
    fn where_nothing_may_go_together_nothing_does_for_good() {
        let paths = Paths::default();
        paths.is_roomy(to(1));
        paths.refuses_together(to(1));
        paths.too_long(to(1), 1200);
        paths.passed(to(1), 1452);
        assert_eq!(paths.segments(to(1), 1200), 1);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let paths = Paths::default();
        for port in 1..2000 {
            paths.is_roomy(to(port));
        }
        assert_eq!(paths.lock().len(), MAX_PATHS);
        assert_eq!(paths.segments(to(1999), 1452), MAX_SEGMENTS);
    }
}
