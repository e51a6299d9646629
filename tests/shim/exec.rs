//! Execs: their descriptors, exit codes, and the end of one with all its descendants.

use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use corten_proto::shim::error::Code;
use corten_proto::shim::{Exec, Exit, KillExec, event, reply, request::Call};
use corten_tests::cgroup;
use corten_tests::leak::Watch;
use corten_tests::shim::{Bundle, Client, PATIENCE, Shim, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::with_shims;

/// A process document for a line of shell.
fn process(shim: &Shim, script: &str) -> PathBuf {
    let document = json!({
        "user": { "uid": 0, "gid": 0 },
        "args": ["/bin/busybox", "sh", "-c", script],
        "env": ["PATH=/bin"],
        "cwd": "/",
    });
    let path = shim.dir().join("process.json");
    fs::write(&path, document.to_string()).expect("process.json");
    path
}

fn request(bundle: &Bundle, exec_id: &str, process: &Path) -> Call {
    Call::Exec(Exec {
        container_id: bundle.id.clone(),
        exec_id: exec_id.into(),
        process: process.display().to_string(),
        ..Default::default()
    })
}

/// Runs an exec with its output in files, up to its answer.
pub(crate) fn begin(
    shim: &Shim,
    client: &mut Client,
    bundle: &Bundle,
    exec_id: &str,
    script: &str,
) -> (i32, File, File) {
    let process = process(shim, script);
    let null = File::open("/dev/null").expect("null");
    let files = [tempfile::tempfile(), tempfile::tempfile()].map(|file| file.expect("temporary file"));
    let fds = [null.as_fd(), files[0].as_fd(), files[1].as_fd()];
    let seq = client.send_fds(request(bundle, exec_id, &process), &fds);
    let pid = match client.wait(seq) {
        Ok(reply::Result::ExecStarted(started)) => started.pid,
        other => panic!("exec: {other:?}"),
    };
    let [stdout, stderr] = files;
    (pid, stdout, stderr)
}

/// Whoever asked for an exec kept its time and read its output: with nobody there, it ends.
#[test]
fn an_exec_ends_with_its_client() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "sleep 1000", |_| {});
        client.create(bundle.create());
        client.start(&bundle.id);
        let mut other = shim.connect();
        begin(shim, &mut other, &bundle, "abandoned", "sleep 1000");
        begin(shim, client, &bundle, "kept", "sleep 1");
        drop(other);
        assert_eq!(exit(client, "abandoned").signal, 9);
        assert_eq!(exit(client, "kept").code, 0);
        client.delete(&bundle.id).expect("delete");
    });
}

pub(crate) fn exit(client: &mut Client, exec_id: &str) -> Exit {
    match client.event(PATIENCE).expect("an exit in time") {
        event::Kind::ExecExited(exited) => {
            assert_eq!(exited.exec_id, exec_id);
            exited.exit.expect("an exit")
        }
        other => panic!("{other:?}"),
    }
}

/// What an exec has written to its file by now.
fn read_back(file: &mut File) -> String {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).expect("seek");
    file.read_to_string(&mut text).expect("read");
    text
}

/// Runs a test with a container that does nothing.
fn with_container(test: impl Fn(&Shim, &mut Client, &Bundle)) {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "exec sleep 1000", |_| {});
        client.create(bundle.create());
        client.start(&bundle.id);
        test(shim, client, &bundle);
        assert_eq!(bundle.extra_files(), [] as [String; 0]);
        client.delete(&bundle.id).expect("delete");
    });
}

#[test]
fn output_goes_to_the_descriptors_and_the_code_comes_back() {
    with_container(|shim, client, bundle| {
        let (pid, mut stdout, mut stderr) = begin(shim, client, bundle, "e", "echo out; echo err >&2; exit 5");
        assert!(pid > 1);
        assert_eq!(exit(client, "e").code, 5);
        assert_eq!(
            (read_back(&mut stdout).as_str(), read_back(&mut stderr).as_str()),
            ("out\n", "err\n")
        );
        assert_eq!(bundle.records(), [], "an exec's output is not the container's");
        // The id is free again.
        begin(shim, client, bundle, "e", "kill -15 $$");
        assert_eq!((exit(client, "e").code, client.event(Duration::ZERO)), (143, None));
    });
}

