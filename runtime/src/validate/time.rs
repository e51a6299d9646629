//! The check of `linux.timeOffsets`.

use anyhow::{Result, bail, ensure};
use oci_spec::runtime::{Linux, LinuxNamespaceType};
use rustix::time::{ClockId, clock_gettime};

use super::linux::{find, path};

/// The latest time that a clock of a time namespace may show, in seconds: half of what the kernel's count of nanoseconds
/// holds, `KTIME_SEC_MAX / 2`.
const MAX_CLOCK: i64 = i64::MAX / 1_000_000_000 / 2;

/// The offsets of the clocks: in a time namespace that is made here, because one that exists has its own, and such that
/// no clock is before its beginning or beyond the kernel's half of what a clock can show.
pub(super) fn offsets(linux: &Linux) -> Result<()> {
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        let at = format!("linux.timeOffsets.{clock}");
        let now = match clock.as_str() {
            "monotonic" => clock_gettime(ClockId::Monotonic),
            "boottime" => clock_gettime(ClockId::Boottime),
            _ => bail!("{at}: must be monotonic or boottime"),
        };
        let new = find(linux, LinuxNamespaceType::Time).is_some_and(|(_, namespace)| path(namespace).is_none());
        ensure!(new, "{at}: needs a time namespace that is new");
        let nanoseconds = offset.nanosecs().unwrap_or(0);
        ensure!(
            nanoseconds < 1_000_000_000,
            "{at}.nanosecs: {nanoseconds}: must be less than a second"
        );
        let seconds = offset.secs().unwrap_or(0);
        let shown = now.tv_sec.checked_add(seconds);
        ensure!(
            shown.is_some_and(|shown| (0..=MAX_CLOCK).contains(&shown)),
            "{at}.secs: {seconds}: the clock, at {} now, must stay from 0 to {MAX_CLOCK}",
            now.tv_sec
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::linux::tests::namespaces;
    use super::super::tests::check;

    #[test]
    fn offsets_of_clocks() {
        let with = |time: Value, offsets: Value| check(&[namespaces(&[time]), ("/linux/timeOffsets", offsets)]);
        let new = json!({"type": "time"});
        assert_eq!(
            with(
                new.clone(),
                json!({"monotonic": {"secs": 5, "nanosecs": 7}, "boottime": {}})
            ),
            Ok(vec![])
        );
        for (time, offsets, words) in [
            (
                new.clone(),
                json!({"realtime": {"secs": 1}}),
                "linux.timeOffsets.realtime: must be",
            ),
            (
                new.clone(),
                json!({"monotonic": {"nanosecs": 1_000_000_000}}),
                "linux.timeOffsets.monotonic.nanosecs",
            ),
            (
                new.clone(),
                json!({"boottime": {"secs": -4_000_000_000_i64}}),
                "linux.timeOffsets.boottime.secs",
            ),
            (
                new,
                json!({"boottime": {"secs": i64::MAX}}),
                "linux.timeOffsets.boottime.secs",
            ),
            (
                json!({"type": "time", "path": "/proc/self/ns/time"}),
                json!({"boottime": {"secs": 1}}),
                "linux.timeOffsets.boottime: needs a time namespace that is new",
            ),
        ] {
            let error = with(time, offsets.clone()).unwrap_err();
            assert!(error.starts_with(words), "{offsets}: {error}");
        }
    }
}
