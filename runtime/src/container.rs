//! The parent's half of a container's life: create, pause, resume, kill, delete. To start it is in [`crate::start`].
//!
//! [`create`] is the list of steps; each one that leaves something behind holds a guard that takes it away again, until
//! the last step lets go of them all. The order of the guards is the reverse of the undoing: init is killed, then its
//! cgroup removed, then the directory.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use corten_proto::id::ContainerId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use oci_spec::runtime::{ContainerState, Hook, Spec};
use rustix::io::Errno;

use crate::bundle::Bundle;
use crate::cgroup::{self, Cgroup, Driver};
use crate::cli::Rootless;
use crate::error::Error;
use crate::init::{Init, runtime_hooks};
use crate::interrupt::{self, Interrupt, Interrupted};
use crate::namespaces::{self, Namespaces};
use crate::process::Terms;
use crate::rootfs::Sources;
use crate::rootfs::idmap::Idmaps;
use crate::seccomp::{self, Filter};
use crate::spawn::{self, Child, Plan};
use crate::state::{self, Directory, OCI_VERSION, State, Status};
use crate::sync::{FromChild, FromParent};
use crate::{hooks, log, netdev, notify, process, rdt, rootless, scheduling, signal, socket, time};

/// How long a killed process may take to be gone before delete gives up on it. One in uninterruptible sleep takes as
/// long as its device.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one usually takes at most, unless something keeps it.
const QUICK_END: Duration = Duration::from_millis(200);

/// What a create is asked for.
#[derive(Debug)]
pub struct Create {
    /// The new container's id.
    pub id: ContainerId,
    /// The bundle directory.
    pub bundle: PathBuf,
    /// Where init's pid is written.
    pub pid_file: Option<PathBuf>,
    /// Where the terminal goes, if the process has one.
    pub console: Option<OwnedFd>,
    /// Where a pidfd of init goes.
    pub pidfd_socket: Option<OwnedFd>,
    /// How many descriptors from 3 on are sockets that a service manager passes on.
    pub listen_fds: i32,
    /// How many descriptors after those the program gets.
    pub preserve_fds: i32,
    /// Whether the specification shows the program a notify socket ([`notify`]).
    pub notify: bool,
    /// Whether the host's root stays, below the container's.
    pub no_pivot: bool,
    /// Whether the session gets a keyring of its own.
    pub new_keyring: bool,
    /// Whether it may go without a cgroup.
    pub rootless: Rootless,
    /// Who makes its cgroups.
    pub driver: Driver,
}

/// A container just created.
#[derive(Debug)]
pub struct Created {
    /// Its directory, locked.
    pub directory: Directory,
    /// Its state.
    pub state: State,
    /// Its init.
    pub init: OwnedFd,
}

/// Creates a container: on success its init waits on the exec fifo, on failure nothing is left.
pub fn create(root: &Path, request: &Create, bundle: &Bundle) -> Result<Created> {
    let spec = &bundle.spec;
    let linux = spec.linux().as_ref().context("linux: missing")?;
    let prepared = Prepared::new(root, spec, &request.id)?;
    check_no_pivot(request, &prepared.namespaces)?;
    let planned = Cgroup::plan(linux.cgroups_path().as_deref(), &request.id, request.driver)?;

    let reserved = state::reserve(root, &request.id)?;
    let directory = reserved.directory();
    let mut state = first_state(&request.id, bundle, &planned);
    state.rdt = prepared.rdt.as_ref().map(|plan| plan.groups().clone());
    directory.write_spec(&bundle.text)?;
    if request.notify {
        notify::make_directory(directory.path())?;
    }
    // Before the cgroup: delete must know where to look for it.
    directory.write(&state)?;
    let none;
    let (cgroup, made) = match planned.create(spec) {
        Ok(made) => (&planned, made),
        Err(error) => {
            none = rootless::without_cgroup(error, linux, request.rootless).context("make the cgroup")?;
            state.cgroup = none.paths().clone();
            state.scope = None;
            (&none, none.create(spec)?)
        }
    };
    state.own_cgroup = true;
    directory.write(&state)?;
    cgroup.apply(linux)?;
    match launch(request, bundle, directory, &mut state, cgroup, &prepared) {
        Ok(init) => {
            made.keep();
            Ok(Created {
                directory: reserved.keep(),
                state,
                init,
            })
        }
        Err(error) => {
            remove_rdt(&state);
            // Hooks may have run: the last ones run after everything is undone (runtime.md, "Lifecycle").
            drop(made);
            drop(reserved);
            run_poststop_hooks(spec, &state);
            Err(error)
        }
    }
}

