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

/// How a digest is computed (OCI image-spec, descriptor.md, "Registered algorithms").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// What nearly everything has.
    Sha256,
    /// Registered too, and refused by some.
    Sha512,
}

impl Algorithm {
    const ALL: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

    /// The name before the colon of a digest.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// How many hexadecimal digits a digest has; no two algorithms have as many.
    const fn digits(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// A content digest: `sha256:` and 64 or `sha512:` and 128 lower-case hexadecimal digits (OCI image-spec, descriptor.md).
///
/// Being parsed, its digits can be used as a file name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The digest of a finished SHA-256.
    pub fn from_sha256(hash: &[u8; 32]) -> Self {
        Digest::from_hash(Algorithm::Sha256, hash)
    }

    /// The digest of a finished SHA-512.
    pub fn from_sha512(hash: &[u8; 64]) -> Self {
        Digest::from_hash(Algorithm::Sha512, hash)
    }

    fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Self {
        Digest(format!("{}:{}", algorithm.name(), hex(hash)))
    }

    /// The digest with these digits; their number tells the algorithm.
    pub fn from_hex(digits: &str) -> Option<Self> {
        let algorithm = Algorithm::ALL.iter().find(|known| known.digits() == digits.len())?;
        is_lower_hex(digits).then(|| Digest(format!("{}:{digits}", algorithm.name())))
    }

    /// The whole digest, algorithm included.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hexadecimal digits alone.
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or(self.0.as_str(), |(_, digits)| digits)
    }

    /// How it is computed.
    pub fn algorithm(&self) -> Algorithm {
        if self.0.starts_with(Algorithm::Sha512.name()) {
            Algorithm::Sha512
        } else {
            Algorithm::Sha256
        }
    }
}

impl FromStr for Digest {
    type Err = InvalidId;

    fn from_str(value: &str) -> Result<Self, InvalidId> {
        let parts = value.split_once(':');
        let digest = parts.and_then(|(_, digits)| Digest::from_hex(digits));
        // The name before the colon must be that of as many digits.
        digest.filter(|digest| digest.0 == value).ok_or_else(|| InvalidId {
            what: "digest",
            value: value.to_owned(),
            rule: "sha256: and 64 or sha512: and 128 lower-case hexadecimal digits",
        })
    }
}

fn is_lower_hex(digits: &str) -> bool {
    digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
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
        for (good, algorithm, digits) in [
            (Digest::from_sha256(&[0xab; 32]), Algorithm::Sha256, "ab".repeat(32)),
            (Digest::from_sha512(&[0xcd; 64]), Algorithm::Sha512, "cd".repeat(64)),
        ] {
            assert_eq!(good.as_str().parse::<Digest>().unwrap(), good);
            assert_eq!((good.algorithm(), good.hex()), (algorithm, digits.as_str()));
            assert_eq!(Digest::from_hex(&digits), Some(good));
        }
        let upper = format!("sha256:{}", "AB".repeat(32));
        let long = format!("sha256:{}", "ab".repeat(33));
        let short = format!("sha512:{}", "ab".repeat(32));
        let other = format!("md5:{}", "ab".repeat(32));
        let bare = "ab".repeat(32);
        for bad in [
            "",
            ":",
            "sha256:",
            "sha256:../../x",
            "sha512:00",
            &upper,
            &long,
            &short,
            &other,
            &bare,
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        assert_eq!(Digest::from_hex("ab"), None);
    }

    #[test]
    fn an_error_names_value_and_rule_on_one_line() {
        let text = "a\nb".parse::<ContainerId>().unwrap_err().to_string();
        assert!(text.contains(r#""a\nb""#) && text.contains("1 to 255"), "{text}");
        assert!(!text.contains('\n'));
    }
}
