//! What this process is to the kernel, and what its children get of it.
//!
//! Whoever starts the server may leave it descriptors, ignored signals and a low limit of descriptors. Programs that it
//! starts (shims, CNI plugins, credential helpers, runtimes) are to get none of that: descriptors 0 to 2, every signal at
//! its default, and the limit of descriptors as it was.

mod sys;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use corten_runtime::sys::{fd, signal};
use nix::sys::signal::Signal;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

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

/// Gives a child the limit of descriptors that this process was started with, which its own children and the containers
/// get from it. It has to happen before it starts any.
pub(crate) fn restore_descriptors(child: u32) -> Result<()> {
    let (Some(limit), Some(pid)) = (DESCRIPTORS.get(), Pid::from_raw(child.cast_signed())) else {
        return Ok(());
    };
    prlimit(Some(pid), Resource::Nofile, *limit)
        .map(drop)
        .with_context(|| format!("prlimit({child}, RLIMIT_NOFILE)"))
}

/// Has the kernel look elsewhere first when memory is short. That takes CAP_SYS_RESOURCE; without it the score stays as it
/// was inherited, and the log says so.
pub(crate) fn lower_oom_score() {
    let score = std::fs::read_to_string(OOM_FILE)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    if score.is_some_and(|score: i32| score <= OOM_SCORE_ADJ) {
        return;
    }
    if let Err(error) = std::fs::write(OOM_FILE, OOM_SCORE_ADJ.to_string()) {
        tracing::info!("oom_score_adj stays at {}: {error}", score.unwrap_or_default());
    }
}

/// Gives a child an ordinary score: what is not the server itself is not protected like it. Raising needs no capability.
pub(crate) fn unprotect(child: Option<u32>) {
    let Some(pid) = child else { return };
    let path = format!("/proc/{pid}/oom_score_adj");
    let low = |text: String| text.trim().parse::<i32>().is_ok_and(|score| score < 0);
    if std::fs::read_to_string(&path).is_ok_and(low) && std::fs::write(&path, "0").is_err() {
        tracing::debug!(pid, "a child that ended at once keeps the server's oom_score_adj");
    }
}
