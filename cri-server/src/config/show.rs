//! The whole configuration, key by key: value, who has set it, and what a reload does with it.

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::keys::{self, Change};
use super::live::Difference;
use super::load::as_table;
use super::{Loaded, Origin};

/// One key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setting {
    /// Its path.
    pub key: Vec<String>,
    /// Its value; none where an optional key is not set.
    pub value: Option<Value>,
    /// Who has set it.
    pub origin: Origin,
    /// Whether a reload changes it.
    pub live: bool,
    /// What the files have, where that waits for a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_restart: Option<String>,
}

impl Loaded {
    /// All keys in the order of their names; those that are not set stand for themselves.
    pub(crate) fn settings(&self, waiting: &[Difference]) -> Vec<Setting> {
        let values = keys::leaves(&as_table(&self.config)).into_iter();
        let mut all: Vec<_> = values.map(|(key, value)| (key, Some(value))).collect();
        for (path, _) in keys::KEYS {
            let key: Vec<String> = path.split('.').map(str::to_owned).collect();
            if !path.contains('*') && !all.iter().any(|(known, _)| *known == key) {
                all.push((key, None));
            }
        }
        all.sort_by_key(|(key, _)| (key.len() > 1, key.clone()));
        let setting = |(key, value): (Vec<String>, Option<Value>)| {
            let change = keys::find(&key).map(|it| it.1);
            let waits = waiting.iter().find(|difference| difference.key == key);
            Setting {
                value: value.map(|value| masked(&key, value)),
                origin: self.origins.get(&key).cloned().unwrap_or(Origin::Default),
                live: change == Some(Change::Live),
                after_restart: waits.map(|difference| match &difference.after {
                    Some(value) => keys::shown(&key, &value.to_string()),
                    None => "not set".to_owned(),
                }),
                key,
            }
        };
        all.into_iter().map(setting).collect()
    }
}

impl Setting {
    /// A line of TOML, with the rest as a comment.
    pub(crate) fn line(&self) -> String {
        let key = self.key.iter().map(|part| key_text(part)).collect::<Vec<_>>().join(".");
        let mut line = match &self.value {
            Some(value) => format!("{key} = {value}"),
            None => format!("# {key} is not set"),
        };
        line.push_str(&format!("  # {}", self.origin));
        if let Some(after) = &self.after_restart {
            line.push_str(&format!("; {after} after a restart"));
        }
        line.push('\n');
        line
    }
}

/// A value without what nobody shall read.
fn masked(key: &[String], value: Value) -> Value {
    if keys::is_secret(key) {
        return "hidden".into();
    }
    match value {
        Value::String(text) => keys::without_login(&text).into(),
        Value::Array(items) => Value::Array(items.into_iter().map(|item| masked(key, item)).collect()),
        Value::Table(inner) => {
            let inner = inner.into_iter().map(|(name, value)| (name, masked(key, value)));
            Value::Table(inner.collect::<Table>())
        }
        value => value,
    }
}

/// A key as TOML has it: in quotes where it is not plain.
fn key_text(part: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    match !part.is_empty() && part.bytes().all(plain) {
        true => part.to_owned(),
        false => Value::from(part).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Origins};
    use super::*;

    #[test]
    fn what_is_shown_is_the_configuration() {
        let config: Config = toml::from_str(
            "import_dir = '/i'\n[registries.'a.b:5']\nca = '/c'\n[pull.short_names]\n'x y' = 'r.example/x'\n",
        )
        .unwrap();
        let loaded = Loaded {
            config: config.clone(),
            origins: Origins::new(),
        };
        let text: String = loaded.settings(&[]).iter().map(Setting::line).collect();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), config, "{text}");
        for (path, _) in keys::KEYS.iter().filter(|(path, _)| !path.contains('*')) {
            assert!(
                text.lines().any(|line| line.trim_start_matches("# ").starts_with(path)),
                "{path}"
            );
        }
    }
}
