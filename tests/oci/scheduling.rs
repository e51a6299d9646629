//! When and where processes run: scheduling, IO priority, CPUs, memory nodes, execution domain.

use std::fs;
use std::process::Command;

use corten_tests::bundle::{Bundle, Runtime, finish};
use serde_json::{Value, json};

corten_only! {
    each_scheduling_policy_is_set: "runc 1.1 has no field for it",
    scheduling_flags_are_set: "runc 1.1 has no field for it",
    each_io_priority_is_set: "runc 1.1 has no field for it",
    an_exec_is_scheduled_by_its_own_document_or_the_container_s: "runc 1.1 has no field for it",
    an_exec_runs_on_the_cpus_of_its_affinity: "runc 1.1 has no field for it",
    each_memory_policy_is_set: "runc 1.1 has no field for it",
    the_personality_is_set: "runc 1.1 has no field for it",
    a_priority_is_raised_in_a_user_namespace_too: "runc 1.1 has no field for it",
    what_the_machine_lacks_is_refused: "runc 1.1 has no field for it",
}

fn with<'r>(runtime: &'r Runtime, field: &str, value: &Value) -> Bundle<'r> {
    let mut bundle = runtime.bundle();
    bundle.add_program("syscall");
    bundle.spec["process"][field] = value.clone();
    bundle
}

/// What the container's own process gets from a system call without side effects.
fn ask(bundle: &mut Bundle<'_>, number: i64, args: &[&str]) -> String {
    let number = number.to_string();
    let all: Vec<&str> = ["/syscall", "call", &number]
        .into_iter()
        .chain(args.iter().copied())
        .collect();
    bundle.spec["process"]["args"] = json!(all);
    bundle.run().success().stdout.trim_end().to_owned()
}

