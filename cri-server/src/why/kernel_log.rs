//! What the kernel's log says of one container: kills for want of memory, faults, what seccomp or a security module denied.
//!
//! /dev/kmsg gives a record a read, `PRIORITY,NUMBER,MICROSECONDS,FLAGS;TEXT`, oldest first. The log is a ring of some
//! thousand records, and with an audit daemon denials go there instead: what is not in it is not known, and no error.
//! Where it may not be read (a server in a container of its own) there is nothing.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt;

use corten_proto::id::ContainerId;
use nix::errno::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::store::now;

/// More records than any kernel's ring has, so that a busy log ends.
const MAX_READS: usize = 100_000;
/// Lines that are kept of one container, and bytes of each.
const MAX_LINES: usize = 16;
const MAX_LINE: usize = 512;
/// The log's clock and ours are not quite the same: so many microseconds, and of the time since the boot this part, for
/// ours is corrected (NTP) and the log's is not.
const SLACK_US: u64 = 2_000_000;
const DRIFT: u64 = 5000;
/// Bytes of a process's name in a fault's line, at most (TASK_COMM_LEN).
const MAX_NAME: usize = 15;

/// What a line is about: one container, and the process that was its init.
pub(super) struct About {
    id: String,
    /// Its init as denials, faults and kills name it.
    pid_word: String,
    pid_in_brackets: String,
    pid_killed: String,
    /// The log's times at which its init had this pid; none where that was before the boot.
    times: Option<RangeInclusive<u64>>,
}

impl About {
    /// A container that was created and has ended at these times (nanoseconds since the epoch), its init having had this pid.
    pub(super) fn new(id: &ContainerId, pid: i32, created_at: i64, finished_at: i64) -> Self {
        About::at(id.as_str(), pid, times(created_at, finished_at, &Clocks::now()))
    }

    fn at(id: &str, pid: i32, times: Option<RangeInclusive<u64>>) -> Self {
        About {
            id: id.to_owned(),
            pid_word: format!("pid={pid}"),
            pid_in_brackets: format!("[{pid}]"),
            pid_killed: format!("Killed process {pid} ("),
            times,
        }
    }

    /// The lines about it that the log still has. It has none of an earlier boot.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut options = File::options();
        let options = options.read(true).custom_flags(nix::libc::O_NONBLOCK);
        let (Some(_), Ok(mut log)) = (&self.times, options.open("/dev/kmsg")) else {
            return Vec::new();
        };
        let (mut lines, mut buffer) = (Vec::new(), vec![0; 8192]);
        for _ in 0..MAX_READS {
            let count = match log.read(&mut buffer) {
                Ok(count) => count,
                // Overwritten before it was read, or longer than any record is: the next one.
                Err(error) if is_skipped(&error) => continue,
                Err(_end) => break,
            };
            lines.extend(self.text(&String::from_utf8_lossy(&buffer[..count])));
        }
        // The end of the story matters more than its beginning.
        lines.split_off(lines.len().saturating_sub(MAX_LINES))
    }

    /// The text of a record that is about it. Pure.
    fn text(&self, record: &str) -> Option<String> {
        let (prefix, rest) = record.split_once(';')?;
        let time: u64 = prefix.split(',').nth(2)?.parse().ok()?;
        let text = rest.lines().next()?;
        // An id is never given twice; a pid is, and so are words in brackets.
        let in_time = || self.times.as_ref().is_some_and(|times| times.contains(&time));
        let is_about = text.contains(&self.id) || (self.names_pid(text) && in_time());
        let cut = text.floor_char_boundary(MAX_LINE);
        is_about.then(|| text[..cut].to_owned())
    }

    /// Whether a line is a denial, a fault or a kill of this process.
    fn names_pid(&self, text: &str) -> bool {
        let is_denial = || text.starts_with("audit: type=") && text.split(' ').any(|word| word == self.pid_word);
        is_denial() || self.is_fault(text) || text.contains(&self.pid_killed)
    }

    /// `NAME[PID]: segfault at...`, after `traps: ` for some. The name is the process's to choose, brackets and all: the pid
    /// is in the last brackets that can begin right after one.
    fn is_fault(&self, text: &str) -> bool {
        const FAULTS: [&str; 6] = [
            "segfault",
            "trap ",
            "general protection",
            "bad frame",
            "unhandled",
            "fatal signal",
        ];
        let text = text.strip_prefix("traps: ").unwrap_or(text);
        let brackets = text.match_indices('[').take_while(|(at, _)| *at <= MAX_NAME);
        let after = brackets
            .last()
            .and_then(|(at, _)| text[at..].strip_prefix(&self.pid_in_brackets));
        let what = after.map(|after| after.trim_start_matches([':', ' ']));
        what.is_some_and(|what| FAULTS.iter().any(|fault| what.starts_with(fault)))
    }
}

fn is_skipped(error: &std::io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    error.kind() == ErrorKind::Interrupted || matches!(errno, Some(Errno::EPIPE | Errno::EINVAL))
}

/// The time by the clocks that matter here.
struct Clocks {
    /// Microseconds since the epoch.
    now: u64,
    /// Microseconds since the boot as the log counts them: without those of a suspended machine.
    running: u64,
    /// With them.
    booted: u64,
}

