//! Hosts on one machine: network namespaces joined by a veth pair.

use std::os::fd::AsFd;
use std::process::Command;

/// Two namespaces with one wire between them; taken away when dropped.
#[derive(Debug)]
pub struct Wire {
    /// The namespaces' names.
    pub names: [String; 2],
    /// Their addresses.
    pub addresses: [String; 2],
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).output().map_err(|e| format!("ip: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

impl Wire {
    /// Makes the namespaces. `number` (0 to 250) keeps parallel tests apart.
    ///
    /// # Errors
    /// Why it cannot be done here: no `ip`, not root.
    pub fn lay(label: &str, number: u8) -> Result<Self, String> {
        let pid = std::process::id();
        let names = ["a", "b"].map(|end| format!("fl{pid}{label}{end}"));
        let addresses = ["1", "2"].map(|end| format!("10.213.{number}.{end}"));
        let wire = Self { names, addresses };
        let links = ["a", "b"].map(|end| format!("fl{}{number}{end}", pid % 100_000));
        for name in &wire.names {
            ip(&["netns", "add", name])?;
        }
        ip(&["link", "add", &links[0], "type", "veth", "peer", "name", &links[1]])?;
        for ((name, link), address) in wire.names.iter().zip(&links).zip(&wire.addresses) {
            ip(&["link", "set", link, "netns", name])?;
            ip(&["-n", name, "addr", "add", &format!("{address}/24"), "dev", link])?;
            ip(&["-n", name, "link", "set", link, "up"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        Ok(wire)
    }
}

/// Moves the calling thread into a namespace.
///
/// # Panics
/// When that is not possible.
pub fn enter(name: &str) {
    let file = std::fs::File::open(format!("/run/netns/{name}")).expect("the namespace");
    let kind = rustix::thread::LinkNameSpaceType::Network;
    rustix::thread::move_into_link_name_space(file.as_fd(), Some(kind)).expect("may enter it");
}

impl Drop for Wire {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = ip(&["netns", "del", name]);
        }
    }
}
