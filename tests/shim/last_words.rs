//! The exit record beyond code and signal: who sent the signal, the cgroup before it went, the end of the output, times.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use corten_proto::exit::{Details, MAX_REASON, MAX_TAIL};
use corten_proto::shim::request::Call;
use corten_proto::shim::{Kill, ReopenLog};
use corten_tests::shim::{Bundle, eventually};
use serde_json::json;

use crate::with_shims;

#[track_caller]
fn details(bundle: &Bundle) -> Details {
    *bundle.exit_record().details.expect("a record with details")
}

#[test]
fn the_end_of_the_error_output() {
    with_shims(|shim, client| {
        let script =
            "echo out; i=0; while [ $i -lt 1000 ]; do echo line $i >&2; i=$((i+1)); done; printf end >&2; exit 3";
        let bundle = shim.bundle("c", script, |_| {});
        client.run(&bundle);
        let record = bundle.exit_record();
        let details = details(&bundle);
        let tail = details.tail.expect("a tail");
        assert_eq!((tail.stream.as_str(), tail.text.len()), ("stderr", MAX_TAIL));
        assert!(tail.text.ends_with("line 998\nline 999\nend"), "{}", tail.text);
        let times = [details.created_at, record.started_at, record.finished_at];
        assert!(times.is_sorted() && times[0] > 0, "{times:?}");
        assert_eq!((details.sent, details.core_dumped), (None, false));
        let mode = fs::metadata(bundle.path.join("exit.json"))
            .expect("stat")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "output may hold what is not for everyone");
    });
}

#[test]
fn a_terminal_has_one_stream_and_no_log_no_words() {
    with_shims(|shim, client| {
        let terminal = shim.bundle("t", "echo out; echo err >&2; exit 3", |config| {
            config["process"]["terminal"] = json!(true);
        });
        let mut create = terminal.create();
        create.terminal = true;
        client.create(create);
        client.start(&terminal.id);
        client.exit(&terminal.id);
        client.delete(&terminal.id).expect("delete");
        let tail = details(&terminal).tail.expect("a tail");
        assert_eq!((tail.stream.as_str(), tail.text.as_str()), ("stdout", "out\r\nerr\r\n"));

        let silent = shim.bundle("s", "echo err >&2; exit 3", |_| {});
        let mut create = silent.create();
        create.log_path.clear();
        client.create(create);
        client.start(&silent.id);
        client.exit(&silent.id);
        client.delete(&silent.id).expect("delete");
        assert_eq!(details(&silent).tail, None);

        let content = shim.bundle("w", "echo all is well >&2", |_| {});
        client.run(&content);
        assert_eq!(details(&content).tail, None, "an exit that needs no reason");
    });
}

/// After a rotation the words are those of the new file.
#[test]
fn a_log_that_was_rotated_or_removed() {
    with_shims(|shim, client| {
        let script = "echo before >&2; while [ ! -e /go ]; do sleep 0.05; done; echo after >&2; exit 3";
        let bundle = shim.bundle("c", script, |_| {});
        client.create(bundle.create());
        client.start(&bundle.id);
        eventually("output", || (!bundle.output("stderr").is_empty()).then_some(()));
        fs::rename(bundle.log_path(), bundle.log_path().with_extension("old")).expect("rename");
        client
            .call(Call::ReopenLog(ReopenLog { id: bundle.id.clone() }))
            .expect("reopen");
        fs::remove_file(bundle.log_path()).expect("remove the log");
        fs::write(bundle.path.join("rootfs/go"), "").expect("go");
        client.exit(&bundle.id);
        client.delete(&bundle.id).expect("delete");
        assert_eq!(details(&bundle).tail.expect("a tail").text, "after\n");
    });
}

#[test]
fn a_signal_that_was_sent_with_its_reason() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "trap 'exit 5' TERM; while :; do sleep 0.05; done", |_| {});
        client.create(bundle.create());
        client.start(&bundle.id);
        // Until the handler is there the first process of a pid namespace ignores the signal.
        std::thread::sleep(std::time::Duration::from_millis(300));
        let kill = Kill {
            id: bundle.id.clone(),
            signal: 15,
            all: false,
            reason: "x".repeat(MAX_REASON + 9),
        };
        client.call(Call::Kill(kill)).expect("kill");
        let exit = client.exit(&bundle.id);
        assert_eq!((exit.code, exit.signal), (5, 0));
        client.delete(&bundle.id).expect("delete");
        let record = bundle.exit_record();
        let sent = details(&bundle).sent.expect("a signal");
        assert_eq!(
            (sent.signal, sent.reason.as_str()),
            (15, "x".repeat(MAX_REASON).as_str())
        );
        assert!((record.started_at..=record.finished_at).contains(&sent.at), "{sent:?}");
    });
}

#[test]
fn a_delete_by_force_is_a_signal_too() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "sleep 1000", |_| {});
        client.create(bundle.create());
        client.start(&bundle.id);
        client.delete(&bundle.id).expect("delete");
        let sent = details(&bundle).sent.expect("a signal");
        assert_eq!((sent.signal, sent.reason.as_str()), (9, "deleted"));
    });
}

#[test]
fn the_cgroup_before_it_goes() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "exec tail /dev/zero", |config| {
            config["linux"]["resources"] = json!({
                "memory": { "limit": 16 << 20, "swap": 16 << 20 },
                "pids": { "limit": 50 },
                "cpu": { "quota": 50000, "period": 100_000 },
            });
        });
        assert!(client.run(&bundle).oom_killed);
        let cgroup = details(&bundle).cgroup.expect("a cgroup");
        assert_eq!(cgroup.memory_limit, Some(16 << 20));
        assert!(cgroup.memory_events["oom_kill"] >= 1, "{cgroup:?}");
        assert_eq!(cgroup.pids_limit, Some(50));
        assert_eq!(
            (cgroup.cpu_quota_us, cgroup.cpu_period_us),
            (Some(50000), Some(100_000))
        );
        assert!(cgroup.cpu_periods.is_some(), "{cgroup:?}");
        let peak = cgroup.memory_peak.expect("a peak");
        assert!((8 << 20..=16 << 20).contains(&peak), "{peak}");
        if cgroup.version == 1 {
            // Kernels differ in what they count there.
            assert!(cgroup.memory_events.contains_key("failcnt"), "{cgroup:?}");
        } else {
            assert!(cgroup.pressure.contains_key("memory"), "{cgroup:?}");
        }
    });
}
