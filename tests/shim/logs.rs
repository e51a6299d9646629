//! The log: format, long lines, bytes, reopening, where it may be, and what happens when it cannot be written.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use corten_proto::shim::error::Code;
use corten_proto::shim::{ReopenLog, request::Call};
use corten_tests::shim::{Record, eventually, records};

use crate::with_shims;

const MAX_CONTENT: usize = 16 * 1024;

#[test]
fn lines_of_both_streams_in_the_format_of_cri() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", r"echo out; echo err >&2; printf 'a\r\n\n'; printf tail", |_| {});
        client.run(&bundle);
        let records = bundle.records();
        let seen = |stream| {
            let of_stream = records.iter().filter(move |record| record.stream == stream);
            of_stream
                .map(|record| (record.full, record.content.as_slice()))
                .collect::<Vec<_>>()
        };
        let expected: [(bool, &[u8]); 4] = [(true, b"out"), (true, b"a\r"), (true, b""), (false, b"tail")];
        assert_eq!(seen("stdout"), expected);
        assert_eq!(seen("stderr"), [(true, b"err".as_slice())]);
        assert!(
            records.windows(2).all(|pair| pair[0].time <= pair[1].time),
            "{records:?}"
        );
        let mode = |path: &Path| fs::metadata(path).expect("stat").permissions().mode() & 0o7777;
        assert_eq!(mode(&bundle.log_path()), 0o640);
        assert_eq!(mode(bundle.log_path().parent().expect("a directory")), 0o755);
    });
}

#[test]
fn long_lines_are_cut_at_16_kib() {
    with_shims(|shim, client| {
        let script = "head -c 16384 /dev/zero | tr '\\0' a; echo; head -c 40000 /dev/zero | tr '\\0' b; echo c";
        let bundle = shim.bundle("c", script, |_| {});
        client.run(&bundle);
        let records = bundle.records();
        let shape: Vec<(bool, usize)> = records
            .iter()
            .map(|record| (record.full, record.content.len()))
            .collect();
        let rest = 40001 - 2 * MAX_CONTENT;
        assert_eq!(
            shape,
            [
                (true, MAX_CONTENT),
                (false, MAX_CONTENT),
                (false, MAX_CONTENT),
                (true, rest)
            ]
        );
    });
}

#[test]
fn a_container_may_have_a_longest_line_of_its_own() {
    with_shims(|shim, client| {
        for (max_log_line, expected) in [(256, vec![256, 256, 88]), (1024, vec![600]), (0, vec![600])] {
            let bundle = shim.bundle("c", "head -c 600 /dev/zero | tr '\\0' a; echo", |_| {});
            let mut create = bundle.create();
            create.max_log_line = max_log_line;
            client.create(create);
            client.start(&bundle.id);
            client.exit(&bundle.id);
            client.delete(&bundle.id).expect("delete");
            let lengths: Vec<usize> = bundle.records().iter().map(|record| record.content.len()).collect();
            assert_eq!(lengths, expected, "{max_log_line}");
            fs::remove_file(bundle.log_path()).expect("remove the log");
            fs::remove_dir_all(&bundle.path).expect("remove the bundle");
        }
        let mut create = shim.bundle("c", "true", |_| {}).create();
        create.max_log_line = 255;
        let refused = client.call(Call::Create(create)).expect_err("too short");
        assert!(refused.message.contains("max_log_line 255"), "{}", refused.message);
    });
}

#[test]
fn bytes_come_through_unchanged() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "cat /bin/busybox", |_| {});
        client.run(&bundle);
        assert!(
            bundle.output("stdout") == fs::read("/bin/busybox").expect("busybox"),
            "output differs"
        );
    });
}

#[test]
fn reopening_while_output_is_heavy_loses_and_tears_nothing() {
    with_shims(|shim, client| {
        let last = 60_000;
        let bundle = shim.bundle(
            "c",
            &format!("i=0; while [ $i -lt {last} ]; do echo line $i; i=$((i+1)); done"),
            |_| {},
        );
        client.create(bundle.create());
        client.start(&bundle.id);
        let mut text = Vec::new();
        for rotation in 0..50 {
            let rotated = bundle.log_path().with_extension(format!("log.{rotation}"));
            fs::rename(bundle.log_path(), &rotated).expect("rename");
            client
                .call(Call::ReopenLog(ReopenLog { id: bundle.id.clone() }))
                .expect("reopen");
            assert!(bundle.log_path().exists(), "the new file is there at the answer");
            text.extend(records(&rotated).into_iter().flat_map(|record| record.text()));
            std::thread::sleep(Duration::from_millis(10));
        }
        client.exit(&bundle.id);
        text.extend(bundle.output("stdout"));
        client.delete(&bundle.id).expect("delete");
        let expected: String = (0..last).map(|i| format!("line {i}\n")).collect();
        assert!(text == expected.as_bytes(), "output differs");
    });
}

#[test]
fn a_reopen_that_fails_leaves_the_old_file_in_use() {
    with_shims(|shim, client| {
        let script = "trap 'echo after; exit 0' TERM; echo before; while :; do sleep 0.05; done";
        let bundle = shim.bundle("c", script, |_| {});
        client.create(bundle.create());
        client.start(&bundle.id);
        eventually("output", || (!bundle.output("stdout").is_empty()).then_some(()));
        let rotated = bundle.log_path().with_extension("old");
        fs::rename(bundle.log_path(), &rotated).expect("rename");
        fs::create_dir(bundle.log_path()).expect("mkdir");
        let refused = client
            .call(Call::ReopenLog(ReopenLog { id: bundle.id.clone() }))
            .expect_err("a directory");
        assert_eq!(refused.code(), Code::Failed);
        assert!(refused.message.contains("0.log: EISDIR"), "{}", refused.message);
        client.kill(&bundle.id, 15).expect("kill");
        client.exit(&bundle.id);
        client.delete(&bundle.id).expect("delete");
        let text: Vec<u8> = records(&rotated).into_iter().flat_map(|record| record.text()).collect();
        assert_eq!(text, b"before\nafter\n");
    });
}

