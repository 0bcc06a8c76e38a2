//! The demo: policies, real traffic, and which source address each destination saw.

mod multi_node;
mod one_node;

use std::{env, path::PathBuf, process::ExitCode};

use anyhow::{Result, bail, ensure};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use egress_tests::resources::examples;

/// What to show.
enum Show {
    /// One node with the examples, then several.
    Everything,
    /// One node with other resources.
    OneNode(PathBuf),
    /// Several nodes.
    MultiNode,
}

#[expect(clippy::print_stderr, reason = "errors go where errors belong")]
fn main() -> ExitCode {
    match demo() {
        Ok(0) => {
            println!("\nEvery row is what the policy says. Nothing is left behind.");
            ExitCode::SUCCESS
        }
        Ok(wrong) => {
            println!("\n{wrong} of the above are not what the policy says.");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("egress-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Shows what was asked for and returns how much of it is wrong.
fn demo() -> Result<usize> {
    match arguments()? {
        Show::Everything => {
            let wrong = one_node::demo(&examples().canonicalize()?)?;
            println!();
            Ok(wrong + multi_node::demo()?)
        }
        Show::OneNode(resources) => one_node::demo(&resources),
        Show::MultiNode => multi_node::demo(),
    }
}

fn arguments() -> Result<Show> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    match &arguments[..] {
        [] => Ok(Show::Everything),
        [flag] if flag == "--multi-node" => Ok(Show::MultiNode),
        [flag, path] if flag == "--resources" => {
            let path = PathBuf::from(path);
            ensure!(path.exists(), "{} does not exist", path.display());
            Ok(Show::OneNode(path.canonicalize()?))
        }
        _ => bail!("usage: egress-demo [--multi-node | --resources DIR]"),
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    table
}