fn each_scheduling_policy_is_set(runtime: &Runtime) {
    for (scheduler, policy, nice, priority) in [
        (json!({ "policy": "SCHED_OTHER", "nice": 7 }), 0, 7, 0),
        (json!({ "policy": "SCHED_OTHER", "nice": -7 }), 0, -7, 0),
        (json!({ "policy": "SCHED_BATCH", "nice": 19 }), 3, 19, 0),
        (json!({ "policy": "SCHED_IDLE" }), 5, 0, 0),
        (json!({ "policy": "SCHED_FIFO", "priority": 1 }), 1, 0, 1),
        (json!({ "policy": "SCHED_RR", "priority": 99 }), 2, 0, 99),
        (
            json!({ "policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 20_000_000, "period": 40_000_000 }),
            6,
            0,
            0,
        ),
    ] {
        let mut bundle = with(runtime, "scheduler", &scheduler);
        // A cgroup v1 has no real-time budget of its own, where the kernel has such budgets.
        if priority > 0
            && corten_tests::cgroup::directory("cpu", "/")
                .join("cpu.rt_runtime_us")
                .exists()
        {
            bundle.spec["linux"]["resources"]["cpu"] = json!({ "realtimeRuntime": 1000, "realtimePeriod": 1_000_000 });
        }
        let report = bundle.report(&[]);
        let seen = &report["scheduling"];
        assert_eq!(
            *seen,
            json!({ "policy": policy, "nice": nice, "priority": priority }),
            "{scheduler}"
        );
    }
}

fn scheduling_flags_are_set(runtime: &Runtime) {
    // SCHED_RESET_ON_FORK is a bit of what sched_getscheduler answers.
    for (flags, seen) in [(json!([]), 3), (json!(["SCHED_FLAG_RESET_ON_FORK"]), 0x4000_0003)] {
        let mut bundle = with(
            runtime,
            "scheduler",
            &json!({ "policy": "SCHED_BATCH", "flags": flags }),
        );
        assert_eq!(
            ask(&mut bundle, libc::SYS_sched_getscheduler, &["0"]),
            seen.to_string(),
            "{flags}"
        );
    }
}

const IO_PRIORITIES: [(&str, u32, u32); 4] = [
    ("IOPRIO_CLASS_RT", 1, 0),
    ("IOPRIO_CLASS_RT", 1, 7),
    ("IOPRIO_CLASS_BE", 2, 3),
    ("IOPRIO_CLASS_IDLE", 3, 0),
];

fn each_io_priority_is_set(runtime: &Runtime) {
    for (class, number, level) in IO_PRIORITIES {
        let mut bundle = with(runtime, "ioPriority", &json!({ "class": class, "priority": level }));
        let seen = ask(&mut bundle, libc::SYS_ioprio_get, &["1", "0"]);
        assert_eq!(seen, (number << 13 | level).to_string(), "{class} {level}");
    }
}

fn exec_file(bundle: &Bundle<'_>, change: impl Fn(&mut Value)) -> Value {
    let mut process = json!({
        "user": { "uid": 0, "gid": 0 }, "args": ["/probe", "report"], "cwd": "/", "env": ["PATH=/"],
    });
    change(&mut process);
    let file = bundle.path().join("process.json");
    fs::write(&file, process.to_string()).expect("write a file of the test");
    let mut command = bundle.command("exec");
    let output = finish(command.arg("--process").arg(&file).arg(&bundle.id)).success();
    corten_tests::bundle::Report::parse(&output.stdout).0
}

fn an_exec_is_scheduled_by_its_own_document_or_the_container_s(runtime: &Runtime) {
    let mut bundle = with(runtime, "scheduler", &json!({ "policy": "SCHED_BATCH", "nice": 5 }));
    bundle.spec["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 });
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let own = json!({ "policy": 3, "nice": 5, "priority": 0 });
    assert_eq!(bundle.exec_report(&[])["scheduling"], own);
    assert_eq!(exec_file(&bundle, |_| ())["scheduling"], own);
    let report = exec_file(&bundle, |process| {
        process["scheduler"] = json!({ "policy": "SCHED_OTHER", "nice": 1 });
    });
    assert_eq!(report["scheduling"], json!({ "policy": 0, "nice": 1, "priority": 0 }));
    let priority = libc::SYS_ioprio_get.to_string();
    let output = bundle.exec(&[], &["/syscall", "call", &priority, "1", "0"]).success();
    assert_eq!(output.stdout, format!("{}\n", 2 << 13 | 6));
}

fn cpus(report: &Value) -> &str {
    report["status"]["Cpus_allowed_list"]
        .as_str()
        .expect("the kernel prints it")
}

fn an_exec_runs_on_the_cpus_of_its_affinity(runtime: &Runtime) {
    let mut bundle = with(runtime, "execCPUAffinity", &json!({ "initial": "0", "final": "0" }));
    bundle.probe(&["report"]);
    let init: Value = serde_json::from_str(&bundle.run().success().stdout).expect("a report");
    let own = fs::read_to_string("/proc/self/status").expect("read status");
    let all = own.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t"));
    assert_eq!(Some(cpus(&init)), all, "it is not for init");

    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    assert_eq!(cpus(&bundle.exec_report(&[])), "0");
    assert_eq!(
        cpus(&exec_file(&bundle, |_| ())),
        "0",
        "the container's own counts where a document has none"
    );
    let last = std::thread::available_parallelism().expect("there are CPUs").get() - 1;
    let report = exec_file(&bundle, |process| {
        process["execCPUAffinity"] = json!({ "initial": "0", "final": format!("{last}") });
    });
    assert_eq!(cpus(&report), last.to_string());
    let output = bundle.exec(&["--cwd", "/"], &["/probe", "exit", "0"]);
    assert_eq!(output.code, 0);
    initial_comes_before_the_process(&bundle);
}

/// `initial` is the runtime's own mask when it makes the process, `final` is set on another process.
fn initial_comes_before_the_process(bundle: &Bundle<'_>) {
    if Command::new("strace").arg("-V").output().is_err() {
        println!("SKIP: strace is not installed");
        return;
    }
    let trace = bundle.path().join("trace");
    let exec = bundle.command("exec");
    let mut command = Command::new("strace");
    command
        .args(["-e", "trace=sched_setaffinity,clone3", "-o"])
        .arg(&trace)
        .arg(exec.get_program())
        .args(exec.get_args())
        .arg(&bundle.id)
        .args(["/probe", "exit", "0"]);
    let _output = finish(&mut command).success();
    let text = fs::read_to_string(&trace).expect("strace writes a file");
    let calls: Vec<&str> = text
        .lines()
        .filter_map(|line| {
            let end = if line.starts_with("sched") {
                line.find(',')
            } else {
                line.find('(')
            };
            end.map(|end| &line[..end])
        })
        .collect();
    let own = calls.iter().position(|call| *call == "sched_setaffinity(0");
    let made = calls.iter().position(|call| *call == "clone3");
    let other = calls
        .iter()
        .rposition(|call| call.starts_with("sched_setaffinity(") && !call.ends_with("(0"));
    assert!(own.is_some() && own < made && made < other, "{text}");
}

fn each_memory_policy_is_set(runtime: &Runtime) {
    for (policy, seen) in [
        (json!({ "mode": "MPOL_DEFAULT" }), "default"),
        (json!({ "mode": "MPOL_BIND", "nodes": "0" }), "bind:0"),
        (
            json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"] }),
            "bind=static:0",
        ),
        (
            json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"] }),
            "bind=relative:0",
        ),
        (
            json!({ "mode": "MPOL_BIND", "nodes": "0-0", "flags": ["MPOL_F_NUMA_BALANCING"] }),
            "bind=balancing:0",
        ),
        (json!({ "mode": "MPOL_INTERLEAVE", "nodes": "0" }), "interleave:0"),
        (
            json!({ "mode": "MPOL_WEIGHTED_INTERLEAVE", "nodes": "0" }),
            "weighted interleave:0",
        ),
        (json!({ "mode": "MPOL_PREFERRED", "nodes": "0" }), "prefer:0"),
        (json!({ "mode": "MPOL_PREFERRED" }), "local"),
        (
            json!({ "mode": "MPOL_PREFERRED_MANY", "nodes": "0" }),
            "prefer (many):0",
        ),
        (json!({ "mode": "MPOL_LOCAL" }), "local"),
    ] {
        let mut bundle = runtime.bundle();
        bundle.spec["linux"]["memoryPolicy"] = policy.clone();
        bundle.probe(&["cat", "/proc/self/numa_maps"]);
        let maps = bundle.run().success().stdout;
        // Every mapping without a policy of its own shows the process's.
        let first = maps
            .lines()
            .next()
            .and_then(|line| line.split_once(' '))
            .expect("address and policy")
            .1;
        assert!(first.starts_with(&format!("{seen} ")), "{policy}: {first}");
    }
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "0" });
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let maps = bundle
        .exec(&[], &["/probe", "cat", "/proc/self/numa_maps"])
        .success()
        .stdout;
    assert!(
        maps.lines().all(|line| line.split(' ').nth(1) == Some("bind:0")),
        "{maps}"
    );
}

fn the_personality_is_set(runtime: &Runtime) {
    for (domain, seen) in [("LINUX", "0"), ("LINUX32", "8")] {
        let mut bundle = runtime.bundle();
        bundle.add_program("syscall");
        bundle.spec["linux"]["personality"] = json!({ "domain": domain });
        assert_eq!(
            ask(&mut bundle, libc::SYS_personality, &["0xffffffff"]),
            seen,
            "{domain}"
        );
        bundle.probe(&["sleep"]);
        let _container = bundle.start();
        let number = libc::SYS_personality.to_string();
        let output = bundle.exec(&[], &["/syscall", "call", &number, "0xffffffff"]).success();
        assert_eq!(output.stdout.trim_end(), seen, "{domain} in exec");
    }
}

fn a_priority_is_raised_in_a_user_namespace_too(runtime: &Runtime) {
    let mut bundle = with(runtime, "scheduler", &json!({ "policy": "SCHED_OTHER", "nice": -11 }));
    bundle.namespace("user", None);
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    bundle.spec["linux"]["uidMappings"] = map.clone();
    bundle.spec["linux"]["gidMappings"] = map;
    let report = bundle.report(&[]);
    assert_eq!(report["scheduling"]["nice"], -11);
}

/// The rules of each field have their tables beside the code.
fn what_the_machine_lacks_is_refused(runtime: &Runtime) {
    for (pointer, value, words) in [
        (
            "/process/scheduler",
            json!({ "policy": "SCHED_ISO" }),
            "process.scheduler.policy",
        ),
        (
            "/process/ioPriority",
            json!({ "class": "IOPRIO_CLASS_BE", "priority": 9 }),
            "process.ioPriority.priority: 9",
        ),
        (
            "/process/execCPUAffinity",
            json!({ "initial": "9-1" }),
            "process.execCPUAffinity.initial",
        ),
        (
            "/linux/memoryPolicy",
            json!({ "mode": "MPOL_BIND", "nodes": "1000" }),
            "linux.memoryPolicy.nodes",
        ),
        (
            "/linux/personality",
            json!({ "domain": "LINUX", "flags": ["X"] }),
            "linux.personality.flags",
        ),
        (
            "/linux/personality",
            json!({ "domain": "BSD" }),
            "linux.personality.domain",
        ),
        ("/process/commandLine", json!("cmd"), "process.commandLine"),
    ] {
        let mut bundle = runtime.bundle();
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        bundle.spec.pointer_mut(parent).expect("it is there")[name] = value.clone();
        let error = bundle.call("create", &[]).failure();
        assert!(error.contains(words), "{pointer} {value}: {error}");
        bundle.assert_nothing_left();
    }
}
