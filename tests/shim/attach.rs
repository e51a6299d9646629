//! Attached clients: what they are given, what happens to one that does not read, and the end of standard input.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use corten_proto::shim::error::Code;
use corten_proto::shim::{Attach, Create, Exec, reply, request::Call};
use corten_tests::shim::{Bundle, Client, Outcome, Shim, eventually};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::json;

use crate::with_shims;

/// The ends of an output's pipe: the client's, and the one that goes to the shim.
fn output() -> (File, OwnedFd) {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).expect("pipe");
    fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("O_NONBLOCK");
    (read.into(), write)
}

fn request(bundle: &Bundle, stdin: bool, stdout: bool, stderr: bool) -> Call {
    Call::Attach(Attach {
        id: bundle.id.clone(),
        stdin,
        stdout,
        stderr,
    })
}

/// Attaches; whether there is a terminal, and the descriptor for input.
fn attach(client: &mut Client, call: Call, outputs: &[&OwnedFd]) -> (bool, Option<File>) {
    let fds: Vec<_> = outputs.iter().map(|fd| fd.as_fd()).collect();
    let seq = client.send_fds(call, &fds);
    match client.wait_fd(seq).expect("attached") {
        (reply::Result::Attached(attached), fd) => (attached.terminal, fd.map(File::from)),
        (other, _) => panic!("{other:?}"),
    }
}

/// The refusal of an attach.
fn refused(client: &mut Client, call: Call, outputs: &[&OwnedFd]) -> corten_proto::shim::Error {
    let fds: Vec<_> = outputs.iter().map(|fd| fd.as_fd()).collect();
    let seq = client.send_fds(call, &fds);
    let outcome: Outcome = client.wait(seq);
    outcome.expect_err("refused")
}

/// Reads to the end, which must come.
fn rest(mut file: File) -> String {
    let mut text = Vec::new();
    file.read_to_end(&mut text).expect("read");
    String::from_utf8_lossy(&text).into_owned()
}

fn start(client: &mut Client, bundle: &Bundle, change: impl FnOnce(&mut Create)) {
    let mut create = bundle.create();
    change(&mut create);
    client.create(create);
    client.start(&bundle.id);
}

#[test]
fn each_client_gets_the_outputs_it_asks_for_and_their_end() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "read line; echo out $line; echo err >&2", |_| {});
        start(client, &bundle, |create| create.stdin = true);
        let (stdout, stderr, both) = (output(), output(), (output(), output()));
        assert!(
            attach(client, request(&bundle, false, true, false), &[&stdout.1])
                .1
                .is_none()
        );
        attach(client, request(&bundle, false, false, true), &[&stderr.1]);
        let two = [&both.0.1, &both.1.1];
        let (terminal, stdin) = attach(client, request(&bundle, true, true, true), &two);
        assert!(!terminal);
        drop((stdout.1, stderr.1, both.0.1, both.1.1));
        stdin.expect("standard input").write_all(b"line\n").expect("write");
        for (file, expected) in [
            (stdout.0, "out line\n"),
            (stderr.0, "err\n"),
            (both.0.0, "out line\n"),
            (both.1.0, "err\n"),
        ] {
            assert_eq!(rest(file), expected);
        }
        assert_eq!(client.exit(&bundle.id).code, 0);
        let late = refused(client, request(&bundle, false, false, false), &[]);
        assert_eq!(late.code(), Code::WrongState, "{}", late.message);
        client.delete(&bundle.id).expect("delete");
        assert_eq!(bundle.output("stdout"), b"out line\n");
    });
}

#[test]
fn standard_input_stays_open_unless_it_is_for_one_client() {
    with_shims(|shim, client| {
        for stdin_once in [false, true] {
            let bundle = shim.bundle("c", "cat; echo end", |_| {});
            start(client, &bundle, |create| {
                (create.stdin, create.stdin_once) = (true, stdin_once);
            });
            let (_, stdin) = attach(client, request(&bundle, true, false, false), &[]);
            stdin.expect("standard input").write_all(b"one\n").expect("write");
            if stdin_once {
                assert_eq!(client.exit(&bundle.id).code, 0);
                assert_eq!(bundle.output("stdout"), b"one\nend\n");
            } else {
                let (_, stdin) = attach(client, request(&bundle, true, false, false), &[]);
                stdin.expect("standard input").write_all(b"two\n").expect("write");
                eventually("both have been read", || {
                    (bundle.output("stdout") == b"one\ntwo\n").then_some(())
                });
                client.kill(&bundle.id, 9).expect("kill");
                client.exit(&bundle.id);
            }
            client.delete(&bundle.id).expect("delete");
            std::fs::remove_file(bundle.log_path()).expect("remove the log");
            std::fs::remove_dir_all(&bundle.path).expect("remove the bundle");
        }
    });
}

