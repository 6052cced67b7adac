//! Trees: what lies below a unit's datasets, when it is protected and from then on.
//!
//! Owns: looking what there is, now and then, and asking the core to take in what was made since. Leaves to others:
//! what belongs to a tree (`flocker_core::tree`), who joins and how (the core).
//!
//! What is made below a tree joins by itself: whoever said `--recursive` would find it unprotected otherwise on the
//! day on which it is needed. What cannot join (a standby is away, its name is taken there) is named in `status` with
//! the reason, and tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flocker_core::ids::VolumeId;
use flocker_core::status::{NodeStatus, UnitStatus};
use flocker_core::tree::{Tree, members, some_of, tops, with_all_below};
use flocker_core::{Command, Failure, FailureCode};
use flocker_store::{CLONE, DatasetName, PropertySource, Store};

use super::requests::{Api, blocking, random};
use super::{browse, refused};
use crate::api::LeftOutView;
use crate::old_copy::RECEIVED_FROM;
use crate::ops::drill;

/// Between two looks: each asks the store for all it has.
const EVERY: Duration = Duration::from_secs(15);

/// The datasets that are to be the volumes of a tree, and what to say besides. Of a tree that is protected already what
/// is new has joined it by then.
pub(super) async fn expand(
    api: &Arc<Api>,
    given: Vec<DatasetName>,
    tree: &Tree,
) -> Result<(Vec<DatasetName>, Vec<String>), Failure> {
    let status = api.node_status().await?;
    let all = datasets(api).await?;
    if let Some(missing) = given.iter().find(|dataset| !all.contains(dataset)) {
        let text = format!("dataset {missing} does not exist");
        return Err(refused(FailureCode::NotFound, text));
    }
    let unit = status.units.iter().find(|u| u.volumes.iter().any(|v| v.dataset == given[0]));
    let taken = taken(&status, unit, &given);
    let found = members(&all, &given, tree, &taken);
    let Some(unit) = unit else {
        return Ok((found, Vec::new()));
    };
    let known: Vec<DatasetName> = unit.volumes.iter().map(|v| v.dataset.clone()).collect();
    let has: BTreeSet<&DatasetName> = known.iter().collect();
    let wanted: BTreeSet<&DatasetName> = found.iter().collect();
    let leave: Vec<DatasetName> =
        known.iter().filter(|name| !wanted.contains(name)).cloned().collect();
    let new = found.iter().filter(|name| !has.contains(name)).cloned().collect();
    let new = without_left(api, new).await?;
    let found: Vec<DatasetName> =
        known.iter().filter(|name| wanted.contains(name)).chain(&new).cloned().collect();
    let mut notes = Vec::new();
    if !new.is_empty() {
        notes.push(format!("{} joined it", some_of(&new)));
    }
    if !leave.is_empty() {
        notes.push(format!(
            "{} left it; what {} has of that stays there",
            some_of(&leave),
            unit.standbys.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(" or ")
        ));
    }
    if !new.is_empty() || !leave.is_empty() || unit.tree.as_ref() != Some(tree) {
        extend(api, unit, new, leave, Some(tree.clone())).await?;
    }
    // Just those that it has by now: a standby may be added, or its promise be another one.
    Ok((found, notes))
}

async fn extend(
    api: &Arc<Api>,
    unit: &UnitStatus,
    new: Vec<DatasetName>,
    leave: Vec<DatasetName>,
    tree: Option<Tree>,
) -> Result<(), Failure> {
    let volumes = new.into_iter().map(|dataset| Ok((VolumeId(random()?), dataset)));
    let volumes = volumes.collect::<Result<Vec<_>, Failure>>()?;
    api.command(Command::Extend { name: unit.name.clone(), volumes, leave, tree }).await.map(drop)
}

/// Every dataset but copies that are there for a while.
async fn datasets(api: &Arc<Api>) -> Result<Vec<DatasetName>, Failure> {
    let tools = Arc::clone(&api.tools);
    blocking(move || {
        let store = tools.store.as_ref();
        let all = store.datasets().map_err(|error| Failure::from(&error))?;
        Ok(all.into_iter().map(|info| info.name).filter(|name| !is_copy(store, name)).collect())
    })
    .await
}

