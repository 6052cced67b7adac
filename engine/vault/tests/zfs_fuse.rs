//! The vault between real ZFS pools, natively: zfs-fuse, the userspace ZFS in Debian.
//!
//! Needs root, `zfs-fuse`, `zfs` and `zpool`; without them it is skipped, loudly. Pools are files in a
//! temporary directory, and are destroyed at the end.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::*;
use flocker_store::{Guid, ReceiveSpec, Store};
use flocker_vault::Vault;

/// Runs a command and gives its stdout.
fn run(program: &str, args: &[&str]) -> Vec<u8> {
    let out =
        Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

fn receive_into_pool(stream: &[u8], dataset: &str) {
    let mut child = Command::new("zfs")
        .args(["receive", dataset])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("zfs receive");
    let fed = child.stdin.take().expect("stdin").write_all(stream);
    let out = child.wait_with_output().expect("zfs receive");
    assert!(
        out.status.success() && fed.is_ok(),
        "zfs receive {dataset}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Why the test cannot run here.
fn missing() -> Option<String> {
    if !rustix_is_root() {
        return Some("not root".into());
    }
    for program in ["zfs-fuse", "zfs", "zpool"] {
        if Command::new("sh")
            .args(["-c", &format!("command -v {program}")])
            .output()
            .is_ok_and(|o| !o.status.success())
        {
            return Some(format!("{program} is not installed"));
        }
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("there is no /dev/fuse".into());
    }
    if !answers() {
        // It puts itself into the background; others may use it too, so it stays.
        let _ = Command::new("zfs-fuse").status();
        for _ in 0..50 {
            if answers() {
                return None;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        return Some("zfs-fuse does not start".into());
    }
    None
}

fn answers() -> bool {
    Command::new("zpool").arg("list").output().is_ok_and(|o| o.status.success())
}

fn rustix_is_root() -> bool {
    run("id", &["-u"]).starts_with(b"0")
}

/// Compares two listings, and shows only the lines that differ.
fn same(left: &str, right: &str, what: &str) {
    let only = |a: &str, b: &str| -> Vec<String> {
        let b: std::collections::BTreeSet<&str> = b.lines().collect();
        a.lines().filter(|line| !b.contains(line)).map(str::to_owned).collect()
    };
    let (got, expected) = (only(left, right), only(right, left));
    assert!(left == right, "{what}:\n got {got:#?}\n expected {expected:#?}");
}

/// A pool in a file, destroyed when dropped.
struct Pool {
    name: String,
    mount: PathBuf,
}

impl Pool {
    fn new(dir: &Path, name: &str) -> Pool {
        let (image, mount) = (dir.join(format!("{name}.img")), dir.join(name));
        std::fs::File::create(&image).and_then(|f| f.set_len(256 << 20)).expect("an image");
        let (image, mountpoint) = (image.display().to_string(), mount.display().to_string());
        run("zpool", &["create", "-o", "cachefile=none", "-m", &mountpoint, name, &image]);
        // Looking at a dataset would otherwise be a change of it.
        run("zfs", &["set", "atime=off", name]);
        Pool { name: name.into(), mount }
    }

    fn send(&self, from: Option<&str>, to: &str) -> Vec<u8> {
        let to = format!("{}/{to}", self.name);
        match from {
            Some(from) => run("zfs", &["send", "-i", from, &to]),
            None => run("zfs", &["send", &to]),
        }
    }

    /// The tree of a dataset. Mounted anew: zfs-fuse remembers files that a receive has replaced.
    fn tree(&self, dataset: &str) -> String {
        let full = format!("{}/{dataset}", self.name);
        run("zfs", &["unmount", &full]);
        run("zfs", &["mount", &full]);
        listing(&self.mount.join(dataset))
    }

    fn guid(&self, snapshot: &str) -> Guid {
        let out = run(
            "zfs",
            &["get", "-Hp", "-o", "value", "guid", &format!("{}/{snapshot}", self.name)],
        );
        Guid(String::from_utf8_lossy(&out).trim().parse().expect("a guid"))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = Command::new("zpool").args(["destroy", &self.name]).status();
    }
}

/// Everything of a tree: type, mode, size, times, links, targets; then the content of every file.
fn listing(dir: &Path) -> String {
    let script = "find . -type d -printf '%y %m - %p %T@\n' -o -printf '%y %m %s %p %l %n %U %G %T@\n' | sort -k4
                  find . -type f -print0 | sort -z | xargs -0 sha256sum";
    let out = Command::new("sh").arg("-euc").arg(script).current_dir(dir).output().expect("sh");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn sh(dir: &Path, script: &str) {
    let out = Command::new("sh").arg("-euc").arg(script).current_dir(dir).output().expect("sh");
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
}

const STEPS: [&str; 4] = [
    "mkdir -p dir/sub/deeper few; head -c 900000 /dev/urandom > noise; seq 60000 > text
     i=0; while [ $i -lt 150 ]; do seq $i > dir/sub/f$i; i=$((i+1)); done
     truncate -s 4M sparse; printf x | dd of=sparse bs=1 seek=2500000 conv=notrunc status=none
     echo hello > dir/hello; chmod 4755 dir/hello; ln dir/hello dir/sub/hard; chown 12:34 few
     ln -s ../hello dir/sub/link; ln -s $(printf 'l%.0s' $(seq 180)) long-link; mkfifo dir/fifo
     : > empty; printf 'x' > one; head -c 700000 /dev/urandom > shrinks; head -c 300 /dev/urandom > grows",
    "i=0; while [ $i -lt 70 ]; do rm dir/sub/f$i; i=$((i+2)); done; rm empty one
     printf OVER | dd of=noise bs=1 seek=500000 conv=notrunc status=none
     truncate -s 100000 shrinks; head -c 600000 /dev/urandom >> grows; mv dir/sub moved; mv text moved/
     i=0; while [ $i -lt 40 ]; do head -c $((i*700+1)) /dev/urandom > few/n$i; i=$((i+1)); done
     truncate -s 2M sparse; ln moved/f1 second; touch -d '2003-04-05 06:07:08' moved/f3",
    "rm -r few moved/deeper; mkdir few; i=0; while [ $i -lt 60 ]; do ln -s t$i few/l$i; mkdir few/d$i; i=$((i+1)); done
     : > noise; echo small > shrinks; dd if=/dev/zero of=grows bs=1000 seek=2000 count=1 conv=notrunc status=none
     rm dir/fifo; head -c 50000 /dev/urandom > dir/fifo; chmod 600 dir/hello
     dd if=/dev/urandom of=sparse bs=4096 seek=900 count=3 conv=notrunc status=none",
    "rm -rf moved; seq 100000 > text; rm few/l1; echo last > few/l1; mv few/d5 few/d5-renamed",
];

#[test]
fn the_vault_stands_between_two_pools_and_what_arrives_is_what_was_sent() {
    const TEST: &str = "the_vault_stands_between_two_pools_and_what_arrives_is_what_was_sent";
    if let Some(reason) = missing() {
        return skip(TEST, &reason);
    }
    let dir = tempfile::tempdir().expect("a directory");
    let suffix = std::process::id();
    let one = Pool::new(dir.path(), &format!("vaultpool1-{suffix}"));
    let two = Pool::new(dir.path(), &format!("vaultpool2-{suffix}"));
    run("zfs", &["create", &format!("{}/d", one.name)]);
    let source = one.mount.join("d");
    let mut trees = Vec::new();
    for (at, step) in STEPS.iter().enumerate() {
        sh(&source, step);
        run("zfs", &["snapshot", &format!("{}/d@s{}", one.name, at + 1)]);
        trees.push(listing(&source));
    }

    // A full and two increments from real ZFS.
    let path = dir.path().join("v");
    let vault = Vault::create(&path).expect("a vault");
    let take = |vault: &Vault, from: Option<&str>, to: &str| {
        let stream = one.send(from, to);
        let name = format!("vault/{to}");
        let spec = ReceiveSpec { to_guid: one.guid(to), ..spec_for(&stream, &name) };
        let got = receive_spec(vault, &spec, &stream).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(got.guid, one.guid(to));
    };
    take(&vault, None, "d@s1");
    take(&vault, Some("@s1"), "d@s2");
    take(&vault, Some("@s2"), "d@s3");

    // One increment from the first straight to the third, to a pool that has the first from ZFS itself.
    let back = format!("{}/back", two.name);
    receive_into_pool(&one.send(None, "d@s1"), &format!("{back}@s1"));
    receive_into_pool(&send(&vault, Some("vault/d@s1"), "vault/d@s3"), &format!("{back}@s3"));
    same(&two.tree("back"), &trees[2], "s1 to s3");
    assert_eq!(two.guid("back@s3"), one.guid("d@s3"));

    // The first two snapshots go, the vault is opened again: a full of the third to another dataset.
    vault.destroy_snapshots(&[snap("vault/d@s1"), snap("vault/d@s2")]).expect("destroyed");
    vault.gc().expect("collected");
    drop(vault);
    let vault = Vault::open(&path).expect("opened again");
    vault.verify().expect("sound");
    receive_into_pool(&send(&vault, None, "vault/d@s3"), &format!("{}/full@s3", two.name));
    same(&two.tree("full"), &trees[2], "full of s3");

    // And on from there: the increments of the vault go onto both.
    take(&vault, Some("@s3"), "d@s4");
    let step = send(&vault, Some("vault/d@s3"), "vault/d@s4");
    for dataset in ["back", "full"] {
        receive_into_pool(&step, &format!("{}/{dataset}@s4", two.name));
        same(&two.tree(dataset), &trees[3], &format!("{dataset} at s4"));
    }
    // What ZFS itself makes of it goes back into the vault that has s3.
    sh(&two.mount.join("full"), "echo back > again; rm -r dir");
    run("zfs", &["snapshot", &format!("{}/full@s5", two.name)]);
    let stream = two.send(Some("@s4"), "full@s5");
    receive(&vault, "vault/d@s5", &stream).expect("and back");
    receive_into_pool(&send(&vault, Some("vault/d@s4"), "vault/d@s5"), &format!("{back}@s5"));
    same(&two.tree("back"), &two.tree("full"), "s5");
}

#[test]
fn real_zfs_refuses_a_directory_volume() {
    if let Some(reason) = missing() {
        return skip("real_zfs_refuses_a_directory_volume", &reason);
    }
    let dir = tempfile::tempdir().expect("a directory");
    let pool = Pool::new(dir.path(), &format!("vaultpool3-{}", std::process::id()));
    let vault = Vault::create(dir.path().join("v")).expect("a vault");
    vault.create(&name("vault/d"), flocker_store::DatasetKind::Directory).expect("created");
    common::take(&vault, "vault/d@1");
    let stream = send(&vault, None, "vault/d@1");
    let mut child = Command::new("zfs")
        .args(["receive", &format!("{}/x", pool.name)])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("zfs receive");
    let _ = child.stdin.take().expect("stdin").write_all(&stream);
    let out = child.wait_with_output().expect("zfs receive");
    assert!(!out.status.success());
    let left =
        Command::new("zfs").args(["list", &format!("{}/x", pool.name)]).output().expect("zfs");
    assert!(!left.status.success(), "nothing is left of it");
}
