//! The child's half of a create: from the clone to the container's program. [`Init::run`] is the whole of it, in order.
//!
//! This code runs in a fork of the runtime with the container's namespaces around it and the host's root beneath it. It
//! never returns to the parent's code: it ends in `execve`, or with an error told to the parent.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use corten_proto::id::ContainerId;
use oci_spec::runtime::{ContainerState, Hook, Process, Spec};
use rustix::fs::{Mode, OFlags};

use crate::bundle::Bundle;
use crate::console::Terminal;
use crate::namespaces::{self, Namespaces};
use crate::process::{self, Program, Terms};
use crate::rootfs::idmap::Idmaps;
use crate::rootfs::{self, Rootfs, Sources, pivot};
use crate::seccomp::{self, Confinement, Filter};
use crate::spawn::Start;
use crate::start::EXECUTES;
use crate::state::State;
use crate::sync::{FromChild, FromParent};
use crate::sys::clone::exit_now;
use crate::{hooks, log, lsm, memory_policy, spawn, sys};

/// What init needs, made by the parent and inherited as memory and descriptors.
#[derive(Debug)]
pub struct Init<'a> {
    /// The specification and where it came from.
    pub bundle: &'a Bundle,
    /// The namespaces to be in.
    pub namespaces: &'a Namespaces,
    /// The user namespaces of its idmapped mounts.
    pub idmaps: &'a Idmaps,
    /// Everything that has a path on the host, open; none where the paths are those of a mount namespace to be joined, or
    /// where only init has the right to copy mounts.
    pub sources: Option<&'a Sources>,
    /// The state that hooks get.
    pub state: &'a State,
    /// The exec fifo, as a place.
    pub fifo: &'a OwnedFd,
    /// Where the terminal goes.
    pub console: Option<&'a OwnedFd>,
    /// What its process is to reckon with.
    pub terms: Terms,
    /// The filter its program is to be under.
    pub filter: Option<&'a Filter>,
    /// Whether the session gets a keyring of its own.
    pub new_keyring: bool,
    /// Whether the host's root stays, below the container's.
    pub no_pivot: bool,
}

