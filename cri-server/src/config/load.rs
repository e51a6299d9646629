//! Configuration files: finding them, merging them, and remembering who set what.
//!
//! Each file is first checked alone, so that a wrong key or type is blamed on its line; then all are merged, and a rule
//! that the result breaks is blamed on the last file that sets the key.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::document::{Problem, Problems, Source, unreadable};
use super::{Config, DEFAULT_FILE, keys, rules};

/// Where a configuration comes from: asked at the start, and again at every reload.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// The file that was named; [`DEFAULT_FILE`] otherwise, which may be absent.
    pub file: Option<PathBuf>,
    /// What the command line says: a flag, the key it stands for, and the value. It counts more than any file.
    pub flags: Vec<(&'static str, &'static str, Value)>,
}

/// Who has set a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "source")]
pub enum Origin {
    /// Nobody.
    Default,
    /// A file, on this line.
    File {
        /// Its path.
        file: PathBuf,
        /// From 1.
        line: usize,
    },
    /// The command line, by this flag.
    Flag {
        /// With its dashes.
        flag: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { file, line } => write!(f, "{}:{line}", file.display()),
            Origin::Flag { flag } => f.write_str(flag),
        }
    }
}

/// Who has set the values that are not defaults, by the keys' paths.
pub type Origins = BTreeMap<Vec<String>, Origin>;

/// A configuration, and who has set what in it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Who has set what.
    pub origins: Origins,
}

impl Files {
    /// Reads them all; everything that is wrong is told at once.
    pub fn load(&self) -> Result<Loaded, Problems> {
        let sources = self.read()?;
        let (loaded, mut problems) = self.merge(&sources)?;
        let broken = broken(&loaded.config, &sources).into_iter();
        // A default that breaks a rule together with a value that was left out says nothing new.
        let is_mistake = |problem: &Problem| problem.file.is_some();
        match problems.is_empty() {
            true => problems.extend(broken),
            false => problems.extend(broken.filter(is_mistake)),
        }
        match problems.is_empty() {
            true => Ok(loaded),
            false => Err(Problems(problems)),
        }
    }

    /// Where the server of these files listens: it goes on with what it has when they have mistakes.
    pub(crate) fn socket(&self) -> Result<PathBuf, Problems> {
        let (loaded, _mistakes) = self.merge(&self.read()?)?;
        Ok(loaded.config.listen)
    }

    fn read(&self) -> Result<Vec<Source>, Problems> {
        read(self.file.as_deref()).map_err(|problem| Problems(vec![problem]))
    }

    /// What the files and the command line make together, and what was left out of it because it is wrong. The rules are not
    /// looked at.
    fn merge(&self, sources: &[Source]) -> Result<(Loaded, Vec<Problem>), Problems> {
        let (mut merged, mut origins, problems) = merge_all(sources);
        for (flag, key, value) in &self.flags {
            let (path, flag) = ([(*key).to_owned()], (*flag).to_owned());
            keys::set(&mut merged, &path, Some(value.clone()));
            origins.insert(path.into(), Origin::Flag { flag });
        }
        let own_listen = merged.contains_key("listen");
        let mut config: Config = merged.try_into().map_err(|error: toml::de::Error| {
            // Each file alone was right, and merging tables keeps types.
            Problems(vec![Problem {
                file: None,
                line: None,
                key: None,
                rule: error.message().replace('\n', "; "),
                value: None,
            }])
        })?;
        // The default socket lies in the state directory and moves with it.
        if !own_listen {
            config.listen = config.state.join("corten.sock");
        }
        Ok((Loaded { config, origins }, problems))
    }

    /// The files that are read, those that are there, in the order in which they count.
    pub fn found(&self) -> Result<Vec<PathBuf>, Problems> {
        let sources = self.read()?;
        Ok(sources.into_iter().map(|source| source.file).collect())
    }
}

/// All files as one table, a later one before an earlier one, with who has set what; and what is wrong in them, which is left
/// out of the table.
fn merge_all(sources: &[Source]) -> (Table, Origins, Vec<Problem>) {
    let (mut merged, mut origins, mut problems) = (Table::new(), Origins::new(), Vec::new());
    for source in sources {
        let (table, found) = source.check();
        merge(&mut merged, table);
        problems.extend(found);
        for (path, line) in source.leaves() {
            let file = source.file.clone();
            origins.insert(path, Origin::File { file, line });
        }
    }
    (merged, origins, problems)
}

