//! The inviter's end: answers joiners while an invitation is open.
//!
//! Owns: the one open invitation, the order of counting and answering, its end. Tries are taken one
//! after another, so the count is strict.

use std::sync::Arc;

use flocker_core::ids::Fingerprint;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::exchange::{Claim, Exchange, Proof, Proofs, Role, Scene};
use super::{Invitation, InvitationEvent, MAX_TRIES, NoTry, Paired, STEP_TIMEOUT};
use crate::counters;
use crate::endpoint::{CloseCode, Endpoint};
use crate::error::ConnectError;
use crate::frame::FrameType;
use crate::frame::cursor::presentable;
use crate::frame::hello::{Hello, MAX_NAME};
use crate::frame::pair::{MAX_ADDRESS, MAX_ADDRESSES, Opening, PairRefusal, PairRefused};
use crate::framed::{self, FramedError};
use crate::greeting;
use crate::link::{Link, Receiving, Sending};

/// Events of an invitation that may wait to be taken: a few for each try.
const EVENTS: usize = 16;

/// Where an endpoint keeps its open invitation.
#[derive(Debug, Default, Clone)]
pub(crate) struct InviterSlot(Arc<Mutex<Option<Open>>>);

#[derive(Debug)]
struct Open {
    invitation: Invitation,
    deadline: Instant,
    tries: u8,
    events: mpsc::Sender<InvitationEvent>,
    /// Dropped with the invitation: nobody then has to watch its deadline any more.
    _open: oneshot::Sender<()>,
}

/// Why a try came to nothing.
enum Unpaired {
    /// The joiner is told, and the invitation goes on or not.
    Refuse(PairRefusal, String),
    /// It went away, or spoke nonsense.
    Gone,
    /// It proved itself, and then its confirmation did not come.
    Unconfirmed,
}

impl From<FramedError> for Unpaired {
    fn from(_: FramedError) -> Self {
        Self::Gone
    }
}

impl InviterSlot {
    /// Opens an invitation; one that was open before ends.
    pub(crate) async fn open(&self, invitation: Invitation) -> mpsc::Receiver<InvitationEvent> {
        let (events, taken) = mpsc::channel(EVENTS);
        let deadline = Instant::now() + invitation.valid_for;
        let mine = events.clone();
        let (still_open, over) = oneshot::channel();
        let open = Open { invitation, deadline, tries: 0, events, _open: still_open };
        let before = self.0.lock().await.replace(open);
        if let Some(before) = before {
            before.tell(InvitationEvent::Ended(NoTry::Closed));
        }
        let slot = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = over => {}
                () = tokio::time::sleep_until(deadline) => slot.end(&mine, NoTry::Expired).await,
                // Nobody cares any more how it ends: then nobody may join either.
                () = mine.closed() => slot.end(&mine, NoTry::Closed).await,
            }
        });
        taken
    }

    /// Ends whatever invitation is open.
    pub(crate) async fn close(&self) {
        if let Some(open) = self.0.lock().await.take() {
            open.tell(InvitationEvent::Ended(NoTry::Closed));
        }
    }

    /// Ends the invitation whose events go to `mine`, if it still is the open one.
    async fn end(&self, mine: &mpsc::Sender<InvitationEvent>, why: NoTry) {
        let mut slot = self.0.lock().await;
        if slot.as_ref().is_some_and(|open| open.events.same_channel(mine))
            && let Some(open) = slot.take()
        {
            open.tell(InvitationEvent::Ended(why));
        }
    }

    /// Serves one pairing connection to its end.
    pub(crate) async fn answer(&self, endpoint: &Endpoint, link: Link, joiner: Fingerprint) {
        if let Err(error) = self.serve(endpoint, &link, joiner).await {
            tracing::warn!(%joiner, %error, "a pairing connection was refused");
        }
        link.close(CloseCode::PairingOver, "pairing is over");
    }

    async fn serve(
        &self,
        endpoint: &Endpoint,
        link: &Link,
        joiner: Fingerprint,
    ) -> Result<(), ConnectError> {
        let (local, ours) = (endpoint.local(), endpoint.fingerprint());
        let silent = || ConnectError::Closed { reason: "no greeting in time".into() };
        let heard = timeout(STEP_TIMEOUT, greeting::hear_hello(link, local, ours));
        let (mut send, mut recv, hello) = heard.await.map_err(|_| silent())??;
        if let Err(error) = greeting::same_version(local, &hello) {
            greeting::reject(link, &mut send, local, &error).await;
            return Err(error);
        }
        let start = step(&mut recv, FrameType::PairStart, "PairStart").await;
        let Ok(start) = start.and_then(|p| Ok(Opening::decode(FrameType::PairStart, &p)?)) else {
            return Err(silent());
        };
        let mut call = Joining { endpoint, link, send, recv, joiner, hello, start };
        let mut slot = self.0.lock().await;
        let ended = call.take_try(&mut slot).await;
        if let Err(Unpaired::Refuse(code, reason)) = &ended {
            let tries_left = slot.as_ref().map_or(0, Open::tries_left);
            drop(slot);
            call.refuse(*code, tries_left, reason).await;
        }
        metrics::counter!(counters::PAIRING_TRIES, "outcome" => outcome(&ended)).increment(1);
        Ok(())
    }
}

