//! `corten-cri image` as a person runs it, against the server of a [`Node`].

use std::ffi::OsStr;
use std::fs::File;
use std::process::{Command, Output, Stdio};

use crate::binary;
use crate::node::Node;

impl Node {
    /// The command, ready to run.
    #[must_use]
    pub fn image_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("corten-cri"));
        command.arg("--config").arg(self.dir().join("config.toml")).arg("image");
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs it, whatever comes of it.
    ///
    /// # Panics
    /// If it cannot be executed.
    #[must_use]
    pub fn image_output(&self, arguments: &[&str]) -> Output {
        self.image_command(arguments).output().expect("execute corten-cri")
    }

    /// Runs it and returns what it printed.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn image(&self, arguments: &[&str]) -> String {
        let output = self.image_output(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs it with `input` as stdin and returns what it printed.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn image_from(&self, arguments: &[&str], input: File) -> String {
        let output = self.image_command(arguments).stdin(input).output();
        let output = output.expect("execute corten-cri");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs it and returns what it complained of.
    ///
    /// # Panics
    /// If it succeeds.
    #[track_caller]
    pub fn image_refused(&self, arguments: &[&str]) -> String {
        let output = self.image_output(arguments);
        assert!(!output.status.success(), "{arguments:?}: {}", text(&output.stdout));
        text(&output.stderr)
    }
}

/// Runs a program that must succeed, and returns what it printed.
///
/// # Panics
/// If it does not.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("execute {program}: {error}"));
    assert!(output.status.success(), "{program}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// `skopeo copy`, without a signature policy.
///
/// # Panics
/// If it fails.
#[track_caller]
pub fn skopeo_copy(from: &str, to: &str) {
    run("skopeo", &["--insecure-policy", "copy", "--quiet", from, to]);
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
