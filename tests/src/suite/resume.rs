//! A receive that breaks off anywhere goes on from its token, and nothing is sent twice but what was on its way.

use std::io::{Read, Write};

use flocker_store::{DatasetName, ReceiveSpec, SendSpec, Snapshot, StoreError};

use super::content::{self, write_round};
use super::{Check, Site, Trouble};
use crate::ensure;

/// The checks.
pub const CHECKS: &[Check] = &[
    ("a full send cut at many offsets goes on from its token", |s| cut_everywhere(s, false)),
    ("an increment cut at many offsets goes on from its token", |s| cut_everywhere(s, true)),
    (
        "a token whose target is gone is refused, and the part is discarded by the next step",
        target_gone,
    ),
    ("a garbage token is refused by name", garbage),
    ("what is left of a receive does not outlive an activation", activation),
];

/// Most bytes that may be sent a second time besides those on their way.
const TWICE_LIMIT: u64 = 8 << 20;

/// What of the beginning of a stream no token may cover: up to the first records that were written.
const NEVER_KEPT: u64 = 1 << 20;

/// Receives the first `cut` bytes; returns how many bytes there were and whether that was all.
fn receive_part(
    site: &Site,
    send: &SendSpec,
    receive: &ReceiveSpec,
    cut: u64,
) -> Result<(u64, Option<Snapshot>), Trouble> {
    let mut from = site.store.send(send)?;
    let mut into = site.store.receive(receive)?;
    let mut buffer = vec![0; 64 << 10];
    let mut bytes = 0;
    while bytes < cut {
        let want = buffer.len().min((cut - bytes) as usize);
        let n = from.read(&mut buffer[..want])?;
        if n == 0 {
            from.finish()?;
            return Ok((bytes, Some(into.commit()?)));
        }
        into.write_all(&buffer[..n])?;
        bytes += n as u64;
    }
    drop(from);
    into.suspend()?;
    Ok((bytes, None))
}

fn cut_everywhere(site: &Site, incremental: bool) -> Result<String, Trouble> {
    site.needs(site.store.capabilities().resumable, "resumable receives")?;
    let (a, path) = site.filesystem("a", &[])?;
    write_round(&path, 0)?;
    let base = site.snapshot(&a, "s1")?;
    std::fs::write(path.join("bulk"), content::noise(7, 24 << 20))?;
    write_round(&path, 1)?;
    let target = site.snapshot(&a, "s2")?;
    let expect = content::tree(&path)?;
    let from = incremental.then_some(&base);
    let whole = stream_length(site, &site.send_spec(from, &target, false))?;
    let mut worst = 0;
    for (n, share) in [1, 13, 29, 47, 68, 85, 99].into_iter().enumerate() {
        let b = site.at(&format!("b{n}"));
        if incremental {
            site.step(&base, &b, false)?;
        }
        let plan = Plan { site, into: &b, from, target: &target };
        // Cut once on the way, and what is left once more.
        let sent = plan.cut_and_go_on(&[whole * share / 100, whole / 5])?;
        let twice = sent.saturating_sub(whole);
        // Where that is less than all that was there, it tells going on from beginning anew.
        let most = TWICE_LIMIT.min(whole * share / 100 / 2 + NEVER_KEPT);
        ensure!(twice <= 2 * most, "cut at {share} %: {twice} of {whole} bytes were sent twice");
        worst = worst.max(twice);
        let path = site.store.activate(&b)?.ok_or("no path")?;
        let got = content::tree(&path)?;
        ensure!(got == expect, "cut at {share} %: {b} has {got}, {a} had {expect}");
        site.store.fence(&b)?;
    }
    Ok(format!("stream {whole} bytes, at most {worst} bytes sent twice in two cuts"))
}

struct Plan<'a> {
    site: &'a Site,
    into: &'a DatasetName,
    from: Option<&'a Snapshot>,
    target: &'a Snapshot,
}

