//! Actions on a real vault.

use std::sync::mpsc::{Receiver, Sender, channel};

use flocker_core::Input;
use flocker_core::ids::{AttemptId, Epoch, Fingerprint, VolumeId};
use flocker_core::io::MirrorState;
use flocker_core::record::WorkloadRecord;
use flocker_store::{DatasetKind, HoldTag, SnapshotName};
use flocker_vault::Vault;
use tempfile::TempDir;

use super::*;
use crate::driver::{self, Programs};
use crate::workload::{OnExit, Places};

const UNIT: UnitId = UnitId(77);
const LIMIT: Duration = Duration::from_secs(30);

struct Here {
    _dir: TempDir,
    tools: Arc<Tools>,
    ops: Ops,
    tell: Sender<Input>,
    inputs: Receiver<Input>,
    last_op: std::cell::Cell<u64>,
}

fn dataset(name: &str) -> DatasetName {
    DatasetName::new(format!("vault/{name}")).unwrap()
}

fn snapshot(name: &str) -> SnapshotName {
    name.parse().unwrap()
}

impl Here {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::create(dir.path().join("vault")).unwrap();
        let places = Places {
            state: dir.path().join("state"),
            supervisor: Vec::new(),
            node: Fingerprint([1; 32]),
            log_bytes: 1000,
            freeze_limit: Duration::from_secs(5),
            isolated: false,
        };
        let ordinary = crate::workload::tests::again("SUPERVISE");
        let drills = Places {
            state: dir.path().join("state/drill"),
            supervisor: drill::supervisor(&ordinary),
            isolated: true,
            ..places.clone()
        };
        let on_exit: OnExit = Arc::new(|_| {});
        let tools = Arc::new(Tools {
            store: Arc::new(vault),
            drills: Workloads::new(drills, on_exit.clone()).unwrap(),
            programs: Programs::new(
                Workloads::new(places, on_exit.clone()).unwrap(),
                driver::Places { state: dir.path().join("state"), ..driver::Places::default() },
                on_exit,
            ),
            clock: Clock::start(),
            fencing: Fencing::new(None, dir.path()),
            paths: Mutex::default(),
            fuzzy: Mutex::default(),
        });
        let (tell, inputs) = channel();
        let report: Report = {
            let tell = tell.clone();
            Arc::new(move |input| tell.send(input).unwrap())
        };
        let ops = Ops::new(Arc::clone(&tools), 2, report);
        Here { _dir: dir, tools, ops, tell, inputs, last_op: std::cell::Cell::new(0) }
    }

    fn begin(&self, action: Action) -> OpId {
        self.last_op.set(self.last_op.get() + 1);
        let op = OpId(self.last_op.get());
        self.ops.run(op, UNIT, action);
        op
    }

    fn act(&self, action: Action) -> Result<Outcome, Failure> {
        let op = self.begin(action);
        match self.inputs.recv_timeout(LIMIT).unwrap() {
            Input::Done { op: done, outcome } if done == op => outcome,
            other => panic!("{other:?}"),
        }
    }

    /// A directory volume with a file in it, active.
    fn volume(&self, name: &str) -> PathBuf {
        self.tools.store.create(&dataset(name), DatasetKind::Directory).unwrap();
        match self.act(Action::Activate { datasets: vec![dataset(name)] }).unwrap() {
            Outcome::Activated { paths } => {
                let path = paths[0].clone().unwrap();
                std::fs::write(path.join("f"), "hello").unwrap();
                path
            }
            other => panic!("{other:?}"),
        }
    }

    fn take(&self, name: &str, freeze: bool, quiesced: bool) -> flocker_store::Snapshot {
        let names = vec![snapshot(name)];
        match self.act(Action::Snapshot { names, freeze, quiesced }).unwrap() {
            Outcome::Snapshots { mut snapshots, .. } => snapshots.remove(0),
            other => panic!("{other:?}"),
        }
    }

    fn snapshots(&self, name: &str) -> Vec<String> {
        let inventory = self.tools.store.inventory(&dataset(name)).unwrap();
        inventory.snapshots.iter().map(|s| s.name.short().to_owned()).collect()
    }
}

fn mirror_state() -> MirrorState {
    let owner = Fingerprint([3; 32]);
    MirrorState {
        unit: UNIT,
        volume: VolumeId(5),
        epoch: Epoch { number: 4, owner, attempt: AttemptId { issuer: owner, number: 2 } },
        state: "serving".into(),
    }
}

