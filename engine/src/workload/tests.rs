//! The supervisor and a daemon that can be killed are this very test program, called again with a
//! word behind `--` that tells it what to be.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use tempfile::TempDir;

use super::*;

const ENTRY: &str = "workload::tests::entry_of_the_processes_these_tests_start";

fn again(word: &str) -> Vec<String> {
    let exe = std::env::current_exe().unwrap();
    [&exe.to_string_lossy(), ENTRY, "--exact", "--nocapture", "--", word]
        .iter()
        .map(|s| s.to_string())
        .collect()
}

#[test]
fn entry_of_the_processes_these_tests_start() {
    let args: Vec<_> = std::env::args_os().collect();
    if let Some(at) = args.iter().position(|a| a == "SUPERVISE") {
        let code = supervise::supervise(args.into_iter().skip(at + 1));
        std::process::exit(code.into());
    }
    if let Some(at) = args.iter().position(|a| a == "DAEMON") {
        let args: Vec<String> =
            args[at + 1..].iter().map(|a| a.to_string_lossy().into_owned()).collect();
        let (workloads, _exits) = workloads_in(Path::new(&args[0]));
        workloads.start(UNIT, &args[2..], &[PathBuf::from(&args[0])], args[1] == "stays").unwrap();
        println!("daemon: up");
        loop {
            std::thread::park();
        }
    }
}

const UNIT: UnitId = UnitId(0xABCD);

/// Every directory is another node, so that tests in parallel do not see each other's workloads.
fn workloads_in(dir: &Path) -> (Workloads, Receiver<Exit>) {
    let (tell, exits) = channel();
    let places = Places {
        state: dir.to_owned(),
        supervisor: again("SUPERVISE"),
        node: Fingerprint(*blake3::hash(dir.as_os_str().as_encoded_bytes()).as_bytes()),
        log_bytes: 1000,
        freeze_limit: Duration::from_secs(5),
    };
    let on_exit: OnExit = Arc::new(move |exit| {
        let _ = tell.send(exit);
    });
    (Workloads::new(places, on_exit).unwrap(), exits)
}

/// Whatever a test leaves running is killed.
struct Here {
    dir: TempDir,
    workloads: Workloads,
    exits: Receiver<Exit>,
}

impl Drop for Here {
    fn drop(&mut self) {
        let _ = self.workloads.kill(UNIT);
    }
}

impl Here {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (workloads, exits) = workloads_in(dir.path());
        Here { dir, workloads, exits }
    }

    fn start(&self, script: &str, stays: bool) -> Result<(), Failure> {
        self.workloads.start(UNIT, &sh(script), &[self.dir.path().into()], stays)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.dir.path().join(file)).unwrap_or_default()
    }

    fn wait_for(&self, what: &str, mut good: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !good(self) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what} did not come about");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_until_gone(&self) {
        self.wait_for("the end of all members", |h| h.workloads.members(UNIT).is_empty());
    }

    fn count(&self) -> usize {
        self.workloads.members(UNIT).processes.len()
    }

    /// Starts a daemon of its own on the same state, lets it start the script, and kills it.
    fn start_in_daemon_and_kill_it(&self, script: &str, stays: bool, failpoint: Option<&str>) {
        let again = again("DAEMON");
        let mut command = Command::new(&again[0]);
        command
            .args(&again[1..])
            .arg(self.dir.path())
            .arg(if stays { "stays" } else { "leaves" })
            .args(sh(script))
            .stdout(Stdio::piped());
        if let Some(point) = failpoint {
            command.env(failpoint_variable(), point);
        }
        let mut daemon = command.spawn().unwrap();
        let lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
        let up = lines.map_while(Result::ok).any(|line| line.contains("daemon: up"));
        assert_eq!(up, failpoint.is_none());
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }
}

fn failpoint_variable() -> &'static str {
    crate::failpoint::VARIABLE
}

fn sh(script: &str) -> Vec<String> {
    vec!["/bin/sh".into(), "-c".into(), script.into()]
}

const FOREVER: &str = "echo $$ >> pids; while :; do sleep 0.05; done";

#[test]
fn it_runs_in_its_path_with_its_environment_and_its_log() {
    let here = Here::new();
    here.start("pwd; echo \"$FLOCKER_UNIT $FLOCKER_VOLUME_PATH\"; echo oops >&2; exit 3", false)
        .unwrap();
    let exit = here.exits.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!((exit.unit, exit.success), (UNIT, false));
    assert!(exit.status.contains('3'), "{}", exit.status);
    let dir = here.dir.path().canonicalize().unwrap();
    let log = here.read(&format!("logs/{UNIT}.log"));
    assert!(log.contains(&*dir.to_string_lossy()), "{log}");
    assert!(log.contains(&UNIT.to_string()) && log.contains("oops"), "{log}");
    assert!(!here.workloads.probe(UNIT).unwrap());
}

