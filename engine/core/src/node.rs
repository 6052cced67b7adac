//! The node: every unit's machine behind one entry.

use std::collections::VecDeque;

use crate::ids::{Fingerprint, Incarnation, Now};
use crate::io::{Boot, Effect, Input, StoreFacts};
use crate::status::NodeStatus;

/// Who this node is.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its identity.
    pub fingerprint: Fingerprint,
    /// This life of its journal.
    pub incarnation: Incarnation,
    /// A random number for this start of the process.
    pub boot: u64,
    /// What the local store can do.
    pub store: StoreFacts,
}

/// The core of one node.
#[derive(Debug)]
pub struct Node {
    effects: VecDeque<Effect>,
}

impl Node {
    /// Starts from what the journal and the stores say.
    pub fn new(config: NodeConfig, boot: Boot, now: Now) -> Self {
        let _ = (config, boot, now);
        Self {
            effects: VecDeque::new(),
        }
    }

    /// Takes an input in.
    pub fn handle(&mut self, now: Now, input: Input) {
        let _ = (now, input);
    }

    /// Hands the next effect out; effects are performed in this order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When `handle(Input::Tick)` is due at the latest, on the monotonic clock, milliseconds.
    pub fn poll_timeout(&self) -> Option<u64> {
        None
    }

    /// A picture of this node.
    pub fn status(&self, now: Now) -> NodeStatus {
        let _ = now;
        unreachable!("written next")
    }
}
