//! The client of one pod's shim: connect, call, and hear of starts and exits. `proto/shim/shim.proto` draws the protocol.
//!
//! Any number of calls may be under way; each has a deadline and an error that says what it waited for. One task per
//! shim (`supervisor`) reads the socket through [`Shim::next_event`]: replies and the ends of execs go from there to
//! whoever waits, starts and exits of containers to the supervisor.
//!
//! A connection may break without the shim being gone (it drops a client that reads too slowly). The shim's process
//! holds the only listener, so a refused connection says that the shim is gone: [`ConnectError::Gone`].

mod process;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, anyhow};
use corten_proto::id::{ContainerId, SandboxId};
use corten_proto::shim::{
    self as proto, Connected, ContainerExited, ContainerStarted, Exit, error, event, message, reply, request,
};
use prost::Message as _;
use tokio::sync::oneshot;

pub use process::{Launch, launch};
use socket::Socket;

use crate::stage::stage;

/// How long the shim may take to answer a call that runs the runtime. Kubelet waits two minutes for most calls, so
/// that our answer, which names the stage, comes before its own.
const RUNTIME_LIMIT: Duration = Duration::from_secs(90);
/// How long the shim may take to restore a container: more than it gives the runtime, so that its answer is the one.
const RESTORE_LIMIT: Duration = Duration::from_secs(125);
/// How long the shim may take to signal or delete a container. Short, because there is a second way: a container whose
/// shim does not answer is ended by the runtime itself, within the same call of the kubelet.
const END_LIMIT: Duration = Duration::from_secs(15);
/// How long the shim may take to answer a call it answers from memory.
const PROMPT_LIMIT: Duration = Duration::from_secs(10);

/// Why a call failed.
#[derive(Debug)]
pub enum Error {
    /// The shim answered so.
    Refused {
        /// What kind of refusal.
        code: error::Code,
        /// One line: stage, object and cause.
        message: String,
    },
    /// The connection broke, or there was none.
    Disconnected {
        /// The call that was under way.
        call: &'static str,
        /// What broke.
        cause: String,
    },
    /// No answer in time. The shim goes on with the work.
    Deadline {
        /// The call that was under way.
        call: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Refused { message, .. } => f.write_str(message),
            Error::Disconnected { call, cause } => write!(f, "shim call {call}: {cause}"),
            Error::Deadline { call, limit } => {
                write!(f, "shim call {call}: no answer in {} s", limit.as_secs_f32())
            }
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// There was no answer: the shim has ended, hangs, or is slow.
    pub fn is_unanswered(&self) -> bool {
        !matches!(self, Error::Refused { .. })
    }

    /// The shim does not have the container or exec.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Error::Refused {
                code: error::Code::NotFound,
                ..
            }
        )
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectError {
    /// Nobody listens: the shim has ended.
    Gone,
    /// Anything else; worth another attempt.
    Failed(anyhow::Error),
}

/// News of a container.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// It has been started.
    Started(ContainerStarted),
    /// Its init has ended.
    Exited(ContainerExited),
}

/// The reading half of a connection, for [`Shim::next_event`].
pub struct Incoming(Arc<Socket>);

/// The client of one shim.
pub struct Shim {
    sandbox: SandboxId,
    directory: PathBuf,
    link: Mutex<Link>,
}

/// The answer to a call, with the descriptor it may carry.
type Answer = (reply::Result, Option<OwnedFd>);

/// What an attached client holds of a container.
#[derive(Debug)]
pub struct Attached {
    /// The container has a terminal.
    pub terminal: bool,
    /// The terminal's master where there is one, which takes input and sizes; else the writing end of standard input
    /// where it was asked for.
    pub fd: Option<OwnedFd>,
}

/// The connection, if there is one, and who waits for what.
#[derive(Default)]
struct Link {
    socket: Option<Arc<Socket>>,
    last_seq: u64,
    calls: HashMap<u64, oneshot::Sender<Answer>>,
    execs: HashMap<(String, String), oneshot::Sender<Exit>>,
}

