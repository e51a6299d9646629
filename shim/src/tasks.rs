//! The calls of the runtime: how each begins, and what its end means.
//!
//! A call is a child process. It is begun here and answered here when it has ended; in between the loop serves
//! everyone else. `create`, `start`, `kill` and `delete` of one container run one after the other ([`Service::advance`]).

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use corten_proto::id::ContainerId;
use corten_proto::shim::error::Code;
use corten_proto::shim::{self, event, reply};
use corten_runtime::cgroup::Cgroup;
use rustix::process::Signal;

use crate::cage::{Cage, Site, Support};
use crate::clock;
use crate::container::{Pending, Removal, State, Task};
use crate::events::{Outcome, Requester};
use crate::oom;
use crate::process::{Ended, Process, kill_child};
use crate::reaper::{Call, Child, Exec, ExecId, Launch, Operation, Role};
use crate::report::report;
use crate::runtime::Verb;
use crate::service::{Service, error, failed, wrong_state};

impl Service {
    /// Runs the runtime; the end of the call is answered in [`call_ended`](Service::call_ended).
    pub(crate) fn begin_call(
        &mut self,
        verb: &Verb<'_>,
        bundle: &Path,
        id: &ContainerId,
        operation: Operation,
        from: Option<Requester>,
    ) -> Result<(), shim::Error> {
        let (process, invocation) = self.runtime.spawn(verb, bundle, id.as_str()).map_err(failed)?;
        self.code_in_use = true;
        let call = Call {
            container: id.clone(),
            operation,
            invocation,
            requester: from,
            deadline: Instant::now() + self.timeouts.call,
            overdue: false,
        };
        self.children
            .adopt(process, Role::Call(call), &mut self.poll)
            .map_err(failed)
    }

    /// Begins the container's next task, if it has one and none is in flight.
    pub(crate) fn advance(&mut self, id: &ContainerId) {
        while !self.is_busy(id) {
            let Some(container) = self.containers.get_mut(id) else {
                return;
            };
            // The shim removes what has exited without being asked: the cgroup and the mounts go soon, and a server
            // that is away or has forgotten the container cannot leave them behind.
            if matches!(container.state, State::Exited { .. }) && container.removal == Removal::NotTried {
                if let Err(cause) = self.begin_task(id, Task::Delete, None) {
                    self.removal_failed(id, &cause.message);
                }
                continue;
            }
            let Some(Pending { requester, task }) = container.queue.pop_front() else {
                return;
            };
            if let Some(outcome) = self.begin_task(id, task, Some(requester)).transpose() {
                self.reply(requester, outcome);
            }
        }
    }

    /// A call that changes the container is in flight.
    fn is_busy(&self, id: &ContainerId) -> bool {
        let changes = |call: &Call| call.container == *id && !matches!(call.operation, Operation::Exec { .. });
        self.children.calls().any(|(_, call)| changes(call))
    }

    /// Begins a task, or answers it at once where there is nothing to do.
    fn begin_task(
        &mut self,
        id: &ContainerId,
        task: Task,
        from: Option<Requester>,
    ) -> Result<Option<reply::Result>, shim::Error> {
        let Some(container) = self.containers.get_mut(id) else {
            return Err(error(Code::NotFound, format!("no container {id}")));
        };
        // Before any signal: what the OOM killer has done by now to others is not to be mistaken for its work on init.
        container.look_for_oom();
        let gone = matches!(container.state, State::Draining { .. } | State::Exited { .. });
        let (verb, operation) = match task {
            Task::Start if matches!(container.state, State::Created { .. }) => (Verb::Start, Operation::Start),
            // The answer to the start may have been lost with its connection.
            Task::Start if let State::Running { started_at, .. } = container.state => {
                return Ok(Some(reply::Result::Started(shim::Started { started_at })));
            }
            Task::Start => return Err(wrong_state("start", id, &container.state)),
            Task::Kill { .. } if gone => return Ok(Some(reply::Result::Done(shim::Done {}))),
            Task::Kill { signal, all, reason } => {
                container.note_sent(signal, reason);
                (Verb::Kill { signal, all }, Operation::Kill)
            }
            Task::Delete if container.removal == Removal::Done => {
                container.waiters.extend(from);
                self.conclude(id);
                return Ok(None);
            }
            Task::Delete => {
                // `--force`: what still runs is killed.
                container.note_sent(Signal::KILL.as_raw(), "deleted".to_owned());
                (Verb::Delete, Operation::Delete)
            }
        };
        let bundle = container.bundle.clone();
        let is_signal = !matches!(operation, Operation::Start);
        let began = self.begin_call(&verb, &bundle, id, operation, from);
        if is_signal && began.is_err() {
            self.not_sent(id);
        }
        began.map(|()| None)
    }

    /// A child has ended and is reaped.
    pub(crate) fn child_ended(&mut self, child: Child, ended: Ended) {
        match child.role {
            Role::Call(call) => self.call_ended(call, ended),
            Role::Init(id) => self.init_ended(&id, ended),
            Role::Exec(exec) => self.exec_ended(exec, ended),
        }
    }

