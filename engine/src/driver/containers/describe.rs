//! From what a runtime says of a container to what another node needs, and what would be left behind.
//!
//! Owns: pure functions of the API's answers. Leaves to others: asking ([`super::api`]), and the way back
//! ([`super::create`]). A setting is carried, is known not to matter, opens the host (then it is told by
//! `guarded`), or is a loss: nothing is dropped in silence.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::api::Inspected;
use super::description::{
    CONFIG, Container, Endpoint, HOST, Image, Mount, NAMESPACES, Network, Restart, Source, Subnet,
    log_config,
};
use crate::driver::Loss;

/// Settings of `HostConfig` that are carried otherwise, are another form of what is, or say only how it was
/// made.
const ELSEWHERE: [&str; 21] = [
    "Binds",
    "Mounts",
    "NetworkMode",
    "RestartPolicy",
    "Privileged",
    "Devices",
    "VolumesFrom",
    "Links",
    "ContainerIDFile",
    "ConsoleSize",
    "Isolation",
    "VolumeDriver",
    "AutoRemove",
    "Cgroup",
    "Cgroups",
    "CgroupManager",
    "CgroupMode",
    "CgroupConf",
    "Runtime",
    "MaskedPaths",
    "ReadonlyPaths",
];

/// Networks that each node has.
const OWN_NETWORKS: [&str; 6] = ["bridge", "podman", "host", "none", "default", "pasta"];

/// Environment that podman puts into each container.
const PODMANS_ENVIRONMENT: [&str; 1] = ["container=podman"];

/// Runtimes that are what anybody has.
const USUAL_RUNTIMES: [&str; 6] =
    ["", "oci", "runc", "crun", "io.containerd.runc.v2", "io.containerd.runtime.v1.linux"];

/// One container, and what would be left behind.
pub(super) fn container(
    inspected: &Inspected,
    volumes: &[PathBuf],
    names: &[String],
    image: Option<&Value>,
) -> (Container, Vec<Loss>) {
    let docker = &inspected.docker;
    let name = docker["Name"].as_str().unwrap_or_default().trim_start_matches('/').to_owned();
    let mut losses = Losses { name: name.clone(), found: Vec::new() };
    let mut guarded = Vec::new();
    let host = host(&docker["HostConfig"], &mut losses, &mut guarded);
    let mounts = mounts(docker, volumes, &mut losses);
    let (network_mode, endpoints) = network(inspected, names, &mut losses);
    if let Some(libpod) = &inspected.libpod {
        only_podmans(libpod, &mut losses);
        // Podman's API cannot take an image's entrypoint away.
        let images = image.is_some_and(|image| !is_unset(&image["Config"]["Entrypoint"]));
        if images && is_unset(&docker["Config"]["Entrypoint"]) {
            losses.add(
                "setting:Entrypoint",
                "it was made without its image's entrypoint, and would be made with it on the other \
                 node; make it there yourself"
                    .to_owned(),
            );
        }
    }
    let restart = &docker["HostConfig"]["RestartPolicy"];
    let policy = restart["Name"].as_str().filter(|name| !name.is_empty()).unwrap_or("no");
    let container = Container {
        image: Image {
            reference: docker["Config"]["Image"].as_str().unwrap_or_default().to_owned(),
            id: image_id(docker["Image"].as_str().unwrap_or_default()),
            digests: strings(image.map_or(&Value::Null, |image| &image["RepoDigests"])),
        },
        config: config(inspected),
        host,
        mounts,
        network_mode,
        endpoints,
        restart: Restart {
            policy: policy.to_owned(),
            retries: restart["MaximumRetryCount"].as_u64().unwrap_or(0),
        },
        guarded,
        name,
    };
    (container, losses.found)
}

/// An image's id without `sha256:`.
pub(super) fn image_id(text: &str) -> String {
    text.strip_prefix("sha256:").unwrap_or(text).to_owned()
}

#[derive(Debug)]
struct Losses {
    name: String,
    found: Vec<Loss>,
}

