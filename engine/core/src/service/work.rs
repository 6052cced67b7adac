//! The workload here: started where it is wanted and its volumes are up, stopped on request,
//! started again when it ended badly. Never a second one: a start is asked for only where it is
//! known that none runs.

use super::Service;
use super::backoff;
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{OpId, RequestId};
use crate::io::{Action, EventKind, Outcome, Reply};
use crate::limits::{RESTART_FIRST_MS, RETRY_MS};
use crate::record::{WorkloadKind, WorkloadRecord};
use crate::unit::{Op, Unit};

/// The workload here.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    /// Not looked at yet.
    Unknown,
    /// None runs.
    Stopped,
    /// Being started; somebody may wait for it.
    Starting {
        op: OpId,
        since: u64,
        request: Option<RequestId>,
        restarts: u32,
        /// It ended before we heard that it had begun: how, and whether well.
        ended: Option<(String, bool)>,
    },
    /// It runs.
    Running {
        start_ms: u64,
        /// What of that is another program's.
        theirs: Vec<(String, u64)>,
        restarts: u32,
    },
    /// Stopping it failed: is it still there?
    Looking { op: OpId },
    /// Being stopped on a person's request.
    Stopping { op: OpId, request: Option<RequestId> },
    /// It ended by itself, or could not be started.
    Ended { status: String, again_at: Option<u64>, restarts: u32 },
}

impl Work {
    /// It ran already.
    pub(super) fn adopted() -> Self {
        Self::Running { start_ms: 0, theirs: Vec::new(), restarts: 0 }
    }
}

impl Unit {
    fn wanted(&self) -> Option<WorkloadRecord> {
        self.record.workload.clone().filter(|w| w.wanted)
    }

    /// Whether everything that should run here does.
    pub(crate) fn fully_up(&self) -> bool {
        matches!(self.service, Service::Up { .. })
            && match self.work {
                // What ended well by itself is not started again: nothing is waited for.
                Work::Running { .. } | Work::Ended { again_at: None, .. } => true,
                Work::Stopped | Work::Ended { .. } => self.wanted().is_none(),
                Work::Unknown
                | Work::Starting { .. }
                | Work::Stopping { .. }
                | Work::Looking { .. } => false,
            }
    }

    pub(crate) fn set_workload(
        &mut self,
        ctx: &mut Ctx,
        request: RequestId,
        workload: WorkloadRecord,
    ) {
        let running = matches!(self.work, Work::Running { .. } | Work::Starting { .. });
        // Addresses that are on would stay on, and nobody would know of them any more.
        let same =
            self.record.workload.as_ref().is_some_and(|w| {
                w.program == workload.program && w.addresses == workload.addresses
            });
        if self.record.role.is_primary() && running && !same {
            let text =
                format!("{} is running; stop it first: flocker-repl stop {0}", self.record.name);
            return ctx.reply(request, Err(Failure::refused(FailureCode::Busy, text)));
        }
        if self.cutover.is_some() {
            let text = format!("{} is being migrated; wait until it has ended", self.record.name);
            return ctx.reply(request, Err(Failure::refused(FailureCode::Busy, text)));
        }
        if let Err(failure) = self.can_be(&workload) {
            return ctx.reply(request, Err(failure));
        }
        let before = self.record.workload.replace(workload).map(|w| w.program);
        self.persist(ctx);
        let now = self.record.workload.as_ref().map(|w| &w.program);
        if let Some(program) =
            before.filter(|p| Some(p) != now && p.kind() != WorkloadKind::Process)
        {
            ctx.run(self.id(), Op::Ahead, Action::ReleaseWorkload { program });
        }
        match (&self.service, &self.work) {
            (Service::Up { paths: None, .. }, _) => {
                let text = format!(
                    "{}: a {} has no path on {}; the command is kept for where it has one",
                    self.record.name, self.record.volumes[0].kind, ctx.config.store.describe
                );
                ctx.reply(request, Err(Failure::refused(FailureCode::Unsupported, text)));
            }
            (Service::Up { .. }, Work::Stopped | Work::Ended { .. }) => {
                self.start_work(ctx, Some(request), 0);
            }
            _ => ctx.reply(request, Ok(Reply::Done)),
        }
    }

