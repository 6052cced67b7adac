//! `status` and `peers`: for people on a terminal, and as `KEY=VALUE` lines elsewhere.

use flocker_core::record::{Grant, Policy};
use flocker_core::status::{PeerStatus, StandbyStatus, UnitStatus};
use flocker_engine::api::{Direction, LinkView, NodeView, Progress};
use serde_json::Value;

use crate::out::{Theme, clean};
use crate::quantity::{bytes, count, millis, rate};
use crate::values::address_words;

/// What `status --json` prints: the node's view in one level, `units` and `peers` beside its name.
///
/// # Errors
/// The view cannot be written as JSON.
pub(crate) fn object(view: &NodeView) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(view)?;
    if let Value::Object(map) = &mut value
        && let Some(Value::Object(node)) = map.remove(NESTED)
    {
        map.extend(node);
    }
    Ok(value)
}

/// The view again.
///
/// # Errors
/// It is not what [`object`] makes.
pub(crate) fn view_of(mut object: Value) -> serde_json::Result<NodeView> {
    let node = object.clone();
    if let Value::Object(map) = &mut object {
        map.insert(NESTED.into(), node);
    }
    serde_json::from_value(object)
}

/// Where the local API keeps what the core says.
const NESTED: &str = "node";

/// For people. `one`: only a unit was asked for, so the node itself is left out.
pub(crate) fn for_people(view: &NodeView, one: bool, theme: Theme) -> String {
    let mut text = String::new();
    if !one {
        node(&mut text, view, theme);
    }
    for (at, status) in view.node.units.iter().enumerate() {
        if at > 0 || !one {
            text.push('\n');
        }
        unit(&mut text, view, status, theme);
    }
    if !one && view.node.units.is_empty() {
        text.push_str(&format!(
            "\nnothing is protected here; begin with {}\n",
            theme.accent("flocker-repl protect DATASET --to PEER")
        ));
    }
    text
}

fn node(text: &mut String, view: &NodeView, theme: Theme) {
    text.push_str(&format!(
        "node {}  {}  {}, listens on {}, up {}\n",
        theme.strong(&view.name),
        theme.dim(&view.node.fingerprint.short()),
        view.store,
        view.listen,
        millis(view.uptime_ms)
    ));
    for peer in &view.node.peers {
        text.push_str(&format!("  {}\n", peer_sentence(peer, theme)));
        if let Some(why) = why_not(view, peer) {
            text.push_str(&format!("    {}\n", clean(why)));
        }
    }
    if view.node.peers.is_empty() {
        text.push_str(&format!(
            "  no peers; begin with {}\n",
            theme.accent("flocker-repl pair --invite")
        ));
    }
    for orphan in &view.node.orphans {
        text.push_str(&format!(
            "  {} {orphan} says it belongs to a unit that this node's journal does not know; it is left alone\n",
            theme.warn("!")
        ));
    }
}

fn link<'a>(view: &'a NodeView, peer: &PeerStatus) -> Option<&'a LinkView> {
    view.links.iter().find(|link| link.peer == peer.record.fingerprint)
}

/// Why a peer is not connected, if that is known.
fn why_not<'a>(view: &'a NodeView, peer: &PeerStatus) -> Option<&'a str> {
    if peer.connected {
        return None;
    }
    link(view, peer)?.last_error.as_deref()
}

fn peer_sentence(peer: &PeerStatus, theme: Theme) -> String {
    let state = if peer.connected { theme.good("connected") } else { theme.bad("not connected") };
    format!(
        "peer {}  {}  {state}; {}",
        theme.strong(&peer.record.name),
        theme.dim(&peer.record.fingerprint.short()),
        grant_words(peer.record.grant.as_ref())
    )
}

fn grant_words(grant: Option<&Grant>) -> String {
    let Some(grant) = grant else {
        return "may do nothing here".into();
    };
    let quota =
        grant.quota_bytes.map_or_else(String::new, |most| format!(" up to {}", bytes(most)));
    let kinds: Vec<String> = grant.workloads.iter().map(ToString::to_string).collect();
    let start = if kinds.is_empty() { "nothing".to_owned() } else { kinds.join(", ") };
    format!("may receive into {}{quota}, start {start}", grant.receive)
}

fn promise(policy: Policy) -> String {
    match policy {
        Policy::Rpo(ms) => format!("{} promised", millis(ms)),
        Policy::Every(ms) => format!("every {}", millis(ms)),
    }
}

fn role_words(status: &UnitStatus, theme: Theme) -> String {
    match status.role.as_str() {
        "primary" => theme.good("primary"),
        "standby" => theme.accent("standby"),
        other => theme.warn(other),
    }
}

