//! The configuration: one TOML file a node.
//!
//! Owns: the file's grammar and defaults, where it and the state are by default, what `init`
//! writes. Leaves to others: what is in the state directory (`journal`, `workload`, the
//! transport's identity).
//!
//! ```toml
//! [node]
//! name = "a"
//! listen = "127.0.0.1:7001"
//! state = "/var/lib/flocker-repl"
//! store = "vault:/srv/a"             # or "zfs:tank/flocker"
//! advertise = ["a.example:7001"]     # optional: addresses given to peers
//!
//! [limits]                           # optional, each with a default
//! operations = 32
//!
//! [transport]                        # optional: how bytes travel
//! lane = "auto"                      # QUIC, and TLS where UDP does not pass; what is large takes the better one
//!                                    # as measured. Or "quic", or "tls": that alone
//! compression = "auto"               # as hard as pays; or "off", or a level of zstd from -7 to 19
//!
//! [rates]                            # optional, and read again when the file is changed: bytes a second on the wire
//! last_step = false                  # whether the last step of a move is held back too
//! [rates.peers]
//! b = ["08:00-18:00 mon-fri 20MiB/s", "100MiB/s"]    # the first that fits, in local time
//! [rates.units]
//! db = "50MiB/s"
//!
//! [fencing]                          # optional: a command that makes sure that a peer is off
//! command = ["/usr/local/sbin/power-off-peer"]
//! limit_s = 60
//!
//! [zfs]                              # optional: how ZFS is spoken to
//! engine = "auto"                    # libzfs_core where it is there; or "command", or "library"
//!
//! [dedup]                            # optional: what came from a peer need not come again
//! cache_bytes = 4294967296           # on disk, for each of at most four peers that send here; 0: off
//! ```

mod init;
mod paths;
mod rates;
mod value;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use flocker_transport::LaneMode;
use serde::{Deserialize, Serialize};

pub(crate) use init::make_private_dir;
pub use init::{InitError, InitOptions};
pub use paths::{default_config_path, default_config_path_for_init, default_state_dir};
pub use rates::{RateError, RatesSection, Schedule};
pub(crate) use value::check_address;
pub use value::{NodeName, StoreUri, ValueError};

/// A node's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    path: PathBuf,
    /// `[node]`
    pub node: NodeSection,
    /// `[limits]`
    pub limits: LimitsSection,
    /// `[transport]`
    pub transport: TransportSection,
    /// `[rates]`
    pub rates: RatesSection,
    /// `[fencing]`
    pub fencing: Option<FencingSection>,
    /// `[zfs]`
    pub zfs: ZfsSection,
    /// `[dedup]`
    pub dedup: DedupSection,
    /// `[workloads]`
    pub workloads: WorkloadsSection,
}

/// `[workloads]`: where the programs are that run workloads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkloadsSection {
    /// Podman's API socket, where it is not `/run/podman/podman.sock`.
    pub podman_socket: Option<PathBuf>,
    /// Docker's API socket, where it is not `/var/run/docker.sock`.
    pub docker_socket: Option<PathBuf>,
    /// Where LXC keeps its containers, where it is not `/var/lib/lxc`.
    pub lxc_path: Option<PathBuf>,
}

/// `[node]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSection {
    /// What this node calls itself; peers may use it in commands.
    pub name: NodeName,
    /// Where it listens for peers.
    pub listen: SocketAddr,
    /// Its state: identity, journal, socket, logs.
    pub state: PathBuf,
    /// Where its datasets are.
    pub store: StoreUri,
    /// `host:port` given to peers, the likeliest first; by default `listen`, or, where that is
    /// every address, the one the system routes from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advertise: Vec<String>,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    /// Store and workload operations at the same time; one that hangs keeps its place.
    pub operations: usize,
    /// How long a workload may take to freeze for a snapshot, milliseconds.
    pub freeze_ms: u64,
    /// Events kept in the history.
    pub history_events: u64,
    /// A workload's log is set aside when it is larger than this at a start, bytes.
    pub log_bytes: u64,
    /// For how long snapshots are kept for a standby that is away, hours. Then bookmarks stand in for them, where the
    /// store has such: they keep no data that was overwritten meanwhile.
    pub pin_h: u64,
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self {
            operations: 32,
            freeze_ms: 2_000,
            history_events: 20_000,
            log_bytes: 16 * 1024 * 1024,
            pin_h: 24,
        }
    }
}

/// `[transport]`: how bytes travel to peers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransportSection {
    /// Which ways are used.
    pub lane: Lane,
    /// How hard what is sent is compressed.
    pub compression: Compression,
}

/// How hard what is sent is compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CompressionWord", into = "CompressionWord")]
pub enum Compression {
    /// As hard as pays, by what limits the transfer.
    #[default]
    Auto,
    /// Not at all.
    Off,
    /// At this level of zstd, -7 to 19, whatever it is and wherever it goes.
    Level(i32),
}