/// Whether it is a copy that a drill or `browse` has made.
fn is_copy(store: &dyn Store, name: &DatasetName) -> bool {
    let called =
        [drill::PREFIX, browse::PREFIX].iter().any(|prefix| name.leaf().starts_with(prefix));
    called
        && store.user_properties(name).is_ok_and(|properties| {
            properties.get(CLONE).is_some_and(|p| p.source == PropertySource::Local)
        })
}

/// Without those that left a unit, of which a replica has stayed here: they would come back to where they were destroyed.
async fn without_left(
    api: &Arc<Api>,
    names: Vec<DatasetName>,
) -> Result<Vec<DatasetName>, Failure> {
    if names.is_empty() {
        return Ok(names);
    }
    let tools = Arc::clone(&api.tools);
    blocking(move || {
        let left = |name: &DatasetName| {
            let properties = tools.store.user_properties(name);
            properties.is_ok_and(|all| {
                all.get(RECEIVED_FROM).is_some_and(|p| p.source == PropertySource::Local)
            })
        };
        Ok(names.into_iter().filter(|name| !left(name)).collect())
    })
    .await
}

/// What belongs to others: volumes of other units, and where peers' replicas are kept.
fn taken(
    status: &NodeStatus,
    unit: Option<&UnitStatus>,
    given: &[DatasetName],
) -> BTreeSet<DatasetName> {
    let others = status.units.iter().filter(|u| unit.is_none_or(|unit| u.id != unit.id));
    let grants = status.peers.iter().filter_map(|p| p.record.grant.as_ref());
    // A unit that has come here by a move lies in there itself.
    let grants = grants.map(|g| g.receive.clone());
    let grants = grants.filter(|root| !given.iter().any(|dataset| dataset.is_within(root)));
    others.flat_map(|u| u.volumes.iter().map(|v| v.dataset.clone())).chain(grants).collect()
}

/// Looks what was made below units that are primary here, for ever.
pub(crate) async fn watch(api: Arc<Api>) {
    loop {
        tokio::time::sleep(EVERY).await;
        match look(&api).await {
            Ok(found) => *api.left_out.lock().unwrap_or_else(|p| p.into_inner()) = found,
            Err(failure) => tracing::debug!(%failure, "what lies below units was not looked at"),
        }
    }
}

async fn look(api: &Arc<Api>) -> Result<BTreeMap<String, LeftOutView>, Failure> {
    let mut left_out = BTreeMap::new();
    let status = api.node_status().await?;
    let primary: Vec<&UnitStatus> = status.units.iter().filter(|u| u.role == "primary").collect();
    if primary.is_empty() {
        return Ok(left_out);
    }
    let all = datasets(api).await?;
    for unit in primary {
        let known: Vec<DatasetName> = unit.volumes.iter().map(|v| v.dataset.clone()).collect();
        let has: BTreeSet<&DatasetName> = known.iter().collect();
        let mut uppermost = tops(&known);
        uppermost.dedup();
        let below = with_all_below(&all, &has);
        if below.iter().all(|name| has.contains(name)) {
            continue;
        }
        let tree = unit.tree.clone().unwrap_or_default();
        let found = members(&all, &uppermost, &tree, &taken(&status, Some(unit), &known));
        let new = found.into_iter().filter(|name| !has.contains(name)).collect();
        let new = without_left(api, new).await?;
        if new.is_empty() {
            continue;
        }
        let why = match &unit.tree {
            None => None,
            Some(_) => match extend(api, unit, new.clone(), Vec::new(), None).await {
                Ok(()) => continue,
                Err(failure) => Some(failure.message),
            },
        };
        if let Some(why) = &why {
            tracing::warn!(unit = %unit.name, datasets = %some_of(&new), %why, "not protected");
        }
        left_out.insert(unit.name.clone(), LeftOutView { datasets: new, why });
    }
    Ok(left_out)
}