impl Init<'_> {
    /// The life of init, up to its program.
    pub fn run(&self, start: &Start) -> Result<Infallible> {
        let process = self.bundle.process()?;
        nix::unistd::setsid().context("setsid")?;
        self.enter_namespaces(start)?;
        // Before anything of the container's is mounted: nobody can have put anything over this procfs, ever. For the
        // sysctls and labels, and to open the fifo anew when /proc may be anything.
        let proc = own_procfs()?;
        let join = || join_keyring(&self.state.id, self.new_keyring);
        lsm::label_keys(Some(proc.as_fd()), process, join)?;
        let own = self.own_sources()?;
        let sources = self.sources.or(own.as_ref());
        let sources = sources.context("nobody has opened the root")?;
        let own_path = (!self.create_container_hooks().is_empty()).then_some(self.bundle.rootfs.as_path());
        let mut root = Rootfs::attach(&self.bundle.spec, sources, own_path)?;
        root.mount_all()?;
        root.furnish(process.cwd())?;
        let terminal = self.open_terminal(&root, process)?;
        self.namespaces.unshare_cgroup()?;
        self.create_hooks(start, &root)?;
        // After the hooks, which may still have something to mount; before the host's root is gone nothing runs that
        // is the container's.
        root.seal()?;
        if self.namespaces.joins_mount() {
            root.relocate(|| self.namespaces.join_mount())?;
        }
        if self.no_pivot {
            pivot::chroot_over(&root.root, proc.as_fd())?;
        } else {
            pivot::pivot(&root.root)?;
        }
        root.share()?;
        let spec = &self.bundle.spec;
        namespaces::set_names(spec.hostname().as_deref(), spec.domainname().as_deref())?;
        let sysctls = spec
            .linux()
            .iter()
            .filter_map(|linux| linux.sysctl().as_ref())
            .flatten();
        process::set_sysctls(proc.as_fd(), sysctls)?;
        let Err(error) = self.become_program(start, process, terminal, &proc);
        // Descriptors have been closed under their owners, whose destructors must not run.
        spawn::give_up(&start.channel, &error)
    }

    /// From the runtime's process in the container's root to the container's own.
    fn become_program(
        &self,
        start: &Start,
        process: &Process,
        terminal: Option<Terminal>,
        proc: &OwnedFd,
    ) -> Result<Infallible> {
        adopt(&self.bundle.spec, process, Some(proc.as_fd()))?;
        // Nothing of the runtime's stays open while init waits, perhaps for long.
        let keep = [start.channel.descriptor(), self.fifo.as_raw_fd(), proc.as_raw_fd()];
        let mut confinement = become_program_user(process, terminal, self.terms, &keep, self.filter)?;
        let program = Program::prepare(process, self.terms.listen_fds)?;
        let listener = confinement.listen(&start.channel, self.terms.unprivileged)?;
        start.channel.send(&FromChild::Ready)?;
        start.channel.expect(FromParent::Proceed)?;
        drop(listener);
        // From here on the parent is gone; whoever opens the fifo for reading hears of a failure.
        let mut fifo = wait_for_start(proc, self.fifo)?;
        let Err(error) = self.run_program(&program, confinement, &mut fifo);
        log::best_effort(
            "tell of the failure",
            write!(fifo, "{error:#}").context("write to the exec fifo"),
        );
        exit_now(1)
    }

    /// Joins what exists, and becomes root of the user namespace if there is one.
    fn enter_namespaces(&self, start: &Start) -> Result<()> {
        if !start.between {
            self.namespaces.join()?;
            if self.namespaces.user() {
                start.channel.expect(FromParent::Mapped)?;
                spawn::undumpable()?;
            }
        }
        self.namespaces.become_root()?;
        self.namespaces.copy_mounts()
    }

    /// What has a path, where the parent could not open it.
    fn own_sources(&self) -> Result<Option<Sources>> {
        if self.sources.is_some() {
            return Ok(None);
        }
        let cgroup = &self.state.cgroup;
        Sources::open(self.bundle, cgroup, self.namespaces, self.idmaps).map(Some)
    }

    fn open_terminal(&self, root: &Rootfs<'_>, process: &Process) -> Result<Option<Terminal>> {
        let Some(socket) = self.console else {
            return Ok(None);
        };
        let terminal = Terminal::open(&root.root, process)?;
        if rootfs::dev::furnished(&self.bundle.spec) {
            terminal.bind(&root.root)?;
        }
        terminal.send(socket.as_fd())?;
        Ok(Some(terminal))
    }

    /// The hooks of a create: the parent runs those of the runtime's namespace, we run those of the container's.
    ///
    /// The latter work on the root by its path on the host (the state has the bundle), where runc has it mounted and has
    /// made it their working directory; no path of the host is looked at afterwards.
    fn create_hooks(&self, start: &Start, root: &Rootfs<'_>) -> Result<()> {
        if has_runtime_hooks(&self.bundle.spec) {
            start.channel.send(&FromChild::RunHooks)?;
            start.channel.expect(FromParent::HooksDone)?;
        }
        let create = self.create_container_hooks();
        if create.is_empty() {
            return Ok(());
        }
        root.show()?;
        let cwd = &self.bundle.rootfs;
        self.run_hooks("createContainer", create, ContainerState::Creating, cwd)
    }

    fn create_container_hooks(&self) -> &[Hook] {
        let hooks = self.bundle.spec.hooks().as_ref();
        hooks
            .and_then(|hooks| hooks.create_container().as_deref())
            .unwrap_or_default()
    }

    /// The startContainer hooks, which are the container's files and run under its filter, and the program.
    fn run_program(&self, program: &Program, mut confinement: Confinement<'_>, fifo: &mut File) -> Result<Infallible> {
        let hooks = self.bundle.spec.hooks().as_ref();
        let start = hooks
            .and_then(|hooks| hooks.start_container().as_deref())
            .unwrap_or_default();
        if !start.is_empty() {
            confinement.load()?;
            self.run_hooks("startContainer", start, ContainerState::Created, Path::new("/"))?;
        }
        // Before the filter wherever that comes last: it need not allow what only the runtime does.
        match fifo.write_all(&EXECUTES) {
            // Whoever started it has been killed: nobody is left to be told.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            told => told.context("write to the exec fifo")?,
        }
        execute(program, confinement)
    }

    fn run_hooks(&self, what: &'static str, hooks: &[Hook], status: ContainerState, cwd: &Path) -> Result<()> {
        let mut state = self.state.oci(status);
        // A process knows its own pid only as its namespace has it.
        state.set_pid(Some(nix::unistd::getpid().as_raw()));
        hooks::run(hooks, &state, cwd, None).with_context(|| format!("hooks.{what}"))
    }
}

/// The parent has hooks to run before the root is exchanged.
pub fn has_runtime_hooks(spec: &Spec) -> bool {
    runtime_hooks(spec).iter().any(|(_, hooks)| !hooks.is_empty())
}