/// [`Compression`] as it is written.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "must be \"auto\", \"off\" or a level of zstd, -7 to 19")]
enum CompressionWord {
    Level(i32),
    Word(String),
}

impl TryFrom<CompressionWord> for Compression {
    type Error = &'static str;

    fn try_from(word: CompressionWord) -> Result<Self, Self::Error> {
        match word {
            CompressionWord::Level(level @ -7..=19) => Ok(Self::Level(level)),
            CompressionWord::Word(word) if word == "auto" => Ok(Self::Auto),
            CompressionWord::Word(word) if word == "off" => Ok(Self::Off),
            _ => Err("must be \"auto\", \"off\" or a level of zstd, -7 to 19"),
        }
    }
}

impl From<Compression> for CompressionWord {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::Auto => Self::Word("auto".to_owned()),
            Compression::Off => Self::Word("off".to_owned()),
            Compression::Level(level) => Self::Level(level),
        }
    }
}

impl From<Compression> for flocker_transport::Compression {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::Auto => Self::Adaptive,
            Compression::Off => Self::Off,
            Compression::Level(level) => Self::Level(level),
        }
    }
}

/// Which ways a node uses to its peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// QUIC, and TLS over TCP where UDP does not pass; large transfers take the better one, as measured for each
    /// peer.
    #[default]
    Auto,
    /// QUIC alone; the node does not listen on TCP.
    Quic,
    /// TLS over TCP alone, for control too; the node does not listen on UDP.
    Tls,
}

impl From<Lane> for LaneMode {
    fn from(lane: Lane) -> Self {
        match lane {
            Lane::Auto => Self::Auto,
            Lane::Quic => Self::Quic,
            Lane::Tls => Self::Tls,
        }
    }
}

/// `[fencing]`: who makes sure that a peer is off before a failover takes over from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FencingSection {
    /// Program and arguments, not passed through a shell. It is told whom by `FLOCKER_PEER` (the name)
    /// and `FLOCKER_PEER_FINGERPRINT`; status 0 is its word that the peer is off.
    pub command: Vec<String>,
    /// How long it may take, seconds.
    #[serde(default = "default_fencing_limit_s")]
    pub limit_s: u64,
}

/// `[zfs]`: how ZFS is spoken to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZfsSection {
    /// By which way.
    #[serde(default)]
    pub engine: ZfsEngine,
}

/// `[dedup]`: the blocks that this node keeps of what peers send it, so that they need not come again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DedupSection {
    /// Disk that the blocks of one peer may take in the state directory, bytes; at most an eighth of what is
    /// free there. 0: none are kept, and nobody sends references here.
    pub cache_bytes: u64,
    /// When everything has to come anew, and an old copy of the volume is still here, it is read along, so that only
    /// what it lacks goes over the wire.
    pub reseed: bool,
}

impl Default for DedupSection {
    fn default() -> Self {
        Self { cache_bytes: 4 << 30, reseed: true }
    }
}

/// By which way ZFS is spoken to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ZfsEngine {
    /// libzfs_core where it is there and can do it, else the commands.
    #[default]
    Auto,
    /// The commands alone.
    Command,
    /// As `auto`, and an error where the library is not there.
    Library,
}

fn default_fencing_limit_s() -> u64 {
    60
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    node: NodeSection,
    #[serde(default)]
    limits: LimitsSection,
    #[serde(default)]
    transport: TransportSection,
    #[serde(default)]
    rates: RatesSection,
    #[serde(default)]
    fencing: Option<FencingSection>,
    #[serde(default)]
    zfs: ZfsSection,
    #[serde(default)]
    dedup: DedupSection,
    #[serde(default)]
    workloads: WorkloadsSection,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there.
    #[error("{} does not exist: make it with `flocker-repl init`, or name another with --config", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is not TOML, or has what a configuration has not.
    #[error("{}{}: {reason}", path.display(), Place { line: *line, key })]
    Grammar {
        /// The file.
        path: PathBuf,
        /// Counted from 1, where it is known.
        line: Option<usize>,
        /// The key on that line, where there is one.
        key: Option<String>,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no home to look in.
    #[error("no configuration is named, and neither XDG_CONFIG_HOME nor HOME is set: use --config")]
    NoHome,
}

struct Place<'a> {
    line: Option<usize>,
    key: &'a Option<String>,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        match self.key {
            Some(key) => write!(f, ", `{key}`"),
            None => Ok(()),
        }
    }
}

