//! `linux.seccomp`: which system calls the container's processes can make, and who is asked about them.
//!
//! Mostly about getppid(2): it takes no arguments, so that the kernel does not care what stands where a filter looks.

mod agent;
mod cache;

use std::fs;
use std::process::Command;

use corten_tests::bundle::{Bundle, Runtime, finish};
use serde_json::{Value, json};

use agent::{Agent, a_missing_agent_is_an_error, an_agent_answers, an_agent_is_asked_about_an_exec, notifying};
use cache::{
    a_cache_that_others_can_write_is_not_used, a_damaged_program_is_made_anew, a_program_is_kept_and_used_again,
    the_cache_is_bounded,
};

each_runtime! {
    each_action_does_what_it_says,
    each_operator_compares,
    two_comparisons_of_one_argument_are_either_or,
    an_unknown_system_call_is_passed_over,
    the_default_action_is_for_the_rest,
    what_is_newer_than_the_profile_is_not_there,
    other_architectures_are_killed_unless_listed,
    docker_s_profile_lets_programs_run,
    docker_s_profile_keeps_af_alg_away,
    exec_is_under_the_filter,
    start_hooks_are_under_the_filter,
    without_no_new_privileges_it_is_loaded_all_the_same,
    an_agent_answers,
    an_agent_is_asked_about_an_exec,
    a_missing_agent_is_an_error,
    what_is_no_profile_is_refused,
}

rootless! {
    exec_is_under_the_filter,
    an_agent_answers,
}

/// runc 1.1 may not take the listener of an exec from a process that a user may not trace.
#[test]
fn an_agent_is_asked_about_a_user_s_exec() {
    crate::run_as(
        corten_tests::bundle::user::Caller::User,
        "corten",
        an_agent_is_asked_about_an_exec,
    );
}

corten_only! {
    an_exec_file_cannot_leave_the_filter: "checks the identity by fields that runc 1.1 fills in its own way",
    a_narrow_profile_suffices: "runc makes system calls of its own between the load and execve",
    each_flag_reaches_the_kernel: "runc 1.1 has no field for flags",
    what_the_specification_forbids_is_refused: "runc passes over what the specification forbids",
    a_program_is_kept_and_used_again: "runc compiles the profile at every start",
    a_damaged_program_is_made_anew: "runc compiles the profile at every start",
    a_cache_that_others_can_write_is_not_used: "runc compiles the profile at every start",
    the_cache_is_bounded: "runc compiles the profile at every start",
}

const GETPPID: i64 = libc::SYS_getppid;
const GETSID: i64 = libc::SYS_getsid;

/// A bundle with the program that makes system calls, under this profile.
fn under(runtime: &Runtime, profile: Value) -> Bundle<'_> {
    let mut bundle = runtime.bundle();
    bundle.add_program("syscall");
    bundle.spec["linux"]["seccomp"] = profile;
    bundle
}

/// Everything is allowed but what the rules say.
fn but(rules: Value) -> Value {
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules })
}

fn calls(bundle: &mut Bundle<'_>, words: &[&str]) -> (i32, String) {
    let args: Vec<&str> = std::iter::once("/syscall").chain(words.iter().copied()).collect();
    bundle.spec["process"]["args"] = json!(args);
    let output = bundle.run();
    (output.code, output.stdout.trim_end().to_owned())
}

/// Runs getppid with these arguments under this one rule for it.
fn getppid(runtime: &Runtime, rule: &Value, args: &[u64]) -> (i32, String) {
    let mut rule = rule.clone();
    rule["names"] = json!(["getppid"]);
    let words: Vec<String> = args.iter().map(u64::to_string).collect();
    let (number, mut all) = (GETPPID.to_string(), vec!["call"]);
    all.push(&number);
    all.extend(words.iter().map(String::as_str));
    calls(&mut under(runtime, but(json!([rule]))), &all)
}

