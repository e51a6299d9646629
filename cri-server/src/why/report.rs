//! A death as a page for people. Pure, and safe to print: what a container or a client wrote may hold anything, so that every
//! control character but the line break is shown as an escape.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use corten_proto::exit::{CgroupState, Details};

use super::Death;
use super::verdict::{name, size};
use crate::store::now;

/// The page: the cause first, then what else is known, then the last words.
pub(crate) fn report(death: &Death) -> String {
    let mut page = Page(String::new());
    let pod = &death.pod;
    let whole = [&pod.namespace, &pod.name, &death.name].map(String::as_str).join("/");
    page.0 += &format!("{}: {}.\n", escaped(&whole), escaped(&death.summary));
    if !death.message.is_empty() && death.message != death.summary {
        page.line("message", &death.message);
    }
    page.0.push('\n');
    page.line("container", death.id.as_str());
    page.line("image", &death.image);
    let attempt = death.attempt.to_string();
    page.line("attempt", &attempt);
    page.line("reason", &format!("{}, exit code {}", death.reason, death.exit_code));
    page.line("created", &time(death.created_at));
    page.line("started", &time(death.started_at));
    page.line(
        "ended",
        &format!("{} ({} ago)", time(death.finished_at), ago(death.finished_at)),
    );
    let Some(record) = &death.record else {
        return page.0;
    };
    if record.oom_kills > 0 {
        page.line("out of memory", &format!("{} processes killed", record.oom_kills));
    }
    if record.output_lost > 0 {
        page.line(
            "log",
            &format!("{} bytes of output are missing in it", record.output_lost),
        );
    }
    if let Some(details) = &record.details {
        page.details(details);
    }
    page.0
}

struct Page(String);

impl Page {
    fn line(&mut self, name: &str, value: &str) {
        // Writing to a string cannot fail.
        let _always = writeln!(self.0, "{name:<14} {}", escaped(value));
    }

    fn details(&mut self, details: &Details) {
        if details.core_dumped {
            self.line("core", "dumped");
        }
        if let Some(sent) = &details.sent {
            let text = format!("{} at {}: {}", name(sent.signal), time(sent.at), sent.reason);
            self.line("last signal", &text);
        }
        if let Some(cgroup) = &details.cgroup {
            self.cgroup(cgroup);
        }
        for line in &details.kernel {
            self.line("kernel", line);
        }
        if let Some(tail) = &details.tail {
            let _always = match tail.text.is_empty() {
                true => writeln!(self.0, "\nnothing on {}", escaped(&tail.stream)),
                false => writeln!(self.0, "\nlast words on {}:", escaped(&tail.stream)),
            };
            for line in tail.text.lines() {
                let _always = writeln!(self.0, "  {}", escaped(line));
            }
        }
    }

    fn cgroup(&mut self, cgroup: &CgroupState) {
        let or_none = |limit: Option<u64>| limit.map_or("none".to_owned(), size);
        if let Some(peak) = cgroup.memory_peak {
            self.line(
                "memory",
                &format!("at most {}, limit {}", size(peak), or_none(cgroup.memory_limit)),
            );
        } else if let Some(limit) = cgroup.memory_limit {
            self.line("memory", &format!("limit {}", size(limit)));
        }
        let events = cgroup.memory_events.iter().filter(|(_, count)| **count > 0);
        let events: Vec<String> = events.map(|(name, count)| format!("{name} {count}")).collect();
        if !events.is_empty() {
            self.line("memory events", &events.join(", "));
        }
        if let (Some(periods @ 1..), Some(throttled)) = (cgroup.cpu_periods, cgroup.cpu_throttled) {
            let held = Duration::from_nanos(cgroup.cpu_throttled_ns.unwrap_or(0));
            let held =
                humantime::format_duration(Duration::from_millis(held.as_millis().try_into().unwrap_or(u64::MAX)));
            self.line(
                "cpu",
                &format!("throttled in {throttled} of {periods} periods, for {held}"),
            );
        }
        if let Some(limit) = cgroup.pids_limit {
            let refused = cgroup.pids_refused.unwrap_or(0);
            self.line("threads", &format!("limit {limit}, {refused} refused"));
        }
        for (name, text) in &cgroup.pressure {
            for line in text.lines() {
                self.line(&format!("{name} pressure"), line);
            }
        }
    }
}

