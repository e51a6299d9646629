//! What a cgroup says of the end of its container: limits, peaks and what was refused, for the exit record.
//!
//! It is read once, in a moment in which the cgroup may be going already (systemd removes an empty scope by itself), so
//! nothing here is an error: what cannot be read is left out.

use std::collections::BTreeMap;

use corten_proto::exit::CgroupState;

use super::parse;
use crate::cgroup::Cgroup;

/// v1 writes "no limit" as the largest number of whole pages; no real limit comes near.
const NEARLY_UNLIMITED: u64 = 1 << 62;

/// What has pressure on v2.
const PRESSURES: [&str; 3] = ["cpu", "memory", "io"];

impl Cgroup {
    /// The state now; none where nothing of it can be read.
    pub fn state_at_end(&self) -> Option<CgroupState> {
        let mut state = if self.is_v2() { self.end_v2() } else { self.end_v1() };
        state.pids_limit = self.end_limit("pids.max");
        state.pids_refused = self.end_keyed("pids.events").get("max").copied();
        let nothing = state == CgroupState::default();
        state.version = if self.is_v2() { 2 } else { 1 };
        (!nothing).then_some(state)
    }

    fn end_v2(&self) -> CgroupState {
        let cpu = self.end_keyed("cpu.stat");
        let throttled = cpu.get("throttled_usec").map(|time| time.saturating_mul(1000));
        let max = self.text("cpu.max").unwrap_or_default();
        let (quota, period) = quota(&max);
        let pressures = PRESSURES.iter().filter_map(|name| {
            let text = self.text(&format!("{name}.pressure")).ok()?;
            (!text.is_empty()).then(|| ((*name).to_owned(), text.trim_end().to_owned()))
        });
        CgroupState {
            memory_limit: self.end_limit("memory.max"),
            memory_peak: self.end_limit("memory.peak"),
            swap_limit: self.end_limit("memory.swap.max"),
            memory_events: self.end_keyed("memory.events"),
            cpu_quota_us: quota,
            cpu_period_us: period,
            cpu_periods: cpu.get("nr_periods").copied(),
            cpu_throttled: cpu.get("nr_throttled").copied(),
            cpu_throttled_ns: throttled,
            pressure: pressures.collect(),
            ..CgroupState::default()
        }
    }

    fn end_v1(&self) -> CgroupState {
        let cpu = self.end_keyed("cpu.stat");
        let mut memory_events = self.end_keyed("memory.oom_control");
        // Swap is counted with memory, so that of two equal limits the second is met first.
        for (name, file) in [("failcnt", "memory.failcnt"), ("memsw_failcnt", "memory.memsw.failcnt")] {
            memory_events.extend(self.end_limit(file).map(|count| (name.to_owned(), count)));
        }
        // -1 for none, which is no number here.
        let quota = self.end_limit("cpu.cfs_quota_us");
        CgroupState {
            memory_limit: self.end_limit("memory.limit_in_bytes"),
            memory_peak: self.end_limit("memory.max_usage_in_bytes"),
            swap_limit: self.end_limit("memory.memsw.limit_in_bytes"),
            memory_events,
            cpu_quota_us: quota,
            cpu_period_us: quota.and_then(|_| self.end_limit("cpu.cfs_period_us")),
            cpu_periods: cpu.get("nr_periods").copied(),
            cpu_throttled: cpu.get("nr_throttled").copied(),
            cpu_throttled_ns: cpu.get("throttled_time").copied(),
            ..CgroupState::default()
        }
    }

    /// A file of one number; none where it says that there is no limit.
    fn end_limit(&self, file: &str) -> Option<u64> {
        let number = self.text(file).ok()?.trim().parse().ok()?;
        (number < NEARLY_UNLIMITED).then_some(number)
    }

    fn end_keyed(&self, file: &str) -> BTreeMap<String, u64> {
        parse::keyed(&self.text(file).unwrap_or_default())
    }
}

/// v2's `cpu.max`: quota and period in microseconds; nothing where there is no quota.
fn quota(text: &str) -> (Option<u64>, Option<u64>) {
    let mut numbers = text.split_ascii_whitespace().map(|number| number.parse().ok());
    let quota = numbers.next().flatten();
    (quota, quota.and_then(|_| numbers.next().flatten()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas() {
        for (text, expected) in [
            ("max 100000\n", (None, None)),
            ("50000 100000\n", (Some(50000), Some(100_000))),
            ("", (None, None)),
        ] {
            assert_eq!(quota(text), expected, "{text:?}");
        }
    }
}
