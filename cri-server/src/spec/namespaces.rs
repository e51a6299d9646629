//! Which namespaces a container has of its own, which it joins, and which are the node's. Pure.
//!
//! | | infra container | containers of the pod |
//! |---|---|---|
//! | network | joins the sandbox's, made before it | join the infra container's |
//! | uts, ipc | new | join the infra container's |
//! | pid POD | new | join the infra container's |
//! | pid CONTAINER | new | new |
//! | pid TARGET | (refused) | joins the target's |
//! | mount, and cgroup on v2 | new | new |
//! | NODE | none | none; only where the sandbox has it too |
//!
//! The node's network brings the node's uts namespace with it: a hostname of its own would not be the one its
//! addresses resolve to. User namespaces are not built: `userns_options` other than NODE is refused.

use std::path::{Path, PathBuf};

use corten_proto::cri::{ContainerConfig, NamespaceMode, NamespaceOption, PodSandboxConfig};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType};

use super::{ContainerSpecInput, SandboxSpecInput, SpecError, security};

const OPTIONS: &str = "linux.security_context.namespace_options";

/// The modes of a request, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Modes {
    /// POD or NODE.
    pub(super) network: NamespaceMode,
    /// Any of the four for a container; not TARGET for a sandbox.
    pub(super) pid: NamespaceMode,
    /// POD or NODE.
    pub(super) ipc: NamespaceMode,
}

impl Modes {
    /// The node's network, and with it the node's hostname.
    pub(super) fn has_node_network(self) -> bool {
        self.network == NamespaceMode::Node
    }

    fn parse(options: Option<&NamespaceOption>) -> Result<Modes, SpecError> {
        let default = NamespaceOption::default();
        let options = options.unwrap_or(&default);
        check_userns(options)?;
        let own = [NamespaceMode::Pod, NamespaceMode::Node];
        Ok(Modes {
            network: mode("network", options.network, &own)?,
            ipc: mode("ipc", options.ipc, &own)?,
            pid: mode("pid", options.pid, &ALL_MODES)?,
        })
    }
}

const ALL_MODES: [NamespaceMode; 4] = [
    NamespaceMode::Pod,
    NamespaceMode::Container,
    NamespaceMode::Node,
    NamespaceMode::Target,
];

/// The modes of a sandbox.
pub(super) fn of_sandbox(config: &PodSandboxConfig) -> Result<Modes, SpecError> {
    let context = security::sandbox_context(config);
    let modes = Modes::parse(context.and_then(|it| it.namespace_options.as_ref()))?;
    if modes.pid == NamespaceMode::Target {
        let rule = "a sandbox has no container to target yet: POD, CONTAINER or NODE";
        return Err(SpecError::invalid(format!("{OPTIONS}.pid"), "TARGET", rule));
    }
    Ok(modes)
}

/// The modes of a container, which reach no further than its sandbox's.
pub(super) fn of_container(config: &ContainerConfig, sandbox: &PodSandboxConfig) -> Result<Modes, SpecError> {
    let context = security::context(config);
    let options = context.and_then(|it| it.namespace_options.as_ref());
    let modes = Modes::parse(options)?;
    let outer = of_sandbox(sandbox)?;
    for (name, inner, outer) in [
        ("network", modes.network, outer.network),
        ("pid", modes.pid, outer.pid),
        ("ipc", modes.ipc, outer.ipc),
    ] {
        if inner == NamespaceMode::Node && outer != NamespaceMode::Node {
            let rule = "is for sandboxes that have the node's namespace themselves";
            return Err(SpecError::invalid(format!("{OPTIONS}.{name}"), "NODE", rule));
        }
    }
    let target = options.map_or("", |it| it.target_id.as_str());
    if modes.pid == NamespaceMode::Target && target.is_empty() {
        let rule = "pid mode TARGET needs the id of a running container of the pod";
        return Err(SpecError::invalid(format!("{OPTIONS}.target_id"), target, rule));
    }
    Ok(Modes {
        network: outer.network,
        ipc: outer.ipc,
        ..modes
    })
}

/// Only the node's user namespace is built. An absent message means that too, whatever its default mode says: the
/// kubelet and both peers read it so.
fn check_userns(options: &NamespaceOption) -> Result<(), SpecError> {
    let Some(userns) = &options.userns_options else {
        return Ok(());
    };
    let field = format!("{OPTIONS}.userns_options.mode");
    match NamespaceMode::try_from(userns.mode) {
        Ok(NamespaceMode::Node) if userns.uids.is_empty() && userns.gids.is_empty() => Ok(()),
        Ok(NamespaceMode::Node) => Err(SpecError::invalid(field, "NODE", "excludes uid and gid mappings")),
        Ok(NamespaceMode::Pod) => Err(SpecError::unimplemented(
            field,
            "POD",
            "user namespaces are not supported yet",
        )),
        Ok(other) => Err(SpecError::invalid(field, other.as_str_name(), "must be POD or NODE")),
        Err(_unknown) => Err(SpecError::invalid(field, userns.mode, "must be POD or NODE")),
    }
}

