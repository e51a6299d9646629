//! Threads: the pids controller, which counts every thread, on v1 and v2 alike.

use super::cgroups::Cgroups;
use super::parse;

/// Threads there are; without the controller, those that the processes have.
pub(super) fn threads(cgroups: &Cgroups, processes: &[i32]) -> Option<u64> {
    let counted = cgroups
        .text("pids", "pids.current")
        .and_then(|text| parse::number(&text));
    counted.or_else(|| {
        let each = processes
            .iter()
            .filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok());
        let threads: Vec<u64> = each.filter_map(|status| threads_of(&status)).collect();
        (!threads.is_empty()).then(|| threads.iter().sum())
    })
}

/// Threads there may be; [`parse::UNLIMITED`] without a limit.
pub(super) fn max_threads(cgroups: &Cgroups) -> Option<u64> {
    cgroups.text("pids", "pids.max").and_then(|text| parse::limit(&text))
}

/// Of the text of /proc/PID/status.
fn threads_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("Threads:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::cgroups::tests::{v1, v2};
    use super::*;

    #[test]
    fn by_the_controller() {
        for (_dir, cgroups) in [
            v2(&[("pids.current", "7\n"), ("pids.max", "max\n")]),
            v1(&[("pids/pids.current", "7\n"), ("pids/pids.max", "max\n")]),
        ] {
            assert_eq!(
                (threads(&cgroups, &[]), max_threads(&cgroups)),
                (Some(7), Some(parse::UNLIMITED))
            );
        }
    }

    #[test]
    fn by_the_processes() {
        let (_dir, cgroups) = v1(&[]);
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(threads(&cgroups, &[own, -1]).unwrap() >= 1);
        assert_eq!((threads(&cgroups, &[-1]), max_threads(&cgroups)), (None, None));
        assert_eq!(threads_of("Name:\tx\nThreads:\t3\nSigQ:\t0/1\n"), Some(3));
    }
}
