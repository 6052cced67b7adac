//! The lab from Rust: two virtual machines with real ZFS (`tests/lab`) for a test, and two such labs for all tests.
//!
//! Owns: whether it can run here (else a counted skip), starting it from its saved state, reusing what runs,
//! putting the built binaries in, making the guests empty again. Leaves to others: building the images
//! (`tests/lab/lab build`, which `tests/run` does), and what is done in the guests.
//!
//! Most of the time one guest of two waits for the other, so two labs beside each other take little more than half
//! the time. The guests stay up when a test ends, for the next one; `lab linger` takes them down when none comes.
//! `FLOCKER_NO_LAB` set: every test skips. `FLOCKER_LAB_RUN` names other folders: labs beside those.

pub mod clients;
pub mod daemon;
pub mod nodes;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use crate::e2e::{self, skip};

/// Where the guests of a test run are: folders of its own beside those of people.
const RUN: &str = "/tmp/flocker-lab-tests";

/// Memory of a machine that has room for the four guests of two labs beside the tests, KiB.
const TWO_LABS_KIB: u64 = 14 << 20;

/// The folders of the labs that the tests share; `tests/run` knows them too.
fn run_folders() -> Vec<String> {
    let named = std::env::var("FLOCKER_LAB_RUN").ok().filter(|named| !named.is_empty());
    let first = named.unwrap_or_else(|| RUN.to_owned());
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total =
        memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
    let total: u64 = total.and_then(|kib| kib.parse().ok()).unwrap_or(0);
    let second = format!("{first}-2");
    if total >= TWO_LABS_KIB { vec![first, second] } else { vec![first] }
}

/// What a lab's mark says when these suites run in it.
fn pair_mark(alpha: &str, beta: Option<&str>, clients: bool) -> String {
    let gamma = if clients { " gamma" } else { "" };
    format!("{alpha} {}{gamma}", beta.unwrap_or("-"))
}

/// Whether a lab in which `running` runs has what a test asks for. One guest of a pair is as good as one alone.
fn serves(running: &str, alpha: &str, beta: Option<&str>, clients: bool) -> bool {
    match beta {
        Some(_) => running == pair_mark(alpha, beta, clients),
        None => running.split(' ').next() == Some(alpha),
    }
}

/// Takes a lab that nobody uses: one in which these suites run already, else any. Waits while there is none.
fn take(alpha: &str, beta: Option<&str>, clients: bool) -> (String, File) {
    let mut runs = run_folders();
    loop {
        // What is known of a lab may change until it is locked; then it is looked at again.
        runs.sort_by_cached_key(|run| {
            let running = fs::read_to_string(mark_file(run)).unwrap_or_default();
            (!serves(&running, alpha, beta, clients), !running.is_empty())
        });
        for run in &runs {
            let lock = File::create(format!("{run}.lock")).expect("the lab's lock");
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return (run.clone(), lock);
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Names the suites of a lab's guests that run, while they can be made empty again.
fn mark_file(run: &str) -> String {
    format!("{run}.pair")
}

/// How long a test waits for what a guest does in its own time; a guest under emulation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(420);

/// How long the guests wait for another test.
const LINGER_S: &str = "90";

/// The newest build of another crate's tests, by what its file's name begins with: it lies beside the test that asks.
pub fn built_tests(name: &str) -> Option<PathBuf> {
    let here = std::env::current_exe().expect("this binary");
    let beside = here.parent().expect("a folder").read_dir().expect("it can be read");
    let prefix = format!("{name}-");
    let mut found: Vec<_> = beside
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(&prefix) && !name.contains('.')
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    found.pop().map(|(_, path)| path)
}

/// The OpenZFS of a suite, for tables.
pub fn version_of(suite: &str) -> &'static str {
    match suite {
        "bookworm" => "2.1",
        "trixie" => "2.3",
        _ => "?",
    }
}

/// Notes a line of the matrix of versions, kinds and directions, which `tests/run` prints at its end.
pub fn matrix(line: &str) {
    println!("MATRIX {line}");
    if let Some(path) = std::env::var_os("FLOCKER_MATRIX_LOG") {
        use std::io::Write;
        let file = File::options().create(true).append(true).open(path);
        if let Ok(mut file) = file {
            let _ = writeln!(file, "{line}");
        }
    }
}

/// A guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// 10.77.0.1
    Alpha,
    /// 10.77.0.2
    Beta,
    /// 10.77.0.3, where clients are: nothing under test runs there.
    Gamma,
}

impl Guest {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Guest::Alpha => "alpha",
            Guest::Beta => "beta",
            Guest::Gamma => "gamma",
        }
    }

    /// Its address on the private network.
    pub fn address(self) -> &'static str {
        match self {
            Guest::Alpha => "10.77.0.1",
            Guest::Beta => "10.77.0.2",
            Guest::Gamma => "10.77.0.3",
        }
    }
}