#[test]
fn what_does_not_exist_is_inspected_as_nothing_and_has_used_nothing() {
    let here = Here::new();
    let outcome =
        here.act(Action::Inspect { datasets: vec![dataset("no/such")], streams: true }).unwrap();
    let Outcome::Inspected(found) = outcome else { panic!() };
    assert_eq!((found[0].info.is_none(), found[0].mirror.is_none()), (true, true));
    assert!(found[0].streams.is_some(), "and yet it is known what could be received there");
    here.volume("db");
    match here.act(Action::Room { root: dataset("recv/b") }).unwrap() {
        Outcome::Room { used_bytes, available_bytes } => {
            assert_eq!(used_bytes, 0);
            assert!(available_bytes > 0);
        }
        other => panic!("{other:?}"),
    }
}

/// A quota once counted nothing in a vault, where what a grant names need not be a dataset.
#[test]
fn what_is_below_a_name_that_is_no_dataset_has_used_what_all_of_it_uses() {
    let here = Here::new();
    for name in ["recv/b/db", "recv/b/wal", "recv/bb"] {
        here.volume(name);
        here.take(&format!("vault/{name}@s1"), false, true);
    }
    let used = |root: &str| match here.act(Action::Room { root: dataset(root) }).unwrap() {
        Outcome::Room { used_bytes, .. } => used_bytes,
        other => panic!("{other:?}"),
    };
    let (db, wal) = (used("recv/b/db"), used("recv/b/wal"));
    assert!(db > 0 && wal > 0, "{db} and {wal}");
    assert_eq!(used("recv/b"), db + wal);
}

#[test]
fn a_mirror_is_read_back_and_does_not_follow_a_dataset_with_another_guid() {
    let here = Here::new();
    here.volume("db");
    let mirrors = vec![(dataset("db"), mirror_state())];
    here.act(Action::Mirror { mirrors }).unwrap();
    let datasets = vec![dataset("db")];
    let Outcome::Inspected(found) = here.act(Action::Inspect { datasets, streams: false }).unwrap()
    else {
        panic!()
    };
    let mirror = found[0].mirror.clone().unwrap();
    assert_eq!((mirror.unit, mirror.epoch), (UNIT, mirror_state().epoch));
    assert_eq!(mirror.dataset_guid, found[0].info.as_ref().unwrap().guid);
    // The same properties on another dataset are no claim.
    here.volume("copy");
    let values = here.tools.store.user_properties(&dataset("db")).unwrap();
    let changes = values.into_iter().map(|(name, p)| (name, Some(p.value))).collect();
    here.tools.store.set_user_properties(&dataset("copy"), &changes).unwrap();
    let boot = crate::store::scan(here.tools.store.as_ref(), Vec::new()).unwrap();
    assert_eq!(boot.orphans.keys().collect::<Vec<_>>(), [&dataset("db")]);
}

#[test]
fn a_snapshot_with_nobody_writing_is_whole_and_one_with_a_stranger_writing_is_fuzzy() {
    let here = Here::new();
    let path = here.volume("db");
    assert!(!here.take("vault/db@a", true, false).fuzzy);
    let file = std::fs::File::create(path.join("g")).unwrap();
    let mut stranger = std::process::Command::new("sleep").arg("30").stdout(file).spawn().unwrap();
    assert!(here.take("vault/db@b", true, false).fuzzy);
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert!(!here.take("vault/db@c", true, false).fuzzy);
}

#[test]
fn a_fenced_volume_is_proven_unwritten_and_has_no_path() {
    let here = Here::new();
    let path = here.volume("db");
    assert_eq!(here.tools.paths().len(), 1);
    here.act(Action::Fence { datasets: vec![dataset("db")] }).unwrap();
    assert!(here.tools.paths().is_empty() && !path.exists());
    here.take("vault/db@final", false, true);
    let snapshots = vec![snapshot("vault/db@final")];
    here.act(Action::VerifyUnwritten { snapshots }).unwrap();
    here.act(Action::Activate { datasets: vec![dataset("db")] }).unwrap();
    assert_eq!(std::fs::read_to_string(path.join("f")).unwrap(), "hello");
}

