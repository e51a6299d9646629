//! CRIU, for checkpoints: it is there, and says that it works on this kernel.

use std::time::Duration;

use super::check::Check;
use super::programs::program;
use crate::config::Config;

/// How long `criu check` may take.
const LIMIT: Duration = Duration::from_secs(10);
const NAME: &str = "criu";

pub(super) fn look(_config: &Config) -> Vec<Check> {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return vec![Check::skipped(NAME, format!("start the async runtime: {error}"))],
    };
    vec![judge(runtime.block_on(ask()))]
}

/// What `criu check` comes to: none where it is not installed, else the last line of its complaint.
async fn ask() -> Option<Result<(), String>> {
    let mut command = program("criu");
    match tokio::time::timeout(LIMIT, command.arg("check").output()).await {
        Err(_elapsed) => Some(Err(format!("not done in {} s", LIMIT.as_secs()))),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => None,
        Ok(Err(error)) => Some(Err(error.to_string())),
        Ok(Ok(output)) if output.status.success() => Some(Ok(())),
        Ok(Ok(output)) => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let last = stderr.lines().rfind(|line| !line.is_empty()).unwrap_or_default();
            Some(Err(format!("{}: {last}", output.status)))
        }
    }
}

fn judge(outcome: Option<Result<(), String>>) -> Check {
    match outcome {
        None => Check::skipped(NAME, "not installed: containers cannot be checkpointed"),
        Some(Ok(())) => Check::ok(NAME, "`criu check` is content"),
        Some(Err(error)) => Check::warning(
            NAME,
            format!("criu check: {error}"),
            "containers cannot be checkpointed, or not all of them",
            "install CRIU 3.17 or later, and a kernel with CONFIG_CHECKPOINT_RESTORE",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn outcomes() {
        assert_eq!(judge(None).verdict, Verdict::Skipped);
        assert_eq!(judge(Some(Ok(()))).verdict, Verdict::Ok);
        assert_eq!(judge(Some(Err("exit status: 1".to_owned()))).verdict, Verdict::Warning);
    }
}
