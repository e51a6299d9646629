//! What the probe prints, as the tests ask about it.

use std::ops::Deref;

use serde_json::{Value, json};

use crate::cgroup;

/// What the probe printed.
#[derive(Debug)]
pub struct Report(pub Value);

impl Report {
    /// # Panics
    /// Where `text` is not one JSON document.
    #[must_use]
    #[track_caller]
    pub fn parse(text: &str) -> Report {
        Report(serde_json::from_str(text).unwrap_or_else(|error| panic!("no report ({error}): {text:?}")))
    }

    /// What it says of a path it was asked about.
    #[must_use]
    pub fn path(&self, path: &str) -> &Value {
        &self.0["paths"][path]
    }

    /// Whether a path it was asked about is there and can be written to.
    #[must_use]
    pub fn is_writable(&self, path: &str) -> bool {
        let path = self.path(path);
        path.get("error").is_none() && path["write"].is_null()
    }

    /// The last mount on `destination`: the one that is seen there.
    ///
    /// # Panics
    /// Where nothing is mounted there.
    #[must_use]
    #[track_caller]
    pub fn mount(&self, destination: &str) -> &Value {
        self.find_mount(destination)
            .unwrap_or_else(|| panic!("no mount on {destination}: {}", self.0["mounts"]))
    }

    /// The last mount on `destination`, if there is one.
    #[must_use]
    pub fn find_mount(&self, destination: &str) -> Option<&Value> {
        self.0["mounts"]
            .as_array()?
            .iter()
            .rfind(|mount| mount["destination"] == destination)
    }

    /// Whether the mount on `destination` has this option (of the mount itself, not of its filesystem).
    #[must_use]
    #[track_caller]
    pub fn has_option(&self, destination: &str, option: &str) -> bool {
        self.mount(destination)["options"]
            .as_array()
            .is_some_and(|options| options.contains(&json!(option)))
    }

    /// The namespace of this kind, as `pid:[4026531836]`.
    #[must_use]
    pub fn namespace(&self, kind: &str) -> &str {
        self.0["namespaces"][kind].as_str().unwrap_or_default()
    }

    /// The path of its cgroup, on v1 in the hierarchy of `controller`.
    #[must_use]
    pub fn cgroup(&self, controller: &str) -> Option<&str> {
        let lines = self.0["cgroups"].as_array()?;
        cgroup::membership(lines.iter().filter_map(Value::as_str), controller)
    }

    /// A line of `/proc/self/status`.
    #[must_use]
    pub fn status(&self, name: &str) -> &str {
        self.0["status"][name].as_str().unwrap_or_default()
    }
}

impl Deref for Report {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.0
    }
}
