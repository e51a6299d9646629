//! Is what CRIU has made what the bundle says? Looked at while every task is stopped, before any runs.
//!
//! The rule for identity and capabilities is what the bundle's own process could have become. A process of root's may
//! have dropped anything, and gets back what its bounding set allows whenever it executes a program, unless
//! no_new_privs forbids it. One of another user stays that user, with the capabilities that are ambient, the only ones that
//! were left to it when its program was executed: that a program with the set-user-ID bit could have made it more is not
//! taken for granted.
//!
//! Fields are those of proc(5): /proc/TID/status, ns, cgroup, attr. Mounts are looked at in `mounts.rs`.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{LinuxNamespaceType, PosixRlimitType, Process, Spec};
use rustix::thread::CapabilitySet;

use super::dump::user_namespace;
use super::external::{self, External};
use super::images::Filter;
use super::mounts;
use crate::bundle::Bundle;
use crate::capabilities::{self, Capabilities};
use crate::cgroup::Cgroup;
use crate::namespaces;

/// Every namespace there is, but for time: CRIU makes one for every restored container, so that its clocks go on.
const NAMESPACES: [LinuxNamespaceType; 7] = [
    LinuxNamespaceType::User,
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Network,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Uts,
    LinuxNamespaceType::Cgroup,
];

/// Everything about a restored container, of which `pid` is the init.
pub fn container(
    pid: i32,
    bundle: &Bundle,
    externals: &[External],
    cgroup: &Cgroup,
    profile: Option<&str>,
) -> Result<()> {
    let spec = &bundle.spec;
    namespaces_of(pid, spec).with_context(|| format!("task {pid}"))?;
    let allowed = Allowed::new(bundle.process()?, pid, spec)?;
    for task in tasks(pid)? {
        let what = || format!("task {task}");
        same_namespaces(task, pid).with_context(what)?;
        let path = format!("/proc/{task}/status");
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let status = Status::parse(&text).with_context(|| path.clone())?;
        allowed.check(&status).with_context(what)?;
        limits(task, bundle.process()?, &allowed).with_context(what)?;
        label(task, profile).with_context(what)?;
        ensure!(cgroup.holds(task)?, "task {task} is not in the container's cgroup");
    }
    mounts::check(pid, bundle, externals)
}

/// Every thread of a process and of those that descend from it, by the host's ids.
pub fn tasks(pid: i32) -> Result<Vec<i32>> {
    let mut all = Vec::new();
    let mut processes = vec![pid];
    while let Some(process) = processes.pop() {
        let path = format!("/proc/{process}/task");
        for entry in fs::read_dir(&path).with_context(|| format!("read {path}"))? {
            let name = entry.with_context(|| format!("read {path}"))?.file_name();
            let thread: i32 = name.to_string_lossy().parse().with_context(|| path.clone())?;
            all.push(thread);
            let path = format!("{path}/{thread}/children");
            let children = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            for child in children.split_ascii_whitespace() {
                processes.push(child.parse().with_context(|| path.clone())?);
            }
        }
    }
    Ok(all)
}

/// What a thread is.
#[derive(Debug, Default, PartialEq, Eq)]
struct Status {
    /// Real, effective, saved, of the filesystem.
    uids: Vec<u32>,
    gids: Vec<u32>,
    groups: Vec<u32>,
    /// `CapInh` and the others, by the last three letters.
    sets: BTreeMap<String, u64>,
    no_new_privs: bool,
    /// A filter is in force.
    filtered: bool,
}

