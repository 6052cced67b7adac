//! `doctor`: what a node stands on, looked at in one go; and what its units and peers have to say.
//!
//! Owns: what is looked at, beside the store's own look (`flocker_zfs::examine`). Leaves to others: how it is printed.
//! Reads only. It works without a daemon, since that may be what does not start.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use flocker_core::record::Policy;
use flocker_core::status::UnitStatus;
use flocker_store::Store;
pub use flocker_store::{Finding, Level};
use flocker_transport::identity::KEY_FILE;
use flocker_zfs::ZfsOptions;
use serde::{Deserialize, Serialize};

use crate::api::{ControlView, HoldsView, LaneView, LinkView, NodeView};
use crate::config::{Config, StoreUri};
use crate::store;

/// What belongs together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    /// `configuration`, `store`, `system`, `node`, `units`.
    pub name: String,
    /// In the order in which they are best read.
    pub findings: Vec<Finding>,
}

impl Area {
    fn new(name: &str, findings: Vec<Finding>) -> Self {
        Self { name: name.to_owned(), findings }
    }
}

/// Bytes that the kernel should hold of packets that nobody has read yet; what the transport asks for.
const SOCKET_BYTES: u64 = 8 << 20;

/// What can be seen without a daemon. `is_running`: one has the store open.
pub fn of_machine(config: &Config, is_running: bool) -> Vec<Area> {
    vec![
        Area::new("configuration", of_config(config)),
        Area::new("store", of_store(config, is_running)),
        Area::new("system", of_system(Path::new("/proc/sys"))),
    ]
}

/// What a running daemon says.
pub fn of_node(view: &NodeView, holds: &HoldsView) -> Vec<Area> {
    vec![Area::new("node", of_links(view)), Area::new("units", of_units(view, holds))]
}

fn of_config(config: &Config) -> Vec<Finding> {
    let mut found = vec![Finding::good(format!("{} can be read", config.path().display()))];
    let state = &config.node.state;
    match std::fs::metadata(state) {
        Ok(meta) if meta.mode() & 0o077 == 0 => {
            found.push(Finding::good(format!("{} is this user's alone", state.display())));
        }
        Ok(meta) => found.push(Finding::bad(
            format!("{} is open to others (mode {:o})", state.display(), meta.mode() & 0o777),
            format!("chmod 700 {}", state.display()),
        )),
        Err(error) => found.push(Finding::bad(
            format!("{}: {error}", state.display()),
            "`flocker-repl init` makes it; if it is gone, so is this node's identity",
        )),
    }
    let key = state.join(KEY_FILE);
    if let Ok(meta) = std::fs::metadata(&key)
        && meta.mode() & 0o077 != 0
    {
        found.push(Finding::bad(
            format!("{} can be read by others: it is what peers trust", key.display()),
            format!("chmod 600 {}; pair again if somebody may have copied it", key.display()),
        ));
    }
    found
}

fn of_store(config: &Config, is_running: bool) -> Vec<Finding> {
    let uri = &config.node.store;
    let mut found = match uri {
        StoreUri::Zfs(root) => {
            let engine = store::engine(config.zfs.engine);
            flocker_zfs::examine::examine(&ZfsOptions { engine, ..ZfsOptions::default() }, root)
        }
        StoreUri::Vault(path) if is_running => {
            return vec![Finding::good(format!("vault {} is open by the daemon", path.display()))];
        }
        StoreUri::Vault(_) => Vec::new(),
    };
    match store::open(uri, config.zfs.engine) {
        Ok(store) => found.push(Finding::good(abilities(store.as_ref()))),
        Err(error) => found.push(Finding::bad(
            format!("the store {uri} cannot be opened: {error}"),
            "nothing works before it can",
        )),
    }
    found
}

/// What it can do, in a sentence.
fn abilities(store: &dyn Store) -> String {
    let can = store.capabilities();
    let kinds = |kinds: &[flocker_store::DatasetKind]| {
        let words: Vec<String> = kinds.iter().map(ToString::to_string).collect();
        if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
    };
    let flags = [
        (can.resumable, "resume"),
        (can.bookmarks, "bookmarks"),
        (can.compressed_send, "blocks as they are compressed"),
        (can.raw_send, "raw (encrypted without its key)"),
        (can.atomic_group_snapshot, "groups as of one moment"),
    ];
    let (has, lacks): (Vec<_>, Vec<_>) = flags.iter().partition(|(can, _)| *can);
    let list = |all: Vec<&(bool, &str)>| {
        let words: Vec<&str> = all.iter().map(|(_, word)| *word).collect();
        if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
    };
    format!(
        "{} ({}): live {}; replicas of {}; can: {}; cannot: {}",
        store.describe(),
        can.version,
        kinds(&can.live_kinds),
        kinds(&can.replica_kinds),
        list(has),
        list(lacks)
    )
}

