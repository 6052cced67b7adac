//! The supervisor and a daemon that can be killed are this very test program, called again with a
//! word behind `--` that tells it what to be.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use tempfile::TempDir;

use super::*;

const ENTRY: &str = "workload::tests::entry_of_the_processes_these_tests_start";

/// This test program as another: for tests of other modules, too.
pub(crate) fn again(word: &str) -> Vec<String> {
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
        let paths = [PathBuf::from(&args[0])];
        let stays = args[1] == "stays";
        let lease = args[1].strip_prefix("lease=").map(|ms| lease_of(ms.parse().unwrap()));
        let start = Start { command: &args[2..], paths: &paths, stays, health: None, lease };
        workloads.start(UNIT, &start).unwrap();
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
        isolated: false,
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
        self.start_command(&sh(script), stays, None)
    }

    fn start_leased(&self, script: &str, ms: u64, stays: bool) -> Result<Deadline, Failure> {
        let paths = [self.dir.path().into()];
        let lease = lease_of(ms);
        let command = sh(script);
        let start =
            Start { command: &command, paths: &paths, stays, health: None, lease: Some(lease) };
        self.workloads.start(UNIT, &start).map(|()| lease)
    }

    fn start_command(
        &self,
        command: &[String],
        stays: bool,
        health: Option<&Health>,
    ) -> Result<(), Failure> {
        let paths = [self.dir.path().into()];
        self.workloads.start(UNIT, &Start { command, paths: &paths, stays, health, lease: None })
    }

    fn stop(&self, limit: Duration) {
        self.workloads.stop(UNIT, Signal::TERM, limit).unwrap();
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

    /// Starts a daemon of its own on the same state, lets it start the script, and kills it: at the
    /// failpoint, else once the script has written its first line into `pids`.
    fn start_in_daemon_and_kill_it(&self, script: &str, stays: bool, failpoint: Option<&str>) {
        let how = if stays { "stays" } else { "leaves" };
        self.start_in_daemon_and_kill(script, how, failpoint);
    }

    fn start_in_daemon_and_kill(&self, script: &str, how: &str, failpoint: Option<&str>) {
        let again = again("DAEMON");
        let mut command = Command::new(&again[0]);
        command
            .args(&again[1..])
            .arg(self.dir.path())
            .arg(how)
            .args(sh(script))
            .stdout(Stdio::piped());
        if let Some(point) = failpoint {
            command.env(failpoint_variable(), point);
        }
        let mut daemon = command.spawn().unwrap();
        let lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
        let up = lines.map_while(Result::ok).any(|line| line.contains("daemon: up"));
        assert_eq!(up, failpoint.is_none());
        if up {
            self.wait_for("the first line", |h| !h.read("pids").is_empty());
        }
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }
}

fn lease_of(ms: u64) -> Deadline {
    Deadline::after(Duration::from_millis(ms))
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
        let error = here.start_command(&["/no/such/program".into()], stays, None).unwrap_err();
        assert_eq!(error.code, FailureCode::NotStarted);
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
        here.stop(Duration::from_secs(10));
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
        here.stop(Duration::from_millis(300));
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
    here.stop(Duration::from_secs(5));
    assert!(here.workloads.members(UNIT).is_empty());
}