impl Plan<'_> {
    /// Returns how many bytes were sent in all.
    fn cut_and_go_on(&self, cuts: &[u64]) -> Result<u64, Trouble> {
        let site = self.site;
        let mut send = site.send_spec(self.from, self.target, false);
        let mut receive = site.receive_spec(self.from.map(|s| s.guid), self.target, self.into)?;
        receive.resumable = true;
        let mut sent = 0;
        for cut in cuts.iter().copied().chain([u64::MAX]) {
            let (bytes, got) = receive_part(site, &send, &receive, cut)?;
            sent += bytes;
            if let Some(received) = got {
                ensure!(received.guid == self.target.guid, "received {}", received.guid);
                let left = site.inventory(self.into)?.partial;
                ensure!(left.is_none(), "{left:?} is left of a receive that is over");
                return Ok(sent);
            }
            let there = site.inventory(self.into).or_else(|e| nothing_yet(&e))?;
            // So early that nothing was kept: everything once more.
            send.resume = there.partial.map(|p| p.token);
            if send.resume.is_none() {
                ensure!(bytes <= TWICE_LIMIT, "nothing is left of {bytes} bytes");
            }
        }
        Err("the stream never ended".into())
    }
}

fn nothing_yet(error: &Trouble) -> Result<flocker_store::Inventory, Trouble> {
    match error.downcast_ref::<StoreError>() {
        Some(StoreError::NoDataset { .. }) => Ok(Default::default()),
        _ => Err(error.to_string().into()),
    }
}

fn stream_length(site: &Site, send: &SendSpec) -> Result<u64, Trouble> {
    let mut stream = site.store.send(send)?;
    let bytes = std::io::copy(&mut stream, &mut std::io::sink())?;
    stream.finish()?;
    Ok(bytes)
}

/// A dataset with a full receive that broke off.
fn interrupted(site: &Site) -> Result<(Snapshot, DatasetName, SendSpec, ReceiveSpec), Trouble> {
    site.needs(site.store.capabilities().resumable, "resumable receives")?;
    let (a, path) = site.filesystem("a", &[])?;
    std::fs::write(path.join("bulk"), content::noise(9, 6 << 20))?;
    let base = site.snapshot(&a, "s1")?;
    let b = site.at("b");
    let send = site.send_spec(None, &base, false);
    let receive = ReceiveSpec { resumable: true, ..site.receive_spec(None, &base, &b)? };
    receive_part(site, &send, &receive, 3 << 20)?;
    let partial = site.inventory(&b)?.partial.ok_or("nothing is left of 3 MiB")?;
    ensure!(partial.to == Some(base.guid), "the token is of {:?}", partial.to);
    ensure!(partial.from.is_none() && partial.bytes > 1 << 20, "{partial:?}");
    let send = SendSpec { resume: Some(partial.token), ..send };
    Ok((base, b, send, receive))
}

fn target_gone(site: &Site) -> Result<String, Trouble> {
    let (base, b, send, _) = interrupted(site)?;
    site.store.destroy_snapshots(std::slice::from_ref(&base.name))?;
    let again = site.snapshot(base.name.dataset(), "s1")?;
    let error = site.store.send(&send).err().ok_or("a send of another snapshot was begun")?;
    ensure!(matches!(error, StoreError::BadToken { .. }), "{error}");
    let whole = site.send_spec(None, &again, false);
    let (got, _) = site.pass(&whole, &site.receive_spec(None, &again, &b)?)?;
    ensure!(got.guid == again.guid, "received {}", got.guid);
    ensure!(site.inventory(&b)?.partial.is_none(), "the part is still there");
    Ok(String::new())
}

fn garbage(site: &Site) -> Result<String, Trouble> {
    let (_, _, send, _) = interrupted(site)?;
    let spec = SendSpec { resume: Some("1-f00-ba-r".into()), ..send };
    let error = site.store.send(&spec).err().ok_or("garbage was followed")?;
    ensure!(matches!(error, StoreError::BadToken { .. }), "{error}");
    Ok(error.to_string())
}

fn activation(site: &Site) -> Result<String, Trouble> {
    site.needs(site.store.capabilities().resumable, "resumable receives")?;
    let (a, path) = site.filesystem("a", &[])?;
    let base = site.snapshot(&a, "s1")?;
    std::fs::write(path.join("bulk"), content::noise(9, 6 << 20))?;
    let target = site.snapshot(&a, "s2")?;
    let b = site.at("b");
    site.step(&base, &b, false)?;
    let send = site.send_spec(Some(&base), &target, false);
    let receive =
        ReceiveSpec { resumable: true, ..site.receive_spec(Some(base.guid), &target, &b)? };
    receive_part(site, &send, &receive, 3 << 20)?;
    ensure!(site.inventory(&b)?.partial.is_some(), "nothing is left of 3 MiB");
    let path = site.store.activate(&b)?.ok_or("no path")?;
    ensure!(!path.join("bulk").exists(), "half a step is visible");
    ensure!(site.inventory(&b)?.partial.is_none(), "a token outlives the activation");
    Ok(String::new())
}
