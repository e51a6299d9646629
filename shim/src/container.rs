//! One container as the shim holds it, and the states it goes through.
//!
//! ```text
//!   Creating -> Created -> Running -> Draining -> Exited
//!                  |                     ^
//!                  +---------------------+          ended before it was started
//! ```
//! One that is restored is Created for no longer than it takes to say so.
//! Transitions are pure. Draining is the time between the end of init and the end of its output, and nobody outside
//! sees it: the exit is told when the log is complete and the exit record is on disk.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use corten_proto::exit::{Details, ExitRecord, Sent, Tail};
use corten_proto::id::ContainerId;
use corten_proto::shim;
use corten_proto::shim::container::State as Reported;

use crate::cage::Site;
use crate::clock;
use crate::events::Requester;
use crate::io::{Io, Layout, Stdin};
use crate::log::{DEFAULT_LINE, Location};
use crate::oom::{self, Oom};
use crate::process::Ended;

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// `RUNTIME create` is under way.
    Creating,
    /// Init waits for the start.
    Created {
        pid: i32,
    },
    Running {
        pid: i32,
        started_at: i64,
    },
    /// Init has ended; what it wrote is still being read, until this moment at the latest.
    Draining {
        record: ExitRecord,
        until: Instant,
    },
    Exited {
        record: ExitRecord,
    },
}

impl State {
    /// `RUNTIME create` has succeeded.
    pub(crate) fn created(self, pid: i32) -> State {
        match self {
            State::Creating => State::Created { pid },
            other => other,
        }
    }

    /// `RUNTIME start` has succeeded. Init may have ended before that was known; then it started before it ended.
    pub(crate) fn started(self, at_ns: i64) -> State {
        match self {
            State::Created { pid } => State::Running { pid, started_at: at_ns },
            State::Draining { record, until } if record.started_at == 0 => {
                let started_at = at_ns.min(record.finished_at);
                State::Draining {
                    record: ExitRecord { started_at, ..record },
                    until,
                }
            }
            other => other,
        }
    }

    /// Init has ended. A second end changes nothing.
    pub(crate) fn ended(self, ended: Ended, oom: Oom, at_ns: i64, until: Instant) -> State {
        let (pid, started_at) = match self {
            State::Created { pid } => (pid, 0),
            State::Running { pid, started_at } => (pid, started_at),
            other => return other,
        };
        let record = ExitRecord {
            pid,
            code: ended.code,
            signal: ended.signal,
            started_at,
            finished_at: at_ns,
            oom_killed: oom.killed,
            oom_kills: oom.kills,
            output_lost: 0,
            details: None,
        };
        State::Draining { record, until }
    }

    /// What was learnt at the end of init.
    pub(crate) fn detailed(self, details: Details) -> State {
        match self {
            State::Draining { mut record, until } => {
                record.details = Some(Box::new(details));
                State::Draining { record, until }
            }
            other => other,
        }
    }

    /// Whether its last words may tell why it ended: not where all went well.
    pub(crate) fn wants_tail(&self) -> bool {
        matches!(self, State::Draining { record, .. } if record.code != 0)
    }

    /// All output has been read, or waited for long enough. So many bytes of it are missing in the log, which ends so.
    pub(crate) fn drained(self, output_lost: u64, tail: Option<Tail>) -> State {
        match self {
            State::Draining { mut record, .. } => {
                record.output_lost = output_lost;
                if let Some(details) = &mut record.details {
                    details.tail = tail;
                }
                State::Exited { record }
            }
            other => other,
        }
    }

    /// The record is on disk: the details are not kept beside it.
    pub(crate) fn recorded(self) -> State {
        match self {
            State::Exited { mut record } => {
                record.details = None;
                State::Exited { record }
            }
            other => other,
        }
    }

    /// What the state says in the protocol's report of its container.
    fn report(&self, id: &ContainerId) -> shim::Container {
        let (state, pid, started_at, exit) = match self {
            State::Creating => (Reported::Creating, 0, 0, None),
            State::Created { pid } => (Reported::Created, *pid, 0, None),
            State::Running { pid, started_at } => (Reported::Running, *pid, *started_at, None),
            State::Draining { record, .. } if record.started_at == 0 => (Reported::Created, record.pid, 0, None),
            State::Draining { record, .. } => (Reported::Running, record.pid, record.started_at, None),
            State::Exited { record } => (Reported::Exited, record.pid, record.started_at, Some(record.exit())),
        };
        shim::Container {
            id: id.to_string(),
            state: state.into(),
            pid,
            started_at,
            exit,
            output_lost: 0,
        }
    }

    /// The state's name in an error.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            State::Creating => "being created",
            State::Created { .. } => "created",
            State::Running { .. } => "running",
            State::Draining { .. } | State::Exited { .. } => "exited",
        }
    }
}

