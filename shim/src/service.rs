//! The shim's service: one loop that waits for everything, and the calls of the protocol.
//!
//! ```text
//!   listener   a client connects               events.rs
//!   client     a request                       the calls below; those that run the runtime go on in tasks.rs
//!   child      a call of the runtime ended     tasks.rs: its answer, then the container's next task
//!              an init or an exec ended        exits.rs: log complete, record on disk, event, removal
//!   output     a container wrote               io.rs, log.rs, audience.rs
//!   attached   a client has read, or has gone  audience.rs
//!   signals    SIGCHLD: an orphan ended        reaper.rs
//! ```
//! Invariants: nothing here waits but the loop itself (a file system's own delays apart). The calls that change one
//! container run one after the other, in the order they came; execs and other containers do not wait for them. A
//! client that goes away takes its execs with it and cancels nothing else.
//!
//! The shim ends on Shutdown, or by itself when it has had no container and no client for a while: then whoever
//! started it has died between starting it and using it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use corten_proto::id::ContainerId;
use corten_proto::shim::error::Code;
use corten_proto::shim::{self, Request, reply, request::Call};
use nix::sys::signalfd::SignalFd;
use prost::Message as _;

use crate::cage::{Cage, Site, Support};
use crate::container::{Container, Pending, Plan, State, Task, absolute};
use crate::events::{Clients, Outcome, Received, Requester};
use crate::io::{self, Io};
use crate::poll::{Poll, Source};
use crate::reaper::{self, Children, ExecId, Launch, Operation};
use crate::record::bounded;
use crate::report::report;
use crate::runtime::{Runtime, Verb};
use crate::sys;

/// Most containers of one pod. Their states must fit the one packet that answers `connect`.
const MAX_CONTAINERS: usize = 200;

/// Most execs of one container at once.
const MAX_EXECS: usize = 256;

/// Most requests that wait for their turn at one container.
const MAX_PENDING: usize = 64;

/// The descriptors of an exec without a terminal.
const EXEC_FDS: usize = 3;

/// Longest id of an exec, in bytes.
const MAX_EXEC_ID: usize = 255;

/// A call's answer: now, later (`None`), or an error.
pub(crate) type Answer = Result<Option<reply::Result>, shim::Error>;

/// What the shim waits for no longer than this.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// The end of a call of the runtime; it is killed then. A healthy one takes well under a second, hooks may take
    /// longer.
    pub(crate) call: Duration,
    /// A container or a client, when there is neither; the shim ends then.
    pub(crate) idle: Duration,
}

/// Everything the shim holds.
pub(crate) struct Service {
    pub(crate) poll: Poll,
    pub(crate) clients: Clients,
    pub(crate) containers: BTreeMap<ContainerId, Container>,
    pub(crate) children: Children,
    pub(crate) runtime: Runtime,
    listener: OwnedFd,
    signals: SignalFd,
    pub(crate) timeouts: Timeouts,
    /// Since when there has been neither a container nor a client.
    idle_since: Option<Instant>,
    shut_down: bool,
    /// The runtime has been called, or the shim has started, since code was given back last.
    pub(crate) code_in_use: bool,
    /// SIGCHLD has come and orphans have not been looked for since.
    orphans_due: bool,
}

impl Service {
    pub(crate) fn new(listener: OwnedFd, runtime: Runtime, timeouts: Timeouts) -> Result<Service> {
        rustix::io::ioctl_fionbio(&listener, true).context("ioctl(listener, FIONBIO)")?;
        let signals = reaper::signals()?;
        let mut poll = Poll::new()?;
        poll.add(&listener, Source::Listener)?;
        poll.add(&signals, Source::Signals)?;
        Ok(Service {
            poll,
            clients: Clients::new()?,
            containers: BTreeMap::new(),
            children: Children::default(),
            runtime,
            listener,
            signals,
            timeouts,
            idle_since: Some(Instant::now()),
            shut_down: false,
            code_in_use: true,
            orphans_due: false,
        })
    }

