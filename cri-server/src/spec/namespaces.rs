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
//! | user, where the pod has its own | joins the sandbox's, made before it | join the infra container's |
//! | NODE | none | none; only where the sandbox has it too |
//!
//! The node's network brings the node's uts namespace with it: a hostname of its own would not be the one its
//! addresses resolve to.
//!
//! A pod's user namespace owns its other ones: the network namespace is made in it (`pod_userns`), and the infra container
//! joins it before it makes uts, ipc and pid. A container that names no user namespace has the pod's.

use std::path::Path;

use corten_proto::cri::{ContainerConfig, NamespaceMode, NamespaceOption, PodSandboxConfig};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType};

use super::user_namespace::{self, IdMap};
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
    /// The pod's own ids; none with the node's user namespace.
    pub(super) user: Option<IdMap>,
}

impl Modes {
    /// The node's network, and with it the node's hostname.
    pub(super) fn has_node_network(self) -> bool {
        self.network == NamespaceMode::Node
    }

    fn parse(options: Option<&NamespaceOption>) -> Result<Modes, SpecError> {
        let default = NamespaceOption::default();
        let options = options.unwrap_or(&default);
        let own = [NamespaceMode::Pod, NamespaceMode::Node];
        Ok(Modes {
            network: mode("network", options.network, &own)?,
            ipc: mode("ipc", options.ipc, &own)?,
            pid: mode("pid", options.pid, &ALL_MODES)?,
            user: user_namespace::parse(options.userns_options.as_ref())?,
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
    if modes.pid == NamespaceMode::Node && modes.user.is_some() {
        // Nobody but the pid namespace's owner may mount its procfs.
        let rule = "excludes userns_options POD: the pod's root may not see the node's processes";
        return Err(SpecError::invalid(format!("{OPTIONS}.pid"), "NODE", rule));
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
    let own_user = options.and_then(|it| it.userns_options.as_ref());
    if own_user.is_some() && modes.user != outer.user {
        let rule = "must be the same as the sandbox's";
        return Err(SpecError::invalid(
            format!("{OPTIONS}.userns_options"),
            format!("{:?}", modes.user),
            rule,
        ));
    }
    Ok(Modes {
        network: outer.network,
        ipc: outer.ipc,
        user: outer.user,
        ..modes
    })
}

/// The ids of a sandbox and everything in it.
pub fn user_namespace(sandbox: &PodSandboxConfig) -> Result<Option<IdMap>, SpecError> {
    of_sandbox(sandbox).map(|modes| modes.user)
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
    if modes.user.is_some() {
        let path = input
            .user_namespace
            .expect("a sandbox with ids of its own has a user namespace by now");
        list.push(join(LinuxNamespaceType::User, path));
    }
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
    let infra = |name: &str| input.infra.join("ns").join(name);
    let mut list = vec![new(LinuxNamespaceType::Mount)];
    if modes.user.is_some() {
        list.push(join(LinuxNamespaceType::User, &infra("user")));
    }
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
            let target = input.target_pid_namespace;
            list.push(join(pid, target.expect("the target of pid mode TARGET was looked up")));
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
        let map = |host_id| IdMapping {
            host_id,
            container_id: 0,
            length: 65536,
        };
        let pod = |host_id| NamespaceOption {
            userns_options: Some(UserNamespace {
                mode: NamespaceMode::Pod.into(),
                uids: vec![map(host_id)],
                gids: vec![map(host_id)],
            }),
            ..Default::default()
        };
        let node = NamespaceOption {
            userns_options: Some(UserNamespace {
                mode: NamespaceMode::Node.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let silent = NamespaceOption::default();
        for (of_sandbox, of_container, expected) in [
            (pod(65536), pod(65536), Ok(Some(65536))),
            (pod(65536), silent.clone(), Ok(Some(65536))),
            (pod(65536), pod(131_072), Err(())),
            (pod(65536), node.clone(), Err(())),
            (node.clone(), pod(65536), Err(())),
            (silent.clone(), pod(65536), Err(())),
            (node, silent.clone(), Ok(None)),
            (silent.clone(), silent, Ok(None)),
        ] {
            let found = of_container_in(&of_container, &of_sandbox);
            let found = found.map(|modes| modes.user.map(|map| map.uid)).map_err(|error| {
                assert!(error.field.ends_with("userns_options"), "{error}");
            });
            assert_eq!(found, expected, "{of_sandbox:?} {of_container:?}");
        }
        let with_node_pid = NamespaceOption {
            pid: NamespaceMode::Node.into(),
            ..pod(65536)
        };
        let error = of_container_in(&NamespaceOption::default(), &with_node_pid).unwrap_err();
        assert!(error.field.ends_with(".pid"), "{error}");
    }

    fn of_container_in(own: &NamespaceOption, outer: &NamespaceOption) -> Result<Modes, SpecError> {
        use corten_proto::cri::{
            LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
        };
        let config = ContainerConfig {
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(own.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let sandbox = PodSandboxConfig {
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(outer.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        of_container(&config, &sandbox)
    }
}
