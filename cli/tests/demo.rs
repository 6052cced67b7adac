//! The demo, run whole: two nodes, a move under load, and a verdict that can be false.

mod common;

use common::run;

#[test]
fn the_demo_moves_a_writing_workload_and_loses_nothing() {
    let demo = run(&["demo", "--json", "--seconds", "3", "--preload", "8M"]).ok().json();
    assert_eq!(demo["verdict"], true, "{demo:#}");
    assert!(demo["acked"].as_u64() > Some(0), "{demo:#}");
    assert_eq!(demo["acked"], demo["on_target"], "{demo:#}");
    assert_eq!(demo["duplicates"], 0);
    assert_eq!(demo["out_of_order"], 0);
    assert!(demo["rounds"].as_array().is_some_and(|rounds| rounds.len() > 1), "{demo:#}");
    assert!(demo["downtime_ms"]["total"].is_u64(), "{demo:#}");
    assert!(demo["epoch"].as_u64() > demo["epoch_before"].as_u64(), "{demo:#}");
    let pids = demo["node_pids"].as_array().unwrap();
    assert_eq!(pids.len(), 2);
    for pid in pids {
        assert!(!runs(pid.as_u64().unwrap()), "node {pid} outlived the demo");
    }
}

/// Whether a process with this id runs our program now.
fn runs(pid: u64) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| String::from_utf8_lossy(&line).contains("--until-stdin-closes"))
}

fn check_sabotage(how: &str, finding: &str) {
    let words = ["demo", "--json", "--seconds", "1", "--preload", "1M", "--sabotage", how];
    let run = run(&words).fails_with(5);
    let demo = run.json();
    assert_eq!(demo["verdict"], false, "{demo:#}");
    assert!(demo[finding].as_u64() > Some(0), "{how}: {demo:#}");
    assert!(run.stderr.contains("not so"), "{}", run.stderr);
}

#[test]
fn a_lost_record_makes_the_verdict_false() {
    check_sabotage("lose", "missing");
}

#[test]
fn a_doubled_record_makes_the_verdict_false() {
    check_sabotage("repeat", "duplicates");
}

#[test]
fn swapped_records_make_the_verdict_false() {
    check_sabotage("swap", "out_of_order");
}
