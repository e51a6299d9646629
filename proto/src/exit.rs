//! The exit record: how a container ended, written by the shim before anyone is told.
//!
//! One JSON file a container, put in place by rename, so that a reader sees all of it or none:
//! `/var/lib/corten/containers/ID/exit.json` (for an infra container `/run/corten/sandboxes/ID/exit.json`).

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
    }
}