#[test]
fn an_exec_is_killed_with_its_descendants() {
    with_container(|shim, client, bundle| {
        let script = "sleep 1001 & sh -c 'sleep 1002 & sleep 1003' & echo started; wait";
        let (pid, mut stdout, _) = begin(shim, client, bundle, "e", script);
        eventually("it has children", || {
            (read_back(&mut stdout) == "started\n").then_some(())
        });
        let memberships = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it runs");
        std::thread::sleep(Duration::from_millis(200));
        let kill = || {
            Call::KillExec(KillExec {
                container_id: bundle.id.clone(),
                exec_id: "e".into(),
            })
        };
        client.call(kill()).expect("kill");
        assert_eq!(exit(client, "e").signal, 9);
        client.call(kill()).expect("it is over, which is no error");
        let path = cgroup::membership(memberships.lines(), "pids").expect("a pids cgroup");
        // The exec has a cgroup of its own, below the container's.
        let cage = cgroup::directory("pids", path);
        let cgroup = cage.parent().expect("it is below another");
        eventually("init alone is left", || {
            (cgroup::processes(cgroup).len() == 1).then_some(())
        });
    });
}

/// What has detached itself by a double fork, in a session of its own, has init for its parent and belongs to the exec
/// all the same.
#[test]
fn an_exec_is_killed_with_what_has_detached_itself() {
    with_container(|shim, client, bundle| {
        let marker = format!("8{}.25", std::process::id());
        let script = format!("(setsid sleep {marker} </dev/null >/dev/null 2>&1 &); echo started; sleep 1000");
        let (pid, mut stdout, _) = begin(shim, client, bundle, "e", &script);
        eventually("it has begun", || (read_back(&mut stdout) == "started\n").then_some(()));
        let detached = eventually("it has detached", || {
            let pids = corten_tests::shim::processes_with(&marker);
            pids.into_iter().find(|other| parent(*other) != Some(pid))
        });
        let memberships = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it runs");
        let path = cgroup::membership(memberships.lines(), "pids").expect("a pids cgroup");
        let cage = cgroup::directory("pids", path);
        assert!(cgroup::processes(&cage).contains(&detached), "{path}");
        client
            .call(Call::KillExec(KillExec {
                container_id: bundle.id.clone(),
                exec_id: "e".into(),
            }))
            .expect("kill");
        assert_eq!(exit(client, "e").signal, 9);
        eventually("nothing of it is left", || {
            corten_tests::shim::processes_with(&marker).is_empty().then_some(())
        });
        // An exec that ends by itself leaves no empty cgroup, and what it has detached runs on.
        let script = format!("(setsid sleep {marker} </dev/null >/dev/null 2>&1 &)");
        begin(shim, client, bundle, "daemon", &script);
        assert_eq!(exit(client, "daemon").code, 0);
        eventually("what it has detached runs on", || {
            (corten_tests::shim::processes_with(&marker).len() == 1).then_some(())
        });
        begin(shim, client, bundle, "plain", "true");
        assert_eq!(exit(client, "plain").code, 0);
        let below = || {
            let entries = fs::read_dir(cage.parent().expect("it is below another")).expect("cgroup");
            entries.flatten().filter(|entry| entry.path().is_dir()).count()
        };
        eventually("no cgroup is left but that of the process that runs on", || {
            (below() == 1).then_some(())
        });
        let pid = corten_tests::shim::processes_with(&marker)[0];
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
        eventually("it has ended", || {
            corten_tests::shim::processes_with(&marker).is_empty().then_some(())
        });
        begin(shim, client, bundle, "next", "true");
        assert_eq!(exit(client, "next").code, 0);
        eventually("nor that, once it has ended", || (below() == 0).then_some(()));
    });
}

/// Runs a test with a running container and a runtime called `runc` that does not know the option of cgroups. It answers no
/// question of it before there is a file `go` in the directory.
fn with_old_runtime(test: impl Fn(&Shim, &mut Client, &Bundle, &Path)) {
    let watch = Watch::new(Vec::<String>::new());
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("runc");
    let script = format!(
        r#"#!/bin/sh
case "$*" in *--cgroup*)
    until [ -e {}/go ]; do sleep 0.01; done
    echo 'flag provided but not defined: -cgroup'
    exit 1
esac
exec {} "$@"
"#,
        dir.path().display(),
        corten_tests::binary("corten").display()
    );
    fs::write(&path, script).expect("script");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("chmod");
    let shim = Shim::start(&path);
    watch.also(shim.marker());
    let mut client = shim.connect();
    client.subscribe();
    let bundle = shim.bundle("c", "exec sleep 1000", |_| {});
    client.create(bundle.create());
    client.start(&bundle.id);
    test(&shim, &mut client, &bundle, dir.path());
    assert_eq!(bundle.extra_files(), [] as [String; 0]);
    client.delete(&bundle.id).expect("delete");
    drop(client);
    assert_eq!(shim.log(), "", "the shim has nothing to complain about");
    shim.shut_down();
    watch.assert_clean();
}

