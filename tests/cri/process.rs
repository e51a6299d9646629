//! What a container's configuration makes of its process: user, environment, capabilities, mounts, limits.

use std::fs;

use corten_proto::cri;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{Pod, container};

/// The configuration of a container that waits, its security context changed.
fn waiting(change: impl FnOnce(&mut cri::LinuxContainerSecurityContext)) -> cri::ContainerConfig {
    let mut config = container("main", &["sleep", "1000"]);
    change(config.linux.as_mut().unwrap().security_context.as_mut().unwrap());
    config
}

/// A field of /proc/1/status inside the container.
fn status_field(pod: &Pod<'_>, config: cri::ContainerConfig, field: &str) -> String {
    let container = pod.start(config);
    let text = container.exec_sh("cat /proc/1/status");
    container.remove();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap_or_else(|| panic!("{field} in {text}")).trim().to_owned()
}

#[test]
fn user_and_groups() {
    let node = Node::start();
    let pod = node.pod("user");
    let run_as = |uid: i64, gid: Option<i64>| {
        waiting(|context| {
            context.run_as_user = Some(cri::Int64Value { value: uid });
            context.run_as_group = gid.map(|value| cri::Int64Value { value });
            context.supplemental_groups = vec![5000];
        })
    };
    let container = pod.start(run_as(1000, Some(2000)));
    assert_eq!(container.exec_sh("id -u; id -g; id -G"), "1000\n2000\n2000 5000\n");
    let user = container.status().user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid), (1000, 2000));
    let mut groups = user.supplemental_groups;
    groups.sort_unstable();
    assert_eq!(groups, [2000, 5000], "the primary one is in the list");
    container.remove();

    let container = pod.start(waiting(|context| context.run_as_username = "www-data".to_owned()));
    assert_eq!(
        container.exec_sh("id -u; id -g; id -G"),
        "33\n33\n33 100\n",
        "the image's groups are merged"
    );
}

#[test]
fn environment_and_working_directory() {
    let node = Node::start();
    let pod = node.pod("env");
    let mut config = container("main", &["sh", "-c", "pwd; echo $ONE; echo $TWO; echo $PATH"]);
    config.working_dir = "/made/for/it".to_owned();
    let pair = |key: &str, value: &[u8]| cri::KeyValue {
        key: key.to_owned(),
        value: value.to_vec(),
    };
    config.envs = vec![pair("ONE", b"first"), pair("TWO", b"a=b c"), pair("ONE", b"last")];
    let container = pod.start(config);
    container.wait_exit();
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(
        container.output("stdout"),
        format!("/made/for/it\nlast\na=b c\n{path}\n")
    );
}

#[test]
fn capabilities() {
    let node = Node::start();
    let pod = node.pod("caps");
    let with = |add: &[&str], drop: &[&str]| {
        waiting(|context| {
            context.capabilities = Some(cri::Capability {
                add_capabilities: add.iter().map(|&name| name.to_owned()).collect(),
                drop_capabilities: drop.iter().map(|&name| name.to_owned()).collect(),
                ..Default::default()
            });
        })
    };
    let effective = |config| status_field(&pod, config, "CapEff:");
    assert_eq!(
        effective(container("main", &["sleep", "1000"])),
        "00000000a80425fb",
        "the field's fourteen"
    );
    assert_eq!(effective(with(&[], &["ALL"])), "0000000000000000");
    assert_eq!(effective(with(&["NET_ADMIN"], &["ALL"])), "0000000000001000");
    assert_eq!(
        effective(with(&["cap_net_admin"], &["CAP_NET_RAW"])),
        "00000000a80415fb"
    );
    let ambient = status_field(&pod, container("main", &["sleep", "1000"]), "CapAmb:");
    assert_eq!(ambient, "0000000000000000");
}

#[test]
fn no_new_privs_and_readonly_root() {
    let node = Node::start();
    let pod = node.pod("hardened");
    assert_eq!(
        status_field(&pod, waiting(|context| context.no_new_privs = true), "NoNewPrivs:"),
        "1"
    );
    assert_eq!(status_field(&pod, waiting(|_| {}), "NoNewPrivs:"), "0");
    let container = pod.start(waiting(|context| context.readonly_rootfs = true));
    let reply = container.exec(&["touch", "/file"]);
    assert_ne!(reply.exit_code, 0);
    let stderr = String::from_utf8_lossy(&reply.stderr).into_owned();
    assert!(stderr.contains("Read-only file system"), "{stderr}");
    container.exec_sh("touch /dev/shm/file");
}

