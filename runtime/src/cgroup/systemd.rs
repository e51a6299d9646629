//! The systemd driver: a container's cgroups as a transient scope, which systemd keeps beside its own units.
//!
//! ```text
//!   linux.cgroupsPath   SLICE:PREFIX:NAME; none: system.slice:corten:ID
//!   unit                PREFIX-NAME.scope, or NAME.scope
//!   cgroup              a-b.slice is /a.slice/a-b.slice; below it the unit
//! ```
//! A scope needs a process to begin with: a [`Placeholder`], which is there until init is in, so that limits stand before
//! init comes as without systemd. Limits are properties of the unit, lest a daemon-reload take them back, and written to
//! the files as well: not all of them have a property.
//!
//! D-Bus is spoken at create, update and delete; exec, kill, state and the others go by the directories in state.json.
//! `properties.rs` translates limits and annotations, all pure.

mod properties;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use corten_proto::id::ContainerId;
use nix::sched::CloneFlags;
use oci_spec::runtime::{LinuxResources, Spec};
use rustix::process::{Signal, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};

use super::limits;
use crate::dbus::{Body, Connection, Message, Method, Refusal, Value};
use crate::sys::clone::{Cloned, clone3, exit_now};

/// How long systemd may take for all that one command asks of it. Its own jobs for a scope take some milliseconds; the
/// rest is for a machine under load.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Where the system's bus listens, unless the environment says otherwise.
const SYSTEM_BUS: &str = "unix:path=/run/dbus/system_bus_socket;unix:path=/var/run/dbus/system_bus_socket";

/// The unit of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Its name.
    unit: String,
    /// The slice it is in.
    slice: String,
    /// It is the user's systemd that keeps it.
    user: bool,
}