/// The running lab, for one test.
#[derive(Debug)]
pub struct Lab {
    run: String,
    suites: [String; 2],
    guests: Vec<Guest>,
    _lock: File,
}

/// The lab with these suites, empty; or a loud skip.
pub fn lab_or_skip(alpha: &str, beta: Option<&str>, test: &str) -> Option<Lab> {
    some_lab_or_skip(alpha, beta, false, test)
}

/// Two hosts with containers and a third guest for their clients; or a loud skip. Started anew afterwards: what
/// container runtimes leave behind is not worth the time to take away.
pub fn lab_with_clients_or_skip(test: &str) -> Option<Lab> {
    let lab = some_lab_or_skip("trixie", Some("trixie"), true, test)?;
    lab.spoil();
    Some(lab)
}

fn some_lab_or_skip(alpha: &str, beta: Option<&str>, clients: bool, test: &str) -> Option<Lab> {
    let why = if std::env::var_os("FLOCKER_NO_LAB").is_some_and(|v| !v.is_empty()) {
        Some("FLOCKER_NO_LAB is set".to_owned())
    } else if !rustix::process::geteuid().is_root() {
        Some("not root".to_owned())
    } else {
        [Some(alpha), beta].into_iter().flatten().find_map(|suite| {
            let image = cache().join(suite).join("states/base/ok");
            let words = format!("no guests of {suite}: LAB_SUITES={suite} tests/lab/lab build");
            (!image.exists()).then_some(words)
        })
    };
    match why {
        Some(why) => {
            skip(&format!("the lab: {why}"), test);
            None
        }
        None => Some(Lab::start(alpha, beta, clients)),
    }
}

fn cache() -> PathBuf {
    if let Some(place) = std::env::var_os("LAB_CACHE") {
        return place.into();
    }
    let home = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    home.unwrap_or_else(|| "/root/.cache".into()).join("flocker-lab")
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/lab")
}

impl Lab {
    fn start(alpha: &str, beta: Option<&str>, clients: bool) -> Self {
        let (run, lock) = take(alpha, beta, clients);
        fs::create_dir_all(&run).expect("a folder for the lab");
        let lab = Lab {
            run,
            suites: [alpha.to_owned(), beta.unwrap_or(alpha).to_owned()],
            guests: match beta {
                Some(_) if clients => vec![Guest::Alpha, Guest::Beta, Guest::Gamma],
                Some(_) => vec![Guest::Alpha, Guest::Beta],
                None => vec![Guest::Alpha],
            },
            _lock: lock,
        };
        let mut running = fs::read_to_string(lab.mark()).unwrap_or_default();
        // What cannot be made empty again is started anew for the next test.
        lab.spoil();
        if !serves(&running, alpha, beta, clients) || !lab.is_up() {
            // Every guest, whichever were started.
            let done = lab.lab_command().env("LAB_GUESTS", "alpha beta gamma").arg("down").status();
            assert!(done.is_ok_and(|s| s.success()), "the lab does not go down");
            lab.run(&["up"]);
            running = pair_mark(alpha, beta, clients);
        }
        lab.linger();
        for guest in lab.guests.clone() {
            lab.clear(guest);
        }
        fs::write(lab.mark(), running).expect("the lab's mark");
        lab
    }

    fn is_up(&self) -> bool {
        self.guests.iter().all(|g| self.output(*g, "true").status.success())
    }

    fn mark(&self) -> String {
        mark_file(&self.run)
    }

    /// What comes now cannot be undone by making the guests empty: the next test has them started anew.
    pub fn spoil(&self) {
        let _ = fs::remove_file(self.mark());
    }

