//! Memory and swap.

use std::fs;

use super::check::Check;
use crate::config::Config;

pub(super) fn look(_config: &Config) -> Vec<Check> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    vec![judge_memory(&text), judge_swap(&text)]
}

/// A line of /proc/meminfo, in bytes.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn judge_memory(text: &str) -> Check {
    let name = "memory";
    let (Some(total), Some(free)) = (field(text, "MemTotal"), field(text, "MemAvailable")) else {
        return Check::skipped(name, "/proc/meminfo cannot be read");
    };
    let found = format!(
        "{} of {} are available",
        indicatif::BinaryBytes(free),
        indicatif::BinaryBytes(total)
    );
    let fix = "stop or move something; `corten-cri status` shows what Corten itself uses";
    // What kubelets by default evict at: memory.available 100Mi.
    if free < 100 << 20 {
        return Check::problem(
            name,
            found,
            "a kubelet evicts pods, and the kernel kills processes",
            fix,
        );
    }
    if free < total / 20 {
        return Check::warning(name, found, "the next pods may not fit", fix);
    }
    Check::ok(name, found)
}

fn judge_swap(text: &str) -> Check {
    let name = "swap";
    match field(text, "SwapTotal") {
        None => Check::skipped(name, "/proc/meminfo cannot be read"),
        Some(0) => Check::ok(name, "off"),
        Some(total) => Check::warning(
            name,
            format!("{} of swap are on", indicatif::BinaryBytes(total)),
            "a kubelet does not start unless failSwapOn is false; pods use it only as its memorySwap says",
            "swapoff -a and remove it from /etc/fstab, or set failSwapOn: false",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn meminfo() {
        let text = |available: u64, swap: u64| {
            format!("MemTotal:       16000000 kB\nMemAvailable:   {available} kB\nSwapTotal:      {swap} kB\n")
        };
        let table = [
            (8_000_000, 0, Verdict::Ok, Verdict::Ok),
            (500_000, 0, Verdict::Warning, Verdict::Ok),
            (50_000, 1024, Verdict::Problem, Verdict::Warning),
        ];
        for (available, swap, memory, with_swap) in table {
            let text = text(available, swap);
            let found = (judge_memory(&text).verdict, judge_swap(&text).verdict);
            assert_eq!(found, (memory, with_swap), "{text}");
        }
        assert_eq!(judge_memory("").verdict, Verdict::Skipped);
    }
}
