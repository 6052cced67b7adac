//! Mirrors: a unit's ownership, copied into a dataset's local user properties.
//!
//! ```text
//! flocker-repl:id     UNIT/VOLUME/GUID   the unit, the volume, the dataset's own guid (decimal)
//! flocker-repl:epoch  NUMBER/ISSUER/N    epoch number; the attempt that brought it about
//! flocker-repl:owner  FINGERPRINT
//! flocker-repl:state  WORD               the role
//! ```
//!
//! A claim counts only with all four of source `local` and with the guid of the very dataset: children
//! inherit properties, and clones copy them. Anything else is no claim, and no error either: people
//! may write what they like into properties.

use std::collections::BTreeMap;

use flocker_core::ids::{AttemptId, Epoch};
use flocker_core::io::MirrorState;
use flocker_core::record::Mirror;
use flocker_store::{DatasetInfo, DatasetName, Guid, Property, PropertySource, Store, StoreError};

use crate::old_copy;

const ID: &str = "flocker-repl:id";
const EPOCH: &str = "flocker-repl:epoch";
const OWNER: &str = "flocker-repl:owner";
const STATE: &str = "flocker-repl:state";

/// Writes a mirror, bound to the dataset as it is now.
pub(crate) fn write(
    store: &dyn Store,
    dataset: &DatasetName,
    state: &MirrorState,
) -> Result<(), StoreError> {
    let guid = store.dataset(dataset)?.guid;
    let epoch = &state.epoch;
    let values = [
        (ID, format!("{}/{}/{guid}", state.unit, state.volume)),
        (EPOCH, format!("{}/{}/{}", epoch.number, epoch.attempt.issuer, epoch.attempt.number)),
        (OWNER, epoch.owner.to_string()),
        (STATE, state.state.clone()),
    ];
    let claim = values.into_iter().map(|(name, value)| (name.to_owned(), Some(value)));
    let changes = claim.chain([old_copy::change(dataset, guid, state)]).collect();
    store.set_user_properties(dataset, &changes)
}

/// Removes a mirror; whose replica it is stays on it ([`old_copy`]).
pub(crate) fn remove(store: &dyn Store, dataset: &DatasetName) -> Result<(), StoreError> {
    let changes =
        [ID, EPOCH, OWNER, STATE].into_iter().map(|name| (name.to_owned(), None)).collect();
    store.set_user_properties(dataset, &changes)
}

/// The claim of a dataset, if it has one that counts.
pub(crate) fn read(store: &dyn Store, info: &DatasetInfo) -> Result<Option<Mirror>, StoreError> {
    Ok(parse(&store.user_properties(&info.name)?, info.guid))
}

fn parse(properties: &BTreeMap<String, Property>, dataset_guid: Guid) -> Option<Mirror> {
    let local = |name: &str| {
        properties
            .get(name)
            .filter(|property| property.source == PropertySource::Local)
            .map(|property| property.value.as_str())
    };
    let mut id = local(ID)?.split('/');
    let unit = id.next()?.parse().ok()?;
    let volume = id.next()?.parse().ok()?;
    let bound = Guid(id.next()?.parse().ok()?);
    let mut epoch = local(EPOCH)?.split('/');
    let number = epoch.next()?.parse().ok()?;
    let attempt =
        AttemptId { issuer: epoch.next()?.parse().ok()?, number: epoch.next()?.parse().ok()? };
    let whole = id.next().is_none() && epoch.next().is_none() && bound == dataset_guid;
    whole.then_some(Mirror {
        unit,
        volume,
        dataset_guid,
        epoch: Epoch { number, owner: local(OWNER)?.parse().ok()?, attempt },
        state: local(STATE)?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(source: PropertySource) -> BTreeMap<String, Property> {
        let fingerprint = "ab".repeat(32);
        [
            (ID, format!("{:032x}/{:032x}/77", 5, 6)),
            (EPOCH, format!("3/{fingerprint}/9")),
            (OWNER, fingerprint.clone()),
            (STATE, "serving".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Property { value, source }))
        .collect()
    }

    #[test]
    fn a_local_claim_bound_to_this_dataset_counts() {
        let mirror = parse(&properties(PropertySource::Local), Guid(77)).unwrap();
        assert_eq!((mirror.unit.0, mirror.volume.0), (5, 6));
        assert_eq!((mirror.epoch.number, mirror.epoch.attempt.number), (3, 9));
        assert_eq!(mirror.state, "serving");
    }

    #[test]
    fn an_inherited_or_received_claim_or_that_of_another_dataset_does_not_count() {
        for source in [PropertySource::Inherited, PropertySource::Received, PropertySource::Other] {
            assert_eq!(parse(&properties(source), Guid(77)), None);
        }
        assert_eq!(parse(&properties(PropertySource::Local), Guid(78)), None);
    }

    #[test]
    fn what_people_wrote_there_is_no_claim_and_no_error() {
        for name in [ID, EPOCH, OWNER, STATE] {
            for value in ["", "x", "1/2", "1/2/3/4", "//"] {
                let mut properties = properties(PropertySource::Local);
                properties.get_mut(name).unwrap().value = value.to_owned();
                let parsed = parse(&properties, Guid(77));
                assert!(parsed.is_none() || name == STATE, "{name}={value}");
            }
            let mut missing = properties(PropertySource::Local);
            missing.remove(name);
            assert_eq!(parse(&missing, Guid(77)), None);
        }
    }
}
