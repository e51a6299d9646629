//! Security labels: `process.apparmorProfile`, `process.selinuxLabel` and `linux.mountLabel`.
//!
//! A label is asked for of the kernel by writing it to an attribute of the process in procfs, and takes effect at the next
//! execve. What looks like procfs inside a container may be anything (CVE-2019-16884), so the attribute is written through
//! a procfs nobody in there could have mounted over (CVE-2025-52881): init's own, or for exec the host's, open since
//! before the container was entered.
//!
//! A label that the kernel could not enforce, its module being off, is refused before any side effect. The one exception is
//! the profile `unconfined`, which asks for nothing.
//!
//! With SELinux the session keyring is labelled too, as runc does it. Labels of mounts are an option of the filesystem;
//! procfs, sysfs and cgroups have labels of their own, which no option changes.

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{Linux, Process};
use rustix::fs::{Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

/// The AppArmor profile that confines nothing.
const UNCONFINED: &str = "unconfined";

/// `SELINUX_MAGIC`, linux/magic.h.
const SELINUX_MAGIC: i128 = 0xf97c_ff8c;

/// Filesystems whose files SELinux labels by rules of its own.
const LABELLED_BY_POLICY: [&str; 4] = ["proc", "sysfs", "cgroup", "cgroup2"];

/// A filesystem that exists before it is mounted, too late for an option: its root is labelled instead.
const MADE_WITH_ITS_NAMESPACE: &str = "mqueue";

/// That the kernel can do what the process asks for.
pub fn check(process: &Process) -> Result<()> {
    if let Some(profile) = apparmor_profile(process) {
        single_line(profile, "process.apparmorProfile")?;
        ensure!(
            profile == UNCONFINED || apparmor_is_on(),
            "process.apparmorProfile: {profile:?}: AppArmor is not enabled on this machine"
        );
    }
    selinux_label(process).map_or(Ok(()), |label| check_label(label, "process.selinuxLabel"))
}

/// The same for the label of the container's mounts.
pub fn check_mounts(linux: &Linux) -> Result<()> {
    mount_label(linux).map_or(Ok(()), |label| check_label(label, "linux.mountLabel"))
}

fn check_label(label: &str, field: &str) -> Result<()> {
    single_line(label, field)?;
    ensure!(
        selinux_is_on(),
        "{field}: {label:?}: SELinux is not enabled on this machine"
    );
    Ok(())
}

fn single_line(text: &str, field: &str) -> Result<()> {
    ensure!(
        !text.contains(['\0', '\n']),
        "{field}: {text:?}: must not hold a NUL or a newline"
    );
    Ok(())
}

fn apparmor_profile(process: &Process) -> Option<&str> {
    process
        .apparmor_profile()
        .as_deref()
        .filter(|profile| !profile.is_empty())
}

fn selinux_label(process: &Process) -> Option<&str> {
    process.selinux_label().as_deref().filter(|label| !label.is_empty())
}

fn mount_label(linux: &Linux) -> Option<&str> {
    linux.mount_label().as_deref().filter(|label| !label.is_empty())
}

fn apparmor_is_on() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

fn selinux_is_on() -> bool {
    rustix::fs::statfs("/sys/fs/selinux").is_ok_and(|stat| i128::from(stat.f_type) == SELINUX_MAGIC)
}

/// Whether the process needs a procfs to write a label to.
pub fn labels(process: &Process) -> bool {
    apparmor_profile(process).is_some() || selinux_label(process).is_some()
}

/// Asks for the labels this process is to have from its execve on.
pub fn label_exec(proc: BorrowedFd<'_>, process: &Process) -> Result<()> {
    if let Some(profile) = apparmor_profile(process).filter(|&profile| profile != UNCONFINED || apparmor_is_on()) {
        let command = format!("exec {profile}");
        // The second is where Linux before 5.8 has it, and belongs to whichever module came first.
        let written = match write_attribute(proc, "apparmor/exec", &command) {
            Err(Errno::NOENT) if !has_attribute(proc, "apparmor/exec") => write_attribute(proc, "exec", &command),
            written => written,
        };
        written.with_context(|| format!("process.apparmorProfile: write {command:?} to attr/apparmor/exec"))?;
    }
    if let Some(label) = selinux_label(process) {
        write_attribute(proc, "exec", label)
            .with_context(|| format!("process.selinuxLabel: write {label:?} to attr/exec"))?;
    }
    Ok(())
}

/// Runs `make`, which makes keys, with the label that keys are to have.
pub fn label_keys(proc: Option<BorrowedFd<'_>>, process: &Process, make: impl FnOnce() -> Result<()>) -> Result<()> {
    let (Some(proc), Some(label)) = (proc, selinux_label(process)) else {
        return make();
    };
    let write = |label| {
        write_attribute(proc, "keycreate", label)
            .with_context(|| format!("process.selinuxLabel: write {label:?} to attr/keycreate"))
    };
    write(label)?;
    make()?;
    // A line that is empty is no label.
    write("\n")
}

/// A file below attr/ of this very thread: the kernel takes labels from nobody else.
fn open_attribute(proc: BorrowedFd<'_>, name: &str, flags: OFlags) -> Result<std::os::fd::OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    let path = format!("thread-self/attr/{name}");
    rustix::fs::openat2(proc, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn has_attribute(proc: BorrowedFd<'_>, name: &str) -> bool {
    open_attribute(proc, name, OFlags::PATH).is_ok()
}

fn write_attribute(proc: BorrowedFd<'_>, name: &str, value: &str) -> Result<(), Errno> {
    let file = open_attribute(proc, name, OFlags::WRONLY)?;
    // One write: the kernel takes each for a whole value.
    rustix::io::write(&file, value.as_bytes()).map(drop)
}

/// The option that labels a new filesystem of this kind, if it is to be labelled.
pub fn mount_option(linux: Option<&Linux>, kind: &str) -> Option<(String, Option<String>)> {
    let label = linux.and_then(mount_label)?;
    let optional = !LABELLED_BY_POLICY.contains(&kind) && kind != MADE_WITH_ITS_NAMESPACE;
    optional.then(|| ("context".to_owned(), Some(label.to_owned())))
}

/// Labels the root of a mount that took no option.
pub fn label_mount(linux: Option<&Linux>, kind: &str, mount: BorrowedFd<'_>) -> Result<()> {
    let Some(label) = linux.and_then(mount_label).filter(|_| kind == MADE_WITH_ITS_NAMESPACE) else {
        return Ok(());
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(mount, ".", flags, Mode::empty()).context("open its root")?;
    rustix::fs::fsetxattr(&root, "security.selinux", label.as_bytes(), XattrFlags::empty())
        .with_context(|| format!("linux.mountLabel: fsetxattr(security.selinux, {label:?})"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_of_mounts() {
        let linux: Linux = serde_json::from_value(json!({"mountLabel": "a:b:c:s0"})).unwrap();
        for (kind, labelled) in [
            ("tmpfs", true),
            ("devpts", true),
            ("mqueue", false),
            ("proc", false),
            ("sysfs", false),
            ("cgroup2", false),
        ] {
            assert_eq!(mount_option(Some(&linux), kind).is_some(), labelled, "{kind}");
        }
        let none: Linux = serde_json::from_value(json!({"mountLabel": ""})).unwrap();
        assert!(mount_option(Some(&none), "tmpfs").is_none() && mount_option(None, "tmpfs").is_none());
        assert_eq!(check_mounts(&none).map_err(|error| error.to_string()), Ok(()));
    }

    #[test]
    fn lines() {
        let process = |field: &str, value: &str| -> Process {
            serde_json::from_value(json!({"cwd": "/", "user": {"uid": 0, "gid": 0}, field: value})).unwrap()
        };
        for (field, value, words) in [
            ("apparmorProfile", "a\nb", "newline"),
            ("selinuxLabel", "a\u{0}", "NUL"),
        ] {
            let error = check(&process(field, value)).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("process.{field}: ")) && error.contains(words),
                "{error}"
            );
        }
        assert!(check(&process("apparmorProfile", UNCONFINED)).is_ok());
        assert!(!labels(&process("apparmorProfile", "")));
    }
}
