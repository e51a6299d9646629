//! Names of CDI devices: `VENDOR/CLASS=DEVICE`, where `VENDOR/CLASS` is the kind. Pure.

/// Checks a whole name; else the rule that it breaks.
pub(super) fn check(name: &str) -> Result<(), String> {
    let Some((kind, device)) = name.split_once('=') else {
        return Err("must be VENDOR/CLASS=DEVICE".to_owned());
    };
    check_kind(kind)?;
    check_device(device)
}

/// Checks `VENDOR/CLASS`.
pub(super) fn check_kind(kind: &str) -> Result<(), String> {
    let rule = || format!("kind {kind:?}: must be VENDOR/CLASS, each of letters, digits, _ - and . from a letter on");
    let (vendor, class) = kind.split_once('/').ok_or_else(rule)?;
    let good = |part: &str| is_made_of(part, b"_-.") && part.starts_with(|c: char| c.is_ascii_alphabetic());
    if good(vendor) && good(class) {
        Ok(())
    } else {
        Err(rule())
    }
}

/// Checks the name of a device within its kind.
pub(super) fn check_device(device: &str) -> Result<(), String> {
    if is_made_of(device, b"_-.:") {
        return Ok(());
    }
    Err(format!(
        "device {device:?}: must be of letters, digits, _ - . and :, with a letter or digit at both ends"
    ))
}

fn is_made_of(text: &str, others: &[u8]) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|b| b.is_ascii_alphanumeric() || others.contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in [
            "vendor.com/gpu=0",
            "v/c=d",
            "a.b-c_d/net.vf=eth0:1.2",
            "nvidia.com/gpu=all",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "v/c",
            "v=d",
            "v/c=",
            "/c=d",
            "v/=d",
            "1v/c=d",
            "v/1c=d",
            "v/c=-d",
            "v/c=d:",
            "v./c=d",
            "v/c/e=d",
            "v/c=d e",
            "v/c=d=e",
            "v/c=\u{e4}",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
