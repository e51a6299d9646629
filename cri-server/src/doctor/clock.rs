//! The clock: whether anything keeps it, and whether it is plainly wrong.

use std::io;
use std::time::SystemTime;

use super::check::Check;
use super::sys;
use crate::config::Config;

const FIX: &str = "run chrony, ntpd or systemd-timesyncd; `timedatectl` shows what they say";

pub(super) fn look(_config: &Config) -> Vec<Check> {
    let installed = std::env::current_exe()
        .and_then(std::fs::metadata)
        .and_then(|it| it.modified());
    vec![
        judge_time(SystemTime::now(), installed.ok()),
        judge_synchronised(sys::clock_is_synchronised()),
    ]
}

/// `installed`: when this program's file was written, which was before now.
fn judge_time(now: SystemTime, installed: Option<SystemTime>) -> Check {
    let name = "clock";
    let text = humantime::format_rfc3339_seconds(now);
    match installed.and_then(|installed| installed.duration_since(now).ok()) {
        // A copy of files may round their times up.
        Some(ahead) if ahead.as_secs() > 2 => Check::problem(
            name,
            format!(
                "it is {text}, and this program was written {} later",
                humantime::format_duration(whole(ahead))
            ),
            "certificates of registries and of the API server are not valid yet: TLS fails",
            FIX,
        ),
        _ => Check::ok(name, text.to_string()),
    }
}

fn whole(duration: std::time::Duration) -> std::time::Duration {
    std::time::Duration::from_secs(duration.as_secs())
}

fn judge_synchronised(state: io::Result<bool>) -> Check {
    let name = "clock-synchronised";
    match state {
        Ok(true) => Check::ok(name, "yes"),
        Ok(false) => Check::warning(
            name,
            "no: nothing has set the kernel's clock right",
            "it drifts: logs cannot be matched with other nodes', and TLS fails one day",
            FIX,
        ),
        Err(error) => Check::skipped(name, format!("adjtimex: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn clocks() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let table = [
            (None, Verdict::Ok),
            (Some(now - Duration::from_secs(60)), Verdict::Ok),
            (Some(now + Duration::from_secs(1)), Verdict::Ok),
            (Some(now + Duration::from_secs(86_400)), Verdict::Problem),
        ];
        for (installed, expected) in table {
            assert_eq!(judge_time(now, installed).verdict, expected, "{installed:?}");
        }
        assert_eq!(judge_synchronised(Ok(false)).verdict, Verdict::Warning);
        assert_eq!(judge_synchronised(Ok(true)).verdict, Verdict::Ok);
        assert_eq!(
            judge_synchronised(Err(io::ErrorKind::PermissionDenied.into())).verdict,
            Verdict::Skipped
        );
    }
}
