//! Two nodes on zfs-fuse pools in two network namespaces, with databases that move between them.
//!
//! Owns: building it once for many moves, moving, waiting until all is settled, and the check after
//! each disturbance: one primary, one writer, and the database as its ledger says. Leaves to
//! [`super::database`] what a database is, to `tests/tests/` what is done to the nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use flocker_zfs::fixture::{FusePool, pool_or_skip};
use serde_json::Value;

use super::database::{self, Damage, Kind, Ledger, Load, Plan, Transaction, Written, judge};
use super::host::PATIENCE;
use super::netns::Wire;
use super::proxy::{self, Proxy};
use super::watch::Watch;
use super::{Host, World, skip, zfs};

/// Where the nodes listen.
const PORT: u16 = 7001;

/// Where a database that was set aside is served for a look.
const ASIDE_PORT: u16 = 5499;

/// Size of each pool.
const POOL_MIB: u64 = 640;

/// A database under protection.
#[derive(Debug)]
pub struct Served {
    /// Which.
    pub kind: Kind,
    /// Where it answers while it is on the first node, and on the second.
    pub addresses: [SocketAddr; 2],
    /// All that its clients ever knew.
    pub ledger: Ledger,
    loads: u64,
}

/// Two nodes. Dropped in this order: first the daemons and what they run, then what they stand on.
#[derive(Debug)]
pub struct Rig {
    /// The nodes, `a` and `b`.
    pub hosts: [Host; 2],
    /// What they serve; each unit is called as its kind.
    pub databases: Vec<Served>,
    proxy: Option<Proxy>,
    pools: [FusePool; 2],
    /// The namespaces.
    pub wire: Wire,
    _world: World,
}

/// How the nodes of a rig are made.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// Of the test, for skips.
    pub test: &'a str,
    /// Keeps the namespaces of parallel tests apart, 0 to 250.
    pub number: u8,
    /// The databases.
    pub kinds: &'a [Kind],
    /// The promise, as `--rpo` takes it.
    pub rpo: &'a str,
    /// The nodes reach each other through a proxy that can be cut.
    pub proxied: bool,
}

impl Rig {
    /// Builds it: paired, protected, in step, every database serving on `a`. `None`: this machine
    /// cannot, which was said.
    ///
    /// # Panics
    /// When something fails that should not.
    pub fn build(options: &Options<'_>) -> Option<Self> {
        let Options { test, number, kinds, rpo, proxied } = options;
        if let Some(why) = kinds.iter().find_map(|kind| kind.missing()) {
            skip(&why, test);
            return None;
        }
        let wire = match Wire::lay(&format!("d{number}"), *number) {
            Ok(wire) => wire,
            Err(why) => {
                skip(&format!("network namespaces: {why}"), test);
                return None;
            }
        };
        let pools = [pool_or_skip("dba", POOL_MIB, test)?, pool_or_skip("dbb", POOL_MIB, test)?];
        for pool in &pools {
            database::let_pass(&pool.mountpoint());
        }
        let world = World::new();
        let at = |end: usize, port: u16| format!("{}:{port}", wire.addresses[end]);
        let proxy = proxied.then(|| {
            Proxy::start(&wire, [0, 1].map(|end| at(end, PORT).parse().expect("an address")))
        });
        let hosts = [0, 1].map(|end: usize| {
            let store = format!("zfs:{}", pools[end].name());
            let (name, netns) = (["a", "b"][end], Some(wire.names[end].as_str()));
            // Its peer dials it at the proxy in the peer's own namespace.
            let dialled_at = if *proxied { at(1 - end, proxy::PORT) } else { at(end, PORT) };
            let options = ["--advertise", &dialled_at];
            let mut host = Host::init_with(&world, name, &store, &at(end, PORT), netns, &options);
            host.dialled_at = dialled_at;
            host.serve();
            host
        });
        let [root_a, root_b] = [0, 1].map(|end: usize| format!("{}/recv", pools[end].name()));
        hosts[0].pair(&hosts[1], [&root_a, &root_b]);
        let mut rig = Self { hosts, databases: Vec::new(), proxy, pools, wire, _world: world };
        for kind in *kinds {
            rig.add(*kind, rpo);
        }
        Some(rig)
    }