impl Status {
    fn parse(text: &str) -> Result<Status> {
        let numbers = |value: &str| -> Result<Vec<u32>> {
            let words = value.split_ascii_whitespace();
            words
                .map(|word| word.parse().with_context(|| format!("{value:?}")))
                .collect()
        };
        let mut status = Status::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match key {
                "Uid" => status.uids = numbers(value)?,
                "Gid" => status.gids = numbers(value)?,
                "Groups" => status.groups = numbers(value)?,
                "NoNewPrivs" => status.no_new_privs = value == "1",
                "Seccomp" => status.filtered = value == "2",
                _ => {
                    if let Some(set) = key.strip_prefix("Cap") {
                        let bits = u64::from_str_radix(value, 16).with_context(|| format!("{key}: {value:?}"))?;
                        status.sets.insert(set.to_owned(), bits);
                    }
                }
            }
        }
        let complete = status.uids.len() == 4 && status.gids.len() == 4 && status.sets.len() == 5;
        ensure!(complete, "Uid, Gid or a capability set is missing");
        Ok(status)
    }
}

/// What a thread may be at most.
#[derive(Debug)]
struct Allowed {
    /// The only user it may be.
    uid: Option<u32>,
    gid: Option<u32>,
    groups: HashSet<u32>,
    /// Permitted, and so effective and ambient.
    permitted: CapabilitySet,
    inheritable: CapabilitySet,
    bounding: CapabilitySet,
    no_new_privs: bool,
    filtered: bool,
}

impl Allowed {
    fn new(process: &Process, pid: i32, spec: &Spec) -> Result<Allowed> {
        let grantable = capabilities::grantable(user_namespace(spec))?;
        let (sets, _) = Capabilities::from_spec(process.capabilities().as_ref(), grantable);
        let user = process.user();
        let uid = namespaces::host_uid(pid, user.uid())?.context("process.user.uid: not mapped")?;
        let gid = |gid: u32| namespaces::host_gid(pid, gid)?.context("process.user: a gid is not mapped");
        let groups = user
            .additional_gids()
            .iter()
            .flatten()
            .chain([&user.gid()])
            .map(|&id| gid(id))
            .collect::<Result<_>>()?;
        Ok(Allowed::from_parts(
            &sets,
            process,
            uid,
            gid(user.gid())?,
            groups,
            spec_filters(spec),
        ))
    }

    fn from_parts(
        sets: &Capabilities,
        process: &Process,
        uid: u32,
        gid: u32,
        groups: HashSet<u32>,
        filtered: bool,
    ) -> Allowed {
        let no_new_privs = process.no_new_privileges() == Some(true);
        let root = process.user().uid() == 0;
        // capabilities(7), "Transformation of capabilities during execve()".
        let permitted = match (root, no_new_privs) {
            (true, false) => sets.permitted | sets.bounding,
            (true, true) => sets.permitted,
            (false, _) => sets.ambient,
        };
        let only = |capability: CapabilitySet, id: u32| (!permitted.contains(capability)).then_some(id);
        Allowed {
            uid: only(CapabilitySet::SETUID, uid),
            gid: only(CapabilitySet::SETGID, gid),
            groups,
            permitted,
            // A process may add to it what it has and is bounded by.
            inheritable: sets.inheritable | (permitted & sets.bounding),
            bounding: sets.bounding,
            no_new_privs,
            filtered,
        }
    }

    fn check(&self, status: &Status) -> Result<()> {
        // Who it is first: the wrong user has the wrong capabilities too.
        let same = |ids: &[u32], only: Option<u32>| only.is_none_or(|only| ids.iter().all(|&id| id == only));
        ensure!(
            same(&status.uids, self.uid),
            "process.user.uid: it has {:?}",
            status.uids
        );
        ensure!(
            same(&status.gids, self.gid),
            "process.user.gid: it has {:?}",
            status.gids
        );
        let foreign = status.groups.iter().find(|group| !self.groups.contains(group));
        if let (Some(group), Some(_)) = (foreign, self.gid) {
            bail!("process.user.additionalGids: it has {group}");
        }
        for (set, limit) in [
            ("Prm", self.permitted),
            ("Eff", self.permitted),
            ("Inh", self.inheritable),
            ("Bnd", self.bounding),
            ("Amb", self.permitted),
        ] {
            let has = CapabilitySet::from_bits_retain(status.sets.get(set).copied().unwrap_or(u64::MAX));
            let more = has - limit;
            ensure!(more.is_empty(), "process.capabilities: it has {more:?} in Cap{set}");
        }
        ensure!(
            status.no_new_privs || !self.no_new_privs,
            "process.noNewPrivileges: it has them still"
        );
        ensure!(status.filtered || !self.filtered, "linux.seccomp: it has no filter");
        Ok(())
    }
}

