//! The core's loop: inputs in, effects out, nothing between. The world is that of core's own tests.

#[allow(dead_code, reason = "a part of what core's tests use")]
#[path = "../../engine/core/tests/pair/mod.rs"]
mod pair;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use flocker_core::{Command, Input};
use pair::Pair;

fn core(c: &mut Criterion) {
    let at_rest = Pair::in_step();
    let migrate = Command::Migrate {
        name: "db".into(),
        to: "b".into(),
        budget_ms: None,
        dry_run: false,
        accept: Default::default(),
    };
    c.bench_function("core: nothing is due", |b| {
        let mut pair = at_rest.clone();
        b.iter(|| pair.input(0, Input::Tick));
    });
    c.bench_function("core: a whole move, both sides", |b| {
        b.iter_batched(
            || at_rest.clone(),
            |mut pair| {
                pair.command(0, migrate.clone());
                pair.settle(|_, _| {});
                pair
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, core);
criterion_main!(benches);
