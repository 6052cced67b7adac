//! What the BEGIN of a raw stream says about the key of a sealed dataset, and of whatever else BEGIN carries.
//!
//! Owns: keeping `crypt_keydata` as it came, and giving it back with the base that a send of ours has. The
//! wrapped keys in it are of no use to us; what counts is that real ZFS finds the same again.
//!
//! A snapshot of a sealed dataset has an *IV set guid*; an increment names that of its base, so that nobody
//! puts blocks sealed with one set of IVs on top of another that only looks the same. Source:
//! `dsl_crypto_populate_key_nvlist` and `dsl_crypto_recv_raw_objset_check` in `module/zfs/dsl_crypt.c` of
//! OpenZFS; `setup_resume_points` in `dmu_send.c`.

use serde::{Deserialize, Serialize};
use zfs_stream::nvlist::{NvList, Value};

/// Longest payload of a raw BEGIN that is kept, bytes: real ones have about a thousand.
const MAX_LEN: usize = 64 << 10;

const KEYDATA: &str = "crypt_keydata";
const CRYPTO_GUID: &str = "DSL_CRYPTO_GUID";
const TO_IVSET: &str = "to_ivset_guid";
const FROM_IVSET: &str = "from_ivset_guid";
const RESUME_OBJECT: &str = "resume_object";
const RESUME_OFFSET: &str = "resume_offset";

/// The key data of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyData {
    /// The packed list as the stream had it.
    packed: Vec<u8>,
    /// The master key's own guid, the same for the life of a dataset.
    pub(crate) crypto_guid: u64,
    /// IV set guid of the snapshot.
    pub(crate) to_ivset: u64,
    /// IV set guid of the base that the stream had, 0 for a full one.
    pub(crate) from_ivset: u64,
}

impl KeyData {
    /// What the payload of a raw BEGIN says.
    pub(crate) fn of(payload: &[u8]) -> Result<Self, String> {
        if payload.len() > MAX_LEN {
            return Err(format!("its key data has {} bytes", payload.len()));
        }
        let list = NvList::unpack(payload).map_err(|e| e.to_string())?;
        let Some(Value::List(keys)) = list.get(KEYDATA) else {
            return Err(format!("a raw stream without {KEYDATA}"));
        };
        let need = |name: &str| keys.u64(name).ok_or_else(|| format!("{KEYDATA} without {name}"));
        Ok(KeyData {
            packed: payload.to_owned(),
            crypto_guid: need(CRYPTO_GUID)?,
            // Streams of OpenZFS before 0.8.3 have no IV set guids; 0 says that there is none.
            to_ivset: keys.u64(TO_IVSET).unwrap_or(0),
            from_ivset: keys.u64(FROM_IVSET).unwrap_or(0),
        })
    }

    /// Why an increment with this key data cannot follow `base`, if it cannot.
    pub(crate) fn follows(&self, base: &KeyData) -> Result<(), String> {
        if self.crypto_guid != base.crypto_guid {
            return Err(format!(
                "its master key has the guid {:#x}, that of the base {:#x}",
                self.crypto_guid, base.crypto_guid
            ));
        }
        if self.from_ivset != base.to_ivset {
            return Err(format!(
                "it is sealed on top of IV set {:#x}, the base has {:#x}",
                self.from_ivset, base.to_ivset
            ));
        }
        Ok(())
    }

    /// The key data for a send from `base`; `None`: for a full one.
    fn list(&self, base: Option<&KeyData>) -> Option<Value> {
        let list = NvList::unpack(&self.packed).ok()?;
        let Some(Value::List(keys)) = list.get(KEYDATA) else {
            return None;
        };
        let from = base.map_or(0, |base| base.to_ivset);
        let mut out = NvList::new();
        for (name, value) in keys.iter() {
            let value = if name == FROM_IVSET { Value::U64(from) } else { value.clone() };
            out.push(name, value);
        }
        Some(Value::List(out))
    }
}

/// Where an interrupted stream goes on: the object, and the byte in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) object: u64,
    pub(crate) offset: u64,
}

impl Point {
    /// Where the stream with this payload of BEGIN goes on.
    pub(crate) fn of(payload: &[u8]) -> Result<Self, String> {
        let list = NvList::unpack(payload).map_err(|e| e.to_string())?;
        match (list.u64(RESUME_OBJECT), list.u64(RESUME_OFFSET)) {
            (Some(object), Some(offset)) => Ok(Point { object, offset }),
            _ => Err("it says that it resumes, and not where".into()),
        }
    }
}

/// The payload of a BEGIN of ours; empty where there is nothing to say.
pub(crate) fn begin_payload(
    resume: Option<Point>,
    key: Option<&KeyData>,
    base: Option<&KeyData>,
) -> Vec<u8> {
    let mut list = NvList::new();
    if let Some(point) = resume {
        list.push(RESUME_OBJECT, Value::U64(point.object));
        list.push(RESUME_OFFSET, Value::U64(point.offset));
    }
    if let Some(key) = key.and_then(|key| key.list(base)) {
        list.push(KEYDATA, key);
    }
    if list.iter().next().is_none() { Vec::new() } else { list.pack() }
}
