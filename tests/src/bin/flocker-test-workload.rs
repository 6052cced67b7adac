//! A workload for tests: appends each number it is sent to `ledger` in its working directory, makes
//! it durable, then acknowledges it. `flocker-test-workload ADDRESS`.
//!
//! A number that is there already is acknowledged again, not written again: a client may repeat
//! what was not answered.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

struct Ledger {
    file: File,
    last: u64,
}

impl Ledger {
    /// Opens the ledger as a crash may have left it: a torn last line is cut off.
    fn open() -> std::io::Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open("ledger")?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        file.set_len(whole as u64)?;
        file.seek(SeekFrom::End(0))?;
        let last = text[..whole].lines().last().and_then(|l| l.parse().ok()).unwrap_or(0);
        Ok(Self { file, last })
    }

    fn record(&mut self, number: u64) -> std::io::Result<()> {
        if number > self.last {
            self.file.write_all(format!("{number}\n").as_bytes())?;
            self.file.sync_data()?;
            self.last = number;
        }
        Ok(())
    }
}

fn serve(stream: TcpStream, ledger: &Mutex<Ledger>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut answers = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        let Ok(number) = line?.parse() else {
            return Ok(());
        };
        let mut ledger = ledger.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Err(e) = ledger.record(number) {
            // What is not durable is not acknowledged; a supervisor starts us again.
            eprintln!("ledger: {e}");
            std::process::exit(1);
        }
        answers.write_all(format!("{number}\n").as_bytes())?;
    }
    Ok(())
}

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    let ledger = Arc::new(Mutex::new(Ledger::open()?));
    let listener = loop {
        // The same address may still be held by the one that is being moved away.
        match TcpListener::bind(&address) {
            Ok(listener) => break listener,
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(e) => return Err(e),
        }
    };
    for stream in listener.incoming() {
        let (stream, ledger) = (stream?, Arc::clone(&ledger));
        std::thread::spawn(move || serve(stream, &ledger));
    }
    Ok(())
}
