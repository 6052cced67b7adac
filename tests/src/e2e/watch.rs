//! Looks all the time whether what a unit runs is alive on both nodes at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// A thread that looks for two servers at once.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Option<String>>>,
}

/// When a process began, in ticks of the kernel; `None` when it is gone or a zombie, which writes nothing.
fn start_time(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = &text[text.rfind(')')? + 2..];
    let fields: Vec<&str> = rest.split(' ').collect();
    (fields.first() != Some(&"Z")).then(|| fields.get(19).map(|f| (*f).to_owned()))?
}

/// The processes whose command ends with these words.
///
/// # Panics
/// When there is no `/proc`.
pub fn processes(words: &[&str]) -> Vec<u32> {
    let end: Vec<u8> = words.iter().flat_map(|word| [word.as_bytes(), &[0]].concat()).collect();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        // The supervisor has them too, behind words of its own.
        let alone = line.iter().filter(|byte| **byte == 0).count() == words.len();
        if alone && line.ends_with(&end) && start_time(pid).is_some() {
            found.push(pid);
        }
    }
    found
}

impl Watch {
    /// Begins; `find` tells the processes of `what` that are on the first node (0) or the second (1).
    pub fn start(what: &str, find: impl Fn(usize) -> Vec<u32> + Send + 'static) -> Self {
        let (stop, what) = (Arc::new(AtomicBool::new(false)), what.to_owned());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let begun: Vec<_> = find(0).into_iter().map(|pid| (pid, start_time(pid))).collect();
                let others = find(1);
                // Whoever of the first was there before and after the others were seen, was there
                // at the same time.
                for (pid, time) in begun {
                    if time.is_some() && !others.is_empty() && start_time(pid) == time {
                        return Some(format!("{what} on a ({pid}) and on b ({others:?})"));
                    }
                }
                std::thread::sleep(LOOK);
            }
            None
        });
        Self { stop, thread: Some(thread) }
    }

    /// Ends it.
    ///
    /// # Panics
    /// When two servers were seen at the same time.
    pub fn end(mut self, context: &str) {
        self.stop.store(true, Ordering::SeqCst);
        let seen = self.thread.take().and_then(|thread| thread.join().ok()).flatten();
        assert_eq!(seen, None, "{context}: two servers at once");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
