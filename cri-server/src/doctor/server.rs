//! The running server, if there is one, and who may reach it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use corten_proto::cri::VersionRequest;

use super::check::Check;
use crate::client::Client;
use crate::config::Config;

/// How long the server may take to say its version, which it does from memory.
const LIMIT: Duration = Duration::from_secs(5);
const OWN: &str = env!("CARGO_PKG_VERSION");

/// A directory or socket, with what is known of it.
struct Private {
    path: PathBuf,
    /// Permission bits, and the owner; none where there is no such file.
    found: Option<(u32, u32)>,
}

pub(super) fn look(config: &Config) -> Vec<Check> {
    let paths = [&config.root, &config.state, &config.listen];
    let paths = paths.into_iter().chain(&config.storage.image_root);
    let mut files: Vec<Private> = paths.cloned().map(private).collect();
    let parent = config.listen.parent().map(|path| private_parent(path, config));
    files.extend(parent.flatten());
    vec![
        judge_server(&config.listen, ask(&config.listen), server_pid(config)),
        judge_permissions(&files),
    ]
}

fn private(path: PathBuf) -> Private {
    // What a link leads to: the link itself has mode 0777 always.
    let found = fs::metadata(&path).ok().map(|it| (it.mode() & 0o7777, it.uid()));
    Private { path, found }
}

/// The socket's directory, where it is one that the server shares with nobody.
fn private_parent(path: &Path, config: &Config) -> Option<Private> {
    let shared = ["/run", "/var/run", "/tmp", "/"].iter().any(|it| path == Path::new(it));
    (path != config.state && !shared).then(|| private(path.to_owned()))
}

/// The process that serves from this state directory: the one that its lock names, if that holds the lock. It is looked
/// for in the kernel's list: to try the lock would keep a server from starting.
pub(crate) fn server_pid(config: &Config) -> Option<i32> {
    let path = config.state.join("lock");
    let pid: i32 = fs::read_to_string(&path).ok()?.trim().parse().ok()?;
    let inode = fs::metadata(&path).ok()?.ino();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    holds_lock(&locks, pid, inode).then_some(pid)
}

/// Whether `locks`, as /proc/locks has them, has a flock(2) of this process on this inode.
fn holds_lock(locks: &str, pid: i32, inode: u64) -> bool {
    locks.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // "1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF"
        let [_, "FLOCK", _, "WRITE", holder, file, ..] = words[..] else {
            return false;
        };
        let on = file.rsplit(':').next().and_then(|number| number.parse().ok());
        holder.parse() == Ok(pid) && on == Some(inode)
    })
}

/// The version that a server says it has.
async fn version(mut client: Client) -> Result<String> {
    let answer = client.runtime.version(VersionRequest::default()).await?;
    Ok(answer.into_inner().runtime_version)
}

/// The version of the server at this socket.
fn ask(socket: &Path) -> Result<String> {
    Client::block_on(socket, LIMIT, version)
}

fn judge_server(socket: &Path, answer: Result<String>, pid: Option<i32>) -> Check {
    let name = "server";
    let socket = socket.display();
    match (answer, pid) {
        (Ok(version), _) if version == OWN => Check::ok(name, format!("{version} answers at {socket}")),
        (Ok(version), _) => Check::warning(
            name,
            format!("the server that runs is {version}, this program is {OWN}"),
            "an update was installed, and the old server still runs",
            "systemctl restart corten-cri; pods go on",
        ),
        (Err(error), Some(pid)) => Check::problem(
            name,
            format!("process {pid} holds {socket}'s directory and does not answer: {error:#}"),
            "the kubelet gets no answers either",
            "look at its log; `corten-cri support-bundle` keeps what it waits for; then restart it, pods go on",
        ),
        (Err(_), None) => Check::skipped(name, format!("no server listens at {socket}")),
    }
}

fn judge_permissions(all: &[Private]) -> Check {
    let name = "permissions";
    let complaint = |file: &Private| {
        let (mode, owner) = file.found?;
        let path = file.path.display();
        match (owner, mode & 0o077) {
            (0, 0) => None,
            (0, _) => Some((mode & 0o002 != 0, format!("{path} has mode {mode:04o}"))),
            (owner, _) => Some((true, format!("{path} belongs to user {owner}"))),
        }
    };
    let complaints: Vec<(bool, String)> = all.iter().filter_map(complaint).collect();
    let found = complaints
        .iter()
        .map(|(_, text)| text.as_str())
        .collect::<Vec<_>>()
        .join("; ");
    let fix = "chown root: and chmod go= these; a restarted server gives its own directories 0700 by itself";
    match complaints.iter().any(|(is_open, _)| *is_open) {
        _ if complaints.is_empty() => Check::ok(name, "root alone can reach directories and socket"),
        true => Check::problem(
            name,
            found,
            "whoever can write there, or is that user, can become root on this node",
            fix,
        ),
        false => Check::warning(
            name,
            found,
            "others than root can read containers' files, or a group can become root",
            fix,
        ),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn servers() {
        let judge = |answer, pid| judge_server(Path::new("/run/corten/corten.sock"), answer, pid).verdict;
        assert_eq!(judge(Ok(OWN.to_owned()), Some(7)), Verdict::Ok);
        assert_eq!(judge(Ok("0.0.9".to_owned()), Some(7)), Verdict::Warning);
        assert_eq!(judge(Err(anyhow!("timeout")), Some(7)), Verdict::Problem);
        assert_eq!(judge(Err(anyhow!("ENOENT")), None), Verdict::Skipped);
    }

    #[test]
    fn who_serves_holds_the_lock() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 08:01:42 0 EOF\n2: FLOCK  ADVISORY  WRITE 8 08:01:42 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 9 08:01:42 0 EOF\n";
        for (pid, inode, expected) in [(8, 42, true), (7, 42, false), (8, 43, false), (9, 42, false)] {
            assert_eq!(holds_lock(locks, pid, inode), expected, "{pid} {inode}");
        }
    }

    #[test]
    fn of_a_link_what_it_leads_to_is_judged() {
        let private_mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let dir = tempfile::Builder::new().permissions(private_mode).tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert_eq!(judge_permissions(&[private(link)]).verdict, Verdict::Ok);
    }

    #[test]
    fn permissions() {
        let table = [
            (None, Verdict::Ok),
            (Some((0o700, 0)), Verdict::Ok),
            (Some((0o600, 0)), Verdict::Ok),
            (Some((0o755, 0)), Verdict::Warning),
            (Some((0o777, 0)), Verdict::Problem),
            (Some((0o660, 0)), Verdict::Warning),
            (Some((0o700, 1000)), Verdict::Problem),
        ];
        for (found, expected) in table {
            let check = judge_permissions(&[Private {
                path: "/run/corten".into(),
                found,
            }]);
            assert_eq!(check.verdict, expected, "{found:?}");
        }
    }
}
