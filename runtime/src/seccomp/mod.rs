//! `linux.seccomp`: which system calls a container's processes may make.
//!
//! ```text
//! parent    check        the profile's own rules, with the rest of config.json, before any side effect
//!           prepare      the profile as a BPF program: from the cache, or compiled and put there
//! child     listen       only with SCMP_ACT_NOTIFY: load, and tell the parent the listener's number
//! parent    hand_over    takes the listener out of the child and sends it to the agent at listenerPath
//! child     load         everything else: the last step before startContainer hooks, or without those before execve
//! ```
//! The filter is loaded as late as can be, so that a profile has to allow what the program does and not what this runtime
//! does on the way to it: after the load come the hooks and a `write` that says that they are done, where there are any,
//! one capset, and execve. Where runc differs: it loads when the container is created, and without noNewPrivileges before
//! the identity changes, because the kernel then asks for CAP_SYS_ADMIN; here init keeps that one capability until the load
//! and gives it up right after. No code of the container's runs in between.
//!
//! With a listener there is no such choice: whoever creates the container hands the descriptor on, and is gone when it is
//! started. Between the load and the hand-over only `write` is called, which therefore cannot be notified of, as with runc;
//! for a user who is not root, `sendmsg` too.
//!
//! No flag is set that the profile does not name; runc adds SPEC_ALLOW since 1.2, which on Linux 5.16 or later changes
//! nothing unless the machine was booted with spec_store_bypass_disable=seccomp.

mod cache;
mod compile;
mod notify;
mod stub;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use libc::sock_filter;
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompFilterFlag as Flag, LinuxSyscall, Process, Spec,
};

use crate::capabilities::Capabilities;
use crate::sync::{Channel, FromChild};
use crate::sys::seccomp as sys;
use crate::{rootless, socket};

use notify::DESCRIPTOR;
pub use notify::hand_over;

/// What the profile may ask for, as the specification names it.
pub const ACTIONS: [&str; 9] = [
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
];

/// How an argument can be compared.
pub const OPERATORS: [&str; 7] = [
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
];

/// The architectures that the specification has a name for. Which of them the libseccomp in this runtime knows is another
/// matter ([`architectures`]).
const ARCHITECTURES: [&str; 23] = [
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
];

/// The flags of seccomp(2) that a profile can set. Which of them this kernel knows is another matter ([`supported_flags`]).
pub const FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

/// The largest errno libseccomp takes; the kernel has one more, MAX_ERRNO of linux/err.h.
const MAX_ERRNO: u32 = 4094;

/// How many arguments a system call has.
const MAX_ARGUMENTS: usize = 6;

/// The room for a path in `sockaddr_un`, its NUL aside.
const MAX_SOCKET_PATH: usize = 107;

/// A filter ready to be loaded.
#[derive(Debug)]
pub struct Filter {
    program: Vec<sock_filter>,
    flags: u64,
    listener: Option<Listener>,
}

/// The agent that answers notifications.
#[derive(Debug)]
struct Listener {
    path: PathBuf,
    metadata: Option<String>,
}

impl Filter {
    /// The filter of a container, if its specification has a profile. `root` holds the cache.
    pub fn prepare(root: &Path, spec: &Spec) -> Result<Option<Filter>> {
        let Some(profile) = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) else {
            return Ok(None);
        };
        let program = cache::program(root, profile).context("linux.seccomp")?;
        let listener = notifies(profile).then(|| Listener {
            path: profile.listener_path().clone().unwrap_or_default(),
            metadata: profile.listener_metadata().clone(),
        });
        let flags = flags(profile);
        Ok(Some(Filter {
            program,
            flags,
            listener,
        }))
    }

    /// The program as the kernel keeps it, and gives it to a debugger: 8 bytes an instruction.
    pub fn bytes(&self) -> Vec<u8> {
        compile::encode(&self.program)
    }

    fn load(&self) -> Result<Option<OwnedFd>> {
        let (length, flags) = (self.program.len(), self.flags);
        sys::load(&self.program, flags)
            .with_context(|| format!("linux.seccomp: seccomp(SET_MODE_FILTER, {flags:#x}, {length} instructions)"))
    }
}

