//! Limits, device rules and annotations as properties of a unit, systemd.resource-control(5). All pure.
//!
//! Properties are made of the very writes that go to the control files, so that the two agree. What has no property
//! (realtime limits, swappiness, throttles, huge pages, RDMA) systemd leaves alone.

use anyhow::{Context, Result, bail, ensure};

use super::super::devices::Policy;
use super::super::resources::{Absent, MAX_CPUS, MAX_LIST, Write};
use crate::dbus::Value;

/// How systemd writes "no limit".
const INFINITY: u64 = u64::MAX;

/// The kernel's default period, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// What annotations that are properties begin with, in runc and crun too.
const PREFIX: &str = "org.systemd.property.";

/// A property and its value.
type Property = (String, Value);

/// The number in `257.7-1` or `v252`; 0 where there is none.
pub(super) fn version(text: &str) -> u32 {
    let digits = text.trim_start_matches('v');
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(0)
}

/// The properties of these limits, as far as this version of systemd has them.
pub(super) fn limits(writes: &[Write], version: u32) -> Result<Vec<Property>> {
    let mut all: Vec<Property> = Vec::new();
    let (mut quota, mut period) = (None, None);
    for write in writes {
        let (file, value) = (&*write.file, &*write.value);
        match file {
            "cpu.cfs_quota_us" => quota = Some(number(value)),
            "cpu.cfs_period_us" => period = Some(number(value)),
            "cpu.max" => {
                let (limit, rest) = value.split_once(' ').unwrap_or((value, ""));
                (quota, period) = (Some(number(limit)), rest.parse().ok());
            }
            _ => all.extend(limit(write, version).with_context(|| format!("linux.resources.{}", write.field))?),
        }
    }
    if quota.is_some() || period.is_some() {
        let period = period.unwrap_or(DEFAULT_PERIOD);
        all.push(("CPUQuotaPerSecUSec".to_owned(), Value::U64(per_second(quota, period))));
        if version >= 242 {
            all.push(("CPUQuotaPeriodUSec".to_owned(), Value::U64(period)));
        }
    }
    Ok(all)
}

/// One that stands for itself.
fn limit(write: &Write, version: u32) -> Result<Option<Property>> {
    let number = || Value::U64(number(&write.value));
    let (name, value) = match &*write.file {
        "cpu.shares" => ("CPUShares", number()),
        "cpu.weight" => ("CPUWeight", number()),
        // To systemd the weight of an idle group is 0; else it would end that state again.
        "cpu.idle" if write.value == "1" && version >= 252 => ("CPUWeight", Value::U64(0)),
        "cpuset.cpus" if version >= 244 => ("AllowedCPUs", Value::Bytes(bits(&write.value)?)),
        "cpuset.mems" if version >= 244 => ("AllowedMemoryNodes", Value::Bytes(bits(&write.value)?)),
        "memory.limit_in_bytes" => ("MemoryLimit", number()),
        "memory.max" => ("MemoryMax", number()),
        "memory.high" => ("MemoryHigh", number()),
        "memory.low" => ("MemoryLow", number()),
        "memory.min" => ("MemoryMin", number()),
        "memory.swap.max" => ("MemorySwapMax", number()),
        "pids.max" => ("TasksMax", number()),
        "blkio.bfq.weight" => ("BlockIOWeight", number()),
        "io.weight" if write.value.parse::<u64>().is_ok() => ("IOWeight", number()),
        "io.bfq.weight" => match &write.absent {
            Absent::Instead(_, weight) if weight.parse::<u64>().is_ok() => ("IOWeight", Value::U64(weight.parse()?)),
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    Ok(Some((name.to_owned(), value)))
}

/// A limit: what is no number (`max`, `-1`) is none.
fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(INFINITY)
}

/// Microseconds of processor time per second. systemd saves whole percents, so that a limit it reads back must be one; one
/// that is not is rounded up, and the container's file says the exact one until systemd writes it.
fn per_second(quota: Option<u64>, period: u64) -> u64 {
    const PERCENT: u64 = 10_000;
    match quota {
        None | Some(INFINITY) => INFINITY,
        Some(quota) => {
            let exact = quota.saturating_mul(1_000_000) / period.max(1);
            exact.checked_next_multiple_of(PERCENT).unwrap_or(INFINITY)
        }
    }
}

/// A list like `0-2,7` as bits, the lowest first.
fn bits(list: &str) -> Result<Vec<u8>> {
    let mut bits = Vec::new();
    ensure!(list.len() <= MAX_LIST, "a list of {} characters", list.len());
    for range in list.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let parse = |text: &str| {
            text.trim()
                .parse::<usize>()
                .with_context(|| format!("{list:?}: not a list"))
        };
        let (first, last) = (parse(first)?, parse(last)?);
        ensure!(
            first <= last && last < MAX_CPUS,
            "{list:?}: not a list of what there can be"
        );
        bits.resize(bits.len().max(last / 8 + 1), 0);
        (first..=last).for_each(|bit| bits[bit / 8] |= 1 << (bit % 8));
    }
    Ok(bits)
}

