//! What this process is to the kernel, and what its children get of it.
//!
//! Whoever starts the server may leave it descriptors, ignored signals and a low limit of descriptors. Programs that it
//! starts (shims, CNI plugins, credential helpers, runtimes) are to get none of that: descriptors 0 to 2, every signal at
//! its default, the limit of descriptors as it was, and no protection from the OOM killer (shims aside).

mod sys;

use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use corten_runtime::sys::{fd, signal};
use nix::sys::signal::Signal;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Where the kernel is to look for memory before it looks here. A shim's is -999: without the server nothing can be
/// changed for a moment, without its shim a pod loses its output and its exits.
const OOM_SCORE_ADJ: i32 = -998;
/// The file of it.
const OOM_FILE: &str = "/proc/self/oom_score_adj";
/// Descriptors that the server asks for, where its limit may be raised that far: some for every pod, exec and stream.
const MAX_DESCRIPTORS: u64 = 65_536;

/// Least size of an allocation that goes back to the kernel as soon as it is freed: large requests and answers.
const LARGE: i32 = 512 << 10;

/// The limit of descriptors that this process was started with.
static DESCRIPTORS: OnceLock<Rlimit> = OnceLock::new();
/// This process is protected from the OOM killer, by itself or by whoever has started it.
static IS_PROTECTED: AtomicBool = AtomicBool::new(false);

/// Takes leave of whoever started this process. Before it has a second thread.
pub fn detach() -> Result<()> {
    sys::return_large_allocations(LARGE);
    fd::cloexec_from(3).context("mark what was inherited close-on-exec")?;
    // SIGPIPE is ignored by the language's start-up, which undoes it in children.
    let inherited = Signal::iterator().filter(|it| ![Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGPIPE].contains(it));
    for signal in inherited {
        if signal::is_ignored(signal).with_context(|| format!("look at {signal}"))? {
            signal::set_default(signal).with_context(|| format!("give {signal} its default"))?;
        }
    }
    let before = getrlimit(Resource::Nofile);
    DESCRIPTORS.get_or_init(|| before);
    let wanted = before.maximum.map_or(MAX_DESCRIPTORS, |most| most.min(MAX_DESCRIPTORS));
    if before.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit {
            current: Some(wanted),
            maximum: before.maximum,
        };
        setrlimit(Resource::Nofile, raised).with_context(|| format!("setrlimit(RLIMIT_NOFILE, {wanted})"))?;
    }
    Ok(())
}

/// Gives memory back soon, after a call that has taken much: ten thousand strings leave holes that glibc keeps. Once for all
/// calls of a second.
pub(crate) fn return_memory_soon() {
    static IS_DUE: AtomicBool = AtomicBool::new(false);
    let Ok(executor) = tokio::runtime::Handle::try_current() else {
        return;
    };
    if !IS_DUE.swap(true, Ordering::Relaxed) {
        executor.spawn(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            IS_DUE.store(false, Ordering::Relaxed);
            tokio::task::spawn_blocking(sys::return_holes);
        });
    }
}

/// Has a program start with the limit of descriptors that this process was started with, which its own children and the
/// containers get from it. For shims, which are protected from the OOM killer too; every other program is [`unburden`]ed.
/// After all else that the command is told to do before it is executed.
pub(crate) fn restore_descriptors(command: &mut Command) {
    sys::before_exec(command, DESCRIPTORS.get().copied(), false);
}

/// Has a program start as if whoever started this process had started it: its limit of descriptors is that one's, and what
/// is not the server itself is not protected from the OOM killer like it.
pub(crate) fn unburden(command: &mut Command) {
    let is_protected = IS_PROTECTED.load(Ordering::Relaxed);
    sys::before_exec(command, DESCRIPTORS.get().copied(), is_protected);
}

/// Has the kernel look elsewhere first when memory is short. That takes CAP_SYS_RESOURCE; without it the score stays as it
/// was inherited, and the log says so.
pub(crate) fn lower_oom_score() {
    let score = oom_score();
    if score.is_none_or(|score| score > OOM_SCORE_ADJ)
        && let Err(error) = std::fs::write(OOM_FILE, OOM_SCORE_ADJ.to_string())
    {
        tracing::info!("oom_score_adj stays at {}: {error}", score.unwrap_or_default());
    }
    IS_PROTECTED.store(oom_score().is_some_and(|score| score < 0), Ordering::Relaxed);
}

fn oom_score() -> Option<i32> {
    let text = std::fs::read_to_string(OOM_FILE).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_starts_with_another_limit_of_descriptors() {
        let own = getrlimit(Resource::Nofile);
        for (current, expected) in [(Some(64), "64\n"), (Some(65), "65\n")] {
            let limit = Rlimit {
                current,
                maximum: own.maximum,
            };
            let mut command = Command::new("sh");
            command.args(["-c", "ulimit -Sn"]);
            sys::before_exec(&mut command, Some(limit), false);
            assert_eq!(String::from_utf8_lossy(&command.output().unwrap().stdout), expected);
        }
        assert_eq!(getrlimit(Resource::Nofile), own);
    }
}
