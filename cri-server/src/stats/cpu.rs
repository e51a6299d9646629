//! The processor: cpu and cpuacct on v1, `cpu.stat` on v2.

use corten_proto::cri;

use super::cgroups::Cgroups;
use super::parse;

/// The clock ticks in which v1 counts user and system time: USER_HZ, 100 on every machine with an ordinary ABI.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

/// Processor time used.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Cpu {
    /// Nanoseconds of all processors.
    pub(super) usage_ns: Option<u64>,
    /// The part in programs, and the part in the kernel, in nanoseconds.
    pub(super) user_ns: Option<u64>,
    pub(super) system_ns: Option<u64>,
}

/// What the quota has done.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Throttling {
    /// Periods in which anything ran, and those in which it was held.
    pub(super) periods: Option<u64>,
    pub(super) throttled_periods: Option<u64>,
    /// For how long, in nanoseconds.
    pub(super) throttled_ns: Option<u64>,
}

/// The limits.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct CpuLimits {
    /// As v1 counts them: 1024 is the default.
    pub(super) shares: Option<u64>,
    /// Microseconds; a quota of [`parse::UNLIMITED`] is none.
    pub(super) period_us: Option<u64>,
    pub(super) quota_us: Option<u64>,
}

/// Nanoseconds of all processors.
pub(super) fn usage_ns(cgroups: &Cgroups) -> Option<u64> {
    match cgroups.is_v2() {
        true => usage(cgroups).usage_ns,
        false => parse::number(&cgroups.text("cpuacct", "cpuacct.usage")?),
    }
}

/// What it has used, and where.
pub(super) fn usage(cgroups: &Cgroups) -> Cpu {
    if cgroups.is_v2() {
        let stat = cgroups.text("cpu", "cpu.stat").unwrap_or_default();
        let ns = |key| parse::keyed(&stat, key).map(|us| us.saturating_mul(1000));
        return Cpu {
            usage_ns: ns("usage_usec"),
            user_ns: ns("user_usec"),
            system_ns: ns("system_usec"),
        };
    }
    let stat = cgroups.text("cpuacct", "cpuacct.stat").unwrap_or_default();
    let ns = |key| parse::keyed(&stat, key).map(|ticks| ticks.saturating_mul(NANOSECONDS_PER_TICK));
    Cpu {
        usage_ns: usage_ns(cgroups),
        user_ns: ns("user"),
        system_ns: ns("system"),
    }
}

/// What the quota has done.
pub(super) fn throttling(cgroups: &Cgroups) -> Throttling {
    let stat = cgroups.text("cpu", "cpu.stat").unwrap_or_default();
    let throttled_us = parse::keyed(&stat, "throttled_usec").map(|us| us.saturating_mul(1000));
    Throttling {
        periods: parse::keyed(&stat, "nr_periods"),
        throttled_periods: parse::keyed(&stat, "nr_throttled"),
        // v2's name, else v1's.
        throttled_ns: throttled_us.or_else(|| parse::keyed(&stat, "throttled_time")),
    }
}

/// The limits.
pub(super) fn limits(cgroups: &Cgroups) -> CpuLimits {
    let text = |file| cgroups.text("cpu", file);
    if cgroups.is_v2() {
        let max = text("cpu.max").unwrap_or_default();
        let mut fields = max.split_ascii_whitespace();
        return CpuLimits {
            quota_us: fields.next().and_then(parse::limit),
            period_us: fields.next().and_then(parse::number),
            shares: text("cpu.weight").and_then(|text| parse::number(&text)).map(shares),
        };
    }
    CpuLimits {
        shares: text("cpu.shares").and_then(|text| parse::number(&text)),
        period_us: text("cpu.cfs_period_us").and_then(|text| parse::number(&text)),
        quota_us: text("cpu.cfs_quota_us").and_then(|text| parse::limit(&text)),
    }
}

