//! What clients do with a container while the server is killed: commands, attaching, new limits.

use std::fmt;
use std::fs;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use corten_proto::cri;
use corten_tests::cgroup;
use corten_tests::node::Node;
use corten_tests::pod::container;
use corten_tests::random::Random;
use corten_tests::stream::{STDIN, STDOUT, Stream};
use tonic::Status;

use super::{Load, is_broken};
use crate::streaming::V5;

/// How many sessions there were, and how many of them broke off.
#[derive(Default)]
pub(super) struct Counts {
    /// Commands with a terminal.
    terminals: Count,
    /// Commands without one.
    commands: Count,
    /// Attached clients.
    attached: Count,
    /// New limits; they are asked for again, so that none breaks off.
    limits: AtomicUsize,
}

#[derive(Default)]
struct Count {
    all: AtomicUsize,
    broken: AtomicUsize,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, broken) = (self.all.load(Ordering::Relaxed), self.broken.load(Ordering::Relaxed));
        write!(f, "{all} ({broken} broke off)")
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = self.limits.load(Ordering::Relaxed);
        write!(
            f,
            "{} commands with a terminal, {} without, {} attached, {limits} limits",
            self.terminals, self.commands, self.attached
        )
    }
}

/// An argument that all commands of a node's clients have, and nothing else.
pub(super) fn word(node: &Node) -> String {
    format!("command-of-{}", node.marker())
}

/// A container that answers each line, and never ends by itself.
pub(super) fn talker(random: &mut Random) -> cri::ContainerConfig {
    let mut config = container(
        "stays",
        &["sh", "-c", "while read line; do echo got $line; done; sleep 1000"],
    );
    config.stdin = true;
    config.tty = random.between(0, 2) == 0;
    config
}

impl Load<'_> {
    /// Does something with a [`talker`] that has a terminal, or none.
    pub(super) fn session(&self, id: &str, tty: bool, random: &mut Random) {
        match random.between(0, 4) {
            0 => self.command(id, true),
            1 => self.command(id, false),
            2 => self.attach(id, tty, random),
            _ => self.limit(id, random),
        }
    }

    /// A command that reads, and takes its time.
    fn command(&self, id: &str, tty: bool) {
        let script = "read line; echo got $line; sleep 0.3; echo end";
        let request = cri::ExecRequest {
            container_id: id.to_owned(),
            cmd: ["sh", "-c", script, &word(self.node)].map(str::to_owned).to_vec(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        };
        let count = if tty {
            &self.sessions.terminals
        } else {
            &self.sessions.commands
        };
        let url = || Ok(self.node.cri.exec(request.clone())?.url);
        let received = self.stream("Exec", count, url, |mut stream| {
            stream.try_send(STDIN, b"line\n")?;
            stream.try_rest()
        });
        if let Some(received) = received {
            assert!(received.text(STDOUT).contains("got line"), "{received:?}");
            assert!(received.text(STDOUT).trim_end().ends_with("end"), "{received:?}");
            assert_eq!(received.status()["status"], "Success", "{received:?}");
        }
    }

    /// A client that speaks to the container and vanishes.
    fn attach(&self, id: &str, tty: bool, random: &mut Random) {
        let request = cri::AttachRequest {
            container_id: id.to_owned(),
            stdin: true,
            stdout: true,
            stderr: !tty,
            tty,
        };
        let line = format!("line-{}", random.next());
        let url = || Ok(self.node.cri.attach(request.clone())?.url);
        self.stream("Attach", &self.sessions.attached, url, |mut stream| {
            stream.try_send(STDIN, format!("{line}\n").as_bytes())?;
            stream.try_wait_for(STDOUT, &format!("got {line}"))
        });
    }

    /// A stream from its request to its end. None where the server has been killed meanwhile.
    fn stream<T>(
        &self,
        what: &str,
        count: &Count,
        url: impl FnOnce() -> Result<String, Status>,
        talk: impl FnOnce(Stream) -> Result<T>,
    ) -> Option<T> {
        let _calling = self.calls.read().unwrap_or_else(PoisonError::into_inner);
        let before = self.kills.load(Ordering::SeqCst);
        count.all.fetch_add(1, Ordering::Relaxed);
        let talked = match url() {
            Ok(url) => Stream::open(self.node, &url, V5).and_then(talk),
            Err(status) if is_broken(&status) => {
                count.broken.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            Err(status) => panic!("{what}: {status:?}"),
        };
        if let Err(error) = &talked {
            // An odd number is a kill under way.
            let killed = before % 2 == 1 || self.kills.load(Ordering::SeqCst) > before;
            assert!(killed, "{what}: {error:#}");
            count.broken.fetch_add(1, Ordering::Relaxed);
        }
        talked.ok()
    }

    /// Another limit, which is in force once it has been answered.
    fn limit(&self, id: &str, random: &mut Random) {
        let bytes = i64::try_from(random.between(64, 128) << 20).expect("small");
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(cri::LinuxContainerResources {
                memory_limit_in_bytes: bytes,
                ..Default::default()
            }),
            ..Default::default()
        };
        self.call("UpdateContainerResources", || {
            self.node.cri.update_container_resources(request.clone())
        });
        let shown = self.status(id).resources.and_then(|it| it.linux).unwrap_or_default();
        let name = if cgroup::unified() {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        let path = cgroup::directory("memory", &format!("/{}/{id}", self.node.marker())).join(name);
        let set = fs::read_to_string(path).expect("a limit");
        assert_eq!(
            (shown.memory_limit_in_bytes, set.trim()),
            (bytes, bytes.to_string().as_str())
        );
        self.sessions.limits.fetch_add(1, Ordering::Relaxed);
    }
}
