//! Whole container requests.

use super::*;

#[test]
fn a_container_of_a_pod() {
    let sandbox = sandbox_config(NamespaceMode::Pod, NamespaceMode::Container);
    let spec = container_json(&container_config(), &sandbox).unwrap();
    assert_eq!(spec["process"]["args"], json!(["sh", "-c", "sleep 1"]));
    assert_eq!(spec["process"]["cwd"], "/w");
    assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "HOSTNAME=web-0"]));
    assert_eq!(
        spec["process"]["user"],
        json!({ "uid": 1, "gid": 2, "additionalGids": [2, 3] })
    );
    assert_eq!(spec["process"]["oomScoreAdj"], 999);
    assert_eq!(spec["process"]["noNewPrivileges"], false);
    assert_eq!(
        spec["process"]["capabilities"]["bounding"].as_array().unwrap().len(),
        14
    );
    assert_eq!(spec["process"].get("rlimits"), None);
    assert_eq!(spec.get("hostname"), None, "the pod's, which is joined");
    assert_eq!(
        namespaces_of(&spec),
        namespace_map(&[
            ("mount", ""),
            ("network", "/proc/42/ns/net"),
            ("uts", "/proc/42/ns/uts"),
            ("ipc", "/proc/42/ns/ipc"),
            ("pid", ""),
        ])
    );
    assert_eq!(spec["linux"]["maskedPaths"], json!(["/proc/kcore"]));
    assert_eq!(spec["linux"]["readonlyPaths"], json!(["/proc/sys"]));
    assert_eq!(
        spec["linux"]["resources"]["memory"],
        json!({ "limit": 64 << 20, "swap": 64 << 20 })
    );
    assert_eq!(spec["linux"].get("rootfsPropagation"), None);
    assert_eq!(spec["annotations"]["io.kubernetes.cri.container-name"], "a");
    assert_eq!(
        spec["annotations"]["io.kubernetes.cri.image-name"],
        "example.com/busybox:1"
    );
}

#[test]
fn pid_namespaces_by_mode() {
    use NamespaceMode::{Container, Node, Pod, Target};
    for (of_sandbox, of_container, expected) in [
        (Pod, Pod, Some("/proc/42/ns/pid")),
        (Container, Pod, Some("/proc/42/ns/pid")),
        (Pod, Container, Some("")),
        (Pod, Target, Some("/proc/43/ns/pid")),
        (Node, Node, None),
        (Node, Pod, None),
        (Node, Container, Some("")),
    ] {
        let mut config = container_config();
        let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        let options = context.namespace_options.as_mut().unwrap();
        options.pid = of_container.into();
        options.target_id = "c-0".into();
        let spec = container_json(&config, &sandbox_config(Pod, of_sandbox)).unwrap();
        let found = namespaces_of(&spec).remove("pid");
        assert_eq!(found.as_deref(), expected, "{of_sandbox:?} {of_container:?}");
    }
}

#[test]
fn a_container_reaches_no_further_than_its_sandbox() {
    for (network, pid, field) in [
        (NamespaceMode::Node, NamespaceMode::Pod, "network"),
        (NamespaceMode::Pod, NamespaceMode::Node, "pid"),
        (NamespaceMode::Pod, NamespaceMode::Target, "target_id"),
    ] {
        let mut config = container_config();
        let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        context.namespace_options = namespaces(network, pid);
        let sandbox = sandbox_config(NamespaceMode::Pod, NamespaceMode::Pod);
        let error = container_json(&config, &sandbox).unwrap_err();
        assert_eq!(error.field, format!("linux.security_context.namespace_options.{field}"));
    }
}

#[test]
fn the_nodes_network_brings_the_nodes_name() {
    let config = container_config();
    let sandbox = sandbox_config(NamespaceMode::Node, NamespaceMode::Container);
    let found = namespaces_of(&container_json(&config, &sandbox).unwrap());
    assert!(
        !found.contains_key("network") && !found.contains_key("uts"),
        "{found:?}"
    );
}

#[test]
fn a_privileged_container() {
    let mut config = container_config();
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.privileged = true;
    context.capabilities = Some(Capability {
        drop_capabilities: vec!["ALL".into()],
        ..Default::default()
    });
    context.seccomp = Some(SecurityProfile::default());
    let mut sandbox = sandbox_config(NamespaceMode::Pod, NamespaceMode::Pod);
    let error = container_json(&config, &sandbox).unwrap_err();
    assert_eq!(error.field, "linux.security_context.privileged");

    sandbox
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap()
        .privileged = true;
    let spec = container_json(&config, &sandbox).unwrap();
    let bounding = spec["process"]["capabilities"]["bounding"].as_array().unwrap();
    assert_eq!(bounding.len(), host().capabilities.len());
    for list in ["maskedPaths", "readonlyPaths"] {
        assert_eq!(spec["linux"].get(list).unwrap_or(&json!([])), &json!([]));
    }
    for place in ["/sys", "/sys/fs/cgroup"] {
        assert!(mount_at(&spec, place).1.contains(&"rw"), "{place}");
    }
    assert_eq!(
        spec["linux"]["resources"]["devices"],
        json!([{ "allow": true, "access": "rwm" }])
    );
}
