//! The demo's client: sends numbered records to the workload, sends again what was not acknowledged, and
//! measures how long it had to wait.
//!
//! Owns: what was acknowledged, by whom, and the gaps. Leaves to others: the server
//! ([`super::workload`]), the verdict ([`super::verdict`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::ledger::hex;

/// Records on their way at the same time at most.
const WINDOW: usize = 32;

/// Between two tries to connect.
const RECONNECT: Duration = Duration::from_millis(2);

/// How long an answer is waited for before the connection is given up. Longer than any freeze or move
/// should take, since giving up early would only add work.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// How often the client looks up while it waits for an answer.
const LOOK_UP: Duration = Duration::from_millis(5);

/// What the client knows; shared with whoever watches it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Heard {
    /// Numbers that were acknowledged.
    pub(crate) acked: BTreeSet<u64>,
    /// How many by each writer.
    pub(crate) by_writer: BTreeMap<String, u64>,
    /// Connections made again.
    pub(crate) reconnects: u64,
    /// Connections refused or broken.
    pub(crate) errors: u64,
    /// Longest time between two acknowledgements, in this part of the run.
    pub(crate) longest_gap: Duration,
    /// When the last one came.
    last: Option<Instant>,
}

/// The running client.
pub(crate) struct Load {
    heard: Arc<Mutex<Heard>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    seed: [u8; 32],
}

