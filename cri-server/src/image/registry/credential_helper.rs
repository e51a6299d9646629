//! Programs that know credentials: `docker-credential-NAME get`, the registry on stdin, JSON on stdout.
//!
//! A helper is looked for in configured directories, not in a `PATH`; it gets an environment of its own, has a time limit
//! and bounded output, and ends with whoever waits for it. What it prints is never repeated: it may hold the secret.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::super::auth::Credentials;
use crate::own_process::unburden;

/// Longest time a helper may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Most of its output that is read, in bytes.
const MAX_OUTPUT: u64 = 256 << 10;

/// The user name that stands for an identity token.
const TOKEN_USER: &str = "<token>";

/// The words by which a helper says that it knows nothing of a registry.
const NOT_FOUND: &[u8] = b"credentials not found";

/// Of this server's environment a helper gets these: clouds' helpers ask their services through the proxy.
const PASSED_ON: [&str; 7] = [
    "HOME",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// What the helper `name` has for `registry`.
pub(super) async fn get(name: &str, registry: &str, dirs: &[PathBuf]) -> Result<Credentials> {
    let asked = ask(name, registry, dirs, TIMEOUT).await;
    asked.with_context(|| format!("credential helper {name:?} for {registry}"))
}

async fn ask(name: &str, registry: &str, dirs: &[PathBuf], limit: Duration) -> Result<Credentials> {
    let program = find(name, dirs)?;
    let mut child = spawn(&program, dirs)?;
    let group = Group::of(&child);
    // What docker itself asks for.
    let server = match registry {
        "docker.io" => "https://index.docker.io/v1/",
        registry => registry,
    };
    let talked = tokio::time::timeout(limit, talk(&mut child, server)).await;
    let Ok(talked) = talked else {
        bail!("not done after {} s; killed", limit.as_secs());
    };
    let (is_success, output) = talked?;
    group.disarm();
    if !is_success {
        let is_not_found = output.windows(NOT_FOUND.len()).any(|words| words == NOT_FOUND);
        ensure!(is_not_found, "it failed");
        return Ok(Credentials::Anonymous);
    }
    parse(&output)
}

/// The program in the first directory that has it.
fn find(name: &str, dirs: &[PathBuf]) -> Result<PathBuf> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    ensure!(
        !name.is_empty() && name.bytes().all(is_plain),
        "must be named by A-Z a-z 0-9 - _ ."
    );
    let program = format!("docker-credential-{name}");
    let mut places = dirs.iter().map(|dir| dir.join(&program));
    places.find(|place| place.is_file()).with_context(|| {
        let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        format!("{program} is not in {}", dirs.join(" or "))
    })
}

fn spawn(program: &Path, dirs: &[PathBuf]) -> Result<Child> {
    let path = std::env::join_paths(
        dirs.iter()
            .map(PathBuf::as_path)
            .chain([Path::new("/usr/bin"), Path::new("/bin")]),
    );
    let passed_on = PASSED_ON
        .iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)));
    let mut command = Command::new(program);
    unburden(command.as_std_mut());
    command
        .arg("get")
        .env_clear()
        .env("PATH", path.context("PATH of the directories of helpers")?)
        .envs(passed_on)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("execute {}", program.display()))
}

/// Whether it succeeded, and what it printed.
async fn talk(child: &mut Child, server: &str) -> Result<(bool, Vec<u8>)> {
    let mut stdin = child.stdin.take().context("its stdin is a pipe")?;
    match stdin.write_all(server.as_bytes()).await {
        // A helper may answer without reading all of it.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error).context("write its stdin"),
        _ => drop(stdin),
    }
    let stdout = child.stdout.take().context("its stdout is a pipe")?;
    let mut output = Vec::new();
    let reading = stdout.take(MAX_OUTPUT + 1).read_to_end(&mut output).await;
    reading.context("read its stdout")?;
    ensure!(
        output.len() as u64 <= MAX_OUTPUT,
        "it prints more than {MAX_OUTPUT} bytes"
    );
    let status = child.wait().await.context("wait for it")?;
    Ok((status.success(), output))
}

