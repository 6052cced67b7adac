//! `pair`, `grant`, `unpair`: who is trusted, and with what.
//!
//! Owns: what the two people at the two screens see and are asked. Leaves to others: the code, its
//! tries and the proof (`flocker_transport`), and where trust is kept (`flocker_engine`).

use std::io::{self, BufRead, IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use flocker_core::record::WorkloadKind;
use flocker_engine::api::{Answer, InviteOpen, PairedPeer, Request, Response};
use serde::Serialize;

use super::serve::command_line;
use super::{Context, unexpected};
use crate::args::{GrantArgs, KindArg, PairArgs, PeerArgs};
use crate::exit::{Exit, write_stderr};
use crate::quantity::{self, parse_size};

/// How long `pair` waits for the connection after both sides have stored each other's key.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// What a peer is given.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Gift {
    receive: String,
    quota_bytes: Option<u64>,
    workloads: Vec<WorkloadKind>,
}

/// The lines of `pair --json`: the first only when inviting, the second when paired.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum PairLine<'a> {
    Invitation(&'a InviteOpen),
    Paired {
        #[serde(flatten)]
        peer: &'a PairedPeer,
        connected: bool,
        granted: Option<&'a str>,
    },
}

fn kinds(given: &[KindArg]) -> Vec<WorkloadKind> {
    given
        .iter()
        .map(|kind| match kind {
            KindArg::Process => WorkloadKind::Process,
            KindArg::Podman => WorkloadKind::Podman,
            KindArg::Docker => WorkloadKind::Docker,
            KindArg::Systemd => WorkloadKind::Systemd,
            KindArg::Oci => WorkloadKind::Oci,
            KindArg::Lxc => WorkloadKind::Lxc,
        })
        .collect()
}

/// `pair`
pub(super) fn pair(context: &Context<'_>, args: PairArgs) -> anyhow::Result<Exit> {
    let request = match (args.address, args.code) {
        (Some(address), Some(code)) => Request::Join { address, code },
        _ => Request::Invite { ttl_s: args.valid.as_secs().max(1) },
    };
    let mut shown = Ok(());
    let answer = context.ask_with(&request, |response| {
        if let Response::InviteOpen(open) = response {
            shown = show_invitation(context, &open);
        }
    })?;
    shown?;
    let Answer::Paired(peer) = answer else {
        return unexpected(&answer);
    };
    if !context.out.json {
        show_paired(context, &peer)?;
    }
    let connected = wait_connected(context, &peer)?;
    if !connected && !context.out.json {
        context.out.line(format!(
            "  not connected yet: {} has to be reachable at {}",
            peer.name,
            peer.addresses.join(", ")
        ))?;
    }
    let gift = match args.receive {
        Some(receive) => {
            Some(Gift { receive, quota_bytes: args.quota, workloads: kinds(&args.workload) })
        }
        None if context.out.terminal && io::stdin().is_terminal() => ask_for_grant(&peer)?,
        None => None,
    };
    if let Some(gift) = &gift {
        give(context, &peer.name, gift)
            .with_context(|| format!("paired with {}, but nothing is granted to it", peer.name))?;
    }
    if context.out.json {
        context.out.object(&PairLine::Paired {
            peer: &peer,
            connected,
            granted: gift.as_ref().map(|gift| gift.receive.as_str()),
        })?;
    } else if gift.is_none() {
        let command =
            format!("grant {} --receive {} --workload process", peer.name, suggestion(&peer));
        context.out.line(format!(
            "{} may do nothing here yet. To let it keep replicas here and start workloads on arrival:\n  {}",
            peer.name,
            context.out.theme.accent(&command_line(context, &command))
        ))?;
    }
    Ok(Exit::Ok)
}

fn show_invitation(context: &Context<'_>, open: &InviteOpen) -> anyhow::Result<()> {
    let out = context.out;
    if out.json {
        return out.object(&PairLine::Invitation(open));
    }
    let theme = out.theme;
    let address = open.addresses.first().map_or("HOST:PORT", String::as_str);
    let left_ms = (open.expires_unix_s - jiff::Timestamp::now().as_second()).max(0) as u64 * 1000;
    out.line(format!("node {} invites; on the other node:", theme.strong(&open.name)))?;
    out.line(format!(
        "\n  {}\n",
        theme.accent(&format!("flocker-repl pair {address} {}", open.code))
    ))?;
    if open.addresses.len() > 1 {
        out.line(format!("also reachable at {}", open.addresses[1..].join(", ")))?;
    }
    out.line(format!("valid for {}, once; five wrong tries end it", quantity::millis(left_ms)))?;
    out.line(format!(
        "words of this node: {}  (the other node shows the same)",
        theme.strong(&open.words)
    ))
}

fn show_paired(context: &Context<'_>, peer: &PairedPeer) -> anyhow::Result<()> {
    let out = context.out;
    let theme = out.theme;
    out.line(format!("{} paired with {}", theme.mark(true), theme.strong(&peer.name)))?;
    let whose = [format!("words of {}", peer.name), "words of this node".to_owned()];
    let width = whose.iter().map(String::len).max().unwrap_or(0);
    for (whose, words) in whose.iter().zip([&peer.words, &peer.own_words]) {
        out.line(format!("  {whose:<width$}  {}", theme.strong(words)))?;
    }
    out.line(format!("  {:<width$}  {}", "fingerprint", peer.fingerprint))
}

