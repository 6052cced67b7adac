//! Bad input and bad times: each with its own typed error, and nothing is lost.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flocker_store::{DatasetName, Guid, ReceiveSpec, SendSpec, Snapshot, StoreError};

use super::content::{self, write_round};
use super::{Check, Site, Trouble};
use crate::ensure;

/// The checks.
pub const CHECKS: &[Check] = &[
    ("an increment without its base is refused as such", no_base),
    ("a name that is taken is refused as such", taken),
    ("a standby that was written is refused as modified, and keeps what was written", written),
    ("a stream damaged anywhere changes nothing", damaged),
    ("a stream cut short changes nothing", cut_short),
    ("another stream than the announced one is not even begun", another),
    ("a snapshot that is gone is named", gone),
    ("a dataset renamed under us is missing by its old name and whole by its new one", renamed),
    ("a raw step and a plain one do not mix", mixed),
    ("a receive by others into the same dataset is busy, and the step goes on after it", by_others),
    ("a quota that is reached is out of space, and the standby stays whole", quota),
    ("a pool that is full is out of space, and the standby stays whole", full_pool),
    ("an exported pool is an error, not a hang, and it goes on when the pool is back", exported),
];

fn two(site: &Site) -> Result<(Snapshot, Snapshot), Trouble> {
    let (a, path) = site.filesystem("a", &[])?;
    write_round(&path, 0)?;
    let first = site.snapshot(&a, "s1")?;
    write_round(&path, 1)?;
    Ok((first, site.snapshot(&a, "s2")?))
}

fn typed(outcome: Result<impl Sized, Trouble>, what: &str) -> Result<StoreError, Trouble> {
    let error = outcome.err().ok_or(format!("{what}: it succeeded"))?;
    error.downcast::<StoreError>().map(|e| *e).map_err(|e| format!("{what}: {e}").into())
}

fn increment(site: &Site, first: &Snapshot, second: &Snapshot) -> (SendSpec, ReceiveSpec) {
    let receive = site.receive_spec(Some(first.guid), second, &site.at("b")).expect("a name");
    (site.send_spec(Some(first), second, false), receive)
}

fn no_base(site: &Site) -> Result<String, Trouble> {
    let (first, second) = two(site)?;
    site.step(&second, &site.at("b"), false)?;
    let path = site.store.activate(first.name.dataset())?.ok_or("no path")?;
    write_round(&path, 2)?;
    let third = site.snapshot(first.name.dataset(), "s3")?;
    let (send, receive) = increment(site, &first, &third);
    let error = typed(site.pass(&send, &receive), "no base")?;
    let StoreError::NoBase { base, .. } = &error else { return Err(format!("{error}").into()) };
    ensure!(*base == first.guid, "it names {base}");
    Ok(error.to_string())
}

fn taken(site: &Site) -> Result<String, Trouble> {
    let (first, second) = two(site)?;
    let b = site.at("b");
    site.step(&first, &b, false)?;
    let full = site.send_spec(None, &second, false);
    let error = typed(site.pass(&full, &site.receive_spec(None, &second, &b)?), "full over it")?;
    ensure!(matches!(error, StoreError::Exists { .. }), "full over a dataset: {error}");
    // A step whose snapshot would have the name of an older one.
    site.step(&second, &b, false)?;
    let path = site.store.activate(first.name.dataset())?.ok_or("no path")?;
    write_round(&path, 2)?;
    let third = site.snapshot(first.name.dataset(), "s3")?;
    let (send, mut receive) = increment(site, &second, &third);
    receive.snapshot = b.snapshot(first.name.short())?;
    let older = typed(site.pass(&send, &receive), "an older one's name")?;
    ensure!(matches!(older, StoreError::Exists { .. }), "an older one's name: {older}");
    ensure!(site.inventory(&b)?.latest().is_some_and(|s| s.guid == second.guid), "it changed");
    let spec = flocker_store::SnapshotSpec {
        names: vec![first.name.clone()],
        quiesced: false,
        properties: Default::default(),
    };
    let again = site.store.snapshot(&spec).err();
    ensure!(matches!(again, Some(StoreError::Exists { .. })), "{again:?}");
    Ok(error.to_string())
}

