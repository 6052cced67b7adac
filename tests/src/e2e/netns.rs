//! Hosts on one machine: network namespaces joined by a veth pair, or by a bridge to which a client
//! belongs too.

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

    /// Lets no UDP leave either namespace, or lets it through again. TCP passes.
    ///
    /// # Panics
    /// When `ip` does not do it.
    pub fn block_udp(&self, blocked: bool) {
        let what = if blocked { "add" } else { "del" };
        for name in &self.names {
            let done = ip(&["-n", name, "rule", what, "ipproto", "udp", "prohibit"]);
            done.unwrap_or_else(|why| panic!("{why}"));
        }
    }
}

/// The interface of every host of a [`Lan`].
pub const DEVICE: &str = "eth0";

/// Two hosts and a client in namespaces of their own, on one bridge; taken away when dropped.
#[derive(Debug)]
pub struct Lan {
    /// The hosts.
    pub wire: Wire,
    /// The client's namespace.
    pub client: String,
    switch: String,
}

impl Lan {
    /// Makes the namespaces. `number` (0 to 250) keeps parallel tests apart.
    ///
    /// # Errors
    /// Why it cannot be done here: no `ip`, not root.
    pub fn lay(label: &str, number: u8) -> Result<Self, String> {
        let prefix = format!("fl{}{label}", std::process::id());
        let name = |end: &str| format!("{prefix}{end}");
        let names = ["a", "b"].map(name);
        let addresses = ["1", "2"].map(|end| format!("10.213.{number}.{end}"));
        let lan = Self { wire: Wire { names, addresses }, client: name("c"), switch: name("s") };
        let Self { wire, client, switch } = &lan;
        ip(&["netns", "add", switch])?;
        ip(&["-n", switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", switch, "link", "set", "br0", "up"])?;
        let hosts = [(&wire.names[0], 1), (&wire.names[1], 2), (client, 9)];
        for ((name, end), port) in hosts.into_iter().zip(["a", "b", "c"]) {
            ip(&["netns", "add", name])?;
            let peer = ["peer", "name", DEVICE, "netns", name];
            // `name`, or `a` is read as the beginning of `address`.
            let link = ["-n", switch, "link", "add", "name", port, "type", "veth"];
            ip(&[&link[..], &peer[..]].concat())?;
            ip(&["-n", switch, "link", "set", "dev", port, "master", "br0", "up"])?;
            let address = format!("10.213.{number}.{end}/24");
            ip(&["-n", name, "addr", "add", &address, "dev", DEVICE])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            ip(&["-n", name, "link", "set", DEVICE, "up"])?;
        }
        Ok(lan)
    }

    /// Whether the host has the address.
    ///
    /// # Panics
    /// When it cannot be asked.
    pub fn has(&self, end: usize, address: &str) -> bool {
        let shown = ip_says(&["-n", &self.wire.names[end], "-o", "addr", "show", "dev", DEVICE]);
        shown.split_whitespace().any(|word| word.split('/').next() == Some(address))
    }

    /// Whether the client's neighbour table has this host for the address.
    ///
    /// # Panics
    /// When it cannot be asked.
    pub fn client_knows(&self, address: &str, end: usize) -> bool {
        let link = ip_says(&["-n", &self.wire.names[end], "-o", "link", "show", DEVICE]);
        let hardware = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
        let entry = ip_says(&["-n", &self.client, "neigh", "show", address, "dev", DEVICE]);
        entry.contains(hardware.expect("a hardware address"))
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for name in [&self.client, &self.switch] {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

fn ip_says(args: &[&str]) -> String {
    let output = Command::new("ip").args(args).output().expect("ip runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
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
