//! A look at the ZFS that is here, for `doctor`: versions and what they are known for, the pool, its features, the
//! root dataset. Reads only.
//!
//! Owns: which of these are worth a word, and the word. Leaves to others: the list of bad versions (`known`),
//! and what the store can do ([`crate::probe`]).

use flocker_lzc::Lzc;
use flocker_store::{DatasetName, Finding, StreamFeature};

use crate::known::{self, Version};
use crate::options::Engine;
use crate::probe::Dialect;
use crate::run::{Program, Runner, SystemRunner};
use crate::{ZfsOptions, parse, streams};

/// Features of a pool that are worth a word where they are missing. Those that only newer versions know, and that
/// few datasets use, are looked at when protection begins.
const RECEIVES: [StreamFeature; 5] = [
    StreamFeature::LargeBlocks,
    StreamFeature::Lz4Compress,
    StreamFeature::ZstdCompress,
    StreamFeature::LargeDnode,
    StreamFeature::Encryption,
];

/// Percent of a pool's room beyond which ZFS gets slow, and beyond which it is about to be full.
const FULL: (u64, u64) = (80, 95);

/// Looks at everything; `root` is the dataset below which the store works.
pub fn examine(options: &ZfsOptions, root: &DatasetName) -> Vec<Finding> {
    let runner = SystemRunner::new(options);
    let mut found = Vec::new();
    let dialect = match Dialect::find(&runner) {
        Ok(dialect) => dialect,
        Err(error) => {
            return vec![Finding::bad(
                error.to_string(),
                "install and load ZFS (Debian, contrib: zfs-dkms zfsutils-linux), or use a vault",
            )];
        }
    };
    if dialect.fuse {
        found.push(Finding::warning(
            format!("{}: filesystems only, no resume, no bookmarks, no raw sends", dialect.version),
            "it is for tests and for moving away from; use OpenZFS 2.1 or later",
        ));
    } else {
        versions(&runner, &mut found);
        engine(options, &mut found);
    }
    pool(&runner, root, dialect.fuse, &mut found);
    dataset(&runner, root, dialect.fuse, &mut found);
    if !rustix::process::geteuid().is_root() {
        found.push(Finding::warning(
            "not root: nothing can be mounted, so nothing can become primary here",
            "run the node as root, or keep only standbys here (docs/zfs.md, Permissions)",
        ));
    }
    found
}

/// What a command prints, if it can.
fn said(runner: &dyn Runner, program: Program, args: &[&str]) -> Result<String, String> {
    match runner.run(program, args) {
        Ok(done) if done.ending.is_success() => {
            Ok(String::from_utf8_lossy(&done.stdout).into_owned())
        }
        Ok(done) => Err(format!("`{}`: {}", done.command, done.stderr.trim())),
        Err(error) => Err(error.to_string()),
    }
}

fn versions(runner: &dyn Runner, found: &mut Vec<Finding>) {
    match said(runner, Program::Zfs, &["version"]) {
        Ok(text) => found.extend(of_versions(&text)),
        Err(error) => found.push(Finding::warning(error, "see what `zfs version` says")),
    }
}

/// The findings of what `zfs version` prints: the commands' version, then the module's.
fn of_versions(text: &str) -> Vec<Finding> {
    let mut lines = text.lines();
    let tools = lines.next().unwrap_or_default().trim().to_owned();
    let module = lines.next().map_or_else(|| tools.clone(), |line| line.trim().to_owned());
    let bare =
        |line: &str| line.trim_start_matches("zfs-kmod-").trim_start_matches("zfs-").to_owned();
    let mut found = Vec::new();
    if bare(&tools) == bare(&module) {
        found.push(Finding::good(format!("OpenZFS {}", bare(&tools))));
    } else {
        found.push(Finding::warning(
            format!("the commands are {}, the loaded module is {}", bare(&tools), bare(&module)),
            "reboot, or unload and load the module, after an upgrade",
        ));
    }
    let Some(version) = Version::parse(&module) else {
        found.push(Finding::warning(
            format!("{module} is no version that is known"),
            "see whether its release notes speak of data that are damaged",
        ));
        return found;
    };
    found.extend(known::problems(&version).map(|problem| {
        Finding::warning(
            format!("OpenZFS {} has openzfs #{}: {}", bare(&module), problem.issue, problem.what),
            problem.todo,
        )
    }));
    found
}

