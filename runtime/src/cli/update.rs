//! `update`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use corten_proto::id::ContainerId;

use super::arguments::Arguments;
use super::definition::{Definition, Flag, Operand};

pub(super) const UPDATE: Definition = Definition {
    name: "update",
    about: "change the limits of a container",
    details: "\
With --resources all other options but the schemas are ignored; the document is `linux.resources` of config.json, and
what it does not name stays as it is. A SIZE is a number of bytes, or one with a unit such as 512m.",
    flags: &[&[
        Flag::file("resources", "the limits as a JSON document; - for the standard input").or('r'),
        Flag::text("blkio-weight", "N", "weight of block IO, 10 to 1000"),
        Flag::text(
            "cpu-period",
            "MICROSECONDS",
            "period of the CPU quota; 0 for the default",
        ),
        Flag::text("cpu-quota", "MICROSECONDS", "CPU time per period; -1 for no limit"),
        Flag::text(
            "cpu-burst",
            "MICROSECONDS",
            "CPU time that may be saved up from earlier periods",
        ),
        Flag::text("cpu-share", "N", "CPU weight relative to others"),
        Flag::text(
            "cpu-rt-period",
            "MICROSECONDS",
            "period of the realtime CPU limit; 0 for the default",
        ),
        Flag::text("cpu-rt-runtime", "MICROSECONDS", "realtime CPU time per period"),
        Flag::text("cpuset-cpus", "LIST", "the CPUs to use, such as 0-2,7"),
        Flag::text("cpuset-mems", "LIST", "the memory nodes to use"),
        Flag::text("memory", "SIZE", "memory limit; -1 for none"),
        Flag::text(
            "memory-reservation",
            "SIZE",
            "memory kept when memory is short; -1 for the default",
        ),
        Flag::text("memory-swap", "SIZE", "limit of memory and swap together; -1 for none"),
        Flag::text(
            "kernel-memory",
            "SIZE",
            "limit of kernel memory, which Linux has not had since 5.16",
        ),
        Flag::text(
            "kernel-memory-tcp",
            "SIZE",
            "limit of the kernel's TCP buffers, on cgroup v1",
        ),
        Flag::text("pids-limit", "N", "the most processes and threads; -1 for no limit"),
        Flag::text("l3-cache-schema", "SCHEMA", "Intel RDT/CAT schema of the L3 cache"),
        Flag::text(
            "mem-bw-schema",
            "SCHEMA",
            "Intel RDT/MBA schema of the memory bandwidth",
        ),
        Flag::text("cpu-idle", "0|1", "1 to run only when no other cgroup wants the CPU"),
    ]],
    operands: &[Operand::ID],
    ends_options: false,
};

/// `update`: what is `None` stays as it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Update {
    /// Which container.
    pub id: ContainerId,
    /// The document; `-` is the standard input. All else counts only without it.
    pub resources: Option<PathBuf>,
    /// Weight of block IO.
    pub blkio_weight: Option<u16>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// Microseconds; -1 for no limit.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_burst: Option<u64>,
    /// CPU weight, 1024 for an ordinary one.
    pub cpu_share: Option<u64>,
    /// Microseconds.
    pub cpu_rt_period: Option<u64>,
    /// Microseconds.
    pub cpu_rt_runtime: Option<i64>,
    /// A list of ranges.
    pub cpuset_cpus: Option<String>,
    /// A list of ranges.
    pub cpuset_mems: Option<String>,
    /// Bytes; -1 for no limit.
    pub memory: Option<i64>,
    /// Bytes; -1 for no limit.
    pub memory_reservation: Option<i64>,
    /// Bytes of memory and swap; -1 for no limit.
    pub memory_swap: Option<i64>,
    /// Bytes; -1 for no limit.
    pub kernel_memory: Option<i64>,
    /// Bytes; -1 for no limit.
    pub kernel_memory_tcp: Option<i64>,
    /// A number of tasks; -1 for no limit.
    pub pids_limit: Option<i64>,
    /// A line of resctrl's schemata file: `L3:0=f`.
    pub l3_cache_schema: Option<String>,
    /// A line of resctrl's schemata file: `MB:0=20`.
    pub mem_bw_schema: Option<String>,
    /// 0 or 1.
    pub cpu_idle: Option<i64>,
}

impl Update {
    pub(super) fn new(arguments: &Arguments) -> Result<Update> {
        let size_of = |long| arguments.parsed_by(long, size);
        Ok(Update {
            id: arguments.id()?,
            resources: arguments.path("resources"),
            blkio_weight: arguments.parsed("blkio-weight")?,
            cpu_period: arguments.parsed("cpu-period")?,
            cpu_quota: arguments.parsed("cpu-quota")?,
            cpu_burst: arguments.parsed("cpu-burst")?,
            cpu_share: arguments.parsed("cpu-share")?,
            cpu_rt_period: arguments.parsed("cpu-rt-period")?,
            cpu_rt_runtime: arguments.parsed("cpu-rt-runtime")?,
            cpuset_cpus: arguments.text("cpuset-cpus")?,
            cpuset_mems: arguments.text("cpuset-mems")?,
            memory: size_of("memory")?,
            memory_reservation: size_of("memory-reservation")?,
            memory_swap: size_of("memory-swap")?,
            kernel_memory: size_of("kernel-memory")?,
            kernel_memory_tcp: size_of("kernel-memory-tcp")?,
            pids_limit: arguments.parsed("pids-limit")?,
            l3_cache_schema: arguments.text("l3-cache-schema")?,
            mem_bw_schema: arguments.text("mem-bw-schema")?,
            cpu_idle: arguments.parsed("cpu-idle")?,
        })
    }
}

/// A number of bytes, or -1: `1048576`, `512m`, `1.5GiB`. Units are powers of 1024, in either case, as runc has them.
fn size(text: &str) -> Result<i64> {
    if text == "-1" {
        return Ok(-1);
    }
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start_matches(' ').to_ascii_lowercase();
    let scale: u32 = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => bail!("the unit must be b, k, m, g, t or p"),
    };
    let unit = 1024_i64.pow(scale);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: i64 = whole.parse().context("must be a number of bytes, or -1")?;
    // Six digits are more than anybody writes, and leave room to multiply.
    let fraction = &fraction[..fraction.len().min(6)];
    let part: i64 = fraction.parse().context("must be a number of bytes, or -1")?;
    let power = 10_i64.pow(u32::try_from(fraction.len())?);
    // A pebibyte times a million does not fit; the remainder of the division is below the power.
    let part = unit / power * part + unit % power * part / power;
    let bytes = whole.checked_mul(unit).and_then(|bytes| bytes.checked_add(part));
    bytes.context("is too large")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("-1", -1),
            ("1048576", 1 << 20),
            ("512m", 512 << 20),
            ("1G", 1 << 30),
            ("2 KiB", 2048),
            ("1.5k", 1536),
            ("0.25m", 1 << 18),
            ("1.5p", 3 << 49),
            ("7b", 7),
        ] {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
        }
        for bad in [
            "",
            "m",
            "-2",
            "1x",
            "1.2.3",
            "99999999999999999999",
            "9000p",
            ".5m",
            "1e3",
            "-",
        ] {
            assert!(size(bad).is_err(), "{bad}: {:?}", size(bad));
        }
    }
}
