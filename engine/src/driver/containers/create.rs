//! From a description to what a runtime is asked to make.
//!
//! Owns: pure functions to bodies of the API, and the way of each mount to where its volume is here. Leaves to
//! others: whether it may be made ([`super::description::guard`]), and asking for it ([`super::api`]).

use std::path::{Path, PathBuf};

use flocker_core::ids::UnitId;
use flocker_core::record::ContainerRuntime;
use flocker_core::{Failure, FailureCode, Remedy};
use serde_json::{Map, Value, json};

use super::UNIT_LABEL;
use super::description::{CONFIG, Container, HOST, NAMESPACES, Network, Source, log_config};

/// Which description a container was made from; another one makes it anew.
pub(super) const DESCRIPTION_LABEL: &str = "flocker-repl.description";

/// The body that makes a container, without a restart policy.
///
/// # Errors
/// It mounts a volume that the unit does not have.
pub(super) fn container_body(
    container: &Container,
    runtime: ContainerRuntime,
    unit: UnitId,
    image: &str,
    volumes: &[PathBuf],
) -> Result<Value, Failure> {
    let mut body = Map::new();
    for key in CONFIG {
        if let Some(value) = container.config.get(key) {
            body.insert(key.to_owned(), value.clone());
        }
    }
    body.insert("Image".to_owned(), json!(image));
    let mut labels =
        container.config.get("Labels").and_then(Value::as_object).cloned().unwrap_or_default();
    // A peer may not make ours look like somebody else's, nor have systemd believe that it is its own.
    labels.retain(|name, _| !name.starts_with(super::LABELS) && name != super::SYSTEMD_LABEL);
    labels.insert(UNIT_LABEL.to_owned(), json!(unit.to_string()));
    let mut host = Map::new();
    for key in HOST.iter().chain(&NAMESPACES) {
        let value = match container.host.get(*key) {
            Some(value) if *key == "LogConfig" => log_config(value),
            Some(value) => value.clone(),
            None => continue,
        };
        host.insert((*key).to_owned(), value);
    }
    host.insert("RestartPolicy".to_owned(), json!({"Name": "no"}));
    host.insert("NetworkMode".to_owned(), json!(container.network_mode));
    host.insert("Binds".to_owned(), json!(binds(container, volumes)?));
    if runtime == ContainerRuntime::Podman {
        // What it says where nobody chose is not what it takes.
        for key in ["CgroupnsMode", "IpcMode", "PidMode", "UTSMode", "UsernsMode"] {
            if matches!(host.get(key).and_then(Value::as_str), Some("private" | "shareable")) {
                host.remove(key);
            }
        }
    }
    body.insert("HostConfig".to_owned(), Value::Object(host));
    if !container.endpoints.is_empty() {
        let endpoints: Map<String, Value> = container
            .endpoints
            .iter()
            .map(|(name, endpoint)| {
                let mut out = json!({"Aliases": endpoint.aliases});
                if endpoint.ipv4.is_some() || endpoint.ipv6.is_some() {
                    out["IPAMConfig"] =
                        json!({"IPv4Address": endpoint.ipv4, "IPv6Address": endpoint.ipv6});
                }
                (name.clone(), out)
            })
            .collect();
        body.insert("NetworkingConfig".to_owned(), json!({"EndpointsConfig": endpoints}));
    }
    // Of everything but this label, which says what everything was.
    labels.insert(DESCRIPTION_LABEL.to_owned(), json!(digest(&body, &labels)));
    body.insert("Labels".to_owned(), Value::Object(labels));
    Ok(Value::Object(body))
}

/// FNV-1a: tells one body from another; nobody gains anything by two that look alike.
fn digest(body: &Map<String, Value>, labels: &Map<String, Value>) -> String {
    let text = format!("{}{}", Value::Object(body.clone()), Value::Object(labels.clone()));
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    format!("{hash:016x}")
}

/// Where a mount comes from here; `None`: a named volume.
///
/// # Errors
/// It is in a volume that the unit does not have.
pub(super) fn source_here(
    name: &str,
    source: &Source,
    volumes: &[PathBuf],
) -> Result<Option<PathBuf>, Failure> {
    match source {
        Source::Named(_) => Ok(None),
        Source::Host(path) => Ok(Some(path.clone())),
        Source::Unit { volume, path } => match volumes.get(*volume) {
            Some(base) if path.as_os_str().is_empty() => Ok(Some(base.clone())),
            Some(base) => Ok(Some(base.join(path))),
            None => Err(Failure::refused(
                FailureCode::BadRequest,
                format!(
                    "container {name} mounts volume {volume} of the unit, which has {}",
                    volumes.len()
                ),
            )),
        },
    }
}

fn binds(container: &Container, volumes: &[PathBuf]) -> Result<Vec<String>, Failure> {
    let mut out = Vec::new();
    for mount in &container.mounts {
        let here = source_here(&container.name, &mount.source, volumes)?;
        let source = match (&here, &mount.source) {
            (Some(path), _) => path.display().to_string(),
            (None, Source::Named(name)) => name.clone(),
            (None, _) => continue,
        };
        let mut options = vec![if mount.read_only { "ro" } else { "rw" }];
        let is_volume = here.is_none();
        if !is_volume && !matches!(mount.propagation.as_str(), "" | "rprivate") {
            options.push(&mount.propagation);
        }
        out.push(format!("{source}:{}:{}", mount.target.display(), options.join(",")));
    }
    Ok(out)
}

/// The body that makes a network.
pub(super) fn network_body(network: &Network) -> Value {
    let ranges: Vec<Value> = network
        .subnets
        .iter()
        .map(|range| match &range.gateway {
            Some(gateway) => json!({"Subnet": range.subnet, "Gateway": gateway}),
            None => json!({"Subnet": range.subnet}),
        })
        .collect();
    json!({
        "Name": network.name,
        "Driver": network.driver,
        "CheckDuplicate": true,
        "Internal": network.internal,
        "EnableIPv6": network.ipv6,
        "Labels": network.labels,
        "IPAM": {"Driver": "default", "Config": ranges},
    })
}

/// That a path below a volume is really in it: a symbolic link in it, which whoever writes the volume can make,
/// could lead anywhere on this host.
///
/// # Errors
/// It leads out, or is not there.
pub(super) fn check_stays_inside(volume: &Path, path: &Path) -> Result<(), Failure> {
    let look = || -> std::io::Result<bool> {
        Ok(path.canonicalize()?.starts_with(volume.canonicalize()?))
    };
    match look() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::refused(
            FailureCode::NotStarted,
            format!(
                "{} leads out of the volume {} by a symbolic link, and is not mounted",
                path.display(),
                volume.display()
            ),
        )),
        Err(error) => Err(Failure::new(
            Remedy::Operator,
            FailureCode::NotStarted,
            format!("{} cannot be mounted into the container: {error}", path.display()),
        )),
    }
}
