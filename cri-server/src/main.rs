//! `corten-cri`: the command line, the log, the async runtime; the rest is the library.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use corten_cri::BLOCKING_THREADS;
use corten_cri::cli::{Action, Cli};
use corten_cri::config::{Files, Loaded, Log, LogFormat, LogLevel};
use corten_cri::reload::SetLogLevel;
use corten_cri::systemd::{Systemd, Variables};
use corten_cri::{image_cli, network_cli, own_process, server, why_cli};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Handle;

fn main() -> ExitCode {
    // Before anything else: it changes the environment, which only a single thread may.
    let variables = Variables::take();
    let done = match Cli::parse().run() {
        Ok(Action::Serve(files, loaded)) => serve(files, *loaded, &variables),
        Ok(Action::Image(config, command)) => image_cli::run(&config.listen, command),
        Ok(Action::Why(config, why)) => why_cli::run(&config, &why),
        Ok(Action::Network(config, command)) => network_cli::run(&config, command),
        Ok(Action::Exit(code)) => return code,
        Err(problems) => Err(problems.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where stderr is closed, the exit code has to do.
            drop(writeln!(std::io::stderr(), "corten-cri: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(files: Files, loaded: Loaded, variables: &Variables) -> Result<()> {
    let systemd = Systemd::new(variables)?;
    let set_log_level = log_to_stderr(&loaded.config.log);
    own_process::detach()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(loaded.config.worker_threads)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .context("start the async runtime")?;
    runtime.block_on(server::serve(files, loaded, systemd, set_log_level))
}

/// Begins to log; what changes the level later is returned.
fn log_to_stderr(log: &Log) -> SetLogLevel {
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter(log.level));
    match log.format {
        LogFormat::Text => {
            let builder = builder.with_ansi(false).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            by_handle(handle)
        }
        LogFormat::Json => {
            let builder = builder.json().with_current_span(true).with_span_list(false);
            // One span, the innermost: it has all names that there are.
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            by_handle(handle)
        }
    }
}

fn by_handle<S: 'static>(handle: Handle<EnvFilter, S>) -> SetLogLevel {
    Box::new(move |level| handle.reload(filter(level)).context("set the level of the log"))
}

/// What is logged at a level.
fn filter(level: LogLevel) -> EnvFilter {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // The libraries below speak at debug and trace only, of HTTP/2 frames.
    EnvFilter::new(format!("info,corten_cri={level}"))
}
