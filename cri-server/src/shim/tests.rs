//! The client against a peer that answers as it is told: order, loss, deadlines, descriptors.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

use super::*;

/// The other end of one connection. The standard library's stream reads and writes whole packets on it.
struct Peer(UnixStream);

impl Peer {
    /// Serves one connection on a thread: answers the handshake, then does as `script` says.
    fn serve(directory: &Path, script: impl FnOnce(Peer) + Send + 'static) -> (JoinHandle<()>, Arc<Shim>) {
        let listener = UnixListener::from(socket::listener(directory).unwrap());
        listener.set_nonblocking(false).unwrap();
        let thread = std::thread::spawn(move || {
            let peer = Peer(listener.accept().unwrap().0);
            let request = peer.request().expect("a handshake");
            assert!(matches!(request.call, Some(request::Call::Connect(_))));
            let connected = Connected {
                shim_pid: 1,
                containers: Vec::new(),
            };
            peer.reply(request.seq, reply::Result::Connected(connected));
            script(peer);
        });
        (thread, Shim::new(&"sandbox".parse().unwrap(), directory))
    }

    /// The next request; none at the end.
    fn request(&self) -> Option<proto::Request> {
        let mut buffer = vec![0; proto::MAX_PACKET];
        let length = (&self.0).read(&mut buffer).unwrap();
        (length > 0).then(|| proto::Request::decode(&buffer[..length]).unwrap())
    }

    fn send(&self, kind: message::Kind) {
        let packet = proto::Message { kind: Some(kind) }.encode_to_vec();
        (&self.0).write_all(&packet).unwrap();
    }

    fn reply(&self, seq: u64, result: reply::Result) {
        self.send(message::Kind::Reply(proto::Reply {
            seq,
            result: Some(result),
        }));
    }

    fn event(&self, kind: event::Kind) {
        self.send(message::Kind::Event(proto::Event { kind: Some(kind) }));
    }
}

/// Reads for `shim` until the connection ends; the exits it heard of.
fn pump(shim: &Arc<Shim>, incoming: Incoming) -> tokio::task::JoinHandle<Vec<Event>> {
    let shim = shim.clone();
    tokio::spawn(async move {
        let mut exits = Vec::new();
        while let Some(exit) = shim.next_event(&incoming).await {
            exits.push(exit);
        }
        exits
    })
}

async fn connect(shim: &Shim) -> Incoming {
    match shim.connect().await {
        Ok((incoming, connected)) => {
            assert_eq!(connected.shim_pid, 1);
            incoming
        }
        Err(error) => panic!("{error:?}"),
    }
}

fn done() -> reply::Result {
    reply::Result::Done(proto::Done {})
}

#[tokio::test]
async fn answers_come_in_any_order_and_events_between_them() {
    let directory = tempfile::tempdir().unwrap();
    let (thread, shim) = Peer::serve(directory.path(), |peer| {
        let (first, second) = (peer.request().unwrap(), peer.request().unwrap());
        peer.reply(second.seq, done());
        let exit = Some(Exit {
            code: 3,
            ..Exit::default()
        });
        peer.event(event::Kind::ContainerStarted(ContainerStarted {
            id: "c".to_owned(),
            started_at: 7,
            ..Default::default()
        }));
        peer.event(event::Kind::ContainerExited(ContainerExited {
            id: "c".to_owned(),
            exit,
        }));
        let refusal = proto::Error {
            code: error::Code::NotFound as i32,
            message: "no such container".to_owned(),
        };
        peer.reply(first.seq, reply::Result::Error(refusal));
    });
    let exits = pump(&shim, connect(&shim).await);
    let id: ContainerId = "c".parse().unwrap();
    // Polled in this order, so that the requests go out in it.
    let (first, second) = tokio::join!(biased; shim.kill(&id, 9, true, ""), shim.reopen_log(&id));
    assert!(first.is_err_and(|error| error.is_not_found() && error.to_string() == "no such container"));
    assert!(second.is_ok());
    thread.join().unwrap();
    let exited = |event: &Event| matches!(event, Event::Exited(exited) if exited.exit.unwrap().code == 3);
    let started = |event: &Event| matches!(event, Event::Started(started) if started.started_at == 7);
    let events = exits.await.unwrap();
    assert!(
        started(&events[0]) && exited(&events[1]) && events.len() == 2,
        "{events:?}"
    );
}

