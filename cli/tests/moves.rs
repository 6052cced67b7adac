//! Migrations, failovers, drills and the history against a node that answers as it is told.

mod common;

use common::fake::{A, B, FakeNode, attempt, done, round};
use flocker_core::ids::UnitId;
use flocker_core::io::{
    DrillReport, Event, EventKind, FailoverPlan, FailoverReport, MigrationPlan, MigrationReport,
    Prediction,
};
use flocker_core::record::Proof;
use flocker_core::{Failure, FailureCode};
use flocker_engine::api::{Answer, Request, Response, StampedEvent};

fn migrating(_: &Request) -> Vec<Response> {
    let event = |kind| {
        Response::Event(StampedEvent {
            at_unix_ms: 1_700_000_000_000,
            event: Event { unit: Some(UnitId(7)), name: Some("db".into()), kind },
        })
    };
    let parts = [("quiesce", 12), ("fence", 3), ("transfer", 80)];
    vec![
        event(EventKind::Phase { attempt: attempt(), phase: "quiesce".into() }),
        event(EventKind::Round(round(2))),
        Response::Ok(Answer::Migrated(Box::new(MigrationReport {
            name: "db".into(),
            source: A,
            target: B,
            attempt: attempt(),
            epoch: 2,
            rounds: vec![round(1), round(2)],
            downtime_ms: parts.map(|(part, ms)| (part.to_owned(), ms)).to_vec(),
            theirs_ms: Vec::new(),
            downtime_total_ms: 95,
            total_ms: 700,
            predicted: None,
            budget_ms: None,
            clients: None,
            notes: Vec::new(),
        }))),
    ]
}

#[test]
fn migrate_prints_lines_while_it_runs_and_a_report_at_its_end() {
    let node = FakeNode::start(migrating);
    let text = node.run(&["migrate", "db", "--to", "b"]).ok().stdout;
    for words in [
        "db: phase quiesce",
        "db: round 2 to b",
        "db moved from a to b in 700 ms, down for 95 ms; epoch 2",
        "transfer       80 ms",
    ] {
        assert!(text.contains(words), "`{words}` is not in:\n{text}");
    }
    let run = node.run(&["migrate", "db", "--to", "b", "--json"]).ok();
    assert_eq!(run.stdout.lines().count(), 1, "{}", run.stdout);
    let json = run.json();
    assert_eq!(json["epoch"], 2);
    assert_eq!(json["downtime_ms"]["total"], 95);
    assert_eq!(json["rounds"][1]["stream_bytes"], 1 << 20);
}

#[test]
fn a_move_to_where_it_is_already_says_so_and_ends_well() {
    let node = FakeNode::start(|_| {
        vec![Response::Ok(Answer::AlreadyThere { name: "db".into(), epoch: 4 })]
    });
    let text = node.run(&["migrate", "db", "--to", "b"]).ok().stdout;
    assert_eq!(text, "db is on b already, since epoch 4; nothing was done\n");
    let json = node.run(&["migrate", "db", "--to", "b", "--json"]).ok().json();
    assert_eq!((&json["already_there"], &json["moved"]), (&true.into(), &false.into()));
    assert_eq!(json["epoch"], 4);
}

fn prediction() -> Prediction {
    Prediction {
        fixed_ms: 100,
        delta_bytes: 1 << 20,
        bytes_per_second: Some(10 << 20),
        written_per_second: None,
        downtime_ms: 200,
        from_moves: 2,
    }
}

