//! The commands, each from its flags to its exit code. What they do is in [`crate::container`] and [`crate::exec`].

mod create;
mod exec;
mod list;
mod run;

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cli::{self, Command, Globals};
use crate::state::OCI_VERSION;
use crate::{container, sealed};

/// Carries out a command. The code is that of the container's program where the command waits for it.
pub fn run(globals: &Globals, command: Command) -> Result<ExitCode> {
    let root = std::path::absolute(&globals.root).context("--root")?;
    // These put a process of ours into a container.
    if matches!(command, Command::Create(_) | Command::Run(_) | Command::Exec(_)) {
        sealed::ensure()?;
    }
    match command {
        Command::Create(flags) => create::create(&root, &flags)?,
        Command::Start(id) => container::start(&root, &id)?,
        Command::Run(flags) => return run::run(&root, &flags),
        Command::State(id) => list::state(&root, &id)?,
        Command::Kill(kill) => container::kill(&root, &kill.id, kill.signal, kill.all)?,
        Command::Delete { id, force } => container::delete(&root, &id, force)?,
        Command::Exec(flags) => return exec::exec(&root, flags),
        Command::List(list) => list::list(&root, &list)?,
        Command::Help => print!("{}", cli::HELP),
        Command::Version => println!("corten version {}\nspec: {OCI_VERSION}", env!("CARGO_PKG_VERSION")),
    }
    Ok(ExitCode::SUCCESS)
}