#[test]
fn masked_and_readonly_paths() {
    let node = Node::start();
    let pod = node.pod("masked");
    let container = pod.start(waiting(|context| {
        context.masked_paths = vec![
            "/proc/keys".to_owned(),
            "/etc/group".to_owned(),
            "/no/such/path".to_owned(),
        ];
        context.readonly_paths = vec!["/proc/sys".to_owned()];
    }));
    assert_eq!(container.exec_sh("cat /etc/group /proc/keys"), "");
    assert_ne!(
        container
            .exec(&["sh", "-c", "echo 1 > /proc/sys/kernel/hostname"])
            .exit_code,
        0
    );
}

#[test]
fn host_directories_are_mounted() {
    let node = Node::start();
    let pod = node.pod("mounts");
    let volume = node.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "of the host\n").unwrap();
    let mount = |path: &str, readonly: bool| cri::Mount {
        container_path: path.to_owned(),
        host_path: volume.display().to_string(),
        readonly,
        ..Default::default()
    };
    let mut config = container("main", &["sleep", "1000"]);
    // Sorted by depth: the deeper one, named first, must not be covered.
    config.mounts = vec![mount("/data/below", true), mount("/data", false)];
    let container = pod.start(config);
    assert_eq!(
        container.exec_sh("cat /data/file /data/below/file"),
        "of the host\nof the host\n"
    );
    container.exec_sh("echo back > /data/written");
    assert_eq!(fs::read_to_string(volume.join("written")).unwrap(), "back\n");
    assert_ne!(
        container.exec(&["touch", "/data/below/file2"]).exit_code,
        0,
        "read-only"
    );
    let mounts = container.status().mounts;
    let echoed = mounts
        .iter()
        .find(|mount| mount.container_path == "/data")
        .expect("kubelet looks for its mounts");
    assert_eq!(echoed.host_path, volume.display().to_string());
    drop(container);
    pod.remove();
}

#[test]
fn limits_reach_the_cgroup_and_the_status() {
    let node = Node::start();
    let pod = node.pod("limits");
    let resources = cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: 500,
        ..Default::default()
    };
    let mut config = container("main", &["sleep", "1000"]);
    config.linux.as_mut().unwrap().resources = Some(resources.clone());
    let container = pod.start(config);
    assert_eq!(
        container.status().resources.unwrap().linux.unwrap(),
        resources,
        "kubelet compares"
    );
    let pid = container.pid();
    assert_eq!(
        fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(),
        "500"
    );
    let read = |controller: &str, v1: &str, v2: &str| {
        let (dir, is_v2) = cgroup(pid, controller);
        fs::read_to_string(format!("{dir}/{}", if is_v2 { v2 } else { v1 }))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(
        read("memory", "memory.limit_in_bytes", "memory.max"),
        (64 << 20).to_string()
    );
    let quota = read("cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(quota == "50000" || quota == "50000 100000", "{quota}");
}

/// The directory of a process's cgroup for a controller, and whether it is of the unified hierarchy.
fn cgroup(pid: i64, controller: &str) -> (String, bool) {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let v1 = text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (names, path) = (fields.next()?, fields.next()?);
        let named = names.split(',').any(|name| name == controller);
        named.then(|| format!("/sys/fs/cgroup/{controller}{path}"))
    });
    let unified = || {
        text.lines()
            .find_map(|line| line.strip_prefix("0::"))
            .map(|path| format!("/sys/fs/cgroup{path}"))
    };
    match v1 {
        Some(dir) => (dir, false),
        None => (unified().expect("v1 or v2"), true),
    }
}

#[test]
fn a_privileged_container_has_all_the_server_has() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let mut config = node.pod_config("privileged");
    config
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap()
        .privileged = true;
    let pod = node.run_pod(config);
    let bounding = fs::read_to_string(format!("/proc/{}/status", node.server_pid())).unwrap();
    let bounding = bounding
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .unwrap()
        .trim()
        .to_owned();
    let effective = status_field(&pod, waiting(|context| context.privileged = true), "CapEff:");
    assert_eq!(effective, bounding);
    let container = pod.start({
        let mut config = waiting(|context| context.privileged = true);
        config.metadata.as_mut().unwrap().attempt = 1;
        config
    });
    let mounts = container.exec_sh("grep ' /sys ' /proc/self/mounts");
    assert!(mounts.contains("rw"), "{mounts}");
}

#[test]
fn a_terminal() {
    let node = Node::start();
    let pod = node.pod("tty");
    let mut config = container("main", &["sh", "-c", "tty; echo err >&2; echo $TERM"]);
    config.tty = true;
    let container = pod.start(config);
    container.wait_exit();
    assert_eq!(
        container.output("stdout"),
        "/dev/pts/0\r\nerr\r\nxterm\r\n",
        "one stream, as the terminal sends it"
    );
    assert_eq!(container.output("stderr"), "");
}
