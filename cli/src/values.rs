//! What people type after an option where it is more than a word: addresses, ports, checks, commands.
//!
//! Owns: their form, and the refusal of what could never work. Leaves to others: what they are for
//! (`flocker_core::record`), whether this machine has such an interface (the node).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use flocker_core::record::{AddressRecord, ForwardRecord, HealthCheck};

/// Longest name of a network interface, bytes (IFNAMSIZ without the zero).
const MAX_DEVICE: usize = 15;

/// Why a text is not such a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ValueError {
    /// It does not look like one.
    #[error("`{text}` is not {what}; write {form}")]
    Form {
        /// What was given.
        text: String,
        /// What it should be.
        what: &'static str,
        /// What it looks like.
        form: &'static str,
    },
    /// It looks like one, and cannot work.
    #[error("`{text}` cannot work: {why}")]
    Useless {
        /// What was given.
        text: String,
        /// Why.
        why: &'static str,
    },
}

fn useless<T>(text: &str, why: &'static str) -> Result<T, ValueError> {
    Err(ValueError::Useless { text: text.into(), why })
}

/// `IP:PORT`, and `localhost:PORT`. Other names are not resolved: what they mean may change while the
/// unit moves.
fn endpoint(text: &str) -> Option<SocketAddr> {
    let named = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    let address = named.map_or_else(
        || text.parse::<SocketAddr>().ok(),
        |port| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
    )?;
    (address.port() != 0).then_some(address)
}

/// `tcp:HOST:PORT`
///
/// # Errors
/// [`ValueError`]
pub(crate) fn parse_health(text: &str) -> Result<HealthCheck, ValueError> {
    let (what, form) = ("a health check", "tcp:IP:PORT, such as tcp:127.0.0.1:5432");
    let address = text.strip_prefix("tcp:").and_then(endpoint);
    match address {
        Some(address) if address.ip().is_multicast() => {
            useless(text, "nothing listens at a multicast address")
        }
        Some(address) => Ok(HealthCheck::Tcp(address)),
        None => Err(ValueError::Form { text: text.into(), what, form }),
    }
}

/// `IP/PREFIX@DEVICE`
///
/// # Errors
/// [`ValueError`]
pub(crate) fn parse_address(text: &str) -> Result<AddressRecord, ValueError> {
    let form = || ValueError::Form {
        text: text.into(),
        what: "an address",
        form: "IP/PREFIX@DEVICE, such as 10.0.0.50/24@eth0",
    };
    let (network, device) = text.split_once('@').ok_or_else(form)?;
    let (ip, prefix) = network.split_once('/').ok_or_else(form)?;
    let address: IpAddr = ip.parse().map_err(|_| form())?;
    let prefix: u8 = prefix.parse().map_err(|_| form())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let named = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':');
    if prefix == 0 || prefix > most {
        return useless(text, "no network's prefix is that long");
    }
    if device.is_empty() || device.len() > MAX_DEVICE || device.contains(named) {
        return useless(text, "no network interface can be named so");
    }
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return useless(text, "clients on other machines could never reach it");
    }
    Ok(AddressRecord { address, prefix, device: device.into() })
}

/// `LISTEN=LOCAL,REMOTE`
///
/// # Errors
/// [`ValueError`]
pub(crate) fn parse_forward(text: &str) -> Result<ForwardRecord, ValueError> {
    let form = || ValueError::Form {
        text: text.into(),
        what: "a forward",
        form: "LISTEN=LOCAL,REMOTE, each IP:PORT, such as \
               10.0.0.1:5432=127.0.0.1:5433,10.0.0.2:5433",
    };
    let (listen, behind) = text.split_once('=').ok_or_else(form)?;
    let (local, remote) = behind.split_once(',').ok_or_else(form)?;
    let listen = endpoint(listen).ok_or_else(form)?;
    let local = endpoint(local).ok_or_else(form)?;
    let remote = endpoint(remote).ok_or_else(form)?;
    let takes = |behind: SocketAddr| {
        let everywhere = listen.ip().is_unspecified() && behind.ip().is_loopback();
        listen.port() == behind.port() && (listen.ip() == behind.ip() || everywhere)
    };
    if takes(local) || takes(remote) {
        return useless(text, "it would forward to itself; let the workload listen elsewhere");
    }
    if local.ip().is_unspecified() || remote.ip().is_unspecified() {
        return useless(text, "LOCAL and REMOTE are where one connects to, not `any address`");
    }
    Ok(ForwardRecord { listen, local, remote })
}