impl Losses {
    fn add(&mut self, name: impl std::fmt::Display, what: String) {
        let name = format!("{}:{name}", self.name);
        if !self.found.iter().any(|loss| loss.name == name) {
            self.found.push(Loss { name, what: format!("container {}: {what}", self.name) });
        }
    }
}

/// Those of a list.
pub(in crate::driver) fn strings(value: &Value) -> Vec<String> {
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Nothing that anybody has set.
fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64().is_some_and(|value| value == 0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(value) => value.is_empty(),
        Value::Object(value) => value.is_empty(),
    }
}

fn config(inspected: &Inspected) -> Map<String, Value> {
    let config = &inspected.docker["Config"];
    let mut out = Map::new();
    for key in CONFIG {
        let value = &config[key];
        // An empty entrypoint or command takes the image's away; nothing leaves it.
        let emptied = matches!(key, "Cmd" | "Entrypoint") && value.is_array();
        if !is_unset(value) || emptied {
            out.insert(key.to_owned(), value.clone());
        }
    }
    // A hostname that was made from the id, or is this host's, would be another one's.
    let hostname = config["Hostname"].as_str().unwrap_or_default().to_owned();
    let of_host = inspected.docker["HostConfig"]["NetworkMode"] == "host" && hostname == own_name();
    if !hostname.is_empty() && (inspected.id.starts_with(&hostname) || of_host) {
        out.remove("Hostname");
    }
    if let Some(Value::Array(list)) = out.get_mut("Env") {
        list.retain(|entry| {
            let entry = entry.as_str().unwrap_or_default();
            let own_name = entry.strip_prefix("HOSTNAME=").is_some_and(|name| name == hostname);
            !(PODMANS_ENVIRONMENT.contains(&entry) || (inspected.libpod.is_some() && own_name))
        });
        // Podman says it in any order.
        list.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
    }
    if let Some(Value::Object(labels)) = out.get_mut("Labels") {
        labels.retain(|name, _| !name.starts_with(super::LABELS));
        if labels.is_empty() {
            out.remove("Labels");
        }
    }
    if matches!(out.get("StopSignal").and_then(Value::as_str), Some("SIGTERM" | "15")) {
        out.remove("StopSignal");
    }
    out
}

/// This host's name.
fn own_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn host(host: &Value, losses: &mut Losses, guarded: &mut Vec<String>) -> Map<String, Value> {
    let mut out = Map::new();
    for (key, value) in host.as_object().into_iter().flatten() {
        let key = key.as_str();
        if is_unset(value) || ELSEWHERE.contains(&key) || is_default(key, value) {
            continue;
        }
        if NAMESPACES.contains(&key) {
            let mode = value.as_str().unwrap_or_default();
            if mode.starts_with("container:") {
                losses.add(
                    format_args!("namespace:{key}"),
                    format!("it shares {key} with {mode}, which is not made so on the other node"),
                );
            } else {
                out.insert(key.to_owned(), value.clone());
            }
        } else if HOST.contains(&key) {
            out.insert(key.to_owned(), carried(key, value));
        } else {
            losses.add(
                format_args!("setting:{key}"),
                format!("its setting {key} ({value}) is not carried to the other node"),
            );
        }
    }
    if host["Privileged"].as_bool() == Some(true) {
        guarded.push("privileged".to_owned());
    }
    let runtime = host["Runtime"].as_str().unwrap_or_default();
    if !USUAL_RUNTIMES.contains(&runtime) {
        guarded.push(format!("runtime {runtime}"));
    }
    for key in ["MaskedPaths", "ReadonlyPaths"] {
        if host[key].as_array().is_some_and(Vec::is_empty) && host["Privileged"] != true {
            guarded.push(format!("no {key}"));
        }
    }
    for device in host["Devices"].as_array().into_iter().flatten() {
        let path = device["PathOnHost"].as_str().unwrap_or_default();
        guarded.push(format!("device {path}"));
        losses.add(
            format_args!("device:{path}"),
            format!("it uses {path} of this host; the other node's own is another one"),
        );
    }
    for from in strings(&host["VolumesFrom"]) {
        losses.add(
            format_args!("volumes-from:{from}"),
            format!("it has the volumes of {from}; mount them by themselves"),
        );
    }
    for link in strings(&host["Links"]) {
        losses.add(
            format_args!("link:{link}"),
            format!("it is linked to {link}; use a network that both are in"),
        );
    }
    out
}

