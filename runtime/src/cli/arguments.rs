//! Arguments against a [`Definition`]: which options were given, with which values, and what else.
//!
//! Like the option parser of Go, which callers of runc write for, a switch may be given a value (`--detach=false`), and of
//! an option given twice the last one counts. Unlike there, options may follow an operand where the command takes no
//! program, and a long option has two dashes.

use std::ffi::OsString;
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use corten_proto::id::ContainerId;
use lexopt::Arg::{Long, Short, Value};
use lexopt::{Parser, ValueExt};

use super::definition::{Count, Definition, Flag, Kind};

/// The arguments of one command.
#[derive(Debug)]
pub(super) struct Arguments {
    definition: &'static Definition,
    /// (option, value) in the order they came; a switch has `true` or `false`.
    given: Vec<(&'static str, OsString)>,
    /// What came besides, and everything after the first of them where that ends the options.
    pub(super) operands: Vec<OsString>,
    /// `--help` was among them: nothing else has been checked then.
    pub(super) help: bool,
}

impl Arguments {
    /// Reads them to the end.
    pub(super) fn parse(definition: &'static Definition, args: Vec<OsString>) -> Result<Arguments> {
        let mut arguments = Arguments {
            definition,
            given: Vec::new(),
            operands: Vec::new(),
            help: false,
        };
        let mut parser = Parser::from_args(args);
        while let Some(arg) = parser.next()? {
            let flag = match arg {
                Long("help") | Short('h') => {
                    arguments.help = true;
                    return Ok(arguments);
                }
                Long(name) => {
                    let flag = definition.flags().find(|flag| flag.long == name);
                    flag.with_context(|| format!("option --{name} is not supported"))?
                }
                Short(name) => {
                    let flag = definition.flags().find(|flag| flag.short == Some(name));
                    flag.with_context(|| format!("option -{name} is not supported"))?
                }
                Value(value) => {
                    arguments.operands.push(value);
                    if definition.ends_options {
                        arguments.take_rest(&mut parser)?;
                        break;
                    }
                    continue;
                }
            };
            let value = value_of(flag, &mut parser)?;
            arguments.given.push((flag.long, value));
        }
        arguments.check_operands()?;
        Ok(arguments)
    }

    /// Everything that is left is somebody else's.
    fn take_rest(&mut self, parser: &mut Parser) -> Result<()> {
        let mut rest = parser.raw_args()?.peekable();
        // The conventional sign that options are over, before what they are followed by as well as before the id.
        rest.next_if(|arg| arg == "--");
        self.operands.extend(rest);
        Ok(())
    }

    fn check_operands(&self) -> Result<()> {
        let operands = self.definition.operands;
        if let Some(missing) = operands.get(self.operands.len())
            && missing.count == Count::One
        {
            bail!("missing {}", missing.what);
        }
        let open = operands.last().is_some_and(|last| last.count == Count::Any);
        match self.operands.get(operands.len()) {
            Some(value) if !open => bail!("argument {value:?} is one too many"),
            _ => Ok(()),
        }
    }

    /// The last value of an option.
    fn value(&self, long: &str) -> Option<&OsString> {
        debug_assert!(
            self.definition.flags().any(|flag| flag.long == long),
            "{} is asked about --{long}, which it does not define",
            self.definition.name
        );
        let last = self.given.iter().rev().find(|(name, _)| *name == long);
        last.map(|(_, value)| value)
    }

    /// Whether a switch is on.
    pub(super) fn has(&self, long: &str) -> bool {
        self.value(long).is_some_and(|value| value == "true")
    }

    pub(super) fn path(&self, long: &str) -> Option<PathBuf> {
        self.value(long).map(PathBuf::from)
    }

    pub(super) fn text(&self, long: &str) -> Result<Option<String>> {
        let text = |value: &OsString| value.clone().string().with_context(|| format!("--{long}"));
        self.value(long).map(text).transpose()
    }

    /// Every value of an option, in order.
    pub(super) fn texts(&self, long: &str) -> Result<Vec<String>> {
        let values = self.given.iter().filter(|(name, _)| *name == long);
        values
            .map(|(_, value)| value.clone().string().with_context(|| format!("--{long}")))
            .collect()
    }

    /// Whether an option has this one of its words.
    pub(super) fn is(&self, long: &str, word: &str) -> bool {
        self.value(long).is_some_and(|value| value == word)
    }

    /// A value parsed by its type.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&self, long: &str) -> Result<Option<T>> {
        self.text(long)?
            .map(|text| text.parse().map_err(|error| anyhow!("--{long} {text:?}: {error}")))
            .transpose()
    }

    /// A value parsed by a function.
    pub(super) fn parsed_by<T>(&self, long: &str, parse: impl Fn(&str) -> Result<T>) -> Result<Option<T>> {
        self.text(long)?
            .map(|text| parse(&text).with_context(|| format!("--{long} {text:?}")))
            .transpose()
    }

    /// The first operand, of a command whose first operand is one.
    pub(super) fn id(&self) -> Result<ContainerId> {
        let id = self.operands.first().context("missing the container's id")?;
        Ok(id.clone().string()?.parse()?)
    }

    /// The operand at this index, if it was given.
    pub(super) fn operand(&self, index: usize) -> Result<Option<String>> {
        Ok(self.operands.get(index).cloned().map(ValueExt::string).transpose()?)
    }

    /// The operands from this index on.
    pub(super) fn operands_from(self, index: usize) -> Result<Vec<String>> {
        let text = |operand: OsString| Ok(operand.string()?);
        self.operands.into_iter().skip(index).map(text).collect()
    }

    /// A number of descriptors from `first` on, all of which must be open now: later the numbers would be taken by others.
    pub(super) fn preserve_fds(&self, first: i32) -> Result<i32> {
        let count = i32::from(self.parsed::<u16>("preserve-fds")?.unwrap_or(0));
        match (first..first + count).find(|&fd| !crate::sys::fd::is_open(fd)) {
            Some(fd) => bail!("--preserve-fds {count}: descriptor {fd} is not open"),
            None => Ok(count),
        }
    }
}

fn value_of(flag: &Flag, parser: &mut Parser) -> Result<OsString> {
    let Some(value) = flag.value else {
        return switch(flag, parser.optional_value()).map(OsString::from);
    };
    let given = parser.value()?;
    if let Kind::Words(words) = value.kind {
        ensure!(
            words.iter().any(|word| given == *word),
            "--{} {given:?}: must be {}",
            flag.long,
            words.join(" or ")
        );
    }
    Ok(given)
}

/// The words are those of Go's `strconv.ParseBool`.
fn switch(flag: &Flag, given: Option<OsString>) -> Result<&'static str> {
    let Some(given) = given else {
        return Ok("true");
    };
    match given.to_str() {
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok("true"),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok("false"),
        _ => bail!("--{}={}: must be true or false", flag.long, given.display()),
    }
}
