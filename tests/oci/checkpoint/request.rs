//! What CRIU is asked for: the probe writes down what it was started with, in CRIU's place.

use std::fs;
use std::path::PathBuf;

use corten_tests::bundle::{Bundle, Running, Runtime, finish, wait_until};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

/// The probe in CRIU's place.
struct Fake(PathBuf);

impl Fake {
    fn new(bundle: &Bundle<'_>) -> Fake {
        let path = bundle.path().join("criu");
        if !path.exists() {
            fs::hard_link(bundle.rootfs("/probe"), &path).expect("link the probe");
        }
        drop(fs::remove_file(path.with_extension("log")));
        Fake(path)
    }

    /// Asks for a dump, which fails; what the second of the two CRIUs was started with.
    #[track_caller]
    fn asked(&self, bundle: &Bundle<'_>, subcommand: &[&str]) -> Value {
        bundle.write();
        let mut command = bundle.global(&["--criu", &self.0.to_string_lossy()]);
        command
            .args(subcommand)
            .arg(&bundle.id)
            .env("LEAK", "1")
            .current_dir(bundle.path());
        finish(&mut command).failure();
        let log = fs::read_to_string(self.0.with_extension("log")).expect("criu was started");
        serde_json::from_str(log.lines().last().expect("a line")).expect("a line is JSON")
    }
}

/// `mountpoints-1.img` with one mount: where it is, and its name as one from outside (fields 7 and 18 of images/mnt.proto).
fn table_of_mounts(place: &str, key: &str) -> Vec<u8> {
    let text = |tag: &[u8], text: &str| {
        let length = u8::try_from(text.len()).expect("a short text");
        [tag, &[length], text.as_bytes()].concat()
    };
    let entry = [text(&[0x3a], place), text(&[0x92, 0x01], key)].concat();
    let length = u32::try_from(entry.len()).expect("a short entry").to_le_bytes();
    let magics = [0x5456_4319_u32.to_le_bytes(), 0x5556_3928_u32.to_le_bytes()].concat();
    [magics, length.to_vec(), entry].concat()
}

/// The mount of a notify socket is in no bundle, and yet in the container.
pub(super) fn a_notify_socket_is_named_to_criu(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    bundle.spec["root"]["readonly"] = serde_json::json!(false);
    let mut create = bundle.command("create");
    let _created = finish(create.env("NOTIFY_SOCKET", "/nobody").arg(&bundle.id)).success();
    let _started = bundle.call("start", &[]).success();
    let fake = Fake::new(&bundle);
    let binds = |options: Vec<(u64, String)>| -> Vec<String> {
        let binds = options.into_iter().filter(|(number, _)| *number == 37);
        binds.map(|(_, value)| value).collect()
    };
    let asked = fake.asked(&bundle, &["checkpoint", "--image-path", "images"]);
    let named = binds(options_of(&asked));
    assert!(named.contains(&"mnt[/run/notify]:/run/notify".to_owned()), "{named:?}");

    let _deleted = bundle.call("delete", &["--force"]).success();
    let images = bundle.path().join("images");
    fs::write(images.join("inventory.img"), "").expect("write a file");
    let table = table_of_mounts("/run/notify", "/run/notify");
    fs::write(images.join("mountpoints-1.img"), table).expect("write a file");
    let named = binds(options_of(&fake.asked(&bundle, &["restore", "--image-path", "images"])));
    let source = bundle.state_directory().join("notify");
    let expected = format!("mnt[/run/notify]:{}", source.display());
    assert!(named.contains(&expected), "{expected} in {named:?}");
    bundle.assert_nothing_left();
}

/// A CRIU that says nothing does not hold a restore in the foreground for ever.
pub(super) fn an_interrupt_ends_a_restore(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let fake = Fake::new(&bundle);
    fs::write(fake.0.with_extension("silent"), "").expect("write a file");
    let images = bundle.path().join("images");
    fs::create_dir(&images).expect("make a directory");
    fs::write(images.join("inventory.img"), "").expect("write a file");
    bundle.write();
    let mut command = bundle.global(&["--criu", &fake.0.to_string_lossy()]);
    command.args(["restore", "--image-path"]).arg(&images);
    command.arg("--bundle").arg(bundle.path()).arg(&bundle.id);
    let restoring = Running::start(&mut command);
    // The question for the version, and the request.
    let asked = || fs::read_to_string(fake.0.with_extension("log")).is_ok_and(|log| log.lines().count() == 2);
    assert!(wait_until(|| asked().then_some(())).is_some(), "{}", restoring.stdout());
    kill(restoring.pid(), Signal::SIGTERM).expect("signal a process of this test");
    let output = restoring.wait();
    assert_eq!(output.code, 128 + libc::SIGTERM, "{output:?}");
    assert!(output.stderr.contains("interrupted by SIGTERM"), "{output:?}");
    bundle.assert_nothing_left();
}