    /// Puts a new database on `a` under protection.
    fn add(&mut self, kind: Kind, rpo: &str) {
        let addresses = self
            .wire
            .addresses
            .clone()
            .map(|ip| SocketAddr::new(ip.parse().expect("an address of ours"), kind.port()));
        let name = kind.name();
        let dataset = format!("{}/{name}", self.pools[0].name());
        zfs(&["create", &dataset]);
        let volume = zfs(&["get", "-H", "-o", "value", "mountpoint", &dataset]);
        kind.create(&PathBuf::from(volume.trim()));
        let [a, b] = &self.hosts;
        a.ok(&["protect", &dataset, "--to", "b", "--rpo", rpo]);
        b.wait_unit(name, "known", |u| u["role"] == "standby");
        self.databases.push(Served { kind, addresses, ledger: Ledger::default(), loads: 0 });
        let which = self.databases.len() - 1;
        for end in [1, 0] {
            self.set_workload(which, end);
        }
        let a = &self.hosts[0];
        a.wait_serving(name);
        database::connect(kind, &self.wire.names[0], &addresses).prepare().expect("a table");
        a.wait_in_step(name);
    }

    /// Says what serves the database on this node.
    pub fn set_workload(&self, which: usize, end: usize) {
        self.set_workload_with(which, end, &[]);
    }

    /// The same with further options of `run`.
    pub fn set_workload_with(&self, which: usize, end: usize, options: &[&str]) {
        let Served { kind, addresses, .. } = &self.databases[which];
        let host = &self.hosts[end];
        let command = kind.command(&host.name, addresses[end]);
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let health = format!("tcp:{}", addresses[end]);
        let run = ["run", kind.name(), "--stop-limit", "60s", "--stop-signal", kind.stop_signal()];
        host.ok(&[&run[..], &["--health", &health], options, &["--"], &words].concat());
    }

    /// `kill -9` of the database on this node, until nothing of it is left.
    ///
    /// # Panics
    /// When it does not run there, or does not end.
    pub fn kill_servers(&self, which: usize, end: usize) {
        let Served { kind, addresses, .. } = &self.databases[which];
        let servers = kind.servers(addresses[end]);
        assert!(!servers.is_empty(), "{} runs there", kind.name());
        for pid in servers {
            let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
            let pid = pid.expect("a process id");
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it is ours");
        }
        let until = Instant::now() + PATIENCE;
        while !kind.servers(addresses[end]).is_empty() {
            assert!(Instant::now() < until, "{} does not end", kind.name());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The pool of this node.
    pub fn pool(&self, end: usize) -> &str {
        self.pools[end].name()
    }

    /// Ends a load after a failover; takes out of the ledger what was acknowledged and is not there,
    /// and returns it with the moment of the answer.
    ///
    /// # Panics
    /// When the database cannot be read.
    pub fn take_lost(
        &mut self,
        which: usize,
        load: Load,
        context: &str,
    ) -> BTreeMap<Transaction, Instant> {
        self.add_ledger(which, load);
        let written = self.read(which, context);
        let there: BTreeSet<_> = written.iter().map(|w| w.transaction).collect();
        let acked = &mut self.databases[which].ledger.acked;
        let (kept, lost) = std::mem::take(acked).into_iter().partition(|(t, _)| there.contains(t));
        *acked = kept;
        lost
    }

    fn read(&self, which: usize, context: &str) -> Vec<Written> {
        let database = &self.databases[which];
        let netns = &self.wire.names[0];
        let mut connection = database::connect(database.kind, netns, &database.addresses);
        connection.read().unwrap_or_else(|e| panic!("{context}: {e}"))
    }

    /// What is in a database that was set aside on this node: it is served for a moment, by hand.
    ///
    /// # Panics
    /// When it cannot be served.
    pub fn read_aside(&self, which: usize, end: usize, dataset: &str) -> BTreeSet<Transaction> {
        let Served { kind, addresses, .. } = &self.databases[which];
        if zfs(&["get", "-H", "-o", "value", "mounted", dataset]).trim() != "yes" {
            zfs(&["mount", dataset]);
        }
        let volume = zfs(&["get", "-H", "-o", "value", "mountpoint", dataset]);
        let address = SocketAddr::new(addresses[end].ip(), ASIDE_PORT);
        let log = tempfile::tempfile().expect("a log");
        let mut server = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.wire.names[end]))
            .args(kind.command("aside", address))
            .current_dir(volume.trim())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("it starts");
        let mut connection = database::connect(*kind, &self.wire.names[0], &[address]);
        let written = connection.read().expect("it answers");
        let _ = server.kill();
        let _ = server.wait();
        written.into_iter().map(|w| w.transaction).collect()
    }

    /// Begins to write.
    pub fn load(&mut self, which: usize, clients: u32, per_second: u32) -> Load {
        let database = &mut self.databases[which];
        database.loads += 1;
        Load::start(&Plan {
            kind: database.kind,
            netns: Some(self.wire.names[0].clone()),
            addresses: database.addresses.to_vec(),
            load: database.loads,
            clients,
            per_second,
        })
    }