    fn start_work(&mut self, ctx: &mut Ctx, request: Option<RequestId>, restarts: u32) {
        let (Some(workload), Service::Up { paths: Some(paths), .. }) =
            (self.wanted(), &self.service)
        else {
            return;
        };
        let action = Action::StartWorkload {
            workload,
            datasets: self.datasets(),
            paths: paths.clone(),
            lease_until_ms: self.lease_until(ctx.now.mono_ms),
        };
        let op = ctx.run(self.id(), Op::Work, action);
        let since = ctx.now.mono_ms;
        self.work = Work::Starting { op, since, request, restarts, ended: None };
    }

    /// Stops the workload and keeps it stopped.
    pub(crate) fn stop_workload(&mut self, ctx: &mut Ctx, request: RequestId) {
        if self.cutover.is_some() {
            let text = format!("{} is being migrated; wait until it has ended", self.record.name);
            return ctx.reply(request, Err(Failure::refused(FailureCode::Busy, text)));
        }
        let Some(workload) = &mut self.record.workload else {
            let text = format!("{} has no workload here", self.record.name);
            return ctx.reply(request, Err(Failure::refused(FailureCode::BadRequest, text)));
        };
        workload.wanted = false;
        self.persist(ctx);
        match self.work {
            Work::Running { .. } | Work::Starting { .. } | Work::Looking { .. } => {
                self.stop_work(ctx, Some(request));
            }
            Work::Unknown | Work::Stopped | Work::Stopping { .. } => {
                ctx.reply(request, Ok(Reply::Done));
            }
            Work::Ended { .. } => {
                self.work = Work::Stopped;
                ctx.reply(request, Ok(Reply::Done));
            }
        }
    }

    pub(super) fn stop_work(&mut self, ctx: &mut Ctx, request: Option<RequestId>) {
        if let Work::Starting { request: Some(waiting), .. } = self.work {
            let text = format!("{} was stopped while it was being started", self.record.name);
            ctx.reply(waiting, Err(Failure::refused(FailureCode::Cancelled, text)));
        }
        let op = ctx.run(self.id(), Op::Work, self.stop_action());
        self.work = Work::Stopping { op, request };
    }

    pub(crate) fn work_done(&mut self, ctx: &mut Ctx, op: OpId, outcome: Result<Outcome, Failure>) {
        match &mut self.work {
            Work::Starting { op: mine, since, request, restarts, ended } if *mine == op => {
                let (since, request, restarts) = (*since, *request, *restarts);
                let ended = ended.take();
                let theirs = match &outcome {
                    Ok(Outcome::Timed { parts }) => parts.clone(),
                    _ => Vec::new(),
                };
                let answer = outcome.map(|_| Reply::Done);
                if let Err(failure) = &answer {
                    let again_at = Some(ctx.now.mono_ms + backoff(RESTART_FIRST_MS, restarts));
                    let status = failure.message.clone();
                    self.work = Work::Ended { status, again_at, restarts: restarts + 1 };
                    if failure.code == FailureCode::NotFound {
                        // The volume is not where it was: make it reachable again first.
                        let retry_at = ctx.now.mono_ms + RETRY_MS;
                        self.service = Service::Failed { retry_at };
                    }
                    let ran =
                        !matches!(failure.code, FailureCode::NotStarted | FailureCode::NotFound);
                    self.activation_failed(ctx, ran, failure.clone());
                } else {
                    let start_ms = ctx.now.mono_ms - since;
                    self.work = Work::Running { start_ms, theirs, restarts };
                    if self.record.lease_ms.is_some() {
                        // It was told what held when it was asked for.
                        self.say_lease(ctx);
                    }
                    // Where it has addresses, clients find it only once they are on.
                    self.standby.answered |= self.network_action(true).is_none();
                }
                if let Some(request) = request {
                    ctx.reply(request, answer);
                }
                if let Some((status, success)) = ended {
                    self.workload_exited(ctx, status, success);
                }
            }
            Work::Stopping { op: mine, request } if *mine == op => {
                let request = *request;
                if let Err(failure) = &outcome {
                    self.raise(ctx, failure.clone());
                    let op = ctx.run(self.id(), Op::Work, self.probe_action());
                    self.work = Work::Looking { op };
                } else {
                    self.work = Work::Stopped;
                }
                if let Some(request) = request {
                    ctx.reply(request, outcome.map(|_| Reply::Done));
                }
            }
            Work::Looking { op: mine } if *mine == op => {
                self.work = match outcome {
                    Ok(Outcome::Probed { running: true }) => Work::adopted(),
                    Ok(_) => Work::Stopped,
                    Err(failure) => Work::Ended {
                        status: failure.message,
                        again_at: Some(ctx.now.mono_ms + RESTART_FIRST_MS),
                        restarts: 0,
                    },
                };
            }
            _ => {}
        }
    }