/// Without pivot_root what the host has mounted must be detached ([`crate::rootfs::pivot::chroot_over`]): in a mount
/// namespace of others it is theirs, and the mounts that came with a user namespace cannot be (mount_namespaces(7)). runc
/// leaves them where they are then.
fn check_no_pivot(request: &Create, namespaces: &Namespaces) -> Result<()> {
    let impossible = namespaces.joins_mount() || namespaces.user();
    ensure!(
        !request.no_pivot || !impossible,
        "--no-pivot: needs a new mount namespace, and no user namespace"
    );
    Ok(())
}

/// Makes init and brings it to where it waits to be started. On failure it is gone.
fn launch(
    request: &Create,
    bundle: &Bundle,
    directory: &Directory,
    state: &mut State,
    cgroup: &Cgroup,
    prepared: &Prepared,
) -> Result<OwnedFd> {
    let (namespaces, idmaps) = (&prepared.namespaces, &prepared.idmaps);
    let fifo = directory.make_fifo()?;
    let filter = prepared.filter.as_ref();
    let sources = open_sources(bundle, cgroup, namespaces, idmaps)?;
    let terms = Terms {
        listen_fds: request.listen_fds,
        ..Terms::new(namespaces.user(), request.listen_fds + request.preserve_fds)?
    };
    let init = Init {
        bundle,
        namespaces,
        idmaps,
        sources: sources.as_ref(),
        state,
        fifo: &fifo,
        console: request.console.as_ref(),
        terms,
        filter,
        new_keyring: request.new_keyring,
        no_pivot: request.no_pivot,
    };
    let child = spawn_init(&init, cgroup)?;
    let network = || namespaces.network(child.pid);
    // Before the hooks, which may look at its network.
    let moved = netdev::take(&bundle.spec, directory, state, network).map_err(|error| child.explain(error))?;
    prepared.rdt.as_ref().map_or(Ok(()), |plan| plan.apply(child.pid))?;
    state.pid = child.pid;
    serve(&child, bundle, state, filter)?;
    state.start_time = state::process_start(child.pid).context("init has ended")?;
    if terms.limits_from_outside {
        process::set_rlimits(bundle.process()?, Some(child.pid))?;
    }
    scheduling::set(bundle.process()?, child.pid)?;
    directory.write(state)?;
    if let Some(path) = &request.pid_file {
        state::write_pid_file(path, child.pid)?;
    }
    if let Some(socket) = &request.pidfd_socket {
        // The words are those that runc sends.
        socket::send(socket.as_fd(), "standard", child.pidfd()).context("--pidfd-socket")?;
    }
    // The last step that can fail; init has everything it needs.
    child.channel.send(&FromParent::Proceed)?;
    moved.keep();
    Ok(child.release())
}

/// Opens everything that has a path on the host; `None` where that is for init to do, in the mount namespace it joins or
/// with the rights it has in its own.
fn open_sources(bundle: &Bundle, cgroup: &Cgroup, namespaces: &Namespaces, idmaps: &Idmaps) -> Result<Option<Sources>> {
    if namespaces.joins_mount() || rootless::unprivileged() {
        return Ok(None);
    }
    match Sources::open(bundle, cgroup.paths(), namespaces, idmaps) {
        // Root of a user namespace has no right to the mounts of an older one.
        Err(error) if error.downcast_ref() == Some(&Errno::PERM) && rootless::in_user_namespace() => Ok(None),
        sources => sources.map(Some),
    }
}

/// What is opened and checked before there is anything to undo.
struct Prepared {
    namespaces: Namespaces,
    idmaps: Idmaps,
    filter: Option<Filter>,
    rdt: Option<rdt::Plan>,
}

impl Prepared {
    fn new(root: &Path, spec: &Spec, id: &ContainerId) -> Result<Prepared> {
        let namespaces = Namespaces::open(spec)?;
        let idmaps = Idmaps::open(spec, &namespaces)?;
        let wanted = spec.linux().as_ref().and_then(|linux| linux.intel_rdt().as_ref());
        let plan = |rdt| rdt::Plan::new(rdt, id.as_str(), &rdt::mounted()?);
        Ok(Prepared {
            namespaces,
            idmaps,
            filter: Filter::prepare(root, spec)?,
            rdt: wanted.map(plan).transpose()?,
        })
    }
}

/// Once none of its processes is left.
fn remove_rdt(state: &State) {
    if let Some(groups) = &state.rdt {
        log::best_effort("remove the resctrl groups", rdt::remove(groups));
    }
}

pub(crate) fn first_state(id: &ContainerId, bundle: &Bundle, cgroup: &Cgroup) -> State {
    State {
        oci_version: OCI_VERSION.to_owned(),
        id: id.clone(),
        pid: 0,
        start_time: 0,
        bundle: bundle.path.clone(),
        rootfs: bundle.rootfs.clone(),
        created: time::rfc3339(SystemTime::now()),
        own_pid_namespace: namespaces::own_pid_namespace(&bundle.spec),
        annotations: bundle.spec.annotations().clone().unwrap_or_default(),
        cgroup: cgroup.paths().clone(),
        own_cgroup: false,
        scope: cgroup.scope().cloned(),
        net_devices: Vec::new(),
        rdt: None,
    }
}

