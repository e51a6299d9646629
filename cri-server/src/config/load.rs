//! Configuration files: finding them, merging them, and saying where in them something is wrong.
//!
//! Each file is first read alone, so that a wrong key or type is blamed on its line; then all are merged, and a rule
//! that the result breaks is blamed on the last file that sets the key.

use std::fmt;
use std::path::{Path, PathBuf};

use toml::Table;
use toml::de::{DeTable, DeValue};

use super::{Config, DEFAULT_FILE, rules};

/// One thing that is wrong, on one line: file, line, key, rule.
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
        write!(f, " {}", self.rule)
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
        parse(self)
    }

    /// That the value of `key` breaks `rule`.
    pub(crate) fn problem(&self, key: &[String], rule: String) -> Problem {
        locate(std::slice::from_ref(self), key, rule)
    }
}

pub(super) fn load(file: Option<&Path>, adjust: impl FnOnce(&mut Config)) -> Result<Config, Problems> {
    let sources = read(file).map_err(|problem| Problems(vec![problem]))?;
    let problems: Vec<Problem> = sources
        .iter()
        .filter_map(|source| parse::<Config>(source).err())
        .collect();
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let mut merged = Table::new();
    for source in &sources {
        merge(&mut merged, parse(source).map_err(|problem| Problems(vec![problem]))?);
    }
    let own_listen = merged.contains_key("listen");
    let mut config: Config = merged.try_into().map_err(|error: toml::de::Error| {
        // Each file alone was right, and merging tables keeps types.
        Problems(vec![Problem {
            file: None,
            line: None,
            key: None,
            rule: one_line(&error),
        }])
    })?;
    adjust(&mut config);
    // The default socket lies in the state directory and moves with it.
    if !own_listen && config.listen == Config::default().listen {
        config.listen = config.state.join("corten.sock");
    }
    let broken = rules::broken(&config);
    if broken.is_empty() {
        return Ok(config);
    }
    Err(Problems(
        broken
            .into_iter()
            .map(|(key, rule)| locate(&sources, &key, rule))
            .collect(),
    ))
}

/// The files in the order in which they count.
fn read(file: Option<&Path>) -> Result<Vec<Source>, Problem> {
    let main = file.unwrap_or(Path::new(DEFAULT_FILE));
    let mut sources = Vec::new();
    match std::fs::read_to_string(main) {
        Ok(text) => sources.push(Source {
            file: main.to_owned(),
            text,
        }),
        Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(unreadable(main, &error)),
    }
    for file in drop_ins(&main.with_file_name("conf.d"))? {
        let text = std::fs::read_to_string(&file).map_err(|error| unreadable(&file, &error))?;
        sources.push(Source { file, text });
    }
    Ok(sources)
}

/// The `*.toml` of a directory by name; none if there is no directory.
fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, Problem> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(directory, &error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| unreadable(directory, &error))?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn unreadable(file: &Path, error: &std::io::Error) -> Problem {
    Problem {
        file: Some(file.to_owned()),
        line: None,
        key: None,
        rule: format!("read: {error}"),
    }
}

fn parse<T: serde::de::DeserializeOwned>(source: &Source) -> Result<T, Problem> {
    toml::from_str(&source.text).map_err(|error| {
        let at = error.span().map(|span| span.start);
        Problem {
            file: Some(source.file.clone()),
            line: at.map(|at| line_of(&source.text, at)),
            key: at.and_then(|at| key_at(&source.text, at)),
            rule: one_line(&error),
        }
    })
}

fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', "; ")
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|&b| b == b'\n').count()
}

