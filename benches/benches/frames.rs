//! Headers of frames and batches, and a batch's recipe.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use flocker_transport::frame::bulk::{BatchHeader, Encoding};
use flocker_transport::frame::dedup::{Part, Recipe};
use flocker_transport::frame::{FrameType, Header};

fn frames(c: &mut Criterion) {
    let frame = Header::new(FrameType::Batch, 1 << 20).encode();
    c.bench_function("frames: a header", |b| {
        b.iter(|| Header::decode(black_box(&frame)).expect("a header").encode());
    });
    let (seq, raw_len, encoding) = (7, 1 << 20, Encoding::Stored);
    let batch = BatchHeader { seq, raw_len, encoding, table_len: 0, hash: [9; 32] }.encode();
    c.bench_function("frames: a batch's header", |b| {
        b.iter(|| BatchHeader::decode(black_box(&batch), 1 << 20).expect("a header").encode());
    });
    let parts: Vec<Part> = (0..8)
        .flat_map(|_| [Part::Run { len: 312 }, Part::Reference { len: 128 << 10, hash: [9; 32] }])
        .collect();
    let len = 8 * (312 + (128 << 10));
    let table = Recipe::new(parts, len).expect("a recipe").encode();
    c.bench_function("frames: a recipe of eight references", |b| {
        b.iter(|| Recipe::decode(black_box(&table), len).expect("a recipe").encode());
    });
}

criterion_group!(benches, frames);
criterion_main!(benches);
