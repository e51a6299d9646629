//! Sockets that a service manager has opened for the container's service (sd_listen_fds(3)): the descriptors from 3 on, as
//! many as `LISTEN_FDS` says, if `LISTEN_PID` means this process. They are passed on under the same numbers.
//!
//! Where we differ from runc 1.1: `LISTEN_FDNAMES` is passed on too, and `LISTEN_PID` is the pid the program has, which is 1
//! in a pid namespace of its own only.

use anyhow::{Result, bail};

/// How many there are.
pub fn listen_fds() -> Result<i32> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<i32>().ok();
    let Some(count) = number("LISTEN_FDS").filter(|&count| count > 0) else {
        return Ok(0);
    };
    // What a parent of ours was passed.
    if number("LISTEN_PID") != Some(nix::unistd::getpid().as_raw()) {
        return Ok(0);
    }
    match (3..3_i32.saturating_add(count)).find(|&fd| !crate::sys::fd::is_open(fd)) {
        Some(fd) => bail!("LISTEN_FDS={count}: descriptor {fd} is not open"),
        None => Ok(count),
    }
}

/// Tells the program, which this process is about to become, of them.
pub fn announce(count: i32, env: &mut Vec<String>) {
    if count == 0 {
        return;
    }
    env.retain(|entry| !entry.starts_with("LISTEN_"));
    env.push(format!("LISTEN_FDS={count}"));
    env.push(format!("LISTEN_PID={}", nix::unistd::getpid()));
    if let Ok(names) = std::env::var("LISTEN_FDNAMES") {
        env.push(format!("LISTEN_FDNAMES={names}"));
    }
}