impl Scope {
    /// The unit that `linux.cgroupsPath` asks for. No side effect.
    pub(super) fn plan(path: Option<&Path>, id: &ContainerId, user: bool) -> Result<Scope> {
        let text = path.map(Path::to_string_lossy).unwrap_or_default();
        let default = if user { "user.slice" } else { "system.slice" };
        let (slice, prefix, name) = match text.split(':').collect::<Vec<_>>()[..] {
            // Go programs write an absent path as an empty one.
            [""] => ("", "corten", id.as_str()),
            [slice, prefix, name] => (slice, prefix, name),
            _ => bail!("linux.cgroupsPath: {text:?}: must be slice:prefix:name for the systemd cgroup driver"),
        };
        let valid = |part: &str| {
            part.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b))
        };
        ensure!(
            valid(prefix) && valid(name) && !name.is_empty(),
            "linux.cgroupsPath: {text:?}: prefix and name must make the name of a unit"
        );
        ensure!(
            !name.ends_with(".slice"),
            "linux.cgroupsPath: {text:?}: a slice holds no processes"
        );
        let unit = match prefix {
            "" => format!("{name}.scope"),
            prefix => format!("{prefix}-{name}.scope"),
        };
        let slice = if slice.is_empty() { default } else { slice }.to_owned();
        slice_path(&slice).with_context(|| format!("linux.cgroupsPath: {text:?}"))?;
        Ok(Scope { unit, slice, user })
    }

    /// The scope's cgroup, in every hierarchy, as /proc/PID/cgroup would name it.
    pub(super) fn cgroup(&self) -> Result<PathBuf> {
        let mut bus = self.connect()?;
        // Not `/` where systemd itself runs in a container, or is a user's.
        let root = property(&mut bus, "ControlGroup")?;
        let root = root.trim_start_matches('/');
        Ok(Path::new("/")
            .join(root)
            .join(slice_path(&self.slice)?)
            .join(&self.unit))
    }

    /// Has systemd make the scope, with this container's limits and with a process of ours in it.
    pub(super) fn start(&self, spec: &Spec, v2: bool) -> Result<Placeholder> {
        let placeholder = Placeholder::new()?;
        let mut bus = self.connect()?;
        let mut all = self.common(placeholder.pid, v2);
        let linux = spec.linux().as_ref();
        if let Some(resources) = linux.and_then(|linux| linux.resources().as_ref()) {
            all.extend(self.limits(&mut bus, resources, v2)?);
        }
        if let Some(linux) = linux {
            let groups = std::fs::read_to_string("/proc/devices").context("read /proc/devices")?;
            all.extend(properties::devices(&limits::policy(linux)?, &groups, v2));
        }
        for (key, value) in spec.annotations().iter().flatten() {
            all.extend(properties::annotation(key, value).with_context(|| format!("annotations.{key:?}"))?);
        }
        bus.subscribe("type='signal',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'")?;
        let call = |bus: &mut Connection| {
            let body = Body::default()
                .text(&self.unit)
                .text("fail")
                .properties(&all)
                .no_units();
            bus.call(manager("StartTransientUnit"), body)
        };
        let job = match call(&mut bus) {
            // What is left of a unit that has failed.
            Err(error) if is_refusal(&error, "UnitExists") => {
                self.reset_failed(&mut bus)?;
                call(&mut bus)
            }
            job => job,
        };
        let job = job.with_context(|| format!("start {} by systemd", self.unit))?;
        self.wait(&mut bus, &job)?;
        Ok(placeholder)
    }

    /// Tells systemd of changed limits.
    pub(super) fn update(&self, resources: &LinuxResources, v2: bool) -> Result<()> {
        let mut bus = self.connect()?;
        let limits = self.limits(&mut bus, resources, v2)?;
        if limits.is_empty() {
            return Ok(());
        }
        // For this run of the machine, as the unit itself.
        let body = Body::default().text(&self.unit).flag(true).properties(&limits);
        bus.call(manager("SetUnitProperties"), body)
            .with_context(|| format!("change {} by systemd", self.unit))?;
        Ok(())
    }

    /// Has systemd stop the scope and forget it. One that is gone is fine: it goes by itself with its last process.
    pub(super) fn stop(&self) -> Result<()> {
        let mut bus = self.connect()?;
        bus.subscribe("type='signal',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'")?;
        let body = Body::default().text(&self.unit).text("replace");
        match bus.call(manager("StopUnit"), body) {
            Err(error) if is_refusal(&error, "NoSuchUnit") => return Ok(()),
            job => self.wait(
                &mut bus,
                &job.with_context(|| format!("stop {} by systemd", self.unit))?,
            )?,
        }
        self.reset_failed(&mut bus)
    }

    /// What every scope has.
    fn common(&self, pid: u32, v2: bool) -> Vec<(String, Value)> {
        let text = |text: &str| Value::Text(text.to_owned());
        let io = if v2 { "IOAccounting" } else { "BlockIOAccounting" };
        let mut all = vec![
            (
                "Description",
                text(&format!("container {}", self.unit.trim_end_matches(".scope"))),
            ),
            ("Slice", text(&self.slice)),
            ("DefaultDependencies", Value::Bool(false)),
            // What is below is the container's; and all controllers are switched on.
            ("Delegate", Value::Bool(true)),
            ("PIDs", Value::U32s(vec![pid])),
        ];
        all.extend(["CPUAccounting", "MemoryAccounting", "TasksAccounting", io].map(|name| (name, Value::Bool(true))));
        all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn limits(&self, bus: &mut Connection, resources: &LinuxResources, v2: bool) -> Result<Vec<(String, Value)>> {
        let version = properties::version(&property(bus, "Version")?);
        properties::limits(&limits::writes(resources, v2)?, version)
    }

    fn connect(&self) -> Result<Connection> {
        let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let addresses = if self.user {
            let directory = || environment("XDG_RUNTIME_DIR").map(|directory| format!("unix:path={directory}/bus"));
            environment("DBUS_SESSION_BUS_ADDRESS").or_else(directory).context(
                "the systemd cgroup driver: no bus of the user's: no DBUS_SESSION_BUS_ADDRESS, no XDG_RUNTIME_DIR",
            )?
        } else {
            environment("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_else(|| SYSTEM_BUS.to_owned())
        };
        Connection::open(&addresses, TIMEOUT).context("the systemd cgroup driver: connect to the message bus")
    }

    /// Waits for a job to be over.
    fn wait(&self, bus: &mut Connection, job: &Message) -> Result<()> {
        let job = job.arguments()?.into_iter().next().context("systemd names no job")?;
        loop {
            let signal = bus
                .signal()
                .with_context(|| format!("wait for systemd's job on {}", self.unit))?;
            if signal.member != "JobRemoved" {
                continue;
            }
            // (u id, o job, s unit, s result)
            if let [_, path, _, result] = &signal.arguments()?[..]
                && *path == job
            {
                ensure!(result == "done", "systemd's job on {}: {result}", self.unit);
                return Ok(());
            }
        }
    }

    fn reset_failed(&self, bus: &mut Connection) -> Result<()> {
        match bus.call(manager("ResetFailedUnit"), Body::default().text(&self.unit)) {
            Err(error) if !is_refusal(&error, "NoSuchUnit") => {
                Err(error).with_context(|| format!("reset {} by systemd", self.unit))
            }
            _ => Ok(()),
        }
    }
}

fn manager(member: &str) -> Method<'_> {
    Method {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        member,
    }
}

