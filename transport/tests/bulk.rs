//! The data path, over memory and over TLS: what arrives, and what happens when it does not.
#![allow(missing_docs)]

mod common;

use std::io::{self, Cursor, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{Over, Synthetic, between, golden, golden_names, synthetic};
use flocker_transport::frame::bulk::AbortCode;
use flocker_transport::{
    BulkReceiver, BulkSender, Limit, Progress, ReceiveError, ReceiveReport, Refusal, SendError,
    SendOptions, SendReport, receive_stream, send_stream,
};

const BLOCK: usize = 128 << 10;

/// What comes soon enough to be called prompt, on a machine that others use too.
const PROMPT: Duration = Duration::from_secs(3);

/// Each of these is a test over each kind of lane.
macro_rules! over_each_lane {
    ($($name:ident,)*) => {
        mod memory {
            $(#[test] fn $name() { super::$name(super::Over::Memory) })*
        }
        mod tls {
            $(#[test] fn $name() { super::$name(super::Over::Tls) })*
        }
    };
}

over_each_lane! {
    every_golden_stream_arrives_byte_for_byte,
    text_shrinks_and_noise_is_stored,
    records_of_sixteen_mebibytes_arrive_in_pieces,
    progress_is_seen_on_both_sides,
    the_slowest_part_of_the_way_is_found_and_the_level_follows,
    a_flipped_stream_is_refused_with_record_and_offset_and_the_receiver_is_told,
    a_truncated_stream_never_ends_well,
    a_sender_that_fails_after_its_last_byte_is_not_acknowledged,
    a_read_that_fails_is_told_to_both_sides,
    a_full_disk_at_the_receiver_stops_the_sender_with_its_reason,
    an_application_that_refuses_at_once_stops_the_sender,
    nothing_is_acknowledged_before_the_application_says_so,
    cancelling_the_sender_frees_both_sides_at_once,
    cancelling_a_sender_whose_source_hangs_returns_at_once_and_drops_the_source_later,
    cancelling_the_receiver_frees_both_sides_and_says_why,
    a_lost_connection_is_named_on_both_sides,
    a_receiver_that_vanishes_without_a_word_is_noticed,
    a_slow_writer_stops_the_reader_within_bounded_memory,
}

type Received = (Vec<u8>, Result<ReceiveReport, ReceiveError>);

/// Receives on a thread of its own, answering as the result says.
fn receiving(mut receiver: BulkReceiver) -> thread::JoinHandle<Received> {
    thread::spawn(move || {
        let mut out = Vec::new();
        let result = receive_stream(&mut receiver, &mut out, &Progress::default());
        let outcome = match &result {
            Ok(_) => Ok(()),
            Err(error) => Err(Refusal { code: 5, reason: error.to_string() }),
        };
        // When the other side is gone there is nobody to tell.
        let _ = receiver.finish(outcome);
        (out, result)
    })
}

fn send(read: impl Read + Send + 'static, sender: BulkSender) -> Result<SendReport, SendError> {
    send_stream(read, |_| Ok(()), sender, SendOptions::default(), &Progress::default())
}

fn every_golden_stream_arrives_byte_for_byte(over: Over) {
    for name in golden_names() {
        let stream = golden(&name);
        let (sender, receiver, _) = between(over);
        let received = receiving(receiver);
        let sent =
            send(Cursor::new(stream.clone()), sender).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (out, result) = received.join().unwrap();
        let report = result.unwrap();
        assert!(out == stream, "{name} arrived changed");
        assert_eq!((sent.raw_bytes, sent.batches), (report.raw_bytes, report.batches), "{name}");
        assert_eq!(sent.raw_bytes, stream.len() as u64);
    }
}

fn text_shrinks_and_noise_is_stored(over: Over) {
    for (noise, stored) in [(false, false), (true, true)] {
        let (sender, receiver, _) = between(over);
        let received = receiving(receiver);
        let sent = send(Synthetic::new(64, BLOCK, noise), sender).unwrap();
        received.join().unwrap().1.unwrap();
        assert_eq!(sent.stored_batches * 2 > sent.batches, stored);
        assert_eq!(sent.wire_bytes > sent.raw_bytes / 2, stored);
        assert!(sent.wire_bytes < sent.raw_bytes + sent.batches * 100);
    }
}

fn records_of_sixteen_mebibytes_arrive_in_pieces(over: Over) {
    let stream = synthetic(3, 16 << 20, true);
    let (sender, receiver, _) = between(over);
    let received = receiving(receiver);
    send(Cursor::new(stream.clone()), sender).unwrap();
    assert!(received.join().unwrap().0 == stream);
}

fn progress_is_seen_on_both_sides(over: Over) {
    let (sender, mut receiver, _) = between(over);
    let (there, here) = (Arc::new(Progress::default()), Progress::default());
    let progress = there.clone();
    let received = thread::spawn(move || {
        receive_stream(&mut receiver, &mut io::sink(), &progress).unwrap();
        receiver.finish(Ok(())).unwrap();
    });
    let read = Synthetic::new(32, BLOCK, false);
    let sent = send_stream(read, |_| Ok(()), sender, SendOptions::default(), &here).unwrap();
    received.join().unwrap();
    assert_eq!((here.raw_bytes(), here.batches()), (sent.raw_bytes, sent.batches));
    assert_eq!((there.raw_bytes(), there.wire_bytes()), (sent.raw_bytes, sent.wire_bytes));
}

/// What a slow part of the way waits for each 128 KiB.
const SLOW: Duration = Duration::from_millis(5);

/// Reads or writes so slowly.
struct Slow<T>(T, Duration);

impl<R: Read> Read for Slow<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        thread::sleep(self.1);
        let most = buf.len().min(BLOCK);
        self.0.read(&mut buf[..most])
    }
}

impl<W: Write> Write for Slow<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        thread::sleep(self.1 * (buf.len() / BLOCK) as u32);
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn the_slowest_part_of_the_way_is_found_and_the_level_follows(over: Over) {
    let ways = [
        (SLOW, Duration::ZERO, false, Limit::Source, Some(1)),
        // Noise, since of text the lane's buffers hold very much; it is stored at every level.
        (Duration::ZERO, SLOW, true, Limit::Lane, None),
    ];
    for (source, target, noise, limit, level) in ways {
        let (sender, mut receiver, _) = between(over);
        let received = thread::spawn(move || {
            let mut sink = Slow(io::sink(), target);
            receive_stream(&mut receiver, &mut sink, &Progress::default()).unwrap_err();
        });
        let progress = Arc::new(Progress::default());
        let here = Arc::clone(&progress);
        let read = Slow(Synthetic::new(100_000, BLOCK, noise), source);
        let cancel = sender.cancel_handle();
        let sent = thread::spawn(move || {
            send_stream(read, |_| Ok(()), sender, SendOptions::default(), &here)
        });
        let begun = Instant::now();
        while progress.compressed() != Some((level, limit)) {
            let seen = progress.compressed();
            assert!(begun.elapsed() < Duration::from_secs(60), "{limit:?}: {seen:?}");
            thread::sleep(Duration::from_millis(20));
        }
        cancel.cancel("enough");
        sent.join().unwrap().unwrap_err();
        received.join().unwrap();
    }
}

fn a_flipped_stream_is_refused_with_record_and_offset_and_the_receiver_is_told(over: Over) {
    let mut stream = golden("full-plain");
    let at = stream.len() / 2;
    stream[at] ^= 4;
    let (sender, receiver, _) = between(over);
    let received = receiving(receiver);
    let error = send(Cursor::new(stream), sender).unwrap_err();
    let SendError::Damaged { source } = &error else { panic!("{error}") };
    assert!(source.record > 1 && source.offset > 312, "{source}");
    let (_, result) = received.join().unwrap();
    let Err(ReceiveError::Aborted { code: AbortCode::Damaged, reason }) = &result else {
        panic!("{result:?}")
    };
    assert!(reason.contains(&format!("record {}", source.record)), "{reason}");
}

fn a_truncated_stream_never_ends_well(over: Over) {
    let stream = golden("full-plain");
    for keep in [0, 100, 312, 5000, stream.len() - 1] {
        let (sender, receiver, _) = between(over);
        let received = receiving(receiver);
        let error = send(Cursor::new(stream[..keep].to_vec()), sender).unwrap_err();
        assert!(matches!(error, SendError::Damaged { .. }), "{keep}: {error}");
        let (_, result) = received.join().unwrap();
        assert!(matches!(result, Err(ReceiveError::Aborted { .. })), "{keep}: {result:?}");
    }
}

fn a_sender_that_fails_after_its_last_byte_is_not_acknowledged(over: Over) {
    let (sender, receiver, _) = between(over);
    let received = receiving(receiver);
    let stream = Cursor::new(golden("incr-plain"));
    let verdict = |_| Err("zfs send: exit status 1: dataset is busy".into());
    let sent = send_stream(stream, verdict, sender, SendOptions::default(), &Progress::default());
    let error = sent.unwrap_err();
    assert!(matches!(error, SendError::Source { .. }), "{error}");
    let (_, result) = received.join().unwrap();
    let Err(ReceiveError::Aborted { code: AbortCode::Source, reason }) = result else {
        panic!("{result:?}")
    };
    assert!(reason.contains("dataset is busy"), "{reason}");
}

fn a_read_that_fails_is_told_to_both_sides(over: Over) {
    let (sender, receiver, _) = between(over);
    let received = receiving(receiver);
    let broken = Synthetic::new(20, BLOCK, true).take(1_000_000).chain(Failing);
    assert!(matches!(send(broken, sender), Err(SendError::Read { .. })));
    assert!(matches!(received.join().unwrap().1, Err(ReceiveError::Aborted { .. })));
}

struct Failing;

impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the disk is gone"))
    }
}

