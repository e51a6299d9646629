//! Pods with ids of their own.

use corten_proto::cri::IdMapping;

use super::*;

/// With the node's ids from 65536 on.
fn own() -> Option<UserNamespace> {
    let map = IdMapping {
        host_id: 65536,
        container_id: 0,
        length: 1000,
    };
    Some(UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: vec![map],
        gids: vec![map],
    })
}

fn sandbox_with(network: NamespaceMode) -> PodSandboxConfig {
    let mut config = sandbox_config(network, NamespaceMode::Container);
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options.as_mut().unwrap().userns_options = own();
    config
}

fn container_of(network: NamespaceMode) -> Value {
    let mut config = container_config();
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    let options = context.namespace_options.as_mut().unwrap();
    options.userns_options = own();
    options.network = network.into();
    container_json(&config, &sandbox_with(network)).unwrap()
}

#[test]
fn the_infra_container_joins_and_the_containers_join_it() {
    let spec = sandbox_json(&sandbox_with(NamespaceMode::Pod));
    assert_eq!(
        namespaces_of(&spec),
        namespace_map(&[
            ("user", "/proc/41/ns/user"),
            ("mount", ""),
            ("network", "/run/netns/pod-1"),
            ("uts", ""),
            ("ipc", ""),
            ("pid", ""),
        ])
    );
    assert_eq!(spec["linux"]["sysctl"]["net.ipv4.ping_group_range"], "0 999");
    let namespaces = namespaces_of(&container_of(NamespaceMode::Pod));
    assert_eq!(namespaces["user"], "/proc/42/ns/user");
    assert_eq!(namespaces["network"], "/proc/42/ns/net");
}

#[test]
fn the_nodes_sys_where_none_can_be_mounted() {
    let spec = container_of(NamespaceMode::Node);
    let (source, options) = mount_at(&spec, "/sys");
    assert_eq!(source, "/sys");
    for option in ["rbind", "rro", "rnosuid", "rnodev", "rnoexec"] {
        assert!(options.contains(&option), "{options:?}");
    }
    let own_network = container_of(NamespaceMode::Pod);
    let (source, _) = mount_at(&own_network, "/sys");
    assert_eq!(source, "sysfs");
}
