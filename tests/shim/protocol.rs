//! The socket: several clients, clients that vanish or do not read, packets that are none, other users.

use std::fs::{self, File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use corten_proto::shim::error::Code;
use corten_proto::shim::{Connect, Request, event, request::Call};
use corten_tests::shim::{Client, PATIENCE, eventually};
use prost::Message as _;

use crate::with_shims;

#[test]
fn two_clients_both_hear_of_an_exit() {
    with_shims(|shim, client| {
        let mut second = shim.connect();
        second.subscribe();
        let mut silent = shim.connect();
        let bundle = shim.bundle("c", "exit 9", |_| {});
        silent.create(bundle.create());
        silent.start(&bundle.id);
        assert_eq!(client.exit(&bundle.id), second.exit(&bundle.id));
        silent.delete(&bundle.id).expect("delete");
        assert_eq!(silent.event(Duration::from_millis(100)), None, "it has not subscribed");
    });
}

#[test]
fn a_client_that_vanishes_cancels_nothing() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "exit 3", |_| {});
        let mut gone = shim.connect();
        gone.send(Call::Create(bundle.create()));
        gone.send(Call::Start(corten_proto::shim::Start { id: bundle.id.clone() }));
        drop(gone);
        assert_eq!(client.exit(&bundle.id).code, 3);
        client.delete(&bundle.id).expect("delete");
    });
}

/// The whole server is away, and one client is there that never reads: output goes on.
#[test]
fn output_flows_with_nobody_to_hear_of_it() {
    with_shims(|shim, client| {
        let mut deaf = shim.connect();
        deaf.send(Call::Connect(Connect {}));
        let bundle = shim.bundle(
            "c",
            "i=0; while [ $i -lt 30000 ]; do echo $i; i=$((i+1)); done; exit 1",
            |_| {},
        );
        let mut gone = shim.connect();
        gone.create(bundle.create());
        gone.start(&bundle.id);
        drop(gone);
        eventually("the exit record", || {
            bundle.path.join("exit.json").exists().then_some(())
        });
        let expected: String = (0..30000).map(|i| format!("{i}\n")).collect();
        assert!(bundle.output("stdout") == expected.as_bytes(), "output differs");
        assert_eq!(client.exit(&bundle.id).code, 1);
        client.delete(&bundle.id).expect("delete");
    });
}

#[test]
fn a_client_that_never_reads_is_dropped_and_the_others_are_served() {
    with_shims(|shim, client| {
        let mut deaf = shim.connect();
        // Each request is answered; the answers soon fill the socket and then the queue.
        let packet = Request { seq: 1, call: None }.encode_to_vec();
        let flooded = std::thread::scope(|scope| {
            let flood = scope.spawn(|| {
                let send = || (0..200_000).for_each(|_| deaf.send_raw(&packet, &[]));
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(send)).is_err()
            });
            assert_eq!(client.subscribe(), []);
            flood.join().expect("the flood ends")
        });
        assert!(flooded, "the shim ends the connection");
        assert_eq!(client.subscribe(), []);
        assert!(shim.log().contains("does not read"), "{}", shim.log());
        fs::write(shim.dir().join("shim.log"), "").expect("this complaint was wanted");
    });
}

#[test]
fn packets_that_are_no_requests_are_refused_and_the_shim_goes_on() {
    with_shims(|_, client| {
        client.send_raw(b"\xff\xff\xff\xff no protobuf", &[]);
        assert_eq!(client.wait(0).expect_err("garbage").code(), Code::Invalid);
        client.send_raw(&vec![0; 70 * 1024], &[]);
        let refused = client.wait(0).expect_err("too large");
        assert!(
            refused.code() == Code::Invalid && refused.message.contains("65536"),
            "{}",
            refused.message
        );
        let unknown = Request { seq: 77, call: None }.encode_to_vec();
        client.send_raw(&unknown, &[]);
        assert_eq!(client.wait(77).expect_err("unknown call").code(), Code::Invalid);
        let null = File::open("/dev/null").expect("null");
        client.send_raw(&unknown, &[null.as_fd(); 9]);
        assert_eq!(client.wait(0).expect_err("too many descriptors").code(), Code::Invalid);
        let seq = client.send_fds(Call::Connect(Connect {}), &[null.as_fd()]);
        assert_eq!(
            client.wait(seq).expect_err("a descriptor too many").code(),
            Code::Invalid
        );
        assert_eq!(client.subscribe(), []);
    });
}

#[test]
fn descriptors_of_refused_requests_do_not_stay_open() {
    with_shims(|shim, client| {
        let open = || fs::read_dir(format!("/proc/{}/fd", shim.pid())).expect("fds").count();
        let before = open();
        let null = File::open("/dev/null").expect("null");
        for _ in 0..50 {
            let seq = client.send_fds(Call::Connect(Connect {}), &[null.as_fd(); 2]);
            client.wait(seq).expect_err("refused");
            client.send_raw(&Request { seq: 7, call: None }.encode_to_vec(), &[null.as_fd(); 4]);
            client.wait(0).expect_err("refused");
        }
        assert_eq!(open(), before);
    });
}

/// The socket's directory keeps other users out; the shim does not rely on that alone.
#[test]
fn another_user_is_turned_away() {
    with_shims(|shim, client| {
        let open = Permissions::from_mode(0o777);
        for path in [shim.dir().to_owned(), shim.dir().join("shim.sock")] {
            fs::set_permissions(path, open.clone()).expect("chmod");
        }
        // By the magic link, as the other user may have no access to the directories above this executable.
        let status = Command::new("/proc/self/exe")
            .args(["--ignored", "--exact", "protocol::as_another_user"])
            .env(SOCKET, shim.dir().join("shim.sock"))
            .current_dir("/")
            .uid(65534)
            .stdout(Stdio::null())
            .status();
        assert!(
            status.expect("run this executable again").success(),
            "the connection must be closed at once"
        );
        assert_eq!(client.subscribe(), []);
        assert!(shim.log().contains("user 65534"), "{}", shim.log());
        fs::write(shim.dir().join("shim.log"), "").expect("this complaint was wanted");
    });
}

/// Names the socket to the next test.
const SOCKET: &str = "SHIM_TEST_SOCKET";

#[test]
#[ignore = "the other user's half of another_user_is_turned_away, which runs it"]
fn as_another_user() {
    let path = std::env::var_os(SOCKET).expect("run by the test of the other half");
    assert!(Client::connect(Path::new(&path)).is_closed());
}

#[test]
fn a_subscriber_hears_of_every_exit_once() {
    with_shims(|shim, client| {
        for n in 0..5 {
            let bundle = shim.bundle(&format!("c{n}"), &format!("exit {n}"), |_| {});
            client.create(bundle.create());
            client.start(&bundle.id);
            match client.event(PATIENCE) {
                Some(event::Kind::ContainerExited(exited)) => {
                    assert_eq!(exited.exit.map(|exit| exit.code), Some(n))
                }
                other => panic!("{other:?}"),
            }
            client.delete(&bundle.id).expect("delete");
            assert_eq!(client.event(Duration::ZERO), None);
        }
    });
}