fn unit(text: &mut String, view: &NodeView, status: &UnitStatus, theme: Theme) {
    let mut head = format!(
        "{}  {} · epoch {}",
        theme.strong(&status.name),
        role_words(status, theme),
        status.epoch.number
    );
    if status.paused {
        head.push_str(&format!(" · {}", theme.warn("paused")));
    }
    let said = status.paused && status.doing == "paused";
    if !said && !status.doing.is_empty() {
        head.push_str(&format!(" · {}", clean(&status.doing)));
    }
    text.push_str(&head);
    text.push('\n');
    for volume in &status.volumes {
        let path = view
            .paths
            .get(volume.dataset.as_str())
            .map_or_else(String::new, |path| format!("  {}", path.display()));
        text.push_str(&format!("  volume    {} ({}){path}\n", volume.dataset, volume.kind));
    }
    workload(text, status, theme);
    if status.role == "standby" {
        let within = status.lag_ms.is_some_and(|lag| lag <= status.policy.rpo_ms());
        text.push_str(&format!(
            "  lag       {}\n",
            lag_words(status.lag_ms, within, status.policy, theme)
        ));
    }
    for standby in &status.standbys {
        self::standby(text, status, standby, theme);
    }
    for progress in
        view.transfers.iter().filter(|progress| progress.unit == status.id && !progress.ended)
    {
        text.push_str(&format!("  transfer  {}\n", transfer_words(progress)));
    }
    if let Some(alarm) = &status.alarm {
        text.push_str(&format!("  {}     {}\n", theme.bad("alarm"), clean(&alarm.message)));
    }
}

fn workload(text: &mut String, status: &UnitStatus, theme: Theme) {
    let Some(workload) = &status.workload else {
        if status.workload_state != "none" {
            text.push_str(&format!("  workload  {}\n", status.workload_state));
        }
        return;
    };
    let state = match status.workload_state.as_str() {
        "running" => theme.good("running"),
        state if state.starts_with("exited") => theme.bad(&clean(state)),
        other => other.to_owned(),
    };
    text.push_str(&format!("  workload  {state}  {}\n", theme.dim(&workload.command.join(" "))));
    let running = status.workload_state == "running";
    for address in &workload.addresses {
        let place = if running { "moves with it" } else { "comes with it" };
        text.push_str(&format!("  address   {}, {place}\n", address_words(address)));
    }
    for forward in &workload.forwards {
        text.push_str(&format!(
            "  forward   {} to {} while it is here, else to {}\n",
            forward.listen, forward.local, forward.remote
        ));
    }
}

fn lag_words(lag_ms: Option<u64>, within: bool, policy: Policy, theme: Theme) -> String {
    match lag_ms {
        Some(lag) => format!("{} {} behind, {}", theme.mark(within), millis(lag), promise(policy)),
        None => format!("{} lag not known yet, {}", theme.mark(false), promise(policy)),
    }
}

fn standby(text: &mut String, unit: &UnitStatus, standby: &StandbyStatus, theme: Theme) {
    let connected =
        if standby.connected { String::new() } else { format!("; {}", theme.bad("not connected")) };
    text.push_str(&format!(
        "  standby   {}  {}{connected}\n",
        theme.strong(&standby.name),
        lag_words(standby.lag_ms, standby.within_rpo, unit.policy, theme)
    ));
    let mut facts = vec![clean(&standby.doing)];
    if standby.rounds > 0 {
        facts.push(format!(
            "{}, {} ({} on the wire)",
            count(standby.rounds, "round"),
            bytes(standby.stream_bytes),
            bytes(standby.wire_bytes)
        ));
    }
    if let Some(ms) = standby.last_round_ms {
        let speed = standby
            .bytes_per_second
            .map_or_else(String::new, |speed| format!(" at {}", rate(speed)));
        facts.push(format!("the last took {}{speed}", millis(ms)));
    }
    if standby.backlog > 0 {
        facts.push(format!("{} waiting", count(standby.backlog, "snapshot")));
    }
    facts.retain(|fact| !fact.is_empty());
    text.push_str(&format!("            {}\n", facts.join(" · ")));
    if let Some(failure) = &standby.failure {
        text.push_str(&format!("            {} {}\n", theme.bad("✗"), clean(&failure.message)));
    }
}