fn property(bus: &mut Connection, name: &str) -> Result<String> {
    let get = Method {
        interface: "org.freedesktop.DBus.Properties",
        ..manager("Get")
    };
    let body = Body::default().text("org.freedesktop.systemd1.Manager").text(name);
    let reply = bus
        .call(get, body)
        .with_context(|| format!("ask systemd for its {name}"))?;
    let value = reply.arguments()?.into_iter().next();
    value.ok_or_else(|| anyhow!("ask systemd for its {name}: no text"))
}

fn is_refusal(error: &anyhow::Error, name: &str) -> bool {
    let refusal = error.downcast_ref::<Refusal>();
    refusal.is_some_and(|refusal| refusal.name.strip_prefix("org.freedesktop.systemd1.") == Some(name))
}

/// `a-b.slice` as `a.slice/a-b.slice`, systemd.slice(5); `-.slice` is the root.
fn slice_path(slice: &str) -> Result<PathBuf> {
    let stem = slice.strip_suffix(".slice");
    let stem = stem.filter(|stem| !stem.is_empty() && !slice.contains('/'));
    let stem = stem.with_context(|| format!("{slice:?}: not the name of a slice"))?;
    let (mut path, mut name) = (PathBuf::new(), String::new());
    if stem == "-" {
        return Ok(path);
    }
    for part in stem.split('-') {
        ensure!(!part.is_empty(), "{slice:?}: not the name of a slice");
        name.push_str(part);
        path.push(format!("{name}.slice"));
        name.push('-');
    }
    Ok(path)
}

/// A process that does nothing, so that a scope has one. Dropping it ends it; it ends with its parent, too.
#[derive(Debug)]
pub(super) struct Placeholder {
    pid: u32,
    pidfd: OwnedFd,
}

impl Placeholder {
    fn new() -> Result<Placeholder> {
        let parent = nix::unistd::getpid();
        match clone3(CloneFlags::empty(), None).context("clone3 for the scope's first process")? {
            Cloned::Child => {
                let bound = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
                // The parent may have gone before that was set.
                while bound.is_ok() && nix::unistd::getppid() == parent {
                    nix::unistd::pause();
                }
                exit_now(0)
            }
            Cloned::Parent { pid, pidfd } => Ok(Placeholder {
                pid: pid.cast_unsigned(),
                pidfd,
            }),
        }
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        let end = || -> Result<()> {
            rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL).context("pidfd_send_signal")?;
            rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED).context("waitid")?;
            Ok(())
        };
        crate::log::best_effort("end the scope's first process", end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices() {
        for (slice, path) in [
            ("system.slice", Some("system.slice")),
            ("a-b-c.slice", Some("a.slice/a-b.slice/a-b-c.slice")),
            ("-.slice", Some("")),
            ("a", None),
            (".slice", None),
            ("a--b.slice", None),
            ("-a.slice", None),
            ("a-.slice", None),
            ("../a.slice", None),
        ] {
            let result = slice_path(slice);
            assert_eq!(result.ok(), path.map(PathBuf::from), "{slice}");
        }
    }

    #[test]
    fn units() {
        let id: ContainerId = "c1".parse().unwrap();
        for (path, user, scope) in [
            (None, false, Ok(("corten-c1.scope", "system.slice"))),
            (Some(""), true, Ok(("corten-c1.scope", "user.slice"))),
            (Some("::n"), false, Ok(("n.scope", "system.slice"))),
            (Some("k-p.slice:cri:n"), false, Ok(("cri-n.scope", "k-p.slice"))),
            (Some("/a/b"), false, Err("slice:prefix:name")),
            (Some("a:b"), false, Err("slice:prefix:name")),
            (Some("s.slice:p:"), false, Err("name of a unit")),
            (Some("s.slice:p:a/b"), false, Err("name of a unit")),
            (Some("s.slice:p:x.slice"), false, Err("no processes")),
            (Some("../s.slice:p:n"), false, Err("slice")),
        ] {
            let planned = Scope::plan(path.map(Path::new), &id, user);
            match scope {
                Ok((unit, slice)) => {
                    let planned = planned.unwrap();
                    assert_eq!((&*planned.unit, &*planned.slice, planned.user), (unit, slice, user));
                }
                Err(word) => {
                    let error = format!("{:#}", planned.unwrap_err());
                    assert!(
                        error.starts_with("linux.cgroupsPath: ") && error.contains(word),
                        "{error}"
                    );
                }
            }
        }
    }
}
