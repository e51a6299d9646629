//! What programs of the machine print: network, packet filters, the journal. One that is not installed is passed over.

use std::process::Stdio;
use std::time::Duration;

use super::entry::Entry;
use crate::config::Config;

/// How long each may take.
const LIMIT: Duration = Duration::from_secs(15);

/// The file that it fills, and the command.
const COMMANDS: [(&str, &[&str]); 10] = [
    ("ip-address.txt", &["ip", "-details", "address"]),
    ("ip-route.txt", &["ip", "route", "show", "table", "all"]),
    ("ip-rule.txt", &["ip", "rule"]),
    ("ip-netns.txt", &["ip", "netns", "list-id"]),
    ("nft.txt", &["nft", "list", "ruleset"]),
    ("iptables.txt", &["iptables-save"]),
    ("dmesg.txt", &["dmesg", "--ctime"]),
    ("df.txt", &["df", "--all", "--local"]),
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
    let (program, arguments) = words.split_first()?;
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let text = match tokio::time::timeout(LIMIT, command.output()).await {
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Ok(Err(error)) => format!("{}: {error}\n", words.join(" ")),
        Ok(Ok(output)) => {
            let (stdout, stderr) = (
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
            );
            match output.status.success() {
                true => stdout.into_owned(),
                false => format!("{stdout}{}: {}: {stderr}\n", words.join(" "), output.status),
            }
        }
        Err(_elapsed) => format!("{}: not done in {} s\n", words.join(" "), LIMIT.as_secs()),
    };
    Some(Entry::text(format!("kernel/{file}"), &text))
}