/// What record `number` holds in the run with this seed.
pub(crate) fn payload(seed: &[u8; 32], number: u64) -> String {
    let hash = blake3::keyed_hash(seed, &number.to_le_bytes());
    hex(&hash.as_bytes()[..16])
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    // Counters stay meaningful whoever panicked while he held them.
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    /// Starts to send to `server`, at most `per_second` records a second.
    pub(crate) fn start(server: SocketAddr, per_second: u64, seed: [u8; 32]) -> Self {
        let heard = Arc::new(Mutex::new(Heard::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let sender = Sender {
            server,
            interval: Duration::from_secs(1) / u32::try_from(per_second.max(1)).unwrap_or(u32::MAX),
            seed,
            heard: Arc::clone(&heard),
            stop: Arc::clone(&stop),
            next: 1,
            due: Instant::now(),
            waiting: VecDeque::new(),
        };
        let thread = Some(thread::spawn(move || sender.run()));
        Self { heard, stop, thread, seed }
    }

    /// A copy of what it knows.
    pub(crate) fn heard(&self) -> Heard {
        lock(&self.heard).clone()
    }

    /// How many were acknowledged, and how many of them by `writer`.
    pub(crate) fn counts(&self, writer: &str) -> (u64, u64) {
        let heard = lock(&self.heard);
        let by = heard.by_writer.get(writer).copied().unwrap_or(0);
        (heard.acked.len() as u64, by)
    }

    /// Ends a part of the run: returns its longest gap and begins to measure the next. A gap counts for the
    /// part in which it ends.
    pub(crate) fn next_part(&self) -> Duration {
        std::mem::take(&mut lock(&self.heard).longest_gap)
    }

    /// What record `number` holds.
    pub(crate) fn payload(&self, number: u64) -> String {
        payload(&self.seed, number)
    }

    /// Stops it, without waiting for what is on its way.
    pub(crate) fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends by itself within LOOK_UP; a panic there shows in the verdict as too few records.
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Sender {
    server: SocketAddr,
    interval: Duration,
    seed: [u8; 32],
    heard: Arc<Mutex<Heard>>,
    stop: Arc<AtomicBool>,
    next: u64,
    due: Instant,
    /// Sent and not acknowledged, oldest first.
    waiting: VecDeque<u64>,
}

impl Sender {
    fn run(mut self) {
        let mut connected_before = false;
        while !self.stopped() {
            match self.converse(&mut connected_before) {
                Ok(()) => return,
                Err(_) => {
                    lock(&self.heard).errors += 1;
                    thread::sleep(RECONNECT);
                }
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// One connection. `Ok` when the client is to stop.
    fn converse(&mut self, connected_before: &mut bool) -> io::Result<()> {
        let stream = TcpStream::connect_timeout(&self.server, Duration::from_secs(1))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK_UP))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        let mut lines = Lines::new(&stream);
        let writer = self.hello(&mut lines)?;
        if std::mem::replace(connected_before, true) {
            lock(&self.heard).reconnects += 1;
        }
        let again: Vec<u64> = self.waiting.iter().copied().collect();
        self.send(&stream, &again)?;
        let mut waiting_since = Instant::now();
        while !self.stopped() {
            let fresh = self.take_due();
            if !fresh.is_empty() {
                if self.waiting.is_empty() {
                    waiting_since = Instant::now();
                }
                self.waiting.extend(&fresh);
                self.send(&stream, &fresh)?;
            }
            if self.waiting.is_empty() {
                thread::sleep(self.due.saturating_duration_since(Instant::now()).min(LOOK_UP));
                continue;
            }
            match lines.next()? {
                Some(line) => {
                    self.take(&line, &writer)?;
                    waiting_since = Instant::now();
                }
                None if waiting_since.elapsed() > ANSWER_LIMIT => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Who answers.
    fn hello(&self, lines: &mut Lines<'_>) -> io::Result<String> {
        let begin = Instant::now();
        while !self.stopped() && begin.elapsed() < ANSWER_LIMIT {
            if let Some(line) = lines.next()? {
                let mut words = line.split(' ');
                return match (words.next(), words.next()) {
                    (Some("HELLO"), Some(writer)) => Ok(writer.to_owned()),
                    _ => Err(io::ErrorKind::InvalidData.into()),
                };
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// The numbers that may be sent now.
    fn take_due(&mut self) -> Vec<u64> {
        let now = Instant::now();
        let mut fresh = Vec::new();
        while self.due <= now && self.waiting.len() + fresh.len() < WINDOW {
            fresh.push(self.next);
            self.next += 1;
            self.due += self.interval;
        }
        // What could not be sent while the workload was away is not made up for in a burst.
        self.due = self.due.max(now.checked_sub(LOOK_UP).unwrap_or(now));
        fresh
    }

    fn send(&self, mut stream: &TcpStream, numbers: &[u64]) -> io::Result<()> {
        let text: String = numbers
            .iter()
            .map(|number| format!("PUT {number} {}\n", payload(&self.seed, *number)))
            .collect();
        stream.write_all(text.as_bytes())
    }

    fn take(&mut self, line: &str, writer: &str) -> io::Result<()> {
        let number: u64 = line
            .strip_prefix("OK ")
            .and_then(|number| number.parse().ok())
            .ok_or(io::ErrorKind::InvalidData)?;
        self.waiting.retain(|waiting| *waiting != number);
        let now = Instant::now();
        let mut heard = lock(&self.heard);
        if heard.acked.insert(number) {
            *heard.by_writer.entry(writer.to_owned()).or_default() += 1;
        }
        if let Some(last) = heard.last.replace(now) {
            heard.longest_gap = heard.longest_gap.max(now - last);
        }
        Ok(())
    }
}

/// Lines as they come, from a stream with a read timeout.
struct Lines<'a> {
    reader: BufReader<&'a TcpStream>,
    partial: Vec<u8>,
}

impl<'a> Lines<'a> {
    fn new(stream: &'a TcpStream) -> Self {
        Self { reader: BufReader::new(stream), partial: Vec::new() }
    }

    /// `None` when no whole line came within the timeout.
    fn next(&mut self) -> io::Result<Option<String>> {
        match self.reader.read_until(b'\n', &mut self.partial) {
            Ok(_) if self.partial.last() != Some(&b'\n') => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Ok(_) => {
                self.partial.pop();
                let line = std::mem::take(&mut self.partial);
                String::from_utf8(line).map(Some).map_err(|_| io::ErrorKind::InvalidData.into())
            }
            Err(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const SEED: [u8; 32] = [7; 32];

    /// Takes one connection, reads `puts` lines and acknowledges all but the last `silent` of them.
    fn serve_once(listener: &TcpListener, writer: &str, puts: usize, silent: usize) -> Vec<u64> {
        let (stream, _) = listener.accept().unwrap();
        (&stream).write_all(format!("HELLO {writer} 1 0\n").as_bytes()).unwrap();
        let mut lines = BufReader::new(&stream).lines();
        let mut numbers = Vec::new();
        for at in 0..puts {
            let line = lines.next().unwrap().unwrap();
            let number: u64 = line.split(' ').nth(1).unwrap().parse().unwrap();
            numbers.push(number);
            if at < puts - silent {
                (&stream).write_all(format!("OK {number}\n").as_bytes()).unwrap();
            }
        }
        // Closed with something unread, the connection would be reset, and the answers with it.
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        lines.for_each(drop);
        numbers
    }

    #[test]
    fn what_was_not_acknowledged_is_sent_again_first_and_in_order() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut load = Load::start(listener.local_addr().unwrap(), 1000, SEED);
        let first = serve_once(&listener, "a", 10, 3);
        assert_eq!(first, (1..=10).collect::<Vec<_>>());
        let second = serve_once(&listener, "b", 10, 0);
        assert_eq!(second, (8..=17).collect::<Vec<_>>());
        while load.counts("b").1 < 10 {
            thread::sleep(LOOK_UP);
        }
        load.stop();
        let heard = load.heard();
        assert_eq!(heard.acked, (1..=17).collect());
        assert_eq!(heard.by_writer["a"], 7);
        assert_eq!(heard.reconnects, 1);
    }

    #[test]
    fn payloads_differ_by_number_and_by_run() {
        assert_ne!(payload(&SEED, 1), payload(&SEED, 2));
        assert_ne!(payload(&SEED, 1), payload(&[8; 32], 1));
        assert!(super::super::ledger::is_payload(&payload(&SEED, 1)));
    }
}
