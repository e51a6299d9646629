//! What confines a container: seccomp and AppArmor profiles, capabilities, hidden paths, groups.

use std::fs;
use std::path::Path;

use corten_proto::cri;
use corten_proto::cri::security_profile::ProfileType;
use corten_tests::binary;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{Container, Pod, container};
use tonic::Code;

type Context = cri::LinuxContainerSecurityContext;

/// A container that waits, its security context changed; it has the program that makes system calls.
fn waiting(name: &str, change: impl FnOnce(&mut Context)) -> cri::ContainerConfig {
    let mut config = container(name, &["sleep", "1000"]);
    change(config.linux.as_mut().unwrap().security_context.as_mut().unwrap());
    config.mounts.push(cri::Mount {
        container_path: "/syscall".to_owned(),
        host_path: binary("syscall").display().to_string(),
        readonly: true,
        ..Default::default()
    });
    config
}

fn profile(kind: ProfileType, reference: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: reference.to_owned(),
    })
}

/// Writes a profile that allows everything but these calls; its path.
fn denying(node: &Node, calls: &[&str]) -> String {
    let path = node.dir().join(format!("deny-{}.json", calls.join("-")));
    let rule = serde_json::json!({ "names": calls, "action": "SCMP_ACT_ERRNO" });
    let profile = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
    fs::write(&path, profile.to_string()).unwrap();
    path.display().to_string()
}

/// A field of a status file of procfs.
#[track_caller]
fn field(status: &str, name: &str) -> String {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name} in {status}")).trim().to_owned()
}

fn own_status(container: &Container<'_>, name: &str) -> String {
    field(&container.exec_sh("cat /proc/1/status"), name)
}

/// What the system calls of these words come to, run by an exec.
#[track_caller]
fn calls(container: &Container<'_>, words: &str) -> String {
    container.exec_sh(&format!("/syscall {words}")).trim_end().to_owned()
}

fn privileged_pod(node: &Node) -> Pod<'_> {
    node.pull(BUSYBOX);
    let mut config = node.pod_config("privileged");
    let linux = config.linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap().privileged = true;
    node.run_pod(config)
}

#[test]
#[expect(deprecated, reason = "older clients send nothing else")]
fn which_seccomp_profile_counts() {
    let node = Node::start();
    let pod = node.pod("seccomp");
    let file = denying(&node, &["chmod"]);
    let old = |text: &str| {
        let text = text.to_owned();
        Box::new(move |it: &mut Context| it.seccomp_profile_path = text) as Box<dyn FnOnce(&mut Context)>
    };
    let new = |kind, reference: &str| {
        let profile = profile(kind, reference);
        Box::new(move |it: &mut Context| it.seccomp = profile) as Box<dyn FnOnce(&mut Context)>
    };
    let both: Box<dyn FnOnce(&mut Context)> = Box::new(|it| {
        it.seccomp = profile(ProfileType::Unconfined, "");
        it.seccomp_profile_path = "runtime/default".to_owned();
    });
    for (index, (what, change, mode)) in [
        ("nothing", old(""), "0"),
        ("unconfined", new(ProfileType::Unconfined, ""), "0"),
        ("runtime default", new(ProfileType::RuntimeDefault, ""), "2"),
        ("localhost", new(ProfileType::Localhost, &file), "2"),
        ("runtime/default", old("runtime/default"), "2"),
        ("docker/default", old("docker/default"), "2"),
        ("localhost/PATH", old(&format!("localhost/{file}")), "2"),
        ("unconfined as text", old("unconfined"), "0"),
        ("the message goes first", both, "0"),
    ]
    .into_iter()
    .enumerate()
    {
        let container = pod.start(waiting(&format!("c{index}"), change));
        assert_eq!(own_status(&container, "Seccomp"), mode, "{what}");
        container.remove();
    }
}

#[test]
fn what_an_absent_seccomp_profile_means_is_configured() {
    let node = Node::with(|config| {
        let key = ("unset_seccomp_profile".to_owned(), "RuntimeDefault".into());
        config.insert("security".to_owned(), toml::Table::from_iter([key]).into());
    });
    let pod = node.pod("unset");
    let of = |name: &str, profile| own_status(&pod.start(waiting(name, |it| it.seccomp = profile)), "Seccomp");
    assert_eq!(of("absent", None), "2");
    assert_eq!(of("unconfined", profile(ProfileType::Unconfined, "")), "0");
}

