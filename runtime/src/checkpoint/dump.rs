//! A running container to images.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{Mode, OFlags};

use super::rpc::{Criu, Options, PageServer, Request, Surroundings, kind};
use super::{Directories, external, images, rpc};
use crate::cgroup::{Cgroup, CgroupPaths};
use crate::rootfs::resolve::Root;
use crate::state::{Directory, State, Status};
use crate::{cli, container, log, mountinfo, namespaces, notify};

/// CRIU's log, in the work directory; runc's name.
const LOG: &str = "dump.log";

/// Saves a container's processes. Without `--leave-running` or `--pre-dump` they end, and the container is deleted, as
/// with runc.
pub fn dump(root: &Path, criu: Option<&Path>, asked: &cli::Checkpoint) -> Result<()> {
    super::needs_root()?;
    let directory = Directory::open(root, &asked.id)?;
    directory.lock()?;
    let state = directory.state()?;
    let status = directory.status(&state);
    let running = matches!(status, Status::Running | Status::Paused);
    ensure!(running, "checkpoint container {}: it is {status}", asked.id);
    let mut spec = directory.spec()?;
    if notify::made(directory.path()) {
        notify::show(&mut spec, directory.path());
    }
    external::check_possible(&spec)?;
    let external = external_names(&state, &spec)?;
    let freeze_cgroup = freezer(&state.cgroup)?;
    let page_server = asked.page_server.as_deref().map(page_server).transpose()?;
    let closed = asked.status_fd.filter(|&fd| !crate::sys::fd::is_open(fd));
    ensure!(
        closed.is_none(),
        "--status-fd {}: it is not open",
        closed.unwrap_or_default()
    );
    let program = rpc::program(criu)?;

    let directories = Directories::open(&asked.images, true)?;
    let options = Options {
        pid: Some(state.pid),
        parent: parent(asked)?,
        leave_running: Some(asked.leave_running || asked.pre_dump),
        tcp_skip_in_flight: Some(asked.tcp_skip_in_flight),
        link_remap: Some(asked.link_remap),
        track_memory: Some(asked.pre_dump || asked.parent_path.is_some()),
        status_fd: asked.status_fd,
        page_server,
        freeze_cgroup,
        external,
        ..directories.options(&asked.images, LOG)
    };
    images::write_descriptors(directories.images.as_fd(), &standard_streams(state.pid)?)?;
    let done = request(&program, asked, options, &directories);
    done.with_context(|| format!("checkpoint container {}", asked.id))?;
    if !asked.leave_running && !asked.pre_dump {
        container::delete_opened(&directory, &state)?;
    }
    Ok(())
}

/// What is not in the images, and how they name it.
fn external_names(state: &State, spec: &Spec) -> Result<Vec<String>> {
    let externals = external::mounts(spec, &state.bundle, &state.cgroup, user_namespace(spec))?;
    let process = state.pid.to_string();
    let mounts = mountinfo::read(&process)?;
    let mut names = external::at_dump(&externals, &root_of(state.pid)?, &mountinfo::parse(&mounts)?)?;
    for (name, key, _) in external::namespaces(spec)?.external {
        // What is at the path may be another by now; what counts is the one the container is in.
        let own = format!("/proc/{process}/ns/{name}");
        let inode = std::fs::metadata(&own).with_context(|| format!("stat {own}"))?.ino();
        names.push(format!("{name}[{inode}]:{key}"));
    }
    Ok(names)
}

