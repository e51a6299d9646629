//! The cause of an exit, and the words for it. Pure.

use corten_proto::exit::{CgroupState, Details, ExitRecord, Sent};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::container::{Exited, Reason};

/// What ended a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub(crate) enum Cause {
    /// It ended itself, of its own accord or because we had asked for it.
    Exit {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Sent>,
    },
    /// A signal of ours.
    Request { signal: String, sent: Sent },
    /// The kernel, for want of memory.
    OomKiller {
        /// What had run out, as the kernel's log has it.
        scope: Scope,
    },
    /// The kernel: a system call that seccomp kills for.
    Seccomp {
        /// The kernel's log says so; else it is the signal's only usual reason.
        confirmed: bool,
    },
    /// The kernel: a fault of the process, or a limit of its own.
    Fault {
        signal: String,
        what: String,
        confirmed: bool,
    },
    /// A signal that is neither ours nor the kernel's, as far as it can be told.
    UnknownSender { signal: String },
    /// A signal, by a record that does not say what we have sent: an older shim's.
    NotNoted { signal: String },
    /// The runtime could not start it.
    StartFailed,
    /// It ended before it was started, as one does that is stopped or removed then.
    NeverStarted,
    /// Nobody saw its end.
    Lost,
}

/// Whose memory had run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scope {
    /// Its own limit was reached.
    Container,
    /// The limit of a cgroup above, the pod's for example.
    Above,
    /// The node's.
    Node,
    /// The kernel's log does not tell.
    Unknown,
}

/// Signals that the kernel has a reason to send, with that reason.
const FAULTS: [(Signal, &str); 8] = [
    (Signal::SIGSEGV, "an access to memory that it may not make"),
    (Signal::SIGBUS, "an access to memory that is not there"),
    (Signal::SIGILL, "an instruction that does not exist"),
    (Signal::SIGFPE, "an impossible calculation, as a division by zero"),
    (Signal::SIGTRAP, "a trap"),
    (Signal::SIGXCPU, "its own limit of processor time (RLIMIT_CPU)"),
    (Signal::SIGXFSZ, "its own limit of a file's size (RLIMIT_FSIZE)"),
    (Signal::SIGPIPE, "a write to a pipe that nobody reads"),
];

/// Whether an exit by this signal is explained by what we have sent.
pub(super) fn is_ours(signal: i32, oom_kills: u64, sent: Option<&Sent>) -> bool {
    oom_kills == 0 && signal != 0 && sent.is_some_and(|sent| sent.signal == signal)
}

/// Whether a record says what we have sent. Older shims wrote no such thing, and no time of creation.
pub(super) fn is_complete(record: &ExitRecord) -> bool {
    record.details.as_ref().is_some_and(|details| details.created_at > 0)
}

/// What ended the container `id` with this status, by its record.
pub(super) fn cause(id: &str, exited: &Exited, record: Option<&ExitRecord>) -> Cause {
    match (exited.reason, record) {
        (Reason::StartError, _) => return Cause::StartFailed,
        (_, Some(record)) if record.started_at == 0 && exited.started_at == 0 => return Cause::NeverStarted,
        (Reason::Unknown, _) | (_, None) => return Cause::Lost,
        _ => {}
    }
    let record = record.cloned().unwrap_or_default();
    let is_complete = is_complete(&record);
    let details = record.details.clone().unwrap_or_default();
    if record.oom_killed {
        let scope = scope(id, &details);
        return Cause::OomKiller { scope };
    }
    if record.signal == 0 {
        return Cause::Exit { after: details.sent };
    }
    match details.sent {
        Some(sent) if sent.signal == record.signal => Cause::Request {
            signal: name(sent.signal),
            sent,
        },
        _ => match by_signal(record.signal, &details.kernel) {
            Cause::UnknownSender { signal } if !is_complete => Cause::NotNoted { signal },
            cause => cause,
        },
    }
}

/// A signal that we have not sent.
fn by_signal(number: i32, kernel: &[String]) -> Cause {
    let signal = Signal::try_from(number).ok();
    let logged = |words: &[&str]| kernel.iter().any(|line| words.iter().any(|word| line.contains(word)));
    if signal == Some(Signal::SIGSYS) {
        let confirmed = logged(&["type=1326"]);
        return Cause::Seccomp { confirmed };
    }
    match FAULTS.iter().find(|(fault, _)| Some(*fault) == signal) {
        Some((_, what)) => Cause::Fault {
            signal: name(number),
            what: (*what).to_owned(),
            confirmed: logged(&["segfault", "trap", "general protection", "bad frame", "unhandled"]),
        },
        None => Cause::UnknownSender { signal: name(number) },
    }
}

