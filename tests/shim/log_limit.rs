//! A log with a limit of its own: what is beyond is dropped and counted, rotation goes on, and the file never outgrows it.

use std::fs;

use corten_proto::shim::request::Call;
use corten_proto::shim::{Create, ReopenLog};
use corten_tests::shim::{Record, eventually, records};

use crate::with_shims;

const LIMIT: u64 = 64 << 10;

/// How many bytes a record says were lost, for the limit.
fn lost(record: &Record) -> u64 {
    let text = String::from_utf8_lossy(&record.content);
    let count = text.strip_prefix("[corten-shim: ").and_then(|rest| {
        rest.strip_suffix(&format!(
            " bytes of output lost: the log has reached its limit of {LIMIT} bytes]"
        ))
    });
    count.map_or(0, |count| count.parse().expect("a number"))
}

fn says_it_is_full(record: &Record) -> bool {
    let text = String::from_utf8_lossy(&record.content);
    text.contains("has reached its limit") && text.contains("until it is rotated")
}

#[test]
fn a_log_ends_at_its_limit_and_goes_on_after_a_rotation() {
    with_shims(|shim, client| {
        let script = "i=0; while [ $i -lt 2000 ]; do echo a line of some length, number $i; i=$((i+1)); done
            while [ ! -e /go ]; do echo .; sleep 0.02; done; echo again; sleep 0.2; echo last";
        let bundle = shim.bundle("c", script, |_| {});
        client.create(Create {
            log_limit: LIMIT,
            ..bundle.create()
        });
        client.start(&bundle.id);
        eventually("the limit", || shim.log().contains("output is dropped").then_some(()));
        std::thread::sleep(std::time::Duration::from_millis(300));
        let length = fs::metadata(bundle.log_path()).expect("stat").len();
        assert!((LIMIT / 2..=LIMIT).contains(&length), "{length}");
        let first = bundle.records();
        assert!(says_it_is_full(&first[first.len() - 1]), "{:?}", first.last());
        let full = first.iter().filter(|record| says_it_is_full(record)).count();
        assert_eq!(full, 1, "short lines do not slip in where longer ones did not fit");

        fs::rename(bundle.log_path(), bundle.log_path().with_extension("old")).expect("rename");
        client
            .call(Call::ReopenLog(ReopenLog { id: bundle.id.clone() }))
            .expect("reopen");
        fs::write(bundle.path.join("rootfs/go"), "").expect("go");
        let exit = client.exit(&bundle.id);
        client.delete(&bundle.id).expect("delete");
        let second = records(&bundle.log_path());
        assert_eq!(second[second.len() - 1].content, b"last");
        let told: u64 = second.iter().map(lost).sum();
        assert!(told > 0 && told == exit.output_lost, "{told} {exit:?}");
        assert_eq!(bundle.exit_record().output_lost, told);
        let log = shim.log();
        assert!(log.contains("works again"), "{log}");
        fs::write(shim.dir().join("shim.log"), "").expect("these complaints were wanted");
    });
}

#[test]
fn a_log_that_exists_counts_and_one_that_is_cut_has_room_again() {
    with_shims(|shim, client| {
        let script = "echo one; while [ ! -e /go ]; do sleep 0.05; done; echo two";
        let bundle = shim.bundle("c", script, |_| {});
        let path = bundle.log_path();
        fs::create_dir_all(path.parent().expect("a directory")).expect("mkdir");
        let line = format!("2026-01-31T09:05:00.000000001Z stdout F {}\n", "x".repeat(1000));
        fs::write(&path, line.repeat(64)).expect("an older log");
        client.create(Create {
            log_limit: LIMIT,
            ..bundle.create()
        });
        client.start(&bundle.id);
        eventually("the limit", || shim.log().contains("output is dropped").then_some(()));
        fs::write(&path, "").expect("truncate");
        fs::write(bundle.path.join("rootfs/go"), "").expect("go");
        let exit = client.exit(&bundle.id);
        client.delete(&bundle.id).expect("delete");
        assert_eq!(exit.output_lost, 4);
        let records = bundle.records();
        assert_eq!((records.len(), lost(&records[0])), (2, 4), "{records:?}");
        assert_eq!(records[1].content, b"two");
        fs::write(shim.dir().join("shim.log"), "").expect("these complaints were wanted");
    });
}
