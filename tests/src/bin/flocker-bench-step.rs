//! `flocker-bench-step [ROUNDS]`: one warm step of 64 KiB between the lab's guests, by us and by the tools people
//! use today, interleaved in one run; medians, and ratios to the floor (`zfs send | ssh zfs recv`). Counts the
//! processes that a step of ours starts, too.
//!
//! Under emulation starting a process is what costs; so these figures say how many of them each tool needs, more
//! than how fast it is on a real machine.

use flocker_tests::lab::nodes::{Nodes, Unit};
use flocker_tests::lab::{Guest, Lab, lab_or_skip};

const UNIT: Unit = Unit { name: "db", zvol: false, raw: false };

/// A random 64 KiB of a file of 8 MiB, synced.
fn change(lab: &Lab, path: &str) {
    lab.ssh(
        Guest::Alpha,
        &format!(
            "dd if=/dev/urandom of={path}/f bs=64k count=1 conv=notrunc,fsync seek=$(($(date +%N | tail -c 5 | sed s/^0*//) % 128)) status=none"
        ),
    );
}

/// What one of the tools takes for it, milliseconds by the guest's own clock.
fn peer(lab: &Lab, n: usize, tool: &str) -> f64 {
    change(lab, "/tank/src");
    let command = match tool {
        "send | ssh recv" => format!(
            "zfs snapshot tank/src@r{n}; zfs send -i @r{} tank/src@r{n} | ssh beta zfs recv tank/dst_raw",
            n - 1
        ),
        "syncoid" => {
            "syncoid --no-privilege-elevation tank/src root@beta:tank/dst_sy >/tmp/fsy.log 2>&1"
                .into()
        }
        _ => format!(
            "zfs snapshot tank/src@b{n}; bzfs tank/src root@beta:tank/dst_bz >/tmp/fbz.log 2>&1"
        ),
    };
    let script = format!("t=$(date +%s%N); {command}; echo $((($(date +%s%N) - t) / 1000))");
    lab.ssh(Guest::Alpha, &script).parse::<f64>().expect("a number") / 1000.0
}

fn status(lab: &Lab, word: &str) -> u64 {
    let line = lab.ssh(Guest::Alpha, "flocker-repl status | grep '^standby unit=db '");
    let value = line.split_whitespace().find_map(|w| w.strip_prefix(word)?.strip_prefix('='));
    value.and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// Our own: the round that carries the change, from asking for its snapshot to the standby's word that it has it.
/// Nobody asks the daemon anything meanwhile: a command in the guest takes longer than what is measured.
fn ours(lab: &Lab) -> f64 {
    loop {
        lab.ssh(Guest::Alpha, "flocker-repl resume db >/dev/null; sleep 3");
        let before = rounds(lab).last().map_or(0, |round| round.0);
        change(lab, "/srv/flocker/data/db");
        std::thread::sleep(std::time::Duration::from_secs(8));
        let after = rounds(lab);
        lab.ssh(Guest::Alpha, "flocker-repl pause db >/dev/null");
        let mut carried = after.into_iter().filter(|(n, bytes, _)| *n > before && *bytes >= 65_536);
        if let Some((_, _, ms)) = carried.next() {
            return ms as f64;
        }
    }
}

/// The last rounds: number, bytes of the stream, milliseconds.
fn rounds(lab: &Lab) -> Vec<(u64, u64, u64)> {
    let text = lab.ssh(Guest::Alpha, "flocker-repl rounds db --json");
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let figure = |r: &serde_json::Value, name| r["round"][name].as_u64().expect("a figure");
    let read = |r| (figure(r, "round"), figure(r, "stream_bytes"), figure(r, "duration_ms"));
    value["rounds"].as_array().expect("rounds").iter().map(read).collect()
}

/// Processes that our daemon starts in some warm steps: what it executes, traced.
fn children(lab: &Lab, guest: Guest, seconds: u32) -> Vec<String> {
    let script = format!(
        "timeout {seconds} strace -f -qq -e trace=execve -e signal=none -o /tmp/f-execs -p $(pgrep -o -x flocker-repl) 2>/dev/null; sed -n 's/.*execve(\"[^\"]*\", \\(\\[[^]]*\\]\\).*= 0$/\\1/p' /tmp/f-execs"
    );
    lab.ssh(guest, &script).lines().map(str::to_owned).filter(|line| !line.is_empty()).collect()
}

fn median(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

fn main() {
    let rounds: usize = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(5);
    let Some(lab) = lab_or_skip("trixie", Some("trixie"), "flocker-bench-step") else { return };
    lab.put_repl();
    let nodes = Nodes::start(&lab);
    lab.ssh(
        Guest::Alpha,
        "for d in flocker/data flocker/data/db src; do zfs create tank/$d; done
         for d in /tank/src /srv/flocker/data/db; do head -c 8388608 /dev/urandom >$d/f; done; sync
         zfs snapshot tank/src@r0; zfs send tank/src@r0 | ssh beta zfs recv tank/dst_raw
         syncoid --no-privilege-elevation tank/src root@beta:tank/dst_sy >/dev/null 2>&1
         zfs snapshot tank/src@b0; bzfs tank/src root@beta:tank/dst_bz >/dev/null 2>&1",
    );
    lab.ssh(Guest::Alpha, "flocker-repl protect data/db --to beta --rpo 1s");
    nodes.wait_in_step(&UNIT, Guest::Alpha);
    std::thread::sleep(std::time::Duration::from_secs(5));
    lab.ssh(Guest::Alpha, "flocker-repl pause db");
    let names = ["flocker-repl", "send | ssh recv", "syncoid", "bzfs"];
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
    for n in 1..=rounds {
        for (tool, times) in names.iter().zip(&mut times) {
            times.push(if *tool == "flocker-repl" { ours(&lab) } else { peer(&lab, n, tool) });
        }
    }
    let floor = median(&mut times[1].clone()).0;
    println!(
        "one warm step of 64 KiB, {rounds} rounds, interleaved; ms: median (min to max), of the floor"
    );
    for (tool, times) in names.iter().zip(&mut times) {
        let (median, min, max) = median(times);
        println!("{tool:<18} {median:>8.0} ({min:.0} to {max:.0})  {:.3}", median / floor);
    }
    let own = median(&mut times[0].clone()).0;
    for at in [2, 3] {
        println!("of {:<15} {:.3}", names[at], own / median(&mut times[at].clone()).0);
    }
    let before = status(&lab, "rounds");
    lab.ssh(Guest::Alpha, "flocker-repl resume db");
    lab.ssh(
        Guest::Alpha,
        "(for n in $(seq 30); do dd if=/dev/urandom of=/srv/flocker/data/db/f bs=64k count=1 conv=notrunc,fsync status=none; sleep 0.5; done) >/dev/null 2>&1 &",
    );
    let source = children(&lab, Guest::Alpha, 8);
    let target = children(&lab, Guest::Beta, 8);
    let steps = status(&lab, "rounds") - before;
    println!(
        "processes started in 8 s each while {steps} steps were made: {} on the source, {} on the target",
        source.len(),
        target.len()
    );
    for line in source.iter().chain(&target) {
        println!("  {line}");
    }
}