#[test]
fn with_a_supervisor_that_stays_even_an_orphan_without_environment_is_found() {
    let here = Here::new();
    here.start("(env -i setsid sleep 303 &) ; echo up > up; sleep 304", true).unwrap();
    here.wait_for("both", |h| !h.read("up").is_empty() && h.count() == 3);
    here.stop(Duration::from_secs(5));
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
        leased: false,
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
    here.start_in_daemon_and_kill_it("while :; do echo x >> pids; sleep 0.01; done", false, None);
    std::mem::forget(here.workloads.freeze(UNIT).unwrap());
    let before = here.read("pids").len();
    assert!(here.workloads.probe(UNIT).unwrap());
    here.wait_for("more lines", |h| h.read("pids").len() > before);
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

/// What was written to `log` by each process, in order of time.
const TALLY: &str = "trap 'echo main >> log; sleep 0.1; exit 0' INT; echo up > up; ";

#[test]
fn the_main_process_alone_is_asked_while_it_lives_and_only_once() {
    for stays in [false, true] {
        let here = Here::new();
        // The helper is no shell's child to wait for: perl, as the main process, is none.
        let helper = "$SIG{INT} = sub { open F, '>>log'; print F qq(helper\\n); close F; };";
        let main = format!(
            "if (!fork) {{ {helper} open F, '>up'; print F 'up'; close F; sleep 1 while getppid() != 1; }} \
             else {{ $p = 1; $SIG{{INT}} = sub {{ open F, '>>log'; print F qq(main\\n); close F; \
             select undef,undef,undef,0.2; kill 'KILL', $child; exit 0 }}; sleep 1 while 1; }}"
        )
        .replace("if (!fork)", "$child = fork; if (!$child)");
        here.start_command(&["perl".into(), "-e".into(), main], stays, None).unwrap();
        here.wait_for("both", |h| !h.read("up").is_empty());
        std::thread::sleep(Duration::from_millis(50));
        here.workloads.stop(UNIT, Signal::INT, Duration::from_secs(20)).unwrap();
        assert_eq!(here.read("log"), "main\n");
    }
}

#[test]
fn a_shell_that_waits_for_its_command_is_no_obstacle() {
    let here = Here::new();
    here.start(&format!("{TALLY} sleep 312; echo after >> log"), false).unwrap();
    here.wait_for("the trap", |h| !h.read("up").is_empty() && h.count() == 2);
    here.workloads.stop(UNIT, Signal::INT, Duration::from_secs(200)).unwrap();
    assert_eq!(here.read("log"), "main\n");
}

fn health(script: &str, limit_ms: u64) -> Health {
    Health { check: flocker_core::record::HealthCheck::Command(sh(script)), limit_ms }
}

#[test]
fn a_start_returns_once_the_check_succeeds() {
    let here = Here::new();
    let file = here.dir.path().join("ready");
    let check = health(&format!("test -e {}", file.display()), 20_000);
    here.start_command(&sh("sleep 0.1; touch ready; sleep 313"), false, Some(&check)).unwrap();
    assert!(file.exists() && here.workloads.runs(UNIT));
}

#[test]
fn what_is_not_healthy_in_time_is_stopped_again() {
    let here = Here::new();
    let error = here
        .start_command(&sh("sleep 314"), false, Some(&health("echo not yet; false", 200)))
        .unwrap_err();
    assert_eq!(error.code, FailureCode::Unhealthy);
    assert!(error.message.contains("not yet"), "{error}");
    assert!(!here.workloads.runs(UNIT));
    assert!(here.exits.recv_timeout(Duration::from_millis(200)).is_err());
}

#[test]
fn what_ends_before_it_is_healthy_is_a_failure_at_once() {
    let here = Here::new();
    let begun = Instant::now();
    let error =
        here.start_command(&sh("exit 0"), true, Some(&health("false", 500_000))).unwrap_err();
    assert_eq!(error.code, FailureCode::Unhealthy);
    assert!(begun.elapsed() < Duration::from_secs(400));
}

#[test]
fn somebody_elses_open_port_does_not_make_a_workload_healthy_that_has_ended() {
    let here = Here::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let check = flocker_core::record::HealthCheck::Tcp(listener.local_addr().unwrap());
    here.start_command(
        &sh("sleep 315"),
        false,
        Some(&Health { check: check.clone(), limit_ms: 20_000 }),
    )
    .unwrap();
    here.stop(Duration::from_secs(5));
    drop(listener);
    let error = here
        .start_command(&sh("sleep 316"), false, Some(&Health { check, limit_ms: 100 }))
        .unwrap_err();
    assert_eq!(error.code, FailureCode::Unhealthy);
}

#[test]
fn a_hook_is_told_the_unit_and_writes_to_its_log() {
    let here = Here::new();
    let hook = sh("echo \"hook of $FLOCKER_UNIT\"; exit 4");
    let error = here.workloads.hook(UNIT, &hook, &[], Duration::from_secs(20)).unwrap_err();
    assert!(error.message.contains("exit status: 4"), "{error}");
    assert!(here.read(&format!("logs/{UNIT}.log")).contains(&format!("hook of {UNIT}")));
}

/// Writes the boot clock's time again and again, and would go on for ever.
const CLOCKS: &str =
    "trap '' TERM INT; while :; do cut -d' ' -f1 /proc/uptime > now && mv now last; done";

/// Milliseconds of the boot clock at which it last ran, to a hundredth of a second.
fn last_ms(here: &Here) -> i64 {
    let seconds: f64 = here.read("last").trim().parse().unwrap();
    (seconds * 1000.0) as i64
}

#[test]
fn a_lease_that_is_not_renewed_ends_the_workload_before_it_runs_out_though_the_daemon_is_stopped() {
    let here = Here::new();
    let again = again("DAEMON");
    let mut command = Command::new(&again[0]);
    command.args(&again[1..]).arg(here.dir.path()).arg("lease=3000").args(sh(CLOCKS));
    let mut daemon = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("daemon: up")));
    let latest = Deadline::after(Duration::from_millis(3000));
    let stat = proc::stat(daemon.id()).unwrap();
    proc::signal(&stat, Signal::STOP).unwrap();
    here.wait_until_gone();
    assert!(proc::stat(daemon.id()).unwrap().is_stopped());
    assert!(last_ms(&here) < latest.boot_ms, "{} {latest:?}", last_ms(&here));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

