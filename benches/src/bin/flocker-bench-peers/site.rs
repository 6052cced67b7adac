//! Where it is measured: a temporary folder, keys for ssh and for us, and the networks.
//!
//! Owns: all of it, and that it is gone afterwards. Leaves to others: what runs there.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use flocker_benches::nodes::Keys;
use serde::{Deserialize, Serialize};

use crate::measure::{Ready, Server};

/// What lies between the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Network {
    /// The loopback interface, packets of 64 KiB.
    Loopback,
    /// Two network namespaces, packets of 1500 bytes.
    Ethernet,
    /// The same with packets of 9000 bytes.
    Jumbo,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "loopback",
            Self::Ethernet => "veth, 1500",
            Self::Jumbo => "veth, 9000",
        })
    }
}

/// One end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Near,
    Far,
}

pub(crate) struct Site {
    pub(crate) folder: tempfile::TempDir,
    /// On a disk: what nodes keep in their state directory.
    pub(crate) state: tempfile::TempDir,
    /// Names of the two namespaces, where they could be made.
    namespaces: Option<[String; 2]>,
    pub(crate) pipe: PathBuf,
    user: String,
}

impl Site {
    /// Makes everything; `below` is where large files go.
    pub(crate) fn new(below: &Path, state: &Path) -> anyhow::Result<Self> {
        let make = |below: &Path| {
            let made = tempfile::Builder::new().prefix("flocker-bench-").tempdir_in(below);
            made.with_context(|| format!("cannot make a folder in {}", below.display()))
        };
        let (folder, state) = (make(below)?, make(state)?);
        let pipe = std::env::current_exe()?.with_file_name("flocker-bench-pipe");
        if !pipe.exists() {
            bail!("{} is not there; build it as benches/peers/run does", pipe.display());
        }
        let user = Command::new("id").arg("-un").output().context("cannot run id")?;
        let user = String::from_utf8_lossy(&user.stdout).trim().to_owned();
        let mut site = Self { folder, state, namespaces: None, pipe, user };
        Keys::load_or_create(&site.keys())?;
        site.ssh_keys()?;
        site.namespaces = make_namespaces()?;
        Ok(site)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.path("keys")
    }

    /// Whether the network is there.
    pub(crate) fn has(&self, network: Network) -> bool {
        network == Network::Loopback || self.namespaces.is_some()
    }

    /// Sets the size of packets.
    pub(crate) fn choose(&self, network: Network) -> anyhow::Result<()> {
        let Some([near, far]) = &self.namespaces else { return Ok(()) };
        let mtu = match network {
            Network::Loopback => return Ok(()),
            Network::Ethernet => 1500,
            Network::Jumbo => 9000,
        };
        for name in [near, far] {
            sh(&format!("ip -n {name} link set dev wire mtu {mtu}"))?;
        }
        Ok(())
    }

    /// A command as it is run at one end of a network.
    pub(crate) fn at(&self, network: Network, end: End, command: &str) -> String {
        let (Some([near, far]), true) = (&self.namespaces, network != Network::Loopback) else {
            return command.to_owned();
        };
        let name = if end == End::Near { near } else { far };
        format!("ip netns exec {name} bash -c {}", quoted(&format!("set -o pipefail; {command}")))
    }

    /// Where the far end listens.
    pub(crate) fn far(&self, network: Network) -> Ipv4Addr {
        match network {
            Network::Loopback => Ipv4Addr::LOCALHOST,
            Network::Ethernet | Network::Jumbo => Ipv4Addr::new(10, 91, 7, 2),
        }
    }

    fn ssh_keys(&self) -> anyhow::Result<()> {
        let folder = self.folder.path().display();
        for name in ["host-key", "user-key"] {
            sh(&format!("ssh-keygen -q -t ed25519 -N '' -f {folder}/{name}"))?;
        }
        let config = format!(
            "HostKey {folder}/host-key\nAuthorizedKeysFile {folder}/user-key.pub\nPidFile none\n\
             StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\nUseDNS no\n\
             PasswordAuthentication no\nPrintMotd no\nLogLevel ERROR\n"
        );
        fs::write(self.path("sshd_config"), config)?;
        // What sshd of Debian asks for when it is started by root and not by its service.
        let _ = fs::create_dir_all("/run/sshd");
        Ok(())
    }

    /// An sshd at the far end, and the words of a client that runs a command there.
    pub(crate) fn ssh(&self, network: Network) -> anyhow::Result<(Server, String)> {
        let (folder, address, port) =
            (self.folder.path().display(), self.far(network), free_port()?);
        let daemon = format!(
            "exec $(PATH=$PATH:/usr/sbin command -v sshd) -D -e -f {folder}/sshd_config \
             -o ListenAddress={address} -p {port}"
        );
        let server = Server {
            shell: self.at(network, End::Far, &daemon),
            ready: Ready::Port(port),
            ends: false,
        };
        let client = format!(
            "ssh -F none -T -c aes128-gcm@openssh.com -o Compression=no -o BatchMode=yes \
             -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
             -i {folder}/user-key -p {port} {}@{address}",
            self.user
        );
        Ok((server, client))
    }

    /// Our own receiver at the far end; where it listens is in the file.
    pub(crate) fn receiver(
        &self,
        network: Network,
        words: &str,
        then: &str,
    ) -> anyhow::Result<(Server, SocketAddr)> {
        let ready = self.path("ready");
        let _ = fs::remove_file(&ready);
        let address = SocketAddr::V4(SocketAddrV4::new(self.far(network), free_port()?));
        let command = format!(
            "{} receive --keys {} --listen {address} --ready {} {words}{then}",
            self.pipe.display(),
            self.keys().display(),
            ready.display()
        );
        let shell = self.at(network, End::Far, &command);
        Ok((Server { shell, ready: Ready::File(ready), ends: true }, address))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for name in self.namespaces.iter().flatten() {
            if let Err(error) = sh(&format!("ip netns del {name}")) {
                eprintln!("a network namespace is left behind: {error:#}");
            }
        }
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Two namespaces with a wire between them; `None` without the right to make them.
fn make_namespaces() -> anyhow::Result<Option<[String; 2]>> {
    let id = std::process::id();
    let names = [format!("flocker-bench-{id}-a"), format!("flocker-bench-{id}-b")];
    let [near, far] = &names;
    if sh(&format!("ip netns add {near} 2>/dev/null")).is_err() {
        return Ok(None);
    }
    let made = sh(&format!("ip netns add {far}")).and_then(|()| {
        sh(&format!("ip -n {near} link add wire type veth peer name wire netns {far}"))?;
        for (name, address) in [(near, "10.91.7.1/30"), (far, "10.91.7.2/30")] {
            sh(&format!("ip -n {name} address add {address} dev wire"))?;
            sh(&format!("ip -n {name} link set dev wire up && ip -n {name} link set dev lo up"))?;
        }
        Ok(())
    });
    if let Err(error) = made {
        let _ = sh(&format!("ip netns del {near}; ip netns del {far}"));
        return Err(error);
    }
    Ok(Some(names))
}

/// Runs a shell command that says nothing when it succeeds.
pub(crate) fn sh(command: &str) -> anyhow::Result<()> {
    says(command).map(drop)
}

/// What a shell command prints.
pub(crate) fn says(command: &str) -> anyhow::Result<String> {
    let done = Command::new("bash").args(["-c", command]).output()?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        bail!("`{command}` failed: {}", said.trim());
    }
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