/// The filter of a process that has taken on its user's identity, until it is loaded.
#[derive(Debug)]
pub struct Confinement<'a> {
    filter: Option<&'a Filter>,
    /// The capabilities the process is to have, where it still has CAP_SYS_ADMIN beyond them.
    settled: Option<Capabilities>,
}

/// A load by this process would be refused without CAP_SYS_ADMIN.
pub fn needs_admin(filter: Option<&Filter>, process: &Process) -> bool {
    filter.is_some() && process.no_new_privileges() != Some(true)
}

impl<'a> Confinement<'a> {
    /// `settled`: what capabilities to reduce the process to once the filter is loaded.
    pub fn new(filter: Option<&'a Filter>, settled: Option<Capabilities>) -> Confinement<'a> {
        Confinement { filter, settled }
    }

    /// Loads a filter that notifies, and announces its listener, which the parent takes before it answers the next
    /// message. The descriptor is to be held until then. With `send` it is sent: the parent may not take it.
    pub fn listen(&mut self, channel: &Channel, send: bool) -> Result<Option<OwnedFd>> {
        let Some(filter) = self.filter.take_if(|filter| filter.listener.is_some()) else {
            return Ok(None);
        };
        let listener = filter.load()?.context("linux.seccomp: the kernel gave no listener")?;
        channel.write(&FromChild::Listening {
            descriptor: (!send).then_some(listener.as_raw_fd()),
        })?;
        if send {
            let sent = socket::send(channel.as_fd(), DESCRIPTOR, &listener);
            sent.context("linux.seccomp: send the listener, which a profile of a user who is not root has to allow")?;
        }
        self.settle()?;
        Ok(Some(listener))
    }

    /// Loads the filter, unless there is none or [`Confinement::listen`] has done it.
    pub fn load(&mut self) -> Result<()> {
        let Some(filter) = self.filter.take() else {
            return Ok(());
        };
        filter.load()?;
        self.settle()
    }

    fn settle(&mut self) -> Result<()> {
        self.settled.take().map_or(Ok(()), |sets| sets.settle())
    }
}

/// The rules of a profile that its types do not hold (config-linux.md, "Seccomp").
pub fn check(profile: &LinuxSeccomp) -> Result<()> {
    let default = profile.default_action();
    ensure!(
        default != Action::ScmpActNotify,
        "linux.seccomp.defaultAction: {default}: must not be SCMP_ACT_NOTIFY: nobody would hear of the first call"
    );
    check_errno(default, profile.default_errno_ret(), "linux.seccomp.defaultErrnoRet")?;
    for (index, rule) in rules(profile).iter().enumerate() {
        check_rule(rule, &format!("linux.seccomp.syscalls[{index}]"))?;
    }
    check_listener(profile)?;
    let flags = flags(profile);
    ensure!(
        flags & sys::WAIT_KILLABLE_RECV == 0 || notifies(profile),
        "linux.seccomp.flags: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: needs a rule with SCMP_ACT_NOTIFY"
    );
    ensure!(
        flags == 0 || sys::knows_flags(flags),
        "linux.seccomp.flags: {:?}: this kernel does not know all of them",
        profile.flags().as_deref().unwrap_or_default()
    );
    Ok(())
}

fn check_rule(rule: &LinuxSyscall, at: &str) -> Result<()> {
    ensure!(!rule.names().is_empty(), "{at}.names: []: must hold at least one name");
    for name in rule.names() {
        ensure!(
            !name.is_empty() && !name.contains('\0'),
            "{at}.names: {name:?}: is not the name of a system call"
        );
        ensure!(
            rule.action() != Action::ScmpActNotify || name != "write",
            "{at}.action: SCMP_ACT_NOTIFY: not for write, with which the runtime hands the listener over"
        );
        ensure!(
            rule.action() != Action::ScmpActNotify || name != "sendmsg" || !rootless::unprivileged(),
            "{at}.action: SCMP_ACT_NOTIFY: not for sendmsg, with which a user who is not root hands the listener over"
        );
    }
    check_errno(rule.action(), rule.errno_ret(), &format!("{at}.errnoRet"))?;
    for (number, argument) in rule.args().iter().flatten().enumerate() {
        ensure!(
            argument.index() < MAX_ARGUMENTS,
            "{at}.args[{number}].index: {}: must be 0 to {}",
            argument.index(),
            MAX_ARGUMENTS - 1
        );
    }
    Ok(())
}

/// An errno where the action has none is an error that the specification demands; runc passes over it.
fn check_errno(action: Action, errno: Option<u32>, at: &str) -> Result<()> {
    let Some(errno) = errno else { return Ok(()) };
    let limit = match action {
        Action::ScmpActErrno => MAX_ERRNO,
        // What a tracer gets, of 16 bits.
        Action::ScmpActTrace => u16::MAX.into(),
        _ => anyhow::bail!("{at}: {errno}: {action} has no errno to return"),
    };
    ensure!(errno <= limit, "{at}: {errno}: must be 0 to {limit}");
    Ok(())
}

fn check_listener(profile: &LinuxSeccomp) -> Result<()> {
    let path = profile.listener_path().as_deref().unwrap_or(Path::new(""));
    let missing = path.as_os_str().is_empty();
    ensure!(
        !missing || profile.listener_metadata().as_ref().is_none_or(String::is_empty),
        "linux.seccomp.listenerMetadata: must be absent without linux.seccomp.listenerPath"
    );
    ensure!(
        !missing || !notifies(profile),
        "linux.seccomp.listenerPath: missing: SCMP_ACT_NOTIFY needs somebody to notify"
    );
    ensure!(
        missing || path.is_absolute() && path.as_os_str().len() <= MAX_SOCKET_PATH,
        "linux.seccomp.listenerPath: {path:?}: must be absolute and not longer than {MAX_SOCKET_PATH} bytes"
    );
    Ok(())
}

fn rules(profile: &LinuxSeccomp) -> &[LinuxSyscall] {
    profile.syscalls().as_deref().unwrap_or_default()
}

fn notifies(profile: &LinuxSeccomp) -> bool {
    rules(profile).iter().any(|rule| rule.action() == Action::ScmpActNotify)
}

/// The flags for seccomp(2).
fn flags(profile: &LinuxSeccomp) -> u64 {
    let named = profile.flags().iter().flatten();
    let named = named.fold(0, |flags, flag| flags | bit(*flag));
    match notifies(profile) {
        false => named,
        // The kernel takes TSYNC beside a listener only in this form.
        true if named & libc::SECCOMP_FILTER_FLAG_TSYNC != 0 => named | sys::NEW_LISTENER | sys::TSYNC_ESRCH,
        true => named | sys::NEW_LISTENER,
    }
}

fn bit(flag: Flag) -> u64 {
    match flag {
        Flag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
        Flag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        Flag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        Flag::SeccompFilterFlagWaitKillableRecv => sys::WAIT_KILLABLE_RECV,
    }
}

/// The value of an enumeration that a word of the specification stands for.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_value(text.into()).ok()
}