#[test]
fn a_lease_that_is_renewed_goes_on_and_without_one_there_is_no_end() {
    let here = Here::new();
    let first = here.start_leased(FOREVER, 1500, false).unwrap();
    here.workloads.lease(UNIT, Some(lease_of(4000))).unwrap();
    here.wait_for("the first deadline", |_| first.left_ms() < -100);
    assert!(here.workloads.runs(UNIT));
    here.workloads.lease(UNIT, None).unwrap();
    here.wait_for("the second deadline", |_| first.left_ms() < -3000);
    assert!(here.workloads.runs(UNIT));
    // A nearer one than before counts as well.
    here.workloads.lease(UNIT, Some(lease_of(1000))).unwrap();
    here.wait_until_gone();
    let exit = here.exits.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(!exit.success, "{exit:?}");
}

#[test]
fn a_tree_that_was_stopped_beyond_the_deadline_dies_at_once_when_it_goes_on() {
    let here = Here::new();
    let deadline = here.start_leased(CLOCKS, 2000, false).unwrap();
    let members = here.workloads.members(UNIT);
    let supervisor = members.supervisor.clone().unwrap();
    proc::signal(&supervisor, Signal::STOP).unwrap();
    std::mem::forget(here.workloads.freeze(UNIT).unwrap());
    here.wait_for("the deadline", |_| deadline.left_ms() < -200);
    assert!(here.workloads.runs(UNIT));
    for process in here.workloads.members(UNIT).all() {
        proc::signal(&process, Signal::CONT).unwrap();
    }
    here.wait_until_gone();
}

#[test]
fn a_workload_under_a_lease_outlives_the_daemon_is_adopted_and_still_obeys() {
    let here = Here::new();
    here.start_in_daemon_and_kill(FOREVER, "lease=60000", None);
    assert!(here.workloads.probe(UNIT).unwrap());
    here.workloads.lease(UNIT, Some(lease_of(500))).unwrap();
    here.wait_until_gone();
    here.exits.recv_timeout(Duration::from_secs(20)).unwrap();
}

#[test]
fn a_lease_that_has_run_out_starts_nothing_and_a_dead_supervisor_ends_the_workload() {
    let here = Here::new();
    let error = here.start_leased(FOREVER, 0, false).unwrap_err();
    assert_eq!(error.code, FailureCode::NotStarted);
    assert!(error.message.contains("lease") && here.read("pids").is_empty(), "{error}");
    here.start_leased(FOREVER, 60_000, false).unwrap();
    here.wait_for("the first line", |h| !h.read("pids").is_empty());
    proc::signal(&here.workloads.members(UNIT).supervisor.unwrap(), Signal::KILL).unwrap();
    here.wait_until_gone();
}

#[test]
fn a_drill_has_a_network_of_its_own_and_is_none_of_the_units_processes() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: a drill's network namespace: not root");
        if let Some(path) = std::env::var_os("FLOCKER_SKIP_LOG") {
            let mut log = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
            writeln!(log, "a drill's network namespace: not root").unwrap();
        }
        return;
    }
    let here = Here::new();
    let apart = Places {
        state: here.dir.path().join("drill"),
        supervisor: crate::ops::drill::supervisor(&here.workloads.places.supervisor),
        isolated: true,
        ..here.workloads.places.clone()
    };
    let drills = Workloads::new(apart, Arc::new(|_| {})).unwrap();
    // Outside, this address accepts connections; inside nobody does until the workload does.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = format!(
        "use IO::Socket::INET; sleep 600 if @ARGV; \
         $s = IO::Socket::INET->new(Listen => 5, LocalAddr => '{address}') or die; sleep 600"
    );
    let paths = [here.dir.path().to_owned()];
    let tcp = flocker_core::record::HealthCheck::Tcp(address);
    for (extra, healthy) in [(None, true), (Some("deaf"), false)] {
        let mut command = vec!["perl".to_owned(), "-e".into(), server.clone()];
        command.extend(extra.map(String::from));
        let start =
            Start { command: &command, paths: &paths, stays: true, health: None, lease: None };
        drills.start(UNIT, &start).unwrap();
        assert!(drills.runs(UNIT) && !here.workloads.runs(UNIT));
        let limit_ms = if healthy { 20_000 } else { 300 };
        let health = Health { check: tcp.clone(), limit_ms };
        let outcome = drills.wait_until_healthy(UNIT, &start, &health);
        assert_eq!(outcome.is_ok(), healthy, "{outcome:?}");
        drills.stop(UNIT, Signal::TERM, Duration::from_secs(10)).unwrap();
        assert!(!drills.runs(UNIT));
    }
}

#[test]
fn a_stop_returns_as_soon_as_the_last_process_has_gone() {
    for stays in [false, true] {
        let here = Here::new();
        let mut late = Vec::new();
        for _ in 0..5 {
            here.start_command(&["sleep".into(), "318".into()], stays, None).unwrap();
            let main = here.workloads.members(UNIT).processes[0].clone();
            let watcher = std::thread::spawn(move || {
                proc::wait_all(&[main], Duration::from_secs(20));
                Instant::now()
            });
            here.stop(Duration::from_secs(10));
            late.push(watcher.join().unwrap().elapsed().as_micros());
        }
        println!("stays {stays}: µs from the main process's end to the end of the stop: {late:?}");
    }
}
