//! The history: what happened, for people. Bounded, and lost without harm.
//!
//! Owns: `<state>/history.redb` and the thread that writes it. It is no journal: events are written
//! in batches, off the loop, and those of the last moment are lost in a crash. A history that is
//! damaged is set aside and begun anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use flocker_core::EventKind;
use flocker_core::io::Event;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::api::{StampedEvent, StampedRound};

/// What happens often: rounds, phases.
const EVENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("events");

/// What happens seldom, and would be pushed out by the rounds of some hours.
const MILESTONES: TableDefinition<u64, &[u8]> = TableDefinition::new("milestones");

/// Events that wait to be written; more are dropped and counted.
const QUEUE: usize = 4096;

/// How long an event waits for company before it is written.
const BATCH: Duration = Duration::from_millis(500);

/// Memory that redb may use for pages.
const CACHE_BYTES: usize = 2 * 1024 * 1024;

enum Order {
    Add(StampedEvent),
    Read(SyncSender<Vec<StampedEvent>>),
}

/// The history of a node. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct History {
    orders: SyncSender<Order>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    at_unix_ms: i64,
    event: Event,
}

impl History {
    /// Opens the history, or begins a new one.
    ///
    /// # Errors
    /// Neither could be done.
    pub(crate) fn open(path: &Path, limit: u64) -> Result<Self, redb::Error> {
        let db = match open(path) {
            Ok(db) => db,
            Err(error) => {
                let aside = path.with_extension("redb.damaged");
                tracing::warn!(%error, aside = %aside.display(), "the history cannot be read and is set aside");
                let _ = std::fs::rename(path, aside);
                open(path)?
            }
        };
        let (orders, taken) = sync_channel(QUEUE);
        let writer = Writer { db, path: path.to_owned(), limit: limit.max(1), batch: Vec::new() };
        std::thread::Builder::new()
            .name("history".to_owned())
            .spawn(move || writer.run(&taken))
            .map_err(redb::Error::Io)?;
        Ok(Self { orders })
    }

    /// Adds an event; never waits.
    pub(crate) fn add(&self, event: StampedEvent) {
        if self.orders.try_send(Order::Add(event)).is_err() {
            metrics::counter!("flocker_repl_history_dropped_total").increment(1);
        }
    }

    /// The events of a unit, or of all, oldest first; the newest `last` of them. Blocks.
    pub(crate) fn events(&self, name: Option<&str>, last: Option<usize>) -> Vec<StampedEvent> {
        let (answer, taken) = sync_channel(1);
        if self.orders.send(Order::Read(answer)).is_err() {
            return Vec::new();
        }
        let mut events = taken.recv().unwrap_or_default();
        events.retain(|e| name.is_none_or(|name| e.event.name.as_deref() == Some(name)));
        newest(events, last)
    }

    /// The events that people look back at, of a unit or of all, oldest first; the newest `last` of
    /// them. Blocks.
    pub(crate) fn milestones(&self, name: Option<&str>, last: Option<usize>) -> Vec<StampedEvent> {
        let mut events = self.events(name, None);
        events.retain(|stamped| is_milestone(&stamped.event.kind));
        newest(events, last)
    }

    /// The rounds of a unit, oldest first; the newest `last` of them. Blocks.
    pub(crate) fn rounds(&self, name: &str, last: Option<usize>) -> Vec<StampedRound> {
        let rounds = self
            .events(Some(name), None)
            .into_iter()
            .filter_map(|stamped| match stamped.event.kind {
                EventKind::Round(round) => {
                    Some(StampedRound { at_unix_ms: stamped.at_unix_ms, round })
                }
                EventKind::Predicted { .. }
                | EventKind::Migrated(_)
                | EventKind::MigrationFailed { .. }
                | EventKind::FailedOver(_)
                | EventKind::Drilled(_)
                | EventKind::Phase { .. }
                | EventKind::Role { .. }
                | EventKind::Alarm { .. }
                | EventKind::Cleared
                | EventKind::Note(_) => None,
            })
            .collect();
        newest(rounds, last)
    }
}

/// What people look back at; the rest is how it came to it.
fn is_milestone(kind: &EventKind) -> bool {
    match kind {
        EventKind::Migrated(_)
        | EventKind::MigrationFailed { .. }
        | EventKind::FailedOver(_)
        | EventKind::Drilled(_)
        | EventKind::Role { .. }
        | EventKind::Alarm { .. }
        | EventKind::Cleared
        | EventKind::Note(_) => true,
        EventKind::Round(_) | EventKind::Phase { .. } | EventKind::Predicted { .. } => false,
    }
}

fn newest<T>(mut all: Vec<T>, last: Option<usize>) -> Vec<T> {
    if let Some(last) = last {
        all.drain(..all.len().saturating_sub(last));
    }
    all
}

fn open(path: &Path) -> Result<Database, redb::Error> {
    let opened = std::panic::catch_unwind(|| {
        redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create(path)
    });
    let db =
        opened.map_err(|_| redb::Error::Corrupted("its pages contradict each other".into()))??;
    let txn = db.begin_write()?;
    txn.open_table(EVENTS)?;
    txn.open_table(MILESTONES)?;
    txn.commit()?;
    Ok(db)
}

struct Writer {
    db: Database,
    path: PathBuf,
    limit: u64,
    batch: Vec<StampedEvent>,
}

