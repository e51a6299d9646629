//! The mounts of whole container requests.

use super::*;

#[test]
fn mounts_are_ordered_by_depth_and_replace_defaults() {
    let mut config = container_config();
    let mount = |container_path: &str| Mount {
        container_path: container_path.into(),
        host_path: "/h".into(),
        ..Default::default()
    };
    config.mounts = vec![mount("/a/b/c"), mount("/dev/shm/"), mount("/a"), mount("/etc/hostname")];
    config.mounts[2].readonly = true;
    let sandbox = sandbox_config(NamespaceMode::Pod, NamespaceMode::Pod);
    let spec = container_json(&config, &sandbox).unwrap();
    assert_eq!(mount_at(&spec, "/dev/shm"), ("/h", vec!["rbind", "rprivate", "rw"]));
    assert_eq!(mount_at(&spec, "/a"), ("/h", vec!["rbind", "rprivate", "ro"]));
    assert_eq!(mount_at(&spec, "/etc/hostname").0, "/h");
    let resolv = mount_at(&spec, "/etc/resolv.conf").0;
    assert_eq!(resolv, "/run/corten/sandboxes/pod-1/resolv.conf");
    let mounts = spec["mounts"].as_array().unwrap();
    let depths: Vec<_> = mounts
        .iter()
        .map(|it| PathBuf::from(it["destination"].as_str().unwrap()).components().count())
        .collect();
    assert!(depths.is_sorted(), "{depths:?}");
}

#[test]
fn the_nodes_ipc_brings_the_nodes_shm() {
    let mut sandbox = sandbox_config(NamespaceMode::Pod, NamespaceMode::Pod);
    let context = sandbox.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options.as_mut().unwrap().ipc = NamespaceMode::Node.into();
    let spec = container_json(&container_config(), &sandbox).unwrap();
    assert_eq!(mount_at(&spec, "/dev/shm").0, "/dev/shm");
    assert!(!namespaces_of(&spec).contains_key("ipc"));
}

#[test]
fn propagation_needs_a_source_that_propagates() {
    let sandbox = sandbox_config(NamespaceMode::Pod, NamespaceMode::Pod);
    let mut config = container_config();
    config.mounts[2].propagation = MountPropagation::PropagationHostToContainer.into();
    let spec = container_json(&config, &sandbox).unwrap();
    assert_eq!(mount_at(&spec, "/e").1, ["rbind", "rslave", "rw"]);
    assert_eq!(spec["linux"]["rootfsPropagation"], "rslave");

    config.mounts[2].propagation = MountPropagation::PropagationBidirectional.into();
    let error = container_json(&config, &sandbox).unwrap_err();
    assert_eq!(error.field, "mounts[2].propagation");
}

#[test]
fn recursive_read_only() {
    let sandbox = sandbox_config(NamespaceMode::Pod, NamespaceMode::Pod);
    let mut config = container_config();
    config.mounts[2].readonly = true;
    config.mounts[2].recursive_read_only = true;
    let spec = container_json(&config, &sandbox).unwrap();
    assert_eq!(mount_at(&spec, "/e").1, ["rbind", "rprivate", "rro"]);
    let error = container_json_by(Features::default(), &config, &sandbox).unwrap_err();
    assert!(error.rule.starts_with("RROUnsupported"), "{error}");
    config.mounts[2].mount_options = vec!["nosuid".into(), "noexec".into()];
    let spec = container_json(&config, &sandbox).unwrap();
    assert_eq!(
        mount_at(&spec, "/e").1,
        ["rbind", "rprivate", "rro", "noexec", "nosuid"]
    );
}

#[test]
fn mapped_ids() {
    let sandbox = sandbox_config(NamespaceMode::Pod, NamespaceMode::Pod);
    let mut config = container_config();
    let mapping = IdMapping {
        container_id: 0,
        host_id: 100_000,
        length: 65_536,
    };
    config.mounts[2].uid_mappings = vec![mapping];
    config.mounts[2].gid_mappings = vec![mapping];
    let spec = container_json(&config, &sandbox).unwrap();
    let mounts = spec["mounts"].as_array().unwrap();
    let mapped: Vec<_> = mounts.iter().filter(|it| !it["uidMappings"].is_null()).collect();
    let expected = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    assert_eq!(mapped.len(), 1);
    assert_eq!(
        (&mapped[0]["destination"], &mapped[0]["uidMappings"]),
        (&json!("/e"), &expected)
    );
    assert_eq!(mapped[0]["gidMappings"], expected);
    let error = container_json_by(Features::default(), &config, &sandbox).unwrap_err();
    assert_eq!(
        (error.field.as_str(), error.kind),
        ("mounts[2].uidMappings", Kind::Unimplemented)
    );
}

#[test]
fn a_read_only_root_and_its_files() {
    let mut config = container_config();
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.readonly_rootfs = true;
    context.no_new_privs = true;
    let sandbox = sandbox_config(NamespaceMode::Pod, NamespaceMode::Pod);
    let spec = container_json(&config, &sandbox).unwrap();
    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(spec["process"]["noNewPrivileges"], true);
    assert!(mount_at(&spec, "/etc/resolv.conf").1.contains(&"ro"));
    assert!(mount_at(&spec, "/sys").1.contains(&"ro"));
    assert!(mount_at(&spec, "/dev/shm").1.contains(&"rw"));
}
