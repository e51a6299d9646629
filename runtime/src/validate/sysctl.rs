//! Which kernel parameters a container may set: those that belong to a namespace of its own. Any other is the host's
//! (CVE-2022-0532).

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};
use oci_spec::runtime::LinuxNamespaceType;

/// Parameters that every IPC namespace has its own of, ipc/ipc_sysctl.c. fs.mqueue.* are more of them.
const IPC: [&str; 12] = [
    "auto_msgmni",
    "msg_next_id",
    "msgmax",
    "msgmnb",
    "msgmni",
    "sem",
    "sem_next_id",
    "shm_next_id",
    "shm_rmid_forced",
    "shmall",
    "shmmax",
    "shmmni",
];

/// Checks `linux.sysctl`. `private` tells whether the container has a namespace of a kind that is not the host's.
pub(super) fn check(
    sysctls: &HashMap<String, String>,
    private: impl Fn(LinuxNamespaceType) -> Result<bool>,
) -> Result<()> {
    for (key, value) in sysctls {
        let at = format!("linux.sysctl.{key:?}");
        let Some(kind) = namespace(&components(key)) else {
            bail!("{at}: not a parameter of a namespace: it would be set for the whole machine");
        };
        ensure!(private(kind)?, "{at}: needs a {kind} namespace that is not the host's");
        // The kernel takes the first line of what is written; the rest could only be meant for a parser in between.
        ensure!(!value.contains(['\n', '\0']), "{at}: {value:?}: must be one line");
    }
    Ok(())
}

/// The components of a name. `/` and `.` are both separators, the first to appear is the one that counts; the other is
/// then a part of names, swapped for what procfs has there (sysctl.d(5)).
fn components(key: &str) -> Vec<String> {
    let dotted = key.find(['.', '/']).is_none_or(|at| key.as_bytes()[at] == b'.');
    let path: String = match dotted {
        true => key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        false => key.to_owned(),
    };
    path.split('/').map(str::to_owned).collect()
}

/// The kind of namespace that a parameter belongs to.
fn namespace(components: &[String]) -> Option<LinuxNamespaceType> {
    // No way up or out of the directory that the first components name.
    if components
        .iter()
        .any(|name| matches!(name.as_str(), "" | "." | "..") || name.contains('\0'))
    {
        return None;
    }
    let names: Vec<&str> = components.iter().map(String::as_str).collect();
    match names[..] {
        ["net", _, ..] => Some(LinuxNamespaceType::Network),
        ["fs", "mqueue", _, ..] => Some(LinuxNamespaceType::Ipc),
        ["kernel", name] if IPC.contains(&name) => Some(LinuxNamespaceType::Ipc),
        // kernel.hostname is for the `hostname` field, and two answers to one question are one too many.
        ["kernel", "domainname"] => Some(LinuxNamespaceType::Uts),
        ["user", _] => Some(LinuxNamespaceType::User),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_their_namespaces() {
        use LinuxNamespaceType::{Ipc, Network, User, Uts};
        for (key, kind) in [
            ("net.ipv4.ip_forward", Some(Network)),
            ("net/ipv4/conf/eth0.1/forwarding", Some(Network)),
            ("net.ipv4.conf.eth0/1.forwarding", Some(Network)),
            ("kernel.shmmax", Some(Ipc)),
            ("kernel/sem", Some(Ipc)),
            ("fs.mqueue.msg_max", Some(Ipc)),
            ("kernel.domainname", Some(Uts)),
            ("user.max_user_namespaces", Some(User)),
            ("kernel.hostname", None),
            ("kernel.core_pattern", None),
            ("kernel.shmmax.x", None),
            ("vm.overcommit_memory", None),
            ("fs.file-max", None),
            ("net", None),
            ("", None),
            ("/", None),
            ("/net/ipv4/ip_forward", None),
            ("net/../kernel/core_pattern", None),
            ("net/./ipv4", None),
            ("net..ipv4", None),
            ("net.//.kernel", None),
            ("net.ipv4.\0", None),
        ] {
            assert_eq!(namespace(&components(key)), kind, "{key:?}");
        }
    }

    #[test]
    fn only_of_namespaces_of_its_own() {
        let sysctl = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
        let network_alone = |kind| Ok(kind == LinuxNamespaceType::Network);
        assert!(check(&sysctl("net.ipv4.ping_group_range", "0\t1"), network_alone).is_ok());
        for (key, value, word) in [
            ("kernel.shmmax", "1", "needs a ipc namespace"),
            ("kernel.core_pattern", "|/x", "whole machine"),
            ("net.ipv4.ip_forward", "1\n2", "one line"),
            ("net.ipv4.ip_forward", "1\0", "one line"),
        ] {
            let error = check(&sysctl(key, value), network_alone).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("linux.sysctl.{key:?}: ")) && error.contains(word),
                "{error}"
            );
        }
    }
}
