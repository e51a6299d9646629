//! `linux.netDevices`: moved in with their addresses, renamed, set up, and given back by delete.
//!
//! The host's network is a namespace made for the test, in which a script runs the runtime's commands.

use std::process::Command;

use corten_tests::bundle::{Bundle, Output, Report, Runtime, finish};
use serde_json::json;

use crate::namespaces::map_ids;

corten_only! {
    a_device_is_moved_in_with_its_addresses_and_back: "runc has it from 1.4 on, and leaves the way back to the kernel",
    a_device_is_renamed_and_gets_its_name_back: "runc has it from 1.4 on, and leaves the way back to the kernel",
    a_device_comes_back_from_a_killed_container: "runc has it from 1.4 on, and leaves the way back to the kernel",
    any_number_of_devices_takes_the_same_sockets: "runc has it from 1.4 on, and leaves the way back to the kernel",
    a_device_comes_back_from_a_failed_create: "runc has it from 1.4 on, and leaves the way back to the kernel",
    a_device_is_moved_to_a_joined_namespace_and_back: "runc has it from 1.4 on, and leaves the way back to the kernel",
    a_user_namespace_gets_a_device: "runc has it from 1.4 on, and leaves the way back to the kernel",
    a_device_that_is_gone_does_not_stop_delete: "runc has it from 1.4 on, and leaves the way back to the kernel",
    devices_that_cannot_be_moved_are_refused: "runc has it from 1.4 on, and leaves the way back to the kernel",
}

/// What the host's network begins with: a pair of devices, the first up and with addresses.
const HOST: &str = "ip link add first type veth peer name second
    ip addr add 192.0.2.1/24 dev first
    ip addr add 2001:db8::1/64 dev first nodad
    ip link set first up
    ip link set second up";

/// Runs a script in a network and a mount namespace of its own, with `$CORTEN` as the runtime's command line, `$BUNDLE` and `$ID`.
fn script(bundle: &Bundle<'_>, text: &str) -> Output {
    bundle.write();
    let state = bundle.command("state");
    let mut words: Vec<_> = std::iter::once(state.get_program()).chain(state.get_args()).collect();
    let _subcommand = words.pop();
    let corten = words.join(std::ffi::OsStr::new(" "));
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--mount", "sh", "-ec"])
        .arg(format!("{HOST}\n{text}"))
        .env("CORTEN", corten)
        .env("BUNDLE", bundle.path())
        .env("ID", &bundle.id);
    finish(&mut command)
}

/// Moves `first` in, as `name` if that is not empty.
fn wants(bundle: &mut Bundle<'_>, name: &str) {
    bundle.spec["linux"]["netDevices"] = json!({ "first": { "name": name } });
}

/// The report, and what the script printed after it.
fn split(output: &Output) -> (Report, String) {
    let (report, rest) = output.stdout.split_once('\n').expect("a report is one line");
    (Report::parse(report), rest.to_owned())
}

#[track_caller]
fn assert_back(rest: &str) {
    for words in ["first", "192.0.2.1/24", "2001:db8::1/64", "UP"] {
        assert!(rest.contains(words), "{words}: {rest}");
    }
}

fn a_device_is_moved_in_with_its_addresses_and_back(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    wants(&mut bundle, "");
    bundle.probe(&[
        "report",
        "/sys/class/net",
        "/sys/class/net/first/flags",
        "/proc/net/route",
        "/proc/net/if_inet6",
    ]);
    let output = script(&bundle, "$CORTEN run --bundle $BUNDLE $ID; ip addr show first").success();
    let (report, rest) = split(&output);
    assert_eq!(report.path("/sys/class/net")["entries"], json!(["first", "lo"]));
    let flags = report.path("/sys/class/net/first/flags")["text"]
        .as_str()
        .unwrap_or_default();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).expect("flags are hexadecimal");
    assert_eq!(flags & 1, 1, "it is up");
    // 192.0.2.0, in the byte order of the machine.
    assert!(
        report.path("/proc/net/route")["text"]
            .to_string()
            .contains("first\\t000200C0")
    );
    assert!(
        report.path("/proc/net/if_inet6")["text"]
            .to_string()
            .contains("20010db8000000000000000000000001")
    );
    assert_back(&rest);
}

fn a_device_is_renamed_and_gets_its_name_back(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    wants(&mut bundle, "eth0");
    bundle.probe(&["report", "/sys/class/net"]);
    // Twice: what the first run leaves must do for the second.
    let run = "$CORTEN run --bundle $BUNDLE $ID";
    let output = script(&bundle, &format!("{run} >/dev/null; {run}; ip addr show first")).success();
    let (report, rest) = split(&output);
    assert_eq!(report.path("/sys/class/net")["entries"], json!(["eth0", "lo"]));
    assert_back(&rest);
}

