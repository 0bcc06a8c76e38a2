//! `cargo xtask lint`: formatting, clippy on both sides of the kernel boundary, dependencies.

use std::{env, process::Command};

use anyhow::{Result, bail};

use crate::{
    build,
    command::{self, find_program, is_executable, say},
    setup::{self, EbpfTools},
    workspace::Workspace,
};

/// Runs every check there is a tool for, and names the others.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let tools = setup::build_tools(workspace)?;
    // One run shows everything there is to mend.
    let failures: Vec<String> = [
        formatting(workspace),
        host(workspace),
        ebpf(workspace, &tools),
        dependencies(workspace),
    ]
    .into_iter()
    .filter_map(Result::err)
    .map(|error| error.to_string())
    .collect();
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(())
}

fn formatting(workspace: &Workspace) -> Result<()> {
    say(format_args!("formatting"));
    command::run(
        command::cargo()
            .current_dir(workspace.root())
            .args(["fmt", "--all", "--check"]),
    )?;
    // A workspace of its own. That it compiles is seen when it is run: building it takes minutes.
    command::run(
        command::cargo()
            .current_dir(workspace.root().join("fuzz"))
            .args(["fmt", "--check"]),
    )
}

fn host(workspace: &Workspace) -> Result<()> {
    say(format_args!("clippy, userspace"));
    command::run(
        command::cargo()
            .current_dir(workspace.root())
            .args(["clippy", "--workspace", "--all-targets"])
            .args(
                build::FOR_THE_KERNEL
                    .iter()
                    .flat_map(|package| ["--exclude", package]),
            )
            .args(["--", "-D", "warnings"]),
    )?;
    // Not built with the others, since it has tests that they have; of the same packages, or all would be checked again.
    command::run(
        command::cargo()
            .current_dir(workspace.root())
            .args(["clippy", "--workspace", "--test", "kernels"])
            .args(
                build::FOR_THE_KERNEL
                    .iter()
                    .flat_map(|package| ["--exclude", package]),
            )
            .args(["--", "-D", "warnings"]),
    )
}

/// Clippy of the compiler that builds the eBPF programs: no other understands their target.
fn ebpf(workspace: &Workspace, tools: &EbpfTools) -> Result<()> {
    let compiler = &tools.compiler;
    let clippy = compiler.cargo().with_file_name("cargo-clippy");
    if !is_executable(&clippy) || compiler.bootstrap().is_some() {
        say(format_args!(
            "skipped: clippy, eBPF: {} comes without clippy (rustup's nightly has it: \
             `rustup component add clippy --toolchain nightly`)",
            compiler.version()
        ));
        return Ok(());
    }
    say(format_args!("clippy, eBPF"));
    let target = if cfg!(target_endian = "big") {
        "bpfeb-unknown-none"
    } else {
        "bpfel-unknown-none"
    };
    let mut command = Command::new(clippy);
    command
        .current_dir(workspace.root())
        .args(["clippy", "--profile", "ebpf"])
        .args(
            build::FOR_THE_KERNEL
                .iter()
                .flat_map(|package| ["--package", package]),
        )
        .args(["-Z", "build-std=core", "--target", target])
        // Where the same compiler has built the programs, with the same flags and linker: `core` is there, and stays.
        .arg("--target-dir")
        .arg(workspace.root().join("target/ebpf"))
        .args(["--", "-D", "warnings"])
        .env("CARGO", compiler.cargo())
        .env("RUSTC", compiler.rustc())
        .env(ebpf_build::linker_variable(target), tools.linker.path())
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            ebpf_build::flags(env::consts::ARCH),
        )
        .env_remove("RUSTUP_TOOLCHAIN");
    command::run(&mut command)
}

/// Licences, duplicates and sources; advisories where their database has been fetched.
fn dependencies(workspace: &Workspace) -> Result<()> {
    if find_program("cargo-deny").is_none() {
        say(format_args!(
            "skipped: cargo deny: not installed (`cargo install cargo-deny --locked`)"
        ));
        return Ok(());
    }
    say(format_args!("cargo deny"));
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
        command::run(
            command::cargo()
                .current_dir(workspace.root())
                .args(["deny", "--offline", "--manifest-path", manifest, "check"])
                .args(["--config", ".cargo/deny.toml"])
                .args(["bans", "licenses", "sources"]),
        )?;
    }
    say(format_args!(
        "skipped: cargo deny check advisories: needs the network"
    ));
    Ok(())
}