/// CVE-2026-31431 and what else a container must not reach; in an exec, which has the container's filter.
#[test]
fn the_default_profile_keeps_the_kernel_away() {
    let node = Node::start();
    let pod = node.pod("default");
    let with = |name: &str, add: &[&str]| {
        pod.start(waiting(name, |it| {
            it.seccomp = profile(ProfileType::RuntimeDefault, "");
            it.capabilities = Some(cri::Capability {
                add_capabilities: add.iter().map(|&name| name.to_owned()).collect(),
                ..Default::default()
            });
        }))
    };
    let plain = with("plain", &[]);
    assert_eq!(field(&plain.exec_sh("cat /proc/self/status"), "Seccomp"), "2");
    let [socket, keyctl, unshare] = [libc::SYS_socket, libc::SYS_keyctl, libc::SYS_unshare];
    let [alg, vsock, unix, kind] = [libc::AF_ALG, libc::AF_VSOCK, libc::AF_UNIX, libc::SOCK_SEQPACKET];
    let high = i64::from(alg) | 1 << 32;
    let newuser = libc::CLONE_NEWUSER;
    for (words, said) in [
        (format!("call {socket} {unix} {kind}"), "3"),
        (format!("call {socket} {alg} {kind}"), "EPERM"),
        // The kernel takes the lower half for the domain.
        (format!("call {socket} {high} {kind}"), "EPERM"),
        (format!("call {socket} {vsock} {kind}"), "EPERM"),
        (format!("call {keyctl}"), "EPERM"),
        (format!("call {unshare} {newuser}"), "EPERM"),
        ("call 9999".to_owned(), "ENOSYS"),
        // 359 is socket(2) of 32-bit x86.
        (format!("i386 359 {alg} {kind}"), "EPERM"),
        (format!("i386 359 {unix} {kind}"), "3"),
        (format!("i386-socketcall 1 {alg} {kind}"), "ENOSYS"),
    ] {
        assert_eq!(calls(&plain, &words), said, "{words}");
    }
    let admin = with("admin", &["SYS_ADMIN"]);
    let newuts = libc::CLONE_NEWUTS;
    assert_eq!(calls(&admin, &format!("call {unshare} {newuts}")), "0");
    assert_eq!(calls(&plain, &format!("call {unshare} {newuts}")), "EPERM");
    // The infra container too, if the pod asks for it as the kubelet does.
    let mut config = node.pod_config("infra");
    let linux = config.linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap().seccomp = profile(ProfileType::RuntimeDefault, "");
    let pid = node.run_pod(config).info()["pid"].as_i64().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert_eq!(field(&status, "Seccomp"), "2");
}

#[test]
fn a_profile_of_the_node_is_enforced_and_privileged_containers_ignore_it() {
    let node = Node::start();
    let (chmod, hostname) = (denying(&node, &["chmod", "fchmodat"]), denying(&node, &["sethostname"]));
    let pod = node.pod("localhost");
    let confined = pod.start(waiting("chmod", |it| {
        it.seccomp = profile(ProfileType::Localhost, &chmod)
    }));
    let reply = confined.exec(&["chmod", "400", "/"]);
    let stderr = String::from_utf8_lossy(&reply.stderr).into_owned();
    assert!(
        reply.exit_code != 0 && stderr.contains("Operation not permitted"),
        "{stderr}"
    );

    let admin = |name: &str, kind, reference: &str| {
        let profile = profile(kind, reference);
        pod.start(waiting(name, |it| {
            it.seccomp = profile;
            it.capabilities = Some(cri::Capability {
                add_capabilities: vec!["SYS_ADMIN".to_owned()],
                ..Default::default()
            });
        }))
    };
    let denied = admin("denied", ProfileType::Localhost, &hostname);
    assert_ne!(denied.exec(&["hostname", "other"]).exit_code, 0);
    admin("free", ProfileType::Unconfined, "").exec_sh("hostname other");

    let pod = privileged_pod(&node);
    let privileged = pod.start(waiting("main", |it| {
        it.privileged = true;
        it.seccomp = profile(ProfileType::Localhost, &hostname);
    }));
    privileged.exec_sh("hostname other");
    assert_eq!(own_status(&privileged, "Seccomp"), "0");
}

