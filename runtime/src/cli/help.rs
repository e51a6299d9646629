//! What `--help` prints, of the program and of each command.

use super::COMMANDS;
use super::definition::{Definition, Flag, Kind};

/// Where the descriptions of a list begin, in columns; a longer entry has its description on the next line.
const COLUMN: usize = 34;

/// The help of a command, or of the program.
pub fn help(definition: &Definition) -> String {
    let program = definition.name == super::PROGRAM.name;
    let mut text = if program {
        format!("{} - {}\n\n", definition.name, definition.about)
    } else {
        format!("corten {} - {}\n\n", definition.name, definition.about)
    };
    text += &format!("Usage: {}\n", usage(definition));
    if !definition.details.is_empty() {
        text += &format!("\n{}\n", definition.details);
    }
    if program {
        text += "\nCommands:\n";
        text.extend(COMMANDS.iter().map(|command| entry(command.name, command.about)));
    }
    text += if program { "\nGlobal options:\n" } else { "\nOptions:\n" };
    text.extend(definition.flags().map(|flag| entry(&names(flag), &described(flag))));
    text + &entry("-h, --help", "print this")
}

/// How it is called, in one line.
pub fn usage(definition: &Definition) -> String {
    let mut words = vec!["corten".to_owned()];
    if definition.name == super::PROGRAM.name {
        words.extend(["[GLOBAL OPTIONS]".to_owned(), "COMMAND".to_owned(), "...".to_owned()]);
        return words.join(" ");
    }
    words.push(definition.name.to_owned());
    if definition.flags().next().is_some() {
        words.push("[OPTIONS]".to_owned());
    }
    words.extend(definition.operands.iter().map(super::definition::Operand::synopsis));
    words.join(" ")
}

fn names(flag: &Flag) -> String {
    let short = flag
        .short
        .map_or_else(|| "    ".to_owned(), |short| format!("-{short}, "));
    let value = flag.value.map_or_else(String::new, |value| format!(" {}", value.name));
    format!("{short}--{}{value}", flag.long)
}

fn described(flag: &Flag) -> String {
    match flag.value.map(|value| value.kind) {
        Some(Kind::Words(words)) => format!("{} ({})", flag.help, words.join(", ")),
        _ => flag.help.to_owned(),
    }
}

fn entry(left: &str, right: &str) -> String {
    let room = COLUMN - 2;
    if left.len() + 1 < room {
        format!("  {left:room$}{right}\n")
    } else {
        format!("  {left}\n{:COLUMN$}{right}\n", "")
    }
}