    /// Answers a call, then lets the container go on.
    fn call_ended(&mut self, call: Call, ended: Ended) {
        let Call {
            container: id,
            operation,
            invocation,
            requester,
            overdue,
            ..
        } = call;
        let named = invocation.named_pid();
        let result = invocation.finish(ended, &self.last_words(&id, &operation));
        let result = if overdue {
            // The call was killed; what it had let go by then runs on. A `create` is undone as a whole.
            if let (Operation::Exec { cage, .. }, Some(pid)) = (&operation, named) {
                kill_child(pid);
                if let Some(Err(cause)) = cage.as_ref().map(Cage::kill) {
                    report!("end an exec of {id}: {cause:#}");
                }
            }
            Err(format!(
                "runtime: no answer for {} s; killed",
                self.timeouts.call.as_secs()
            ))
        } else {
            result
        };
        let done = result.clone().map(drop);
        let outcome = match operation {
            Operation::Create => self.create_ended(&id, ended, result, requester),
            Operation::Restore => self.restore_ended(&id, ended, result, requester),
            Operation::UndoCreate(cause) => {
                self.forget(&id);
                Some(Err(error(Code::Failed, with_cause(&cause, done))))
            }
            Operation::Start => Some(self.start_ended(&id, done)),
            Operation::Kill => Some(self.kill_ended(&id, done)),
            Operation::Delete => self.delete_ended(&id, done, requester),
            Operation::Exec {
                exec_id,
                killed,
                cage,
                postponed,
            } => {
                let container = id.clone();
                let id = ExecId { container, exec_id };
                match postponed {
                    Some(launch) => self.cages_known(id, launch, killed, ended, requester),
                    None => {
                        let client = requester.map_or(0, |requester| requester.client);
                        Some(self.exec_begun(Exec { id, client, cage }, killed, result))
                    }
                }
            }
        };
        if let (Some(outcome), Some(requester)) = (outcome, requester) {
            self.reply(requester, outcome);
        }
        self.settle(&id);
        self.advance(&id);
    }

    /// What a failing `create` wrote to the stderr of the container that was to be.
    fn last_words(&self, id: &ContainerId, operation: &Operation) -> String {
        match (operation, self.containers.get(id)) {
            (Operation::Create | Operation::Restore, Some(container)) => container.io.last_words(),
            _ => String::new(),
        }
    }

    fn create_ended(
        &mut self,
        id: &ContainerId,
        ended: Ended,
        result: Result<Option<i32>, String>,
        from: Option<Requester>,
    ) -> Option<Outcome> {
        let cause = match result.map(|pid| self.adopt_init(id, pid)) {
            Ok(Ok(pid)) => return Some(Ok(reply::Result::Created(shim::Created { pid }))),
            Ok(Err(cause)) => format!("create container {id}: {cause:#}"),
            // A runtime that says it failed has undone its work, and an id it refused may be somebody else's.
            Err(cause) if ended.signal == 0 && ended.code != 0 => {
                self.forget(id);
                return Some(Err(error(Code::Failed, cause)));
            }
            Err(cause) => cause,
        };
        let bundle = self.containers.get(id)?.bundle.clone();
        let undo = Operation::UndoCreate(cause.clone());
        if let Err(also) = self.begin_call(&Verb::Delete, &bundle, id, undo, from) {
            self.forget(id);
            return Some(Err(error(Code::Failed, with_cause(&cause, Err(also.message)))));
        }
        None
    }

    /// A restore is a create whose init runs already.
    fn restore_ended(
        &mut self,
        id: &ContainerId,
        ended: Ended,
        result: Result<Option<i32>, String>,
        from: Option<Requester>,
    ) -> Option<Outcome> {
        let pid = match self.create_ended(id, ended, result, from)? {
            Ok(reply::Result::Created(shim::Created { pid })) => pid,
            other => return Some(other),
        };
        let started = self.start_ended(id, Ok(()));
        Some(started.map(|result| match result {
            reply::Result::Started(shim::Started { started_at }) => {
                reply::Result::Restored(shim::Restored { pid, started_at })
            }
            other => other,
        }))
    }

    /// Takes over the init that `create` has left waiting for its start, or that `restore` has let run.
    fn adopt_init(&mut self, id: &ContainerId, pid: Option<i32>) -> Result<i32> {
        let pid = pid.context("create names a pid")?;
        let process = Process::open(pid)?;
        let container = self
            .containers
            .get_mut(id)
            .context("a container being created is held")?;
        container.io.begin(id, &mut self.poll)?;
        match Cgroup::of_process(pid).map(|cgroup| cgroup.paths().clone()) {
            Ok(cgroups) => {
                container.site = Site::of(id, &cgroups);
                container.oom = oom::Watch::begin(cgroups)
                    .inspect_err(|cause| report!("OOM kills of {id} will not be seen: {cause:#}"))
                    .ok();
            }
            Err(cause) => report!("the cgroup of {id} is not known: {cause:#}"),
        }
        self.children.adopt(process, Role::Init(id.clone()), &mut self.poll)?;
        container.io.keep_log();
        container.created_at = clock::now_ns();
        container.transition(|state| state.created(pid));
        Ok(pid)
    }