/// Whose memory had run out, `id` being the container's: `oom-kill:constraint=CONSTRAINT_MEMCG,...,oom_memcg=/A,task_memcg=/A/B,...`.
fn scope(id: &str, details: &Details) -> Scope {
    let line = details
        .kernel
        .iter()
        .rev()
        .find_map(|line| line.strip_prefix("oom-kill:"));
    let Some(line) = line else {
        return Scope::Unknown;
    };
    let field = |name: &str| {
        line.split(',')
            .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    };
    match (field("constraint"), field("oom_memcg")) {
        // Execs and what the container makes itself are below its cgroup, which has its id in its name.
        (Some("CONSTRAINT_MEMCG"), Some(limited)) if limited.contains(id) => Scope::Container,
        (Some("CONSTRAINT_MEMCG"), Some(_)) => Scope::Above,
        (Some(_), _) => Scope::Node,
        _ => Scope::Unknown,
    }
}

/// A signal's name; its number where it has none.
pub(super) fn name(signal: i32) -> String {
    match Signal::try_from(signal) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_real_time) => format!("signal {signal}"),
    }
}

/// The message of a container's status. The kubelet puts it before the container's own termination message, which must
/// stand alone as often as possible: so this speaks only where the kernel ended the container.
pub(super) fn message(id: &str, record: &ExitRecord) -> String {
    let details = record.details.as_deref();
    if record.oom_killed {
        let cause = Cause::OomKiller {
            scope: details.map_or(Scope::Unknown, |details| scope(id, details)),
        };
        return words(&cause, Some(record));
    }
    let sent = details.and_then(|details| details.sent.as_ref());
    if record.signal == 0 || is_ours(record.signal, 0, sent) {
        return String::new();
    }
    let cause = by_signal(record.signal, details.map_or(&[], |details| &details.kernel));
    match cause {
        Cause::Seccomp { .. } | Cause::Fault { .. } => words(&cause, Some(record)),
        _ => String::new(),
    }
}

/// A cause in plain words, without a full stop.
pub(super) fn words(cause: &Cause, record: Option<&ExitRecord>) -> String {
    let usual = |confirmed: &bool, text: String| match confirmed {
        true => text,
        false => format!("{text}, as far as that can be told: another process can send this signal too"),
    };
    match cause {
        Cause::Exit { after } => exit_words(record.map_or(0, |record| record.code), after.as_ref(), record),
        Cause::Request { signal, sent } => {
            let reason = if sent.reason.is_empty() {
                "a request"
            } else {
                &sent.reason
            };
            format!("killed by {signal}, sent for {reason}")
        }
        Cause::OomKiller { scope } => oom_words(*scope, record),
        Cause::Seccomp { confirmed } => usual(
            confirmed,
            "killed by the kernel with SIGSYS: a system call that its seccomp profile kills for".to_owned(),
        ),
        Cause::Fault {
            signal,
            what,
            confirmed,
        } => usual(confirmed, format!("killed by the kernel with {signal}: {what}")),
        Cause::UnknownSender { signal } => format!(
            "killed by {signal}, which neither this server nor the kernel's OOM killer has sent: \
             somebody in the container or on the node has"
        ),
        Cause::NotNoted { signal } => format!(
            "killed by {signal}, and who has sent it is not known: its shim is an older one, which did not note what it sent"
        ),
        Cause::StartFailed => "could not be started".to_owned(),
        Cause::NeverStarted => "ended before it was started".to_owned(),
        Cause::Lost => "nobody saw how it ended".to_owned(),
    }
}

fn exit_words(code: i32, after: Option<&Sent>, record: Option<&ExitRecord>) -> String {
    let mut text = format!("ended by itself with exit code {code}");
    if let Some(sent) = after {
        let reason = if sent.reason.is_empty() {
            "a request"
        } else {
            &sent.reason
        };
        text += &format!(", after {} was sent for {reason}", name(sent.signal));
    } else if let Some(signal) = code.checked_sub(128).and_then(|signal| Signal::try_from(signal).ok()) {
        text += &format!(", which is how a shell tells that a command was killed by {signal}");
    }
    match record.map_or(0, |record| record.oom_kills) {
        0 => {}
        1 => text += "; before, the kernel killed another of its processes for want of memory",
        kills => text += &format!("; before, the kernel killed {kills} others of its processes for want of memory"),
    }
    text
}

