//! `cargo xtask setup`: finds what builds and tests need, and installs what is missing.
//!
//! What is already there is taken first, and then nothing touches the network. What was chosen for the
//! eBPF programs is written to a record that the build script of `egress-userspace` reads.

mod compiler;
mod fuzzer;
mod linker;
mod packages;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

pub(crate) use self::compiler::Compiler;
use self::{compiler::Source, linker::Linker};
use crate::{command::say, workspace::Workspace};

/// What the eBPF programs are built with.
pub(crate) struct EbpfTools {
    pub(crate) compiler: Compiler,
    pub(crate) linker: Linker,
}

/// Sets up what builds and tests need.
pub(crate) fn everything(workspace: &Workspace) -> Result<EbpfTools> {
    packages::install_test_tools()?;
    build_tools(workspace)
}

/// Sets up what benchmarks need beside what tests need.
pub(crate) fn bench_tools() -> Result<()> {
    packages::install_bench_tools()
}

/// Sets up what boots other kernels.
pub(crate) fn kernel_tools() -> Result<()> {
    packages::install_kernel_tools()
}

/// Sets up what fuzzing needs beside what builds need, and says where `cargo-fuzz` is.
pub(crate) fn fuzz_tools(workspace: &Workspace) -> Result<PathBuf> {
    fuzzer::everything(workspace)
}

/// Sets up what builds need, and leaves the node's packages alone otherwise.
pub(crate) fn build_tools(workspace: &Workspace) -> Result<EbpfTools> {
    let sources = Source::allowed()?;
    let tools = match already_there(workspace, &sources) {
        Some(tools) => tools,
        None => install(workspace, &sources)?,
    };
    record(workspace, &tools)?;
    Ok(tools)
}

fn already_there(workspace: &Workspace, sources: &[Source]) -> Option<EbpfTools> {
    sources.iter().find_map(|source| {
        let compiler = source.find()?;
        let linker = Linker::find(workspace, compiler.llvm())?;
        Some(EbpfTools { compiler, linker })
    })
}

/// Tries one source after the other; a compiler that is there but finds no linker is not the end.
fn install(workspace: &Workspace, sources: &[Source]) -> Result<EbpfTools> {
    let mut failures = Vec::new();
    for source in sources {
        let attempt = source.install().and_then(|compiler| {
            let linker = match Linker::find(workspace, compiler.llvm()) {
                Some(linker) => linker,
                None => Linker::install(workspace, compiler.llvm())?,
            };
            Ok(EbpfTools { compiler, linker })
        });
        match attempt {
            Ok(tools) => return Ok(tools),
            Err(error) => failures.push(format!("- {source}: {error:#}")),
        }
    }
    bail!(
        "no compiler and linker for the eBPF programs could be found or installed:\n{}\n\
         The quickest way out: `rustup toolchain install nightly --component rust-src` and \
         `cargo binstall bpf-linker`, then `cargo xtask setup` again.",
        failures.join("\n")
    )
}

fn record(workspace: &Workspace, tools: &EbpfTools) -> Result<()> {
    let EbpfTools { compiler, linker } = tools;
    let text = format!(
        "CARGO={}\nRUSTC={}\nRUSTC_BOOTSTRAP={}\nRUSTC_VERSION={}\nLINKER={}\n",
        compiler.cargo().display(),
        compiler.rustc().display(),
        compiler.bootstrap().unwrap_or_default(),
        compiler.version(),
        linker.path().display(),
    );
    let path = workspace.toolchain_record();
    // The build script runs again whenever this file is newer.
    if fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    say(format_args!(
        "eBPF programs are built by {} and linked by {} (LLVM {})",
        compiler.rustc().display(),
        linker.path().display(),
        compiler.llvm()
    ));
    Ok(())
}
