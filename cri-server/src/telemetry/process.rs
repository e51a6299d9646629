//! What /proc says of this process. What it does not say keeps its last value.

use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use super::gauges::number;
use super::metrics::ProcessMetrics;

/// Of the fields of /proc/PID/stat, those that are shown (proc(5)).
#[derive(Debug, PartialEq)]
struct Stat {
    /// In user and kernel mode, in clock ticks.
    cpu: u64,
    threads: i64,
    /// After the boot, in clock ticks.
    started: u64,
    virtual_bytes: i64,
    resident_pages: i64,
}

pub(super) fn read(metrics: &ProcessMetrics) {
    let stat = fs::read_to_string("/proc/self/stat");
    if let Some(stat) = stat.ok().and_then(|text| parse(&text)) {
        let ticks = clock_ticks_per_second() as f64;
        let cpu = stat.cpu as f64 / ticks;
        metrics.cpu_seconds.inc_by((cpu - metrics.cpu_seconds.get()).max(0.0));
        metrics.threads.set(stat.threads);
        metrics.virtual_bytes.set(stat.virtual_bytes);
        let page = number(page_size());
        metrics.resident_bytes.set(stat.resident_pages.saturating_mul(page));
        if let Some(boot) = boot_time() {
            metrics.start_time.set(boot + stat.started as f64 / ticks);
        }
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // Without the one that lists them.
        metrics.open_fds.set(number(entries.count().saturating_sub(1)));
    }
    let limit = getrlimit(Resource::Nofile).current;
    metrics.max_fds.set(limit.map_or(i64::MAX, number));
}

fn parse(text: &str) -> Option<Stat> {
    // The name in parentheses may hold anything; the third field comes after the last of them.
    let (_name, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let unsigned = |number| field(number)?.parse::<u64>().ok();
    let signed = |number| field(number)?.parse::<i64>().ok();
    Some(Stat {
        cpu: unsigned(14)?.saturating_add(unsigned(15)?),
        threads: signed(20)?,
        started: unsigned(22)?,
        virtual_bytes: signed(23)?,
        resident_pages: signed(24)?,
    })
}

/// When the machine was started, in seconds since the epoch.
fn boot_time() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_after_the_name() {
        let text = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 30 12 0 0 20 0 9 0 5000 8192000 1500 184 1";
        let expected = Stat {
            cpu: 42,
            threads: 9,
            started: 5000,
            virtual_bytes: 8_192_000,
            resident_pages: 1500,
        };
        assert_eq!(parse(text), Some(expected));
        for broken in ["", "7 (a", "7 (a) S 1 2"] {
            assert_eq!(parse(broken), None, "{broken:?}");
        }
    }
}