/// CVE-2023-2431: what is no profile must never come to mean unconfined.
#[test]
fn profiles_that_are_none_are_refused() {
    let node = Node::start();
    let pod = node.pod("refused");
    let file = |name: &str, text: &str| {
        fs::write(node.dir().join(name), text).unwrap();
        node.dir().join(name).display().to_string()
    };
    let conditional = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["mount"],"action":"SCMP_ACT_ALLOW",
        "includes":{"caps":["CAP_SYS_ADMIN"]}}]}"#;
    for (reference, words) in [
        ("", &["localhost_ref"][..]),
        ("profile.json", &["absolute"]),
        ("localhost/profile.json", &["absolute"]),
        ("/no/such/profile.json", &["/no/such/profile.json", "No such file"]),
        (&file("broken", "{"), &["OCI runtime specification"]),
        (&file("empty", "{}"), &["defaultAction"]),
        (&file("docker", conditional), &["includes"]),
        (&node.dir().display().to_string(), &["regular file"]),
    ] {
        let config = waiting("main", |it| it.seccomp = profile(ProfileType::Localhost, reference));
        let error = node.cri.create_container(pod.create_request(&config)).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        for word in ["linux.security_context.seccomp"].iter().chain(words) {
            assert!(error.message().contains(word), "{reference}: {error}");
        }
    }
    let listed = node.cri.list_containers(cri::ListContainersRequest::default()).unwrap();
    assert!(listed.containers.is_empty(), "{listed:?}");
}

/// What a node does that has neither of the two; `tests/vm/apparmor.sh` is for those that have AppArmor.
#[test]
fn security_modules_that_are_off() {
    if Path::new("/sys/kernel/security/apparmor").exists() || Path::new("/sys/fs/selinux/enforce").exists() {
        println!("SKIP: this machine has AppArmor or SELinux");
        return;
    }
    let node = Node::start();
    let pod = node.pod("lsm");
    for (name, kind) in [
        ("default", ProfileType::RuntimeDefault),
        ("unconfined", ProfileType::Unconfined),
    ] {
        let config = waiting(name, |it| {
            it.apparmor = profile(kind, "");
            it.selinux_options = Some(cri::SeLinuxOption {
                level: "s0:c1,c2".to_owned(),
                ..Default::default()
            });
        });
        pod.start(config).exec_sh("true");
    }
    let config = waiting("named", |it| it.apparmor = profile(ProfileType::Localhost, "mine"));
    let error = node.cri.create_container(pod.create_request(&config)).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    for word in ["linux.security_context.apparmor", "mine", "not enabled"] {
        assert!(error.message().contains(word), "{error}");
    }
}

#[test]
fn ambient_capabilities_reach_a_user_who_is_not_root() {
    let node = Node::start();
    let pod = node.pod("ambient");
    let with = |name: &str, add: &[&str], ambient: &[&str]| {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let capabilities = cri::Capability {
            add_capabilities: names(add),
            drop_capabilities: vec!["ALL".to_owned()],
            add_ambient_capabilities: names(ambient),
        };
        pod.start(waiting(name, |it| {
            it.run_as_user = Some(cri::Int64Value { value: 1000 });
            it.capabilities = Some(capabilities);
        }))
    };
    let sets = |container: &Container<'_>| {
        let status = container.exec_sh("cat /proc/1/status");
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|name| field(&status, name))
    };
    let (none, one) = ("0000000000000000", "0000000000001000");
    assert_eq!(sets(&with("ambient", &[], &["NET_ADMIN"])), [one; 5]);
    assert_eq!(sets(&with("added", &["NET_ADMIN"], &[])), [none, none, none, one, none]);
}

#[test]
fn paths_are_hidden_by_default_where_that_is_configured() {
    for configured in [true, false] {
        let node = Node::with(|config| {
            let key = ("mask_paths_by_default".to_owned(), configured.into());
            config.insert("security".to_owned(), toml::Table::from_iter([key]).into());
        });
        let pod = node.pod("masks");
        let silent = pod.start(waiting("silent", |_| {}));
        let covered = silent.exec_sh("grep -c ' /proc/' /proc/self/mounts || true");
        assert_eq!(covered.trim() != "0", configured, "{covered}");
        let asked = pod.start(waiting("asked", |it| it.masked_paths = vec!["/proc/keys".to_owned()]));
        assert_eq!(
            asked.exec_sh("grep -c ' /proc/' /proc/self/mounts").trim(),
            "1",
            "as it was asked for"
        );
    }
}