impl Shim {
    /// A client of the shim whose socket lies in `directory`; not connected yet.
    pub fn new(sandbox: &SandboxId, directory: &Path) -> Arc<Self> {
        Arc::new(Shim {
            sandbox: sandbox.clone(),
            directory: directory.to_owned(),
            link: Mutex::default(),
        })
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().expect("no holder panics")
    }

    /// Connects, subscribes to events and learns what the shim holds. Calls go through the new connection from here.
    pub async fn connect(&self) -> Result<(Incoming, Connected), ConnectError> {
        let socket = match Socket::connect(&self.directory) {
            Ok(socket) => socket,
            // Nobody listens. A connection that breaks later says less: a shim may refuse one and live on.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {
                return Err(ConnectError::Gone);
            }
            Err(error) => return Err(self.connect_failed(anyhow!(error))),
        };
        let handshake = async {
            let call = request::Call::Connect(proto::Connect {});
            let request = proto::Request {
                seq: 0,
                call: Some(call),
            };
            socket.send(&request.encode_to_vec(), &[]).await?;
            let (packet, _none) = socket.receive().await?;
            std::io::Result::Ok(packet)
        };
        let packet = match tokio::time::timeout(PROMPT_LIMIT, handshake).await {
            Ok(Ok(packet)) => packet,
            Ok(Err(error)) => return Err(self.connect_failed(anyhow!(error))),
            Err(_elapsed) => {
                let limit = PROMPT_LIMIT.as_secs();
                return Err(self.connect_failed(anyhow!("no answer in {limit} s")));
            }
        };
        let connected = connected(&packet).map_err(|error| self.connect_failed(error))?;
        let socket = Arc::new(socket);
        self.link().socket = Some(socket.clone());
        Ok((Incoming(socket), connected))
    }

    fn connect_failed(&self, cause: anyhow::Error) -> ConnectError {
        ConnectError::Failed(cause.context(format!("connect to the shim of {}", self.sandbox)))
    }

    /// The next news of a container; none once the connection has broken. Everything else that comes in on the way
    /// is handed to whoever waits for it.
    pub async fn next_event(&self, incoming: &Incoming) -> Option<Event> {
        loop {
            let (packet, fd) = match incoming.0.receive().await {
                Ok((packet, fd)) if !packet.is_empty() => (packet, fd),
                Ok(_) => return self.broken("the shim closed the connection"),
                Err(error) => return self.broken(&error.to_string()),
            };
            let Ok(message) = proto::Message::decode(&*packet) else {
                return self.broken("the shim sent a packet that is no message");
            };
            match message.kind {
                Some(message::Kind::Reply(reply)) => self.answer(reply, fd),
                Some(message::Kind::Event(event)) => match event.kind {
                    Some(event::Kind::ContainerExited(exited)) => {
                        return Some(Event::Exited(exited));
                    }
                    Some(event::Kind::ContainerStarted(started)) => {
                        return Some(Event::Started(started));
                    }
                    Some(event::Kind::ExecExited(exited)) => self.exec_exited(exited),
                    None => {}
                },
                None => {}
            }
        }
    }

    /// Fails everything that waits: its answer will not come.
    fn broken(&self, cause: &str) -> Option<Event> {
        tracing::debug!(sandbox = %self.sandbox, cause, "shim connection ended");
        let mut link = self.link();
        link.socket = None;
        link.calls.clear();
        link.execs.clear();
        None
    }

    /// Hands a reply over. Where nobody waits any more, its descriptor is closed here.
    fn answer(&self, reply: proto::Reply, fd: Option<OwnedFd>) {
        let waiting = self.link().calls.remove(&reply.seq);
        if let (Some(waiting), Some(result)) = (waiting, reply.result) {
            deliver(waiting, (result, fd));
        }
    }

    fn exec_exited(&self, exited: proto::ExecExited) {
        let waiting = self.link().execs.remove(&(exited.container_id, exited.exec_id));
        if let (Some(waiting), Some(exit)) = (waiting, exited.exit) {
            deliver(waiting, exit);
        }
    }

    /// One call without descriptors.
    async fn call(&self, name: &'static str, limit: Duration, call: request::Call) -> Result<reply::Result, Error> {
        self.call_with(name, limit, call, &[])
            .await
            .map(|(result, _none)| result)
    }

    /// One call: sends it, with descriptors where it takes some, and waits for the answer.
    async fn call_with(
        &self,
        name: &'static str,
        limit: Duration,
        call: request::Call,
        fds: &[OwnedFd],
    ) -> Result<Answer, Error> {
        let _stage = stage(|| format!("the shim's answer to {name}")).named(stage_name(name));
        let (sender, receiver) = oneshot::channel();
        let (socket, seq) = {
            let mut link = self.link();
            let Some(socket) = link.socket.clone() else {
                return Err(Error::Disconnected {
                    call: name,
                    cause: "not connected".to_owned(),
                });
            };
            link.last_seq += 1;
            let seq = link.last_seq;
            link.calls.insert(seq, sender);
            (socket, seq)
        };
        let _forget = Forget { shim: self, seq };
        let packet = proto::Request { seq, call: Some(call) }.encode_to_vec();
        let exchange = async {
            socket.send(&packet, fds).await.map_err(|error| Error::Disconnected {
                call: name,
                cause: error.to_string(),
            })?;
            receiver.await.map_err(|_closed| Error::Disconnected {
                call: name,
                cause: "the connection broke before the answer".to_owned(),
            })
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(Ok((reply::Result::Error(error), _))) => Err(Error::Refused {
                code: error.code(),
                message: error.message,
            }),
            Ok(result) => result,
            Err(_elapsed) => Err(Error::Deadline { call: name, limit }),
        }
    }

    /// Runs `RUNTIME create`; the init's host pid.
    pub async fn create(&self, create: proto::Create) -> Result<i32, Error> {
        let call = request::Call::Create(create);
        match self.call("create", RUNTIME_LIMIT, call).await? {
            reply::Result::Created(created) => Ok(created.pid),
            other => Err(unexpected("create", &other)),
        }
    }

    /// Runs `RUNTIME restore`; the init's host pid, and when it went on, nanoseconds since the epoch.
    pub async fn restore(&self, restore: proto::Restore) -> Result<(i32, i64), Error> {
        let call = request::Call::Restore(restore);
        match self.call("restore", RESTORE_LIMIT, call).await? {
            reply::Result::Restored(restored) => Ok((restored.pid, restored.started_at)),
            other => Err(unexpected("restore", &other)),
        }
    }

    /// Runs `RUNTIME start`; when the container started, nanoseconds since the epoch.
    pub async fn start(&self, id: &ContainerId) -> Result<i64, Error> {
        let call = request::Call::Start(proto::Start { id: id.to_string() });
        match self.call("start", RUNTIME_LIMIT, call).await? {
            reply::Result::Started(started) => Ok(started.started_at),
            other => Err(unexpected("start", &other)),
        }
    }

    /// Sends `signal` to the container's init, or with `all` to every process of its cgroup.
    pub async fn kill(&self, id: &ContainerId, signal: i32, all: bool, reason: &str) -> Result<(), Error> {
        let call = request::Call::Kill(proto::Kill {
            id: id.to_string(),
            signal,
            all,
            reason: reason.to_owned(),
        });
        self.done("kill", END_LIMIT, call).await
    }

    /// Runs `RUNTIME delete --force`, or joins the one that runs; the cgroup is gone afterwards.
    pub async fn delete(&self, id: &ContainerId) -> Result<(), Error> {
        let call = request::Call::Delete(proto::Delete { id: id.to_string() });
        match self.done("delete", END_LIMIT, call).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    /// Starts an exec: with `stdio` as its standard IO, or without, with a terminal that the runtime sends to the exec's
    /// console socket before this resolves. It resolves to the receiver of the exit, which fails if the connection
    /// breaks first.
    pub async fn exec(&self, exec: proto::Exec, stdio: Option<[OwnedFd; 3]>) -> Result<oneshot::Receiver<Exit>, Error> {
        let key = (exec.container_id.clone(), exec.exec_id.clone());
        let (sender, receiver) = oneshot::channel();
        // Before the call: the exit may come in before the answer is read.
        self.link().execs.insert(key.clone(), sender);
        let fds = stdio.as_ref().map_or(&[][..], |stdio| &stdio[..]);
        let call = request::Call::Exec(exec);
        match self.call_with("exec", RUNTIME_LIMIT, call, fds).await {
            Ok((reply::Result::ExecStarted(_), _)) => Ok(receiver),
            Ok((other, _)) => Err(unexpected("exec", &other)),
            Err(error) => {
                self.link().execs.remove(&key);
                Err(error)
            }
        }
    }

    /// SIGKILL to an exec and all that descends from it.
    pub async fn kill_exec(&self, container: &ContainerId, exec_id: &str) -> Result<(), Error> {
        let call = request::Call::KillExec(proto::KillExec {
            container_id: container.to_string(),
            exec_id: exec_id.to_owned(),
        });
        self.done("kill_exec", PROMPT_LIMIT, call).await
    }

    /// Joins a client to a container's standard IO. `outputs` are the writing ends of non-blocking pipes for what is
    /// asked for, stdout before stderr.
    pub async fn attach(&self, attach: proto::Attach, outputs: &[OwnedFd]) -> Result<Attached, Error> {
        let call = request::Call::Attach(attach);
        match self.call_with("attach", PROMPT_LIMIT, call, outputs).await? {
            (reply::Result::Attached(attached), fd) => Ok(Attached {
                terminal: attached.terminal,
                fd,
            }),
            (other, _) => Err(unexpected("attach", &other)),
        }
    }

    /// Opens the container's log anew.
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<(), Error> {
        let call = request::Call::ReopenLog(proto::ReopenLog { id: id.to_string() });
        self.done("reopen_log", PROMPT_LIMIT, call).await
    }

    /// The containers the shim holds now, the infra container among them.
    pub async fn held(&self) -> Result<Vec<ContainerId>, Error> {
        let call = request::Call::Connect(proto::Connect {});
        match self.call("connect", PROMPT_LIMIT, call).await? {
            reply::Result::Connected(connected) => Ok(ids(&connected)),
            other => Err(unexpected("connect", &other)),
        }
    }

    /// Ends the shim.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let call = request::Call::Shutdown(proto::Shutdown {});
        self.done("shutdown", PROMPT_LIMIT, call).await
    }

    /// Ends a shim that does not answer. Its containers are not touched by it.
    pub fn kill_process(&self) -> anyhow::Result<()> {
        process::kill(&self.sandbox, &self.directory)
    }

    async fn done(&self, name: &'static str, limit: Duration, call: request::Call) -> Result<(), Error> {
        match self.call(name, limit, call).await? {
            reply::Result::Done(_) => Ok(()),
            other => Err(unexpected(name, &other)),
        }
    }
}