fn request(program: &Path, asked: &cli::Checkpoint, options: Options, directories: &Directories) -> Result<()> {
    let (kind, what) = if asked.pre_dump {
        (kind::PRE_DUMP, "write the memory")
    } else {
        (kind::DUMP, "dump the processes")
    };
    let mut criu = Criu::start(program, &Surroundings::default())?;
    criu.send(&Request {
        kind,
        options: Some(options),
        notify_success: None,
    })?;
    loop {
        let received = criu.receive().map_err(|error| directories.explain(error, LOG))?;
        match received.response {
            response if !response.success => return Err(directories.failure(what, &response, LOG)),
            response if response.kind == kind::NOTIFY => {
                let stage = response.notify.and_then(|notify| notify.script).unwrap_or_default();
                log::debug(format_args!("criu: {stage}"));
                criu.acknowledge()?;
            }
            response if response.kind == kind => return criu.finish(),
            response => bail!("criu: unexpected {response:?}"),
        }
    }
}

/// An earlier dump: CRIU follows a link from these images, which exist, to those, so that it must be relative.
fn parent(asked: &cli::Checkpoint) -> Result<Option<String>> {
    let Some(parent) = &asked.parent_path else {
        return Ok(None);
    };
    ensure!(
        parent.is_relative(),
        "--parent-path {}: must be relative to --image-path",
        parent.display()
    );
    let whole = asked.images.image_path.join(parent);
    ensure!(
        whole.is_dir(),
        "--parent-path {}: {} is no directory",
        parent.display(),
        whole.display()
    );
    Ok(Some(parent.to_str().context("--parent-path: not UTF-8")?.to_owned()))
}

/// `ADDRESS:PORT`, an IPv6 address in brackets or not.
fn page_server(text: &str) -> Result<PageServer> {
    let parse = || {
        let (address, port) = text.rsplit_once(':')?;
        let address = address
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(address);
        // The kernel's port 0 is any port, which nobody could connect to.
        let port = port.parse::<u16>().ok().filter(|&port| port != 0)?;
        // Numbers only: a name would need the host's resolver in CRIU.
        Some((address.parse::<IpAddr>().ok()?, port))
    };
    let (address, port) =
        parse().with_context(|| format!("--page-server {text:?}: must be ADDRESS:PORT, in numbers"))?;
    Ok(PageServer {
        address: Some(address.to_string()),
        port: Some(i32::from(port)),
    })
}

/// The directory that holds the processes while they are dumped: one that forks meanwhile is held too.
fn freezer(cgroup: &CgroupPaths) -> Result<Option<String>> {
    let paths = Cgroup::open(cgroup.clone());
    let Some(path) = paths.freezer_path()? else {
        return Ok(None);
    };
    Ok(Some(
        path.to_str().context("the cgroup's path is not UTF-8")?.to_owned(),
    ))
}

/// What /proc/PID/fd says of 0, 1 and 2.
fn standard_streams(pid: i32) -> Result<Vec<String>> {
    let name = |number: i32| {
        let path = format!("/proc/{pid}/fd/{number}");
        match std::fs::read_link(&path) {
            Ok(link) => Ok(link.to_string_lossy().into_owned()),
            // Closed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error).with_context(|| format!("readlink {path}")),
        }
    };
    (0..3).map(name).collect()
}

/// The root directory of a process.
pub(super) fn root_of(pid: i32) -> Result<Root> {
    let path = format!("/proc/{pid}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root: OwnedFd = rustix::fs::open(&path, flags, Mode::empty()).with_context(|| format!("open {path}"))?;
    Ok(Root::new(root))
}

/// The container has a user namespace.
pub(super) fn user_namespace(spec: &Spec) -> bool {
    namespaces::declares(spec, LinuxNamespaceType::User)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_servers() {
        for (text, address, port) in [
            ("127.0.0.1:1234", "127.0.0.1", 1234),
            ("[::1]:7", "::1", 7),
            ("::1:7", "::1", 7),
        ] {
            let server = page_server(text).unwrap();
            assert_eq!(
                (server.address.as_deref(), server.port),
                (Some(address), Some(port)),
                "{text}"
            );
        }
        for bad in [
            "",
            "127.0.0.1",
            "host:1",
            "127.0.0.1:0",
            "127.0.0.1:65536",
            "127.0.0.1:",
        ] {
            assert!(page_server(bad).is_err(), "{bad}");
        }
    }
}
