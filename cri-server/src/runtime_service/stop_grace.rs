//! How long StopPodSandbox lets containers end by themselves.
//!
//! The kubelet has stopped each container with its own grace period before; what still runs then is a pod of crictl's, or
//! one that the kubelet has lost track of. CRI has the call end these by force, and names no grace. They get their stop
//! signal and a little time all the same, all at once, with the network still there: databases are among them. It is
//! little because someone waits: [`GRACE`], and never more than half of the time that the caller has.
//!
//! A process that the signal cannot reach gets none: most containers' first process is the init of a pid namespace, where
//! the kernel drops what has no handler. RemovePodSandbox gives none to anybody.

use std::fs;
use std::time::Duration;

use crate::container::Container;

/// The most time a container gets.
const GRACE: Duration = Duration::from_secs(10);

/// The time containers get where the caller waits for `limit`.
pub(super) fn grace(limit: Option<Duration>) -> Duration {
    limit.map_or(GRACE, |limit| GRACE.min(limit / 2))
}

/// The time `container` gets: `grace`, or none where its stop signal would come to nothing.
pub(super) fn grace_of(container: &Container, grace: Duration) -> Duration {
    let pid = container.status().pid().unwrap_or_default();
    match fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) if !is_heard(&status, container.metadata.stop_signal) => Duration::ZERO,
        _ => grace,
    }
}

/// Whether a process with this `/proc/PID/status` does anything at a signal: it has a handler, waits for it (it is blocked
/// then, as for signalfd), or ends by the default, which the init of a pid namespace does not.
fn is_heard(status: &str, signal: i32) -> bool {
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_default().trim()
    };
    let holds = |key: &str| {
        let mask = u64::from_str_radix(value(key), 16).unwrap_or_default();
        let bit = u32::try_from(signal - 1).unwrap_or(u32::MAX);
        1u64.checked_shl(bit).is_some_and(|bit| mask & bit != 0)
    };
    let is_init = value("NSpid:").split_whitespace().last() == Some("1");
    holds("SigBlk:") || holds("SigCgt:") || !(is_init || holds("SigIgn:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_callers_time_at_most() {
        let table = [(None, 10), (Some(120), 10), (Some(20), 10), (Some(8), 4), (Some(0), 0)];
        for (limit, expected) in table {
            assert_eq!(
                grace(limit.map(Duration::from_secs)),
                Duration::from_secs(expected),
                "{limit:?}"
            );
        }
    }

    #[test]
    fn who_hears_a_signal() {
        const TERM: i32 = 15;
        // Masks of blocked, ignored and caught signals, the pid in its namespace, and whether TERM is heard.
        let table = [
            ("0000000000004000", "0", "0", "1", true),
            ("0", "0000000000004000", "0", "1", false),
            ("0", "0000000000004000", "0", "7", false),
            ("0", "0", "0000000000004000", "1", true),
            ("0", "0", "0", "1", false),
            ("0", "0", "0", "7", true),
            ("ffffffffffffbfff", "0", "0", "1", false),
            ("0", "0", "0000000000002000", "1", false),
        ];
        for (blocked, ignored, caught, pid, expected) in table {
            let status = format!("NSpid:\t812\t{pid}\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\nSigCgt:\t{caught}\n");
            assert_eq!(is_heard(&status, TERM), expected, "{status}");
        }
        assert!(is_heard("", TERM), "nothing is known");
        assert!(
            !is_heard("NSpid:\t812\t1\nSigCgt:\tffffffffffffffff\n", 65),
            "no such signal"
        );
    }
}