#[tokio::test]
async fn a_connection_that_breaks_fails_every_call_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (thread, shim) = Peer::serve(directory.path(), |peer| {
        peer.request().unwrap();
    });
    let exits = pump(&shim, connect(&shim).await);
    let id: ContainerId = "c".parse().unwrap();
    assert!(matches!(
        shim.start(&id).await,
        Err(Error::Disconnected { call: "start", .. })
    ));
    assert!(exits.await.unwrap().is_empty());
    assert!(matches!(
        shim.start(&id).await,
        Err(Error::Disconnected { call: "start", .. })
    ));
    thread.join().unwrap();
    // The listener went with the peer: the shim is gone, not slow.
    assert!(matches!(shim.connect().await, Err(ConnectError::Gone)));
}

#[tokio::test]
async fn a_shim_that_refuses_a_connection_is_not_gone() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::from(socket::listener(directory.path()).unwrap());
    listener.set_nonblocking(false).unwrap();
    let thread = std::thread::spawn(move || {
        // Closed with the handshake unread: the client gets a reset.
        let (refused, _) = listener.accept().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        drop(refused);
        listener
    });
    let shim = Shim::new(&"sandbox".parse().unwrap(), directory.path());
    assert!(matches!(shim.connect().await, Err(ConnectError::Failed(_))));
    drop(thread.join().unwrap());
    assert!(matches!(shim.connect().await, Err(ConnectError::Gone)));
}

#[tokio::test]
async fn an_exec_passes_descriptors_and_its_exit_may_overtake_the_answer() {
    let directory = tempfile::tempdir().unwrap();
    let (thread, shim) = Peer::serve(directory.path(), |peer| {
        let mut buffer = vec![0; proto::MAX_PACKET];
        let mut control = nix::cmsg_space!([i32; 3]);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let fd = peer.0.as_raw_fd();
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<UnixAddr>(fd, &mut parts, Some(&mut control), flags).unwrap();
        let rights = received.cmsgs().unwrap().next();
        assert!(matches!(rights, Some(ControlMessageOwned::ScmRights(fds)) if fds.len() == 3));
        let length = received.bytes;
        let request = proto::Request::decode(&buffer[..length]).unwrap();
        peer.event(event::Kind::ExecExited(proto::ExecExited {
            container_id: "c".to_owned(),
            exec_id: "e".to_owned(),
            exit: Some(Exit {
                code: 7,
                ..Exit::default()
            }),
        }));
        peer.reply(request.seq, reply::Result::ExecStarted(proto::ExecStarted { pid: 1 }));
    });
    let exits = pump(&shim, connect(&shim).await);
    let exec = proto::Exec {
        container_id: "c".to_owned(),
        exec_id: "e".to_owned(),
        ..Default::default()
    };
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let exit = shim.exec(exec, Some([null(), null(), null()])).await.unwrap();
    assert_eq!(exit.await.unwrap().code, 7);
    thread.join().unwrap();
    exits.await.unwrap();
}

#[tokio::test]
async fn a_request_too_large_for_a_packet_is_refused_here() {
    let directory = tempfile::tempdir().unwrap();
    let (thread, shim) = Peer::serve(directory.path(), |peer| assert!(peer.request().is_none()));
    let incoming = connect(&shim).await;
    let create = proto::Create {
        bundle: "x".repeat(proto::MAX_PACKET),
        ..Default::default()
    };
    let error = shim.create(create).await.expect_err("too large");
    assert!(error.to_string().contains("more than 65536"), "{error}");
    drop((incoming, shim));
    thread.join().unwrap();
}

#[tokio::test]
async fn nobody_listens() {
    let directory = tempfile::tempdir().unwrap();
    let shim = Shim::new(&"sandbox".parse().unwrap(), directory.path());
    assert!(matches!(shim.connect().await, Err(ConnectError::Gone)));
}
