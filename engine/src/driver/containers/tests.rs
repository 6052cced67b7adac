//! The client and the drivers against a server that answers as the programs do, and descriptions there and back.

use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flocker_core::FailureCode;
use flocker_core::ids::UnitId;
use flocker_core::record::ContainerRuntime::{self, Docker, Podman};
use hyper::Method;
use serde_json::{Value, json};

use super::api::{Api, Inspected};
use super::checkpoint::add_layer;
use super::create::{check_stays_inside, container_body, network_body};
use super::description::{self, Container, Description, Source, guard};
use super::http::{Client, HttpError, Payload, escaped};
use super::layer::layer;
use super::{Containers, describe};
use crate::driver::{Driver, Places};

const UNIT: UnitId = UnitId(0xabcd);

/// What was asked: `POST /containers/x/start`, and the body.
type Asked = Arc<Mutex<Vec<(String, String)>>>;

/// A server of one's own, for as long as the test lives.
struct Server {
    dir: tempfile::TempDir,
    asked: Asked,
}

enum Says {
    /// A status and a body, of a known length.
    Json(u16, Value),
    /// The same in chunks.
    Chunks(Vec<&'static str>),
    /// It hangs up.
    Nothing,
    /// It says nothing for so long.
    Late(Duration),
}

impl Server {
    fn new(answer: impl Fn(&str, usize) -> Says + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("api.sock")).unwrap();
        let asked = Asked::default();
        let (seen, answer) = (Arc::clone(&asked), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                // One that is hung up on in the middle is no failure of the test.
                std::thread::spawn(move || drop(serve(stream, &seen, &*answer)));
            }
        });
        Self { dir, asked }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    fn client(&self) -> Client {
        Client::new(self.socket())
    }

    fn containers(&self, runtime: ContainerRuntime, names: &[&str]) -> Containers {
        let places = Places {
            state: self.dir.path().join("state"),
            podman: Some(self.socket()),
            docker: Some(self.socket()),
            lxc: None,
        };
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        Containers::new(&places, UNIT, runtime, &names)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|(line, _)| line.clone()).collect()
    }

    fn body_of(&self, line: &str) -> String {
        let asked = self.asked.lock().unwrap();
        asked.iter().rev().find(|(known, _)| known == line).unwrap().1.clone()
    }
}

fn serve(
    stream: UnixStream,
    asked: &Asked,
    answer: &dyn Fn(&str, usize) -> Says,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let line = first.trim().trim_end_matches(" HTTP/1.1").to_owned();
    let count = {
        let mut asked = asked.lock().unwrap();
        asked.push((line.clone(), String::from_utf8_lossy(&body).into_owned()));
        asked.iter().filter(|(known, _)| *known == line).count()
    };
    let mut stream = stream;
    match answer(&line, count) {
        Says::Json(status, value) => {
            let body = if status == 204 { String::new() } else { value.to_string() };
            write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }
        Says::Chunks(chunks) => {
            write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            for chunk in chunks {
                write!(stream, "{:x}\r\n{chunk}\r\n", chunk.len())?;
            }
            write!(stream, "0\r\n\r\n")
        }
        Says::Nothing => Ok(()),
        Says::Late(pause) => {
            std::thread::sleep(pause);
            Ok(())
        }
    }
}

fn none() -> Says {
    Says::Json(404, json!({"message": "no such container"}))
}

#[test]
fn an_answer_comes_whole_whether_its_length_is_known_or_not() {
    let server = Server::new(|line, _| match line {
        "GET /a" => Says::Json(200, json!({"a": 1})),
        "GET /b" => Says::Chunks(vec!["{\"a\":", "1}"]),
        _ => none(),
    });
    for path in ["/a", "/b"] {
        let answer = server.client().ask(Method::GET, path, Payload::Nothing, None).unwrap();
        assert_eq!((answer.status, &answer.body[..]), (200, &b"{\"a\":1}"[..]), "{path}");
    }
    assert_eq!(server.client().ask(Method::GET, "/c", Payload::Nothing, None).unwrap().status, 404);
}

