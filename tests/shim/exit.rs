//! Exits: when nobody is connected, with output held open, out of memory, with many orphans.

use std::fs;
use std::time::{Duration, Instant};

use corten_proto::shim::container::State;
use corten_proto::shim::request::Call;
use corten_tests::shim::{Client, eventually};
use serde_json::json;

use crate::{with_lonely_shims, with_shims};

#[test]
fn an_exit_while_nobody_is_connected_is_on_disk_and_in_the_next_answer() {
    with_lonely_shims(|shim| {
        let bundle = shim.bundle("c", "sleep 0.3; exit 7", |_| {});
        let mut gone = shim.connect();
        gone.create(bundle.create());
        gone.start(&bundle.id);
        drop(gone);
        eventually("the exit record", || {
            bundle.path.join("exit.json").exists().then_some(())
        });
        let record = bundle.exit_record();
        assert_eq!(record.code, 7);
        let mut later = shim.connect();
        let held = later.subscribe();
        assert_eq!(
            (held.len(), held[0].state(), held[0].exit),
            (1, State::Exited, Some(record.exit()))
        );
        assert_eq!((held[0].pid, held[0].started_at), (record.pid, record.started_at));
        later.delete(&bundle.id).expect("delete");
        assert_eq!(
            later.event(Duration::ZERO),
            None,
            "an exit that was reported is not told again"
        );
    });
}

/// In a pod with one pid namespace an orphan outlives its container's init and keeps the pipe.
#[test]
fn an_orphan_that_holds_the_output_does_not_hold_up_the_exit() {
    with_shims(|shim, client| {
        let script = "(sh -c 'while :; do echo orphan; sleep 0.1; done' &); echo init";
        let bundle = shim.bundle("c", script, |c| {
            let namespaces = c["linux"]["namespaces"].as_array_mut().expect("a list");
            namespaces.retain(|namespace| namespace["type"] != "pid");
        });
        client.create(bundle.create());
        client.start(&bundle.id);
        let began = Instant::now();
        let exit = client.exit(&bundle.id);
        assert_eq!(exit.code, 0);
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        client.delete(&bundle.id).expect("delete");
        let output = String::from_utf8(bundle.output("stdout")).expect("text");
        assert!(
            output.contains("init\n") && output.matches("orphan").count() > 2,
            "{output}"
        );
    });
}

#[test]
fn an_oom_kill_is_told_from_a_kill() {
    with_shims(|shim, client| {
        let limit = |c: &mut serde_json::Value| {
            c["linux"]["resources"] = json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } });
        };
        // tail keeps its last line in memory, and /dev/zero has one without end.
        let bundle = shim.bundle("oom", "exec tail /dev/zero", limit);
        let exit = client.run(&bundle);
        assert_eq!((exit.signal, exit.oom_killed), (9, true));
        assert!(bundle.exit_record().oom_killed);
        let bundle = shim.bundle("kill", "kill -9 $$; sleep 1000", |c| {
            limit(c);
            let namespaces = c["linux"]["namespaces"].as_array_mut().expect("a list");
            namespaces.retain(|namespace| namespace["type"] != "pid");
        });
        let exit = client.run(&bundle);
        assert_eq!((exit.signal, exit.oom_killed), (9, false));
    });
}

/// A helper that runs out of memory is counted, and a later SIGKILL is not mistaken for the kernel's.
#[test]
fn an_oom_kill_of_an_exec_is_not_the_containers() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "exec sleep 1000", |c| {
            c["linux"]["resources"] = json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } });
        });
        client.create(bundle.create());
        client.start(&bundle.id);
        let helper = |client: &mut Client, script: &str| {
            crate::exec::begin(shim, client, &bundle, "e", script);
            crate::exec::exit(client, "e")
        };
        let exit = helper(client, "exec tail /dev/zero");
        assert_eq!((exit.signal, exit.oom_killed), (9, true));
        let exit = helper(client, "tail /dev/zero; exit 3");
        assert_eq!((exit.code, exit.oom_killed), (3, false), "a child of it was killed");
        let exit = helper(client, "kill -9 $$");
        assert_eq!((exit.signal, exit.oom_killed), (9, false));
        client.kill(&bundle.id, 9).expect("kill");
        let exit = client.exit(&bundle.id);
        assert_eq!((exit.signal, exit.oom_killed, exit.oom_kills), (9, false, 2));
        assert_eq!(bundle.exit_record().oom_kills, 2);
        client.delete(&bundle.id).expect("delete");
    });
}

#[test]
fn orphans_of_the_pod_are_reaped() {
    with_shims(|shim, client| {
        let script = "for i in 1 2 3 4 5 6 7 8 9; do (sh -c 'sleep 0.1' &); done; sleep 0.5";
        let bundle = shim.bundle("c", script, |c| {
            let namespaces = c["linux"]["namespaces"].as_array_mut().expect("a list");
            namespaces.retain(|namespace| namespace["type"] != "pid");
        });
        client.create(bundle.create());
        client.start(&bundle.id);
        client.exit(&bundle.id);
        client.delete(&bundle.id).expect("delete");
        let children = format!("/proc/{0}/task/{0}/children", shim.pid());
        eventually("the shim has no child left", || {
            fs::read_to_string(&children).ok()?.is_empty().then_some(())
        });
    });
}

/// A call that hangs must not let the zombies of the rest of the pod pile up.
#[test]
fn orphans_are_reaped_while_a_call_is_in_flight() {
    with_shims(|shim, client| {
        let script = "for i in 1 2 3 4 5 6 7 8 9; do (sh -c 'sleep 1' &); done; sleep 1000";
        let bundle = shim.bundle("c", script, |c| {
            let namespaces = c["linux"]["namespaces"].as_array_mut().expect("a list");
            namespaces.retain(|namespace| namespace["type"] != "pid");
        });
        client.create(bundle.create());
        client.start(&bundle.id);
        let children = || {
            let text = fs::read_to_string(format!("/proc/{0}/task/{0}/children", shim.pid())).unwrap_or_default();
            text.split_ascii_whitespace().count()
        };
        eventually("nine orphans and the init", || (children() == 10).then_some(()));
        let go_on = shim.dir().join("go-on");
        let slow = shim.bundle("slow", "sleep 1000", |c| {
            let script = format!("until [ -e {} ]; do sleep 0.1; done", go_on.display());
            let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
            c["hooks"] = json!({ "createRuntime": [hook] });
        });
        // Ages are told in hundredths of a second.
        std::thread::sleep(Duration::from_millis(50));
        let creating = client.send(Call::Create(slow.create()));
        // The init, the call and its own child, which may have come to the shim. The call cannot end before.
        eventually("the orphans are reaped", || (children() <= 3).then_some(()));
        fs::write(&go_on, "").expect("let the call go on");
        client.wait(creating).expect("create");
        for id in [&bundle.id, &slow.id] {
            client.kill(id, 9).expect("kill");
            client.exit(id);
            client.delete(id).expect("delete");
        }
    });
}