/// The hooks that run in the runtime's namespace during create, and their names, in order.
pub fn runtime_hooks(spec: &Spec) -> [(&'static str, &[Hook]); 2] {
    let hooks = spec.hooks().as_ref();
    // Deprecated, but still what some callers send, and the specification demands it.
    let prestart = hooks.and_then(|hooks| hooks.prestart().as_deref()).unwrap_or_default();
    let create = hooks
        .and_then(|hooks| hooks.create_runtime().as_deref())
        .unwrap_or_default();
    [("prestart", prestart), ("createRuntime", create)]
}

/// A session keyring named for the container, as runc names it.
pub(crate) fn join_keyring(id: &ContainerId, wanted: bool) -> Result<()> {
    if !wanted {
        return Ok(());
    }
    let name = CString::new(format!("_ses.{id}")).context("the id holds a NUL")?;
    match sys::keyring::join_session(&name) {
        // A kernel without keyrings, or a sandbox that forbids them: then there is none to share either.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        result => result.with_context(|| format!("keyctl(JOIN_SESSION_KEYRING, {name:?}); --no-new-keyring avoids it")),
    }
}

/// A procfs that is mounted nowhere. Where that is refused (a user namespace in which part of /proc is covered) the
/// host's, as long as it is one.
fn own_procfs() -> Result<OwnedFd> {
    let refused = match rootfs::mount::filesystem("proc", None, &[]) {
        Ok(proc) => return Ok(proc),
        Err(error) => error,
    };
    log::debug(format_args!("the host's procfs is used: {refused:#}"));
    host_procfs()
}

/// The procfs at /proc, in the host's mount namespace.
pub(crate) fn host_procfs() -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty()).context("open /proc")?;
    let kind = rustix::fs::fstatfs(&proc).context("fstatfs(/proc)")?.f_type;
    ensure!(
        i128::from(kind) == i128::from(libc::PROC_SUPER_MAGIC),
        "/proc is not a procfs"
    );
    Ok(proc)
}

/// What outlives execve and has nothing to do with who the user is. Before the identity: labels are the runtime's to
/// choose. `proc` is there where the process is to have labels.
pub(crate) fn adopt(spec: &Spec, process: &Process, proc: Option<BorrowedFd<'_>>) -> Result<()> {
    let linux = spec.linux().as_ref();
    let personality = linux.and_then(|linux| linux.personality().as_ref());
    personality.map_or(Ok(()), process::set_personality)?;
    let policy = linux.and_then(|linux| linux.memory_policy().as_ref());
    policy.map_or(Ok(()), memory_policy::set)?;
    proc.map_or(Ok(()), |proc| lsm::label_exec(proc, process))
}

/// Standard streams, directory, descriptors, limits and identity of the program. `keep` is what the runtime itself still
/// needs open. What is left to do is to load the filter.
pub(crate) fn become_program_user<'f>(
    process: &Process,
    terminal: Option<Terminal>,
    terms: Terms,
    keep: &[RawFd],
    filter: Option<&'f Filter>,
) -> Result<Confinement<'f>> {
    terminal.map_or(Ok(()), Terminal::take)?;
    process::own_null()?;
    process::own_stdio(process.user().uid())?;
    // As root first: the user may not be able to search the way there. As the user where root cannot (NFS).
    let entered = process::enter(process.cwd());
    // Before the limits: with few descriptors allowed, the numbers below the limit have to be free.
    close_others(terms.preserve_fds, keep)?;
    // Before the identity, with which goes the right to raise any.
    if !terms.limits_from_outside {
        process::set_rlimits(process, None)?;
    }
    let keep_admin = seccomp::needs_admin(filter, process);
    let settled = process::become_user(process, terms.user_namespace, keep_admin)?;
    entered.or_else(|_| process::enter(process.cwd()))?;
    Ok(Confinement::new(filter, settled))
}

/// Closes every descriptor the program does not get, but for `keep` and the log, which execve closes.
fn close_others(preserve_fds: i32, keep: &[RawFd]) -> Result<()> {
    let keep: Vec<RawFd> = keep.iter().copied().chain(log::descriptor()).collect();
    sys::fd::close_from_except(3 + preserve_fds, &keep).context("close_range")
}

/// Waits until somebody opens the fifo for reading.
fn wait_for_start(proc: &OwnedFd, fifo: &OwnedFd) -> Result<File> {
    let path = format!("self/fd/{}", fifo.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let fifo = rustix::io::retry_on_intr(|| rustix::fs::openat(proc, &path, flags, Mode::empty()))
        .context("open the exec fifo")?;
    Ok(fifo.into())
}

/// Hands over to the program.
pub(crate) fn execute(program: &Program, mut confinement: Confinement<'_>) -> Result<Infallible> {
    process::reset_signals()?;
    confinement.load()?;
    program.execute()
}
