//! The daemons of two nodes while things go wrong: killed, started again, asked how far they are.
//!
//! Owns: starting and ending them, their counters and transfers, when two sides are equal. Leaves making the
//! nodes to [`super::nodes`], and what goes wrong to the tests.

use serde_json::Value;

use super::nodes::{Nodes, Unit, serve};
use super::{Guest, Lab};

/// What a daemon has counted since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// Bytes of streams sent, of transfers that have ended.
    Sent,
    /// Bytes of streams received, of transfers that have ended.
    Received,
    /// Transfers to the peer that failed.
    FailedSends,
    /// Transfers from the peer that failed.
    FailedReceives,
}

impl Counter {
    fn line(self) -> &'static str {
        match self {
            Counter::Sent => r#"flocker_repl_stream_bytes_total{direction="send"}"#,
            Counter::Received => r#"flocker_repl_stream_bytes_total{direction="receive"}"#,
            Counter::FailedSends => r#"flocker_repl_transfer_failures_total{direction="send"}"#,
            Counter::FailedReceives => {
                r#"flocker_repl_transfer_failures_total{direction="receive"}"#
            }
        }
    }
}

impl Lab {
    /// Starts a guest's daemon with these variables, and waits until it answers.
    pub fn start_daemon(&self, guest: Guest, variables: &str) {
        self.ssh(guest, &serve(variables));
        self.wait_for(guest, "the daemon", "flocker-repl status");
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill_daemon(&self, guest: Guest) {
        self.ssh(guest, "pkill -9 -f '^flocker-repl serve'; true");
        self.wait_for_no_daemon(guest);
    }

    /// Waits until a guest's daemon has died.
    pub fn wait_for_no_daemon(&self, guest: Guest) {
        self.wait_for(guest, "the daemon's end", "! pgrep -f '^flocker-repl serve'");
    }

    /// What `status --json` says.
    pub fn view(&self, guest: Guest) -> Value {
        let text = self.ssh(guest, "flocker-repl status --json");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// One of a daemon's counters; 0 while there is nothing to count.
    pub fn counter(&self, guest: Guest, counter: Counter) -> u64 {
        let text = self.ssh(guest, "flocker-repl metrics");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(counter.line()));
        lines.next().map_or(0, |rest| rest.trim().parse().expect("a number"))
    }

    /// Bytes of the stream that a guest's one transfer has passed so far; `None` while there is none.
    pub fn transferred(&self, guest: Guest) -> Option<u64> {
        let view = self.view(guest);
        let transfer = view.get("transfers")?.as_array()?.first()?.clone();
        transfer.get("stream_bytes")?.as_u64()
    }

    /// Waits for what another process does in its own time; as patient as [`Lab::wait_for`].
    pub fn until(&self, what: &str, mut good: impl FnMut() -> bool) {
        let begun = std::time::Instant::now();
        while !good() {
            if begun.elapsed() > super::PATIENCE {
                let logs = self.guests().iter().map(|g| self.last_words(*g));
                panic!("{what} did not come about:\n{}", logs.collect::<String>());
            }
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    }
}

impl Nodes<'_> {
    /// Rounds of alpha's unit that sent everything.
    pub fn full_rounds(&self, unit: &Unit) -> usize {
        let words = format!("flocker-repl rounds {} --last 1000 --json", unit.name);
        self.lab().ssh(Guest::Alpha, &words).matches("\"full\":true").count()
    }

    /// Waits until the standby of a unit has all that is on its primary: nothing was written since its newest
    /// snapshot, and the standby's newest is that one. Returns the snapshot's short name.
    pub fn wait_equal(&self, unit: &Unit, primary: Guest, standby: Guest) -> String {
        let (lab, mut name) = (self.lab(), String::new());
        // `sync` writes the intent log; what was written counts with its transaction group.
        lab.ssh(primary, "zpool sync tank");
        lab.until(&format!("{} equal on both sides", unit.name), || {
            let newest = |at: Guest| {
                let script = format!(
                    "zfs get -Hpo value written {0}; zfs list -H -t snapshot -o name -s createtxg -d 1 {0} | tail -n 1",
                    self.dataset(unit, at)
                );
                let said = String::from_utf8_lossy(&lab.output(at, &script).stdout).into_owned();
                let mut lines = said.lines().map(str::to_owned);
                // In this order: a snapshot taken in between has all that was written, the one before it has not.
                let written = lines.next()?;
                let short = lines.next()?.split_once('@')?.1.to_owned();
                Some((short, written))
            };
            let (ours, theirs) = (newest(primary), newest(standby));
            name = theirs.as_ref().map(|(short, _)| short.clone()).unwrap_or_default();
            ours.is_some_and(|(short, written)| written == "0" && short == name)
        });
        name
    }

    /// As [`Nodes::hash`], of a standby: its newest snapshot, through a clone outside of the store.
    pub fn hash_standby(&self, unit: &Unit, at: Guest, short: &str) -> String {
        let look = "tank/look";
        let lab = self.lab();
        let dataset = self.dataset(unit, at);
        let options = if unit.zvol { "" } else { "-o mountpoint=/tank/look" };
        lab.ssh(at, &format!("zfs clone {options} {dataset}@{short} {look}"));
        let path = if unit.zvol { "/dev/zvol/tank/look" } else { "/tank/look" };
        lab.wait_for(at, "the clone", &format!("test -e {path}"));
        let hash = self.hash_path(unit, at, path);
        lab.ssh(at, &format!("zfs destroy {look} || {{ sleep 1; zfs destroy {look}; }}"));
        hash
    }
}