/// No limit of a task is above what the specification says, which only CAP_SYS_RESOURCE could have raised it to.
fn limits(task: i32, process: &Process, allowed: &Allowed) -> Result<()> {
    if process.rlimits().is_none() || allowed.permitted.contains(CapabilitySet::SYS_RESOURCE) {
        return Ok(());
    }
    let path = format!("/proc/{task}/limits");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    check_limits(&text, process).with_context(|| path.clone())
}

fn check_limits(text: &str, process: &Process) -> Result<()> {
    for limit in process.rlimits().iter().flatten() {
        let name = limit_name(limit.typ());
        let values = text.lines().find_map(|line| line.strip_prefix(name));
        // Soft, hard, unit; `unlimited` is no number, and the largest there is.
        let hard = values.and_then(|values| values.split_ascii_whitespace().nth(1));
        let hard = hard.with_context(|| format!("{name} is missing"))?;
        let above = hard.parse().unwrap_or(u64::MAX) > limit.hard();
        ensure!(!above, "process.rlimits: it has {hard} for {}", limit.typ());
    }
    Ok(())
}

/// What /proc/PID/limits calls it.
fn limit_name(kind: PosixRlimitType) -> &'static str {
    match kind {
        PosixRlimitType::RlimitCpu => "Max cpu time",
        PosixRlimitType::RlimitFsize => "Max file size",
        PosixRlimitType::RlimitData => "Max data size",
        PosixRlimitType::RlimitStack => "Max stack size",
        PosixRlimitType::RlimitCore => "Max core file size",
        PosixRlimitType::RlimitRss => "Max resident set",
        PosixRlimitType::RlimitNproc => "Max processes",
        PosixRlimitType::RlimitNofile => "Max open files",
        PosixRlimitType::RlimitMemlock => "Max locked memory",
        PosixRlimitType::RlimitAs => "Max address space",
        PosixRlimitType::RlimitLocks => "Max file locks",
        PosixRlimitType::RlimitSigpending => "Max pending signals",
        PosixRlimitType::RlimitMsgqueue => "Max msgqueue size",
        PosixRlimitType::RlimitNice => "Max nice priority",
        PosixRlimitType::RlimitRtprio => "Max realtime priority",
        PosixRlimitType::RlimitRttime => "Max realtime timeout",
    }
}

/// The specification has a filter.
fn spec_filters(spec: &Spec) -> bool {
    spec.linux().as_ref().is_some_and(|linux| linux.seccomp().is_some())
}

/// Every row of filters in the images begins with the bundle's own, bit by bit: one with other rules would pass for it
/// afterwards. Those that programs have added only take away.
pub fn check_filters(expected: Option<&[u8]>, filters: &[Filter]) -> Result<()> {
    let Some(expected) = expected else {
        return Ok(());
    };
    let mut first = filters.iter().filter(|filter| filter.before.is_none()).peekable();
    ensure!(first.peek().is_some(), "linux.seccomp: the images have no filter");
    ensure!(
        first.all(|filter| filter.program == expected),
        "linux.seccomp: the images have another filter than the bundle's"
    );
    Ok(())
}

/// The label that restored tasks get: the flag's, else that of the specification.
pub fn profile(asked: Option<&str>, process: &Process) -> Result<Option<String>> {
    if let Some(asked) = asked {
        let named = asked.split_once(':');
        let known = named.is_some_and(|(kind, name)| matches!(kind, "apparmor" | "selinux") && !name.is_empty());
        ensure!(known, "--lsm-profile {asked:?}: must be apparmor:NAME or selinux:LABEL");
        return Ok(Some(asked.to_owned()));
    }
    let given = |kind: &str, name: &Option<String>| {
        let name = name.as_deref().filter(|name| !name.is_empty())?;
        Some(format!("{kind}:{name}"))
    };
    Ok(given("apparmor", process.apparmor_profile()).or_else(|| given("selinux", process.selinux_label())))
}