impl Clocks {
    fn now() -> Self {
        let micros = |clock| {
            let time = clock_gettime(clock);
            u64::try_from(time.tv_sec * 1_000_000 + time.tv_nsec / 1000).unwrap_or(0)
        };
        Clocks {
            now: u64::try_from(now() / 1000).unwrap_or(0),
            running: micros(ClockId::Monotonic),
            booted: micros(ClockId::Boottime),
        }
    }
}

/// The log's times between two times, in nanoseconds since the epoch; none where the second is before the boot. When the
/// machine was suspended is not known: it may have been since, or before. Pure.
fn times(created_at: i64, finished_at: i64, clocks: &Clocks) -> Option<RangeInclusive<u64>> {
    let ago = |at: i64| clocks.now.saturating_sub(u64::try_from(at / 1000).unwrap_or(0));
    let slack = SLACK_US + clocks.booted / DRIFT;
    if ago(finished_at) > clocks.booted + slack {
        return None;
    }
    let suspended = clocks.booted.saturating_sub(clocks.running).min(ago(finished_at));
    let first = clocks.running.saturating_sub(ago(created_at)).saturating_sub(slack);
    let last = clocks.running.saturating_sub(ago(finished_at) - suspended) + slack;
    Some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_about_a_container() {
        let about = About::at("c1d2", 77, Some(4_000_000..=6_000_000));
        for record in [
            "3,1,5000000,-;oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/p/c1d2,task_memcg=/p/c1d2,task=tail,pid=9,uid=0\n",
            "3,1,5000000,-;Memory cgroup out of memory: Killed process 77 (tail) total-vm:9kB\n SUBSYSTEM=x\n",
            "6,1,5000000,-;busybox[77]: segfault at 0 ip 0 sp 0 error 4 in busybox[400000+1000]\n",
            "6,1,5000000,-;a-name-of-15-by[77]: segfault at 0 ip 0\n",
            "6,1,5000000,-;[a][b][77]: segfault at 0 ip 0\n",
            "4,1,5000000,-;traps: a[77] general protection fault ip:0 sp:0 error:0\n",
            "4,1,5000000,-;traps: a[77] trap invalid opcode ip:0 sp:0 error:0\n",
            "5,1,5000000,-;audit: type=1326 audit(1.0:2): auid=0 uid=0 pid=77 comm=\"sh\" sig=31 syscall=39\n",
            "5,1,5000000,-;audit: type=1400 audit(1.0:2): apparmor=\"DENIED\" operation=\"open\" pid=77 comm=\"sh\"\n",
            // Long before it was created, and yet its own by the id.
            "3,1,1,-;something in /p/c1d2\n",
        ] {
            assert!(about.text(record).is_some(), "{record}");
        }
        for record in [
            // Before it was created, and after it had ended.
            "5,1,3000000,-;audit: type=1326 audit(1.0:2): pid=77 comm=\"sh\"\n",
            "5,1,7000000,-;audit: type=1326 audit(1.0:2): pid=77 comm=\"sh\"\n",
            "6,1,7000000,-;busybox[77]: segfault at 0 ip 0 sp 0\n",
            "5,1,5000000,-;audit: type=1326 audit(1.0:2): pid=778 comm=\"sh\"\n",
            "6,1,5000000,-;busybox[7]: segfault at 0\n",
            // A name, and a file's name, that are made to look like a fault of another's.
            "6,1,5000000,-;[77]: segfault[9]: segfault at 0 ip 0\n",
            "6,1,5000000,-;busybox[9]: segfault at 0 ip 0 sp 0 error 4 in a[77]: segfault[400000+1000]\n",
            "6,1,5000000,-;eth0: port 77\n",
            "6,1,5000000,-;a driver [77] says hello: trap and segfault\n",
            "no record",
            "",
        ] {
            assert_eq!(about.text(record), None, "{record}");
        }
        let long = format!("3,1,1,-;c1d2 {}", "ä".repeat(MAX_LINE));
        let text = about.text(&long).expect("about it");
        assert!(text.len() <= MAX_LINE && text.len() > MAX_LINE - 4);
        assert!(About::at("c1d2", 77, None).lines().is_empty(), "of an earlier boot");
    }

    #[test]
    fn when_a_container_had_its_pid() {
        const S: u64 = 1_000_000;
        let ns = |second: u64| i64::try_from(second * S * 1000).unwrap();
        let clocks = |running: u64, booted: u64| Clocks {
            now: 100_000 * S,
            running: running * S,
            booted: booted * S,
        };
        let first_to_last = |range: RangeInclusive<u64>| (range.start() / S, range.end() / S);
        // When it was created, when it ended, the clocks, what follows.
        for (created, ended, clocks, expected) in [
            (99_900, 99_950, clocks(1000, 1000), Some((897, 952))),
            // Since the boot it ran 1000 s, and slept 5000: the times may be early by none of these or by all.
            (99_900, 99_950, clocks(1000, 6000), Some((896, 1003))),
            (90_000, 99_950, clocks(1000, 1000), Some((0, 952))),
            // Ended before this boot.
            (90_000, 98_000, clocks(1000, 1000), None),
            // The clocks drift apart: 20 s a day are allowed for.
            (99_900, 99_950, clocks(90_000, 90_000), Some((89_880, 89_970))),
        ] {
            let times = times(ns(created), ns(ended), &clocks);
            assert_eq!(times.map(first_to_last), expected, "{created} {ended}");
        }
    }
}
