//! PostgreSQL and Redis as workloads, with a ledger outside of them.
//!
//! Owns: making a database in a volume (`Database`), the command that serves it on a node, and the
//! judgement in the end: every acknowledged transaction there exactly once, every unanswered one at
//! most once, nothing else, and one writer after the other. Leaves to [`load`] who is told what, to
//! [`wire`] the protocols, to [`crate::e2e::rig`] the nodes.
//!
//! Durability is never traded for speed: `fsync`, `synchronous_commit` and `appendfsync always` stay.
//! `full_page_writes` is off, as one may on ZFS only: a page of 8 KiB lies in one record, which is
//! written whole to a new place or not at all, so that no crash and no snapshot shows half a page.
//! `wal_init_zero` and `wal_recycle` only cost on a copy-on-write filesystem.

pub mod load;
pub mod wire;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub use load::{Ledger, Load, Plan, Transaction};
use wire::{Postgres, Redis};

use super::host::PATIENCE;

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// PostgreSQL, of Debian's package `postgresql`.
    Postgres,
    /// Redis, of Debian's package `redis-server`.
    Redis,
}

/// Who was the writer of a transaction that is in the database, in the order in which they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Which.
    pub transaction: Transaction,
    /// The server that wrote it, by its own word.
    pub writer: String,
}

/// Where Debian keeps PostgreSQL's programs; the newest version.
fn postgres_programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    versions
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version: u32 = path.file_name()?.to_str()?.parse().ok()?;
            path.join("bin/postgres").exists().then_some((version, path.join("bin")))
        })
        .max()
        .map(|(_, path)| path)
}

/// A program of PostgreSQL's.
///
/// # Panics
/// When PostgreSQL is not installed.
pub fn postgres_program(name: &str) -> PathBuf {
    postgres_programs().expect("PostgreSQL is installed").join(name)
}

impl Kind {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Postgres => "postgres",
            Kind::Redis => "redis",
        }
    }

    /// Where it listens.
    pub fn port(self) -> u16 {
        match self {
            Kind::Postgres => 5432,
            Kind::Redis => 6379,
        }
    }

    /// Why it cannot run here, if so.
    pub fn missing(self) -> Option<String> {
        match self {
            Kind::Postgres if postgres_programs().is_none() => {
                Some("PostgreSQL is not installed".to_owned())
            }
            Kind::Redis if !Path::new("/usr/bin/redis-server").exists() => {
                Some("Redis is not installed".to_owned())
            }
            Kind::Postgres | Kind::Redis => None,
        }
    }

    /// Makes an empty database in a volume that nobody serves yet.
    ///
    /// # Panics
    /// With what `initdb` said.
    pub fn create(self, volume: &Path) {
        match self {
            Kind::Postgres => {
                run(Command::new("chown").arg("postgres:postgres").arg(volume));
                run(Command::new("chmod").arg("700").arg(volume));
                run(Command::new("setpriv")
                    .args(AS_POSTGRES)
                    .arg(postgres_program("initdb"))
                    .args(["-A", "trust", "-E", "UTF8", "--locale=C", "-D"])
                    .arg(volume)
                    .args(["--no-sync", "--wal-segsize=4"])
                    .current_dir("/"));
                let access = "host all all 10.213.0.0/16 trust\n";
                std::fs::write(volume.join("pg_hba.conf"), access).expect("pg_hba.conf");
            }
            Kind::Redis => run(Command::new("chown").arg("redis:redis").arg(volume)),
        }
    }

    /// The command that serves the volume in which it is started, as the node `node`.
    pub fn command(self, node: &str, address: SocketAddr) -> Vec<String> {
        let (ip, port) = (address.ip(), address.port());
        let text = match self {
            Kind::Postgres => format!(
                "setpriv {} {} -D . -c listen_addresses={ip} -c port={port} \
                 -c cluster_name={node} -c unix_socket_directories= -c shared_buffers=16MB \
                 -c max_connections=60 -c wal_level=minimal -c max_wal_senders=0 -c jit=off \
                 -c fsync=on -c synchronous_commit=on -c full_page_writes=off \
                 -c wal_init_zero=off -c wal_recycle=off -c min_wal_size=8MB -c max_wal_size=64MB",
                AS_POSTGRES.join(" "),
                postgres_program("postgres").display()
            ),
            // Its own process title would hide the arguments that tell one server from another.
            Kind::Redis => format!(
                "setpriv --reuid redis --regid redis --clear-groups /usr/bin/redis-server \
                 --bind {ip} --port {port} --dir . --appendonly yes --appendfsync always \
                 --save  --protected-mode no --set-proc-title no"
            ),
        };
        text.split(' ').map(str::to_owned).collect()
    }

    /// The signal that stops it quickly and in good order.
    pub fn stop_signal(self) -> &'static str {
        match self {
            Kind::Postgres => "INT", // "fast": clients are sent away, then a checkpoint
            Kind::Redis => "TERM",
        }
    }

    /// The servers' processes that serve at this address.
    pub fn servers(self, address: SocketAddr) -> Vec<u32> {
        let wanted: [&[u8]; 2] = match self {
            Kind::Postgres => [b"bin/postgres", b"listen_addresses="],
            Kind::Redis => [b"redis-server", b"--bind"],
        };
        let ip = address.ip().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
            let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
            let is_server = words.first().is_some_and(|word| word.ends_with(wanted[0]));
            let is_there = words.windows(2).any(|pair| match self {
                Kind::Postgres => pair[1] == [wanted[1], ip.as_bytes()].concat(),
                Kind::Redis => pair[0] == wanted[1] && pair[1] == ip.as_bytes(),
            });
            if is_server && is_there {
                found.push(pid);
            }
        }
        found
    }
}

