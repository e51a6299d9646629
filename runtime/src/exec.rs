//! One more process in a container: both halves of `exec`.
//!
//! The process enters the cgroup first, then all namespaces at once through init's pidfd (`setns(2)`, Linux 5.8), so
//! that there is no moment in which it is in some of them only and no path of the container's is involved.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use corten_proto::id::ContainerId;
use nix::sched::{CloneFlags, setns};
use oci_spec::runtime::{ContainerState, LinuxCapabilities, Process, Spec};
use rustix::fs::{Mode, OFlags};

use crate::cgroup::Cgroup;
use crate::console::Terminal;
use crate::error::Error;
use crate::init::{adopt, become_program_user, execute, host_procfs, join_keyring};
use crate::process::{Program, Terms};
use crate::rootfs::resolve::Root;
use crate::seccomp::{self, Filter};
use crate::spawn::{self, Child, Plan, Start};
use crate::state::{Directory, State, Status};
use crate::sync::{FromChild, FromParent};
use crate::{log, lsm, namespaces, process, rdt, rootless, scheduling, signal, socket, state};

/// What is to be executed, and how.
#[derive(Debug)]
pub struct Exec {
    /// The process, complete.
    pub process: Process,
    /// Where the terminal goes.
    pub console: Option<OwnedFd>,
    /// How many descriptors from 3 on the program gets.
    pub preserve_fds: i32,
    /// Where the pid is written.
    pub pid_file: Option<PathBuf>,
    /// Where a pidfd goes.
    pub pidfd_socket: Option<OwnedFd>,
    /// The cgroup below the container's that it goes to ([`Cgroup::below`]); the container's own where there is none.
    pub cgroup: Vec<String>,
}

/// A container that is running, as exec needs it.
#[derive(Debug)]
pub struct Target {
    /// Its state.
    pub state: State,
    /// Its specification.
    pub spec: Spec,
    init: OwnedFd,
    filter: Option<Filter>,
}

impl Target {
    /// Finds the container. It may be created only: its namespaces exist. In a paused one the process is frozen as soon
    /// as it is in the cgroup, which is before it has joined anything: with `ignore_paused` an exec waits for the resume.
    pub fn open(root: &Path, id: &ContainerId, ignore_paused: bool) -> Result<Target> {
        let directory = Directory::open(root, id)?;
        let state = directory.state()?;
        let status = directory.status(&state);
        match status {
            Status::Running | Status::Created => {}
            Status::Paused if ignore_paused => {}
            status => bail!("exec in container {id}: it is {status}"),
        }
        let init = signal::open_process(state.pid, state.start_time)?.ok_or(Error::NotRunning)?;
        let spec = directory.spec()?;
        let filter = Filter::prepare(root, &spec)?;
        Ok(Target {
            state,
            spec,
            init,
            filter,
        })
    }
}

impl Exec {
    /// Starts the process; its program runs when this returns.
    pub fn start(&self, target: &Target) -> Result<(i32, OwnedFd)> {
        let flags = namespaces::to_join(&target.spec, target.state.pid)?;
        let join =
            || setns(&target.init, flags).with_context(|| format!("setns(pidfd of {}, {flags:?})", target.state.pid));
        scheduling::set_initial_affinity(&self.process)?;
        // In the container /proc may be anything.
        let proc = lsm::labels(&self.process).then(host_procfs).transpose()?;
        let proc = proc.as_ref().map(AsFd::as_fd);
        let terms = Terms::new(flags.contains(CloneFlags::CLONE_NEWUSER), self.preserve_fds)?;
        let spawn = |cgroup: &Cgroup| {
            let plan = Plan {
                new: CloneFlags::empty(),
                cgroup,
                dumpable: false,
                between: Some(&join),
                time_offsets: None,
            };
            spawn::spawn(&plan, |start| self.run(start, target, terms, proc))
        };
        let lent = rootless::lend_oom_score(&self.process)?;
        let own = Cgroup::open(target.state.cgroup.clone());
        let cgroup = if self.cgroup.is_empty() {
            own
        } else {
            own.below(&self.cgroup)?
        };
        let child = match spawn(&cgroup) {
            // A v2 cgroup whose controllers the container has passed on to cgroups below takes no process itself; then
            // the one that the container's init went to.
            Err(error) if self.cgroup.is_empty() && is_busy(&error) => spawn(&Cgroup::of_process(target.state.pid)?)?,
            child => child?,
        };
        drop(lent);
        self.prepare(&child, target, terms)
            .map_err(|error| child.explain(error))?;
        let pid = child.pid;
        Ok((pid, child.release()))
    }

