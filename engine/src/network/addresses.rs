//! Addresses that move with a workload: put on their interface and announced, or taken off.
//!
//! Owns: what is changed on the interface, and the proof that it was. What is there is read from the
//! kernel (`getifaddrs`), so that a cutover does not wait for one more process; it is changed by
//! `ip` of iproute2. Leaves to others: the packets (`announce`), and the order in a cutover
//! (`flocker_core`): an address is put on last of all, and taken off first of all.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use flocker_core::record::AddressRecord;
use flocker_core::{Failure, FailureCode, Remedy};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use super::announce::{self, Link};

/// Pauses between the announcements that follow the first one: whoever missed it, while its own
/// link or switch was busy, hears a later one.
const AGAIN: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
];

/// An address as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    device: String,
    address: IpAddr,
    prefix: u8,
}

/// The interfaces of this network namespace and what is on them, in the kernel's order.
#[derive(Debug, Default)]
struct Interfaces {
    links: Vec<Link>,
    found: Vec<Found>,
}

/// Puts the addresses on and announces them, or takes them off; reads back. What is as wanted
/// already is no error.
pub(crate) fn set(addresses: &[AddressRecord], up: bool) -> Result<(), Failure> {
    let before = Interfaces::read()?;
    for record in addresses {
        match up {
            true => put_on(&before, record)?,
            false => take_off(&before, record)?,
        }
    }
    let after = Interfaces::read()?;
    for record in addresses {
        let there = after.holds(record.address);
        if there.is_some() != up {
            let state = if up { "is not on" } else { "is still on" };
            return Err(Failure::new(
                Remedy::Retry,
                FailureCode::Other,
                format!("{} {state} {} after `ip` said it was done", record.address, record.device),
            ));
        }
    }
    if up {
        announce_all(&after, addresses)?;
    }
    Ok(())
}

/// Puts the addresses on, and tells nobody: whoever asks for them finds them here all the same.
pub(crate) fn put_on_silently(addresses: &[AddressRecord]) -> Result<(), Failure> {
    let before = Interfaces::read()?;
    addresses.iter().try_for_each(|record| put_on(&before, record))
}

fn put_on(now: &Interfaces, record: &AddressRecord) -> Result<(), Failure> {
    let AddressRecord { address, prefix, device } = record;
    let Some(link) = now.link(device) else {
        return Err(operator(
            FailureCode::NotFound,
            format!("{address} cannot be put on {device}: there is no such interface here"),
        ));
    };
    let held = now.holds(*address);
    if let Some(found) = held.filter(|found| found.device != *device) {
        return Err(elsewhere(record, &found.device));
    }
    if !link.up {
        return Err(operator(
            FailureCode::Other,
            format!("{address} cannot be put on {device}: it is down (`ip link set {device} up`)"),
        ));
    }
    if held.is_some() {
        return Ok(());
    }
    let whole = format!("{address}/{prefix}");
    let mut args = vec!["addr", "add", &whole, "dev", device];
    if address.is_ipv6() {
        // Detection of duplicates would keep it useless for a second or more; that nobody else
        // has it any more is what the cutover has proven.
        args.push("nodad");
    }
    ip(&args)
}

fn take_off(now: &Interfaces, record: &AddressRecord) -> Result<(), Failure> {
    let Some(found) = now.holds(record.address) else { return Ok(()) };
    if found.device != record.device {
        return Err(elsewhere(record, &found.device));
    }
    keep_others(now, found)?;
    let whole = format!("{}/{}", found.address, found.prefix);
    ip(&["addr", "del", &whole, "dev", &found.device])
}

/// The kernel takes the other IPv4 addresses of a network off an interface together with the first
/// one, unless it is told to promote the next: a host would lose its own address, and its routes,
/// with the workload's. So it is told.
fn keep_others(now: &Interfaces, leaving: &Found) -> Result<(), Failure> {
    if !now.is_first_of_several(leaving) {
        return Ok(());
    }
    let setting =
        |of: &str| PathBuf::from(format!("/proc/sys/net/ipv4/conf/{of}/promote_secondaries"));
    let on = |of: &str| std::fs::read_to_string(setting(of)).is_ok_and(|text| text.trim() != "0");
    if on("all") || on(&leaving.device) {
        return Ok(());
    }
    let path = setting(&leaving.device);
    std::fs::write(&path, "1").map_err(|error| {
        operator(
            FailureCode::Other,
            format!(
                "{} stays on {}: the other addresses of its network would go with it, and {} cannot be set to 1: {error}",
                leaving.address,
                leaving.device,
                path.display()
            ),
        )
    })?;
    tracing::warn!(
        device = leaving.device,
        "promote_secondaries is set to 1: the interface's other addresses would have gone with the workload's"
    );
    Ok(())
}

