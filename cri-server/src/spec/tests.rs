//! Whole requests in the form a kubelet sends them, to whole specs.

mod container;
mod mounts;
mod sandbox;
mod user_namespace;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use corten_proto::cri::security_profile::ProfileType;
use corten_proto::cri::{
    Capability, ContainerConfig, ContainerMetadata, HugepageLimit, IdMapping, Int64Value, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount,
    MountPropagation, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, SecurityProfile,
    UserNamespace,
};
use serde_json::{Value, json};

use super::host::tests::host;
use super::mountinfo::Propagation;
use super::process::tests::image;
use super::*;

/// As the kubelet asks for them: only the pid namespace differs between pods.
fn namespaces(network: NamespaceMode, pid: NamespaceMode) -> Option<NamespaceOption> {
    Some(NamespaceOption {
        network: network.into(),
        pid: pid.into(),
        userns_options: Some(UserNamespace {
            mode: NamespaceMode::Node.into(),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn sandbox_config(network: NamespaceMode, pid: NamespaceMode) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "web-0".into(),
            uid: "ba4a2832".into(),
            namespace: "default".into(),
            attempt: 1,
        }),
        hostname: "web-0".into(),
        log_directory: "/var/log/pods/default_web-0_ba4a2832".into(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/burstable/podba4a2832".into(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: namespaces(network, pid),
                seccomp: Some(SecurityProfile::default()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container_config() -> ContainerConfig {
    let mount = |container_path: &str| Mount {
        container_path: container_path.into(),
        host_path: format!("/var/lib/kubelet/pods/ba4a2832{container_path}"),
        ..Default::default()
    };
    let page = |page_size: &str| HugepageLimit {
        page_size: page_size.into(),
        limit: 0,
    };
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: "a".into(),
            attempt: 0,
        }),
        command: ["sh", "-c", "sleep 1"].map(str::to_owned).to_vec(),
        mounts: vec![mount("/dev/termination-log"), mount("/etc/hosts"), mount("/e")],
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                cpu_period: 100_000,
                cpu_quota: 50_000,
                cpu_shares: 51,
                memory_limit_in_bytes: 64 << 20,
                memory_swap_limit_in_bytes: 64 << 20,
                oom_score_adj: 999,
                hugepage_limits: vec![page("2MB"), page("1GB")],
                ..Default::default()
            }),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: namespaces(NamespaceMode::Pod, NamespaceMode::Container),
                run_as_user: Some(Int64Value { value: 0 }),
                masked_paths: vec!["/proc/kcore".into()],
                readonly_paths: vec!["/proc/sys".into()],
                seccomp: Some(SecurityProfile {
                    profile_type: ProfileType::Unconfined.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// The JSON that lands in the infra container's bundle.
fn sandbox_json(config: &PodSandboxConfig) -> Value {
    check_sandbox(config).unwrap();
    let spec = sandbox(&SandboxSpecInput {
        id: &"pod-1".parse().unwrap(),
        config,
        rootfs: Path::new("/run/corten/pause"),
        netns: Some(Path::new("/run/netns/pod-1")),
        user_namespace: Some(Path::new("/proc/41/ns/user")),
        confinement: &Confinement::of_sandbox(config, &host(), &Security::default()).unwrap(),
        cgroups_path: Path::new("/kubepods/pod-1"),
        annotations: Allowed::default(),
        host: &host(),
    });
    serde_json::to_value(spec.unwrap()).unwrap()
}

/// The JSON that lands in a container's bundle, or the refusal; of a runtime that can do everything.
fn container_json(config: &ContainerConfig, sandbox: &PodSandboxConfig) -> Result<Value, SpecError> {
    let able = Features {
        recursive_read_only: true,
        idmapped_mounts: true,
        user_namespaces: true,
        checkpoint: false,
    };
    container_json_by(able, config, sandbox)
}

fn container_json_by(
    features: Features,
    config: &ContainerConfig,
    sandbox: &PodSandboxConfig,
) -> Result<Value, SpecError> {
    check_container(config, sandbox)?;
    let source = |mount: &Mount| MountSource {
        path: mount.host_path.clone().into(),
        propagation: Propagation::Slave,
    };
    let sources = Sources {
        mounts: config.mounts.iter().map(source).collect(),
        devices: Vec::new(),
    };
    let spec = container(&ContainerSpecInput {
        id: &"c-1".parse().unwrap(),
        sandbox_id: &"pod-1".parse().unwrap(),
        sandbox_config: sandbox,
        config,
        image_config: &image(&json!({ "Env": ["PATH=/bin"], "WorkingDir": "/w" })),
        image_name: "example.com/busybox:1",
        rootfs: Path::new("/run/corten/containers/c-1/rootfs"),
        sandbox_dir: Path::new("/run/corten/sandboxes/pod-1"),
        hostname: "web-0",
        infra: Path::new("/proc/42"),
        target_pid_namespace: Some(Path::new("/proc/43/ns/pid")),
        user: &User {
            uid: 1,
            gid: 2,
            additional_gids: vec![2, 3],
        },
        cgroups_path: Path::new("/kubepods/c-1"),
        sources: &sources,
        confinement: &Confinement::of_container(config, &host(), &Security::default())?,
        security: &Security::default(),
        features,
        annotations: Allowed::default(),
        host: &host(),
    })?;
    Ok(serde_json::to_value(spec).unwrap())
}

/// Namespaces by type: "" for a new one, else the path.
fn namespaces_of(spec: &Value) -> HashMap<String, String> {
    let list = spec["linux"]["namespaces"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    list.iter().map(|it| (text(&it["type"]), text(&it["path"]))).collect()
}

fn namespace_map(list: &[(&str, &str)]) -> HashMap<String, String> {
    list.iter()
        .map(|(typ, path)| ((*typ).to_owned(), (*path).to_owned()))
        .collect()
}

/// The options of the mount at this place, the source before them.
fn mount_at<'a>(spec: &'a Value, place: &str) -> (&'a str, Vec<&'a str>) {
    let mounts = spec["mounts"].as_array().unwrap();
    let found: Vec<_> = mounts.iter().filter(|it| it["destination"] == place).collect();
    assert_eq!(found.len(), 1, "{place}");
    let options = found[0]["options"].as_array().unwrap();
    (
        found[0]["source"].as_str().unwrap(),
        options.iter().filter_map(Value::as_str).collect(),
    )
}

#[test]
fn paths_are_cleaned_within_the_root() {
    for (path, expected) in [
        ("/", "/"),
        ("/a//b/./c", "/a/b/c"),
        ("/a/../b", "/b"),
        ("/../../a", "/a"),
        ("a/b", "/a/b"),
    ] {
        assert_eq!(clean(path), Path::new(expected), "{path}");
    }
    assert!(absolute("f", "a").is_err() && absolute("f", "/a\0").is_err());
}