/// `32.0 MiB of 64.0 MiB (50 %) at 80.0 MiB/s, 0.4 s left`
pub(crate) fn transfer_words(progress: &Progress) -> String {
    let way = match progress.direction {
        Direction::Send => "sending",
        Direction::Receive => "receiving",
    };
    let all = if progress.full { " everything" } else { "" };
    let total = match progress.total_bytes {
        Some(total) if total >= progress.stream_bytes && total > 0 => format!(
            " of {} ({} %)",
            bytes(total),
            u128::from(progress.stream_bytes) * 100 / u128::from(total)
        ),
        _ => String::new(),
    };
    let left = progress
        .total_bytes
        .and_then(|total| total.checked_sub(progress.stream_bytes))
        .and_then(|left| left.saturating_mul(1000).checked_div(progress.bytes_per_second))
        .map_or_else(String::new, |ms| format!(", {} left", millis(ms)));
    format!(
        "{way}{all}: {}{total} at {}{left}",
        bytes(progress.stream_bytes),
        rate(progress.bytes_per_second)
    )
}

/// The peers alone.
pub(crate) fn peers_for_people(view: &NodeView, theme: Theme) -> String {
    if view.node.peers.is_empty() {
        return format!("no peers; begin with {}\n", theme.accent("flocker-repl pair --invite"));
    }
    let mut text = String::new();
    for peer in &view.node.peers {
        text.push_str(&format!("{}\n", peer_sentence(peer, theme)));
        if let Some(why) = why_not(view, peer) {
            text.push_str(&format!("  {}\n", clean(why)));
        }
        if let Some(link) = link(view, peer) {
            text.push_str(&format!("  words {}", link.words));
            if let Some(us) = link.round_trip_us {
                text.push_str(&format!(" · round trip {}.{:03} ms", us / 1000, us % 1000));
            }
            if let Some(software) = &link.software {
                text.push_str(&format!(" · version {}", clean(software)));
            }
            text.push('\n');
        }
        text.push_str(&format!(
            "  {}\n  at {}\n",
            theme.dim(&peer.record.fingerprint.to_string()),
            peer.record.addresses.join(", ")
        ));
    }
    text
}

/// A value of a plain line: quoted where it would fall apart.
fn value(text: &str) -> String {
    let bare =
        !text.is_empty() && text.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '"');
    if bare { text.to_owned() } else { format!("{text:?}") }
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(|| "none".into(), |value| value.to_string())
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// One line a node, peer, unit and standby, each value with its key.
pub(crate) fn plain(view: &NodeView, one: bool) -> String {
    let mut text = String::new();
    if !one {
        text.push_str(&format!(
            "node name={} fingerprint={} store={} listen={} pid={} uptime_ms={}\n",
            value(&view.name),
            view.node.fingerprint,
            value(&view.store),
            value(&view.listen),
            view.pid,
            view.uptime_ms
        ));
        text.push_str(&peers_plain(&view.node.peers));
        for orphan in &view.node.orphans {
            text.push_str(&format!("orphan dataset={}\n", value(orphan)));
        }
    }
    for status in &view.node.units {
        plain_unit(&mut text, status);
    }
    text
}

/// One line a peer.
pub(crate) fn peers_plain(peers: &[PeerStatus]) -> String {
    let mut text = String::new();
    for peer in peers {
        let record = &peer.record;
        text.push_str(&format!(
            "peer name={} fingerprint={} connected={} addresses={}",
            value(&record.name),
            record.fingerprint,
            yes(peer.connected),
            value(&record.addresses.join(","))
        ));
        if let Some(grant) = &record.grant {
            let kinds: Vec<String> = grant.workloads.iter().map(ToString::to_string).collect();
            text.push_str(&format!(
                " receive={} quota_bytes={} workloads={}",
                value(grant.receive.as_str()),
                number(grant.quota_bytes),
                value(&kinds.join(","))
            ));
        }
        text.push('\n');
    }
    text
}

