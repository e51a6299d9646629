//! The systemd driver on a machine without systemd: a service that answers as systemd's does, on a socket that takes the
//! place of the system's bus. What only systemd itself can show is tested in the virtual machine (`vm/systemd.sh`).

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use corten_tests::bundle::{Bundle, Runtime, finish, wait_until};
use corten_tests::cgroup;
use serde_json::json;

corten_only! {
    a_container_is_a_scope_from_create_to_delete: "runc asks more of systemd than is answered here",
    without_a_bus_nothing_is_made: "runc's message is another one",
}

/// One call as it came: the method's name, and its body.
type Call = (String, Vec<u8>);

/// A bus with systemd on it, which makes no cgroups: on v1 the runtime completes what is missing.
struct Bus {
    path: PathBuf,
    calls: Receiver<Call>,
}

impl Bus {
    fn start(path: PathBuf) -> Bus {
        let listener = UnixListener::bind(&path).expect("bind a socket of the test");
        let (sender, calls) = channel();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let sender = sender.clone();
                thread::spawn(move || serve(stream, &sender));
            }
        });
        Bus { path, calls }
    }

    fn address(&self) -> String {
        format!("unix:path={}", self.path.display())
    }

    /// The next call of this name.
    fn call(&self, name: &str) -> Vec<u8> {
        let found = wait_until(|| self.calls.try_iter().find(|(member, _)| member == name));
        found.unwrap_or_else(|| panic!("no call of {name}")).1
    }
}

/// Answers one client until it goes.
fn serve(mut stream: UnixStream, calls: &Sender<Call>) -> Option<()> {
    let mut greeting = Vec::new();
    while !greeting.ends_with(b"BEGIN\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        greeting.push(byte[0]);
    }
    stream
        .write_all(b"DATA\r\nOK 00112233445566778899aabbccddeeff\r\n")
        .ok()?;
    loop {
        let mut start = [0; 16];
        stream.read_exact(&mut start).ok()?;
        let word = |at: usize| u32::from_ne_bytes(start[at..at + 4].try_into().expect("four bytes")) as usize;
        let (body, serial, header) = (word(4), word(8), word(12).next_multiple_of(8));
        let mut rest = vec![0; header + body];
        stream.read_exact(&mut rest).ok()?;
        let body = rest.split_off(header);
        let member = member(&rest)?;
        stream
            .write_all(&answer(&member, u32::try_from(serial).ok()?, &body))
            .ok()?;
        calls.send((member, body)).ok()?;
    }
}

/// The header field 3: `3, "s", length, text`.
fn member(header: &[u8]) -> Option<String> {
    let at = header.windows(4).position(|field| field == [3, 1, b's', 0])?;
    let length = u32::from_ne_bytes(header[at + 4..at + 8].try_into().ok()?) as usize;
    String::from_utf8(header[at + 8..at + 8 + length].to_vec()).ok()
}

fn text(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).expect("a short text");
    [&length.to_ne_bytes()[..], text.as_bytes(), &[0]].concat()
}

fn pad(mut bytes: Vec<u8>, to: usize) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
    bytes
}

/// A message with these header fields, each with its code, type and marshalled value.
fn message(kind: u8, fields: &[(u8, u8, Vec<u8>)], body: &[u8]) -> Vec<u8> {
    let mut array = Vec::new();
    for (code, signature, value) in fields {
        array = pad(array, 8);
        array.extend([*code, 1, *signature, 0]);
        array.extend(value);
    }
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("a short message").to_ne_bytes();
    let mut out = vec![if cfg!(target_endian = "little") { b'l' } else { b'B' }, kind, 0, 1];
    out.extend(length(body));
    out.extend(1u32.to_ne_bytes());
    out.extend(length(&array));
    out.extend(array);
    let mut out = pad(out, 8);
    out.extend(body);
    out
}

fn signature(types: &str) -> Vec<u8> {
    let length = u8::try_from(types.len()).expect("a short signature");
    [&[length][..], types.as_bytes(), &[0]].concat()
}

const JOB: &str = "/org/freedesktop/systemd1/job/7";