#[test]
fn files_are_sent_and_received_without_being_kept_in_memory() {
    let server = Server::new(|line, _| match line {
        "POST /load" => Says::Json(200, json!({})),
        "GET /save" => Says::Chunks(vec!["one", "two"]),
        _ => none(),
    });
    let mut file = tempfile::tempfile().unwrap();
    let answer = server.client().ask_into(Method::GET, "/save", &mut file, None).unwrap();
    assert_eq!(answer.status, 200);
    file.rewind().unwrap();
    let again = file.try_clone().unwrap();
    let sent = Payload::File(again, "application/x-tar");
    server.client().ask(Method::POST, "/load", sent, None).unwrap();
    assert_eq!(server.body_of("POST /load"), "onetwo");
    let refused = server.client().ask_into(Method::GET, "/other", &mut file, None).unwrap();
    assert_eq!(refused.status, 404);
}

#[test]
fn an_absent_a_broken_and_a_silent_server_are_told_apart() {
    let server = Server::new(|line, _| match line {
        "GET /broken" => Says::Nothing,
        _ => Says::Late(Duration::from_secs(20)),
    });
    let ask = |path: &str| {
        let limit = Some(Duration::from_millis(300));
        server.client().ask(Method::GET, path, Payload::Nothing, limit).unwrap_err()
    };
    assert!(matches!(ask("/broken"), HttpError::Broken { .. }));
    assert!(matches!(ask("/silent"), HttpError::TimedOut { .. }));
    let absent = Api::new(Podman, server.dir.path().join("none")).inspect("x").unwrap_err();
    assert!(absent.message.contains("systemctl enable --now podman.socket"), "{absent}");
}

#[test]
fn names_are_escaped_in_paths() {
    assert_eq!(escaped("a/b c:1~"), "a%2Fb%20c%3A1~");
}

fn stopped(policy: &str) -> Value {
    json!({
        "Id": "0123456789abcdef", "Name": "/x",
        "State": {"Running": false, "StartedAt": "never"},
        "HostConfig": {"RestartPolicy": {"Name": policy, "MaximumRetryCount": 3}},
        "Config": {"Labels": {}},
    })
}

#[test]
fn a_restart_policy_is_written_down_before_it_is_turned_off_and_given_back() {
    for runtime in [Podman, Docker] {
        let server = Server::new(move |line, _| match line {
            "GET /containers/x/json" => Says::Json(200, stopped("on-failure")),
            _ if line.contains("/update") => Says::Json(201, json!({})),
            _ => none(),
        });
        let driver = server.containers(runtime, &["x"]);
        if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            driver.take().unwrap();
        } else {
            driver.take_one("x", &mut driver.before().unwrap()).unwrap();
        }
        driver.release().unwrap();
        let updates: Vec<String> =
            server.asked().into_iter().filter(|line| line.contains("update")).collect();
        let expected = match runtime {
            Podman => [
                "POST /v4.0.0/libpod/containers/x/update?restartPolicy=no",
                "POST /v4.0.0/libpod/containers/x/update?restartPolicy=on-failure&restartRetries=3",
            ],
            Docker => ["POST /containers/x/update"; 2],
        };
        assert_eq!(updates, expected);
        if runtime == Docker {
            let body: Value = serde_json::from_str(&server.body_of(&updates[1])).unwrap();
            let policy = json!({"Name": "on-failure", "MaximumRetryCount": 3});
            assert_eq!(body["RestartPolicy"], policy);
        }
    }
}

#[test]
fn what_removes_or_starts_itself_cannot_be_taken() {
    let server = Server::new(|line, _| match line {
        "GET /containers/rm/json" => {
            let mut found = stopped("no");
            found["HostConfig"]["AutoRemove"] = json!(true);
            Says::Json(200, found)
        }
        "GET /containers/quadlet/json" => {
            let mut found = stopped("no");
            found["Config"]["Labels"]["PODMAN_SYSTEMD_UNIT"] = json!("q.service");
            Says::Json(200, found)
        }
        _ => none(),
    });
    for (name, word) in [("rm", "--rm"), ("quadlet", "q.service")] {
        let driver = server.containers(Podman, &[name]);
        let refused = driver.take_one(name, &mut driver.before().unwrap()).unwrap_err();
        assert_eq!(refused.code, FailureCode::Unsupported);
        assert!(refused.message.contains(word), "{refused}");
    }
    let missing = server.containers(Docker, &["none"]).start(&[]).unwrap_err();
    assert_eq!(missing.code, FailureCode::NotFound);
    assert!(!server.containers(Docker, &["none"]).runs().unwrap());
}