impl Writer {
    fn run(mut self, orders: &Receiver<Order>) {
        let mut due: Option<Instant> = None;
        loop {
            let wait = due.map_or(Duration::from_secs(3600), |due| {
                due.saturating_duration_since(Instant::now())
            });
            match orders.recv_timeout(wait) {
                Ok(Order::Add(event)) => {
                    self.batch.push(event);
                    due.get_or_insert_with(|| Instant::now() + BATCH);
                }
                Ok(Order::Read(answer)) => {
                    self.flush();
                    due = None;
                    // Whoever asked may have gone away.
                    let _ = answer.send(self.read().unwrap_or_default());
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.flush();
                    due = None;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.flush();
                    return;
                }
            }
        }
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        if let Err(error) = self.write(&batch) {
            metrics::counter!("flocker_repl_history_dropped_total").increment(batch.len() as u64);
            tracing::warn!(path = %self.path.display(), %error, events = batch.len(), "the history could not be written");
        }
    }

    fn write(&self, batch: &[StampedEvent]) -> Result<(), redb::Error> {
        let txn = self.db.begin_write()?;
        {
            let (mut often, mut seldom) = (txn.open_table(EVENTS)?, txn.open_table(MILESTONES)?);
            let after = |last: Option<u64>| last.map_or(0, |key| key + 1);
            let mut next = after(often.last()?.map(|(key, _)| key.value()))
                .max(after(seldom.last()?.map(|(key, _)| key.value())));
            for stamped in batch {
                let kept = Kept { at_unix_ms: stamped.at_unix_ms, event: stamped.event.clone() };
                let table = if is_milestone(&kept.event.kind) { &mut seldom } else { &mut often };
                // An event that cannot be encoded is one that is not kept.
                if let Ok(bytes) = postcard::to_stdvec(&kept) {
                    table.insert(next, bytes.as_slice())?;
                    next += 1;
                }
            }
            for table in [&mut often, &mut seldom] {
                while table.len()? > self.limit {
                    table.pop_first()?;
                }
            }
        }
        txn.commit()?;
        Ok(())
    }

    fn read(&self) -> Result<Vec<StampedEvent>, redb::Error> {
        let txn = self.db.begin_read()?;
        // One order over both: they number their entries together.
        let mut events = BTreeMap::new();
        for table in [EVENTS, MILESTONES] {
            for entry in txn.open_table(table)?.iter()? {
                let (key, value) = entry?;
                // Written by another version: skipped.
                if let Ok(Kept { at_unix_ms, event }) = postcard::from_bytes(value.value()) {
                    events.insert(key.value(), StampedEvent { at_unix_ms, event });
                }
            }
        }
        Ok(events.into_values().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flocker_core::ids::{AttemptId, Fingerprint};

    fn note(name: &str, text: &str) -> StampedEvent {
        StampedEvent {
            at_unix_ms: 1,
            event: Event {
                unit: None,
                name: Some(name.into()),
                kind: EventKind::Note(text.into()),
            },
        }
    }

    fn texts(events: &[StampedEvent]) -> Vec<String> {
        let text = |e: &StampedEvent| match &e.event.kind {
            EventKind::Note(text) => text.clone(),
            other => panic!("{other:?}"),
        };
        events.iter().map(text).collect()
    }

    #[test]
    fn the_newest_are_kept_over_a_restart_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.redb");
        for round in 0..3 {
            let history = History::open(&path, 5).unwrap();
            for i in 0..3 {
                history.add(note(["a", "b"][i % 2], &format!("{round}{i}")));
            }
            let kept = history.events(None, None);
            assert!(kept.len() <= 5);
            drop(history);
            // The file is free once the thread has ended.
            for _ in 0..200 {
                if Database::open(&path).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let history = History::open(&path, 5).unwrap();
        assert_eq!(texts(&history.events(None, None)), ["11", "12", "20", "21", "22"]);
        assert_eq!(texts(&history.events(Some("b"), None)), ["11", "21"]);
        assert_eq!(texts(&history.events(None, Some(2))), ["21", "22"]);
    }

    #[test]
    fn phases_and_rounds_however_many_do_not_push_out_what_people_look_back_at() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::open(&dir.path().join("history.redb"), 3).unwrap();
        history.add(note("a", "first"));
        for number in 0..20 {
            let attempt = AttemptId { issuer: Fingerprint([1; 32]), number };
            let kind = EventKind::Phase { attempt, phase: "fence".into() };
            let event = Event { unit: None, name: Some("a".into()), kind };
            history.add(StampedEvent { at_unix_ms: 1, event });
        }
        history.add(note("a", "second"));
        assert_eq!(texts(&history.milestones(Some("a"), None)), ["first", "second"]);
        let all = history.events(None, None);
        assert_eq!(all.len(), 5, "three of the phases, between the notes");
        assert!(matches!(all[1].event.kind, EventKind::Phase { .. }));
    }

    #[test]
    fn a_damaged_history_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.redb");
        std::fs::write(&path, vec![7u8; 20_000]).unwrap();
        let history = History::open(&path, 5).unwrap();
        history.add(note("a", "new"));
        assert_eq!(texts(&history.events(None, None)), ["new"]);
        assert!(dir.path().join("history.redb.damaged").exists());
    }
}