fn mode(name: &str, value: i32, allowed: &[NamespaceMode]) -> Result<NamespaceMode, SpecError> {
    let known = NamespaceMode::try_from(value).ok();
    known.filter(|mode| allowed.contains(mode)).ok_or_else(|| {
        let value = known.map_or(value.to_string(), |mode| mode.as_str_name().to_owned());
        let names: Vec<_> = allowed.iter().map(|mode| mode.as_str_name()).collect();
        let rule = format!("must be one of {}", names.join(", "));
        SpecError::invalid(format!("{OPTIONS}.{name}"), value, rule)
    })
}

/// The namespaces of the infra container.
pub(super) fn infra(input: &SandboxSpecInput<'_>) -> Result<Vec<LinuxNamespace>, SpecError> {
    let modes = of_sandbox(input.config)?;
    let mut list = vec![new(LinuxNamespaceType::Mount)];
    if !modes.has_node_network() {
        let path = input
            .netns
            .expect("a sandbox off the node's network has a namespace by now");
        list.push(join(LinuxNamespaceType::Network, path));
        list.push(new(LinuxNamespaceType::Uts));
    }
    if modes.ipc != NamespaceMode::Node {
        list.push(new(LinuxNamespaceType::Ipc));
    }
    if modes.pid != NamespaceMode::Node {
        list.push(new(LinuxNamespaceType::Pid));
    }
    Ok(list)
}

/// The namespaces of a container of the pod.
pub(super) fn member(input: &ContainerSpecInput<'_>) -> Result<Vec<LinuxNamespace>, SpecError> {
    let modes = of_container(input.config, input.sandbox_config)?;
    let infra = |name: &str| namespace_of(input.infra_pid, name);
    let mut list = vec![new(LinuxNamespaceType::Mount)];
    if !modes.has_node_network() {
        list.push(join(LinuxNamespaceType::Network, &infra("net")));
        list.push(join(LinuxNamespaceType::Uts, &infra("uts")));
    }
    if modes.ipc != NamespaceMode::Node {
        list.push(join(LinuxNamespaceType::Ipc, &infra("ipc")));
    }
    let pid = LinuxNamespaceType::Pid;
    match modes.pid {
        NamespaceMode::Node => {}
        NamespaceMode::Container => list.push(new(pid)),
        NamespaceMode::Pod if is_node_pid(input.sandbox_config)? => {}
        NamespaceMode::Pod => list.push(join(pid, &infra("pid"))),
        NamespaceMode::Target => {
            let target = input.target_pid.expect("the target of pid mode TARGET was looked up");
            list.push(join(pid, &namespace_of(target, "pid")));
        }
    }
    // On v1 the field leaves the hierarchy's real paths visible, and cgroup mounts of containers rely on it.
    if input.host.cgroup_v2 && !security::is_privileged(input.config) {
        list.push(new(LinuxNamespaceType::Cgroup));
    }
    Ok(list)
}

fn is_node_pid(sandbox: &PodSandboxConfig) -> Result<bool, SpecError> {
    Ok(of_sandbox(sandbox)?.pid == NamespaceMode::Node)
}

fn namespace_of(pid: i32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/{name}"))
}

fn new(typ: LinuxNamespaceType) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(typ);
    namespace
}

fn join(typ: LinuxNamespaceType, path: &Path) -> LinuxNamespace {
    LinuxNamespaceBuilder::default()
        .typ(typ)
        .path(path)
        .build()
        .expect("every field of the builder has a default")
}

#[cfg(test)]
mod tests {
    use corten_proto::cri::{IdMapping, UserNamespace};

    use super::*;

    fn options(network: NamespaceMode, pid: NamespaceMode, ipc: NamespaceMode) -> NamespaceOption {
        NamespaceOption {
            network: network.into(),
            pid: pid.into(),
            ipc: ipc.into(),
            ..Default::default()
        }
    }

    #[test]
    fn modes() {
        use NamespaceMode::{Container, Node, Pod, Target};
        for (options, good) in [
            (options(Pod, Container, Pod), true),
            (options(Node, Node, Node), true),
            (options(Pod, Target, Pod), true),
            (options(Container, Pod, Pod), false),
            (options(Target, Pod, Pod), false),
            (options(Pod, Pod, Container), false),
            (
                NamespaceOption {
                    pid: 9,
                    ..Default::default()
                },
                false,
            ),
        ] {
            assert_eq!(Modes::parse(Some(&options)).is_ok(), good, "{options:?}");
        }
        let default = Modes::parse(None).unwrap();
        assert_eq!((default.network, default.pid, default.ipc), (Pod, Pod, Pod));
    }

    #[test]
    fn user_namespaces() {
        use super::super::Kind;
        let mapping = IdMapping {
            host_id: 65536,
            container_id: 0,
            length: 65536,
        };
        let userns = |mode: NamespaceMode, mapped: bool| {
            let maps = if mapped { vec![mapping] } else { Vec::new() };
            let userns = UserNamespace {
                mode: mode.into(),
                uids: maps.clone(),
                gids: maps,
            };
            let options = NamespaceOption {
                userns_options: Some(userns),
                ..Default::default()
            };
            Modes::parse(Some(&options)).err().map(|error| error.kind)
        };
        assert_eq!(userns(NamespaceMode::Node, false), None);
        assert_eq!(userns(NamespaceMode::Node, true), Some(Kind::Invalid));
        assert_eq!(userns(NamespaceMode::Pod, true), Some(Kind::Unimplemented));
        assert_eq!(userns(NamespaceMode::Container, true), Some(Kind::Invalid));
    }
}