#[test]
fn a_second_start_is_no_second_workload() {
    let here = Here::new();
    here.start(FOREVER, false).unwrap();
    here.wait_for("the first line", |h| !h.read("pids").is_empty());
    here.start(FOREVER, false).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(here.read("pids").lines().count(), 1);
}

#[test]
fn a_command_that_does_not_exist_is_an_error_that_names_it() {
    for stays in [false, true] {
        let here = Here::new();
        let error = here
            .workloads
            .start(UNIT, &["/no/such/program".into()], &[here.dir.path().into()], stays)
            .unwrap_err();
        assert!(error.message.contains("/no/such/program"), "{error}");
        assert!(error.message.contains("No such file"), "{error}");
        assert!(here.workloads.members(UNIT).is_empty());
    }
}

#[test]
fn stopping_asks_first_and_nobody_is_told_of_an_exit() {
    for stays in [false, true] {
        let here = Here::new();
        here.start(
            "trap 'echo bye > end; exit 0' TERM; echo up > up; while :; do sleep 0.02; done",
            stays,
        )
        .unwrap();
        here.wait_for("the trap", |h| !h.read("up").is_empty());
        here.workloads.stop(UNIT, Duration::from_secs(10)).unwrap();
        assert_eq!(here.read("end"), "bye\n");
        assert!(here.workloads.members(UNIT).is_empty());
        assert!(here.exits.recv_timeout(Duration::from_millis(300)).is_err());
    }
}

#[test]
fn what_ignores_sigterm_is_killed_after_the_limit() {
    for stays in [false, true] {
        let here = Here::new();
        here.start("trap '' TERM; echo up > up; while :; do sleep 0.02; done", stays).unwrap();
        here.wait_for("the trap", |h| !h.read("up").is_empty());
        let begun = Instant::now();
        here.workloads.stop(UNIT, Duration::from_millis(300)).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(300));
        assert!(here.workloads.members(UNIT).is_empty());
    }
}

#[test]
fn children_that_went_into_the_background_are_members_and_are_stopped() {
    let here = Here::new();
    // One in a session of its own, one without the environment, one orphan; the command itself ends.
    here.start("setsid sleep 300 & env -i sleep 301 & (sleep 302 &); echo up > up; exit 0", false)
        .unwrap();
    here.wait_for("all three", |h| !h.read("up").is_empty() && h.count() >= 2);
    assert!(here.workloads.probe(UNIT).unwrap(), "what it left behind runs");
    here.workloads.stop(UNIT, Duration::from_secs(5)).unwrap();
    assert!(here.workloads.members(UNIT).is_empty());
}

#[test]
fn with_a_supervisor_that_stays_even_an_orphan_without_environment_is_found() {
    let here = Here::new();
    here.start("(env -i setsid sleep 303 &) ; echo up > up; sleep 304", true).unwrap();
    here.wait_for("both", |h| !h.read("up").is_empty() && h.count() == 3);
    here.workloads.stop(UNIT, Duration::from_secs(5)).unwrap();
    let left = proc::all().into_iter().filter(|p| {
        p.command == "sleep"
            && fs::read(format!("/proc/{}/cmdline", p.pid)).is_ok_and(|c| c == *b"sleep\x00303\x00")
    });
    assert_eq!(left.count(), 0);
}

#[test]
fn a_killed_daemon_leaves_it_running_and_the_next_one_adopts_it() {
    let here = Here::new();
    here.start_in_daemon_and_kill_it(FOREVER, false, None);
    here.wait_for("the first line", |h| !h.read("pids").is_empty());
    assert!(here.workloads.probe(UNIT).unwrap());
    here.start(FOREVER, false).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(here.read("pids").lines().count(), 1, "adopted, not started again");
    let main = here.workloads.members(UNIT).processes[0].clone();
    proc::signal(&main, Signal::KILL).unwrap();
    let exit = here.exits.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(!exit.success && exit.status.contains("adopted"), "{exit:?}");
}

#[test]
fn a_killed_daemon_takes_it_down_where_that_is_set() {
    let here = Here::new();
    let script = "setsid sleep 305 & echo $$ >> pids; trap '' TERM; while :; do sleep 0.05; done";
    here.start_in_daemon_and_kill_it(script, true, None);
    here.wait_until_gone();
    assert_eq!(here.read("pids").lines().count(), 1);
    assert!(!here.workloads.probe(UNIT).unwrap());
}

#[test]
fn a_daemon_killed_before_the_record_is_durable_has_started_nothing() {
    for point in ["after-spawn", "after-record"] {
        for stays in [false, true] {
            let here = Here::new();
            here.start_in_daemon_and_kill_it(FOREVER, stays, Some(point));
            here.wait_until_gone();
            assert_eq!(here.read("pids"), "", "{point}");
            here.start(FOREVER, stays).unwrap();
            here.wait_for("the first line", |h| !h.read("pids").is_empty());
            assert_eq!(here.read("pids").lines().count(), 1, "{point}");
        }
    }
}