/// The task has this label; without one asked for, whatever it has takes away.
fn label(task: i32, profile: Option<&str>) -> Result<()> {
    let Some((_, name)) = profile.and_then(|profile| profile.split_once(':')) else {
        return Ok(());
    };
    let path = format!("/proc/{task}/attr/current");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let own = text.trim_end_matches(['\n', '\0']);
    // AppArmor says the mode too: `name (enforce)`.
    let matches = own == name || own.strip_prefix(name).is_some_and(|mode| mode.starts_with(" ("));
    ensure!(matches, "the label is {own:?}, not {name:?}");
    Ok(())
}

/// init is in the namespaces the specification lists, and in the runtime's where it does not.
fn namespaces_of(pid: i32, spec: &Spec) -> Result<()> {
    let process = pid.to_string();
    for kind in NAMESPACES {
        let name = namespaces::proc_name(kind);
        let own = inode(&process, name)?;
        let runtime = inode("self", name)?;
        let joined = external::joined(spec).into_iter().find(|(joined, ..)| *joined == kind);
        let expected = match joined {
            Some((_, _, path)) => {
                let meta = fs::metadata(&path).with_context(|| format!("stat {}", path.display()))?;
                Some(meta.ino())
            }
            None if namespaces::declares(spec, kind) => None,
            None => Some(runtime),
        };
        let right = expected.map_or(own != runtime, |expected| own == expected);
        ensure!(
            right,
            "linux.namespaces: it is in another {name} namespace than the bundle says"
        );
    }
    if user_namespace(spec)
        && external::joined(spec)
            .iter()
            .all(|(kind, ..)| *kind != LinuxNamespaceType::User)
    {
        namespaces::check_mappings(spec, pid)?;
    }
    Ok(())
}

/// A task is in the mount and user namespaces of init, and nowhere in the host's where init is not.
fn same_namespaces(task: i32, init: i32) -> Result<()> {
    let (task, init) = (task.to_string(), init.to_string());
    for kind in NAMESPACES {
        let name = namespaces::proc_name(kind);
        let (own, inits) = (inode(&task, name)?, inode(&init, name)?);
        let must = matches!(kind, LinuxNamespaceType::Mount | LinuxNamespaceType::User);
        let right = own == inits || (!must && own != inode("self", name)?);
        ensure!(right, "it is in another {name} namespace than init");
    }
    Ok(())
}

