//! Signals by name and number, as `kill` takes them, and sending them to a process that is surely the one meant.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;

/// The highest signal number, SIGRTMAX.
const SIGNAL_MAX: i32 = 64;
/// The kernel's first real-time signal. The C library keeps the first two for itself and calls the third SIGRTMIN.
const SIGRTMIN: i32 = 34;

/// A signal from `9`, `KILL`, `SIGKILL`, `sigkill`, `RTMIN+3` or `SIGRTMAX-1`.
pub fn parse(text: &str) -> Result<i32> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = name
        .parse::<i32>()
        .ok()
        .or_else(|| real_time(name))
        .or_else(|| format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32));
    number
        .filter(|number| (1..=SIGNAL_MAX).contains(number))
        .ok_or_else(|| anyhow!("signal {text:?}: neither a number from 1 to {SIGNAL_MAX} nor a signal's name"))
}

fn real_time(name: &str) -> Option<i32> {
    let offset = |rest: &str, sign: char| match rest {
        "" => Some(0),
        rest => rest.strip_prefix(sign)?.parse::<u8>().ok().map(i32::from),
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        SIGRTMIN + offset(rest, '+')?
    } else {
        SIGNAL_MAX - offset(name.strip_prefix("RTMAX")?, '-')?
    };
    (SIGRTMIN..=SIGNAL_MAX).contains(&number).then_some(number)
}

/// A process named by pid and start time, so that a pid used again is not taken for it.
///
/// `None` where that process is gone.
pub fn open_process(pid: i32, start_time: u64) -> Result<Option<OwnedFd>> {
    let Some(raw) = rustix::process::Pid::from_raw(pid) else {
        return Ok(None);
    };
    let pidfd = match rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("pidfd_open({pid})")),
    };
    // After the descriptor: from here on the pid cannot be used again without the descriptor showing it.
    let alive = crate::state::process_start(pid).is_some_and(|start| start == start_time);
    Ok(alive.then_some(pidfd))
}

/// Sends `signal`; whether there was a process to get it.
pub fn send(process: impl AsFd, signal: i32) -> Result<bool> {
    crate::sys::signal::pidfd_send_signal(process.as_fd(), signal)
        .with_context(|| format!("pidfd_send_signal({signal})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGTERM", 15),
            ("sigusr1", 10),
            ("64", 64),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for bad in [
            "", "0", "-9", "65", "SIG", "NOPE", "9x", "SIG9x", "RTMIN-1", "RTMIN+99", "KILL ",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
