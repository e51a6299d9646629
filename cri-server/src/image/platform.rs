//! Which of an image's platforms runs on this node, in the names of Go: `linux/amd64/v3`.
//!
//! `os.version` and `os.features` are not looked at: they tell Windows systems apart.

use serde::Deserialize;

/// Where an image runs.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub(super) struct Platform {
    pub(super) architecture: String,
    pub(super) os: String,
    #[serde(default)]
    pub(super) variant: Option<String>,
}

impl Platform {
    /// This machine's.
    pub(super) fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        let variant = match architecture {
            "amd64" => Some(format!("v{}", amd64_level())),
            "arm" => arm_version(&rustix::system::uname().machine().to_string_lossy()).map(|it| format!("v{it}")),
            _ => None,
        };
        Platform {
            architecture: architecture.into(),
            os: "linux".into(),
            variant,
        }
    }

    /// How much an image for `other` is preferred here, the more the higher; `None` if it does not run.
    ///
    /// A processor runs what was made for its own level and all lower ones, and best what is nearest to its own. Of arm64
    /// only the base level is known, v8, which every such processor has.
    pub(super) fn preference(&self, other: &Platform) -> Option<u32> {
        if self.os != other.os || self.architecture != other.architecture {
            return None;
        }
        // What images without a variant are for: the least level, of 32-bit ARM what Docker has always meant by it.
        let unnamed = match self.architecture.as_str() {
            "amd64" => 1,
            "arm64" => 8,
            "arm" => 7,
            _ => 0,
        };
        let level = |platform: &Platform| match platform.variant.as_deref() {
            None | Some("") => Some(unnamed),
            Some(variant) => variant.strip_prefix('v')?.parse::<u32>().ok(),
        };
        let (own, wanted) = (level(self)?, level(other)?);
        (wanted <= own).then_some(wanted)
    }
}

/// On one line: an image's may hold line breaks.
impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os.escape_debug(), self.architecture.escape_debug())?;
        match &self.variant {
            Some(variant) => write!(f, "/{}", variant.escape_debug()),
            None => Ok(()),
        }
    }
}

/// The level of the x86-64 psABI that this processor has.
#[cfg(target_arch = "x86_64")]
fn amd64_level() -> u32 {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("popcnt") && has!("sse3") && has!("sse4.1") && has!("sse4.2") && has!("ssse3") && has!("cmpxchg16b");
    let v3 =
        has!("avx") && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma") && has!("lzcnt");
    let v3 = v3 && has!("movbe") && has!("xsave");
    let v4 = has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    match (v2, v3, v4) {
        (true, true, true) => 4,
        (true, true, false) => 3,
        (true, false, _) => 2,
        (false, ..) => 1,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_level() -> u32 {
    1
}

/// The version of ARM in uname(2)'s name of a machine: `armv7l`. A 64-bit processor runs all of them.
fn arm_version(machine: &str) -> Option<u32> {
    if machine == "aarch64" {
        return Some(8);
    }
    machine.strip_prefix("armv")?.get(..1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap(),
            architecture: parts.next().unwrap(),
            variant: parts.next(),
        }
    }

    #[test]
    fn what_runs_where() {
        let table = [
            ("linux/amd64/v3", "linux/amd64", Some(1)),
            ("linux/amd64/v3", "linux/amd64/v1", Some(1)),
            ("linux/amd64/v3", "linux/amd64/v3", Some(3)),
            ("linux/amd64/v3", "linux/amd64/v4", None),
            ("linux/amd64", "linux/amd64/v2", None),
            ("linux/amd64/v3", "linux/arm64", None),
            ("linux/amd64/v3", "windows/amd64", None),
            ("linux/amd64/v3", "linux/amd64/", Some(1)),
            ("linux/amd64/v3", "linux/amd64/fast", None),
            ("linux/arm64", "linux/arm64/v8", Some(8)),
            ("linux/arm64", "linux/arm64/v9", None),
            ("linux/arm/v7", "linux/arm", Some(7)),
            ("linux/arm/v7", "linux/arm/v6", Some(6)),
            ("linux/arm/v7", "linux/arm/v8", None),
            ("linux/arm/v6", "linux/arm", None),
            ("linux/riscv64", "linux/riscv64", Some(0)),
            ("linux/riscv64", "linux/riscv64/v1", None),
        ];
        for (host, image, preference) in table {
            assert_eq!(
                platform(host).preference(&platform(image)),
                preference,
                "{image} on {host}"
            );
        }
        let host = Platform::host();
        assert!(host.preference(&host).is_some(), "{host}");
    }

    #[test]
    fn versions_of_arm() {
        for (machine, version) in [
            ("armv7l", Some(7)),
            ("armv6l", Some(6)),
            ("aarch64", Some(8)),
            ("x86_64", None),
        ] {
            assert_eq!(arm_version(machine), version, "{machine}");
        }
    }
}
