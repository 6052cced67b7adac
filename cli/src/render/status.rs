//! `status` and `peers` for people on a terminal, and as JSON.

use flocker_core::record::{Grant, Policy};
use flocker_core::status::{PeerStatus, StandbyStatus, UnitStatus};
use flocker_engine::api::{
    ControlView, Direction, FiguresView, LaneView, LinkView, NodeView, Progress,
};
use serde_json::Value;

use super::rounds::moment;
use super::volumes;
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
pub(crate) fn for_people(view: &NodeView, one: bool, verbose: bool, theme: Theme) -> String {
    let mut text = String::new();
    if !one {
        node(&mut text, view, theme);
    }
    for (at, status) in view.node.units.iter().enumerate() {
        if at > 0 || !one {
            text.push('\n');
        }
        unit(&mut text, view, status, verbose, theme);
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
        let link = link(view, peer);
        if let Some(words) = link.and_then(|link| control_words(link.control.as_ref()?)) {
            text.push_str(&format!("    {} {words}\n", theme.warn("!")));
        }
        if let Some(lane) = link.and_then(|link| link.lane.as_ref()) {
            text.push_str(&format!("    {}\n", lane_words(lane)));
        }
    }
    if view.node.peers.is_empty() {
        text.push_str(&format!(
            "  no peers; begin with {}\n",
            theme.accent("flocker-repl pair --invite")
        ));
    }
    limits(text, view, theme);
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

fn unit(text: &mut String, view: &NodeView, status: &UnitStatus, verbose: bool, theme: Theme) {
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
    volumes::for_people(text, view, status, verbose, theme);
    workload(text, view, status, theme);
    if status.role == "standby" {
        let within = status.lag_ms.is_some_and(|lag| lag <= status.policy.rpo_ms());
        text.push_str(&format!(
            "  lag       {}\n",
            lag_words(status.lag_ms, within, status.policy, theme)
        ));
    }
    if let Some(lease_ms) = status.lease_ms {
        text.push_str(&format!("  lease     {}\n", lease_words(status, lease_ms, theme)));
    }
    if let Some(failover) = &status.failover {
        text.push_str(&format!(
            "  failover  at {} to epoch {}, from {}: {}\n",
            moment(failover.wall_ms),
            failover.epoch,
            clean(&failover.instance),
            failover.proof
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

fn workload(text: &mut String, view: &NodeView, status: &UnitStatus, theme: Theme) {
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
    text.push_str(&format!(
        "  workload  {state}  {}\n",
        theme.dim(&clean(&workload.program.to_string()))
    ));
    let running = status.workload_state == "running";
    for address in &workload.addresses {
        let place = if running { "moves with it" } else { "comes with it" };
        text.push_str(&format!("  address   {}, {place}\n", address_words(address)));
    }
    for forward in &workload.forwards {
        text.push_str(&format!(
            "  forward   {} to {} while it is here, else to {}{}\n",
            forward.listen,
            forward.local,
            forward.remote,
            forward_now(view, status, &forward.listen.to_string(), theme)
        ));
    }
}

/// `; 3 open, 1 held`, or why the port is not open.
fn forward_now(view: &NodeView, status: &UnitStatus, listen: &str, theme: Theme) -> String {
    let mut now = view.forwards.iter();
    let Some(now) = now.find(|f| f.unit == status.name && f.listen == listen) else {
        return String::new();
    };
    match &now.trouble {
        Some(trouble) => format!("; {} {}", theme.bad("not open:"), clean(trouble)),
        None if now.open + now.held > 0 => format!("; {} open, {} held", now.open, now.held),
        None => String::new(),
    }
}

/// `10.0 s, held for another 8.20 s`
fn lease_words(status: &UnitStatus, lease_ms: u64, theme: Theme) -> String {
    let length = millis(lease_ms);
    let left = status.lease_left_ms.filter(|left| *left > 0);
    match (status.role == "primary", left) {
        (true, Some(left)) => {
            format!("{} {length}, held for another {}", theme.mark(true), millis(left))
        }
        (true, None) => format!("{} {length}, not held", theme.mark(false)),
        (false, Some(left)) => {
            format!("{length}; the primary's has run out in {} at the earliest", millis(left))
        }
        (false, None) => format!("{length}; the primary holds none"),
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
    if standby.one_way {
        text.push_str(
            "            protected one way: what is written there may not be able to come back\n",
        );
    }
    for note in &standby.sent_whole {
        text.push_str(&format!("            {}\n", clean(note)));
    }
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
    let saved = match progress.saved_bytes {
        0 => String::new(),
        saved => format!(", {} already there", bytes(saved)),
    };
    let compression = progress.compression.as_ref().map_or_else(String::new, |how| {
        let level = how.level.map_or_else(|| "stored".to_owned(), |level| format!("zstd {level}"));
        format!(", {level}, {} is the limit", clean(&how.limit))
    });
    let reseed = match (&progress.old_copy, progress.reseeds) {
        (Some(from), _) => format!(", reseeding from {}", clean(from)),
        (None, true) => ", reseeding from an old copy there".to_owned(),
        (None, false) => String::new(),
    };
    format!(
        "{way}{all}{reseed}: {}{total} at {}{left}{saved}{compression}",
        bytes(progress.stream_bytes),
        rate(progress.bytes_per_second)
    )
}

/// `control rides on tls for 5.00 s: nothing answered over UDP at 10.0.0.2:7001`; nothing where it is as usual.
fn control_words(control: &ControlView) -> Option<String> {
    let why = control.why.as_deref()?;
    Some(format!(
        "control rides on {} for {}: {}",
        control.over,
        millis(control.for_ms),
        clean(why)
    ))
}

/// `limit    peer b 20.0 MiB/s now (08:00-18:00 mon-fri 20MiB/s)`
fn limits(text: &mut String, view: &NodeView, theme: Theme) {
    let named = [("peer", &view.rates.peers), ("unit", &view.rates.units)];
    for (kind, rates) in named {
        for limit in rates {
            let now = limit.bytes_per_second.map_or_else(|| "none".to_owned(), rate);
            let rule = limit.rule.as_ref().map_or_else(String::new, |r| format!(" ({})", clean(r)));
            let name = theme.strong(&limit.name);
            text.push_str(&format!("  limit  {kind} {name}  {now} now{rule}\n"));
        }
    }
    if let Some(trouble) = &view.rates.trouble {
        let trouble = clean(trouble);
        text.push_str(&format!("  {} limits are not changed: {trouble}\n", theme.bad("✗")));
    }
}

/// `large transfers take tls: it is faster (quic 1.0 GiB/s, 1.72 CPU s/GB; tls 2.5 GiB/s, 0.50 CPU s/GB)`
fn lane_words(lane: &LaneView) -> String {
    let named = [("quic", lane.quic), ("tls", lane.tls)];
    let figures: Vec<String> = named
        .iter()
        .filter_map(|(name, figures)| {
            let FiguresView { bytes_per_second, cpu_ms_per_gb } = (*figures)?;
            let (s, cs) = (cpu_ms_per_gb / 1000, cpu_ms_per_gb % 1000 / 10);
            Some(format!("{name} {}, {s}.{cs:02} CPU s/GB", rate(bytes_per_second)))
        })
        .collect();
    let measured =
        if figures.is_empty() { String::new() } else { format!(" ({})", figures.join("; ")) };
    format!("large transfers take {}: {}{measured}", lane.chosen, clean(&lane.why))
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
            if let Some(words) = link.control.as_ref().and_then(control_words) {
                text.push_str(&format!("  {words}\n"));
            }
            if let Some(lane) = &link.lane {
                text.push_str(&format!("  {}\n", lane_words(lane)));
            }
        }
        text.push_str(&format!(
            "  {}\n  at {}\n",
            theme.dim(&peer.record.fingerprint.to_string()),
            peer.record.addresses.join(", ")
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use flocker_engine::api::CompressionView;

    use super::*;
    use crate::render::samples;

    #[test]
    fn a_primary_shows_role_epoch_workload_and_each_standbys_lag_against_the_promise() {
        let text = for_people(&samples::view(), false, false, Theme::PLAIN);
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
        unit.standbys[0].one_way = true;
        unit.standbys[0].failure = Some(samples::failure());
        let text = for_people(&view, true, false, Theme::PLAIN);
        assert!(text.starts_with("db  primary"), "{text}");
        for words in [
            "paused",
            "✗ 420 ms",
            "not connected",
            "protected one way",
            "alarm     b: recv/a/db has no room",
        ] {
            assert!(text.contains(words), "`{words}` is not in:\n{text}");
        }
    }

    #[test]
    fn several_volumes_a_lease_a_failover_and_what_moves_along_are_shown() {
        let mut view = samples::view();
        view.node.units = vec![samples::group()];
        let text = for_people(&view, true, false, Theme::PLAIN);
        for words in [
            "volume    data/db (directory)",
            "volume    data/wal (directory)",
            "lease     ✓ 10.0 s, held for another 8.20 s",
            "to epoch 3, from repl-1-3: the lease ran out",
            "address   10.0.0.50/24@eth0, moves with it",
            "forward   10.0.0.1:5432 to 127.0.0.1:5433 while it is here, else to 10.0.0.2:5433",
        ] {
            assert!(text.contains(words), "`{words}` is not in:\n{text}");
        }
        view.forwards = vec![flocker_engine::api::ForwardView {
            unit: "db".into(),
            listen: "10.0.0.1:5432".into(),
            workload: "nowhere".into(),
            open: 1,
            held: 2,
            trouble: None,
        }];
        assert!(
            for_people(&view, true, false, Theme::PLAIN)
                .contains("10.0.0.2:5433; 1 open, 2 held\n")
        );
        view.forwards[0].trouble = Some("address in use".into());
        let text = for_people(&view, true, false, Theme::PLAIN);
        assert!(text.contains("10.0.0.2:5433; not open: address in use\n"), "{text}");
        view.node.units[0].lease_left_ms = None;
        assert!(
            for_people(&view, true, false, Theme::PLAIN).contains("lease     ✗ 10.0 s, not held")
        );
        view.node.units[0].role = "standby".into();
        view.node.units[0].lease_left_ms = Some(4000);
        let text = for_people(&view, true, false, Theme::PLAIN);
        assert!(text.contains("the primary's has run out in 4.00 s at the earliest"), "{text}");
    }

    #[test]
    fn a_standby_shows_its_own_lag() {
        let mut view = samples::view();
        let unit = &mut view.node.units[0];
        unit.role = "standby".into();
        unit.standbys.clear();
        unit.workload_state = "elsewhere".into();
        let text = for_people(&view, true, false, Theme::PLAIN);
        assert!(text.contains("lag       ✗ lag not known yet"), "{text}");
        view.node.units[0].lag_ms = Some(300);
        let text = for_people(&view, true, false, Theme::PLAIN);
        assert!(text.contains("lag       ✓ 300 ms behind"), "{text}");
    }

    #[test]
    fn a_connection_shows_its_lane_with_the_figures_that_it_rests_on() {
        let mut lane = LaneView {
            chosen: "tls".into(),
            why: "it is faster".into(),
            failed: None,
            quic: Some(FiguresView { bytes_per_second: 1 << 30, cpu_ms_per_gb: 1720 }),
            tls: Some(FiguresView { bytes_per_second: 5 << 29, cpu_ms_per_gb: 505 }),
        };
        assert_eq!(
            lane_words(&lane),
            "large transfers take tls: it is faster (quic 1.0 GiB/s, 1.72 CPU s/GB; tls 2.5 GiB/s, 0.50 CPU s/GB)"
        );
        (lane.quic, lane.tls) = (None, None);
        assert_eq!(lane_words(&lane), "large transfers take tls: it is faster");
    }

    #[test]
    fn control_over_tls_says_why_and_for_how_long_and_limits_say_which_rule_holds() {
        let mut control = ControlView {
            over: "tls".into(),
            why: Some("nothing answered over UDP at 10.0.0.2:7001".into()),
            udp_blocked: true,
            for_ms: 5000,
        };
        assert_eq!(
            control_words(&control).unwrap(),
            "control rides on tls for 5.00 s: nothing answered over UDP at 10.0.0.2:7001"
        );
        control.why = None;
        assert_eq!(control_words(&control), None);
        let mut view = samples::view();
        view.rates.peers.push(flocker_engine::api::RateView {
            name: "b".into(),
            bytes_per_second: Some(20 << 20),
            rule: Some("08:00-18:00 mon-fri 20MiB/s".into()),
        });
        view.rates.trouble = Some("line 7".into());
        let text = for_people(&view, false, false, Theme::PLAIN);
        let line = "limit  peer b  20.0 MiB/s now (08:00-18:00 mon-fri 20MiB/s)\n";
        assert!(text.contains(line) && text.contains("not changed: line 7"), "{text}");
    }

    #[test]
    fn an_empty_node_says_how_to_begin() {
        let mut view = samples::view();
        view.node.units.clear();
        view.node.peers.clear();
        let text = for_people(&view, false, false, Theme::PLAIN);
        assert!(text.contains("pair --invite") && text.contains("protect DATASET"), "{text}");
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
            saved_bytes: 0,
            compression: None,
            reseeds: false,
            old_copy: None,
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
        progress.saved_bytes = 16 << 20;
        let limit = "link or target".to_owned();
        progress.compression = Some(CompressionView { level: Some(3), limit });
        assert_eq!(
            transfer_words(&progress),
            "sending everything: 32.0 MiB at 0 B/s, 16.0 MiB already there, zstd 3, link or target is the limit"
        );
        progress.compression = None;
        progress.reseeds = true;
        assert_eq!(
            transfer_words(&progress),
            "sending everything, reseeding from an old copy there: 32.0 MiB at 0 B/s, 16.0 MiB already there"
        );
        progress.direction = Direction::Receive;
        progress.old_copy = Some("in/db-diverged-1@x".into());
        let words = transfer_words(&progress);
        assert!(words.starts_with("receiving everything, reseeding from in/db-diverged-1@x: "));
    }
}
