//! The spec of a sandbox's infra container, and the checks of a sandbox request. Pure.
//!
//! The infra container runs our own `/pause` and nothing of any image: no capabilities, no_new_privs, a read-only root,
//! no limits (it never runs; the pod's cgroup bounds it).

use std::net::IpAddr;

use corten_proto::cri::{PodSandboxConfig, PortMapping, Protocol, SupplementalGroupsPolicy};
use oci_spec::runtime::{Linux, LinuxBuilder, LinuxResources, Process, ProcessBuilder, RootBuilder, Spec};

use super::container::{oci_user, pod_annotations};
use super::{
    OCI_VERSION, SandboxSpecInput, SpecError, User, annotations, capabilities, cgroup_path, devices, mounts,
    namespaces, resources, security, sysctl, user, user_namespace,
};
use crate::network::dns;

const CONTEXT: &str = "linux.security_context";
/// The kernel's limit (uname(2), __NEW_UTS_LEN).
const MAX_HOSTNAME: usize = 64;

/// Refuses everything that the request alone shows to be wrong or not built. Callers run it before they touch the
/// node. Metadata is the caller's to check.
pub fn check_sandbox(config: &PodSandboxConfig) -> Result<(), SpecError> {
    security::check_sandbox(config)?;
    namespaces::of_sandbox(config)?;
    sysctl::of_sandbox(config)?;
    infra_user(config)?;
    cgroup_path::check_parent(config.linux.as_ref().map_or("", |it| it.cgroup_parent.as_str()))?;
    check_hostname(&config.hostname)?;
    dns::check(config.dns_config.as_ref())?;
    let mut ports = config.port_mappings.iter().enumerate();
    ports.try_for_each(|(index, mapping)| check_port(index, mapping))
}

/// The spec of the infra container of a sandbox that [`check_sandbox`] has let pass.
pub fn sandbox(input: &SandboxSpecInput<'_>) -> Result<Spec, SpecError> {
    let config = input.config;
    let labels = security::sandbox_context(config).and_then(|it| it.selinux_options.as_ref());
    security::check_selinux([labels, None], input.host)?;
    user_namespace::check_user(namespaces::user_namespace(config)?, &infra_user(config)?)?;
    let root = RootBuilder::default()
        .path(input.rootfs)
        .readonly(true)
        .build()
        .expect("every field of the builder has a default");
    // The node's uts namespace keeps the node's name.
    let own_name = !namespaces::of_sandbox(config)?.has_node_network();
    let hostname = Some(config.hostname.clone()).filter(|name| own_name && !name.is_empty());
    let mut annotations = annotations::passed("annotations", &config.annotations, input.annotations.pod)?;
    annotations.extend(pod_annotations("sandbox", input.id.as_str(), config));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_hostname(hostname)
        .set_root(Some(root))
        .set_process(Some(process(input)?))
        .set_mounts(Some(mounts::infra()))
        .set_linux(Some(linux(input)?))
        .set_annotations(Some(annotations));
    Ok(spec)
}

fn process(input: &SandboxSpecInput<'_>) -> Result<Process, SpecError> {
    let mut process = ProcessBuilder::default()
        .terminal(false)
        .user(oci_user(&infra_user(input.config)?))
        .args(vec!["/pause".to_owned()])
        .env(Vec::new())
        .cwd("/")
        .capabilities(capabilities::none())
        .no_new_privileges(true)
        .oom_score_adj(resources::infra_oom_score_adj(input.host))
        .build()
        .expect("every field of the builder has a default");
    process
        .set_rlimits(None)
        .set_apparmor_profile(input.confinement.apparmor.clone());
    Ok(process)
}

fn linux(input: &SandboxSpecInput<'_>) -> Result<Linux, SpecError> {
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(devices::infra_rules()));
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces::infra(input)?)
        .resources(resources)
        .cgroups_path(input.cgroups_path)
        .sysctl(sysctl::of_sandbox(input.config)?)
        .masked_paths(security::strings(security::MASKED_PATHS))
        .readonly_paths(security::strings(security::READONLY_PATHS))
        .build()
        .expect("every field of the builder has a default");
    linux.set_seccomp(input.confinement.seccomp.clone());
    Ok(linux)
}

/// The sandbox's user is the infra container's; its root holds no passwd, so that ids are all there is.
fn infra_user(config: &PodSandboxConfig) -> Result<User, SpecError> {
    let Some(context) = security::sandbox_context(config) else {
        return Ok(User::default());
    };
    if let (None, Some(group)) = (&context.run_as_user, &context.run_as_group) {
        let rule = "needs run_as_user beside it";
        return Err(SpecError::invalid(format!("{CONTEXT}.run_as_group"), group.value, rule));
    }
    let policy = context.supplemental_groups_policy;
    if SupplementalGroupsPolicy::try_from(policy).is_err() {
        let field = format!("{CONTEXT}.supplemental_groups_policy");
        return Err(SpecError::invalid(field, policy, "must be Merge or Strict"));
    }
    let id =
        |name: &str, value: Option<i64>| value.map_or(Ok(0), |value| user::id(&format!("{CONTEXT}.{name}"), value));
    Ok(User {
        uid: id("run_as_user", context.run_as_user.as_ref().map(|it| it.value))?,
        gid: id("run_as_group", context.run_as_group.as_ref().map(|it| it.value))?,
        additional_gids: user::ids(&format!("{CONTEXT}.supplemental_groups"), &context.supplemental_groups)?,
    })
}

fn check_hostname(name: &str) -> Result<(), SpecError> {
    if name.len() <= MAX_HOSTNAME && !name.contains(|c: char| c.is_control() || c == '/') {
        return Ok(());
    }
    let rule = "must be at most 64 bytes without slashes and control characters";
    Err(SpecError::invalid("hostname", name, rule))
}

fn check_port(index: usize, mapping: &PortMapping) -> Result<(), SpecError> {
    let field = |name: &str| format!("port_mappings[{index}].{name}");
    if Protocol::try_from(mapping.protocol).is_err() {
        let rule = "must be TCP, UDP or SCTP";
        return Err(SpecError::invalid(field("protocol"), mapping.protocol, rule));
    }
    let container = mapping.container_port;
    // host_port 0 maps nothing (api.proto, PortMapping); a container port must be one.
    let container_ok = container > 0 || mapping.host_port == 0;
    if !container_ok || u16::try_from(container).is_err() {
        return Err(SpecError::invalid(
            field("container_port"),
            container,
            "must be 1 to 65535",
        ));
    }
    if u16::try_from(mapping.host_port).is_err() {
        let rule = "must be 1 to 65535, or 0 for none";
        return Err(SpecError::invalid(field("host_port"), mapping.host_port, rule));
    }
    if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<IpAddr>().is_err() {
        let rule = "must be an IP address";
        return Err(SpecError::invalid(field("host_ip"), &mapping.host_ip, rule));
    }
    Ok(())
}