fn outcome(ended: &Result<(), Unpaired>) -> &'static str {
    match ended {
        Ok(()) => "paired",
        Err(Unpaired::Refuse(PairRefusal::WrongCode, _)) => "wrong code",
        Err(Unpaired::Refuse(..)) => "refused",
        Err(Unpaired::Gone) => "gone",
        Err(Unpaired::Unconfirmed) => "unconfirmed",
    }
}

async fn step(
    recv: &mut Receiving,
    kind: FrameType,
    name: &'static str,
) -> Result<Vec<u8>, Unpaired> {
    let read = timeout(STEP_TIMEOUT, framed::read(recv, std::slice::from_ref(&kind), name));
    Ok(read.await.map_err(|_| Unpaired::Gone)??.1)
}

impl From<crate::frame::FrameError> for Unpaired {
    fn from(_: crate::frame::FrameError) -> Self {
        Self::Gone
    }
}

impl Open {
    fn tell(&self, event: InvitationEvent) {
        // Whoever opened it may have stopped listening; nobody else is to be told.
        let _ = self.events.try_send(event);
    }

    fn tries_left(&self) -> u8 {
        MAX_TRIES.saturating_sub(self.tries)
    }

    /// Counts this try, durably, before it is answered.
    async fn count(&mut self) -> Result<(), NoTry> {
        if Instant::now() >= self.deadline {
            return Err(NoTry::Expired);
        }
        if self.tries >= MAX_TRIES {
            return Err(NoTry::Exhausted);
        }
        let counter = Arc::clone(&self.invitation.counter);
        let counted = tokio::task::spawn_blocking(move || counter.count_try()).await;
        let failed = |e: tokio::task::JoinError| NoTry::NotCounted { reason: e.to_string() };
        let left = counted.map_err(failed)??;
        // The stricter count holds: theirs survives restarts, ours holds if theirs does not count.
        self.tries = (self.tries + 1).max(MAX_TRIES.saturating_sub(left));
        Ok(())
    }
}

/// One joiner's connection, greeted, its first message read.
struct Joining<'a> {
    endpoint: &'a Endpoint,
    link: &'a Link,
    send: Sending,
    recv: Receiving,
    joiner: Fingerprint,
    hello: Hello,
    start: Opening,
}

