//! A hot standby: at rest, readable through clones, and never overwritten when it went its own way.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use flocker_store::{Change, CloneAccess, Snapshot, StoreError};

use super::content::{self, write_round};
use super::{Check, Site, Trouble};
use crate::ensure;

/// The checks.
pub const CHECKS: &[Check] = &[
    ("a standby is unmounted, and no boot mounts it", at_rest),
    ("a clone of a standby is read while the next step is received", clone_while_receiving),
    ("what a standby has of its own is set aside, and the next step needs no resend", |s| {
        set_aside(s, false)
    }),
    ("a diverged raw standby is set aside without its key", |s| set_aside(s, true)),
    (
        "a fence is refused while another mount namespace has the dataset, and names it",
        foreign_namespace,
    ),
    ("a fence is refused while a file is open, and names the process", open_file),
    ("nothing written is proved, and a write is found", unwritten),
    ("a dataset given back is as it was found", given_back),
    ("a mount over a path in use is refused", path_in_use),
    ("quotas do not hinder a standby, and are back when it is promoted", limits),
];

fn pair(
    site: &Site,
) -> Result<(Snapshot, flocker_store::DatasetName, std::path::PathBuf), Trouble> {
    let (a, path) = site.filesystem("a", &[])?;
    write_round(&path, 0)?;
    let first = site.snapshot(&a, "s1")?;
    site.step(&first, &site.at("b"), false)?;
    Ok((first, site.at("b"), path))
}

fn at_rest(site: &Site) -> Result<String, Trouble> {
    let (_, b, _) = pair(site)?;
    let info = site.store.dataset(&b)?;
    ensure!(info.mounted_at.is_none() && !info.writable, "{info:?}");
    let canmount = site.get("canmount", b.as_str())?;
    ensure!(canmount == "noauto", "canmount={canmount}");
    // What zfs-mount.service runs at boot.
    site.run(&["zfs", "mount", "-a"])?;
    let info = site.store.dataset(&b)?;
    ensure!(info.mounted_at.is_none(), "mounted at boot: {info:?}");
    Ok(String::new())
}

fn clone_while_receiving(site: &Site) -> Result<String, Trouble> {
    let (first, b, path) = pair(site)?;
    let expect = content::tree(&path)?;
    let look = site.at("look");
    let place = site
        .store
        .clone_snapshot(&b.snapshot("s1")?, &look, CloneAccess::Writable)?
        .ok_or("no path")?;
    ensure!(content::tree(&place)? == expect, "the clone differs");
    write_round(&path, 1)?;
    let second = site.snapshot(first.name.dataset(), "s2")?;
    site.step(&second, &b, false)?;
    ensure!(content::tree(&place)? == expect, "the clone changed");
    site.store.remove_clone(&look)?;
    site.store.remove_clone(&look)?;
    let other = site.store.remove_clone(&b).err();
    ensure!(matches!(other, Some(StoreError::NotCapable { .. })), "{other:?}");
    Ok(String::new())
}