fn inode(process: &str, namespace: &str) -> Result<u64> {
    let path = format!("/proc/{process}/ns/{namespace}");
    let meta = fs::metadata(&path).with_context(|| format!("stat {path}"))?;
    Ok(meta.ino())
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;

    use serde_json::json;

    use super::*;

    const STATUS: &str = "Name:\tsh\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\nGroups:\t8 9 \nCapInh:\t0\nCapPrm:\t1\nCapEff:\t1\n\
                          CapBnd:\t1\nCapAmb:\t0\nNoNewPrivs:\t1\nSeccomp:\t2\n";

    #[test]
    fn statuses() {
        let status = Status::parse(STATUS).unwrap();
        assert_eq!(
            (status.uids[0], status.gids[3], status.groups.as_slice()),
            (7, 8, &[8, 9][..])
        );
        assert!(status.no_new_privs && status.filtered);
        assert_eq!(status.sets["Bnd"], 1);
        for bad in [
            "",
            "Uid:\t1\t1\t1\t1\n",
            &STATUS.replace("CapBnd", "Bound"),
            &STATUS.replace("7\t7", "x"),
        ] {
            assert!(Status::parse(bad).is_err(), "{bad}");
        }
        assert!(Status::parse(&fs::read_to_string("/proc/self/status").unwrap()).is_ok());
    }

    /// The first is CHOWN, the eighth SETUID. What is permitted is ambient too.
    fn allowed(uid: u32, bounding: u64, permitted: u64, no_new_privs: bool) -> Allowed {
        allowed_by(uid, [bounding, permitted, permitted], no_new_privs)
    }

    fn allowed_by(uid: u32, [bounding, permitted, ambient]: [u64; 3], no_new_privs: bool) -> Allowed {
        let process = json!({
            "cwd": "/", "args": ["x"], "user": {"uid": uid, "gid": 8}, "noNewPrivileges": no_new_privs,
        });
        let process: Process = serde_json::from_value(process).unwrap();
        let set = CapabilitySet::from_bits_retain;
        let sets = Capabilities {
            bounding: set(bounding),
            effective: set(permitted),
            permitted: set(permitted),
            inheritable: set(0),
            ambient: set(ambient),
        };
        Allowed::from_parts(&sets, &process, uid, 8, HashSet::from([8, 9]), no_new_privs)
    }

    #[test]
    fn what_a_thread_may_be() {
        let plain = STATUS
            .replace("NoNewPrivs:\t1", "NoNewPrivs:\t0")
            .replace("Seccomp:\t2", "Seccomp:\t0");
        for (allowed, status, error) in [
            (allowed(7, 1, 1, true), STATUS.to_owned(), None),
            (allowed(7, 1, 0, false), STATUS.to_owned(), Some("CapPrm")),
            (allowed(7, 1, 1, true), plain.clone(), Some("noNewPrivileges")),
            (
                allowed(7, 1, 1, true),
                STATUS.replace("Seccomp:\t2", "Seccomp:\t0"),
                Some("seccomp"),
            ),
            (
                allowed(7, 1, 1, true),
                STATUS.replace("CapBnd:\t1", "CapBnd:\t3"),
                Some("CapBnd"),
            ),
            (
                allowed(7, 1, 1, true),
                STATUS.replace("CapEff:\t1", "CapEff:\t3"),
                Some("CapEff"),
            ),
            (
                allowed(7, 1, 1, true),
                STATUS.replace("CapInh:\t0", "CapInh:\t2"),
                Some("CapInh"),
            ),
            (
                allowed(7, 1, 1, true),
                STATUS.replace("CapAmb:\t0", "CapAmb:\t2"),
                Some("CapAmb"),
            ),
            (
                allowed(7, 1, 1, false),
                STATUS.replace("Uid:\t7\t7", "Uid:\t7\t0"),
                Some("uid"),
            ),
            (
                allowed(7, 1, 1, false),
                STATUS.replace("Gid:\t8\t8", "Gid:\t8\t0"),
                Some("gid"),
            ),
            (
                allowed(7, 1, 1, false),
                STATUS.replace("8 9 ", "8 9 10"),
                Some("additionalGids"),
            ),
            // Root gets back by an execve what its bounding set has, but not with no_new_privs; and may be anybody.
            (allowed(0, 0x81, 0, false), plain.clone(), None),
            (
                allowed(0, 0x81, 0, true),
                STATUS.replace("7\t7", "0\t0"),
                Some("CapPrm"),
            ),
            (allowed(0, 1, 1, false), plain.clone(), Some("uid")),
        ] {
            let result = allowed.check(&Status::parse(&status).unwrap());
            match (result, error) {
                (Ok(()), None) => {}
                (Err(found), Some(error)) => assert!(found.to_string().contains(error), "{found}: {status}"),
                (result, error) => panic!("{result:?}, not {error:?}: {status}"),
            }
        }
    }

    #[test]
    fn another_users_process_loses_what_is_permitted_when_it_executes_its_program() {
        let allowed = allowed_by(7, [0x81, 0x81, 0], false);
        let error = |status: &str| allowed.check(&Status::parse(status).unwrap()).unwrap_err().to_string();
        assert!(error(STATUS).contains("CapPrm"), "{}", error(STATUS));
        let root = STATUS.replace("7\t7", "0\t0");
        assert!(error(&root).contains("process.user.uid"), "{}", error(&root));
    }

    #[test]
    fn limits_are_not_above_the_bundles() {
        let text = fs::read_to_string("/proc/self/limits").unwrap();
        let process = |kind: &str, hard: u64| -> Process {
            let limits = json!([{"type": kind, "soft": 0, "hard": hard}]);
            serde_json::from_value(json!({"cwd": "/", "user": {"uid": 0, "gid": 0}, "rlimits": limits})).unwrap()
        };
        for kind in [
            "CPU",
            "FSIZE",
            "DATA",
            "STACK",
            "CORE",
            "RSS",
            "NPROC",
            "NOFILE",
            "MEMLOCK",
            "AS",
            "LOCKS",
            "SIGPENDING",
            "MSGQUEUE",
            "NICE",
            "RTPRIO",
            "RTTIME",
        ] {
            let any = process(&format!("RLIMIT_{kind}"), u64::MAX);
            assert!(check_limits(&text, &any).is_ok(), "{kind}: {text}");
        }
        let text = "Max open files            5                    7                    files     \n\
                    Max stack size            8388608              unlimited            bytes     \n";
        for (kind, hard, good) in [
            ("RLIMIT_NOFILE", 7, true),
            ("RLIMIT_NOFILE", 6, false),
            ("RLIMIT_STACK", 8_388_608, false),
            ("RLIMIT_CPU", 1, false),
        ] {
            assert_eq!(check_limits(text, &process(kind, hard)).is_ok(), good, "{kind} {hard}");
        }
    }

    #[test]
    fn filters_begin_with_the_bundles() {
        let filter = |program: &[u8], before| Filter {
            program: program.to_vec(),
            before,
        };
        for (filters, error) in [
            (vec![filter(b"own", None)], None),
            (vec![filter(b"own", None), filter(b"more", Some(0))], None),
            (vec![], Some("no filter")),
            (vec![filter(b"other", None)], Some("another filter")),
            (
                vec![filter(b"own", None), filter(b"other", None)],
                Some("another filter"),
            ),
        ] {
            let found = check_filters(Some(b"own"), &filters)
                .err()
                .map(|error| error.to_string());
            assert_eq!(found.is_some(), error.is_some(), "{filters:?}");
            assert!(
                found.unwrap_or_default().contains(error.unwrap_or_default()),
                "{filters:?}"
            );
        }
        assert!(check_filters(None, &[filter(b"any", None)]).is_ok());
    }

    #[test]
    fn profiles() {
        let process = |extra: serde_json::Value| -> Process {
            let mut process = json!({"cwd": "/", "args": ["x"], "user": {"uid": 0, "gid": 0}});
            process
                .as_object_mut()
                .unwrap()
                .extend(extra.as_object().unwrap().clone());
            serde_json::from_value(process).unwrap()
        };
        let armed = process(json!({"apparmorProfile": "web"}));
        for (asked, process, expected) in [
            (None, &armed, Some("apparmor:web")),
            (Some("apparmor:other"), &armed, Some("apparmor:other")),
            (
                None,
                &process(json!({"selinuxLabel": "a:b:c:s0"})),
                Some("selinux:a:b:c:s0"),
            ),
            (None, &process(json!({})), None),
        ] {
            assert_eq!(profile(asked, process).unwrap().as_deref(), expected);
        }
        for bad in ["", "web", "apparmor:", "smack:web"] {
            assert!(profile(Some(bad), &armed).is_err(), "{bad}");
        }
    }

    #[test]
    fn tasks_with_their_children() {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "sleep 60 & echo $!; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(shell.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let (shell_pid, child) = (shell.id().cast_signed(), line.trim().parse().unwrap());
        assert_eq!(tasks(shell_pid).unwrap(), [shell_pid, child]);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::SIGKILL).unwrap();
        shell.wait().unwrap();
    }
}
