//! What the kernel's OOM killer did to a container.
//!
//! The kernel counts its kills by cgroup and does not say whom it has killed. The verdict on init, taken while the cgroup
//! still exists: it died of SIGKILL, and there is a kill that was not seen to be another's. Others' are the kills that are
//! counted at a moment when init is well: such a look is taken whenever an exec ends, and before init gets a signal
//! through the shim. So neither an exec that ran out of memory nor a later SIGKILL from the kubelet makes an OOM kill of
//! the container's own end.
//!
//! What stays unsure: a child of init's own is killed, nothing is looked at afterwards, and somebody on the host kills
//! init past the shim.

use anyhow::Result;
use corten_proto::exit::CgroupState;
use corten_runtime::cgroup::{Cgroup, CgroupPaths};
use rustix::process::Signal;

use crate::process::{Ended, is_dying};

/// What the OOM killer did to a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Oom {
    /// It ended init.
    pub(crate) killed: bool,
    /// How many processes it ended.
    pub(crate) kills: u64,
}

/// One container's cgroup: its OOM count, and its state at the end. By path, not by descriptor: a pod with many containers would keep a great
/// many directories open for a count that is rarely read.
pub(crate) struct Watch {
    /// Of v1 the hierarchies of [`CONTROLLERS`] alone.
    cgroup: CgroupPaths,
    kills_before: u64,
    /// Kills since then that were not init's.
    others: u64,
}

/// What there is to be told of a container's end.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

impl Watch {
    /// Begins with the cgroups of a process as they are now. Taken once the runtime has placed the process.
    pub(crate) fn begin(mut cgroup: CgroupPaths) -> Result<Watch> {
        if let CgroupPaths::V1(hierarchies) = &mut cgroup {
            hierarchies.retain(|name, _| name.split(',').any(|controller| CONTROLLERS.contains(&controller)));
        }
        let kills_before = Cgroup::open(cgroup.clone()).oom_kills()?;
        Ok(Watch {
            cgroup,
            kills_before,
            others: 0,
        })
    }

    /// Takes what has been counted by now as others', if `init` is well. The count is read first: the kernel counts, then
    /// kills at once.
    pub(crate) fn look(&mut self, init: i32) {
        let kills = self.kills();
        if kills > self.others && !is_dying(init) {
            self.others = kills;
        }
    }

    /// What the OOM killer did, if a process that was watched ended so.
    pub(crate) fn verdict(&self, ended: Ended) -> Oom {
        let kills = self.kills();
        Oom {
            killed: ended.signal == Signal::KILL.as_raw() && kills > self.others,
            kills,
        }
    }

    /// Limits, peaks and pressure; none where the cgroup is gone.
    pub(crate) fn state(&self) -> Option<CgroupState> {
        Cgroup::open(self.cgroup.clone()).state_at_end()
    }

    /// How many processes of the container the OOM killer has ended. A cgroup that cannot be read tells of none.
    fn kills(&self) -> u64 {
        let kills = Cgroup::open(self.cgroup.clone()).oom_kills();
        kills.map_or(0, |kills| kills.saturating_sub(self.kills_before))
    }
}