const AS_POSTGRES: [&str; 5] = ["--reuid", "postgres", "--regid", "postgres", "--clear-groups"];

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A client's connection.
#[derive(Debug)]
pub enum Connection {
    /// To PostgreSQL.
    Postgres(Postgres),
    /// To Redis, and its address, which is the server's name there.
    Redis(Redis, String),
}

impl Connection {
    /// Connects; with PostgreSQL until it takes statements.
    ///
    /// # Errors
    /// Nobody there, or not yet.
    pub fn open(kind: Kind, address: SocketAddr, limit: Duration) -> std::io::Result<Self> {
        Ok(match kind {
            Kind::Postgres => Self::Postgres(Postgres::connect(address, limit)?),
            Kind::Redis => {
                let mut redis = Redis::connect(address, limit)?;
                // While it loads its file it accepts and refuses everything.
                redis.command(&["LLEN", "ledger"])?;
                Self::Redis(redis, address.ip().to_string())
            }
        })
    }

    /// Makes the table.
    ///
    /// # Errors
    /// The server's words.
    pub fn prepare(&mut self) -> std::io::Result<()> {
        if let Self::Postgres(postgres) = self {
            // `at` counts in the order of the writes on one server, and goes on across servers.
            postgres.query(
                "CREATE TABLE IF NOT EXISTS ledger (at bigserial, load bigint, client int, \
                 number bigint, writer text DEFAULT current_setting('cluster_name'))",
            )?;
        }
        Ok(())
    }

    /// Writes one transaction; `Ok` means that it is durable by the server's word.
    ///
    /// # Errors
    /// No word, or an error: it may be there or not.
    pub fn write(&mut self, t: Transaction) -> std::io::Result<()> {
        match self {
            Self::Postgres(postgres) => {
                let Transaction { load, client, number } = t;
                postgres.query(&format!(
                    "INSERT INTO ledger (load, client, number) VALUES ({load}, {client}, {number})"
                ))?;
            }
            Self::Redis(redis, writer) => {
                let entry = format!("{} {} {} {writer}", t.load, t.client, t.number);
                redis.command(&["RPUSH", "ledger", &entry])?;
            }
        }
        Ok(())
    }

    /// All that is there, in the order in which it was written.
    ///
    /// # Errors
    /// The server's words.
    pub fn read(&mut self) -> std::io::Result<Vec<Written>> {
        let rows = match self {
            Self::Postgres(postgres) => {
                postgres.query("SELECT load, client, number, writer FROM ledger ORDER BY at")?
            }
            Self::Redis(redis, _) => redis
                .command(&["LRANGE", "ledger", "0", "-1"])?
                .iter()
                .map(|entry| entry.split(' ').map(str::to_owned).collect())
                .collect(),
        };
        rows.iter()
            .map(|row| parse(row).ok_or_else(|| std::io::Error::other(row.join(" "))))
            .collect()
    }
}

