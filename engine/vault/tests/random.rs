//! Random trees, changed at random over several snapshots, replicated in random steps: they arrive equal.

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use common::*;
use flocker_store::{DatasetKind, Store};
use flocker_vault::Vault;
use proptest::prelude::*;

/// One change of a tree. Paths are made of few names, so that they meet often.
#[derive(Debug, Clone)]
enum Op {
    Write { path: Vec<u8>, offset: u32, len: u32, fill: u8 },
    Truncate { path: Vec<u8>, size: u32 },
    Remove { path: Vec<u8> },
    MakeDir { path: Vec<u8> },
    Rename { from: Vec<u8>, to: Vec<u8> },
    Link { from: Vec<u8>, to: Vec<u8> },
    Symlink { path: Vec<u8>, target: u8 },
    Fifo { path: Vec<u8> },
    Mode { path: Vec<u8>, mode: u32 },
    Time { path: Vec<u8>, seconds: u32 },
    Xattr { path: Vec<u8>, len: u16 },
}

fn path_of(root: &Path, path: &[u8]) -> PathBuf {
    let names = path.iter().map(|b| char::from(b'a' + b % 4).to_string());
    root.join(names.collect::<PathBuf>())
}

impl Op {
    /// Does it as far as it is possible; what is not is left.
    fn apply(&self, root: &Path) {
        let at = |path: &[u8]| path_of(root, path);
        let _ = match self {
            Op::Write { path, offset, len, fill } => std::fs::File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(not_fifo(&at(path)))
                .and_then(|file| {
                    let bytes: Vec<u8> =
                        (0..*len).map(|i| fill.wrapping_mul((i >> 9) as u8)).collect();
                    file.write_all_at(&bytes, (*offset).into())
                }),
            Op::Truncate { path, size } => std::fs::File::options()
                .write(true)
                .open(not_fifo(&at(path)))
                .and_then(|file| file.set_len((*size).into())),
            Op::Remove { path } => match at(path).is_dir() && !at(path).is_symlink() {
                true => std::fs::remove_dir_all(at(path)),
                false => std::fs::remove_file(at(path)),
            },
            Op::MakeDir { path } => std::fs::create_dir(at(path)),
            Op::Rename { from, to } => std::fs::rename(at(from), at(to)),
            Op::Link { from, to } => std::fs::hard_link(at(from), at(to)),
            Op::Symlink { path, target } => {
                std::os::unix::fs::symlink(format!("nowhere/{target}"), at(path))
            }
            Op::Fifo { path } => std::process::Command::new("mkfifo")
                .arg(at(path))
                .stderr(std::process::Stdio::null())
                .status()
                .map(drop),
            Op::Mode { path, mode } => match at(path).is_symlink() {
                true => Ok(()),
                false => std::fs::set_permissions(
                    at(path),
                    std::fs::Permissions::from_mode(mode | 0o700),
                ),
            },
            Op::Time { path, seconds } => {
                std::fs::File::open(not_fifo(&at(path))).and_then(|file| {
                    file.set_modified(UNIX_EPOCH + Duration::new((*seconds).into(), 5))
                })
            }
            Op::Xattr { path, len } => rustix::fs::setxattr(
                not_fifo(&at(path)),
                "user.test",
                &vec![b'v'; usize::from(*len)],
                rustix::fs::XattrFlags::empty(),
            )
            .map_err(Into::into),
        };
    }
}

/// The path, unless opening it would wait for somebody at the other end.
fn not_fifo(path: &Path) -> PathBuf {
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() && !meta.is_dir() => PathBuf::from("/nowhere/at/all"),
        _ => path.to_owned(),
    }
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let path = || prop::collection::vec(0..4u8, 1..4);
    let size = || prop_oneof![0..2000u32, 0..300_000u32, Just(131_072u32), Just(131_073u32)];
    let op = prop_oneof![
        6 => (path(), size(), size(), 0..4u8)
            .prop_map(|(path, offset, len, fill)| Op::Write { path, offset, len, fill }),
        1 => (path(), size()).prop_map(|(path, size)| Op::Truncate { path, size }),
        2 => path().prop_map(|path| Op::Remove { path }),
        4 => path().prop_map(|path| Op::MakeDir { path }),
        4 => (path(), path()).prop_map(|(from, to)| Op::Rename { from, to }),
        2 => (path(), path()).prop_map(|(from, to)| Op::Link { from, to }),
        1 => (path(), 0..3u8).prop_map(|(path, target)| Op::Symlink { path, target }),
        1 => path().prop_map(|path| Op::Fifo { path }),
        1 => (path(), 0..0o1000u32).prop_map(|(path, mode)| Op::Mode { path, mode }),
        1 => (path(), any::<u32>()).prop_map(|(path, seconds)| Op::Time { path, seconds }),
        1 => (path(), 0..2500u16).prop_map(|(path, len)| Op::Xattr { path, len }),
    ];
    prop::collection::vec(op, 1..14)
}

