//! The binary at its limits: a full disk, a standby that was written, a stream larger than memory.

use std::path::{Path, PathBuf};
use std::process::Command;

use flocker_tests::e2e::{Host, World, skip, wait_for, zfs};
use flocker_zfs::fixture::{FusePool, pool_or_skip};

fn volume(host: &Host, world: &World, name: &str) -> PathBuf {
    let unit = host.unit(name).expect("the unit");
    let dataset = unit["volumes"][0]["dataset"].as_str().expect("a dataset").to_owned();
    world.path().join(format!("{}-vault", host.name)).join("live").join(dataset)
}

/// Bytes that do not compress and do not repeat.
fn noise(bytes: usize, mut seed: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(&(seed ^ (seed >> 29)).to_le_bytes());
    }
    out.truncate(bytes);
    out
}

/// A small filesystem of its own, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path, size: &str) -> Result<Self, String> {
        std::fs::create_dir_all(path).map_err(|e| e.to_string())?;
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(path)
            .output()
            .map_err(|e| e.to_string())?;
        if output.status.success() {
            return Ok(Self(path.to_path_buf()));
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    fn grow(&self, size: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,size={size}")])
            .arg(&self.0)
            .status()
            .expect("mount runs");
        assert!(status.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_stops_its_volume_by_name_and_goes_on_when_there_is_room() {
    let world = World::new();
    let disk = match SmallDisk::mount(&world.path().join("b-vault"), "24m") {
        Ok(disk) => disk,
        Err(why) => {
            let test = "a_full_disk_stops_its_volume_by_name_and_goes_on_when_there_is_room";
            return skip(&format!("a small disk: {why}"), test);
        }
    };
    let (a, b) = world.vault_pair();
    for name in ["big", "small"] {
        let dataset = format!("data/{name}");
        a.ok(&["protect", &dataset, "--to", "b", "--rpo", "300ms", "--create"]);
        a.wait_in_step(name);
    }
    std::fs::write(volume(&a, &world, "big").join("noise"), noise(40 << 20, 1)).expect("room on a");
    let stopped =
        a.wait_unit("big", "out of space", |u| u["standbys"][0]["failure"]["code"] == "no_space");
    let words = stopped["standbys"][0]["failure"]["message"].as_str().expect("words").to_owned();
    assert!(words.contains("recv/a/big"), "the volume is named: {words}");
    // The other volume does not suffer for it.
    std::fs::write(volume(&a, &world, "small").join("note"), b"still alive").expect("room on a");
    a.wait_unit("small", "in step", |u| u["standbys"][0]["lag_ms"].as_u64() < Some(2000));
    assert!(b.unit("small").is_some());
    disk.grow("200m");
    a.wait_unit("big", "in step again", |u| {
        u["standbys"][0]["failure"].is_null() && u["standbys"][0]["lag_ms"].as_u64() < Some(2000)
    });
    a.json(&["migrate", "big", "--to", "b"]);
    let there = std::fs::read(volume(&b, &world, "big").join("noise")).expect("the content");
    assert!(there == noise(40 << 20, 1), "what came over is what was written");
}

/// The most memory a process ever had, bytes.
fn peak_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).expect("its peak");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    kib << 10
}

#[test]
fn a_stream_larger_than_memory_takes_at_most_256_mib_in_a_node() {
    let world = World::new();
    let (a, b) = world.vault_pair();
    a.ok(&["protect", "data/big", "--to", "b", "--rpo", "500ms", "--create"]);
    let live = volume(&a, &world, "big");
    for part in 0..6 {
        std::fs::write(live.join(format!("part{part}")), noise(64 << 20, part)).expect("room");
    }
    a.json(&["migrate", "big", "--to", "b"]);
    for host in [&a, &b] {
        let peak = peak_bytes(host.pid().expect("it runs"));
        assert!(peak < 256 << 20, "{} took {} MiB", host.name, peak >> 20);
    }
    let there = std::fs::read(volume(&b, &world, "big").join("part5")).expect("the content");
    assert!(there == noise(64 << 20, 5));
}

/// Two paired nodes on zfs-fuse, and a dataset of the first that is protected by the second.
fn protected_on_fuse(world: &World, pa: &FusePool, pb: &FusePool) -> (Host, Host, String) {
    let (a, b) = world.zfs_pair([pa.name(), pb.name()]);
    let dataset = format!("{}/db", pa.name());
    zfs(&["create", &dataset]);
    a.ok(&["protect", &dataset, "--to", "b", "--rpo", "500ms"]);
    (a, b, dataset)
}

#[test]
fn a_standby_on_zfs_fuse_that_was_written_is_named_and_nothing_on_it_is_destroyed() {
    let test = "a_standby_on_zfs_fuse_that_was_written_is_named_and_nothing_on_it_is_destroyed";
    let (Some(pa), Some(pb)) = (pool_or_skip("wra", 128, test), pool_or_skip("wrb", 128, test))
    else {
        return;
    };
    let world = World::new();
    let (a, _b, _) = protected_on_fuse(&world, &pa, &pb);
    a.wait_in_step("db");
    let replica = format!("{}/recv/db", pb.name());
    zfs(&["mount", &replica]);
    let foreign = pb.mountpoint().join("recv/db/foreign");
    std::fs::write(&foreign, b"somebody's only copy").expect("a standby that is mounted by hand");
    std::fs::write(pa.mountpoint().join("db/more"), b"more").expect("room on a");
    let stopped = a.wait_unit("db", "stopped by the written standby", |u| {
        u["standbys"][0]["failure"]["code"] == "modified"
    });
    let words = stopped["standbys"][0]["failure"]["message"].as_str().expect("words").to_owned();
    assert!(words.contains(&replica), "the standby's dataset is named: {words}");
    assert_eq!(std::fs::read(&foreign).expect("it is kept"), b"somebody's only copy");
}

/// A volume whose directory was moved away, if only for a moment, once stood still and said to be in
/// step; a migration then went by the last snapshot and lost what came after it.
#[test]
fn a_live_directory_that_is_away_is_an_alarm_and_no_migration_goes_by_an_older_snapshot() {
    let world = World::new();
    let (a, b) = world.vault_pair();
    a.ok(&["protect", "data/db", "--to", "b", "--rpo", "300ms", "--create"]);
    let live = volume(&a, &world, "db");
    std::fs::write(live.join("one"), b"1").expect("room");
    a.wait_in_step("db");
    let away = world.path().join("away");
    std::fs::write(live.join("two"), b"2").expect("room");
    std::fs::rename(&live, &away).expect("moved away");
    let unit = a.wait_unit("db", "alarmed", |u| !u["alarm"].is_null());
    let words = unit["alarm"]["message"].as_str().expect("words").to_owned();
    assert!(words.contains("gone"), "{words}");
    let (_, words) = a.fails(&["migrate", "db", "--to", "b"]);
    assert!(!words.is_empty());
    assert_eq!(a.unit("db").expect("the unit")["epoch"]["number"], 1);
    std::fs::rename(&away, &live).expect("moved back");
    a.wait_unit("db", "well again", |u| u["alarm"].is_null() && u["role"] == "primary");
    a.wait_unit("db", "in step", |u| u["standbys"][0]["lag_ms"].as_u64() < Some(2000));
    a.json(&["migrate", "db", "--to", "b"]);
    let there = volume(&b, &world, "db");
    assert_eq!(std::fs::read(there.join("two")).expect("what came after"), b"2");
}

/// A workload that was asked for while its dataset was not mounted once wrote into the bare
/// mountpoint, beside the volume.
#[test]
fn a_workload_on_an_unmounted_zfs_fuse_dataset_starts_in_the_volume_or_not_at_all() {
    let test = "a_workload_on_an_unmounted_zfs_fuse_dataset_starts_in_the_volume_or_not_at_all";
    let (Some(pa), Some(pb)) = (pool_or_skip("uma", 128, test), pool_or_skip("umb", 128, test))
    else {
        return;
    };
    let world = World::new();
    let (a, _b, dataset) = protected_on_fuse(&world, &pa, &pb);
    let inside = pa.mountpoint().join("db");
    std::fs::write(inside.join("mark"), b"of the volume").expect("room");
    zfs(&["umount", &dataset]);
    // zfs-fuse goes on with an unmount after its command has returned.
    let mounted =
        || std::fs::read_to_string("/proc/self/mounts").expect("mounts").contains(&dataset);
    wait_for("the dataset is unmounted", || !mounted());
    let script = "test -e mark && touch started && exec sleep 600";
    let _ = a.run(&["run", "db", "--", "sh", "-c", script]);
    a.wait_serving("db");
    assert!(inside.join("mark").exists(), "the dataset is mounted again");
    wait_for("the workload started in it", || inside.join("started").exists());
    a.ok(&["stop", "db"]);
}

/// A target whose path is taken once said that it was ready, and the unit was down until somebody
/// cleared the way.
#[test]
fn a_target_whose_path_is_taken_refuses_while_the_source_can_still_go_on() {
    let world = World::new();
    let (a, b) = world.vault_pair();
    a.ok(&["protect", "data/db", "--to", "b", "--rpo", "300ms", "--create"]);
    for host in [&b, &a] {
        host.ok(&["run", "db", "--", "sleep", "600"]);
    }
    a.wait_serving("db");
    a.wait_in_step("db");
    let place = volume(&b, &world, "db");
    std::fs::create_dir_all(&place).expect("a directory in the way");
    std::fs::write(place.join("foreign"), b"mine").expect("a file in it");
    let (_, words) = a.fails(&["migrate", "db", "--to", "b"]);
    assert!(words.contains("holds something else"), "{words}");
    let unit = a.wait_serving("db");
    assert_eq!(unit["epoch"]["number"], 1);
    assert_eq!(std::fs::read(place.join("foreign")).expect("kept"), b"mine");
    std::fs::remove_dir_all(&place).expect("cleared");
    a.wait_in_step("db");
    a.json(&["migrate", "db", "--to", "b"]);
    b.wait_serving("db");
}