#[test]
fn a_process_under_a_recorded_pid_that_is_not_the_recorded_one_is_a_stranger() {
    let here = Here::new();
    let mut stranger = Command::new("sleep").arg("306").spawn().unwrap();
    let stat = proc::stat(stranger.id()).unwrap();
    let record = |start_time, boot_id: &str| PidRecord {
        pid: stat.pid,
        start_time,
        boot_id: boot_id.into(),
        stays: false,
    };
    let boot = proc::boot_id().unwrap();
    for (start_time, boot_id, ours) in [
        (stat.start_time + 1, boot.as_str(), false),
        (stat.start_time, "another boot", false),
        (stat.start_time, boot.as_str(), true),
    ] {
        here.workloads.records.store(UNIT, &record(start_time, boot_id)).unwrap();
        assert_eq!(here.workloads.members(UNIT).is_empty(), !ours);
    }
    here.workloads.records.remove(UNIT);
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn a_frozen_workload_stands_still_and_goes_on_afterwards() {
    let here = Here::new();
    let script = "for i in 1 2 3; do (while :; do echo $i >> ticks; done) & done; wait";
    here.start(script, false).unwrap();
    here.wait_for("ticks of each", |h| {
        let ticks = h.read("ticks");
        ["1", "2", "3"].iter().all(|i| ticks.contains(i))
    });
    let frozen = here.workloads.freeze(UNIT).unwrap();
    assert!(frozen.count() >= 4, "{}", frozen.count());
    let before = here.read("ticks").len();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(here.read("ticks").len(), before);
    assert!(frozen.thaw() >= 200);
    here.wait_for("more ticks", |h| h.read("ticks").len() > before);
}

#[test]
fn a_workload_that_forks_all_the_time_is_frozen_whole() {
    let here = Here::new();
    here.start("while :; do (echo x >> ticks) & (echo y >> ticks); done", false).unwrap();
    here.wait_for("ticks", |h| h.read("ticks").len() > 40);
    for _ in 0..10 {
        let frozen = here.workloads.freeze(UNIT).unwrap();
        let before = here.read("ticks").len();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(here.read("ticks").len(), before);
        drop(frozen);
    }
}

#[test]
fn a_parent_that_waits_in_vfork_for_a_stopped_child_does_not_keep_the_freeze_waiting() {
    let here = Here::new();
    // dash starts commands by vfork: the loop spends much of its time in it.
    here.start("while :; do /bin/true; echo x >> ticks; done", false).unwrap();
    here.wait_for("ticks", |h| !h.read("ticks").is_empty());
    for _ in 0..50 {
        let frozen = here.workloads.freeze(UNIT).unwrap();
        assert!(frozen.thaw() < 1000);
    }
}

#[test]
fn a_workload_left_frozen_by_a_daemon_that_died_is_thawed_when_it_is_adopted() {
    let here = Here::new();
    here.start_in_daemon_and_kill_it("while :; do echo x >> ticks; sleep 0.01; done", false, None);
    here.wait_for("ticks", |h| !h.read("ticks").is_empty());
    std::mem::forget(here.workloads.freeze(UNIT).unwrap());
    let before = here.read("ticks").len();
    assert!(here.workloads.probe(UNIT).unwrap());
    here.wait_for("more ticks", |h| h.read("ticks").len() > before);
}

#[test]
fn somebody_else_with_a_file_open_for_writing_is_seen_and_a_reader_is_not() {
    let here = Here::new();
    let path = here.dir.path();
    fs::write(path.join("f"), "x").unwrap();
    here.start("exec 3>>f; while :; do sleep 0.05; done", false).unwrap();
    let mut reader = Command::new("sleep")
        .arg("307")
        .stdin(fs::File::open(path.join("f")).unwrap())
        .spawn()
        .unwrap();
    assert_eq!(here.workloads.outsiders(UNIT, &[path]), []);
    let file = fs::OpenOptions::new().append(true).open(path.join("f")).unwrap();
    let mut writer = Command::new("sleep").arg("308").stdin(file).spawn().unwrap();
    let seen = here.workloads.outsiders(UNIT, &[path]);
    assert_eq!(seen.iter().map(|h| h.pid).collect::<Vec<_>>(), [writer.id()]);
    for child in [&mut reader, &mut writer] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_large_log_is_set_aside_at_the_next_start() {
    let here = Here::new();
    here.start("head -c 2000 /dev/zero", false).unwrap();
    here.exits.recv_timeout(Duration::from_secs(20)).unwrap();
    here.start("echo new", false).unwrap();
    here.exits.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(here.read(&format!("logs/{UNIT}.log.1")).len() >= 2000);
    assert!(here.read(&format!("logs/{UNIT}.log")).contains("new"));
}