impl Config {
    /// Reads a configuration; relative paths in it are relative to the file's directory.
    ///
    /// # Errors
    /// [`ConfigError`], naming file, line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ConfigError::Missing { path: path.to_owned() },
            _ => ConfigError::Read { path: path.to_owned(), source },
        })?;
        Self::parse(path, &text)
    }

    /// Reads the configuration at its default place: see [`default_config_path`].
    ///
    /// # Errors
    /// As [`Config::load`], and [`ConfigError::NoHome`].
    pub fn load_default() -> Result<Self, ConfigError> {
        Self::load(&default_config_path()?)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let File { mut node, limits, transport, rates, fencing, zfs, dedup, workloads } =
            toml::from_str::<File>(text).map_err(|error| grammar(path, text, &error))?;
        let full = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let base = full.parent().unwrap_or(Path::new("/"));
        node.state = base.join(&node.state);
        node.store = node.store.below(base);
        let path = full.clone();
        let config = Self { path, node, limits, transport, rates, fencing, zfs, dedup, workloads };
        config.check(text)?;
        Ok(config)
    }

    fn check(&self, text: &str) -> Result<(), ConfigError> {
        let bad = |key: &str, reason: String| {
            let leaf = key.rsplit('.').next().unwrap_or(key);
            let line = text.lines().position(|l| l.trim_start().starts_with(leaf)).map(|at| at + 1);
            Err(ConfigError::Grammar {
                path: self.path.clone(),
                line,
                key: Some(key.to_owned()),
                reason,
            })
        };
        for address in &self.node.advertise {
            if let Err(error) = value::check_address(address) {
                return bad("node.advertise", error.to_string());
            }
        }
        if !(1..=1024).contains(&self.limits.operations) {
            return bad("limits.operations", "must be 1 to 1024".into());
        }
        if !(1..=60_000).contains(&self.limits.freeze_ms) {
            return bad("limits.freeze_ms", "must be 1 to 60000 milliseconds".into());
        }
        if let Some(fencing) = &self.fencing {
            if !fencing.command.first().is_some_and(|program| program.starts_with('/')) {
                return bad("fencing.command", "must begin with a program's full path".into());
            }
            if !(1..=3600).contains(&fencing.limit_s) {
                return bad("fencing.limit_s", "must be 1 to 3600 seconds".into());
            }
        }
        Ok(())
    }

    /// The file it was read from, as a full path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The local API's socket.
    pub fn socket_path(&self) -> PathBuf {
        self.node.state.join("api.sock")
    }

    /// The journal.
    pub fn journal_path(&self) -> PathBuf {
        self.node.state.join("journal.redb")
    }

    /// Blocks that came from peers. Nothing in it outlives the process.
    pub fn dedup_path(&self) -> PathBuf {
        self.node.state.join("dedup")
    }

    /// The history.
    pub fn history_path(&self) -> PathBuf {
        self.node.state.join("history.redb")
    }

    /// What `init` writes.
    fn to_toml(&self) -> String {
        let mut text = String::from("# flocker-repl: one node. `flocker-repl serve` runs it.\n\n");
        let quote = |s: &str| toml::Value::String(s.to_owned()).to_string();
        text.push_str("[node]\n");
        text.push_str(&format!("name = {}\n", quote(self.node.name.as_str())));
        text.push_str(&format!("listen = {}\n", quote(&self.node.listen.to_string())));
        text.push_str(&format!("state = {}\n", quote(&self.node.state.to_string_lossy())));
        text.push_str(&format!("store = {}\n", quote(&self.node.store.to_string())));
        if self.node.advertise.is_empty() {
            text.push_str("# advertise = [\"host:port\"]   # where peers reach this node\n");
        } else {
            let all: Vec<String> = self.node.advertise.iter().map(|a| quote(a)).collect();
            text.push_str(&format!("advertise = [{}]\n", all.join(", ")));
        }
        text
    }
}

