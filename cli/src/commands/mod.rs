//! What each command does: one request to the node, and its answer printed.
//!
//! Owns: the way from arguments to requests, and which printer takes the answer. Leaves to others: the
//! words for people ([`crate::render`]), the node's side (`flocker_engine::api`).

mod browse;
mod doctor;
mod failover;
mod follow;
mod migrate;
mod pair;
mod resolve;
mod serve;
mod stream;
mod unit;
mod view;

use std::path::PathBuf;

use anyhow::bail;
use clap::CommandFactory;
use flocker_engine::api::{Answer, Request, Response};
use flocker_engine::client::Client;
use flocker_engine::config::Config;

use crate::args::{Cli, Command};
use crate::exit::Exit;
use crate::out::Out;

/// What every command needs.
pub(crate) struct Context<'a> {
    /// Where output goes.
    pub(crate) out: &'a Out,
    /// `--config`.
    pub(crate) config: Option<PathBuf>,
}

impl Context<'_> {
    /// The node's configuration.
    fn config(&self) -> anyhow::Result<Config> {
        Ok(match &self.config {
            Some(path) => Config::load(path)?,
            None => Config::load_default()?,
        })
    }

    /// Asks the node; `on` takes what comes before the answer.
    fn ask_with(&self, request: &Request, on: impl FnMut(Response)) -> anyhow::Result<Answer> {
        Ok(Client::connect(&self.config()?)?.ask(request, on)?)
    }

    /// Asks the node something that is answered at once.
    fn ask(&self, request: &Request) -> anyhow::Result<Answer> {
        self.ask_with(request, |_| {})
    }

    /// Asks for something that is just done, and says so.
    fn simple(&self, request: &Request, sentence: impl AsRef<str>) -> anyhow::Result<Exit> {
        match self.ask(request)? {
            Answer::Done => self.out.done(sentence)?,
            other => return unexpected(&other),
        }
        Ok(Exit::Ok)
    }
}

/// An answer to another question: the node is of another version.
fn unexpected<T>(answer: &Answer) -> anyhow::Result<T> {
    let kind = format!("{answer:?}");
    let kind = kind.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    bail!(
        "the daemon gave another kind of answer ({kind}) than this program expects: \
         are both of the same version?"
    )
}

/// Runs a command.
pub(crate) fn dispatch(cli: Cli, out: &Out) -> anyhow::Result<Exit> {
    let context = Context { out, config: cli.config };
    let context = &context;
    match cli.command {
        Command::Init(args) => serve::init(context, args),
        Command::Serve(args) => serve::serve(context, &args),
        Command::Pair(args) => pair::pair(context, args),
        Command::Grant(args) => pair::grant(context, args),
        Command::Unpair(args) => pair::unpair(context, args),
        Command::Protect(args) => unit::protect(context, args),
        Command::Run(args) => unit::run(context, *args),
        Command::Stop(args) => unit::stop(context, args.name),
        Command::Pause(args) => unit::pause(context, args.name),
        Command::Resume(args) => unit::resume(context, args.name),
        Command::Unprotect(args) => unit::unprotect(context, args),
        Command::StartAlone(args) => unit::start_alone(context, args),
        Command::Migrate(args) => migrate::migrate(context, args),
        Command::Failover(args) => failover::failover(context, &args),
        Command::Holds(args) => view::holds(context, args),
        Command::Browse(args) => browse::browse(context, &args),
        Command::Doctor => doctor::doctor(context),
        Command::Resolve(args) => resolve::resolve(context, &args),
        Command::Status(args) => view::status(context, args),
        Command::Watch => view::watch(context),
        Command::Peers => view::peers(context),
        Command::Rounds(args) => view::rounds(context, args),
        Command::History(args) => view::history(context, args),
        Command::Metrics => view::metrics(context),
        Command::Stream(command) => stream::stream(context, &command),
        Command::Demo(args) => crate::demo::demo(out, &args),
        Command::Completions(args) => completions(out, args.shell),
        Command::Man => man(out),
        Command::DemoWorkload(args) => crate::demo::workload::run(&args),
    }
}

fn completions(out: &Out, shell: clap_complete::Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "flocker-repl", &mut script);
    out.text(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}

fn man(out: &Out) -> anyhow::Result<Exit> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
        let title = format!("flocker-repl {}", command.get_name()).to_uppercase();
        page.extend_from_slice(format!(".SH \"{title}\"\n").as_bytes());
        let mut part = Vec::new();
        let named = command.clone().bin_name(format!("flocker-repl {}", command.get_name()));
        let part_of = clap_mangen::Man::new(named);
        part_of.render_synopsis_section(&mut part)?;
        part_of.render_description_section(&mut part)?;
        part_of.render_options_section(&mut part)?;
        // Within one page these are sections of a section.
        page.extend_from_slice(String::from_utf8_lossy(&part).replace(".SH ", ".SS ").as_bytes());
    }
    out.text(&String::from_utf8_lossy(&page))?;
    Ok(Exit::Ok)
}
