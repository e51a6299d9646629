//! The texts of cgroupfs: pure.

use std::collections::BTreeMap;

use corten_proto::cri;

/// What a limit is where there is none: `max` on v2; on v1 -1, or the largest number of pages.
pub(super) const UNLIMITED: u64 = u64::MAX;

/// v1 writes "no limit" as the largest whole number of pages, which depends on the page size; no real limit comes near.
const NEARLY_UNLIMITED: u64 = 1 << 62;

/// What the block devices of a cgroup did for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DeviceIo {
    /// Bytes read and written.
    pub(super) read_bytes: u64,
    pub(super) written_bytes: u64,
    /// Operations.
    pub(super) reads: u64,
    pub(super) writes: u64,
}

/// By the device's numbers.
pub(super) type Devices = BTreeMap<(u32, u32), DeviceIo>;

/// A file that holds one number.
pub(super) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A file that holds one limit; [`UNLIMITED`] for none.
pub(super) fn limit(text: &str) -> Option<u64> {
    match text.trim() {
        "max" | "-1" => Some(UNLIMITED),
        text => text
            .parse()
            .ok()
            .map(|value| if value >= NEARLY_UNLIMITED { UNLIMITED } else { value }),
    }
}

/// The number on the line `KEY NUMBER`.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// A pressure file, its totals in nanoseconds where the kernel's are microseconds. `full` of the processor came later
/// than `some` (Linux 5.13) and is zero without.
pub(super) fn pressure(text: &str) -> Option<cri::PsiStats> {
    let line = |name: &str| {
        let fields = text.lines().find_map(|line| line.strip_prefix(name))?;
        let field = |key: &str| {
            let mut pairs = fields
                .split_ascii_whitespace()
                .filter_map(|field| field.split_once('='));
            pairs.find_map(|(name, value)| (name == key).then_some(value))
        };
        let average = |key| field(key).and_then(|value| value.parse().ok()).unwrap_or_default();
        Some(cri::PsiData {
            total: field("total")?.parse::<u64>().ok()?.saturating_mul(1000),
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
        })
    };
    Some(cri::PsiStats {
        some: Some(line("some ")?),
        full: Some(line("full ").unwrap_or_default()),
    })
}

/// v2's `io.stat`: lines `MAJOR:MINOR rbytes=N wbytes=N rios=N wios=N ...`; a device that did nothing has no pairs.
pub(super) fn io_stat(text: &str) -> Devices {
    let mut devices = Devices::new();
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        let Some(device) = fields.next().and_then(device_numbers) else {
            continue;
        };
        let io = devices.entry(device).or_default();
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            let counter = match key {
                "rbytes" => &mut io.read_bytes,
                "wbytes" => &mut io.written_bytes,
                "rios" => &mut io.reads,
                "wios" => &mut io.writes,
                _ => continue,
            };
            *counter = value.parse().unwrap_or_default();
        }
    }
    devices
}

/// v1's two files, of bytes and of operations: lines `MAJOR:MINOR OPERATION NUMBER`, and a sum without a device.
pub(super) fn blkio(bytes: &str, operations: &str) -> Devices {
    let mut devices = Devices::new();
    for (text, is_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let &[device, operation, value] = fields.as_slice() else {
                continue;
            };
            let (Some(device), Ok(value)) = (device_numbers(device), value.parse()) else {
                continue;
            };
            let io = devices.entry(device).or_default();
            let counter = match (operation, is_bytes) {
                ("Read", true) => &mut io.read_bytes,
                ("Write", true) => &mut io.written_bytes,
                ("Read", false) => &mut io.reads,
                ("Write", false) => &mut io.writes,
                _ => continue,
            };
            *counter = value;
        }
    }
    devices
}

/// `MAJOR:MINOR`.
fn device_numbers(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_limits() {
        let table = [
            ("5\n", Some(5), Some(5)),
            ("0\n", Some(0), Some(0)),
            ("max\n", None, Some(UNLIMITED)),
            ("-1\n", None, Some(UNLIMITED)),
            // memory.limit_in_bytes of v1 with pages of 4 KiB and of 64 KiB.
            (
                "9223372036854771712\n",
                Some(9_223_372_036_854_771_712),
                Some(UNLIMITED),
            ),
            (
                "9223372036854710272\n",
                Some(9_223_372_036_854_710_272),
                Some(UNLIMITED),
            ),
            ("", None, None),
            ("x", None, None),
        ];
        for (text, expected_number, expected_limit) in table {
            assert_eq!(
                (number(text), limit(text)),
                (expected_number, expected_limit),
                "{text:?}"
            );
        }
    }

    #[test]
    fn lines_by_key() {
        let text = "cache 5\ntotal_cache 7\nbroken\nrss x\nlast 9";
        let table = [
            ("cache", Some(5)),
            ("total_cache", Some(7)),
            ("rss", None),
            ("cach", None),
            ("last", Some(9)),
        ];
        for (key, expected) in table {
            assert_eq!(keyed(text, key), expected, "{key}");
        }
    }

    #[test]
    fn pressures_in_nanoseconds() {
        let some = "some avg10=1.50 avg60=0.25 avg300=0.01 total=77\n";
        let psi = pressure(&format!("{some}full avg10=0.00 avg60=0.00 avg300=0.00 total=3\n")).unwrap();
        let expected = cri::PsiData {
            total: 77_000,
            avg10: 1.5,
            avg60: 0.25,
            avg300: 0.01,
        };
        assert_eq!(psi.some, Some(expected));
        assert_eq!(psi.full.unwrap().total, 3000);
        let before_5_13 = pressure(some).unwrap();
        assert_eq!(before_5_13.full, Some(cri::PsiData::default()));
        for text in ["", "some avg10=0.00\n", "nothing\n"] {
            assert_eq!(pressure(text), None, "{text:?}");
        }
    }

    fn io(read_bytes: u64, written_bytes: u64, reads: u64, writes: u64) -> DeviceIo {
        DeviceIo {
            read_bytes,
            written_bytes,
            reads,
            writes,
        }
    }

    #[test]
    fn block_devices_of_v2() {
        let text = "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=5 dios=6\n7:0\nbroken rbytes=1\n";
        let expected = Devices::from([((254, 0), io(4096, 8192, 1, 2)), ((7, 0), io(0, 0, 0, 0))]);
        assert_eq!(io_stat(text), expected);
        assert_eq!(io_stat(""), Devices::new());
    }

    #[test]
    fn block_devices_of_v1() {
        let bytes = "254:0 Read 4096\n254:0 Write 8192\n254:0 Sync 1\n254:0 Async 2\n254:0 Total 12288\nTotal 12288\n";
        let operations = "254:0 Read 1\n254:0 Write 2\n8:16 Write 3\nTotal 6\n";
        let expected = Devices::from([((254, 0), io(4096, 8192, 1, 2)), ((8, 16), io(0, 0, 0, 3))]);
        assert_eq!(blkio(bytes, operations), expected);
        assert_eq!(blkio("Total 0\n", "Total 0\n"), Devices::new());
    }
}