fn oom_words(scope: Scope, record: Option<&ExitRecord>) -> String {
    let cgroup = record.and_then(|record| record.details.as_ref()?.cgroup.clone());
    let cgroup = cgroup.unwrap_or_default();
    let CgroupState {
        memory_limit,
        memory_peak,
        ..
    } = cgroup;
    let is_own = scope == Scope::Container || reached_its_limit(&cgroup);
    let mut text = "killed by the kernel because ".to_owned();
    text += &match (scope, memory_limit) {
        (Scope::Node, _) => "the node had no memory left".to_owned(),
        (Scope::Above, _) => "the memory limit of a cgroup above it, the pod's for example, was reached".to_owned(),
        (_, Some(limit)) if is_own => format!("its memory limit of {} was reached", size(limit)),
        _ => "there was no memory left for it".to_owned(),
    };
    if let Some(peak) = memory_peak {
        text += &format!("; at most it used {}", size(peak));
    }
    text
}

/// Whether the kernel counted that a cgroup wanted more than its limit: `oom` on v2, `failcnt` on v1.
fn reached_its_limit(cgroup: &CgroupState) -> bool {
    let events = &cgroup.memory_events;
    ["oom", "failcnt"]
        .iter()
        .any(|name| events.get(*name).is_some_and(|count| *count > 0))
}

