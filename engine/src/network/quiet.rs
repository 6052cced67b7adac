//! Silence before a restored workload answers: nothing that comes for its addresses reaches this node's network
//! stack, which would tell clients of connections that are not there yet that nobody knows them.
//!
//! Owns: one table of nftables for each unit that is being restored, named after its first address. Leaves to others:
//! the addresses themselves ([`super::addresses`]). A daemon that dies meanwhile leaves its table; the next start takes
//! it away ([`clean_up`]), and the next restore its own.

use std::io::Write;
use std::process::{Command, Stdio};

use flocker_core::record::AddressRecord;
use flocker_core::{Failure, FailureCode, Remedy};

/// What our tables' names begin with.
const PREFIX: &str = "flocker_repl_quiet_";

/// Nothing comes in for these addresses until it ends.
#[derive(Debug)]
pub(crate) struct Quiet {
    table: Option<String>,
}

fn table_of(addresses: &[AddressRecord]) -> Option<String> {
    let first = addresses.first()?.address.to_string();
    Some(format!("{PREFIX}{}", first.replace(['.', ':'], "_")))
}

/// What nft is told: made anew, whatever was left of it.
fn rules(table: &str, addresses: &[AddressRecord]) -> String {
    let mut text = format!(
        "table inet {table} {{}}\ndelete table inet {table}\ntable inet {table} {{\n chain early {{\n  \
         type filter hook prerouting priority -400; policy accept;\n"
    );
    for record in addresses {
        let family = if record.address.is_ipv4() { "ip" } else { "ip6" };
        text.push_str(&format!("  iifname != \"lo\" {family} daddr {} drop\n", record.address));
    }
    text.push_str(" }\n}\n");
    text
}

fn failed(what: &str) -> Failure {
    let text = format!(
        "what comes for an address of a workload cannot be held back while it is restored: {what}; install nftables"
    );
    Failure::new(Remedy::Operator, FailureCode::NotStarted, text)
}

fn nft(script: &str) -> Result<(), String> {
    let spawned = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.map_err(|error| format!("nft: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).map_err(|error| format!("nft: {error}"))?;
    }
    let done = child.wait_with_output().map_err(|error| format!("nft: {error}"))?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!("nft: {}", String::from_utf8_lossy(&done.stderr).trim()))
}

impl Quiet {
    /// Without addresses there is nothing to hold back.
    ///
    /// # Errors
    /// nftables is not there, or refuses.
    pub(crate) fn begin(addresses: &[AddressRecord]) -> Result<Self, Failure> {
        let Some(table) = table_of(addresses) else { return Ok(Self { table: None }) };
        nft(&rules(&table, addresses)).map_err(|what| failed(&what))?;
        Ok(Self { table: Some(table) })
    }

    /// What comes in comes in again.
    pub(crate) fn end(self) {}
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if let Some(table) = self.table.take()
            && let Err(what) = nft(&format!("delete table inet {table}\n"))
        {
            tracing::error!(%table, %what, "what comes for a workload's addresses is still held back");
        }
    }
}

/// Takes away what a daemon that died in the middle of a restore has left.
pub(crate) fn clean_up(addresses: &[AddressRecord]) {
    if let Some(table) = table_of(addresses) {
        // It is not there, most of the time.
        let _ = nft(&format!("table inet {table} {{}}\ndelete table inet {table}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_name_each_address_by_its_family_and_begin_anew() {
        let record = |address: &str| AddressRecord {
            address: address.parse().unwrap(),
            prefix: 24,
            device: "eth1".into(),
        };
        let addresses = [record("10.77.0.10"), record("fd00::1")];
        let table = table_of(&addresses).unwrap();
        assert_eq!(table, "flocker_repl_quiet_10_77_0_10");
        let text = rules(&table, &addresses);
        assert!(text.contains("delete table inet flocker_repl_quiet_10_77_0_10"));
        assert!(text.contains("iifname != \"lo\" ip daddr 10.77.0.10 drop"));
        assert!(text.contains("ip6 daddr fd00::1 drop"));
        assert!(Quiet::begin(&[]).unwrap().table.is_none());
    }
}