#[test]
fn a_start_that_fails_before_anything_ran_says_so() {
    let server = Server::new(|line, _| match line {
        "GET /containers/x/json" => Says::Json(200, stopped("no")),
        "POST /containers/x/start" => Says::Json(500, json!({"message": "no such program"})),
        _ => none(),
    });
    let failed = server.containers(Docker, &["x"]).start(&[]).unwrap_err();
    assert_eq!(failed.code, FailureCode::NotStarted);
    assert!(failed.message.contains("no such program"), "{failed}");
}

#[test]
fn a_wait_that_breaks_is_begun_again() {
    let server = Server::new(|line, count| match line {
        "GET /containers/x/json" => {
            let mut found = stopped("no");
            found["State"]["Running"] = json!(true);
            Says::Json(200, found)
        }
        _ if line.contains("/wait") && count == 1 => Says::Nothing,
        _ if line.contains("/wait") => Says::Json(200, json!({"StatusCode": 3})),
        _ => none(),
    });
    let ended = server.containers(Podman, &["x"]).wait().unwrap();
    assert_eq!((ended.status.as_str(), ended.success), ("container x: exit status 3", false));
}

/// As docker says it, cut down to what matters.
fn inspected() -> Inspected {
    let docker = json!({
        "Id": "4f1c2b", "Name": "/pg", "Image": "sha256:aaaa",
        "Config": {
            "Hostname": "4f1c2b", "Image": "postgres:17", "User": "999",
            "Env": ["A=b", "container=podman", "HOSTNAME=4f1c2b"],
            "Cmd": ["postgres"], "Entrypoint": [],
            "Labels": {"shop": "corner", "flocker-repl.unit": "x"}, "StopSignal": "SIGINT",
        },
        "HostConfig": {
            "NetworkMode": "proj_default", "Memory": 1000, "ShmSize": 64, "CapAdd": null,
            "RestartPolicy": {"Name": "always", "MaximumRetryCount": 0},
            "LogConfig": {"Type": "k8s-file", "Config": {"path": "/etc/cron.d/x", "max-size": "1m"}},
            "Ulimits": [{"Name": "RLIMIT_NOFILE", "Soft": 10, "Hard": 20}],
            "SecurityOpt": ["no-new-privileges"], "Unheard": "of", "CpuCount": 0,
        },
        "Mounts": [
            {"Type": "bind", "Source": "/tank/app/pg/data", "Destination": "/data", "RW": true,
             "Propagation": "rprivate"},
            {"Type": "bind", "Source": "/tank/app/pg", "Destination": "/all", "RW": false,
             "Propagation": "rprivate"},
            {"Type": "bind", "Source": "/tank/app/pg-other", "Destination": "/other", "RW": true},
        ],
        "NetworkSettings": {"Networks": {
            "proj_default": {"Aliases": ["db", "4f1c2b"], "IPAMConfig": {"IPv4Address": "10.1.0.9"}},
        }},
    });
    Inspected { id: "4f1c2b".to_owned(), docker, libpod: Some(json!({})) }
}

fn volumes() -> [PathBuf; 2] {
    ["/tank/app".into(), "/tank/app/pg".into()]
}

fn described() -> (Container, Vec<String>) {
    let (container, losses) =
        describe::container(&inspected(), &volumes(), &["pg".to_owned()], None);
    (container, losses.into_iter().map(|loss| loss.name).collect())
}

