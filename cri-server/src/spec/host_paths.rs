//! The host paths of mounts, as they are on the node. Looking them up has one side effect, which [`MadeDirectories`] undoes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use corten_proto::cri::Mount;
use serde::{Deserialize, Serialize};

use super::SpecError;
use super::mountinfo::{self, Propagation};

/// What becomes of a mount whose host path does not exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MissingHostPath {
    /// A directory is made there. The CRI would have an error (api.proto, Mount.host_path); but an untyped hostPath volume
    /// of Kubernetes means just this, the kubelet leaves it to the runtime, and both peers do it.
    #[default]
    Create,
    /// The container is refused.
    Reject,
}

/// The host path of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSource {
    /// With every link followed.
    pub path: PathBuf,
    /// How the mount that holds the path propagates.
    pub(crate) propagation: Propagation,
}

/// Directories that were made for a container's mounts. Dropping it removes those that are still empty.
#[derive(Debug, Default)]
#[must_use = "dropping it removes the directories"]
pub struct MadeDirectories(Vec<PathBuf>);

impl MadeDirectories {
    /// The container is there: they stay.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for MadeDirectories {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            if let Err(error) = fs::remove_dir(path) {
                tracing::info!(
                    "a directory made for a refused container stays: {}: {error}",
                    path.display()
                );
            }
        }
    }
}

/// Looks the host paths up, and makes those that are missing if the rules say so.
pub(super) fn read_mounts(
    mounts: &[Mount],
    volumes: &BTreeMap<usize, PathBuf>,
    missing: MissingHostPath,
    made: &mut MadeDirectories,
) -> Result<Vec<MountSource>, SpecError> {
    let named = |index: usize| format!("mounts[{index}].host_path");
    let mut paths = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        paths.push(match volumes.get(&index) {
            Some(volume) => Some(volume.clone()),
            None => existing(&named(index), &mount.host_path)?,
        });
    }
    for (index, mount) in mounts.iter().enumerate() {
        if paths[index].is_none() {
            if missing == MissingHostPath::Reject {
                let rule = "must exist on the node: missing_host_path of the configuration is reject";
                return Err(SpecError::invalid(named(index), &mount.host_path, rule));
            }
            paths[index] = Some(make_directory(&named(index), &mount.host_path, made)?);
        }
    }
    // Once for all of them, and after the lookups, which may have mounted something (autofs).
    let path = "/proc/self/mountinfo";
    let table =
        fs::read_to_string(path).map_err(|error| SpecError::failed("mounts", "", format!("read {path}: {error}")))?;
    let table = mountinfo::parse(&table);
    let source = |path: PathBuf| MountSource {
        propagation: mountinfo::propagation(&table, &path),
        path,
    };
    Ok(paths.into_iter().flatten().map(source).collect())
}

/// `path` with its links followed; none if nothing is there.
fn existing(field: &str, path: &str) -> Result<Option<PathBuf>, SpecError> {
    match fs::canonicalize(path) {
        Ok(path) => Ok(Some(path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(SpecError::failed(field, path, format!("look the path up: {error}"))),
    }
}

/// Makes the directory and those above it, and notes what is new; its path with the links followed.
fn make_directory(field: &str, path: &str, made: &mut MadeDirectories) -> Result<PathBuf, SpecError> {
    let mut make = || {
        let mut above: Vec<&Path> = Path::new(path).ancestors().collect();
        above.reverse();
        for directory in above {
            match fs::DirBuilder::new().mode(0o755).create(directory) {
                Ok(()) => made.0.push(directory.to_owned()),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        fs::canonicalize(path)
    };
    make().map_err(|error| {
        let rule = format!("make the missing directory: {error}");
        SpecError::failed(field, path, rule)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use corten_proto::cri::ContainerConfig;

    use super::super::{SourceRules, Sources};
    use super::*;

    #[test]
    fn host_paths_are_followed_and_missing_ones_made() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        let new = dir.path().join("a/b");
        let mount = |path: &Path| Mount {
            host_path: path.to_str().unwrap().to_owned(),
            container_path: "/x".into(),
            ..Default::default()
        };
        let config = ContainerConfig {
            mounts: vec![mount(&dir.path().join("link")), mount(&new)],
            ..Default::default()
        };
        let rules = SourceRules::default();
        let read = |config: &ContainerConfig, rules| Sources::read(config, &BTreeMap::new(), rules);
        let reject = SourceRules {
            missing_host_path: MissingHostPath::Reject,
            ..rules
        };
        assert_eq!(read(&config, reject).unwrap_err().field, "mounts[1].host_path");
        drop(read(&config, rules).unwrap());
        assert!(!dir.path().join("a").exists(), "what was made for nothing goes");
        let (sources, made) = read(&config, rules).unwrap();
        made.keep();
        let paths: Vec<_> = sources.mounts.iter().map(|mount| mount.path.clone()).collect();
        assert_eq!(
            paths,
            [fs::canonicalize(&real).unwrap(), fs::canonicalize(&new).unwrap()]
        );
        assert_eq!(fs::metadata(&new).unwrap().mode() & 0o777, 0o755);

        fs::write(dir.path().join("file"), "").unwrap();
        let through = ContainerConfig {
            mounts: vec![mount(&dir.path().join("file/below"))],
            ..Default::default()
        };
        assert_eq!(read(&through, rules).unwrap_err().field, "mounts[0].host_path");
    }
}
