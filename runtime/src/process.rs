//! The process of a container, from the runtime's own to the user's: limits, identity, environment, and the program.
//!
//! What the parent does to the process from outside (rlimits, OOM score) needs the host's capabilities; the rest is
//! done by the process itself, in the order that [`crate::init`] and [`crate::exec`] list.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::{Gid, Uid};
use oci_spec::runtime::{LinuxPersonality, LinuxPersonalityDomain, PosixRlimit, PosixRlimitType, Process};
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit};
use rustix::thread::CapabilitySet;

use crate::capabilities::{self, Capabilities};
use crate::rootfs::resolve::Root;
use crate::{activation, log, namespaces, rootless, sys};

/// How much of a container's /etc/passwd is read, in bytes: it is the image's and may be anything (CVE-2026-47262).
const MAX_PASSWD: u64 = 1024 * 1024;

/// Where a program is looked for if the environment has no PATH; what a shell takes then.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a process has to reckon with besides its own document.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// It is in a user namespace other than the runtime's, in which it has all capabilities at first.
    pub user_namespace: bool,
    /// The runtime may raise any limit of any process, and does so for this one from outside: in a user namespace it
    /// could not do it itself. Without CAP_SYS_RESOURCE each process can set its own limits only.
    pub limits_from_outside: bool,
    /// The runtime is not root's: it has no right to the files of an undumpable process.
    pub unprivileged: bool,
    /// How many descriptors from 3 on the program gets.
    pub preserve_fds: i32,
    /// How many of them are a service manager's sockets, which it is told of.
    pub listen_fds: i32,
}

impl Terms {
    /// The terms as this process, the parent, finds them.
    pub fn new(user_namespace: bool, preserve_fds: i32) -> Result<Terms> {
        let limits_from_outside = capabilities::grantable(false)?.contains(CapabilitySet::SYS_RESOURCE);
        Ok(Terms {
            user_namespace,
            limits_from_outside,
            unprivileged: rootless::unprivileged(),
            preserve_fds,
            listen_fds: 0,
        })
    }
}

/// A program ready to be executed.
#[derive(Debug)]
pub struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Finds the program as the user it will run as, and completes the environment by HOME and the sockets it gets.
    pub fn prepare(process: &Process, listen_fds: i32) -> Result<Program> {
        let args = process.args().as_deref().unwrap_or_default();
        let name = args.first().context("process.args: empty")?;
        let mut env = process.env().clone().unwrap_or_default();
        if variable(&env, "HOME").is_none_or(str::is_empty) {
            env.retain(|entry| !entry.starts_with("HOME="));
            env.push(format!("HOME={}", home(process.user().uid())?));
        }
        activation::announce(listen_fds, &mut env);
        let path = find(name, variable(&env, "PATH").unwrap_or(DEFAULT_PATH))?;
        let text = |text: &String| CString::new(text.as_str()).with_context(|| format!("{text:?} holds a NUL"));
        Ok(Program {
            path: CString::new(path.as_os_str().as_bytes()).context("the program's path holds a NUL")?,
            args: args.iter().map(text).collect::<Result<_>>()?,
            env: env.iter().map(text).collect::<Result<_>>()?,
        })
    }

    /// Becomes the program.
    pub fn execute(&self) -> Result<std::convert::Infallible> {
        nix::unistd::execve(&self.path, &self.args, &self.env).with_context(|| format!("exec {:?}", self.path))
    }
}

/// The last value of a variable: what a shell would see.
fn variable<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter()
        .rev()
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// Finds `name` in the directories of `path`. The words for a failure are the ones that runc's callers look for.
fn find(name: &str, path: &str) -> Result<PathBuf> {
    if name.contains('/') {
        executable(Path::new(name)).with_context(|| format!("exec {name:?}"))?;
        return Ok(name.into());
    }
    ensure!(!name.is_empty(), "exec \"\": executable file not found in $PATH");
    let mut denied = false;
    for directory in path.split(':') {
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::ACCESS) => denied = true,
            Err(_not_there) => {}
        }
    }
    match denied {
        true => bail!("exec {name:?}: permission denied"),
        false => bail!("exec {name:?}: executable file not found in $PATH"),
    }
}

/// A file that this user may execute.
fn executable(path: &Path) -> Result<(), Errno> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

/// The home directory that the container's /etc/passwd gives a user; `/` where it gives none.
fn home(uid: u32) -> Result<String> {
    let slash =
        rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context("open /")?;
    let Some(passwd) = Root::new(slash).read(Path::new("/etc/passwd")).unwrap_or_else(|error| {
        log::debug(format_args!("HOME: {error:#}"));
        None
    }) else {
        return Ok("/".to_owned());
    };
    let stat = rustix::fs::fstat(&passwd).context("fstat(/etc/passwd)")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok("/".to_owned());
    }
    let text = BufReader::new(File::from(passwd).take(MAX_PASSWD));
    Ok(home_in(text, uid).unwrap_or_else(|| "/".to_owned()))
}

