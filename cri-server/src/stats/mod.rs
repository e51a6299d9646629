//! What containers and pods use, read from cgroupfs and /proc at the time of the call.
//!
//! ```text
//! runtime_service/stats    ──> container, pod ──┐     what one container, one pod uses, as CRI has it
//! runtime_service/metrics  ──> metrics ─────────┤     the same and more under cAdvisor's names
//!                                               └──> cgroups              whose files, found by the init's pid
//!                                                      ├─ cpu memory io pids hugetlb   a controller each, v1 and v2
//!                                                      ├─ process         /proc/PID: open files, sockets, limits
//!                                                      ├─ network         /proc/PID/net: interfaces of the pod
//!                                                      └─ disk            the filesystem of writable layers
//! rate      processor time per second, between two calls: nothing runs in between
//! parse     the kernel's texts, pure
//! ```
//! Nothing here fails. A container can go at any time, and kernels differ in what they count: what is not there is absent
//! from the answer (`None`), never zero and never an error of the whole list. Everything blocks, for some microseconds a
//! file, and holds no lock: callers run it where it may, one task for a whole list.
//!
//! On hybrid machines the controllers are v1's, and the empty v2 tree is left alone.

mod cgroups;
mod container;
mod cpu;
mod disk;
mod hugetlb;
mod io;
mod memory;
mod metrics;
mod network;
mod parse;
mod pids;
mod pod;
mod process;
mod rate;

use std::time::Duration;

use corten_proto::cri;

use self::disk::{DeviceNames, Disk};
use crate::container::Container;
use crate::image::snapshot::Snapshots;
use crate::node::Node;
use crate::paths::Paths;
use crate::store::now;

pub(crate) use cgroups::Cgroups;
pub(crate) use disk::mountpoint;
pub(crate) use metrics::descriptors;
pub(crate) use process::Process;
pub(crate) use rate::Rate;

/// One call: what is looked up once for all that it answers of.
pub(crate) struct Round<'a> {
    snapshots: &'a Snapshots,
    paths: &'a Paths,
    disk: Disk,
    devices: DeviceNames,
}

impl<'a> Round<'a> {
    /// A look at this node.
    pub(crate) fn new(node: &'a Node) -> Self {
        let limit = node.config().storage.writable_layer_limit_bytes;
        Round {
            snapshots: &node.snapshots,
            paths: &node.paths,
            disk: Disk::of(node.snapshots.containers(), limit),
            devices: DeviceNames::default(),
        }
    }
}

/// A container, or a pod's infra container, that is there.
struct Live {
    init: Process,
    cgroups: Cgroups,
}

impl Live {
    /// The one with this id and this init.
    fn of(pid: Option<i32>, id: &str) -> Option<Live> {
        // Held before its cgroups are looked at: if it is in them then, its number has not gone to another process.
        let init = Process::open(pid?)?;
        let cgroups = Cgroups::of(&init, id)?;
        Some(Live { init, cgroups })
    }

    /// A container's.
    fn of_container(container: &Container) -> Option<Live> {
        Live::of(container.status().pid(), container.id().as_str())
    }

    /// How many processes it has.
    fn processes(&self) -> u64 {
        self.cgroups.processes().len() as u64
    }
}

/// A number that is known.
fn known(value: u64) -> cri::UInt64Value {
    cri::UInt64Value { value }
}

/// How long ago a time was that is in nanoseconds since the epoch.
fn age(since: i64) -> Duration {
    Duration::from_nanos(now().saturating_sub(since).try_into().unwrap_or(0))
}
