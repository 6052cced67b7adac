//! Containers of podman and docker.

use std::path::Path;
use std::time::Duration;

use flocker_core::FailureCode;
use flocker_core::record::{ContainerRuntime, Program};

use super::{Here, STOP, shell, timed, try_shell, wait_until};
use crate::driver::Driver;

const PORT: u16 = 6399;

fn word(runtime: ContainerRuntime) -> &'static str {
    match runtime {
        ContainerRuntime::Podman => "podman",
        ContainerRuntime::Docker => "docker",
    }
}

fn image(runtime: ContainerRuntime) -> &'static str {
    match runtime {
        ContainerRuntime::Podman => "localhost/lab-db",
        ContainerRuntime::Docker => "lab-db",
    }
}

fn program(runtime: ContainerRuntime, names: &[&str]) -> Program {
    Program::Containers { runtime, names: names.iter().map(ToString::to_string).collect() }
}

fn redis(line: &str) -> String {
    shell(&format!("timeout 20 redis-cli -p {PORT} {line}"))
}

fn answers() -> bool {
    try_shell(&format!("timeout 2 redis-cli -p {PORT} ping | grep -q PONG"))
}

fn create(runtime: ContainerRuntime, name: &str, options: &str, volume: &Path, data: &str) {
    let (word, image) = (word(runtime), image(runtime));
    let _ = try_shell(&format!("{word} rm -f {name}"));
    std::fs::create_dir_all(volume.join(data)).unwrap();
    shell(&format!(
        "{word} create --name {name} --network host -v {}:/data {options} {image} \
         redis-server --dir /data --port {PORT} --appendonly yes --save ''",
        volume.join(data).display()
    ));
}

fn restart_policy(runtime: ContainerRuntime, name: &str) -> String {
    let word = word(runtime);
    shell(&format!("{word} inspect {name} --format '{{{{.HostConfig.RestartPolicy.Name}}}}'"))
}

fn lives_and_moves(runtime: ContainerRuntime) {
    let mut here = Here::new();
    let name = format!("{}-moves", word(runtime));
    let first = here.volume("drv-a");
    let options = "--restart always -e COLOUR=blue --label shop=corner --memory 200m \
                   --stop-signal SIGINT --tmpfs /scratch";
    create(runtime, &name, options, &first, "data");
    let word = word(runtime);
    let driver = here.driver(&program(runtime, &[&name]));
    let volumes = [first.clone()];

    timed("take", || driver.take().unwrap());
    driver.take().unwrap();
    assert_eq!(restart_policy(runtime, &name), "no");
    assert!(here.taken().exists());
    assert!(!driver.runs().unwrap());
    timed("start", || driver.start(&volumes).unwrap());
    driver.start(&volumes).unwrap();
    assert!(driver.runs().unwrap());
    wait_until("redis", answers);
    redis("set colour blue");

    timed("freeze", || driver.freeze().unwrap());
    assert!(driver.runs().unwrap() && !answers());
    driver.freeze().unwrap();
    timed("thaw", || driver.thaw().unwrap());
    driver.thaw().unwrap();
    wait_until("redis after the thaw", answers);

    // A stop of what is frozen thaws it first; one that waits is told.
    let waiting = here.driver(&program(runtime, &[&name]));
    let waiter = std::thread::spawn(move || waiting.wait().unwrap());
    std::thread::sleep(Duration::from_secs(2));
    driver.freeze().unwrap();
    timed("stop", || driver.stop(STOP).unwrap());
    assert!(!driver.runs().unwrap());
    driver.stop(STOP).unwrap();
    driver.kill().unwrap();
    let ended = waiter.join().unwrap();
    assert!(ended.status.contains("exit status 0") && ended.success, "{ended:?}");

    let described = timed("describe", || driver.describe(&volumes).unwrap());
    println!("{}", described.description);
    assert_eq!(described.losses, []);

    // The other node: the same name, another path, the volume's content.
    shell(&format!("{word} rm {name}"));
    let other = Here::new();
    here.rename("drv-a", "drv-b");
    let volumes = [Path::new("/tank/drv-b").to_owned()];
    let driver = other.driver(&program(runtime, &[&name]));
    timed("prepare", || driver.prepare(&described.description, &volumes).unwrap());
    let id = || shell(&format!("{word} inspect {name} --format '{{{{.Id}}}}'"));
    let made = id();
    timed("prepare again", || driver.prepare(&described.description, &volumes).unwrap());
    assert_eq!(id(), made);
    assert_eq!(restart_policy(runtime, &name), "no");
    assert!(!driver.runs().unwrap());
    driver.start(&volumes).unwrap();
    wait_until("redis over there", answers);
    assert_eq!(redis("get colour"), "blue");
    assert_eq!(shell(&format!("{word} exec {name} printenv COLOUR")), "blue");
    // It is the same by its own description, but for what only this node knows.
    let again = driver.describe(&volumes).unwrap();
    assert_eq!(again.losses, []);
    assert_eq!(again.description, described.description);
    // Another description makes it anew, once it does not run.
    let changed = described.description.replace("COLOUR=blue", "COLOUR=red");
    assert_eq!(driver.prepare(&changed, &volumes).unwrap_err().code, FailureCode::Busy);
    timed("kill", || driver.kill().unwrap());
    assert!(!driver.runs().unwrap());
    driver.prepare(&changed, &volumes).unwrap();
    assert_ne!(id(), made);
    timed("release", || driver.release().unwrap());
    assert_eq!(restart_policy(runtime, &name), "always");
    shell(&format!("{word} rm {name}"));
    driver.release().unwrap();
    assert_eq!(driver.start(&volumes).unwrap_err().code, FailureCode::NotFound);
}

