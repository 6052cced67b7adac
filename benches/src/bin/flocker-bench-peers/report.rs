//! The report for people: what was asked, what was reached, and all figures.

use std::fmt::Write as _;

use flocker_transport::Compression::{Adaptive, Level, Off};
use flocker_transport::LaneMode;

use crate::contenders::{Contender, Ours};
use crate::latency;
use crate::plan;
use crate::results::{Results, Series, ratio};
use crate::site::Network;

/// One line of "To reach".
struct Target {
    what: &'static str,
    asked: &'static str,
    seen: Option<(String, bool)>,
}

/// `docs/benchmarks.md`.
pub(crate) fn markdown(results: &Results) -> String {
    let mut out = String::from(
        "# Side by side with what people use today\n\n\
         Written by `benches/peers/run --docs docs`; the next run replaces it. What each part costs and why it is as it is\n\
         stands in [data-path.md](data-path.md).\n\n",
    );
    machine(&mut out, results);
    out += "\n## To reach\n\n\
            Ratios of rounds of one run, their median. Start-up is not in them.\n\n\
            | what | asked | seen | |\n| --- | --- | --- | --- |\n";
    for Target { what, asked, seen } in targets(results) {
        let (seen, mark) = match seen {
            Some((seen, reached)) => (seen, if reached { "reached" } else { "**not reached**" }),
            None => ("not yet measured".to_owned(), ""),
        };
        let _ = writeln!(out, "| {what} | {asked} | {seen} | {mark} |");
    }
    out += "\nNothing goes unhashed: each batch has a BLAKE3 on both sides, which is in all figures of ours. There is no \
            switch\nto send without; what hashing costs alone, `cargo bench -p flocker-benches` says.\n\n\
            ![speed and cost of each](benchmarks.svg)\n\n## Figures\n\n\
            Medians. GB is 10^9 bytes of the stream; *CPU* is seconds of processor time for each, of all processes on both\n\
            ends, `cat` at either end included. *Start-up* is the time of an empty stream, keys and handshakes included; it is\n\
            taken off the others, and where it was more than half of a round, that round has no rate. *Wire* is bytes on the wire for each byte of the stream.\n";
    for input in &results.inputs {
        figures(&mut out, results, input);
    }
    latencies(&mut out, results);
    if !results.notes.is_empty() {
        out += "\n## Notes\n\n";
        for why in &results.notes {
            let _ = writeln!(out, "- {why}");
        }
    }
    out
}

fn machine(out: &mut String, results: &Results) {
    let m = &results.machine;
    let _ = writeln!(out, "| | |\n| --- | --- |");
    let _ = writeln!(out, "| command | `{}` |", results.command);
    let _ = writeln!(
        out,
        "| when | {}; {} rounds, interleaved; {} min {} s in all |",
        results.when,
        results.rounds,
        results.took_seconds / 60,
        results.took_seconds % 60
    );
    let _ = writeln!(
        out,
        "| machine | {} × {}, {} GiB; both ends on it; load average {} before it began |",
        m.processors, m.processor, m.memory_gib, m.load
    );
    let _ = writeln!(out, "| system | {}; Linux {} |", m.system, m.kernel);
    let _ = writeln!(out, "| versions | {} |", m.versions.join("; "));
}

fn figures(out: &mut String, results: &Results, input: &str) {
    let all: Vec<&Series> = results.series.iter().filter(|s| s.input == *input).collect();
    let mut networks: Vec<Network> = all.iter().map(|s| s.network).collect();
    networks.dedup();
    for network in networks {
        let _ = writeln!(
            out,
            "\n### {input}; {network}\n\n| | GB/s | lowest to highest | CPU s/GB | wire | start-up |\n\
             | --- | --- | --- | --- | --- | --- |"
        );
        for series in all.iter().filter(|s| s.network == network) {
            let rates = series.rates();
            let (least, most) =
                rates.iter().fold((f64::MAX, 0_f64), |(a, b), rate| (a.min(*rate), b.max(*rate)));
            let name =
                if series.ours { format!("**{}**", series.tool) } else { series.tool.clone() };
            let cpu = match series.startup_cpu_seconds > 0.0 {
                true => format!("{:.2}", series.cpu_per_gb()),
                false => String::new(),
            };
            let wire = series.wire_ratio().map_or(String::new(), |ratio| format!("{ratio:.3}"));
            let startup = match series.startup_seconds > 0.0 {
                true => format!("{:.0} ms", series.startup_seconds * 1e3),
                false => String::new(),
            };
            let _ = writeln!(
                out,
                "| {} | {} | {cpu} | {wire} | {startup} |",
                name.replace('|', "\\|"),
                match series.gb_per_second() {
                    none if none.is_nan() => "none | ".to_owned(),
                    rate => format!("{rate:.2} | {least:.2} to {most:.2}"),
                }
            );
        }
    }
}

fn latencies(out: &mut String, results: &Results) {
    if results.latencies.is_empty() {
        return;
    }
    *out += "\n### Round trips, loopback\n\n| | p50 | p99 | samples |\n| --- | --- | --- | --- |\n";
    for latency in &results.latencies {
        let _ = writeln!(
            out,
            "| {} | {:.0} µs | {:.0} µs | {} |",
            latency.what, latency.p50_us, latency.p99_us, latency.samples
        );
    }
}