#[test]
fn a_log_outside_its_directory_is_refused_and_nothing_is_made() {
    with_shims(|shim, client| {
        let outside = shim.dir().join("outside");
        fs::create_dir(&outside).expect("mkdir");
        let logs = shim.dir().join("logs");
        fs::create_dir(&logs).expect("mkdir");
        symlink(&outside, logs.join("link")).expect("symlink");
        symlink(outside.join("file"), logs.join("file")).expect("symlink");
        nix::unistd::mkfifo(&logs.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        let bundle = shim.bundle("c", "echo x", |_| {});
        for (path, code) in [
            ("../outside/0.log", Code::Invalid),
            ("/tmp/0.log", Code::Invalid),
            ("a/../../0.log", Code::Invalid),
            ("link/0.log", Code::Failed),
            ("file", Code::Failed),
            ("fifo", Code::Failed),
        ] {
            let mut create = bundle.create();
            create.log_path = path.into();
            let refused = client.call(Call::Create(create)).expect_err(path);
            assert_eq!(refused.code(), code, "{path}: {}", refused.message);
            assert_eq!(fs::read_dir(&outside).expect("outside").count(), 0, "{path}");
        }
        assert_eq!(client.subscribe(), []);
        assert_eq!(bundle.extra_files(), [] as [String; 0]);
    });
}

#[test]
fn a_log_that_exists_is_appended_to() {
    with_shims(|shim, client| {
        for text in ["first", "second"] {
            let bundle = shim.bundle("c", &format!("echo {text}"), |_| {});
            client.run(&bundle);
            fs::remove_dir_all(&bundle.path).expect("remove the bundle");
        }
        let log = shim
            .dir()
            .join("logs")
            .join(format!("{}c", shim.marker()))
            .join("0.log");
        let text: Vec<u8> = records(&log).into_iter().flat_map(|record| record.text()).collect();
        assert_eq!(text, b"first\nsecond\n");
    });
}

#[test]
fn no_log_is_asked_for() {
    with_shims(|shim, client| {
        let bundle = shim.bundle("c", "head -c 1000000 /dev/zero", |_| {});
        let mut create = bundle.create();
        create.log_path.clear();
        client.create(create);
        client.start(&bundle.id);
        assert_eq!(client.exit(&bundle.id).code, 0);
        client.delete(&bundle.id).expect("delete");
        assert!(!shim.dir().join("logs").exists());
    });
}

/// A full disk: the container goes on, what is lost is counted, and the log never holds half a record.
#[test]
fn a_full_disk_stalls_nothing_and_the_gap_is_told() {
    with_shims(|shim, client| {
        let logs = shim.dir().join("logs");
        fs::create_dir(&logs).expect("mkdir");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(&logs)
            .status();
        assert!(mounted.is_ok_and(|status| status.success()), "mount a small tmpfs");
        let script = "i=0; while [ $i -lt 4000 ]; do echo a line of some length, number $i; i=$((i+1)); done
            echo full >&2; while [ ! -e /go ]; do sleep 0.05; done; echo again";
        let bundle = shim.bundle("c", script, |_| {});
        client.create(bundle.create());
        client.start(&bundle.id);
        eventually("the disk is full", || {
            shim.log().contains("output is dropped").then_some(())
        });
        // All that was read before is dropped; then there is room again.
        std::thread::sleep(Duration::from_millis(500));
        let mut records = bundle.records();
        fs::write(bundle.log_path(), "").expect("truncate");
        fs::write(bundle.path.join("rootfs/go"), "").expect("go");
        let exit = client.exit(&bundle.id);
        assert_eq!(exit.code, 0, "the container was not held up");
        records.extend(bundle.records());
        client.delete(&bundle.id).expect("delete");
        assert!(
            Command::new("umount")
                .arg(&logs)
                .status()
                .is_ok_and(|status| status.success())
        );
        let line = |i: usize| format!("a line of some length, number {i}\n");
        let expected = "full\nagain\n".len() + (0..4000).map(|i| line(i).len()).sum::<usize>();
        // A short record may fit where a longer one did not, so there may be more than one gap; each is told.
        let (told, logged): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| lost(record) > 0);
        assert_eq!(logged[0].clone().text(), line(0).as_bytes());
        assert_eq!(logged[logged.len() - 1].content, b"again");
        let logged: usize = logged.into_iter().map(|record| record.text().len()).sum();
        let told: usize = told.iter().map(lost).sum();
        assert!(told > 0 && logged > 0, "{told} {logged}");
        assert_eq!(told + logged, expected, "every byte is in the log or counted");
        assert_eq!(exit.output_lost, told as u64);
        assert_eq!(bundle.exit_record().output_lost, exit.output_lost);
        let log = shim.log();
        assert!(log.contains("works again"), "{log}");
        fs::write(shim.dir().join("shim.log"), "").expect("these complaints were wanted");
    });
}

/// How many bytes a record says were lost; 0 for one that says nothing of it.
fn lost(record: &Record) -> usize {
    let text = String::from_utf8_lossy(&record.content);
    let count = text
        .strip_prefix("[corten-shim: ")
        .and_then(|rest| rest.split_once(" bytes of output lost: "));
    count.map_or(0, |(count, _)| count.parse().expect("a number"))
}
