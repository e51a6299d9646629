//! The exit record: how a container ended, written by the shim before anyone is told.
//!
//! One JSON file a container, put in place by rename, so that a reader sees all of it or none:
//! `/var/lib/corten/containers/ID/exit.json` (for an infra container `/run/corten/sandboxes/ID/exit.json`).
//!
//! What the kernel did not say is left out: absent is not zero. Fields are only ever added, so that a record of an older
//! shim is read, and one of a newer shim by an older server. A record is bounded: all of it is numbers, but for the
//! reason of a signal, the tail of the output and the kernel's words, which have limits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::shim;

/// How a container's init process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Host pid the init had.
    pub pid: i32,
    /// Exit code; 128 + signal where a signal ended it.
    pub code: i32,
    /// The signal, 0 where there was none.
    pub signal: i32,
    /// When it started, nanoseconds since the epoch; 0 if it never did.
    pub started_at: i64,
    /// When it ended, nanoseconds since the epoch.
    pub finished_at: i64,
    /// The kernel's OOM killer ended it.
    pub oom_killed: bool,
    /// How many of its processes the kernel's OOM killer ended.
    #[serde(default)]
    pub oom_kills: u64,
    /// Bytes of output that could not be written to the log.
    #[serde(default)]
    pub output_lost: u64,
    /// What else was to be learnt when it ended; none in the record of an older shim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Details>>,
}

/// What tells why a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Details {
    /// When it was created, nanoseconds since the epoch.
    pub created_at: i64,
    /// The kernel says that it dumped core (CLD_DUMPED).
    pub core_dumped: bool,
    /// The last signal that we have sent it; other senders leave no trace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent: Option<Sent>,
    /// Its cgroup, before it went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<CgroupState>,
    /// The end of what it wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail: Option<Tail>,
    /// What the kernel's log says of it, oldest line first: added by the server, who alone reads that log.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernel: Vec<String>,
}

/// A signal that was sent through the shim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Its number.
    pub signal: i32,
    /// When, nanoseconds since the epoch.
    pub at: i64,
    /// Why, in the words of whoever asked for it; may be empty.
    #[serde(default)]
    pub reason: String,
}

/// The end of what a container wrote, from its log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// `stderr`, or `stdout` for a terminal, which has one stream.
    pub stream: String,
    /// [`MAX_TAIL`] bytes of it at most; what was no UTF-8 is replaced.
    pub text: String,
}

/// Most bytes of output in a record, as the container wrote them.
pub const MAX_TAIL: usize = 4096;

/// Most bytes of a signal's reason.
pub const MAX_REASON: usize = 128;

/// A container's cgroup at its end. A limit that is absent is none, or not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CgroupState {
    /// 1 or 2.
    pub version: u8,
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
    /// The most that was ever charged, in bytes (v2: Linux 5.19).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_peak: Option<u64>,
    /// v2: memory.swap.max; v1: memory.memsw.limit_in_bytes, which is of memory and swap together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_limit: Option<u64>,
    /// v2: memory.events; v1: memory.oom_control, and memory.failcnt and memory.memsw.failcnt as `failcnt` and
    /// `memsw_failcnt`. Counted since the container was created, which made the cgroup.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub memory_events: BTreeMap<String, u64>,
    /// Microseconds of processor time in each period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_quota_us: Option<u64>,
    /// The period, in microseconds; only with a quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_period_us: Option<u64>,
    /// Periods in which something ran under the quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_periods: Option<u64>,
    /// Periods in which the quota was used up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttled: Option<u64>,
    /// How long its threads were held up then, in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttled_ns: Option<u64>,
    /// Most threads there may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<u64>,
    /// How often a thread was refused for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_refused: Option<u64>,
    /// The pressure of `cpu`, `memory` and `io` as the kernel writes it (v2 alone).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pressure: BTreeMap<String, String>,
}

impl ExitRecord {
    /// The part of the record that travels in events.
    pub fn exit(&self) -> shim::Exit {
        shim::Exit {
            code: self.code,
            signal: self.signal,
            finished_at: self.finished_at,
            oom_killed: self.oom_killed,
            oom_kills: self.oom_kills,
            output_lost: self.output_lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_json() {
        let record = ExitRecord {
            pid: 7,
            code: 137,
            signal: 9,
            started_at: 1,
            finished_at: 2,
            oom_killed: true,
            oom_kills: 3,
            output_lost: 4,
            details: Some(Box::new(Details {
                sent: Some(Sent {
                    signal: 9,
                    at: 1,
                    reason: "a".into(),
                }),
                tail: Some(Tail::default()),
                cgroup: Some(CgroupState::default()),
                ..Details::default()
            })),
        };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<ExitRecord>(&text).unwrap(), record);
        assert_eq!(record.exit().code, 137);
        assert_eq!((record.exit().oom_kills, record.exit().output_lost), (3, 4));
    }

    #[test]
    fn a_record_of_an_older_shim_is_read() {
        let text = r#"{"pid":7,"code":0,"signal":0,"started_at":1,"finished_at":2,"oom_killed":false}"#;
        let record: ExitRecord = serde_json::from_str(text).unwrap();
        assert_eq!((record.pid, record.oom_kills, record.output_lost), (7, 0, 0));
        assert_eq!(record.details, None);
    }

    #[test]
    fn a_record_of_a_newer_shim_is_read() {
        let text = r#"{"pid":7,"code":0,"signal":0,"started_at":1,"finished_at":2,"oom_killed":false,"new":{},
            "details":{"created_at":5,"new":[1],"cgroup":{"version":2,"new":3}}}"#;
        let record: ExitRecord = serde_json::from_str(text).unwrap();
        let details = record.details.unwrap();
        assert_eq!((details.created_at, details.cgroup.unwrap().version), (5, 2));
    }
}
