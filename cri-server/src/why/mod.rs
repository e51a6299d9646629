//! Why containers ended: what is known of an exit, in one document, for people and for programs.
//!
//! ```text
//!   shim    exit.json: code, signal, our last signal, cgroup, last words       before anyone is told
//!   here    + the kernel's own words (`kernel_log`), once, into the same file   before the status changes
//!           = a Death (`verdict` finds the cause)                               at every question
//!   RemoveContainer: the Death goes to exits/ (`kept`), the newest 256 stay
//! ```
//! | module | owns |
//! |---|---|
//! | `kernel_log` | the lines of /dev/kmsg that are about one container |
//! | `verdict` | the cause, and the words for it: pure |
//! | `kept` | the deaths of containers that are removed |
//! | `find` | which container is meant: by id, or by name |
//! | `service` | the call behind `corten-cri why` (`why_cli`) |
//!
//! What cannot be known is said to be unknown: the kernel tells nobody who has sent a signal. A signal is ours if we have sent
//! it, the kernel's if it says so or if only it has a reason to, and anybody's else.

mod find;
mod kept;
mod kernel_log;
pub(crate) mod report;
mod service;
mod verdict;

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result};
use corten_proto::exit::ExitRecord;
use corten_proto::id::ContainerId;
use corten_proto::{cri, shim};
use serde::{Deserialize, Serialize};
use serde_json::json;

pub(crate) use self::find::{Subject, find, subjects_on_disk};
pub(crate) use self::kept::tidy;
use self::kernel_log::About;
pub(crate) use self::service::ExitsService;
pub(crate) use self::verdict::Cause;
use crate::container::{Container, Exited, Metadata, Status};
use crate::node::{Node, blocking};
use crate::record;

/// The version of the form of a [`Death`]. A reader takes later ones too: fields are only added.
const VERSION: u32 = 1;

/// How long the kernel may take to log a denial.
const AUDIT_DELAY: Duration = Duration::from_millis(50);

/// How a container ended, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Death {
    pub(crate) version: u32,
    pub(crate) id: ContainerId,
    pub(crate) name: String,
    pub(crate) attempt: u32,
    pub(crate) pod: Pod,
    pub(crate) image: String,
    /// Nanoseconds since the epoch, as all times here; 0 for a container that was never started.
    pub(crate) created_at: i64,
    pub(crate) started_at: i64,
    pub(crate) finished_at: i64,
    /// As the kubelet has them.
    pub(crate) exit_code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) cause: Cause,
    /// The cause in plain words.
    pub(crate) summary: String,
    /// The shim's record; none where nobody saw the end.
    pub(crate) record: Option<ExitRecord>,
}

/// The pod a container was in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
}

impl Death {
    /// What the status and the record say together.
    pub(crate) fn new(
        metadata: &Metadata,
        pod: Option<&cri::PodSandboxMetadata>,
        exited: &Exited,
        record: Option<ExitRecord>,
    ) -> Death {
        let own = metadata.config.metadata.clone().unwrap_or_default();
        let pod = pod.cloned().unwrap_or_default();
        let image = metadata.config.image.clone().unwrap_or_default();
        let cause = verdict::cause(metadata.id.as_str(), exited, record.as_ref());
        Death {
            version: VERSION,
            id: metadata.id.clone(),
            name: own.name,
            attempt: own.attempt,
            pod: Pod {
                id: metadata.sandbox.to_string(),
                name: pod.name,
                namespace: pod.namespace,
                uid: pod.uid,
            },
            image: match image.user_specified_image.is_empty() {
                true => image.image,
                false => image.user_specified_image,
            },
            created_at: metadata.created_at,
            started_at: exited.started_at,
            finished_at: exited.finished_at,
            exit_code: exited.code,
            reason: exited.reason.as_str().to_owned(),
            message: exited.message.clone(),
            summary: verdict::words(&cause, record.as_ref()),
            cause,
            record,
        }
    }
}

impl Node {
    /// The message of an exit that is about to be told: empty where the reason says it all. What the kernel has to say of it
    /// goes to the record, now, for the kernel's log is short.
    pub(crate) async fn message_of(&self, id: &ContainerId, exit: &shim::Exit) -> String {
        if exit.code == 0 {
            return String::new();
        }
        let (path, id) = (self.paths.container_exit(id), id.clone());
        let examined = blocking(move || examine(&path, &id)).await;
        examined.unwrap_or_else(|error| {
            tracing::warn!("look at an exit: {error:#}");
            String::new()
        })
    }

