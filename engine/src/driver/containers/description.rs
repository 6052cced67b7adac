//! What a container needs to be made on another node: the form in which it travels.
//!
//! Owns: the form, reading it from a peer, and what of it may be made here at a peer's word. Leaves to others:
//! getting it from a container ([`super::describe`]), making one from it ([`super::create`]).
//!
//! A description comes from a peer that may start containers here, and nothing more: whoever makes a container
//! may become root on its host, unless what he can set is chosen with care. So only the settings of
//! [`CONFIG`] and [`HOST`] are taken from it; whatever opens the host ([`guard`]) makes the node refuse, unless
//! its own operator has made the container.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use flocker_core::record::ContainerRuntime;
use flocker_core::{Failure, FailureCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The one that this version writes.
pub(super) const VERSION: u32 = 1;

/// Settings of `Config` that travel as they are.
pub(super) const CONFIG: [&str; 16] = [
    "Hostname",
    "Domainname",
    "User",
    "ExposedPorts",
    "Tty",
    "OpenStdin",
    "StdinOnce",
    "Env",
    "Cmd",
    "Entrypoint",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "StopTimeout",
    "Healthcheck",
    "Volumes",
];

/// Settings of `HostConfig` that travel as they are: they limit a container, or concern only itself.
pub(super) const HOST: [&str; 33] = [
    "Memory",
    "MemoryReservation",
    "MemorySwap",
    "MemorySwappiness",
    "NanoCpus",
    "CpuShares",
    "CpuPeriod",
    "CpuQuota",
    "CpuRealtimePeriod",
    "CpuRealtimeRuntime",
    "CpusetCpus",
    "CpusetMems",
    "PidsLimit",
    "Ulimits",
    "ShmSize",
    "BlkioWeight",
    "PortBindings",
    "PublishAllPorts",
    "Tmpfs",
    "CapDrop",
    "CapAdd",
    "SecurityOpt",
    "ReadonlyRootfs",
    "LogConfig",
    "ExtraHosts",
    "Dns",
    "DnsOptions",
    "DnsSearch",
    "Init",
    "OomKillDisable",
    "OomScoreAdj",
    "Sysctls",
    "GroupAdd",
];

/// Namespaces that a container may share or have to itself.
pub(super) const NAMESPACES: [&str; 5] =
    ["IpcMode", "PidMode", "UTSMode", "UsernsMode", "CgroupnsMode"];

/// A unit's containers, and the networks that they are in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Description {
    pub(super) version: u32,
    pub(super) runtime: ContainerRuntime,
    /// In the order in which they are started.
    pub(super) containers: Vec<Container>,
    pub(super) networks: Vec<Network>,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) image: Image,
    /// Of [`CONFIG`] what is set.
    pub(super) config: Map<String, Value>,
    /// Of [`HOST`] and [`NAMESPACES`] what is set.
    pub(super) host: Map<String, Value>,
    pub(super) mounts: Vec<Mount>,
    /// `bridge`, `host`, `none`, `container:NAME`; with [`Container::endpoints`] it is the first of them.
    pub(super) network_mode: String,
    /// The networks made by somebody that it is in, by name.
    pub(super) endpoints: BTreeMap<String, Endpoint>,
    /// What restarts it where it is not protected.
    pub(super) restart: Restart,
    /// What of it opens its host, in words: for the refusal. Whoever reads it looks for himself as well.
    pub(super) guarded: Vec<String>,
}

/// What it was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Image {
    /// As it was named: `docker.io/library/postgres:17`.
    pub(super) reference: String,
    /// The digest of its configuration, in hexadecimal digits.
    pub(super) id: String,
    /// Digests under which registries have it: `docker.io/library/postgres@sha256:…`.
    pub(super) digests: Vec<String>,
}

/// What is mounted into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mount {
    /// Where, in the container.
    pub(super) target: PathBuf,
    pub(super) source: Source,
    pub(super) read_only: bool,
    /// `rprivate` where nobody said otherwise.
    pub(super) propagation: String,
}

/// From where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Source {
    /// In one of the unit's volumes, by its place in their order; nothing: all of it.
    Unit { volume: usize, path: PathBuf },
    /// A named volume of the runtime: its content stays behind.
    Named(String),
    /// A path of the host: what is there stays behind.
    Host(PathBuf),
}

/// A container in a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Endpoint {
    pub(super) aliases: Vec<String>,
    /// Only where it was chosen.
    pub(super) ipv4: Option<String>,
    pub(super) ipv6: Option<String>,
}

/// A network that is made where it is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Network {
    pub(super) name: String,
    pub(super) driver: String,
    pub(super) subnets: Vec<Subnet>,
    pub(super) internal: bool,
    pub(super) ipv6: bool,
    pub(super) labels: BTreeMap<String, String>,
}

/// One of its ranges of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Subnet {
    pub(super) subnet: String,
    pub(super) gateway: Option<String>,
}

/// A restart policy as Docker has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Restart {
    pub(super) policy: String,
    pub(super) retries: u64,
}

impl Restart {
    /// Nothing restarts it.
    pub(super) fn no() -> Self {
        Self { policy: "no".to_owned(), retries: 0 }
    }
}

