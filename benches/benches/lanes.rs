//! A transfer between two nodes in this process, over each lane; nothing is compressed.

use std::io;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flocker_benches::nodes::{Node, runtime};
use flocker_benches::streams::{self, Kind};
use flocker_transport::{
    Compression, LaneMode, Progress, SendOptions, receive_stream, send_stream,
};

/// Bytes of a stream.
const BYTES: u64 = 32 << 20;

async fn transfer(near: &Node, far: &mut Node, stream: Bytes) -> anyhow::Result<()> {
    let sink = near.open(Some(stream.len() as u64)).await?;
    let mut receiver = far.opened().await?;
    let receiving = tokio::task::spawn_blocking(move || {
        receive_stream(&mut receiver, &mut io::sink(), &Progress::default())?;
        receiver.finish(Ok(()))?;
        anyhow::Ok(())
    });
    let sending = tokio::task::spawn_blocking(move || {
        let (read, options) = (
            io::Cursor::new(stream),
            SendOptions { compression: Compression::Off, ..SendOptions::default() },
        );
        send_stream(read, |_| Ok(()), sink, options, &Progress::default())
    });
    sending.await??;
    receiving.await?
}

fn lanes(c: &mut Criterion) {
    let runtime = runtime().expect("a runtime");
    let mut group = c.benchmark_group("lanes");
    group.sample_size(10);
    for (name, bytes) in [("32 MiB", BYTES), ("64 KiB", 64 << 10)] {
        let mut stream = Vec::new();
        streams::write_in_blocks(Kind::Noise, bytes, 64 << 10, &mut stream).expect("a stream");
        let stream = Bytes::from(stream);
        group.throughput(Throughput::Bytes(stream.len() as u64));
        for (lane, mode) in [("quic", LaneMode::Quic), ("tls", LaneMode::Tls)] {
            // What is small takes QUIC whatever is asked for.
            if mode == LaneMode::Tls && bytes < BYTES {
                continue;
            }
            let (near, mut far) = runtime.block_on(Node::pair(mode)).expect("two nodes");
            group.bench_function(BenchmarkId::new(lane, name), |b| {
                b.iter(|| {
                    runtime.block_on(transfer(&near, &mut far, stream.clone())).expect("sent");
                });
            });
            runtime.block_on(async {
                near.manager.close().await;
                far.manager.close().await;
            });
        }
    }
    group.finish();
}

criterion_group!(benches, lanes);
criterion_main!(benches);
