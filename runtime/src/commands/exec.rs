//! `corten exec`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use oci_spec::runtime::Process;

use super::create::console_socket;
use crate::bundle::read_document;
use crate::exec::{Exec, Target, add_capabilities, inherit, limit_inheritable};
use crate::foreground::Foreground;
use crate::{cli, log, socket, validate};

/// Executes a process in a container; without `--detach` until it ends.
pub(super) fn exec(root: &Path, flags: cli::Exec) -> Result<ExitCode> {
    let target = Target::open(root, &flags.id, flags.ignore_paused)?;
    let process = process(&flags, &target)?;
    let terminal = process.terminal() == Some(true);
    let served_elsewhere = flags.detach || flags.console_socket.is_some();
    let (foreground, console) = if served_elsewhere {
        (None, console_socket(flags.console_socket.as_deref(), terminal)?)
    } else {
        let (foreground, console) = Foreground::begin(terminal)?;
        (Some(foreground), console)
    };
    let pidfd_socket = flags.pidfd_socket.as_deref();
    let exec = Exec {
        process,
        console,
        preserve_fds: flags.preserve_fds,
        pid_file: flags.pid_file,
        pidfd_socket: pidfd_socket
            .map(|path| socket::connect("pidfd-socket", path))
            .transpose()?,
        cgroup: flags.cgroup,
    };
    let (_, pidfd) = exec.start(&target)?;
    match foreground {
        _ if flags.detach => Ok(ExitCode::SUCCESS),
        Some(foreground) => foreground.wait(&pidfd),
        None => Foreground::begin(false)?.0.wait(&pidfd),
    }
}

/// The process: a document's, or the container's own with what the flags change.
fn process(flags: &cli::Exec, target: &Target) -> Result<Process> {
    let mut process = match &flags.process {
        Some(path) => {
            let text = read_document(path).with_context(|| format!("--process {}", path.display()))?;
            let parsed = validate::parse_process(&text).with_context(|| format!("--process {}", path.display()))?;
            parsed.warnings.iter().for_each(log::warn);
            let mut process = parsed.value;
            target.spec.process().iter().for_each(|own| inherit(&mut process, own));
            process
        }
        None => changed(
            target.spec.process().clone().context("the container has no process")?,
            flags,
        ),
    };
    if flags.tty {
        process.set_terminal(Some(true));
    }
    if !flags.caps.is_empty() {
        add_capabilities(&mut process, &flags.caps)?;
    }
    limit_inheritable(&mut process);
    validate::validate_process(&process)?.iter().for_each(log::warn);
    Ok(process)
}

fn changed(mut process: Process, flags: &cli::Exec) -> Process {
    process.set_terminal(Some(false)).set_args(Some(flags.args.clone()));
    if let Some((uid, gid)) = flags.user {
        let gid = gid.unwrap_or(process.user().gid());
        process.user_mut().set_uid(uid).set_gid(gid);
    }
    if !flags.additional_gids.is_empty() {
        process
            .user_mut()
            .set_additional_gids(Some(flags.additional_gids.clone()));
    }
    if !flags.env.is_empty() {
        let env = process.env().iter().flatten().chain(&flags.env).cloned().collect();
        process.set_env(Some(env));
    }
    if let Some(cwd) = &flags.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some(profile) = &flags.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = &flags.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if flags.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    process
}
