//! What is measured: which streams, over what, by whom.

use std::path::{Path, PathBuf};

use flocker_transport::Compression::{Adaptive, Level, Off};
use flocker_transport::LaneMode::{Quic, Tls};

use crate::contenders::{Contender, Ours};
use crate::site::{Network, Site, says};

pub(crate) const NOISE: &str = "incompressible";
pub(crate) const TEXT: &str = "semi-compressible (programs and texts)";
pub(crate) const DATABASE: &str = "a database (pgbench)";
pub(crate) const LZ4: &str = "send -c, lz4";
pub(crate) const ZSTD: &str = "send -c, zstd";
pub(crate) const COPIES: &str = "half of the records are copies";

/// A part of the run that can be asked for by name.
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) input: &'static str,
    /// As `flocker-bench-pipe make` calls it; `None`: the database.
    pub(crate) kind: Option<&'static str>,
    /// Its size at least, in MiB, whatever was asked for.
    pub(crate) least_mib: u64,
    pub(crate) network: Network,
    pub(crate) contenders: Vec<Contender>,
}

/// Names of the parts that are no transfers of a stream.
pub(crate) const LATENCY: &str = "latency";
pub(crate) const FUSE: &str = "zfs-fuse";

pub(crate) fn parts() -> Vec<Part> {
    use Contender::{Cat, Mbuffer, Ssh, Syncoid, ZstdSsh};
    let part = |name, input, kind, network, contenders| Part {
        name,
        input,
        kind,
        least_mib: 0,
        network,
        contenders,
    };
    let stored = |lane| Ours::over(lane, Off);
    let packed = |lane| Ours::over(lane, Level(1));
    let over_wire = || vec![Ssh, stored(Tls), stored(Quic)];
    let adaptive = |lane| Ours::over(lane, Adaptive);
    let compressing = || vec![Cat, Ssh, ZstdSsh, Syncoid, packed(Tls), packed(Quic), adaptive(Tls)];
    vec![
        part(
            "noise",
            NOISE,
            Some("noise"),
            Network::Loopback,
            vec![
                Cat,
                Ssh,
                Mbuffer,
                stored(Tls),
                packed(Tls),
                Ours::with_dedup(Tls, Level(1)),
                Ours::volumes(Tls, 1),
                Ours::volumes(Tls, 2),
            ],
        ),
        part("quic-1500", NOISE, Some("noise"), Network::Ethernet, over_wire()),
        part("quic-jumbo", NOISE, Some("noise"), Network::Jumbo, over_wire()),
        part("text", TEXT, Some("text"), Network::Loopback, compressing()),
        part("database", DATABASE, None, Network::Loopback, compressing()),
        part(
            "lz4",
            LZ4,
            Some("lz4"),
            Network::Loopback,
            vec![Cat, Ssh, adaptive(Tls), adaptive(Quic)],
        ),
        part(
            "zstd",
            ZSTD,
            Some("zstd"),
            Network::Loopback,
            vec![Cat, Ssh, adaptive(Tls), adaptive(Quic)],
        ),
        Part {
            // Four times the memory that a node may take, and a little: nothing that is in memory can explain what is
            // found again.
            least_mib: 5 * 256,
            ..part(
                "dedup",
                COPIES,
                Some("copies"),
                Network::Loopback,
                vec![packed(Tls), Ours::with_dedup(Tls, Level(1))],
            )
        },
    ]
}

/// Makes the stream of a part; why not, where it cannot be.
pub(crate) fn make(
    site: &Site,
    part: &Part,
    mib: u64,
    database: Option<&Path>,
) -> anyhow::Result<Result<PathBuf, String>> {
    let Some(kind) = part.kind else {
        return Ok(database
            .map(Path::to_owned)
            .ok_or_else(|| "no stream of a database was given (--database)".to_owned()));
    };
    let file = site.path(&format!("{kind}.zstream"));
    if !file.exists() {
        let mib = mib.max(part.least_mib);
        says(&format!("{} make {kind} {} --mib {mib}", site.pipe.display(), file.display()))?;
    }
    Ok(Ok(file))
}
