//! What is printed, and how: for people on a terminal, as plain lines elsewhere, or as JSON.
//!
//! Owns: stdout, colours, tables, and what happens when the reader goes away. Leaves to others: the words.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use owo_colors::OwoColorize;
use serde::Serialize;

use crate::exit::OutputGone;

/// Where output goes.
#[derive(Debug, Clone)]
pub(crate) struct Out {
    /// `--json`.
    pub(crate) json: bool,
    /// Stdout is a terminal and JSON was not asked for.
    pub(crate) terminal: bool,
    /// How stdout is coloured.
    pub(crate) theme: Theme,
}

impl Out {
    /// As the environment says: colours only on a terminal, and `NO_COLOR` respected
    /// (<https://no-color.org>).
    pub(crate) fn new(json: bool) -> Self {
        let terminal = !json && io::stdout().is_terminal();
        Self { json, terminal, theme: Theme { colour: terminal && colour_wanted() } }
    }

    /// How stderr is coloured.
    pub(crate) fn err_theme(&self) -> Theme {
        Theme { colour: io::stderr().is_terminal() && colour_wanted() }
    }

    /// Prints text as it is.
    ///
    /// # Errors
    /// [`OutputGone`] when nobody reads any more; otherwise what the system said.
    pub(crate) fn text(&self, text: &str) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(OutputGone.into()),
            Err(error) => Err(error).context("cannot write to standard output"),
        }
    }

    /// Prints one line.
    ///
    /// # Errors
    /// As [`Out::text`].
    pub(crate) fn line(&self, line: impl AsRef<str>) -> anyhow::Result<()> {
        self.text(&format!("{}\n", line.as_ref()))
    }

    /// Prints one JSON object on one line.
    ///
    /// # Errors
    /// As [`Out::text`].
    pub(crate) fn object(&self, value: &impl Serialize) -> anyhow::Result<()> {
        self.line(serde_json::to_string(value).context("cannot write this as JSON")?)
    }

    /// The end of a command that has nothing to say but that it was done: a sentence for people,
    /// `{"done":true}` for programs.
    ///
    /// # Errors
    /// As [`Out::text`].
    pub(crate) fn done(&self, sentence: impl AsRef<str>) -> anyhow::Result<()> {
        #[derive(Serialize)]
        struct Done {
            done: bool,
        }
        if self.json { self.object(&Done { done: true }) } else { self.line(sentence) }
    }
}

fn colour_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Colours, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Theme {
    /// Use them.
    pub(crate) colour: bool,
}

impl Theme {
    /// No colours.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { colour: false };

    fn paint(self, text: &str, style: owo_colors::Style) -> String {
        if self.colour { text.style(style).to_string() } else { text.to_owned() }
    }

    /// What is as it should be.
    pub(crate) fn good(self, text: &str) -> String {
        self.paint(text, owo_colors::Style::new().green())
    }

    /// What is not.
    pub(crate) fn bad(self, text: &str) -> String {
        self.paint(text, owo_colors::Style::new().red().bold())
    }

    /// What may become so.
    pub(crate) fn warn(self, text: &str) -> String {
        self.paint(text, owo_colors::Style::new().yellow())
    }

    /// Names and titles.
    pub(crate) fn strong(self, text: &str) -> String {
        self.paint(text, owo_colors::Style::new().bold())
    }

    /// What one reads last.
    pub(crate) fn dim(self, text: &str) -> String {
        self.paint(text, owo_colors::Style::new().dimmed())
    }

    /// What one may copy: codes, commands.
    pub(crate) fn accent(self, text: &str) -> String {
        self.paint(text, owo_colors::Style::new().cyan())
    }

    /// ✓ or ✗.
    pub(crate) fn mark(self, good: bool) -> String {
        if good { self.good("✓") } else { self.bad("✗") }
    }
}

/// Words that came from a peer or a file, with what could steer a terminal made visible.
pub(crate) fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}

/// Which side a column leans to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Figures.
    Right,
}

/// Lines up rows of cells under a dimmed header, two spaces between columns.
pub(crate) fn table(
    theme: Theme,
    indent: usize,
    header: &[(&str, Align)],
    rows: &[Vec<String>],
) -> String {
    let mut widths: Vec<usize> = header.iter().map(|(title, _)| title.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[&str]| {
        let mut text = " ".repeat(indent);
        for (at, ((cell, width), (_, align))) in cells.iter().zip(&widths).zip(header).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            if at > 0 {
                text.push_str("  ");
            }
            match align {
                Align::Left => text.extend([cell, pad.as_str()]),
                Align::Right => text.extend([pad.as_str(), cell]),
            }
        }
        text.truncate(text.trim_end().len());
        text
    };
    let titles: Vec<&str> = header.iter().map(|(title, _)| *title).collect();
    let mut text = theme.dim(&line(&titles));
    text.push('\n');
    for row in rows {
        let cells: Vec<&str> = row.iter().map(String::as_str).collect();
        text.push_str(&line(&cells));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_up_words_left_and_figures_right() {
        let header = [("name", Align::Left), ("bytes", Align::Right)];
        let rows = [
            vec!["a".to_owned(), "1".to_owned()],
            vec!["überlang".to_owned(), "1234567".to_owned()],
        ];
        assert_eq!(
            table(Theme::PLAIN, 2, &header, &rows),
            "  name        bytes\n  a               1\n  überlang  1234567\n"
        );
    }

    #[test]
    fn what_could_steer_a_terminal_is_made_visible() {
        assert_eq!(clean("a\u{1b}[2Jb\r\nc"), "a\\u{1b}[2Jb\\r\nc");
        assert_eq!(clean("überall"), "überall");
    }

    #[test]
    fn without_colour_nothing_but_the_words_is_printed() {
        assert_eq!(Theme::PLAIN.bad("x"), "x");
        assert!(Theme { colour: true }.bad("x").contains('\u{1b}'));
    }
}