#[test]
fn a_second_client_of_an_input_for_one_is_refused() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "cat", |_| {});
        start(client, &bundle, |create| {
            (create.stdin, create.stdin_once) = (true, true)
        });
        let (_, stdin) = attach(client, request(&bundle, true, false, false), &[]);
        let second = refused(client, request(&bundle, true, false, false), &[]);
        assert_eq!(second.code(), Code::WrongState);
        assert!(second.message.contains("stdin_once"), "{}", second.message);
        drop(stdin);
        assert_eq!(client.exit(&bundle.id).code, 0);
        client.delete(&bundle.id).expect("delete");
    });
}

#[test]
fn a_client_that_does_not_read_holds_nobody_up_and_learns_what_it_missed() {
    with_shims(|shim, client| {
        // More than any pipe holds, so that some of it cannot be kept for the slow one.
        let script = "read go; dd if=/dev/zero bs=64k count=64 2>/dev/null | tr '\\0' x; echo; read go; echo last";
        let bundle = shim.bundle("c", script, |_| {});
        start(client, &bundle, |create| create.stdin = true);
        let (mut slow, slow_end) = output();
        attach(client, request(&bundle, false, true, false), &[&slow_end]);
        drop(slow_end);
        let (_, stdin) = attach(client, request(&bundle, true, false, false), &[]);
        let mut stdin = stdin.expect("standard input");
        stdin.write_all(b"go\n").expect("write");
        let written = 64 * 64 * 1024 + 1;
        // Counted in the raw file: a read of one that is being written to may end within a record.
        eventually("all of it is in the log", || {
            let log = std::fs::read(bundle.log_path()).expect("the log");
            (log.iter().filter(|byte| **byte == b'x').count() == written - 1).then_some(())
        });
        // Now it reads, and is told without anything new being written.
        let mut text = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        while !text.ends_with(b"read too slowly]\r\n") {
            let count = slow.read(&mut buffer).expect("read");
            assert!(count > 0, "closed after {} bytes", text.len());
            text.extend_from_slice(&buffer[..count]);
        }
        stdin.write_all(b"go\n").expect("write");
        assert_eq!(client.exit(&bundle.id).code, 0);
        client.delete(&bundle.id).expect("delete");
        let text = String::from_utf8(text).expect("text") + &rest(slow);
        let dropped = text.split("[corten-shim: ").skip(1).map(|notice| {
            let count = notice.split_once(" bytes of output dropped").expect("a notice").0;
            count.parse::<usize>().expect("a number")
        });
        let (dropped, kept) = (dropped.sum::<usize>(), text.matches('x').count());
        let line_break = usize::from(kept + dropped != written);
        assert!(dropped > 0 && text.ends_with("\nlast\n"), "{dropped}");
        assert_eq!(kept + dropped + line_break, written);
    });
}

#[test]
fn clients_that_leave_leave_nothing_in_the_shim() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "sleep 1000", |_| {});
        start(client, &bundle, |create| create.stdin = true);
        let descriptors = || {
            std::fs::read_dir(format!("/proc/{}/fd", shim.pid()))
                .expect("fd")
                .count()
        };
        // The answer to a start is sent before the pidfd of its call is closed; the next answer comes after that.
        client.subscribe();
        let before = descriptors();
        // More than a container's audience may be at once: each is gone before the last one comes.
        for _ in 0..8 {
            let mut other = shim.connect();
            for _ in 0..16 {
                let (read, write) = output();
                attach(&mut other, request(&bundle, true, true, false), &[&write]);
                drop((read, write));
            }
            drop(other);
            eventually("their pipes are closed", || (descriptors() == before).then_some(()));
        }
        client.kill(&bundle.id, 9).expect("kill");
        client.exit(&bundle.id);
        client.delete(&bundle.id).expect("delete");
    });
}