fn a_device_comes_back_from_a_killed_container(runtime: &Runtime) {
    for end in ["kill $ID KILL; sleep 0.2; $CORTEN delete $ID", "delete --force $ID"] {
        let mut bundle = runtime.bundle();
        wants(&mut bundle, "eth0");
        bundle.probe(&["sleep"]);
        let text = format!(
            "$CORTEN run --detach --bundle $BUNDLE $ID >/dev/null; ! ip addr show first 2>/dev/null
             $CORTEN {end}; ip addr show first"
        );
        assert_back(&script(&bundle, &text).success().stdout);
    }
}

/// One of the host's network and one of the container's, in every command; create has looked before, from a third.
fn any_number_of_devices_takes_the_same_sockets(runtime: &Runtime) {
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("SKIP: strace is not installed");
        return;
    }
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["netDevices"] = json!({ "first": { "name": "eth0" }, "second": { "name": "eth1" } });
    bundle.probe(&["exit", "0"]);
    let text = "trace() { strace -qq -e trace=socket -e signal=none -o $BUNDLE/$1 $CORTEN \"$@\"; }
        trace create --bundle $BUNDLE $ID >/dev/null; trace delete --force $ID
        for command in create delete; do grep -c AF_NETLINK $BUNDLE/$command; done; ip addr show first";
    let output = script(&bundle, text).success();
    let (counts, rest) = output.stdout.split_at(4);
    assert_eq!(counts, "3\n2\n", "{output:?}");
    assert_back(rest);
}

fn a_device_comes_back_from_a_failed_create(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    wants(&mut bundle, "eth0");
    bundle.spec["hooks"] = json!({ "createRuntime": [{ "path": "/bin/false" }] });
    let output = script(&bundle, "! $CORTEN create --bundle $BUNDLE $ID; ip addr show first").success();
    assert!(output.stderr.contains("createRuntime"), "{output:?}");
    assert_back(&output.stdout);
    bundle.assert_nothing_left();
}

fn a_device_is_moved_to_a_joined_namespace_and_back(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    wants(&mut bundle, "eth0");
    let path = bundle.path().join("joined");
    bundle.namespace("network", Some(&path.to_string_lossy()));
    bundle.probe(&["report", "/sys/class/net"]);
    let text = format!(
        "touch {0}; unshare --net={0} true; $CORTEN run --bundle $BUNDLE $ID; ip addr show first",
        path.display()
    );
    let (report, rest) = split(&script(&bundle, &text).success());
    assert_eq!(report.path("/sys/class/net")["entries"], json!(["eth0", "lo"]));
    assert_back(&rest);
}

fn a_user_namespace_gets_a_device(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    map_ids(&mut bundle);
    wants(&mut bundle, "eth0");
    bundle.probe(&["report", "/sys/class/net"]);
    let output = script(&bundle, "$CORTEN run --bundle $BUNDLE $ID; ip addr show first").success();
    let (report, rest) = split(&output);
    assert_eq!(report.path("/sys/class/net")["entries"], json!(["eth0", "lo"]));
    assert_back(&rest);
}

fn a_device_that_is_gone_does_not_stop_delete(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    wants(&mut bundle, "eth0");
    bundle.probe(&["sleep"]);
    let text = "$CORTEN run --detach --bundle $BUNDLE $ID >/dev/null; ip link del second; $CORTEN delete --force $ID";
    let _deleted = script(&bundle, text).success();
    bundle.assert_nothing_left();
}

fn devices_that_cannot_be_moved_are_refused(runtime: &Runtime) {
    for (devices, network, words) in [
        (json!({ "missing": {} }), true, "the host has no such network device"),
        (
            json!({ "first": { "name": "lo" } }),
            true,
            "has another device of this name",
        ),
        (
            json!({ "first": { "name": "a/b" } }),
            true,
            "is not the name of a network device",
        ),
        (json!({ "first": {} }), false, "needs a network namespace"),
    ] {
        let mut bundle = runtime.bundle();
        bundle.spec["linux"]["netDevices"] = devices;
        if !network {
            bundle.remove_namespace("network");
        }
        let error = script(&bundle, "exec $CORTEN create --bundle $BUNDLE $ID").failure();
        assert!(error.contains("linux.netDevices") && error.contains(words), "{error}");
        bundle.assert_nothing_left();
    }
}
