//! Rates while the node runs: which one holds now, and changes of the configuration.
//!
//! Owns: a bucket for each peer and unit by name, set by the clock every second; reading `[rates]` again when the
//! file was changed. Leaves to others: the grammar (`crate::config`), keeping to a rate
//! (`flocker_transport::bulk::pace`).
//!
//! Everything else in the configuration is read at a start alone. A file that cannot be read, or is wrong, changes
//! nothing; it is logged, and shown in `status` until it is right.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use flocker_transport::{Bucket, Pace};
use jiff::civil::DateTime;

use crate::api::{RateView, RatesView};
use crate::config::{Config, RatesSection, Schedule};

/// How often the clock and the file are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The rates of a node. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Rates(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    path: PathBuf,
    changed: Option<SystemTime>,
    section: RatesSection,
    trouble: Option<String>,
    peers: BTreeMap<String, Arc<Bucket>>,
    units: BTreeMap<String, Arc<Bucket>>,
}

fn now() -> DateTime {
    jiff::Zoned::now().datetime()
}

fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

impl Rates {
    pub(crate) fn new(config: &Config) -> Self {
        let (path, section) = (config.path().to_owned(), config.rates.clone());
        let changed = changed(&path);
        let (peers, units) = (BTreeMap::new(), BTreeMap::new());
        let state = State { path, changed, section, trouble: None, peers, units };
        Self(Arc::new(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a transfer keeps to; names may change while the same thing has them, so they are asked for each.
    pub(crate) fn pace(&self, peer: Option<String>, unit: Option<String>, last: bool) -> Pace {
        let mut state = self.lock();
        let moment = now();
        let exempt = last && !state.section.last_step;
        let State { section, peers, units, .. } = &mut *state;
        let peer = peer.map(|name| bucket(peers, &section.peers, name, moment));
        let unit = unit.map(|name| bucket(units, &section.units, name, moment));
        Pace { peer: peer.unwrap_or_default(), unit: unit.unwrap_or_default(), exempt }
    }

    /// Sets every bucket as the moment wants it, and reads the file if it was changed.
    pub(crate) fn look(&self, moment: DateTime) {
        let mut state = self.lock();
        state.read();
        let State { section, peers, units, .. } = &mut *state;
        for (buckets, rules) in [(peers, &section.peers), (units, &section.units)] {
            // Whatever nobody uses any more is made again when it is.
            buckets.retain(|_, bucket| Arc::strong_count(bucket) > 1);
            for (name, bucket) in buckets {
                bucket.set(rules.get(name).and_then(|rules| rules.at(moment).0));
            }
        }
    }

    /// Looks every second, for ever.
    pub(crate) async fn watch(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look(now());
        }
    }

    /// For people.
    pub(crate) fn view(&self) -> RatesView {
        let state = self.lock();
        let moment = now();
        let of = |rules: &BTreeMap<String, Schedule>| {
            let view = |(name, rules): (&String, &Schedule)| {
                let (bytes_per_second, rule) = rules.at(moment);
                RateView { name: name.clone(), bytes_per_second, rule: rule.map(str::to_owned) }
            };
            rules.iter().map(view).collect()
        };
        RatesView {
            peers: of(&state.section.peers),
            units: of(&state.section.units),
            trouble: state.trouble.clone(),
        }
    }
}

fn bucket(
    buckets: &mut BTreeMap<String, Arc<Bucket>>,
    rules: &BTreeMap<String, Schedule>,
    name: String,
    moment: DateTime,
) -> Arc<Bucket> {
    let rate = rules.get(&name).and_then(|rules| rules.at(moment).0);
    let bucket = buckets.entry(name).or_default();
    bucket.set(rate);
    Arc::clone(bucket)
}

impl State {
    fn read(&mut self) {
        let changed = changed(&self.path);
        if changed.is_none() || changed == self.changed {
            return;
        }
        self.changed = changed;
        match Config::load(&self.path) {
            Ok(config) => {
                if config.rates != self.section {
                    tracing::info!("the rates were changed");
                }
                (self.section, self.trouble) = (config.rates, None);
            }
            Err(error) => {
                tracing::warn!(%error, "the rates stay as they are");
                self.trouble = Some(error.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str =
        "[node]\nname = \"a\"\nlisten = \"127.0.0.1:7001\"\nstate = \"s\"\nstore = \"vault:v\"\n";

    fn write(path: &Path, text: &str, at: u64) {
        std::fs::write(path, text).unwrap();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(at)).unwrap();
    }

    #[test]
    fn rates_change_with_the_clock_and_with_the_file_and_a_wrong_file_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let text = format!(
            "{NODE}[rates]\nunits = {{ db = \"1MiB/s\" }}\npeers = {{ b = [\"08:00-18:00 2MiB/s\"] }}\n"
        );
        write(&path, &text, 1);
        let rates = Rates::new(&Config::load(&path).unwrap());
        let pace = rates.pace(Some("b".into()), Some("db".into()), false);
        assert!(!pace.exempt);
        let noon = jiff::civil::datetime(2026, 1, 5, 12, 0, 0, 0);
        rates.look(noon);
        assert_eq!((pace.peer.rate(), pace.unit.rate()), (Some(2 << 20), Some(1 << 20)));
        rates.look(noon.with().hour(20).build().unwrap());
        assert_eq!((pace.peer.rate(), pace.unit.rate()), (None, Some(1 << 20)));
        write(&path, &text.replace("1MiB/s", "3MiB/s"), 2);
        rates.look(noon);
        assert_eq!(pace.unit.rate(), Some(3 << 20));
        write(&path, &text.replace("1MiB/s", "quickly"), 3);
        rates.look(noon);
        assert_eq!(pace.unit.rate(), Some(3 << 20));
        let trouble = rates.view().trouble.unwrap();
        assert!(trouble.contains("quickly") && trouble.contains("line 7"), "{trouble}");
        write(&path, NODE, 4);
        rates.look(noon);
        assert_eq!((pace.unit.rate(), rates.view().trouble), (None, None));
        assert_eq!(
            rates.pace(None, None, false).unit.rate(),
            None,
            "what has no name has no limit"
        );
    }

    #[test]
    fn the_last_step_of_a_move_is_held_back_only_where_that_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        write(&path, NODE, 1);
        let rates = Rates::new(&Config::load(&path).unwrap());
        assert!(rates.pace(None, None, true).exempt);
        write(&path, &format!("{NODE}[rates]\nlast_step = true\n"), 2);
        rates.look(now());
        assert!(!rates.pace(None, None, true).exempt);
    }
}
