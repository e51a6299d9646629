//! A container in memory: its metadata, which never changes, its status, an enum with pure transitions, and what updates
//! have made of its resources (`spec::resources::merged`, pure as well), which has nothing to do with the status.
//!
//! ```text
//!   Created --started--> Running --exited--> Exited
//!      |  \                 |  ^                ^
//!      |   `-- exited, start_failed, lost ------+
//!      `----- silent ---> Unknown --connected---'   the shim does not answer; Stop and Remove still work
//! ```
//!
//! The same transitions serve an event, the shim's list after a reconnect and an exit record read at start: there is
//! no second path. An exit may overtake the answer to the start that led to it, so `started` also completes an
//! `Exited` that lacks its start.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corten_proto::exit::ExitRecord;
use corten_proto::id::{ContainerId, SandboxId};
use corten_proto::{cri, shim};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::image::LayerLease;
use crate::stats::Rate;

/// What is decided when a container is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Metadata {
    /// The container's id.
    pub id: ContainerId,
    /// The sandbox it belongs to.
    pub sandbox: SandboxId,
    /// The configuration exactly as it was asked for.
    pub config: cri::ContainerConfig,
    /// Nanoseconds since the epoch; unique among sandboxes and containers.
    pub created_at: i64,
    /// Id of the image, as the image service gives it.
    pub image_id: String,
    /// A digest reference of the image, or its id where it has none.
    pub image_ref: String,
    /// Diff ids of the image's layers, bottom first: what the container's lease is on.
    pub layers: Vec<corten_proto::id::Digest>,
    /// The user the process got, after the image's passwd and group files.
    pub user: cri::LinuxContainerUser,
    /// The log's absolute path; empty for a container without one.
    pub log_path: String,
    /// The signal that asks the container to end.
    pub stop_signal: i32,
    /// CRIU's images of the container that this one is to go on from; none for one that begins anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<PathBuf>,
}

/// Why a container is no longer running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// Exit code 0.
    Completed,
    /// Another exit code or a signal.
    Error,
    /// The kernel's OOM killer.
    OOMKilled,
    /// The runtime could not start it.
    StartError,
    /// Nobody knows: shim or machine went away.
    Unknown,
}

impl Reason {
    /// The text the kubelet shows and matches.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Completed => "Completed",
            Reason::Error => "Error",
            Reason::OOMKilled => "OOMKilled",
            Reason::StartError => "StartError",
            Reason::Unknown => "Unknown",
        }
    }
}

/// Exit code of a container that the runtime could not start, the field's convention.
const START_ERROR_CODE: i32 = 128;
/// Exit code of one that SIGKILL ended.
const KILLED_CODE: i32 = 137;
/// Exit code where nobody saw the exit, the field's convention.
const UNKNOWN_CODE: i32 = 255;

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// Exit code; 128 + signal where a signal ended it.
    pub code: i32,
    /// Why.
    pub reason: Reason,
    /// One line for the pod's status; empty where the reason says it all.
    pub message: String,
    /// Nanoseconds since the epoch; 0 if it never started.
    pub started_at: i64,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
}

/// Where a container is in its life. Times are nanoseconds since the epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Its init waits for the start.
    Created {
        /// Host pid of the init; 0 for one that is to be restored, which has none yet.
        pid: i32,
    },
    /// Its process runs.
    Running {
        /// Host pid of the init.
        pid: i32,
        /// When it was started.
        started_at: i64,
    },
    /// Its init has ended.
    Exited(Exited),
    /// The shim does not answer.
    Unknown {
        /// Start of the container, 0 if it had not started.
        started_at: i64,
    },
}

impl Status {
    /// The shim answered a start. An exit that overtook the answer stands and learns its start.
    pub(crate) fn started(self, at: i64) -> Status {
        match self {
            Status::Created { pid } => Status::Running { pid, started_at: at },
            Status::Exited(exited) if exited.started_at == 0 && exited.reason != Reason::StartError => {
                Status::Exited(Exited {
                    started_at: at.min(exited.finished_at),
                    ..exited
                })
            }
            other => other,
        }
    }

    /// It goes on from a checkpoint, which began no sooner than this.
    pub(crate) fn restored(self, pid: i32, at: i64) -> Status {
        match self {
            Status::Created { pid: 0 } => Status::Running { pid, started_at: at },
            other => other.started(at),
        }
    }

    /// It was stopped and had nothing to stop yet: what was to be restored will not be.
    pub(crate) fn abandoned(self, now: i64) -> Status {
        match self {
            Status::Created { pid: 0 } => Status::Exited(Exited {
                code: KILLED_CODE,
                reason: Reason::Error,
                message: "stopped before it was restored".to_owned(),
                started_at: 0,
                finished_at: now,
            }),
            other => other,
        }
    }

