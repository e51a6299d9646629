//! The commands, each from its flags to its exit code. What they do is in [`crate::container`] and [`crate::exec`].

mod checkpoint;
mod create;
mod events;
mod exec;
mod features;
mod list;
mod ps;
mod restore;
mod run;
mod spec;
mod update;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cli::{self, Command, Globals};
use crate::state::OCI_VERSION;
use crate::{container, sealed, start};

/// Carries out a command. The code is that of the container's program where the command waits for it.
pub fn run(globals: &Globals, command: Command) -> Result<ExitCode> {
    let root = std::path::absolute(&globals.root).context("--root")?;
    // These put a process of ours into a container.
    if matches!(command, Command::Create(_) | Command::Run(_) | Command::Exec(_)) {
        sealed::ensure()?;
    }
    match command {
        Command::Create(flags) => create::create(&root, globals, &flags)?,
        Command::Start(id) => start::start(&root, &id)?,
        Command::Run(flags) => return run::run(&root, globals, &flags),
        Command::Exec(flags) => return exec::exec(&root, flags),
        Command::State(id) => list::state(&root, &id)?,
        Command::List(list) => list::list(&root, &list)?,
        Command::Ps(flags) => ps::ps(&root, &flags)?,
        Command::Events(flags) => events::events(&root, &flags)?,
        Command::Kill(kill) => container::kill(&root, &kill.id, kill.signal, kill.all)?,
        Command::Pause(id) => container::pause(&root, &id)?,
        Command::Resume(id) => container::resume(&root, &id)?,
        Command::Update(flags) => update::update(&root, &flags)?,
        Command::Checkpoint(flags) => checkpoint::checkpoint(&root, globals, &flags)?,
        Command::Restore(flags) => return restore::restore(&root, globals, &flags),
        Command::Delete(delete) => container::delete(&root, &delete.id, delete.force)?,
        Command::Spec(flags) => spec::spec(&flags)?,
        Command::Features => features::features()?,
        Command::Help(definition) => print(&cli::help(definition))?,
        Command::Version => print(&format!(
            "corten version {}\nspec: {OCI_VERSION}\n",
            env!("CARGO_PKG_VERSION")
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes to standard output. A reader that has gone away is an error like any other, no panic.
fn print(text: &str) -> Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("write to standard output")
}