/// `over` counts where both have a key, except that tables are merged.
fn merge(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) => merge(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

/// The problem of a key, blamed on the last file that sets it or, for want of it, its table.
fn locate(sources: &[Source], key: &[String], rule: String) -> Problem {
    let blame = sources.iter().rev().find_map(|source| {
        let table = DeTable::parse(&source.text).ok()?;
        let at = position(table.get_ref(), key)?;
        Some((source.file.clone(), line_of(&source.text, at)))
    });
    let (file, line) = blame.unzip();
    Problem {
        file,
        line,
        key: Some(key.join(".")),
        rule,
    }
}

/// Where the key's name starts.
fn position(table: &DeTable<'_>, key: &[String]) -> Option<usize> {
    let (first, rest) = key.split_first()?;
    let (name, value) = table.iter().find(|(name, _)| name.get_ref().as_ref() == first)?;
    match (rest, value.get_ref()) {
        ([], _) => Some(name.span().start),
        (rest, DeValue::Table(inner)) => position(inner, rest),
        _ => None,
    }
}

/// The dotted path of the key whose name or value is at this place.
fn key_at(text: &str, at: usize) -> Option<String> {
    let table = DeTable::parse(text).ok()?;
    let mut path = Vec::new();
    search(table.get_ref(), at, &mut path).then(|| path.join("."))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes the files and loads `config.toml` among them.
    fn load_files(files: &[(&str, &str)]) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("conf.d")).unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let prefix = format!("{}/", directory.path().display());
        load(Some(&directory.path().join("config.toml")), |_| {})
            .map_err(|problems| problems.to_string().replace(&prefix, ""))
    }

    #[test]
    fn later_files_count_and_tables_merge() {
        let config = load_files(&[
            ("config.toml", "root = '/a'\n[cni]\ntimeout_s = 5\nconf_dir = '/one'\n"),
            (
                "conf.d/20.toml",
                "[cni]\nconf_dir = '/three'\n[runtimes.runc]\npath = '/runc'\n",
            ),
            ("conf.d/10.toml", "root = '/b'\n[cni]\nconf_dir = '/two'\n"),
            ("conf.d/ignored.txt", "not toml"),
        ])
        .unwrap();
        assert_eq!((config.root, config.cni.conf_dir), ("/b".into(), "/three".into()));
        assert_eq!(config.cni.timeout_s, 5);
        assert_eq!(config.runtimes["runc"].path, Path::new("/runc"));
        assert_eq!(config.state, Config::default().state);
    }

    #[test]
    fn the_socket_moves_with_the_state() {
        let listen = |text: &str| load_files(&[("config.toml", text)]).unwrap().listen;
        assert_eq!(listen("state = '/s'\n"), Path::new("/s/corten.sock"));
        assert_eq!(listen("state = '/s'\nlisten = '/l'\n"), Path::new("/l"));
    }

    #[test]
    fn problems_name_file_line_and_key() {
        for (main, drop_in, expected) in [
            ("x = 1\n", "", "config.toml:1: x: unknown field `x`"),
            (
                "\n[cni]\nconf_dir = 5\n",
                "",
                "config.toml:3: cni.conf_dir: invalid type",
            ),
            (
                "",
                "[log]\n\nlevel = 'loud'\n",
                "conf.d/1.toml:3: log.level: unknown variant",
            ),
            ("[runtimes.r]\n", "", "config.toml:1: runtimes.r: missing field `path`"),
            ("root = \n", "", "config.toml:1:"),
            ("root = '/a'\nroot = '/b'\n", "", "config.toml:2:"),
            (
                "",
                "\nstate = 'run'\n",
                "conf.d/1.toml:2: state: must be an absolute path",
            ),
            (
                "root = '/run/corten/x'\n",
                "",
                "configuration: state: must be neither inside",
            ),
        ] {
            let text = load_files(&[("config.toml", main), ("conf.d/1.toml", drop_in)]).unwrap_err();
            assert!(text.starts_with(expected), "{text}");
        }
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let text = load_files(&[("config.toml", "root = 'a'\nworker_threads = 0\n")]).unwrap_err();
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn a_named_file_must_exist() {
        let problems = load(Some(Path::new("/nonexistent/config.toml")), |_| {}).unwrap_err();
        assert!(problems.to_string().starts_with("/nonexistent/config.toml: read:"));
    }
}
