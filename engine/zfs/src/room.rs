//! Quotas and reservations of a dataset while it is at rest.
//!
//! Owns: lifting them with the fence and putting them back with the activation. A quota counts the workload's
//! data and not what a standby receives: left in place it fails a receive (openzfs #4492) or a rollback
//! (#17450), and a reservation keeps the room that the next step needs. zfs-fuse is left alone: one property a
//! call, on the critical path.

use std::collections::BTreeMap;

use flocker_store::store::Result;
use flocker_store::{DatasetName, PropertySource};

use crate::ZfsStore;
use crate::properties::Native;

/// What was lifted: `refquota=1073741824,refreservation=5`, bytes.
pub const WAS_LIMITS: &str = "flocker-repl:was-limits";

/// The properties that are lifted.
pub(crate) const LIMITS: [&str; 4] = ["quota", "refquota", "refreservation", "reservation"];

/// What has to be known to lift them.
pub(crate) const ASKED: [&str; 5] =
    [WAS_LIMITS, "quota", "refquota", "refreservation", "reservation"];

impl ZfsStore {
    /// Lifts what is set on this very dataset. `now` has each of [`ASKED`].
    pub(crate) fn lift_limits(
        &self,
        dataset: &DatasetName,
        now: &BTreeMap<String, Native>,
    ) -> Result<()> {
        let set: Vec<String> = LIMITS
            .iter()
            .filter_map(|name| Some((name, now.get(*name)?)))
            .filter(|(_, is)| is.source == PropertySource::Local && is.value != "0")
            .map(|(name, is)| format!("{name}={}", is.value))
            .collect();
        if set.is_empty() {
            return Ok(());
        }
        // What could not be put back the last time is not forgotten for that.
        let was = now.get(WAS_LIMITS).filter(|was| was.source == PropertySource::Local);
        let name = |word: &str| word.split('=').next().map(str::to_owned);
        let mut all = set.clone();
        for word in was.map(|was| was.value.split(',')).into_iter().flatten() {
            if !set.iter().any(|newer| name(newer) == name(word)) {
                all.push(word.to_owned());
            }
        }
        // Remembered in the same transaction, so that a crash cannot lose them.
        let mut words = vec![format!("{WAS_LIMITS}={}", all.join(","))];
        let names = set.iter().filter_map(|word| word.split('=').next());
        words.extend(names.map(|name| format!("{name}=none")));
        self.set_words(dataset, &words)
    }

    /// Puts back what was lifted. `was` is the property that remembers it. What cannot be put back now, since
    /// the data has outgrown it, stays remembered and is said: a database that is up without its quota is
    /// better than one that is down because of it.
    pub(crate) fn restore_limits(&self, dataset: &DatasetName, was: &Native) -> Result<()> {
        if was.source != PropertySource::Local {
            return Ok(());
        }
        let known = |word: &&str| word.split('=').next().is_some_and(|name| LIMITS.contains(&name));
        let words: Vec<String> = was.value.split(',').filter(known).map(str::to_owned).collect();
        let mut left = Vec::new();
        if self.set_words(dataset, &words).is_err() {
            for word in &words {
                if let Err(error) = self.set_words(dataset, std::slice::from_ref(word)) {
                    tracing::warn!(%dataset, limit = %word, %error, "could not be put back");
                    left.push(word.as_str());
                }
            }
        }
        match left.is_empty() {
            true => self.inherit(dataset.as_str(), WAS_LIMITS, dataset),
            false => self.set_words(dataset, &[format!("{WAS_LIMITS}={}", left.join(","))]),
        }
    }
}
