//! `corten-shim --hold user[,net]`: a process that makes namespaces and waits, for the CRI server.
//!
//! A user namespace can only be made by a process with a single thread, which the server is not. Whoever started this
//! writes the id maps, and takes the namespaces by the process's /proc entries. It ends with its standard input, so that
//! a server that dies leaves nothing.
//!
//! ```text
//! server                    holder
//!   spawn -->               unshare
//!                <-- "."    they are there
//!   uid_map, gid_map
//!   close stdin -->         exit
//! ```

use std::io::{Read, Write};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};

/// Makes the namespaces that `kinds` lists and waits for the end of the standard input.
pub(crate) fn run(kinds: &str) -> Result<()> {
    // The user namespace is made first, whatever the order, and owns the others.
    let flags = match kinds {
        "user" => CloneFlags::CLONE_NEWUSER,
        "user,net" => CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET,
        other => bail!("--hold {other}: must be user or user,net"),
    };
    unshare(flags).with_context(|| format!("unshare({flags:?})"))?;
    let mut output = std::io::stdout();
    output
        .write_all(b".")
        .and_then(|()| output.flush())
        .context("tell the server")?;
    std::io::stdin()
        .read_to_end(&mut Vec::new())
        .context("wait for the server")?;
    Ok(())
}
