//! `init` and `serve`: a node comes to be, and runs.
//!
//! Owns: logging of the daemon, and ending it with whoever started it. Leaves to others: what a node is
//! made of and does (`flocker_engine`).

use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use flocker_engine::ServeOptions;
use flocker_engine::api::Request;
use flocker_engine::client::Client;
use flocker_engine::config::{Config, InitOptions};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use super::Context;
use crate::args::{InitArgs, ServeArgs};
use crate::exit::Exit;

/// How long the daemon may take to end in order once its standard input is closed.
const END_LIMIT: Duration = Duration::from_secs(20);

/// What `init --json` prints.
#[derive(Serialize)]
struct Made {
    config: PathBuf,
    name: String,
    state: PathBuf,
    store: String,
    listen: String,
    socket: PathBuf,
}

/// `init`
pub(super) fn init(context: &Context<'_>, args: InitArgs) -> anyhow::Result<Exit> {
    let options = InitOptions {
        path: context.config.clone(),
        name: args.name,
        store: args.store,
        listen: args.listen,
        state: args.state,
        advertise: args.advertise,
    };
    let config = Config::init(options).context("the node is not made")?;
    let out = context.out;
    if out.json {
        out.object(&Made {
            config: config.path().to_owned(),
            name: config.node.name.to_string(),
            state: config.node.state.clone(),
            store: config.node.store.to_string(),
            listen: config.node.listen.to_string(),
            socket: config.socket_path(),
        })?;
        return Ok(Exit::Ok);
    }
    let theme = out.theme;
    out.line(format!("node {} is made", theme.strong(config.node.name.as_str())))?;
    for (what, value) in [
        ("configuration", config.path().display().to_string()),
        ("state", config.node.state.display().to_string()),
        ("store", config.node.store.to_string()),
        ("listens on", config.node.listen.to_string()),
    ] {
        out.line(format!("  {what:<14} {value}"))?;
    }
    let command = command_line(context, "serve");
    out.line(format!("next: {}", theme.accent(&command)))?;
    Ok(Exit::Ok)
}

/// How a person would call another command of this very node.
pub(super) fn command_line(context: &Context<'_>, rest: &str) -> String {
    match &context.config {
        Some(path) => format!("flocker-repl --config {} {rest}", path.display()),
        None => format!("flocker-repl {rest}"),
    }
}

/// `serve`
pub(super) fn serve(context: &Context<'_>, args: &ServeArgs) -> anyhow::Result<Exit> {
    let config = context.config()?;
    start_log();
    if args.until_stdin_closes {
        end_with_stdin(config.clone())?;
    }
    let name = config.node.name.to_string();
    flocker_engine::serve(config, ServeOptions::default())
        .with_context(|| format!("node {name} does not run"))?;
    Ok(Exit::Ok)
}

/// Logs go to stderr, so that `serve` can stand in a service manager or a pipe.
fn start_log() {
    let filter = EnvFilter::try_from_env("FLOCKER_REPL_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,quinn=warn,rustls=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false)
        .init();
}

/// Ends the daemon, as a `shutdown` request does, when standard input is closed: whoever holds its other
/// end is gone then, however it went.
fn end_with_stdin(config: Config) -> anyhow::Result<()> {
    thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            let mut sink = [0; 64];
            loop {
                match io::stdin().read(&mut sink) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            tracing::info!("standard input was closed: the node ends");
            let asked = Client::connect(&config).and_then(|c| c.ask(&Request::Shutdown, |_| {}));
            if let Err(error) = asked {
                tracing::warn!(%error, "the node does not end in order");
            }
            thread::sleep(END_LIMIT);
            tracing::error!(?END_LIMIT, "the node did not end in time");
            std::process::exit(i32::from(Exit::Failed as u8));
        })
        .context("cannot start a thread")?;
    Ok(())
}
