//! The configuration of a running server: one value that is replaced as a whole.
//!
//! ```text
//! files --load--> new --plan--> effective: the new value of every live key, the old one of every other
//!                               changed, waiting: what the log says
//! ```

use std::sync::{Arc, PoisonError, RwLock};

use toml::Value;

use super::document::{Problem, Problems};
use super::keys::{self, Change};
use super::load::{as_table, broken};
use super::{Config, Files, Loaded};

/// The configuration that is in force, and the files it was read from.
#[derive(Debug)]
pub struct Live {
    files: Files,
    now: RwLock<Now>,
}

#[derive(Debug)]
struct Now {
    config: Arc<Config>,
    loaded: Arc<Loaded>,
    /// What the files say and the server does not do before it starts again.
    waiting: Vec<Difference>,
}

/// A key whose value in the files is not the one that was in force.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Difference {
    /// Its path.
    pub(crate) key: Vec<String>,
    /// What was in force; nothing where an optional key was not set.
    pub(crate) before: Option<Value>,
    /// What the files say.
    pub(crate) after: Option<Value>,
    /// What becomes of it.
    pub(crate) change: Change,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |value: &Option<Value>| match value {
            Some(value) => keys::shown(&self.key, &value.to_string()),
            None => "not set".to_owned(),
        };
        let (before, after) = (shown(&self.before), shown(&self.after));
        write!(f, "{}: {before} -> {after}", self.key.join("."))?;
        match self.change {
            Change::Live => Ok(()),
            Change::Restart(why) => write!(f, " ({why})"),
        }
    }
}

/// What a reload would do.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The configuration after it.
    pub(crate) loaded: Loaded,
    /// What changes.
    pub(crate) changed: Vec<Difference>,
    /// What needs a restart.
    pub(crate) waiting: Vec<Difference>,
}

impl Live {
    /// What was loaded at the start is in force.
    pub fn new(files: Files, loaded: Loaded) -> Live {
        let now = Now {
            config: Arc::new(loaded.config.clone()),
            loaded: Arc::new(loaded),
            waiting: Vec::new(),
        };
        Live {
            files,
            now: RwLock::new(now),
        }
    }

    /// The configuration that is in force. An operation asks for it once, at its beginning.
    pub fn get(&self) -> Arc<Config> {
        self.read(|now| now.config.clone())
    }

    /// The same with who has set what, and what waits for a restart.
    pub(crate) fn whole(&self) -> (Arc<Loaded>, Vec<Difference>) {
        self.read(|now| (now.loaded.clone(), now.waiting.clone()))
    }

    /// Reads the files and says what they would change. Blocks.
    pub(crate) fn plan(&self) -> Result<Plan, Problems> {
        plan(&self.whole().0, self.files.load()?)
    }

    /// Puts a plan in force.
    pub(crate) fn set(&self, plan: Plan) {
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        *now = Now {
            config: Arc::new(plan.loaded.config.clone()),
            loaded: Arc::new(plan.loaded),
            waiting: plan.waiting,
        };
    }

    fn read<T>(&self, look: impl FnOnce(&Now) -> T) -> T {
        // It is replaced by one assignment: whole, whoever panics.
        look(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What becomes of `running` by `new`. Its live keys alone must keep the rules together with the others as they are.
fn plan(running: &Loaded, mut new: Loaded) -> Result<Plan, Problems> {
    let mut effective = as_table(&running.config);
    let (mut changed, mut waiting) = (Vec::new(), Vec::new());
    for difference in differences(&running.config, &new.config) {
        match difference.change {
            Change::Live => {
                keys::set(&mut effective, &difference.key, difference.after.clone());
                changed.push(difference);
            }
            Change::Restart(_) => {
                // Whoever set the value that stays in force.
                match running.origins.get(&difference.key) {
                    Some(origin) => new.origins.insert(difference.key.clone(), origin.clone()),
                    None => new.origins.remove(&difference.key),
                };
                waiting.push(difference);
            }
        }
    }
    new.config = effective.try_into().map_err(|error: toml::de::Error| {
        Problems(vec![Problem {
            file: None,
            line: None,
            key: None,
            rule: error.message().replace('\n', "; "),
            value: None,
        }])
    })?;
    let broken = broken(&new.config, &[]);
    if !broken.is_empty() {
        let needs_restart = |problem: Problem| Problem {
            rule: format!("{}, with what else is in force until a restart", problem.rule),
            ..problem
        };
        return Err(Problems(broken.into_iter().map(needs_restart).collect()));
    }
    Ok(Plan {
        loaded: new,
        changed,
        waiting,
    })
}

fn differences(before: &Config, after: &Config) -> Vec<Difference> {
    let mut all: std::collections::BTreeMap<_, (Option<Value>, Option<Value>)> = std::collections::BTreeMap::new();
    for (key, value) in keys::leaves(&as_table(before)) {
        all.entry(key).or_default().0 = Some(value);
    }
    for (key, value) in keys::leaves(&as_table(after)) {
        all.entry(key).or_default().1 = Some(value);
    }
    let differ = all.into_iter().filter(|(_, (before, after))| before != after);
    differ
        .map(|(key, (before, after))| Difference {
            // Every key is in the table: tests hold it against the types.
            change: keys::find(&key).map_or(Change::Restart("it is not known how to change it"), |it| it.1),
            key,
            before,
            after,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(text: &str) -> Loaded {
        Loaded {
            config: toml::from_str(text).unwrap(),
            origins: super::super::Origins::new(),
        }
    }

    #[test]
    fn live_keys_change_and_others_wait() {
        let before = "worker_threads = 2\nimage_policy = '/p'\n[registries.a]\nplain_http = true\n";
        let after = "worker_threads = 3\n[cni]\ntimeout_s = 9\n[runtimes.runc]\npath = '/runc'\n";
        let plan = plan(&loaded(before), loaded(after)).unwrap();
        let config = plan.loaded.config;
        assert_eq!((config.worker_threads, config.cni.timeout_s), (2, 9));
        assert!(config.runtimes.contains_key("runc") && config.registries.is_empty() && config.image_policy.is_none());
        let shown: Vec<_> = plan.changed.iter().map(ToString::to_string).collect();
        let expected = [
            "cni.timeout_s: 60 -> 9",
            "image_policy: \"/p\" -> not set",
            "registries.a.plain_http: true -> not set",
            "registries.a.skip_verify: false -> not set",
            "runtimes.runc.container_annotations: not set -> []",
            "runtimes.runc.path: not set -> \"/runc\"",
            "runtimes.runc.pod_annotations: not set -> []",
        ];
        assert_eq!(shown, expected);
        let shown: Vec<_> = plan.waiting.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["worker_threads: 2 -> 3 (it is read at the start only)"]);
    }

    #[test]
    fn what_needs_a_restart_to_be_right_is_refused() {
        let before = "default_runtime = 'runc'\n[runtimes.runc]\npath = '/runc'\n";
        let problems = plan(&loaded(before), loaded("")).unwrap_err().to_string();
        assert!(problems.contains("default_runtime: must be the name"), "{problems}");
        assert!(problems.contains("until a restart"), "{problems}");
    }
}
