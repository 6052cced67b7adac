//! Transfers between two vaults over a lane in memory.

use std::sync::mpsc::{Receiver, Sender, channel};

use flocker_store::{DatasetKind, DatasetName, Guid, SendBase, SnapshotName, SnapshotSpec, Store};
use flocker_transport::Resources;
use flocker_transport::lane::memory;
use flocker_vault::Vault;
use tempfile::TempDir;

use super::*;

const LIMIT: Duration = Duration::from_secs(60);
const UNIT: UnitId = UnitId(7);
const A: Fingerprint = Fingerprint([1; 32]);
const B: Fingerprint = Fingerprint([2; 32]);

/// Lanes that lead straight into the other node's transfers.
struct Straight {
    to: Mutex<Option<Transfers>>,
    resources: Arc<Resources>,
}

impl Lanes for Straight {
    fn open(
        &self,
        _: &Fingerprint,
        header: &[u8],
        _: Option<u64>,
        _: &Cancel,
    ) -> Result<BulkSender, Failure> {
        let Some(to) = self.to.lock().unwrap().clone() else {
            return Err(Failure::new(Remedy::Retry, FailureCode::ConnectionLost, "down"));
        };
        let (ours, theirs, _cable) = memory::pair();
        let receiver = BulkReceiver::over(theirs, Arc::clone(&self.resources));
        to.arrived(A, &Bytes::copy_from_slice(header), receiver);
        Ok(BulkSender::over(ours, Arc::clone(&self.resources)))
    }
}

struct Side {
    _dir: TempDir,
    store: Arc<dyn Store>,
    transfers: Transfers,
    inputs: Receiver<Input>,
    lanes: Arc<Straight>,
}

struct World {
    runtime: tokio::runtime::Runtime,
    a: Side,
    b: Side,
}

fn side(runtime: &tokio::runtime::Runtime) -> Side {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Vault::create(dir.path().join("v")).unwrap());
    let (tell, inputs): (Sender<Input>, _) = channel();
    let tell = Mutex::new(tell);
    let lanes = Arc::new(Straight { to: Mutex::new(None), resources: Resources::start().unwrap() });
    let transfers = Transfers::new(Parts {
        store: Arc::clone(&store),
        lanes: Arc::clone(&lanes) as Arc<dyn Lanes>,
        report: Arc::new(move |input| {
            // A test that has ended listens no more.
            let _ = tell.lock().unwrap().send(input);
        }),
        names: Arc::new(|_| Some("db".into())),
        compression: Compression::default(),
        pace: Arc::new(|_, _, _| Pace::default()),
        reseed: true,
        runtime: runtime.handle().clone(),
    });
    Side { _dir: dir, store, transfers, inputs, lanes }
}

fn name(text: &str) -> DatasetName {
    DatasetName::new(text).unwrap()
}

fn snap(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (a, b) = (side(&runtime), side(&runtime));
        *a.lanes.to.lock().unwrap() = Some(b.transfers.clone());
        World { runtime, a, b }
    }

    /// Writes a file on A and takes a snapshot.
    fn write(&self, short: &str, bytes: usize) -> Guid {
        let db = name("vault/db");
        if self.a.store.dataset(&db).is_err() {
            self.a.store.create(&db, DatasetKind::Directory).unwrap();
        }
        let path = self.a.store.activate(&db).unwrap().unwrap();
        let mut noise = vec![0u8; bytes];
        getrandom::fill(&mut noise).unwrap();
        std::fs::write(path.join(short), noise).unwrap();
        let spec = SnapshotSpec {
            names: vec![db.snapshot(short).unwrap()],
            quiesced: true,
            properties: BTreeMap::new(),
        };
        self.a.store.snapshot(&spec).unwrap()[0].guid
    }

    fn expect(&self, id: u64, short: &str, to: Guid, from: Option<Guid>, limit: Option<u64>) {
        let dataset = name("vault/recv/db");
        let spec = ReceiveSpec {
            snapshot: dataset.snapshot(short).unwrap(),
            dataset,
            to_guid: to,
            from_guid: from,
            resumable: false,
            origin: None,
        };
        self.b.transfers.expect(transfer(id), A, UNIT, spec, limit);
    }

    fn send(&self, id: u64, short: &str, from: Option<&str>) {
        let spec = SendSpec {
            from: from.map(|f| SendBase::Snapshot(snap(&format!("vault/db@{f}")))),
            to: snap(&format!("vault/db@{short}")),
            compressed: false,
            large_blocks: false,
            raw: false,
            resume: None,
        };
        self.a.transfers.start_send(transfer(id), B, UNIT, spec, false);
    }

    fn snapshots_of_b(&self) -> Vec<String> {
        match self.b.store.inventory(&name("vault/recv/db")) {
            Ok(found) => found.snapshots.iter().map(|s| s.name.short().to_owned()).collect(),
            Err(_) => Vec::new(),
        }
    }
}