fn engine(options: &ZfsOptions, found: &mut Vec<Finding>) {
    if options.engine == Engine::Command {
        let what = "everything is done by the zfs command, as configured";
        found.push(Finding::good(what));
        return;
    }
    found.push(match Lzc::open() {
        Ok(_) => Finding::good("libzfs_core is used: a step starts no process"),
        Err(error) => Finding::warning(
            format!("libzfs_core cannot be used: {error}"),
            "the zfs command is used instead, which is slower (Debian: libzfs4linux brings it)",
        ),
    });
}

fn pool(runner: &dyn Runner, root: &DatasetName, fuse: bool, found: &mut Vec<Finding>) {
    let name = root.pool();
    let args = ["list", "-H", "-o", "health,capacity", name];
    match said(runner, Program::Zpool, &args) {
        Ok(text) => found.extend(of_health(name, &text)),
        Err(error) => {
            found.push(Finding::bad(error, format!("import or make the pool {name}")));
            return;
        }
    }
    if fuse {
        return;
    }
    match said(runner, Program::Zpool, &["get", "-H", "-o", "property,value", "all", name]) {
        Ok(text) => found.extend(of_features(name, &text)),
        Err(error) => found.push(Finding::warning(error, format!("see `zpool get all {name}`"))),
    }
}

fn of_health(name: &str, text: &str) -> Vec<Finding> {
    let mut words = text.split_whitespace();
    let health = words.next().unwrap_or("of unknown health");
    let percent = words.next().and_then(|w| w.trim_end_matches('%').parse::<u64>().ok());
    let mut found = Vec::new();
    let todo = format!("zpool status -x {name}");
    found.push(match health {
        "ONLINE" => Finding::good(format!("pool {name} is ONLINE")),
        "DEGRADED" => Finding::warning(format!("pool {name} is DEGRADED"), todo),
        other => Finding::bad(format!("pool {name} is {other}"), todo),
    });
    let Some(percent) = percent else { return found };
    let what = format!("pool {name} is {percent} % full");
    let todo = "make room, or add devices; a receive that meets the end of it fails";
    if percent >= FULL.1 {
        found.push(Finding::bad(what, todo));
    } else if percent >= FULL.0 {
        found.push(Finding::warning(what, todo));
    }
    found
}

/// From what `zpool get -H -o property,value all` prints.
fn of_features(name: &str, text: &str) -> Vec<Finding> {
    let states = streams::features_of_pool(text);
    let lacks = RECEIVES.iter().filter_map(|feature| {
        let what = feature.cause();
        match streams::receives(&states, *feature) {
            Some(true) => None,
            Some(false) => Some(Finding::warning(
                format!(
                    "pool {name} has feature {feature} disabled: it receives no streams with {what}"
                ),
                format!("zpool set feature@{feature}=enabled {name}"),
            )),
            None => Some(Finding::warning(
                format!(
                    "this ZFS does not know feature {feature}: it receives no streams with {what}"
                ),
                "upgrade it where the other side has such volumes",
            )),
        }
    });
    let lacks: Vec<_> = lacks.collect();
    if lacks.is_empty() {
        vec![Finding::good(format!("pool {name} receives every kind of stream that we send"))]
    } else {
        lacks
    }
}

fn dataset(runner: &dyn Runner, root: &DatasetName, fuse: bool, found: &mut Vec<Finding>) {
    let asked =
        if fuse { "mountpoint,readonly" } else { "mountpoint,readonly,encryption,keystatus" };
    let args = ["get", "-Hp", "-o", "property,source,value", asked, root.as_str()];
    match said(runner, Program::Zfs, &args) {
        Ok(text) => found.extend(of_root(root, &text)),
        Err(error) => found.push(Finding::bad(error, format!("zfs create -p {root}"))),
    }
}

