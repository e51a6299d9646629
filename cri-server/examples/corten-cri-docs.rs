//! The manual pages of `corten-cri` and its commands, and the completions of bash, zsh and fish, from the command line that
//! the program itself parses by:
//!
//! ```text
//! cargo run -p corten-cri --example corten-cri-docs -- hack/dist
//!   hack/dist/man/corten-cri.8 corten-cri-config.8 ...        to /usr/share/man/man8
//!   hack/dist/completions/corten-cri.bash _corten-cri ...     to where the shells look
//! ```
//! An example, so that clap's generators are no part of the server. A test holds what is in hack/dist against it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use corten_cri::cli::Cli;

/// The program's name.
const NAME: &str = "corten-cri";

fn main() -> Result<()> {
    let directory = std::env::args_os().nth(1).context("usage: docs DIR")?;
    write(Path::new(&directory))
}

fn write(directory: &Path) -> Result<()> {
    let man = directory.join("man");
    fs::create_dir_all(&man).with_context(|| format!("create {}", man.display()))?;
    let program = Cli::command().disable_help_subcommand(true);
    write_pages(&man, program, NAME, NAME)?;
    let completions = directory.join("completions");
    fs::create_dir_all(&completions).with_context(|| format!("create {}", completions.display()))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut Cli::command(), NAME, &completions)
            .with_context(|| format!("write the completions of {shell}"))?;
    }
    Ok(())
}

/// The page of a command and of every command below it; `called` is how it is typed.
fn write_pages(directory: &Path, command: Command, name: &str, called: &str) -> Result<()> {
    for inner in command.get_subcommands() {
        let (name, called) = (
            format!("{name}-{}", inner.get_name()),
            format!("{called} {}", inner.get_name()),
        );
        write_pages(directory, inner.clone(), &name, &called)?;
    }
    // Leaked because clap keeps names for as long as a program runs.
    let page = command
        .name(&*name.to_owned().leak())
        .bin_name(called)
        .disable_help_subcommand(true);
    let mut text = Vec::new();
    let man = Man::new(page)
        .title(name.to_uppercase())
        .section("8")
        .date("")
        .source("Corten");
    man.render(&mut text).with_context(|| format!("render {name}.8"))?;
    let path = directory.join(format!("{name}.8"));
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::process::{Command, Stdio};

    use super::*;

    /// The files of the directories below `directory` that begin as this program's do.
    fn files(directory: &Path) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for inner in ["man", "completions"] {
            for entry in fs::read_dir(directory.join(inner)).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if name.trim_start_matches('_').starts_with(NAME) {
                    found.insert(format!("{inner}/{name}"), fs::read_to_string(&path).unwrap());
                }
            }
        }
        found
    }

    #[test]
    fn what_is_in_hack_is_up_to_date() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path()).unwrap();
        let made = files(directory.path());
        let kept = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/dist"));
        let again =
            "run `cargo run -p corten-cri --example corten-cri-docs -- hack/dist`, and remove what it does not write";
        assert_eq!(
            made.keys().collect::<Vec<_>>(),
            kept.keys().collect::<Vec<_>>(),
            "{again}"
        );
        for (name, text) in &made {
            assert!(
                kept[name] == *text,
                "hack/dist/{name} is of an older command line: {again}"
            );
        }
    }

    #[test]
    fn every_page_renders() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path()).unwrap();
        for (name, _) in files(directory.path())
            .iter()
            .filter(|(name, _)| name.starts_with("man/"))
        {
            let mut groff = Command::new("groff");
            groff.args(["-man", "-Tascii", "-ww"]).arg(directory.path().join(name));
            let output = match groff.stdin(Stdio::null()).output() {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    println!("SKIP: groff is not installed");
                    return;
                }
                output => output.unwrap(),
            };
            assert!(
                output.status.success() && output.stderr.is_empty(),
                "{name}: {output:?}"
            );
        }
    }
}