    /// Does to the child what is to be done from outside, until the end of file that says its program runs.
    fn prepare(&self, child: &Child, target: &Target, terms: Terms) -> Result<()> {
        if !terms.unprivileged {
            process::set_oom_score_adj(&self.process, child.pid)?;
        }
        if terms.user_namespace && self.console.is_none() {
            process::give_stdio(&self.process, child.pid)?;
        }
        if let Some(rdt) = target
            .spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.intel_rdt().as_ref())
        {
            rdt::enter(rdt, target.state.id.as_str(), &rdt::mounted()?, child.pid)?;
        }
        child.channel.send(&FromParent::Mapped)?;
        let mut message = child.receive()?;
        if let Some(FromChild::Listening { descriptor }) = message {
            let status = ContainerState::Running;
            seccomp::hand_over(target.filter.as_ref(), child, descriptor, &target.state, status)?;
            message = child.receive()?;
        }
        let Some(FromChild::Ready) = message else {
            bail!("the process ended before its program ran")
        };
        if terms.limits_from_outside {
            process::set_rlimits(&self.process, Some(child.pid))?;
        }
        scheduling::set(&self.process, child.pid)?;
        scheduling::set_final_affinity(&self.process, child.pid)?;
        if let Some(path) = &self.pid_file {
            state::write_pid_file(path, child.pid)?;
        }
        if let Some(socket) = &self.pidfd_socket {
            // The words are those that runc sends.
            socket::send(socket.as_fd(), "setns", child.pidfd()).context("--pidfd-socket")?;
        }
        child.channel.send(&FromParent::Proceed)?;
        match child.receive()? {
            None => Ok(()),
            Some(message) => bail!("waiting for the program to run: got {message:?}"),
        }
    }

    /// The child's life, in the container's namespaces from its first instruction.
    fn run(&self, start: &Start, target: &Target, terms: Terms, proc: Option<BorrowedFd<'_>>) -> Result<Infallible> {
        nix::unistd::setsid().context("setsid")?;
        if terms.user_namespace {
            namespaces::become_root()?;
        }
        lsm::label_keys(proc, &self.process, || join_keyring(&target.state.id, true))?;
        adopt(&target.spec, &self.process, proc)?;
        let terminal = self
            .console
            .as_ref()
            .map(|socket| self.open_terminal(socket))
            .transpose()?;
        let Err(error) = self.become_program(start, target, terminal, terms);
        // Descriptors have been closed under their owners, whose destructors must not run.
        spawn::give_up(&start.channel, &error)
    }

    fn become_program(
        &self,
        start: &Start,
        target: &Target,
        terminal: Option<Terminal>,
        terms: Terms,
    ) -> Result<Infallible> {
        let (keep, filter) = ([start.channel.descriptor()], target.filter.as_ref());
        let mut confinement = become_program_user(&self.process, terminal, terms, &keep, filter)?;
        let program = Program::prepare(&self.process, terms.listen_fds)?;
        let listener = confinement.listen(&start.channel, terms.unprivileged)?;
        start.channel.send(&FromChild::Ready)?;
        start.channel.expect(FromParent::Proceed)?;
        drop(listener);
        execute(&program, confinement)
    }

    fn open_terminal(&self, socket: &OwnedFd) -> Result<Terminal> {
        let slash = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .context("open /")?;
        let terminal = Terminal::open(&Root::new(slash), &self.process)?;
        terminal.send(socket.as_fd())?;
        Ok(terminal)
    }
}

/// The cause is EBUSY, or EOPNOTSUPP of a cgroup that has become a threaded one, whichever crate's type says so.
fn is_busy(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    let number = io.and_then(std::io::Error::raw_os_error).or(error
        .downcast_ref::<rustix::io::Errno>()
        .map(|errno| errno.raw_os_error()));
    matches!(number, Some(libc::EBUSY | libc::EOPNOTSUPP))
}

/// A process with a document of its own is, where that says nothing, labelled and scheduled as the container's: leaving a
/// field out is no way out of a profile. As with runc.
pub fn inherit(process: &mut Process, container: &Process) {
    let named = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if !named(process.apparmor_profile()) {
        process.set_apparmor_profile(container.apparmor_profile().clone());
    }
    if !named(process.selinux_label()) {
        process.set_selinux_label(container.selinux_label().clone());
    }
    if process.scheduler().is_none() {
        process.set_scheduler(container.scheduler().clone());
    }
    if process.io_priority().is_none() {
        process.set_io_priority(*container.io_priority());
    }
    if process.exec_cpu_affinity().is_none() {
        process.set_exec_cpu_affinity(container.exec_cpu_affinity().clone());
    }
}

/// No exec gets inheritable capabilities beyond those that ambient ones need: programs with file capabilities would be
/// given them by an unprivileged user (CVE-2022-29162).
pub fn limit_inheritable(process: &mut Process) {
    let Some(mut sets) = process.capabilities().clone() else {
        return;
    };
    if sets.inheritable().is_some() {
        sets.set_inheritable(sets.ambient().clone());
        log::debug("inheritable capabilities are limited to the ambient ones");
    }
    process.set_capabilities(Some(sets));
}

/// Adds capabilities to all sets but the inheritable and the ambient one.
pub fn add_capabilities(process: &mut Process, names: &[String]) -> Result<()> {
    let mut sets = process.capabilities().clone().unwrap_or_else(no_capabilities);
    for name in names {
        let quoted = serde_json::Value::String(name.to_ascii_uppercase());
        let capability: oci_spec::runtime::Capability =
            serde_json::from_value(quoted).with_context(|| format!("--cap {name}: not a capability"))?;
        let with = |set: &Option<std::collections::HashSet<_>>| {
            let mut set = set.clone().unwrap_or_default();
            set.insert(capability);
            Some(set)
        };
        let (bounding, effective, permitted) = (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
        sets.set_bounding(bounding)
            .set_effective(effective)
            .set_permitted(permitted);
    }
    process.set_capabilities(Some(sets));
    Ok(())
}

/// The type's own default grants three.
fn no_capabilities() -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(None)
        .set_effective(None)
        .set_inheritable(None)
        .set_permitted(None)
        .set_ambient(None);
    sets
}
