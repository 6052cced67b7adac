//! One batch, hashed and compressed or not, there and back.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flocker_benches::streams::{self, Kind};
use flocker_transport::bulk::codec::Codec;

fn codec(c: &mut Criterion) {
    let mut group = c.benchmark_group("codec");
    for (name, kind, level) in [
        ("noise, stored", Kind::Noise, None),
        ("noise, zstd 1", Kind::Noise, Some(1)),
        ("text, stored", Kind::Text, None),
        ("text, zstd 1", Kind::Text, Some(1)),
    ] {
        let batch = streams::in_memory(kind, 1 << 20).expect("a stream");
        group.throughput(Throughput::Bytes(batch.len() as u64));
        let mut codec = Codec::new().expect("memory for zstd");
        group.bench_function(BenchmarkId::new("encode", name), |b| {
            b.iter_batched(
                || batch.clone(),
                |batch| codec.encode(0, batch, level),
                BatchSize::LargeInput,
            );
        });
        let encoded = codec.encode(0, batch.clone(), level);
        group.bench_function(BenchmarkId::new("decode", name), |b| {
            b.iter_batched(
                || encoded.body.to_vec(),
                |body| codec.decode(&encoded.header, body).expect("what was encoded"),
                BatchSize::LargeInput,
            );
        });
        group.bench_function(BenchmarkId::new("floor: BLAKE3 alone", name), |b| {
            b.iter(|| blake3::hash(black_box(&batch)));
        });
    }
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
