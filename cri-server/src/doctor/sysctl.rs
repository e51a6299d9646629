//! Kernel settings of the network, as this process's network namespace has them: the server's, unless that has its own.

use std::fs;

use super::check::Check;
use crate::config::Config;

pub(super) fn look(_config: &Config) -> Vec<Check> {
    vec![
        judge_forwarding(read("net/ipv4/ip_forward")),
        judge_bridge(read("net/bridge/bridge-nf-call-iptables")),
        judge_reverse_path(
            read("net/ipv4/conf/all/rp_filter"),
            read("net/ipv4/conf/default/rp_filter"),
            &strict_interfaces(),
        ),
    ]
}

/// Interfaces that drop what comes back by another way, if `all` does not say otherwise.
fn strict_interfaces() -> Vec<String> {
    let entries = fs::read_dir("/proc/sys/net/ipv4/conf").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_own = |name: &String| !["all", "default", "lo"].contains(&name.as_str());
    let is_strict = |name: &String| read(&format!("net/ipv4/conf/{name}/rp_filter")) == Some(1);
    let mut strict: Vec<String> = names.filter(|name| is_own(name) && is_strict(name)).collect();
    strict.sort();
    strict
}

/// A setting that is a number; none where the kernel has none such.
pub(super) fn read(name: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/{name}"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn judge_forwarding(value: Option<u64>) -> Check {
    let name = "ip-forward";
    match value {
        Some(1) => Check::ok(name, "net.ipv4.ip_forward is 1"),
        Some(value) => Check::warning(
            name,
            format!("net.ipv4.ip_forward is {value}"),
            "pods reach nothing beyond this node, unless their network turns it on (bridge and ptp do, for the first pod)",
            "sysctl -w net.ipv4.ip_forward=1, and the same line in /etc/sysctl.d",
        ),
        None => Check::skipped(name, "net.ipv4.ip_forward cannot be read"),
    }
}

fn judge_bridge(value: Option<u64>) -> Check {
    let name = "bridge-nf-call";
    let fix = "modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1; both in /etc/modules-load.d and \
               /etc/sysctl.d";
    let meaning = "with kube-proxy, a pod may not reach a Service whose endpoint is on the same bridge";
    match value {
        Some(1) => Check::ok(name, "net.bridge.bridge-nf-call-iptables is 1"),
        Some(value) => {
            let found = format!("net.bridge.bridge-nf-call-iptables is {value}");
            Check::warning(name, found, meaning, fix)
        }
        None => Check::warning(name, "br_netfilter is not loaded", meaning, fix),
    }
}

/// The kernel takes the greater of `all` and the interface's own; new interfaces begin with `default`.
fn judge_reverse_path(all: Option<u64>, default: Option<u64>, strict: &[String]) -> Check {
    let name = "rp-filter";
    let meaning =
        "answers to pods that come in by another interface are dropped: with Calico, Cilium, or several uplinks";
    if all == Some(1) {
        return Check::warning(
            name,
            "net.ipv4.conf.all.rp_filter is 1 (strict)",
            meaning,
            "sysctl -w net.ipv4.conf.all.rp_filter=0 (or 2, loose)",
        );
    }
    let default_is_strict = (default == Some(1)).then(|| "default".to_owned());
    let names: Vec<String> = default_is_strict.into_iter().chain(strict.iter().cloned()).collect();
    if all != Some(2) && !names.is_empty() {
        return Check::warning(
            name,
            format!("net.ipv4.conf.*.rp_filter of {} is 1 (strict)", names.join(", ")),
            meaning,
            "sysctl -w net.ipv4.conf.all.rp_filter=2 (loose), which goes before the interfaces' own",
        );
    }
    let value = |value: Option<u64>| value.map_or("unknown".to_owned(), |value| value.to_string());
    Check::ok(name, format!("all {}, default {}", value(all), value(default)))
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn settings() {
        let table = [
            (judge_forwarding(Some(1)), Verdict::Ok),
            (judge_forwarding(Some(0)), Verdict::Warning),
            (judge_forwarding(None), Verdict::Skipped),
            (judge_bridge(Some(1)), Verdict::Ok),
            (judge_bridge(Some(0)), Verdict::Warning),
            (judge_bridge(None), Verdict::Warning),
            (judge_reverse_path(Some(0), Some(0), &[]), Verdict::Ok),
            (judge_reverse_path(Some(0), Some(1), &[]), Verdict::Warning),
            (
                judge_reverse_path(Some(0), Some(0), &["eth0".to_owned()]),
                Verdict::Warning,
            ),
            (judge_reverse_path(Some(2), Some(1), &["eth0".to_owned()]), Verdict::Ok),
            (judge_reverse_path(Some(1), Some(1), &[]), Verdict::Warning),
        ];
        for (check, expected) in table {
            assert_eq!(check.verdict, expected, "{check:?}");
        }
    }
}