/// The rules that a configuration breaks, each blamed on the last file that sets the key or, for want of it, its table.
pub(super) fn broken(config: &Config, sources: &[Source]) -> Vec<Problem> {
    let values = as_table(config);
    let broken = rules::broken(config).into_iter();
    broken
        .map(|(key, rule)| {
            let blame = sources
                .iter()
                .rev()
                .find_map(|source| Some((source.file.clone(), source.line_of_key(&key)?)));
            let (file, line) = blame.unzip();
            let value = value_of(&values, &key).filter(|value| !value.is_table());
            Problem {
                file,
                line,
                key: Some(key.join(".")),
                rule,
                value: value.map(|value| keys::shown(&key, &value.to_string())),
            }
        })
        .collect()
}

/// A configuration as its file would have it; optional keys that are not set are not there.
pub(crate) fn as_table(config: &Config) -> Table {
    Table::try_from(config).expect("a configuration is a table of what TOML has")
}

fn value_of<'t>(table: &'t Table, path: &[String]) -> Option<&'t Value> {
    let (first, rest) = path.split_first()?;
    let value = table.get(first)?;
    match rest {
        [] => Some(value),
        rest => value_of(value.as_table()?, rest),
    }
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
        let files = Files {
            file: Some(directory.path().join("config.toml")),
            ..Files::default()
        };
        let loaded = files.load().map(|loaded| loaded.config);
        loaded.map_err(|problems| problems.to_string().replace(&prefix, ""))
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
        let main = "roote = 1\nlevel = 'info'\nworker_threads = 'x'\nroot = 'a'\n[cni]\ntimeout_s = [\n1]\n\
                    [runtimes.a]\n[runtimes.b]\n";
        let text = load_files(&[("config.toml", main), ("conf.d/1.toml", "[log]\nlevel = 1\n")]).unwrap_err();
        let expected = [
            "config.toml:1: roote: unknown field `roote`; did you mean root? (it is 1)",
            "config.toml:2: level: unknown field `level`; did you mean log.level? (it is 'info')",
            "config.toml:3: worker_threads: invalid type: string \"x\", expected usize (it is 'x')",
            "config.toml:6: cni.timeout_s: invalid type: sequence, expected u64 (it is [ 1])",
            "config.toml:8: runtimes.a: missing field `path`",
            "config.toml:9: runtimes.b: missing field `path`",
            "conf.d/1.toml:2: log.level: ",
            "config.toml:4: root: must be an absolute path without .. (it is \"a\")",
        ];
        for (line, expected) in text.lines().zip(expected) {
            assert!(line.starts_with(expected), "{text}");
        }
        assert_eq!(text.lines().count(), expected.len(), "{text}");
    }

    #[test]
    fn who_has_set_what() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        std::fs::write(&file, "root = '/a'\n[cni]\n\ntimeout_s = 5\n").unwrap();
        std::fs::create_dir(directory.path().join("conf.d")).unwrap();
        let over = directory.path().join("conf.d/1.toml");
        std::fs::write(&over, "cni.timeout_s = 6\n").unwrap();
        let files = Files {
            file: Some(file.clone()),
            flags: vec![("--root", "root", "/b".into())],
        };
        let Loaded { config, origins } = files.load().unwrap();
        assert_eq!((config.root, config.cni.timeout_s), ("/b".into(), 6));
        let of = |path: &str| origins[&path.split('.').map(str::to_owned).collect::<Vec<_>>()].to_string();
        assert_eq!(of("root"), "--root");
        assert_eq!(of("cni.timeout_s"), format!("{}:1", over.display()));
        assert_eq!(origins.len(), 2);
        assert_eq!(files.found().unwrap(), [file, over]);
    }

    #[test]
    fn a_named_file_must_exist() {
        let files = Files {
            file: Some("/nonexistent/config.toml".into()),
            ..Files::default()
        };
        let problems = files.load().unwrap_err();
        assert!(problems.to_string().starts_with("/nonexistent/config.toml: read:"));
    }
}