    fn start_ended(&mut self, id: &ContainerId, result: Result<(), String>) -> Outcome {
        result.map_err(|cause| error(Code::Failed, cause))?;
        let now_ns = clock::now_ns();
        let container = self.containers.get_mut(id);
        let container = container.ok_or_else(|| error(Code::NotFound, format!("no container {id}")))?;
        container.transition(|state| state.started(now_ns));
        let (pid, started_at) = match &container.state {
            State::Running { pid, started_at } => (*pid, *started_at),
            State::Draining { record, .. } | State::Exited { record } => (record.pid, record.started_at),
            State::Creating | State::Created { .. } => (0, now_ns),
        };
        let started = shim::ContainerStarted {
            id: id.to_string(),
            started_at,
            pid,
        };
        self.clients
            .broadcast(event::Kind::ContainerStarted(started), &mut self.poll);
        Ok(reply::Result::Started(shim::Started { started_at }))
    }

    fn kill_ended(&mut self, id: &ContainerId, result: Result<(), String>) -> Outcome {
        let running = self
            .children
            .init(id)
            .is_some_and(|init| init.has_ended().is_ok_and(|ended| !ended));
        match result {
            // It ended while the runtime looked for it: then there was nothing left to signal.
            Err(cause) if running => {
                self.not_sent(id);
                Err(error(Code::Failed, cause))
            }
            _ => Ok(reply::Result::Done(shim::Done {})),
        }
    }

    /// The signal of a call that has failed is nobody's end.
    fn not_sent(&mut self, id: &ContainerId) {
        if let Some(container) = self.containers.get_mut(id) {
            container.sent.take_back();
        }
    }

    fn delete_ended(
        &mut self,
        id: &ContainerId,
        result: Result<(), String>,
        from: Option<Requester>,
    ) -> Option<Outcome> {
        if let Err(cause) = result {
            self.not_sent(id);
            if from.is_none() {
                self.removal_failed(id, &cause);
            }
            return Some(Err(error(Code::Failed, cause)));
        }
        if let Some(init) = self.children.init(id)
            && let Err(cause) = init.signal(Signal::KILL)
        {
            report!("{cause:#}");
        }
        if let Some(container) = self.containers.get_mut(id) {
            container.removal = Removal::Done;
            container.waiters.extend(from);
            self.conclude(id);
        }
        None
    }

    fn removal_failed(&mut self, id: &ContainerId, cause: &str) {
        report!("container {id} has exited and was not removed: {cause}");
        if let Some(container) = self.containers.get_mut(id) {
            container.removal = Removal::Failed;
        }
    }

    /// The runtime has said whether it can put execs into cgroups: the exec that has waited for it begins.
    fn cages_known(
        &mut self,
        id: ExecId,
        launch: Launch,
        killed: bool,
        ended: Ended,
        from: Option<Requester>,
    ) -> Option<Outcome> {
        // One that was killed, for its time was over, has none either: asked again it would take as long.
        self.runtime.cages = if ended.code == 0 { Support::Yes } else { Support::No };
        if killed {
            let text = format!("exec {:?}: killed before it began", id.exec_id);
            return Some(Err(error(Code::Failed, text)));
        }
        let running = self.containers.get(&id.container);
        if let Some(held) = running.filter(|held| !matches!(held.state, State::Running { .. })) {
            return Some(Err(wrong_state("exec in", &id.container, &held.state)));
        }
        self.begin_exec(id, launch, from).err().map(Err)
    }

    fn exec_begun(&mut self, exec: Exec, killed: bool, result: Result<Option<i32>, String>) -> Outcome {
        let pid = result.map_err(|cause| error(Code::Failed, cause))?;
        let pid = pid.ok_or_else(|| error(Code::Failed, "exec names no pid"))?;
        self.adopt_exec(exec, pid, killed)
            .inspect_err(|_| kill_child(pid))
            .map_err(failed)
    }

    fn adopt_exec(&mut self, exec: Exec, pid: i32, killed: bool) -> Result<reply::Result> {
        let process = Process::open(pid)?;
        if killed {
            exec.kill(&process)?;
        }
        self.children.adopt(process, Role::Exec(exec), &mut self.poll)?;
        Ok(reply::Result::ExecStarted(shim::ExecStarted { pid }))
    }
}

/// An error, and what also went wrong while it was handled.
fn with_cause(cause: &str, also: Result<(), String>) -> String {
    match also {
        Ok(()) => cause.to_owned(),
        Err(also) => format!("{cause}; undoing it failed too: {also}"),
    }
}
