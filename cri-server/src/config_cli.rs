//! `corten-cri config`: the configuration, from the command line.
//!
//! ```text
//! config default             every key with its default, explained
//! config check [FILE]        all that is wrong with the files; exit code 1 if anything is
//! config show                what the files say, key by key, and who has said it
//! config show --running      what the running server goes by, and what waits for its restart
//! config reload              has it read the files again, and prints what that has changed
//! ```
//! What is printed as TOML is a configuration file: everything else is in its comments.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use corten_proto::config::configuration_client::ConfigurationClient;
use corten_proto::config::{ReloadRequest, ShowRequest};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::config::{DEFAULT_TEXT, Files, Problems, Setting};

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Prints the default configuration, with every key explained
    Default,
    /// Prints what is wrong with the configuration, each mistake with file, line, key, rule and value; fails if anything is
    Check {
        /// The file, with conf.d beside it [default: that of --config]
        file: Option<PathBuf>,
    },
    /// Prints every key with its value and who has set it
    Show(Show),
    /// Has the running server read its configuration again, as SIGHUP does
    Reload,
}

/// See [`ConfigCommand::Show`].
#[derive(Args, Clone, Debug)]
pub(crate) struct Show {
    /// What the running server goes by, instead of what the files say
    #[arg(long)]
    running: bool,
    /// As JSON instead of TOML
    #[arg(long, conflicts_with = "toml")]
    json: bool,
    /// As TOML, with the rest as comments: the default
    #[arg(long)]
    toml: bool,
}

/// Runs a command on these files, or the server that has them.
pub(crate) fn run(mut files: Files, command: ConfigCommand) -> ExitCode {
    let done = match command {
        ConfigCommand::Default => Ok(DEFAULT_TEXT.to_owned()),
        ConfigCommand::Check { file } => {
            files.file = file.or(files.file);
            match check(&files) {
                Ok(text) => Ok(text),
                // For a person or an editor to go through, so it is the result and no complaint.
                Err(problems) => {
                    print(&format!("{problems}\n"));
                    return ExitCode::FAILURE;
                }
            }
        }
        ConfigCommand::Show(options) => show(&files, &options),
        ConfigCommand::Reload => ask(&files, reload),
    };
    match done {
        Ok(text) => print(&text),
        Err(error) => {
            drop(writeln!(std::io::stderr(), "corten-cri: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn check(files: &Files) -> Result<String, Problems> {
    files.load()?;
    let found = files.found()?;
    let names: Vec<_> = found.iter().map(|file| file.display().to_string()).collect();
    Ok(match names.is_empty() {
        true => "OK: there is no file, all keys have their defaults\n".to_owned(),
        false => format!("OK: {}\n", names.join(", ")),
    })
}

fn show(files: &Files, options: &Show) -> Result<String> {
    let settings = match options.running {
        true => ask(files, running)?,
        false => files.load()?.settings(&[]),
    };
    if options.json {
        return Ok(serde_json::to_string_pretty(&settings)? + "\n");
    }
    Ok(settings.iter().map(Setting::line).collect())
}

async fn running(mut server: ConfigurationClient<Channel>) -> Result<Vec<Setting>> {
    let answer = server.show(ShowRequest {}).await.map_err(refused)?;
    serde_json::from_str(&answer.into_inner().settings).context("the server's answer")
}

async fn reload(mut server: ConfigurationClient<Channel>) -> Result<String> {
    let answer = server.reload(ReloadRequest {}).await.map_err(refused)?.into_inner();
    let mut text: String = answer.changed.iter().map(|line| format!("changed: {line}\n")).collect();
    text.extend(answer.waiting.iter().map(|line| format!("needs a restart: {line}\n")));
    Ok(match text.is_empty() {
        true => "nothing has changed\n".to_owned(),
        false => text,
    })
}

/// Asks the server of these files.
fn ask<T, F: Future<Output = Result<T>>>(
    files: &Files,
    question: impl FnOnce(ConfigurationClient<Channel>) -> F,
) -> Result<T> {
    let socket = files.socket()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start the async runtime")?;
    runtime.block_on(async { question(connect(&socket).await?).await })
}

async fn connect(socket: &Path) -> Result<ConfigurationClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
    let endpoint = endpoint.with_context(|| format!("{}: no address of a socket", socket.display()))?;
    match endpoint.connect().await {
        Ok(channel) => Ok(ConfigurationClient::new(channel)),
        Err(error) => bail!("{}: no server answers there: {error}", socket.display()),
    }
}

fn refused(status: Status) -> anyhow::Error {
    match status.code() {
        Code::FailedPrecondition => anyhow!("nothing has changed:\n{}", status.message()),
        _ => anyhow!("{}", status.message()),
    }
}

/// Prints, and fails if nobody can read it.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_closed) => ExitCode::FAILURE,
    }
}
