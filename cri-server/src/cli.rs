//! The command line of `corten-cri`.
//!
//! ```text
//! corten-cri [--config FILE] [--root DIR] [--state DIR] [--listen SOCKET]     serves the CRI
//! corten-cri config default                                                   prints the default configuration
//! corten-cri config check [--config FILE] ...                                 prints what is wrong with one
//! corten-cri image ... [--listen SOCKET]                                      looks after a running server's images
//! corten-cri doctor [--json] [--all]                                          says what is wrong with the machine
//! corten-cri status [--json]                                                  says how the running server is
//! corten-cri support-bundle [-o FILE]                                         packs all that a supporter wants to see
//! corten-cri why ID|NAME [--json]                                             tells why a container ended
//! corten-cri network ... [--listen SOCKET]                                    looks after its built-in network
//! ```

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, DEFAULT_TEXT, Problems};
use crate::doctor::{self, Doctor};
use crate::image_cli::ImageCommand;
use crate::network_cli::NetworkCommand;
use crate::status_cli::{self, Status};
use crate::support_bundle::{self, SupportBundle};
use crate::why_cli::Why;

/// Serves the Kubernetes Container Runtime Interface.
#[derive(Debug, Parser)]
#[command(name = "corten-cri", version)]
pub struct Cli {
    /// Configuration file [default: /etc/corten/config.toml, which may be absent]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory that survives a reboot: images, layers, records
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Directory that does not: sockets, bundles, the runtime's state
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Unix socket of the CRI services
    #[arg(long, global = true, value_name = "SOCKET")]
    listen: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Looks after the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Looks after the images of the running server
    #[command(subcommand)]
    Image(ImageCommand),
    /// Says what is wrong with this machine, what it means and how to mend it; a server need not run
    Doctor(Doctor),
    /// Shows how the running server is: pods, containers, images, memory, disk, conditions, recent failures
    Status(Status),
    /// Writes an archive of all that helps to find a fault, without secrets
    SupportBundle(SupportBundle),
    /// Tells why a container ended
    Why(Why),
    /// Looks after the built-in network of the running server
    #[command(subcommand)]
    Network(NetworkCommand),
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum ConfigCommand {
    /// Prints the default configuration, with every key explained
    Default,
    /// Prints what is wrong with the configuration: file, line, key, rule
    Check,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Action {
    /// Serve the CRI with this configuration.
    Serve(Box<Config>),
    /// Ask the server of this configuration.
    Image(Box<Config>, ImageCommand),
    /// Ask it, or its records, why a container ended.
    Why(Box<Config>, Why),
    /// Ask the server of this configuration about its network.
    Network(Box<Config>, NetworkCommand),
    /// All is done; exit so.
    Exit(ExitCode),
}

impl Cli {
    /// Does all but serving and what is about images; for these loads the configuration, with the command line's word over
    /// it.
    pub fn run(mut self) -> Result<Action, Problems> {
        match self.command.take() {
            Some(Command::Image(command)) => Ok(Action::Image(Box::new(self.load()?), command)),
            Some(Command::Doctor(wanted)) => Ok(Action::Exit(doctor::run(self.load(), wanted))),
            Some(Command::Status(wanted)) => Ok(Action::Exit(status_cli::run(&self.load()?, wanted))),
            Some(Command::SupportBundle(wanted)) => Ok(Action::Exit(support_bundle::run(self.load(), &wanted))),
            Some(Command::Why(why)) => Ok(Action::Why(Box::new(self.load()?), why)),
            Some(Command::Network(command)) => Ok(Action::Network(Box::new(self.load()?), command)),
            None => Ok(Action::Serve(Box::new(self.load()?))),
            Some(Command::Config(ConfigCommand::Default)) => Ok(Action::Exit(print(DEFAULT_TEXT))),
            Some(Command::Config(ConfigCommand::Check)) => Ok(Action::Exit(match self.load() {
                Ok(_) => ExitCode::SUCCESS,
                Err(problems) => {
                    print(&format!("{problems}\n"));
                    ExitCode::FAILURE
                }
            })),
        }
    }

    fn load(&self) -> Result<Config, Problems> {
        Config::load(self.config.as_deref(), |config| {
            // A relative path on a command line is relative to whoever wrote it.
            let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_no_cwd| path.to_owned());
            if let Some(root) = &self.root {
                config.root = absolute(root);
            }
            if let Some(state) = &self.state {
                config.state = absolute(state);
            }
            if let Some(listen) = &self.listen {
                config.listen = absolute(listen);
            }
        })
    }
}

/// Prints, and fails if nobody can read it.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_closed) => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        std::fs::write(&file, "root = '/a'\nworker_threads = 3\n").unwrap();
        let load = |arguments: &[&str]| {
            let own = ["corten-cri", "--config", file.to_str().unwrap()];
            Cli::parse_from(own.iter().chain(arguments)).load().unwrap()
        };
        let config = load(&["--root", "/b", "--state", "/c"]);
        assert_eq!((config.root, config.state), ("/b".into(), "/c".into()));
        assert_eq!((config.listen, config.worker_threads), ("/c/corten.sock".into(), 3));
        assert_eq!(load(&["--state", "/c", "--listen", "/d"]).listen, Path::new("/d"));
    }
}
