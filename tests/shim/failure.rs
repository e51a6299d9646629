//! Runtimes that fail: their own words reach the caller, and nothing of the container remains.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use corten_proto::shim::error::Code;
use corten_proto::shim::request::Call;
use corten_tests::leak::Watch;
use corten_tests::shim::{Client, Shim, eventually};

use crate::{runtimes, with_shims};

/// Runs a test with a shell script in the place of the runtime. It finds its verb in `$VERB`, its log in `$LOG` and its
/// pid file in `$PID_FILE`.
fn with_script(script: &str, test: impl Fn(&Shim, &mut Client)) {
    with_script_and(&[], script, test);
}

/// The same with more arguments for the shim.
fn with_script_and(args: &[&str], script: &str, test: impl Fn(&Shim, &mut Client)) {
    let watch = Watch::new(Vec::<String>::new());
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("runtime.sh");
    let head = "#!/bin/sh\nLOG=$4; VERB=$7; PID_FILE=$9\n";
    fs::write(&path, format!("{head}{script}\n")).expect("script");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("chmod");
    let shim = Shim::start_with(&path, args);
    watch.also(shim.marker());
    let mut client = shim.connect();
    client.subscribe();
    test(&shim, &mut client);
    drop(client);
    shim.shut_down();
    watch.assert_clean();
}

#[test]
fn a_runtimes_own_words_are_passed_on() {
    for (script, expected) in [
        (
            r#"printf '%s' '{"level":"error","msg":"no such\nthing"}' >$LOG; exit 1"#,
            "runtime create: no such; thing",
        ),
        (
            r#"echo '{"level":"warning","msg":"w"}' >$LOG; echo in plain words >&2; exit 1"#,
            "runtime create: in plain words",
        ),
        ("exit 3", "runtime create: exit code 3 and no error text"),
    ] {
        with_script(script, |shim, client| {
            let bundle = shim.bundle("c", "true", |_| {});
            let refused = client.call(Call::Create(bundle.create())).expect_err("it fails");
            assert_eq!((refused.code(), refused.message.as_str()), (Code::Failed, expected));
            assert_eq!(client.subscribe(), []);
            assert_eq!(bundle.extra_files(), [] as [String; 0]);
            assert!(!bundle.log_path().exists(), "nothing of it remains");
        });
    }
}

/// What a dying or lying `create` may have made is removed before the failure is told.
#[test]
fn a_create_that_cannot_be_used_is_undone() {
    for (script, expected) in [
        (
            "[ $VERB = create ] && kill -9 $$; echo $VERB >>$(dirname $LOG)/verbs",
            "ended by signal 9",
        ),
        (
            "[ $VERB = create ] && echo rubbish >$PID_FILE; echo $VERB >>$(dirname $LOG)/verbs",
            "rubbish",
        ),
        (
            "[ $VERB = create ] && echo 1 >$PID_FILE; echo $VERB >>$(dirname $LOG)/verbs",
            "no pid of a container",
        ),
        (
            "[ $VERB = create ] && echo $PPID >$PID_FILE; echo $VERB >>$(dirname $LOG)/verbs",
            "no child of the shim",
        ),
    ] {
        with_script(script, |shim, client| {
            let bundle = shim.bundle("c", "true", |_| {});
            let refused = client.call(Call::Create(bundle.create())).expect_err("it fails");
            assert!(refused.message.contains(expected), "{}", refused.message);
            let verbs = fs::read_to_string(bundle.path.join("verbs")).expect("delete was called");
            assert!(verbs.ends_with("delete\n"), "{verbs}");
            assert!(!bundle.log_path().exists(), "nothing of it remains");
            assert_eq!(client.subscribe(), []);
        });
    }
}

#[test]
fn a_runtime_that_hangs_is_killed_and_undone_and_others_do_not_wait_for_it() {
    let script = "case $VERB in create) [ -e $(dirname $LOG)/hang ] && exec sleep 1000; exit 7;; esac; echo $VERB >>$(dirname $LOG)/verbs";
    with_script_and(&["--call-timeout", "2"], script, |shim, client| {
        let hanging = shim.bundle("hanging", "true", |_| {});
        fs::write(hanging.path.join("hang"), "").expect("hang");
        let began = Instant::now();
        let seq = client.send(Call::Create(hanging.create()));
        let other = shim.bundle("other", "true", |_| {});
        client.call(Call::Create(other.create())).expect_err("it fails");
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        let refused = client.wait(seq).expect_err("no answer");
        assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
        assert!(refused.message.contains("no answer for 2 s"), "{}", refused.message);
        assert_eq!(
            fs::read_to_string(hanging.path.join("verbs")).expect("it was undone"),
            "delete\n"
        );
        assert_eq!(client.subscribe(), []);
    });
}

