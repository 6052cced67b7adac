//! Planning a send: two inventories in, a plan or a typed conflict out. Pure.
//!
//! Snapshots are matched by guid; `createtxg` orders them only inside one store. The incremental
//! source must be the *newest* snapshot of the receiving dataset: anything newer there belongs to
//! somebody, and is never destroyed.

use flocker_store::{Guid, Inventory, Partial, SendBase, Snapshot};

use crate::node::SNAPSHOT_PREFIX;

/// How a replica is brought to a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// It is there already.
    UpToDate,
    /// From this base, which the source still has as a snapshot or as a bookmark.
    Incremental {
        /// Its guid.
        guid: Guid,
        /// Where the source keeps it.
        base: SendBase,
    },
    /// There is nothing yet.
    Full,
}

/// Why there is no plan. Nothing is destroyed to make one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// The source does not have the snapshot to be sent.
    #[error("the snapshot with guid {to} is not on the source")]
    NoTarget {
        /// Its guid.
        to: Guid,
    },
    /// The receiving dataset exists, without any snapshot: it is not a replica.
    #[error("the receiving dataset exists and has no snapshot: it is not a replica of this volume")]
    Occupied,
    /// No snapshot of the receiving dataset is known to the source.
    #[error(
        "the two sides have no snapshot in common (the standby's newest is {newest}); \
         the replica must be renamed away before a full send"
    )]
    NoCommonBase {
        /// The standby's newest snapshot.
        newest: String,
    },
    /// The standby has snapshots of its own, newer than the newest common one.
    #[error("the standby has snapshots that the primary has not: {}; the newest in common is {common}", foreign.join(", "))]
    Diverged {
        /// The newest common snapshot's name on the standby.
        common: String,
        /// Newer ones there, oldest first.
        foreign: Vec<String>,
    },
    /// The standby is at a snapshot newer than the one to be sent.
    #[error("the standby is at {newest}, which is newer than the snapshot to be sent")]
    Ahead {
        /// The standby's newest snapshot.
        newest: String,
    },
}

/// Where `source` keeps what `guid` names: a snapshot, else a bookmark.
pub fn find_base(source: &Inventory, guid: Guid) -> Option<(SendBase, u64)> {
    if let Some(s) = source.snapshot(guid) {
        return Some((SendBase::Snapshot(s.name.clone()), s.createtxg));
    }
    let bookmark = source.bookmarks.iter().find(|b| b.guid == guid)?;
    Some((SendBase::Bookmark(bookmark.name.clone()), bookmark.createtxg))
}

/// What two sides have, as far as they went apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference<'a> {
    /// The newest snapshot of the target that the source can start from.
    pub common: Option<&'a Snapshot>,
    /// Newer ones that only the target has, oldest first.
    pub only_target: &'a [Snapshot],
    /// Newer ones that only the source has, oldest first.
    pub only_source: Vec<&'a Snapshot>,
}

/// What `target` has beyond what it has in common with `source`, and the other way round.
pub fn difference<'a>(source: &'a Inventory, target: &'a Inventory) -> Difference<'a> {
    let known = |s: &Snapshot| find_base(source, s.guid);
    let at = target.snapshots.iter().rposition(|s| known(s).is_some());
    let common = at.map(|at| &target.snapshots[at]);
    let after_txg = common.and_then(known).map_or(0, |(_, createtxg)| createtxg);
    let newer = |s: &&Snapshot| s.createtxg > after_txg;
    Difference {
        common,
        only_target: &target.snapshots[at.map_or(0, |at| at + 1)..],
        only_source: source.snapshots.iter().filter(newer).collect(),
    }
}

/// Where a send from `base` to `to` stops first: at the oldest snapshot in between that another dataset is a
/// clone of, so that the clone can be kept as one on the other side, too.
pub fn next_stop(source: &Inventory, base: Option<Guid>, to: Guid) -> Option<&Snapshot> {
    let until = source.snapshot(to)?;
    let after = base.and_then(|guid| find_base(source, guid)).map_or(0, |(_, createtxg)| createtxg);
    let between = |s: &&Snapshot| s.createtxg > after && s.createtxg < until.createtxg;
    let cloned = |s: &&Snapshot| source.cloned.contains(&s.guid);
    source.snapshots.iter().filter(between).find(cloned).or(Some(until))
}

