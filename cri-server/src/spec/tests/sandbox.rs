//! Whole sandbox requests.

use corten_proto::cri::PortMapping;

use super::*;

#[test]
fn an_infra_container() {
    let spec = sandbox_json(&sandbox_config(NamespaceMode::Pod, NamespaceMode::Container));
    assert_eq!(spec["root"], json!({ "path": "/run/corten/pause", "readonly": true }));
    assert_eq!(spec["process"]["args"], json!(["/pause"]));
    assert_eq!(spec["process"]["noNewPrivileges"], true);
    for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
        assert_eq!(spec["process"]["capabilities"][set], json!([]), "{set}");
    }
    assert_eq!(spec["process"].get("rlimits"), None);
    assert_eq!(spec["process"]["oomScoreAdj"], 0, "the floor of this node");
    assert_eq!(spec["hostname"], "web-0");
    assert_eq!(spec["linux"]["cgroupsPath"], "/kubepods/pod-1");
    assert_eq!(
        namespaces_of(&spec),
        namespace_map(&[
            ("mount", ""),
            ("network", "/run/netns/pod-1"),
            ("uts", ""),
            ("ipc", ""),
            ("pid", ""),
        ])
    );
    assert_eq!(spec["annotations"]["io.kubernetes.cri.container-type"], "sandbox");
    assert_eq!(spec["annotations"]["io.kubernetes.cri.sandbox-name"], "web-0");
    assert_eq!(
        spec["linux"]["resources"]["devices"],
        json!([{ "allow": false, "access": "rwm" }])
    );
    assert_eq!(spec["linux"].get("devices"), None);
    assert_eq!(
        spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO",
        "RuntimeDefault"
    );
}

#[test]
fn an_infra_container_in_the_nodes_namespaces() {
    let config = sandbox_config(NamespaceMode::Node, NamespaceMode::Node);
    let spec = sandbox_json(&config);
    assert_eq!(namespaces_of(&spec), namespace_map(&[("mount", ""), ("ipc", "")]));
    assert_eq!(spec.get("hostname"), None, "the uts namespace is the node's");
    assert_eq!(spec["linux"].get("sysctl").unwrap_or(&json!({})), &json!({}));
}

#[test]
fn sandboxes_that_break_a_rule() {
    let good = || sandbox_config(NamespaceMode::Pod, NamespaceMode::Pod);
    let with = |change: &dyn Fn(&mut LinuxSandboxSecurityContext)| {
        let mut config = good();
        change(config.linux.as_mut().unwrap().security_context.as_mut().unwrap());
        config
    };
    let value = |value| Some(Int64Value { value });
    for (config, field) in [
        (
            with(&|it| it.run_as_group = value(1)),
            "linux.security_context.run_as_group",
        ),
        (
            with(&|it| it.run_as_user = value(-1)),
            "linux.security_context.run_as_user",
        ),
        (
            with(&|it| it.namespace_options = namespaces(NamespaceMode::Pod, NamespaceMode::Target)),
            "linux.security_context.namespace_options.pid",
        ),
        (
            PodSandboxConfig {
                linux: Some(LinuxPodSandboxConfig {
                    cgroup_parent: "/a/../b".into(),
                    ..Default::default()
                }),
                ..good()
            },
            "linux.cgroup_parent",
        ),
        (
            PodSandboxConfig {
                hostname: "x".repeat(65),
                ..good()
            },
            "hostname",
        ),
        (
            PodSandboxConfig {
                hostname: "a/b".into(),
                ..good()
            },
            "hostname",
        ),
    ] {
        let error = check_sandbox(&config).unwrap_err();
        assert_eq!((error.field.as_str(), error.kind), (field, Kind::Invalid));
    }
    assert_eq!(check_sandbox(&PodSandboxConfig::default()), Ok(()));
}

#[test]
fn the_infra_container_runs_as_the_sandboxs_user() {
    let mut config = sandbox_config(NamespaceMode::Pod, NamespaceMode::Pod);
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.run_as_user = Some(Int64Value { value: 1000 });
    context.supplemental_groups = vec![3000];
    let user = &sandbox_json(&config)["process"]["user"];
    assert_eq!(user, &json!({ "uid": 1000, "gid": 0, "additionalGids": [3000] }));
}

#[test]
fn port_mappings_that_break_a_rule() {
    let port = |container_port, host_port, host_ip: &str| PodSandboxConfig {
        port_mappings: vec![PortMapping {
            container_port,
            host_port,
            host_ip: host_ip.into(),
            ..Default::default()
        }],
        ..sandbox_config(NamespaceMode::Pod, NamespaceMode::Pod)
    };
    for (config, field) in [
        (port(0, 80, ""), "container_port"),
        (port(80, 65536, ""), "host_port"),
        (port(80, -1, ""), "host_port"),
        (port(80, 80, "localhost"), "host_ip"),
    ] {
        let error = check_sandbox(&config).unwrap_err();
        assert_eq!(error.field, format!("port_mappings[0].{field}"));
    }
    for good in [port(80, 0, ""), port(80, 80, "::1"), port(80, 80, "")] {
        assert_eq!(check_sandbox(&good), Ok(()));
    }
}
