//! What the kernel was built with, for what cannot be seen before it is used: a module is loaded at its first use.

use std::fs;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

use super::check::Check;
use crate::config::Config;

/// Largest configuration that is read, in bytes; they have some 300 KiB.
const MAX: u64 = 4 << 20;

/// An option, its module, and what it is for.
const WANTED: [(&str, &str, &str); 8] = [
    ("OVERLAY_FS", "overlay", "containers' roots without a copy"),
    ("VETH", "veth", "pods' network links"),
    ("BRIDGE", "bridge", "the bridge that pods are on"),
    (
        "NF_TABLES",
        "nf_tables",
        "nftables: masquerade and host ports of newer plugins and of kube-proxy",
    ),
    (
        "IP_NF_IPTABLES",
        "ip_tables",
        "iptables: masquerade and host ports of older plugins",
    ),
    ("NF_NAT", "nf_nat", "masquerade and host ports"),
    (
        "BRIDGE_NETFILTER",
        "br_netfilter",
        "Services between pods of one node, with kube-proxy",
    ),
    ("CGROUP_BPF", "", "device rules on cgroup v2"),
];

/// How the kernel has an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Has {
    BuiltIn,
    Module,
    No,
}

pub(super) fn look(_config: &Config) -> Vec<Check> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let directory = Path::new("/lib/modules").join(&release);
    let lists =
        ["modules.dep", "modules.builtin"].map(|list| fs::read_to_string(directory.join(list)).unwrap_or_default());
    let loadable = |module: &str| {
        let loaded = !module.is_empty() && Path::new("/sys/module").join(module).exists();
        loaded || lists.iter().any(|list| has_module(list, module))
    };
    vec![judge(read(&release).as_deref(), loadable)]
}

/// Whether a list of modules' files, one a line, has this one: `kernel/net/veth.ko.xz: kernel/...`.
fn has_module(list: &str, module: &str) -> bool {
    list.lines().any(|line| {
        let file = line.split(':').next().and_then(|path| path.rsplit('/').next());
        let name = file.and_then(|file| file.split('.').next()).unwrap_or_default();
        name.replace('-', "_") == module
    })
}

/// The text of the configuration, where the kernel or the distribution shows it.
fn read(release: &str) -> Option<String> {
    let mut text = String::new();
    if let Ok(file) = fs::File::open("/proc/config.gz") {
        GzDecoder::new(file).take(MAX).read_to_string(&mut text).ok()?;
        return Some(text);
    }
    let file = fs::File::open(format!("/boot/config-{release}")).ok()?;
    file.take(MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

fn judge(text: Option<&str>, loadable: impl Fn(&str) -> bool) -> Check {
    let name = "kernel-config";
    let Some(text) = text else {
        return Check::skipped(name, "neither /proc/config.gz nor /boot/config-RELEASE can be read");
    };
    let usable = |option: &str, module: &str| match option_of(text, option) {
        Has::BuiltIn => true,
        Has::Module => loadable(module),
        Has::No => false,
    };
    let has_tables = ["NF_TABLES", "IP_NF_IPTABLES"].map(|wanted| {
        let module = WANTED
            .iter()
            .find(|(option, ..)| *option == wanted)
            .map_or("", |it| it.1);
        usable(wanted, module)
    });
    let missing: Vec<String> = WANTED
        .iter()
        .filter(|(option, module, _)| !usable(option, module))
        // Either of the two will do.
        .filter(|(option, ..)| !(has_tables.contains(&true) && option.contains("TABLES")))
        .map(|(option, _, purpose)| format!("CONFIG_{option} ({purpose})"))
        .collect();
    if missing.is_empty() {
        return Check::ok(name, "all that pods' networks and roots need can be had");
    }
    Check::warning(
        name,
        format!("not built, or a module that is not installed: {}", missing.join(", ")),
        "what stands in brackets does not work here",
        "use a kernel that is built with these options, or install the modules of this one",
    )
}

fn option_of(text: &str, option: &str) -> Has {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("CONFIG_")?.strip_prefix(option)?.strip_prefix('='));
    match value {
        Some("y") => Has::BuiltIn,
        Some("m") => Has::Module,
        _ => Has::No,
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    const FULL: &str = "CONFIG_OVERLAY_FS=y\nCONFIG_VETH=m\nCONFIG_BRIDGE=y\nCONFIG_NF_TABLES=m\nCONFIG_NF_NAT=y\n\
                        CONFIG_BRIDGE_NETFILTER=m\nCONFIG_CGROUP_BPF=y\n# CONFIG_IP_NF_IPTABLES is not set\n";

    #[test]
    fn modules() {
        let list = "kernel/net/veth.ko.xz: kernel/lib/a.ko.xz\nkernel/net/br-netfilter.ko:\nkernel/fs/overlay.ko\n";
        for (module, expected) in [
            ("veth", true),
            ("br_netfilter", true),
            ("overlay", true),
            ("a", false),
            ("", false),
        ] {
            assert_eq!(has_module(list, module), expected, "{module}");
        }
    }

    #[test]
    fn options() {
        assert_eq!(option_of(FULL, "VETH"), Has::Module);
        assert_eq!(option_of(FULL, "BRIDGE"), Has::BuiltIn);
        assert_eq!(option_of(FULL, "IP_NF_IPTABLES"), Has::No);
        assert_eq!(option_of(FULL, "OVERLAY"), Has::No, "a prefix is another option");
    }

    #[test]
    fn what_is_missing_is_named_with_its_purpose() {
        assert_eq!(judge(Some(FULL), |_| true).verdict, Verdict::Ok);
        let no_modules = judge(Some(FULL), |module| module == "nf_tables");
        assert_eq!(no_modules.verdict, Verdict::Warning);
        assert!(no_modules.found.contains("CONFIG_VETH (pods"), "{}", no_modules.found);
        assert!(
            !no_modules.found.contains("IPTABLES"),
            "nftables is there: {}",
            no_modules.found
        );
        assert_eq!(judge(None, |_| true).verdict, Verdict::Skipped);
    }
}
