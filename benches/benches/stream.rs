//! Cutting and verifying a send stream, beside a plain copy of the same bytes.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::path::PathBuf;

fn golden(name: &str) -> Vec<u8> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/streams");
    let packed = std::fs::read(dir.join(format!("{name}.zstream.zst"))).expect("a golden stream");
    zstd::decode_all(packed.as_slice()).expect("a zstd frame")
}

fn read_all(stream: &[u8]) -> usize {
    let mut reader = zfs_stream::Reader::new();
    let mut records = 0;
    for mut piece in stream.chunks(1 << 20) {
        while let Some(item) = reader.next(&mut piece).expect("a sound stream") {
            records += item.bytes().len();
        }
    }
    reader.finish().expect("a whole stream");
    records
}

fn stream(c: &mut Criterion) {
    let mut group = c.benchmark_group("stream");
    for name in ["full-large-L", "holes-full", "full-Lec"] {
        let bytes = golden(name);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_with_input(BenchmarkId::new("floor: copy", name), &bytes, |b, bytes| {
            let mut copy = vec![0u8; bytes.len()];
            b.iter(|| copy.copy_from_slice(black_box(bytes)));
        });
        group.bench_with_input(BenchmarkId::new("cut and verify", name), &bytes, |b, bytes| {
            b.iter(|| read_all(black_box(bytes)));
        });
        group.bench_with_input(
            BenchmarkId::new("blake3, 1 MiB pieces", name),
            &bytes,
            |b, bytes| {
                b.iter(|| bytes.chunks(1 << 20).map(|p| blake3::hash(p).as_bytes()[0]).max());
            },
        );
        group.bench_with_input(
            BenchmarkId::new("zstd 1, 1 MiB frames", name),
            &bytes,
            |b, bytes| {
                let mut context = zstd::bulk::Compressor::new(1).expect("a context");
                let packed = |p: &[u8]| context.compress(p).expect("room").len();
                b.iter({
                    let mut packed = packed;
                    move || bytes.chunks(1 << 20).map(&mut packed).sum::<usize>()
                });
            },
        );
    }
    group.finish();
}

criterion_group!(benches, stream);
criterion_main!(benches);
