//! What a command takes, as data: parsing, `--help`, the shells' completions and the manual pages are all made from it, so
//! that none of them can say something else than the others.
//!
//! The tables themselves stand in the file of each command, beside the type that the arguments become.

/// A command, or the program itself with its global options.
#[derive(Debug)]
pub struct Definition {
    /// What it is called.
    pub name: &'static str,
    /// One line, without a full stop.
    pub about: &'static str,
    /// What else there is to say, in lines of at most 100 columns; may be empty.
    pub details: &'static str,
    /// Its options, in groups that commands share.
    pub flags: &'static [&'static [Flag]],
    /// What else it takes, in order.
    pub operands: &'static [Operand],
    /// Options end at the first operand: what follows, dashes and all, is for a program.
    pub ends_options: bool,
}

impl Definition {
    /// Every option.
    pub fn flags(&self) -> impl Iterator<Item = &'static Flag> {
        self.flags.iter().copied().flatten()
    }
}

/// An option.
#[derive(Debug)]
pub struct Flag {
    /// Its name, without the dashes.
    pub long: &'static str,
    /// One more name.
    pub short: Option<char>,
    /// What follows it; a switch without.
    pub value: Option<Value>,
    /// One line, without a full stop.
    pub help: &'static str,
}

/// The value of an option.
#[derive(Clone, Copy, Debug)]
pub struct Value {
    /// What stands for it in a help text.
    pub name: &'static str,
    /// What it may be.
    pub kind: Kind,
}

/// What a value may be: for the shells to complete, and for words to be checked.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Anything.
    Text,
    /// The path of a file, or of a socket.
    File,
    /// The path of a directory.
    Directory,
    /// One of these.
    Words(&'static [&'static str]),
}

/// An argument that is no option.
#[derive(Debug)]
pub struct Operand {
    /// What stands for it in a help text.
    pub name: &'static str,
    /// What it is, with its article, as in "missing the container's id".
    pub what: &'static str,
    /// How often.
    pub count: Count,
}

/// How often an operand may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Once.
    One,
    /// Once or not at all.
    AtMostOne,
    /// As often as one likes; the last operand only.
    Any,
}

impl Flag {
    /// An option without a value.
    pub const fn switch(long: &'static str, help: &'static str) -> Flag {
        Flag {
            long,
            short: None,
            value: None,
            help,
        }
    }

    /// An option with some text.
    pub const fn text(long: &'static str, name: &'static str, help: &'static str) -> Flag {
        Flag::with(long, name, Kind::Text, help)
    }

    /// An option with the path of a file.
    pub const fn file(long: &'static str, help: &'static str) -> Flag {
        Flag::with(long, "FILE", Kind::File, help)
    }

    /// An option with the path of a unix socket.
    pub const fn socket(long: &'static str, help: &'static str) -> Flag {
        Flag::with(long, "SOCKET", Kind::File, help)
    }

    /// An option with the path of a directory.
    pub const fn directory(long: &'static str, help: &'static str) -> Flag {
        Flag::with(long, "DIR", Kind::Directory, help)
    }

    /// An option with one of these words.
    pub const fn words(
        long: &'static str,
        name: &'static str,
        words: &'static [&'static str],
        help: &'static str,
    ) -> Flag {
        Flag::with(long, name, Kind::Words(words), help)
    }

    const fn with(long: &'static str, name: &'static str, kind: Kind, help: &'static str) -> Flag {
        Flag {
            long,
            short: None,
            value: Some(Value { name, kind }),
            help,
        }
    }

    /// The same with a short name.
    pub const fn or(self, short: char) -> Flag {
        Flag {
            short: Some(short),
            ..self
        }
    }
}

impl Operand {
    /// The operand of nearly every command.
    pub const ID: Operand = Operand {
        name: "ID",
        what: "the container's id",
        count: Count::One,
    };

    /// How a synopsis shows it.
    pub fn synopsis(&self) -> String {
        match self.count {
            Count::One => self.name.to_owned(),
            Count::AtMostOne => format!("[{}]", self.name),
            Count::Any => format!("[{}]...", self.name),
        }
    }
}
