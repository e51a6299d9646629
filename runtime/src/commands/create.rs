//! `corten create`, and what `run` has in common with it.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Result, bail};

use crate::bundle::Bundle;
use crate::cgroup::Driver;
use crate::cli::{self, Globals};
use crate::container::{self, Create};
use crate::{notify, socket};

/// Creates a container that is started later, by somebody else.
pub(super) fn create(root: &Path, globals: &Globals, flags: &cli::Create) -> Result<()> {
    let bundle = load(root, flags)?;
    let console = console_socket(
        flags.console_socket.as_deref(),
        bundle.process()?.terminal() == Some(true),
    )?;
    container::create(root, &request(globals, flags, console)?, &bundle)?;
    Ok(())
}

/// The bundle, with what a service manager needs in it.
pub(super) fn load(root: &Path, flags: &cli::Create) -> Result<Bundle> {
    let mut bundle = Bundle::load(&flags.bundle)?;
    if notify::manager().is_some() {
        notify::show(&mut bundle.spec, &root.join(flags.id.as_str()));
    }
    Ok(bundle)
}

/// The request that the flags amount to.
pub(super) fn request(globals: &Globals, flags: &cli::Create, console: Option<OwnedFd>) -> Result<Create> {
    let pidfd_socket = flags.pidfd_socket.as_deref();
    Ok(Create {
        id: flags.id.clone(),
        bundle: flags.bundle.clone(),
        pid_file: flags.pid_file.clone(),
        console,
        pidfd_socket: pidfd_socket
            .map(|path| socket::connect("pidfd-socket", path))
            .transpose()?,
        listen_fds: flags.listen_fds,
        preserve_fds: flags.preserve_fds,
        notify: notify::manager().is_some(),
        no_pivot: flags.no_pivot,
        new_keyring: !flags.no_new_keyring,
        rootless: globals.rootless,
        driver: driver(globals),
    })
}

/// Who makes the cgroups.
pub(super) fn driver(globals: &Globals) -> Driver {
    if globals.systemd_cgroup {
        Driver::Systemd
    } else {
        Driver::Cgroupfs
    }
}

/// The socket that the terminal of a process goes to when nobody stays to serve it here.
pub(super) fn console_socket(path: Option<&Path>, terminal: bool) -> Result<Option<OwnedFd>> {
    match (path, terminal) {
        (Some(path), true) => socket::connect("console-socket", path).map(Some),
        (None, false) => Ok(None),
        (None, true) => {
            bail!("process.terminal: a detached process with a terminal needs --console-socket")
        }
        (Some(_), false) => bail!("--console-socket: the process has no terminal"),
    }
}
