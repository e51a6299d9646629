//! Create, start, kill, delete, and what is left afterwards; the infra container; the end of the shim.

use std::fs;
use std::time::Duration;

use corten_proto::shim::container::State;
use corten_proto::shim::error::Code;
use corten_proto::shim::{Shutdown, request::Call};
use corten_tests::leak::Watch;
use corten_tests::shim::{Shim, config, eventually};
use serde_json::json;

use crate::{runtimes, with_shims};

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

#[test]
fn a_container_runs_and_its_exit_code_comes_back() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "echo hello; exit 42", |_| {});
        let pid = client.create(bundle.create());
        assert!(fs::metadata(format!("/proc/{pid}")).is_ok());
        let held = shim.connect().subscribe();
        assert_eq!(
            (held[0].state(), held[0].pid, held[0].started_at),
            (State::Created, pid, 0)
        );
        assert!(bundle.log_path().exists(), "the log is there before the start");
        let started_at = client.start(&bundle.id);
        let exit = client.exit(&bundle.id);
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (42, 0, false));
        // Log and record are complete once the event is there.
        assert_eq!(bundle.output("stdout"), b"hello\n");
        let record = bundle.exit_record();
        assert_eq!((record.pid, record.code, record.started_at), (pid, 42, started_at));
        assert_eq!(record.exit(), exit);
        assert!(started_at > 0 && started_at <= exit.finished_at);
        client.delete(&bundle.id).expect("delete");
        assert_eq!(shim.connect().subscribe(), []);
        assert_eq!(bundle.extra_files(), [] as [String; 0]);
    });
}

#[test]
fn signals_end_a_container_and_are_told_apart() {
    with_shims(|shim, client| {
        let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done";
        for (name, signal, code) in [("term", SIGTERM, 3), ("kill", SIGKILL, 137)] {
            let bundle = shim.bundle(name, script, |_| {});
            client.create(bundle.create());
            client.start(&bundle.id);
            eventually("the trap is set", || {
                (!bundle.output("stdout").is_empty()).then_some(())
            });
            client.kill(&bundle.id, signal).expect("kill");
            let exit = client.exit(&bundle.id);
            assert_eq!((exit.code, exit.oom_killed), (code, false));
            // Nothing is left to signal, which is no error.
            client.kill(&bundle.id, signal).expect("kill again");
            client.delete(&bundle.id).expect("delete");
        }
    });
}

#[test]
fn delete_ends_a_running_container_and_one_that_was_never_started() {
    with_shims(|shim, client| {
        for start in [false, true] {
            let bundle = shim.bundle(&format!("c{start}"), "sleep 1000", |_| {});
            let pid = client.create(bundle.create());
            if start {
                client.start(&bundle.id);
            }
            client.delete(&bundle.id).expect("delete");
            assert!(fs::metadata(format!("/proc/{pid}")).is_err(), "done means gone");
            let exit = client.exit(&bundle.id);
            assert_eq!((exit.code, exit.signal), (137, SIGKILL));
            assert_eq!(bundle.exit_record().started_at != 0, start);
            let again = client.delete(&bundle.id).expect_err("forgotten");
            assert_eq!(again.code(), Code::NotFound);
        }
    });
}

#[test]
fn the_runtimes_state_goes_with_the_exit_though_nobody_asks() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "exit 0", |_| {});
        client.create(bundle.create());
        client.start(&bundle.id);
        client.exit(&bundle.id);
        let state = shim.dir().join("runtime").join(&bundle.id);
        eventually("the runtime's state goes", || (!state.exists()).then_some(()));
        client.delete(&bundle.id).expect("delete");
    });
}

#[test]
fn requests_out_of_turn_are_refused() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "sleep 1000", |_| {});
        client.create(bundle.create());
        let twice = client.call(Call::Create(bundle.create())).expect_err("the id is taken");
        assert_eq!(twice.code(), Code::AlreadyExists);
        let started_at = client.start(&bundle.id);
        assert_eq!(client.start(&bundle.id), started_at, "the same start");
        let told: Vec<_> = client.starts.iter().map(|start| start.started_at).collect();
        assert_eq!(told, [started_at], "told once");
        let shutdown = client
            .call(Call::Shutdown(Shutdown {}))
            .expect_err("a container is left");
        assert_eq!(shutdown.code(), Code::WrongState);
        assert_eq!(
            client.kill("nobody", SIGTERM).expect_err("unknown").code(),
            Code::NotFound
        );
        assert_eq!(client.kill(&bundle.id, 0).expect_err("no signal").code(), Code::Invalid);
        client.delete(&bundle.id).expect("delete");
    });
}

/// The requests are sent at once; each waits for the one before.
#[test]
fn the_calls_of_one_container_run_in_order() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "sleep 1000", |_| {});
        let id = || bundle.id.clone();
        let kill = corten_proto::shim::Kill {
            id: id(),
            signal: SIGKILL,
            all: false,
            reason: String::new(),
        };
        let calls = [
            Call::Create(bundle.create()),
            Call::Start(corten_proto::shim::Start { id: id() }),
            Call::Kill(kill),
            Call::Delete(corten_proto::shim::Delete { id: id() }),
        ];
        let sent = calls.map(|call| client.send(call));
        for seq in sent {
            client.wait(seq).expect("each succeeds");
        }
        assert_eq!(client.exit(&bundle.id).signal, SIGKILL);
    });
}

