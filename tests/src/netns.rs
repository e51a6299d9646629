//! A network namespace of a test's own: the "host" network of one node under test.
//!
//! Bridges, addresses, ports, packet filter rules and sysctls made there meet nobody else's and are gone with it, so
//! that nodes can run side by side and a failing test leaves nothing in the machine's own network.

use std::fs::File;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace, alive as long as this value or a process in it.
#[derive(Debug)]
pub struct Netns {
    namespace: File,
}

impl Netns {
    /// A new namespace with its loopback link up.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN, or where `ip` (iproute2) is not installed.
    pub fn new() -> Result<Netns> {
        // A thread of its own: unshare(2) moves the calling thread for good.
        let made = thread::scope(|scope| scope.spawn(make).join());
        made.expect("making a namespace does not panic")
    }

    /// Does `work` in a thread that is in this namespace; processes and sockets it makes belong there.
    ///
    /// # Panics
    /// If `work` does, or setns(2) fails, which it cannot for a namespace this process made.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let done = thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET).expect("setns to our own netns");
                work()
            });
            inside.join()
        });
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Moves the calling thread to a new namespace and opens it.
fn make() -> Result<Netns> {
    unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()
        .context("run ip")?;
    ensure!(up.success(), "ip link set lo up: {up}");
    let path = "/proc/thread-self/ns/net";
    let namespace = File::open(path).with_context(|| format!("open {path}"))?;
    Ok(Netns { namespace })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn work_sees_a_loopback_link_of_its_own() {
        let netns = Netns::new().unwrap();
        let outside = fs::read_link("/proc/thread-self/ns/net").unwrap();
        let inside = netns.enter(|| fs::read_link("/proc/thread-self/ns/net").unwrap());
        assert_ne!(inside, outside);
        assert_eq!(
            fs::read_link("/proc/thread-self/ns/net").unwrap(),
            outside,
            "we stay where we were"
        );
        let reached = netns.enter(|| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            std::net::TcpStream::connect(listener.local_addr().unwrap()).is_ok()
        });
        assert!(reached);
    }
}
