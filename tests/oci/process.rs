//! The process of config.json: who it is, what it may do, and what it starts with.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use corten_tests::bundle::{Bundle, Runtime};
use serde_json::json;

each_runtime! {
    user_group_and_additional_groups,
    groups_of_the_caller_are_dropped,
    umask_is_set_and_defaults_to_022,
    each_capability_set_is_as_listed,
    without_capabilities_there_are_none,
    a_user_keeps_ambient_capabilities,
    an_unknown_capability_is_passed_over,
    rlimits_are_set,
    a_rlimit_beyond_the_hard_limit_of_the_spec_is_refused,
    no_new_privileges,
    environment_is_the_spec_s,
    home_is_the_user_s,
    a_large_environment_is_passed_on,
    args_are_passed_on_as_they_are,
    cwd_is_entered,
    a_missing_cwd_is_made,
    a_file_as_cwd_is_refused,
    a_cwd_cannot_leave_the_root,
    oom_score_adj_is_set,
    the_program_is_looked_up_in_the_container_s_path,
    a_missing_program_is_refused_by_create,
    a_program_that_is_no_program_is_refused,
    it_leads_a_session_of_its_own,
    it_has_no_seccomp_filter_unless_asked,
    it_has_a_session_keyring_of_its_own,
}

rootless! {
    umask_is_set_and_defaults_to_022,
    each_capability_set_is_as_listed,
    without_capabilities_there_are_none,
    a_user_keeps_ambient_capabilities,
    rlimits_are_set,
    no_new_privileges,
    environment_is_the_spec_s,
    home_is_the_user_s,
    cwd_is_entered,
    a_missing_cwd_is_made,
    a_cwd_cannot_leave_the_root,
    oom_score_adj_is_set,
    a_missing_program_is_refused_by_create,
    it_has_a_session_keyring_of_its_own,
}

corten_only! {
    oom_score_adj_is_clamped: "runc fails where the kernel refuses the value (no CAP_SYS_RESOURCE)",
}

fn user_group_and_additional_groups(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["user"] = json!({ "uid": 1000, "gid": 1001, "additionalGids": [50000, 7, 1001] });
    let report = bundle.report(&[]);
    assert_eq!(report.status("Uid"), "1000 1000 1000 1000");
    assert_eq!(report.status("Gid"), "1001 1001 1001 1001");
    assert_eq!(report.status("Groups"), "7 1001 50000");
}

fn groups_of_the_caller_are_dropped(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    assert_eq!(bundle.report(&[]).status("Groups"), "");
}

fn umask_is_set_and_defaults_to_022(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    assert_eq!(bundle.report(&[]).status("Umask"), "0022");
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["user"]["umask"] = json!(0o027);
    assert_eq!(bundle.report(&[]).status("Umask"), "0027");
}

const CHOWN: u64 = 1 << 0;
const KILL: u64 = 1 << 5;
const NET_BIND_SERVICE: u64 = 1 << 10;

fn sets(report: &corten_tests::bundle::Report) -> [u64; 5] {
    ["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"]
        .map(|name| u64::from_str_radix(report.status(name), 16).expect("the kernel prints hexadecimal"))
}

fn each_capability_set_is_as_listed(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    // noNewPrivileges off: an execve by root then gives permitted = bounding, which the sets below allow for.
    bundle.spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    bundle.spec["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "permitted": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "effective": ["CAP_NET_BIND_SERVICE"],
        "inheritable": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "ambient": ["CAP_NET_BIND_SERVICE"],
    });
    let [bounding, permitted, effective, inheritable, ambient] = sets(&bundle.report(&[]));
    assert_eq!(bounding, CHOWN | KILL | NET_BIND_SERVICE);
    assert_eq!(inheritable, KILL | NET_BIND_SERVICE);
    assert_eq!(ambient, NET_BIND_SERVICE);
    // An execve by another user than root keeps the ambient set alone (capabilities(7)).
    assert_eq!((permitted, effective), (NET_BIND_SERVICE, NET_BIND_SERVICE));
}

fn without_capabilities_there_are_none(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["capabilities"] =
        json!({ "bounding": [], "permitted": [], "effective": [], "inheritable": [], "ambient": [] });
    assert_eq!(sets(&bundle.report(&[])), [0; 5]);
}