/// Reads what a peer has sent.
///
/// # Errors
/// It is of another version, is no description, or names what no description may.
pub(super) fn read(text: &str) -> Result<Description, Failure> {
    let bad = |why: String| {
        Failure::refused(
            FailureCode::BadRequest,
            format!("the description of the unit's containers cannot be used: {why}"),
        )
    };
    let value: Value = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    let version = value["version"].as_u64().unwrap_or(0);
    if version != u64::from(VERSION) {
        return Err(bad(format!(
            "it is of version {version}, and this node reads {VERSION}: bring both to one release"
        )));
    }
    let description: Description =
        serde_json::from_value(value).map_err(|error| bad(error.to_string()))?;
    for container in &description.containers {
        check_name(&container.name).map_err(&bad)?;
        for mount in &container.mounts {
            if let Source::Unit { path, .. } = &mount.source {
                check_inside(path).map_err(&bad)?;
            }
            if !mount.target.is_absolute() || has_separator(&mount.target) {
                return Err(bad(format!("it mounts at {}", mount.target.display())));
            }
        }
    }
    for network in &description.networks {
        check_name(&network.name).map_err(&bad)?;
    }
    Ok(description)
}

/// What runtimes accept as a name: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`.
fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain) {
        return Ok(());
    }
    Err(format!("{name:?} is no name"))
}

/// A relative path that stays below where it begins.
fn check_inside(path: &Path) -> Result<(), String> {
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    if plain && !has_separator(path) {
        return Ok(());
    }
    Err(format!("{} leads out of its volume", path.display()))
}

/// What separates the parts of a bind's text.
fn has_separator(path: &Path) -> bool {
    path.to_str().is_none_or(|text| text.contains([':', '\n', '\0']))
}

/// What of a container opens its host to whoever controls it, in words. Such a one is not made at a peer's word.
/// `names`: the unit's containers.
pub(super) fn guard(container: &Container, names: &[String]) -> Vec<String> {
    let mut found = container.guarded.clone();
    let mode = container.network_mode.as_str();
    let known = match mode.strip_prefix("container:") {
        Some(other) => names.iter().any(|name| name == other),
        None => {
            matches!(mode, "" | "bridge" | "default" | "podman" | "host" | "none" | "private")
                || container.endpoints.contains_key(mode)
        }
    };
    if !known {
        found.push(format!("network {mode}"));
    }
    let host = &container.host;
    let list = |key: &str| -> Vec<String> {
        let values = host.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        values.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    found.extend(list("CapAdd").iter().map(|name| format!("capability {name}")));
    let harmless = |option: &&String| {
        let option = option.replace('=', ":");
        option == "no-new-privileges" || option == "no-new-privileges:true"
    };
    let options = list("SecurityOpt");
    found.extend(
        options.iter().filter(|o| !harmless(o)).map(|option| format!("security option {option}")),
    );
    for key in NAMESPACES {
        let mode = host.get(key).and_then(Value::as_str).unwrap_or_default();
        let own = matches!(mode, "" | "private" | "shareable" | "none");
        if !own && key != "CgroupnsMode" {
            found.push(format!("{key} {mode}"));
        }
    }
    for mount in &container.mounts {
        match &mount.source {
            Source::Unit { .. } => {}
            Source::Host(path) => found.push(format!("the host's path {}", path.display())),
            // Here it may be somebody else's.
            Source::Named(name) => found.push(format!("the volume {name}")),
        }
        // Made here, a mount that spreads to the host would be the host's.
        if !matches!(mount.propagation.as_str(), "" | "rprivate" | "private" | "rslave" | "slave") {
            found.push(format!("a mount with propagation {}", mount.propagation));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// What of a log's settings is carried: who keeps it, and how much of it. Podman also takes a path for it, of any
/// file of the host.
pub(super) fn log_config(value: &Value) -> Value {
    let kinds = ["json-file", "local", "journald", "k8s-file", "none"];
    let kind = value["Type"].as_str().filter(|kind| kinds.contains(kind));
    let mut config = value["Config"].as_object().cloned().unwrap_or_default();
    config.retain(|name, value| {
        ["max-size", "max-file", "compress", "tag"].contains(&name.as_str()) && value.is_string()
    });
    kind.map_or(Value::Null, |kind| serde_json::json!({"Type": kind, "Config": config}))
}

/// Whether a range of addresses is nobody's in the Internet: others would be taken away from this node.
pub(super) fn is_private(subnet: &str) -> bool {
    let Some((address, prefix)) = subnet.split_once('/') else { return false };
    let Ok(prefix) = prefix.parse::<u8>() else { return false };
    match address.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(address)) => {
            let [a, b, ..] = address.octets();
            match (a, b) {
                (10, _) => prefix >= 8,
                (172, 16..=31) => prefix >= 12,
                (192, 168) => prefix >= 16,
                (100, 64..=127) => prefix >= 10,
                _ => false,
            }
        }
        Ok(std::net::IpAddr::V6(address)) => {
            let first = address.segments()[0];
            (first & 0xfe00) == 0xfc00 && prefix >= 7
        }
        Err(_) => false,
    }
}