/// The architectures a profile can name: those of this machine's byte order, as a filter has one.
pub fn architectures() -> Vec<&'static str> {
    let known = |name: &&str| word(name).is_some_and(compile::knows);
    ARCHITECTURES.into_iter().filter(known).collect()
}

/// The flags that this kernel knows.
pub fn supported_flags() -> Vec<&'static str> {
    let known = |name: &&str| match word(name).map(bit) {
        // Refused where nobody can be waited for.
        Some(sys::WAIT_KILLABLE_RECV) => sys::knows_flags(sys::WAIT_KILLABLE_RECV | sys::NEW_LISTENER),
        bit => bit.is_some_and(sys::knows_flags),
    };
    FLAGS.into_iter().filter(known).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn outcome(profile: Value) -> Result<(), String> {
        let profile: LinuxSeccomp = serde_json::from_value(profile).map_err(|error| error.to_string())?;
        check(&profile).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn every_name_is_known() {
        for action in ACTIONS {
            assert!(
                outcome(json!({"defaultAction": action})).is_ok() != (action == "SCMP_ACT_NOTIFY"),
                "{action}"
            );
        }
        for op in OPERATORS {
            let rule = json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5,
                "args": [{"index": 5, "value": 1, "valueTwo": 1, "op": op}]});
            assert_eq!(
                outcome(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})),
                Ok(()),
                "{op}"
            );
        }
        let notify = json!([{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]);
        for flag in FLAGS {
            let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": [flag], "syscalls": notify,
                "listenerPath": "/x", "listenerMetadata": "m"});
            assert_eq!(outcome(profile), Ok(()), "{flag}");
        }
    }

    #[test]
    fn what_is_refused() {
        let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
        for (profile, path, words) in [
            (json!({}), "missing field", "defaultAction"),
            (
                json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
                "linux.seccomp.defaultAction",
                "SCMP_ACT_NOTIFY",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 1}),
                "linux.seccomp.defaultErrnoRet: 1",
                "SCMP_ACT_KILL",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4095}),
                "linux.seccomp.defaultErrnoRet: 4095",
                "4094",
            ),
            (
                rule(json!({"names": [], "action": "SCMP_ACT_KILL"})),
                "linux.seccomp.syscalls[0].names",
                "one",
            ),
            (
                rule(json!({"names": [""], "action": "SCMP_ACT_KILL"})),
                "linux.seccomp.syscalls[0].names",
                "name",
            ),
            (
                rule(json!({"names": ["a"], "action": "SCMP_ACT_LOG", "errnoRet": 1})),
                "linux.seccomp.syscalls[0].errnoRet: 1",
                "SCMP_ACT_LOG",
            ),
            (
                rule(json!({"names": ["a"], "action": "SCMP_ACT_KILL",
                    "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})),
                "linux.seccomp.syscalls[0].args[0].index: 6",
                "0 to 5",
            ),
        ] {
            let error = outcome(profile.clone()).unwrap_err();
            assert!(error.starts_with(path) && error.contains(words), "{profile}: {error}");
        }
    }

    #[test]
    fn agents_refused() {
        let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
        for (profile, path, words) in [
            (
                rule(json!({"names": ["write"], "action": "SCMP_ACT_NOTIFY"})),
                "linux.seccomp.syscalls[0].action",
                "write",
            ),
            (
                rule(json!({"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"})),
                "linux.seccomp.listenerPath",
                "missing",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"}),
                "linux.seccomp.listenerMetadata",
                "listenerPath",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "x"}),
                "linux.seccomp.listenerPath: \"x\"",
                "absolute",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}),
                "linux.seccomp.flags",
                "SCMP_ACT_NOTIFY",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}),
                "unknown variant",
                "X",
            ),
        ] {
            let error = outcome(profile.clone()).unwrap_err();
            assert!(error.starts_with(path) && error.contains(words), "{profile}: {error}");
        }
    }

    #[test]
    fn flags_of_the_system_call() {
        let flags = |flags: Value, action: &str| {
            let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags,
                "syscalls": [{"names": ["mkdir"], "action": action}]});
            super::flags(&serde_json::from_value(profile).unwrap())
        };
        assert_eq!(flags(json!([]), "SCMP_ACT_ERRNO"), 0);
        assert_eq!(flags(json!(FLAGS[..3]), "SCMP_ACT_ERRNO"), 1 | 2 | 4);
        assert_eq!(flags(json!([]), "SCMP_ACT_NOTIFY"), 8);
        assert_eq!(flags(json!([FLAGS[0], FLAGS[3]]), "SCMP_ACT_NOTIFY"), 1 | 8 | 16 | 32);
    }
}
