//! Pairing over real QUIC: the right code, wrong ones, nobody there, somebody in between.
#![allow(missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use common::{Node, PATIENCE};
use flocker_transport::{
    ConnectError, CountTries, Invitation, InvitationEvent, NoTry, PairError, Paired, PairingCode,
    words,
};
use tokio::sync::mpsc;

/// Counts in memory, as the engine counts on disk.
struct Tries(AtomicU8);

impl Tries {
    fn new(limit: u8) -> Arc<Self> {
        Arc::new(Self(AtomicU8::new(limit)))
    }

    fn left(&self) -> u8 {
        self.0.load(Ordering::SeqCst)
    }
}

impl CountTries for Tries {
    fn count_try(&self) -> Result<u8, NoTry> {
        let before = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        before.map(|n| n - 1).map_err(|_| NoTry::Exhausted)
    }
}

struct Broken;

impl CountTries for Broken {
    fn count_try(&self) -> Result<u8, NoTry> {
        Err(NoTry::NotCounted { reason: "the disk is full".into() })
    }
}

fn invitation(code: &PairingCode, counter: Arc<dyn CountTries>) -> Invitation {
    let addresses = vec!["a.example:7001".to_owned()];
    Invitation { code: code.clone(), addresses, valid_for: Duration::from_secs(60), counter }
}

fn wrong(code: &PairingCode) -> PairingCode {
    let other = if code.to_string().starts_with('7') { "8" } else { "7" };
    format!("{other}{}", &code.to_string()[1..]).parse().unwrap()
}

async fn event(events: &mut mpsc::Receiver<InvitationEvent>) -> InvitationEvent {
    tokio::time::timeout(PATIENCE, events.recv()).await.expect("soon").expect("an event")
}

