//! The binary as a person meets it, without a running node: help, bad usage, streams, init, and what it
//! says when no daemon answers.

mod common;

use std::fs;

use common::{Run, run, run_with_stdin};

#[test]
fn help_shows_every_command_the_walk_through_and_the_exit_codes() {
    let help = run(&["--help"]).ok();
    for word in [
        "init",
        "serve",
        "pair",
        "grant",
        "protect",
        "run",
        "stop",
        "status",
        "migrate",
        "failover",
        "history",
        "holds",
        "resolve",
        "browse",
        "doctor",
        "pause",
        "resume",
        "unprotect",
        "unpair",
        "start-alone",
        "peers",
        "rounds",
        "metrics",
        "stream",
        "demo",
        "completions",
        "man",
        "Exit codes",
        "daemon is not running",
        "--config",
        "--json",
    ] {
        assert!(help.stdout.contains(word), "`{word}` is not in:\n{}", help.stdout);
    }
    for hidden in ["\n  supervise ", "\n  demo-workload "] {
        assert!(!help.stdout.contains(hidden), "a hidden command is shown");
    }
}

#[test]
fn every_command_has_help_of_its_own() {
    for command in [
        "init",
        "serve",
        "pair",
        "grant",
        "protect",
        "run",
        "stop",
        "status",
        "watch",
        "migrate",
        "failover",
        "history",
        "holds",
        "resolve",
        "browse",
        "doctor",
        "pause",
        "resume",
        "unprotect",
        "unpair",
        "start-alone",
        "peers",
        "rounds",
        "metrics",
        "demo",
        "completions",
        "man",
    ] {
        let help = run(&[command, "--help"]).ok();
        assert!(help.stdout.contains("Usage:"), "{command}:\n{}", help.stdout);
    }
}

#[test]
fn a_line_that_makes_no_sense_ends_with_2_and_says_how_it_is_written() {
    for words in [
        &["fly"][..],
        &["pair"],
        &["protect", "data/db"],
        &["protect", "data/db", "--to", "b", "--rpo", "soon"],
        &["grant", "b", "--receive", "x", "--quota", "much"],
        &["run", "db"],
        &["init", "--name", "two words", "--store", "vault:x"],
        &["init", "--name", "a", "--store", "tape:x"],
        &["init", "--name", "a", "--store", "vault:x", "--listen", "here"],
    ] {
        let run = run(words).fails_with(2);
        assert!(run.stderr.contains("--help") || run.stderr.contains("Usage"), "{}", run.stderr);
        assert!(run.stdout.is_empty(), "{}", run.stdout);
    }
    let run = run(&["protect", "d", "--to", "b", "--rpo", "15"]).fails_with(2);
    assert!(run.stderr.contains("`15` has no unit"), "{}", run.stderr);
}

#[test]
fn with_json_a_line_that_makes_no_sense_is_an_object_too() {
    let error = run(&["--json", "fly"]).fails_with(2).json();
    assert_eq!(error["error"]["exit_code"], 2);
    assert_eq!(error["error"]["code"], "bad_request");
}

#[test]
fn no_arguments_at_all_show_the_help() {
    let run = run(&[]).fails_with(2);
    assert!(run.stderr.contains("Usage:"), "{}", run.stderr);
}

#[test]
fn a_missing_configuration_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.toml");
    let config = path.to_str().unwrap();
    let run = run(&["--config", config, "status"]).fails_with(1);
    assert!(
        run.stderr.contains(config) && run.stderr.contains("flocker-repl init"),
        "{}",
        run.stderr
    );
}

#[test]
fn a_configuration_that_is_none_is_named_with_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    fs::write(&path, "[node]\nname = \"a\"\nlisten = \"nowhere\"\n").unwrap();
    let run = run(&["--config", path.to_str().unwrap(), "status"]).fails_with(1);
    for word in ["c.toml", "line 3", "listen"] {
        assert!(run.stderr.contains(word), "`{word}` is not in: {}", run.stderr);
    }
}

/// A node that was made and is not running.
fn made() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let at = |leaf: &str| dir.path().join(leaf).to_str().unwrap().to_owned();
    let (config, state, store) = (at("c.toml"), at("state"), format!("vault:{}", at("vault")));
    let init = ["--config", &config, "init", "--name", "a", "--store", &store, "--state", &state];
    let run = run(&[&init[..], &["--listen", "127.0.0.1:7001"]].concat()).ok();
    assert!(run.stdout.contains("serve"), "no next step in:\n{}", run.stdout);
    (dir, config)
}

#[test]
fn init_makes_a_node_and_never_overwrites_one() {
    let (dir, config) = made();
    let before = fs::read(&config).unwrap();
    let store = format!("vault:{}", dir.path().join("other").display());
    let again = run(&["--config", &config, "init", "--name", "b", "--store", &store]).fails_with(4);
    assert!(again.stderr.contains("exists"), "{}", again.stderr);
    assert_eq!(fs::read(&config).unwrap(), before);
    assert!(!dir.path().join("other").exists(), "something was made although it was refused");
}

#[test]
fn without_a_daemon_every_command_that_needs_one_ends_with_3_and_says_how_to_start_it() {
    let (_dir, config) = made();
    for words in [
        &["status"][..],
        &["peers"],
        &["watch"],
        &["metrics"],
        &["rounds", "db"],
        &["pair", "--invite"],
        &["pair", "127.0.0.1:1", "7K3F-M2QX-9"],
        &["grant", "b", "--receive", "recv/b"],
        &["protect", "data/db", "--to", "b"],
        &["run", "db", "--", "true"],
        &["stop", "db"],
        &["migrate", "db", "--to", "b"],
        &["migrate", "db", "--cancel"],
        &["failover", "db"],
        &["failover", "db", "--drill"],
        &["history"],
        &["pause", "db"],
        &["resume", "db"],
        &["unprotect", "db"],
        &["start-alone", "db"],
        &["unpair", "b"],
    ] {
        let run = run(&[&["--config", &config][..], words].concat()).fails_with(3);
        assert!(run.stderr.contains("serve"), "{words:?}: {}", run.stderr);
    }
    let error = run(&["--config", &config, "status", "--json"]).fails_with(3).json();
    assert_eq!(error["error"]["exit_code"], 3);
    assert_eq!(error["error"]["code"], "connection_lost");
    assert_eq!(error["error"]["remedy"], "operator");
}

#[test]
fn completions_and_the_manual_page_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["completions", shell]).ok().stdout.contains("flocker-repl"));
    }
    let man = run(&["man"]).ok();
    assert!(man.stdout.contains(".TH") && man.stdout.contains("migrate"));
    assert!(!man.stdout.contains("demo\\-workload"), "a hidden command is in the manual");
}

#[test]
fn a_reader_that_goes_away_early_is_no_error() {
    let run = Run::of_shell("\"$FLOCKER_REPL\" man | head -n 1; echo ${PIPESTATUS[0]}");
    assert!(run.stdout.lines().last() == Some("0"), "{}{}", run.stdout, run.stderr);
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
}

#[test]
fn nothing_is_coloured_where_there_is_no_terminal() {
    let run = run_with_stdin(&["stream", "inspect", "-"], b"");
    assert!(!run.stderr.contains('\u{1b}') && !run.stdout.contains('\u{1b}'));
}