#[test]
fn a_dry_run_predicts_and_a_budget_that_it_breaks_ends_with_5() {
    let node = FakeNode::start(|request| {
        let Request::Migrate { budget_ms, dry_run: true, .. } = request else {
            panic!("{request:?}");
        };
        vec![Response::Ok(Answer::MigrationPlan(Box::new(MigrationPlan {
            name: "db".into(),
            source: A,
            target: B,
            prediction: prediction(),
            budget_ms: *budget_ms,
            available_bytes: 1 << 30,
            notes: vec!["something".into()],
        })))]
    });
    let words = ["migrate", "db", "--to", "b", "--dry-run"];
    let text = node.run(&words).ok().stdout;
    for words in ["✓ db can move from a to b", "predicted downtime 200 ms", "note: something"] {
        assert!(text.contains(words), "`{words}` is not in:\n{text}");
    }
    node.run(&[&words[..], &["--budget", "200ms"]].concat()).ok();
    let run = node.run(&[&words[..], &["--budget", "199ms", "--json"]].concat()).fails_with(5);
    assert_eq!(run.stdout.lines().count(), 1, "{}", run.stdout);
    assert_eq!(run.json()["prediction"]["downtime_ms"], 200);
    assert_eq!(run.json()["within_budget"], false);
    assert!(run.stderr.contains("longer than the budget of 199 ms"), "{}", run.stderr);
}

#[test]
fn a_migration_is_cancelled_without_naming_its_target() {
    let node = FakeNode::start(done);
    let text = node.run(&["migrate", "db", "--cancel"]).ok().stdout;
    assert!(text.contains("stays where it was"), "{text}");
    assert_eq!(node.asked(), [Request::CancelMigration { name: "db".into() }]);
}

#[test]
fn what_was_predicted_is_said_while_it_can_still_be_compared() {
    let node = FakeNode::start(|request| {
        let kind = EventKind::Predicted {
            attempt: attempt(),
            prediction: prediction(),
            budget_ms: Some(500),
        };
        let event = Event { unit: Some(UnitId(7)), name: Some("db".into()), kind };
        let mut responses = migrating(request);
        responses.insert(0, Response::Event(StampedEvent { at_unix_ms: 1, event }));
        responses
    });
    let text = node.run(&["migrate", "db", "--to", "b", "--budget", "500ms"]).ok().stdout;
    let line = text.lines().next().unwrap();
    assert!(line.contains("db: predicted downtime 200 ms (budget 500 ms)"), "{text}");
    assert!(matches!(node.asked()[0], Request::Migrate { budget_ms: Some(500), .. }));
}

fn failover_plan(proofs: Vec<Proof>) -> FailoverPlan {
    FailoverPlan {
        name: "db".into(),
        primary: B,
        primary_connected: proofs.contains(&Proof::PrimaryFenced),
        instance: "repl-1-3".into(),
        taken_unix_s: 1_700_000_000,
        age_ms: 700,
        receiving: false,
        proofs,
        lease_left_ms: None,
    }
}

fn failing_over(proofs: Vec<Proof>) -> FakeNode {
    FakeNode::start(move |request| {
        let Request::Failover { primary_is_down, dry_run, .. } = request else {
            panic!("{request:?}");
        };
        let plan = failover_plan(proofs.clone());
        if *dry_run {
            return vec![Response::Ok(Answer::FailoverPlan(Box::new(plan)))];
        }
        let proof = if *primary_is_down { Proof::OperatorsWord } else { proofs[0] };
        vec![Response::Ok(Answer::FailedOver(Box::new(FailoverReport {
            plan,
            proof,
            epoch: 2,
            parts_ms: vec![("look".into(), 5), ("mount".into(), 15)],
            total_ms: 25,
            aside: Vec::new(),
            notes: Vec::new(),
        })))]
    })
}

#[test]
fn a_failover_without_a_proof_is_refused_with_4_and_nothing_more_is_asked() {
    let node = failing_over(Vec::new());
    let run = node.run(&["failover", "db", "--yes"]).fails_with(4);
    assert!(run.stderr.contains("--primary-is-down"), "{}", run.stderr);
    assert!(run.stdout.contains("acknowledged in the last 700 ms"), "{}", run.stdout);
    let json = node.run(&["failover", "db", "--json"]).fails_with(4).json();
    assert_eq!(json["error"]["code"], "no_proof");
    assert_eq!(json["error"]["remedy"], "abort");
    assert!(node.asked().iter().all(|r| matches!(r, Request::Failover { dry_run: true, .. })));
}

