//! One configuration file: its text, where in it things stand, and what is wrong with it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::Table;
use toml::de::{DeTable, DeValue, Deserializer};

use super::{Config, keys};

/// One thing that is wrong, on one line: file, line, key, rule, value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file; none where a default or the command line is to blame.
    pub file: Option<PathBuf>,
    /// Line in the file, from 1.
    pub line: Option<usize>,
    /// Dotted path of the key, where one is known.
    pub key: Option<String>,
    /// What is wrong with it.
    pub rule: String,
    /// Its value as it may be shown, where it helps.
    pub value: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}:", file.display())?,
            None => write!(f, "configuration:")?,
        }
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if let Some(key) = &self.key {
            write!(f, " {key}:")?;
        }
        write!(f, " {}", self.rule)?;
        match &self.value {
            Some(value) => write!(f, " (it is {value})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}

/// Everything that is wrong with a configuration, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A file and its text.
pub(crate) struct Source {
    /// Its path.
    pub(crate) file: PathBuf,
    /// Its content.
    pub(crate) text: String,
}

impl Source {
    /// Its content as a `T`; a wrong key or type is blamed on its line.
    pub(crate) fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, Problem> {
        toml::from_str(&self.text).map_err(|error| {
            let key = error.span().and_then(|span| key_at(&self.text, span.start));
            self.blame(&error, key)
        })
    }

    /// That the value of `key` breaks `rule`.
    pub(crate) fn problem(&self, key: &[String], rule: String) -> Problem {
        let line = self.line_of_key(key);
        Problem {
            file: line.map(|_| self.file.clone()),
            line,
            key: Some(key.join(".")),
            rule,
            value: None,
        }
    }

    /// What of its content makes a part of a configuration, and all that does not. What is wrong is left out, until the rest
    /// would make one: so no mistake hides another. Nothing is left of a file that is no TOML.
    pub(super) fn check(&self) -> (Table, Vec<Problem>) {
        let (mut rest, errors) = DeTable::parse_recoverable(&self.text);
        if !errors.is_empty() {
            let problems = errors.iter().map(|error| self.blame(error, None));
            return (Table::new(), problems.collect());
        }
        let mut problems = Vec::new();
        while let Err(error) = Config::deserialize(Deserializer::from(rest.clone())) {
            let path = error.span().and_then(|span| path_at(rest.get_ref(), span.start));
            let mut problem = self.blame(&error, path.as_ref().map(|path| path.join(".")));
            let Some(path) = path else {
                problems.push(problem);
                return (Table::new(), problems);
            };
            if let Some(better) = unknown_key(&problem.rule, &path) {
                problem.rule = better;
            }
            problem.value = self.value_of(rest.get_ref(), &path);
            problems.push(problem);
            remove(rest.get_mut(), &path);
        }
        problems.sort_by_key(|problem| problem.line);
        // What makes a Config makes a table.
        let table = Table::deserialize(Deserializer::from(rest)).unwrap_or_default();
        (table, problems)
    }

    /// The line on which a key is, if it is in this file.
    pub(super) fn line_of_key(&self, key: &[String]) -> Option<usize> {
        let table = DeTable::parse(&self.text).ok()?;
        Some(line_of(&self.text, position(table.get_ref(), key)?))
    }

    /// All keys that have a value which is no table, with their lines.
    pub(super) fn leaves(&self) -> Vec<(Vec<String>, usize)> {
        let mut found = Vec::new();
        if let Ok(table) = DeTable::parse(&self.text) {
            collect(table.get_ref(), &mut Vec::new(), &mut |path, at| {
                found.push((path.to_vec(), line_of(&self.text, at)));
            });
        }
        found
    }

    fn blame(&self, error: &toml::de::Error, key: Option<String>) -> Problem {
        let line = error.span().map(|span| line_of(&self.text, span.start));
        Problem {
            file: Some(self.file.clone()),
            line,
            key,
            rule: error.message().replace('\n', "; "),
            value: None,
        }
    }

    /// How the file has the value of a key; nothing for a table.
    fn value_of(&self, table: &DeTable<'_>, path: &[String]) -> Option<String> {
        let (last, parents) = path.split_last()?;
        let mut table = table;
        for part in parents {
            table = match entry(table, part)?.1.get_ref() {
                DeValue::Table(inner) => inner,
                _ => return None,
            };
        }
        let (_, value) = entry(table, last)?;
        if let DeValue::Table(_) = value.get_ref() {
            return None;
        }
        Some(keys::shown(path, self.text.get(value.span())?))
    }
}

/// What to say of a key that does not exist, in the place of serde's list of those that do: the one that may be meant.
fn unknown_key(rule: &str, path: &[String]) -> Option<String> {
    let (unknown, expected) = rule.strip_prefix("unknown field ")?.split_once(", ")?;
    let name = path.last()?;
    let beside = expected.split('`').skip(1).step_by(2);
    let near = |other: &&str| strsim::osa_distance(name, other) <= 1 + name.len() / 4;
    let meant = beside
        .filter(near)
        .min_by_key(|other| strsim::osa_distance(name, other))
        .map(|other| [&path[..path.len() - 1], &[other.to_owned()]].concat().join("."))
        .or_else(|| keys::named(name).map(str::to_owned));
    Some(match meant {
        Some(meant) => format!("unknown field {unknown}; did you mean {meant}?"),
        None => format!("unknown field {unknown}, {expected}"),
    })
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|&b| b == b'\n').count()
}

type Entry<'t, 'i> = (
    &'t toml::Spanned<toml::de::DeString<'i>>,
    &'t toml::Spanned<DeValue<'i>>,
);

fn entry<'t, 'i>(table: &'t DeTable<'i>, name: &str) -> Option<Entry<'t, 'i>> {
    table.iter().find(|(key, _)| key.get_ref().as_ref() == name)
}

/// Where the key's name starts.
fn position(table: &DeTable<'_>, key: &[String]) -> Option<usize> {
    let (first, rest) = key.split_first()?;
    let (name, value) = entry(table, first)?;
    match (rest, value.get_ref()) {
        ([], _) => Some(name.span().start),
        (rest, DeValue::Table(inner)) => position(inner, rest),
        _ => None,
    }
}

fn collect(table: &DeTable<'_>, path: &mut Vec<String>, found: &mut impl FnMut(&[String], usize)) {
    for (name, value) in table {
        path.push(name.get_ref().to_string());
        match value.get_ref() {
            DeValue::Table(inner) => collect(inner, path, found),
            _ => found(path, name.span().start),
        }
        path.pop();
    }
}

/// The dotted path of the key whose name or value is at this place.
fn key_at(text: &str, at: usize) -> Option<String> {
    let table = DeTable::parse(text).ok()?;
    path_at(table.get_ref(), at).map(|path| path.join("."))
}

fn path_at(table: &DeTable<'_>, at: usize) -> Option<Vec<String>> {
    let mut path = Vec::new();
    search(table, at, &mut path).then_some(path)
}

fn search(table: &DeTable<'_>, at: usize, path: &mut Vec<String>) -> bool {
    for (name, value) in table {
        path.push(name.get_ref().to_string());
        let inner = match value.get_ref() {
            DeValue::Table(inner) => search(inner, at, path),
            _ => false,
        };
        if inner || name.span().contains(&at) || value.span().contains(&at) {
            return true;
        }
        path.pop();
    }
    false
}

fn remove(table: &mut DeTable<'_>, path: &[String]) {
    let Some((first, rest)) = path.split_first() else {
        return;
    };
    if rest.is_empty() {
        table.remove(first.as_str());
        return;
    }
    for (name, value) in table.iter_mut() {
        if let (true, DeValue::Table(inner)) = (name.get_ref().as_ref() == first, value.get_mut()) {
            remove(inner, rest);
        }
    }
}

/// That a file or directory cannot be read.
pub(super) fn unreadable(file: &Path, error: &std::io::Error) -> Problem {
    Problem {
        file: Some(file.to_owned()),
        line: None,
        key: None,
        rule: format!("read: {error}"),
        value: None,
    }
}