fn a_user_keeps_ambient_capabilities(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    let own = json!(["CAP_KILL"]);
    bundle.spec["process"]["capabilities"] =
        json!({ "bounding": own, "permitted": own, "effective": own, "inheritable": own, "ambient": own });
    assert_eq!(sets(&bundle.report(&[])), [KILL; 5]);
}

fn an_unknown_capability_is_passed_over(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let own = json!(["CAP_KILL", "CAP_TIME_TRAVEL"]);
    bundle.spec["process"]["capabilities"] = json!({ "bounding": own, "permitted": own, "effective": own });
    assert_eq!(sets(&bundle.report(&[]))[0], KILL);
}

fn rlimits_are_set(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["rlimits"] = json!([
        { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
        { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
        { "type": "RLIMIT_CPU", "soft": 1000, "hard": 2000 },
    ]);
    let report = bundle.report(&[]);
    assert_eq!(report["limits"]["Max open files"], json!(["100", "200"]));
    assert_eq!(report["limits"]["Max core file size"], json!(["0", "0"]));
    assert_eq!(report["limits"]["Max cpu time"], json!(["1000", "2000"]));
}

fn a_rlimit_beyond_the_hard_limit_of_the_spec_is_refused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 300, "hard": 200 }]);
    let _error = bundle.run().failure();
    bundle.assert_nothing_left();
}

fn no_new_privileges(runtime: &Runtime) {
    for (value, seen) in [(true, "1"), (false, "0")] {
        let mut bundle = runtime.bundle();
        bundle.spec["process"]["noNewPrivileges"] = json!(value);
        assert_eq!(bundle.report(&[]).status("NoNewPrivs"), seen);
    }
}

fn environment_is_the_spec_s(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let env = json!([
        "PATH=/usr/bin",
        "EMPTY=",
        "SPACES=a b  c",
        "EQUALS=a=b",
        "UNICODE=åäö",
        "HOME=/somewhere"
    ]);
    bundle.spec["process"]["env"] = env.clone();
    assert_eq!(bundle.report(&[])["env"], env, "in this order and nothing else");
}

fn home_is_the_user_s(runtime: &Runtime) {
    for (uid, home) in [(0, "HOME=/root"), (1000, "HOME=/home/tester"), (4321, "HOME=/")] {
        let mut bundle = runtime.bundle();
        bundle.spec["process"]["user"] = json!({ "uid": uid, "gid": 0 });
        let report = bundle.report(&[]);
        let env = report["env"].as_array().expect("env is a list");
        assert!(env.contains(&json!(home)), "{uid}: {env:?}");
    }
}

/// CVE-2021-43784: a length of 16 bits somewhere on the way to init would cut this short.
fn a_large_environment_is_passed_on(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let large = format!("LARGE={}", "x".repeat(100_000));
    bundle.spec["process"]["env"] = json!(["HOME=/", "PATH=/bin", large, "LAST=1"]);
    assert_eq!(
        bundle.report(&[])["env"],
        json!(["HOME=/", "PATH=/bin", large, "LAST=1"])
    );
}

fn args_are_passed_on_as_they_are(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let args = ["", " ", "-x", "a b", "$HOME", "\"'", "line\nbreak", "åäö"];
    let report = bundle.report(&args);
    let all: Vec<&str> = ["/probe", "report"].into_iter().chain(args).collect();
    assert_eq!(report["args"], json!(all));
}

fn cwd_is_entered(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["cwd"] = json!("/home/tester");
    assert_eq!(bundle.report(&[])["cwd"], "/home/tester");
}

fn a_missing_cwd_is_made(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["cwd"] = json!("/srv/made/here");
    assert_eq!(bundle.report(&[])["cwd"], "/srv/made/here");
}

fn a_file_as_cwd_is_refused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["cwd"] = json!("/etc/passwd");
    let error = bundle.run().failure();
    assert!(error.contains("/etc/passwd"), "{error}");
    bundle.assert_nothing_left();
}

