//! `corten-cri why` as a person runs it, against the server of a [`Node`] or the records it has left.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::binary;
use crate::node::Node;

impl Node {
    /// Runs it, whatever comes of it.
    ///
    /// # Panics
    /// If it cannot be executed.
    #[must_use]
    pub fn why_output(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary("corten-cri"));
        command.arg("--config").arg(self.dir().join("config.toml")).arg("why");
        command.args(arguments).stdin(Stdio::null());
        command.output().expect("execute corten-cri")
    }

    /// What it prints for people.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn why(&self, container: &str) -> String {
        let output = self.why_output(&[container]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{container}: {stderr}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// What it prints for programs.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn why_json(&self, container: &str) -> Value {
        let output = self.why_output(&["--json", container]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{container}: {stderr}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}