fn written(site: &Site) -> Result<String, Trouble> {
    let (first, second) = two(site)?;
    let b = site.at("b");
    site.step(&first, &b, false)?;
    let path = site.store.activate(&b)?.ok_or("no path")?;
    fs::write(path.join("mine"), "precious")?;
    site.store.fence(&b)?;
    let (send, receive) = increment(site, &first, &second);
    let error = typed(site.pass(&send, &receive), "a written standby")?;
    ensure!(matches!(error, StoreError::Modified { .. }), "{error}");
    let path = site.store.activate(&b)?.ok_or("no path")?;
    ensure!(fs::read_to_string(path.join("mine"))? == "precious", "it is gone");
    Ok(error.to_string())
}

/// The bytes of the increment.
fn stream(site: &Site, spec: &SendSpec) -> Result<Vec<u8>, Trouble> {
    let mut from = site.store.send(spec)?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut from, &mut bytes)?;
    from.finish()?;
    Ok(bytes)
}

fn receive_bytes(site: &Site, spec: &ReceiveSpec, bytes: &[u8]) -> Result<Snapshot, Trouble> {
    let mut into = site.store.receive(spec)?;
    for chunk in bytes.chunks(64 << 10) {
        if into.write_all(chunk).is_err() {
            break;
        }
    }
    Ok(into.commit()?)
}

fn damaged(site: &Site) -> Result<String, Trouble> {
    let (first, second) = two(site)?;
    let b = site.at("b");
    site.step(&first, &b, false)?;
    let (send, receive) = increment(site, &first, &second);
    let whole = stream(site, &send)?;
    let mut words = String::new();
    for share in [2, 31, 64, 97] {
        let mut bytes = whole.clone();
        bytes[whole.len() * share / 100] ^= 0x40;
        let error = typed(receive_bytes(site, &receive, &bytes), "a damaged stream")?;
        ensure!(matches!(error, StoreError::BadStream { .. }), "damaged at {share} %: {error}");
        words = error.to_string();
        let there = site.inventory(&b)?;
        ensure!(there.latest().is_some_and(|s| s.guid == first.guid), "damaged at {share} %");
    }
    receive_bytes(site, &receive, &whole)?;
    Ok(words)
}

fn cut_short(site: &Site) -> Result<String, Trouble> {
    let (first, second) = two(site)?;
    let b = site.at("b");
    site.step(&first, &b, false)?;
    let (send, receive) = increment(site, &first, &second);
    let whole = stream(site, &send)?;
    for bytes in [100, 312, 5000, whole.len() / 2, whole.len() - 312, whole.len() - 1] {
        let outcome = receive_bytes(site, &receive, &whole[..bytes]);
        let error = typed(outcome, "a stream that was cut short")?;
        ensure!(matches!(error, StoreError::BadStream { .. }), "cut at {bytes}: {error}");
    }
    receive_bytes(site, &receive, &whole)?;
    Ok(String::new())
}

fn another(site: &Site) -> Result<String, Trouble> {
    let (first, second) = two(site)?;
    let b = site.at("b");
    site.step(&first, &b, false)?;
    let (send, receive) = increment(site, &first, &second);
    let bytes = stream(site, &send)?;
    let lied = ReceiveSpec { to_guid: Guid(second.guid.0 ^ 1), ..receive.clone() };
    let error = typed(receive_bytes(site, &lied, &bytes), "another guid")?;
    ensure!(matches!(error, StoreError::BadStream { .. }), "{error}");
    let garbage = content::noise(3, 100_000);
    let error = typed(receive_bytes(site, &receive, &garbage), "no stream at all")?;
    ensure!(matches!(error, StoreError::BadStream { .. }), "{error}");
    Ok(error.to_string())
}

