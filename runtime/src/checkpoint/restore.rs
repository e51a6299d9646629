//! Images to a running container, in the order of a create where it can be: state, cgroup, limits, then CRIU in the place
//! of init's clone. CRIU is put into the container's cgroup first, so that everything it makes is in there.
//!
//! | CRIU's stage | what is done |
//! |---|---|
//! | `setup-namespaces` | prestart and createRuntime hooks: the namespaces exist, nothing is in them yet |
//! | `orphan-pts-master` | the terminal goes to the console socket |
//! | `pre-resume` | everything is restored and stopped: [`verify`], and what is too much is killed |
//!
//! Then poststart hooks. Where we differ from runc: it runs no poststart hooks, and looks at nothing of what CRIU has made.
//! Hooks of the container's own namespace (createContainer, startContainer) do not run, as with runc: its programs have
//! been started long ago.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::{ContainerState, Spec};
use rustix::fs::{Mode, OFlags};

use super::dump::user_namespace;
use super::external::{self, External};
use super::rpc::{CgroupRoot, Criu, InheritFd, JoinNamespace, Options, Received, Request, Surroundings, kind};
use super::{Directories, images, rpc, verify};
use crate::bundle::Bundle;
use crate::cgroup::{Cgroup, Driver};
use crate::container::{self, Created, run_hooks};
use crate::init::runtime_hooks;
use crate::namespaces::Namespaces;
use crate::rootfs::mount::set_readonly;
use crate::rootfs::resolve::Root;
use crate::rootfs::{destination, spec_mounts};
use crate::seccomp::Filter;
use crate::start::run_poststart_hooks;
use crate::state::{self, Directory, State};
use crate::{cli, console, log, notify, signal};

/// CRIU's log, in the work directory; runc's name.
const LOG: &str = "restore.log";

/// Where CRIU sees the root filesystem, in the container's directory.
const ROOT: &str = "root";

/// A restore that has passed every check that needs no side effect.
#[derive(Debug)]
pub struct Restore<'a> {
    asked: &'a cli::Restore,
    bundle: Bundle,
    program: PathBuf,
    directories: Directories,
    externals: Vec<External>,
    /// Joined namespaces that CRIU gets by descriptor: their names and theirs in the images.
    namespaces: Vec<(&'static str, OwnedFd)>,
    joined: Vec<JoinNamespace>,
    /// `TYPE:NAME`.
    profile: Option<String>,
    cgroup: Cgroup,
    /// The images are of a container that was shown a notify socket ([`notify`]), which no bundle says.
    notified: bool,
}

