//! Whether the kernel's OOM killer ended a container.
//!
//! The verdict is taken while the cgroup still exists: the count of OOM kills has gone up since the container was
//! created, and its init died of SIGKILL. A container that survives the killing of one of its processes, or whose init
//! exits by itself after that, has not been OOM-killed; that its memory ran out shows in the cgroup's own counters.

use anyhow::Result;
use corten_runtime::cgroup::Cgroup;
use rustix::process::Signal;

use crate::process::Ended;

/// The OOM count of one container's cgroup.
pub(crate) struct Watch {
    cgroup: Cgroup,
    kills_before: u64,
}

impl Watch {
    /// Begins with the process's cgroup as it is now. Taken once the runtime has placed the process.
    pub(crate) fn begin(pid: i32) -> Result<Watch> {
        let cgroup = Cgroup::of_process(pid)?;
        let kills_before = cgroup.oom_kills()?;
        Ok(Watch {
            cgroup,
            kills_before,
        })
    }

    /// Whether the OOM killer ended the init that ended so. A cgroup that cannot be read tells of none.
    pub(crate) fn verdict(&self, ended: Ended) -> bool {
        ended.signal == Signal::KILL.as_raw()
            && self
                .cgroup
                .oom_kills()
                .is_ok_and(|kills| kills > self.kills_before)
    }
}