/// Podman says limits in another way than it wants to hear them.
fn carried(key: &str, value: &Value) -> Value {
    let mut value = value.clone();
    if let (true, Some(list)) = (key == "Ulimits", value.as_array_mut()) {
        for limit in list {
            let name = limit["Name"].as_str().unwrap_or_default();
            let name = name.strip_prefix("RLIMIT_").unwrap_or(name).to_lowercase();
            limit["Name"] = Value::from(name);
        }
    }
    if key == "LogConfig" { log_config(&value) } else { value }
}

/// Settings that nobody has set, though they are something.
fn is_default(key: &str, value: &Value) -> bool {
    match key {
        "CgroupParent" => {
            value.as_str().is_some_and(|v| v == "machine.slice" || v == "system.slice")
        }
        "Annotations" => value.as_object().is_some_and(|all| {
            all.keys().all(|name| {
                name.starts_with("io.podman.")
                    || name.starts_with("io.container")
                    || name.starts_with("org.opencontainers.image")
                    || name.starts_with("org.systemd.property.")
            })
        }),
        "IOMaximumBandwidth" | "IOMaximumIOps" | "IDMappings" => is_unset(value),
        "MemorySwappiness" => value.as_i64() == Some(-1),
        _ => false,
    }
}

/// The volume that a path is in, and where there: the nearest one counts.
pub(super) fn inside(path: &Path, volumes: &[PathBuf]) -> Option<(usize, PathBuf)> {
    let mut found: Option<(usize, PathBuf)> = None;
    let mut longest = 0;
    for (index, volume) in volumes.iter().enumerate() {
        let depth = volume.components().count();
        if let Ok(rest) = path.strip_prefix(volume)
            && depth > longest
        {
            longest = depth;
            found = Some((index, rest.to_owned()));
        }
    }
    found
}

fn mounts(docker: &Value, volumes: &[PathBuf], losses: &mut Losses) -> Vec<Mount> {
    let mut out = Vec::new();
    for mount in docker["Mounts"].as_array().into_iter().flatten() {
        let target = PathBuf::from(mount["Destination"].as_str().unwrap_or_default());
        let source = PathBuf::from(mount["Source"].as_str().unwrap_or_default());
        let kind = mount["Type"].as_str().unwrap_or_default();
        let at = target.display();
        let found = match inside(&source, volumes) {
            Some((volume, path)) => Some(Source::Unit { volume, path }),
            None if kind == "tmpfs" => continue,
            None if kind == "volume" => {
                let name = mount["Name"].as_str().unwrap_or_default();
                if is_anonymous(name) {
                    losses.add(
                        format_args!("volume:{at}"),
                        format!(
                            "what is in {at} lies in an anonymous volume and stays here; mount a \
                             folder of the unit's volume there"
                        ),
                    );
                    // The image makes it anew over there.
                    None
                } else {
                    losses.add(
                        format_args!("volume:{name}"),
                        format!(
                            "what is in {at} lies in the volume {name}, outside the unit, and stays \
                             here; mount a folder of the unit's volume there"
                        ),
                    );
                    Some(Source::Named(name.to_owned()))
                }
            }
            None => {
                losses.add(
                    format_args!("bind:{}", source.display()),
                    format!(
                        "it mounts {} of this host at {at}, outside the unit: what is there stays \
                         here; the other node needs its own",
                        source.display()
                    ),
                );
                Some(Source::Host(source))
            }
        };
        if let Some(source) = found {
            out.push(Mount {
                source,
                read_only: mount["RW"].as_bool() == Some(false),
                propagation: mount["Propagation"].as_str().unwrap_or_default().to_owned(),
                target,
            });
        }
    }
    out
}