/// Pressure; v1 has none.
pub(super) fn pressure(cgroups: &Cgroups) -> Option<cri::PsiStats> {
    parse::pressure(&cgroups.text("cpu", "cpu.pressure").filter(|_| cgroups.is_v2())?)
}

/// A v2 weight (1 to 10000) as v1 shares: the inverse of what the runtime makes of shares, up to its rounding.
fn shares(weight: u64) -> u64 {
    let weight = f64::from(u32::try_from(weight.clamp(1, 10_000)).expect("clamped"));
    // weight = 10 ^ ((l^2 + 125 l) / 612 - 7 / 34), with l = log2(shares), solved for l.
    let constant = 612.0 * (weight.log10() + 7.0 / 34.0);
    let l = ((125.0 * 125.0 + 4.0 * constant).sqrt() - 125.0) / 2.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 2 and 262144"
    )]
    let shares = l.exp2().round() as u64;
    shares
}

#[cfg(test)]
mod tests {
    use super::super::cgroups::tests::{v1, v2};
    use super::*;

    #[test]
    fn on_v2() {
        let stat = "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 7\nnr_throttled 3\nthrottled_usec 9\n";
        let (_dir, cgroups) = v2(&[
            ("cpu.stat", stat),
            ("cpu.max", "50000 100000\n"),
            ("cpu.weight", "100\n"),
        ]);
        let expected = Cpu {
            usage_ns: Some(1_500_000),
            user_ns: Some(1_000_000),
            system_ns: Some(500_000),
        };
        assert_eq!(usage(&cgroups), expected);
        let expected = Throttling {
            periods: Some(7),
            throttled_periods: Some(3),
            throttled_ns: Some(9000),
        };
        assert_eq!(throttling(&cgroups), expected);
        let expected = CpuLimits {
            shares: Some(1024),
            period_us: Some(100_000),
            quota_us: Some(50_000),
        };
        assert_eq!(limits(&cgroups), expected);
        assert_eq!(pressure(&cgroups), None, "a kernel without");
    }

    #[test]
    fn on_v1() {
        let (_dir, cgroups) = v1(&[
            ("cpuacct/cpuacct.usage", "123456789\n"),
            ("cpuacct/cpuacct.stat", "user 5\nsystem 7\n"),
            (
                "cpu/cpu.stat",
                "nr_periods 7\nnr_throttled 3\nthrottled_time 9000\nnr_bursts 0\n",
            ),
            ("cpu/cpu.shares", "512\n"),
            ("cpu/cpu.cfs_period_us", "100000\n"),
            ("cpu/cpu.cfs_quota_us", "-1\n"),
            ("cpu/cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"),
        ]);
        let expected = Cpu {
            usage_ns: Some(123_456_789),
            user_ns: Some(50_000_000),
            system_ns: Some(70_000_000),
        };
        assert_eq!(usage(&cgroups), expected);
        assert_eq!(throttling(&cgroups).throttled_ns, Some(9000));
        let expected = CpuLimits {
            shares: Some(512),
            period_us: Some(100_000),
            quota_us: Some(parse::UNLIMITED),
        };
        assert_eq!(limits(&cgroups), expected);
        assert_eq!(pressure(&cgroups), None);
    }

    #[test]
    fn a_cgroup_that_is_gone() {
        let (dir, cgroups) = v2(&[]);
        drop(dir);
        assert_eq!(usage(&cgroups), Cpu::default());
        assert_eq!(throttling(&cgroups), Throttling::default());
        assert_eq!(limits(&cgroups), CpuLimits::default());
    }

    #[test]
    fn weights_as_shares() {
        for (weight, expected) in [(1, 2), (100, 1024), (10_000, 262_144), (0, 2), (59, 512)] {
            let found = shares(weight);
            // A weight is a whole number, so that small ones stand for several shares.
            assert!(
                found.abs_diff(expected) * 50 <= expected,
                "{weight}: {found}, not {expected}"
            );
        }
    }
}