    /// Serves until the shim is to end. Only a failure of the loop itself is an error: whatever goes wrong with one
    /// container or client must not take the others down.
    pub(crate) fn run(mut self) -> Result<()> {
        while !self.shut_down {
            self.release_code();
            for token in self.poll.wait(self.deadline())? {
                if let Some(source) = self.poll.source(token)
                    && let Err(error) = self.ready(source)
                {
                    report!("{error:#}");
                }
            }
            self.end_abandoned_execs();
            self.reap_orphans()?;
            self.expire();
        }
        Ok(())
    }

    /// Gives back the code that the last call of the runtime needed, once none is in flight.
    fn release_code(&mut self) {
        if self.code_in_use && self.children.calls().next().is_none() {
            self.code_in_use = false;
            sys::release_code();
        }
    }

    fn ready(&mut self, source: Source) -> Result<()> {
        match source {
            Source::Listener => self.clients.accept(&self.listener, &mut self.poll)?,
            Source::Signals => {
                self.orphans_due = true;
                while self.signals.read_signal().context("read(signalfd)")?.is_some() {}
                // The others wait until no call is in flight.
                self.children.reap_elders()?;
            }
            Source::Client(id) => self.client_ready(id),
            Source::Child(pid) => {
                if let Some((child, ended)) = self.children.reap(pid, &mut self.poll)? {
                    self.child_ended(child, ended);
                }
            }
            Source::Output(id, stream) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.io.pump(stream, &mut self.poll);
                    self.settle(&id);
                }
            }
            Source::Attached(id, number) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.io.audience.ready(number, &mut self.poll);
                }
            }
        }
        Ok(())
    }

    /// Kills the execs of clients that have gone: nobody keeps their time or reads their output any more.
    fn end_abandoned_execs(&mut self) {
        for client in self.clients.take_gone() {
            for (leader, exec) in self.children.execs().filter(|(_, exec)| exec.client == client) {
                if let Err(error) = exec.kill(leader) {
                    report!("end an exec whose client has gone: {error:#}");
                }
            }
            for (_, call) in self.children.calls_mut() {
                if let (Operation::Exec { killed, .. }, Some(requester)) = (&mut call.operation, call.requester)
                    && requester.client == client
                {
                    *killed = true;
                }
            }
        }
    }

    fn client_ready(&mut self, client: u64) {
        self.clients.flush(client, &mut self.poll);
        match self.clients.receive(client) {
            Received::Packet(packet, fds) => self.request(client, &packet, fds),
            // The request's own number is not known.
            Received::Refused(rule) => self.reply(Requester { client, seq: 0 }, Err(error(Code::Invalid, rule))),
            Received::Nothing => {}
            Received::Gone => self.clients.remove(client, &mut self.poll),
        }
    }

    fn request(&mut self, client: u64, packet: &[u8], fds: Vec<OwnedFd>) {
        let (seq, answer) = match Request::decode(packet) {
            Ok(Request { seq, call: Some(call) }) => (seq, self.call(Requester { client, seq }, call, fds)),
            Ok(Request { seq, call: None }) => (seq, Err(error(Code::Invalid, "a call this shim does not know"))),
            Err(cause) => (0, Err(error(Code::Invalid, format!("packet is no request: {cause}")))),
        };
        if let Some(outcome) = answer.transpose() {
            self.reply(Requester { client, seq }, outcome);
        }
    }

    fn call(&mut self, from: Requester, call: Call, fds: Vec<OwnedFd>) -> Answer {
        if !fds.is_empty() && !matches!(call, Call::Exec(_) | Call::Attach(_)) {
            return Err(error(Code::Invalid, "descriptors with a call that takes none"));
        }
        match call {
            Call::Connect(shim::Connect {}) => Ok(Some(self.connect(from))),
            Call::Create(create) => self.create(from, Plan::parse(create).map_err(invalid)?),
            Call::Restore(restore) => self.create(from, Plan::parse_restore(restore).map_err(invalid)?),
            Call::Start(start) => self.submit(from, &start.id, Task::Start),
            Call::Kill(kill) => self.kill(from, kill),
            Call::Delete(delete) => self.submit(from, &delete.id, Task::Delete),
            Call::Exec(exec) => self.exec(from, exec, fds),
            Call::KillExec(kill) => self.kill_exec(kill),
            Call::ReopenLog(reopen) => self.reopen_log(&reopen.id),
            Call::Attach(attach) => self.attach(from, &attach, fds),
            Call::Shutdown(shim::Shutdown {}) => self.shutdown(),
        }
    }

    fn connect(&mut self, from: Requester) -> reply::Result {
        self.clients.subscribe(from.client);
        let containers = self.containers.iter();
        reply::Result::Connected(shim::Connected {
            shim_pid: std::process::id().cast_signed(),
            containers: containers.map(|(id, container)| container.report(id)).collect(),
        })
    }

    fn create(&mut self, from: Requester, plan: Plan) -> Answer {
        let Plan {
            id,
            bundle,
            exit_record,
            layout,
            checkpoint,
        } = plan;
        if self.containers.contains_key(&id) {
            return Err(error(Code::AlreadyExists, format!("container {id} exists")));
        }
        if self.containers.len() >= MAX_CONTAINERS {
            return Err(error(
                Code::Failed,
                format!("the pod has {MAX_CONTAINERS} containers, the most it can have"),
            ));
        }
        let (io, ends) = Io::open(layout).map_err(failed)?;
        let (console_socket, stdio) = (io.console_socket(), ends.borrow());
        let (verb, operation) = match &checkpoint {
            None => (Verb::Create { console_socket, stdio }, Operation::Create),
            Some(checkpoint) => {
                let verb = Verb::Restore {
                    checkpoint,
                    console_socket,
                    stdio,
                };
                (verb, Operation::Restore)
            }
        };
        self.begin_call(&verb, &bundle, &id, operation, Some(from))?;
        self.containers.insert(id, Container::new(bundle, exit_record, io));
        Ok(None)
    }

    fn kill(&mut self, from: Requester, request: shim::Kill) -> Answer {
        // Up to the last real-time signal; 0 would answer success and do nothing.
        if !(1..=64).contains(&request.signal) {
            return Err(error(
                Code::Invalid,
                format!("signal {}: must be 1 to 64", request.signal),
            ));
        }
        let task = Task::Kill {
            signal: request.signal,
            all: request.all,
            reason: bounded(request.reason),
        };
        self.submit(from, &request.id, task)
    }

    /// Gives a container a task; it begins at once if the container has none in flight.
    fn submit(&mut self, from: Requester, id: &str, task: Task) -> Answer {
        let (id, container) = self.container(id)?;
        if container.queue.len() >= MAX_PENDING {
            return Err(error(
                Code::Failed,
                format!("{MAX_PENDING} requests wait for container {id} already"),
            ));
        }
        container.queue.push_back(Pending { requester: from, task });
        self.advance(&id);
        Ok(None)
    }

    fn exec(&mut self, from: Requester, request: shim::Exec, fds: Vec<OwnedFd>) -> Answer {
        let process = absolute("process", request.process).map_err(invalid)?;
        let (console, stdio) = exec_stdio(request.console_socket, fds)?;
        if !(1..=MAX_EXEC_ID).contains(&request.exec_id.len()) {
            return Err(error(
                Code::Invalid,
                format!("exec_id: must have 1 to {MAX_EXEC_ID} bytes"),
            ));
        }
        let (container, held) = self.container(&request.container_id)?;
        if !matches!(held.state, State::Running { .. }) {
            return Err(wrong_state("exec in", &container, &held.state));
        }
        let exec_id = request.exec_id;
        let id = ExecId { container, exec_id };
        if self.children.exec(&id).is_some() || self.exec_call(&id).is_some() {
            return Err(error(Code::AlreadyExists, format!("exec {:?} exists", id.exec_id)));
        }
        if self.children.exec_count(&id.container) >= MAX_EXECS {
            return Err(error(
                Code::Failed,
                format!("container {} has {MAX_EXECS} execs already", id.container),
            ));
        }
        let launch = Launch {
            process,
            console,
            stdio,
        };
        self.begin_exec(id, launch, Some(from))?;
        Ok(None)
    }

    /// Begins an exec, or the question to the runtime that comes before the first.
    pub(crate) fn begin_exec(
        &mut self,
        id: ExecId,
        launch: Launch,
        from: Option<Requester>,
    ) -> Result<(), shim::Error> {
        let (_, held) = self.container(id.container.as_str())?;
        let (bundle, site) = (held.bundle.clone(), held.site.clone());
        if site.is_some() && self.runtime.cages == Support::Unknown {
            let operation = Operation::Exec {
                exec_id: id.exec_id,
                killed: false,
                cage: None,
                postponed: Some(launch),
            };
            return self.begin_call(&Verb::AskForCages, &bundle, &id.container, operation, from);
        }
        let cage = self.cage(site.as_ref());
        let verb = Verb::Exec {
            process: &launch.process,
            cgroup: cage.as_ref().map(|cage| cage.option.clone()),
            console_socket: launch.console.as_deref(),
            stdio: launch.stdio.each_ref().map(AsFd::as_fd),
        };
        let operation = Operation::Exec {
            exec_id: id.exec_id,
            killed: false,
            cage,
            postponed: None,
        };
        self.begin_call(&verb, &bundle, &id.container, operation, from)
    }

    /// A cgroup for an exec. Without one it runs all the same: then what detaches itself from it is not found by a kill.
    fn cage(&mut self, site: Option<&Site>) -> Option<Cage> {
        let site = site.filter(|_| self.runtime.cages == Support::Yes)?;
        let made = site.make(self.runtime.number());
        made.inspect_err(|cause| report!("an exec without a cgroup of its own: {cause:#}"))
            .ok()
    }

    fn kill_exec(&mut self, request: shim::KillExec) -> Answer {
        let (container, _) = self.container(&request.container_id)?;
        let exec_id = request.exec_id;
        let id = ExecId { container, exec_id };
        if let Some((leader, exec)) = self.children.exec(&id) {
            exec.kill(leader).map_err(failed)?;
        } else if let Some(killed) = self.exec_call(&id) {
            *killed = true;
        }
        // An id that is not held was an exec that is over, or never was one: either way nothing of it runs.
        done()
    }

    fn reopen_log(&mut self, id: &str) -> Answer {
        let (_, container) = self.container(id)?;
        container.io.reopen_log().map_err(failed)?;
        done()
    }

    fn shutdown(&mut self) -> Answer {
        if let Some(id) = self.containers.keys().next() {
            return Err(error(Code::WrongState, format!("container {id} is left")));
        }
        self.shut_down = true;
        done()
    }

    /// The container of a request's id.
    pub(crate) fn container(&mut self, id: &str) -> Result<(ContainerId, &mut Container), shim::Error> {
        let id: ContainerId = id.parse().map_err(|cause| error(Code::Invalid, cause))?;
        match self.containers.get_mut(&id) {
            Some(container) => Ok((id, container)),
            None => Err(error(Code::NotFound, format!("no container {id}"))),
        }
    }

    /// Of an exec whose process is not known yet: whether it is to be killed.
    fn exec_call(&mut self, id: &ExecId) -> Option<&mut bool> {
        self.children
            .calls_mut()
            .find_map(|(_, call)| match &mut call.operation {
                Operation::Exec { exec_id, killed, .. } if *exec_id == id.exec_id && call.container == id.container => {
                    Some(killed)
                }
                _ => None,
            })
    }

    pub(crate) fn reply(&mut self, to: Requester, outcome: Outcome) {
        self.clients.reply(to, outcome, &mut self.poll);
    }

    fn reap_orphans(&mut self) -> Result<()> {
        while self.orphans_due && !self.children.expects() {
            match self.children.reap_any(&mut self.poll)? {
                Some((Some(known), ended)) => self.child_ended(known, ended),
                Some((None, _)) => {}
                None => {
                    self.orphans_due = false;
                    // Who has ended may have been the last one in the cgroup of an exec.
                    let sites = self.containers.values().filter_map(|held| held.site.as_ref());
                    sites.for_each(Site::sweep);
                }
            }
        }
        Ok(())
    }

    /// When the loop has to wake up though nothing happens.
    fn deadline(&self) -> Option<Instant> {
        let calls = self.children.calls().filter(|(_, call)| !call.overdue);
        let calls = calls.map(|(_, call)| call.deadline);
        let idle = self.idle_since.map(|since| since + self.timeouts.idle);
        let audiences = self.containers.values().filter_map(|c| c.io.audience.until());
        calls.chain(self.draining_until()).chain(audiences).chain(idle).min()
    }

    /// Does what has come due.
    fn expire(&mut self) {
        let now = Instant::now();
        for (process, call) in self.children.calls_mut() {
            if call.deadline <= now && !call.overdue {
                call.overdue = true;
                if let Err(error) = process.signal(rustix::process::Signal::KILL) {
                    report!("{error:#}");
                }
            }
        }
        self.settle_due(now);
        for container in self.containers.values_mut() {
            if container.io.audience.until().is_some_and(|until| until <= now) {
                container.io.audience.close(&mut self.poll);
            }
        }
        let idle = self.clients.is_empty() && self.containers.is_empty();
        self.idle_since = self.idle_since.or(Some(now)).filter(|_| idle);
        if self.idle_since.is_some_and(|since| since + self.timeouts.idle <= now) {
            self.shut_down = true;
        }
    }
}

