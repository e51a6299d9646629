//! The sysctls of a sandbox: only those that belong to a namespace of its own. Pure.

use std::collections::HashMap;

use corten_proto::cri::{NamespaceMode, PodSandboxConfig};

use super::{SpecError, namespaces};

/// What each ipc namespace has its own of under `kernel.` (ipc/ipc_sysctl.c); `fs.mqueue.*` is POSIX's.
const IPC: &[&str] = &[
    "kernel.auto_msgmni",
    "kernel.msg_next_id",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.sem_next_id",
    "kernel.shm_next_id",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

/// What a new network namespace gets unless the request says otherwise: any user of the pod may listen on any port and
/// may send pings. The pod's addresses are its own, so that the kernel's protection of the node's low ports protects
/// nothing here; both peers do it.
const NETWORK_DEFAULTS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

/// The sysctls of the infra container.
pub(super) fn of_sandbox(config: &PodSandboxConfig) -> Result<HashMap<String, String>, SpecError> {
    let modes = namespaces::of_sandbox(config)?;
    let mut all = HashMap::new();
    if !modes.has_node_network() {
        all.extend(NETWORK_DEFAULTS.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    if let (false, Some(map)) = (modes.has_node_network(), modes.user) {
        // The kernel takes groups of the pod's user namespace only.
        let last = map.length - 1;
        all.insert("net.ipv4.ping_group_range".to_owned(), format!("0 {last}"));
    }
    let requested = config.linux.as_ref().map(|linux| &linux.sysctls);
    for (name, value) in requested.into_iter().flatten() {
        let field = format!("linux.sysctls[{name:?}]");
        // Both spellings are sysctl(8)'s; a name with slashes keeps its dots, as in net/ipv4/conf/eth0.100/mtu.
        let dotted = if name.contains('/') {
            name.replace('/', ".")
        } else {
            name.clone()
        };
        let allowed = match namespace(&dotted) {
            Some(Namespace::Network) => modes.network != NamespaceMode::Node,
            Some(Namespace::Ipc) => modes.ipc != NamespaceMode::Node,
            None => {
                let rule = "must belong to the network or the ipc namespace";
                return Err(SpecError::invalid(field, value, rule));
            }
        };
        if !allowed {
            let rule = "the sandbox has the node's namespace here, which stays as it is";
            return Err(SpecError::invalid(field, value, rule));
        }
        if name.split(['.', '/']).any(str::is_empty) || value.contains(['\0', '\n']) {
            let rule = "must be a name and a value of one line";
            return Err(SpecError::invalid(field, value, rule));
        }
        all.insert(name.clone(), value.clone());
    }
    Ok(all)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespace {
    Network,
    Ipc,
}

fn namespace(name: &str) -> Option<Namespace> {
    if name.starts_with("net.") {
        return Some(Namespace::Network);
    }
    (IPC.contains(&name) || name.starts_with("fs.mqueue.")).then_some(Namespace::Ipc)
}

#[cfg(test)]
mod tests {
    use corten_proto::cri::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption};

    use super::*;

    fn sandbox(name: &str, network: NamespaceMode, ipc: NamespaceMode) -> PodSandboxConfig {
        let options = NamespaceOption {
            network: network.into(),
            ipc: ipc.into(),
            ..Default::default()
        };
        PodSandboxConfig {
            linux: Some(LinuxPodSandboxConfig {
                sysctls: HashMap::from([(name.to_owned(), "1".to_owned())]),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(options),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn only_the_sandboxs_own_namespaces() {
        use NamespaceMode::{Node, Pod};
        for (name, network, ipc, good) in [
            ("net.ipv4.ip_forward", Pod, Pod, true),
            ("net/ipv4/ip_forward", Pod, Node, true),
            ("net.ipv4.ip_forward", Node, Pod, false),
            ("kernel.shm_rmid_forced", Node, Pod, true),
            ("kernel.shm_rmid_forced", Pod, Node, false),
            ("fs.mqueue.msg_max", Pod, Pod, true),
            ("kernel.core_pattern", Pod, Pod, false),
            ("kernel.hostname", Pod, Pod, false),
            ("vm.swappiness", Pod, Pod, false),
            ("net./../../kernel/core_pattern", Pod, Pod, false),
            ("net..x", Pod, Pod, false),
        ] {
            let result = of_sandbox(&sandbox(name, network, ipc));
            assert_eq!(result.is_ok(), good, "{name} {network:?} {ipc:?}");
        }
    }

    #[test]
    fn the_request_goes_before_the_defaults() {
        let sandbox = |network| sandbox("net.ipv4.ip_unprivileged_port_start", network, NamespaceMode::Pod);
        let own = of_sandbox(&sandbox(NamespaceMode::Pod)).unwrap();
        assert_eq!(own["net.ipv4.ip_unprivileged_port_start"], "1");
        assert_eq!(own["net.ipv4.ping_group_range"], "0 2147483647");
        let node = PodSandboxConfig {
            linux: Some(LinuxPodSandboxConfig {
                sysctls: HashMap::new(),
                ..sandbox(NamespaceMode::Node).linux.unwrap()
            }),
            ..Default::default()
        };
        assert!(of_sandbox(&node).unwrap().is_empty());
    }
}
