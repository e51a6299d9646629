//! What the kernel's log says of one container: kills for want of memory, faults, what seccomp or a security module denied.
//!
//! /dev/kmsg gives a record a read, `PRIORITY,NUMBER,MICROSECONDS,FLAGS;TEXT`, oldest first. The log is a ring of some
//! thousand records, and with an audit daemon denials go there instead: what is not in it is not known, and no error.
//! Where it may not be read (a server in a container of its own) there is nothing.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use corten_proto::id::ContainerId;
use nix::errno::Errno;

use crate::store::now;

/// More records than any kernel's ring has, so that a busy log ends.
const MAX_READS: usize = 100_000;
/// Lines that are kept of one container, and bytes of each.
const MAX_LINES: usize = 16;
const MAX_LINE: usize = 512;
/// The log's clock and ours are not quite the same.
const SLACK_US: u64 = 2_000_000;

/// The lines about a container that was created at this time (nanoseconds since the epoch) and whose init had this pid.
pub(super) fn about(id: &ContainerId, pid: i32, created_at: i64) -> Vec<String> {
    let mut options = File::options();
    let Ok(mut log) = options.read(true).custom_flags(nix::libc::O_NONBLOCK).open("/dev/kmsg") else {
        return Vec::new();
    };
    let since = begin(created_at);
    let (mut lines, mut buffer) = (Vec::new(), vec![0; 8192]);
    for _ in 0..MAX_READS {
        let count = match log.read(&mut buffer) {
            Ok(count) => count,
            // Overwritten before it was read, or longer than any record is: the next one.
            Err(error) if is_skipped(&error) => continue,
            Err(_end) => break,
        };
        let record = String::from_utf8_lossy(&buffer[..count]);
        if let Some(text) = text_about(&record, id.as_str(), pid, since) {
            lines.push(text);
        }
    }
    // The end of the story matters more than its beginning.
    lines.split_off(lines.len().saturating_sub(MAX_LINES))
}

fn is_skipped(error: &std::io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    error.kind() == ErrorKind::Interrupted || matches!(errno, Some(Errno::EPIPE | Errno::EINVAL))
}

/// When something happened, in the log's microseconds since the boot; 0, all of it, where that cannot be told.
fn begin(at: i64) -> u64 {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = uptime.split(' ').next().and_then(|text| text.parse::<f64>().ok());
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an uptime is small and positive"
    )]
    let uptime_us = (seconds.unwrap_or(0.0) * 1e6) as u64;
    let ago_us = u64::try_from(now().saturating_sub(at) / 1000).unwrap_or(0);
    uptime_us.saturating_sub(ago_us).saturating_sub(SLACK_US)
}

/// The text of a record that is about the container. Pure.
fn text_about(record: &str, id: &str, pid: i32, since_us: u64) -> Option<String> {
    let (prefix, rest) = record.split_once(';')?;
    let time: u64 = prefix.split(',').nth(2)?.parse().ok()?;
    let text = rest.lines().next()?;
    // An id is never given twice; a pid is, and so are words in brackets.
    let is_about = text.contains(id) || (time >= since_us && names_pid(text, pid));
    let cut = text.floor_char_boundary(MAX_LINE);
    is_about.then(|| text[..cut].to_owned())
}

/// Whether a line is a denial, a fault or a kill of this process.
fn names_pid(text: &str, pid: i32) -> bool {
    let is_denial = text.starts_with("audit: type=") && text.split(' ').any(|word| word == format!("pid={pid}"));
    let is_fault = ["segfault", "trap", "general protection", "bad frame", "fatal signal"];
    let is_fault = is_fault.iter().any(|word| text.contains(word)) && text.contains(&format!("[{pid}]"));
    is_denial || is_fault || text.contains(&format!("Killed process {pid} ("))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_about_a_container() {
        let about = [
            "3,1,5000000,-;oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/p/c1d2,task_memcg=/p/c1d2,task=tail,pid=9,uid=0\n",
            "3,1,5000000,-;Memory cgroup out of memory: Killed process 77 (tail) total-vm:9kB\n SUBSYSTEM=x\n",
            "6,1,5000000,-;busybox[77]: segfault at 0 ip 0 sp 0 error 4 in busybox[400000+1000]\n",
            "4,1,5000000,-;traps: a[77] general protection fault ip:0 sp:0 error:0\n",
            "5,1,5000000,-;audit: type=1326 audit(1.0:2): auid=0 uid=0 pid=77 comm=\"sh\" sig=31 syscall=39\n",
            "5,1,5000000,-;audit: type=1400 audit(1.0:2): apparmor=\"DENIED\" operation=\"open\" pid=77 comm=\"sh\"\n",
            // Long before it was created, and yet its own by the id.
            "3,1,1,-;something in /p/c1d2\n",
        ];
        for record in about {
            assert!(text_about(record, "c1d2", 77, 4_000_000).is_some(), "{record}");
        }
        let others = [
            "5,1,3000000,-;audit: type=1326 audit(1.0:2): pid=77 comm=\"sh\"\n",
            "5,1,5000000,-;audit: type=1326 audit(1.0:2): pid=778 comm=\"sh\"\n",
            "6,1,5000000,-;busybox[7]: segfault at 0\n",
            "6,1,5000000,-;eth0: port 77\n",
            "6,1,5000000,-;a driver [77] says hello\n",
            "no record",
            "",
        ];
        for record in others {
            assert_eq!(text_about(record, "c1d2", 77, 4_000_000), None, "{record}");
        }
        let long = format!("3,1,1,-;c1d2 {}", "ä".repeat(MAX_LINE));
        let text = text_about(&long, "c1d2", 77, 0).expect("about it");
        assert!(text.len() <= MAX_LINE && text.len() > MAX_LINE - 4);
    }
}