/// The snapshot of `source` that an interrupted receive on the other side goes on to, if it can: the very
/// one it was begun with, from the base that the receiver still has.
pub fn resumable<'a>(
    source: &'a Inventory,
    partial: &Partial,
    base: Option<Guid>,
) -> Option<&'a Snapshot> {
    let to = source.snapshot(partial.to?)?;
    let based = match (partial.from, base) {
        (None, None) => true,
        (Some(from), Some(base)) => from == base && find_base(source, from).is_some(),
        _ => false,
    };
    based.then_some(to)
}

/// Plans the send that brings `target` to the snapshot `to` of `source`.
///
/// `target` is `None` where the receiving dataset does not exist.
///
/// # Errors
/// A [`Conflict`], which needs a newer inventory or a person.
pub fn plan(source: &Inventory, target: Option<&Inventory>, to: Guid) -> Result<Plan, Conflict> {
    let Some(wanted) = source.snapshot(to) else {
        return Err(Conflict::NoTarget { to });
    };
    let Some(target) = target else {
        return Ok(Plan::Full);
    };
    let Some(newest) = target.latest() else {
        // An interrupted full receive is nothing yet, and nobody's.
        let nothing = target.partial.is_some();
        return if nothing { Ok(Plan::Full) } else { Err(Conflict::Occupied) };
    };
    if newest.guid == to {
        return Ok(Plan::UpToDate);
    }
    if let Some((base, createtxg)) = find_base(source, newest.guid) {
        if createtxg >= wanted.createtxg {
            return Err(Conflict::Ahead { newest: newest.name.to_string() });
        }
        return Ok(Plan::Incremental { guid: newest.guid, base });
    }
    let common = target.snapshots.iter().rposition(|s| find_base(source, s.guid).is_some());
    match common {
        None => Err(Conflict::NoCommonBase { newest: newest.name.to_string() }),
        Some(at) => Err(Conflict::Diverged {
            common: target.snapshots[at].name.to_string(),
            foreign: target.snapshots[at + 1..].iter().map(|s| s.name.to_string()).collect(),
        }),
    }
}

/// The newest snapshot of a standby's volume, if the primary can start from it.
pub(crate) fn common_base(
    ours: &Inventory,
    theirs: Option<&Inventory>,
) -> Result<Option<Guid>, Conflict> {
    // Of which a bookmark may be all that is left here, and strangers' snapshots are older than that.
    let known = theirs.and_then(Inventory::latest).map(|s| s.guid);
    if let Some(guid) = known.filter(|guid| find_base(ours, *guid).is_some()) {
        return Ok(Some(guid));
    }
    let (Some(theirs), Some(newest)) = (theirs, ours.latest()) else {
        // Nothing here to compare with: only a standby without the dataset can get a full send.
        return match theirs {
            None => Ok(None),
            Some(i) => match i.latest() {
                None if i.partial.is_some() => Ok(None),
                None => Err(Conflict::Occupied),
                Some(s) => Err(Conflict::NoCommonBase { newest: s.name.to_string() }),
            },
        };
    };
    match plan(ours, Some(theirs), newest.guid)? {
        Plan::UpToDate => Ok(Some(newest.guid)),
        Plan::Incremental { guid, .. } => Ok(Some(guid)),
        Plan::Full => Ok(None),
    }
}

/// The newest moment that all volumes of a unit have whole, one snapshot a volume; `volumes`: what each has, oldest first.
///
/// A group's snapshots have one name. Those that we took are one moment. Others of one name need not be: they may have
/// been taken one after the other, or on a standby between two volumes of a round. They count only where there is no
/// group of ours, as in a replica that another tool has made. For a lone volume each snapshot is a moment, but for a
/// fuzzy one, which never was.
///
/// A volume that is still joining (the flag beside its snapshots) belongs to a moment if it has it: `None` otherwise.
pub fn newest_whole<'a>(volumes: &[(&'a [Snapshot], bool)]) -> Option<Vec<Option<&'a Snapshot>>> {
    let (first, _) = volumes.first()?;
    let moment = |newest: &Snapshot| -> Option<Vec<Option<&'a Snapshot>>> {
        let short = newest.name.short();
        let of = |(all, joining): &(&'a [Snapshot], bool)| {
            let found = all.iter().rev().find(|s| s.name.short() == short);
            match found {
                Some(fuzzy) if fuzzy.fuzzy => None,
                None if !joining => None,
                found => Some(found),
            }
        };
        volumes.iter().map(of).collect()
    };
    let is_ours = |s: &&Snapshot| s.name.short().starts_with(SNAPSHOT_PREFIX);
    let ours = first.iter().rev().filter(|s| volumes.len() > 1 && is_ours(s)).find_map(moment);
    ours.or_else(|| first.iter().rev().find_map(moment))
}