fn gone(site: &Site) -> Result<String, Trouble> {
    let (first, second) = two(site)?;
    let (send, _) = increment(site, &first, &second);
    site.store.destroy_snapshots(std::slice::from_ref(&first.name))?;
    let error = site.store.send(&send).err().ok_or("sent from what is gone")?;
    let StoreError::NoSnapshot { name } = &error else { return Err(format!("{error}").into()) };
    ensure!(*name == first.name.to_string(), "it names {name}");
    site.store.destroy_snapshots(std::slice::from_ref(&first.name))?;
    Ok(error.to_string())
}

fn renamed(site: &Site) -> Result<String, Trouble> {
    let (first, _) = two(site)?;
    let (a, c) = (first.name.dataset().clone(), site.at("c"));
    let guid = site.store.dataset(&a)?.guid;
    site.store.fence(&a)?;
    site.store.rename(&a, &c)?;
    let error = site.store.inventory(&a).err().ok_or("it is still there")?;
    ensure!(matches!(error, StoreError::NoDataset { .. }), "{error}");
    ensure!(site.store.dataset(&c)?.guid == guid, "another guid after a rename");
    ensure!(site.inventory(&c)?.snapshot(first.guid).is_some(), "the snapshots did not go along");
    Ok(error.to_string())
}

fn mixed(site: &Site) -> Result<String, Trouble> {
    site.needs(site.store.capabilities().raw_send, "encryption")?;
    fs::write("/tmp/flocker-suite.passphrase", "correct horse battery")?;
    let key = "keylocation=file:///tmp/flocker-suite.passphrase";
    let (a, path) = site.filesystem("a", &["encryption=on", "keyformat=passphrase", key])?;
    let first = site.snapshot(&a, "s1")?;
    site.step(&first, &site.at("b"), true)?;
    fs::write(path.join("f"), "x")?;
    let second = site.snapshot(&a, "s2")?;
    let (send, receive) = increment(site, &first, &second);
    let error = typed(site.pass(&send, &receive), "plain onto raw")?;
    ensure!(
        matches!(error, StoreError::Unsupported { .. } | StoreError::Modified { .. }),
        "plain onto raw: {error:?}"
    );
    // Nothing is spoilt: the raw lineage goes on.
    site.step(&second, &site.at("b"), true)?;
    Ok(error.to_string())
}

fn by_others(site: &Site) -> Result<String, Trouble> {
    site.needs(site.store.capabilities().resumable, "receives beside each other")?;
    let (a, path) = site.filesystem("a", &[])?;
    let first = site.snapshot(&a, "s1")?;
    fs::write(path.join("bulk"), content::noise(8, 6 << 20))?;
    let second = site.snapshot(&a, "s2")?;
    let b = site.at("b");
    site.step(&first, &b, false)?;
    let script = format!(
        "{{ zfs send -i {a}@s1 {a}@s2 | head -c 3000000; echo passed >&2; exec sleep 300; }} | exec zfs receive {b}@theirs"
    );
    let mut theirs =
        Command::new("sh").args(["-c", &script]).process_group(0).stderr(Stdio::piped()).spawn()?;
    // So much went through the pipe: their receive is under way.
    let mut word = [0; 6];
    std::io::Read::read_exact(&mut theirs.stderr.take().ok_or("no pipe")?, &mut word)?;
    let (send, receive) = increment(site, &first, &second);
    let outcome = typed(site.pass(&send, &receive), "a receive beside another");
    let group = rustix::process::Pid::from_child(&theirs);
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL)?;
    theirs.wait()?;
    let error = outcome?;
    ensure!(matches!(error, StoreError::Busy { .. }), "{error:?}");
    // Theirs is undone in its own time.
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = site.pass(&send, &receive) {
        ensure!(Instant::now() < deadline, "after theirs: {error}");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(error.to_string())
}

fn quota(site: &Site) -> Result<String, Trouble> {
    let (a, path) = site.filesystem("a", &[])?;
    let first = site.snapshot(&a, "s1")?;
    let b = site.at("b");
    site.step(&first, &b, false)?;
    site.run(&["zfs", "set", "quota=3M", b.as_str()])?;
    fs::write(path.join("bulk"), content::noise(4, 12 << 20))?;
    let second = site.snapshot(&a, "s2")?;
    let (send, receive) = increment(site, &first, &second);
    let error = typed(site.pass(&send, &receive), "over the quota")?;
    ensure!(matches!(error, StoreError::NoSpace { .. }), "{error:?}");
    ensure!(site.inventory(&b)?.latest().is_some_and(|s| s.guid == first.guid), "not whole");
    site.run(&["zfs", "set", "quota=none", b.as_str()])?;
    site.pass(&send, &receive)?;
    Ok(error.to_string())
}