#[test]
#[ignore = "in a guest of the lab: tests/tests/lab_drivers.rs"]
fn a_podman_container_lives_and_is_made_on_another_node() {
    lives_and_moves(ContainerRuntime::Podman);
}

#[test]
#[ignore = "in a guest of the lab: tests/tests/lab_drivers.rs"]
fn a_docker_container_lives_and_is_made_on_another_node() {
    lives_and_moves(ContainerRuntime::Docker);
}

fn losses(runtime: ContainerRuntime) {
    let mut here = Here::new();
    let volume = here.volume("drv-l");
    let (word, image) = (word(runtime), image(runtime));
    let name = format!("{word}-losses");
    let _ = try_shell(&format!("{word} rm -f {name}; {word} volume rm drv-named"));
    shell(&format!(
        "{word} create --name {name} --restart on-failure:3 -v {}:/data -v drv-named:/named -v /anonymous \
         -v /etc/ssl:/ssl:ro --device /dev/fuse --cap-add SYS_ADMIN {image} \
         sh -c 'echo x >/etc/changed; rm /etc/motd; mkdir -p /opt/new/dir; echo y >/opt/new/dir/z; \
         echo n >/tmp/noise; echo n >/run/noise; echo d >/data/d; exec sleep 1000'",
        volume.display()
    ));
    let driver = here.driver(&program(runtime, &[&name]));
    let volumes = [volume];
    driver.take().unwrap();
    driver.start(&volumes).unwrap();
    wait_until("its files", || Path::new("/tank/drv-l/d").exists());
    let described = driver.describe(&volumes).unwrap();
    for loss in &described.losses {
        println!("{}: {}", loss.name, loss.what);
    }
    let names: Vec<&str> = described.losses.iter().map(|loss| loss.name.as_str()).collect();
    let expected = [
        format!("{name}:bind:/etc/ssl"),
        format!("{name}:device:/dev/fuse"),
        format!("{name}:layer"),
        format!("{name}:volume:/anonymous"),
        format!("{name}:volume:drv-named"),
    ];
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, expected);
    let layer = described.losses.iter().find(|loss| loss.name.ends_with(":layer")).unwrap();
    assert!(layer.what.contains("/etc/changed") && !layer.what.contains("noise"), "{layer:?}");
    // It opens the host: made by the operator it stays as it is, at a peer's word it is not made.
    driver.prepare(&described.description, &volumes).unwrap();
    timed("kill", || driver.kill().unwrap());
    driver.release().unwrap();
    let policy = format!("{word} inspect {name} --format '{{{{.HostConfig.RestartPolicy}}}}'");
    assert_eq!(shell(&policy).replace(['{', '}'], ""), "on-failure 3");
    shell(&format!("{word} rm {name}; {word} volume rm drv-named"));
    let refused = driver.prepare(&described.description, &volumes).unwrap_err();
    println!("{refused}");
    assert_eq!(refused.code, FailureCode::NotGranted);
    for word in ["SYS_ADMIN", "/dev/fuse", "/etc/ssl"] {
        assert!(refused.message.contains(word), "{refused}");
    }
}

