//! Whether the kernel's OOM killer ended a container.
//!
//! The verdict is taken while the cgroup still exists: the count of OOM kills has gone up since the container was
//! created, and its init died of SIGKILL. A container that survives the killing of one of its processes, or whose init
//! exits by itself after that, has not been OOM-killed; that its memory ran out shows in the cgroup's own counters.

use anyhow::Result;
use corten_runtime::cgroup::{Cgroup, CgroupPaths};
use rustix::process::Signal;

use crate::process::Ended;

/// What the OOM killer did to a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Oom {
    /// It ended init.
    pub(crate) killed: bool,
    /// How many processes it ended.
    pub(crate) kills: u64,
}

/// The OOM count of one container's cgroup. By path, not by descriptor: a pod with many containers would keep a great
/// many directories open for a count that is read twice.
pub(crate) struct Watch {
    memory: CgroupPaths,
    kills_before: u64,
}

impl Watch {
    /// Begins with the process's cgroup as it is now. Taken once the runtime has placed the process.
    pub(crate) fn begin(pid: i32) -> Result<Watch> {
        let mut memory = Cgroup::of_process(pid)?.paths().clone();
        if let CgroupPaths::V1(hierarchies) = &mut memory {
            hierarchies.retain(|name, _| name.split(',').any(|controller| controller == "memory"));
        }
        let kills_before = Cgroup::open(memory.clone()).oom_kills()?;
        Ok(Watch { memory, kills_before })
    }

    /// What the OOM killer did to the container whose init ended so.
    pub(crate) fn verdict(&self, ended: Ended) -> Oom {
        let kills = self.kills();
        Oom {
            killed: ended.signal == Signal::KILL.as_raw() && kills > 0,
            kills,
        }
    }

    /// How many processes of the container the OOM killer has ended. A cgroup that cannot be read tells of none.
    pub(crate) fn kills(&self) -> u64 {
        let kills = Cgroup::open(self.memory.clone()).oom_kills();
        kills.map_or(0, |kills| kills.saturating_sub(self.kills_before))
    }
}