#[derive(Debug, Clone)]
struct Round {
    ops: Vec<Op>,
    /// Whether a step is sent now, or left to the next.
    send: bool,
    /// Whether the standby is checked out in between.
    prepare: bool,
    /// Whether the roles are swapped.
    swap: bool,
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let round = (ops(), prop::bool::weighted(0.7), any::<bool>(), prop::bool::weighted(0.3));
    let round = round.prop_map(|(ops, send, prepare, swap)| Round { ops, send, prepare, swap });
    prop::collection::vec(round, 1..6)
}

fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path).expect("metadata");
        let mut content = Vec::new();
        if meta.is_file() {
            content = std::fs::read(&path).expect("content");
        } else if meta.is_symlink() {
            content =
                std::fs::read_link(&path).expect("target").into_os_string().into_encoded_bytes();
        } else if meta.is_dir() {
            todo.extend(std::fs::read_dir(&path).expect("dir").flatten().map(|e| e.path()));
        }
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        let sum: u64 =
            content.iter().fold(7, |sum, b| sum.wrapping_mul(31).wrapping_add((*b).into()));
        let mut value = vec![0; 70_000];
        let xattr = rustix::fs::lgetxattr(&path, "user.test", &mut value[..]).ok();
        let line = format!(
            "{:o} {links} {}.{} len {} sum {sum:x} xattr {xattr:?}",
            meta.mode(),
            meta.mtime(),
            meta.mtime_nsec(),
            content.len(),
        );
        found.insert(path.strip_prefix(root).expect("below").to_owned(), line);
    }
    found
}

fn live(vault: &Vault) -> PathBuf {
    vault.activate(&name("vault/d")).expect("activate").expect("a path")
}

fn check(rounds: &[Round]) {
    let ((_a, a), (_b, b)) = (new_vault(), new_vault());
    a.create(&name("vault/d"), DatasetKind::Directory).expect("created");
    let (mut from, mut to) = (&a, &b);
    let mut base: Option<String> = None;
    for (at, round) in rounds.iter().enumerate() {
        let root = live(from);
        for op in &round.ops {
            op.apply(&root);
        }
        let now = format!("vault/d@{at}");
        let expected = listing(&root);
        if round.swap {
            from.fence(&name("vault/d")).expect("fenced");
        }
        take(from, &now);
        if round.swap {
            from.verify_unwritten(&snap(&now)).expect("unwritten");
        }
        if !(round.send || round.swap) {
            continue;
        }
        receive(to, &now, &send(from, base.as_deref(), &now)).expect("received");
        if round.prepare {
            to.prepare(&name("vault/d")).expect("prepared");
        }
        let (objects, there) = (from.objects(&snap(&now)), to.objects(&snap(&now)));
        assert_eq!(objects.expect("objects"), there.expect("objects"), "round {at}");
        base = Some(now);
        if round.swap {
            assert_eq!(listing(&live(to)), expected, "round {at}");
            std::mem::swap(&mut from, &mut to);
        }
    }
    let expected = listing(&live(from));
    take(from, "vault/d@last");
    receive(to, "vault/d@last", &send(from, base.as_deref(), "vault/d@last")).expect("received");
    assert_eq!(listing(&live(to)), expected);
    to.verify().expect("sound");
}

/// Trees tried: some seconds by default, more where `PROPTEST_CASES` says so.
fn cases() -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok();
    asked.and_then(|cases| cases.parse().ok()).unwrap_or(30)
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 300, ..ProptestConfig::with_cases(cases()) })]
    #[test]
    fn a_tree_arrives_equal_whatever_was_done_to_it_and_in_whatever_steps(rounds in rounds()) {
        check(&rounds);
    }
}
