//! `corten-cri`: the command line, the log, the async runtime; the rest is the library.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use corten_cri::BLOCKING_THREADS;
use corten_cri::cli::{Action, Cli};
use corten_cri::config::{Config, LogFormat, LogLevel};
use corten_cri::{image_cli, network_cli, own_process, server, why_cli};
use tracing::level_filters::LevelFilter;

fn main() -> ExitCode {
    let config = match Cli::parse().run() {
        Ok(Action::Serve(config)) => *config,
        Ok(Action::Image(config, command)) => return end(image_cli::run(&config.listen, command)),
        Ok(Action::Why(config, why)) => return end(why_cli::run(&config, &why)),
        Ok(Action::Network(config, command)) => return end(network_cli::run(&config, command)),
        Ok(Action::Exit(code)) => return code,
        Err(problems) => return fail(&problems.to_string()),
    };
    log_to_stderr(&config);
    if let Err(error) = own_process::detach() {
        return fail(&format!("{error:#}"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.worker_threads)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => end(runtime.block_on(server::serve(config))),
        Err(error) => fail(&format!("start the async runtime: {error}")),
    }
}

fn end(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error:#}")),
    }
}

fn fail(message: &str) -> ExitCode {
    // Where stderr is closed, the exit code has to do.
    drop(writeln!(std::io::stderr(), "corten-cri: {message}"));
    ExitCode::FAILURE
}

fn log_to_stderr(config: &Config) {
    let level = match config.log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // The libraries below speak at debug and trace only, of HTTP/2 frames.
    let filter = tracing_subscriber::EnvFilter::new(format!("info,corten_cri={level}"));
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter);
    match config.log.format {
        LogFormat::Text => log.with_ansi(false).init(),
        // One span, the innermost: it has all names that there are.
        LogFormat::Json => log.json().with_current_span(true).with_span_list(false).init(),
    }
}