/// What a standby of which nothing was heard may be at: snapshots and bookmarks of ours, and what is held of others',
/// since a replica that was taken over begins with those. What others keep here besides is no business of ours.
pub(crate) fn may_be_bases(inventory: &Inventory, prefix: &str) -> impl Iterator<Item = Guid> {
    let ours = move |short: &str| short.starts_with(prefix);
    let snapshots = inventory.snapshots.iter();
    let snapshots = snapshots.filter(move |s| s.holds > 0 || ours(s.name.short()));
    let bookmarks = inventory.bookmarks.iter().filter(move |b| ours(b.name.short()));
    snapshots.map(|s| s.guid).chain(bookmarks.map(|b| b.guid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flocker_store::{Bookmark, DatasetName};
    use proptest::prelude::*;

    /// `"@1 @2 #3"`: snapshots and bookmarks whose guid is the number, in order of creation.
    fn side(dataset: &str, text: &str) -> Inventory {
        let dataset = DatasetName::new(dataset).unwrap();
        let mut inventory = Inventory::default();
        for (i, word) in text.split_whitespace().enumerate() {
            let (kind, number) = word.split_at(1);
            let guid = Guid(number.parse().unwrap());
            let createtxg = i as u64 + 1;
            if kind == "@" {
                inventory.snapshots.push(Snapshot {
                    name: dataset.snapshot(number).unwrap(),
                    guid,
                    createtxg,
                    creation_unix_s: 0,
                    fuzzy: false,
                    holds: 0,
                });
            } else {
                let name = format!("{dataset}#{number}").parse().unwrap();
                inventory.bookmarks.push(Bookmark { name, guid, createtxg });
            }
        }
        inventory
    }

    /// `"1 2~"`: snapshots of these names, oldest first, a fuzzy one with `~`; those with a number alone are ours.
    fn named(dataset: &str, text: &str) -> Vec<Snapshot> {
        let dataset = DatasetName::new(dataset).unwrap();
        let words = text.split_whitespace().enumerate();
        let snapshot = |(at, word): (usize, &str)| {
            let bare = word.trim_end_matches('~');
            let ours = bare.starts_with(|c: char| c.is_ascii_digit());
            let short = if ours { format!("{SNAPSHOT_PREFIX}7_{bare}") } else { bare.to_owned() };
            Snapshot {
                name: dataset.snapshot(&short).unwrap(),
                guid: Guid(at as u64),
                createtxg: at as u64,
                creation_unix_s: 0,
                fuzzy: bare != word,
                holds: 0,
            }
        };
        words.map(snapshot).collect()
    }

    /// The short name of the newest whole moment.
    fn whole(volumes: &[&str]) -> Option<String> {
        let names = ["t/a", "t/b", "t/c"];
        let all: Vec<_> = names.iter().zip(volumes).map(|(n, text)| named(n, text)).collect();
        let all: Vec<_> = all.iter().map(|all| (all.as_slice(), false)).collect();
        let found: Vec<_> = newest_whole(&all)?.into_iter().flatten().collect();
        assert_eq!(found.len(), volumes.len());
        assert!(found.iter().zip(names).all(|(s, name)| s.name.dataset().as_str() == name));
        assert!(found.iter().all(|s| s.name.short() == found[0].name.short() && !s.fuzzy));
        Some(found[0].name.short().trim_start_matches("flocker_7_").to_owned())
    }

    #[test]
    fn of_a_lone_volume_every_snapshot_is_a_moment_but_a_fuzzy_one() {
        assert_eq!(whole(&[""]), None);
        assert_eq!(whole(&["1 2"]).unwrap(), "2");
        assert_eq!(whole(&["1 by-hand"]).unwrap(), "by-hand");
        assert_eq!(whole(&["1 2~"]).unwrap(), "1");
        assert_eq!(whole(&["1~"]), None);
        assert_eq!(whole(&[]), None);
    }

    #[test]
    fn of_a_group_the_newest_of_ours_that_all_have_is_the_moment() {
        assert_eq!(whole(&["1 2", "1 2"]).unwrap(), "2");
        assert_eq!(whole(&["1 2", "1"]).unwrap(), "1", "in the middle of a round");
        assert_eq!(whole(&["1 2", "1 2", "1 2~"]).unwrap(), "1");
        assert_eq!(whole(&["1 2", "3"]), None);
        // Taken on a standby between two volumes of a round: it is of two moments.
        assert_eq!(whole(&["1 2 by-hand", "1 by-hand"]).unwrap(), "1");
        // Of another tool, before there is anything of ours.
        assert_eq!(whole(&["daily-1 daily-2", "daily-1 daily-2 1"]).unwrap(), "daily-2");
        assert_eq!(whole(&["by-hand", ""]), None);
    }

    #[test]
    fn a_volume_that_still_joins_is_in_a_moment_only_if_it_has_it() {
        let (db, wal, new) = (named("t/a", "1 2"), named("t/b", "1 2"), named("t/c", "2"));
        let at = |new: &[Snapshot], joining| {
            let found = newest_whole(&[(&db, false), (&wal, false), (new, joining)])?;
            let short =
                found[0].map(|s| s.name.short().trim_start_matches("flocker_7_").to_owned());
            Some((short.unwrap_or_default(), found[2].is_some()))
        };
        assert_eq!(at(&[], true), Some(("2".to_owned(), false)));
        assert_eq!(at(&[], false), None);
        assert_eq!(at(&new, true), Some(("2".to_owned(), true)));
        let fuzzy = named("t/c", "2~");
        assert_eq!(at(&fuzzy, true), Some(("1".to_owned(), false)), "it never was such a moment");
    }

    fn check(src: &str, dst: Option<&str>, to: u64) -> Result<Plan, Conflict> {
        let dst = dst.map(|d| side("t", d));
        plan(&side("s", src), dst.as_ref(), Guid(to))
    }

    fn from(word: &str) -> Plan {
        let guid = Guid(word[1..].parse().unwrap());
        let name = format!("s{word}");
        let base = if word.starts_with('@') {
            SendBase::Snapshot(name.parse().unwrap())
        } else {
            SendBase::Bookmark(name.parse().unwrap())
        };
        Plan::Incremental { guid, base }
    }

    #[test]
    fn a_dataset_that_does_not_exist_gets_a_full_send() {
        assert_eq!(check("@1 @2", None, 2), Ok(Plan::Full));
    }

    #[test]
    fn the_newest_snapshot_of_the_standby_is_the_base() {
        assert_eq!(check("@1 @2 @3", Some("@1 @2"), 3), Ok(from("@2")));
        assert_eq!(check("@1 @2 @3", Some("@1"), 3), Ok(from("@1")));
    }

    #[test]
    fn a_base_that_is_left_only_as_a_bookmark_serves() {
        assert_eq!(check("#1 @2", Some("@1"), 2), Ok(from("#1")));
    }

    #[test]
    fn a_standby_at_the_target_needs_nothing() {
        assert_eq!(check("@1 @2", Some("@2"), 2), Ok(Plan::UpToDate));
    }

    #[test]
    fn foreign_snapshots_on_the_standby_are_named_and_kept() {
        let got = check("@1 @2", Some("@1 @9"), 2);
        let want = Conflict::Diverged { common: "t@1".into(), foreign: vec!["t@9".into()] };
        assert_eq!(got, Err(want));
    }

    #[test]
    fn each_side_has_what_came_after_the_newest_snapshot_in_common() {
        let alone = |src: &str, dst: &str| {
            let (source, target) = (side("s", src), side("t", dst));
            let found = difference(&source, &target);
            let guids = |all: Vec<&Snapshot>| all.iter().map(|s| s.guid.0).collect::<Vec<_>>();
            let common = found.common.map(|s| s.guid.0);
            (common, guids(found.only_target.iter().collect()), guids(found.only_source))
        };
        assert_eq!(alone("@1 @2 @3", "@1 @9"), (Some(1), vec![9], vec![2, 3]));
        assert_eq!(alone("#1 @2", "@1"), (Some(1), vec![], vec![2]));
        assert_eq!(alone("@1 @2", "@7 @1 @2"), (Some(2), vec![], vec![]));
        assert_eq!(alone("@1 @2", "@8 @9"), (None, vec![8, 9], vec![1, 2]));
    }

    #[test]
    fn a_send_stops_at_each_snapshot_that_something_is_a_clone_of() {
        let mut source = side("s", "@1 @2 @3 @4 @5");
        let stops = |source: &Inventory, base: Option<u64>| {
            let (mut at, mut all) = (base.map(Guid), Vec::new());
            while at != Some(Guid(5)) {
                let stop = next_stop(source, at, Guid(5)).unwrap();
                all.push(stop.guid.0);
                at = Some(stop.guid);
            }
            all
        };
        assert_eq!(stops(&source, None), [5]);
        source.cloned = [2, 4].map(Guid).into();
        assert_eq!(stops(&source, None), [2, 4, 5]);
        assert_eq!(stops(&source, Some(2)), [4, 5]);
        assert_eq!(stops(&source, Some(4)), [5]);
        source.cloned = [Guid(5)].into();
        assert_eq!(stops(&source, Some(1)), [5]);
        assert_eq!(next_stop(&source, None, Guid(9)), None);
    }

    #[test]
    fn sides_without_a_common_snapshot_are_a_conflict() {
        assert!(matches!(check("@1 @2", Some("@8 @9"), 2), Err(Conflict::NoCommonBase { .. })));
        assert_eq!(check("@1", Some(""), 1), Err(Conflict::Occupied));
    }

    #[test]
    fn what_an_interrupted_full_receive_left_is_not_in_the_way_of_a_full_send() {
        let mut target = side("t", "");
        target.partial = Some(left(None, Some(1)));
        assert_eq!(plan(&side("s", "@1"), Some(&target), Guid(1)), Ok(Plan::Full));
    }

    #[test]
    fn an_interrupted_receive_goes_on_to_its_own_target_from_its_own_base_or_not_at_all() {
        let source = side("s", "#1 @2 @3");
        let goes_on = |from, to, base: Option<u64>| {
            resumable(&source, &left(from, to), base.map(Guid)).map(|s| s.guid.0)
        };
        assert_eq!(goes_on(None, Some(2), None), Some(2));
        assert_eq!(goes_on(Some(1), Some(2), Some(1)), Some(2), "from a bookmark, too");
        assert_eq!(goes_on(Some(2), Some(3), Some(2)), Some(3));
        assert_eq!(goes_on(Some(1), Some(9), Some(1)), None, "its target is gone here");
        assert_eq!(goes_on(Some(7), Some(3), Some(7)), None, "its base is gone here");
        assert_eq!(goes_on(Some(1), Some(3), Some(2)), None, "the standby is elsewhere by now");
        assert_eq!(goes_on(None, Some(3), Some(2)), None);
        assert_eq!(goes_on(None, None, None), None, "nobody can read its token");
    }

    fn left(from: Option<u64>, to: Option<u64>) -> Partial {
        Partial {
            token: "1-a-b-c".into(),
            to: to.map(Guid),
            from: from.map(Guid),
            bytes: 5,
            compressed: false,
            large_blocks: false,
            raw: false,
        }
    }

    #[test]
    fn an_older_target_than_the_standby_has_is_refused() {
        assert!(matches!(check("@1 @2", Some("@1 @2"), 1), Err(Conflict::Ahead { .. })));
    }

    proptest! {
        #[test]
        fn a_plan_always_starts_from_the_standbys_newest_snapshot(
            src in prop::collection::btree_set(1u64..12, 1..8),
            dst in prop::collection::btree_set(1u64..12, 0..8),
            pick in 0usize..8,
        ) {
            let text = |set: &std::collections::BTreeSet<u64>| {
                set.iter().map(|n| format!("@{n}")).collect::<Vec<_>>().join(" ")
            };
            let to = *src.iter().nth(pick % src.len()).unwrap();
            let target = side("t", &text(&dst));
            match plan(&side("s", &text(&src)), Some(&target), Guid(to)) {
                Ok(Plan::Incremental { guid, .. }) => {
                    prop_assert_eq!(Some(guid), target.latest().map(|s| s.guid));
                    prop_assert!(src.contains(&guid.0) && guid.0 < to);
                }
                Ok(Plan::UpToDate) => prop_assert_eq!(target.latest().unwrap().guid.0, to),
                Ok(Plan::Full) => prop_assert!(false, "never full over an existing dataset"),
                Err(_) => {}
            }
        }
    }
}