fn of_root(root: &DatasetName, text: &str) -> Vec<Finding> {
    let all = parse::properties(text);
    let value = |name: &str| {
        all.iter().find(|(n, _)| n == name).map(|(_, p)| p.value.trim_end().to_owned())
    };
    let mut found = vec![Finding::good(format!("{root} is there"))];
    if value("readonly").as_deref() == Some("on") {
        found.push(Finding::warning(
            format!("{root} is read-only, and so is what inherits it"),
            format!("zfs set readonly=off {root}"),
        ));
    }
    if matches!(value("mountpoint").as_deref(), Some("none" | "legacy")) {
        found.push(Finding::warning(
            format!("{root} has no mountpoint: what is received below it has none to be mounted at either"),
            format!("zfs set mountpoint=/srv/flocker {root}"),
        ));
    }
    if value("keystatus").as_deref() == Some("unavailable") {
        found.push(Finding::bad(
            format!(
                "the key of {root} is not loaded: nothing below it can be mounted or received plain"
            ),
            format!("zfs load-key {root}"),
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use flocker_store::Level;

    fn levels(found: &[Finding]) -> Vec<Level> {
        found.iter().map(|f| f.level).collect()
    }

    #[test]
    fn a_good_version_is_good_and_a_bad_one_is_named_with_its_issue() {
        let text = include_str!("../../../tests/golden/zfs-version.txt");
        let found = of_versions(text);
        assert_eq!(levels(&found), [Level::Good], "{found:?}");
        let found = of_versions("zfs-2.2.1-1\nzfs-kmod-2.2.1-1\n");
        assert_eq!(levels(&found), [Level::Good, Level::Warning, Level::Warning]);
        assert!(found[1].what.contains("#15526") && found[1].todo.is_some());
        let found = of_versions("zfs-2.3.9-1\nzfs-kmod-2.2.1-1\n");
        assert_eq!(found[0].level, Level::Warning);
        assert!(found[1].what.contains("#15526"), "it is the module that counts");
        assert_eq!(levels(&of_versions("")), [Level::Good, Level::Warning]);
    }

    #[test]
    fn a_pool_in_trouble_or_nearly_full_is_said() {
        let of = |text| levels(&of_health("tank", text));
        assert_eq!(of("ONLINE\t12%\n"), [Level::Good]);
        assert_eq!(of("DEGRADED\t85%\n"), [Level::Warning, Level::Warning]);
        assert_eq!(of("SUSPENDED\t97\n"), [Level::Bad, Level::Bad]);
        assert_eq!(of("ONLINE\t-\n"), [Level::Good]);
    }

    #[test]
    fn a_feature_that_is_disabled_comes_with_the_command_that_enables_it() {
        let all = |state: &str| {
            let lines = RECEIVES.iter().map(|f| format!("feature@{f}\t{state}\n"));
            lines.collect::<String>()
        };
        assert_eq!(levels(&of_features("tank", &all("active"))), [Level::Good]);
        let one = all("enabled").replace("large_dnode\tenabled", "large_dnode\tdisabled");
        let found = of_features("tank", &one);
        assert_eq!(levels(&found), [Level::Warning]);
        let todo = found[0].todo.as_deref();
        assert_eq!(todo, Some("zpool set feature@large_dnode=enabled tank"));
        assert_eq!(of_features("tank", "size\t1\n").len(), RECEIVES.len());
    }

    #[test]
    fn a_root_that_cannot_be_used_says_what_to_set() {
        let root = DatasetName::new("tank/flocker").unwrap();
        let of = |text: &str| levels(&of_root(&root, text));
        assert_eq!(of("mountpoint\tlocal\t/srv\nreadonly\tdefault\toff\n"), [Level::Good]);
        assert_eq!(
            of("mountpoint\tlocal\tnone\nreadonly\tlocal\ton\nkeystatus\t-\tunavailable\n"),
            [Level::Good, Level::Warning, Level::Warning, Level::Bad]
        );
    }
}