/// Clones init into its cgroup, and does from outside what it cannot do itself.
fn spawn_init(init: &Init<'_>, cgroup: &Cgroup) -> Result<Child> {
    let join = || init.namespaces.join();
    let between: Option<&dyn Fn() -> Result<()>> = if init.namespaces.join_before_clone() {
        Some(&join)
    } else {
        None
    };
    let plan = Plan {
        new: init.namespaces.cloned(),
        cgroup,
        dumpable: init.terms.unprivileged,
        between,
        time_offsets: init.namespaces.time_offsets.as_deref(),
    };
    let lent = rootless::lend_oom_score(init.bundle.process()?)?;
    let child = spawn::spawn(&plan, |start| init.run(start))?;
    drop(lent);
    prepare(init, &child, between.is_some()).map_err(|error| child.explain(error))?;
    Ok(child)
}

/// What is done to init from outside.
fn prepare(init: &Init<'_>, child: &Child, between: bool) -> Result<()> {
    let process = init.bundle.process()?;
    if init.namespaces.new.contains(CloneFlags::CLONE_NEWUSER) {
        namespaces::write_mappings(&init.bundle.spec, child.pid)?;
    }
    if init.namespaces.user() && init.console.is_none() {
        process::give_stdio(process, child.pid)?;
    }
    if init.namespaces.user() || between {
        child.channel.send(&FromParent::Mapped)?;
    }
    if init.terms.unprivileged {
        return Ok(());
    }
    process::set_oom_score_adj(process, child.pid)
}

/// Answers init until it is ready. It may be at its hooks.
fn serve(child: &Child, bundle: &Bundle, state: &State, filter: Option<&Filter>) -> Result<()> {
    let interrupt = Interrupt::watch()?;
    loop {
        if interrupt.is_some() {
            interrupt::wait([Some(child.channel.as_fd())], interrupt.as_ref(), None)?;
        }
        match child.receive()? {
            Some(FromChild::RunHooks) => {
                for (name, hooks) in runtime_hooks(&bundle.spec) {
                    run_hooks(name, hooks, state, ContainerState::Creating)?;
                }
                child.channel.send(&FromParent::HooksDone)?;
            }
            Some(FromChild::Listening { descriptor }) => {
                seccomp::hand_over(filter, child, descriptor, state, ContainerState::Creating)?;
            }
            Some(FromChild::Ready) => return Ok(()),
            Some(message) => bail!("init: unexpected {message:?}"),
            None => bail!("init ended without a word; was it killed?"),
        }
    }
}

pub(crate) fn run_hooks(name: &str, hooks: &[Hook], state: &State, status: ContainerState) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    run_hooks_until(name, hooks, state, status, Interrupt::watch()?.as_ref())
}

fn run_hooks_until(
    name: &str,
    hooks: &[Hook],
    state: &State,
    status: ContainerState,
    interrupt: Option<&Interrupt>,
) -> Result<()> {
    hooks::run(hooks, &state.oci(status), &state.bundle, interrupt).with_context(|| format!("hooks.{name}"))
}

/// Runs hooks whose failure changes nothing: what they follow has happened, and each of the others is still run (OCI
/// runtime-spec, runtime.md, "Lifecycle"). Only an interrupt leaves the others out, and is the answer.
pub(crate) fn run_all_hooks(
    name: &str,
    hooks: Option<&[Hook]>,
    state: &State,
    status: ContainerState,
    interrupt: Option<&Interrupt>,
) -> Option<Interrupted> {
    for hook in hooks.unwrap_or_default() {
        let done = run_hooks_until(name, std::slice::from_ref(hook), state, status, interrupt);
        let interrupted = done.as_ref().err().and_then(interrupt::caused);
        log::best_effort("a hook", done);
        if interrupted.is_some() {
            return interrupted;
        }
    }
    None
}

/// Suspends every process of a container that is created or running.
pub fn pause(root: &Path, id: &ContainerId) -> Result<()> {
    let (_locked, state) = locked_in(root, id, "pause", &[Status::Running, Status::Created])?;
    Cgroup::open(state.cgroup).freeze()
}

/// Lets the processes of a paused container run on.
pub fn resume(root: &Path, id: &ContainerId) -> Result<()> {
    let (_locked, state) = locked_in(root, id, "resume", &[Status::Paused])?;
    Cgroup::open(state.cgroup).thaw()
}

