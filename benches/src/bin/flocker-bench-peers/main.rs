//! `benches/peers/run`: whole transfers from pipe to pipe, by us and by what people use today, over the same stream,
//! in the same minute, in turn. Writes what it measured as JSON, and the report for people.

mod contenders;
mod fuse;
mod latency;
mod measure;
mod plan;
mod plot;
mod report;
mod results;
mod site;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Parser;

use plan::Part;
use results::{Machine, Results, Round, Series, median};
use site::{Site, says};

#[derive(Parser)]
#[command(name = "benches/peers/run", about = "Ours and what people use today, side by side")]
struct Cli {
    /// Times that each is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measure this part alone; may be given again.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// MiB of each stream.
    #[arg(long, default_value_t = 1024)]
    size: u64,
    /// MiB of the filesystem that goes from one zfs-fuse to another.
    #[arg(long, default_value_t = 192)]
    fuse_size: u64,
    /// Where to write the figures.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where to write benchmarks.md and benchmarks.svg.
    #[arg(long, value_name = "DIRECTORY")]
    docs: Option<PathBuf>,
    /// Write the report of figures taken earlier, and measure nothing.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// A stream of a database, as benches/peers/database-stream makes it.
    #[arg(long, value_name = "FILE")]
    database: Option<PathBuf>,
    /// What made that stream, in words.
    #[arg(long, default_value = "")]
    database_words: String,
    /// Where large files go.
    #[arg(long, default_value = "/dev/shm")]
    folder: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let results = match &cli.from {
        Some(file) => {
            let text = fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            serde_json::from_str(&text).context("it has no figures of this version")?
        }
        None => measured(&cli)?,
    };
    if let Some(file) = &cli.json {
        fs::write(file, serde_json::to_string_pretty(&results)? + "\n")
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    let markdown = report::markdown(&results);
    if let Some(folder) = &cli.docs {
        fs::write(folder.join("benchmarks.md"), &markdown)
            .and_then(|()| fs::write(folder.join("benchmarks.svg"), plot::draw(&results)))
            .with_context(|| format!("cannot write into {}", folder.display()))?;
    }
    println!("{markdown}");
    Ok(())
}

fn measured(cli: &Cli) -> anyhow::Result<Results> {
    let started = Instant::now();
    let parts = plan::parts();
    let names: Vec<&str> =
        parts.iter().map(|part| part.name).chain([plan::LATENCY, plan::FUSE]).collect();
    if let Some(unknown) = cli.only.iter().find(|only| !names.contains(&only.as_str())) {
        bail!("there is no part {unknown}; there are {}", names.join(", "));
    }
    let wanted = |name: &str| cli.only.is_empty() || cli.only.iter().any(|only| only == name);
    let site = Site::new(&cli.folder, &std::env::temp_dir())?;
    let mut results = Results {
        command: command(),
        when: says("date -u '+%Y-%m-%d %H:%M UTC'")?,
        took_seconds: 0,
        machine: machine()?,
        rounds: cli.rounds,
        inputs: Vec::new(),
        series: Vec::new(),
        latencies: Vec::new(),
        notes: Vec::new(),
    };
    let chosen: Vec<&Part> = parts.iter().filter(|part| wanted(part.name)).collect();
    for (number, part) in chosen.iter().enumerate() {
        let file = match plan::make(&site, part, cli.size, cli.database.as_deref())? {
            Ok(file) if site.has(part.network) => file,
            Ok(_) => {
                results.notes.push(format!("{}: needs root, for network namespaces", part.name));
                continue;
            }
            Err(why) => {
                results.notes.push(format!("{}: {why}", part.name));
                continue;
            }
        };
        measure_part(&site, part, &file, cli.rounds, &mut results)?;
        let again = chosen[number + 1..].iter().any(|later| later.kind == part.kind);
        if part.kind.is_some() && !again {
            fs::remove_file(&file)?;
        }
    }
    if wanted(plan::LATENCY) {
        eprintln!("{}", plan::LATENCY);
        results.latencies = latency::measure(cli.rounds)?;
    }
    if wanted(plan::FUSE) {
        eprintln!("{}", plan::FUSE);
        match fuse::measure(&site, cli.fuse_size, cli.rounds)? {
            Ok(series) => {
                results.inputs.push(fuse::INPUT.to_owned());
                results.series.extend(series);
            }
            Err(why) => results.notes.push(format!("{}: {why}", plan::FUSE)),
        }
    }
    if wanted("database") && !cli.database_words.is_empty() {
        results.notes.push(format!("The stream of a database: {}", cli.database_words));
    }
    results.took_seconds = started.elapsed().as_secs();
    Ok(results)
}

fn measure_part(
    site: &Site,
    part: &Part,
    file: &Path,
    rounds: usize,
    results: &mut Results,
) -> anyhow::Result<()> {
    let bytes = fs::metadata(file)?.len();
    let empty = site.path("empty.zstream");
    let pipe = site.pipe.display();
    let nothing: u64 = says(&format!("{pipe} make noise {} --mib 0", empty.display()))?.parse()?;
    eprintln!("{}: {} MiB, {}", part.name, bytes >> 20, part.network);
    let mut all: Vec<Series> = Vec::new();
    for contender in &part.contenders {
        let mut startups: Vec<Round> = Vec::new();
        for _ in 0..3 {
            startups.push(contender.run(site, part.network, &empty, nothing)?);
        }
        let of = |get: fn(&Round) -> f64| median(&startups.iter().map(get).collect::<Vec<_>>());
        all.push(Series {
            input: part.input.to_owned(),
            network: part.network,
            tool: contender.name(),
            ours: contender.is_ours(),
            startup_seconds: of(|round| round.seconds),
            startup_cpu_seconds: of(|round| round.cpu_seconds),
            rounds: Vec::new(),
        });
    }
    for round in 0..rounds {
        // Each begins a round in turn, so that none always follows the same one.
        for at in 0..all.len() {
            let at = (at + round) % all.len();
            let ran = part.contenders[at].run(site, part.network, file, bytes)?;
            all[at].rounds.push(ran);
        }
    }
    for series in &all {
        eprintln!(
            "  {:<44} {:>6.2} GB/s {:>6.2} cpu-s/GB",
            series.tool,
            series.gb_per_second(),
            series.cpu_per_gb()
        );
    }
    if !results.inputs.iter().any(|input| input == part.input) {
        results.inputs.push(part.input.to_owned());
    }
    results.series.extend(all);
    Ok(())
}

/// As a person called it.
fn command() -> String {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut shown = vec!["benches/peers/run".to_owned()];
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        // What the script adds, and where things are written: it changes no figure.
        let places = ["--database", "--database-words", "--json", "--docs", "--folder"];
        if places.contains(&word.as_str()) {
            words.next();
            continue;
        }
        shown.push(word);
    }
    shown.join(" ")
}

fn machine() -> anyhow::Result<Machine> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let kib: u64 = field(&meminfo, "MemTotal")
        .split_whitespace()
        .next()
        .and_then(|kib| kib.parse().ok())
        .unwrap_or(0);
    let mut versions = vec![format!("flocker-repl {}", env!("CARGO_PKG_VERSION"))];
    for command in [
        "ssh -V 2>&1 | cut -d, -f1",
        "zstd --version | grep -o 'v[0-9.]*' | head -1 | sed 's/^/zstd /'",
        "lzop --version | head -1",
        "mbuffer --version 2>&1 | head -1",
        "pv --version | head -1 | cut -d' ' -f1,2",
        "cat --version | head -1",
    ] {
        // One that is not there says so when it is used.
        versions.extend(says(command).ok().filter(|version| !version.is_empty()));
    }
    Ok(Machine {
        processor: field(&cpuinfo, "model name"),
        processors: std::thread::available_parallelism()?.get(),
        memory_gib: kib.div_ceil(1 << 20),
        kernel: says("uname -r")?,
        load: says("cut -d' ' -f1 /proc/loadavg")?,
        system: says(". /etc/os-release && echo \"$PRETTY_NAME\"").unwrap_or_default(),
        versions,
    })
}
