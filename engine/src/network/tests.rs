//! Addresses between hosts in network namespaces: two hosts and a client on one bridge.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use flocker_core::record::AddressRecord;
use flocker_core::{FailureCode, Remedy};

use super::addresses::set;

const LIMIT: Duration = Duration::from_secs(10);
const PORT: u16 = 7000;

fn ip(args: &[&str]) -> Result<String, String> {
    let output = Command::new("ip").args(args).output().map_err(|e| format!("ip: {e}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("ip {}: {}", args.join(" "), said.trim()))
        }
    }
}

fn skip(reason: &str, test: &str) {
    eprintln!("SKIPPED: {reason} ({test})");
    if let Some(path) = std::env::var_os("FLOCKER_SKIP_LOG") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        if let Ok(mut file) = file {
            let _ = writeln!(file, "{reason} ({test})");
        }
    }
}

/// Namespaces `a`, `b` (hosts) and `c` (a client), each with an `eth0` on the bridge in `s`.
struct Lan {
    prefix: String,
}

impl Lan {
    /// `None`, and a loud skip, where this cannot be had.
    fn lay(test: &str) -> Option<Self> {
        let lan = Lan { prefix: format!("fln{}{}", std::process::id(), test.len()) };
        match lan.build() {
            Ok(()) => Some(lan),
            Err(why) => {
                skip(&format!("network namespaces: {why}"), test);
                None
            }
        }
    }

    fn build(&self) -> Result<(), String> {
        let switch = self.name("s");
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "br0", "up"])?;
        for (number, host) in [(2, "a"), (3, "b"), (9, "c")] {
            let name = self.name(host);
            ip(&["netns", "add", &name])?;
            let peer = ["peer", "name", "eth0", "netns", &name];
            // `name`, or `a` is read as the beginning of `address`.
            let link = ["-n", &switch, "link", "add", "name", host, "type", "veth"];
            ip(&[&link[..], &peer[..]].concat())?;
            ip(&["-n", &switch, "link", "set", "dev", host, "master", "br0", "up"])?;
            let (v4, v6) = (format!("10.77.0.{number}/24"), format!("fd77::{number}/64"));
            ip(&["-n", &name, "addr", "add", &v4, "dev", "eth0"])?;
            ip(&["-n", &name, "addr", "add", &v6, "dev", "eth0", "nodad"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        }
        Ok(())
    }

    fn name(&self, host: &str) -> String {
        format!("{}{host}", self.prefix)
    }

    /// Runs it on that host.
    fn on<T: Send>(&self, host: &str, what: impl FnOnce() -> T + Send) -> T {
        let file = std::fs::File::open(format!("/run/netns/{}", self.name(host))).unwrap();
        std::thread::scope(|scope| {
            let there = scope.spawn(move || {
                let kind = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(file.as_fd(), Some(kind)).unwrap();
                what()
            });
            there.join().unwrap()
        })
    }

    /// Each connection to the host is answered by its name, for as long as the test runs.
    fn answers(&self, host: &'static str, any: &'static str) {
        let listener = self.on(host, || TcpListener::bind((any, PORT)).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.and_then(|mut stream| stream.write_all(host.as_bytes()));
            }
        });
    }

    /// Who answers the client there.
    fn asked(&self, address: IpAddr) -> String {
        self.on("c", || {
            let to = SocketAddr::new(address, PORT);
            let mut stream = TcpStream::connect_timeout(&to, LIMIT).unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).unwrap();
            said
        })
    }

    /// What the client's neighbour table has for it.
    fn neighbour(&self, address: IpAddr) -> String {
        ip(&["-n", &self.name("c"), "neigh", "show", &address.to_string(), "dev", "eth0"]).unwrap()
    }

    fn learns(&self, address: IpAddr, host: &str) {
        let (begun, hardware) = (Instant::now(), self.hardware(host));
        while !self.neighbour(address).contains(&hardware) {
            assert!(begun.elapsed() < LIMIT, "still {}", self.neighbour(address));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn hardware(&self, host: &str) -> String {
        let link = ip(&["-n", &self.name(host), "-o", "link", "show", "eth0"]).unwrap();
        let words: Vec<&str> = link.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "link/ether").unwrap();
        words[at + 1].to_owned()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for host in ["a", "b", "c", "s"] {
            let _ = ip(&["netns", "del", &self.name(host)]);
        }
    }
}

fn record(address: &str, prefix: u8, device: &str) -> AddressRecord {
    AddressRecord { address: address.parse().unwrap(), prefix, device: device.to_owned() }
}

/// The client has the address in its neighbour table when it moves, and finds the new host with its
/// next packet.
fn check_the_client_follows(lan: &Lan, moving: &AddressRecord) {
    let one = std::slice::from_ref(moving);
    lan.on("a", || set(one, true)).unwrap();
    assert_eq!(lan.asked(moving.address), "a");
    assert!(lan.neighbour(moving.address).contains(&lan.hardware("a")));
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b")] {
        lan.on(from, || set(one, false)).unwrap();
        assert!(lan.neighbour(moving.address).contains(&lan.hardware(from)), "not known yet");
        lan.on(to, || set(one, true)).unwrap();
        // The client has sent nothing that could have told it.
        lan.learns(moving.address, to);
        assert_eq!(lan.asked(moving.address), to, "{}", lan.neighbour(moving.address));
    }
}

#[test]
fn a_client_follows_an_ipv4_address_with_its_next_packet() {
    let Some(lan) = Lan::lay("a_client_follows_an_ipv4_address_with_its_next_packet") else {
        return;
    };
    lan.answers("a", "0.0.0.0");
    lan.answers("b", "0.0.0.0");
    check_the_client_follows(&lan, &record("10.77.0.5", 24, "eth0"));
}

