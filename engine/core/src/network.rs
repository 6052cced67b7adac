//! The addresses that are where the workload is.
//!
//! On last: once the workload runs and is healthy. Off first: after it has stopped, before the fence. So
//! no two nodes have them, and while they are not here nobody can have been answered through them.

use crate::ctx::Ctx;
use crate::failure::Failure;
use crate::ids::OpId;
use crate::io::{Action, Outcome};
use crate::limits::NETWORK_RETRY_MS;
use crate::service::{Service, Work};
use crate::unit::{Op, Unit};

/// Whether a unit's addresses are on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Network {
    /// Nothing is known since our start.
    #[default]
    Unknown,
    /// They are on.
    Up,
    /// They are off.
    Down,
    /// Being put on, or taken off.
    Moving { op: OpId, up: bool },
    /// That did not work.
    Failed { retry_at: u64 },
}

impl Unit {
    /// Puts the unit's addresses on, or takes them off; `None`: it has none.
    pub(crate) fn network_action(&self, up: bool) -> Option<Action> {
        let addresses = self.record.workload.as_ref()?.addresses.clone();
        (!addresses.is_empty()).then_some(Action::Network { addresses, up })
    }

    /// Another machine had them moved.
    pub(crate) fn network_is(&mut self, up: bool) {
        self.network = if up { Network::Up } else { Network::Down };
    }

    /// Whether clients can find the workload here.
    pub(crate) fn network_up(&self) -> bool {
        self.network == Network::Up || self.network_action(true).is_none()
    }

    pub(crate) fn advance_network(&mut self, ctx: &mut Ctx) {
        let Some(wanted) = self.network_wanted() else {
            return;
        };
        let due = match &self.network {
            Network::Unknown => true,
            Network::Up => !wanted,
            Network::Down => wanted,
            Network::Moving { .. } => false,
            Network::Failed { retry_at } => ctx.now.mono_ms >= *retry_at,
        };
        if !due {
            return;
        }
        match self.network_action(wanted) {
            Some(action) => {
                let op = ctx.run(self.id(), Op::Network, action);
                self.network = Network::Moving { op, up: wanted };
            }
            None => self.network_is(wanted),
        }
    }

    /// Whether they belong here now; `None`: another machine has them in its hands, or what runs is not
    /// settled.
    fn network_wanted(&self) -> Option<bool> {
        if !matches!(self.service, Service::Up { .. }) || self.stopping_for_cutover() {
            return None;
        }
        match self.work {
            Work::Running { .. } => Some(true),
            Work::Stopped if self.record.workload.as_ref().is_some_and(|w| !w.wanted) => {
                Some(false)
            }
            _ => None,
        }
    }

    pub(crate) fn network_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        outcome: Result<Outcome, Failure>,
    ) {
        let Network::Moving { op: mine, up } = self.network else {
            return;
        };
        if mine != op {
            return;
        }
        match outcome {
            Ok(_) => {
                self.network_is(up);
                self.standby.answered |= up;
            }
            Err(failure) => {
                self.network = Network::Failed { retry_at: ctx.now.mono_ms + NETWORK_RETRY_MS };
                self.raise(ctx, failure);
            }
        }
    }

    pub(crate) fn network_timeout(&self) -> Option<u64> {
        match &self.network {
            Network::Failed { retry_at } => self.network_wanted().map(|_| *retry_at),
            _ => None,
        }
    }
}