    /// Takes the guests down when no test has come for a while.
    fn linger(&self) {
        let mut command = self.lab_command();
        command.env("LAB_GUESTS", "alpha beta gamma").args([
            "linger",
            &format!("{}.lock", self.run),
            LINGER_S,
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // A session of its own: it outlives the test.
        let mut words = Command::new("setsid");
        words.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            words.env(name, value.unwrap_or_default());
        }
        words.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = words.spawn();
    }

    fn lab_command(&self) -> Command {
        let mut command = Command::new(script());
        let names: Vec<&str> = self.guests.iter().map(|g| g.name()).collect();
        command
            .env("LAB_RUN", &self.run)
            .env("LAB_GUESTS", names.join(" "))
            .env("LAB_ALPHA", &self.suites[0])
            .env("LAB_BETA", &self.suites[1]);
        command
    }

    fn run(&self, words: &[&str]) -> String {
        let done = self.lab_command().args(words).stdin(Stdio::null()).output().expect("the lab");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "lab {}: {said}", words.join(" "));
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// The suite of a guest.
    pub fn suite(&self, guest: Guest) -> &str {
        &self.suites[usize::from(guest == Guest::Beta)]
    }

    /// Runs a shell script in a guest, whatever comes of it.
    pub fn output(&self, guest: Guest, script: &str) -> Output {
        let mut command = self.lab_command();
        command.args(["ssh", guest.name(), script]).stdin(Stdio::null());
        command.output().expect("the lab")
    }

    /// Runs a shell script in a guest; it has to succeed. Returns its stdout.
    pub fn ssh(&self, guest: Guest, script: &str) -> String {
        let done = self.output(guest, script);
        assert!(
            done.status.success(),
            "{}: {script}: {}\n{}{}",
            guest.name(),
            done.status,
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
        String::from_utf8_lossy(&done.stdout).trim_end().to_owned()
    }

    /// A power cut.
    pub fn crash(&self, guest: Guest) {
        self.run(&["crash", guest.name()]);
    }

    /// A boot from the disks that a power cut has left.
    pub fn boot(&self, guest: Guest) {
        self.run(&["boot", guest.name()]);
    }

    /// Puts the binary under test into every guest.
    pub fn put_repl(&self) {
        for guest in self.guests().iter().filter(|guest| **guest != Guest::Gamma) {
            self.put(*guest, &e2e::binary());
        }
    }

    /// Puts a binary of this build into a guest, unless it is there already.
    pub fn put(&self, guest: Guest, binary: &Path) {
        let name = binary.file_name().expect("a binary").to_string_lossy().into_owned();
        let meta = fs::metadata(binary).unwrap_or_else(|e| panic!("{}: {e}", binary.display()));
        let since = meta.modified().expect("a time").duration_since(SystemTime::UNIX_EPOCH);
        let stamp = format!("{}-{}", meta.len(), since.expect("after 1970").as_nanos());
        let known = self.output(guest, &format!("cat /usr/local/bin/{name}.stamp"));
        if String::from_utf8_lossy(&known.stdout).trim() == stamp {
            return;
        }
        // Without its line tables it is a fifth of the size, on a slow way into the guest.
        let stripped = PathBuf::from(format!("{}.put-{}", self.run, guest.name()));
        fs::create_dir_all(&stripped).expect("a folder");
        let small = stripped.join(&name);
        let done = Command::new("strip").arg("-o").args([&small, binary]).status();
        if !done.is_ok_and(|s| s.success()) {
            fs::copy(binary, &small).expect("a copy");
        }
        self.run(&["put", guest.name(), &small.to_string_lossy(), "/usr/local/bin"]);
        let _ = fs::remove_dir_all(&stripped);
        self.ssh(guest, &format!("echo {stamp} >/usr/local/bin/{name}.stamp"));
    }

    /// Ends what an earlier test has left, and makes the pool anew.
    pub fn clear(&self, guest: Guest) {
        if guest == Guest::Gamma {
            self.ssh(guest, "pkill -9 flocker- || true; rm -rf /tmp/f*");
            return;
        }
        self.ssh(
            guest,
            "pkill -9 flocker- || true; pkill -9 postgres || true; pkill -9 -f '^sleep 1000000' || true; sleep 0.2
             tc qdisc del dev eth1 root 2>/dev/null || true
             rm -rf /etc/flocker-repl /var/lib/flocker-repl /var/log/flocker* /tmp/f*
             umount -R /srv 2>/dev/null || true; rm -rf /srv/*
             # What was killed has its mounts for a moment longer.
             for p in $(zpool list -H -o name); do
               for n in $(seq 60); do zpool destroy -f $p && break; sleep 0.5; done
             done
             rm -rf /tank",
        );
        self.make_pool(guest, "", "/dev/vdb");
    }

    /// The pool of every test, `tank`, with these further options of `zpool create`, on this device.
    pub fn make_pool(&self, guest: Guest, options: &str, device: &str) {
        self.ssh(
            guest,
            &format!(
                "zpool create -f -o ashift=12 {options} -O compression=lz4 -O atime=off -O mountpoint=/tank tank {device}"
            ),
        );
    }

    /// Waits for a condition in a guest: a script that succeeds.
    pub fn wait_for(&self, guest: Guest, what: &str, script: &str) {
        // It looks again there: a login for each look costs more than the look, and slows what is waited for.
        let patient =
            format!("until (\n{script}\n)\ndo [ $SECONDS -lt 10 ] || exit 1; sleep 0.5; done");
        let begun = std::time::Instant::now();
        while !self.output(guest, &patient).status.success() {
            if begun.elapsed() > PATIENCE {
                panic!("{what} did not come about: {}", self.last_words(guest));
            }
        }
    }

    fn last_words(&self, guest: Guest) -> String {
        let script = "tail -n 40 /var/log/flocker.log; timeout 20 flocker-repl status; timeout 20 zfs list -t all";
        let said = self.output(guest, script).stdout;
        format!("-- {}\n{}", guest.name(), String::from_utf8_lossy(&said))
    }

    fn guests(&self) -> &[Guest] {
        &self.guests
    }
}