/// Bytes in the largest unit that leaves a whole number before the point.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let Some((unit, scale)) = UNITS.iter().find(|(_, scale)| bytes >= *scale) else {
        return format!("{bytes} bytes");
    };
    let (whole, tenths) = (bytes / scale, bytes % scale * 10 / scale);
    match tenths {
        0 => format!("{whole} {unit}"),
        tenths => format!("{whole}.{tenths} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(code: i32, reason: Reason) -> Exited {
        Exited {
            code,
            reason,
            message: String::new(),
            started_at: 5,
            finished_at: 9,
        }
    }

    fn sent(signal: i32) -> Sent {
        Sent {
            signal,
            at: 6,
            reason: "StopContainer".into(),
        }
    }

    fn record(signal: i32, sent: Option<Sent>, kernel: &[&str]) -> ExitRecord {
        ExitRecord {
            signal,
            code: if signal > 0 { 128 + signal } else { 3 },
            started_at: 5,
            details: Some(Box::new(Details {
                created_at: 4,
                sent,
                kernel: kernel.iter().map(|line| (*line).to_owned()).collect(),
                ..Details::default()
            })),
            ..ExitRecord::default()
        }
    }

    #[test]
    fn causes() {
        let segfault = "a[7]: segfault at 0";
        let seccomp = "audit: type=1326 audit(1.0:1): pid=7";
        let table = [
            (record(0, None, &[]), "exit"),
            (record(0, Some(sent(15)), &[]), "exit"),
            (record(15, Some(sent(15)), &[]), "request"),
            (record(9, Some(sent(9)), &[]), "request"),
            (record(9, Some(sent(15)), &[]), "unknown-sender"),
            (record(9, None, &[]), "unknown-sender"),
            (record(11, None, &[]), "fault"),
            (record(11, None, &[segfault]), "fault"),
            (record(31, None, &[]), "seccomp"),
            (record(31, None, &[seccomp]), "seccomp"),
            (record(40, None, &[]), "unknown-sender"),
        ];
        for (record, expected) in table {
            let cause = cause("c1", &exited(record.code, Reason::Error), Some(&record));
            let json = serde_json::to_value(&cause).unwrap();
            assert_eq!(json["by"], expected, "{record:?}");
            let is_sure = json.get("confirmed").and_then(serde_json::Value::as_bool);
            let logged = !record.details.as_ref().unwrap().kernel.is_empty();
            assert_eq!(is_sure.unwrap_or(logged), logged, "{record:?}");
            assert_eq!(serde_json::from_value::<Cause>(json).unwrap(), cause);
        }
        assert_eq!(cause("c1", &exited(255, Reason::Unknown), None), Cause::Lost);
        assert_eq!(cause("c1", &exited(128, Reason::StartError), None), Cause::StartFailed);
        let mut early = (exited(137, Reason::Error), record(9, Some(sent(9)), &[]));
        (early.0.started_at, early.1.started_at) = (0, 0);
        assert_eq!(cause("c1", &early.0, Some(&early.1)), Cause::NeverStarted);
    }

    #[test]
    fn whose_memory_it_was() {
        let line = |constraint: &str, limited: &str, task: &str| {
            format!(
                "oom-kill:constraint={constraint},nodemask=(null),oom_memcg={limited},task_memcg={task},task=a,pid=7"
            )
        };
        let table = [
            (line("CONSTRAINT_MEMCG", "/p/c1", "/p/c1"), Scope::Container),
            (line("CONSTRAINT_MEMCG", "/p/c1", "/p/c1/exec-3"), Scope::Container),
            (line("CONSTRAINT_MEMCG", "/p/c1", "/p/c1/init.scope"), Scope::Container),
            (
                line("CONSTRAINT_MEMCG", "/p.slice/x-c1.scope", "/p.slice/x-c1.scope"),
                Scope::Container,
            ),
            (line("CONSTRAINT_MEMCG", "/p", "/p/c1"), Scope::Above),
            (
                "oom-kill:constraint=CONSTRAINT_NONE,global_oom,task_memcg=/p/c1".into(),
                Scope::Node,
            ),
            ("Killed process 7 (a)".into(), Scope::Unknown),
        ];
        for (line, expected) in table {
            let details = Details {
                kernel: vec![line.clone()],
                ..Details::default()
            };
            assert_eq!(scope("c1", &details), expected, "{line}");
        }
    }

    /// Where the kernel's log does not tell, its counters may; a limit alone says nothing.
    #[test]
    fn a_limit_is_blamed_only_where_it_was_reached() {
        let table = [
            (Scope::Unknown, None, "no memory left for it"),
            (Scope::Unknown, Some(("oom", 0)), "no memory left for it"),
            (Scope::Unknown, Some(("oom_kill", 1)), "no memory left for it"),
            (Scope::Unknown, Some(("oom", 1)), "its memory limit of 1 MiB"),
            (Scope::Unknown, Some(("failcnt", 7)), "its memory limit of 1 MiB"),
            (Scope::Container, None, "its memory limit of 1 MiB"),
            (Scope::Node, Some(("oom", 1)), "the node had no memory left"),
            (Scope::Above, Some(("failcnt", 1)), "a cgroup above it"),
        ];
        for (scope, event, expected) in table {
            let mut killed = record(9, None, &[]);
            killed.details.as_mut().unwrap().cgroup = Some(CgroupState {
                memory_limit: Some(1 << 20),
                memory_events: event
                    .into_iter()
                    .map(|(name, count)| (name.to_owned(), count))
                    .collect(),
                ..CgroupState::default()
            });
            let text = oom_words(scope, Some(&killed));
            assert!(text.contains(expected), "{scope:?} {event:?}: {text}");
        }
    }

    /// What was not noted is not held against anybody.
    #[test]
    fn records_of_older_shims_accuse_nobody() {
        let without = |signal| ExitRecord {
            details: None,
            ..record(signal, None, &[])
        };
        let mut examined = without(9);
        examined.details = Some(Box::default());
        for (record, expected) in [
            (without(9), "not-noted"),
            (examined, "not-noted"),
            (without(15), "not-noted"),
            (without(11), "fault"),
            (without(0), "exit"),
        ] {
            let cause = cause("c1", &exited(record.code, Reason::Error), Some(&record));
            assert_eq!(serde_json::to_value(&cause).unwrap()["by"], expected, "{record:?}");
            assert!(!words(&cause, Some(&record)).contains("somebody"));
        }
    }

    #[test]
    fn words_for_people() {
        let mut killed = record(9, None, &[]);
        killed.oom_killed = true;
        let cgroup = CgroupState {
            memory_limit: Some(64 << 20),
            memory_peak: Some((64 << 20) - (1 << 19)),
            memory_events: [("oom".to_owned(), 1)].into(),
            ..CgroupState::default()
        };
        killed.details.as_mut().unwrap().cgroup = Some(cgroup);
        let said = "killed by the kernel because its memory limit of 64 MiB was reached; at most it used 63.5 MiB";
        assert_eq!(message("c1", &killed), said);
        let of = |record: &ExitRecord| {
            words(
                &cause("c1", &exited(record.code, Reason::Error), Some(record)),
                Some(record),
            )
        };
        assert_eq!(of(&killed), said);
        assert_eq!(
            of(&record(9, Some(sent(9)), &[])),
            "killed by SIGKILL, sent for StopContainer"
        );
        assert!(of(&record(0, Some(sent(15)), &[])).ends_with("code 3, after SIGTERM was sent for StopContainer"));
        let mut shell = record(0, None, &[]);
        (shell.code, shell.oom_kills) = (139, 2);
        let text = of(&shell);
        assert!(
            text.contains("killed by SIGSEGV") && text.contains("killed 2 others"),
            "{text}"
        );
        assert!(of(&record(11, None, &[])).contains("another process can send"));
        assert!(!of(&record(11, None, &["a[7]: segfault"])).contains("another process"));
    }

    #[test]
    fn a_message_is_for_the_kernels_deeds_alone() {
        for (record, speaks) in [
            (record(0, None, &[]), false),
            (record(9, None, &[]), false),
            (record(15, Some(sent(15)), &[]), false),
            (record(11, Some(sent(11)), &[]), false),
            (record(11, None, &[]), true),
            (record(31, None, &[]), true),
        ] {
            assert_eq!(!message("c1", &record).is_empty(), speaks, "{record:?}");
        }
    }

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1536, "1.5 KiB"),
            (64 << 20, "64 MiB"),
            ((3 << 30) - 1, "2.9 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