/// Ours beside theirs: at least `speed` times as fast, at most `cost` times as dear.
fn beside(
    results: &Results,
    input: &str,
    network: Network,
    (ours, theirs): (Contender, Contender),
    (speed, cost): (f64, f64),
) -> Option<(String, bool)> {
    let ours = results.find(input, network, &ours.name())?;
    let theirs = results.find(input, network, &theirs.name())?;
    let faster = ratio(&ours.rates(), &theirs.rates());
    let dearer = ratio(&ours.costs(), &theirs.costs());
    Some((format!("{}, {dearer:.2} ×", times(faster)), faster >= speed && dearer <= cost))
}

/// A ratio, or that there is none.
fn times(ratio: f64) -> String {
    if ratio.is_nan() { "no rate (see below)".into() } else { format!("{ratio:.2} ×") }
}

fn targets(results: &Results) -> Vec<Target> {
    use LaneMode::{Quic, Tls};
    use Network::{Ethernet, Jumbo, Loopback};
    let stored = |lane| Ours::over(lane, Off);
    let packed = |lane| Ours::over(lane, Level(1));
    let adaptive = |lane| Ours::over(lane, Adaptive);
    let target = |what, asked, seen| Target { what, asked, seen };
    vec![
        target(
            "TLS lane, incompressible, no compression, beside ssh",
            "≥ 1.6 × GB/s, ≤ 0.65 × CPU",
            beside(results, plan::NOISE, Loopback, (stored(Tls), Contender::Ssh), (1.6, 0.65)),
        ),
        target(
            "QUIC lane, packets of 1500, the same",
            "≥ 1.4 × GB/s, ≤ 0.85 × CPU",
            beside(results, plan::NOISE, Ethernet, (stored(Quic), Contender::Ssh), (1.4, 0.85)),
        ),
        target(
            "QUIC lane, jumbo packets, the same",
            "≥ 1.6 × GB/s, ≤ 0.65 × CPU",
            beside(results, plan::NOISE, Jumbo, (stored(Quic), Contender::Ssh), (1.6, 0.65)),
        ),
        target(
            "round trip of a small message on the connection that carries bulk",
            "p50 ≤ 1 ms",
            results.latency(latency::UNDER_BULK).map(|latency| {
                (format!("{:.2} ms", latency.p50_us / 1e3), latency.p50_us <= 1000.0)
            }),
        ),
        target(
            "zstd and BLAKE3, semi-compressible, TLS lane, beside `zstd -1 \\| ssh \\| zstd -d`",
            "≥ 1.8 × GB/s, ≤ 0.62 × CPU",
            beside(results, plan::TEXT, Loopback, (packed(Tls), Contender::ZstdSsh), (1.8, 0.62)),
        ),
        target(
            "the same, the level left to what limits the transfer",
            "≥ 1.8 × GB/s, ≤ 0.62 × CPU",
            beside(results, plan::TEXT, Loopback, (adaptive(Tls), Contender::ZstdSsh), (1.8, 0.62)),
        ),
        target(
            "`-c` stream (lz4), TLS lane, beside ssh",
            "≥ 1.6 × GB/s, ≤ 0.65 × CPU",
            beside(results, plan::LZ4, Loopback, (adaptive(Tls), Contender::Ssh), (1.6, 0.65)),
        ),
        target(
            "50 % duplicates, beside zstd alone",
            "≤ 0.55 × wire, ≥ 1.0 × GB/s",
            duplicates(results),
        ),
        target(
            "lost base, 5 % changed since (measured by tests of its own: dedup.md)",
            "≤ 0.08 × wire",
            None,
        ),
        target("zfs-fuse to zfs-fuse, bulk, beside the local pipe", "≥ 0.9 × GB/s", fuse(results)),
        target(
            "64 KiB delta on a warm pair, beside a QUIC echo",
            "≤ 10 × p50, ≤ 10 × p99",
            delta(results),
        ),
        target("two bulk volumes at once, beside one", "≥ 1.0 × GB/s in total", two(results)),
    ]
}

fn duplicates(results: &Results) -> Option<(String, bool)> {
    let of = |tool: Contender| results.find(plan::COPIES, Network::Loopback, &tool.name());
    let with = of(Ours::with_dedup(LaneMode::Tls, Level(1)))?;
    let without = of(Ours::over(LaneMode::Tls, Level(1)))?;
    let wire = with.wire_ratio()? / without.wire_ratio()?;
    let faster = ratio(&with.rates(), &without.rates());
    Some((format!("{wire:.3} × wire, {} GB/s", times(faster)), wire <= 0.55 && faster >= 1.0))
}

fn fuse(results: &Results) -> Option<(String, bool)> {
    let of = |tool: &str| results.find(crate::fuse::INPUT, Network::Loopback, tool);
    let ours = of(&Ours::over(LaneMode::Tls, Level(1)).name())?;
    let faster = ratio(&ours.rates(), &of(crate::fuse::LOCAL)?.rates());
    Some((times(faster), faster >= 0.9))
}

fn delta(results: &Results) -> Option<(String, bool)> {
    let (step, echo) = (results.latency(latency::STEP)?, results.latency(latency::ECHO)?);
    let (p50, p99) = (step.p50_us / echo.p50_us, step.p99_us / echo.p99_us);
    Some((format!("{p50:.1} ×, {p99:.1} ×"), p50 <= 10.0 && p99 <= 10.0))
}

fn two(results: &Results) -> Option<(String, bool)> {
    let of = |n| {
        let tool = Ours::volumes(LaneMode::Tls, n).name();
        results.find(plan::NOISE, Network::Loopback, &tool)
    };
    let faster = ratio(&of(2)?.rates(), &of(1)?.rates());
    Some((times(faster), faster >= 1.0))
}