/// What metrics and traces call the wait for a call's answer.
fn stage_name(call: &str) -> &'static str {
    match call {
        "create" => "shim_create",
        "start" => "shim_start_container",
        "kill" => "shim_kill",
        "delete" => "shim_delete",
        "exec" => "shim_exec",
        _ => "shim_call",
    }
}

/// Drops a call's place when its caller is done with it, however that came.
struct Forget<'a> {
    shim: &'a Shim,
    seq: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shim.link().calls.remove(&self.seq);
    }
}

fn deliver<T>(waiting: oneshot::Sender<T>, value: T) {
    if waiting.send(value).is_err() {
        tracing::trace!("whoever waited has given up");
    }
}

/// The ids in a shim's list.
pub(crate) fn ids(connected: &Connected) -> Vec<ContainerId> {
    let containers = connected.containers.iter();
    containers.filter_map(|held| held.id.parse().ok()).collect()
}

fn connected(packet: &[u8]) -> anyhow::Result<Connected> {
    let message = proto::Message::decode(packet).context("decode the shim's first message")?;
    match message.kind {
        Some(message::Kind::Reply(proto::Reply {
            result: Some(reply::Result::Connected(connected)),
            ..
        })) => Ok(connected),
        other => Err(anyhow!("the shim answered connect with {other:?}")),
    }
}

fn unexpected(call: &'static str, result: &reply::Result) -> Error {
    Error::Disconnected {
        call,
        cause: format!("the shim answered with {result:?}"),
    }
}