impl<'a> Restore<'a> {
    /// Looks at the bundle, at the images, and for CRIU.
    pub fn prepare(
        root: &Path,
        criu: Option<&Path>,
        driver: Driver,
        asked: &'a cli::Restore,
        bundle: Bundle,
    ) -> Result<Restore<'a>> {
        super::needs_root()?;
        let spec = &bundle.spec;
        let linux = spec.linux().as_ref().context("linux: missing")?;
        external::check_possible(spec)?;
        // Whether the paths are namespaces.
        Namespaces::open(spec)?;
        let sorted = external::namespaces(spec)?;
        let open = |(_, key, path): (_, &'static str, PathBuf)| {
            let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
            Ok((key, OwnedFd::from(file)))
        };
        let join = |(kind, path): (&str, PathBuf)| {
            let path = path.to_str().context("linux.namespaces: path: not UTF-8")?.to_owned();
            let kind = kind.to_owned();
            Ok(JoinNamespace { kind, path })
        };
        let cgroup = Cgroup::plan(linux.cgroups_path().as_deref(), &asked.id, driver)?;
        let directories = Directories::open(&asked.images, false)?;
        images::check_present(&directories.images).context("--image-path")?;
        let filter = Filter::prepare(root, spec)?.map(|filter| filter.bytes());
        verify::check_filters(filter.as_deref(), &images::filters(directories.images.as_fd())?)?;
        Ok(Restore {
            program: rpc::program(criu)?,
            externals: external::mounts(spec, &bundle.path, cgroup.paths(), user_namespace(spec))?,
            namespaces: sorted.external.into_iter().map(open).collect::<Result<_>>()?,
            joined: sorted.joined.into_iter().map(join).collect::<Result<_>>()?,
            profile: verify::profile(asked.lsm_profile.as_deref(), bundle.process()?)?,
            notified: notified(directories.images.as_fd(), spec)?,
            directories,
            cgroup,
            asked,
            bundle,
        })
    }

    /// Makes the container: on success it runs, on failure nothing is left.
    pub fn restore(mut self, root: &Path, console: Option<&OwnedFd>) -> Result<Created> {
        let reserved = state::reserve(root, &self.asked.id)?;
        let directory = reserved.directory();
        let mut state = container::first_state(&self.asked.id, &self.bundle, &self.cgroup);
        directory.write_spec(&self.bundle.text)?;
        if self.notified {
            self.show_notify(directory)?;
        }
        let spec = &self.bundle.spec;
        let linux = spec.linux().as_ref().context("linux: missing")?;
        directory.write(&state)?;
        let made = self.cgroup.create(spec).context("make the cgroup")?;
        state.own_cgroup = true;
        directory.write(&state)?;
        self.cgroup.apply(linux)?;
        match self.launch(root, directory, &mut state, console) {
            Ok(init) => {
                made.keep();
                let created = Created {
                    directory: reserved.keep(),
                    state,
                    init,
                };
                run_poststart_hooks(spec, &created);
                Ok(created)
            }
            Err(error) => {
                drop(made);
                drop(reserved);
                container::run_poststop_hooks(spec, &state);
                Err(error)
            }
        }
    }

    /// Makes the directory of the notify socket, and the mount that shows it.
    fn show_notify(&mut self, directory: &Directory) -> Result<()> {
        notify::make_directory(directory.path())?;
        let spec = &mut self.bundle.spec;
        notify::show(spec, directory.path());
        self.externals = external::mounts(spec, &self.bundle.path, self.cgroup.paths(), user_namespace(spec))?;
        Ok(())
    }

    fn launch(
        &self,
        root: &Path,
        directory: &Directory,
        state: &mut State,
        console: Option<&OwnedFd>,
    ) -> Result<OwnedFd> {
        let rootfs = File::open(&self.bundle.rootfs).context("open the root filesystem")?;
        let mounts = images::mounts(self.directories.images.as_fd())?;
        external::prepare(&mounts, &self.externals, &Root::new(rootfs.into()))?;
        let place = root.join(self.asked.id.as_str()).join(ROOT);
        std::fs::create_dir(&place).with_context(|| format!("create {}", place.display()))?;
        let root = self.bundle.spec.root().as_ref();
        let readonly = root.and_then(oci_spec::runtime::Root::readonly) == Some(true);
        let stage = Stage::set(&self.bundle.rootfs, &place, readonly)?;
        // CRIU mounts things in its work directory, which has to be of its own mount namespace.
        let directories = Directories::open(&self.asked.images, false)?;
        let surroundings = Surroundings {
            stdio: true,
            descriptors: self.namespaces.iter().map(|(_, fd)| fd).collect(),
        };
        let criu = Criu::start(&self.program, &surroundings)?;
        // Before it has anything to do: what it makes is born in the cgroup.
        self.cgroup.add(criu.pid())?;
        criu.send(&Request {
            kind: kind::RESTORE,
            options: Some(self.options(&criu, &place, &directories)?),
            notify_success: None,
        })?;
        let init = self.serve(criu, state, console, &stage)?;
        drop(stage);
        std::fs::remove_dir(&place).with_context(|| format!("remove {}", place.display()))?;
        directory.write(state)?;
        if let Some(path) = &self.asked.pid_file {
            state::write_pid_file(path, state.pid)?;
        }
        Ok(init.release())
    }

    fn options(&self, criu: &Criu, root: &Path, directories: &Directories) -> Result<Options> {
        let mut inherit_fds = Vec::new();
        for (index, (key, _)) in self.namespaces.iter().enumerate() {
            inherit_fds.push(InheritFd {
                key: (*key).to_owned(),
                fd: Surroundings::number(index)?,
            });
        }
        let pipes = images::pipes(self.directories.images.as_fd())?;
        inherit_fds.extend(pipes.into_iter().map(|(fd, key)| InheritFd { key, fd }));
        Ok(Options {
            root: Some(root.to_str().context("--root: not UTF-8")?.to_owned()),
            sibling: Some(true),
            external: external::at_restore(&self.externals),
            join_namespaces: self.joined.clone(),
            cgroup_roots: cgroup_roots(criu.pid())?,
            lsm_profile: self.profile.clone(),
            lsm_mount_context: self.asked.lsm_mount_context.clone(),
            inherit_fds,
            ..directories.options(&self.asked.images, LOG)
        })
    }

    /// Answers CRIU until the container runs.
    fn serve(&self, mut criu: Criu, state: &mut State, console: Option<&OwnedFd>, stage: &Stage) -> Result<Init> {
        let mut init: Option<Init> = None;
        loop {
            let received = criu.receive();
            let received = received.map_err(|error| self.directories.explain(error, LOG))?;
            match received.response {
                response if !response.success => {
                    return Err(self.directories.failure("restore the processes", &response, LOG));
                }
                ref response if response.kind == kind::NOTIFY => {
                    self.reached(&received, &mut init, state, console, stage)?;
                    criu.acknowledge()?;
                }
                response if response.kind == kind::RESTORE => {
                    let pid = response.restore.map(|restored| restored.pid);
                    ensure!(
                        pid == Some(state.pid),
                        "criu: restored {pid:?}, and said {} before",
                        state.pid
                    );
                    criu.finish()?;
                    // Killed by its drop if CRIU went on without waiting to be told.
                    return init
                        .filter(|init| init.verified)
                        .context("criu did not stop before the tasks ran");
                }
                response => bail!("criu: unexpected {response:?}"),
            }
        }
    }

    /// One stage. From the first that tells its pid on, init is killed with the rest if anything fails.
    fn reached(
        &self,
        received: &Received,
        init: &mut Option<Init>,
        state: &mut State,
        console: Option<&OwnedFd>,
        mounts: &Stage,
    ) -> Result<()> {
        let notification = received
            .response
            .notify
            .as_ref()
            .context("criu: a notification of nothing")?;
        let stage = notification.script.as_deref().unwrap_or_default();
        log::debug(format_args!("criu: {stage}"));
        match stage {
            "setup-namespaces" => {
                Init::find(init, state, notification.pid)?;
                mounts.outside(|| {
                    let mut all = runtime_hooks(&self.bundle.spec).into_iter();
                    all.try_for_each(|(name, hooks)| run_hooks(name, hooks, state, ContainerState::Creating))
                })?;
            }
            "orphan-pts-master" => {
                let terminal = received.descriptor.as_ref().context("criu: sent no terminal")?;
                let console = console.context("the images have a terminal, the bundle's process has none")?;
                console::send(terminal.as_fd(), console.as_fd())?;
            }
            "post-restore" => Init::find(init, state, notification.pid)?,
            "pre-resume" => {
                let init = init.as_mut().context("criu: pre-resume before it told a pid")?;
                verify::container(
                    state.pid,
                    &self.bundle,
                    &self.externals,
                    &self.cgroup,
                    self.profile.as_deref(),
                )
                .context("the checkpoint is not of a container that the bundle allows")?;
                init.verified = true;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether the images have the mount of a notify socket, and the bundle has not something of its own there.
fn notified(images: BorrowedFd<'_>, spec: &Spec) -> Result<bool> {
    let own = spec_mounts(spec)
        .iter()
        .any(|mount| destination(mount) == Path::new(notify::SHOWN_AT));
    let shown = images::mounts(images)?
        .iter()
        .any(|mount| mount.key.as_deref() == Some(notify::SHOWN_AT));
    Ok(shown && !own)
}

/// A mount namespace of CRIU's and ours, in which the root filesystem is a mount point: CRIU demands one, and on the host
/// nothing is to be unmounted when a restore is killed. Dropping it goes back to the namespace before.
#[derive(Debug)]
struct Stage {
    outside: OwnedFd,
    /// The working directory: joining a mount namespace changes it.
    directory: OwnedFd,
}

impl Stage {
    /// Enters a new one, and shows `root` at `place` in it. CRIU takes the mount as it finds it: of all mounts in the images
    /// it is the one whose flags are not restored.
    fn set(root: &Path, place: &Path, readonly: bool) -> Result<Stage> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(".", flags, Mode::empty()).context("open the working directory")?;
        let outside = Stage::current()?;
        unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
        let stage = Stage { outside, directory };
        let none = None::<&Path>;
        mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none).context("mount(/, MS_REC | MS_SLAVE)")?;
        let what = || format!("mount({}, {}, MS_REC | MS_BIND)", root.display(), place.display());
        mount(Some(root), place, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).with_context(what)?;
        mount(none, place, none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).with_context(what)?;
        if readonly {
            let shown = rustix::fs::open(place, flags, Mode::empty()).with_context(what)?;
            set_readonly(shown.as_fd(), false).context("root.readonly")?;
        }
        Ok(stage)
    }

    fn current() -> Result<OwnedFd> {
        Ok(File::open("/proc/self/ns/mnt")
            .context("open /proc/self/ns/mnt")?
            .into())
    }

    /// Does something in the namespace before: hooks expect the host's mounts.
    fn outside(&self, act: impl FnOnce() -> Result<()>) -> Result<()> {
        let inside = Stage::current()?;
        setns(&self.outside, CloneFlags::CLONE_NEWNS).context("setns(CLONE_NEWNS)")?;
        let done = act();
        setns(&inside, CloneFlags::CLONE_NEWNS).context("setns(CLONE_NEWNS)")?;
        done
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let back = || -> Result<()> {
            setns(&self.outside, CloneFlags::CLONE_NEWNS).context("setns(CLONE_NEWNS)")?;
            rustix::process::fchdir(&self.directory).context("fchdir")
        };
        log::best_effort("go back to the host's mounts", back());
    }
}

/// The restored init. Dropping it kills it, and every task that descends from it, in whatever cgroup that is.
#[derive(Debug)]
struct Init {
    pidfd: Option<OwnedFd>,
    pid: i32,
    verified: bool,
}

impl Init {
    /// Takes hold of the process that a stage names, unless an earlier one has named it.
    fn find(init: &mut Option<Init>, state: &mut State, pid: Option<i32>) -> Result<()> {
        let pid = pid.context("criu: told no pid")?;
        if init.is_some() {
            ensure!(pid == state.pid, "criu: init is {pid}, and was {} before", state.pid);
            return Ok(());
        }
        state.pid = pid;
        state.start_time = state::process_start(pid).context("init has ended")?;
        let pidfd = signal::open_process(pid, state.start_time)?.context("init has ended")?;
        *init = Some(Init {
            pidfd: Some(pidfd),
            pid,
            verified: false,
        });
        Ok(())
    }

    fn release(mut self) -> OwnedFd {
        self.pidfd.take().expect("only release and drop take it")
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        let Some(pidfd) = self.pidfd.take() else {
            return;
        };
        // Those in its pid namespace go with it; others have to be found while it is still there.
        let tasks = log::best_effort("list the restored tasks", verify::tasks(self.pid)).unwrap_or_default();
        for task in tasks.into_iter().filter_map(rustix::process::Pid::from_raw) {
            let Ok(task) = rustix::process::pidfd_open(task, rustix::process::PidfdFlags::empty()) else {
                continue;
            };
            log::best_effort("kill a restored task", signal::send(&task, libc::SIGKILL));
        }
        log::best_effort("kill the restored init", signal::send(&pidfd, libc::SIGKILL));
    }
}

/// What the roots of the images' cgroups stand for: where CRIU, and with it the container, is now. Else CRIU would make the
/// cgroups that the container had, and put it there.
fn cgroup_roots(criu: i32) -> Result<Vec<CgroupRoot>> {
    let text = std::fs::read_to_string(format!("/proc/{criu}/cgroup")).context("read the cgroups of criu")?;
    Ok(roots_of(&text))
}

/// The same of a `/proc/PID/cgroup`.
fn roots_of(text: &str) -> Vec<CgroupRoot> {
    let mut roots = Vec::new();
    let mut unified = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(names), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        if names.is_empty() {
            unified = Some(path.to_owned());
        }
        for name in names.split(',').filter(|name| !name.is_empty()) {
            roots.push(CgroupRoot {
                controllers: Some(name.to_owned()),
                path: path.to_owned(),
            });
        }
    }
    // The unified hierarchy has no name, and the root without one is that of all hierarchies: beside those of v1, where no
    // controller is in it, it is left alone.
    if roots.is_empty()
        && let Some(path) = unified
    {
        roots.push(CgroupRoot {
            controllers: None,
            path,
        });
    }
    roots
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Controllers and path.
    type Root = (Option<&'static str>, &'static str);

    #[test]
    fn roots_of_cgroups() {
        let table: [(&str, &[Root]); 3] = [
            ("0::/a/b\n", &[(None, "/a/b")]),
            (
                "4:cpu,cpuacct:/a\n1:name=systemd:/b:c\n0::/d\n",
                &[
                    (Some("cpu"), "/a"),
                    (Some("cpuacct"), "/a"),
                    (Some("name=systemd"), "/b:c"),
                ],
            ),
            ("", &[]),
        ];
        for (text, expected) in table {
            let roots = roots_of(text);
            let found: Vec<_> = roots
                .iter()
                .map(|root| (root.controllers.as_deref(), root.path.as_str()))
                .collect();
            assert_eq!(found, expected, "{text}");
        }
    }
}