fn plain_unit(text: &mut String, status: &UnitStatus) {
    let (mode, promise_ms) = match status.policy {
        Policy::Rpo(ms) => ("rpo_ms", ms),
        Policy::Every(ms) => ("every_ms", ms),
    };
    text.push_str(&format!(
        "unit name={} role={} epoch={} {mode}={promise_ms} paused={} workload={} lag_ms={} doing={}",
        value(&status.name),
        value(&status.role),
        status.epoch.number,
        yes(status.paused),
        value(&status.workload_state),
        number(status.lag_ms),
        value(&status.doing)
    ));
    if let Some(alarm) = &status.alarm {
        text.push_str(&format!(" alarm={}", value(&alarm.message)));
    }
    text.push('\n');
    for standby in &status.standbys {
        text.push_str(&format!(
            "standby unit={} peer={} connected={} lag_ms={} within_rpo={} rounds={} stream_bytes={} \
             wire_bytes={} bytes_per_second={} last_round_ms={} backlog={} doing={}",
            value(&status.name),
            value(&standby.name),
            yes(standby.connected),
            number(standby.lag_ms),
            yes(standby.within_rpo),
            standby.rounds,
            standby.stream_bytes,
            standby.wire_bytes,
            number(standby.bytes_per_second),
            number(standby.last_round_ms),
            standby.backlog,
            value(&standby.doing)
        ));
        if let Some(failure) = &standby.failure {
            text.push_str(&format!(" failure={}", value(&failure.message)));
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn a_primary_shows_role_epoch_workload_and_each_standbys_lag_against_the_promise() {
        let text = for_people(&samples::view(), false, Theme::PLAIN);
        assert_eq!(
            text,
            "node a  a1a1a1a1  vault:/srv/a, listens on 10.0.0.1:7001, up 1 min 05 s\n\
             \x20 peer b  b2b2b2b2  connected; may receive into recv/b up to 10.0 GiB, start process\n\
             \n\
             db  primary · epoch 1 · replicating\n\
             \x20 volume    data/db (directory)  /srv/a/live/data/db\n\
             \x20 workload  running  server --port 5000\n\
             \x20 standby   b  ✓ 420 ms behind, 1.00 s promised\n\
             \x20           waiting · 12 rounds, 41.0 MiB (9.0 MiB on the wire) · the last took 35 ms at 85.0 MiB/s\n"
        );
    }

    #[test]
    fn a_broken_promise_a_lost_peer_and_an_alarm_are_shown() {
        let mut view = samples::view();
        let unit = &mut view.node.units[0];
        unit.paused = true;
        unit.alarm = Some(samples::failure());
        unit.standbys[0].within_rpo = false;
        unit.standbys[0].connected = false;
        unit.standbys[0].failure = Some(samples::failure());
        let text = for_people(&view, true, Theme::PLAIN);
        assert!(text.starts_with("db  primary"), "{text}");
        for words in ["paused", "✗ 420 ms", "not connected", "alarm     b: recv/a/db has no room"]
        {
            assert!(text.contains(words), "`{words}` is not in:\n{text}");
        }
    }

    #[test]
    fn a_standby_shows_its_own_lag() {
        let mut view = samples::view();
        let unit = &mut view.node.units[0];
        unit.role = "standby".into();
        unit.standbys.clear();
        unit.workload_state = "elsewhere".into();
        let text = for_people(&view, true, Theme::PLAIN);
        assert!(text.contains("lag       ✗ lag not known yet"), "{text}");
        view.node.units[0].lag_ms = Some(300);
        let text = for_people(&view, true, Theme::PLAIN);
        assert!(text.contains("lag       ✓ 300 ms behind"), "{text}");
    }

    #[test]
    fn an_empty_node_says_how_to_begin() {
        let mut view = samples::view();
        view.node.units.clear();
        view.node.peers.clear();
        let text = for_people(&view, false, Theme::PLAIN);
        assert!(text.contains("pair --invite") && text.contains("protect DATASET"), "{text}");
    }

    #[test]
    fn plain_lines_hold_one_thing_each_and_quote_what_has_spaces() {
        let mut view = samples::view();
        view.node.units[0].alarm = Some(samples::failure());
        let text = plain(&view, false);
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.contains("\nunit name=db role=primary epoch=1 rpo_ms=1000 "), "{text}");
        assert!(text.contains("alarm=\"b: recv/a/db has no room"), "{text}");
        assert!(text.contains("standby unit=db peer=b connected=yes lag_ms=420 within_rpo=yes"));
    }

    #[test]
    fn json_has_units_and_peers_beside_the_nodes_name_and_reads_back() {
        let value = object(&samples::view()).unwrap();
        assert_eq!(value["name"], "a");
        assert_eq!(value["units"][0]["name"], "db");
        assert_eq!(value["peers"][0]["record"]["name"], "b");
        assert_eq!(view_of(value).unwrap(), samples::view());
    }

    #[test]
    fn a_transfer_shows_share_rate_and_time_left() {
        let mut progress = Progress {
            unit: samples::unit().id,
            name: None,
            peer: samples::B,
            direction: Direction::Send,
            snapshot: "data/db@x".into(),
            full: true,
            stream_bytes: 32 << 20,
            wire_bytes: 0,
            total_bytes: Some(64 << 20),
            bytes_per_second: 64 << 20,
            elapsed_ms: 500,
            ended: false,
        };
        assert_eq!(
            transfer_words(&progress),
            "sending everything: 32.0 MiB of 64.0 MiB (50 %) at 64.0 MiB/s, 500 ms left"
        );
        progress.total_bytes = Some(1); // an estimate that was too small
        progress.bytes_per_second = 0;
        assert_eq!(transfer_words(&progress), "sending everything: 32.0 MiB at 0 B/s");
    }
}
