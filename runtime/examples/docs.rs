//! The manual pages of `corten` and its commands, and the completions of bash, zsh and fish, from the definitions that the
//! program itself parses by:
//!
//! ```text
//! cargo run -p corten-runtime --example docs -- hack/dist
//!   hack/dist/man/corten.8 corten-create.8 ...                  to /usr/share/man/man8
//!   hack/dist/completions/corten.bash _corten corten.fish       to where the shells look
//! ```
//! A test holds what is in hack/dist against it.
//!
//! An example, so that clap and its generators are no part of the runtime.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Arg, ArgAction, ValueHint};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use corten_runtime::cli::definition::{Count, Definition, Flag, Kind};
use corten_runtime::cli::{COMMANDS, PROGRAM};

fn main() -> Result<()> {
    let directory = std::env::args_os().nth(1).context("usage: docs DIR")?;
    write(Path::new(&directory))
}

fn write(directory: &Path) -> Result<()> {
    write_pages(&directory.join("man"))?;
    let completions = directory.join("completions");
    fs::create_dir_all(&completions).with_context(|| format!("create {}", completions.display()))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut program(), PROGRAM.name, &completions)
            .with_context(|| format!("write the completions of {shell}"))?;
    }
    Ok(())
}

fn write_pages(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let pages = COMMANDS.iter().filter(|definition| definition.name != "help");
    let commands = pages.map(|definition| {
        // Leaked because clap keeps names for as long as a program runs.
        let name = &*format!("{}-{}", PROGRAM.name, definition.name).leak();
        let called = format!("{} {}", PROGRAM.name, definition.name);
        (name, command(definition).name(name).bin_name(called))
    });
    for (name, command) in commands.chain([(PROGRAM.name, program())]) {
        let page = Man::new(command).title(name.to_uppercase()).section("8");
        let mut text = Vec::new();
        page.render(&mut text).with_context(|| format!("render {name}.8"))?;
        let path = directory.join(format!("{name}.8"));
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn program() -> clap::Command {
    command(&PROGRAM)
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .subcommands(COMMANDS.iter().map(command))
}

fn command(definition: &'static Definition) -> clap::Command {
    let mut command = clap::Command::new(definition.name).about(definition.about);
    if !definition.details.is_empty() {
        command = command.long_about(format!("{}.\n\n{}", definition.about, definition.details));
    }
    command = command.args(definition.flags().map(option));
    if definition.name == PROGRAM.name {
        return command;
    }
    command.args(definition.operands.iter().map(|operand| {
        let arg = Arg::new(operand.name)
            .help(operand.what)
            .required(operand.count == Count::One);
        match operand.count {
            Count::Any => arg.num_args(0..).trailing_var_arg(definition.ends_options),
            Count::One | Count::AtMostOne => arg,
        }
    }))
}

fn option(flag: &'static Flag) -> Arg {
    let mut arg = Arg::new(flag.long).long(flag.long).help(flag.help);
    if let Some(short) = flag.short {
        arg = arg.short(short);
    }
    let Some(value) = flag.value else {
        return arg.action(ArgAction::SetTrue);
    };
    arg = arg.value_name(value.name).action(ArgAction::Append);
    match value.kind {
        Kind::Text => arg,
        Kind::File => arg.value_hint(ValueHint::FilePath),
        Kind::Directory => arg.value_hint(ValueHint::DirPath),
        Kind::Words(words) => arg.value_parser(words.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::process::Command;

    use super::*;

    /// The files in a directory that goes when the value does.
    fn written() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path()).unwrap();
        directory
    }

    /// Runs a program of this machine, unless it has none.
    fn output(program: &str, args: &[OsString]) -> Option<std::process::Output> {
        match Command::new(program).args(args).output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("SKIP: {program} is not installed");
                None
            }
            output => Some(output.unwrap()),
        }
    }

    #[test]
    fn what_is_in_hack_is_up_to_date() {
        let directory = written();
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/dist");
        for inner in ["man", "completions"] {
            for entry in fs::read_dir(directory.path().join(inner)).unwrap() {
                let made = entry.unwrap().path();
                let kept = kept.join(inner).join(made.file_name().unwrap());
                assert!(
                    fs::read_to_string(&kept).ok() == fs::read_to_string(&made).ok(),
                    "{} is of an older command line: run `cargo run -p corten-runtime --example docs -- hack/dist`",
                    kept.display()
                );
            }
        }
    }

    #[test]
    fn every_command_has_a_page_that_renders() {
        let directory = written();
        let pages = COMMANDS.iter().filter(|definition| definition.name != "help");
        for definition in pages.chain([&PROGRAM]) {
            let program = definition.name == PROGRAM.name;
            let name = if program {
                "corten".to_owned()
            } else {
                format!("corten-{}", definition.name)
            };
            let path = directory.path().join("man").join(format!("{name}.8"));
            let text = fs::read_to_string(&path).unwrap();
            for flag in definition.flags() {
                assert!(text.contains(&flag.long.replace('-', "\\-")), "{name}: {}", flag.long);
            }
            let args = ["-man", "-Tascii", "-ww", "-P-cbou"].map(OsString::from);
            let Some(output) = output("groff", &[&args[..], &[path.into()]].concat()) else {
                continue;
            };
            assert!(
                output.status.success() && output.stderr.is_empty(),
                "{name}: {output:?}"
            );
            let shown = String::from_utf8(output.stdout).unwrap();
            assert!(shown.starts_with(&name.to_uppercase()), "{shown}");
            for flag in definition.flags() {
                assert!(
                    shown.contains(&format!("--{}", flag.long)),
                    "{name} --{}: {shown}",
                    flag.long
                );
            }
        }
    }

    /// What bash offers for the last of these words.
    fn completed(script: &Path, words: &[&str]) -> Option<Vec<String>> {
        let line = format!(
            "source '{}'; COMP_WORDS=({}); COMP_CWORD={}; _corten corten '{}' '{}'; echo \"${{COMPREPLY[@]}}\"",
            script.display(),
            words.join(" "),
            words.len() - 1,
            words[words.len() - 1],
            words[words.len() - 2],
        );
        let output = output("bash", &["-c".into(), line.into()])?;
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        Some(text.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn bash_completes_commands_options_and_words() {
        let directory = written();
        let script = directory.path().join("completions/corten.bash");
        for (words, offered) in [
            (&["corten", "cr"][..], &["create"][..]),
            (&["corten", "res"], &["restore", "resume"]),
            (&["corten", "--sys"], &["--systemd-cgroup"]),
            (&["corten", "create", "--pid"], &["--pid-file", "--pidfd-socket"]),
            (&["corten", "list", "--format", "j"], &["json"]),
            (&["corten", "exec", "--no-n"], &["--no-new-privs"]),
        ] {
            if let Some(mut given) = completed(&script, words) {
                given.sort();
                assert_eq!(given, offered, "{words:?}");
            }
        }
    }

    #[test]
    fn every_shell_knows_every_command_and_option() {
        let directory = written();
        for file in ["corten.bash", "_corten", "corten.fish"] {
            let text = fs::read_to_string(directory.path().join("completions").join(file)).unwrap();
            for definition in &COMMANDS {
                assert!(text.contains(definition.name), "{file}: {}", definition.name);
                for flag in definition.flags() {
                    assert!(text.contains(flag.long), "{file}: {} --{}", definition.name, flag.long);
                }
            }
        }
    }
}