/// The sixth field of the first line whose third is `uid`.
fn home_in(passwd: impl BufRead, uid: u32) -> Option<String> {
    passwd.lines().map_while(Result::ok).find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let home = fields.get(5).filter(|home| !home.is_empty() && !home.contains('\0'))?;
        (fields[2].parse() == Ok(uid)).then(|| (*home).to_owned())
    })
}

/// Changes to the working directory, which must lie in the container.
///
/// Resolved without magic links: `/proc/self/fd/N` would lead through a descriptor of the runtime's to the host
/// (CVE-2024-21626). What getcwd says of the result is looked at as well.
pub fn enter(cwd: &Path) -> Result<()> {
    let what = || format!("process.cwd {}", cwd.display());
    let resolve = ResolveFlags::NO_MAGICLINKS;
    let directory = rustix::fs::openat2(
        CWD,
        cwd,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )
    .with_context(what)?;
    rustix::process::fchdir(&directory).with_context(what)?;
    // Of a directory that cannot be reached from the root the C library says that it does not exist.
    match std::env::current_dir() {
        Ok(path) if path.is_absolute() => Ok(()),
        _ => bail!("{}: the directory is outside of the container", what()),
    }
}

/// Exchanges standard streams that are the host's null device for the container's own: a file of the host's /dev is on a
/// mount that the container does not have, and no checkpoint can be made of it.
pub fn own_null() -> Result<()> {
    let is_null = |stat: rustix::fs::Stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == rustix::fs::makedev(1, 3)
    };
    let is_stream_null = |stream: BorrowedFd<'_>| rustix::fs::fstat(stream).is_ok_and(is_null);
    let streams = [
        std::io::stdin().as_fd(),
        std::io::stdout().as_fd(),
        std::io::stderr().as_fd(),
    ]
    .map(is_stream_null);
    if streams == [false; 3] {
        return Ok(());
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // A container may have something else there, or nothing: then they stay what they are.
    let null = match rustix::fs::open("/dev/null", flags, Mode::empty()) {
        Ok(null) if is_stream_null(null.as_fd()) => null,
        _ => return Ok(()),
    };
    rustix::fs::fcntl_setfl(&null, OFlags::RDWR).context("fcntl(F_SETFL)")?;
    type Duplicate = fn(BorrowedFd<'_>) -> rustix::io::Result<()>;
    let duplicate: [Duplicate; 3] = [
        |fd| rustix::stdio::dup2_stdin(fd),
        |fd| rustix::stdio::dup2_stdout(fd),
        |fd| rustix::stdio::dup2_stderr(fd),
    ];
    for (duplicate, _) in duplicate.iter().zip(streams).filter(|(_, null)| *null) {
        duplicate(null.as_fd()).context("dup2 the null device")?;
    }
    Ok(())
}

/// Gives standard streams to the user, who could not open them anew under /proc/self/fd or /dev otherwise. What cannot
/// change hands keeps its owner.
pub fn own_stdio(uid: u32) -> Result<()> {
    for stream in [
        std::io::stdin().as_fd(),
        std::io::stdout().as_fd(),
        std::io::stderr().as_fd(),
    ] {
        let stat = rustix::fs::fstat(stream).context("fstat of a standard stream")?;
        // The null device is everybody's.
        if stat.st_rdev == rustix::fs::makedev(1, 3) || stat.st_uid == uid {
            continue;
        }
        match rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None) {
            Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("fchown of a standard stream to {uid}"));
            }
        }
    }
    Ok(())
}

/// The same from outside, for a process in a user namespace: root there may not change the owner of what belongs to
/// nobody it knows.
pub fn give_stdio(process: &Process, pid: i32) -> Result<()> {
    match namespaces::host_uid(pid, process.user().uid())? {
        Some(uid) => own_stdio(uid),
        None => Ok(()),
    }
}