/// How far `RUNTIME delete` has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    NotTried,
    /// The shim's own attempt after the exit failed; a Delete request tries again.
    Failed,
    Done,
}

/// A request that waits for its turn: the calls that change a container run one after the other.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) requester: Requester,
    pub(crate) task: Task,
}

/// The calls that change a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Start,
    /// The reason is for the exit record.
    Kill {
        signal: i32,
        all: bool,
        reason: String,
    },
    Delete,
}

/// A container and all that belongs to it, its init apart, which is in the table of children.
pub(crate) struct Container {
    pub(crate) bundle: PathBuf,
    pub(crate) exit_record: PathBuf,
    pub(crate) state: State,
    /// Nanoseconds since the epoch; 0 while it is being created.
    pub(crate) created_at: i64,
    pub(crate) sent: Notes,
    pub(crate) io: Io,
    /// Missing where the cgroup could not be read: then no exit is an OOM kill.
    pub(crate) oom: Option<oom::Watch>,
    /// Where its execs get cgroups.
    pub(crate) site: Option<Site>,
    pub(crate) queue: VecDeque<Pending>,
    pub(crate) removal: Removal,
    /// Who waits for the removal.
    pub(crate) waiters: Vec<Requester>,
}

/// The last signals to an init that went through here. Two: it may die of the first when the second is on its way.
#[derive(Debug, Default)]
pub(crate) struct Notes(Vec<Sent>);

impl Notes {
    fn add(&mut self, sent: Sent) {
        if self.0.len() == 2 {
            self.0.remove(0);
        }
        self.0.push(sent);
    }

    /// The last one was not sent after all.
    pub(crate) fn take_back(&mut self) {
        self.0.pop();
    }

    /// The one that has ended the init, of this signal; where none is, the last.
    fn take(&mut self, signal: i32) -> Option<Sent> {
        let mut all = std::mem::take(&mut self.0);
        let place = all.iter().rposition(|sent| sent.signal == signal);
        match place {
            Some(place) => Some(all.swap_remove(place)),
            None => all.pop(),
        }
    }
}

/// A request to create a container, checked.
pub(crate) struct Plan {
    pub(crate) id: ContainerId,
    pub(crate) bundle: PathBuf,
    pub(crate) exit_record: PathBuf,
    pub(crate) layout: Layout,
    /// What it goes on from; nothing where it begins anew.
    pub(crate) checkpoint: Option<Checkpoint>,
}

/// CRIU's directories.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) images: PathBuf,
    pub(crate) work: PathBuf,
    /// CRIU itself; nothing where the runtime is to look for it.
    pub(crate) criu: Option<PathBuf>,
}

impl Plan {
    /// The same for a container that is restored.
    pub(crate) fn parse_restore(request: shim::Restore) -> Result<Plan> {
        let plan = Plan::parse(request.create.context("create: must be there")?)?;
        Ok(Plan {
            checkpoint: Some(Checkpoint {
                images: absolute("images", request.images)?,
                work: absolute("work", request.work)?,
                criu: match request.criu.is_empty() {
                    true => None,
                    false => Some(absolute("criu", request.criu)?),
                },
            }),
            ..plan
        })
    }

    /// Every check that needs no system call. An error names the field, the value and the rule.
    pub(crate) fn parse(request: shim::Create) -> Result<Plan> {
        let id: ContainerId = request.id.parse()?;
        let bundle = absolute("bundle", request.bundle)?;
        let console = request.terminal.then(|| bundle.join("console.sock"));
        Ok(Plan {
            id,
            exit_record: absolute("exit_record", request.exit_record)?,
            layout: Layout {
                console,
                stdin: match (request.stdin, request.stdin_once) {
                    (false, _) => Stdin::Empty,
                    (true, false) => Stdin::Open,
                    (true, true) => Stdin::Once,
                },
                log: Location::parse(&request.log_directory, &request.log_path)?,
                max_line: max_line(request.max_log_line)?,
                log_limit: log_limit(request.log_limit)?,
            },
            bundle,
            checkpoint: None,
        })
    }
}

/// The longest piece of a line in a log, as a request has it.
fn max_line(value: u32) -> Result<usize> {
    let rule = "must be 256 to 1048576, or 0 for 16384";
    ensure!(
        value == 0 || (256..=1024 * 1024).contains(&value),
        "max_log_line {value}: {rule}"
    );
    Ok(if value == 0 { DEFAULT_LINE } else { value as usize })
}

/// The longest file of a log, as a request has it.
fn log_limit(value: u64) -> Result<Option<u64>> {
    const LEAST: u64 = 64 * 1024;
    ensure!(
        value == 0 || value >= LEAST,
        "log_limit {value}: must be at least {LEAST}, or 0 for none"
    );
    Ok((value > 0).then_some(value))
}

