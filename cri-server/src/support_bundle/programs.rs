//! What programs of the machine print: network, packet filters, the journal. One that is not installed is named as such.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::entry::Entry;
use crate::config::Config;
use crate::doctor::programs::program;

/// How long each may take.
const LIMIT: Duration = Duration::from_secs(15);
/// Most bytes that are taken of what each prints.
const MAX: u64 = 4 << 20;
/// Programs that would load a module to say that nothing is in it.
const MODULES: [(&str, &str); 2] = [("nft", "nf_tables"), ("iptables-save", "ip_tables")];

/// The file that it fills, and the command.
const COMMANDS: [(&str, &[&str]); 10] = [
    ("ip-address.txt", &["ip", "-details", "address"]),
    ("ip-route.txt", &["ip", "route", "show", "table", "all"]),
    ("ip-rule.txt", &["ip", "rule"]),
    ("ip-netns.txt", &["ip", "netns", "list-id"]),
    ("nft.txt", &["nft", "list", "ruleset"]),
    ("iptables.txt", &["iptables-save"]),
    ("dmesg.txt", &["dmesg", "--ctime"]),
    ("df.txt", &["df", "--local"]),
    (
        "journal.txt",
        &[
            "journalctl",
            "--unit=corten*",
            "--lines=5000",
            "--no-pager",
            "--output=short-iso",
        ],
    ),
    (
        "journal-kubelet.txt",
        &[
            "journalctl",
            "--unit=kubelet",
            "--lines=1000",
            "--no-pager",
            "--output=short-iso",
        ],
    ),
];

pub(super) fn collect(_config: &Config) -> Vec<Entry> {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return vec![Entry::text(
                "kernel/error.txt",
                &format!("start the async runtime: {error}\n"),
            )];
        }
    };
    runtime.block_on(async {
        let runs = COMMANDS.map(|(file, command)| run(file, command));
        futures_util::future::join_all(runs)
            .await
            .into_iter()
            .flatten()
            .collect()
    })
}

async fn run(file: &str, words: &[&str]) -> Option<Entry> {
    let (name, arguments) = words.split_first()?;
    if let Some((_, module)) = MODULES.iter().find(|(program, _)| program == name)
        && !Path::new("/sys/module").join(module).exists()
    {
        return Some(Entry::text(
            format!("kernel/{file}"),
            &format!("{name}: not run, {module} is not loaded\n"),
        ));
    }
    let mut command = program(name);
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let text = match tokio::time::timeout(LIMIT, output(command)).await {
        Ok(Err(error)) if error.kind() == ErrorKind::NotFound => {
            return Some(Entry::absent(format!("kernel/{file}"), name));
        }
        Ok(Err(error)) => format!("{}: {error}\n", words.join(" ")),
        Ok(Ok((text, status))) if status.success() => text,
        Ok(Ok((text, status))) => format!("{text}{}: {status}\n", words.join(" ")),
        Err(_elapsed) => format!("{}: not done in {} s\n", words.join(" "), LIMIT.as_secs()),
    };
    Some(Entry::text(format!("kernel/{file}"), &text))
}

/// What a program prints, and after it what it complains of where it fails; the first [`MAX`] bytes of each.
async fn output(mut command: Command) -> std::io::Result<(String, ExitStatus)> {
    let mut child = command.spawn()?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (out, err) = tokio::join!(first(out), first(err));
    let status = child.wait().await?;
    let mut text = String::from_utf8_lossy(&out?).into_owned();
    if !status.success() {
        text += &String::from_utf8_lossy(&err?);
    }
    Ok((text, status))
}

async fn first(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // The pipe is closed then: who prints more is ended by that.
        pipe.take(MAX).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn programs_run_in_the_servers_surroundings_or_are_named() {
        let entry = run("a.txt", &["env"]).await.unwrap();
        let text = String::from_utf8(entry.content).unwrap();
        assert_eq!(text, format!("LC_ALL=C\nPATH={}\n", crate::oci::PATH));
        let entry = run("b.txt", &["no-such-program"]).await.unwrap();
        assert!(entry.note().contains("not installed"), "{}", entry.note());
        let entry = run("c.txt", &["cat", "/dev/zero"]).await.unwrap();
        assert!(String::from_utf8(entry.content).unwrap().contains("cat /dev/zero: "));
    }
}