async fn join(joiner: &Node, address: &str, code: &PairingCode) -> Result<Paired, PairError> {
    joiner.manager.join(address, code, &["b.example:7002".to_owned()]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_code_pairs_and_both_learn_the_same() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    let (code, tries) = (PairingCode::draw(), Tries::new(5));
    let mut events = a.manager.invite(invitation(&code, tries.clone())).await;
    let at_joiner = join(&b, &a.address, &code).await.unwrap();
    let InvitationEvent::Paired(at_inviter) = event(&mut events).await else { panic!("paired") };
    assert_eq!((at_joiner.fingerprint, at_inviter.fingerprint), (a.key(), b.key()));
    assert_eq!(words(&at_joiner.fingerprint), words(&a.key()));
    assert_eq!((at_joiner.name.as_str(), at_inviter.name.as_str()), ("a", "b"));
    assert_eq!(at_joiner.addresses, ["a.example:7001"]);
    assert_eq!(at_inviter.addresses, ["b.example:7002"]);
    assert_eq!(at_inviter.observed.to_string(), b.address);
    assert_eq!(tries.left(), 4, "the try was counted");
    assert!(events.recv().await.is_none(), "the invitation is over");
    assert!(matches!(join(&b, &a.address, &code).await, Err(PairError::NotOpen)), "and single");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_wrong_codes_end_the_invitation_and_then_the_right_one_is_of_no_use() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    let (code, tries) = (PairingCode::draw(), Tries::new(5));
    let mut events = a.manager.invite(invitation(&code, tries.clone())).await;
    for left in (0..5).rev() {
        let error = join(&b, &a.address, &wrong(&code)).await.unwrap_err();
        assert!(
            matches!(error, PairError::WrongCode { tries_left } if tries_left == left),
            "{error}"
        );
        let failed = event(&mut events).await;
        assert!(matches!(failed, InvitationEvent::Failed { tries_left, .. } if tries_left == left));
        assert_eq!(tries.left(), left);
    }
    assert_eq!(event(&mut events).await, InvitationEvent::Ended(NoTry::Exhausted));
    assert!(matches!(join(&b, &a.address, &code).await, Err(PairError::NotOpen)));
}

#[tokio::test(flavor = "multi_thread")]
async fn five_tries_end_it_even_if_the_counter_never_says_so() {
    struct Lax;
    impl CountTries for Lax {
        fn count_try(&self) -> Result<u8, NoTry> {
            Ok(200)
        }
    }
    let (a, b) = (Node::start("a"), Node::start("b"));
    let code = PairingCode::draw();
    let _events = a.manager.invite(invitation(&code, Arc::new(Lax))).await;
    for _ in 0..5 {
        join(&b, &a.address, &wrong(&code)).await.unwrap_err();
    }
    assert!(matches!(join(&b, &a.address, &code).await, Err(PairError::NotOpen)));
}

#[tokio::test(flavor = "multi_thread")]
async fn tries_counted_before_a_restart_still_count() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    let (code, tries) = (PairingCode::draw(), Tries::new(1));
    let mut events = a.manager.invite(invitation(&code, tries)).await;
    let error = join(&b, &a.address, &wrong(&code)).await.unwrap_err();
    assert!(matches!(error, PairError::WrongCode { tries_left: 0 }), "{error}");
    assert!(matches!(event(&mut events).await, InvitationEvent::Failed { tries_left: 0, .. }));
    assert_eq!(event(&mut events).await, InvitationEvent::Ended(NoTry::Exhausted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_try_that_cannot_be_counted_is_not_answered() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    let code = PairingCode::draw();
    let mut events = a.manager.invite(invitation(&code, Arc::new(Broken))).await;
    let error = join(&b, &a.address, &code).await.unwrap_err();
    assert!(matches!(&error, PairError::Refused { reason } if reason.contains("full")), "{error}");
    assert!(matches!(event(&mut events).await, InvitationEvent::Ended(NoTry::NotCounted { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_invitation_or_after_it_was_ended_the_joiner_is_told() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    let code = PairingCode::draw();
    assert!(matches!(join(&b, &a.address, &code).await, Err(PairError::NotOpen)));
    let mut events = a.manager.invite(invitation(&code, Tries::new(5))).await;
    a.manager.end_invitation().await;
    assert_eq!(event(&mut events).await, InvitationEvent::Ended(NoTry::Closed));
    assert!(matches!(join(&b, &a.address, &code).await, Err(PairError::NotOpen)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_expires() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    let code = PairingCode::draw();
    let valid_for = Duration::from_millis(50);
    let open = Invitation { valid_for, ..invitation(&code, Tries::new(5)) };
    let mut events = a.manager.invite(open).await;
    assert_eq!(event(&mut events).await, InvitationEvent::Ended(NoTry::Expired));
    assert!(matches!(join(&b, &a.address, &code).await, Err(PairError::NotOpen)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_nobody_listens_to_is_closed() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    let code = PairingCode::draw();
    drop(a.manager.invite(invitation(&code, Tries::new(5))).await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(matches!(join(&b, &a.address, &code).await, Err(PairError::NotOpen)));
}

#[tokio::test(flavor = "multi_thread")]
async fn pairing_with_another_version_names_both() {
    let (a, b) = (Node::start("a"), Node::speaking("b", 3));
    let (code, tries) = (PairingCode::draw(), Tries::new(5));
    let _events = a.manager.invite(invitation(&code, tries.clone())).await;
    let error = join(&b, &a.address, &code).await.unwrap_err();
    assert_eq!(error.to_string(), "this node speaks protocol 3, a speaks 1: upgrade a");
    assert_eq!(tries.left(), 5, "that was no try");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_cannot_pair_with_itself() {
    let a = Node::start("a");
    let (code, tries) = (PairingCode::draw(), Tries::new(5));
    let _events = a.manager.invite(invitation(&code, tries.clone())).await;
    assert!(matches!(join(&a, &a.address, &code).await, Err(PairError::Myself)));
    assert_eq!(tries.left(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_at_the_address_is_said() {
    let b = Node::start("b");
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let error = join(&b, &address, &PairingCode::draw()).await.unwrap_err();
    let unreachable = matches!(error, PairError::Connect(ConnectError::Unreachable { .. }));
    assert!(unreachable, "{error}");
}

/// Somebody who knows no code answers the joiner and dials the inviter, and passes every pairing
/// message on. Both TLS sessions are sound; what differs is the sessions themselves.
#[tokio::test(flavor = "multi_thread")]
async fn somebody_in_between_with_two_tls_sessions_gains_nothing() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    let (code, tries) = (PairingCode::draw(), Tries::new(5));
    let mut events = a.manager.invite(invitation(&code, tries.clone())).await;
    let middle = relay::start(a.address.parse().unwrap()).await;
    let error = join(&b, &middle.to_string(), &code).await.unwrap_err();
    assert!(matches!(error, PairError::WrongCode { tries_left: 4 }), "{error}");
    assert!(matches!(event(&mut events).await, InvitationEvent::Failed { .. }));
    // The same code, straight, still works.
    let paired = join(&b, &a.address, &code).await.unwrap();
    assert_eq!(paired.fingerprint, a.key());
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_recorded_on_one_connection_prove_nothing_on_another() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    let (code, tries) = (PairingCode::draw(), Tries::new(5));
    let mut events = a.manager.invite(invitation(&code, tries.clone())).await;
    // The joiner's messages are taken down on their way to an inviter of the recorder's own making, then
    // said again to the true one.
    let recorder = relay::record(a.address.parse().unwrap()).await;
    join(&b, &recorder.address.to_string(), &code).await.unwrap_err();
    event(&mut events).await;
    let answer = recorder.replay().await;
    assert_eq!(answer, flocker_transport::frame::FrameType::PairRefused);
    assert!(matches!(event(&mut events).await, InvitationEvent::Failed { .. }));
    assert_eq!(tries.left(), 3);
}

/// A node-in-the-middle, built from the public pieces of QUIC alone.
mod relay;
