//! Mounts of host paths: options, recursive read-only, mapped ids, propagation, and paths that are not there.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use corten_proto::cri::{self, MountPropagation};
use corten_tests::binary;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::container;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tonic::Code;

/// A tmpfs that other mount namespaces see, and that goes with the test.
struct Shared(PathBuf);

impl Shared {
    fn new(path: PathBuf) -> Shared {
        fs::create_dir(&path).unwrap();
        mount(Some("shared"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let none = None::<&str>;
        mount(none, &path, none, MsFlags::MS_SHARED, none).unwrap();
        Shared(path)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).expect("unmount what the test has mounted");
    }
}

fn bind(host: &Path, container_path: &str) -> cri::Mount {
    cri::Mount {
        container_path: container_path.to_owned(),
        host_path: host.display().to_string(),
        ..Default::default()
    }
}

/// The options of the mount at `place`, as the container sees them.
const OPTIONS: &str = "awk -v p=PLACE '$5 == p { print $6 }' /proc/self/mountinfo";

#[test]
fn options_restrict_every_kind_of_mount() {
    let node = Node::start();
    let pod = node.pod("options");
    let host = Shared::new(node.dir().join("host"));
    fs::copy("/bin/busybox", host.0.join("busybox")).unwrap();
    let options = |options: &[&str]| options.iter().map(|&it| it.to_owned()).collect();
    let all = || options(&["noexec", "exec", "nodev", "nosuid"]);
    let mut config = container("main", &["sleep", "1000"]);
    config.mounts = vec![
        bind(&host.0, "/plain"),
        cri::Mount {
            mount_options: all(),
            ..bind(&host.0, "/restricted")
        },
        cri::Mount {
            mount_options: all(),
            readonly: true,
            recursive_read_only: true,
            ..bind(&host.0, "/rro")
        },
        cri::Mount {
            mount_options: options(&["nosuid"]),
            ..bind(&host.0, "/nosuid")
        },
    ];
    let container = pod.start(config);
    for (place, runs, expected) in [
        ("/plain", true, ""),
        ("/restricted", false, "noexec nodev nosuid"),
        ("/rro", false, "ro noexec nodev nosuid"),
        ("/nosuid", true, "nosuid"),
    ] {
        let run = container.exec_sh(&format!(
            "{place}/busybox true 2>/dev/null && echo runs || echo refused"
        ));
        assert_eq!(run == "runs\n", runs, "{place}: {run:?}");
        let shown = container.exec_sh(&OPTIONS.replace("PLACE", place));
        let shown: Vec<_> = shown.trim().split(',').collect();
        for option in expected.split_whitespace() {
            assert!(shown.contains(&option), "{place}: {shown:?}");
        }
    }
    let mut config = container_with(&host.0, "refused");
    config.mounts[0].mount_options = options(&["sync"]);
    let error = node.cri.create_container(pod.create_request(&config)).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    pod.stop();
    pod.remove();
}

fn container_with(host: &Path, name: &str) -> cri::ContainerConfig {
    let mut config = container(name, &["sleep", "1000"]);
    config.mounts = vec![bind(host, "/host")];
    config
}

#[test]
fn ids_of_files_are_mapped() {
    let node = Node::start();
    let pod = node.pod("mapped");
    let host = Shared::new(node.dir().join("host"));
    fs::write(host.0.join("file"), "x").unwrap();
    std::os::unix::fs::chown(host.0.join("file"), Some(5), Some(6)).unwrap();
    let mapping = cri::IdMapping {
        container_id: 0,
        host_id: 70_000,
        length: 1000,
    };
    let mut config = container_with(&host.0, "main");
    config.mounts[0].uid_mappings = vec![mapping];
    config.mounts[0].gid_mappings = vec![mapping];
    config.mounts[0].mount_options = vec!["noexec".to_owned()];
    let container = pod.start(config.clone());
    assert_eq!(container.exec_sh("stat -c '%u %g' /host/file"), "70005 70006\n");
    assert!(container.exec_sh(&OPTIONS.replace("PLACE", "/host")).contains("noexec"));

    config.metadata.as_mut().unwrap().name = "alone".to_owned();
    config.mounts[0].gid_mappings.clear();
    let error = node.cri.create_container(pod.create_request(&config)).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    pod.stop();
    pod.remove();
}

#[test]
fn a_runtime_that_cannot_map_ids_or_protect_trees_is_not_asked_to() {
    let node = Node::with(|config| {
        // As runtimes were that know neither, and would leave both out without a word.
        let root = config["root"].as_str().unwrap().to_owned();
        let script = Path::new(&root).parent().unwrap().join("runtime.sh");
        let text = "#!/bin/sh\n[ \"$1\" = features ] && exit 1\nexec RUNTIME \"$@\"\n";
        let text = text.replace("RUNTIME", &binary("corten").display().to_string());
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let entry = toml::Table::from_iter([("path".to_owned(), script.display().to_string().into())]);
        let runtimes = toml::Table::from_iter([("old".to_owned(), entry.into())]);
        config.insert("runtimes".to_owned(), runtimes.into());
    });
    node.pull(BUSYBOX);
    let pod = node.run_pod_by(node.pod_config("old"), "old");
    let mapping = cri::IdMapping {
        container_id: 0,
        host_id: 70_000,
        length: 1000,
    };
    let mut mapped = container_with(node.dir(), "mapped");
    mapped.mounts[0].uid_mappings = vec![mapping];
    mapped.mounts[0].gid_mappings = vec![mapping];
    let mut protected = container_with(node.dir(), "protected");
    protected.mounts[0].readonly = true;
    protected.mounts[0].recursive_read_only = true;
    for (config, text) in [(mapped, "uidMappings"), (protected, "RROUnsupported")] {
        let error = node.cri.create_container(pod.create_request(&config)).unwrap_err();
        assert_eq!(error.code(), Code::Unimplemented, "{error}");
        assert!(error.message().contains(text), "{error}");
    }
    let status = node.cri.status(cri::StatusRequest::default()).unwrap();
    let rro = |name: &str| {
        let handler = status.runtime_handlers.iter().find(|it| it.name == name);
        handler
            .expect(name)
            .features
            .as_ref()
            .expect("features")
            .recursive_read_only_mounts
    };
    assert_eq!((rro(""), rro("corten"), rro("old")), (true, true, false));
}

#[test]
fn mounts_propagate_as_asked() {
    let node = Node::start();
    let pod = node.pod("propagation");
    let host = Shared::new(node.dir().join("host"));
    for name in ["later", "inner"] {
        fs::create_dir(host.0.join(name)).unwrap();
    }
    let modes = [
        ("/private", MountPropagation::PropagationPrivate, false),
        ("/slave", MountPropagation::PropagationHostToContainer, true),
    ];
    let mut config = container("main", &["sleep", "1000"]);
    for (place, mode, _) in modes {
        config.mounts.push(cri::Mount {
            propagation: mode.into(),
            ..bind(&host.0, place)
        });
    }
    let container = pod.start(config);
    mount(
        Some("later"),
        &host.0.join("later"),
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    fs::write(host.0.join("later/file"), "x").unwrap();
    for (place, _, sees) in modes {
        let listed = container.exec_sh(&format!("ls {place}/later"));
        assert_eq!(listed == "file\n", sees, "{place}");
    }
    umount2(&host.0.join("later"), MntFlags::MNT_DETACH).unwrap();

    // A directory beside the mount, whose name begins as the mount's: it is not in it, and not shared.
    let beside = node.dir().join("host2");
    let private = Shared::new(beside.clone());
    mount(None::<&str>, &beside, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let mut config = container_with(&private.0, "refused");
    config.mounts[0].propagation = MountPropagation::PropagationHostToContainer.into();
    let error = node.cri.create_container(pod.create_request(&config)).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("propagation"), "{error}");
    pod.stop();
    pod.remove();
}

#[test]
fn missing_host_paths_are_made_for_containers_that_come_to_be() {
    let node = Node::start();
    let pod = node.pod("missing");
    let missing = node.dir().join("a/b");
    let mut refused = container_with(&missing, "refused");
    // Found out by the runtime, when everything has been looked up.
    refused.working_dir = "/bin/sh".to_owned();
    node.cri.create_container(pod.create_request(&refused)).unwrap_err();
    assert!(
        !node.dir().join("a").exists(),
        "what was made for a refused container goes"
    );
    let container = pod.start(container_with(&missing, "main"));
    assert_eq!(fs::metadata(&missing).unwrap().mode() & 0o7777, 0o755);
    container.stop(0);
    container.remove();
    assert!(missing.exists(), "it is the pod's data by now");
}

#[test]
fn missing_host_paths_are_refused_where_the_configuration_says_so() {
    let node = Node::with(|config| {
        config.insert("missing_host_path".to_owned(), "reject".into());
    });
    let pod = node.pod("strict");
    let missing = node.dir().join("a/b");
    let config = container_with(&missing, "main");
    let error = node.cri.create_container(pod.create_request(&config)).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("mounts[0].host_path"), "{error}");
    assert!(!node.dir().join("a").exists());
}
