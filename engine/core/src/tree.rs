//! Units of many datasets: where each lies below the unit, what belongs to a tree, what it leaves out.
//!
//! Owns: names alone, as pure functions. Leaves to others: what there is in a store (the engine looks), who may be
//! a volume ([`crate::node`]), and how one joins a unit that is there (`replicate::join`, `standby::join`).

use std::collections::{BTreeMap, BTreeSet};

use flocker_store::DatasetName;
use serde::{Deserialize, Serialize};

/// What stands between a dataset's name and the time in the name of what was set aside.
pub const ASIDE_MARK: &str = "-diverged-";

/// That a unit has everything below its datasets, also what is made there later.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// What does not belong to it, with all that lies below: paths from the unit's own dataset on; `*` stands for
    /// any characters of one component.
    pub exclude: Vec<String>,
}

impl Tree {
    /// Whether a dataset `path` below a unit's own is left out, as is all that lies below it.
    fn excludes(&self, path: &str) -> bool {
        let matches = |pattern: &String, whole: &str| {
            let (mut wanted, mut given) = (pattern.split('/'), whole.split('/'));
            loop {
                match (wanted.next(), given.next()) {
                    (None, _) => return true,
                    (Some(_), None) => return false,
                    (Some(pattern), Some(name)) if is_like(pattern, name) => {}
                    (Some(_), Some(_)) => return false,
                }
            }
        };
        // A pattern of one component names it wherever it is.
        let anywhere = |pattern: &String| {
            !pattern.contains('/') && path.split('/').any(|name| is_like(pattern, name))
        };
        self.exclude.iter().any(|pattern| matches(pattern, path) || anywhere(pattern))
    }
}

/// Whether `name` is what `pattern` says; `*` stands for any characters.
fn is_like(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(rest) = name.strip_prefix(before) else {
        return false;
    };
    (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|rest| is_like(after, rest)))
}

/// For each dataset the uppermost of them that it is or lies below.
pub fn tops(datasets: &[DatasetName]) -> Vec<DatasetName> {
    let all: BTreeSet<&DatasetName> = datasets.iter().collect();
    let top = |dataset: &DatasetName| {
        let mut top = dataset.clone();
        let mut at = dataset.parent();
        while let Some(above) = at {
            if all.contains(&above) {
                top = above.clone();
            }
            at = above.parent();
        }
        top
    };
    datasets.iter().map(top).collect()
}

/// Where each dataset lies below the place of its unit. A tree is there as it is, its own dataset by no name at all;
/// of several beside each other each begins with its last component.
pub fn places(datasets: &[DatasetName]) -> Vec<String> {
    let tops = tops(datasets);
    let one = tops.windows(2).all(|pair| pair[0] == pair[1]);
    let place = |(dataset, top): (&DatasetName, &DatasetName)| {
        let rest = dataset.as_str().get(top.as_str().len()..).unwrap_or_default();
        match one {
            true => rest.trim_start_matches('/').to_owned(),
            false => format!("{}{rest}", top.leaf()),
        }
    };
    datasets.iter().zip(&tops).map(place).collect()
}

/// Of each place the number of the uppermost one that it is or lies below.
pub fn tops_of_places(places: &[&str]) -> Vec<usize> {
    let known: BTreeMap<&str, usize> = places.iter().enumerate().map(|(at, p)| (*p, at)).collect();
    let top = |(at, place): (usize, &&str)| {
        let (mut top, mut above) = (at, *place);
        while !above.is_empty() {
            above = above.rsplit_once('/').map_or("", |(above, _)| above);
            top = known.get(above).copied().unwrap_or(top);
        }
        top
    };
    places.iter().enumerate().map(top).collect()
}

