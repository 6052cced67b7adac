//! What reading and verifying costs: `cargo run --release -p zfs-stream --example speed`.

use std::time::Instant;

use zfs_stream::record::{Begin, End, Write};
use zfs_stream::{Endian, Fletcher4, Reader, Record, Seal, Writer};

const BLOCK: usize = 128 << 10;
const BLOCKS: u64 = 64;
const CHUNK: usize = 1 << 20;

fn main() {
    let block: Vec<u8> = (0..BLOCK).map(|i| (i * 7 + i / 251) as u8).collect();
    let total = BLOCK as u64 * BLOCKS;

    report("fletcher4, 128 KiB hot", total, || {
        let mut sum = Fletcher4::new();
        (0..BLOCKS).for_each(|_| sum.update(&block, Endian::Little));
        sum.value()[0]
    });
    report("fletcher4, big-endian words", total, || {
        let mut sum = Fletcher4::new();
        (0..BLOCKS).for_each(|_| sum.update(&block, Endian::Big));
        sum.value()[0]
    });

    let mut stream = Vec::with_capacity(total as usize + (2 + BLOCKS as usize) * 312);
    report("write, sealed", total, || {
        stream.clear();
        let mut writer = Writer::new(Seal::PerRecord);
        let mut put = |record: Record, payload: &[u8]| {
            writer.record(&record, payload, &mut stream).expect("valid")
        };
        put(Record::Begin(Begin::default()), &[]);
        for n in 0..BLOCKS {
            let write = Write {
                object: 1,
                offset: n * BLOCK as u64,
                logical_size: BLOCK as u64,
                ..Write::default()
            };
            put(Record::Write(write), &block);
        }
        put(Record::End(End::default()), &[]);
        stream.len() as u64
    });
    report("read and verify, 1 MiB pieces", stream.len() as u64, || {
        let mut reader = Reader::new();
        for mut piece in stream.chunks(CHUNK) {
            while reader.next(&mut piece).expect("valid").is_some() {}
        }
        reader.finish().expect("whole");
        reader.records()
    });
}

/// Best of many short rounds, since the machine may be busy.
fn report(what: &str, bytes: u64, mut work: impl FnMut() -> u64) {
    let mut best = f64::INFINITY;
    for _ in 0..200 {
        let start = Instant::now();
        std::hint::black_box(work());
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!(
        "{what}: {:.1} GB/s, {:.3} cpu-s/GB",
        bytes as f64 / best / 1e9,
        best / bytes as f64 * 1e9
    );
}
