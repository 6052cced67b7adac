//! What is shown while a command runs that takes its time: migrations, failovers, drills.
//!
//! Owns: the bar on a terminal and the lines elsewhere. Leaves to others: the events' words
//! ([`crate::render::event`]), the report at the end.

use std::time::Duration;

use flocker_core::io::EventKind;
use flocker_engine::api::{Answer, Progress, Request, Response, StampedEvent};
use indicatif::{ProgressBar, ProgressStyle};

use super::Context;
use crate::out::Out;
use crate::render::{Names, event};

/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(100);

/// Asks, and shows what happens until the answer is there.
pub(super) fn ask(
    context: &Context<'_>,
    request: &Request,
    names: &Names,
) -> anyhow::Result<Answer> {
    let out = context.out;
    let mut shown = Shown::new(out);
    let answer = context.ask_with(request, |response| match response {
        Response::Event(stamped) => shown.event(out, &stamped, names),
        Response::Progress(progress) => shown.progress(&progress),
        Response::InviteOpen(_) | Response::Ok(_) | Response::Error(_) => {}
    });
    shown.end();
    answer
}

/// What is shown while it runs.
enum Shown {
    /// `--json`: the object at the end is all.
    Nothing,
    /// Not a terminal: a line for each event.
    Lines,
    /// A terminal: one bar below the lines.
    Bar { bar: ProgressBar, phase: String, measured: bool },
}

impl Shown {
    fn new(out: &Out) -> Self {
        if out.json {
            return Self::Nothing;
        }
        if !out.terminal {
            return Self::Lines;
        }
        let bar = ProgressBar::new_spinner().with_style(spinner());
        bar.enable_steady_tick(TICK);
        bar.set_message("asking");
        Self::Bar { bar, phase: String::new(), measured: false }
    }

    fn event(&mut self, out: &Out, stamped: &StampedEvent, names: &Names) {
        match self {
            Self::Nothing => {}
            Self::Lines => {
                // What was begun goes on whether or not somebody reads about it.
                let _ = out.line(event::line(stamped, names, out.theme));
            }
            Self::Bar { bar, phase, measured } => match &stamped.event.kind {
                EventKind::Phase { phase: word, .. } => {
                    word.clone_into(phase);
                    *measured = false;
                    bar.set_style(spinner());
                    bar.set_message(word.clone());
                }
                // What was predicted stays above the bar while it comes true or not.
                kind @ (EventKind::Round(_)
                | EventKind::Predicted { .. }
                | EventKind::Migrated(_)
                | EventKind::MigrationFailed { .. }
                | EventKind::FailedOver(_)
                | EventKind::Drilled(_)
                | EventKind::Role { .. }
                | EventKind::Alarm { .. }
                | EventKind::Cleared
                | EventKind::Note(_)) => {
                    bar.println(format!("  {}", event::words(kind, names, out.theme)));
                }
            },
        }
    }

    fn progress(&mut self, progress: &Progress) {
        let Self::Bar { bar, phase, measured } = self else {
            return;
        };
        if progress.ended {
            *measured = false;
            bar.set_style(spinner());
            bar.set_message(phase.clone());
            return;
        }
        if !*measured {
            *measured = true;
            bar.reset();
            bar.set_style(measuring(progress.total_bytes.is_some()));
            bar.set_message(phase.clone());
        }
        if let Some(total) = progress.total_bytes {
            bar.set_length(total.max(progress.stream_bytes));
        }
        bar.set_position(progress.stream_bytes);
    }

    fn end(self) {
        if let Self::Bar { bar, .. } = self {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressStyle {
    style("{spinner} {msg}  {elapsed:.dim}")
}

/// With rate, and with the remaining time where the total is known.
fn measuring(total_known: bool) -> ProgressStyle {
    if total_known {
        style(
            "{spinner} {msg:10} {bar:30.cyan} {binary_bytes} of {binary_total_bytes} \
             at {binary_bytes_per_sec}, {eta} left",
        )
        .progress_chars("█▉▊▋▌▍▎▏ ")
    } else {
        style("{spinner} {msg:10} {binary_bytes} at {binary_bytes_per_sec}")
    }
}

fn style(template: &str) -> ProgressStyle {
    // A template that does not parse is our own mistake; the default shows the same, plainer.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_of_the_bars_parse() {
        for template in [
            "{spinner} {msg}  {elapsed:.dim}",
            "{spinner} {msg:10} {bar:30.cyan} {binary_bytes} of {binary_total_bytes} at {binary_bytes_per_sec}, {eta} left",
            "{spinner} {msg:10} {binary_bytes} at {binary_bytes_per_sec}",
        ] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
