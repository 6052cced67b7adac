//! The drivers of containers and of systemd's units with the programs themselves: the ignored tests of
//! `flocker-engine` in the guests, those of podman in one and the others in the other at the same time.

use std::path::Path;

use flocker_tests::e2e::skip;
use flocker_tests::lab::{Guest, Lab, built_tests, lab_or_skip, matrix};

/// What they need, and what an earlier run may have left. A socket starts its service; docker's takes long.
const BEFORE: &str = "systemctl start podman.socket docker.service && podman rm -fa -t 0 >/dev/null && \
                      { docker ps -aq | xargs -r docker rm -f >/dev/null; }";

/// Runs some of them in a guest and fails with what failed; how many passed.
fn half(lab: &Lab, guest: Guest, binary: &Path, which: &str) -> usize {
    lab.ssh(guest, BEFORE);
    lab.put(guest, binary);
    let name = binary.file_name().expect("a name").to_string_lossy();
    let command = format!("{name} --ignored --test-threads 1 --nocapture {which} 2>&1");
    let done = lab.output(guest, &command);
    let said = String::from_utf8_lossy(&done.stdout);
    println!("{}:\n{said}", guest.name());
    if !done.status.success() {
        // Whatever it has left behind is in the next one's way.
        lab.spoil();
        panic!("{}: {}", guest.name(), done.status);
    }
    lab.ssh(guest, BEFORE);
    let passed = said.lines().find_map(|line| line.strip_prefix("test result: ok. "));
    let passed = passed.and_then(|rest| rest.split(' ').next()).expect("a result");
    passed.parse().expect("a number")
}

#[test]
#[ignore = "the drivers with every runtime in the guests, run one by one so far and not as a whole: tests/run --soak"]
fn drivers_do_what_they_say_with_the_programs_themselves() {
    let test = "the drivers with podman, docker, runc, crun, LXC and systemd";
    let Some(binary) = built_tests("flocker_engine") else {
        return skip("flocker-engine's tests are not built: run the whole workspace", test);
    };
    let Some(lab) = lab_or_skip("trixie", Some("trixie"), test) else { return };
    let passed: usize = std::thread::scope(|scope| {
        let halves = [
            (Guest::Alpha, "driver::real::containers --skip docker --skip step_"),
            (Guest::Beta, "driver::real --skip podman --skip images --skip step_"),
        ];
        let halves = halves.map(|(guest, which)| {
            let (lab, binary) = (&lab, &binary);
            scope.spawn(move || half(lab, guest, binary, which))
        });
        halves.map(|half| half.join().unwrap_or_else(|said| std::panic::resume_unwind(said)))
    })
    .into_iter()
    .sum();
    assert!(passed >= 10, "only {passed}");
    matrix(&format!("drivers of containers, bundles, LXC and systemd {passed} tests"));
}