/// A container that is in one of these states, which is what it takes to `act` on it, and locked.
pub(crate) fn locked_in(root: &Path, id: &ContainerId, act: &str, states: &[Status]) -> Result<(Directory, State)> {
    let directory = Directory::open(root, id)?;
    directory.lock()?;
    let state = directory.state()?;
    let status = directory.status(&state);
    if !states.contains(&status) {
        bail!("cannot {act} container {id}: it is {status}");
    }
    Ok((directory, state))
}

/// Sends a signal to init, or to every process of the container.
pub fn kill(root: &Path, id: &ContainerId, signal: i32, all: bool) -> Result<()> {
    let directory = Directory::open(root, id)?;
    let state = directory.state()?;
    let cgroup = || Cgroup::open(state.cgroup.clone());
    // Processes that init has left behind can still be signalled when it is gone. Without a cgroup they cannot be found;
    // then init alone gets the signal, whose end is theirs if it has its own pid namespace.
    if all && !cgroup().is_none() {
        return cgroup().kill(signal);
    }
    let Some(init) = signal::open_process(state.pid, state.start_time)? else {
        return Err(Error::NotRunning.into());
    };
    if !signal::send(&init, signal)? {
        return Err(Error::NotRunning.into());
    }
    if signal != libc::SIGKILL {
        return Ok(());
    }
    thaw_killed(&state)?;
    // Where init's end does not end the others, nobody would.
    if !state.own_pid_namespace {
        cgroup().kill(signal)?;
    }
    Ok(())
}

/// Lets the processes of a frozen container die.
fn thaw_killed(state: &State) -> Result<()> {
    if cgroup::may_outlive_kill(&state.cgroup) {
        Cgroup::open(state.cgroup.clone()).thaw_killed()?;
    }
    Ok(())
}

/// Removes a container: one that has stopped or never started, with `force` any, or none.
pub fn delete(root: &Path, id: &ContainerId, force: bool) -> Result<()> {
    let directory = match Directory::open(root, id).and_then(|directory| directory.lock().map(|()| directory)) {
        Err(error) if force && matches!(error.downcast_ref(), Some(Error::NotFound(_))) => {
            return Ok(());
        }
        directory => directory?,
    };
    // A create that was killed before it wrote a state had made nothing else yet.
    let Some(state) = directory.read()? else {
        return directory.remove();
    };
    let status = directory.status(&state);
    if matches!(status, Status::Running | Status::Paused) && !force {
        bail!("cannot delete container {id} that is not stopped: it is {status}");
    }
    delete_opened(&directory, &state)
}

/// The deletion proper, by whoever has the lock.
pub fn delete_opened(directory: &Directory, state: &State) -> Result<()> {
    end(state)?;
    let cgroup = Cgroup::open(state.cgroup.clone()).with_scope(state.scope.clone());
    if state.own_cgroup {
        cgroup.delete().context("remove the cgroup")?;
    } else {
        cgroup.remove_empty();
    }
    netdev::give_back(directory, &state.net_devices);
    remove_rdt(state);
    let spec = directory.spec();
    directory.remove()?;
    let Some(spec) = log::best_effort("poststop hooks", spec) else {
        return Ok(());
    };
    run_poststop_hooks(&spec, state);
    Ok(())
}

/// No signal that is kept back ends them: they are the undoing that such a signal asks for, and there may be a second one
/// beside the first (systemd sends HUP after TERM if it is told to). Without a timeout they take as long as they like.
pub(crate) fn run_poststop_hooks(spec: &Spec, state: &State) {
    let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.poststop().as_deref());
    let interrupted = run_all_hooks("poststop", hooks, state, ContainerState::Stopped, None);
    debug_assert!(interrupted.is_none(), "nobody looked for signals");
}

/// Kills init, and waits until it is gone.
fn end(state: &State) -> Result<()> {
    let Some(init) = signal::open_process(state.pid, state.start_time)? else {
        return Ok(());
    };
    signal::send(&init, libc::SIGKILL)?;
    thaw_killed(state)?;
    if has_ended(&init, QUICK_END)? {
        return Ok(());
    }
    // Whatever still runs in the container can have frozen init anew; when all of them are killed nobody can. Only then: to
    // hold them for it, on v1, keeps from dying who does so already.
    if cgroup::may_outlive_kill(&state.cgroup) {
        Cgroup::open(state.cgroup.clone()).kill(libc::SIGKILL)?;
    }
    let ended = has_ended(&init, KILL_TIMEOUT)?;
    ensure!(
        ended,
        "process {} is still there {KILL_TIMEOUT:?} after SIGKILL",
        state.pid
    );
    Ok(())
}

/// Waits as long as this for the end of a process.
fn has_ended(process: &OwnedFd, timeout: Duration) -> Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            result => return result.map(|ready| ready > 0).context("poll(pidfd)"),
        }
    }
}