fn parse(row: &[String]) -> Option<Written> {
    let [load, client, number, writer] = row else { return None };
    let transaction = Transaction {
        load: load.parse().ok()?,
        client: client.parse().ok()?,
        number: number.parse().ok()?,
    };
    Some(Written { transaction, writer: writer.clone() })
}

/// What is wrong with a database, going by the ledger; empty: nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Acknowledged and not there.
    pub missing: Vec<Transaction>,
    /// There more than once.
    pub duplicates: Vec<Transaction>,
    /// There and never sent.
    pub invented: Vec<Transaction>,
    /// How often the writer changed, if that is more often than the unit's epoch did.
    pub too_many_writers: Option<u64>,
}

/// Compares a database with its ledger. `changes`: how often the unit changed its primary.
pub fn judge(written: &[Written], ledger: &Ledger, changes: u64) -> Damage {
    let mut counts = BTreeMap::<Transaction, u64>::new();
    let mut writers = 0;
    let mut last = None;
    for Written { transaction, writer } in written {
        *counts.entry(*transaction).or_default() += 1;
        writers += u64::from(last.is_some_and(|last| last != writer));
        last = Some(writer);
    }
    let known = |t: &&Transaction| ledger.acked.contains_key(t) || ledger.unanswered.contains(t);
    Damage {
        missing: ledger.acked.keys().filter(|t| !counts.contains_key(t)).copied().collect(),
        duplicates: counts.iter().filter(|(_, n)| **n > 1).map(|(t, _)| *t).collect(),
        invented: counts.keys().filter(|t| !known(t)).copied().collect(),
        too_many_writers: (writers > changes).then_some(writers),
    }
}

/// Waits until the database at one of these addresses takes statements, from within a namespace.
///
/// # Panics
/// When it does not in time.
pub fn connect(kind: Kind, netns: &str, addresses: &[SocketAddr]) -> Connection {
    let (netns, addresses) = (netns.to_owned(), addresses.to_vec());
    // A thread of its own: entering a namespace is for good.
    let thread = std::thread::spawn(move || {
        super::netns::enter(&netns);
        let until = Instant::now() + PATIENCE;
        loop {
            let mut why = None;
            for address in &addresses {
                match Connection::open(kind, *address, Duration::from_secs(20)) {
                    Ok(connection) => return connection,
                    Err(error) => why = Some(error),
                }
            }
            assert!(Instant::now() < until, "{} does not answer: {why:?}", kind.name());
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    thread.join().expect("the database answers")
}

/// Lets any user pass through the folders above a volume: databases do not run as root.
///
/// # Panics
/// When that is not allowed.
pub fn let_pass(mountpoint: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let folder = mountpoint.parent().expect("a folder above it");
    let file = File::open(folder).expect("it can be opened");
    file.set_permissions(std::fs::Permissions::from_mode(0o755)).expect("it is ours");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(number: u64) -> Transaction {
        Transaction { load: 1, client: 0, number }
    }

    fn check(numbers: &[u64], writers: &str) -> Damage {
        let written: Vec<Written> = numbers
            .iter()
            .zip(writers.chars())
            .map(|(n, w)| Written { transaction: t(*n), writer: w.to_string() })
            .collect();
        let ledger = Ledger {
            acked: [t(1), t(2)].map(|t| (t, Instant::now())).into(),
            unanswered: [t(3)].into(),
            ..Ledger::default()
        };
        judge(&written, &ledger, 1)
    }

    #[test]
    fn the_judge_sees_each_kind_of_damage() {
        assert_eq!(check(&[1, 2], "ab"), Damage::default());
        assert_eq!(check(&[1, 3, 2], "aab"), Damage::default());
        assert_eq!(check(&[1, 3], "aa").missing, [t(2)]);
        assert_eq!(check(&[1, 2, 3, 3], "aaaa").duplicates, [t(3)]);
        assert_eq!(check(&[1, 2, 4], "aaa").invented, [t(4)]);
        assert_eq!(check(&[1, 2, 3], "aba").too_many_writers, Some(2));
    }
}
