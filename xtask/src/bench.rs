//! `cargo xtask bench`: what a packet and a change cost, beside what a user would pick instead.

use std::ffi::OsString;

use anyhow::Result;

use crate::{
    build, command, setup,
    workspace::{Profile, Workspace},
};

/// What says that no release is to be built: the benchmarks know the flag too, and tell of it. Nothing is measured
/// where they only tell.
const NO_RELEASE: [&str; 3] = ["--dev", "--help", "-h"];

/// Sets up, builds the benchmarks as releases are built unless that takes too long, and becomes them, elevated.
pub(crate) fn run(workspace: &Workspace, arguments: &[OsString]) -> Result<()> {
    setup::everything(workspace)?;
    setup::bench_tools()?;
    let profile = profile(arguments);
    // The benchmark of the control plane starts the agent that it finds beside it.
    let bench = match profile {
        Profile::Dev => build::test_binaries(workspace)?.bench,
        Profile::Release => {
            build::egress(workspace, profile)?;
            build::bench(workspace, profile)?
        }
    };
    command::become_program(
        command::elevated(bench, &[])?
            .current_dir(workspace.root())
            .args(arguments),
    )
}

fn profile(arguments: &[OsString]) -> Profile {
    let is_enough = |argument: &OsString| NO_RELEASE.iter().any(|flag| argument == flag);
    if arguments.iter().any(is_enough) {
        Profile::Dev
    } else {
        Profile::Release
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_is_told_anywhere() {
        for (words, expected) in [
            (&[][..], Profile::Release),
            (&["--quick", "--check=loose"], Profile::Release),
            (&["--dev", "--quick"], Profile::Dev),
            (&["--quick", "--dev"], Profile::Dev),
            (&["--help"], Profile::Dev),
        ] {
            let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
            assert_eq!(profile(&arguments), expected, "{words:?}");
        }
    }
}