    /// What lies between the nodes.
    ///
    /// # Panics
    /// When nothing does: a mistake of the test.
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("a rig with a proxy")
    }

    /// The unit's name.
    pub fn name(&self, which: usize) -> &'static str {
        self.databases[which].kind.name()
    }

    /// Which node is primary: one of them, or a moment later.
    ///
    /// # Panics
    /// When there is none, or both, in time.
    pub fn settle(&self, which: usize, context: &str) -> usize {
        let name = self.name(which);
        let until = Instant::now() + PATIENCE;
        loop {
            let units = [0, 1].map(|end: usize| self.hosts[end].unit(name));
            let serves = units.each_ref().map(|unit| {
                unit.as_ref()
                    .is_some_and(|u| u["role"] == "primary" && u["workload_state"] == "running")
            });
            let follows =
                units.each_ref().map(|unit| unit.as_ref().is_some_and(|u| u["role"] == "standby"));
            assert_ne!(serves, [true, true], "{context}: two primaries");
            for end in [0, 1] {
                if serves[end] && follows[1 - end] {
                    return end;
                }
            }
            assert!(
                Instant::now() < until,
                "{context}: {name} does not settle: {units:#?}\n--- a\n{}\n--- b\n{}",
                self.hosts[0].log_tail(),
                self.hosts[1].log_tail()
            );
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Moves the unit away from `from`, as a person would: what is refused because the nodes have
    /// just lost or not yet found each other is asked for again. Returns the report.
    ///
    /// # Panics
    /// When it does not succeed in time.
    pub fn move_from(&self, which: usize, from: usize, context: &str) -> Value {
        let (name, to) = (self.name(which), &self.hosts[1 - from].name);
        let until = Instant::now() + PATIENCE;
        loop {
            let output = self.hosts[from].run(&["migrate", name, "--to", to, "--json"]);
            if output.status.success() {
                let text = String::from_utf8_lossy(&output.stdout);
                return serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in: {text}"));
            }
            let words = String::from_utf8_lossy(&output.stderr);
            assert!(
                Instant::now() < until,
                "{context}: {name} does not move to {to}: {words}\n--- a\n{}\n--- b\n{}",
                self.hosts[0].log_tail(),
                self.hosts[1].log_tail()
            );
            if self.settle(which, context) != from {
                // The command was cut off, the move was not.
                return Value::Null;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Ends a load and checks: one writer process, and the database as all its ledgers say.
    ///
    /// # Panics
    /// With all that is wrong.
    pub fn check(&mut self, which: usize, load: Option<Load>, context: &str) {
        if let Some(load) = load {
            self.add_ledger(which, load);
        }
        let database = &self.databases[which];
        let servers = database.addresses.map(|address| database.kind.servers(address).len());
        assert_eq!(servers.iter().sum::<usize>(), 1, "{context}: servers on a and b: {servers:?}");
        let written = self.read(which, context);
        let end = self.settle(which, context);
        let unit = self.hosts[end].unit(self.name(which)).expect("its status");
        let epoch =
            unit["epoch"]["number"].as_u64().unwrap_or_else(|| panic!("no epoch in {unit:#}"));
        let damage = judge(&written, &database.ledger, epoch - 1);
        assert_eq!(damage, Damage::default(), "{context}: the database against its ledger");
    }

    /// After a move that was disturbed: it settles, goes on under load, is moved back plainly, and all
    /// holds. Returns whether the unit had left `from`, and the longest time without an answer since
    /// `begun`.
    ///
    /// # Panics
    /// With what does not hold.
    pub fn see_through(
        &mut self,
        which: usize,
        from: usize,
        begun: Instant,
        load: Load,
        watch: Watch,
        context: &str,
    ) -> (bool, Duration) {
        let end = self.settle(which, context);
        load.wait_more(20, context);
        let gap = load.ledger().longest_gap(begun, Instant::now());
        // Asked again it is done; and what was done can be done again.
        self.move_from(which, end, context);
        assert_eq!(self.settle(which, context), 1 - end, "{context}: the plain move");
        load.wait_more(20, context);
        watch.end(context);
        self.check(which, Some(load), context);
        (end != from, gap)
    }

    fn add_ledger(&mut self, which: usize, load: Load) {
        let ledger = load.stop();
        let all = &mut self.databases[which].ledger;
        all.acked.extend(ledger.acked);
        all.unanswered.extend(ledger.unanswered);
        all.lost_connections += ledger.lost_connections;
    }

    /// Looks all the time whether two servers of a database run at once.
    pub fn watch(&self, which: usize) -> Watch {
        let (kind, addresses) = (self.databases[which].kind, self.databases[which].addresses);
        Watch::start(kind.name(), move |end| kind.servers(addresses[end]))
    }
}