/// The answer of the calls that give nothing back.
#[allow(clippy::unnecessary_wraps)] // it is an `Answer`
fn done() -> Answer {
    Ok(Some(reply::Result::Done(shim::Done {})))
}

/// What an exec's standard IO is to be: the descriptors that came with the request, or a terminal, whose console socket is
/// the caller's; then the runtime itself has none.
fn exec_stdio(console_socket: String, fds: Vec<OwnedFd>) -> Result<(Option<PathBuf>, [OwnedFd; 3]), shim::Error> {
    let terminal = !console_socket.is_empty();
    let (count, expected) = (fds.len(), if terminal { 0 } else { EXEC_FDS });
    if count != expected {
        let rule = "exec takes 3, or none with a console_socket";
        return Err(error(Code::Invalid, format!("{count} descriptors: {rule}")));
    }
    if !terminal {
        let stdio = <[OwnedFd; EXEC_FDS]>::try_from(fds).expect("counted above");
        return Ok((None, stdio));
    }
    let console = absolute("console_socket", console_socket).map_err(invalid)?;
    let null = || io::null().map_err(failed);
    Ok((Some(console), [null()?, null()?, null()?]))
}

pub(crate) fn error(code: Code, message: impl ToString) -> shim::Error {
    shim::Error {
        code: code.into(),
        message: message.to_string(),
    }
}

#[allow(clippy::needless_pass_by_value)] // for `map_err`
pub(crate) fn failed(cause: anyhow::Error) -> shim::Error {
    error(Code::Failed, format!("{cause:#}"))
}

#[allow(clippy::needless_pass_by_value)] // for `map_err`
pub(crate) fn invalid(cause: anyhow::Error) -> shim::Error {
    error(Code::Invalid, format!("{cause:#}"))
}

pub(crate) fn wrong_state(action: &str, id: &ContainerId, state: &State) -> shim::Error {
    error(
        Code::WrongState,
        format!("{action} container {id}: it is {}", state.name()),
    )
}