/// Device rules. `groups` is /proc/devices: systemd names what has no minor number by it.
///
/// Rules that systemd has no words for are left out on v1, where a unit without rules gets every device with the next
/// reload. On v2 systemd's program decides beside ours, so that leaving out one would deny it: then ours is the only one.
pub(super) fn devices(policy: &Policy, groups: &str, v2: bool) -> Vec<Property> {
    let rules = match policy.allowed(groups) {
        Some((rules, all)) if all || !v2 => rules,
        _ => return Vec::new(),
    };
    vec![
        ("DevicePolicy".to_owned(), Value::Text("strict".to_owned())),
        ("DeviceAllow".to_owned(), Value::Pairs(rules)),
    ]
}

/// The property that an annotation asks for, if it does: `org.systemd.property.TimeoutStopUSec: "uint64 5000000"`. A name
/// that ends in `Sec` is in seconds, of which systemd's own interface knows only millionths.
pub(super) fn annotation(key: &str, text: &str) -> Result<Option<Property>> {
    let Some(name) = key.strip_prefix(PREFIX) else {
        return Ok(None);
    };
    ensure!(
        name.len() >= 3 && name.bytes().all(|b| b.is_ascii_alphabetic()),
        "not the name of a property"
    );
    ensure!(
        !["PIDs", "Slice"].contains(&name),
        "is linux.cgroupsPath's and the runtime's to say"
    );
    let value = parse(text)?;
    let Some(stem) = name.strip_suffix("Sec").filter(|stem| !stem.ends_with('U')) else {
        return Ok(Some((name.to_owned(), value)));
    };
    let seconds = match value {
        Value::I32(n) => f64::from(n),
        Value::U32(n) => f64::from(n),
        Value::F64(n) => n,
        _ => text.trim().rsplit(' ').next().unwrap_or_default().parse()?,
    };
    ensure!((0.0..1e12).contains(&seconds), "{text:?}: not a number of seconds");
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 10^18"
    )]
    let micros = (seconds * 1e6) as u64;
    Ok(Some((format!("{stem}USec"), Value::U64(micros))))
}

/// A value in the text form of GVariant: booleans, numbers, with or without their type before them, texts, and lists of
/// texts.
fn parse(text: &str) -> Result<Value> {
    let text = text.trim();
    let failure = || format!("{text:?}: not a value: true, 5, uint64 5, 0.5, 'text' or ['text', 'text']");
    if let Some((kind, number)) = text.split_once(' ') {
        let number = number.trim();
        match kind {
            "boolean" => return Ok(Value::Bool(number.parse().with_context(failure)?)),
            "int32" => return Ok(Value::I32(number.parse().with_context(failure)?)),
            "uint32" => return Ok(Value::U32(number.parse().with_context(failure)?)),
            "int64" => return Ok(Value::I64(number.parse().with_context(failure)?)),
            "uint64" => return Ok(Value::U64(number.parse().with_context(failure)?)),
            "double" => return Ok(Value::F64(number.parse().with_context(failure)?)),
            _ => {}
        }
    }
    if let Some(list) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        let (mut texts, mut rest) = (Vec::new(), list.trim());
        while !rest.is_empty() {
            let (one, after) = quoted(rest).with_context(failure)?;
            texts.push(one);
            let after = after.trim_start();
            rest = match after.strip_prefix(',') {
                Some(more) if !more.trim().is_empty() => more.trim_start(),
                None if after.is_empty() => after,
                _ => bail!(failure()),
            };
        }
        return Ok(Value::Texts(texts));
    }
    if let Some((one, rest)) = quoted(text) {
        ensure!(rest.is_empty(), failure());
        return Ok(Value::Text(one));
    }
    match text {
        "true" => Ok(Value::Bool(true)),
        "false" => Ok(Value::Bool(false)),
        _ if text.contains(['.', 'e']) => Ok(Value::F64(text.parse().with_context(failure)?)),
        _ => Ok(Value::I32(text.parse().with_context(failure)?)),
    }
}