fn a_full_disk_at_the_receiver_stops_the_sender_with_its_reason(over: Over) {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(buf.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (sender, mut receiver, _) = between(over);
    let received = thread::spawn(move || {
        let result = receive_stream(&mut receiver, &mut Full(3 << 20), &Progress::default());
        let reason = result.as_ref().unwrap_err().to_string();
        receiver.finish(Err(Refusal { code: 28, reason })).unwrap();
        result
    });
    let error = send(Synthetic::new(10_000, BLOCK, true), sender).unwrap_err();
    let SendError::Refused { code: 28, reason } = &error else { panic!("{error}") };
    assert!(reason.contains("storage") || reason.contains("space"), "{reason}");
    assert!(matches!(received.join().unwrap(), Err(ReceiveError::Write { .. })));
}

fn an_application_that_refuses_at_once_stops_the_sender(over: Over) {
    let (sender, receiver, _) = between(over);
    let reason = "the grant does not cover tank/other".to_owned();
    let refusal = Refusal { code: 3, reason: reason.clone() };
    let refused = thread::spawn(move || receiver.finish(Err(refusal)));
    let started = Instant::now();
    let error = send(Synthetic::new(10_000, BLOCK, true), sender).unwrap_err();
    assert!(started.elapsed() < PROMPT);
    assert!(matches!(&error, SendError::Refused { code: 3, reason: r } if *r == reason), "{error}");
    refused.join().unwrap().unwrap();
}

fn nothing_is_acknowledged_before_the_application_says_so(over: Over) {
    let (sender, mut receiver, _) = between(over);
    let sending = thread::spawn(move || send(Synthetic::new(4, BLOCK, false), sender));
    receive_stream(&mut receiver, &mut io::sink(), &Progress::default()).unwrap();
    thread::sleep(Duration::from_millis(100));
    assert!(!sending.is_finished(), "the sender waits for the application's word");
    let reason = "the snapshot's guid is another".to_owned();
    receiver.finish(Err(Refusal { code: 9, reason })).unwrap();
    assert!(matches!(sending.join().unwrap(), Err(SendError::Refused { code: 9, .. })));
}

fn cancelling_the_sender_frees_both_sides_at_once(over: Over) {
    let (sender, receiver, _) = between(over);
    let cancel = sender.cancel_handle();
    let received = receiving(receiver);
    let sending = thread::spawn(move || send(Synthetic::new(1 << 20, BLOCK, true), sender));
    thread::sleep(Duration::from_millis(100));
    let started = Instant::now();
    cancel.cancel("the operator paused it");
    let error = sending.join().unwrap().unwrap_err();
    assert!(
        matches!(&error, SendError::Cancelled { reason } if reason.contains("paused")),
        "{error}"
    );
    let result = received.join().unwrap().1;
    // In the middle of a batch there is no room for words, between two there is.
    let told = matches!(
        &result,
        Err(ReceiveError::SenderGone | ReceiveError::Aborted { code: AbortCode::Cancelled, .. })
    );
    assert!(told, "{result:?}");
    assert!(started.elapsed() < PROMPT);
}

fn cancelling_a_sender_whose_source_hangs_returns_at_once_and_drops_the_source_later(over: Over) {
    struct Hanging(crossbeam_channel::Receiver<()>);
    impl Read for Hanging {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(0)
        }
    }
    let (kill, hang) = crossbeam_channel::bounded::<()>(0);
    let (sender, receiver, _) = between(over);
    let (cancel, received) = (sender.cancel_handle(), receiving(receiver));
    let source = Synthetic::new(10, BLOCK, true).take(1 << 20).chain(Hanging(hang));
    let sending = thread::spawn(move || send(source, sender));
    thread::sleep(Duration::from_millis(100));
    let started = Instant::now();
    cancel.cancel("stop");
    assert!(matches!(sending.join().unwrap(), Err(SendError::Cancelled { .. })));
    assert!(started.elapsed() < PROMPT);
    received.join().unwrap().1.unwrap_err();
    drop(kill);
}

