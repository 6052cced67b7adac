//! The forwarder between clients and backends on the loopback interface.

use std::net::SocketAddr;
use std::time::Duration;

use flocker_core::ids::{AttemptId, Epoch, Fingerprint, OpId, UnitId};
use flocker_core::io::{ClientsView, Event, MigrationReport};
use flocker_core::record::{
    ForwardRecord, JournalChange, Policy, Role, StopSignal, UnitRecord, WorkloadRecord,
};
use flocker_core::{Action, EventKind, Failure, FailureCode, Input, Outcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::forward::Forwards;
use crate::api::ForwardView;

const LIMIT: Duration = Duration::from_secs(20);
/// Long enough for what must not happen to happen.
const MOMENT: Duration = Duration::from_millis(100);
const UNIT: UnitId = UnitId(3);
const OTHER: Fingerprint = Fingerprint([2; 32]);

fn attempt() -> AttemptId {
    AttemptId { issuer: Fingerprint([1; 32]), number: 1 }
}

fn epoch() -> Epoch {
    Epoch { number: 1, owner: Fingerprint([1; 32]), attempt: attempt() }
}

fn record(role: Role, forwards: &[ForwardRecord]) -> UnitRecord {
    let mut workload = WorkloadRecord::process(vec!["true".into()]);
    workload.forwards = forwards.to_vec();
    let mut unit = UnitRecord::new(UNIT, "db".into(), Vec::new(), Policy::Rpo(1000), epoch(), role);
    unit.workload = Some(workload);
    unit
}

fn following() -> Role {
    Role::Following { source: OTHER }
}

fn ready() -> Role {
    let (source, attempt) = (OTHER, attempt());
    Role::Ready { source, attempt, next: epoch(), finals: Vec::new(), workload_wanted: true }
}

fn event(kind: EventKind) -> Event {
    Event { unit: Some(UNIT), name: Some("db".into()), kind }
}

fn phase(word: &str) -> Event {
    event(EventKind::Phase { attempt: attempt(), phase: word.into() })
}

fn migrated() -> Event {
    event(EventKind::Migrated(Box::new(MigrationReport {
        name: "db".into(),
        source: OTHER,
        target: OTHER,
        attempt: attempt(),
        epoch: 2,
        rounds: Vec::new(),
        downtime_ms: Vec::new(),
        theirs_ms: Vec::new(),
        downtime_total_ms: 0,
        total_ms: 0,
        predicted: None,
        budget_ms: None,
        clients: None,
        notes: Vec::new(),
    })))
}

fn free() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// Answers each piece that it reads with its letter and that piece, until it is aborted, which cuts its
/// connections.
async fn backend(at: SocketAddr, letter: u8) -> JoinHandle<()> {
    let listener = TcpListener::bind(at).await.unwrap();
    tokio::spawn(async move {
        let mut serving = tokio::task::JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            serving.spawn(async move {
                let mut buffer = vec![letter; 1024];
                while let Ok(n @ 1..) = stream.read(&mut buffer[1..]).await {
                    if stream.write_all(&buffer[..=n]).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}

struct Here {
    forwards: Forwards,
    ports: ForwardRecord,
}

impl Here {
    fn new(role: Role) -> Self {
        Self::with_limits(role, 16, LIMIT)
    }

    fn with_limits(role: Role, holds: usize, limit: Duration) -> Self {
        let ports = ForwardRecord { listen: free(), local: free(), remote: free() };
        let units = [record(role, std::slice::from_ref(&ports))];
        Here { forwards: Forwards::with_limits(Handle::current(), &units, holds, limit), ports }
    }

    fn put(&self, role: Role, forwards: &[ForwardRecord]) {
        let unit = record(role, forwards);
        self.forwards.note_changes(&[JournalChange::PutUnit(Box::new(unit))]);
    }

    fn becomes(&self, role: Role) {
        self.put(role, std::slice::from_ref(&self.ports));
    }

    /// What the loop hands on in a move away from here, until the target's word.
    fn leaves(&self) {
        self.becomes(Role::Leaving { attempt: attempt(), target: OTHER });
        self.forwards.note_event(&phase("quiesce"));
        self.workload(1, stop(), Ok(Outcome::Nothing));
        self.becomes(following());
    }

    fn workload(&self, op: u64, action: Action, outcome: Result<Outcome, Failure>) {
        self.forwards.note_action(OpId(op), UNIT, &action);
        self.forwards.note_input(&Input::Done { op: OpId(op), outcome });
    }

    async fn view(&self, good: impl Fn(&ForwardView) -> bool) {
        let seen = async {
            while !self.forwards.views().first().is_some_and(&good) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let seen = timeout(LIMIT, seen).await;
        assert!(seen.is_ok(), "{:?}", self.forwards.views());
    }

    async fn client(&self) -> TcpStream {
        let connected = async {
            loop {
                match TcpStream::connect(self.ports.listen).await {
                    Ok(stream) => return stream,
                    // The port is opened by a task of its own.
                    Err(_) => sleep(Duration::from_millis(5)).await,
                }
            }
        };
        timeout(LIMIT, connected).await.unwrap()
    }

    async fn felt(&self) -> Option<ClientsView> {
        let (tell, told) = oneshot::channel();
        self.forwards.note_event(&migrated());
        self.forwards.when_felt("db", move |felt| tell.send(felt).unwrap());
        timeout(LIMIT, told).await.unwrap().unwrap()
    }
}

fn stop() -> Action {
    Action::StopWorkload {
        program: None,
        state: None,
        signal: StopSignal::Term,
        before: None,
        limit_ms: 1,
    }
}

fn start() -> Action {
    Action::StartWorkload {
        workload: WorkloadRecord::process(Vec::new()),
        datasets: Vec::new(),
        paths: Vec::new(),
        lease_until_ms: None,
    }
}

async fn ask(client: &mut TcpStream) -> String {
    client.write_all(b"?").await.unwrap();
    answer(client).await
}

async fn answer(client: &mut TcpStream) -> String {
    let mut said = [0; 2];
    match timeout(LIMIT, client.read_exact(&mut said)).await.expect("an answer or an end") {
        Ok(_) => String::from_utf8_lossy(&said).into_owned(),
        Err(_) => "cut".to_owned(),
    }
}

async fn unanswered(client: &mut TcpStream) {
    let mut said = [0; 1];
    assert!(timeout(MOMENT, client.read(&mut said)).await.is_err(), "answered or cut: {said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_go_to_the_workload_wherever_it_is() {
    let here = Here::new(Role::Serving);
    let _local = backend(here.ports.local, b'l').await;
    let _remote = backend(here.ports.remote, b'r').await;
    assert_eq!(ask(&mut here.client().await).await, "l?");
    here.becomes(following());
    here.view(|view| view.workload == "elsewhere").await;
    assert_eq!(ask(&mut here.client().await).await, "r?");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_comes_during_a_move_is_held_until_the_target_says_that_it_runs() {
    let here = Here::new(Role::Serving);
    let _local = backend(here.ports.local, b'l').await;
    let _remote = backend(here.ports.remote, b'r').await;
    here.leaves();
    let mut client = here.client().await;
    client.write_all(b"1").await.unwrap();
    unanswered(&mut client).await;
    let felt = here.felt().await.unwrap();
    assert_eq!(answer(&mut client).await, "r1");
    assert_eq!((felt.held, felt.lost, felt.errors), (1, 0, 0));
    assert!(felt.longest_hold_ms >= MOMENT.as_millis() as u64, "{felt:?}");
    assert!(felt.longest_gap_ms.unwrap() >= MOMENT.as_millis() as u64, "{felt:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_held_in_a_move_that_is_taken_back_goes_to_the_workload_here() {
    let here = Here::new(Role::Serving);
    here.becomes(Role::Leaving { attempt: attempt(), target: OTHER });
    here.forwards.note_event(&phase("quiesce"));
    here.workload(1, stop(), Ok(Outcome::Nothing));
    let mut client = here.client().await;
    client.write_all(b"1").await.unwrap();
    here.becomes(Role::Serving);
    let failure = Failure::refused(FailureCode::Cancelled, "");
    let kind = EventKind::MigrationFailed { attempt: attempt(), phase: "fence".into(), failure };
    here.forwards.note_event(&event(kind));
    unanswered(&mut client).await;
    let _local = backend(here.ports.local, b'l').await;
    here.workload(2, start(), Ok(Outcome::Nothing));
    assert_eq!(answer(&mut client).await, "l1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_target_they_are_held_until_the_workload_was_started() {
    let here = Here::new(following());
    here.becomes(ready());
    let _local = backend(here.ports.local, b'l').await;
    let mut client = here.client().await;
    client.write_all(b"1").await.unwrap();
    here.becomes(Role::Serving);
    // It answers, but is not healthy yet: a database that is still recovering turns clients away.
    unanswered(&mut client).await;
    here.workload(1, start(), Ok(Outcome::Nothing));
    assert_eq!(answer(&mut client).await, "l1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_refuses_is_tried_again_while_connections_wait() {
    let here = Here::new(Role::Serving);
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = here.client().await;
        client.write_all(b"1").await.unwrap();
        clients.push(client);
    }
    here.view(|view| view.held == 5).await;
    unanswered(&mut clients[4]).await;
    let _local = backend(here.ports.local, b'l').await;
    for mut client in clients {
        assert_eq!(answer(&mut client).await, "l1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_are_held_than_the_limit_and_nobody_is_refused() {
    let here = Here::with_limits(Role::Serving, 2, LIMIT);
    here.leaves();
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = here.client().await;
        client.write_all(b"1").await.unwrap();
        clients.push(client);
    }
    here.view(|view| view.held == 2).await;
    sleep(MOMENT).await;
    here.view(|view| view.held == 2).await;
    let _remote = backend(here.ports.remote, b'r').await;
    here.forwards.note_event(&migrated());
    for client in &mut clients {
        assert_eq!(answer(client).await, "r1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_held_no_longer_than_the_limit() {
    let here = Here::with_limits(Role::Serving, 2, MOMENT);
    here.leaves();
    let mut client = here.client().await;
    assert_eq!(answer(&mut client).await, "cut");
    let felt = here.felt().await.unwrap();
    assert_eq!((felt.held, felt.errors), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_workload_that_a_person_has_stopped() {
    let here = Here::new(Role::Serving);
    let mut unit = record(Role::Serving, std::slice::from_ref(&here.ports));
    unit.workload.as_mut().unwrap().wanted = false;
    here.forwards.note_changes(&[JournalChange::PutUnit(Box::new(unit))]);
    here.workload(1, stop(), Ok(Outcome::Nothing));
    here.view(|view| view.workload == "stopped").await;
    assert_eq!(answer(&mut here.client().await).await, "cut");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_was_cut_and_came_again_felt_one_gap() {
    let here = Here::new(Role::Serving);
    let local = backend(here.ports.local, b'l').await;
    let mut client = here.client().await;
    assert_eq!(ask(&mut client).await, "l?");
    here.forwards.note_event(&phase("quiesce"));
    local.abort();
    assert_eq!(answer(&mut client).await, "cut");
    here.leaves();
    let mut again = here.client().await;
    again.write_all(b"1").await.unwrap();
    sleep(MOMENT).await;
    let _remote = backend(here.ports.remote, b'r').await;
    let felt = here.felt().await.unwrap();
    assert_eq!(answer(&mut again).await, "r1");
    assert_eq!((felt.held, felt.lost, felt.errors), (1, 1, 0), "{felt:?}");
    assert!(felt.longest_gap_ms.unwrap() >= MOMENT.as_millis() as u64, "{felt:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_waits_a_little_for_the_first_answer_and_then_says_that_there_was_none() {
    let here = Here::new(Role::Serving);
    here.leaves();
    let mut client = here.client().await;
    client.write_all(b"1").await.unwrap();
    here.view(|view| view.held == 1).await;
    // Nothing listens at the target's.
    let felt = here.felt().await.unwrap();
    assert_eq!((felt.longest_gap_ms, felt.held), (None, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_the_old_place_are_cut_once_the_workload_is_at_the_other() {
    let here = Here::new(following());
    let _remote = backend(here.ports.remote, b'r').await;
    let mut client = here.client().await;
    assert_eq!(ask(&mut client).await, "r?");
    // A failover: the old primary cannot even say that it is gone.
    here.becomes(Role::Serving);
    here.workload(1, start(), Ok(Outcome::Nothing));
    assert_eq!(answer(&mut client).await, "cut");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_said_and_had_as_soon_as_it_is_free() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let here = Here::new(Role::Serving);
    let _local = backend(here.ports.local, b'l').await;
    let ports = ForwardRecord { listen, ..here.ports };
    here.put(Role::Serving, std::slice::from_ref(&ports));
    here.view(|view| view.trouble.as_ref().is_some_and(|t| t.contains("in use"))).await;
    drop(taken);
    here.view(|view| view.trouble.is_none()).await;
    let here = Here { ports, ..here };
    assert_eq!(ask(&mut here.client().await).await, "l?");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_configuration_takes_effect_at_once() {
    let here = Here::new(Role::Serving);
    let _local = backend(here.ports.local, b'l').await;
    let mut stands = here.client().await;
    assert_eq!(ask(&mut stands).await, "l?");
    let other = ForwardRecord { local: free(), ..here.ports };
    let _other = backend(other.local, b'o').await;
    here.put(Role::Serving, &[other]);
    assert_eq!(ask(&mut here.client().await).await, "o?");
    here.put(Role::Serving, &[]);
    assert!(here.forwards.views().is_empty());
    let closed = async {
        while TcpStream::connect(here.ports.listen).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, closed).await.expect("the port is closed");
    assert_eq!(ask(&mut stands).await, "l?", "what stands goes on");
}