/// Takes on the user's identity and capabilities, for good. `own_user_namespace`: the process has all capabilities there
/// are, in a namespace of its own. `keep_admin`: CAP_SYS_ADMIN stays until the sets that this answers with are settled,
/// which it does where that makes a difference.
pub fn become_user(process: &Process, own_user_namespace: bool, keep_admin: bool) -> Result<Option<Capabilities>> {
    let user = process.user();
    let grantable = capabilities::grantable(own_user_namespace)?;
    let (sets, warnings) = Capabilities::from_spec(process.capabilities().as_ref(), grantable);
    // No warning: what is asked for beyond what can be had is common (ambient without inheritable ones in runc's own
    // example), and whoever wonders sees the sets in /proc.
    warnings.iter().for_each(log::debug);
    sets.apply_bounding()?;
    sets.keep_across_setuid()?;
    let groups: Vec<Gid> = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|&gid| Gid::from_raw(gid))
        .collect();
    set_groups(&groups)?;
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    nix::unistd::setresgid(gid, gid, gid).with_context(|| format!("setresgid({gid})"))?;
    nix::unistd::setresuid(uid, uid, uid).with_context(|| format!("setresuid({uid})"))?;
    let admin = if keep_admin {
        CapabilitySet::SYS_ADMIN & grantable
    } else {
        CapabilitySet::empty()
    };
    sets.apply(admin)?;
    if let Some(umask) = user.umask() {
        rustix::process::umask(Mode::from_raw_mode(umask));
    }
    if process.no_new_privileges() == Some(true) {
        nix::sys::prctl::set_no_new_privs().context("prctl(PR_SET_NO_NEW_PRIVS)")?;
    }
    Ok((!sets.effective.contains(admin)).then_some(sets))
}

/// Sets `linux.personality`. PER_LINUX32 changes what uname says of the machine, and nothing else.
pub fn set_personality(personality: &LinuxPersonality) -> Result<()> {
    // linux/personality.h.
    let domain = match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    };
    sys::sched::personality(domain).with_context(|| format!("linux.personality: personality({})", personality.domain()))
}

/// Sets the supplementary groups. In a user namespace whose map an ordinary user has written there are none to be had,
/// and those of the caller stay (user_namespaces(7)): the refusal that comes in spite of the capability.
fn set_groups(groups: &[Gid]) -> Result<()> {
    match nix::unistd::setgroups(groups) {
        Err(nix::errno::Errno::EPERM) if groups.is_empty() && capabilities::effective(CapabilitySet::SETGID)? => Ok(()),
        result => result.with_context(|| format!("setgroups({groups:?})")),
    }
}

/// Undoes what the language's start-up (SIGPIPE ignored) and the caller (a signal mask) would hand down across execve.
pub fn reset_signals() -> Result<()> {
    sys::signal::set_default(Signal::SIGPIPE).context("sigaction(SIGPIPE)")?;
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).context("sigprocmask")
}

/// Sets the resource limits of `pid`, or of this process. A limit that may not be raised that far is raised as far as
/// it goes.
pub fn set_rlimits(process: &Process, pid: Option<i32>) -> Result<()> {
    for limit in process.rlimits().iter().flatten() {
        let target = pid.and_then(Pid::from_raw);
        set_rlimit(limit, target).with_context(|| format!("prlimit({pid:?}, {})", limit.typ()))?;
    }
    Ok(())
}

fn set_rlimit(limit: &PosixRlimit, target: Option<Pid>) -> Result<()> {
    let resource = resource(limit.typ())?;
    // The largest value means no limit, there and here.
    let bound = |value: u64| (value != u64::MAX).then_some(value);
    let (soft, hard) = (limit.soft(), limit.hard());
    let wanted = Rlimit {
        current: bound(soft),
        maximum: bound(hard),
    };
    match rustix::process::prlimit(target, resource, wanted) {
        Err(Errno::PERM) => {}
        result => return result.map(drop).map_err(Into::into),
    }
    // The target has the same limits as this process, whose child it is.
    let before = rustix::process::getrlimit(resource);
    let possible = before.maximum.unwrap_or(u64::MAX).min(hard);
    log::warn(format_args!(
        "process.rlimits: {} {soft}:{hard} is more than may be set without CAP_SYS_RESOURCE: {possible} instead",
        limit.typ()
    ));
    let clamped = Rlimit {
        current: bound(soft.min(possible)),
        maximum: bound(possible),
    };
    rustix::process::prlimit(target, resource, clamped)?;
    Ok(())
}

fn resource(kind: PosixRlimitType) -> Result<Resource> {
    Ok(match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    })
}

/// Sets a process's `oom_score_adj`. Lowering it below what an ancestor with CAP_SYS_RESOURCE once set is refused to a
/// caller without that capability; the lowest value the kernel takes is then found by bisection.
pub fn set_oom_score_adj(process: &Process, pid: i32) -> Result<()> {
    let Some(wanted) = process.oom_score_adj() else {
        return Ok(());
    };
    let path = format!("/proc/{pid}/oom_score_adj");
    let write = |value: i32| fs::write(&path, value.to_string());
    match write(wanted) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
        result => return result.with_context(|| format!("write {wanted} to {path}")),
    }
    let current = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let mut allowed: i32 = current.trim().parse().with_context(|| format!("{path}: {current:?}"))?;
    let mut refused = wanted;
    while allowed - refused > 1 {
        let middle = refused + (allowed - refused) / 2;
        match write(middle) {
            Ok(()) => allowed = middle,
            Err(_refused) => refused = middle,
        }
    }
    log::warn(format_args!(
        "process.oomScoreAdj: {wanted} is refused without CAP_SYS_RESOURCE: {allowed} instead"
    ));
    Ok(())
}

