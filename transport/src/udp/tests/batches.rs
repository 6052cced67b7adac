//! What goes together, and what becomes of a batch that the system does not take.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use quinn::AsyncUdpSocket;
use quinn::udp::{EcnCodepoint, Transmit};
use rustix::io::Errno;

use super::super::driver::Driver;
use super::super::{CAREFUL_SEGMENTS, GatherSocket, MAX_BATCH_BYTES};
use super::{Call, TestPort};

fn peer(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

/// A socket over a port, where `peer(1)` is roomy.
fn socket(port: &Arc<TestPort>) -> Arc<GatherSocket> {
    let socket = GatherSocket::over(port.clone(), 8952);
    socket.is_roomy(peer(1));
    Arc::new(socket)
}

/// Datagrams to `peer(1)`: `many` of `segment` bytes, all filled with `byte`.
fn run(bytes: &[u8], segment: usize) -> Transmit<'_> {
    Transmit {
        destination: peer(1),
        ecn: Some(EcnCodepoint::Ect0),
        contents: bytes,
        segment_size: (bytes.len() > segment).then_some(segment),
        src_ip: None,
    }
}

/// Polls a driver once that sends these through `socket` and goes on; the answers.
fn send(socket: &Arc<GatherSocket>, transmits: &[Transmit<'_>]) -> Vec<bool> {
    // Within a real driver, as quinn's are, but for its life time.
    let all: Vec<(Transmit<'static>, Vec<u8>)> = transmits.iter().map(owned).collect();
    let answers = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (socket, told) = (socket.clone(), answers.clone());
    let mut driver = Driver::new(Box::pin(async move {
        for (transmit, bytes) in &all {
            let transmit = Transmit { contents: bytes, ..transmit.clone() };
            told.lock().unwrap().push(socket.try_send(&transmit).is_ok());
        }
    }));
    let _ = poll(&mut driver);
    let answers = answers.lock().unwrap();
    answers.clone()
}

fn owned(transmit: &Transmit<'_>) -> (Transmit<'static>, Vec<u8>) {
    let Transmit { destination, ecn, segment_size, src_ip, .. } = *transmit;
    let empty = Transmit { destination, ecn, contents: &[], segment_size, src_ip };
    (empty, transmit.contents.to_vec())
}

fn poll(driver: &mut Driver) -> Poll<()> {
    Pin::new(driver).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn what_a_driver_sends_in_one_poll_leaves_in_one_call_and_unchanged() {
    let port = TestPort::keeping();
    let bytes: Vec<u8> = (0..14520u32).map(|n| n as u8).collect();
    let sends = [run(&bytes, 1452), run(&bytes, 1452), run(&bytes, 1452), run(&bytes[..700], 700)];
    assert_eq!(send(&socket(&port), &sends), [true; 4]);
    let calls = port.take();
    let lengths = [vec![1452; 30], vec![700]].concat();
    let sent = [&bytes[..], &bytes, &bytes, &bytes[..700]].concat();
    assert_eq!(calls, [Call { to: peer(1), lengths, bytes: sent }]);
}

#[test]
fn a_lone_datagram_leaves_before_the_poll_returns_and_before_what_comes_after_it() {
    let port = TestPort::keeping();
    send(&socket(&port), &[run(&[1; 40], 40), run(&[2; 50], 50)]);
    assert_eq!(port.take_lengths(), [[40], [50]]);
}

#[test]
fn a_batch_has_at_most_64_datagrams_and_65507_bytes() {
    let port = TestPort::keeping();
    let (small, long) = ([0; 1000], [0; 7 * 8952]);
    let sends: Vec<_> = (0..20).map(|_| run(&small, 100)).collect();
    send(&socket(&port), &sends);
    let calls = port.take_lengths();
    assert_eq!(calls.iter().map(Vec::len).sum::<usize>(), 200);
    assert!(calls.iter().all(|call| call.len() <= 64), "{calls:?}");
    assert!(calls.len() < 5, "they are gathered at all");
    let sends: Vec<_> = (0..3).map(|_| run(&long, 8952)).collect();
    send(&socket(&port), &sends);
    let calls = port.take_lengths();
    assert_eq!(calls.len(), 3);
    assert!(calls.iter().all(|call| call.iter().sum::<usize>() <= MAX_BATCH_BYTES), "{calls:?}");
}

#[test]
fn a_shorter_datagram_is_the_last_of_its_batch() {
    let port = TestPort::keeping();
    let bytes = [0; 5000];
    send(&socket(&port), &[run(&bytes, 1452), run(&bytes[..2904], 1452)]);
    assert_eq!(port.take_lengths(), [vec![1452, 1452, 1452, 644], vec![1452, 1452]]);
}

#[test]
fn datagrams_that_differ_in_anything_but_their_bytes_do_not_go_together() {
    let bytes = [0; 2904];
    let base = run(&bytes, 1452);
    let src_ip = Some([127, 0, 0, 2].into());
    for other in [
        Transmit { destination: peer(2), ..base.clone() },
        Transmit { ecn: None, ..base.clone() },
        Transmit { src_ip, ..base.clone() },
        Transmit { segment_size: Some(968), ..base.clone() },
    ] {
        let port = TestPort::keeping();
        send(&socket(&port), &[base.clone(), other.clone()]);
        let calls = port.take();
        assert_eq!(calls.len(), 2, "{other:?}");
        assert_eq!(calls[1].to, other.destination);
    }
}

#[test]
fn a_peer_that_has_moved_is_sent_to_at_its_new_address_and_carefully() {
    let port = TestPort::keeping();
    let socket = socket(&port);
    let bytes = [0; 14520];
    let moved: Vec<_> =
        (0..4).map(|_| Transmit { destination: peer(2), ..run(&bytes, 1452) }).collect();
    send(&socket, &[&[run(&bytes, 1452)][..], &moved].concat());
    let calls = port.take();
    let to_old: usize = calls.iter().filter(|c| c.to == peer(1)).map(|c| c.lengths.len()).sum();
    assert_eq!(to_old, 10, "nothing more to where it was");
    let rest: Vec<_> = calls.iter().filter(|c| c.to == peer(2)).map(|c| c.lengths.len()).collect();
    assert_eq!(rest, [20, 20]);
}

#[test]
fn what_is_queued_leaves_by_the_socket_that_it_was_sent_through() {
    let (one, two) = (TestPort::keeping(), TestPort::keeping());
    let (before, after) = (socket(&one), socket(&two));
    let mut driver = Driver::new(Box::pin(async move {
        let bytes = [0; 2904];
        before.try_send(&run(&bytes, 1452)).unwrap();
        after.try_send(&run(&bytes, 1452)).unwrap();
    }));
    assert_eq!(poll(&mut driver), Poll::Ready(()));
    assert_eq!(one.take_lengths(), [[1452, 1452]]);
    assert_eq!(two.take_lengths(), [[1452, 1452]]);
}

#[test]
fn a_probe_of_the_mtu_leaves_alone() {
    let port = TestPort::keeping();
    let socket = socket(&port);
    let (probe, bytes) = ([0; 5000], [0; 12000]);
    // After a run, before a run, before what is shorter, and after the path has become narrow again.
    let sends = [
        run(&bytes, 1200),
        run(&probe, 5000),
        run(&bytes, 1200),
        run(&probe, 5000),
        run(&bytes[..900], 900),
        run(&probe, 5000),
        run(&probe, 5000),
    ];
    send(&socket, &sends);
    for call in port.take_lengths() {
        assert!(call.len() == 1 || !call.contains(&5000), "{call:?}");
    }
}

#[test]
fn towards_a_small_receive_buffer_a_batch_has_at_most_twenty_datagrams() {
    let port = TestPort::keeping();
    let socket = socket(&port);
    let bytes = [0; 14520];
    let sends: Vec<_> =
        (0..6).map(|_| Transmit { destination: peer(9), ..run(&bytes, 1452) }).collect();
    send(&socket, &sends);
    assert_eq!(port.take_lengths(), vec![vec![1452; CAREFUL_SEGMENTS]; 3]);
    socket.is_roomy(peer(9));
    send(&socket, &sends);
    assert_eq!(port.take_lengths().len(), 2);
}

#[test]
fn a_batch_that_finds_no_room_is_kept_and_leaves_once_and_whole() {
    let port = TestPort::keeping();
    let socket = socket(&port);
    let sent = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (told, through) = (sent.clone(), socket.clone());
    let mut poller = socket.clone().create_io_poller();
    let (mut number, full) = (0u8, port.clone());
    // As quinn does it: it looks for room, and offers again what was not taken.
    let mut driver = Driver::new(Box::pin(poll_fn(move |cx| {
        while number < 10 {
            if poller.as_mut().poll_writable(cx).is_pending() {
                return Poll::Pending;
            }
            let bytes = [number; 2904];
            if through.try_send(&run(&bytes, 1452)).is_ok() {
                told.lock().unwrap().extend_from_slice(&bytes);
                number += 1;
            }
            if number == 5 {
                // Others have filled it meanwhile.
                full.set_full(true);
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    })));
    assert_eq!(poll(&mut driver), Poll::Pending);
    assert_eq!(poll(&mut driver), Poll::Pending, "there is still no room");
    assert_eq!(port.take(), []);
    assert_eq!(sent.lock().unwrap().len(), 5 * 2904, "nothing is taken meanwhile");
    port.set_full(false);
    while poll(&mut driver).is_pending() {}
    let bytes: Vec<u8> = port.take().into_iter().flat_map(|call| call.bytes).collect();
    assert_eq!(bytes, *sent.lock().unwrap());
    assert_eq!(bytes.len(), 10 * 2904);
}

#[test]
fn a_driver_that_was_told_to_wait_is_woken_when_what_was_kept_has_left() {
    let port = TestPort::keeping();
    let socket = socket(&port);
    let (mut poller, through) = (socket.clone().create_io_poller(), socket.clone());
    let (opened, mut first) = (port.clone(), true);
    let mut driver = Driver::new(Box::pin(poll_fn(move |cx| {
        if std::mem::take(&mut first) {
            opened.set_full(true);
            through.try_send(&run(&[0; 2904], 1452)).unwrap();
            return Poll::Pending;
        }
        let writable = poller.as_mut().poll_writable(cx).map(|_| ());
        // The room comes just after quinn was told that there is none.
        opened.full.store(false, Ordering::SeqCst);
        writable
    })));
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    assert_eq!(Pin::new(&mut driver).poll(&mut cx), Poll::Pending);
    assert_eq!(Pin::new(&mut driver).poll(&mut cx), Poll::Pending);
    assert_eq!(port.take_lengths(), [[1452, 1452]]);
    assert!(woken.0.load(Ordering::SeqCst), "quinn waits for nothing now");
    assert_eq!(Pin::new(&mut driver).poll(&mut cx), Poll::Ready(()));
}

#[derive(Default)]
struct Woken(AtomicBool);

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn the_last_words_of_a_driver_that_has_ended_are_sent_when_there_is_room() {
    let port = TestPort::keeping();
    let socket = socket(&port);
    port.set_full(true);
    let through = socket.clone();
    let mut driver = Driver::new(Box::pin(async move {
        through.try_send(&run(&[1; 2904], 1452)).unwrap();
        // The close frame.
        through.try_send(&run(&[2; 60], 60)).unwrap();
    }));
    assert_eq!(poll(&mut driver), Poll::Pending, "not over before they are sent");
    port.set_full(false);
    assert_eq!(poll(&mut driver), Poll::Ready(()));
    assert_eq!(port.take_lengths(), [[1452, 1452, 60]]);
}

/// Refuses what is longer than `mtu`, together or alone; counts the refusals.
fn narrow(port: &TestPort, mtu: usize) -> Arc<AtomicUsize> {
    let refused = Arc::new(AtomicUsize::new(0));
    let counted = refused.clone();
    port.fails(move |transmit| {
        let longest = transmit.segment_size.unwrap_or(transmit.contents.len());
        (longest > mtu).then(|| {
            counted.fetch_add(1, Ordering::SeqCst);
            Errno::MSGSIZE
        })
    });
    refused
}

#[test]
fn when_the_mtu_drops_what_still_fits_gets_through_and_what_does_not_goes_alone() {
    let port = TestPort::keeping();
    let socket = socket(&port);
    let (long, short) = ([0; 3 * 8952], [1; 1200]);
    let refused = narrow(&port, 1472);
    // What lets QUIC notice, a short probe of loss, is at the end of a batch of what is lost.
    assert_eq!(send(&socket, &[run(&long, 8952), run(&short, 1200)]), [true, true]);
    assert_eq!(port.take_lengths(), [[1200]]);
    assert_eq!(refused.load(Ordering::SeqCst), 4, "together, and each alone");
    send(&socket, &[run(&long, 8952)]);
    assert_eq!(refused.load(Ordering::SeqCst), 7, "not together any more");
    // What is short enough is gathered as before.
    let bytes = [0; 12000];
    send(&socket, &[run(&bytes, 1200), run(&bytes, 1200)]);
    assert_eq!(port.take_lengths(), [vec![1200; 20]]);
    // Once a probe gets through, so does the rest, together.
    narrow(&port, 9000);
    send(&socket, &[run(&long[..8952], 8952), run(&long, 8952)]);
    assert_eq!(port.take_lengths(), [vec![8952], vec![8952; 3]]);
}

#[test]
fn where_datagrams_cannot_go_together_they_all_arrive_one_by_one() {
    for errno in [Errno::IO, Errno::INVAL, Errno::MSGSIZE] {
        let port = TestPort::keeping();
        let socket = socket(&port);
        let tries = Arc::new(AtomicUsize::new(0));
        let counted = tries.clone();
        port.fails(move |transmit| {
            transmit.segment_size?;
            counted.fetch_add(1, Ordering::SeqCst);
            Some(errno)
        });
        let bytes: Vec<u8> = (0..14520u32).map(|n| n as u8).collect();
        for _ in 0..3 {
            assert_eq!(send(&socket, &[run(&bytes, 1452), run(&bytes, 1452)]), [true, true]);
            let calls = port.take();
            assert_eq!(calls.len(), 20, "{errno:?}");
            let sent: Vec<u8> = calls.into_iter().flat_map(|call| call.bytes).collect();
            assert_eq!(sent, [&bytes[..], &bytes].concat());
        }
        assert_eq!(tries.load(Ordering::SeqCst), 1, "it is not tried again on that path");
    }
}

#[test]
fn datagrams_that_go_one_by_one_go_on_where_there_was_no_room() {
    let port = TestPort::keeping();
    let socket = socket(&port);
    let left = AtomicUsize::new(3);
    port.fails(move |transmit| match transmit.segment_size {
        Some(_) => Some(Errno::IO),
        None if left.fetch_sub(1, Ordering::SeqCst) == 0 => {
            left.store(3, Ordering::SeqCst);
            Some(Errno::AGAIN)
        }
        None => None,
    });
    let bytes: Vec<u8> = (0..14520u32).map(|n| (n / 1452) as u8).collect();
    let (through, all) = (socket.clone(), bytes.clone());
    let mut driver = Driver::new(Box::pin(async move {
        through.try_send(&run(&all, 1452)).unwrap();
    }));
    while poll(&mut driver).is_pending() {
        port.set_full(false);
    }
    let sent: Vec<u8> = port.take().into_iter().flat_map(|call| call.bytes).collect();
    assert_eq!(sent, bytes, "each once, in order");
}

#[test]
fn any_other_error_loses_what_was_sent_and_nothing_else() {
    let port = TestPort::keeping();
    let socket = socket(&port);
    let bytes = [0; 2904];
    port.fails(|_| Some(Errno::PERM));
    assert_eq!(send(&socket, &[run(&bytes, 1452)]), [true]);
    port.fails(|_| None);
    assert_eq!(send(&socket, &[run(&bytes, 1452)]), [true]);
    assert_eq!(port.take_lengths(), [[1452, 1452]]);
}

#[test]
fn what_is_sent_outside_of_a_driver_leaves_at_once() {
    let port = TestPort::keeping();
    socket(&port).try_send(&run(&[0; 60], 60)).unwrap();
    assert_eq!(port.take_lengths(), [[60]]);
}

#[test]
fn a_driver_that_panics_leaves_its_batch_to_no_other() {
    let port = TestPort::keeping();
    let socket = socket(&port);
    let through = socket.clone();
    let panicking = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let mut driver = Driver::new(Box::pin(async move {
            through.try_send(&run(&[1; 2904], 1452)).unwrap();
            panic!("a driver's bug");
        }));
        poll(&mut driver)
    }));
    assert!(panicking.is_err());
    socket.try_send(&run(&[2; 60], 60)).unwrap();
    assert_eq!(port.take_lengths(), [[60]]);
}

#[test]
fn quinn_is_let_send_at_once_what_fits_one_call() {
    let port = TestPort::keeping();
    for (longest, many) in [(8952, 7), (1452, 45), (65_000, 1)] {
        let socket = GatherSocket::over(port.clone(), longest);
        assert_eq!(socket.max_transmit_segments(), many);
        assert!(many * usize::from(longest) <= MAX_BATCH_BYTES);
        // And receives into buffers that hold whatever the kernel puts together.
        assert!(socket.max_receive_segments() * usize::from(longest) >= 65_535);
    }
}
