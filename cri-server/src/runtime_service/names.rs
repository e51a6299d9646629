//! What names, labels and annotations of a request must be. Pure.
//!
//! They are kept with the object, come back in every status and go into records, logs, CNI's arguments and metrics. So they
//! are bounded, and a name is one word of one line; labels and annotations come back byte for byte, whatever they hold.

use std::collections::HashMap;
use std::path::{Component, Path};

use crate::error::Error;

/// Longest name, in bytes: Kubernetes' longest.
const MAX_NAME: usize = 253;
/// Most bytes of the labels and annotations of one object: Kubernetes takes 256 KiB of annotations, and the kubelet adds
/// some of its own.
const MAX_LABELS: usize = 512 << 10;
/// Longest path, in bytes, without the NUL behind it (PATH_MAX of linux/limits.h).
const MAX_PATH: usize = 4095;

/// Refuses a name that is too long, or none.
pub(super) fn check_name(field: &str, name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::invalid(field, name, "must not be empty"));
    }
    if name.len() > MAX_NAME || name.contains(|c: char| c.is_control() || c == '/') {
        let rule = format!("must be at most {MAX_NAME} bytes without slashes and control characters");
        return Err(Error::invalid(field, name, &rule));
    }
    Ok(())
}

/// Refuses more labels and annotations than an object of Kubernetes has.
pub(super) fn check_labels(
    labels: &HashMap<String, String>,
    annotations: &HashMap<String, String>,
) -> Result<(), Error> {
    let all = labels.iter().chain(annotations);
    let bytes: usize = all.map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_LABELS {
        let rule = format!("must be at most {MAX_LABELS} bytes together");
        return Err(Error::invalid(
            "labels and annotations",
            format!("{bytes} bytes"),
            &rule,
        ));
    }
    Ok(())
}

/// Refuses a log directory that is none, or whose path is not what it looks like.
pub(super) fn check_log_directory(directory: &str) -> Result<(), Error> {
    let path = Path::new(directory);
    let climbs = path.components().any(|it| it == Component::ParentDir);
    if directory.is_empty()
        || (path.is_absolute() && !climbs && !directory.contains('\0') && directory.len() <= MAX_PATH)
    {
        return Ok(());
    }
    let rule = "must be an absolute path without \"..\" and NUL bytes";
    Err(Error::invalid("log_directory", directory, rule))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let long = "x".repeat(MAX_NAME);
        for good in ["a", "kube-system", "PodSandbox-for-1", "ü", " ", &long] {
            assert!(check_name("metadata.name", good).is_ok(), "{good:?}");
        }
        let longer = "x".repeat(MAX_NAME + 1);
        for bad in [
            "",
            "a\nb",
            "a\0",
            "a/b",
            "..\t",
            "\u{1b}[2J",
            "\u{9b}",
            "../..",
            &longer,
        ] {
            let error = check_name("metadata.name", bad).expect_err(bad).to_string();
            assert!(error.starts_with("metadata.name"), "{error}");
        }
    }

    #[test]
    fn labels_are_bounded_together() {
        let of = |bytes: usize| HashMap::from([("k".to_owned(), "v".repeat(bytes - 1))]);
        assert!(check_labels(&of(MAX_LABELS / 2), &of(MAX_LABELS / 2)).is_ok());
        let error = check_labels(&of(MAX_LABELS / 2), &of(MAX_LABELS / 2 + 1)).expect_err("too many");
        assert!(error.to_string().contains("524289 bytes"), "{error}");
    }

    #[test]
    fn log_directories() {
        for good in ["", "/var/log/pods/a_b_c", "/a/..b"] {
            assert!(check_log_directory(good).is_ok(), "{good}");
        }
        let long = format!("/{}", "x/".repeat(2048));
        for bad in ["logs", "../logs", "/var/log/../../etc", "/..", "/a\0", &long] {
            assert!(check_log_directory(bad).is_err(), "{bad:?}");
        }
    }
}
