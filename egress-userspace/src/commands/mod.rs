//! One file for each command: its arguments, and what it prints.

use std::io::{self, Write as _};

use anyhow::Context as _;
use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

pub mod completion;
pub mod detach;
pub mod dump;
pub mod explain;
pub mod run;
pub mod status;
pub mod validate;

/// Where the agent listens unless told otherwise.
pub const AGENT: &str = "127.0.0.1:9464";

/// How a command prints its result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

impl Output {
    /// Writes down a result that `table` can draw.
    ///
    /// # Errors
    /// When the result cannot be written in this form.
    pub fn render<T: Serialize>(
        self,
        result: &T,
        table: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<String> {
        Ok(match self {
            Self::Table => table(result),
            Self::Json => serde_json::to_string_pretty(result)? + "\n",
            Self::Yaml => serde_saphyr::to_string(result)?,
        })
    }
}

/// Prints to standard output; a reader that has left, as `head` does, is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("writing to standard output"),
    }
}

/// Draws columns without borders, easy to read, to grep and to cut.
pub(crate) fn columns<const N: usize>(
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(head);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines = table.lines().map(|line| line.trim_end().to_owned() + "\n");
    lines.collect()
}
