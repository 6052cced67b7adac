//! `init`: a new node. The configuration is written last, so that what fails leaves none.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flocker_core::ids::Incarnation;
use flocker_store::StoreError;
use flocker_transport::identity::KEY_FILE;
use flocker_transport::{Identity, IdentityError};

use crate::journal::{Journal, JournalError};
use crate::store;

use super::{
    Config, ConfigError, DedupSection, LimitsSection, NodeName, NodeSection, RatesSection,
    StoreUri, TransportSection, WorkloadsSection, ZfsSection,
};

/// What a new node is made of.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// The file to write; `None`: [`super::default_config_path_for_init`].
    pub path: Option<PathBuf>,
    /// What the node calls itself.
    pub name: NodeName,
    /// Where its datasets are. A vault is made; a ZFS dataset has to exist.
    pub store: StoreUri,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its state; `None`: [`super::default_state_dir`].
    pub state: Option<PathBuf>,
    /// Addresses given to peers.
    pub advertise: Vec<String>,
}

/// Why a node could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is one.
    #[error("{} exists already: nothing was changed; choose another file with --config", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// What was asked for is no configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The identity could not be made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The journal could not be made, or the one that is there cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// No random number was to be had.
    #[error("no random number is to be had: {0}")]
    Random(getrandom::Error),
    /// The store could not be made or opened.
    #[error("the store {store} cannot be used: {source}")]
    Store {
        /// As given.
        store: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The state directory has other things in it, and others may enter it.
    #[error(
        "{} is not empty and open to others: choose a directory of its own for the state, with mode 0700",
        path.display()
    )]
    NotPrivate {
        /// The directory.
        path: PathBuf,
    },
    /// The state directory is another node's.
    #[error(
        "{} is the state of node {name}: give this node a place of its own with --state, or make that \
         node's configuration anew with --name {name}",
        path.display()
    )]
    AnotherNode {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        name: String,
    },
    /// A file or directory could not be made.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> InitError + '_ {
    |source| InitError::Io { path: path.to_owned(), source }
}

impl Config {
    /// Makes a new node: state directory (0700), identity, journal, vault, and its configuration.
    ///
    /// # Errors
    /// [`InitError`]; an existing configuration is never overwritten.
    pub fn init(options: InitOptions) -> Result<Config, InitError> {
        let path = match options.path {
            Some(path) => path,
            None => super::default_config_path_for_init()?,
        };
        let path = std::path::absolute(&path).map_err(at(&path))?;
        if path.exists() {
            return Err(InitError::Exists { path });
        }
        let state = match options.state {
            Some(state) => state,
            None => super::default_state_dir()?,
        };
        let state = std::path::absolute(&state).map_err(at(&state))?;
        let here = std::env::current_dir().map_err(at(Path::new(".")))?;
        let config = Config {
            path,
            node: NodeSection {
                name: options.name,
                listen: options.listen,
                state,
                store: options.store.below(&here),
                advertise: options.advertise,
            },
            limits: LimitsSection::default(),
            transport: TransportSection::default(),
            rates: RatesSection::default(),
            fencing: None,
            zfs: ZfsSection::default(),
            dedup: DedupSection::default(),
            workloads: WorkloadsSection::default(),
        };
        config.check("")?;
        make_private_dir(&config.node.state)?;
        Identity::load_or_create(&config.node.state)?;
        config.make_journal()?;
        store::init(&config.node.store)
            .map_err(|source| InitError::Store { store: config.node.store.to_string(), source })?;
        config.write()?;
        Ok(config)
    }

    /// A journal that an earlier `init` left is used on, if it can be.
    fn make_journal(&self) -> Result<(), InitError> {
        let path = self.journal_path();
        if path.exists() {
            let name = Journal::open(&path)?.contents()?.name;
            if name != self.node.name.as_str() {
                return Err(InitError::AnotherNode { path: self.node.state.clone(), name });
            }
            return Ok(());
        }
        let mut bytes = [0u8; 8];
        getrandom::fill(&mut bytes).map_err(InitError::Random)?;
        let incarnation = Incarnation(u64::from_le_bytes(bytes));
        Journal::create(&path, self.node.name.as_str(), incarnation)?;
        Ok(())
    }

    fn write(&self) -> Result<(), InitError> {
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir).map_err(at(dir))?;
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).open(&self.path).map_err(|source| {
                match source.kind() {
                    io::ErrorKind::AlreadyExists => InitError::Exists { path: self.path.clone() },
                    _ => at(&self.path)(source),
                }
            })?;
        file.write_all(self.to_toml().as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(at(&self.path))
    }
}

/// Makes a directory that only its owner may enter. One that is there and open to others is closed
/// to them only if it is empty or already a node's: nobody wants `/srv` closed by a slip of the hand.
pub(crate) fn make_private_dir(dir: &Path) -> Result<(), InitError> {
    match fs::metadata(dir) {
        Ok(found) if found.permissions().mode() & 0o077 == 0 => return Ok(()),
        Ok(_) => {
            let empty = fs::read_dir(dir).map_err(at(dir))?.next().is_none();
            let ours = [KEY_FILE, "journal.redb"].iter().any(|file| dir.join(file).exists());
            if !empty && !ours {
                return Err(InitError::NotPrivate { path: dir.to_owned() });
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
        }
        Err(error) => return Err(at(dir)(error)),
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(at(dir))
}