/// What belongs to a tree: of all datasets of a store those below `tops`, but for what it leaves out, what was set
/// aside, what others have (`taken`), and what lies below any of these. Parents first.
pub fn members(
    all: &[DatasetName],
    tops: &[DatasetName],
    tree: &Tree,
    taken: &BTreeSet<DatasetName>,
) -> Vec<DatasetName> {
    let mut sorted: Vec<&DatasetName> = all.iter().collect();
    sorted.sort();
    let mut left: BTreeSet<DatasetName> = BTreeSet::new();
    let mut found = Vec::new();
    for dataset in sorted {
        let Some(top) = tops.iter().find(|top| dataset.is_within(top)) else { continue };
        let path = dataset.as_str().get(top.as_str().len() + 1..).unwrap_or_default();
        let below = dataset.parent().is_some_and(|parent| left.contains(&parent));
        let out = below
            || taken.contains(dataset)
            || (dataset != top && (dataset.leaf().contains(ASIDE_MARK) || tree.excludes(path)));
        match out {
            true => {
                left.insert(dataset.clone());
            }
            false => found.push(dataset.clone()),
        }
    }
    found
}

/// Those of `some` that are, or lie below, one of `these`.
pub fn with_all_below<'a>(
    some: impl IntoIterator<Item = &'a DatasetName>,
    these: &BTreeSet<&DatasetName>,
) -> BTreeSet<DatasetName> {
    let within = |dataset: &&DatasetName| {
        let mut at = Some((*dataset).clone());
        while let Some(name) = at {
            if these.contains(&name) {
                return true;
            }
            at = name.parent();
        }
        false
    };
    some.into_iter().filter(within).cloned().collect()
}

/// How many datasets are named in one sentence.
const NAMED: usize = 5;

/// Datasets in words; of many the first ones.
pub fn some_of(datasets: &[DatasetName]) -> String {
    let named: Vec<&str> = datasets.iter().take(NAMED).map(DatasetName::as_str).collect();
    match datasets.len().checked_sub(NAMED) {
        None | Some(0) => named.join(", "),
        Some(more) => format!("{} and {more} more", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> Vec<DatasetName> {
        names.iter().map(|name| DatasetName::new(*name).unwrap()).collect()
    }

    #[test]
    fn a_tree_is_placed_as_it_is_and_several_datasets_by_their_last_components() {
        let check = |given: &[&str], expected: &[&str]| assert_eq!(places(&named(given)), expected);
        check(&["t/app"], &[""]);
        check(&["t/app", "t/app/x", "t/app/x/y", "t/app/z/y"], &["", "x", "x/y", "z/y"]);
        check(&["t/db", "t/wal"], &["db", "wal"]);
        check(&["t/db", "t/db/x", "t/wal", "t/wal/x"], &["db", "db/x", "wal", "wal/x"]);
        // The same beginning is not the same tree.
        check(&["t/app", "t/app2"], &["app", "app2"]);
        check(&["t", "t/a b:c"], &["", "a b:c"]);
    }

    #[test]
    fn a_tree_has_what_lies_below_but_for_what_it_leaves_out_and_what_others_have() {
        let all = named(&[
            "t",
            "t/app",
            "t/app/a",
            "t/app/a/cache",
            "t/app/a/cache/x",
            "t/app/b",
            "t/app/b/tmp-1",
            "t/app/b-diverged-20260101T000000Z",
            "t/app/c",
            "t/app/c/d",
            "t/app2",
        ]);
        let members = |exclude: &[&str], taken: &[&str]| {
            let tree = Tree { exclude: exclude.iter().map(ToString::to_string).collect() };
            let taken = named(taken).into_iter().collect();
            let found = members(&all, &named(&["t/app"]), &tree, &taken);
            found.iter().map(|name| name.as_str()[2..].to_owned()).collect::<Vec<_>>()
        };
        let whole = ["app", "app/a", "app/a/cache", "app/a/cache/x", "app/b", "app/b/tmp-1"];
        assert_eq!(members(&[], &[])[..6], whole);
        assert_eq!(members(&[], &[])[6..], ["app/c", "app/c/d"]);
        assert_eq!(members(&["cache", "b/tmp-*"], &["t/app/c"]), ["app", "app/a", "app/b"]);
        assert_eq!(members(&["*"], &[]), ["app"]);
        assert_eq!(members(&["a/*"], &["t/app/b"]), ["app", "app/a", "app/c", "app/c/d"]);
    }

    #[test]
    fn a_star_is_any_characters() {
        for (pattern, name, like) in [
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c", "ac", true),
            ("a*b*c", "abxc", true),
            ("a*d", "abc", false),
            ("", "", true),
            ("b*", "abc", false),
        ] {
            assert_eq!(is_like(pattern, name), like, "{pattern} {name}");
        }
    }
}