/// A name that nobody has chosen: 64 hexadecimal digits.
fn is_anonymous(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn network(
    inspected: &Inspected,
    names: &[String],
    losses: &mut Losses,
) -> (String, BTreeMap<String, Endpoint>) {
    let docker = &inspected.docker;
    let mut mode = docker["HostConfig"]["NetworkMode"].as_str().unwrap_or("bridge").to_owned();
    if let Some(other) = mode.strip_prefix("container:") {
        if !names.iter().any(|name| name == other) {
            losses.add(
                "namespace:NetworkMode",
                format!("it is in the network of {other}; name both in the unit, by their names"),
            );
        }
        return (mode, BTreeMap::new());
    }
    let mut endpoints = BTreeMap::new();
    for (name, endpoint) in docker["NetworkSettings"]["Networks"].as_object().into_iter().flatten()
    {
        if OWN_NETWORKS.contains(&name.as_str()) {
            continue;
        }
        let mut aliases = strings(&endpoint["Aliases"]);
        aliases.retain(|alias| !inspected.id.starts_with(alias.as_str()));
        let address = |key: &str| {
            let text = endpoint["IPAMConfig"][key].as_str().unwrap_or_default();
            (!text.is_empty()).then(|| text.to_owned())
        };
        let (ipv4, ipv6) = (address("IPv4Address"), address("IPv6Address"));
        endpoints.insert(name.clone(), Endpoint { aliases, ipv4, ipv6 });
    }
    if let Some(first) = endpoints.keys().next()
        && !endpoints.contains_key(&mode)
        && !matches!(mode.as_str(), "host" | "none")
    {
        mode = first.clone();
    }
    (mode, endpoints)
}

fn only_podmans(libpod: &Value, losses: &mut Losses) {
    let pod = libpod["Pod"].as_str().unwrap_or_default();
    if !pod.is_empty() {
        losses.add(
            "pod",
            format!("it is in the pod {pod}; a container that moves is made outside of one"),
        );
    }
    for secret in libpod["Config"]["Secrets"].as_array().into_iter().flatten() {
        let name = secret["Name"].as_str().unwrap_or_default();
        losses.add(
            format_args!("secret:{name}"),
            format!(
                "its secret {name} stays here; make it on the other node (`podman secret create`)"
            ),
        );
    }
    for other in strings(&libpod["Dependencies"]) {
        losses.add(
            format_args!("requires:{other}"),
            format!("it requires {other}, which is not made so on the other node"),
        );
    }
}

/// A network, and what of it cannot be made elsewhere.
pub(super) fn describe_network(name: &str, found: &Value) -> (Network, Option<Loss>) {
    let driver = found["Driver"].as_str().unwrap_or_default().to_owned();
    let subnets = found["IPAM"]["Config"].as_array().into_iter().flatten();
    let subnets = subnets
        .filter_map(|range| {
            let gateway = range["Gateway"].as_str().filter(|text| !text.is_empty());
            Some(Subnet {
                subnet: range["Subnet"].as_str().filter(|text| !text.is_empty())?.to_owned(),
                gateway: gateway.map(str::to_owned),
            })
        })
        .collect();
    let labels = found["Labels"].as_object().into_iter().flatten();
    let labels = labels
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect();
    let loss = (driver != "bridge").then(|| Loss {
        name: format!("network:{name}"),
        what: format!(
            "network {name} is of the kind {driver}, which is bound to this host; make one of that \
             name on the other node"
        ),
    });
    let network = Network {
        name: name.to_owned(),
        driver,
        subnets,
        internal: found["Internal"].as_bool().unwrap_or(false),
        ipv6: found["EnableIPv6"].as_bool().unwrap_or(false),
        labels,
    };
    (network, loss)
}
