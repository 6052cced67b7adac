//! `status` and `peers` where there is no terminal: `KEY=VALUE` lines, one thing a line.

use flocker_core::record::Policy;
use flocker_core::status::{PeerStatus, UnitStatus};
use flocker_engine::api::NodeView;

use crate::values::address_words;

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
pub(crate) fn status(view: &NodeView, one: bool, verbose: bool) -> String {
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
        text.push_str(&peers(&view.node.peers));
        for orphan in &view.node.orphans {
            text.push_str(&format!("orphan dataset={}\n", value(orphan)));
        }
    }
    for status in &view.node.units {
        unit(&mut text, view, status, verbose);
    }
    text
}

/// One line a peer.
pub(crate) fn peers(peers: &[PeerStatus]) -> String {
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

fn unit(text: &mut String, view: &NodeView, status: &UnitStatus, verbose: bool) {
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
    for (key, words) in super::volumes::plain(view, status, verbose) {
        text.push_str(&format!(" {key}={}", value(&words)));
    }
    if let Some(lease_ms) = status.lease_ms {
        text.push_str(&format!(
            " lease_ms={lease_ms} lease_left_ms={}",
            number(status.lease_left_ms)
        ));
    }
    if let Some(workload) = &status.workload {
        let addresses: Vec<String> = workload.addresses.iter().map(address_words).collect();
        if !addresses.is_empty() {
            text.push_str(&format!(" addresses={}", value(&addresses.join(","))));
        }
        let forwards: Vec<String> =
            workload.forwards.iter().map(|forward| forward.listen.to_string()).collect();
        if !forwards.is_empty() {
            text.push_str(&format!(" forwards={}", value(&forwards.join(","))));
        }
    }
    if let Some(failover) = &status.failover {
        text.push_str(&format!(
            " failover_epoch={} failover_at_unix_ms={} failover_from={}",
            failover.epoch,
            failover.wall_ms,
            value(&failover.instance)
        ));
    }
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
        if standby.one_way {
            text.push_str(" one_way=yes");
        }
        for note in &standby.sent_whole {
            text.push_str(&format!(" sent_whole={}", value(note)));
        }
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
    fn plain_lines_hold_one_thing_each_and_quote_what_has_spaces() {
        let mut view = samples::view();
        view.node.units[0].alarm = Some(samples::failure());
        let text = status(&view, false, false);
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.contains("\nunit name=db role=primary epoch=1 rpo_ms=1000 "), "{text}");
        assert!(text.contains("alarm=\"b: recv/a/db has no room"), "{text}");
        assert!(text.contains("standby unit=db peer=b connected=yes lag_ms=420 within_rpo=yes"));
    }

    #[test]
    fn a_unit_says_what_it_has_beyond_the_usual_only_where_it_has_it() {
        let mut view = samples::view();
        assert!(!status(&view, true, false).contains("lease"));
        view.node.units = vec![samples::group()];
        let line = status(&view, true, false);
        let unit_line = line.lines().next().unwrap();
        for words in [
            "volumes=data/db,data/wal",
            "lease_ms=10000 lease_left_ms=8200",
            "addresses=10.0.0.50/24@eth0",
            "forwards=10.0.0.1:5432",
            "failover_epoch=3",
        ] {
            assert!(unit_line.contains(words), "`{words}` is not in: {unit_line}");
        }
    }
}
