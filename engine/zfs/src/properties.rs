//! Reading and setting properties of datasets.
//!
//! Owns: user properties as the trait has them, and native ones for the other parts of this crate.
//! Leaves to others: what they mean. zfs-fuse sets one property a call, so a group of them is not
//! atomic there: they are set in the order of their names.

use std::collections::BTreeMap;

use flocker_store::store::Result;
use flocker_store::{DatasetName, Property, PropertySource, StoreError};

use crate::ZfsStore;
use crate::errors::About;
use crate::parse;

/// Prefix of every property of ours.
pub const OURS: &str = "flocker-repl:";

/// Longest value of a user property, bytes: 8191 since OpenZFS 0.7 (`ZAP_MAXVALUELEN` less the
/// terminator), 1023 before and on zfs-fuse.
pub const MAX_VALUE_BYTES: usize = 8191;

/// As [`MAX_VALUE_BYTES`], on zfs-fuse.
pub const MAX_VALUE_BYTES_FUSE: usize = 1023;

/// Longest name of a user property, bytes (`ZAP_MAXNAMELEN` less the terminator).
pub const MAX_PROPERTY_NAME_BYTES: usize = 255;

/// A native property with its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Native {
    pub(crate) value: String,
    pub(crate) source: PropertySource,
    /// A mount overrides what is set (source `temporary`): the value says nothing of that.
    pub(crate) temporary: bool,
}

impl Native {
    /// Whether this is what is set, and not only what a mount says.
    pub(crate) fn is_set_to(&self, value: &str) -> bool {
        self.value == value && !self.temporary
    }
}

impl ZfsStore {
    /// Native properties by name; those that this version does not know fail the call.
    pub(crate) fn native(
        &self,
        dataset: &DatasetName,
        names: &[&str],
    ) -> Result<BTreeMap<String, Native>> {
        let list = names.join(",");
        let args = ["get", "-Hp", "-o", "property,value,source", &list, dataset.as_str()];
        let finished = self.zfs(&args, About::dataset(dataset))?;
        let mut found = BTreeMap::new();
        for row in parse::rows(&finished, 3)? {
            let native = Native {
                value: row.str(1).to_owned(),
                source: parse::source(row.str(2)),
                temporary: row.str(2) == "temporary",
            };
            found.insert(row.str(0).to_owned(), native);
        }
        if let Some(missing) = names.iter().find(|name| !found.contains_key(**name)) {
            return Err(StoreError::Output {
                command: finished.command,
                detail: format!("no line for {missing}"),
            });
        }
        Ok(found)
    }

    pub(crate) fn get_user_properties(
        &self,
        dataset: &DatasetName,
    ) -> Result<BTreeMap<String, Property>> {
        if let Some(found) = self.user_properties_by_library(dataset) {
            return found;
        }
        let args = ["get", "-Hp", "-o", "property,source,value", "all", dataset.as_str()];
        let finished = self.zfs(&args, About::dataset(dataset))?;
        let text = parse::text(&finished)?;
        Ok(parse::user_properties(text).into_iter().collect())
    }

    pub(crate) fn change_user_properties(
        &self,
        dataset: &DatasetName,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<()> {
        for (name, value) in changes {
            self.check_property(name, value.as_deref())?;
        }
        if self.change_by_library(dataset, changes)? {
            return Ok(());
        }
        let words: Vec<String> = changes
            .iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)))
            .collect();
        self.set_words(dataset, &words)?;
        for (name, value) in changes {
            if value.is_none() {
                self.inherit(dataset.as_str(), name, dataset)?;
            }
        }
        Ok(())
    }

    /// `zfs set`, in one call where the command can.
    pub(crate) fn set_words(&self, dataset: &DatasetName, words: &[String]) -> Result<()> {
        if words.is_empty() {
            // Nothing to set must still say when there is nothing to set it on.
            return self.native(dataset, &["type"]).map(|_| ());
        }
        let each = if self.dialect.fuse { 1 } else { words.len() };
        for group in words.chunks(each) {
            let mut args = vec!["set"];
            args.extend(group.iter().map(String::as_str));
            args.push(dataset.as_str());
            self.zfs(&args, About::dataset(dataset))?;
        }
        Ok(())
    }

    /// Takes away a local value of a dataset or snapshot; one that is not there is not an error.
    pub(crate) fn inherit(&self, on: &str, name: &str, dataset: &DatasetName) -> Result<()> {
        self.zfs(&["inherit", name, on], About::dataset(dataset))?;
        Ok(())
    }

    /// Refuses what ZFS would not keep, or would not print back in one piece.
    fn check_property(&self, name: &str, value: Option<&str>) -> Result<()> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ":+.-_".contains(c);
        if !name.contains(':')
            || name.starts_with('-')
            || name.len() > MAX_PROPERTY_NAME_BYTES
            || !name.chars().all(allowed)
        {
            return Err(self.not_capable(format!("the user property name `{name}`")));
        }
        let Some(value) = value else { return Ok(()) };
        let longest = if self.dialect.fuse { MAX_VALUE_BYTES_FUSE } else { MAX_VALUE_BYTES };
        if value.is_empty() || value.len() > longest || value.contains(['\t', '\n', '\0']) {
            let what = format!(
                "the value of {name} ({} bytes: 1 to {longest} without tabs and line breaks)",
                value.len()
            );
            return Err(self.not_capable(what));
        }
        Ok(())
    }
}
