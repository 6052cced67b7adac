//! Every kind of data, there, back and there again, with the contents compared each time.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use flocker_store::{DatasetName, Guid};

use super::content::{self, write_round};
use super::{Check, Site, Trouble};
use crate::ensure;

/// The checks.
pub const CHECKS: &[Check] = &[
    ("a filesystem goes there, back and there again", |s| filesystem(s, &[])),
    ("records of 1 MiB go there, back and there again", |s| {
        filesystem(s, &["recordsize=1M", "compression=zstd"])
    }),
    ("records that are enlarged later go there, back and there again", enlarged),
    ("large dnodes go there, back and there again", |s| {
        filesystem(s, &["dnodesize=auto", "xattr=sa"])
    }),
    ("small compressed blocks go there, back and there again", |s| {
        filesystem(s, &["recordsize=4k", "compression=gzip-9"])
    }),
    ("an encrypted filesystem goes raw there, back and there again", encrypted),
    ("an unencrypted filesystem goes below an encrypted one and back", below_encrypted),
    ("a zvol goes there, back and there again", zvol),
    ("a clone is one there, too, and goes back and there again", |s| clone(s, false)),
    ("a clone of an encrypted filesystem is one there, too", |s| clone(s, true)),
    ("datasets with spaces, colons and long names go there and back", odd_names),
];

const PASSPHRASE: &str = "/tmp/flocker-suite.passphrase";

/// Two datasets that change roles.
struct Swap<'a> {
    site: &'a Site,
    raw: bool,
    steps: u64,
}

impl Swap<'_> {
    /// The final delta of a change of primary, and the first write on the other side.
    fn filesystem(&mut self, from: &DatasetName, to: &DatasetName) -> Result<(), Trouble> {
        let store = &self.site.store;
        let path = store.activate(from)?.ok_or("no path")?;
        let expect = content::tree(&path)?;
        self.hand_over(from, to)?;
        if self.raw && self.site.get("keystatus", to.as_str())? == "unavailable" {
            load_key(self.site, to)?;
        }
        let path = store.activate(to)?.ok_or("no path")?;
        let got = content::tree(&path)?;
        ensure!(got == expect, "step {}: {to} has {got}, {from} had {expect}", self.steps);
        write_round(&path, self.steps)
    }

    fn hand_over(&mut self, from: &DatasetName, to: &DatasetName) -> Result<(), Trouble> {
        self.steps += 1;
        let store = &self.site.store;
        store.fence(from)?;
        let last = self.site.snapshot(from, &format!("f{}", self.steps))?;
        self.site.step(&last, to, self.raw)?;
        store.verify_unwritten(&last.name)?;
        let info = store.dataset(from)?;
        ensure!(!info.writable, "{from} is fenced and writable");
        Ok(())
    }
}

fn there_back_there(
    site: &Site,
    a: &DatasetName,
    path: &Path,
    raw: bool,
) -> Result<String, Trouble> {
    let b = site.at("b");
    write_round(path, 0)?;
    let first = site.snapshot(a, "s1")?;
    let full = site.step(&first, &b, raw)?;
    write_round(path, 1)?;
    let second = site.snapshot(a, "s2")?;
    let step = site.step(&second, &b, raw)?;
    let mut swap = Swap { site, raw, steps: 1 };
    swap.filesystem(a, &b)?;
    swap.filesystem(&b, a)?;
    swap.filesystem(a, &b)?;
    Ok(format!("full {full}, step {step} bytes"))
}

fn filesystem(site: &Site, options: &[&str]) -> Result<String, Trouble> {
    let (a, path) = site.filesystem("a", options)?;
    there_back_there(site, &a, &path, false)
}

