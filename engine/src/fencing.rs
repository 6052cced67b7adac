//! The fencing hook: a local command whose status 0 is its word that a peer is off.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flocker_core::ids::Fingerprint;
use flocker_core::{Failure, FailureCode, Outcome, Remedy};

use crate::config::FencingSection;
use crate::hook;

/// The hook, if the configuration names one.
#[derive(Debug)]
pub(crate) struct Fencing {
    section: Option<FencingSection>,
    log: PathBuf,
}

impl Fencing {
    pub(crate) fn new(section: Option<FencingSection>, state: &Path) -> Self {
        Self { section, log: state.join("logs").join("fencing.log") }
    }

    /// Runs it; its output goes to `<state>/logs/fencing.log`.
    ///
    /// # Errors
    /// Anything but status 0 in time: the peer may be running.
    pub(crate) fn run(&self, peer: &Fingerprint, peer_name: &str) -> Result<Outcome, Failure> {
        let Some(section) = &self.section else {
            let text = "no fencing hook is configured: see `[fencing]` of the configuration";
            return Err(Failure::refused(FailureCode::Unsupported, text));
        };
        let failed = |reason: &dyn std::fmt::Display| {
            let text = format!(
                "the fencing hook did not make sure that {peer_name} is off, so it may be running: {reason}"
            );
            Failure::new(Remedy::Operator, FailureCode::NoProof, text)
        };
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.log)
            .map_err(|error| failed(&format!("{}: {error}", self.log.display())))?;
        let environment = [
            ("FLOCKER_PEER".to_owned(), peer_name.to_owned()),
            ("FLOCKER_PEER_FINGERPRINT".to_owned(), peer.to_string()),
        ];
        let limit = Duration::from_secs(section.limit_s);
        hook::run(&section.command, &environment, &log, limit).map_err(|error| failed(&error))?;
        tracing::warn!(peer = peer_name, "the fencing hook says that this peer is off");
        Ok(Outcome::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(script: &str) -> Result<Outcome, Failure> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("logs")).unwrap();
        let command = ["/bin/sh", "-c", script].map(String::from).to_vec();
        let fencing = Fencing::new(Some(FencingSection { command, limit_s: 1 }), dir.path());
        fencing.run(&Fingerprint([7; 32]), "b")
    }

    #[test]
    fn status_zero_is_the_proof_and_the_hook_is_told_whom() {
        let fingerprint = Fingerprint([7; 32]);
        let script = format!(
            "test \"$FLOCKER_PEER\" = b && test \"$FLOCKER_PEER_FINGERPRINT\" = {fingerprint}"
        );
        assert_eq!(check(&script).unwrap(), Outcome::Nothing);
    }

    #[test]
    fn anything_else_is_none_and_says_what_the_hook_said() {
        let failure = check("echo no such outlet; exit 3").unwrap_err();
        assert_eq!(failure.code, FailureCode::NoProof);
        for word in ["/bin/sh", "exit status: 3", "no such outlet", "b is off"] {
            assert!(failure.message.contains(word), "`{word}` is not in: {failure}");
        }
        assert!(check("sleep 317").unwrap_err().message.contains("1000 ms"));
        let none = Fencing::new(None, Path::new("/")).run(&Fingerprint([7; 32]), "b");
        assert_eq!(none.unwrap_err().code, FailureCode::Unsupported);
    }
}