/// A text between quotes of either kind, with `\` before what stands for itself, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut chars = text.char_indices();
    let quote = chars.next().map(|(_, c)| c).filter(|c| ['\'', '"'].contains(c))?;
    let mut out = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => return Some((out, &text[at + 1..])),
            '\\' => out.push(chars.next()?.1),
            c => out.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxResources;
    use serde_json::json;

    use super::super::super::resources;
    use super::*;

    /// `Name=value` of each property.
    fn shown(properties: &[Property]) -> String {
        let show = |(name, value): &Property| match value {
            Value::U64(INFINITY) => format!("{name}=inf"),
            Value::U64(number) => format!("{name}={number}"),
            Value::Bytes(bytes) => format!("{name}={bytes:?}"),
            other => format!("{name}={other:?}"),
        };
        properties.iter().map(show).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn limits_as_properties() {
        for (resources, version, on_v1, on_v2) in [
            (json!({}), 257, "", ""),
            (json!({"cpu": {"shares": 1024}}), 257, "CPUShares=1024", "CPUWeight=100"),
            (
                json!({"cpu": {"quota": 50_000, "period": 200_000}}),
                257,
                "CPUQuotaPerSecUSec=250000 CPUQuotaPeriodUSec=200000",
                "CPUQuotaPerSecUSec=250000 CPUQuotaPeriodUSec=200000",
            ),
            (
                json!({"cpu": {"quota": 1_234}}),
                239,
                "CPUQuotaPerSecUSec=20000",
                "CPUQuotaPerSecUSec=20000",
            ),
            (
                json!({"cpu": {"quota": i64::MAX, "period": 1}}),
                239,
                "CPUQuotaPerSecUSec=inf",
                "CPUQuotaPerSecUSec=inf",
            ),
            (
                json!({"cpu": {"quota": -1}}),
                239,
                "CPUQuotaPerSecUSec=inf",
                "CPUQuotaPerSecUSec=inf",
            ),
            (
                json!({"cpu": {"cpus": "0-2,9", "mems": "1"}}),
                244,
                "AllowedCPUs=[7, 2] AllowedMemoryNodes=[2]",
                "AllowedCPUs=[7, 2] AllowedMemoryNodes=[2]",
            ),
            (json!({"cpu": {"cpus": "0"}}), 243, "", ""),
            (json!({"cpu": {"idle": 1}}), 252, "CPUWeight=0", "CPUWeight=0"),
            (
                json!({"memory": {"limit": 9, "swap": 12, "reservation": 5}}),
                257,
                "MemoryLimit=9",
                "MemorySwapMax=3 MemoryMax=9 MemoryLow=5",
            ),
            (
                json!({"memory": {"limit": -1}}),
                257,
                "MemoryLimit=inf",
                "MemorySwapMax=inf MemoryMax=inf",
            ),
            (json!({"pids": {"limit": -1}}), 257, "TasksMax=inf", "TasksMax=inf"),
            (
                json!({"blockIO": {"weight": 500}}),
                257,
                "BlockIOWeight=500",
                "IOWeight=4950",
            ),
        ] {
            let parsed: LinuxResources = serde_json::from_value(resources.clone()).unwrap();
            for (writes, expected) in [(resources::v1(&parsed), on_v1), (resources::v2(&parsed), on_v2)] {
                let properties = limits(&writes.unwrap(), version).unwrap();
                assert_eq!(shown(&properties), expected, "{resources}");
            }
        }
        let unified: LinuxResources = serde_json::from_value(json!({"unified": {"memory.high": "7"}})).unwrap();
        let properties = limits(&resources::v2(&unified).unwrap(), 257).unwrap();
        assert_eq!(shown(&properties), "MemoryHigh=7");
    }

    #[test]
    fn lists_as_bits() {
        for (list, expected) in [("0", Some(vec![1])), ("8,0-1", Some(vec![3, 1])), ("", Some(vec![]))] {
            assert_eq!(bits(list).ok(), expected, "{list}");
        }
        for list in ["x", "3-1", "0-99999", "0-4294967295", &"0-8191,".repeat(8000)] {
            assert!(bits(list).is_err(), "{list:.40}");
        }
    }

    #[test]
    fn versions() {
        for (text, number) in [("257.7-1", 257), ("v252", 252), ("239", 239), ("x", 0)] {
            assert_eq!(version(text), number, "{text}");
        }
    }

    #[test]
    fn annotations() {
        let text = |text: &str| Value::Text(text.to_owned());
        for (key, value, property) in [
            ("org.example.x", "y", None),
            (
                "org.systemd.property.CollectMode",
                "'inactive-or-failed'",
                Some(("CollectMode", text("inactive-or-failed"))),
            ),
            (
                "org.systemd.property.TimeoutStopUSec",
                "uint64 5",
                Some(("TimeoutStopUSec", Value::U64(5))),
            ),
            (
                "org.systemd.property.TimeoutStopSec",
                "1.5",
                Some(("TimeoutStopUSec", Value::U64(1_500_000))),
            ),
            (
                "org.systemd.property.TimeoutStopSec",
                "uint64 2",
                Some(("TimeoutStopUSec", Value::U64(2_000_000))),
            ),
            (
                "org.systemd.property.SendSIGHUP",
                "true",
                Some(("SendSIGHUP", Value::Bool(true))),
            ),
            (
                "org.systemd.property.KillSignal",
                "15",
                Some(("KillSignal", Value::I32(15))),
            ),
            (
                "org.systemd.property.After",
                "['a.service', \"b.service\"]",
                Some((
                    "After",
                    Value::Texts(vec!["a.service".to_owned(), "b.service".to_owned()]),
                )),
            ),
        ] {
            let property = property.map(|(name, value)| (name.to_owned(), value));
            assert_eq!(annotation(key, value).unwrap(), property, "{key}={value}");
        }
        for (name, value) in [
            ("X", "true"),
            ("A-b-c", "true"),
            ("PIDs", "uint32 1"),
            ("Slice", "'x.slice'"),
            ("TimeoutStopSec", "-1"),
            ("Description", "'open"),
            ("Description", "'a' b"),
            ("After", "['a' 'b']"),
            ("After", "['a',]"),
            ("KillSignal", "much"),
        ] {
            let result = annotation(&format!("{PREFIX}{name}"), value);
            assert!(result.is_err(), "{name}={value}: {result:?}");
        }
    }

    #[test]
    fn device_rules() {
        let groups = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  8 sd\n";
        let properties = devices(&Policy::new(&[]).unwrap(), groups, true);
        let Value::Pairs(rules) = &properties[1].1 else {
            panic!("{properties:?}")
        };
        assert_eq!(
            properties[0],
            ("DevicePolicy".to_owned(), Value::Text("strict".to_owned()))
        );
        for rule in [
            ("char-*", "m"),
            ("block-*", "m"),
            ("/dev/char/1:3", "rwm"),
            ("char-pts", "rwm"),
        ] {
            assert!(rules.iter().any(|(a, b)| (&**a, &**b) == rule), "{rule:?}: {rules:?}");
        }
        let all: Vec<_> = serde_json::from_value(json!([{"allow": true, "access": "rwm"}])).unwrap();
        assert_eq!(devices(&Policy::new(&all).unwrap(), groups, false), []);
        // A group without a name.
        let one: Vec<_> =
            serde_json::from_value(json!([{"allow": true, "type": "c", "major": 99, "access": "r"}])).unwrap();
        assert_eq!(devices(&Policy::new(&one).unwrap(), groups, true), []);
        assert_eq!(devices(&Policy::new(&one).unwrap(), groups, false).len(), 2);
    }
}
