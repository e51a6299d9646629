//! Callers without manners: what hostile and broken clients may cost server and shims. Each test says how much memory its
//! calls may take at most, and sees to it that soon afterwards memory, threads and descriptors are as before, and that the
//! server has served others meanwhile.
//!
//! | file | clients that |
//! |---|---|
//! | `abuse/calls.rs` | ask for too much: outputs, pods, pulls, lists, objects with ten thousand of everything |
//! | `abuse/connections.rs` | misuse HTTP/2: silence, thousands of streams, floods of headers and resets, large messages |
//! | `abuse/streams.rs` | begin execs and attaches and go away, or claim to send what they do not |
//!
//! `CORTEN_ABUSE` is how often the tests repeat what they do, by default a fraction of it:
//! `CORTEN_ABUSE=1000 cargo test -p corten-tests --test cri -- abuse --test-threads=1 --show-output`

mod calls;
mod connections;
mod streams;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_proto::cri::runtime_service_client::RuntimeServiceClient;
use corten_tests::node::Node;
use tonic::transport::{Channel, Endpoint};

/// How soon memory and descriptors are as before.
const SETTLE: Duration = Duration::from_secs(5);
/// The same of threads: those for blocking work are kept for ten seconds.
const THREADS: Duration = Duration::from_secs(15);
/// Memory that may stay, in KiB: what the allocator keeps, and code that had not been used before.
const KEPT: u64 = 12 << 10;

/// How often to do something: `CORTEN_ABUSE`, or `otherwise`.
pub(crate) fn count(otherwise: usize) -> usize {
    let Ok(text) = std::env::var("CORTEN_ABUSE") else {
        return otherwise;
    };
    text.parse()
        .unwrap_or_else(|error| panic!("CORTEN_ABUSE={text}: {error}"))
}

/// What a process takes.
#[derive(Clone, Copy, Debug)]
struct Sample {
    peak_kib: u64,
    kib: u64,
    threads: u64,
    descriptors: u64,
}

impl Sample {
    fn of(pid: i32) -> Sample {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it has not ended");
        let number = |name: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .expect("a field");
            line.trim().trim_end_matches(" kB").parse().expect("a number")
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("it has not ended")
            .count();
        Sample {
            peak_kib: number("VmHWM:"),
            kib: number("VmRSS:"),
            threads: number("Threads:"),
            descriptors: descriptors.try_into().expect("a small number"),
        }
    }
}

/// The server and the shims of a node, as they were.
struct Watched<'n> {
    node: &'n Node,
    before: Vec<(i32, Sample)>,
}

impl<'n> Watched<'n> {
    /// From here on. Peaks are counted from here, too.
    fn begin(node: &'n Node) -> Self {
        let shims = fs::read_dir(node.dir().join("run/sandboxes")).expect("the server has made it");
        let shims = shims.map(|entry| {
            let file = entry.expect("an entry").path().join("shim.pid");
            fs::read_to_string(file).expect("a shim").parse().expect("a pid")
        });
        let before = std::iter::once(node.server_pid()).chain(shims).map(|pid| {
            fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("forget the peak");
            (pid, Sample::of(pid))
        });
        Watched {
            node,
            before: before.collect(),
        }
    }

    /// The peaks since the beginning are no more than `server` and `shim` MiB above it; then all is as before.
    #[track_caller]
    fn end(self, server: u64, shim: u64) {
        self.node
            .cri
            .version(cri::VersionRequest::default())
            .expect("it serves");
        for (index, &(pid, before)) in self.before.iter().enumerate() {
            let peak = Sample::of(pid).peak_kib.saturating_sub(before.kib) >> 10;
            let most = if index == 0 { server } else { shim };
            println!(
                "{}: {before:?}, {peak} MiB more at most",
                if index == 0 { "server" } else { "shim" }
            );
            assert!(peak <= most, "{pid}: {peak} MiB, not {most}");
        }
        let began = Instant::now();
        let is_back = |&(pid, before): &(i32, Sample)| {
            let now = Sample::of(pid);
            let small = now.kib <= before.kib + KEPT && now.descriptors <= before.descriptors;
            small && (now.threads <= before.threads || began.elapsed() < SETTLE)
        };
        while !self.before.iter().all(is_back) {
            let settled = |&(pid, before): &(i32, Sample)| {
                let now = Sample::of(pid);
                now.kib <= before.kib + KEPT && now.descriptors <= before.descriptors
            };
            let limit = if self.before.iter().all(settled) {
                THREADS
            } else {
                SETTLE
            };
            let now: Vec<_> = self
                .before
                .iter()
                .map(|&(pid, before)| (before, Sample::of(pid)))
                .collect();
            assert!(began.elapsed() < limit, "not as before: {now:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// An executor for many calls at once, and a connection for them.
fn crowd(node: &Node) -> (tokio::runtime::Runtime, Channel) {
    let executor = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("an executor");
    let channel = executor.block_on(connect(node)).expect("connect");
    // A connection that the server has not accepted yet has no descriptor there.
    let version = async { client(&channel).version(cri::VersionRequest::default()).await };
    executor.block_on(version).expect("it serves");
    (executor, channel)
}

async fn connect(node: &Node) -> Result<Channel, tonic::transport::Error> {
    let socket = node.dir().join("run/corten.sock");
    Endpoint::from_shared(format!("unix://{}", socket.display()))?
        .connect()
        .await
}

fn client(channel: &Channel) -> RuntimeServiceClient<Channel> {
    RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(32 << 20)
}