fn transfer(number: u64) -> TransferId {
    TransferId { boot: 1, number }
}

type Ended = (Result<Option<Snapshot>, Failure>, u64);

fn ended(side: &Side, id: u64) -> Ended {
    match side.inputs.recv_timeout(LIMIT).unwrap() {
        Input::TransferEnded { transfer: t, outcome, stream_bytes, .. } if t == transfer(id) => {
            (outcome, stream_bytes)
        }
        other => panic!("{other:?}"),
    }
}

fn nothing_more(world: &World) {
    for side in [&world.a, &world.b] {
        assert!(side.inputs.recv_timeout(Duration::from_millis(200)).is_err(), "ended twice");
        assert!(side.transfers.running().is_empty());
    }
}

#[test]
fn a_full_send_and_an_increment_arrive_and_are_committed_before_the_sender_hears_of_it() {
    let world = World::new();
    let first = world.write("one", 3_000_000);
    world.expect(1, "one", first, None, None);
    world.send(1, "one", None);
    let (sent, sent_bytes) = ended(&world.a, 1);
    assert_eq!(sent, Ok(None));
    assert_eq!(world.snapshots_of_b(), ["one"], "the sender heard before the commit");
    let (received, received_bytes) = ended(&world.b, 1);
    assert_eq!(received.unwrap().unwrap().guid, first);
    assert_eq!(sent_bytes, received_bytes);
    assert!(sent_bytes > 3_000_000);
    let second = world.write("two", 1000);
    world.expect(2, "two", second, Some(first), None);
    world.send(2, "two", Some("one"));
    assert_eq!(ended(&world.a, 2).0, Ok(None));
    assert_eq!(ended(&world.b, 2).0.unwrap().unwrap().guid, second);
    assert_eq!(world.snapshots_of_b(), ["one", "two"]);
    let last = world.b.transfers.look();
    assert!(last.iter().all(|shown| shown.ended) && last.len() == 2);
    nothing_more(&world);
}

#[test]
fn what_nobody_expects_is_refused_and_the_sender_told() {
    let world = World::new();
    world.write("one", 1000);
    world.send(1, "one", None);
    let failure = ended(&world.a, 1).0.unwrap_err();
    assert!(failure.message.contains("does not expect"), "{failure}");
    assert_eq!(world.snapshots_of_b(), [""; 0]);
    nothing_more(&world);
}

#[test]
fn a_transfer_from_another_peer_than_the_expected_one_is_refused() {
    let world = World::new();
    let guid = world.write("one", 1000);
    let dataset = name("vault/recv/db");
    let spec = ReceiveSpec {
        snapshot: dataset.snapshot("one").unwrap(),
        dataset,
        to_guid: guid,
        from_guid: None,
        resumable: false,
        origin: None,
    };
    world.b.transfers.expect(transfer(1), B, UNIT, spec, None);
    world.send(1, "one", None);
    assert!(ended(&world.a, 1).0.is_err());
    assert_eq!(world.b.transfers.running().len(), 1, "still expected from the right one");
    world.b.transfers.cancel_all();
    assert!(ended(&world.b, 1).0.is_err());
}