fn of_system(sys: &Path) -> Vec<Finding> {
    let mut found = Vec::new();
    for name in ["rmem_max", "wmem_max"] {
        let Ok(text) = std::fs::read_to_string(sys.join("net/core").join(name)) else { continue };
        let Ok(bytes) = text.trim().parse::<u64>() else { continue };
        if bytes < SOCKET_BYTES {
            found.push(Finding::warning(
                format!(
                    "net.core.{name} is {bytes}: on a fast link packets are lost for want of room"
                ),
                format!(
                    "sysctl -w net.core.{name}={SOCKET_BYTES}, and the same below /etc/sysctl.d"
                ),
            ));
        }
    }
    if found.is_empty() {
        found.push(Finding::good("the kernel's socket buffers are large enough"));
    }
    found
}

fn of_links(view: &NodeView) -> Vec<Finding> {
    let mut found = vec![Finding::good(format!(
        "{} {} runs (pid {}) and listens on {}",
        view.name, view.version, view.pid, view.listen
    ))];
    if view.version != env!("CARGO_PKG_VERSION") {
        found.push(Finding::warning(
            format!("the daemon is {}, this program {}", view.version, env!("CARGO_PKG_VERSION")),
            "restart the daemon",
        ));
    }
    if view.links.is_empty() {
        let what = "no peer: nothing is replicated to anybody";
        found.push(Finding::warning(what, "flocker-repl pair"));
    }
    for link in &view.links {
        let name = if link.name.is_empty() { link.peer.short() } else { link.name.clone() };
        match (&link.software, &link.last_error) {
            (Some(software), _) if *software != view.version => found.push(Finding::warning(
                format!("peer {name} runs {software}, this node {}", view.version),
                "bring both to one version",
            )),
            (Some(_), _) => found.push(of_connection(&name, link)),
            (None, error) => {
                let why = error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
                found.push(Finding::bad(
                    format!("peer {name} is not connected{why}"),
                    "see whether it runs, and whether UDP and TCP reach its port",
                ));
            }
        }
    }
    if let Some(trouble) = &view.rates.trouble {
        found.push(Finding::bad(
            format!("a change of the configuration was not taken: {trouble}"),
            "correct it; the rates stay as they were until then, and the next start fails",
        ));
    }
    for dataset in &view.node.orphans {
        found.push(Finding::warning(
            format!("{dataset} claims to belong to a unit that this node does not know"),
            "if its journal was lost, restore it; otherwise nobody needs the claim",
        ));
    }
    found
}

/// Of a connected peer: which way control takes, then what it is sent over.
fn of_connection(name: &str, link: &LinkView) -> Finding {
    let Some(ControlView { over, why: Some(why), udp_blocked, for_ms }) = &link.control else {
        return of_lane(name, link.lane.as_ref());
    };
    let since = Duration::from_secs(for_ms / 1000);
    let what =
        format!("peer {name} is connected, and everything goes over {over} since {since:?}: {why}");
    if !udp_blocked {
        return Finding::good(what);
    }
    Finding::warning(
        format!("{what}. UDP is blocked on the way"),
        "let UDP through to the port that the peer listens on, both ways, and it goes back to QUIC by itself; \
         or set `[transport] lane = \"tls\"` if it is to stay so",
    )
}

/// What a connected peer is sent over.
fn of_lane(name: &str, lane: Option<&LaneView>) -> Finding {
    match lane {
        Some(LaneView { failed: Some(failed), .. }) => Finding::warning(
            format!("peer {name} is connected, but takes nothing over TLS: {failed}"),
            "let TCP through to the port that it listens on, or set `[transport] lane = \"quic\"`",
        ),
        Some(LaneView { chosen, why, .. }) => {
            Finding::good(format!("peer {name} is connected; large transfers take {chosen}: {why}"))
        }
        None => Finding::good(format!("peer {name} is connected")),
    }
}

fn of_units(view: &NodeView, holds: &HoldsView) -> Vec<Finding> {
    let mut found = Vec::new();
    for unit in &view.node.units {
        of_unit(unit, &mut found);
    }
    let stale = holds.kept.iter().filter(|kept| kept.stale && !kept.tags.is_empty()).count();
    if stale > 0 {
        found.push(Finding::warning(
            format!("{stale} snapshots are held for units that nobody here knows"),
            "flocker-repl holds --collect",
        ));
    }
    if found.is_empty() {
        found.push(Finding::good("nothing is protected here yet"));
    }
    found
}

