//! A client of `flocker-test-workload` that knows what was acknowledged.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::host::{PATIENCE, binary};

/// The workload's program.
///
/// # Panics
/// When it was not built.
pub fn workload_binary() -> PathBuf {
    let path = binary().with_file_name("flocker-test-workload");
    assert!(path.exists(), "{} is missing: run `cargo build -p flocker-tests`", path.display());
    path
}

/// A client that writes without pause until it is stopped. Numbers are asked for one by one; one
/// that was not answered is asked for again, wherever the workload answers.
#[derive(Debug)]
pub struct Ledger {
    acked: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What became of the records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Acknowledged.
    pub acked: u64,
    /// In the file.
    pub on_target: u64,
    /// Acknowledged and not in the file.
    pub missing: u64,
    /// In the file more than once.
    pub duplicates: u64,
    /// In the file after a larger one.
    pub out_of_order: u64,
    /// In the file and never sent.
    pub invented: u64,
}

impl Verdict {
    /// Each acknowledged record exactly once, in order, each other at most once.
    pub fn holds(&self) -> bool {
        self.missing + self.duplicates + self.out_of_order + self.invented == 0
    }
}

fn ask(stream: &mut BufReader<TcpStream>, number: u64) -> std::io::Result<bool> {
    stream.get_mut().write_all(format!("{number}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_line(&mut answer)?;
    Ok(answer.trim().parse() == Ok(number))
}

fn connect(address: &str) -> Option<BufReader<TcpStream>> {
    let address = address.to_socket_addrs().ok()?.next()?;
    let stream = TcpStream::connect_timeout(&address, Duration::from_millis(500)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.set_nodelay(true).ok()?;
    Some(BufReader::new(stream))
}

impl Ledger {
    /// Begins to write to whichever of these addresses answers.
    pub fn start(addresses: &[String]) -> Self {
        Self::start_in(None, addresses)
    }

    /// The same from within a network namespace.
    pub fn start_in(netns: Option<&str>, addresses: &[String]) -> Self {
        let netns = netns.map(str::to_owned);
        let acked = Arc::new(AtomicU64::new(0));
        let sent = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let state = (Arc::clone(&acked), Arc::clone(&sent), Arc::clone(&stop));
        let addresses = addresses.to_vec();
        let thread = std::thread::spawn(move || {
            let (acked, sent, stop) = state;
            if let Some(netns) = netns {
                super::netns::enter(&netns);
            }
            for address in addresses.iter().cycle() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Some(mut stream) = connect(address) else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                while !stop.load(Ordering::SeqCst) {
                    let next = acked.load(Ordering::SeqCst) + 1;
                    sent.store(next, Ordering::SeqCst);
                    match ask(&mut stream, next) {
                        Ok(true) => acked.store(next, Ordering::SeqCst),
                        Ok(false) | Err(_) => break,
                    }
                }
            }
        });
        Self { acked, sent, stop, thread: Some(thread) }
    }

    /// How many were acknowledged.
    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::SeqCst)
    }

    /// Waits until `more` further records were acknowledged.
    ///
    /// # Panics
    /// When they are not in time.
    pub fn wait_more(&self, more: u64) {
        let goal = self.acked() + more;
        let until = std::time::Instant::now() + PATIENCE;
        while self.acked() < goal {
            assert!(
                std::time::Instant::now() < until,
                "the workload stopped answering at record {}",
                self.acked()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops writing.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Stops writing and compares with the file `ledger` below `volume`.
    ///
    /// # Panics
    /// When the file cannot be read.
    pub fn verdict(mut self, volume: &Path) -> Verdict {
        self.stop();
        let path = volume.join("ledger");
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        judge(&text, self.acked(), self.sent.load(Ordering::SeqCst))
    }
}

fn judge(text: &str, acked: u64, sent: u64) -> Verdict {
    let mut seen = std::collections::BTreeMap::<u64, u64>::new();
    let (mut out_of_order, mut largest) = (0, 0);
    for number in text.lines().filter_map(|l| l.parse::<u64>().ok()) {
        *seen.entry(number).or_default() += 1;
        out_of_order += u64::from(number < largest);
        largest = largest.max(number);
    }
    Verdict {
        acked,
        on_target: seen.len() as u64,
        missing: (1..=acked).filter(|n| !seen.contains_key(n)).count() as u64,
        duplicates: seen.values().filter(|n| **n > 1).count() as u64,
        out_of_order,
        invented: seen.keys().filter(|n| **n > sent).count() as u64,
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_judge_sees_each_kind_of_damage() {
        assert!(judge("1\n2\n3\n", 2, 3).holds());
        assert_eq!(judge("1\n3\n", 3, 3).missing, 1);
        assert_eq!(judge("1\n2\n2\n", 2, 2).duplicates, 1);
        assert_eq!(judge("2\n1\n", 2, 2).out_of_order, 1);
        assert_eq!(judge("1\n2\n9\n", 2, 3).invented, 1);
    }
}
