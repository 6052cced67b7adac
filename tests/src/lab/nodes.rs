//! Two nodes in the guests: made, paired, given units, moved.
//!
//! Owns: what a person types on the two machines. Leaves the guests to [`super`].

use super::{Guest, Lab};

/// A unit of one volume, `data/NAME` on alpha and `recv/alpha/NAME` on beta.
#[derive(Debug, Clone, Copy)]
pub struct Unit {
    /// Its name.
    pub name: &'static str,
    /// It is a zvol.
    pub zvol: bool,
    /// It is encrypted.
    pub raw: bool,
}

/// Both nodes, serving and paired. Each store is `tank/flocker`.
#[derive(Debug)]
pub struct Nodes<'a> {
    lab: &'a Lab,
}

/// What each may start on the other.
const KINDS: &str = "--workload process --workload podman --workload docker --workload systemd --workload oci --workload lxc";

/// Starts the daemon of a guest with these variables; it survives the command.
pub fn serve(variables: &str) -> String {
    format!(
        "FLOCKER_REPL_LOG=flocker_engine=debug,info {variables} setsid flocker-repl serve \
         >>/var/log/flocker.log 2>&1 </dev/null &"
    )
}

impl<'a> Nodes<'a> {
    /// Makes both nodes, and pairs them.
    pub fn start(lab: &'a Lab) -> Self {
        Self::start_with(lab, ["zfs:tank/flocker"; 2])
    }

    /// As [`Nodes::start`], with a store for each.
    pub fn start_with(lab: &'a Lab, stores: [&str; 2]) -> Self {
        for (guest, store) in [Guest::Alpha, Guest::Beta].into_iter().zip(stores) {
            let (name, address) = (guest.name(), guest.address());
            lab.ssh(
                guest,
                &format!(
                    "zfs create -o mountpoint=/srv/flocker tank/flocker
                     flocker-repl init --name {name} --store {store} --listen {address}:7001
                     {}",
                    serve("")
                ),
            );
        }
        for guest in [Guest::Alpha, Guest::Beta] {
            lab.wait_for(guest, "the daemon", "flocker-repl status");
        }
        lab.ssh(
            Guest::Alpha,
            &format!("flocker-repl pair --invite --receive recv/beta {KINDS} >/tmp/f-invite 2>&1 </dev/null &"),
        );
        let code = "grep -oE '[A-Z0-9]{4}-[A-Z0-9]{4}-[A-Z0-9]$' /tmp/f-invite";
        lab.wait_for(Guest::Alpha, "the code", code);
        let code = lab.ssh(Guest::Alpha, code);
        lab.ssh(
            Guest::Beta,
            &format!(
                "flocker-repl pair 10.77.0.1:7001 {code} --receive recv/alpha {KINDS} </dev/null"
            ),
        );
        Self { lab }
    }

    /// Where they are.
    pub fn lab(&self) -> &'a Lab {
        self.lab
    }

    /// The full name of a unit's dataset.
    pub fn dataset(&self, unit: &Unit, at: Guest) -> String {
        match at {
            Guest::Alpha => format!("tank/flocker/data/{}", unit.name),
            Guest::Beta => format!("tank/flocker/recv/alpha/{}", unit.name),
            Guest::Gamma => unreachable!("clients have no datasets"),
        }
    }

    /// Where its data is.
    pub fn path(&self, unit: &Unit, at: Guest) -> String {
        let dataset = self.dataset(unit, at);
        match unit.zvol {
            true => format!("/dev/zvol/{dataset}"),
            false => format!("/srv/flocker/{}", &dataset["tank/flocker/".len()..]),
        }
    }

    /// Protects `data/NAME` on alpha, and gives both sides a workload for it.
    pub fn protect(&self, unit: &Unit) {
        let name = unit.name;
        self.protect_only(unit);
        for guest in [Guest::Alpha, Guest::Beta] {
            let run = format!("flocker-repl run {name} --die-with-daemon -- sleep 1000000");
            self.lab.ssh(guest, &run);
        }
    }

    /// Protects `data/NAME` on alpha, without a workload.
    pub fn protect_only(&self, unit: &Unit) {
        let name = unit.name;
        self.lab.ssh(Guest::Alpha, &format!("flocker-repl protect data/{name} --to beta --rpo 5s"));
    }

    /// Waits until a unit is its primary's to write, and its standby is connected.
    pub fn wait_connected(&self, unit: &Unit, primary: Guest) {
        let name = unit.name;
        self.lab.wait_for(
            primary,
            &format!("{name} connected"),
            &format!(
                "flocker-repl status >/tmp/f-status && grep -q '^unit name={name} role=primary ' /tmp/f-status \
                 && grep '^standby unit={name} ' /tmp/f-status | grep -q connected=yes"
            ),
        );
    }

    /// Waits until the standby of a unit has been in step at least once since.
    pub fn wait_in_step(&self, unit: &Unit, primary: Guest) {
        let name = unit.name;
        self.lab.wait_for(
            primary,
            &format!("{name} in step"),
            &format!("flocker-repl status | grep '^standby unit={name} ' | grep -v lag_ms=none | grep -q within_rpo"),
        );
    }

    /// Moves it. An error is what the command said.
    ///
    /// # Errors
    /// The command's words, when it ends with a failure.
    pub fn migrate(&self, unit: &Unit, from: Guest, to: Guest) -> Result<String, String> {
        let words = format!("flocker-repl migrate {} --to {}", unit.name, to.name());
        let done = self.lab.output(from, &words);
        let said = [done.stdout, done.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        if done.status.success() { Ok(said) } else { Err(said) }
    }

    /// One hash over all that a unit holds: names, types, modes, owners, times of modification, sizes, links, contents.
    pub fn hash(&self, unit: &Unit, at: Guest) -> String {
        self.hash_path(unit, at, &self.path(unit, at))
    }

    /// The same of what is at a path.
    pub fn hash_path(&self, unit: &Unit, at: Guest, path: &str) -> String {
        let script = match unit.zvol {
            true => format!("sha256sum <{path}"),
            false => format!(
                "cd {path}; (find . -mindepth 1 -printf '%y %m %U %G %T@ %p %l\\n' | sort; find . -type f -printf '%s %p\\n' | sort
                 find . -type f -print0 | sort -z | xargs -0 sha256sum) | sha256sum"
            ),
        };
        self.lab.ssh(at, &script)
    }
}
