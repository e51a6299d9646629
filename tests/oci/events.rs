//! `events`: statistics in runc's form, notices of memory kills, and the end with the container.

use corten_tests::bundle::{Bundle, Container, Running, Runtime, finish, wait_until};
use serde_json::{Value, json};

each_runtime! {
    statistics_are_runc_s,
    statistics_come_every_interval_until_the_end,
    a_memory_kill_is_told,
    a_stopped_container_has_no_events,
}

const MIB: u64 = 1 << 20;

fn sleeper(runtime: &Runtime) -> (Bundle<'_>, Container) {
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["resources"]["memory"] = json!({ "limit": 64 * MIB });
    bundle.spec["linux"]["resources"]["pids"] = json!({ "limit": 23 });
    bundle.spec["linux"]["resources"]["cpu"] = json!({ "cpus": "0" });
    bundle.probe(&["sleep"]);
    let container = bundle.start();
    (bundle, container)
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

fn statistics_are_runc_s(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime);
    let output = bundle.call("events", &["--stats"]).success();
    let event: Value = serde_json::from_str(&output.stdout).expect("one line of JSON");
    assert_eq!(event["type"], "stats");
    assert_eq!(event["id"], json!(bundle.id));
    let data = &event["data"];
    for (pointer, value) in [
        ("/pids/current", json!(1)),
        ("/pids/limit", json!(23)),
        ("/memory/usage/limit", json!(64 * MIB)),
        ("/memory/usage/failcnt", json!(0)),
        ("/network_interfaces", Value::Null),
        ("/intel_rdt", json!({})),
    ] {
        assert_eq!(data.pointer(pointer), Some(&value), "{pointer}: {data}");
    }
    for pointer in ["/cpu/usage/total", "/memory/usage/usage", "/memory/raw/pgfault"] {
        let number = data.pointer(pointer).and_then(Value::as_u64);
        assert!(number.is_some_and(|number| number > 0), "{pointer}: {data}");
    }
    for pointer in [
        "/cpu/usage/kernel",
        "/cpu/usage/user",
        "/cpu/throttling",
        "/cpuset/cpu_exclusive",
        "/memory/swap/limit",
        "/memory/kernel",
        "/memory/kernelTCP",
        "/blkio",
        "/hugetlb",
    ] {
        assert!(data.pointer(pointer).is_some(), "{pointer}: {data}");
    }
    if !corten_tests::cgroup::unified() {
        assert_eq!(data["cpuset"]["cpus"], json!([0]));
        assert!(data["cpu"]["usage"]["percpu"].is_array(), "{data}");
    }
}

fn statistics_come_every_interval_until_the_end(runtime: &Runtime) {
    let (bundle, container) = sleeper(runtime);
    let mut command = bundle.command("events");
    let running = Running::start(command.args(["--interval", "100ms", &bundle.id]));
    let several = wait_until(|| (lines(&running.stdout()).len() >= 3).then_some(()));
    assert!(several.is_some(), "{}", running.stdout());
    assert!(lines(&running.stdout()).iter().all(|event| event["type"] == "stats"));
    let _killed = finish(bundle.command("kill").args([&bundle.id, "KILL"])).success();
    container.wait();
    // runc waits for the cgroup to go.
    let _deleted = bundle.call("delete", &["--force"]).success();
    assert_eq!(running.wait().code, 0);
}

fn a_memory_kill_is_told(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["resources"]["memory"] = json!({ "limit": 32 * MIB, "swap": 32 * MIB });
    bundle.probe(&["allocate", "128"]);
    let container = bundle.create();
    let mut command = bundle.command("events");
    let running = Running::start(command.args(["--interval", "50ms", &bundle.id]));
    // It watches before the first statistics.
    let watching = wait_until(|| (!lines(&running.stdout()).is_empty()).then_some(()));
    assert!(watching.is_some());
    let _started = bundle.call("start", &[]).success();
    container.wait();
    let told = wait_until(|| {
        let oom = |event: &Value| event["type"] == "oom" && event["id"] == json!(bundle.id);
        lines(&running.stdout()).iter().any(oom).then_some(())
    });
    assert!(told.is_some(), "{}", running.stdout());
    let _deleted = bundle.call("delete", &["--force"]).success();
    assert_eq!(running.wait().code, 0);
}

fn a_stopped_container_has_no_events(runtime: &Runtime) {
    let (bundle, container) = sleeper(runtime);
    let _killed = finish(bundle.command("kill").args([&bundle.id, "KILL"])).success();
    container.wait();
    bundle.wait_for_status("stopped");
    let error = bundle.call("events", &["--stats"]).failure();
    assert!(error.contains("not running"), "{error}");
}