/// CVE-2024-21626: a working directory reached through a leaked descriptor of the host.
fn a_cwd_cannot_leave_the_root(runtime: &Runtime) {
    for fd in 3..12 {
        let mut bundle = runtime.bundle();
        let cwd = format!("/proc/self/fd/{fd}");
        symlink(&cwd, bundle.rootfs("/work")).expect("make a symlink");
        bundle.spec["process"]["cwd"] = json!(if fd % 2 == 0 { cwd.as_str() } else { "/work" });
        bundle.probe(&["report", "../../../../etc/hostname"]);
        let output = bundle.run();
        if output.code == 0 {
            let report = corten_tests::bundle::Report::parse(&output.stdout);
            let inside = report["cwd"].as_str().is_some_and(|cwd| !cwd.contains("unreachable"));
            assert!(
                inside && report.path("../../../../etc/hostname")["error"] == "ENOENT",
                "{report:?}"
            );
        }
    }
}

fn own_oom_score_adj() -> i32 {
    let text = fs::read_to_string("/proc/self/oom_score_adj").expect("read oom_score_adj");
    text.trim().parse().expect("the kernel prints a number")
}

fn oom_score_adj_is_set(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let value = (own_oom_score_adj() + 1).max(500);
    bundle.spec["process"]["oomScoreAdj"] = json!(value);
    assert_eq!(bundle.report(&[])["oom_score_adj"], value);
    let mut bundle = runtime.bundle();
    assert_eq!(
        bundle.report(&[])["oom_score_adj"],
        own_oom_score_adj(),
        "unset, it is the caller's"
    );
}

fn oom_score_adj_is_clamped(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["oomScoreAdj"] = json!(-1000);
    let report = bundle.report(&[]);
    // With CAP_SYS_RESOURCE it is what was asked for; without, the lowest value the caller may have.
    let status = fs::read_to_string("/proc/self/status").expect("read status");
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:\t"))
        .expect("the kernel prints it");
    let privileged = u64::from_str_radix(effective, 16).expect("the kernel prints hexadecimal") >> 24 & 1 == 1;
    let score = report["oom_score_adj"].as_i64().expect("the kernel prints a number");
    if privileged {
        assert_eq!(score, -1000);
    } else {
        assert!(score > -1000 && score <= i64::from(own_oom_score_adj()), "{score}");
    }
}

fn the_program_is_looked_up_in_the_container_s_path(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["env"] = json!(["PATH=/nowhere:/usr/bin:/bin"]);
    bundle.spec["process"]["args"] = json!(["probe", "say", "found"]);
    assert_eq!(bundle.run().success().stdout, "found\n");
}

fn refused_program(bundle: &Bundle<'_>, name: &str) {
    let error = bundle.call("create", &[]).failure();
    assert!(error.contains(name), "{error}");
    bundle.assert_nothing_left();
}

fn a_missing_program_is_refused_by_create(runtime: &Runtime) {
    for name in ["not-there", "/not/there"] {
        let mut bundle = runtime.bundle();
        bundle.spec["process"]["args"] = json!([name]);
        refused_program(&bundle, name);
    }
}

fn a_program_that_is_no_program_is_refused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let path = bundle.rootfs("/usr/bin/data");
    fs::write(&path, "data").expect("write a file of the test");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("change a mode");
    bundle.spec["process"]["args"] = json!(["/usr/bin/data"]);
    refused_program(&bundle, "/usr/bin/data");
    bundle.spec["process"]["args"] = json!(["/usr/bin"]);
    refused_program(&bundle, "/usr/bin");
}

fn it_leads_a_session_of_its_own(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.remove_namespace("pid");
    let report = bundle.report(&[]);
    assert_eq!(report["session"], report["pid"]);
    assert_eq!(report["process_group"], report["pid"]);
}

fn it_has_no_seccomp_filter_unless_asked(runtime: &Runtime) {
    assert_eq!(runtime.bundle().report(&[]).status("Seccomp"), "0");
}

fn it_has_a_session_keyring_of_its_own(runtime: &Runtime) {
    for (option, own) in [(None, true), (Some("--no-new-keyring"), false)] {
        let mut bundle = runtime.bundle();
        bundle.spec["linux"]["maskedPaths"] = json!([]);
        bundle.probe(&["cat", "/proc/keys"]);
        let keys = bundle.call("run", option.as_slice()).success().stdout;
        assert_eq!(keys.contains(&bundle.id), own, "{option:?}: {keys}");
    }
}