#[test]
fn several_containers_at_once() {
    with_shims(|shim, client| {
        let bundles: Vec<_> = (0..6)
            .map(|n| shim.bundle(&format!("c{n}"), &format!("echo {n}; exit {n}"), |_| {}))
            .collect();
        let created: Vec<u64> = bundles.iter().map(|b| client.send(Call::Create(b.create()))).collect();
        for seq in created {
            client.wait(seq).expect("create");
        }
        for bundle in &bundles {
            client.send(Call::Start(corten_proto::shim::Start { id: bundle.id.clone() }));
        }
        for (code, bundle) in (0..).zip(&bundles) {
            eventually("the exit record", || {
                bundle.path.join("exit.json").exists().then_some(())
            });
            assert_eq!(bundle.exit_record().code, code);
            assert_eq!(bundle.output("stdout"), format!("{code}\n").as_bytes());
            client.delete(&bundle.id).expect("delete");
        }
    });
}

#[test]
fn standard_input_is_empty_unless_asked_for() {
    with_shims(|shim, client| {
        let empty = shim.bundle("empty", "cat; echo end", |_| {});
        client.run(&empty);
        assert_eq!(empty.output("stdout"), b"end\n");
        let open = shim.bundle("open", "echo reading; cat; echo end", |_| {});
        let mut create = open.create();
        create.stdin = true;
        client.create(create);
        client.start(&open.id);
        eventually("it reads", || (!open.output("stdout").is_empty()).then_some(()));
        assert_eq!(client.event(Duration::from_millis(300)), None, "it waits for input");
        client.delete(&open.id).expect("delete");
        assert_eq!(open.output("stdout"), b"reading\n");
    });
}

/// The shim blocks signals, ignores SIGPIPE and holds sockets and pipes; none of it is a container's business.
#[test]
fn a_container_inherits_nothing_of_the_shim() {
    with_shims(|shim, client| {
        let fds = shim.bundle("fds", "ls /proc/1/fd; exit 0", |_| {});
        client.run(&fds);
        assert_eq!(fds.output("stdout"), b"0\n1\n2\n");
        // Without a shell, which has signals of its own to ignore.
        let grep = ["/bin/busybox", "grep", "-E", "^Sig(Blk|Ign)", "/proc/1/status"];
        let signals = shim.bundle("signals", "", |c| c["process"]["args"] = json!(grep));
        client.run(&signals);
        let output = String::from_utf8(signals.output("stdout")).expect("text");
        assert_eq!(output.lines().count(), 2, "{output}");
        for line in output.lines() {
            let (_, set) = line.split_once(":\t").expect("name and set");
            // 32 and 33 belong to libc, which ignores them in what it spawns.
            let set = u64::from_str_radix(set, 16).expect("a set") & !(0b11 << 31);
            assert_eq!(set, 0, "{output}");
        }
    });
}

/// The pause program as the init of a pod's pid namespace: a second container's orphans come to it.
#[test]
fn the_infra_container_pauses_reaps_and_ends_on_sigterm() {
    with_shims(|shim, client| {
        let pause_rootfs = shim.dir().join("pause");
        let infra = shim.bundle("infra", "", |c| {
            *c = config(
                c["linux"]["cgroupsPath"]
                    .as_str()
                    .expect("a path")
                    .trim_start_matches('/'),
                &["/pause"],
            );
            c["root"] = json!({ "path": pause_rootfs, "readonly": true });
        });
        let pid = client.create(infra.create());
        client.start(&infra.id);
        let orphans = "(sh -c 'sleep 0.2' &) ; (sh -c 'sleep 0.2' &); exec sleep 0.1";
        let other = shim.bundle("other", orphans, |c| {
            c["linux"]["namespaces"][0] = json!({ "type": "pid", "path": format!("/proc/{pid}/ns/pid") });
        });
        client.create(other.create());
        client.start(&other.id);
        assert_eq!(client.exit(&other.id).code, 0);
        client.delete(&other.id).expect("delete");
        let children = format!("/proc/{pid}/task/{pid}/children");
        eventually("pause has reaped", || {
            fs::read_to_string(&children).ok()?.is_empty().then_some(())
        });
        client.kill(&infra.id, SIGTERM).expect("kill");
        assert_eq!(client.exit(&infra.id).code, 0);
        client.delete(&infra.id).expect("delete");
    });
}

#[test]
fn a_shim_nobody_uses_ends_by_itself() {
    let watch = Watch::new(Vec::<String>::new());
    let mut shim = Shim::start_with(&runtimes()[0], &["--idle-timeout", "1"]);
    watch.also(shim.marker());
    let mut client = shim.connect();
    client.subscribe();
    std::thread::sleep(Duration::from_millis(1500));
    client.subscribe();
    drop(client);
    assert!(shim.wait(), "{}", shim.log());
    drop(shim);
    watch.assert_clean();
}

#[test]
fn a_shim_outlives_its_service_being_stopped() {
    with_shims(|shim, client| {
        let pid = nix::unistd::Pid::from_raw(shim.pid().cast_signed());
        for signal in [
            nix::sys::signal::SIGTERM,
            nix::sys::signal::SIGINT,
            nix::sys::signal::SIGHUP,
        ] {
            nix::sys::signal::kill(pid, signal).expect("kill");
        }
        assert_eq!(client.subscribe(), []);
    });
}

#[test]
fn the_pause_program_is_installed_once() {
    use std::os::unix::fs::MetadataExt;
    with_shims(|shim, _| {
        let pause = fs::metadata(shim.dir().join("pause/pause")).expect("installed");
        assert_eq!(pause.mode() & 0o7777, 0o755);
        assert!(pause.len() < 10 * 1024, "{} bytes", pause.len());
        for name in ["dev", "proc", "sys", "etc"] {
            assert!(shim.dir().join("pause").join(name).is_dir(), "{name}");
        }
    });
}
