//! Workloads that clients on a third guest use while they move: the client program there, what it felt, and the
//! databases in containers that it talks to.
//!
//! Owns: starting `flocker-lab-client` on gamma and reading what it says, making the containers on alpha. Leaves to
//! others: the two nodes ([`super::nodes`]), what moves and what has to hold (the tests).

use std::path::PathBuf;

use serde_json::Value;

use super::{Guest, Lab};
use crate::e2e;

/// Where clients find the workload, wherever it is.
pub const ADDRESS: &str = "10.77.0.10";

/// Puts the client program on gamma.
pub fn put_client(lab: &Lab) {
    let program: PathBuf = e2e::binary().with_file_name("flocker-lab-client");
    lab.put(Guest::Gamma, &program);
}

/// A client program that runs on gamma.
#[derive(Debug)]
pub struct Client<'a> {
    lab: &'a Lab,
    number: u32,
}

/// What it said in the end.
#[derive(Debug)]
pub struct Felt(pub Value);

impl<'a> Client<'a> {
    /// Begins with these words, the file that stops it left out.
    pub fn start(lab: &'a Lab, number: u32, words: &str) -> Self {
        lab.ssh(
            Guest::Gamma,
            &format!(
                "rm -f /tmp/f-stop-{number}; setsid flocker-lab-client {words} /tmp/f-stop-{number} \
                 >/tmp/f-felt-{number} 2>/tmp/f-client-{number} </dev/null &"
            ),
        );
        Self { lab, number }
    }

    /// Stops it, and waits for its word.
    pub fn stop(self) -> Felt {
        let Self { lab, number } = self;
        lab.ssh(Guest::Gamma, &format!("touch /tmp/f-stop-{number}"));
        lab.wait_for(
            Guest::Gamma,
            "the client's word",
            &format!(
                "grep -q '}}$' /tmp/f-felt-{number} || ! pgrep -f '^flocker-lab-client .*{number}$'"
            ),
        );
        let text = lab.ssh(
            Guest::Gamma,
            &format!("cat /tmp/f-felt-{number}; cat /tmp/f-client-{number} >&2"),
        );
        let said = lab.ssh(Guest::Gamma, &format!("cat /tmp/f-client-{number}"));
        Felt(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}{said}")))
    }
}

impl Felt {
    /// One of its numbers.
    pub fn number(&self, name: &str) -> u64 {
        self.0
            .get(name)
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("no {name} in {}", self.0))
    }

    /// The longest time without an answer that began between two moments, milliseconds since 1970; in milliseconds.
    pub fn longest_gap(&self, from: u64, until: u64) -> u64 {
        let gaps = self.0.get("gaps").and_then(Value::as_array).expect("gaps");
        let gaps =
            gaps.iter().map(|gap| (gap[0].as_u64().expect("a time"), gap[1].as_u64().expect("ms")));
        gaps.filter(|(at, ms)| at + ms >= from && *at <= until).map(|(_, ms)| ms).max().unwrap_or(0)
    }

    /// Each acknowledged transaction is there exactly once, each unanswered one at most once, and nothing else.
    pub fn ledger_holds(&self) {
        for what in ["missing", "duplicates", "invented"] {
            assert_eq!(self.number(what), 0, "{}", self.0);
        }
        assert!(self.number("acknowledged") > 0, "{}", self.0);
    }

    /// No connection was lost, and no reply lost or repeated.
    pub fn connections_held(&self) {
        assert_eq!(self.0["troubles"], serde_json::json!([]), "{}", self.0);
        assert!(self.number("replies") > 0, "{}", self.0);
    }
}

/// The guests' own clock, milliseconds since 1970.
pub fn wall_ms(lab: &Lab) -> u64 {
    lab.ssh(Guest::Gamma, "date +%s%3N").parse().expect("a time")
}

/// PostgreSQL in a container of podman, its data in `data/NAME` on alpha; not started.
pub fn make_postgres(lab: &Lab, name: &str) {
    let data = format!("/srv/flocker/data/{name}");
    lab.ssh(
        Guest::Alpha,
        &format!(
            "zfs create -p -o recordsize=8k tank/flocker/data/{name}
             B=$(cd /opt/lab-db && echo usr/lib/postgresql/*/bin); mount --bind {data} /opt/lab-db/mnt; mount --bind /dev /opt/lab-db/dev
             chroot /opt/lab-db sh -c \"chown postgres: /mnt && setpriv --reuid postgres --regid postgres --clear-groups \
               /$B/initdb -A trust -E UTF8 --locale=C -D /mnt/pg --no-sync --wal-segsize=4 >/dev/null\"
             umount /opt/lab-db/mnt /opt/lab-db/dev; echo host all all 0.0.0.0/0 trust >>{data}/pg/pg_hba.conf
             podman create --name {name} --network host --restart always -v {data}:/db --stop-signal INT --stop-timeout 60 \
               --user postgres localhost/lab-db /$B/postgres -D /db/pg -c listen_addresses='*' -c unix_socket_directories= \
               -c shared_buffers=16MB -c max_connections=60 -c wal_level=minimal -c max_wal_senders=0 -c jit=off \
               -c full_page_writes=off -c wal_init_zero=off -c wal_recycle=off -c min_wal_size=8MB -c max_wal_size=64MB >/dev/null"
        ),
    );
}

/// Redis in a container of podman, its data in `data/NAME` on alpha; not started.
pub fn make_redis(lab: &Lab, name: &str) {
    lab.ssh(
        Guest::Alpha,
        &format!(
            "zfs create -p tank/flocker/data/{name}
             podman create --name {name} --network host -v /srv/flocker/data/{name}:/data localhost/lab-db \
               redis-server --dir /data --appendonly yes --port 6379 --bind 0.0.0.0 --protected-mode no >/dev/null"
        ),
    );
}