/// openzfs #18101: the first stream has no large blocks, later ones have, in either direction.
fn enlarged(site: &Site) -> Result<String, Trouble> {
    let (a, path) = site.filesystem("a", &[])?;
    let b = site.at("b");
    write_round(&path, 0)?;
    let first = site.snapshot(&a, "s1")?;
    site.step(&first, &b, false)?;
    site.run(&["zfs", "set", "recordsize=1M", a.as_str()])?;
    let mut swap = Swap { site, raw: false, steps: 1 };
    for (n, (from, to)) in [(&a, &b), (&b, &a), (&a, &b)].into_iter().enumerate() {
        let path = site.store.activate(from)?.ok_or("no path")?;
        fs::write(path.join(format!("large-{n}")), content::noise(n as u64, 2 << 20))?;
        swap.filesystem(from, to)?;
        // What came keeps its size; what is written there has that of its own dataset.
        site.run(&["zfs", "set", "recordsize=1M", to.as_str()])?;
    }
    Ok(String::new())
}

fn load_key(site: &Site, dataset: &DatasetName) -> Result<(), Trouble> {
    let location = format!("file://{PASSPHRASE}");
    // A clone has its origin's key, and so has its replica.
    let root = site.get("encryptionroot", dataset.as_str())?;
    site.run(&["zfs", "load-key", "-L", &location, &root])?;
    Ok(())
}

fn make_encrypted(site: &Site, leaf: &str) -> Result<(DatasetName, PathBuf), Trouble> {
    site.needs(site.store.capabilities().raw_send, "encryption")?;
    fs::write(PASSPHRASE, "correct horse battery")?;
    let location = format!("keylocation=file://{PASSPHRASE}");
    site.filesystem(leaf, &["encryption=aes-256-gcm", "keyformat=passphrase", &location])
}

fn encrypted(site: &Site) -> Result<String, Trouble> {
    let (a, path) = make_encrypted(site, "a")?;
    ensure!(site.store.dataset(&a)?.encrypted, "an encrypted dataset is not told as one");
    let first = site.snapshot(&a, "s0")?;
    let b = site.at("b");
    site.step(&first, &b, true)?;
    let status = site.get("keystatus", b.as_str())?;
    ensure!(status == "unavailable", "the standby's key is {status}");
    ensure!(site.store.dataset(&b)?.encrypted, "the standby is not encrypted");
    there_back_there(site, &a, &path, true)
}

/// The snapshots of a dataset that something is a clone of.
fn cloned(site: &Site, of: &DatasetName) -> Result<BTreeSet<Guid>, Trouble> {
    Ok(site.store.inventory_with_clones(of)?.cloned)
}

fn clone(site: &Site, raw: bool) -> Result<String, Trouble> {
    site.needs(site.store.capabilities().clones, "clones")?;
    let (a, path) = match raw {
        true => make_encrypted(site, "a")?,
        false => site.filesystem("a", &[])?,
    };
    write_round(&path, 0)?;
    let golden = site.snapshot(&a, "golden")?;
    let replica = site.at("b");
    let full = site.step(&golden, &replica, raw)?;
    let (c, d) = (site.at("c"), site.at("d"));
    site.run(&["zfs", "clone", &golden.name.to_string(), c.as_str()])?;
    let path = site.store.activate(&c)?.ok_or("no path")?;
    fs::write(path.join("of the clone"), "its own")?;
    let first = site.snapshot(&c, "s1")?;
    ensure!(cloned(site, &a)?.contains(&golden.guid), "nobody says that {a} is cloned");
    let mut receive = site.receive_spec(Some(golden.guid), &first, &d)?;
    receive.origin = Some(replica.snapshot("golden")?);
    let (received, bytes) = site.pass(&site.send_spec(Some(&golden), &first, raw), &receive)?;
    ensure!(received.guid == first.guid, "received {} for {}", received.guid, first.guid);
    ensure!(bytes < full, "the clone took {bytes} bytes, its origin {full}");
    let origin = site.store.dataset(&d)?.origin.map(|o| (o.name, o.guid));
    ensure!(origin == Some((replica.snapshot("golden")?, golden.guid)), "{d} is of {origin:?}");
    ensure!(cloned(site, &replica)?.contains(&golden.guid), "nobody says that {replica} is cloned");
    let kept = site.store.destroy_snapshots(&[replica.snapshot("golden")?]);
    ensure!(kept.is_err(), "the origin of a clone was destroyed");
    let mut swap = Swap { site, raw, steps: 1 };
    swap.filesystem(&c, &d)?;
    swap.filesystem(&d, &c)?;
    swap.filesystem(&c, &d)?;
    // Their origins change roles, too.
    swap.filesystem(&a, &replica)?;
    swap.filesystem(&replica, &a)?;
    Ok(format!("origin {full}, clone {bytes} bytes"))
}