#[test]
fn a_failover_shows_what_would_be_lost_then_acts_then_reports_its_proof() {
    let node = failing_over(vec![Proof::FencingHook]);
    let text = node.run(&["failover", "db", "--yes"]).ok().stdout;
    let at = |words: &str| text.find(words).unwrap_or_else(|| panic!("`{words}`:\n{text}"));
    assert!(at("lost: what b acknowledged") < at("✓ db is primary on a in 25 ms"), "{text}");
    assert!(text.contains("proof: the fencing hook succeeded"), "{text}");
    let run = node.run(&["failover", "db", "--json"]).ok();
    assert_eq!(run.stdout.lines().count(), 1, "{}", run.stdout);
    assert_eq!(run.json()["proof"], "fencing_hook");
    assert_eq!(run.json()["plan"]["age_ms"], 700);
}

#[test]
fn the_operators_word_is_passed_on_and_printed() {
    let node = failing_over(Vec::new());
    let text = node.run(&["failover", "db", "--primary-is-down"]).ok().stdout;
    assert!(text.contains("your word that b is down, which is recorded"), "{text}");
    assert!(text.contains("proof: the operator's word that the primary is down"), "{text}");
    let down = |dry_run| Request::Failover { name: "db".into(), primary_is_down: true, dry_run };
    assert_eq!(node.asked(), [down(true), down(false)]);
    let node = failing_over(Vec::new());
    let json = node.run(&["failover", "db", "--dry-run", "--json"]).ok().json();
    assert_eq!(json["proofs"], serde_json::json!([]));
    assert_eq!(node.asked().len(), 1);
}

#[test]
fn a_drill_that_does_not_come_up_ends_with_5() {
    for trouble in [None, Some(Failure::refused(FailureCode::Unhealthy, "nothing listens"))] {
        let healthy = trouble.is_none();
        let node = FakeNode::start(move |_| {
            vec![Response::Ok(Answer::Drilled(Box::new(DrillReport {
                name: "db".into(),
                instance: "repl-1-3".into(),
                age_ms: 90,
                parts_ms: vec![("clone".into(), 5), ("start".into(), 15)],
                trouble: trouble.clone(),
                rounds_meanwhile: 1,
            })))]
        });
        let exit = if healthy { 0 } else { 5 };
        let run = node.run(&["failover", "db", "--drill"]).fails_with(exit);
        let words = if healthy { "would come up here" } else { "nothing listens" };
        assert!(run.stdout.contains(words), "{}", run.stdout);
        let run = node.run(&["failover", "db", "--drill", "--json"]).fails_with(exit);
        assert_eq!(run.json()["healthy"], healthy);
        assert_eq!(run.stdout.lines().count(), 1, "{}", run.stdout);
        assert_eq!(node.asked()[0], Request::Drill { name: "db".into() });
    }
}

#[test]
fn the_history_is_drawn_and_an_object() {
    let node = FakeNode::start(|request| {
        assert!(matches!(request, Request::History { last: Some(5), all: false, .. }));
        let Some(Response::Ok(Answer::Migrated(report))) = migrating(request).pop() else {
            panic!("a migration ends with its report");
        };
        let kind = EventKind::Migrated(report);
        let event = Event { unit: Some(UnitId(7)), name: Some("db".into()), kind };
        vec![Response::Ok(Answer::History(vec![StampedEvent { at_unix_ms: 1, event }]))]
    });
    let text = node.run(&["history", "db", "--last", "5"]).ok().stdout;
    assert!(text.contains("db: migrated in 700 ms") && text.contains("transfer       80 ms"));
    let json = node.run(&["history", "--last", "5", "--json"]).ok().json();
    assert_eq!(json["events"][0]["kind"], "migrated");
    assert_eq!(json["events"][0]["report"]["downtime_ms"]["total"], 95);
    let node = FakeNode::start(|_| vec![Response::Ok(Answer::History(Vec::new()))]);
    assert!(node.run(&["history", "db"]).ok().stdout.contains("nothing of db yet"));
}