fn set_aside(site: &Site, raw: bool) -> Result<String, Trouble> {
    let a = site.at("a");
    let path = if raw {
        site.needs(site.store.capabilities().raw_send, "encryption")?;
        fs::write("/tmp/flocker-suite.passphrase", "correct horse battery")?;
        let options = [
            "encryption=on",
            "keyformat=passphrase",
            "keylocation=file:///tmp/flocker-suite.passphrase",
        ];
        site.filesystem("a", &options)?.1
    } else {
        site.filesystem("a", &[])?.1
    };
    write_round(&path, 0)?;
    let first = site.snapshot(&a, "s1")?;
    let b = site.at("b");
    site.step(&first, &b, raw)?;
    let second = site.snapshot(&a, "s2")?;
    site.step(&second, &b, raw)?;
    // It went its own way: a snapshot of its own, and, where its key is known, data.
    if !raw {
        let own = site.store.activate(&b)?.ok_or("no path")?;
        fs::write(own.join("only here"), "precious")?;
        site.store.fence(&b)?;
    }
    site.snapshot(&b, "foreign")?;
    write_round(&path, 1)?;
    let third = site.snapshot(&a, "s3")?;
    let refused = site.pass(
        &site.send_spec(Some(&second), &third, raw),
        &site.receive_spec(Some(second.guid), &third, &b)?,
    );
    let refused = refused.err().ok_or("a diverged standby was received into")?;
    ensure!(
        matches!(refused.downcast_ref(), Some(StoreError::Modified { .. })),
        "a diverged standby: {refused}"
    );
    let aside = site.at("b-diverged");
    ensure!(site.store.set_aside(&b.snapshot("s2")?, &aside)?, "nothing was beyond s2");
    ensure!(!site.store.set_aside(&b.snapshot("s2")?, &site.at("b-again"))?, "set aside twice");
    let bytes = site.step(&third, &b, raw)?;
    let kept = site.inventory(&aside)?;
    ensure!(kept.snapshots.iter().any(|s| s.name.short() == "foreign"), "{kept:?}");
    if !raw {
        let place = site.store.activate(&aside)?.ok_or("no path")?;
        ensure!(fs::read_to_string(place.join("only here"))? == "precious", "it is lost");
        site.store.fence(&aside)?;
        let expect = content::tree(&path)?;
        let got = content::tree(&site.store.activate(&b)?.ok_or("no path")?)?;
        ensure!(got == expect, "{b} has {got}, {a} has {expect}");
        site.store.fence(&b)?;
    }
    Ok(format!("next step {bytes} bytes"))
}

fn holder_named(error: Option<StoreError>, pid: u32) -> Result<String, Trouble> {
    let Some(StoreError::Busy { holders, .. }) = &error else {
        return Err(format!("{error:?}").into());
    };
    ensure!(holders.iter().any(|h| h.pid == pid), "{holders:?} does not name pid {pid}");
    Ok(error.map(|e| e.to_string()).unwrap_or_default())
}

fn foreign_namespace(site: &Site) -> Result<String, Trouble> {
    let (a, path) = site.filesystem("a", &[])?;
    let mut other = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", "echo in; exec sleep 300"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut word = [0; 3];
    std::io::Read::read_exact(&mut other.stdout.take().ok_or("no pipe")?, &mut word)?;
    let said = holder_named(site.store.fence(&a).err(), other.id());
    ensure!(site.store.dataset(&a)?.writable, "a refused fence has changed something");
    fs::write(path.join("f"), "still writable")?;
    other.kill()?;
    other.wait()?;
    site.store.fence(&a)?;
    said
}

fn open_file(site: &Site) -> Result<String, Trouble> {
    let (a, path) = site.filesystem("a", &[])?;
    let mut writer = Command::new("sh")
        .args(["-c", &format!("exec 3>'{}'; echo in; exec sleep 300", path.join("f").display())])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut word = [0; 3];
    std::io::Read::read_exact(&mut writer.stdout.take().ok_or("no pipe")?, &mut word)?;
    let said = holder_named(site.store.fence(&a).err(), writer.id());
    writer.kill()?;
    writer.wait()?;
    site.store.fence(&a)?;
    said
}

fn unwritten(site: &Site) -> Result<String, Trouble> {
    let (a, path) = site.filesystem("a", &[])?;
    write_round(&path, 0)?;
    let first = site.snapshot(&a, "s1")?;
    ensure!(site.store.changed_since(&first.name)? != Change::Unknown, "nothing is known");
    site.store.fence(&a)?;
    let last = site.snapshot(&a, "s2")?;
    site.store.verify_unwritten(&last.name)?;
    let place = site.store.activate(&a)?.ok_or("no path")?;
    let mut file = fs::File::create(place.join("late"))?;
    file.write_all(b"x")?;
    drop(file);
    site.store.fence(&a)?;
    let found = site.store.verify_unwritten(&last.name).err();
    ensure!(matches!(found, Some(StoreError::Modified { .. })), "{found:?}");
    // Frees count, too: nothing but a deletion.
    let place = site.store.activate(&a)?.ok_or("no path")?;
    let before = site.snapshot(&a, "s3")?;
    fs::remove_file(place.join("late"))?;
    site.store.fence(&a)?;
    let found = site.store.verify_unwritten(&before.name).err();
    ensure!(matches!(found, Some(StoreError::Modified { .. })), "a deletion: {found:?}");
    Ok(String::new())
}