/// Applies `linux.sysctl`, through a procfs nobody else can mount anything on (CVE-2025-52881).
pub fn set_sysctls<'a>(proc: BorrowedFd<'_>, sysctls: impl Iterator<Item = (&'a String, &'a String)>) -> Result<()> {
    for (key, value) in sysctls {
        let path = sysctl_path(key);
        let what = || format!("linux.sysctl: {key}={value}");
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
        let file = rustix::fs::openat2(proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)
            .with_context(what)?;
        let written = rustix::io::write(&file, value.as_bytes()).with_context(what)?;
        ensure!(written == value.len(), "{}: {written} bytes were taken", what());
    }
    Ok(())
}

/// `net.ipv4.ip_forward` and `net/ipv4/ip_forward` are the same. Which separator comes first decides, so that a dot may
/// be part of a name: `net/ipv4/conf/eth0.1/forwarding`.
fn sysctl_path(key: &str) -> PathBuf {
    let dotted = key.find(['.', '/']).is_some_and(|at| key.as_bytes()[at] == b'.');
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    let name: String = if dotted {
        key.chars().map(swap).collect()
    } else {
        key.to_owned()
    };
    Path::new("sys").join(name.trim_start_matches('/'))
}

/// A user as `exec --user` takes it: `UID[:GID]`, digits only. A name is never looked up, and no number wraps.
pub fn parse_user(text: &str) -> Result<(u32, Option<u32>)> {
    match text.split_once(':') {
        Some((uid, gid)) => Ok((parse_id(uid)?, Some(parse_id(gid)?))),
        None => Ok((parse_id(text)?, None)),
    }
}

/// The number of a user or group: digits and nothing else.
pub fn parse_id(text: &str) -> Result<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    // The largest id means "no change" to the kernel.
    let id = text.parse().ok().filter(|&id: &u32| digits && id != u32::MAX);
    id.ok_or_else(|| anyhow!("{text:?} is not a user's or group's number from 0 to {}", u32::MAX - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken:x:7\n7:x:8:8::/eight:\nb:x:9:9:::\nc:x:9:9::/nine:\n";
        for (uid, home) in [
            (0, Some("/root")),
            (7, None),
            (8, Some("/eight")),
            (9, Some("/nine")),
            (10, None),
        ] {
            assert_eq!(home_in(passwd.as_bytes(), uid).as_deref(), home, "{uid}");
        }
    }

    #[test]
    fn users() {
        for (text, user) in [
            ("0", (0, None)),
            ("00", (0, None)),
            ("1000:5", (1000, Some(5))),
            ("4294967294", (4_294_967_294, None)),
        ] {
            assert_eq!(parse_user(text).unwrap(), user, "{text}");
        }
        for bad in [
            "",
            ":",
            "+0",
            "-0",
            "1x",
            "0x0",
            " 0",
            "4294967295",
            "4294967296",
            "18446744073709551616",
            "root",
            "root\n",
            "1000:",
            ":1",
            "1000:4294967296",
            "1:2:3",
            "０",
        ] {
            assert!(parse_user(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn programs() {
        assert_eq!(find("sh", "/nonexistent:/bin").unwrap(), Path::new("/bin/sh"));
        assert_eq!(find("/bin/sh", "").unwrap(), Path::new("/bin/sh"));
        for (name, text) in [
            ("nope", "executable file not found in $PATH"),
            ("", "executable file not found in $PATH"),
            ("/nope", "No such file or directory"),
            ("/etc", "Permission denied"),
            ("/etc/passwd", "Permission denied"),
        ] {
            let error = format!("{:#}", find(name, "/bin:/usr/bin").unwrap_err());
            assert!(error.contains(text), "{name}: {error}");
        }
    }

    #[test]
    fn sysctl_names() {
        for (key, path) in [
            ("net.ipv4.ip_forward", "sys/net/ipv4/ip_forward"),
            ("net/ipv4/conf/eth0.1/forwarding", "sys/net/ipv4/conf/eth0.1/forwarding"),
            ("net.ipv4.conf.eth0/1.forwarding", "sys/net/ipv4/conf/eth0.1/forwarding"),
        ] {
            assert_eq!(sysctl_path(key), Path::new(path), "{key}");
        }
    }

    #[test]
    fn the_last_variable_counts() {
        let env = ["A=1".to_owned(), "AB=2".to_owned(), "A=3".to_owned()];
        assert_eq!(variable(&env, "A"), Some("3"));
        assert_eq!(variable(&env, "B"), None);
    }
}