#[test]
#[ignore = "in a guest of the lab: tests/tests/lab_drivers.rs"]
fn what_a_podman_container_would_leave_behind_is_said() {
    losses(ContainerRuntime::Podman);
}

#[test]
#[ignore = "in a guest of the lab: tests/tests/lab_drivers.rs"]
fn what_a_docker_container_would_leave_behind_is_said() {
    losses(ContainerRuntime::Docker);
}

/// Two that find each other by name, as a compose project's do.
fn project(runtime: ContainerRuntime) {
    let mut here = Here::new();
    let volume = here.volume("drv-p");
    let (word, image) = (word(runtime), image(runtime));
    let names = ["proj-db-1", "proj-app-1"];
    let _ = try_shell(&format!("{word} rm -f {}; {word} network rm proj_default", names.join(" ")));
    shell(&format!("{word} network create --subnet 10.89.77.0/24 --label p=q proj_default"));
    std::fs::create_dir_all(volume.join("db")).unwrap();
    shell(&format!(
        "{word} create --name {} --network proj_default --network-alias db -p 127.0.0.1:6398:6379 \
         -v {}:/data --label com.docker.compose.project=proj {image} redis-server --dir /data \
         --protected-mode no",
        names[0],
        volume.join("db").display()
    ));
    shell(&format!(
        "{word} create --name {} --network proj_default {image} sh -c \
         'until redis-cli -h db set seen yes; do sleep 0.2; done; exec sleep 1000'",
        names[1]
    ));
    let seen = || try_shell("timeout 5 redis-cli -p 6398 get seen | grep -q yes");
    let driver = here.driver(&program(runtime, &names));
    let volumes = [volume];
    driver.take().unwrap();
    driver.start(&volumes).unwrap();
    wait_until("the application", seen);
    driver.stop(Duration::from_secs(2)).unwrap();
    let described = driver.describe(&volumes).unwrap();
    println!("{}", described.description);
    assert_eq!(described.losses, []);
    let refused = driver.can_checkpoint().unwrap_err();
    assert_eq!(refused.code, FailureCode::Unsupported, "{refused}");
    shell(&format!("{word} rm {}; {word} network rm proj_default", names.join(" ")));
    shell("rm -rf /tank/drv-p/db/*");
    driver.prepare(&described.description, &volumes).unwrap();
    driver.start(&volumes).unwrap();
    wait_until("the application over there", seen);
    let network = shell(&format!("{word} network inspect proj_default"));
    assert!(network.contains("10.89.77.0/24"), "{network}");
    driver.kill().unwrap();
    assert_eq!(driver.describe(&volumes).unwrap().description, described.description);
    shell(&format!("{word} rm {}; {word} network rm proj_default", names.join(" ")));
}

#[test]
#[ignore = "in a guest of the lab: tests/tests/lab_drivers.rs"]
fn a_project_of_podman_finds_its_names_on_another_node() {
    project(ContainerRuntime::Podman);
}

#[test]
#[ignore = "in a guest of the lab: tests/tests/lab_drivers.rs"]
fn a_project_of_docker_finds_its_names_on_another_node() {
    project(ContainerRuntime::Docker);
}

/// A restart of the service is no end of a container.
#[test]
#[ignore = "in a guest of the lab: tests/tests/lab_drivers.rs"]
fn a_wait_outlives_podmans_service() {
    let mut here = Here::new();
    let volume = here.volume("drv-w");
    create(ContainerRuntime::Podman, "waits", "", &volume, "data");
    let program = program(ContainerRuntime::Podman, &["waits"]);
    let driver = here.driver(&program);
    driver.start(&[volume]).unwrap();
    wait_until("redis", answers);
    let waiting = here.driver(&program);
    let waiter = std::thread::spawn(move || waiting.wait().unwrap());
    std::thread::sleep(Duration::from_secs(2));
    shell("systemctl stop podman.service");
    std::thread::sleep(Duration::from_secs(3));
    assert!(!waiter.is_finished());
    driver.kill().unwrap();
    let ended = waiter.join().unwrap();
    assert!(ended.status.contains("137") && !ended.success, "{ended:?}");
    shell("podman rm waits");
}