fn given_back(site: &Site) -> Result<String, Trouble> {
    let a = site.at("a");
    site.run(&["zfs", "create", a.as_str()])?;
    let shown = || -> Result<String, Trouble> {
        site.run(&[
            "zfs",
            "get",
            "-Hp",
            "-o",
            "property,value,source",
            "canmount,readonly,mountpoint",
            a.as_str(),
        ])
    };
    let before = shown()?;
    site.store.activate(&a)?;
    site.store.fence(&a)?;
    site.store.activate(&a)?;
    site.store.fence(&a)?;
    ensure!(shown()? != before, "a fence that changes nothing");
    site.store.give_back(&a)?;
    // `canmount` cannot be inherited: it is `on` again, set here.
    let normal = |text: String| text.replace("on\tlocal", "on\tdefault");
    let after = shown()?;
    ensure!(normal(after.clone()) == normal(before.clone()), "{before} became {after}");
    Ok(String::new())
}

fn path_in_use(site: &Site) -> Result<String, Trouble> {
    let (_, b, _) = pair(site)?;
    let place = std::path::PathBuf::from(site.get("mountpoint", b.as_str())?);
    fs::create_dir_all(&place)?;
    fs::write(place.join("in the way"), "x")?;
    let error = site.store.activate(&b).err();
    ensure!(matches!(error, Some(StoreError::Busy { .. })), "{error:?}");
    fs::remove_file(place.join("in the way"))?;
    site.store.activate(&b)?;
    Ok(error.map(|e| e.to_string()).unwrap_or_default())
}

fn limits(site: &Site) -> Result<String, Trouble> {
    let (first, b, path) = pair(site)?;
    let a = first.name.dataset().clone();
    let names = "quota,refquota,reservation,refreservation";
    let shown = |of: &str| site.run(&["zfs", "get", "-Hp", "-o", "property,value", names, of]);
    site.run(&["zfs", "set", "refquota=20M", "quota=90M", "refreservation=9M", a.as_str()])?;
    let before = shown(a.as_str())?;
    // It becomes the standby, and gets more than it might ever hold as a primary.
    site.store.fence(&a)?;
    let last = site.snapshot(&a, "s2")?;
    site.step(&last, &b, false)?;
    let lifted = shown(a.as_str())?;
    ensure!(lifted.lines().all(|line| line.ends_with("\t0")), "at rest it has {lifted}");
    let place = site.store.activate(&b)?.ok_or("no path")?;
    fs::write(place.join("bulk"), content::noise(4, 30 << 20))?;
    fs::File::open(place.join("bulk"))?.sync_all()?;
    let third = site.snapshot(&b, "s3")?;
    site.step(&third, &a, false)?;
    fs::remove_file(place.join("bulk"))?;
    let fourth = site.snapshot(&b, "s4")?;
    site.step(&fourth, &a, false)?;
    site.store.fence(&b)?;
    ensure!(!path.join("bulk").exists(), "{a} is mounted");
    site.store.activate(&a)?;
    let after = shown(a.as_str())?;
    ensure!(after == before, "{before} became {after}");
    // Outgrown meanwhile: it comes up all the same, and what fits is back.
    site.store.fence(&a)?;
    site.run(&[
        "zfs",
        "set",
        "flocker-repl:was-limits=quota=1048576,refquota=20971520",
        a.as_str(),
    ])?;
    site.store.activate(&a)?;
    let (quota, kept) =
        (site.get("quota", a.as_str())?, site.get("flocker-repl:was-limits", a.as_str())?);
    ensure!(quota == "0" && kept == "quota=1048576", "quota {quota}, remembered {kept}");
    ensure!(site.get("refquota", a.as_str())? == "20971520", "what fits is not back");
    Ok(String::new())
}