fn cancelling_the_receiver_frees_both_sides_and_says_why(over: Over) {
    let (sender, receiver, _) = between(over);
    let cancel = receiver.cancel_handle();
    let received = receiving(receiver);
    let sending = thread::spawn(move || send(Synthetic::new(1 << 20, BLOCK, true), sender));
    thread::sleep(Duration::from_millis(100));
    let started = Instant::now();
    cancel.cancel("the volume was unprotected");
    assert!(matches!(received.join().unwrap().1, Err(ReceiveError::Cancelled { .. })));
    let error = sending.join().unwrap().unwrap_err();
    assert!(matches!(&error, SendError::Refused { reason, .. } if reason.contains("unprotected")));
    assert!(started.elapsed() < PROMPT);
}

fn a_lost_connection_is_named_on_both_sides(over: Over) {
    let (sender, receiver, cable) = between(over);
    let received = receiving(receiver);
    let sending = thread::spawn(move || send(Synthetic::new(1 << 20, BLOCK, true), sender));
    thread::sleep(Duration::from_millis(100));
    let started = Instant::now();
    cable.cut();
    let error = sending.join().unwrap().unwrap_err();
    assert!(matches!(error, SendError::ConnectionLost { .. }), "{error}");
    let result = received.join().unwrap().1;
    assert!(matches!(result, Err(ReceiveError::ConnectionLost { .. })), "{result:?}");
    assert!(started.elapsed() < PROMPT);
}

