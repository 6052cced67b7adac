//! Who takes part, and the commands that each is.

use std::fs;
use std::path::Path;

use flocker_transport::{Compression, LaneMode};
use serde::Deserialize;

use crate::measure::{Cost, Ready, Server, transfer};
use crate::results::Round;
use crate::site::{End, Network, Site, free_port};

/// One way to bring a stream from a pipe to a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    /// `cat | cat`: no network, the floor.
    Cat,
    Ssh,
    /// `zstd -1 | ssh | zstd -d`
    ZstdSsh,
    /// `pv | lzop | mbuffer | ssh | mbuffer | lzop -d`
    Syncoid,
    /// mbuffer over TCP, in the clear.
    Mbuffer,
    Ours(Ours),
}

/// How we send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ours {
    pub(crate) lane: LaneMode,
    pub(crate) compression: Compression,
    pub(crate) dedup: bool,
    /// Send this many at once, each in a transfer of its own; 0: one, through the pipes of the process.
    pub(crate) volumes: usize,
}

impl Ours {
    pub(crate) const fn over(lane: LaneMode, compression: Compression) -> Contender {
        Contender::Ours(Self { lane, compression, dedup: false, volumes: 0 })
    }

    pub(crate) const fn with_dedup(lane: LaneMode, compression: Compression) -> Contender {
        Contender::Ours(Self { lane, compression, dedup: true, volumes: 0 })
    }

    pub(crate) const fn volumes(lane: LaneMode, volumes: usize) -> Contender {
        Contender::Ours(Self { lane, compression: Compression::Off, dedup: false, volumes })
    }

    pub(crate) fn lane(self) -> &'static str {
        match self.lane {
            LaneMode::Quic => "quic",
            LaneMode::Tls => "tls",
            LaneMode::Auto => "auto",
        }
    }
}

/// What our sender reports.
#[derive(Deserialize)]
struct Report {
    wire_bytes: u64,
}

impl Contender {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Cat => "cat | cat".into(),
            Self::Ssh => "ssh aes128-gcm".into(),
            Self::ZstdSsh => "zstd -1 | ssh | zstd -d".into(),
            Self::Syncoid => "syncoid's pipe".into(),
            Self::Mbuffer => "mbuffer, plain TCP".into(),
            Self::Ours(ours) => {
                let level = match ours.compression {
                    Compression::Off => String::new(),
                    Compression::Adaptive => ", adaptive".into(),
                    Compression::Level(level) => format!(", zstd {level}"),
                };
                let dedup = if ours.dedup { ", dedup" } else { "" };
                let volumes = match ours.volumes {
                    0 => String::new(),
                    1 => ", one volume".into(),
                    n => format!(", {n} volumes at once"),
                };
                format!("flocker-repl {}{level}{dedup}{volumes}", ours.lane())
            }
        }
    }

    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Ours(_))
    }

    /// Transfers the file once. `bytes` is what it has.
    pub(crate) fn run(
        self,
        site: &Site,
        network: Network,
        file: &Path,
        bytes: u64,
    ) -> anyhow::Result<Round> {
        site.choose(network)?;
        let input = file.display();
        if let Self::Ours(ours) = self {
            return ours.run(site, network, file, bytes);
        }
        let (server, client) = match self {
            Self::Cat | Self::Ours(_) => (None, format!("cat {input} | cat >/dev/null")),
            Self::Ssh => {
                let (server, ssh) = site.ssh(network)?;
                (Some(server), format!("cat {input} | {ssh} 'cat >/dev/null'"))
            }
            Self::ZstdSsh => {
                let (server, ssh) = site.ssh(network)?;
                let there = "zstd -dc | cat >/dev/null";
                (Some(server), format!("cat {input} | zstd -1 -c | {ssh} '{there}'"))
            }
            Self::Syncoid => {
                let (server, ssh) = site.ssh(network)?;
                let there = "mbuffer -q -s 128k -m 16M | lzop -dfc | cat >/dev/null";
                let client = format!(
                    "cat {input} | pv -p -t -e -r -b -s {bytes} 2>/dev/null | lzop | \
                     mbuffer -q -s 128k -m 16M | {ssh} '{there}'"
                );
                (Some(server), client)
            }
            Self::Mbuffer => {
                let (address, port) = (site.far(network), free_port()?);
                let there = format!("mbuffer -q -s 128k -m 16M -I {port} | cat >/dev/null");
                let server = Server {
                    shell: site.at(network, End::Far, &there),
                    ready: Ready::Port(port),
                    ends: true,
                };
                let client = format!("cat {input} | mbuffer -q -s 128k -m 16M -O {address}:{port}");
                (Some(server), client)
            }
        };
        let cost = transfer(server.as_ref(), &site.at(network, End::Near, &client))?;
        Ok(Round::new(bytes, cost, None))
    }
}

impl Ours {
    fn run(self, site: &Site, network: Network, file: &Path, bytes: u64) -> anyhow::Result<Round> {
        let mut words = format!("--lane {}", self.lane());
        if self.dedup {
            words += &format!(" --cache {}", site.state.path().join("dedup").display());
        }
        let then = match self.volumes {
            0 => " | cat >/dev/null".to_owned(),
            n => {
                words += &format!(" --discard {n}");
                String::new()
            }
        };
        let (server, address) = site.receiver(network, &words, &then)?;
        let report = site.path("report");
        // An empty stream takes the lane of a large one too.
        let mut client = format!(
            "{} send --keys {} --to {address} --lane {} --report {}",
            site.pipe.display(),
            site.keys().display(),
            self.lane(),
            report.display()
        );
        client += &match self.compression {
            Compression::Off => String::new(),
            Compression::Adaptive => " --compression auto".to_owned(),
            Compression::Level(level) => format!(" --compression {level}"),
        };
        let client = match self.volumes {
            0 => format!("cat {} | {client}", file.display()),
            n => format!("{client}{}", format!(" {}", file.display()).repeat(n)),
        };
        let cost: Cost = transfer(Some(&server), &site.at(network, End::Near, &client))?;
        let report: Report = serde_json::from_str(&fs::read_to_string(&report)?)?;
        let volumes = self.volumes.max(1) as u64;
        Ok(Round::new(bytes * volumes, cost, Some(report.wire_bytes)))
    }
}