fn each_action_does_what_it_says(runtime: &Runtime) {
    let killed = 128 + libc::SIGSYS;
    for (action, errno, code, said) in [
        ("SCMP_ACT_ERRNO", None, 0, "EPERM"),
        ("SCMP_ACT_ERRNO", Some(libc::EXDEV), 0, "EXDEV"),
        // Nobody traces: the call is not made and not there.
        ("SCMP_ACT_TRACE", None, 0, "ENOSYS"),
        ("SCMP_ACT_TRACE", Some(7), 0, "ENOSYS"),
        ("SCMP_ACT_LOG", None, 0, "0"),
        ("SCMP_ACT_ALLOW", None, 0, "0"),
        ("SCMP_ACT_KILL", None, killed, ""),
        ("SCMP_ACT_KILL_THREAD", None, killed, ""),
        ("SCMP_ACT_KILL_PROCESS", None, killed, ""),
        ("SCMP_ACT_TRAP", None, killed, ""),
    ] {
        let mut rule = json!({ "action": action });
        if let Some(errno) = errno {
            rule["errnoRet"] = json!(errno);
        }
        assert_eq!(
            getppid(runtime, &rule, &[]),
            (code, said.to_owned()),
            "{action} {errno:?}"
        );
    }
    let number = GETPPID.to_string();
    for (action, words, code, said) in [
        ("SCMP_ACT_KILL", "thread", 0, "survived"),
        ("SCMP_ACT_KILL_THREAD", "thread", 0, "survived"),
        ("SCMP_ACT_KILL_PROCESS", "thread", killed, ""),
        ("SCMP_ACT_TRAP", "trap", 0, "trapped"),
    ] {
        let profile = but(json!([{ "names": ["getppid"], "action": action }]));
        let result = calls(&mut under(runtime, profile), &[words, &number]);
        assert_eq!(result, (code, said.to_owned()), "{action} {words}");
    }
}

fn each_operator_compares(runtime: &Runtime) {
    const BIG: u64 = 1 << 40;
    for (op, value, two, matching, other) in [
        ("SCMP_CMP_NE", 5, 0, BIG | 5, 5),
        ("SCMP_CMP_LT", BIG, 0, BIG - 1, BIG),
        ("SCMP_CMP_LE", BIG, 0, BIG, BIG + 1),
        ("SCMP_CMP_EQ", BIG | 5, 0, BIG | 5, 5),
        ("SCMP_CMP_GE", BIG, 0, BIG, BIG - 1),
        ("SCMP_CMP_GT", BIG, 0, BIG + 1, BIG),
        ("SCMP_CMP_MASKED_EQ", 0xf0, 0x50, 0x15f, 0x16f),
    ] {
        let args = json!([{ "index": 1, "value": value, "valueTwo": two, "op": op }]);
        let rule = json!({ "names": ["getppid"], "action": "SCMP_ACT_ERRNO", "args": args });
        let [number, matching, other] = [GETPPID.cast_unsigned(), matching, other].map(|number| number.to_string());
        let both = ["call", &number, "0", &matching, ",", &number, "0", &other];
        let (code, said) = calls(&mut under(runtime, but(json!([rule]))), &both);
        assert_eq!((code, said.as_str()), (0, "EPERM\n0"), "{op}");
    }
}

fn two_comparisons_of_one_argument_are_either_or(runtime: &Runtime) {
    let equal = |index: u32, value: u32| json!({ "index": index, "value": value, "op": "SCMP_CMP_EQ" });
    for (args, given, said) in [
        (json!([equal(0, 1), equal(1, 2)]), [1, 2], "EPERM"),
        (json!([equal(0, 1), equal(1, 2)]), [1, 0], "0"),
        (json!([equal(0, 1), equal(0, 2)]), [1, 0], "EPERM"),
        (json!([equal(0, 1), equal(0, 2)]), [2, 0], "EPERM"),
    ] {
        let rule = json!({ "action": "SCMP_ACT_ERRNO", "args": args });
        assert_eq!(
            getppid(runtime, &rule, &given),
            (0, said.to_owned()),
            "{args} {given:?}"
        );
    }
}

fn an_unknown_system_call_is_passed_over(runtime: &Runtime) {
    let names = json!(["no_such_call", "getppid", "another_one"]);
    let profile = but(json!([{ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EXDEV }]));
    let number = GETPPID.to_string();
    assert_eq!(
        calls(&mut under(runtime, profile), &["call", &number]),
        (0, "EXDEV".to_owned())
    );
}