/// A removal that fails after the exit is tried again by the request to delete.
#[test]
fn a_removal_that_fails_is_told_and_tried_again() {
    let runc = runtimes().pop().expect("a runtime");
    // The real runtime, whose first `delete` fails.
    let script = format!(
        r#"if [ $VERB = delete ] && mkdir $(dirname $LOG)/failed; then echo cannot delete; exit 1; fi; exec {} "$@""#,
        runc.display()
    );
    with_script(&script, |shim, client| {
        let bundle = shim.bundle("c", "exit 2", |_| {});
        client.create(bundle.create());
        client.start(&bundle.id);
        assert_eq!(client.exit(&bundle.id).code, 2);
        eventually("the failure is logged", || {
            shim.log().contains("cannot delete").then_some(())
        });
        assert!(shim.dir().join("runtime").join(&bundle.id).exists());
        client.delete(&bundle.id).expect("the second attempt");
        assert!(!shim.dir().join("runtime").join(&bundle.id).exists());
    });
}

#[test]
fn a_runtime_that_is_not_there_is_named() {
    let watch = Watch::new(Vec::<String>::new());
    let shim = Shim::start(&PathBuf::from("/no/such/runtime"));
    watch.also(shim.marker());
    let mut client = shim.connect();
    let bundle = shim.bundle("c", "true", |_| {});
    let refused = client.call(Call::Create(bundle.create())).expect_err("no runtime");
    assert!(refused.message.contains("/no/such/runtime"), "{}", refused.message);
    assert_eq!(client.subscribe(), []);
    assert_eq!(bundle.extra_files(), [] as [String; 0]);
    shim.shut_down();
    watch.assert_clean();
}

#[test]
fn a_container_that_cannot_be_created_leaves_nothing() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "true", |c| {
            c["process"]["args"] = serde_json::json!(["/no/such/program"])
        });
        // Some runtimes find out at the create, others when init executes the program.
        match client.call(Call::Create(bundle.create())) {
            Err(refused) => assert!(refused.message.contains("/no/such/program"), "{}", refused.message),
            Ok(_) => {
                let start = corten_proto::shim::Start { id: bundle.id.clone() };
                if let Err(refused) = client.call(Call::Start(start)) {
                    assert!(refused.message.contains("/no/such/program"), "{}", refused.message);
                }
                assert_ne!(client.exit(&bundle.id).code, 0);
                client.delete(&bundle.id).expect("delete");
            }
        }
        assert_eq!(client.subscribe(), []);
        assert_eq!(bundle.extra_files(), [] as [String; 0]);
    });
}

#[test]
fn requests_that_cannot_be_meant_are_refused_before_anything_is_done() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "true", |_| {});
        let mut refused = |change: fn(&mut corten_proto::shim::Create), field: &str| {
            let mut create = bundle.create();
            change(&mut create);
            let refused = client.call(Call::Create(create)).expect_err(field);
            assert_eq!(refused.code(), Code::Invalid);
            assert!(refused.message.contains(field), "{}", refused.message);
        };
        refused(|create| create.id = "../c".into(), "container id");
        refused(|create| create.id.clear(), "container id");
        refused(|create| create.bundle = "relative".into(), "bundle");
        refused(|create| create.exit_record.clear(), "exit_record");
        refused(|create| create.log_directory = "relative".into(), "log_directory");
        assert_eq!(client.subscribe(), []);
        assert!(!shim.dir().join("logs").exists());
    });
}

/// With no descriptor left, a connection is turned away once, and not looked at over and over.
#[test]
fn a_connection_without_a_descriptor_for_it_is_closed() {
    with_script("exit 1", |shim, client| {
        let fds = format!("/proc/{}/fd", shim.pid());
        let is_free = |fd: &u32| !PathBuf::from(format!("{fds}/{fd}")).exists();
        let lowest = (0..).find(is_free).expect("a free number");
        let limit = |soft: u32| {
            let status = std::process::Command::new("prlimit")
                .args(["--pid", &shim.pid().to_string()])
                .arg(format!("--nofile={soft}:"))
                .status();
            assert!(status.expect("prlimit").success());
        };
        limit(lowest);
        assert!(shim.connect().is_closed());
        std::thread::sleep(Duration::from_millis(200));
        let refusals = shim.log().matches("connection refused").count();
        assert_eq!(refusals, 1, "{}", shim.log());
        limit(1024);
        assert_eq!(client.subscribe(), [], "the others are served");
        shim.connect().subscribe();
    });
}
