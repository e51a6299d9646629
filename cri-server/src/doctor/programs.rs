//! The programs that make pods: the shim and the runtimes, whether they run, and whether they are of one version.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::check::Check;
use crate::config::{Config, OWN_RUNTIME};
use crate::oci;

/// How long `--version` may take.
const LIMIT: Duration = Duration::from_secs(5);
const OWN: &str = env!("CARGO_PKG_VERSION");
const INSTALL: &str = "install corten, corten-shim and corten-cri of one release side by side";

/// A runtime handler, and what came of asking it for its features.
struct Handler {
    name: String,
    path: PathBuf,
    is_default: bool,
    outcome: Result<(), String>,
}

pub(super) fn look(config: &Config) -> Vec<Check> {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return vec![Check::skipped("runtimes", format!("start the async runtime: {error}"))],
    };
    runtime.block_on(async {
        let shim = config.shim();
        let own = config.runtime(OWN_RUNTIME).unwrap_or_default();
        let handlers = config.handlers().into_iter().map(|name| handler(config, name));
        let (shim_version, own_version, handlers) =
            tokio::join!(version(&shim), version(&own), futures_util::future::join_all(handlers));
        let own_version = judge_version(
            "corten-version",
            &own,
            own_version,
            "no pod can be made by the handler corten",
        );
        // Where other runtimes do all the work, corten itself need not be there.
        let is_used = config.is_own_runtime("");
        let mut checks = vec![judge_version(
            "corten-shim-version",
            &shim,
            shim_version,
            "no pod can be made",
        )];
        checks.extend(is_used.then_some(own_version));
        checks.push(judge_runtimes(&handlers));
        checks
    })
}

async fn handler(config: &Config, name: &str) -> Handler {
    let path = config.runtime(name).unwrap_or_default();
    let outcome = oci::features(&path).await;
    Handler {
        name: name.to_owned(),
        is_default: Some(&path) == config.runtime("").as_ref(),
        path,
        outcome: outcome.map(drop).map_err(|error| format!("{error:#}")),
    }
}

/// A program of the machine, in the server's surroundings: nothing of whoever runs this changes what it finds or prints.
pub(crate) fn program(name: &str) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(name);
    command
        .env_clear()
        .env("PATH", oci::PATH)
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// The last word of what `PROGRAM --version` prints on its first line.
async fn version(program: &Path) -> Result<String> {
    let mut command = tokio::process::Command::new(program);
    command
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await;
    let output = output
        .with_context(|| format!("not done in {} s", LIMIT.as_secs()))?
        .context("execute")?;
    ensure!(output.status.success(), "--version: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    line.split_whitespace()
        .last()
        .map(str::to_owned)
        .context("--version prints nothing")
}

fn judge_version(name: &'static str, path: &Path, version: Result<String>, meaning: &str) -> Check {
    match version {
        Ok(version) if version == OWN => Check::ok(name, format!("{version}, as corten-cri")),
        Ok(version) => Check::warning(
            name,
            format!("{} is {version}, corten-cri is {OWN}", path.display()),
            "they are tested together only in one version",
            INSTALL,
        ),
        Err(error) => Check::problem(name, format!("{}: {error:#}", path.display()), meaning, INSTALL),
    }
}

fn judge_runtimes(handlers: &[Handler]) -> Check {
    let name = "runtimes";
    let failed: Vec<&Handler> = handlers.iter().filter(|handler| handler.outcome.is_err()).collect();
    if failed.is_empty() {
        let names: Vec<&str> = handlers.iter().map(|handler| handler.name.as_str()).collect();
        return Check::ok(name, format!("answer `features`: {}", names.join(", ")));
    }
    let list = failed.iter().map(|handler| {
        let error = handler.outcome.as_ref().err().map(String::as_str).unwrap_or_default();
        format!("{} ({}): {error}", handler.name, handler.path.display())
    });
    let found = list.collect::<Vec<_>>().join("; ");
    // An old runtime runs, and only cannot say what it can do.
    let runs = |handler: &&Handler| fs_executable(&handler.path) && !handler.is_default;
    if failed.iter().all(runs) {
        let meaning = "pods of these handlers run, if at all, without user namespaces and recursive read-only mounts";
        let fix = "install a release that knows `features`: runc 1.1, crun 1.8 or later";
        return Check::warning(name, found, meaning, fix);
    }
    let fix = "install the runtime, or mend its path in [runtimes] of the configuration";
    Check::problem(
        name,
        found,
        "pods with a RuntimeClass of these handlers cannot be run",
        fix,
    )
}

fn fs_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn versions() {
        let judge = |version| judge_version("corten-version", Path::new("/x/corten"), version, "no pod").verdict;
        assert_eq!(judge(Ok(OWN.to_owned())), Verdict::Ok);
        assert_eq!(judge(Ok("0.0.1".to_owned())), Verdict::Warning);
        assert_eq!(judge(Err(anyhow!("ENOENT"))), Verdict::Problem);
    }

    #[test]
    fn runtimes() {
        let handler = |path: &str, is_default, outcome: Result<(), &str>| Handler {
            name: "one".to_owned(),
            path: path.into(),
            is_default,
            outcome: outcome.map_err(str::to_owned),
        };
        let table = [
            (handler("/bin/sh", true, Ok(())), Verdict::Ok),
            (handler("/bin/sh", false, Err("no such command")), Verdict::Warning),
            (handler("/bin/sh", true, Err("no such command")), Verdict::Problem),
            (handler("/nowhere/runc", false, Err("ENOENT")), Verdict::Problem),
        ];
        for (handler, expected) in table {
            let check = judge_runtimes(&[handler]);
            assert_eq!(check.verdict, expected, "{}", check.found);
        }
    }
}