/// The reply, and for a job the signal that it is done.
fn answer(member: &str, serial: u32, body: &[u8]) -> Vec<u8> {
    let asks = |name: &[u8]| body.windows(name.len()).any(|part| part == name);
    let variant = |value: &str| {
        let start = pad(signature("s"), 4);
        [start, text(value)].concat()
    };
    let (types, value) = match member {
        "Hello" => ("s", text(":1.1")),
        "Get" if asks(b"Version") => ("v", variant("257.7-1")),
        "Get" => ("v", variant("")),
        "StartTransientUnit" | "StopUnit" => ("o", text(JOB)),
        _ => ("", Vec::new()),
    };
    let reply_to = (5, b'u', serial.to_ne_bytes().to_vec());
    let mut out = if types.is_empty() {
        message(2, &[reply_to], &[])
    } else {
        message(2, &[reply_to, (8, b'g', signature(types))], &value)
    };
    if types == "o" {
        let mut removed = 7u32.to_ne_bytes().to_vec();
        for part in [JOB, "some.scope", "done"] {
            removed = pad(removed, 4);
            removed.extend(text(part));
        }
        let fields = [
            (1, b'o', text("/org/freedesktop/systemd1")),
            (2, b's', text("org.freedesktop.systemd1.Manager")),
            (3, b's', text("JobRemoved")),
            (8, b'g', signature("uoss")),
        ];
        out.extend(message(4, &fields, &removed));
    }
    out
}

fn holds(body: &[u8], words: &[&str]) {
    for word in words {
        let found = body.windows(word.len()).any(|part| part == word.as_bytes());
        assert!(found, "{word}: {}", String::from_utf8_lossy(body));
    }
}

fn driven<'r>(runtime: &'r Runtime, slice: &str) -> Bundle<'r> {
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["cgroupsPath"] = json!(format!("{slice}:test:{}", bundle.id));
    bundle.spec["linux"]["resources"]["pids"] = json!({ "limit": 17 });
    bundle.spec["annotations"] = json!({ "org.systemd.property.TimeoutStopUSec": "uint64 7000000" });
    bundle.probe(&["sleep"]);
    bundle.write();
    bundle
}

fn a_container_is_a_scope_from_create_to_delete(runtime: &Runtime) {
    if Path::new("/run/systemd/system").exists() || cgroup::unified() {
        eprintln!("SKIP: systemd itself is here, or cgroup v2, where it alone makes the cgroup");
        return;
    }
    let word = runtime.marker().replace('-', "");
    let bundle = driven(runtime, &format!("{word}.slice"));
    let bus = Bus::start(bundle.path().join("bus"));
    let call = |arguments: &[&str]| {
        let mut command = runtime.command();
        command
            .env("DBUS_SYSTEM_BUS_ADDRESS", bus.address())
            .arg("--systemd-cgroup");
        let _done = finish(command.args(arguments)).success();
    };
    let path = bundle.path().to_str().expect("names of ASCII");
    call(&["run", "--detach", "--bundle", path, &bundle.id]);
    let unit = format!("test-{}.scope", bundle.id);
    let slice = format!("{word}.slice");
    holds(
        &bus.call("StartTransientUnit"),
        &[
            &unit,
            &slice,
            "fail",
            "TasksMax",
            "PIDs",
            "Delegate",
            "DeviceAllow",
            "/dev/char/1:3",
            "TimeoutStopUSec",
        ],
    );
    let pids = cgroup::directory("pids", &format!("/{slice}/{unit}"));
    let init = bundle.state()["pid"].as_i64().expect("a pid");
    assert_eq!(
        cgroup::processes(&pids),
        [i32::try_from(init).expect("a pid is an int")]
    );
    let limit = || fs::read_to_string(pids.join("pids.max")).expect("read a control file");
    assert_eq!(limit(), "17\n");

    call(&["update", "--pids-limit", "21", &bundle.id]);
    holds(&bus.call("SetUnitProperties"), &[&unit, "TasksMax"]);
    assert_eq!(limit(), "21\n");

    call(&["delete", "--force", &bundle.id]);
    holds(&bus.call("StopUnit"), &[&unit, "replace"]);
    holds(&bus.call("ResetFailedUnit"), &[&unit]);
    assert!(!pids.exists(), "{} is left", pids.display());
    // Slices are systemd's, which would take them away.
    for hierarchy in fs::read_dir("/sys/fs/cgroup").expect("list the hierarchies").flatten() {
        let _not_there = fs::remove_dir(hierarchy.path().join(&slice));
    }
}

fn without_a_bus_nothing_is_made(runtime: &Runtime) {
    let bundle = driven(runtime, "system.slice");
    let mut command = runtime.command();
    command
        .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/no/such/socket")
        .args(["--systemd-cgroup", "run", "--bundle"])
        .arg(bundle.path())
        .arg(&bundle.id);
    let error = finish(&mut command).failure();
    assert!(
        error.contains("systemd cgroup driver") && error.contains("/no/such/socket"),
        "{error}"
    );
    bundle.assert_nothing_left();
}