/// How long ago something was, to the second.
fn ago(at: i64) -> String {
    let seconds = u64::try_from(now().saturating_sub(at) / 1_000_000_000).unwrap_or(0);
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// A time in RFC 3339; for none, that.
fn time(at: i64) -> String {
    match u64::try_from(at) {
        Ok(at @ 1..) => humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_nanos(at)).to_string(),
        _ => "never".to_owned(),
    }
}

/// The text with everything escaped that a terminal could take for a command, or that turns the direction of writing.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        if is_harmful(char) {
            safe.extend(char.escape_default());
        } else {
            safe.push(char);
        }
    }
    safe
}

/// JSON that holds nothing for a terminal: such characters can only stand inside its strings.
pub(crate) fn escaped_json(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for char in json.chars() {
        if char != '\n' && is_harmful(char) {
            let _always = write!(safe, "\\u{:04x}", u32::from(char));
        } else {
            safe.push(char);
        }
    }
    safe
}

fn is_harmful(char: char) -> bool {
    let turns = matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    char.is_control() || turns
}

#[cfg(test)]
mod tests {
    use corten_proto::exit::{ExitRecord, Sent, Tail};

    use super::super::find::tests::death;
    use super::*;

    #[test]
    fn a_page() {
        let mut death = death("abc", "web", 1_769_850_000_000_000_000);
        death.record = Some(ExitRecord {
            oom_kills: 1,
            output_lost: 5,
            details: Some(Box::new(Details {
                core_dumped: true,
                sent: Some(Sent {
                    signal: 15,
                    at: 1,
                    reason: "StopContainer".into(),
                }),
                cgroup: Some(CgroupState {
                    memory_limit: Some(64 << 20),
                    memory_peak: Some(1 << 20),
                    memory_events: [("oom_kill".to_owned(), 2), ("low".to_owned(), 0)].into(),
                    cpu_periods: Some(9),
                    cpu_throttled: Some(4),
                    cpu_throttled_ns: Some(1_500_000_000),
                    pids_limit: Some(10),
                    pressure: [("io".to_owned(), "some avg10=0.00\nfull avg10=1.00".to_owned())].into(),
                    ..CgroupState::default()
                }),
                tail: Some(Tail {
                    stream: "stderr".into(),
                    text: "one\ntwo\x1b[31m".into(),
                }),
                kernel: vec!["oom-kill: it".into()],
                ..Details::default()
            })),
            ..ExitRecord::default()
        });
        let page = report(&death);
        for line in [
            "ns/pod/web: ended by itself with exit code 3.\n",
            "reason         Error, exit code 3\n",
            "ended          2026-01-31T09:00:00.000Z (",
            "log            5 bytes of output are missing in it\n",
            "core           dumped\n",
            "last signal    SIGTERM at 1970-01-01T00:00:00.000Z: StopContainer\n",
            "memory         at most 1 MiB, limit 64 MiB\n",
            "memory events  oom_kill 2\n",
            "cpu            throttled in 4 of 9 periods, for 1s 500ms\n",
            "threads        limit 10, 0 refused\n",
            "io pressure    full avg10=1.00\n",
            "kernel         oom-kill: it\n",
            "last words on stderr:\n  one\n  two\\u{1b}[31m\n",
        ] {
            assert!(page.contains(line), "{line:?} in\n{page}");
        }
    }

    #[test]
    fn nothing_reaches_a_terminal() {
        let hostile = "a\x1b]0;title\x07\r\u{9b}2J\u{202e}\x7fä\t\n";
        assert_eq!(
            escaped(hostile),
            "a\\u{1b}]0;title\\u{7}\\r\\u{9b}2J\\u{202e}\\u{7f}ä\\t\\n"
        );
        let json = serde_json::to_string(hostile).unwrap();
        let safe = escaped_json(&json);
        assert!(!safe.chars().any(is_harmful), "{safe:?}");
        assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), hostile);
    }
}