/// The fields of a protobuf message: number and value, a varint's or the bytes'.
fn fields(mut message: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(message: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = message[0];
            *message = &message[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return value;
            }
        }
        unreachable!("the loop has no end")
    }
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let value = match key & 7 {
            0 => varint(&mut message).to_string().into_bytes(),
            2 => {
                let length = usize::try_from(varint(&mut message)).expect("a length");
                let (bytes, rest) = message.split_at(length);
                message = rest;
                bytes.to_vec()
            }
            wire => panic!("wire type {wire}"),
        };
        fields.push((key >> 3, value));
    }
    fields
}

fn options_of(asked: &Value) -> Vec<(u64, String)> {
    let hex = asked["request"].as_str().expect("hexadecimal digits");
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits");
    let request: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
    let options = fields(&request)
        .into_iter()
        .find(|(number, _)| *number == 2)
        .expect("options")
        .1;
    fields(&options)
        .into_iter()
        .map(|(number, value)| (number, String::from_utf8_lossy(&value).into_owned()))
        .collect()
}

pub(super) fn criu_gets_nothing_of_ours(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let asked = Fake::new(&bundle).asked(&bundle, &["checkpoint", "--image-path", "images"]);
    assert_eq!(asked["cwd"], "/");
    assert_eq!(asked["fds"], 4, "the standard streams and the socket");
    let names: Vec<&String> = asked["env"].as_object().expect("an object").keys().collect();
    assert_eq!(names, ["PATH"]);
}

/// Flags, and the field of criu/images/rpc.proto that shows each.
const FLAGS: [(&[&str], u64, &str); 16] = [
    (&["--leave-running"], 3, "1"),
    (&["--ext-unix-sk"], 4, "1"),
    (&["--tcp-established"], 5, "1"),
    (&["--shell-job"], 7, "1"),
    (&["--file-locks"], 8, "1"),
    (&["--page-server", "127.0.0.1:7777"], 11, "\n\t127.0.0.1\u{10}\u{fffd}<"),
    (&["--auto-dedup"], 16, "1"),
    (&["--link-remap"], 18, "1"),
    (&["--manage-cgroups-mode", "ignore"], 34, "0"),
    (&["--manage-cgroups-mode", "soft"], 34, "3"),
    (&["--manage-cgroups-mode", "full"], 34, "4"),
    (&["--manage-cgroups-mode", "strict"], 34, "5"),
    (&["--empty-ns", "network"], 38, "1073741824"),
    (&["--tcp-skip-in-flight"], 46, "1"),
    (&["--lazy-pages"], 48, "1"),
    (&["--status-fd", "0"], 49, "0"),
];

pub(super) fn every_flag_reaches_criu(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let fake = Fake::new(&bundle);
    let plain = options_of(&fake.asked(&bundle, &["checkpoint"]));
    for (flags, number, value) in FLAGS {
        let line: Vec<&str> = [&["checkpoint"], flags].concat();
        let options = options_of(&fake.asked(&bundle, &line));
        let has = |options: &[(u64, String)]| options.iter().any(|option| *option == (number, value.to_owned()));
        assert!(has(&options), "{flags:?}: {options:?}");
        assert!(
            flags[1..] == ["soft"] || !has(&plain),
            "{flags:?} without it: {plain:?}"
        );
    }
    let binds: Vec<&str> = plain
        .iter()
        .filter(|(number, _)| *number == 37)
        .map(|(_, value)| value.as_str())
        .collect();
    assert!(binds.contains(&"mnt[/proc/keys]:/dev/null"), "{binds:?}");
    for (flags, error) in [
        (&["--parent-path", "/absolute"][..], "--parent-path"),
        (&["--parent-path", "nothing"], "--parent-path"),
        (&["--page-server", "localhost:1"], "--page-server"),
        (&["--status-fd", "77"], "--status-fd"),
    ] {
        let mut command = bundle.command("checkpoint");
        let found = finish(command.args(flags).arg(&bundle.id).current_dir(bundle.path())).failure();
        assert!(found.contains(error), "{flags:?}: {found}");
    }
}
