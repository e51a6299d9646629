//! The command line of `corten-cri`.
//!
//! ```text
//! corten-cri [--config FILE] [--root DIR] [--state DIR] [--listen SOCKET]     serves the CRI
//! corten-cri config ...                                                       looks after the configuration
//! corten-cri image ... [--listen SOCKET]                                      looks after a running server's images
//! ```

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, Files, Loaded, Problems};
use crate::config_cli::{self, ConfigCommand};
use crate::image_cli::ImageCommand;

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
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Action {
    /// Serve the CRI with what these files say.
    Serve(Files, Box<Loaded>),
    /// Ask the server of this configuration.
    Image(Box<Config>, ImageCommand),
    /// All is done; exit so.
    Exit(ExitCode),
}

impl Cli {
    /// Does what needs no server; for the rest loads the configuration, with the command line's word over it.
    pub fn run(mut self) -> Result<Action, Problems> {
        match self.command.take() {
            Some(Command::Image(command)) => Ok(Action::Image(Box::new(self.load()?), command)),
            Some(Command::Config(command)) => Ok(Action::Exit(config_cli::run(self.files(), command))),
            None => {
                let files = self.files();
                let loaded = Box::new(files.load()?);
                Ok(Action::Serve(files, loaded))
            }
        }
    }

    fn load(&self) -> Result<Config, Problems> {
        self.files().load().map(|loaded| loaded.config)
    }

    /// Where the configuration comes from, and what the command line says over it.
    fn files(&self) -> Files {
        // A relative path on a command line is relative to whoever wrote it.
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_no_cwd| path.to_owned());
        let flags = [
            ("--root", "root", &self.root),
            ("--state", "state", &self.state),
            ("--listen", "listen", &self.listen),
        ];
        let given = flags.into_iter().filter_map(|(flag, key, path)| {
            let path = absolute(path.as_deref()?);
            Some((flag, key, path.to_string_lossy().into_owned().into()))
        });
        Files {
            file: self.config.as_deref().map(absolute),
            flags: given.collect(),
        }
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
