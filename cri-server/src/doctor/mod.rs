//! `corten-cri doctor`: can pods run on this machine, and if not, what is to be done?
//!
//! ```text
//! run ──> a thread a theme ──> facts of the machine ──> judgements, pure ──> checks, the worst first
//! ```
//! Each theme gathers what it looks at and has it judged by functions without side effects, which have tables beside them.
//! A theme has [`LIMIT`]; one that hangs, as on a dead filesystem, is reported and left behind. Nothing of
//! pods, disks or settings is changed: trials happen in mounts that are nowhere in the tree, in a mount namespace of a
//! thread that ends, or in a process that makes a user namespace and goes with it. What remains is what the kernel and CRIU
//! do by themselves: a module is loaded at its first use, and `criu check` keeps what it has found in /run/criu.kdat.
//!
//! A server need not run. Where one does, it is asked for its version, and its lock says which process it is.
//!
//! Left out: the host's end of pods' network links. A link goes with the pod's network namespace, and those are looked for.

mod cgroups;
pub(crate) mod check;
mod checkpoint;
mod clock;
mod configuration;
mod disk;
mod kernel;
mod kernel_config;
pub(crate) mod leftovers;
mod limits;
pub(crate) mod memory;
mod network;
mod privileges;
pub(crate) mod programs;
mod resolver;
pub(crate) mod server;
mod sys;
mod sysctl;
mod trial;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use self::check::{Check, Verdict};
use crate::bounded::{Look, run_all};
use crate::config::{Config, Problems};

/// How long all themes may take together. The longest look is a runtime that does not answer `features` for 5 s.
const LIMIT: Duration = Duration::from_secs(20);
/// The exit code where nothing could be looked at.
const COULD_NOT_LOOK: u8 = 2;

/// What `corten-cri doctor` is asked for.
#[derive(Args, Clone, Copy, Debug)]
pub struct Doctor {
    /// One document instead of text
    #[arg(long)]
    json: bool,
    /// Lists what is fine too
    #[arg(long)]
    all: bool,
}

/// The parts of the machine that are looked at as one.
const THEMES: &[Look<Vec<Check>>] = &[
    ("kernel", kernel::look),
    ("kernel-config", kernel_config::look),
    ("trials", trial::look),
    ("cgroups", cgroups::look),
    ("privileges", privileges::look),
    ("programs", programs::look),
    ("server", server::look),
    ("network", network::look),
    ("sysctls", sysctl::look),
    ("resolver", resolver::look),
    ("disk", disk::look),
    ("memory", memory::look),
    ("clock", clock::look),
    ("limits", limits::look),
    ("leftovers", leftovers::look),
    ("checkpoint", checkpoint::look),
];

/// Looks at everything and prints what was found. 0: no problem; 1: problems; 2: could not look.
pub fn run(config: Result<Config, Problems>, wanted: Doctor) -> ExitCode {
    if !nix::unistd::geteuid().is_root() {
        let error = "corten-cri: doctor: must be root, as the server is";
        // Where stderr is closed, the exit code has to do.
        drop(writeln!(std::io::stderr(), "{error}"));
        return ExitCode::from(COULD_NOT_LOOK);
    }
    let checks = examine(config);
    let text = match wanted.json {
        true => format!("{:#}\n", json!({ "checks": checks })),
        false => {
            let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            check::text(&checks, wanted.all, colour)
        }
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(_closed) => ExitCode::from(COULD_NOT_LOOK),
        Ok(()) if checks.iter().any(|check| check.verdict == Verdict::Problem) => ExitCode::FAILURE,
        Ok(()) => ExitCode::SUCCESS,
    }
}

/// Every check, the worst first. Of a configuration that cannot be used, its mistakes and what the default one says.
pub(crate) fn examine(config: Result<Config, Problems>) -> Vec<Check> {
    let mut checks = configuration::judge(config.as_ref());
    let themes = run_all(&config.unwrap_or_default(), THEMES, LIMIT);
    checks.extend(
        themes
            .into_iter()
            .flat_map(|(name, found)| found.unwrap_or_else(|| vec![no_answer(name, LIMIT)])),
    );
    checks.sort_by_key(|check| check.verdict);
    checks
}

fn no_answer(theme: &'static str, limit: Duration) -> Check {
    Check::problem(
        theme,
        format!("no answer in {} s", limit.as_secs()),
        "a filesystem or a program that pods need hangs, and so will they",
        "look for what this process waits for in /proc/PID/task/*/stack, and at `dmesg`",
    )
}
