//! Ids and digests as types: parsed once where they enter, trusted after.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A string that is not what its type demands: which type, the value, and the rule it breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidId {
    what: &'static str,
    value: String,
    rule: &'static str,
}

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Debug form: the value is a stranger's and may hold line breaks.
        write!(f, "{} {:?}: {}", self.what, self.value, self.rule)
    }
}

impl std::error::Error for InvalidId {}

/// Longest container id the runtime takes, in bytes; it becomes a file name.
const MAX_CONTAINER_ID: usize = 255;

/// A container id as the OCI runtime takes it: `[A-Za-z0-9_+.-]{1,255}`, and neither `.` nor `..`.
///
/// runc's rule. The id becomes the name of a directory and of a cgroup, so it can hold no separator.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

/// A pod sandbox's id; its infra container has the same.
pub type SandboxId = ContainerId;

impl ContainerId {
    /// A new id: 64 hexadecimal digits from the kernel's random source, the form the peers use.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0u8; 32];
        getrandom::fill(&mut bytes)?;
        Ok(ContainerId(hex(&bytes)))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerId {
    type Err = InvalidId;

    fn from_str(value: &str) -> Result<Self, InvalidId> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_+-.".contains(&b);
        let valid = (1..=MAX_CONTAINER_ID).contains(&value.len())
            && value.bytes().all(allowed)
            && value != "."
            && value != "..";
        if valid {
            return Ok(ContainerId(value.to_owned()));
        }
        Err(InvalidId {
            what: "container id",
            value: value.to_owned(),
            rule: "1 to 255 of A-Z a-z 0-9 _ + - . and neither \".\" nor \"..\"",
        })
    }
}

/// A content digest, `sha256:` and 64 lower-case hexadecimal digits (OCI image-spec, descriptor.md).
///
/// Being parsed, it can be used as a file name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// The prefix every digest has.
const SHA256_PREFIX: &str = "sha256:";

impl Digest {
    /// The digest of a finished SHA-256.
    pub fn from_sha256(hash: &[u8; 32]) -> Self {
        Digest(format!("{SHA256_PREFIX}{}", hex(hash)))
    }

    /// The whole digest, algorithm included.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hexadecimal digits alone.
    pub fn hex(&self) -> &str {
        &self.0[SHA256_PREFIX.len()..]
    }
}

impl FromStr for Digest {
    type Err = InvalidId;

    fn from_str(value: &str) -> Result<Self, InvalidId> {
        let valid = value
            .strip_prefix(SHA256_PREFIX)
            .is_some_and(|digits| digits.len() == 64 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
        if valid {
            return Ok(Digest(value.to_owned()));
        }
        Err(InvalidId {
            what: "digest",
            value: value.to_owned(),
            rule: "sha256: and 64 lower-case hexadecimal digits",
        })
    }
}

/// `Display`, and the conversions that serde uses, alike for every id.
macro_rules! as_text {
    ($type:ty) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $type {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                value.parse()
            }
        }
        impl From<$type> for String {
            fn from(id: $type) -> String {
                id.0
            }
        }
    };
}
as_text!(ContainerId);
as_text!(Digest);

/// Lower-case hexadecimal digits of `bytes`.
fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_ids() {
        for good in ["a", "A-b_c+d.e", "...", &"x".repeat(255)] {
            assert!(good.parse::<ContainerId>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "../x", "a b", "a\n", "ä", &"x".repeat(256)] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad}");
        }
        assert_eq!(ContainerId::random().unwrap().as_str().len(), 64);
    }

    #[test]
    fn digests() {
        let good = Digest::from_sha256(&[0xab; 32]);
        assert_eq!(good.as_str().parse::<Digest>().unwrap(), good);
        assert_eq!(good.hex(), "ab".repeat(32));
        let upper = format!("sha256:{}", "AB".repeat(32));
        let long = format!("sha256:{}", "ab".repeat(33));
        for bad in ["", "sha256:", "sha256:../../x", "sha512:00", &upper, &long, good.hex()] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_names_value_and_rule_on_one_line() {
        let text = "a\nb".parse::<ContainerId>().unwrap_err().to_string();
        assert!(text.contains(r#""a\nb""#) && text.contains("1 to 255"), "{text}");
        assert!(!text.contains('\n'));
    }
}