#[test]
fn execs_run_under_a_runtime_that_cannot_put_them_into_cgroups() {
    with_old_runtime(|shim, client, bundle, dir| {
        fs::write(dir.join("go"), "").expect("go");
        for exec_id in ["first", "second"] {
            let (_, mut stdout, mut stderr) = begin(shim, client, bundle, exec_id, "echo out; exit 5");
            assert_eq!(exit(client, exec_id).code, 5);
            assert_eq!(
                (read_back(&mut stdout).as_str(), read_back(&mut stderr).as_str()),
                ("out\n", "")
            );
        }
    });
}

#[test]
fn an_exec_can_be_killed_while_the_runtime_is_asked_for_cgroups() {
    with_old_runtime(|shim, client, bundle, dir| {
        let process = process(shim, "sleep 1000");
        let null = File::open("/dev/null").expect("null");
        let seq = client.send_fds(request(bundle, "e", &process), &[null.as_fd(); 3]);
        client
            .call(Call::KillExec(KillExec {
                container_id: bundle.id.clone(),
                exec_id: "e".into(),
            }))
            .expect("kill");
        fs::write(dir.join("go"), "").expect("go");
        let refused = client.wait(seq).expect_err("killed");
        assert!(
            refused.message.contains("killed before it began"),
            "{}",
            refused.message
        );
        // The id is free again.
        begin(shim, client, bundle, "e", "exit 5");
        assert_eq!(exit(client, "e").code, 5);
    });
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[test]
fn an_exec_that_cannot_run_says_why() {
    with_container(|shim, client, bundle| {
        let null = File::open("/dev/null").expect("null");
        let fds = [null.as_fd(); 3];
        let process = shim.dir().join("process.json");
        fs::write(
            &process,
            json!({ "args": ["/no/such/program"], "cwd": "/", "user": {"uid": 0, "gid": 0} }).to_string(),
        )
        .expect("process.json");
        let seq = client.send_fds(request(bundle, "e", &process), &fds);
        let refused = client.wait(seq).expect_err("no such program");
        assert_eq!(refused.code(), Code::Failed);
        assert!(refused.message.contains("/no/such/program"), "{}", refused.message);
        assert!(!refused.message.contains('\n'));
        for count in [0, 2] {
            let seq = client.send_fds(request(bundle, "e", &process), &fds[..count]);
            assert_eq!(client.wait(seq).expect_err("too few descriptors").code(), Code::Invalid);
        }
    });
}

#[test]
fn an_exec_needs_a_running_container() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "exit 0", |_| {});
        client.create(bundle.create());
        let null = File::open("/dev/null").expect("null");
        let process = process(shim, "true");
        let seq = client.send_fds(request(&bundle, "e", &process), &[null.as_fd(); 3]);
        assert_eq!(client.wait(seq).expect_err("not started").code(), Code::WrongState);
        client.start(&bundle.id);
        client.exit(&bundle.id);
        let seq = client.send_fds(request(&bundle, "e", &process), &[null.as_fd(); 3]);
        assert_eq!(client.wait(seq).expect_err("exited").code(), Code::WrongState);
        client.delete(&bundle.id).expect("delete");
        let seq = client.send_fds(request(&bundle, "e", &process), &[null.as_fd(); 3]);
        assert_eq!(client.wait(seq).expect_err("gone").code(), Code::NotFound);
    });
}

#[test]
fn many_execs_at_once_all_end() {
    with_container(|shim, client, bundle| {
        let process = process(shim, "exit 4");
        let null = File::open("/dev/null").expect("null");
        let ids: Vec<String> = (0..12).map(|n| format!("e{n}")).collect();
        let sent: Vec<u64> = ids
            .iter()
            .map(|id| client.send_fds(request(bundle, id, &process), &[null.as_fd(); 3]))
            .collect();
        for seq in sent {
            client.wait(seq).expect("exec");
        }
        for _ in &ids {
            match client.event(PATIENCE).expect("an exit in time") {
                event::Kind::ExecExited(exited) => {
                    assert_eq!(exited.exit.map(|exit| exit.code), Some(4))
                }
                other => panic!("{other:?}"),
            }
        }
    });
}