    /// How a container ended; none while it has not.
    pub(crate) async fn death_of(&self, container: &Container) -> Option<Death> {
        let Status::Exited(exited) = container.status() else {
            return None;
        };
        let path = self.paths.container_exit(container.id());
        // One that cannot be read is as good as none.
        let record = blocking(move || record::read_optional(&path)).await.ok().flatten();
        let sandbox = self.sandbox_of(container).ok();
        let pod = sandbox.and_then(|sandbox| sandbox.metadata.config.metadata.clone());
        Some(Death::new(&container.metadata, pod.as_ref(), &exited, record))
    }

    /// Keeps how a container ended that is about to be removed. One that was never started, and was not to be, has nothing
    /// to tell. A failure is logged: no container stays for this.
    pub(crate) async fn keep_death(&self, container: &Container) {
        let Some(death) = self.death_of(container).await else {
            return;
        };
        if death.started_at == 0 && death.cause == Cause::NeverStarted {
            return;
        }
        let directory = self.paths.exits();
        if let Err(error) = blocking(move || kept::keep(&directory, &death)).await {
            tracing::warn!(container = %container.id(), "keep its exit: {error:#}");
        }
    }
}

/// Turns at the records, by their containers: several tasks may hear of one exit, and look at it at once.
static TURNS: [Mutex<()>; 16] = [const { Mutex::new(()) }; 16];

/// Adds what the kernel says to the record at `path`, if it may have something to say; the message for the status.
fn examine(path: &Path, id: &ContainerId) -> Result<String> {
    let sum: usize = id.as_str().bytes().map(usize::from).sum();
    let _turn = TURNS[sum % TURNS.len()].lock();
    // As a document too: what a later shim has written stays in it.
    let Some(mut document) = record::read_optional::<serde_json::Value>(path)? else {
        return Ok(String::new());
    };
    let mut record: ExitRecord =
        serde_json::from_value(document.clone()).with_context(|| format!("decode {}", path.display()))?;
    if wants_the_log(&record)
        && let Some(details) = &mut record.details
    {
        let log = About::new(id, record.pid, details.created_at, record.finished_at);
        details.kernel = log.lines();
        if details.kernel.is_empty() && record.signal == nix::libc::SIGSYS {
            // Denials are printed by a thread of the kernel's own, which may be behind.
            std::thread::sleep(AUDIT_DELAY);
            details.kernel = log.lines();
        }
        if !details.kernel.is_empty() {
            document["details"]["kernel"] = json!(details.kernel);
            record::write(path, &document)?;
        }
    }
    Ok(verdict::message(id.as_str(), &record))
}

/// Whether the kernel may have ended it, or one of its processes, and has not been asked. Of what an older shim wrote no
/// more can be learnt: it does not say since when lines can be about it.
fn wants_the_log(record: &ExitRecord) -> bool {
    let is_of_kernel = record.signal != 0 || record.oom_kills > 0;
    let details = record.details.as_ref();
    is_of_kernel
        && verdict::is_complete(record)
        && details.is_some_and(|it| {
            it.kernel.is_empty() && !verdict::is_ours(record.signal, record.oom_kills, it.sent.as_ref())
        })
}

#[cfg(test)]
mod tests {
    use corten_proto::exit::{Details, Sent};

    use super::*;

    #[test]
    fn when_the_kernels_log_is_read() {
        let sent = |signal| Sent {
            signal,
            ..Sent::default()
        };
        // Signal, OOM kills, when it was created, what we sent; whether it is read.
        for (signal, oom_kills, created_at, sent, is_read) in [
            (9, 0, 5, None, true),
            (11, 0, 5, Some(sent(15)), true),
            (0, 1, 5, None, true),
            (9, 1, 5, Some(sent(9)), true),
            (0, 0, 5, None, false),
            (15, 0, 5, Some(sent(15)), false),
            (9, 0, 0, None, false),
        ] {
            let details = Details {
                created_at,
                sent,
                ..Details::default()
            };
            let record = ExitRecord {
                signal,
                oom_kills,
                code: 1,
                details: Some(Box::new(details)),
                ..ExitRecord::default()
            };
            assert_eq!(wants_the_log(&record), is_read, "{record:?}");
        }
    }
}
