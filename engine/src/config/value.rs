//! Values of the configuration that have a grammar of their own, checked where they enter.

use std::fmt;
use std::path::{Path, PathBuf};

use flocker_store::DatasetName;
use serde::{Deserialize, Serialize};

/// Longest node name in bytes.
const MAX_NODE_NAME_BYTES: usize = 63;

/// Why a value is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// A node's name.
    #[error(
        "`{text}` is not a node name: 1 to {MAX_NODE_NAME_BYTES} ASCII letters, digits, `-`, `_`, `.`, beginning with a letter or digit"
    )]
    NodeName {
        /// What was given.
        text: String,
    },
    /// A store.
    #[error("`{text}` is not a store: `vault:DIRECTORY` or `zfs:DATASET` ({reason})")]
    Store {
        /// What was given.
        text: String,
        /// Why not.
        reason: String,
    },
    /// An address.
    #[error("`{text}` is not an address: `host:port`, a port from 1 to 65535")]
    Address {
        /// What was given.
        text: String,
    },
}

/// What a node calls itself: it goes into dataset names on its peers, so it is one component.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`ValueError::NodeName`].
    pub fn new(name: impl Into<String>) -> Result<Self, ValueError> {
        let text = name.into();
        let good = text.len() <= MAX_NODE_NAME_BYTES
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if good { Ok(Self(text)) } else { Err(ValueError::NodeName { text }) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for NodeName {
    type Err = ValueError;
    fn from_str(s: &str) -> Result<Self, ValueError> {
        Self::new(s)
    }
}

impl TryFrom<String> for NodeName {
    type Error = ValueError;
    fn try_from(s: String) -> Result<Self, ValueError> {
        Self::new(s)
    }
}

impl From<NodeName> for String {
    fn from(n: NodeName) -> String {
        n.0
    }
}

/// Where a node's datasets are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StoreUri {
    /// `vault:DIRECTORY`
    Vault(PathBuf),
    /// `zfs:DATASET`
    Zfs(DatasetName),
}

impl StoreUri {
    /// The same with a relative directory made absolute below `base`.
    pub(super) fn below(self, base: &Path) -> Self {
        match self {
            StoreUri::Vault(path) => StoreUri::Vault(base.join(path)),
            StoreUri::Zfs(dataset) => StoreUri::Zfs(dataset),
        }
    }
}

impl fmt::Display for StoreUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreUri::Vault(path) => write!(f, "vault:{}", path.display()),
            StoreUri::Zfs(dataset) => write!(f, "zfs:{dataset}"),
        }
    }
}

impl std::str::FromStr for StoreUri {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad =
            |reason: &str| ValueError::Store { text: text.to_owned(), reason: reason.to_owned() };
        match text.split_once(':') {
            Some(("vault", "")) => Err(bad("the directory is missing")),
            Some(("vault", path)) => Ok(StoreUri::Vault(path.into())),
            Some(("zfs", name)) => {
                DatasetName::new(name).map(StoreUri::Zfs).map_err(|error| bad(&error.to_string()))
            }
            _ => Err(bad("unknown kind of store")),
        }
    }
}

impl TryFrom<String> for StoreUri {
    type Error = ValueError;
    fn try_from(s: String) -> Result<Self, ValueError> {
        s.parse()
    }
}

impl From<StoreUri> for String {
    fn from(uri: StoreUri) -> String {
        uri.to_string()
    }
}

/// Checks the form of `host:port`; whether it exists is found when it is used.
pub(crate) fn check_address(text: &str) -> Result<(), ValueError> {
    let good = text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && !host.contains(char::is_whitespace)
            && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if good { Ok(()) } else { Err(ValueError::Address { text: text.to_owned() }) }
}
