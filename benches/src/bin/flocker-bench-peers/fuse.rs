//! From one pool to another, both of zfs-fuse: the local pipe, and the same through us.

use std::path::Path;

use anyhow::Context as _;
use flocker_transport::{Compression, LaneMode};

use crate::contenders::Ours;
use crate::measure::{Cost, transfer};
use crate::results::{Round, Series, median};
use crate::site::{End, Network, Site, says, sh};

pub(crate) const INPUT: &str = "a filesystem of zfs-fuse";
pub(crate) const LOCAL: &str = "zfs send | zfs receive";

/// Two pools in files.
struct Pools {
    near: String,
    far: String,
}

impl Pools {
    fn create(folder: &Path, mib: u64) -> anyhow::Result<Self> {
        let id = std::process::id();
        let pools = Self { near: format!("flkbench{id}a"), far: format!("flkbench{id}b") };
        for name in [&pools.near, &pools.far] {
            let file = folder.join(name);
            let file = file.display();
            // Room for what ZFS keeps for itself, and for what is freed a few seconds later.
            sh(&format!("truncate -s {}M {file}", mib * 3 + 256))?;
            sh(&format!("zpool create -o cachefile=none -m {file}.mnt {name} {file}"))?;
        }
        Ok(pools)
    }
}

impl Drop for Pools {
    fn drop(&mut self) {
        for name in [&self.near, &self.far] {
            // What was received last may still be on its way to the disk.
            let again = format!(
                "for try in 1 2 3 4 5 6 7 8 9; do zpool destroy -f {name} && exit; sleep 1; done; exit 1"
            );
            if let Err(error) = sh(&again) {
                eprintln!("a pool is left behind: {error:#}");
            }
        }
    }
}

/// Measures both ways in turn; why not, where zfs-fuse is not there.
pub(crate) fn measure(
    site: &Site,
    mib: u64,
    rounds: usize,
) -> anyhow::Result<Result<Vec<Series>, String>> {
    if let Err(error) = sh("test ! -e /sys/module/zfs && zpool list") {
        return Ok(Err(format!("zfs-fuse does not run here: {error:#}")));
    }
    let pools = Pools::create(site.folder.path(), mib).context("cannot make pools in files")?;
    let source = format!("{}/data", pools.near);
    sh(&format!("zfs create {source}"))?;
    let mounted = says(&format!("zfs get -H -o value mountpoint {source}"))?;
    let noise = site.path("fuse-noise");
    sh(&format!(
        "{} make noise {} --mib {mib} && cp {} {mounted}/file && rm {}",
        site.pipe.display(),
        noise.display(),
        noise.display(),
        noise.display()
    ))?;
    sh(&format!("zfs snapshot {source}@s"))?;
    let empty = format!("{}/empty", pools.near);
    sh(&format!("zfs create {empty} && zfs snapshot {empty}@s"))?;
    let bytes: u64 = says(&format!("zfs send {source}@s | wc -c"))?.parse()?;
    let ours =
        Ours { lane: LaneMode::Tls, compression: Compression::Level(1), dedup: false, volumes: 0 };
    let mut local = series(LOCAL, false);
    let mut through = series(&crate::contenders::Contender::Ours(ours).name(), true);
    let mut startups = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (piped, sent) = both(site, &pools, &empty, ours, 0)?;
        startups.0.push(piped.seconds);
        startups.1.push(sent.seconds);
    }
    (local.startup_seconds, through.startup_seconds) = (median(&startups.0), median(&startups.1));
    for round in 0..=rounds {
        let (piped, sent) = both(site, &pools, &source, ours, bytes)?;
        // The first one warms up what is read and where it is written.
        if round > 0 {
            local.rounds.push(piped);
            through.rounds.push(sent);
        }
    }
    Ok(Ok(vec![local, through]))
}

/// One snapshot by the local pipe, then through us.
fn both(
    site: &Site,
    pools: &Pools,
    source: &str,
    ours: Ours,
    bytes: u64,
) -> anyhow::Result<(Round, Round)> {
    let target = format!("{}/copy", pools.far);
    let done = |cost: Cost| -> anyhow::Result<Round> {
        // What is freed is gone before the next one begins.
        sh(&format!("zfs destroy -r {target}; sync; zpool list >/dev/null"))?;
        Ok(Round::new(bytes, cost, None))
    };
    let piped = format!("zfs send {source}@s | zfs receive -u {target}");
    let piped = done(transfer(None, &piped)?)?;
    let then = format!(" | zfs receive -u {target}");
    let lane = ours.lane();
    let (server, address) = site.receiver(Network::Loopback, &format!("--lane {lane}"), &then)?;
    let client = format!(
        "zfs send {source}@s | {} send --keys {} --to {address} --lane {lane} --compression 1",
        site.pipe.display(),
        site.keys().display()
    );
    let client = site.at(Network::Loopback, End::Near, &client);
    let sent = done(transfer(Some(&server), &client)?)?;
    Ok((piped, sent))
}

fn series(tool: &str, ours: bool) -> Series {
    Series {
        input: INPUT.into(),
        network: Network::Loopback,
        tool: tool.into(),
        ours,
        startup_seconds: 0.0,
        startup_cpu_seconds: 0.0,
        rounds: Vec::new(),
    }
}