#[test]
fn groups_by_policy() {
    let node = Node::start();
    let pod = node.pod("groups");
    for (policy, groups) in [
        (cri::SupplementalGroupsPolicy::Merge, &[33, 100, 5000][..]),
        (cri::SupplementalGroupsPolicy::Strict, &[33, 5000]),
    ] {
        let container = pod.start(waiting(&policy.as_str_name().to_lowercase(), |it| {
            it.run_as_username = "www-data".to_owned();
            it.supplemental_groups = vec![5000];
            it.supplemental_groups_policy = policy.into();
        }));
        let mut of_init: Vec<i64> = own_status(&container, "Groups")
            .split_whitespace()
            .map(|id| id.parse().unwrap())
            .collect();
        of_init.sort_unstable();
        assert_eq!(of_init, groups, "{policy:?}");
        let mut shown = container.status().user.unwrap().linux.unwrap().supplemental_groups;
        shown.sort_unstable();
        assert_eq!(shown, groups, "{policy:?}: what the status says");
    }
}

#[test]
fn users_that_the_image_does_not_know_are_refused() {
    let node = Node::start();
    let pod = node.pod("users");
    let value = |value| Some(cri::Int64Value { value });
    for (change, words) in [
        (
            Box::new(|it: &mut Context| it.run_as_username = "nobody-knows".to_owned())
                as Box<dyn FnOnce(&mut Context)>,
            ["run_as_username", "nobody-knows"],
        ),
        (
            Box::new(move |it| it.run_as_group = value(7)),
            ["run_as_group", "run_as_user"],
        ),
        (
            Box::new(move |it| {
                it.run_as_user = value(1);
                it.run_as_username = "root".to_owned();
            }),
            ["run_as_username", "excludes"],
        ),
        (
            Box::new(move |it| it.run_as_user = value(1 << 32)),
            ["run_as_user", "4294967296"],
        ),
        (Box::new(|it| it.privileged = true), ["privileged", "sandboxes"]),
    ] {
        let config = waiting("main", change);
        let error = node.cri.create_container(pod.create_request(&config)).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        for word in words {
            assert!(error.message().contains(word), "{error}");
        }
    }
}

/// CVE-2023-6476, CVE-2024-3154, CVE-2026-53488: what anybody can write next to a pod steers neither the runtime nor us.
#[test]
fn annotations_and_labels_stay_with_the_request() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let strangers = corten_tests::pod::map(&[
        ("io.kubernetes.cri-o.UnifiedCgroup.main", "memory.max=1"),
        ("org.systemd.property.ExecStart", "'x'"),
        ("run.oci.hooks", "/x"),
        ("io.kubernetes.cri.container-type", "sandbox"),
        ("containerd.io/restart.loguri", "binary:///bin/sh"),
    ]);
    let mut config = node.pod_config("annotated");
    config.annotations.clone_from(&strangers);
    config.labels.clone_from(&strangers);
    let pod = node.run_pod(config);
    let mut config = waiting("main", |_| {});
    config.annotations.clone_from(&strangers);
    config.labels.clone_from(&strangers);
    let container = pod.start(config);
    for (bundle, kind) in [
        (format!("run/containers/{}", container.id), "container"),
        (format!("run/sandboxes/{}", pod.id), "sandbox"),
    ] {
        let text = fs::read_to_string(node.dir().join(bundle).join("config.json")).unwrap();
        let spec: serde_json::Value = serde_json::from_str(&text).unwrap();
        let annotations = spec["annotations"].as_object().unwrap();
        assert_eq!(annotations["io.kubernetes.cri.container-type"], kind);
        let known = |key: &String| key.starts_with("io.kubernetes.cri.");
        assert!(annotations.keys().all(known), "{annotations:?}");
        assert!(!text.contains("memory.max=1") && !text.contains("binary://"), "{text}");
    }
    assert_eq!(
        container.status().annotations,
        strangers,
        "and are given back as they came"
    );
}

/// CVE-2022-0532: settings of the node's namespaces.
#[test]
fn settings_of_the_node_are_refused() {
    let node = Node::start();
    node.pull(BUSYBOX);
    for (name, network, ipc) in [
        ("net.ipv4.ip_forward", cri::NamespaceMode::Node, cri::NamespaceMode::Pod),
        (
            "kernel.shm_rmid_forced",
            cri::NamespaceMode::Pod,
            cri::NamespaceMode::Node,
        ),
    ] {
        let mut config = node.pod_config("settings");
        let linux = config.linux.as_mut().unwrap();
        linux.sysctls = corten_tests::pod::map(&[(name, "1")]);
        let options = linux
            .security_context
            .as_mut()
            .unwrap()
            .namespace_options
            .as_mut()
            .unwrap();
        (options.network, options.ipc) = (network.into(), ipc.into());
        let request = cri::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: String::new(),
        };
        let error = node.cri.run_pod_sandbox(request).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(name), "{error}");
    }
    node.assert_no_pods_left();
}
