//! The node's resolv.conf, which pods get whose request brings no DNS (`dnsPolicy: Default` by way of the kubelet).

use std::fs;
use std::net::IpAddr;

use super::check::Check;
use crate::config::Config;
use crate::network::dns::HOST_RESOLV_CONF;

/// The servers that systemd-resolved asks, for who cannot reach its own.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
/// What resolvers in pods take of it (resolv.conf(5), MAXNS).
const MAX_SERVERS: usize = 3;

pub(super) fn look(_config: &Config) -> Vec<Check> {
    let text = fs::read_to_string(HOST_RESOLV_CONF);
    let behind = fs::read_to_string(RESOLVED).unwrap_or_default();
    vec![judge(text.as_deref().map_err(ToString::to_string), &behind)]
}

/// The servers that a file names: those on the loopback, and the others.
fn servers(text: &str) -> (Vec<&str>, Vec<&str>) {
    let servers = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.split_whitespace().next());
    servers.partition(|server| server.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()))
}

/// `behind`: the file that systemd-resolved keeps for those who cannot reach it; empty where it does not run.
fn judge(text: Result<&str, String>, behind: &str) -> Check {
    let name = "resolv-conf";
    let text = match text {
        Ok(text) => text,
        Err(error) => {
            let meaning = "pods without DNS settings of their own cannot be run";
            let found = format!("{HOST_RESOLV_CONF}: {error}");
            return Check::problem(name, found, meaning, "make the file; an empty one will do");
        }
    };
    let (local, others) = servers(text);
    if local.is_empty() && others.is_empty() {
        let meaning = "pods with dnsPolicy Default resolve nothing";
        let fix = format!("name a server in {HOST_RESOLV_CONF}, or give the kubelet another file as resolvConf");
        return Check::warning(name, "it names no server", meaning, fix);
    }
    if !local.is_empty() {
        let found = format!("nameserver {} is on this machine's loopback", local.join(", "));
        let meaning = "pods with dnsPolicy Default cannot reach it (their loopback is another), and neither can CoreDNS, \
                       which forwards there or loops";
        let fix = "give the kubelet the file with the real servers: resolvConf: /run/systemd/resolve/resolv.conf";
        let has_file = !servers(behind).1.is_empty();
        return match others.is_empty() {
            // The kubelet is set up for that by kubeadm and others; it cannot be seen from here.
            true if has_file => Check::warning(
                name,
                found,
                format!("unless the kubelet has another file: {meaning}"),
                fix,
            ),
            true => Check::problem(name, found, meaning, fix),
            false => Check::warning(
                name,
                found,
                "pods with dnsPolicy Default wait for it before they ask the next",
                fix,
            ),
        };
    }
    if others.len() > MAX_SERVERS {
        let found = format!("{} servers", others.len());
        return Check::warning(name, found, "resolvers use the first three", "remove the others");
    }
    Check::ok(name, others.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn resolvers() {
        let table = [
            (Ok("nameserver 192.0.2.1\nsearch a\n"), Verdict::Ok),
            (Ok("nameserver 127.0.0.53\noptions edns0\n"), Verdict::Problem),
            (Ok("nameserver ::1\n"), Verdict::Problem),
            (Ok("nameserver 127.0.0.1\nnameserver 192.0.2.1\n"), Verdict::Warning),
            (Ok("# nameserver 192.0.2.1\n"), Verdict::Warning),
            (
                Ok("nameserver 1.0.0.1\nnameserver 1.0.0.2\nnameserver 1.0.0.3\nnameserver 1.0.0.4\n"),
                Verdict::Warning,
            ),
            (Err("ENOENT".to_owned()), Verdict::Problem),
        ];
        for (text, expected) in table {
            assert_eq!(judge(text.clone(), "").verdict, expected, "{text:?}");
        }
        let stub = "nameserver 127.0.0.53\n";
        assert_eq!(judge(Ok(stub), "nameserver 192.0.2.1\n").verdict, Verdict::Warning);
        assert_eq!(judge(Ok(stub), stub).verdict, Verdict::Problem);
    }
}
