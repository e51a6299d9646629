//! `as-user DIR PROGRAM [ARGUMENT..]`: becomes PROGRAM as the ordinary user of `corten_tests::bundle::user`.
//!
//! The user has an account, and ids to give to containers, in DIR/{passwd,subuid,subgid}, which lie over the files of
//! /etc in a mount namespace of its own: newuidmap looks them up, and the machine's own stay as they are. The process is
//! the one that was started: its pid and its exit are PROGRAM's.
//!
//! With `self` for DIR it stays root, of a user namespace in which there is no other id: what `unshare --map-root-user`
//! gives to a user, and therefore as that user.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use corten_tests::bundle::user;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, execvp, setgroups, setresgid, setresuid};

fn main() -> ExitCode {
    let Err(error) = run();
    eprintln!("as-user: {error:#}");
    ExitCode::from(125)
}

fn run() -> Result<Infallible> {
    let args = std::env::args_os().skip(1).map(|arg| CString::new(arg.into_vec()));
    let args: Vec<CString> = args.collect::<Result<_, _>>().context("arguments")?;
    ensure!(args.len() >= 2, "usage: as-user DIR PROGRAM [ARGUMENT..]");
    let directory = args[0].to_str().context("DIR")?;
    if directory != user::ROOT_OF_ITS_OWN {
        lay_files_over_etc(Path::new(directory))?;
    }
    become_user()?;
    if directory == user::ROOT_OF_ITS_OWN {
        become_root_of_its_own()?;
    }
    execvp(&args[1], &args[1..]).with_context(|| format!("execute {:?}", args[1]))
}

fn lay_files_over_etc(directory: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("mount(/, MS_REC | MS_PRIVATE)")?;
    for name in user::FILES {
        let target = Path::new("/etc").join(name);
        mount(Some(&directory.join(name)), &target, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("bind over {}", target.display()))?;
    }
    Ok(())
}

fn become_user() -> Result<()> {
    let (uid, gid) = (Uid::from_raw(user::ID), Gid::from_raw(user::ID));
    setgroups(&[gid]).context("setgroups")?;
    setresgid(gid, gid, gid).context("setresgid")?;
    setresuid(uid, uid, uid).context("setresuid")
}

fn become_root_of_its_own() -> Result<()> {
    // A change of identity has made this process undumpable, and its files in /proc root's.
    nix::sys::prctl::set_dumpable(true).context("prctl(PR_SET_DUMPABLE, 1)")?;
    unshare(CloneFlags::CLONE_NEWUSER).context("unshare(CLONE_NEWUSER)")?;
    let map = format!("0 {} 1", user::ID);
    for (file, text) in [("setgroups", "deny"), ("gid_map", &map), ("uid_map", &map)] {
        fs::write(format!("/proc/self/{file}"), text).with_context(|| format!("write {text} to {file}"))?;
    }
    Ok(())
}
