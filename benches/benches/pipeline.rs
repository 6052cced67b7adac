//! The stages of a transfer before its lane and behind it: cutting into batches, then all of them over a lane in memory.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flocker_benches::streams::{self, Kind};
use flocker_transport::bulk::buffers::Buffers;
use flocker_transport::bulk::cut::Cutter;
use flocker_transport::{
    BulkReceiver, BulkSender, Compression, Progress, Resources, SendOptions, lane, receive_stream,
    send_stream,
};
use zfs_stream::StreamError;

/// Bytes of a stream.
const BYTES: u64 = 32 << 20;

/// Why cutting ends: it does not.
#[derive(Debug)]
struct Damaged;

impl From<StreamError> for Damaged {
    fn from(_: StreamError) -> Self {
        Self
    }
}

fn cut(mut stream: &[u8], buffers: &Arc<Buffers>) -> usize {
    let (mut cutter, mut batches) = (Cutter::new(Arc::clone(buffers)), 0);
    loop {
        let room = cutter.room();
        let len = room.len().min(stream.len());
        room[..len].copy_from_slice(&stream[..len]);
        stream = &stream[len..];
        cutter.filled(len);
        let ended = stream.is_empty();
        if ended || cutter.room().is_empty() {
            let cut = cutter.cut(ended, |batch| {
                batches += 1;
                buffers.give(batch.bytes);
                Ok::<_, Damaged>(())
            });
            cut.expect("a sound stream");
        }
        if ended {
            return batches;
        }
    }
}

fn transfer(
    stream: Bytes,
    compression: Compression,
    here: &Arc<Resources>,
    there: &Arc<Resources>,
) {
    let (a, b, _cable) = lane::memory::pair();
    let (sender, mut receiver) =
        (BulkSender::over(a, Arc::clone(here)), BulkReceiver::over(b, Arc::clone(there)));
    let receiving = std::thread::spawn(move || {
        receive_stream(&mut receiver, &mut io::sink(), &Progress::default()).expect("received");
        receiver.finish(Ok(())).expect("told");
    });
    let read = io::Cursor::new(stream);
    send_stream(
        read,
        |_| Ok(()),
        sender,
        SendOptions { compression, ..SendOptions::default() },
        &Progress::default(),
    )
    .expect("sent");
    receiving.join().expect("no panic");
}

fn pipeline(c: &mut Criterion) {
    let mut group = c.benchmark_group("pipeline");
    group.sample_size(10).throughput(Throughput::Bytes(BYTES));
    let (here, there) =
        (Resources::start().expect("workers"), Resources::start().expect("workers"));
    for (name, kind) in [("noise", Kind::Noise), ("text", Kind::Text), ("lz4", Kind::Lz4)] {
        let stream = Bytes::from(streams::in_memory(kind, BYTES).expect("a stream"));
        let buffers = Arc::new(Buffers::default());
        group.bench_function(BenchmarkId::new("cut and verify", name), |b| {
            b.iter(|| cut(&stream, &buffers));
        });
        for (compression, what) in
            [(Compression::Off, "all, stored"), (Compression::Level(1), "all, zstd 1")]
        {
            group.bench_function(BenchmarkId::new(what, name), |b| {
                b.iter(|| transfer(stream.clone(), compression, &here, &there));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