    /// An exit event. A second exit changes nothing: the first one stands.
    pub(crate) fn exited(self, exit: &shim::Exit) -> Status {
        if matches!(self, Status::Exited(_)) {
            return self;
        }
        let reason = match exit {
            shim::Exit { oom_killed: true, .. } => Reason::OOMKilled,
            shim::Exit { code: 0, .. } => Reason::Completed,
            _ => Reason::Error,
        };
        Status::Exited(Exited {
            code: exit.code,
            reason,
            message: String::new(),
            started_at: self.started_at(),
            finished_at: exit.finished_at,
        })
    }

    /// An exit record, which knows the start as well.
    pub(crate) fn recorded(self, record: &ExitRecord) -> Status {
        let exited = self.exited(&record.exit());
        match record.started_at {
            0 => exited,
            at => exited.started(at),
        }
    }

    /// Says more of an exit that has just been applied, where nothing was said yet.
    pub(crate) fn explained(self, message: String) -> Status {
        match self {
            Status::Exited(exited) if exited.message.is_empty() && exited.reason != Reason::Completed => {
                Status::Exited(Exited { message, ..exited })
            }
            other => other,
        }
    }

    /// The runtime refused to start it. What its init did afterwards is no news.
    pub(crate) fn start_failed(self, message: &str, now: i64) -> Status {
        match self {
            Status::Running { .. } => self,
            Status::Exited(Exited { started_at: 1.., .. }) => self,
            _ => Status::Exited(Exited {
                code: START_ERROR_CODE,
                reason: Reason::StartError,
                message: message.to_owned(),
                started_at: 0,
                finished_at: now,
            }),
        }
    }

    /// Nobody saw it end, and it is not there any more.
    pub(crate) fn lost(self, message: &str, now: i64) -> Status {
        match self {
            Status::Exited(_) => self,
            other => Status::Exited(Exited {
                code: UNKNOWN_CODE,
                reason: Reason::Unknown,
                message: message.to_owned(),
                started_at: other.started_at(),
                finished_at: now,
            }),
        }
    }

    /// The shim does not answer.
    pub(crate) fn silent(self) -> Status {
        match self {
            // A shim knows nothing of one that is to be restored.
            Status::Exited(_) | Status::Created { pid: 0 } => self,
            other => Status::Unknown {
                started_at: other.started_at(),
            },
        }
    }

    /// What the shim says it holds, after a reconnect.
    pub(crate) fn connected(self, held: &shim::Container) -> Status {
        match (&self, held.state(), &held.exit) {
            (Status::Exited(_), _, _) => self,
            (_, shim::container::State::Exited, Some(exit)) => match held.started_at {
                0 => self.exited(exit),
                at => self.exited(exit).started(at),
            },
            (_, shim::container::State::Running, _) => Status::Running {
                pid: held.pid,
                started_at: held.started_at,
            },
            // CREATING is never seen here: what is being created has no record yet.
            _ => Status::Created { pid: held.pid },
        }
    }

    /// When it was started; 0 if it never was.
    pub fn started_at(&self) -> i64 {
        match self {
            Status::Created { .. } => 0,
            Status::Running { started_at, .. } | Status::Unknown { started_at } => *started_at,
            Status::Exited(exited) => exited.started_at,
        }
    }

    /// Host pid of the init while there is one.
    pub fn pid(&self) -> Option<i32> {
        match self {
            Status::Created { pid } | Status::Running { pid, .. } => Some(*pid).filter(|&pid| pid != 0),
            _ => None,
        }
    }

    /// The state as CRI has it.
    pub fn state(&self) -> cri::ContainerState {
        match self {
            Status::Created { .. } => cri::ContainerState::ContainerCreated,
            Status::Running { .. } => cri::ContainerState::ContainerRunning,
            Status::Exited(_) => cri::ContainerState::ContainerExited,
            Status::Unknown { .. } => cri::ContainerState::ContainerUnknown,
        }
    }
}

/// Whether a checkpoint holds a container still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// None does.
    Free,
    /// One does.
    Held,
    /// One does, and somebody wants it to end.
    Unwanted,
}

