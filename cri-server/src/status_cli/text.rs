//! The overview for a person, and as a document.

use std::fmt::Write as _;
use std::time::Duration;

use indicatif::BinaryBytes;

use super::{Disk, Overview};

/// Digits of an id that are shown: what crictl shows.
const SHORT: usize = 13;

impl Overview {
    pub(crate) fn json(&self) -> String {
        format!("{:#}\n", serde_json::json!(self))
    }

    pub(crate) fn text(&self) -> String {
        let mut rows = self.server_rows();
        rows.extend(self.condition_rows());
        rows.extend(self.handler_rows());
        rows.extend(self.count_rows());
        rows.extend(self.disks.iter().map(disk_row));
        if self.quarantined > 0 {
            let text = format!(
                "{} records could not be read; `corten-cri doctor` says more",
                self.quarantined
            );
            rows.push(("quarantine".to_owned(), text));
        }
        rows.extend(self.failure_rows());
        let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or_default();
        rows.iter().fold(String::new(), |mut text, (key, value)| {
            writeln!(text, "{key:width$}  {value}").expect("a String");
            text
        })
    }

    fn server_rows(&self) -> Vec<(String, String)> {
        let pid = self.pid.map_or(String::new(), |pid| format!(", process {pid}"));
        let uptime = self.uptime_s.map_or(String::new(), |seconds| {
            format!(", up {}", humantime::format_duration(Duration::from_secs(seconds)))
        });
        let text = format!("corten-cri {} at {}{pid}{uptime}", self.version, self.endpoint);
        vec![("server".to_owned(), text)]
    }

    fn condition_rows(&self) -> impl Iterator<Item = (String, String)> {
        self.conditions.iter().map(|condition| {
            let text = match condition.good {
                true => "yes".to_owned(),
                false => format!("NO: {}: {}", condition.reason, condition.message),
            };
            (condition.name.clone(), text)
        })
    }

    fn handler_rows(&self) -> impl Iterator<Item = (String, String)> {
        self.handlers.iter().map(|handler| {
            let name = if handler.name.is_empty() {
                "(default)"
            } else {
                &handler.name
            };
            let features = [
                (handler.user_namespaces, "user namespaces"),
                (handler.recursive_read_only, "recursive read-only mounts"),
            ];
            let features: Vec<&str> = features.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect();
            let text = match (&handler.problem, features.is_empty()) {
                (Some(problem), _) => format!("{}: {problem}", handler.path),
                (None, true) => handler.path.clone(),
                (None, false) => format!("{}: {}", handler.path, features.join(", ")),
            };
            (format!("handler {name}"), text)
        })
    }

    fn count_rows(&self) -> Vec<(String, String)> {
        let (containers, images, memory) = (&self.containers, &self.images, &self.memory);
        let unknown = match containers.unknown {
            0 => String::new(),
            count => format!(", {count} unknown"),
        };
        let bytes = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), |bytes| BinaryBytes(bytes).to_string());
        vec![
            (
                "pods".to_owned(),
                format!("{} ready, {} not ready", self.pods.ready, self.pods.not_ready),
            ),
            (
                "containers".to_owned(),
                format!(
                    "{} running, {} created, {} exited{unknown}; {} written",
                    containers.running,
                    containers.created,
                    containers.exited,
                    BinaryBytes(images.written_bytes)
                ),
            ),
            (
                "images".to_owned(),
                format!("{}, {}", images.count, BinaryBytes(images.bytes)),
            ),
            (
                "memory".to_owned(),
                format!(
                    "server {} (RSS), {} shims {} (PSS); {} available on the node",
                    bytes(memory.server_rss),
                    memory.shims,
                    BinaryBytes(memory.shims_pss),
                    bytes(memory.node_available)
                ),
            ),
        ]
    }

    fn failure_rows(&self) -> impl Iterator<Item = (String, String)> {
        self.failures.iter().map(|failure| {
            let id: String = failure.id.chars().take(SHORT).collect();
            let reason = match failure.message.lines().next() {
                Some(message) => format!("{}: {message}", failure.reason),
                None => failure.reason.clone(),
            };
            let text = format!(
                "{} {} {} ({id}): exit code {}, {reason}",
                failure.finished, failure.pod, failure.container, failure.exit_code
            );
            ("failed".to_owned(), text)
        })
    }
}

fn disk_row(disk: &Disk) -> (String, String) {
    let percent = |free: u64, all: u64| u128::from(free) * 100 / u128::from(all.max(1));
    let inodes = match disk.inodes {
        0 => String::new(),
        all => format!(", {} % of inodes", percent(disk.inodes_free, all)),
    };
    let text = format!(
        "{}: {} of {} free ({} %{inodes})",
        disk.path,
        BinaryBytes(disk.bytes_free),
        BinaryBytes(disk.bytes),
        percent(disk.bytes_free, disk.bytes)
    );
    (format!("disk {}", disk.key), text)
}

#[cfg(test)]
mod tests {
    use super::super::{Condition, Failure};
    use super::*;

    #[test]
    fn a_page() {
        let overview = Overview {
            version: "1.2.3".to_owned(),
            endpoint: "/s".to_owned(),
            pid: Some(7),
            uptime_s: Some(3700),
            conditions: vec![
                Condition {
                    name: "RuntimeReady".to_owned(),
                    good: true,
                    ..Condition::default()
                },
                Condition {
                    name: "NetworkReady".to_owned(),
                    reason: "NetworkPluginNotReady".to_owned(),
                    message: "no CNI configuration".to_owned(),
                    ..Condition::default()
                },
            ],
            failures: vec![Failure {
                id: "a".repeat(64),
                pod: "default/web".to_owned(),
                container: "main".to_owned(),
                exit_code: 137,
                reason: "OOMKilled".to_owned(),
                finished: "2026-01-01T00:00:00Z".to_owned(),
                ..Failure::default()
            }],
            ..Overview::default()
        };
        let text = overview.text();
        for line in [
            "server        corten-cri 1.2.3 at /s, process 7, up 1h 1m 40s\n",
            "RuntimeReady  yes\n",
            "NetworkReady  NO: NetworkPluginNotReady: no CNI configuration\n",
            "pods          0 ready, 0 not ready\n",
            "failed        2026-01-01T00:00:00Z default/web main (aaaaaaaaaaaaa): exit code 137, OOMKilled\n",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
        assert!(overview.json().contains("\"exit_code\": 137"));
    }
}
