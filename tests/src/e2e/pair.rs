//! Two nodes with vaults in two network namespaces, with a unit that runs the test workload.
//!
//! Owns: building it, the client's ledger, who writes. For promises that need no filesystem: a link
//! that can be cut, leases, addresses. Leaves to `tests/tests/` what is done to it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::host::PATIENCE;
use super::ledger::workload_binary;
use super::netns::Wire;
use super::proxy::{self, Proxy};
use super::watch::{Watch, processes};
use super::{Host, Ledger, World, skip};

/// Where the nodes listen.
const PORT: u16 = 7001;

/// Where the workload listens on each.
const WORKLOAD_PORT: u16 = 5000;

/// Two nodes, paired through a link that can be cut. Dropped in this order.
#[derive(Debug)]
pub struct Pair {
    /// `a` and `b`.
    pub hosts: [Host; 2],
    /// The link.
    pub proxy: Proxy,
    /// The namespaces.
    pub wire: Wire,
    world: World,
}

impl Pair {
    /// Builds it: paired, nothing protected. `None`: this machine cannot, which was said.
    pub fn build(test: &str, number: u8) -> Option<Self> {
        let wire = match Wire::lay(&format!("p{number}"), number) {
            Ok(wire) => wire,
            Err(why) => {
                skip(&format!("network namespaces: {why}"), test);
                return None;
            }
        };
        let world = World::new();
        let at = |end: usize, port: u16| format!("{}:{port}", wire.addresses[end]);
        let listen = [0, 1].map(|end| at(end, PORT).parse().expect("an address"));
        let proxy = Proxy::start(&wire, listen);
        let hosts = [0, 1].map(|end: usize| {
            let name = ["a", "b"][end];
            let store = format!("vault:{}", world.path().join(format!("{name}-vault")).display());
            // Its peer dials it at the proxy in the peer's own namespace.
            let dialled_at = at(1 - end, proxy::PORT);
            let (netns, options) = (Some(wire.names[end].as_str()), ["--advertise", &dialled_at]);
            let listen = at(end, PORT);
            let mut host = Host::init_with(&world, name, &store, &listen, netns, &options);
            host.dialled_at = dialled_at;
            host.serve();
            host
        });
        hosts[0].pair(&hosts[1], ["recv/b", "recv/a"]);
        Some(Self { hosts, proxy, wire, world })
    }

    /// Where the workload answers while it is on this node.
    pub fn address(&self, end: usize) -> String {
        format!("{}:{WORKLOAD_PORT}", self.wire.addresses[end])
    }

    /// Protects `data/db` with these further options and runs the workload on both nodes.
    pub fn protect(&self, options: &[&str]) {
        let [a, b] = &self.hosts;
        let protect = ["protect", "data/db", "--to", "b", "--rpo", "300ms", "--create"];
        a.ok(&[&protect, options].concat());
        b.wait_unit("db", "known", |u| u["role"] == "standby");
        for end in [1, 0] {
            let (workload, address) = (workload_binary().display().to_string(), self.address(end));
            self.hosts[end].ok(&["run", "db", "--", &workload, &address]);
        }
        a.wait_serving("db");
        a.wait_in_step("db");
    }

    /// A client that looks for the workload on both nodes.
    pub fn ledger(&self) -> Ledger {
        Ledger::start_in(Some(&self.wire.names[0]), &[self.address(0), self.address(1)])
    }

    /// The workload's processes on this node.
    pub fn writers(&self, end: usize) -> Vec<u32> {
        processes(&[&workload_binary().display().to_string(), &self.address(end)])
    }

    /// Waits until nothing of the workload is left on this node.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait_no_writer(&self, end: usize) {
        let until = Instant::now() + PATIENCE;
        while !self.writers(end).is_empty() {
            assert!(Instant::now() < until, "it writes on:\n{}", self.hosts[end].log_tail());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Looks all the time whether both nodes run the workload at once.
    pub fn watch(&self) -> Watch {
        let workload = workload_binary().display().to_string();
        let addresses = [self.address(0), self.address(1)];
        Watch::start("the workload", move |end| processes(&[&workload, &addresses[end]]))
    }

    /// A node's vault: its live volumes are directories below `live`.
    pub fn vault(&self, end: usize) -> PathBuf {
        self.world.path().join(format!("{}-vault", self.hosts[end].name))
    }

    /// Where the unit's volume is on this node.
    ///
    /// # Panics
    /// When it has none.
    pub fn volume(&self, end: usize) -> PathBuf {
        let unit = self.hosts[end].unit("db").expect("the unit");
        let dataset = unit["volumes"][0]["dataset"].as_str().expect("a dataset").to_owned();
        self.vault(end).join("live").join(dataset)
    }
}

/// The records in the file `ledger` below a volume.
///
/// # Panics
/// When it cannot be read.
pub fn records(volume: &Path) -> Vec<u64> {
    let path = volume.join("ledger");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().filter_map(|line| line.parse().ok()).collect()
}
