//! The demo's workload: a small server that appends what clients send to a file in its working directory,
//! and acknowledges each record once it is on disk.
//!
//! Owns: the protocol and the order of write, fsync and answer. Leaves to others: the file
//! ([`super::ledger`]), the client ([`super::load`]).
//!
//! ```text
//! server: HELLO <writer> <pid> <number of the last record>
//! client: PUT <number> <payload>        (any number of them, without waiting)
//! server: OK <number>                   (after fsync; one fsync for whatever has come meanwhile)
//! server: ERR <why>                     (and the connection ends)
//! ```

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::ledger::{Ledger, MAX_NUMBER, Record, is_payload, is_writer};
use crate::args::DemoWorkloadArgs;
use crate::exit::Exit;

/// How long the address may be taken by the one that runs before us.
const BIND_LIMIT: Duration = Duration::from_secs(30);

/// Records written with one fsync at most.
const MOST_AT_ONCE: usize = 512;

/// Records that wait for the disk at most; then clients wait.
const QUEUE: usize = 2048;

/// Longest line a client may send, bytes.
const MAX_LINE_BYTES: u64 = 128;

/// Clients at the same time at most.
const MAX_CLIENTS: usize = 64;

/// A record and who wants to know.
struct Put {
    record: Record,
    client: Arc<TcpStream>,
}

/// `demo-workload`
pub(crate) fn run(args: &DemoWorkloadArgs) -> anyhow::Result<Exit> {
    if !is_writer(&args.writer) {
        bail!("`{}` is not a writer's name: 1 to 8 letters", args.writer);
    }
    let ledger = Ledger::open(Path::new("."))?;
    let listener = bind(args.listen)?;
    serve(&listener, ledger, &args.writer)?;
    Ok(Exit::Ok)
}

fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    let begin = Instant::now();
    loop {
        // The standard library sets SO_REUSEADDR, so connections of the one before do not keep it.
        match TcpListener::bind(listen) {
            Ok(listener) => return Ok(listener),
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && begin.elapsed() < BIND_LIMIT =>
            {
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error).with_context(|| format!("cannot listen on {listen}")),
        }
    }
}

/// Serves until the listener fails or the disk does.
fn serve(listener: &TcpListener, ledger: Ledger, writer: &str) -> anyhow::Result<()> {
    let (puts, queue) = sync_channel(QUEUE);
    let last = ledger.last();
    let disk = thread::spawn(move || write(ledger, &queue));
    let clients = Arc::new(());
    for stream in listener.incoming() {
        let stream = stream.context("cannot accept connections")?;
        if disk.is_finished() {
            break;
        }
        if Arc::strong_count(&clients) > MAX_CLIENTS {
            continue; // dropped: the client tries again
        }
        let (puts, writer, held) = (puts.clone(), writer.to_owned(), Arc::clone(&clients));
        thread::spawn(move || {
            let _held = held;
            // A client that goes away is no trouble of ours.
            let _ = listen(&Arc::new(stream), &puts, &writer, last);
        });
    }
    drop(puts);
    match disk.join() {
        Ok(result) => result,
        Err(_) => bail!("the thread that writes panicked"),
    }
}

/// Reads one client's records and queues them for the disk.
fn listen(
    stream: &Arc<TcpStream>,
    puts: &SyncSender<Put>,
    writer: &str,
    last: u64,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    (&**stream).write_all(format!("HELLO {writer} {} {last}\n", std::process::id()).as_bytes())?;
    let mut lines = BufReader::new(&**stream);
    let mut line = String::new();
    loop {
        line.clear();
        if (&mut lines).take(MAX_LINE_BYTES).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let Some(record) = parse(&line, writer) else {
            return (&**stream).write_all(b"ERR expected: PUT <number> <32 hex digits>\n");
        };
        let client = Arc::clone(stream);
        if puts.send(Put { record, client }).is_err() {
            return Ok(()); // the disk failed; the process is about to end
        }
    }
}

fn parse(line: &str, writer: &str) -> Option<Record> {
    let mut words = line.strip_suffix('\n')?.split(' ');
    let put = words.next()?;
    let number = words.next()?.parse().ok()?;
    let payload = words.next()?;
    let fits = put == "PUT" && words.next().is_none() && (1..=MAX_NUMBER).contains(&number);
    (fits && is_payload(payload)).then(|| Record {
        number,
        writer: writer.to_owned(),
        payload: payload.to_owned(),
    })
}

/// Writes what is queued, with one fsync for all that has come, then answers.
fn write(mut ledger: Ledger, queue: &Receiver<Put>) -> anyhow::Result<()> {
    while let Ok(first) = queue.recv() {
        let mut puts = vec![first];
        while puts.len() < MOST_AT_ONCE {
            match queue.try_recv() {
                Ok(put) => puts.push(put),
                Err(_) => break,
            }
        }
        let records: Vec<Record> = puts.iter().map(|put| put.record.clone()).collect();
        if let Err(error) = ledger.append(&records) {
            // Nothing may be acknowledged any more, and nobody knows what is on disk: end, so that
            // whoever starts us again reads it back.
            crate::exit::write_stderr(&format!("{error}\n"));
            std::process::exit(i32::from(Exit::Failed as u8));
        }
        answer(&puts);
    }
    Ok(())
}

/// One write for each run of answers to the same client.
fn answer(puts: &[Put]) {
    for run in puts.chunk_by(|a, b| Arc::ptr_eq(&a.client, &b.client)) {
        let text: String = run.iter().map(|put| format!("OK {}\n", put.record.number)).collect();
        // A client that does not hear it asks again.
        let _ = (&*run[0].client).write_all(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::super::ledger::check;
    use super::*;

    #[test]
    fn only_whole_puts_are_taken() {
        let payload = "0123456789abcdef0123456789abcdef";
        let good = format!("PUT 7 {payload}\n");
        assert_eq!(parse(&good, "a").map(|record| record.number), Some(7));
        for bad in [
            String::new(),
            "PUT 7\n".into(),
            format!("PUT 7 {payload}"),
            format!("PUT 0 {payload}\n"),
            format!("PUT -1 {payload}\n"),
            format!("PUT 9999999999999 {payload}\n"),
            format!("GET 7 {payload}\n"),
            format!("PUT 7 {payload} 8\n"),
            "PUT 7 xyz\n".into(),
        ] {
            assert_eq!(parse(&bad, "a"), None, "{bad}");
        }
    }

    #[test]
    fn a_record_is_on_disk_before_it_is_acknowledged_and_only_once() {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        thread::spawn(move || serve(&listener, ledger, "a"));
        let payload = "0123456789abcdef0123456789abcdef";
        for _ in 0..2 {
            let stream = TcpStream::connect(address).unwrap();
            let mut lines = BufReader::new(&stream).lines();
            assert!(lines.next().unwrap().unwrap().starts_with("HELLO a "));
            for number in 1..=3 {
                (&stream).write_all(format!("PUT {number} {payload}\n").as_bytes()).unwrap();
            }
            for number in 1..=3 {
                assert_eq!(lines.next().unwrap().unwrap(), format!("OK {number}"));
            }
            let acked = (1..=3).collect();
            let found = check(dir.path(), &acked, |_| payload.into()).unwrap();
            assert_eq!((found.on_target, found.duplicates), (3, 0));
        }
    }
}