/// Waits a little for the first connection, so that what is typed next finds the peer there.
fn wait_connected(context: &Context<'_>, peer: &PairedPeer) -> anyhow::Result<bool> {
    let begin = Instant::now();
    loop {
        if let Answer::Status(view) = context.ask(&Request::Status { name: None })? {
            let mut peers = view.node.peers.iter();
            if peers.any(|p| p.connected && p.record.fingerprint == peer.fingerprint) {
                return Ok(true);
            }
        }
        if begin.elapsed() > CONNECT_LIMIT {
            return Ok(false);
        }
        thread::sleep(CONNECT_LIMIT / 100);
    }
}

/// The usual place, from the store's root on.
fn suggestion(peer: &PairedPeer) -> String {
    format!("recv/{}", peer.name)
}

/// Asks on the terminal; prompts go to stderr, so that stdout holds only what was done.
fn ask_for_grant(peer: &PairedPeer) -> anyhow::Result<Option<Gift>> {
    let suggested = suggestion(peer);
    let mut input = io::stdin().lock();
    let prompt = format!(
        "Do the words agree with the other screen? Then: below which dataset may {} keep replicas here?\n\
         [{suggested}, or `no` for nothing] ",
        peer.name
    );
    let receive = match question(&mut input, &prompt)? {
        None => return Ok(None),
        Some(answer) if answer.is_empty() => suggested,
        Some(answer) if is_no(&answer) => return Ok(None),
        Some(answer) => answer,
    };
    let quota_bytes = loop {
        match question(&mut input, "How much may they use? [no limit, or a size such as 100G] ")? {
            None => return Ok(None),
            Some(answer) if answer.is_empty() || is_no(&answer) => break None,
            Some(answer) => match parse_size(&answer) {
                Ok(bytes) => break Some(bytes),
                Err(error) => write_stderr(&format!("{error}\n")),
            },
        }
    };
    let prompt = format!(
        "May migrations from {} start workloads here? What is started, this node says with `run`. [Y/n] ",
        peer.name
    );
    let workloads = match question(&mut input, &prompt)? {
        None => return Ok(None),
        Some(answer) if is_no(&answer) => Vec::new(),
        Some(_) => WorkloadKind::ALL.to_vec(),
    };
    Ok(Some(Gift { receive, quota_bytes, workloads }))
}

fn is_no(answer: &str) -> bool {
    ["n", "no", "none", "nothing"].contains(&answer.to_ascii_lowercase().as_str())
}

/// One line, trimmed; `None` when the input ends.
pub(super) fn question(input: &mut impl BufRead, prompt: &str) -> anyhow::Result<Option<String>> {
    let mut stderr = io::stderr();
    stderr.write_all(prompt.as_bytes())?;
    stderr.flush()?;
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(line.trim().to_owned()))
}

fn give(context: &Context<'_>, peer: &str, gift: &Gift) -> anyhow::Result<()> {
    let request = Request::Grant {
        peer: peer.to_owned(),
        receive: Some(gift.receive.clone()),
        quota_bytes: gift.quota_bytes,
        workloads: gift.workloads.clone(),
    };
    match context.ask(&request)? {
        Answer::Done if context.out.json => Ok(()),
        Answer::Done => context.out.line(granted_sentence(peer, gift)),
        other => unexpected(&other),
    }
}

fn granted_sentence(peer: &str, gift: &Gift) -> String {
    let quota = gift
        .quota_bytes
        .map_or_else(String::new, |bytes| format!(", up to {}", quantity::bytes(bytes)));
    let start = if gift.workloads.is_empty() {
        "start nothing".to_owned()
    } else {
        let words: Vec<String> = gift.workloads.iter().map(ToString::to_string).collect();
        format!("start workloads of kind {}", words.join(", "))
    };
    format!("{peer} may keep replicas below {}{quota}, and {start}", gift.receive)
}

/// `grant`
pub(super) fn grant(context: &Context<'_>, args: GrantArgs) -> anyhow::Result<Exit> {
    let Some(receive) = args.receive else {
        let request = Request::Grant {
            peer: args.peer.clone(),
            receive: None,
            quota_bytes: None,
            workloads: Vec::new(),
        };
        return context.simple(&request, format!("{} may do nothing here", args.peer));
    };
    let gift = Gift { receive, quota_bytes: args.quota, workloads: kinds(&args.workload) };
    give(context, &args.peer, &gift)?;
    if context.out.json {
        context.out.done("")?;
    }
    Ok(Exit::Ok)
}

/// `unpair`
pub(super) fn unpair(context: &Context<'_>, args: PeerArgs) -> anyhow::Result<Exit> {
    let request = Request::Unpair { peer: args.peer.clone() };
    context.simple(&request, format!("{} is forgotten here", args.peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_said_in_one_sentence() {
        let mut gift = Gift {
            receive: "recv/b".into(),
            quota_bytes: Some(10 << 30),
            workloads: vec![WorkloadKind::Process],
        };
        assert_eq!(
            granted_sentence("b", &gift),
            "b may keep replicas below recv/b, up to 10.0 GiB, and start workloads of kind process"
        );
        gift.quota_bytes = None;
        gift.workloads.clear();
        assert_eq!(
            granted_sentence("b", &gift),
            "b may keep replicas below recv/b, and start nothing"
        );
    }
}