/// Announces at once, and again in the background as long as the address is still here.
fn announce_all(now: &Interfaces, addresses: &[AddressRecord]) -> Result<(), Failure> {
    let mut todo: Vec<(Link, IpAddr)> = Vec::new();
    for record in addresses {
        // Without a hardware address there is nobody to be told: loopback, tunnels.
        if let Some(link) = now.link(&record.device).filter(|link| link.ethernet().is_some()) {
            todo.push((link.clone(), record.address));
        }
    }
    for (link, address) in &todo {
        announce::tell(link, *address).map_err(|error| {
            let hint = match error {
                nix::Error::EPERM | nix::Error::EACCES => " (raw packets need root or CAP_NET_RAW)",
                _ => "",
            };
            Failure::new(
                Remedy::Retry,
                FailureCode::Other,
                format!("{address} is on {} but could not be announced: {error}{hint}", link.name),
            )
        })?;
    }
    if todo.is_empty() {
        return Ok(());
    }
    let again = move || {
        for pause in AGAIN {
            std::thread::sleep(pause);
            // An address that has moved on is its new owner's to announce.
            let Ok(now) = Interfaces::read() else { return };
            for (link, address) in &todo {
                if now.holds(*address).is_some_and(|found| found.device == link.name)
                    && let Err(error) = announce::tell(link, *address)
                {
                    tracing::debug!(%address, %error, "not announced again");
                }
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("announce".to_owned()).spawn(again) {
        tracing::warn!(%error, "addresses are announced once only");
    }
    Ok(())
}

impl Interfaces {
    fn read() -> Result<Self, Failure> {
        let all = getifaddrs().map_err(|error| {
            let text = format!("the interfaces cannot be read: {error}");
            Failure::new(Remedy::Retry, FailureCode::Other, text)
        })?;
        let mut read = Interfaces::default();
        for one in all {
            let Some(address) = one.address else { continue };
            if let Some(hardware) = address.as_link_addr() {
                read.links.push(Link {
                    name: one.interface_name,
                    up: one.flags.contains(InterfaceFlags::IFF_UP),
                    hardware: *hardware,
                });
                continue;
            }
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            let Some(ip) = v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
            else {
                continue;
            };
            let prefix = one.netmask.and_then(|mask| {
                let v4 = mask.as_sockaddr_in().map(|m| m.ip().to_bits().count_ones());
                v4.or_else(|| mask.as_sockaddr_in6().map(|m| m.ip().to_bits().count_ones()))
            });
            read.found.push(Found {
                // An address with a label of its own is listed under that: `eth0:1`.
                device: one.interface_name.split(':').next().unwrap_or_default().to_owned(),
                address: ip,
                prefix: prefix.and_then(|bits| u8::try_from(bits).ok()).unwrap_or(0),
            });
        }
        Ok(read)
    }

    fn link(&self, device: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == device)
    }

    fn holds(&self, address: IpAddr) -> Option<&Found> {
        self.found.iter().find(|found| found.address == address)
    }

    fn is_first_of_several(&self, one: &Found) -> bool {
        let IpAddr::V4(address) = one.address else { return false };
        let bits = u32::from(one.prefix.min(32));
        let network = |ip: std::net::Ipv4Addr| ip.to_bits().checked_shr(32 - bits).unwrap_or(0);
        let mut same = self.found.iter().filter(|found| {
            let IpAddr::V4(other) = found.address else { return false };
            found.device == one.device
                && found.prefix == one.prefix
                && network(other) == network(address)
        });
        same.next().is_some_and(|first| first.address == one.address) && same.next().is_some()
    }
}

fn ip(args: &[&str]) -> Result<(), Failure> {
    let said = Command::new("ip").args(args).output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => operator(
            FailureCode::NotFound,
            "there is no `ip` command here: install the package iproute2".to_owned(),
        ),
        _ => Failure::new(Remedy::Retry, FailureCode::Other, format!("running `ip`: {error}")),
    })?;
    if said.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&said.stderr);
    let hint = match words.contains("Operation not permitted") {
        true => " (addresses are changed by root or with CAP_NET_ADMIN)",
        false => "",
    };
    Err(operator(
        FailureCode::Other,
        format!("`ip {}` failed: {}{hint}", args.join(" "), words.trim()),
    ))
}

fn elsewhere(record: &AddressRecord, device: &str) -> Failure {
    operator(
        FailureCode::Conflict,
        format!(
            "{} should be on {}, but this node has it on {device}: take it off there, or name that interface",
            record.address, record.device
        ),
    )
}

fn operator(code: FailureCode, text: String) -> Failure {
    Failure::new(Remedy::Operator, code, text)
}