fn docker() -> Value {
    serde_json::from_str(include_str!("seccomp/docker.json")).expect("the file is JSON")
}

/// Docker's profile with another default, and this call out of its list.
fn docker_without(name: &str, default: Value) -> Value {
    let mut profile = docker();
    for (field, value) in default.as_object().expect("an object") {
        profile[field] = value.clone();
    }
    let names = profile["syscalls"][0]["names"]
        .as_array_mut()
        .expect("names are a list");
    names.retain(|one| one != name);
    profile
}

fn the_default_action_is_for_the_rest(runtime: &Runtime) {
    let number = GETSID.to_string();
    for (default, code, said) in [
        (json!({ "defaultErrnoRet": libc::EXDEV }), 0, "EXDEV"),
        (
            json!({ "defaultAction": "SCMP_ACT_KILL_PROCESS", "defaultErrnoRet": null }),
            128 + libc::SIGSYS,
            "",
        ),
    ] {
        let mut bundle = under(runtime, docker_without("getsid", default.clone()));
        assert_eq!(
            calls(&mut bundle, &["call", &number]),
            (code, said.to_owned()),
            "{default}"
        );
    }
}

/// A C library falls back on an older system call after ENOSYS alone.
fn what_is_newer_than_the_profile_is_not_there(runtime: &Runtime) {
    let mut bundle = under(runtime, docker());
    let keyctl = libc::SYS_keyctl.to_string();
    let result = calls(&mut bundle, &["call", "9999", ",", &keyctl]);
    assert_eq!(result, (0, "ENOSYS\nEPERM".to_owned()));
}

fn other_architectures_are_killed_unless_listed(runtime: &Runtime) {
    // 64 is getppid, 224 gettid.
    for (architectures, code, said) in [
        (json!(["SCMP_ARCH_X86_64"]), 128 + libc::SIGSYS, ""),
        (json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]), 0, "EPERM"),
    ] {
        let mut profile = but(json!([{ "names": ["getppid"], "action": "SCMP_ACT_ERRNO" }]));
        profile["architectures"] = architectures.clone();
        let mut bundle = under(runtime, profile);
        assert_eq!(
            calls(&mut bundle, &["i386", "64"]),
            (code, said.to_owned()),
            "{architectures}"
        );
        assert_eq!(
            calls(&mut bundle, &["call", &GETPPID.to_string()]),
            (0, "EPERM".to_owned())
        );
    }
}

fn docker_s_profile_lets_programs_run(runtime: &Runtime) {
    for uid in [0, 1000] {
        let mut bundle = under(runtime, docker());
        bundle.spec["process"]["user"] = json!({ "uid": uid, "gid": uid });
        let report = bundle.report(&[]);
        assert_eq!(report.status("Seccomp"), "2");
        assert_eq!(report.status("Seccomp_filters"), "1");
        assert_eq!(
            report["fds"].as_object().map(serde_json::Map::len),
            Some(3),
            "{}",
            report["fds"]
        );
    }
}

/// CVE-2026-31431: sockets of the kernel's crypto interface, natively and through the 32-bit entries.
fn docker_s_profile_keeps_af_alg_away(runtime: &Runtime) {
    let [socket, alg, unix, stream] = [
        libc::SYS_socket,
        libc::AF_ALG.into(),
        libc::AF_UNIX.into(),
        libc::SOCK_SEQPACKET.into(),
    ]
    .map(|number| number.to_string());
    let mut bundle = under(runtime, docker());
    let natively = calls(
        &mut bundle,
        &["call", &socket, &alg, &stream, ",", &socket, &unix, &stream],
    );
    assert_eq!(natively, (0, "EPERM\n3".to_owned()));
    // 359 is socket(2) of 32-bit x86.
    assert_eq!(
        calls(&mut bundle, &["i386", "359", &alg, &stream]),
        (0, "EPERM".to_owned())
    );
    assert_eq!(
        calls(&mut bundle, &["i386", "359", &unix, &stream]),
        (0, "3".to_owned())
    );
    assert_eq!(
        calls(&mut bundle, &["i386-socketcall", "1", &alg, &stream]),
        (0, "ENOSYS".to_owned())
    );
}

