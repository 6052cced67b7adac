//! `resolve` against a node that answers as it is told.

mod common;

use common::fake::{B, FakeNode};
use flocker_core::io::{ResolvePlan, ResolveReport, SnapshotLine, VolumeDifference};
use flocker_core::{Failure, FailureCode};
use flocker_engine::api::{Answer, Request, Response};
use flocker_store::{DatasetName, Guid};

fn plan() -> ResolvePlan {
    let line =
        |short: &str, guid| SnapshotLine { short: short.into(), guid: Guid(guid), taken_unix_s: 9 };
    ResolvePlan {
        name: "db".into(),
        primary: B,
        volumes: vec![VolumeDifference {
            dataset: DatasetName::new("vault/recv/db").unwrap(),
            exists: true,
            common: Some(line("repl-1", 1)),
            only_here: vec![line("mine", 2)],
            only_there: vec![line("repl-2", 3)],
        }],
        written_bytes: Some(4096),
        differs: true,
    }
}

fn node() -> FakeNode {
    FakeNode::start(|request| {
        let Request::Resolve { dry_run, .. } = request else { panic!("{request:?}") };
        let answer = match dry_run {
            true => Answer::ResolvePlan(Box::new(plan())),
            false => Answer::Resolved(Box::new(ResolveReport {
                name: "db".into(),
                plan: Some(plan()),
                aside: vec![DatasetName::new("vault/recv/db-diverged-x").unwrap()],
            })),
        };
        vec![Response::Ok(answer)]
    })
}

#[test]
fn a_dry_run_only_shows_what_each_side_has() {
    let node = node();
    let text = node.run(&["resolve", "db", "--dry-run"]).ok().stdout;
    for words in ["repl-1  guid 1", "only here  mine", "only on b  repl-2", "4.0 KiB since"] {
        assert!(text.contains(words), "`{words}` is not in:\n{text}");
    }
    let json = node.run(&["resolve", "db", "--dry-run", "--json"]).ok().json();
    assert_eq!(json["primary"], "b");
    assert_eq!(json["volumes"][0]["common"]["guid"], 1);
    assert!(node.asked().iter().all(|r| matches!(r, Request::Resolve { dry_run: true, .. })));
}

#[test]
fn what_is_kept_is_shown_before_it_is_done_and_named_afterwards() {
    let node = node();
    let text = node.run(&["resolve", "db", "--yes"]).ok().stdout;
    let at = |words: &str| text.find(words).unwrap_or_else(|| panic!("`{words}`:\n{text}"));
    assert!(at("without a resend") < at("kept in vault/recv/db-diverged-x"), "{text}");
    let run = node.run(&["resolve", "db", "--json"]).ok();
    assert_eq!(run.stdout.lines().count(), 1, "{}", run.stdout);
    assert_eq!(run.json()["aside"][0], "vault/recv/db-diverged-x");
    assert_eq!(run.json()["plan"]["differs"], true);
}

#[test]
fn on_the_primary_it_is_refused_with_4_and_the_place_to_run_it() {
    let node = FakeNode::start(|_| {
        let text = "db is primary here; run `flocker-repl resolve db` on b";
        vec![Response::Error(Failure::refused(FailureCode::BadRequest, text))]
    });
    let run = node.run(&["resolve", "db", "--yes"]).fails_with(4);
    assert!(run.stderr.contains("on b"), "{}", run.stderr);
}

#[test]
fn holds_are_listed_with_their_reasons_and_collected_only_when_asked() {
    use flocker_engine::api::{HoldsView, KeptView};
    let node = FakeNode::start(|request| {
        let Request::Holds { collect, .. } = request else { panic!("{request:?}") };
        let kept = KeptView {
            unit: None,
            name: "vault/old@flocker_01234567_e1_000001".into(),
            taken_unix_s: Some(9),
            tags: if *collect { vec![] } else { vec!["flocker-repl:01234567".into()] },
            foreign_tags: vec!["backup".into()],
            why: Vec::new(),
            stale: true,
        };
        let name = kept.name.clone();
        let released = collect.then(|| (name, "flocker-repl:01234567".to_owned()));
        let view = HoldsView { kept: vec![kept], released: released.into_iter().collect() };
        vec![Response::Ok(Answer::Holds(view))]
    });
    let text = node.run(&["holds"]).ok().stdout;
    assert!(text.contains("stale") && text.contains("backup (not ours)"), "{text}");
    let json = node.run(&["holds", "--collect", "--json"]).ok().json();
    assert_eq!(json["released"][0]["tag"], "flocker-repl:01234567");
    node.run(&["holds", "db", "--collect"]).fails_with(2);
    let asked = node.asked();
    assert_eq!(asked[0], Request::Holds { name: None, collect: false });
    assert_eq!(asked[1], Request::Holds { name: None, collect: true });
}
