//! Bundles by runc and crun, and containers of LXC. All of them run what lies in /opt/lab-db.

use std::path::{Path, PathBuf};
use std::time::Duration;

use flocker_core::FailureCode;
use flocker_core::record::{OciRuntime, Program};
use serde_json::{Value, json};

use super::{Here, STOP, shell, timed, try_shell, wait_until};

const PORT: u16 = 6396;

fn redis(line: &str) -> String {
    shell(&format!("timeout 20 redis-cli -p {PORT} {line}"))
}

fn answers() -> bool {
    try_shell(&format!("timeout 2 redis-cli -p {PORT} ping | grep -q PONG"))
}

fn bundle(at: &Path, data: &Path) {
    std::fs::create_dir_all(at).unwrap();
    std::fs::create_dir_all(data).unwrap();
    shell(&format!("cd {} && rm -f config.json && runc spec", at.display()));
    let path = at.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["root"] = json!({"path": "/opt/lab-db", "readonly": true});
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!([
        "redis-server",
        "--dir",
        "/data",
        "--port",
        PORT.to_string(),
        "--save",
        "",
        "--bind",
        "127.0.0.1"
    ]);
    let mounts = config["mounts"].as_array_mut().unwrap();
    mounts.push(
        json!({"destination": "/data", "type": "bind", "source": data, "options": ["rbind", "rw"]}),
    );
    mounts.push(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}));
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "network");
    std::fs::write(path, config.to_string()).unwrap();
}

fn lives(runtime: OciRuntime, id: &str) {
    let mut here = Here::new();
    let _ = try_shell(
        "runc kill drv-runc KILL; crun kill drv-crun KILL; sleep 1; runc delete -f drv-runc; crun delete -f drv-crun",
    );
    let (volume, state) = (here.volume("drv-o"), here.volume("drv-ostate"));
    shell("mkdir -p /opt/lab-db/data");
    bundle(&volume.join("bundle"), &volume.join("data"));
    let program = Program::Oci { runtime, id: id.to_owned(), bundle: PathBuf::from("bundle") };
    let driver = here.driver(&program);
    let volumes = [volume];
    driver.take().unwrap();
    let described = driver.describe(&volumes).unwrap();
    let names: Vec<&str> = described.losses.iter().map(|loss| loss.name.as_str()).collect();
    assert_eq!(names, [format!("{id}:rootfs")]);
    assert!(!driver.runs().unwrap());
    timed("start", || driver.start(&volumes).unwrap());
    driver.start(&volumes).unwrap();
    wait_until("redis", answers);
    assert!(driver.runs().unwrap());
    timed("freeze", || driver.freeze().unwrap());
    assert!(!answers());
    timed("thaw", || driver.thaw().unwrap());
    wait_until("redis", answers);
    redis("set memory kept");
    let waiting = here.driver(&program);
    let waiter = std::thread::spawn(move || waiting.wait().unwrap());
    driver.can_checkpoint().unwrap();
    timed("pre-dump", || driver.pre_dump(&state).unwrap());
    let parts = timed("checkpoint", || driver.checkpoint(&state, true).unwrap());
    println!("{parts:?}");
    assert!(parts.iter().any(|part| part.name == "criu frozen"));
    waiter.join().unwrap();
    assert!(!driver.runs().unwrap() && !answers());
    let parts = timed("restore", || driver.restore(&state, &volumes).unwrap());
    println!("{parts:?}");
    assert!(parts.iter().any(|part| part.name == "criu restore"));
    assert_eq!(redis("get memory"), "kept");
    driver.restore(&state, &volumes).unwrap();
    driver.freeze().unwrap();
    timed("stop", || driver.stop(STOP).unwrap());
    assert!(!driver.runs().unwrap());
    driver.stop(STOP).unwrap();
    driver.start(&volumes).unwrap();
    timed("kill", || driver.kill().unwrap());
    assert!(!driver.runs().unwrap());
    // Nothing of it ran: that is said.
    shell("sed -i 's/redis-server/no-such-program/' /tank/drv-o/bundle/config.json");
    let failed = driver.start(&volumes).unwrap_err();
    println!("{failed}");
    assert_eq!(failed.code, FailureCode::NotStarted);
    driver.kill().unwrap();
}

