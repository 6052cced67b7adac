//! What is not seen from outside: no process is started, and signals do not reach a stream.
//!
//! Both run again as a process of their own.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use flocker_lzc::{BEGIN_LEN, DatasetType, Lzc, Receive, SendFlags, UserChange};
use rustix::process::{Signal, kill_process};

use crate::lab::{Lab, noauto, noise};

const INNER: &str = "FLOCKER_LZC_INNER";

/// Runs one test of this file again, alone, with the dataset to work in.
fn alone(test: &str, dataset: &str) {
    let name = format!("quiet::{test}");
    let words = [name.as_str(), "--exact", "--nocapture", "--test-threads=1"];
    let done = Command::new(std::env::current_exe().unwrap())
        .args(words)
        .env(INNER, dataset)
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && out.contains("1 passed"), "{out}{err}");
}

/// Fields 11 and 13 of `/proc/self/stat`: page faults of children that were waited for; no process that ran
/// had none. And children that were not.
fn children() -> (u64, String) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let faults = |n: usize| fields[n - 3].parse::<u64>().unwrap();
    let mut living = String::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        living += &fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
    }
    (faults(11) + faults(13), living)
}

#[test]
fn no_call_starts_a_process() {
    let test = "no_call_starts_a_process";
    if let Ok(root) = std::env::var(INNER) {
        every_call(&root);
        assert_eq!(children(), (0, String::new()));
        // And that is how one would show.
        Command::new("true").status().unwrap();
        assert_ne!(children().0, 0);
        return;
    }
    let Some(lab) = Lab::or_skip(test) else { return };
    alone(test, &lab.root);
}

fn every_call(root: &str) {
    let lzc = Lzc::open().unwrap();
    let none = Default::default();
    let (a, b, clone) = (format!("{root}/a"), format!("{root}/b"), format!("{root}/clone"));
    let (a1, a2, b1, mark) =
        (format!("{a}@1"), format!("{a}@2"), format!("{b}@1"), format!("{a}#1"));
    lzc.create(&a, DatasetType::Filesystem, &noauto()).unwrap();
    lzc.snapshot(&[&a1], &none).unwrap();
    lzc.hold(&[(a1.clone(), "tag".to_owned())].into()).unwrap();
    assert_eq!(lzc.holds(&a1).unwrap().len(), 1);
    lzc.release(&[(a1.clone(), ["tag".to_owned()].into())].into()).unwrap();
    lzc.bookmark(&[(mark.clone(), a1.clone())].into()).unwrap();
    assert_eq!(lzc.bookmarks(&a).unwrap().len(), 1);
    let flags = SendFlags::default();
    lzc.send_space(&a1, None, flags).unwrap();
    // An empty filesystem fits into a pipe.
    let (mut from, to) = rustix::pipe::pipe().map(|(r, w)| (fs::File::from(r), w)).unwrap();
    lzc.send(&a1, None, to, flags).unwrap();
    let mut begin = [0; BEGIN_LEN];
    std::io::Read::read_exact(&mut from, &mut begin).unwrap();
    lzc.receive(Receive {
        snapshot: &b1,
        origin: None,
        received: &Default::default(),
        local: &noauto(),
        resumable: true,
        begin: &begin,
        input: from.as_fd(),
    })
    .unwrap();
    assert!(lzc.exists(&b1).unwrap());
    lzc.snapshot(&[&a2], &none).unwrap();
    lzc.rollback_to(&a, &a2).unwrap();
    let change = UserChange { dataset: &a, property: "test:p", value: Some("v") };
    lzc.change_user_properties(&[change]).unwrap();
    assert_eq!(lzc.inventory(&a).unwrap().snapshots.len(), 2);
    lzc.stats(&a).unwrap().unwrap();
    lzc.written_since(&a, &a2).unwrap();
    lzc.clone_snapshot(&clone, &a2, &noauto()).unwrap();
    lzc.promote(&clone).unwrap();
    lzc.promote(&a).unwrap();
    lzc.rename(&clone, &format!("{root}/moved")).unwrap();
    lzc.destroy(&format!("{root}/moved")).unwrap();
    lzc.discard_partial(&b).unwrap();
    lzc.sync(root.split('/').next().unwrap()).unwrap();
    lzc.destroy_bookmarks(&[&mark]).unwrap();
    lzc.destroy_snapshots(&[&a1, &a2, &b1], false).unwrap();
    lzc.destroy(&b).unwrap();
}

/// A handler of tokio's has `SA_RESTART`, and yet without the mask both end with `EINTR`.
#[test]
fn signals_do_not_break_a_stream() {
    let test = "signals_do_not_break_a_stream";
    if let Ok(root) = std::env::var(INNER) {
        return under_signals(&root);
    }
    let Some(lab) = Lab::or_skip(test) else { return };
    let a = lab.filesystem("a");
    lab.write(&a, "file", 2 << 20);
    lab.snapshot(&format!("{a}@1"));
    alone(test, &lab.root);
    assert_eq!(lab.read(&lab.at("b"), "file"), noise(2 << 20, 4 + (2 << 20)));
}

fn under_signals(root: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let guard = runtime.enter();
    let kind = tokio::signal::unix::SignalKind::user_defined1();
    let mut storm = tokio::signal::unix::signal(kind).unwrap();
    drop(guard);
    let lzc = Lzc::open().unwrap();
    let (a1, b1) = (format!("{root}/a@1"), format!("{root}/b@1"));
    let (over, stop) = std::sync::mpsc::channel::<()>();
    // To the process, but the kernel prefers the thread that is named, if it takes them.
    let here = rustix::thread::gettid();
    let shooter = std::thread::spawn(move || {
        let mut shots = 0;
        while stop.try_recv().is_err() {
            kill_process(here, Signal::USR1).unwrap();
            shots += 1;
            std::thread::sleep(Duration::from_millis(2));
        }
        shots
    });
    let (from, to) = rustix::pipe::pipe().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut from = fs::File::from(from);
        // Slowly, so that the send waits for room in its pipe.
        let mut some = vec![0; 64 << 10];
        while let Ok(n @ 1..) = std::io::Read::read(&mut from, &mut some) {
            bytes.extend_from_slice(&some[..n]);
            std::thread::sleep(Duration::from_millis(10));
        }
        bytes
    });
    lzc.send(&a1, None, to, SendFlags::default()).unwrap();
    let stream = reader.join().unwrap();
    let (from, to) = rustix::pipe::pipe().unwrap();
    let begin: [u8; BEGIN_LEN] = stream[..BEGIN_LEN].try_into().unwrap();
    let writer = std::thread::spawn(move || {
        let mut to = fs::File::from(to);
        for piece in stream[BEGIN_LEN..].chunks(64 << 10) {
            to.write_all(piece).unwrap();
            // Slowly, so that the receive waits for more.
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let start = Instant::now();
    lzc.receive(Receive {
        snapshot: &b1,
        origin: None,
        received: &Default::default(),
        local: &noauto(),
        resumable: false,
        begin: &begin,
        input: from.as_fd(),
    })
    .unwrap();
    writer.join().unwrap();
    over.send(()).unwrap();
    let shots = shooter.join().unwrap();
    eprintln!("{shots} signals; the receive took {:?}", start.elapsed());
    assert!(shots > 50, "{shots}");
    runtime.block_on(storm.recv()).unwrap();
}
