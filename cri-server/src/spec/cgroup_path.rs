//! Where a container's cgroup is, for both cgroup drivers. Pure.
//!
//! ```text
//! cgroup_parent            cgroupfs         systemd
//! /kubepods/pod1           /kubepods/pod1/ID    kubepods-pod1.slice:corten:ID
//! /a.slice/a-b.slice       /a.slice/a-b.slice/ID    a-b.slice:corten:ID
//! ```
//! A kubelet names the parent as a path in either case. With the systemd driver each part of it is a slice, whose name
//! holds the names above it; a path of plain names becomes a slice as the kubelet's own conversion has it. The runtime
//! makes `corten-ID.scope` of the second form.

use std::path::{Component, Path, PathBuf};

use super::SpecError;
use corten_proto::id::ContainerId;

const FIELD: &str = "linux.cgroup_parent";
/// What the names of all scopes begin with.
const SCOPE_PREFIX: &str = "corten";
const SLICE: &str = ".slice";

/// Who makes the cgroups of containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// The runtime, as directories.
    Cgroupfs,
    /// systemd, as transient scopes that the runtime asks it for.
    Systemd,
}

/// `linux.cgroupsPath` of a container: its id, right below the pod's cgroup, as the kubelet expects to find and to remove
/// it.
///
/// `parent` is the sandbox's `cgroup_parent`, or the configured default; relative ones count from the root.
pub fn cgroups_path(driver: CgroupDriver, parent: &str, id: &ContainerId) -> Result<PathBuf, SpecError> {
    check_parent(parent)?;
    match driver {
        CgroupDriver::Systemd => Ok(format!("{}:{SCOPE_PREFIX}:{id}", slice_of(parent)?).into()),
        CgroupDriver::Cgroupfs if parent.ends_with(SLICE) && !parent.contains('/') => {
            let rule = "is the name of a slice, and cgroup_driver of the configuration is cgroupfs";
            Err(SpecError::invalid(FIELD, parent, rule))
        }
        CgroupDriver::Cgroupfs => Ok(Path::new("/").join(parent).join(id.as_str())),
    }
}

/// Refuses a parent that is not the path of a cgroup.
pub(super) fn check_parent(parent: &str) -> Result<(), SpecError> {
    let bad = |component| !matches!(component, Component::Normal(_) | Component::RootDir);
    if parent.contains('\0') || Path::new(parent).components().any(bad) {
        let rule = "must be a cgroup's path without . and ..";
        return Err(SpecError::invalid(FIELD, parent, rule));
    }
    Ok(())
}

/// The slice that a path names, or that stands for it.
fn slice_of(parent: &str) -> Result<String, SpecError> {
    let names: Vec<&str> = parent.split('/').filter(|name| !name.is_empty()).collect();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_-.\\@".contains(&b);
    if !names.iter().all(|name| name.bytes().all(allowed)) {
        let rule = "must consist of letters, digits, and _ - . \\ @, of which systemd makes a unit's name";
        return Err(SpecError::invalid(FIELD, parent, rule));
    }
    match names[..] {
        [] => Ok(format!("-{SLICE}")),
        [.., last] if last.ends_with(SLICE) => {
            let whole =
                slice_path(last).filter(|path| names.len() == 1 || path.iter().skip(1).eq(names.iter().copied()));
            whole.map(|_| last.to_owned()).ok_or_else(|| {
                let rule = "must be a slice, each part's name holding those above it, as /a.slice/a-b.slice does";
                SpecError::invalid(FIELD, parent, rule)
            })
        }
        // A dash is what separates the parts of a slice's name.
        _ => Ok(names.join("/").replace('-', "_").replace('/', "-") + SLICE),
    }
}

/// The cgroup of a slice: `a-b.slice` is at `/a.slice/a-b.slice`. None for what is not the name of one.
fn slice_path(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(SLICE)?;
    let mut path = PathBuf::from("/");
    if name == "-" {
        return Some(path);
    }
    let mut above = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        above += part;
        path.push(format!("{above}{SLICE}"));
        above.push('-');
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories() {
        for (parent, expected) in [
            ("/corten", Some("/corten/abc")),
            ("kubepods/pod1", Some("/kubepods/pod1/abc")),
            ("/a.slice/a-b.slice", Some("/a.slice/a-b.slice/abc")),
            ("", Some("/abc")),
            ("/a/../b", None),
            ("..", None),
            ("./a", None),
            ("test.slice", None),
            ("/a\0", None),
        ] {
            let path = cgroups_path(CgroupDriver::Cgroupfs, parent, &"abc".parse().unwrap()).ok();
            assert_eq!(path.as_deref(), expected.map(Path::new), "{parent}");
        }
    }

    #[test]
    fn scopes() {
        for (parent, slice) in [
            ("/corten", Some("corten.slice")),
            ("/kubepods/burstable/pod1-2", Some("kubepods-burstable-pod1_2.slice")),
            ("/kubepods.slice/kubepods-pod1_2.slice", Some("kubepods-pod1_2.slice")),
            ("kubepods-pod1.slice", Some("kubepods-pod1.slice")),
            ("", Some("-.slice")),
            ("/", Some("-.slice")),
            ("-.slice", Some("-.slice")),
            ("/kubepods/kubepods-pod1.slice", None),
            ("/a.slice/b.slice", None),
            ("/a--b.slice", None),
            ("/.slice", None),
            ("/a:b", None),
            ("/a b", None),
            ("/a/..", None),
        ] {
            let path = cgroups_path(CgroupDriver::Systemd, parent, &"abc".parse().unwrap()).ok();
            let expected = slice.map(|slice| PathBuf::from(format!("{slice}:corten:abc")));
            assert_eq!(path, expected, "{parent}");
        }
    }

    #[test]
    fn slices_have_a_place() {
        for (slice, path) in [
            ("a.slice", Some("/a.slice")),
            ("a-b-c_d.slice", Some("/a.slice/a-b.slice/a-b-c_d.slice")),
            ("-.slice", Some("/")),
            ("a-.slice", None),
            ("a", None),
        ] {
            assert_eq!(slice_path(slice), path.map(PathBuf::from), "{slice}");
        }
    }
}
