//! What is planted, and what the doctor is to say of it. A script has the machine's directory in `$DIR`, an id in `$ID`, and
//! `over FILE TEXT`, which covers a file.

use super::ID;

/// A fault: keys of the configuration, a shell script, and what is to be said of it.
pub(super) struct Fault {
    pub(super) keys: &'static str,
    pub(super) plant: &'static str,
    pub(super) name: &'static str,
    pub(super) found: &'static str,
    pub(super) fix: &'static str,
}

const fn planted(plant: &'static str, name: &'static str, found: &'static str, fix: &'static str) -> Fault {
    Fault {
        keys: "",
        plant,
        name,
        found,
        fix,
    }
}

const fn configured(keys: &'static str, name: &'static str, found: &'static str, fix: &'static str) -> Fault {
    Fault {
        keys,
        plant: "",
        name,
        found,
        fix,
    }
}

pub(super) const SETTINGS: &[Fault] = &[
    planted(
        "echo 0 > /proc/sys/net/ipv4/ip_forward",
        "ip-forward",
        "net.ipv4.ip_forward is 0",
        "sysctl -w net.ipv4.ip_forward=1",
    ),
    planted(
        "over /proc/sys/fs/inotify/max_user_instances 8",
        "inotify-instances",
        "fs.inotify.max_user_instances is 8",
        "sysctl -w fs.inotify.max_user_instances=512",
    ),
    planted(
        "over /proc/sys/kernel/pid_max 2000",
        "pid-max",
        "kernel.pid_max is 2000",
        "sysctl -w kernel.pid_max=",
    ),
    planted(
        "over /proc/sys/user/max_user_namespaces 0",
        "user-namespaces",
        "user.max_user_namespaces is 0",
        "sysctl -w user.max_user_namespaces=",
    ),
    planted(
        "over /proc/sys/net/ipv4/conf/all/rp_filter 1",
        "rp-filter",
        "rp_filter is 1 (strict)",
        "sysctl -w net.ipv4.conf.all.rp_filter=0",
    ),
    planted(
        "over /proc/sys/kernel/seccomp/actions_avail allow",
        "seccomp",
        "no seccomp action kill_process, errno",
        "CONFIG_SECCOMP_FILTER",
    ),
    planted(
        "over /etc/resolv.conf 'nameserver 127.0.0.53'",
        "resolv-conf",
        "127.0.0.53 is on this machine's loopback",
        "resolvConf: /run/systemd/resolve/resolv.conf",
    ),
    planted(
        "mkdir $DIR/empty
         if [ -d /sys/fs/cgroup/memory ]
         then mount --bind $DIR/empty /sys/fs/cgroup/memory
         else touch $DIR/none; mount --bind $DIR/none /sys/fs/cgroup/cgroup.controllers
         fi",
        "cgroup-controllers",
        "memory: ",
        "cgroup_enable=NAME",
    ),
];

pub(super) const DISKS: &[Fault] = &[
    planted(
        "mount -t tmpfs -o size=2m none $DIR/lib; dd if=/dev/zero of=$DIR/lib/big bs=1k count=2040 2> /dev/null",
        "disk-root",
        "are free",
        "corten-cri image prune --all",
    ),
    planted(
        "mount -t tmpfs -o size=2m,nr_inodes=64 none $DIR/lib; for n in $(seq 1 63); do touch $DIR/lib/$n 2> /dev/null || :; done",
        "disk-root",
        "0 % of inodes",
        "du -x --inodes",
    ),
    planted(
        "mount -t tmpfs -o noexec,mode=700 none $DIR/run",
        "disk-state-options",
        "is mounted noexec",
        "mount -o remount,rw,exec",
    ),
    planted(
        "mount -t tmpfs -o ro none $DIR/lib",
        "disk-filesystem",
        "mounted read-only",
        "mounted rw",
    ),
    planted("chmod 777 $DIR/run", "permissions", "/run has mode 0777", "chmod go="),
    configured(
        "[storage]\nwritable_layer_limit_bytes = 1073741824\n",
        "project-quotas",
        "does not enforce project quotas",
        "mount it with prjquota",
    ),
];

pub(super) const PROGRAMS: &[Fault] = &[
    configured(
        "[runtimes.gone]\npath = \"/nowhere/runtime\"\n",
        "runtimes",
        "gone (/nowhere/runtime)",
        "mend its path in [runtimes]",
    ),
    Fault {
        keys: "shim = \"$DIR/bin/corten-shim\"\n",
        plant: "mkdir $DIR/bin; printf '#!/bin/sh\\necho corten-shim 0.0.1\\n' > $DIR/bin/corten-shim; chmod +x $DIR/bin/*",
        name: "corten-shim-version",
        found: "is 0.0.1, corten-cri is ",
        fix: "of one release side by side",
    },
    configured(
        "shim = \"/nowhere/corten-shim\"\n",
        "corten-shim-version",
        "/nowhere/corten-shim",
        "of one release",
    ),
    Fault {
        keys: "cgroup_driver = \"systemd\"\n",
        plant: "mkdir -p /run/systemd; mount -t tmpfs none /run/systemd",
        name: "cgroup-driver",
        found: "systemd, which does not run here",
        fix: "cgroup_driver = \"cgroupfs\"",
    },
    configured(
        "no_such_key = 1\n",
        "configuration",
        "config.toml:6: no_such_key",
        "corten-cri config default",
    ),
];

pub(super) const NETWORKS: &[Fault] = &[
    planted(
        "rm $DIR/cni/*",
        "cni-config",
        "no configuration in ",
        "install a network",
    ),
    planted(
        "echo '{' > $DIR/cni/10-net.conflist",
        "cni-config",
        "10-net.conflist: parse as JSON",
        "mend the file",
    ),
    planted(
        "echo '{' > $DIR/cni/05-bad.conf",
        "cni-config",
        "05-bad.conf",
        "mend the file",
    ),
    planted(
        "sed -i s/macvlan/nowhere/ $DIR/cni/*",
        "cni-plugins",
        "nowhere is not in ",
        "containernetworking-plugins",
    ),
    planted(
        "sed -i s/macvlan/plain/ $DIR/cni/*; mkdir $DIR/bin; touch $DIR/bin/plain",
        "cni-plugins",
        "/bin/plain cannot be executed",
        "chmod +x it",
    ),
];

pub(super) const LEFTOVERS: &[Fault] = &[
    planted(
        "mkdir $DIR/run/netns; touch $DIR/run/netns/$ID; unshare --net=$DIR/run/netns/$ID true",
        "leftover-netns",
        ID,
        "ip netns delete",
    ),
    planted(
        "mkdir -p $DIR/run/containers/$ID/rootfs; mount -t tmpfs none $DIR/run/containers/$ID/rootfs",
        "leftover-mounts",
        "/rootfs",
        "umount -l",
    ),
    planted(
        "mkdir -p $DIR/lib/containers/$ID/upper",
        "leftover-files",
        ID,
        "restart corten-cri",
    ),
    planted(
        "mkdir -p $DIR/lib/layers/abc.partial",
        "partial-layers",
        "abc.partial",
        "start corten-cri",
    ),
    planted(
        "mkdir -p $DIR/lib/sandboxes; echo '{' > $DIR/lib/sandboxes/$ID.json",
        "records",
        "cannot be read",
        "support-bundle",
    ),
    planted(
        "mkdir -p $DIR/lib/quarantine/old",
        "quarantine",
        "old",
        "then remove them",
    ),
];