#[test]
fn a_description_has_what_makes_it_elsewhere_and_nothing_of_here() {
    let (container, losses) = described();
    // What is not known is not dropped in silence.
    assert_eq!(losses, ["pg:setting:Unheard"]);
    assert_eq!(container.config.get("Hostname"), None);
    assert_eq!(container.config["Env"], json!(["A=b"]));
    assert_eq!(container.config["Entrypoint"], json!([]));
    assert_eq!(container.config["Labels"], json!({"shop": "corner"}));
    assert_eq!(container.image.id, "aaaa");
    assert_eq!(container.host["Ulimits"][0]["Name"], "nofile");
    assert_eq!(
        container.host["LogConfig"],
        json!({"Type": "k8s-file", "Config": {"max-size": "1m"}})
    );
    assert_eq!(container.endpoints["proj_default"].aliases, ["db"]);
    assert_eq!(container.restart.policy, "always");
    let unit = |volume: usize, path: &str| Source::Unit { volume, path: path.into() };
    let sources: Vec<&Source> = container.mounts.iter().map(|mount| &mount.source).collect();
    // The nearest volume counts, and a name that only begins alike is another.
    assert_eq!(sources, [&unit(1, "data"), &unit(1, ""), &unit(0, "pg-other")]);
    assert_eq!(guard(&container, &["pg".to_owned()]), Vec::<String>::new());
}

#[test]
fn paths_are_those_of_the_other_node() {
    let (container, _) = described();
    let there = ["/z/a".into(), "/z/b".into()];
    let body = container_body(&container, Docker, UNIT, "postgres:17", &there).unwrap();
    assert_eq!(
        body["HostConfig"]["Binds"],
        json!(["/z/b/data:/data:rw", "/z/b:/all:ro", "/z/a/pg-other:/other:rw"])
    );
    assert_eq!(body["HostConfig"]["RestartPolicy"], json!({"Name": "no"}));
    assert_eq!(body["HostConfig"]["Memory"], 1000);
    assert_eq!(body["Labels"]["shop"], "corner");
    assert_eq!(body["Labels"]["flocker-repl.unit"], UNIT.to_string());
    let endpoint = &body["NetworkingConfig"]["EndpointsConfig"]["proj_default"];
    assert_eq!(endpoint["Aliases"], json!(["db"]));
    assert_eq!(endpoint["IPAMConfig"]["IPv4Address"], "10.1.0.9");
    let label = |container: &Container| {
        let body = container_body(container, Docker, UNIT, "postgres:17", &there).unwrap();
        body["Labels"]["flocker-repl.description"].clone()
    };
    let mut other = container.clone();
    other.config.insert("User".to_owned(), json!("1000"));
    assert_ne!(label(&container), label(&other));
    assert_eq!(label(&container), label(&container.clone()));
    // A volume that the unit does not have.
    let refused = container_body(&container, Docker, UNIT, "x", &there[..1]).unwrap_err();
    assert_eq!(refused.code, FailureCode::BadRequest);
}

fn text(container: Container) -> String {
    let description = Description {
        version: description::VERSION,
        runtime: Docker,
        containers: vec![container],
        networks: Vec::new(),
    };
    serde_json::to_string(&description).unwrap()
}

#[test]
fn a_description_of_a_peer_leads_nowhere_else() {
    let (container, _) = described();
    let whole = text(container.clone());
    assert_eq!(description::read(&whole).unwrap().containers, std::slice::from_ref(&container));
    let mut bad = Vec::new();
    for path in ["../x", "/etc", "a/../../b", "a:b"] {
        let mut other = container.clone();
        other.mounts[0].source = Source::Unit { volume: 0, path: path.into() };
        bad.push(text(other));
    }
    for target in ["relative", "/a:/b"] {
        let mut other = container.clone();
        other.mounts[0].target = target.into();
        bad.push(text(other));
    }
    for name in ["", "../x", "a b", "-x"] {
        bad.push(text(Container { name: name.to_owned(), ..container.clone() }));
    }
    bad.push(whole.replace("\"version\":1", "\"version\":2"));
    bad.push("{}".to_owned());
    for text in bad {
        let refused = description::read(&text).unwrap_err();
        assert_eq!(refused.code, FailureCode::BadRequest, "{text}");
    }
}

