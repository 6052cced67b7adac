//! Fencing on real ZFS: everybody who could still write is found and named, and nobody can afterwards.
//!
//! A namespace made by `unshare -m` copies *every* mount, those of other tests too; [`Elsewhere`] takes
//! them away again at once, and these tests run one at a time.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::Pair;
use flocker_store::{DatasetName, Holder, Store, StoreError};
use flocker_zfs::{ZfsOptions, ZfsStore};

fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fences, expects to be refused, and checks that nothing was changed.
fn refused(pair: &Pair, dataset: &DatasetName) -> Vec<Holder> {
    let before = common::zfs(&["get", "-Hp", "canmount,readonly,mounted", dataset.as_str()]);
    let error = pair.from.fence(dataset).unwrap_err();
    let StoreError::Busy { holders, .. } = error else { panic!("{error}") };
    let after = common::zfs(&["get", "-Hp", "canmount,readonly,mounted", dataset.as_str()]);
    assert_eq!(before, after, "nothing is changed by a fence that is refused");
    assert!(!holders.is_empty());
    holders
}

fn fenced(pair: &Pair, dataset: &DatasetName) {
    pair.from.fence(dataset).unwrap();
    let info = pair.from.dataset(dataset).unwrap();
    assert_eq!((info.mounted_at, info.writable), (None, false));
    let canmount = common::zfs(&["get", "-Hp", "-o", "value", "canmount", dataset.as_str()]);
    assert_eq!(canmount.trim(), "noauto");
    pair.from.fence(dataset).unwrap();
}