/// A path from a request, which must be absolute: the shim's working directory is `/` and means nothing.
pub(crate) fn absolute(field: &str, value: String) -> Result<PathBuf> {
    ensure!(!value.contains('\0'), "{field} {value:?}: must hold no NUL byte");
    let path = PathBuf::from(value);
    ensure!(
        path.is_absolute(),
        "{field} {:?}: must be an absolute path",
        path.display().to_string()
    );
    Ok(path)
}

impl Container {
    pub(crate) fn new(bundle: PathBuf, exit_record: PathBuf, io: Io) -> Container {
        Container {
            bundle,
            exit_record,
            state: State::Creating,
            created_at: 0,
            sent: Notes::default(),
            io,
            oom: None,
            site: None,
            queue: VecDeque::new(),
            removal: Removal::NotTried,
            waiters: Vec::new(),
        }
    }

    /// The container as the protocol reports it.
    pub(crate) fn report(&self, id: &ContainerId) -> shim::Container {
        shim::Container {
            output_lost: self.io.lost(),
            ..self.state.report(id)
        }
    }

    /// A signal goes to its init, from here. Before it is sent: its end may be known before the answer.
    pub(crate) fn note_sent(&mut self, signal: i32, reason: String) {
        if matches!(self.state, State::Created { .. } | State::Running { .. }) {
            let at = clock::now_ns();
            self.sent.add(Sent { signal, at, reason });
        }
    }

    /// What is known beside its exit code, now that init has ended and its cgroup is still there.
    pub(crate) fn details(&mut self, ended: Ended) -> Details {
        Details {
            created_at: self.created_at,
            core_dumped: ended.dumped,
            sent: self.sent.take(ended.signal),
            cgroup: self.oom.as_ref().and_then(oom::Watch::state),
            tail: None,
            kernel: Vec::new(),
        }
    }

    /// Takes the OOM kills there have been by now as others', if init is well.
    pub(crate) fn look_for_oom(&mut self) {
        if let (Some(oom), State::Created { pid } | State::Running { pid, .. }) = (&mut self.oom, &self.state) {
            oom.look(*pid);
        }
    }