#[test]
fn whatever_opens_the_host_is_refused() {
    let (container, _) = described();
    let names = ["pg".to_owned()];
    let host = |key: &str, value: Value| {
        let mut other = container.clone();
        other.host.insert(key.to_owned(), value);
        other
    };
    let mode = |mode: &str| Container { network_mode: mode.to_owned(), ..container.clone() };
    let mount = |source: Source| {
        let mut other = container.clone();
        other.mounts[0].source = source;
        other
    };
    let mut shared = container.clone();
    shared.mounts[0].propagation = "rshared".to_owned();
    for (other, word) in [
        (host("CapAdd", json!(["SYS_ADMIN"])), "SYS_ADMIN"),
        (host("SecurityOpt", json!(["seccomp=unconfined"])), "seccomp"),
        (host("SecurityOpt", json!(["no-new-privileges:false"])), "no-new-privileges:false"),
        (host("PidMode", json!("host")), "PidMode host"),
        (host("IpcMode", json!("container:x")), "IpcMode container:x"),
        (host("UsernsMode", json!("host")), "UsernsMode host"),
        (mode("container:other"), "container:other"),
        (mode("ns:/proc/1/ns/net"), "ns:/proc/1/ns/net"),
        (mode("somebodys"), "somebodys"),
        (mount(Source::Host("/etc".into())), "/etc"),
        (mount(Source::Named("other".to_owned())), "other"),
        (shared, "rshared"),
        (Container { guarded: vec!["privileged".to_owned()], ..container.clone() }, "privileged"),
    ] {
        let found = guard(&other, &names);
        assert!(found.len() == 1 && found[0].contains(word), "{word}: {found:?}");
    }
    assert!(guard(&mode("container:pg"), &names).is_empty());
    // What is not on the list is not taken from a peer at all.
    let body = |container: &Container| container_body(container, Docker, UNIT, "x", &volumes());
    let made = body(&host("Privileged", json!(true))).unwrap();
    assert_eq!(made["HostConfig"].get("Privileged"), None);
    let made = body(&host("Devices", json!([{"PathOnHost": "/dev/sda"}]))).unwrap();
    assert_eq!(made["HostConfig"].get("Devices"), None);
    let log = json!({"Type": "k8s-file", "Config": {"path": "/etc/cron.d/x"}});
    let made = body(&host("LogConfig", log)).unwrap();
    assert_eq!(made["HostConfig"]["LogConfig"]["Config"], json!({}));
    let mut labelled = container.clone();
    labelled.config.insert("Labels".to_owned(), json!({"PODMAN_SYSTEMD_UNIT": "x"}));
    assert_eq!(body(&labelled).unwrap()["Labels"].get("PODMAN_SYSTEMD_UNIT"), None);
}

#[test]
fn a_link_in_a_volume_is_not_followed_out_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("volume");
    std::fs::create_dir_all(volume.join("data")).unwrap();
    std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
    std::os::unix::fs::symlink("data", volume.join("in")).unwrap();
    check_stays_inside(&volume, &volume).unwrap();
    check_stays_inside(&volume, &volume.join("data")).unwrap();
    check_stays_inside(&volume, &volume.join("in")).unwrap();
    for path in ["out", "none"] {
        let refused = check_stays_inside(&volume, &volume.join(path)).unwrap_err();
        assert_eq!(refused.code, FailureCode::NotStarted);
    }
}

#[test]
fn only_what_matters_of_a_layer_is_a_loss() {
    let changes = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
    let mounted = ["/var/lib/data".into()];
    let noise = changes(&[
        "/run",
        "/run/x",
        "/tmp",
        "/etc",
        "/etc/hosts",
        "/var",
        "/var/lib",
        "/var/lib/data",
    ]);
    assert_eq!(layer("x", &noise, &mounted), None);
    assert_eq!(layer("x", &[], &mounted), None);
    let found = layer("x", &changes(&["/etc", "/etc/passwd", "/opt", "/opt/a"]), &mounted).unwrap();
    assert_eq!(found.name, "x:layer");
    assert!(found.what.contains("/etc/passwd, /opt/a lie"), "{found:?}");
}