/// Takes away every ZFS mount of a new namespace but `$KEEP` and what it lies on.
const ONLY_KEEP: &str = r#"
    awk '$0 ~ / - (fuse.)?zfs / {print $5}' /proc/self/mountinfo | tac | while read -r m; do
        m=$(printf "$m")
        case "$KEEP/" in "$m"/*) ;; *) umount -l "$m" 2>/dev/null ;; esac
    done"#;

/// A shell in a mount namespace of its own, in which only `keep` of all ZFS mounts is left.
struct Elsewhere {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Elsewhere {
    fn new(keep: &Path, propagation: &str) -> Self {
        let script = format!(
            "{ONLY_KEEP}; echo ready; while read -r line; do eval \"$line\"; echo done; done"
        );
        let mut child = Command::new("unshare")
            .args(["-m", "--propagation", propagation, "sh", "-c", &script])
            .env("KEEP", keep)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut this = Self { child, stdin, stdout };
        this.answer("ready");
        this
    }

    fn run(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
        self.answer("done");
    }

    fn answer(&mut self, expect: &str) {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), expect);
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn pid_of_us() -> u32 {
    std::process::id()
}

#[test]
fn an_open_file_keeps_the_fence_open_and_is_named() {
    let _alone = alone();
    let Some(pair) = Pair::new("fd", "an_open_file_keeps_the_fence_open") else {
        return;
    };
    let (dataset, path) = pair.live("v w");
    let mut file = File::create(path.join("data base")).unwrap();
    let holders = refused(&pair, &dataset);
    assert!(
        holders.iter().any(|h| h.pid == pid_of_us() && h.what.contains("data base")),
        "{holders:?}"
    );
    // It is a writer: it goes on.
    file.write_all(b"still here").unwrap();
    file.sync_all().unwrap();
    drop(file);
    fenced(&pair, &dataset);
    assert!(!path.join("data base").exists());
    pair.from.activate(&dataset).unwrap();
    assert_eq!(fs::read(path.join("data base")).unwrap(), b"still here");
}

#[test]
fn a_working_directory_and_a_mapping_hold_too() {
    let _alone = alone();
    let Some(pair) = Pair::new("cwd", "a_working_directory_and_a_mapping") else {
        return;
    };
    let (dataset, path) = pair.live("v");
    let mut sleeper = Command::new("sleep").arg("600").current_dir(&path).spawn().unwrap();
    let holders = refused(&pair, &dataset);
    let of_sleeper = |h: &&Holder| h.pid == sleeper.id() && h.command == "sleep";
    let holder = holders.iter().find(of_sleeper).unwrap();
    assert!(holder.what.starts_with("working directory"), "{holder}");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();

    // A program that runs from the dataset is mapped from it.
    fs::copy("/bin/sleep", path.join("program")).unwrap();
    let mut program = Command::new(path.join("program")).arg("600").spawn().unwrap();
    let holders = refused(&pair, &dataset);
    let of_program =
        |what: &str| holders.iter().any(|h| h.pid == program.id() && h.what.starts_with(what));
    assert!(of_program("running program"), "{holders:?}");
    assert!(of_program("mapped file"), "{holders:?}");
    program.kill().unwrap();
    program.wait().unwrap();
    fenced(&pair, &dataset);
}

#[test]
fn a_mount_in_another_namespace_holds_and_its_writer_goes_on_until_it_is_gone() {
    let _alone = alone();
    let Some(pair) = Pair::new("ns", "a_mount_in_another_namespace_holds") else {
        return;
    };
    let (dataset, path) = pair.live("v");
    let minor = rustix::fs::minor(fs::metadata(&path).unwrap().dev());
    let mut elsewhere = Elsewhere::new(&path, "private");
    elsewhere.run(&format!("exec 5>>'{}/log'", path.display()));
    let holders = refused(&pair, &dataset);
    let text = format!("{holders:?}");
    assert!(text.contains("another mount namespace"), "{text}");
    assert!(text.contains("open file"), "{text}");
    assert!(holders.iter().any(|h| h.pid == elsewhere.child.id()), "{text}");
    elsewhere.run("echo one >&5");
    // An unmount here changes nothing there: the writer goes on writing. Neither the fence nor an
    // activation falls for it.
    common::zfs(&["unmount", dataset.as_str()]);
    elsewhere.run("echo two >&5");
    for outcome in [
        pair.from.fence(&dataset),
        pair.from.activate(&dataset).map(|_| ()),
        pair.from.verify_unwritten(&dataset.snapshot("none").unwrap()),
    ] {
        assert!(
            matches!(outcome, Err(StoreError::Busy { .. } | StoreError::NoSnapshot { .. })),
            "{outcome:?}"
        );
    }
    let s1 = pair.snap(&dataset, "s1");
    let writable = pair.from.verify_unwritten(&s1.name).unwrap_err();
    assert!(matches!(writable, StoreError::Busy { .. }), "{writable}");
    // Even without a mount anywhere, who is still inside counts. (The file is closed before, and zfs-fuse
    // has heard of it: when the last mount dies with a file open, zfs-fuse hangs.)
    elsewhere.run("exec 5>&-");
    elsewhere.run(&format!("cd '{}'", path.display()));
    flocker_zfs::fixture::settle(minor);
    elsewhere.run(&format!("umount -l '{}'", path.display()));
    let orphan = pair.from.fence(&dataset).unwrap_err();
    assert!(orphan.to_string().contains("mounted nowhere"), "{orphan}");
    drop(elsewhere);
    fenced(&pair, &dataset);
    pair.from.activate(&dataset).unwrap();
    assert_eq!(fs::read_to_string(path.join("log")).unwrap(), "one\ntwo\n");
}

#[test]
fn a_namespace_that_follows_ours_is_no_obstacle() {
    let _alone = alone();
    let Some(pair) = Pair::new("slave", "a_namespace_that_follows_ours") else {
        return;
    };
    let (dataset, _) = pair.live("v");
    pair.from.fence(&dataset).unwrap();
    let shared = Tmpfs::new("--make-shared");
    let path = shared.0.path().join("v");
    let word = format!("mountpoint={}", path.display());
    common::zfs(&["set", &word, dataset.as_str()]);
    pair.from.activate(&dataset).unwrap();
    // As systemd does for its services: what is unmounted here is unmounted there.
    let _elsewhere = Elsewhere::new(&path, "slave");
    fenced(&pair, &dataset);
}

#[test]
fn a_pinned_namespace_without_a_process_holds() {
    let _alone = alone();
    let Some(pair) = Pair::new("pin", "a_pinned_namespace_without_a_process") else {
        return;
    };
    let (dataset, path) = pair.live("v");
    let private = Tmpfs::new("--make-private");
    let file = private.0.path().join("ns");
    File::create(&file).unwrap();
    let status = Command::new("unshare")
        .arg(format!("--mount={}", file.display()))
        .args(["sh", "-c", ONLY_KEEP])
        .env("KEEP", &path)
        .status()
        .unwrap();
    assert!(status.success());
    let holders = refused(&pair, &dataset);
    assert!(holders[0].command.ends_with("/ns"), "{holders:?}");
    assert!(Command::new("umount").arg(&file).status().unwrap().success());
    fenced(&pair, &dataset);
}

#[test]
fn bind_mounts_and_mounts_below_hold() {
    let _alone = alone();
    let Some(pair) = Pair::new("bind", "bind_mounts_and_mounts_below_hold") else {
        return;
    };
    let (dataset, path) = pair.live("v");
    fs::create_dir(path.join("sub")).unwrap();
    let target = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| {
        assert!(Command::new("mount").args(args).status().unwrap().success());
    };
    let umount = |at: &Path| {
        assert!(Command::new("umount").arg(at).status().unwrap().success());
    };
    let sub = path.join("sub");
    mount(&["--bind", sub.to_str().unwrap(), target.path().to_str().unwrap()]);
    let holders = refused(&pair, &dataset);
    assert!(holders[0].what.starts_with("bind mount"), "{holders:?}");
    umount(target.path());
    let child = pair.a.dataset("v/child");
    pair.from.create(&child, flocker_store::DatasetKind::Filesystem).unwrap();
    pair.from.activate(&child).unwrap();
    let holders = refused(&pair, &dataset);
    assert!(holders[0].what.contains(child.as_str()), "{holders:?}");
    pair.from.fence(&child).unwrap();
    fenced(&pair, &dataset);
}

#[test]
fn activation_refuses_a_path_that_is_taken_and_changes_nothing_of_it() {
    let _alone = alone();
    let Some(pair) = Pair::new("path", "activation_refuses_a_path_that_is_taken") else {
        return;
    };
    let (dataset, path) = pair.live("v");
    pair.from.fence(&dataset).unwrap();
    pair.from.rehearse(&dataset).unwrap();
    fs::write(path.join("in the way"), "x").unwrap();
    let error = pair.from.rehearse(&dataset).unwrap_err();
    assert!(error.to_string().contains("is not empty"), "{error}");
    let error = pair.from.activate(&dataset).unwrap_err();
    assert!(error.to_string().contains("is not empty"), "{error}");
    assert_eq!(fs::read(path.join("in the way")).unwrap(), b"x");
    fs::remove_file(path.join("in the way")).unwrap();
    fs::remove_dir(&path).unwrap();
    fs::write(&path, "a file").unwrap();
    let error = pair.from.activate(&dataset).unwrap_err();
    assert!(error.to_string().contains("not a directory"), "{error}");
    fs::remove_file(&path).unwrap();
    assert_eq!(pair.from.activate(&dataset).unwrap(), Some(path));
}

#[test]
fn a_dataset_without_a_mountpoint_goes_below_the_configured_one_or_says_so() {
    let _alone = alone();
    let Some(pair) = Pair::new("none", "a_dataset_without_a_mountpoint") else {
        return;
    };
    let (dataset, _) = pair.live("v");
    pair.from.fence(&dataset).unwrap();
    common::zfs(&["set", "mountpoint=none", dataset.as_str()]);
    let error = pair.from.activate(&dataset).unwrap_err();
    assert!(error.to_string().contains("mount_root"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let options = ZfsOptions { mount_root: Some(dir.path().to_owned()), ..ZfsOptions::default() };
    let store = ZfsStore::open(&pair.a.root(), options).unwrap();
    let path = store.activate(&dataset).unwrap().unwrap();
    assert_eq!(path, dir.path().join("v"));
    fs::write(path.join("f"), "x").unwrap();
    store.fence(&dataset).unwrap();
    store.give_back(&dataset).unwrap();
    let mountpoint = common::zfs(&["get", "-Hp", "-o", "value", "mountpoint", dataset.as_str()]);
    assert_eq!(mountpoint.trim(), "none");
}

#[test]
fn a_dataset_is_given_back_as_it_was_found() {
    let _alone = alone();
    let Some(pair) = Pair::new("back", "a_dataset_is_given_back_as_it_was_found") else {
        return;
    };
    let dataset = pair.a.dataset("v");
    // As a person has it before we come: mounted at boot, read-only for now, a property of its own.
    common::zfs(&["create", dataset.as_str()]);
    common::zfs(&["set", "readonly=on", dataset.as_str()]);
    common::zfs(&["set", "com.example:x=1", dataset.as_str()]);
    let state = || {
        let get = ["get", "-Hp", "-o", "property,value,source", "canmount,readonly,com.example:x"];
        common::zfs(&[&get[..], &[dataset.as_str()]].concat())
    };
    common::zfs(&["unmount", dataset.as_str()]);
    let before = state();
    let path = pair.from.activate(&dataset).unwrap().unwrap();
    fs::write(path.join("f"), "writable now").unwrap();
    let id = [("flocker-repl:id".to_owned(), Some("7".to_owned()))].into();
    pair.from.set_user_properties(&dataset, &id).unwrap();
    pair.from.fence(&dataset).unwrap();
    pair.from.activate(&dataset).unwrap();
    pair.from.fence(&dataset).unwrap();
    pair.from.give_back(&dataset).unwrap();
    // zfs-fuse knows the source of canmount as local once it was set; its value is what counts.
    assert_eq!(state().replace("canmount\ton\tlocal", "canmount\ton\tdefault"), before);
    let ours = pair.from.user_properties(&dataset).unwrap();
    assert!(!ours.keys().any(|name| name.starts_with("flocker-repl:")), "{ours:?}");
    pair.from.give_back(&dataset).unwrap();
}

#[test]
fn a_received_standby_is_not_mounted_by_a_boot() {
    let _alone = alone();
    let Some(pair) = Pair::new("boot", "a_received_standby_is_not_mounted_by_a_boot") else {
        return;
    };
    let (source, _) = pair.live("v");
    let s1 = pair.snap(&source, "s1");
    let there = pair.b.dataset("recv/v");
    pair.replicate(None, &s1, &there).unwrap();
    // What a boot runs is `zfs mount -a`: it passes over everything but `canmount=on`. (Not run here: it
    // would mount what other tests have at rest.)
    for dataset in [&there, &pair.b.dataset("recv")] {
        let args = ["get", "-Hp", "-o", "value", "canmount", dataset.as_str()];
        assert_ne!(common::zfs(&args).trim(), "on", "{dataset}");
    }
    assert_eq!(pair.to.dataset(&there).unwrap().mounted_at, None);
}

/// A tmpfs of this test's own with the propagation it needs.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(propagation: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mount = |args: &[&str]| {
            let status = Command::new("mount").args(args).arg(dir.path()).status();
            assert!(status.unwrap().success(), "mount {args:?}");
        };
        mount(&["-t", "tmpfs", "flocker-test"]);
        mount(&[propagation]);
        Self(dir)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let mut inside: Vec<PathBuf> = fs::read_to_string("/proc/self/mountinfo")
            .unwrap_or_default()
            .lines()
            .filter_map(|line| Some(PathBuf::from(line.split(' ').nth(4)?)))
            .filter(|at| at.starts_with(self.0.path()))
            .collect();
        inside.reverse();
        for at in inside {
            let _ = Command::new("umount").arg("-l").arg(at).status();
        }
    }
}

#[test]
fn a_file_that_is_only_opened_for_reading_holds_as_well() {
    let _alone = alone();
    let Some(pair) = Pair::new("read", "a_file_that_is_only_opened_for_reading") else {
        return;
    };
    let (dataset, path) = pair.live("v");
    fs::write(path.join("f"), "x").unwrap();
    let reader = OpenOptions::new().read(true).open(path.join("f")).unwrap();
    refused(&pair, &dataset);
    drop(reader);
    fenced(&pair, &dataset);
}

#[test]
fn thousands_of_files_closed_right_before_the_fence_do_not_wedge_zfs_fuse() {
    let _alone = alone();
    let Some(pair) = Pair::new("close", "thousands_of_files_closed_right_before") else {
        return;
    };
    let (dataset, path) = pair.live("v");
    // Without draining, 8000 wedge the daemon; fewer suffice to have some closings under way.
    for _ in 0..5 {
        let files: Vec<File> =
            (0..900).map(|n| File::create(path.join(format!("f{n}"))).unwrap()).collect();
        drop(files);
        pair.from.fence(&dataset).unwrap();
        pair.from.activate(&dataset).unwrap();
    }
    assert_eq!(fs::read_dir(&path).unwrap().count(), 900);
}

#[test]
fn what_a_mount_by_hand_wrote_after_the_final_snapshot_is_found() {
    let _alone = alone();
    let Some(pair) = Pair::new("hand", "what_a_mount_by_hand_wrote") else {
        return;
    };
    let (dataset, path) = pair.live("v");
    fs::write(path.join("f"), "ours").unwrap();
    pair.from.fence(&dataset).unwrap();
    let last = pair.snap(&dataset, "final").name;
    pair.from.verify_unwritten(&last).unwrap();
    pair.from.fence(&dataset).unwrap();
    pair.from.verify_unwritten(&last).unwrap();
    common::zfs(&["mount", dataset.as_str()]);
    let writable = pair.from.verify_unwritten(&last).unwrap_err();
    assert!(matches!(writable, StoreError::Busy { .. }), "{writable}");
    fs::write(path.join("f"), "by hand").unwrap();
    common::zfs(&["unmount", dataset.as_str()]);
    let modified = pair.from.verify_unwritten(&last).unwrap_err();
    assert!(matches!(modified, StoreError::Modified { .. }), "{modified}");
    // Nor is what was written before the fence taken for the snapshot.
    pair.from.activate(&dataset).unwrap();
    let before = pair.snap(&dataset, "before").name;
    fs::write(path.join("f"), "after").unwrap();
    pair.from.fence(&dataset).unwrap();
    let modified = pair.from.verify_unwritten(&before).unwrap_err();
    assert!(matches!(modified, StoreError::Modified { .. }), "{modified}");
}

#[test]
fn what_somebody_changed_between_a_fence_and_an_activation_counts() {
    let _alone = alone();
    let Some(pair) = Pair::new("change", "what_somebody_changed_between") else {
        return;
    };
    let (dataset, path) = pair.live("v");
    fs::write(path.join("f"), "x").unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let words = [
        "canmount=on".to_owned(),
        "readonly=on".to_owned(),
        format!("mountpoint={}", elsewhere.path().join("at").display()),
    ];
    for (word, rehearsed) in words.iter().flat_map(|word| [(word, false), (word, true)]) {
        pair.from.fence(&dataset).unwrap();
        if word.starts_with("mountpoint") {
            let back = format!("mountpoint={}", path.display());
            common::zfs(&["set", &back, dataset.as_str()]);
        }
        if rehearsed {
            pair.from.rehearse(&dataset).unwrap();
        }
        common::zfs(&["set", word, dataset.as_str()]);
        if pair.from.dataset(&dataset).unwrap().mounted_at.is_some() {
            common::zfs(&["unmount", dataset.as_str()]);
        }
        if rehearsed {
            pair.from.rehearse(&dataset).unwrap();
        }
        let now = pair.from.activate(&dataset).unwrap().unwrap();
        assert_eq!(fs::read(now.join("f")).unwrap(), b"x", "{word}");
        fs::write(now.join("g"), "writable").unwrap();
        assert_eq!(now == path, !word.starts_with("mountpoint"), "{word}");
        let canmount = ["get", "-Hp", "-o", "value", "canmount", dataset.as_str()];
        assert_eq!(common::zfs(&canmount).trim(), "noauto", "{word}");
    }
    pair.from.fence(&dataset).unwrap();
}