#[test]
fn a_volume_that_somebody_holds_is_not_fenced_and_the_holder_is_named() {
    let here = Here::new();
    let path = here.volume("db");
    let mut holder =
        std::process::Command::new("sleep").arg("30").current_dir(&path).spawn().unwrap();
    let failure = here.act(Action::Fence { datasets: vec![dataset("db")] }).unwrap_err();
    assert_eq!(failure.code, FailureCode::Busy);
    assert!(failure.message.contains(&holder.id().to_string()), "{failure}");
    assert!(path.exists());
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn tidying_holds_before_it_lets_go_and_one_in_the_way_does_not_keep_the_others() {
    let here = Here::new();
    here.volume("db");
    for name in ["a", "b", "c", "d"] {
        here.take(&format!("vault/db@{name}"), false, true);
    }
    let ours = HoldTag("flocker-repl:x".into());
    let foreign = HoldTag("somebody".into());
    here.tools.store.hold(&foreign, &[snapshot("vault/db@b")]).unwrap();
    here.act(Action::Tidy {
        tag: ours.clone(),
        hold: vec![snapshot("vault/db@d")],
        release: vec![],
        destroy: vec![snapshot("vault/db@a"), snapshot("vault/db@b"), snapshot("vault/db@c")],
    })
    .unwrap();
    assert_eq!(here.snapshots("db"), ["b", "d"], "what somebody else holds stays, and that alone");
    assert_eq!(here.tools.store.holds(&snapshot("vault/db@d")).unwrap(), [ours]);
}

#[test]
fn giving_back_takes_away_what_is_ours_and_nothing_else() {
    let here = Here::new();
    here.volume("db");
    for name in ["mine", "fr-1", "fr-2", "fr-3"] {
        here.take(&format!("vault/db@{name}"), false, true);
    }
    let tag = HoldTag("flocker-repl:x".into());
    here.tools.store.hold(&tag, &[snapshot("vault/db@fr-1")]).unwrap();
    here.act(Action::Mirror { mirrors: vec![(dataset("db"), mirror_state())] }).unwrap();
    let give_back = |keep_newest| Action::GiveBack {
        datasets: vec![dataset("db"), dataset("gone")],
        tag: tag.clone(),
        prefix: "fr-".into(),
        keep_newest,
        program: None,
        at_rest: false,
    };
    here.act(give_back(true)).unwrap();
    assert_eq!(here.snapshots("db"), ["mine", "fr-3"]);
    here.act(give_back(false)).unwrap();
    assert_eq!(here.snapshots("db"), ["mine"]);
    assert!(here.tools.store.user_properties(&dataset("db")).unwrap().is_empty());
}

#[test]
fn changes_of_several_volumes_are_put_together() {
    let here = Here::new();
    let path = here.volume("a");
    here.volume("b");
    // A file as young as the clock's grain may have been written again unseen: old ones only.
    std::thread::sleep(Duration::from_millis(100));
    here.take("vault/a@1", false, true);
    here.take("vault/b@1", false, true);
    let changed = || {
        let since = vec![snapshot("vault/a@1"), snapshot("vault/b@1")];
        here.act(Action::Changed { since }).unwrap()
    };
    assert_eq!(changed(), Outcome::Changed(flocker_store::Change::Unchanged));
    std::fs::write(path.join("new"), "x").unwrap();
    assert!(matches!(
        changed(),
        Outcome::Changed(flocker_store::Change::Changed { .. } | flocker_store::Change::Unknown)
    ));
}

#[test]
fn actions_of_one_unit_keep_their_order_and_those_of_others_do_not_wait() {
    let here = Here::new();
    here.volume("a");
    here.volume("b");
    // A fence and an activation in turn: any other order would end differently.
    let mut order = Vec::new();
    for _ in 0..20 {
        order.push(here.begin(Action::Fence { datasets: vec![dataset("a")] }));
        order.push(here.begin(Action::Activate { datasets: vec![dataset("a")] }));
    }
    let other = OpId(1000);
    here.ops.run(other, UnitId(78), Action::Activate { datasets: vec![dataset("b")] });
    let mut done = Vec::new();
    for _ in 0..=order.len() {
        match here.inputs.recv_timeout(LIMIT).unwrap() {
            Input::Done { op, outcome } => {
                outcome.unwrap();
                done.push(op);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(done.iter().position(|op| *op == other).unwrap() < order.len());
    done.retain(|op| *op != other);
    assert_eq!(done, order);
}

#[test]
fn many_actions_all_end_though_only_two_run_at_a_time() {
    let here = Here::new();
    here.volume("a");
    let mut begun: Vec<_> = (0..200u64)
        .map(|i| {
            here.ops.run(
                OpId(500 + i),
                UnitId(u128::from(i)),
                Action::Inspect { datasets: vec![dataset("a")], streams: false },
            );
            OpId(500 + i)
        })
        .collect();
    while !begun.is_empty() {
        match here.inputs.recv_timeout(LIMIT).unwrap() {
            Input::Done { op, .. } => begun.retain(|b| *b != op),
            other => panic!("{other:?}"),
        }
    }
    here.ops.drain(LIMIT);
    here.tell.send(Input::Tick).unwrap();
    here.begin(Action::ProbeWorkload { program: None });
    assert_eq!(here.inputs.recv_timeout(LIMIT).unwrap(), Input::Tick);
    assert!(here.inputs.recv_timeout(Duration::from_millis(100)).is_err(), "begun after the end");
}

fn drilled(here: &Here, command: &str, check: &str) -> (Vec<String>, Option<Failure>) {
    let sh = |script: &str| vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()];
    let check = flocker_core::record::HealthCheck::Command(sh(check));
    let health = Some(flocker_core::record::Health { check, limit_ms: 3000 });
    let workload = WorkloadRecord { health, ..WorkloadRecord::process(sh(command)) };
    let snapshots = vec![snapshot("vault/db@a")];
    let action = Action::Drill { name: "db".into(), snapshots, workload: Some(workload) };
    match here.act(action).unwrap() {
        Outcome::Drilled { parts_ms, trouble } => {
            println!("parts: {parts_ms:?}");
            (parts_ms.into_iter().map(|(name, _)| name).collect(), trouble)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_drill_writes_its_clone_and_nothing_else_and_leaves_nothing_behind() {
    let here = Here::new();
    let path = here.volume("db");
    here.take("vault/db@a", false, true);
    let (parts, trouble) =
        drilled(&here, "cat f > g; exec sleep 319", "grep -q hello \"$FLOCKER_VOLUME_PATH/g\"");
    match rustix::process::geteuid().is_root() {
        true => {
            assert_eq!(trouble, None);
            assert_eq!(parts, ["clone", "start", "health", "stop", "remove"]);
        }
        false => assert!(trouble.unwrap().message.contains("root")),
    }
    // A check that succeeds might be asked before the end has come.
    let (_, trouble) = drilled(&here, "exit 3", "false");
    assert!(trouble.is_some());
    let (_, trouble) = drilled(&here, "sleep 320", "echo deaf; false");
    assert!(trouble.is_some());
    assert!(!path.join("g").exists());
    let left = here.tools.store.datasets().unwrap();
    assert!(left.iter().all(|info| !info.name.as_str().contains("drill")), "{left:?}");
    assert!(!here.tools.drills.runs(UNIT));
}

#[test]
fn clones_that_a_drill_left_behind_are_removed_at_the_next_start_and_nothing_else_is() {
    let here = Here::new();
    here.volume("db");
    here.volume("drill-mine");
    here.take("vault/db@a", false, true);
    let clone = dataset("drill-db");
    here.tools
        .store
        .clone_snapshot(&snapshot("vault/db@a"), &clone, flocker_store::CloneAccess::Writable)
        .unwrap();
    drill::clean_up(&here.tools, &[UNIT]);
    assert!(here.tools.store.dataset(&clone).is_err());
    assert!(here.tools.store.dataset(&dataset("drill-mine")).is_ok());
}

#[test]
fn what_has_nothing_in_common_is_renamed_as_a_whole_and_its_claims_and_holds_stay_with_neither() {
    let here = Here::new();
    here.volume("db");
    here.take("vault/db@s", false, true);
    here.act(Action::Fence { datasets: vec![dataset("db")] }).unwrap();
    let tag = HoldTag("flocker-repl:x".into());
    here.tools.store.hold(&tag, &[snapshot("vault/db@s")]).unwrap();
    here.act(Action::Mirror { mirrors: vec![(dataset("db"), mirror_state())] }).unwrap();
    let away = || Action::SetAside {
        keep: Vec::new(),
        away: vec![dataset("db")],
        tag: tag.clone(),
        wall_ms: 1_795_694_701_000,
    };
    let Outcome::SetAside { aside } = here.act(away()).unwrap() else { panic!() };
    let aside = aside[0].clone().unwrap();
    assert!(aside.as_str().starts_with("vault/db-diverged-"), "{aside}");
    assert!(here.tools.store.dataset(&dataset("db")).is_err());
    assert!(here.tools.store.holds(&aside.snapshot("s").unwrap()).unwrap().is_empty());
    let boot = crate::store::scan(here.tools.store.as_ref(), Vec::new()).unwrap();
    assert!(boot.orphans.is_empty(), "{:?}", boot.orphans);
    // Asked again after a crash there is nothing to do.
    assert_eq!(here.act(away()).unwrap(), Outcome::SetAside { aside: vec![None] });
}

#[test]
fn what_lies_below_does_not_go_along() {
    let here = Here::new();
    here.tools.store.create(&dataset("up"), DatasetKind::Filesystem).unwrap();
    here.tools.store.create(&dataset("up/below"), DatasetKind::Directory).unwrap();
    let tag = HoldTag("flocker-repl:x".into());
    let away = Action::SetAside { keep: vec![], away: vec![dataset("up")], tag, wall_ms: 1 };
    assert_eq!(here.act(away).unwrap_err().code, FailureCode::Busy);
}