fn parse(output: &[u8]) -> Result<Credentials> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let answer: Option<Answer> = serde_json::from_slice(output).ok();
    let answer = answer.context("its answer is not JSON with Username and Secret")?;
    if answer.username == TOKEN_USER {
        return Ok(Credentials::Identity(answer.secret));
    }
    Ok(Credentials::Basic {
        user: answer.username,
        password: answer.secret,
    })
}

/// Kills the helper and what it has started, unless it has been waited for. Also when the pull is given up.
struct Group(Option<nix::unistd::Pid>);

impl Group {
    fn of(child: &Child) -> Group {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        Group(pid.map(nix::unistd::Pid::from_raw))
    }

    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0
            && let Err(errno) = nix::sys::signal::killpg(pid, nix::sys::signal::Signal::SIGKILL)
            && errno != nix::errno::Errno::ESRCH
        {
            tracing::warn!("kill the process group of a credential helper: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A directory with the helper `test` that runs this script.
    fn helper(script: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("docker-credential-test");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        dir
    }

    async fn answer(script: &str) -> Result<Credentials, String> {
        let dir = helper(script);
        let dirs = [PathBuf::from("/nonexistent"), dir.path().to_owned()];
        let asked = ask("test", "docker.io", &dirs, Duration::from_secs(2)).await;
        asked.map_err(|error| format!("{error:#}"))
    }

    #[tokio::test]
    async fn answers() {
        let basic = |user: &str, password: &str| Credentials::Basic {
            user: user.into(),
            password: password.into(),
        };
        let echo = r#"read server; echo "{\"ServerURL\":\"x\",\"Username\":\"$1\",\"Secret\":\"$server\"}""#;
        assert_eq!(answer(echo).await.unwrap(), basic("get", "https://index.docker.io/v1/"));
        let environment = r#"echo "{\"Username\":\"$(env | cut -d= -f1 | sort | tr '\n' ' ')\",\"Secret\":\"\"}""#;
        let Credentials::Basic { user, .. } = answer(environment).await.unwrap() else {
            panic!("no login");
        };
        let allowed = |name: &&str| PASSED_ON.contains(name) || ["PATH", "PWD", "_", "SHLVL", "OLDPWD"].contains(name);
        assert!(user.split_whitespace().all(|name| allowed(&name)), "{user}");
        let token = r#"echo '{"Username":"<token>","Secret":"t"}'"#;
        assert_eq!(answer(token).await.unwrap(), Credentials::Identity("t".into()));
        let unknown = "echo 'credentials not found in native keychain'; exit 1";
        assert_eq!(answer(unknown).await.unwrap(), Credentials::Anonymous);
    }

    #[tokio::test]
    async fn helpers_that_fail_say_nothing_secret_and_do_not_stay() {
        let marker = tempfile::tempdir().unwrap();
        let pid_file = marker.path().join("pid");
        let slow = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
        for (script, says) in [
            ("echo secret; exit 1", "it failed"),
            ("echo secret", "not JSON"),
            ("head -c 300000 /dev/zero", "prints more than"),
            (slow.as_str(), "not done after 2 s; killed"),
        ] {
            let error = answer(script).await.unwrap_err();
            assert!(error.contains(says) && !error.contains("secret"), "{error}");
        }
        let sleeper = std::fs::read_to_string(&pid_file).unwrap();
        let stat = PathBuf::from(format!("/proc/{}/stat", sleeper.trim()));
        let is_gone = || std::fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z "));
        for _ in 0..100 {
            if is_gone() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(is_gone(), "what the helper has started");
    }

    #[tokio::test]
    async fn names_lead_nowhere_else() {
        let dir = helper("true");
        for name in ["", "../test", "a/b", "te st", "absent"] {
            let error = get(name, "r", &[dir.path().to_owned()]).await.unwrap_err();
            assert!(format!("{error:#}").starts_with("credential helper"), "{error:#}");
        }
    }
}
