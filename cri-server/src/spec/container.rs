//! The spec of a container. Pure.

use std::collections::HashMap;

use corten_proto::cri::{ContainerConfig, PodSandboxConfig};
use oci_spec::runtime::{
    Linux, LinuxBuilder, Process, ProcessBuilder, Root, RootBuilder, Spec, User as OciUser, UserBuilder,
};

use super::{
    ContainerSpecInput, OCI_VERSION, SpecError, User, annotations, capabilities, devices, mounts, namespaces, process,
    resources, security, stop_signal, user, user_namespace,
};

/// Refuses everything that the request alone shows to be wrong or not built. `sandbox` is the configuration the
/// sandbox was run with. Callers run it before they touch the node.
pub fn check_container(config: &ContainerConfig, sandbox: &PodSandboxConfig) -> Result<(), SpecError> {
    security::check_container(config, sandbox)?;
    namespaces::of_container(config, sandbox)?;
    user::check(security::context(config))?;
    capabilities::check(config)?;
    process::check(config)?;
    mounts::check(config)?;
    devices::check(config)?;
    resources::check(config)?;
    stop_signal::effective(config.stop_signal, None).map(|_| ())
}

/// The spec of a container whose request [`check_container`] has let pass.
pub fn container(input: &ContainerSpecInput<'_>) -> Result<Spec, SpecError> {
    check_node(input)?;
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_hostname(None)
        .set_root(Some(root(input)))
        .set_process(Some(process(input)?))
        .set_mounts(Some(mounts::of(input)?))
        .set_linux(Some(linux(input)?))
        .set_annotations(Some(annotations(input)?));
    Ok(spec)
}

/// Refuses what only this node shows to be impossible.
fn check_node(input: &ContainerSpecInput<'_>) -> Result<(), SpecError> {
    let of_container = security::context(input.config).and_then(|it| it.selinux_options.as_ref());
    let of_sandbox = security::sandbox_context(input.sandbox_config).and_then(|it| it.selinux_options.as_ref());
    security::check_selinux([of_container, of_sandbox], input.host)?;
    user_namespace::check_user(namespaces::user_namespace(input.sandbox_config)?, input.user)
}

fn root(input: &ContainerSpecInput<'_>) -> Root {
    RootBuilder::default()
        .path(input.rootfs)
        .readonly(security::context(input.config).is_some_and(|it| it.readonly_rootfs))
        .build()
        .expect("every field of the builder has a default")
}

fn process(input: &ContainerSpecInput<'_>) -> Result<Process, SpecError> {
    let (config, image) = (input.config, input.image_config);
    let mut process = ProcessBuilder::default()
        .terminal(config.tty)
        .user(oci_user(input.user))
        .args(process::args(config, image)?)
        .env(process::env(config, image, input.hostname)?)
        .cwd(process::cwd(config, image)?)
        .capabilities(capabilities::of(config, input.host)?)
        .oom_score_adj(resources::oom_score_adj(config, input.host)?)
        .no_new_privileges(security::context(config).is_some_and(|it| it.no_new_privs))
        .build()
        .expect("every field of the builder has a default");
    // oci-spec's default would set one; a container inherits the node's, as with the peers.
    process
        .set_rlimits(None)
        .set_apparmor_profile(input.confinement.apparmor.clone());
    Ok(process)
}

/// oci-spec's form of a user.
pub(super) fn oci_user(user: &User) -> OciUser {
    UserBuilder::default()
        .uid(user.uid)
        .gid(user.gid)
        .additional_gids(user.additional_gids.clone())
        .build()
        .expect("every field of the builder has a default")
}

fn linux(input: &ContainerSpecInput<'_>) -> Result<Linux, SpecError> {
    let config = input.config;
    let mut resources = resources::of(config, input.host)?;
    resources.set_devices(Some(devices::rules(config, input.sources)));
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces::member(input)?)
        .resources(resources)
        .cgroups_path(input.cgroups_path)
        .devices(devices::nodes(input.sources))
        .build()
        .expect("every field of the builder has a default");
    let (masked, readonly) = security::hidden_paths(config, input.security);
    linux
        .set_masked_paths(Some(masked))
        .set_readonly_paths(Some(readonly))
        .set_seccomp(input.confinement.seccomp.clone())
        .set_rootfs_propagation(mounts::rootfs_propagation(config).map(str::to_owned));
    Ok(linux)
}

/// What tools that look at OCI specs know containers of Kubernetes by; containerd's names, which are the field's. What the
/// request may bring beside them takes none of their places.
fn annotations(input: &ContainerSpecInput<'_>) -> Result<HashMap<String, String>, SpecError> {
    let allowed = input.annotations;
    let mut all = annotations::passed("sandbox annotations", &input.sandbox_config.annotations, allowed.pod)?;
    all.extend(annotations::passed(
        "annotations",
        &input.config.annotations,
        allowed.container,
    )?);
    all.extend(pod_annotations(
        "container",
        input.sandbox_id.as_str(),
        input.sandbox_config,
    ));
    let name = input.config.metadata.as_ref().map_or("", |metadata| &metadata.name);
    all.insert("io.kubernetes.cri.container-name".into(), name.to_owned());
    all.insert("io.kubernetes.cri.image-name".into(), input.image_name.to_owned());
    Ok(all)
}

/// The annotations the infra container shares.
pub(super) fn pod_annotations(kind: &str, sandbox_id: &str, sandbox: &PodSandboxConfig) -> HashMap<String, String> {
    let metadata = sandbox.metadata.clone().unwrap_or_default();
    [
        ("container-type", kind.to_owned()),
        ("sandbox-id", sandbox_id.to_owned()),
        ("sandbox-name", metadata.name),
        ("sandbox-namespace", metadata.namespace),
        ("sandbox-uid", metadata.uid),
    ]
    .into_iter()
    .map(|(name, value)| (format!("io.kubernetes.cri.{name}"), value))
    .collect()
}