/// A container the server knows.
pub struct Container {
    /// What never changes.
    pub metadata: Metadata,
    /// The status; a watch, so that a call can wait for the exit.
    pub status: watch::Sender<Status>,
    /// Its removal has begun.
    pub removing: AtomicBool,
    /// Orders start, update and removal.
    pub operations: tokio::sync::Mutex<()>,
    /// Orders the checkpoints of it, which go on after they have let go of `operations`.
    pub(crate) checkpoints: tokio::sync::Mutex<()>,
    /// Whether it is held still.
    pub(crate) hold: watch::Sender<Hold>,
    /// Orders the writes of the record.
    pub record: tokio::sync::Mutex<()>,
    /// Keeps the image's layers; none where they were gone at a restart.
    pub lease: Option<LayerLease>,
    /// Its processor time per second.
    pub(crate) rate: Rate,
    /// The resources since the first update; none before it.
    resources: Mutex<Option<cri::LinuxContainerResources>>,
}

impl Container {
    /// A container as it was made or read from its record.
    pub fn new(metadata: Metadata, status: Status, lease: Option<LayerLease>) -> Arc<Self> {
        Arc::new(Container {
            metadata,
            status: watch::Sender::new(status),
            removing: AtomicBool::new(false),
            operations: tokio::sync::Mutex::new(()),
            checkpoints: tokio::sync::Mutex::new(()),
            hold: watch::Sender::new(Hold::Free),
            record: tokio::sync::Mutex::new(()),
            lease,
            rate: Rate::default(),
            resources: Mutex::new(None),
        })
    }

    /// The container's id.
    pub fn id(&self) -> &ContainerId {
        &self.metadata.id
    }

    /// The resources that updates have left; none while they are those it was made with.
    pub(crate) fn updated(&self) -> Option<cri::LinuxContainerResources> {
        self.resources.lock().expect("no holder panics").clone()
    }

    /// Replaces what updates have left.
    pub(crate) fn set_resources(&self, resources: Option<cri::LinuxContainerResources>) {
        *self.resources.lock().expect("no holder panics") = resources;
    }

    /// The resources that count now, as they were asked for; none where nobody has asked for any.
    pub fn resources(&self) -> Option<cri::LinuxContainerResources> {
        let asked = || self.metadata.config.linux.as_ref()?.resources.clone();
        self.updated().or_else(asked)
    }

    /// A copy of the status now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Whether it is to be restored and has not been: there is nothing of it but files.
    pub fn awaits_restore(&self) -> bool {
        matches!(*self.status.borrow(), Status::Created { pid: 0 })
    }

    /// Whether its init has ended.
    pub fn has_exited(&self) -> bool {
        matches!(*self.status.borrow(), Status::Exited(_))
    }

    /// Has a checkpoint that holds it still let it go on, and waits for that, `limit` at most.
    pub(crate) async fn let_go(&self, limit: Duration) {
        if !let_go(&self.hold, limit).await {
            tracing::warn!(container = %self.id(), "a checkpoint has not let it go on");
        }
    }

    /// Waits until somebody wants a checkpoint that holds it still to end.
    pub(crate) async fn hold_unwanted(&self) {
        let mut hold = self.hold.subscribe();
        let unwanted = hold.wait_for(|hold| *hold == Hold::Unwanted);
        unwanted.await.expect("the sender is a field of this");
    }

    /// Waits until its init has ended.
    pub async fn exit(&self) {
        let mut status = self.status.subscribe();
        let exited = status.wait_for(|status| matches!(status, Status::Exited(_)));
        exited.await.expect("the sender is a field of this");
    }

    /// Waits until its init has ended, `limit` at most; whether it has.
    pub async fn wait_exit(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.exit()).await.is_ok()
    }
}

