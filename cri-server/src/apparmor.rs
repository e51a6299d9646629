//! The node's AppArmor: whether it is there, which profiles are loaded, and the one of ours.
//!
//! `corten-default` is what RuntimeDefault means, and what a container gets that asks for nothing. It is loaded by
//! apparmor_parser(8) when the server starts, and again when a container needs it and it has gone; never unloaded, because
//! containers outlive the server. Every profile a container names must have been loaded by somebody.

use std::io::Write;
use std::process::{Command, Stdio};
use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use crate::own_process::unburden;

/// The profile RuntimeDefault.
pub(crate) const DEFAULT: &str = "corten-default";
/// The kernel's name for no profile.
pub(crate) const UNCONFINED: &str = "unconfined";

const TEXT: &str = include_str!("apparmor/default.profile");
/// `NAME (MODE)`, a line for each profile.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// Where the parser is looked for.
const PATHS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// The kernel has it enabled, shows its profiles, and there is a parser to load ours.
pub(crate) fn is_enabled() -> bool {
    fs::read(ENABLED).is_ok_and(|text| text.starts_with(b"Y"))
        && fs::File::open(LOADED).is_ok()
        && PATHS.iter().any(|dir| Path::new(dir).join("apparmor_parser").exists())
}

/// Whether the kernel knows this profile.
pub(crate) fn is_loaded(name: &str) -> Result<bool> {
    let text = fs::read_to_string(LOADED).with_context(|| format!("read {LOADED}"))?;
    Ok(lists(&text, name))
}

/// Loads our profile unless the kernel has it. Blocks.
pub(crate) fn ensure_default() -> Result<()> {
    match is_loaded(DEFAULT)? {
        true => Ok(()),
        false => load_default(),
    }
}

/// Loads our profile, in the place of what an older server may have loaded. Blocks.
pub(crate) fn load_default() -> Result<()> {
    let mut command = Command::new("apparmor_parser");
    unburden(&mut command);
    let mut parser = command
        // From its standard input, and nothing kept in /var/cache for a name that an update may give another text.
        .args(["--replace", "--skip-cache"])
        .env_clear()
        .env("PATH", PATHS.join(":"))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("execute apparmor_parser")?;
    let mut input = parser.stdin.take().context("it has no input")?;
    let written = input.write_all(TEXT.as_bytes());
    drop(input);
    let output = parser.wait_with_output().context("wait for apparmor_parser")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "apparmor_parser: {}: {}",
        output.status,
        stderr.trim()
    );
    written.context("hand the profile to apparmor_parser")
}

/// A name may hold spaces; the mode behind it holds none.
fn lists(profiles: &str, name: &str) -> bool {
    let mut names = profiles
        .lines()
        .filter_map(|line| line.rsplit_once(" ("))
        .map(|line| line.0);
    names.any(|loaded| loaded == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_loaded_profiles() {
        let text = "corten-default (enforce)\n/usr/bin/man (enforce)\na b (c) (complain)\nx//child (unconfined)\n";
        for (name, loaded) in [
            ("corten-default", true),
            ("/usr/bin/man", true),
            ("a b (c)", true),
            ("x//child", true),
            ("corten", false),
            ("a b", false),
            ("", false),
        ] {
            assert_eq!(lists(text, name), loaded, "{name}");
        }
    }

    #[test]
    fn the_profile_has_its_name() {
        assert!(TEXT.contains(&format!("profile {DEFAULT} ")));
    }
}