fn exec_is_under_the_filter(runtime: &Runtime) {
    for no_new_privileges in [true, false] {
        let mut bundle = under(
            runtime,
            but(json!([{ "names": ["getsid"], "action": "SCMP_ACT_ERRNO" }])),
        );
        bundle.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bundle.probe(&["sleep"]);
        let _container = bundle.start();
        let output = bundle.exec(&["--user", "1000:1000"], &["/syscall", "call", &GETSID.to_string()]);
        assert_eq!(output.success().stdout, "EPERM\n");
        let report = bundle.exec_report(&["--user", "1000:1000"]);
        assert_eq!(report.status("Seccomp_filters"), "1");
        assert_eq!(
            report.status("CapEff"),
            "0000000000000000",
            "nothing of the runtime's is left"
        );
    }
}

fn an_exec_file_cannot_leave_the_filter(runtime: &Runtime) {
    let mut bundle = under(runtime, docker());
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let file = bundle.path().join("process.json");
    let process = json!({ "user": { "uid": 0, "gid": 0 }, "args": ["/probe", "report"], "cwd": "/" });
    fs::write(&file, process.to_string()).expect("write a file of the test");
    let mut command = bundle.command("exec");
    let output = finish(command.arg("--process").arg(&file).arg(&bundle.id)).success();
    let report = corten_tests::bundle::Report::parse(&output.stdout);
    assert_eq!(
        (report.status("Seccomp"), report.status("CapPrm")),
        ("2", "0000000000000000")
    );
}

fn start_hooks_are_under_the_filter(runtime: &Runtime) {
    for (errno, succeeds) in [("EXDEV", true), ("EPERM", false)] {
        let rule = json!({ "names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EXDEV });
        let mut bundle = under(runtime, but(json!([rule])));
        let args = json!(["syscall", "expect", GETPPID.to_string(), errno]);
        bundle.spec["hooks"] = json!({ "startContainer": [{ "path": "/syscall", "args": args }] });
        bundle.probe(&["say", "ran"]);
        let output = bundle.run();
        assert_eq!(output.stdout == "ran\n", succeeds, "{errno}: {output:?}");
    }
}

fn without_no_new_privileges_it_is_loaded_all_the_same(runtime: &Runtime) {
    for (uid, capabilities, effective) in [
        (0, json!(["CAP_KILL"]), 1 << 5),
        (1000, json!([]), 0),
        (0, json!(["CAP_KILL", "CAP_SYS_ADMIN"]), 1 << 21 | 1 << 5),
    ] {
        let mut bundle = under(runtime, docker());
        bundle.spec["process"]["noNewPrivileges"] = json!(false);
        bundle.spec["process"]["user"] = json!({ "uid": uid, "gid": uid });
        bundle.spec["process"]["capabilities"] =
            json!({ "bounding": capabilities, "effective": capabilities, "permitted": capabilities });
        let report = bundle.report(&[]);
        assert_eq!(report.status("Seccomp"), "2");
        assert_eq!(report.status("NoNewPrivs"), "0");
        for set in ["CapEff", "CapPrm"] {
            assert_eq!(report.status(set), format!("{effective:016x}"), "{uid} {capabilities}");
        }
    }
}

/// What the program itself needs, and execve: nothing for the runtime.
const NARROW: [&str; 29] = [
    "arch_prctl",
    "brk",
    "close",
    "execve",
    "exit_group",
    "fcntl",
    "fstat",
    "futex",
    "getppid",
    "getrandom",
    "ioctl",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "newfstatat",
    "open",
    "openat",
    "poll",
    "prlimit64",
    "read",
    "readlink",
    "readlinkat",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "set_robust_list",
    "set_tid_address",
    "sigaltstack",
];

fn a_narrow_profile_suffices(runtime: &Runtime) {
    for no_new_privileges in [true, false] {
        let rest = json!(["sched_getaffinity", "write", "writev", "gettid", "uname"]);
        // Without noNewPrivileges the runtime has one capability to give up after the load.
        let own = if no_new_privileges {
            json!([])
        } else {
            json!(["capset"])
        };
        let rules: Vec<Value> = [json!(NARROW), rest, own]
            .into_iter()
            .filter(|names| names != &json!([]))
            .map(|names| json!({ "names": names, "action": "SCMP_ACT_ALLOW" }))
            .collect();
        let mut bundle = under(
            runtime,
            json!({ "defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": rules }),
        );
        bundle.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bundle.spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        assert_eq!(
            calls(&mut bundle, &["call", &GETPPID.to_string()]),
            (0, "0".to_owned()),
            "{no_new_privileges}"
        );
    }
}

/// Profiles that nobody takes, and what the error is to name.
fn what_is_no_profile_is_refused(runtime: &Runtime) {
    let rule = |rule: Value| json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
    for (profile, words) in [
        (json!({ "defaultAction": "SCMP_ACT_NONSENSE" }), "SCMP_ACT_NONSENSE"),
        (
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PDP11"] }),
            "SCMP_ARCH_PDP11",
        ),
        (
            rule(json!({ "names": ["getppid"], "action": "SCMP_ACT_NONSENSE" })),
            "SCMP_ACT_NONSENSE",
        ),
        (
            rule(json!({ "names": ["write"], "action": "SCMP_ACT_NOTIFY" })),
            "write",
        ),
        (
            json!({ "defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/run/x" }),
            "SCMP_ACT_NOTIFY",
        ),
        (
            rule(json!({ "names": ["getppid"], "action": "SCMP_ACT_ERRNO",
                "args": [{ "index": 0, "value": 1, "op": "SCMP_CMP_NONSENSE" }] })),
            "SCMP_CMP_NONSENSE",
        ),
    ] {
        let bundle = under(runtime, profile.clone());
        let error = bundle.call("create", &[]).failure();
        assert!(error.contains(words), "{profile}: {error}");
        bundle.assert_nothing_left();
    }
}

/// The rules themselves have their table beside the code; this is that they are asked, and that nothing comes of it.
fn what_the_specification_forbids_is_refused(runtime: &Runtime) {
    for (profile, words) in [
        (json!({}), "defaultAction"),
        (
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_X"] }),
            "linux.seccomp.flags[0]",
        ),
        (
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1 }),
            "linux.seccomp.defaultErrnoRet",
        ),
        (
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_M68K"] }),
            "SCMP_ARCH_M68K",
        ),
        (
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x" }),
            "linux.seccomp.listenerMetadata",
        ),
    ] {
        let bundle = under(runtime, profile.clone());
        let error = bundle.call("create", &[]).failure();
        assert!(error.contains(words), "{profile}: {error}");
        bundle.assert_nothing_left();
    }
}