#[test]
#[ignore = "in a guest of the lab: tests/tests/lab_drivers.rs"]
fn a_bundle_of_runc_lives_and_goes_on_with_its_memory() {
    lives(OciRuntime::Runc, "drv-runc");
}

#[test]
#[ignore = "in a guest of the lab: tests/tests/lab_drivers.rs"]
fn a_bundle_of_crun_lives_and_goes_on_with_its_memory() {
    lives(OciRuntime::Crun, "drv-crun");
}

#[test]
#[ignore = "in a guest of the lab: tests/tests/lab_drivers.rs"]
fn a_container_of_lxc_is_taken_started_stopped_and_given_back() {
    let mut here = Here::new();
    let volume = here.volume("drv-x");
    let folder = Path::new("/var/lib/lxc/drv-lxc");
    let _ = try_shell("lxc-stop -k -n drv-lxc; rm -rf /var/lib/lxc/drv-lxc");
    std::fs::create_dir_all(folder).unwrap();
    std::fs::create_dir_all(volume.join("data")).unwrap();
    std::fs::write(
        folder.join("config"),
        format!(
            "lxc.include = /usr/share/lxc/config/common.conf\nlxc.uts.name = drv-lxc\nlxc.net.0.type = none\n\
             lxc.start.auto = 1\nlxc.apparmor.profile = unconfined\nlxc.signal.halt = SIGTERM\n\
             lxc.rootfs.path = dir:/opt/lab-db\nlxc.mount.entry = {} data none bind,create=dir 0 0\n\
             lxc.init.cmd = /usr/bin/redis-server --dir /data --port {PORT} --save \"\"\n",
            volume.join("data").display()
        ),
    )
    .unwrap();
    let driver = here.driver(&Program::Lxc("drv-lxc".to_owned()));
    let volumes = [volume];
    let auto = || shell("grep start.auto /var/lib/lxc/drv-lxc/config");
    driver.take().unwrap();
    assert_eq!(auto(), "lxc.start.auto = 0");
    assert!(!driver.runs().unwrap());
    timed("start", || driver.start(&volumes).unwrap());
    wait_until("redis", answers);
    driver.start(&volumes).unwrap();
    assert!(driver.runs().unwrap());
    timed("freeze", || driver.freeze().unwrap());
    assert!(!answers());
    timed("thaw", || driver.thaw().unwrap());
    wait_until("redis", answers);
    let waiting = here.driver(&Program::Lxc("drv-lxc".to_owned()));
    let waiter = std::thread::spawn(move || waiting.wait().unwrap());
    std::thread::sleep(Duration::from_millis(500));
    driver.freeze().unwrap();
    timed("stop", || driver.stop(STOP).unwrap());
    waiter.join().unwrap();
    assert!(!driver.runs().unwrap());
    driver.start(&volumes).unwrap();
    timed("kill", || driver.kill().unwrap());
    assert!(!driver.runs().unwrap());
    let described = driver.describe(&volumes).unwrap();
    let names: Vec<&str> = described.losses.iter().map(|loss| loss.name.as_str()).collect();
    assert_eq!(names, ["drv-lxc:config", "drv-lxc:rootfs"]);
    assert_eq!(driver.can_checkpoint().unwrap_err().code, FailureCode::Unsupported);
    driver.release().unwrap();
    assert_eq!(auto(), "lxc.start.auto = 1");
    std::fs::remove_dir_all(folder).unwrap();
    assert_eq!(driver.take().unwrap_err().code, FailureCode::NotFound);
}