#[test]
fn a_layer_is_packed_without_what_is_mounted_and_with_what_was_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path().join("upper");
    std::fs::create_dir_all(upper.join("opt/empty")).unwrap();
    std::fs::create_dir_all(upper.join("data")).unwrap();
    std::fs::write(upper.join("opt/file"), "x").unwrap();
    std::fs::write(upper.join("data/mounted-over"), "x").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", upper.join("opt/link")).unwrap();
    let _socket = UnixListener::bind(upper.join("opt/socket")).unwrap();
    let gone = upper.join("opt/gone");
    let whiteout = std::process::Command::new("mknod").arg(&gone).args(["c", "0", "0"]).status();
    let whiteout = whiteout.is_ok_and(|status| status.success());
    let file = std::fs::File::create(dir.path().join("diff.tar")).unwrap();
    let mut archive = tar::Builder::new(file);
    archive.follow_symlinks(false);
    let mut deleted = std::collections::BTreeSet::new();
    let skipped = ["/data".into()];
    add_layer(&mut archive, &upper, Path::new(""), &skipped, &mut deleted).unwrap();
    archive.into_inner().unwrap();
    let mut packed = tar::Archive::new(std::fs::File::open(dir.path().join("diff.tar")).unwrap());
    let mut names: Vec<PathBuf> = packed
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().into_owned())
        .collect();
    names.sort();
    let expected = ["opt", "opt/empty", "opt/file", "opt/link"];
    assert_eq!(names, expected.map(PathBuf::from));
    if whiteout {
        assert_eq!(deleted.into_iter().collect::<Vec<_>>(), ["/opt/gone"]);
    }
}

#[test]
fn networks_of_the_internet_are_not_made_at_a_peers_word() {
    for (subnet, private) in [
        ("10.89.0.0/24", true),
        ("172.18.0.0/16", true),
        ("192.168.1.0/24", true),
        ("fd00::/64", true),
        ("8.8.8.0/24", false),
        ("172.0.0.0/8", false),
        ("0.0.0.0/0", false),
        ("2001:db8::/64", false),
        ("10.0.0.0", false),
        ("x/8", false),
    ] {
        assert_eq!(description::is_private(subnet), private, "{subnet}");
    }
    let found = json!({
        "Driver": "bridge", "Internal": true, "Labels": {"p": "q"},
        "IPAM": {"Config": [{"Subnet": "10.1.0.0/24", "Gateway": "10.1.0.1"}]},
    });
    let (network, loss) = describe::describe_network("n", &found);
    assert_eq!(loss, None);
    let body = network_body(&network);
    assert_eq!(body["IPAM"]["Config"], found["IPAM"]["Config"]);
    assert_eq!((&body["Labels"], &body["Internal"]), (&found["Labels"], &found["Internal"]));
    let other = json!({"Driver": "macvlan"});
    let (_, loss) = describe::describe_network("n", &other);
    assert_eq!(loss.unwrap().name, "network:n");
}

#[test]
fn a_node_makes_only_the_containers_that_it_was_told_of() {
    let server = Server::new(|_, _| none());
    let (container, _) = described();
    let text = text(container);
    let other = server.containers(Docker, &["other"]).prepare(&text, &volumes()).unwrap_err();
    assert_eq!(other.code, FailureCode::BadRequest);
    // The image is not here.
    let volumes = [server.dir.path().join("a"), server.dir.path().join("b")];
    let missing = server.containers(Docker, &["pg"]).prepare(&text, &volumes).unwrap_err();
    assert_eq!(missing.code, FailureCode::NotFound);
    assert!(missing.message.contains("docker pull postgres:17"), "{missing}");
}

#[test]
fn a_container_of_the_operators_stays_as_it_is() {
    let server = Server::new(|line, _| match line {
        "GET /containers/pg/json" => Says::Json(200, stopped("no")),
        _ => none(),
    });
    let (container, _) = described();
    server.containers(Docker, &["pg"]).prepare(&text(container), &volumes()).unwrap();
    let asked = server.asked();
    assert!(asked.iter().all(|line| line.starts_with("GET")), "{asked:?}");
}

#[test]
fn a_file_of_images_that_is_not_there_is_named() {
    let server = Server::new(|_, _| none());
    let failed =
        server.containers(Docker, &["x"]).load_image(Path::new("/no/such.tar")).unwrap_err();
    assert!(failed.message.contains("/no/such.tar"), "{failed}");
}