/// A pool of 128 MiB in a file below /tmp, destroyed at the end.
struct SmallPool<'a>(&'a Site, String);

impl<'a> SmallPool<'a> {
    fn new(site: &'a Site, name: &str) -> Result<Self, Trouble> {
        let file = format!("/tmp/{name}.img");
        site.run(&["truncate", "-s", "128M", &file])?;
        site.run(&["zpool", "create", "-f", "-O", "mountpoint=none", name, &file])?;
        Ok(Self(site, name.to_owned()))
    }

    /// Its root, and a site there.
    fn site(&self) -> Result<(DatasetName, Site), Trouble> {
        let (root, options) = (DatasetName::new(self.1.as_str())?, self.0.options.clone());
        let store = Arc::new(flocker_zfs::ZfsStore::open(&root, options.clone())?);
        Ok((root.clone(), Site { store, root, spare: None, options }))
    }
}

impl Drop for SmallPool<'_> {
    fn drop(&mut self) {
        let _ = self.0.shell(&format!("zpool destroy -f {0}; rm -f /tmp/{0}.img", self.1));
    }
}

fn full_pool(site: &Site) -> Result<String, Trouble> {
    let small = SmallPool::new(site, "fsuitefull")?;
    let (root, far) = small.site()?;
    let (a, path) = site.filesystem("a", &[])?;
    let first = site.snapshot(&a, "s1")?;
    let b = root.child("b")?;
    let receive = far.receive_spec(None, &first, &b)?;
    receive_bytes(&far, &receive, &stream(site, &site.send_spec(None, &first, false))?)?;
    fs::write(path.join("bulk"), content::noise(4, 160 << 20))?;
    let second = site.snapshot(&a, "s2")?;
    let bytes = stream(site, &site.send_spec(Some(&first), &second, false))?;
    let receive = far.receive_spec(Some(first.guid), &second, &b)?;
    let error = typed(receive_bytes(&far, &receive, &bytes), "a full pool")?;
    ensure!(matches!(error, StoreError::NoSpace { .. }), "{error:?}");
    ensure!(far.inventory(&b)?.latest().is_some_and(|s| s.guid == first.guid), "not whole");
    Ok(error.to_string())
}

fn exported(site: &Site) -> Result<String, Trouble> {
    let small = SmallPool::new(site, "fsuitegone")?;
    let (root, far) = small.site()?;
    far.run(&["zfs", "create", "fsuitegone/a"])?;
    let a = root.child("a")?;
    far.snapshot(&a, "s1")?;
    site.run(&["zpool", "export", "fsuitegone"])?;
    let error = typed(far.snapshot(&a, "s2"), "an exported pool")?;
    ensure!(matches!(error, StoreError::Away { .. }), "{error:?}");
    // Nor is what is in it said not to be there: the other side would send everything anew.
    let looks: [(&str, Result<(), StoreError>); 4] = [
        ("a dataset", far.store.dataset(&a).map(drop)),
        ("an inventory", far.store.inventory_with_clones(&a).map(drop)),
        ("its properties", far.store.user_properties(&a).map(drop)),
        ("its root", far.store.dataset(&root).map(drop)),
    ];
    for (what, look) in looks {
        let error = typed(look.map_err(Into::into), what)?;
        ensure!(matches!(error, StoreError::Away { .. }), "{what}: {error:?}");
    }
    site.run(&["zpool", "import", "-d", "/tmp", "fsuitegone"])?;
    far.snapshot(&a, "s2")?;
    let gone = typed(far.inventory(&root.child("b")?), "what is not in it")?;
    ensure!(matches!(gone, StoreError::NoDataset { .. }), "{gone:?}");
    Ok(error.to_string())
}