    /// Nothing runs any more, whatever was under way; whoever waited for it is told.
    pub(crate) fn work_has_stopped(&mut self, ctx: &mut Ctx) {
        self.nobody_waits_for_work(ctx);
        self.work = Work::Stopped;
    }

    /// Tells whoever waits for a start or a stop that something else came first.
    pub(crate) fn nobody_waits_for_work(&mut self, ctx: &mut Ctx) {
        match &mut self.work {
            Work::Starting { request, .. } => {
                if let Some(request) = request.take() {
                    let name = &self.record.name;
                    let text = format!("{name} was stopped while it was being started");
                    ctx.reply(request, Err(Failure::refused(FailureCode::Cancelled, text)));
                }
            }
            Work::Stopping { request, .. } => {
                if let Some(request) = request.take() {
                    ctx.reply(request, Ok(Reply::Done));
                }
            }
            _ => {}
        }
    }

    pub(crate) fn workload_exited(&mut self, ctx: &mut Ctx, status: String, success: bool) {
        let restarts = match &mut self.work {
            Work::Running { restarts, .. } => *restarts,
            Work::Starting { ended, .. } => {
                *ended = Some((status, success));
                return;
            }
            // It ended while it was being looked for, so what is found may be out of date.
            Work::Unknown if matches!(self.service, Service::Probing { .. }) => {
                return self.enter_role(ctx);
            }
            Work::Looking { .. } => {
                let op = ctx.run(self.id(), Op::Work, self.probe_action());
                self.work = Work::Looking { op };
                return;
            }
            // Stopped by us, or already known.
            _ => return,
        };
        let again_at = (!success).then(|| ctx.now.mono_ms + backoff(RESTART_FIRST_MS, restarts));
        let text = format!("{}: the workload ended by itself: {status}", self.record.name);
        if success {
            ctx.report(self.record.id, &self.record.name, EventKind::Note(text));
        } else {
            self.raise(ctx, Failure::new(Remedy::Retry, FailureCode::Workload, text));
        }
        self.work = Work::Ended { status, again_at, restarts: restarts + 1 };
    }

    pub(super) fn advance_work(&mut self, ctx: &mut Ctx) {
        let now = ctx.now.mono_ms;
        if !matches!(self.service, Service::Up { .. }) || self.stopping_for_cutover() {
            return;
        }
        match &self.work {
            Work::Stopped => self.start_work(ctx, None, 0),
            Work::Ended { again_at: Some(at), restarts, .. } if now >= *at => {
                let restarts = *restarts;
                self.start_work(ctx, None, restarts);
                if let Work::Ended { again_at, .. } = &mut self.work {
                    // Not wanted any more.
                    *again_at = None;
                }
            }
            _ => {}
        }
    }

    pub(crate) fn workload_word(&self) -> String {
        match (&self.record.workload, &self.work) {
            (None, _) => "none".into(),
            (Some(_), _) if !self.record.role.is_primary() => "elsewhere".into(),
            (_, Work::Unknown) => "unknown".into(),
            (_, Work::Stopped) => "stopped".into(),
            (_, Work::Starting { .. }) => "starting".into(),
            (_, Work::Running { .. }) => "running".into(),
            (_, Work::Stopping { .. } | Work::Looking { .. }) => "stopping".into(),
            (_, Work::Ended { status, again_at: Some(_), .. }) => {
                format!("exited ({status}), to be started again")
            }
            (_, Work::Ended { status, .. }) => format!("exited ({status})"),
        }
    }
}