#[test]
#[ignore = "in a guest of the lab: tests/tests/lab_drivers.rs"]
fn images_travel_in_a_file() {
    for runtime in [ContainerRuntime::Podman, ContainerRuntime::Docker] {
        let mut here = Here::new();
        let volume = here.volume("drv-i");
        let word = word(runtime);
        // A small one: its own layer and nothing else.
        shell(&format!(
            "cd /tmp && mkdir -p tiny && cp -L /usr/bin/busybox tiny/ 2>/dev/null || \
             printf x >tiny/x; tar -C tiny -c . | {word} import - localhost/drv-tiny:1"
        ));
        let _ = try_shell(&format!("{word} rm -f tiny"));
        shell(&format!(
            "{word} create --name tiny -v {}:/d localhost/drv-tiny:1 /x",
            volume.display()
        ));
        let containers = crate::driver::Containers::new(
            &here.places(),
            super::UNIT,
            runtime,
            &["tiny".to_owned()],
        );
        let volumes = [volume];
        let described = containers.describe(&volumes).unwrap();
        let file = here.dir.path().join("state/images").join(format!("{}.tar", super::UNIT));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let beside = file.with_extension("kept");
        timed("save the image", || containers.save_image(&beside).unwrap());
        shell(&format!("{word} rm tiny; {word} rmi localhost/drv-tiny:1"));
        let missing = containers.prepare(&described.description, &volumes).unwrap_err();
        println!("{missing}");
        assert_eq!(missing.code, FailureCode::NotFound);
        std::fs::rename(&beside, &file).unwrap();
        timed("load it", || containers.prepare(&described.description, &volumes).unwrap());
        shell(&format!("{word} rm tiny; {word} rmi localhost/drv-tiny:1"));
    }
}

/// The memory of a Redis goes on in a container with another id, its volume at another path.
#[test]
#[ignore = "in a guest of the lab: tests/tests/lab_drivers.rs"]
fn a_podman_container_goes_on_with_its_memory_elsewhere() {
    let mut here = Here::new();
    let (volume, state) = (here.volume("drv-c"), here.volume("drv-state"));
    let _ = try_shell("podman rm -f remembers");
    std::fs::create_dir_all(volume.join("data")).unwrap();
    shell(&format!(
        "podman create --name remembers --network host -v {}:/data --tmpfs /scratch localhost/lab-db sh -c \
         'exec 9>/opt/open-file; rm /etc/motd; exec redis-server --dir /data --port {PORT} --appendonly yes'",
        volume.join("data").display()
    ));
    let program = program(ContainerRuntime::Podman, &["remembers"]);
    let driver = here.driver(&program);
    let volumes = [volume];
    driver.take().unwrap();
    driver.can_checkpoint().unwrap();
    driver.start(&volumes).unwrap();
    wait_until("redis", answers);
    // Only in memory; in the layer a file that is open, and one that is not there any more.
    redis("config set appendonly no");
    redis("set memory kept");
    let pid = redis("info server | grep process_id");
    timed("pre-dump", || driver.pre_dump(&state).unwrap());
    assert!(answers());
    let parts = timed("checkpoint", || driver.checkpoint(&state, true).unwrap());
    println!("{parts:?}");
    assert!(parts.iter().any(|part| part.name == "criu frozen"));
    assert!(!driver.runs().unwrap());
    // The source goes on where it was.
    let parts = timed("restore in place", || driver.restore(&state, &volumes).unwrap());
    println!("{parts:?}");
    assert_eq!(redis("get memory"), "kept");
    assert_eq!(redis("info server | grep process_id"), pid);
    driver.restore(&state, &volumes).unwrap();
    timed("checkpoint again", || driver.checkpoint(&state, false).unwrap());
    let described = driver.describe(&volumes).unwrap();

    shell("podman rm remembers");
    here.rename("drv-c", "drv-d");
    here.rename("drv-state", "drv-state2");
    let other = Here::new();
    let driver = other.driver(&program);
    let volumes = [Path::new("/tank/drv-d").to_owned()];
    timed("prepare", || driver.prepare(&described.description, &volumes).unwrap());
    assert!(!driver.runs().unwrap());
    let state = Path::new("/tank/drv-state2");
    let parts = timed("restore", || driver.restore(state, &volumes).unwrap());
    println!("{parts:?}");
    assert!(parts.iter().any(|part| part.name == "criu restore"));
    assert_eq!(redis("get memory"), "kept");
    assert!(try_shell("podman exec remembers sh -c 'ls -l /proc/1/fd | grep -q /opt/open-file'"));
    assert!(!try_shell("podman exec remembers test -e /etc/motd"));
    assert!(driver.runs().unwrap());
    // Written where its volume is now.
    redis("save");
    assert!(Path::new("/tank/drv-d/data/dump.rdb").exists());
    timed("stop", || driver.stop(STOP).unwrap());
    // It starts anew as any other.
    driver.start(&volumes).unwrap();
    wait_until("redis", answers);
    driver.kill().unwrap();
    // Nothing whole to go on from: nothing ran.
    shell("rm /tank/drv-state2/remembers/checkpoint/pages-*.img");
    let failed = driver.restore(state, &volumes).unwrap_err();
    println!("{failed}");
    assert_eq!(failed.code, FailureCode::NotStarted);
    shell("podman rm -f remembers");
}

