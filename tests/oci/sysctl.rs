//! `linux.sysctl`: set in the container's own namespaces, and nowhere else.

use std::fs;

use corten_tests::bundle::Runtime;
use serde_json::json;

each_runtime! {
    sysctls_of_own_namespaces_are_set,
    both_separators_are_understood,
    a_sysctl_of_the_host_is_refused,
    a_sysctl_without_the_namespace_is_refused,
    an_unknown_sysctl_is_refused,
    a_path_out_of_proc_sys_is_refused,
}

fn sysctls_of_own_namespaces_are_set(runtime: &Runtime) {
    let port = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let messages = "/proc/sys/kernel/msgmax";
    let host = [port, messages].map(|path| fs::read_to_string(path).expect("read a sysctl"));
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["sysctl"] =
        json!({ "net.ipv4.ip_unprivileged_port_start": "81", "kernel.msgmax": "4242", "fs.mqueue.msg_max": "11" });
    let report = bundle.report(&[port, messages, "/proc/sys/fs/mqueue/msg_max"]);
    assert_eq!(report.path(port)["text"], "81\n");
    assert_eq!(report.path(messages)["text"], "4242\n");
    assert_eq!(report.path("/proc/sys/fs/mqueue/msg_max")["text"], "11\n");
    assert_eq!(
        host,
        [port, messages].map(|path| fs::read_to_string(path).expect("read a sysctl"))
    );
}

fn both_separators_are_understood(runtime: &Runtime) {
    let path = "/proc/sys/net/ipv4/conf/lo/forwarding";
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["sysctl"] = json!({ "net/ipv4/conf/lo/forwarding": "1" });
    assert_eq!(bundle.report(&[path]).path(path)["text"], "1\n");
}

fn refused(runtime: &Runtime, name: &str, without: Option<&str>) {
    let mut bundle = runtime.bundle();
    if let Some(kind) = without {
        bundle.remove_namespace(kind);
    }
    bundle.spec["linux"]["sysctl"] = json!({ name: "1" });
    let error = bundle.run().failure();
    let last = name.rsplit(['.', '/']).next().unwrap_or(name);
    assert!(error.contains(last), "{error}");
    bundle.assert_nothing_left();
}

fn a_sysctl_of_the_host_is_refused(runtime: &Runtime) {
    for name in ["vm.swappiness", "kernel.pid_max", "fs.file-max"] {
        refused(runtime, name, None);
    }
}

fn a_sysctl_without_the_namespace_is_refused(runtime: &Runtime) {
    refused(runtime, "kernel.msgmax", Some("ipc"));
    refused(runtime, "net.ipv4.ip_forward", Some("network"));
}

fn an_unknown_sysctl_is_refused(runtime: &Runtime) {
    refused(runtime, "net.ipv4.there_is_none", None);
}

fn a_path_out_of_proc_sys_is_refused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["sysctl"] = json!({ "net/../../../tmp/file": "1" });
    bundle.spec["root"]["readonly"] = json!(false);
    fs::write(bundle.rootfs("/tmp/file"), "untouched").expect("write a file of the test");
    let _error = bundle.run().failure();
    assert_eq!(
        fs::read_to_string(bundle.rootfs("/tmp/file")).expect("read a file of the test"),
        "untouched"
    );
}
