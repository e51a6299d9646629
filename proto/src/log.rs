//! Where a container's log is, beneath its pod's log directory: the rule that server and shim share.

use std::path::{Component, Path, PathBuf};

/// Parses a log path that is relative to the pod's log directory; `.` components drop out. `None` for the empty path,
/// which means that there is no log.
///
/// # Errors
/// The rule, to be put behind field and value: an absolute path, one with `..`, one that names no file.
pub fn parse_path(path: &str) -> Result<Option<PathBuf>, &'static str> {
    const RULE: &str = "must name a file beneath the pod's log directory, without \"..\" and NUL bytes";
    if path.is_empty() {
        return Ok(None);
    }
    if path.ends_with('/') || path.ends_with("/.") || path.contains('\0') {
        return Err(RULE);
    }
    let mut plain = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::CurDir => {}
            _ => return Err(RULE),
        }
    }
    if plain.as_os_str().is_empty() {
        return Err(RULE);
    }
    Ok(Some(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(parse_path(""), Ok(None));
        for (good, plain) in [
            ("a.log", "a.log"),
            ("c/0.log", "c/0.log"),
            ("./c//./0.log", "c/0.log"),
            ("..c/0.log", "..c/0.log"),
        ] {
            assert_eq!(parse_path(good), Ok(Some(plain.into())), "{good}");
        }
        for bad in ["/l", "..", "../l", "c/../l", ".", "./", "c/", "c/.", "c\0"] {
            assert!(parse_path(bad).is_err(), "{bad:?}");
        }
    }
}