    /// Moves the state through one transition.
    pub(crate) fn transition(&mut self, step: impl FnOnce(State) -> State) {
        let state = std::mem::replace(&mut self.state, State::Creating);
        self.state = step(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDED: Ended = Ended {
        code: 137,
        signal: 9,
        dumped: false,
    };
    const OOM: Oom = Oom { killed: true, kills: 2 };

    /// It may have died of the first when the second came, and a signal that was not sent ends nobody.
    #[test]
    fn the_signal_that_ended_it_is_noted() {
        // The signals that were sent, how many of them failed, what ended it, and what is noted.
        for (signals, failed, ended, expected) in [
            (&[15][..], 0, 15, Some(15)),
            (&[15, 9], 0, 15, Some(15)),
            (&[15, 9], 0, 9, Some(9)),
            (&[1, 15, 9], 0, 0, Some(9)),
            (&[1, 15, 9], 0, 1, Some(9)),
            (&[9], 1, 9, None),
            (&[15, 9], 1, 9, Some(15)),
            (&[], 1, 9, None),
        ] {
            let mut notes = Notes::default();
            for &signal in signals {
                notes.add(Sent {
                    signal,
                    ..Sent::default()
                });
            }
            (0..failed).for_each(|_| notes.take_back());
            let noted = notes.take(ended).map(|sent| sent.signal);
            assert_eq!(noted, expected, "{signals:?} {failed} {ended}");
        }
    }

    fn record(started_at: i64) -> ExitRecord {
        ExitRecord {
            pid: 7,
            code: 137,
            signal: 9,
            started_at,
            finished_at: 50,
            oom_killed: true,
            oom_kills: 2,
            output_lost: 0,
            details: None,
        }
    }

    #[test]
    fn details_are_written_and_not_kept() {
        let details = Details {
            created_at: 3,
            ..Details::default()
        };
        let until = Instant::now();
        let draining = State::Running { pid: 7, started_at: 5 }
            .ended(ENDED, OOM, 50, until)
            .detailed(details.clone());
        let tail = Tail {
            stream: "stderr".into(),
            text: "help".into(),
        };
        let State::Exited { record } = draining.started(40).drained(0, Some(tail.clone())) else {
            panic!("not exited");
        };
        let expected = Details {
            tail: Some(tail),
            ..details.clone()
        };
        assert_eq!(record.details.as_deref(), Some(&expected));
        let exited = State::Exited { record }.recorded();
        assert_eq!(
            exited,
            State::Exited {
                record: self::record(5)
            }
        );
        assert_eq!(State::Creating.detailed(details), State::Creating);
    }

    #[test]
    fn transitions() {
        let until = Instant::now();
        let created = || State::Created { pid: 7 };
        let running = || State::Running { pid: 7, started_at: 5 };
        let draining = |started_at| State::Draining {
            record: record(started_at),
            until,
        };
        let exited = |started_at| State::Exited {
            record: record(started_at),
        };
        let end = |state: State| state.ended(ENDED, OOM, 50, until);
        for (what, actual, expected) in [
            ("create", State::Creating.created(7), created()),
            ("create again", running().created(8), running()),
            ("restore", State::Creating.created(7).started(5), running()),
            ("start", created().started(5), running()),
            ("start again", running().started(6), running()),
            ("end of a running one", end(running()), draining(5)),
            ("end of a created one", end(created()), draining(0)),
            (
                "second end",
                draining(5).ended(Ended::new(Some(0), None, false), Oom::default(), 60, until),
                draining(5),
            ),
            ("end known before the start", draining(0).started(40), draining(40)),
            ("start known after the end", draining(0).started(60), draining(50)),
            ("drained", draining(5).drained(0, None), exited(5)),
            ("drained while running", running().drained(9, None), running()),
            ("start after the exit", exited(0).started(60), exited(0)),
        ] {
            assert_eq!(actual, expected, "{what}");
        }
    }

    #[test]
    fn reports() {
        let id: ContainerId = "c".parse().expect("valid id");
        let until = Instant::now();
        let state = |state: &State| {
            let report = state.report(&id);
            (report.state(), report.pid, report.started_at)
        };
        assert_eq!(state(&State::Creating), (Reported::Creating, 0, 0));
        assert_eq!(state(&State::Created { pid: 7 }), (Reported::Created, 7, 0));
        // An exit is not reported before its record is on disk.
        let draining = State::Running { pid: 7, started_at: 5 }.ended(ENDED, OOM, 50, until);
        assert_eq!(state(&draining), (Reported::Running, 7, 5));
        let exited = draining.drained(9, None);
        assert_eq!(state(&exited), (Reported::Exited, 7, 5));
        let exit = exited.report(&id).exit.expect("an exited container has an exit");
        assert_eq!(
            (exit.code, exit.signal, exit.finished_at, exit.oom_killed),
            (137, 9, 50, true)
        );
        assert_eq!((exit.oom_kills, exit.output_lost), (2, 9));
    }

    #[test]
    fn limits_of_logs() {
        for (value, expected) in [(0, Some(None)), (64 * 1024, Some(Some(64 * 1024))), (65535, None)] {
            assert_eq!(log_limit(value).ok(), expected, "{value}");
        }
        let error = log_limit(1).expect_err("too little").to_string();
        assert!(error.contains("log_limit 1: "), "{error}");
    }

    fn good() -> shim::Create {
        shim::Create {
            id: "c".into(),
            bundle: "/b".into(),
            exit_record: "/e".into(),
            ..Default::default()
        }
    }

    #[test]
    fn requests_to_restore() {
        let restore = |images: &str, work: &str, create| shim::Restore {
            create,
            images: images.into(),
            work: work.into(),
            criu: String::new(),
        };
        let plan = Plan::parse_restore(restore("/i", "/w", Some(good())));
        assert!(plan.is_ok_and(|plan| plan.checkpoint.is_some()));
        for (request, field) in [
            (restore("i", "/w", Some(good())), "images"),
            (restore("/i", "", Some(good())), "work"),
            (restore("/i", "/w", None), "create"),
        ] {
            let error = Plan::parse_restore(request).err().expect("refused").to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn requests_to_create() {
        assert!(Plan::parse(good()).is_ok());
        let refused = |request: shim::Create| Plan::parse(request).err().expect("refused").to_string();
        for max_log_line in [256, 1024 * 1024] {
            let request = shim::Create { max_log_line, ..good() };
            assert!(Plan::parse(request).is_ok(), "{max_log_line}");
        }
        for (request, field) in [
            (
                shim::Create {
                    max_log_line: 255,
                    ..good()
                },
                "max_log_line",
            ),
            (
                shim::Create {
                    max_log_line: 1024 * 1024 + 1,
                    ..good()
                },
                "max_log_line",
            ),
            (
                shim::Create {
                    id: "../c".into(),
                    ..good()
                },
                "container id",
            ),
            (
                shim::Create {
                    bundle: "b".into(),
                    ..good()
                },
                "bundle",
            ),
            (
                shim::Create {
                    exit_record: String::new(),
                    ..good()
                },
                "exit_record",
            ),
            (
                shim::Create {
                    log_path: "../l".into(),
                    log_directory: "/l".into(),
                    ..good()
                },
                "log_path",
            ),
            (
                shim::Create {
                    log_path: "l".into(),
                    ..good()
                },
                "log_directory",
            ),
        ] {
            let error = refused(request);
            assert!(error.contains(field), "{error}");
        }
    }
}