fn grammar(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let line =
        error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let key = line
        .and_then(|line| text.lines().nth(line - 1))
        .and_then(|line| line.split_once('='))
        .map(|(key, _)| key.trim().to_owned());
    ConfigError::Grammar { path: path.to_owned(), line, key, reason: error.message().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "[node]\nname = \"a\"\nlisten = \"127.0.0.1:7001\"\nstate = \"s\"\nstore = \"vault:v\"\n";

    fn check(text: &str, words: &[&str]) {
        let error = Config::parse(Path::new("/etc/x/config.toml"), text).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "`{word}` is not in: {error}");
        }
    }

    #[test]
    fn the_lane_is_one_of_three_and_auto_by_default() {
        let lane = |text: &str| {
            let config = Config::parse(Path::new("/etc/x/config.toml"), &format!("{GOOD}{text}"));
            config.unwrap().transport.lane
        };
        assert_eq!(lane(""), Lane::Auto);
        assert_eq!(lane("[transport]\nlane = \"tls\"\n"), Lane::Tls);
        assert_eq!(lane("[transport]\nlane = \"quic\"\n"), Lane::Quic);
        check(&format!("{GOOD}[transport]\nlane = \"carrier pigeon\"\n"), &["line 7", "lane"]);
    }

    #[test]
    fn compression_is_auto_or_off_or_a_level_and_is_written_as_it_is_read() {
        let read = |text: &str| {
            let text = format!("{GOOD}[transport]\n{text}\n");
            Config::parse(Path::new("/etc/x/config.toml"), &text).map(|c| c.transport)
        };
        for (text, compression) in [
            ("", Compression::Auto),
            ("compression = \"auto\"", Compression::Auto),
            ("compression = \"off\"", Compression::Off),
            ("compression = -7", Compression::Level(-7)),
            ("compression = 19", Compression::Level(19)),
        ] {
            let section = read(text).unwrap();
            assert_eq!(section.compression, compression, "{text}");
            let again = read(&toml::to_string(&section).unwrap()).unwrap();
            assert_eq!(again, section, "{text}");
        }
        for bad in ["\"best\"", "20", "-8", "true", "1.5"] {
            let text = format!("{GOOD}[transport]\ncompression = {bad}\n");
            check(&text, &["line 7", "compression", "\"off\" or a level of zstd, -7 to 19"]);
        }
    }

    #[test]
    fn a_small_file_is_enough_and_relative_paths_are_relative_to_it() {
        let config = Config::parse(Path::new("/etc/x/config.toml"), GOOD).unwrap();
        assert_eq!(config.node.state, Path::new("/etc/x/s"));
        assert_eq!(config.node.store, StoreUri::Vault("/etc/x/v".into()));
        assert_eq!(config.socket_path(), Path::new("/etc/x/s/api.sock"));
        assert_eq!(config.limits, LimitsSection::default());
    }

    #[test]
    fn errors_name_file_line_and_key() {
        check(
            &GOOD.replace("127.0.0.1:7001", "here"),
            &["/etc/x/config.toml", "line 3", "`listen`"],
        );
        check(&GOOD.replace("vault:v", "tape:v"), &["line 5", "`store`", "tape:v"]);
        check(&GOOD.replace("\"a\"", "\"a b\""), &["line 2", "`name`"]);
        check(&format!("{GOOD}colour = 1\n"), &["line 6", "colour"]);
        check(&format!("{GOOD}[limits]\noperations = 0\n"), &["line 7", "limits.operations"]);
        check(&GOOD.replace("name = \"a\"\n", ""), &["name"]);
        check(
            &format!("{GOOD}advertise = [\"nowhere\"]\n"),
            &["line 6", "node.advertise", "nowhere"],
        );
    }

    #[test]
    fn a_fencing_hook_needs_a_full_path_and_has_a_limit() {
        let text = format!("{GOOD}[fencing]\ncommand = [\"/sbin/off\", \"-f\"]\n");
        let config = Config::parse(Path::new("/etc/x/config.toml"), &text).unwrap();
        let fencing = config.fencing.unwrap();
        assert_eq!((fencing.command.len(), fencing.limit_s), (2, 60));
        check(&text.replace("/sbin/off", "off"), &["line 7", "fencing.command", "full path"]);
        check(&format!("{text}limit_s = 0\n"), &["line 8", "fencing.limit_s"]);
    }

    #[test]
    fn the_way_to_zfs_is_one_of_three() {
        let config = |text: &str| Config::parse(Path::new("/etc/x/config.toml"), text).unwrap();
        assert_eq!(config(GOOD).zfs.engine, ZfsEngine::Auto);
        let text = format!("{GOOD}[zfs]\nengine = \"command\"\n");
        assert_eq!(config(&text).zfs.engine, ZfsEngine::Command);
        check(&text.replace("command", "shell"), &["line 7", "engine"]);
    }

    #[test]
    fn dedup_is_on_by_default_and_can_be_turned_off() {
        let config = |text: &str| Config::parse(Path::new("/etc/x/config.toml"), text).unwrap();
        assert_eq!(config(GOOD).dedup.cache_bytes, 4 << 30);
        let off = format!("{GOOD}[dedup]\ncache_bytes = 0\n");
        assert_eq!(config(&off).dedup.cache_bytes, 0);
        assert!(config(&off).dedup.reseed);
        assert!(!config(&format!("{GOOD}[dedup]\nreseed = false\n")).dedup.reseed);
        check(&off.replace("cache_bytes", "cash"), &["line 7", "cash"]);
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let mut config = Config::parse(Path::new("/etc/x/config.toml"), GOOD).unwrap();
        config.node.state = "/srv/with \"quotes\"".into();
        config.node.advertise = vec!["h:1".into(), "[::1]:2".into()];
        assert_eq!(Config::parse(config.path(), &config.to_toml()).unwrap(), config);
    }
}