#[test]
fn a_client_follows_an_ipv6_address_with_its_next_packet() {
    let Some(lan) = Lan::lay("a_client_follows_an_ipv6_address") else { return };
    lan.answers("a", "::");
    lan.answers("b", "::");
    check_the_client_follows(&lan, &record("fd77::5", 64, "eth0"));
}

/// The control: what the tests above show is the announcements' work.
#[test]
fn a_client_keeps_its_old_entry_when_nobody_announces() {
    let Some(lan) = Lan::lay("a_client_keeps_its_old_entry") else { return };
    lan.answers("a", "0.0.0.0");
    let moving = record("10.77.0.5", 24, "eth0");
    lan.on("a", || set(std::slice::from_ref(&moving), true)).unwrap();
    assert_eq!(lan.asked(moving.address), "a");
    lan.on("a", || set(std::slice::from_ref(&moving), false)).unwrap();
    ip(&["-n", &lan.name("b"), "addr", "add", "10.77.0.5/24", "dev", "eth0"]).unwrap();
    assert!(lan.neighbour(moving.address).contains(&lan.hardware("a")));
}

#[test]
fn what_is_as_wanted_already_is_no_error() {
    let Some(lan) = Lan::lay("what_is_as_wanted_already") else { return };
    let both = [record("10.77.0.5", 24, "eth0"), record("fd77::5", 64, "eth0")];
    lan.on("a", || {
        set(&both, false).unwrap();
        set(&both, true).unwrap();
        set(&both, true).unwrap();
        let there = ip(&["addr", "show", "dev", "eth0"]).unwrap();
        assert!(there.contains("10.77.0.5/24") && there.contains("fd77::5/64"), "{there}");
        // The interface's own link-local address may be so yet.
        let useless = |line: &str| line.contains("fd77::5/64") && line.contains("tentative");
        assert!(!there.lines().any(useless), "{there}");
        set(&both, false).unwrap();
        set(&both, false).unwrap();
        let there = ip(&["addr", "show", "dev", "eth0"]).unwrap();
        assert!(!there.contains("10.77.0.5") && !there.contains("fd77::5"), "{there}");
        assert!(there.contains("10.77.0.2/24") && there.contains("fd77::2/64"), "{there}");
    });
}

/// The kernel takes all addresses of a network off with the first one; a host would lose its own.
#[test]
fn the_hosts_own_address_stays_when_the_workloads_came_first() {
    let Some(lan) = Lan::lay("the_hosts_own_address_stays") else { return };
    lan.on("a", || {
        ip(&["addr", "del", "10.77.0.2/24", "dev", "eth0"]).unwrap();
        let setting = "/proc/sys/net/ipv4/conf/eth0/promote_secondaries";
        let moving = [record("10.77.0.5", 24, "eth0")];
        set(&moving, true).unwrap();
        ip(&["addr", "add", "10.77.0.2/24", "dev", "eth0"]).unwrap();
        // `/proc/sys/net` is that of the thread's namespace.
        std::fs::write(setting.replace("eth0", "all"), "0").unwrap();
        std::fs::write(setting, "0").unwrap();
        set(&moving, false).unwrap();
        let there = ip(&["addr", "show", "dev", "eth0"]).unwrap();
        assert!(there.contains("10.77.0.2/24") && !there.contains("10.77.0.5"), "{there}");
    });
}

#[test]
fn an_interface_that_is_not_there_or_down_or_another_is_named() {
    let Some(lan) = Lan::lay("an_interface_that_is_not_there") else { return };
    lan.on("a", || {
        let missing = set(&[record("10.77.0.5", 24, "eth7")], true).unwrap_err();
        assert_eq!((missing.code, missing.remedy), (FailureCode::NotFound, Remedy::Operator));
        assert!(missing.message.contains("eth7"), "{missing}");
        // It is not on it either, which is all that taking off is for.
        set(&[record("10.77.0.5", 24, "eth7")], false).unwrap();
        ip(&["link", "add", "eth1", "type", "veth", "peer", "name", "eth2"]).unwrap();
        let down = set(&[record("10.77.0.5", 24, "eth1")], true).unwrap_err();
        assert!(down.message.contains("ip link set eth1 up"), "{down}");
        for up in [true, false] {
            let other = set(&[record("10.77.0.2", 24, "eth1")], up).unwrap_err();
            assert_eq!(other.code, FailureCode::Conflict);
            assert!(other.message.contains("eth0"), "{other}");
        }
    });
}

#[test]
fn without_privilege_the_failure_says_what_is_needed() {
    let Some(lan) = Lan::lay("without_privilege_the_failure") else { return };
    lan.on("a", || {
        use rustix::thread::{self, CapabilitySet, CapabilitySets};
        ip(&["addr", "add", "10.77.0.6/24", "dev", "eth0"]).unwrap();
        // Of this thread alone, and of what it starts.
        for one in [CapabilitySet::NET_ADMIN, CapabilitySet::NET_RAW] {
            thread::remove_capability_from_bounding_set(one).unwrap();
        }
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        thread::set_capabilities(None, none).unwrap();
        let error = set(&[record("10.77.0.5", 24, "eth0")], true).unwrap_err();
        assert!(error.message.contains("CAP_NET_ADMIN"), "{error}");
        let error = set(&[record("10.77.0.6", 24, "eth0")], true).unwrap_err();
        assert!(error.message.contains("CAP_NET_RAW"), "{error}");
        let error = set(&[record("10.77.0.6", 24, "eth0")], false).unwrap_err();
        assert!(error.message.contains("CAP_NET_ADMIN"), "{error}");
    });
}