/// Says that the hold is unwanted, and waits for its end; whether that came in time.
async fn let_go(hold: &watch::Sender<Hold>, limit: Duration) -> bool {
    let mut ends = hold.subscribe();
    hold.send_if_modified(|hold| {
        let held = *hold == Hold::Held;
        *hold = if held { Hold::Unwanted } else { *hold };
        held
    });
    let free = ends.wait_for(|hold| *hold == Hold::Free);
    tokio::time::timeout(limit, free).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32, oom_killed: bool) -> shim::Exit {
        shim::Exit {
            code,
            signal: 0,
            finished_at: 50,
            oom_killed,
            ..Default::default()
        }
    }

    fn exited(code: i32, reason: Reason, started_at: i64) -> Status {
        Status::Exited(Exited {
            code,
            reason,
            message: String::new(),
            started_at,
            finished_at: 50,
        })
    }

    const CREATED: Status = Status::Created { pid: 7 };

    #[tokio::test]
    async fn whoever_holds_a_container_hears_that_it_is_wanted() {
        let hold = watch::Sender::new(Hold::Free);
        let soon = Duration::from_millis(20);
        assert!(let_go(&hold, soon).await, "nobody holds it");
        assert_eq!(*hold.borrow(), Hold::Free);
        hold.send_replace(Hold::Held);
        assert!(!let_go(&hold, soon).await, "its holder does not listen");
        assert_eq!(*hold.borrow(), Hold::Unwanted);
        let (free, ()) = tokio::join!(let_go(&hold, 100 * soon), async {
            hold.send_replace(Hold::Free);
        });
        assert!(free);
    }
    const RUNNING: Status = Status::Running { pid: 7, started_at: 20 };

    #[test]
    fn exits() {
        let table = [
            (RUNNING, exit(0, false), exited(0, Reason::Completed, 20)),
            (RUNNING, exit(3, false), exited(3, Reason::Error, 20)),
            (RUNNING, exit(137, true), exited(137, Reason::OOMKilled, 20)),
            (CREATED, exit(137, false), exited(137, Reason::Error, 0)),
            (
                Status::Unknown { started_at: 20 },
                exit(0, false),
                exited(0, Reason::Completed, 20),
            ),
            (
                exited(3, Reason::Error, 20),
                exit(0, false),
                exited(3, Reason::Error, 20),
            ),
        ];
        for (before, exit, after) in table {
            assert_eq!(before.clone().exited(&exit), after, "{before:?} {exit:?}");
        }
    }

    #[test]
    fn a_start_answered_late() {
        assert_eq!(CREATED.started(20), RUNNING);
        assert_eq!(
            CREATED.exited(&exit(0, false)).started(20),
            exited(0, Reason::Completed, 20)
        );
        assert_eq!(
            CREATED.exited(&exit(0, false)).started(60),
            exited(0, Reason::Completed, 50)
        );
        assert_eq!(RUNNING.started(30), RUNNING);
    }

    #[test]
    fn one_that_is_to_be_restored() {
        let waiting = Status::Created { pid: 0 };
        assert_eq!(
            (waiting.pid(), waiting.state()),
            (None, cri::ContainerState::ContainerCreated)
        );
        assert_eq!(waiting.clone().silent(), waiting);
        assert_eq!(waiting.clone().restored(7, 20), RUNNING);
        assert_eq!(RUNNING.restored(7, 30), RUNNING);
        let gone = waiting.clone().abandoned(60);
        assert!(matches!(&gone, Status::Exited(e) if (e.code, e.started_at) == (137, 0)));
        assert_eq!(
            gone.clone().restored(7, 70).state(),
            cri::ContainerState::ContainerExited
        );
        assert_eq!(RUNNING.abandoned(60), RUNNING);
        let failed = waiting.start_failed("no such image", 60);
        assert!(matches!(&failed, Status::Exited(e) if e.code == 128));
    }

    #[test]
    fn a_start_that_failed() {
        let failed = CREATED.start_failed("no such file", 60);
        assert_eq!(failed.state(), cri::ContainerState::ContainerExited);
        assert!(matches!(&failed, Status::Exited(e) if e.code == 128 && e.message == "no such file"));
        assert_eq!(failed.clone().exited(&exit(1, false)), failed);
        assert_eq!(failed.clone().started(20), failed);
        // The exit of the init overtook the runtime's answer.
        assert_eq!(CREATED.exited(&exit(1, false)).start_failed("no such file", 60), failed);
        assert_eq!(
            exited(0, Reason::Completed, 20).start_failed("x", 60),
            exited(0, Reason::Completed, 20)
        );
    }

    #[test]
    fn after_a_restart() {
        let held = |state, exit| shim::Container {
            id: "c".to_owned(),
            state: state as i32,
            pid: 7,
            started_at: 20,
            exit,
            output_lost: 0,
        };
        let (running, ended) = (shim::container::State::Running, shim::container::State::Exited);
        assert_eq!(CREATED.connected(&held(running, None)), RUNNING);
        assert_eq!(RUNNING.silent().connected(&held(running, None)), RUNNING);
        assert_eq!(
            CREATED.connected(&held(ended, Some(exit(3, false)))),
            exited(3, Reason::Error, 20)
        );
        let first = exited(0, Reason::Completed, 20);
        assert_eq!(first.clone().connected(&held(running, None)), first);
    }

    #[test]
    fn an_exit_nobody_saw() {
        let record = ExitRecord {
            pid: 7,
            code: 3,
            signal: 0,
            started_at: 20,
            finished_at: 50,
            ..Default::default()
        };
        assert_eq!(CREATED.recorded(&record), exited(3, Reason::Error, 20));
        assert!(matches!(RUNNING.lost("gone", 60), Status::Exited(e) if e.code == 255 && e.started_at == 20));
        assert_eq!(
            exited(0, Reason::Completed, 20).lost("gone", 60),
            exited(0, Reason::Completed, 20)
        );
        assert_eq!(
            exited(0, Reason::Completed, 20).silent(),
            exited(0, Reason::Completed, 20)
        );
    }
}