impl Joining<'_> {
    /// Uses up one try of the open invitation, and ends it when that was the last or paired.
    async fn take_try(&mut self, slot: &mut Option<Open>) -> Result<(), Unpaired> {
        let Some(open) = slot else {
            let text = "no invitation is open".into();
            return Err(Unpaired::Refuse(PairRefusal::NoInvitation, text));
        };
        if self.joiner == self.endpoint.fingerprint() {
            let text = "that is this node itself".into();
            return Err(Unpaired::Refuse(PairRefusal::Myself, text));
        }
        if let Err(no) = open.count().await {
            let refusal = match &no {
                NoTry::Closed => PairRefusal::NoInvitation,
                NoTry::Expired => PairRefusal::Expired,
                NoTry::Exhausted => PairRefusal::Exhausted,
                NoTry::NotCounted { .. } => PairRefusal::Other,
            };
            let text = no.to_string();
            open.tell(InvitationEvent::Ended(no));
            *slot = None;
            return Err(Unpaired::Refuse(refusal, text));
        }
        let ended = self.prove(open).await;
        let (from, tries_left) = (self.link.remote_address(), open.tries_left());
        match &ended {
            Ok(()) => {
                open.tell(InvitationEvent::Paired(self.paired()));
                *slot = None;
                return ended;
            }
            Err(Unpaired::Unconfirmed) => {
                let (fingerprint, name) = (self.joiner, self.hello.name.clone());
                open.tell(InvitationEvent::Unconfirmed { fingerprint, name });
            }
            Err(_) => open.tell(InvitationEvent::Failed { from, tries_left }),
        }
        if tries_left == 0 {
            open.tell(InvitationEvent::Ended(NoTry::Exhausted));
            *slot = None;
        }
        ended
    }

    async fn prove(&mut self, open: &Open) -> Result<(), Unpaired> {
        let (joiner, ours) = (self.joiner, self.endpoint.fingerprint());
        let code = &open.invitation.code;
        let (exchange, message) = Exchange::start(Role::Inviter, code, &joiner, &ours);
        let addresses = bounded(&open.invitation.addresses);
        let answer = Opening { spake: message, addresses: addresses.clone() };
        let scene = self.scene(addresses).ok_or(Unpaired::Gone)?;
        let proofs = exchange.finish(&self.start.spake, &scene).map_err(|_| Unpaired::Gone)?;
        framed::write(&mut self.send, FrameType::PairAnswer, &answer.encode()).await?;
        let found = step(&mut self.recv, FrameType::PairProof, "PairProof").await?;
        if !proofs.verify(Proof::Joiner, &found) {
            let text = "the proof does not verify".into();
            return Err(Unpaired::Refuse(PairRefusal::WrongCode, text));
        }
        self.confirm(&proofs).await.map_err(|_| Unpaired::Unconfirmed)
    }

    /// Gives our proof and waits for the joiner to say that it verified.
    async fn confirm(&mut self, proofs: &Proofs) -> Result<(), Unpaired> {
        let ours = proofs.show(Proof::Inviter);
        framed::write(&mut self.send, FrameType::PairProof, &ours).await?;
        let found = step(&mut self.recv, FrameType::PairConfirm, "PairConfirm").await?;
        if proofs.verify(Proof::Confirm, &found) { Ok(()) } else { Err(Unpaired::Gone) }
    }

    fn scene(&self, addresses: Vec<String>) -> Option<Scene> {
        let local = self.endpoint.local();
        let exporter = self.link.pairing_exporter().ok()?;
        Some(Scene {
            protocol: local.protocol,
            exporter,
            joiner: Claim {
                fingerprint: self.joiner,
                name: self.hello.name.clone(),
                addresses: self.start.addresses.clone(),
            },
            inviter: Claim {
                fingerprint: self.endpoint.fingerprint(),
                name: presentable(&local.name, MAX_NAME),
                addresses,
            },
        })
    }

    fn paired(&self) -> Paired {
        Paired {
            fingerprint: self.joiner,
            name: self.hello.name.clone(),
            software: self.hello.software.clone(),
            addresses: self.start.addresses.clone(),
            observed: self.link.remote_address(),
        }
    }

    async fn refuse(&mut self, code: PairRefusal, tries_left: u8, reason: &str) {
        let refused = PairRefused { code, tries_left, reason: reason.to_owned() }.encode();
        let told = framed::write(&mut self.send, FrameType::PairRefused, &refused).await;
        if told.is_ok() && self.send.finish() {
            // The joiner closes once it has read it.
            let _ = timeout(STEP_TIMEOUT, self.link.closed()).await;
        }
    }
}

/// What is said of addresses, exactly as the other side will read it.
pub(super) fn bounded(addresses: &[String]) -> Vec<String> {
    addresses.iter().take(MAX_ADDRESSES).map(|a| presentable(a, MAX_ADDRESS)).collect()
}