fn below_encrypted(site: &Site) -> Result<String, Trouble> {
    make_encrypted(site, "locked")?;
    let (a, path) = site.filesystem("a", &[])?;
    write_round(&path, 0)?;
    let first = site.snapshot(&a, "s1")?;
    let b = site.at("locked").child("b")?;
    site.step(&first, &b, false)?;
    let encryption = site.get("encryption", b.as_str())?;
    ensure!(encryption == "aes-256-gcm", "it is received with encryption={encryption}");
    let mut swap = Swap { site, raw: false, steps: 1 };
    swap.filesystem(&a, &b)?;
    swap.filesystem(&b, &a)?;
    swap.filesystem(&a, &b)?;
    Ok(String::new())
}

const VOLUME_BYTES: u64 = 32 << 20;

fn write_volume(path: &Path, round: u64) -> Result<(), Trouble> {
    let device = fs::OpenOptions::new().write(true).open(path)?;
    for n in 0..12 {
        let at = (round * 7 + n * 5) % 61 * 524_288;
        device.write_all_at(&content::noise(round * 100 + n, 40_960), at)?;
    }
    device.sync_all()?;
    Ok(())
}

fn zvol(site: &Site) -> Result<String, Trouble> {
    let can = site.store.capabilities().live_kinds.contains(&flocker_store::DatasetKind::Zvol);
    site.needs(can, "zvols")?;
    let (mut a, mut b) = (site.at("a"), site.at("b"));
    site.run(&["zfs", "create", "-V", "32M", "-o", "volblocksize=16k", a.as_str()])?;
    let node = site.store.activate(&a)?.ok_or("no path")?;
    write_volume(&node, 0)?;
    let first = site.snapshot(&a, "s1")?;
    let full = site.step(&first, &b, false)?;
    let mut swap = Swap { site, raw: false, steps: 1 };
    for round in 1..4 {
        let node = site.store.activate(&a)?.ok_or("no path")?;
        write_volume(&node, round)?;
        let expect = content::device(&node, VOLUME_BYTES)?;
        swap.hand_over(&a, &b)?;
        ensure!(fs::OpenOptions::new().write(true).open(&node).is_err(), "{a} opens for writing");
        let node = site.store.activate(&b)?.ok_or("no path")?;
        let got = content::device(&node, VOLUME_BYTES)?;
        ensure!(got == expect, "round {round}: {b} has {got}, {a} had {expect}");
        std::mem::swap(&mut a, &mut b);
    }
    Ok(format!("full {full} bytes"))
}

fn odd_names(site: &Site) -> Result<String, Trouble> {
    let long = "x".repeat(200usize.saturating_sub(site.root.as_str().len() + 50));
    for (n, leaf) in ["with space", "with:colon", "-dash.dot_", &long].into_iter().enumerate() {
        let (a, path) = site.filesystem(leaf, &[])?;
        fs::write(path.join("file"), leaf)?;
        fs::File::open(path.join("file"))?.sync_all()?;
        let first = site.snapshot(&a, "auto:2026 11.26")?;
        let b = site.at(&format!("to {n}")).child(leaf)?;
        site.step(&first, &b, false)?;
        let mut swap = Swap { site, raw: false, steps: 1 };
        swap.filesystem(&a, &b)?;
        swap.filesystem(&b, &a)?;
    }
    Ok(String::new())
}