#[test]
fn what_cannot_be_attached_to_is_refused_with_the_reason() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "sleep 1000", |_| {});
        start(client, &bundle, |_| {});
        let (read, write) = output();
        let blocking = pipe2(OFlag::O_CLOEXEC).expect("pipe").1;
        let null = OwnedFd::from(File::create("/dev/null").expect("null"));
        let read = OwnedFd::from(read);
        for (call, fds, code, text) in [
            (
                request(&bundle, true, false, false),
                vec![],
                Code::Invalid,
                "created without",
            ),
            (
                request(&bundle, false, true, false),
                vec![],
                Code::Invalid,
                "0 descriptors",
            ),
            (
                request(&bundle, false, true, false),
                vec![&write, &write],
                Code::Invalid,
                "2 descriptors",
            ),
            (
                request(&bundle, false, true, false),
                vec![&blocking],
                Code::Invalid,
                "non-blocking",
            ),
            (
                request(&bundle, false, true, false),
                vec![&read],
                Code::Invalid,
                "writing end",
            ),
            (
                request(&bundle, false, true, false),
                vec![&null],
                Code::Invalid,
                "of a pipe",
            ),
        ] {
            let refused = refused(client, call, &fds);
            assert_eq!(refused.code(), code, "{}", refused.message);
            assert!(refused.message.contains(text), "{}", refused.message);
        }
        client.kill(&bundle.id, 9).expect("kill");
        client.exit(&bundle.id);
        client.delete(&bundle.id).expect("delete");
    });
}

#[test]
fn a_terminal_is_handed_out_for_input_and_size() {
    with_shims(|shim, client| {
        let script = "read line; echo got $line; stty size; exit 4";
        let bundle = shim.bundle("c", script, |c| c["process"]["terminal"] = true.into());
        start(client, &bundle, |create| create.terminal = true);
        let (stdout, end) = output();
        let both = refused(client, request(&bundle, true, true, true), &[&end, &end]);
        assert_eq!(both.code(), Code::Invalid, "{}", both.message);
        let (terminal, master) = attach(client, request(&bundle, true, true, false), &[&end]);
        assert!(terminal);
        drop(end);
        let mut master = master.expect("the terminal");
        let size = Winsize {
            ws_row: 33,
            ws_col: 77,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).expect("TIOCSWINSZ");
        master.write_all(b"word\n").expect("write");
        assert_eq!(client.exit(&bundle.id).code, 4);
        let text = rest(stdout);
        assert!(text.ends_with("got word\r\n33 77\r\n"), "{text:?}");
        drop(master);
        client.delete(&bundle.id).expect("delete");
    });
}

/// The master of the terminal that comes in at a console socket.
fn master(listener: &UnixListener) -> File {
    let (peer, _) = listener.accept().expect("accept");
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 256];
    let data = &mut [std::io::IoSliceMut::new(&mut name)];
    recvmsg(&peer, data, &mut ancillary, RecvFlags::CMSG_CLOEXEC).expect("recvmsg");
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fd.expect("a descriptor").into()
}

/// Begins an exec with a terminal, whose master is returned.
fn exec_with_terminal(shim: &Shim, client: &mut Client, bundle: &Bundle, script: &str) -> File {
    let document = json!({
        "terminal": true,
        "user": { "uid": 0, "gid": 0 },
        "args": ["/bin/busybox", "sh", "-c", script],
        "env": ["PATH=/bin", "TERM=xterm"],
        "cwd": "/",
    });
    let process = shim.dir().join("process.json");
    std::fs::write(&process, document.to_string()).expect("process.json");
    let socket = shim.dir().join("console.sock");
    let listener = UnixListener::bind(&socket).expect("bind");
    let exec = Exec {
        container_id: bundle.id.clone(),
        exec_id: "e".into(),
        process: process.display().to_string(),
        console_socket: socket.display().to_string(),
    };
    let outcome = client.call(Call::Exec(exec)).expect("exec");
    assert!(matches!(outcome, reply::Result::ExecStarted(_)), "{outcome:?}");
    std::fs::remove_file(&socket).expect("remove the socket");
    master(&listener)
}

#[test]
fn an_exec_with_a_terminal_gives_its_master_to_the_caller() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "sleep 1000", |_| {});
        start(client, &bundle, |_| {});
        let mut master = exec_with_terminal(shim, client, &bundle, "tty; read line; echo got $line; exit 5");
        master.write_all(b"word\n").expect("write");
        assert_eq!(crate::exec::exit(client, "e").code, 5);
        let mut text = Vec::new();
        // EIO is how a terminal's master ends.
        let mut buffer = [0; 256];
        while let Ok(count @ 1..) = master.read(&mut buffer) {
            text.extend_from_slice(&buffer[..count]);
        }
        let text = String::from_utf8(text).expect("text");
        assert!(text.starts_with("/dev/pts/") || text.starts_with("word"), "{text:?}");
        assert!(text.ends_with("got word\r\n"), "{text:?}");
        // The caller hangs up: so does the session.
        drop(exec_with_terminal(shim, client, &bundle, "sleep 1000"));
        assert_eq!(crate::exec::exit(client, "e").signal, 1, "SIGHUP");
        assert_eq!(client.event(Duration::ZERO), None);
        client.kill(&bundle.id, 9).expect("kill");
        client.exit(&bundle.id);
        client.delete(&bundle.id).expect("delete");
    });
}