fn a_receiver_that_vanishes_without_a_word_is_noticed(over: Over) {
    let (sender, receiver, _) = between(over);
    drop(receiver);
    let error = send(Synthetic::new(1000, BLOCK, true), sender).unwrap_err();
    assert!(matches!(error, SendError::ReceiverGone), "{error}");
}

/// Counts what was read, to see how far the reader runs ahead of the writer.
struct Counting<R>(R, Arc<AtomicUsize>);

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.0.read(buf)?;
        self.1.fetch_add(len, Ordering::SeqCst);
        Ok(len)
    }
}

fn a_slow_writer_stops_the_reader_within_bounded_memory(over: Over) {
    /// Writes only while it holds the gate.
    struct Gated(Arc<Mutex<()>>, Arc<AtomicUsize>);
    impl Write for Gated {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let _open = self.0.lock().unwrap();
            self.1.fetch_add(buf.len(), Ordering::SeqCst);
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (sender, mut receiver, _) = between(over);
    let (read, written) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    let mut gated = Gated(gate.clone(), written.clone());
    let received = thread::spawn(move || {
        receive_stream(&mut receiver, &mut gated, &Progress::default()).unwrap();
        receiver.finish(Ok(())).unwrap();
    });
    let source = Counting(Synthetic::new(1000, BLOCK, true), read.clone());
    let sending = thread::spawn(move || send(source, sender));
    let mut before = usize::MAX;
    while before != read.load(Ordering::SeqCst) {
        before = read.load(Ordering::SeqCst);
        thread::sleep(Duration::from_millis(300));
    }
    // Own and shared batches of both sides, the lane's six parts, the pieces being read and packed; or instead of
    // the six what the kernel holds of a connection with itself.
    let lane = if over == Over::Memory { 6 << 20 } else { 16 << 20 };
    assert_eq!(written.load(Ordering::SeqCst), 0);
    assert!(before < (30 << 20) + lane, "{before} bytes were read ahead");
    drop(closed);
    assert_eq!(sending.join().unwrap().unwrap().raw_bytes, Synthetic::len(1000, BLOCK));
    received.join().unwrap();
}
