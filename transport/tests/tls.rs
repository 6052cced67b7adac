//! The lane of TLS over TCP by itself: ends, resets, stops, cuts, and peers that do not play along.
#![allow(missing_docs)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flocker_transport::Cancel;
use flocker_transport::lane::{CODE_CANCELLED, Lane, LaneError, LaneRecv, LaneSend, Until, tls};

/// What comes soon enough to be called prompt, on a machine that others use too.
const PROMPT: Duration = Duration::from_secs(5);

/// Long enough for anything; a test that reaches it fails.
const LONG: Duration = Duration::from_secs(30);

fn lanes() -> (Lane, Lane) {
    let ((a, _), (b, _)) = tls::pair().unwrap();
    (a, b)
}

fn say(lane: &mut dyn LaneSend, bytes: &[u8]) -> Result<(), LaneError> {
    lane.send(&mut [Bytes::copy_from_slice(bytes)], Until::Elapsed(LONG))
}

fn hear(lane: &mut dyn LaneRecv, len: usize) -> Result<Option<Vec<u8>>, LaneError> {
    let mut buf = vec![0; len];
    Ok(lane.fill(&mut buf, Until::Elapsed(LONG))?.then_some(buf))
}

/// Bytes that show where they stood.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// Sends until the socket is full and stays so.
fn choke(lane: &mut dyn LaneSend) {
    let part = Bytes::from(vec![0; 1 << 20]);
    loop {
        match lane.send(&mut [part.clone()], Until::Elapsed(Duration::from_millis(300))) {
            Ok(()) => {}
            Err(LaneError::Interrupted) => return,
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn parts_of_any_length_arrive_in_order_and_end_cleanly() {
    let (mut a, mut b) = lanes();
    let lens = [1, 0, 7, 16_384, 262_136, 262_137, 1 << 20, 3, 5_000_000];
    let sent = pattern(lens.iter().sum());
    let expected = sent.clone();
    let sending = thread::spawn(move || {
        let mut all = Bytes::from(sent);
        for pair in lens.chunks(2) {
            let mut parts: Vec<Bytes> = pair.iter().map(|len| all.split_to(*len)).collect();
            a.send.send(&mut parts, Until::Elapsed(LONG)).unwrap();
            assert!(parts.iter().all(Bytes::is_empty));
        }
        a.send.finish().unwrap();
        a.send.drained(Until::Elapsed(LONG)).unwrap();
    });
    assert!(hear(b.recv.as_mut(), expected.len()).unwrap().unwrap() == expected);
    assert_eq!(hear(b.recv.as_mut(), 1).unwrap(), None);
    sending.join().unwrap();
}

#[test]
fn a_half_goes_on_after_the_other_has_ended() {
    let (mut a, mut b) = lanes();
    say(a.send.as_mut(), b"question").unwrap();
    a.send.finish().unwrap();
    assert_eq!(hear(b.recv.as_mut(), 8).unwrap().unwrap(), b"question");
    assert_eq!(hear(b.recv.as_mut(), 1).unwrap(), None);
    say(b.send.as_mut(), b"answer").unwrap();
    b.send.finish().unwrap();
    let waiting = thread::spawn(move || b.send.drained(Until::Elapsed(LONG)));
    assert_eq!(hear(a.recv.as_mut(), 6).unwrap().unwrap(), b"answer");
    assert_eq!(hear(a.recv.as_mut(), 1).unwrap(), None);
    waiting.join().unwrap().unwrap();
}

#[test]
fn an_end_in_the_middle_of_what_is_due_is_no_clean_end() {
    let (mut a, mut b) = lanes();
    say(a.send.as_mut(), b"half").unwrap();
    a.send.finish().unwrap();
    assert_eq!(hear(b.recv.as_mut(), 8), Err(LaneError::Ended));
}

#[test]
fn a_half_that_is_dropped_unfinished_is_reset() {
    let (mut a, mut b) = lanes();
    say(a.send.as_mut(), b"all there is").unwrap();
    drop(a.send);
    assert_eq!(hear(b.recv.as_mut(), 12).unwrap().unwrap(), b"all there is");
    assert_eq!(hear(b.recv.as_mut(), 1), Err(LaneError::Reset { code: CODE_CANCELLED }));
    // The other half goes on.
    say(b.send.as_mut(), b"pity").unwrap();
    assert_eq!(hear(a.recv.as_mut(), 4).unwrap().unwrap(), b"pity");
}

#[test]
fn a_reset_reaches_a_peer_that_reads_late() {
    let (mut a, mut b) = lanes();
    choke(a.send.as_mut());
    drop(a);
    let mut buf = vec![0; 1 << 20];
    let error = loop {
        match b.recv.fill(&mut buf, Until::Elapsed(LONG)) {
            Ok(more) => assert!(more, "no clean end"),
            Err(error) => break error,
        }
    };
    assert_eq!(error, LaneError::Reset { code: CODE_CANCELLED });
}

#[test]
fn a_receiver_that_takes_no_more_stops_a_sender_that_is_blocked() {
    let (mut a, b) = lanes();
    let Lane { send: _kept, recv } = b;
    let mut answers = a.recv;
    thread::spawn(move || answers.fill(&mut [0], Until::Elapsed(LONG)));
    choke(a.send.as_mut());
    let blocked = thread::spawn(move || say(a.send.as_mut(), &[0; 100]));
    drop(recv);
    assert_eq!(blocked.join().unwrap(), Err(LaneError::Stopped { code: CODE_CANCELLED }));
}

#[test]
fn a_receiver_that_goes_altogether_stops_a_sender_that_is_blocked() {
    let (mut a, b) = lanes();
    choke(a.send.as_mut());
    let blocked = thread::spawn(move || say(a.send.as_mut(), &[0; 100]));
    drop(b);
    assert_eq!(blocked.join().unwrap(), Err(LaneError::Stopped { code: CODE_CANCELLED }));
}

#[test]
fn a_cancel_frees_threads_that_are_blocked_in_sending_and_in_receiving() {
    let (mut a, _b) = lanes();
    let cancel = Cancel::default();
    choke(a.send.as_mut());
    let (mut send, mut recv) = (a.send, a.recv);
    let (one, other) = (cancel.clone(), cancel.clone());
    let (started, waits) = mpsc::channel();
    let also = started.clone();
    let sending = thread::spawn(move || {
        started.send(()).unwrap();
        send.send(&mut [Bytes::from_static(&[0; 100])], Until::Cancelled(&one))
    });
    let receiving = thread::spawn(move || {
        also.send(()).unwrap();
        recv.fill(&mut [0], Until::Cancelled(&other))
    });
    waits.recv().unwrap();
    waits.recv().unwrap();
    // Blocked by now, most likely; the result is the same if not.
    thread::sleep(Duration::from_millis(100));
    let started = Instant::now();
    cancel.cancel("enough");
    assert_eq!(sending.join().unwrap(), Err(LaneError::Interrupted));
    assert_eq!(receiving.join().unwrap(), Err(LaneError::Interrupted));
    assert!(started.elapsed() < PROMPT);
}

#[test]
fn hanging_up_frees_blocked_threads_here_and_there_with_its_reason() {
    let ((mut a, hangup), (mut b, _)) = tls::pair().unwrap();
    choke(a.send.as_mut());
    let sending = thread::spawn(move || say(a.send.as_mut(), &[0; 100]));
    let receiving = thread::spawn(move || hear(a.recv.as_mut(), 1));
    hangup.hang_up("the peer is not paired any more");
    let lost = LaneError::Lost { reason: "the peer is not paired any more".into() };
    assert_eq!(sending.join().unwrap(), Err(lost.clone()));
    assert_eq!(receiving.join().unwrap(), Err(lost));
    let mut buf = vec![0; 1 << 20];
    let error = loop {
        match b.recv.fill(&mut buf, Until::Elapsed(LONG)) {
            Ok(more) => assert!(more, "no clean end"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LaneError::Lost { .. }), "{error}");
}

/// Two lanes with somebody in between who lets `most` bytes of the first one's pass, then acts.
fn through(most: usize, act: fn(&mut TcpStream, &mut TcpStream)) -> (Lane, Lane) {
    let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (near, far) = (listen(), listen());
    let dialled = TcpStream::connect(near.local_addr().unwrap()).unwrap();
    let onward = TcpStream::connect(far.local_addr().unwrap()).unwrap();
    let (accepted, _) = far.accept().unwrap();
    let (mut from, _) = near.accept().unwrap();
    let mut to = onward;
    let (mut back_from, mut back_to) = (to.try_clone().unwrap(), from.try_clone().unwrap());
    thread::spawn(move || std::io::copy(&mut back_from, &mut back_to));
    thread::spawn(move || {
        let (mut left, mut buf) = (most, [0; 4096]);
        while left > 0 {
            let most = buf.len().min(left);
            match from.read(&mut buf[..most]) {
                Ok(len) if len > 0 && to.write_all(&buf[..len]).is_ok() => left -= len,
                Ok(_) | Err(_) => return,
            }
        }
        act(&mut from, &mut to);
    });
    let ((a, _), (b, _)) = tls::over(dialled, accepted).unwrap();
    (a, b)
}

/// Sends for as long as it goes, and returns what the receiving side makes of it.
fn what_comes_of((mut a, mut b): (Lane, Lane)) -> LaneError {
    let sending = thread::spawn(move || {
        for _ in 0..100 {
            if say(a.send.as_mut(), &[7; 100_000]).is_err() {
                return;
            }
        }
        let _ = a.send.finish();
        let _ = a.send.drained(Until::Elapsed(PROMPT));
    });
    let mut buf = vec![0; 1000];
    let error = loop {
        match b.recv.fill(&mut buf, Until::Elapsed(LONG)) {
            Ok(more) => assert!(more, "no clean end"),
            Err(error) => break error,
        }
        assert!(buf.iter().all(|byte| *byte == 7));
    };
    drop(b);
    sending.join().unwrap();
    error
}

#[test]
fn a_connection_cut_anywhere_is_lost_and_never_a_clean_end() {
    // Wherever: between records, within one, after a chunk.
    for most in [5_000, 20_000, 100_000, 300_001, 1_000_000] {
        let fin = what_comes_of(through(most, |_, to| drop(to.shutdown(Shutdown::Write))));
        assert!(matches!(fin, LaneError::Lost { .. }), "{most}: {fin}");
    }
}

#[test]
fn bytes_that_somebody_in_between_puts_in_or_changes_lose_the_connection() {
    let error = what_comes_of(through(100_000, |from, to| {
        let mut buf = [0; 4096];
        let len = from.read(&mut buf).unwrap();
        buf[len / 2] ^= 1;
        let _ = to.write_all(&buf[..len]);
        let _ = std::io::copy(from, to);
    }));
    assert!(matches!(error, LaneError::Lost { .. }), "{error}");
    let error = what_comes_of(through(100_000, |from, to| {
        let _ = to.write_all(&[0x17, 3, 3, 0, 40, 1, 2, 3]);
        let _ = std::io::copy(from, to);
    }));
    assert!(matches!(error, LaneError::Lost { .. }), "{error}");
}
