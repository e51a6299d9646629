//! The kernel's texts: pure.

use std::collections::BTreeMap;

use super::{BlkioEntry, Pressure, Psi};

/// A number; `max`, and what is none, are the largest.
pub(super) fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(u64::MAX)
}

/// Lines `KEY NUMBER`.
pub(super) fn keyed(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// A list like `0-2,7`.
pub(super) fn list(text: &str) -> Vec<u16> {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

/// v1's lines `MAJOR:MINOR OPERATION NUMBER`; the sum below them, without a device, is left out.
pub(super) fn blkio(text: &str) -> Vec<BlkioEntry> {
    let entry = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (major, minor) = fields.next()?.split_once(':')?;
        Some(BlkioEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: fields.next()?.to_owned(),
            value: fields.next()?.parse().ok()?,
        })
    };
    text.lines().filter_map(entry).collect()
}

/// v2's lines `MAJOR:MINOR rbytes=N wbytes=N rios=N ...`: (bytes, operations).
pub(super) fn io_stat(text: &str) -> (Vec<BlkioEntry>, Vec<BlkioEntry>) {
    let (mut bytes, mut operations) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        let device = fields.next().and_then(|device| device.split_once(':'));
        let Some((Ok(major), Ok(minor))) = device.map(|(major, minor)| (major.parse(), minor.parse())) else {
            continue;
        };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut bytes, "Read"),
                "wbytes" => (&mut bytes, "Write"),
                "rios" => (&mut operations, "Read"),
                "wios" => (&mut operations, "Write"),
                _ => continue,
            };
            list.push(BlkioEntry {
                major,
                minor,
                op: op.to_owned(),
                value: number(value),
            });
        }
    }
    (bytes, operations)
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`.
pub(super) fn pressure(text: &str) -> Psi {
    let line = |name: &str| {
        let fields = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_default();
        let value = |key: &str| {
            let mut pairs = fields
                .split_ascii_whitespace()
                .filter_map(|field| field.split_once('='));
            pairs
                .find_map(|(name, value)| (name == key).then_some(value))
                .unwrap_or("0")
        };
        Pressure {
            avg10: value("avg10").parse().unwrap_or_default(),
            avg60: value("avg60").parse().unwrap_or_default(),
            avg300: value("avg300").parse().unwrap_or_default(),
            total: value("total").parse().unwrap_or_default(),
        }
    };
    Psi {
        some: line("some "),
        full: line("full "),
    }
}

/// v1's `cpuacct.usage_all`: a heading, then lines `CPU USER SYSTEM`; (kernel, user) of each processor.
pub(super) fn usage_all(text: &str) -> (Vec<u64>, Vec<u64>) {
    let line = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
        let (user, kernel) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some((kernel, user))
    };
    text.lines().filter_map(line).unzip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_lists() {
        for (text, value) in [("5\n", 5), ("max\n", u64::MAX), ("", u64::MAX)] {
            assert_eq!(number(text), value, "{text:?}");
        }
        for (text, value) in [("0-2,7\n", vec![0, 1, 2, 7]), ("\n", vec![]), ("3", vec![3])] {
            assert_eq!(list(text), value, "{text:?}");
        }
        let map = keyed("cache 5\nrss 0\nbroken\nnan x\n");
        assert_eq!(map, BTreeMap::from([("cache".to_owned(), 5), ("rss".to_owned(), 0)]));
    }

    fn entry(major: u64, minor: u64, op: &str, value: u64) -> BlkioEntry {
        BlkioEntry {
            major,
            minor,
            op: op.to_owned(),
            value,
        }
    }

    #[test]
    fn block_io() {
        assert_eq!(
            blkio("254:0 Read 4096\n254:0 Total 4096\nTotal 4096\n"),
            [entry(254, 0, "Read", 4096), entry(254, 0, "Total", 4096)]
        );
        let (bytes, operations) = io_stat("8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n7:0\n");
        assert_eq!(bytes, [entry(8, 16, "Read", 1), entry(8, 16, "Write", 2)]);
        assert_eq!(operations, [entry(8, 16, "Read", 3), entry(8, 16, "Write", 4)]);
    }

    #[test]
    fn pressures() {
        let psi = pressure(
            "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
        );
        assert_eq!(
            (psi.some.avg10, psi.some.avg60, psi.some.total, psi.full.total),
            (1.5, 0.25, 77, 3)
        );
        assert_eq!(pressure(""), Psi::default());
    }

    #[test]
    fn processors() {
        assert_eq!(usage_all("cpu user system\n0 5 6\n1 7 8\n"), (vec![6, 8], vec![5, 7]));
    }
}