fn each_flag_reaches_the_kernel(runtime: &Runtime) {
    if Command::new("strace").arg("-V").output().is_err() {
        println!("SKIP: strace is not installed");
        return;
    }
    for (flags, bits) in [
        (json!([]), "0"),
        (json!(["SECCOMP_FILTER_FLAG_TSYNC"]), "0x1"),
        (json!(["SECCOMP_FILTER_FLAG_LOG"]), "0x2"),
        (json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]), "0x4"),
        (json!(["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG"]), "0x3"),
        (
            json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_TSYNC"]),
            "0x39",
        ),
    ] {
        let notify = flags.to_string().contains("KILLABLE");
        let mut bundle = under(runtime, Value::Null);
        let agent = notify.then(|| Agent::start(&bundle, vec![]));
        let mut profile = agent.as_ref().map_or_else(docker, |agent| notifying(&agent.path));
        profile["flags"] = flags.clone();
        bundle.spec["linux"]["seccomp"] = profile;
        bundle.probe(&["exit", "0"]);
        let trace = bundle.path().join("trace");
        let run = bundle.command("run");
        let mut command = Command::new("strace");
        command
            .args(["-f", "-X", "raw", "-e", "trace=seccomp", "-o"])
            .arg(&trace)
            .arg(run.get_program())
            .args(run.get_args())
            .arg(&bundle.id);
        let _output = finish(&mut command).success();
        let text = fs::read_to_string(&trace).expect("strace writes a file");
        let loaded = format!("seccomp(0x1, {bits}, {{len=");
        assert!(text.contains(&loaded), "{flags}: {text}");
        assert!(agent.is_none_or(|agent| agent.state().is_object()));
    }
}
