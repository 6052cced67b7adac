//! Units of systemd.

use std::time::Duration;

use flocker_core::FailureCode;
use flocker_core::record::Program;

use super::{Here, STOP, shell, timed, try_shell, wait_until};

fn enabled(unit: &str) -> String {
    let output = std::process::Command::new("systemctl").args(["is-enabled", unit]).output();
    String::from_utf8_lossy(&output.unwrap().stdout).trim().to_owned()
}

fn write_unit(name: &str, text: &str) {
    std::fs::write(format!("/etc/systemd/system/{name}"), text).unwrap();
}

#[test]
#[ignore = "in a guest of the lab: tests/tests/lab_drivers.rs"]
fn a_unit_is_taken_started_stopped_and_given_back() {
    let mut here = Here::new();
    let volume = here.volume("drv-s");
    write_unit(
        "drv-test.service",
        "[Service]\nExecStart=/bin/sh -c 'date +%%s.%%N >>/tank/drv-s/starts; exec sleep 100000'\n\
         Restart=always\nRestartSec=100ms\nStateDirectory=drv-outside\n[Install]\nWantedBy=multi-user.target\n",
    );
    write_unit(
        "drv-test.socket",
        "[Socket]\nListenStream=127.0.0.1:6397\n[Install]\nWantedBy=sockets.target\n",
    );
    shell(
        "systemctl daemon-reload; systemctl enable drv-test.service drv-test.socket; \
           systemctl start drv-test.socket",
    );
    let unit = "drv-test.service";
    let driver = here.driver(&Program::Systemd(vec![unit.to_owned()]));
    let volumes = [volume];
    let starts =
        || std::fs::read_to_string("/tank/drv-s/starts").unwrap_or_default().lines().count();
    timed("take", || driver.take().unwrap());
    driver.take().unwrap();
    assert_eq!(
        (enabled(unit).as_str(), enabled("drv-test.socket").as_str()),
        ("disabled", "disabled")
    );
    // A client on the socket would have started it.
    assert!(!try_shell("nc -w 1 127.0.0.1 6397 </dev/null") && !driver.runs().unwrap());
    timed("start", || driver.start(&volumes).unwrap());
    assert!(driver.runs().unwrap());
    wait_until("its first line", || starts() == 1);
    driver.start(&volumes).unwrap();
    timed("freeze", || driver.freeze().unwrap());
    driver.thaw().unwrap();
    // It ends by itself: systemd does not start it again, and we are told how it ended.
    let waiting = here.driver(&Program::Systemd(vec![unit.to_owned()]));
    let waiter = std::thread::spawn(move || waiting.wait().unwrap());
    shell("systemctl kill --signal=SIGKILL drv-test.service");
    let ended = waiter.join().unwrap();
    assert!(ended.status.contains("signal 9") && !ended.success, "{ended:?}");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(starts(), 1);
    assert!(!driver.runs().unwrap());
    driver.start(&volumes).unwrap();
    driver.freeze().unwrap();
    timed("stop", || driver.stop(STOP).unwrap());
    assert!(!driver.runs().unwrap());
    driver.start(&volumes).unwrap();
    timed("kill", || driver.kill().unwrap());
    assert!(!driver.runs().unwrap());
    let described = driver.describe(&volumes).unwrap();
    let names: Vec<&str> = described.losses.iter().map(|loss| loss.name.as_str()).collect();
    assert_eq!(names, ["drv-test.service:state:/var/lib/drv-outside"]);
    timed("release", || driver.release().unwrap());
    assert_eq!(
        (enabled(unit).as_str(), enabled("drv-test.socket").as_str()),
        ("enabled", "enabled")
    );
    assert_eq!(shell("systemctl show -P Restart drv-test.service"), "always");
    assert_eq!(shell("systemctl is-active drv-test.socket"), "active");
    shell(
        "systemctl disable --now drv-test.socket drv-test.service; rm /etc/systemd/system/drv-test.*; \
           systemctl daemon-reload; rm -rf /var/lib/drv-outside",
    );
    let missing = driver.prepare("", &volumes).unwrap_err();
    assert_eq!(missing.code, FailureCode::NotFound, "{missing}");
}

#[test]
#[ignore = "in a guest of the lab: tests/tests/lab_drivers.rs"]
fn a_unit_that_cannot_be_started_is_not_started() {
    let here = Here::new();
    write_unit("drv-bad.service", "[Service]\nExecStart=/no/such/program\nRestart=no\n");
    shell("systemctl daemon-reload");
    let driver = here.driver(&Program::Systemd(vec!["drv-bad.service".to_owned()]));
    driver.take().unwrap();
    // A unit of this type has started once systemd has forked; what comes then may come later.
    match driver.start(&[]) {
        Err(failed) => {
            println!("{failed}");
            assert_eq!(failed.code, FailureCode::NotStarted);
        }
        Ok(()) => println!("it failed after its start"),
    }
    wait_until("its end", || !driver.runs().unwrap());
    let failed = driver.wait().unwrap();
    assert!(failed.status.contains("exit status 203") && !failed.success, "{failed:?}");
    assert!(driver.can_checkpoint().is_err());
    shell("rm /etc/systemd/system/drv-bad.service; systemctl daemon-reload");
}
