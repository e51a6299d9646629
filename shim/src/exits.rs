//! The exit of a container, step by step, and of an exec.
//!
//! ```text
//!   init ends -> cgroup looked at -> output read to its end -> exit record on disk -> event -> RUNTIME delete --force -> (Delete) forgotten
//! ```
//! Invariant: when the event is sent, the log is complete and the record is on disk. Processes that outlive init and
//! hold its output open are waited for no longer than [`DRAIN`]; what they write later is logged until they are gone.

use std::time::{Duration, Instant};

use corten_proto::id::ContainerId;
use corten_proto::shim::error::Code;
use corten_proto::shim::{self, event, reply};

use crate::clock;
use crate::container::{Removal, State};
use crate::oom::Oom;
use crate::process::Ended;
use crate::reaper::{Exec, Operation};
use crate::record::write_exit_record;
use crate::report::report;
use crate::service::{Service, error};

/// Longest wait for the output of a container whose init has ended.
const DRAIN: Duration = Duration::from_secs(2);

impl Service {
    pub(crate) fn init_ended(&mut self, id: &ContainerId, ended: Ended) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        // Now, while the cgroup is still there.
        let oom = container.oom.as_ref();
        let oom = oom.map_or_else(Oom::default, |watch| watch.verdict(ended));
        let until = Instant::now() + DRAIN;
        let details = container.details(ended);
        container.transition(|state| state.ended(ended, oom, clock::now_ns(), until).detailed(details));
        self.settle(id);
    }

    pub(crate) fn exec_ended(&mut self, exec: Exec, ended: Ended) {
        let Exec { id, cage, .. } = exec;
        drop(cage);
        let container = self.containers.get_mut(&id.container);
        let oom = container.map_or_else(Oom::default, |container| {
            let oom = container
                .oom
                .as_ref()
                .map_or_else(Oom::default, |watch| watch.verdict(ended));
            container.look_for_oom();
            oom
        });
        let exit = shim::Exit {
            code: ended.code,
            signal: ended.signal,
            finished_at: clock::now_ns(),
            oom_killed: oom.killed,
            ..shim::Exit::default()
        };
        let exited = shim::ExecExited {
            container_id: id.container.into(),
            exec_id: id.exec_id,
            exit: Some(exit),
        };
        self.clients.broadcast(event::Kind::ExecExited(exited), &mut self.poll);
    }

    /// Completes the exit of a container whose output has been read, or waited for long enough.
    pub(crate) fn settle(&mut self, id: &ContainerId) {
        if self.is_starting(id) {
            return;
        }
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        match &container.state {
            State::Draining { until, .. } if container.io.is_drained() || *until <= Instant::now() => {}
            _ => return,
        }
        let lost = container.io.lost();
        let tail = container.state.wants_tail().then(|| container.io.tail()).flatten();
        container.transition(|state| state.drained(lost, tail));
        container.io.audience.end(Instant::now(), &mut self.poll);
        let State::Exited { record } = &container.state else {
            return;
        };
        if let Err(cause) = write_exit_record(&container.exit_record, record) {
            // The event still tells those who are there.
            report!("exit record of {id}: {cause:#}");
        }
        let exited = shim::ContainerExited {
            id: id.to_string(),
            exit: Some(record.exit()),
        };
        container.transition(State::recorded);
        self.clients
            .broadcast(event::Kind::ContainerExited(exited), &mut self.poll);
        self.advance(id);
        self.conclude(id);
    }

    /// Settles every container that has been waited for long enough.
    pub(crate) fn settle_due(&mut self, now: Instant) {
        let due = |state: &State| matches!(state, State::Draining { until, .. } if *until <= now);
        let containers = self.containers.iter();
        let ids = containers
            .filter(|(_, container)| due(&container.state))
            .map(|(id, _)| id.clone());
        for id in ids.collect::<Vec<_>>() {
            self.settle(&id);
        }
    }

    /// When the waiting for each container's output ends.
    pub(crate) fn draining_until(&self) -> impl Iterator<Item = Instant> {
        self.containers
            .iter()
            .filter_map(|(id, container)| match &container.state {
                State::Draining { until, .. } if !self.is_starting(id) => Some(*until),
                _ => None,
            })
    }

    /// A start is in flight. An exit that comes before its answer waits for it, so that nobody hears of the end
    /// before the start, and the record holds the time of both.
    fn is_starting(&self, id: &ContainerId) -> bool {
        let calls = &mut self.children.calls();
        calls.any(|(_, call)| call.container == *id && matches!(call.operation, Operation::Start))
    }

    /// Answers those who wait for the removal, when it is complete, and forgets the container.
    pub(crate) fn conclude(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let complete = matches!(container.state, State::Exited { .. }) && container.removal == Removal::Done;
        if !complete || container.waiters.is_empty() {
            return;
        }
        let waiters = std::mem::take(&mut container.waiters);
        self.forget(id);
        for waiter in waiters {
            self.reply(waiter, Ok(reply::Result::Done(shim::Done {})));
        }
    }

    /// Lets go of a container: the rest of its output goes to the log, requests that still wait for it are answered.
    pub(crate) fn forget(&mut self, id: &ContainerId) {
        let Some(mut container) = self.containers.remove(id) else {
            return;
        };
        container.io.end(&mut self.poll);
        for pending in container.queue {
            self.reply(
                pending.requester,
                Err(error(Code::NotFound, format!("container {id} is gone"))),
            );
        }
    }
}
