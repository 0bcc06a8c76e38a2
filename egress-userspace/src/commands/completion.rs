//! `egress completion`: a completion script for a shell.

use std::process::ExitCode;

use clap_complete::Shell;

/// Arguments of `egress completion`.
#[derive(Debug, clap::Args)]
pub struct CompletionArgs {
    /// The shell to complete in
    pub shell: Shell,
}

/// Prints the completion script of `command`.
///
/// # Errors
/// When it cannot be printed.
pub fn completion(args: &CompletionArgs, command: &mut clap::Command) -> anyhow::Result<ExitCode> {
    super::print(&script(args.shell, command)?)?;
    Ok(ExitCode::SUCCESS)
}

fn script(shell: Shell, command: &mut clap::Command) -> anyhow::Result<String> {
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, command, name, &mut script);
    Ok(String::from_utf8(script)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() -> anyhow::Result<()> {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut command =
                clap::Command::new("egress").subcommand(clap::Command::new("explain"));
            assert!(script(shell, &mut command)?.contains("explain"), "{shell}");
        }
        Ok(())
    }
}