/// One half of a move between two hosts; `tests/lab/guest/move-container.sh` has them in their order. Here Redis
/// gets going, and is described.
#[test]
#[ignore = "a step of tests/lab/guest/move-container.sh"]
fn step_begin() {
    let here = Here::new();
    let volume = Path::new("/tank/mv");
    let _ = try_shell("podman rm -f traveller");
    std::fs::create_dir_all(volume.join("data")).unwrap();
    shell(
        "podman create --name traveller --network host -v /tank/mv/data:/data --tmpfs /scratch localhost/lab-db \
         redis-server --dir /data --port 6379 --bind 0.0.0.0 --protected-mode no --appendonly yes",
    );
    let driver = here.driver(&program(ContainerRuntime::Podman, &["traveller"]));
    let volumes = [volume.to_owned()];
    driver.take().unwrap();
    driver.can_checkpoint().unwrap();
    driver.start(&volumes).unwrap();
    let described = driver.describe(&volumes).unwrap();
    assert_eq!(described.losses, []);
    std::fs::write("/tank/mvstate/description", described.description).unwrap();
}

/// Over there it is made ready, where the volumes are at another path.
#[test]
#[ignore = "a step of tests/lab/guest/move-container.sh"]
fn step_prepare() {
    let here = Here::new();
    let _ = try_shell("podman rm -f traveller");
    let driver = here.driver(&program(ContainerRuntime::Podman, &["traveller"]));
    driver.can_checkpoint().unwrap_err();
    let description = std::fs::read_to_string("/tmp/description").unwrap();
    driver.prepare(&description, &["/tank/there/mv".into()]).unwrap();
    driver.can_checkpoint().unwrap();
    assert!(!driver.runs().unwrap());
}

/// It is written down while it runs, and then for good.
#[test]
#[ignore = "a step of tests/lab/guest/move-container.sh"]
fn step_leave() {
    let here = Here::new();
    let driver = here.driver(&program(ContainerRuntime::Podman, &["traveller"]));
    let state = Path::new("/tank/mvstate");
    timed("pre-dump", || driver.pre_dump(state).unwrap());
    let parts = timed("checkpoint", || driver.checkpoint(state, true).unwrap());
    println!("{parts:?}");
}

/// It goes on over there.
#[test]
#[ignore = "a step of tests/lab/guest/move-container.sh"]
fn step_arrive() {
    let here = Here::new();
    let driver = here.driver(&program(ContainerRuntime::Podman, &["traveller"]));
    let volumes = ["/tank/there/mv".into()];
    let parts =
        timed("restore", || driver.restore(Path::new("/tank/there/mvstate"), &volumes).unwrap());
    println!("{parts:?}");
    assert!(driver.runs().unwrap());
}