#[test]
fn more_than_the_quota_leaves_is_stopped_and_named_and_nothing_is_kept() {
    let world = World::new();
    let guid = world.write("one", 3_000_000);
    world.expect(1, "one", guid, None, Some(1_000_000));
    world.send(1, "one", None);
    let failure = ended(&world.b, 1).0.unwrap_err();
    assert_eq!(failure.code, FailureCode::NotGranted);
    assert!(failure.message.contains("quota"), "{failure}");
    let told = ended(&world.a, 1).0.unwrap_err();
    assert_eq!(told.code, FailureCode::NotGranted, "{told}");
    assert_eq!(world.snapshots_of_b(), [""; 0]);
    nothing_more(&world);
}

#[test]
fn a_stream_of_another_snapshot_than_the_expected_one_is_refused_with_the_stores_reason() {
    let world = World::new();
    world.write("one", 1000);
    world.expect(1, "one", Guid(4711), None, None);
    world.send(1, "one", None);
    let failure = ended(&world.b, 1).0.unwrap_err();
    assert_eq!(failure.code, FailureCode::BadStream, "{failure}");
    assert!(ended(&world.a, 1).0.is_err());
    assert_eq!(world.snapshots_of_b(), [""; 0]);
    nothing_more(&world);
}

#[test]
fn an_increment_whose_base_is_missing_says_so_on_both_sides() {
    let world = World::new();
    let first = world.write("one", 1000);
    let second = world.write("two", 1000);
    world.expect(1, "two", second, Some(first), None);
    world.send(1, "two", Some("one"));
    let failure = ended(&world.b, 1).0.unwrap_err();
    assert!(matches!(failure.code, FailureCode::NoBase | FailureCode::NotFound), "{failure:?}");
    assert_eq!(ended(&world.a, 1).0.unwrap_err().code, failure.code);
    nothing_more(&world);
}

#[test]
fn expected_transfers_end_when_the_peer_is_lost_or_they_are_cancelled() {
    let world = World::new();
    world.expect(1, "one", Guid(1), None, None);
    world.expect(2, "two", Guid(2), None, None);
    world.b.transfers.cancel(transfer(2));
    assert_eq!(ended(&world.b, 2).0.unwrap_err().code, FailureCode::Cancelled);
    world.b.transfers.peer_lost(&B);
    world.b.transfers.peer_lost(&A);
    assert_eq!(ended(&world.b, 1).0.unwrap_err().code, FailureCode::ConnectionLost);
    nothing_more(&world);
}

#[test]
fn a_running_transfer_that_is_cancelled_on_either_side_ends_on_both() {
    for cancel_sender in [true, false] {
        let world = World::new();
        let guid = world.write("one", 60_000_000);
        world.expect(1, "one", guid, None, None);
        world.send(1, "one", None);
        let begun = Instant::now();
        while world.b.transfers.running().iter().all(|t| t.stream_bytes == 0) {
            assert!(begun.elapsed() < LIMIT);
            std::thread::sleep(Duration::from_millis(1));
        }
        let side = if cancel_sender { &world.a } else { &world.b };
        side.transfers.cancel(transfer(1));
        let (a, b) = (ended(&world.a, 1).0, ended(&world.b, 1).0);
        assert!(a.is_err() && b.is_err(), "{a:?} {b:?}");
        assert_eq!(world.snapshots_of_b(), [""; 0]);
        nothing_more(&world);
    }
}

#[test]
fn without_a_connection_a_send_ends_at_once() {
    let world = World::new();
    world.write("one", 1000);
    *world.a.lanes.to.lock().unwrap() = None;
    world.send(1, "one", None);
    assert_eq!(ended(&world.a, 1).0.unwrap_err().code, FailureCode::ConnectionLost);
    world.send(2, "no-such", None);
    assert_eq!(ended(&world.a, 2).0.unwrap_err().code, FailureCode::NotFound);
    drop(world.runtime);
}