fn of_unit(unit: &UnitStatus, found: &mut Vec<Finding>) {
    let name = &unit.name;
    let before = found.len();
    if let Some(alarm) = &unit.alarm {
        found.push(Finding::bad(
            format!("{name}: {}", alarm.message),
            format!("flocker-repl status {name}"),
        ));
    }
    if unit.paused {
        found.push(Finding::warning(
            format!("{name} is paused: it is not replicated"),
            format!("flocker-repl resume {name}"),
        ));
    }
    for standby in &unit.standbys {
        let peer = &standby.name;
        match &standby.failure {
            // The alarm has said it.
            Some(failure) if unit.alarm.as_ref().is_none_or(|a| a.message != failure.message) => {
                found.push(Finding::bad(
                    format!("{name} is not replicated to {peer}: {}", failure.message),
                    format!("flocker-repl status {name}"),
                ));
            }
            Some(_) => {}
            None if !standby.within_rpo && !unit.paused => found.push(Finding::warning(
                format!("{name} on {peer} lags further behind than was promised"),
                format!("flocker-repl rounds {name} shows where the time goes"),
            )),
            None => {}
        }
    }
    if found.len() == before {
        let promise = match unit.policy {
            Policy::Rpo(ms) => format!("within {ms} ms"),
            Policy::Every(ms) => format!("every {ms} ms"),
        };
        let what = match unit.standbys.len() {
            0 => format!("{name} is {} here, and well", unit.role),
            _ => format!("{name} is {} here, replicated {promise}", unit.role),
        };
        found.push(Finding::good(what));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_socket_buffers_are_said_with_the_command_that_enlarges_them() {
        let dir = tempfile::tempdir().unwrap();
        let core = dir.path().join("net/core");
        std::fs::create_dir_all(&core).unwrap();
        std::fs::write(core.join("rmem_max"), "212992\n").unwrap();
        std::fs::write(core.join("wmem_max"), "8388608\n").unwrap();
        let found = of_system(dir.path());
        assert_eq!(found.len(), 1);
        assert!(found[0].what.contains("rmem_max is 212992"));
        assert!(found[0].todo.as_ref().unwrap().contains("net.core.rmem_max=8388608"));
        std::fs::write(core.join("rmem_max"), "9000000\n").unwrap();
        assert_eq!(of_system(dir.path())[0].level, Level::Good);
        assert_eq!(of_system(&dir.path().join("none"))[0].level, Level::Good);
    }

    #[test]
    fn tls_that_fails_is_said_with_what_to_do_and_a_choice_with_its_reason() {
        let lane = |failed: Option<&str>| LaneView {
            chosen: "quic".into(),
            why: "it is faster".into(),
            failed: failed.map(str::to_owned),
            quic: None,
            tls: None,
        };
        let finding = of_lane("b", Some(&lane(Some("connection refused"))));
        assert_eq!(finding.level, Level::Warning);
        assert!(finding.what.contains("connection refused"), "{}", finding.what);
        let finding = of_lane("b", Some(&lane(None)));
        assert_eq!(finding.level, Level::Good);
        assert!(finding.what.contains("take quic: it is faster"), "{}", finding.what);
    }

    #[test]
    fn control_over_tls_is_said_with_why_and_since_and_is_wrong_only_where_udp_is_blocked() {
        let mut link = LinkView {
            peer: flocker_core::ids::Fingerprint([1; 32]),
            name: "b".into(),
            words: String::new(),
            software: Some(env!("CARGO_PKG_VERSION").into()),
            round_trip_us: None,
            control: Some(ControlView {
                over: "tls".into(),
                why: Some("nothing answered over UDP at 10.0.0.2:7001".into()),
                udp_blocked: true,
                for_ms: 65_000,
            }),
            lane: None,
            last_error: None,
        };
        let finding = of_connection("b", &link);
        assert_eq!(finding.level, Level::Warning);
        for word in ["over tls since 65s", "10.0.0.2:7001", "UDP is blocked"] {
            assert!(finding.what.contains(word), "{}", finding.what);
        }
        assert!(finding.todo.unwrap().contains("let UDP through"));
        let control = link.control.as_mut().unwrap();
        (control.udp_blocked, control.why) = (false, Some("this node is configured so".into()));
        assert_eq!(of_connection("b", &link).level, Level::Good);
    }

    #[test]
    fn a_vault_says_what_it_can_and_cannot() {
        let dir = tempfile::tempdir().unwrap();
        let vault = flocker_vault::Vault::create(dir.path().join("v")).unwrap();
        let words = abilities(&vault);
        assert!(words.contains("live directory") && words.contains("cannot: "), "{words}");
    }
}