/// A container of runc or crun, and where its bundle is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bundle {
    /// Its id there.
    pub(crate) id: String,
    /// The bundle's folder.
    pub(crate) path: PathBuf,
}

/// `ID=BUNDLE`
pub(crate) fn parse_bundle(text: &str) -> Result<Bundle, ValueError> {
    match text.split_once('=') {
        Some((id, path)) if !id.is_empty() && !path.is_empty() => {
            Ok(Bundle { id: id.to_owned(), path: path.into() })
        }
        _ => Err(ValueError::Form {
            text: text.into(),
            what: "a bundle",
            form: "ID=FOLDER, the folder absolute or below the first volume's path, such as web=bundle",
        }),
    }
}

/// A command and its arguments, split as a shell would; nothing else of a shell happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommandWords(pub(crate) Vec<String>);

/// `'CMD ARGS'`
///
/// # Errors
/// [`ValueError`]
pub(crate) fn parse_command(text: &str) -> Result<CommandWords, ValueError> {
    let words = shlex::split(text).ok_or_else(|| ValueError::Form {
        text: text.into(),
        what: "a command",
        form: "it with every quote closed",
    })?;
    if words.first().is_none_or(String::is_empty) {
        return useless(text, "no command is named");
    }
    Ok(CommandWords(words))
}

/// `10.0.0.50/24@eth0`
pub(crate) fn address_words(record: &AddressRecord) -> String {
    format!("{}/{}@{}", record.address, record.prefix, record.device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_health_check_is_a_port_on_an_address() {
        for (text, address) in [
            ("tcp:127.0.0.1:5432", "127.0.0.1:5432"),
            ("tcp:localhost:5432", "127.0.0.1:5432"),
            ("tcp:[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(parse_health(text), Ok(HealthCheck::Tcp(address.parse().unwrap())));
        }
        for text in
            ["", "5432", "tcp:5432", "tcp:db.example:5432", "tcp:127.0.0.1:0", "udp:1.1.1.1:1"]
        {
            let error = parse_health(text).unwrap_err().to_string();
            assert!(error.contains("tcp:127.0.0.1:5432"), "{error}");
        }
        assert!(parse_health("tcp:224.0.0.1:80").is_err());
    }

    #[test]
    fn an_address_has_a_prefix_and_a_device() {
        let record = parse_address("10.0.0.50/24@eth0").unwrap();
        assert_eq!(address_words(&record), "10.0.0.50/24@eth0");
        assert_eq!(parse_address("fd00::5/64@br-lan.7").unwrap().device, "br-lan.7");
        for text in [
            "10.0.0.50",
            "10.0.0.50@eth0",
            "10.0.0.50/24",
            "10.0.0/24@eth0",
            "10.0.0.50/x@eth0",
            "10.0.0.50/33@eth0",
            "10.0.0.50/0@eth0",
            "fd00::5/129@eth0",
            "10.0.0.50/24@",
            "10.0.0.50/24@eth 0",
            "10.0.0.50/24@../eth0",
            "10.0.0.50/24@a-name-that-is-too-long",
            "0.0.0.0/24@eth0",
            "127.0.0.5/8@lo",
            "224.0.0.5/24@eth0",
        ] {
            assert!(parse_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_forward_leads_elsewhere() {
        let record = parse_forward("0.0.0.0:5432=127.0.0.1:5433,10.0.0.2:5433").unwrap();
        assert_eq!(record.remote, "10.0.0.2:5433".parse().unwrap());
        for text in [
            "5432=127.0.0.1:5433,10.0.0.2:5433",
            "0.0.0.0:5432=127.0.0.1:5433",
            "0.0.0.0:5432,127.0.0.1:5433",
            "0.0.0.0:0=127.0.0.1:5433,10.0.0.2:5433",
            "0.0.0.0:5432=127.0.0.1:5432,10.0.0.2:5433",
            "10.0.0.1:5432=127.0.0.1:5433,10.0.0.1:5432",
            "10.0.0.1:5432=0.0.0.0:5433,10.0.0.2:5433",
        ] {
            assert!(parse_forward(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_command_is_split_as_a_shell_splits_it_and_nothing_else_happens() {
        let split = |text| parse_command(text).map(|words| words.0);
        assert_eq!(
            split("pg_isready -h '/a b' \"$x\"").unwrap(),
            ["pg_isready", "-h", "/a b", "$x"]
        );
        for text in ["", "   ", "'' x", "say 'it"] {
            assert!(split(text).is_err(), "{text}");
        }
    }
}
