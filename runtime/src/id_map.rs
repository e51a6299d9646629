//! The id maps of a new user namespace: /proc/PID/{uid_map,gid_map}, written from outside.
//!
//! Root writes any map. Another user may map one id, the own; for a gid only where setgroups has been given up, or a user
//! could leave a group that files shut out. Everything else is for newuidmap and newgidmap, which are root's and look
//! up what /etc/subuid and /etc/subgid give to the user.
//!
//! The two programs are found in PATH, in absolute directories only, and must be root's: no other could do it. They get no
//! environment, no descriptor but standard error, and `/` as working directory.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Linux, LinuxIdMapping};

/// Where the programs are looked for after PATH.
const USUAL_PATH: &str = "/usr/bin:/bin:/usr/sbin:/sbin";

/// Users or groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Users.
    Uid,
    /// Groups.
    Gid,
}

impl Kind {
    /// The name in the specification.
    pub fn field(self) -> &'static str {
        match self {
            Kind::Uid => "uidMappings",
            Kind::Gid => "gidMappings",
        }
    }

    /// The mappings of this kind.
    pub fn mappings(self, linux: &Linux) -> &[LinuxIdMapping] {
        let mappings = match self {
            Kind::Uid => linux.uid_mappings(),
            Kind::Gid => linux.gid_mappings(),
        };
        mappings.as_deref().unwrap_or_default()
    }

    fn file(self) -> &'static str {
        match self {
            Kind::Uid => "uid_map",
            Kind::Gid => "gid_map",
        }
    }

    fn helper(self) -> &'static str {
        match self {
            Kind::Uid => "newuidmap",
            Kind::Gid => "newgidmap",
        }
    }
}

/// A user and a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl Ids {
    /// This process's.
    pub fn own() -> Ids {
        Ids {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }

    /// The one of this kind.
    pub fn id(self, kind: Kind) -> u32 {
        match kind {
            Kind::Uid => self.uid,
            Kind::Gid => self.gid,
        }
    }
}

/// The host's id for `id` of the container.
pub fn host_id(mappings: &[LinuxIdMapping], id: u32) -> Option<u32> {
    mappings.iter().find_map(|map| {
        let offset = id
            .checked_sub(map.container_id())
            .filter(|&offset| offset < map.size())?;
        map.host_id().checked_add(offset)
    })
}

/// Whether this is the map of the own id alone, which its user may write.
pub fn is_own(mappings: &[LinuxIdMapping], own: u32) -> bool {
    matches!(mappings, [map] if map.size() == 1 && map.host_id() == own)
}

/// Writes the map of the user namespace that process `pid` is in.
pub fn write(pid: i32, kind: Kind, mappings: &[LinuxIdMapping]) -> Result<()> {
    let own = Ids::own();
    if own.uid != 0 {
        if !is_own(mappings, own.id(kind)) {
            return run_helper(pid, kind, mappings);
        }
        if kind == Kind::Gid {
            let path = format!("/proc/{pid}/setgroups");
            std::fs::write(&path, "deny").with_context(|| format!("write deny to {path}"))?;
        }
    }
    let path = format!("/proc/{pid}/{}", kind.file());
    // One write: the kernel takes the whole map at once or not at all.
    std::fs::write(&path, lines(mappings)).with_context(|| format!("write {path}"))
}

fn lines(mappings: &[LinuxIdMapping]) -> String {
    mappings
        .iter()
        .map(|map| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size()))
        .collect()
}

fn run_helper(pid: i32, kind: Kind, mappings: &[LinuxIdMapping]) -> Result<()> {
    let program = find_helper(kind)?;
    let numbers = mappings
        .iter()
        .flat_map(|map| [map.container_id(), map.host_id(), map.size()]);
    let mut command = Command::new(&program);
    command
        .arg(pid.to_string())
        .args(numbers.map(|number| number.to_string()));
    command.env_clear().current_dir("/");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    crate::sys::spawn::close_on_exec_from_3(&mut command);
    let output = command.output().with_context(|| format!("run {}", program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    bail!(
        "linux.{}: {}: {}: {}",
        kind.field(),
        program.display(),
        output.status,
        told.trim()
    )
}

/// The program that writes maps for users.
pub fn find_helper(kind: Kind) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = std::env::split_paths(USUAL_PATH);
    let directories = std::env::split_paths(&path).filter(|directory| directory.is_absolute());
    let mut candidates = directories.chain(usual).map(|directory| directory.join(kind.helper()));
    let name = kind.helper();
    let Some(found) = candidates.find(|candidate| candidate.exists()) else {
        bail!("needs {name}, of the package uidmap, which is not in PATH");
    };
    check_owner(&found)?;
    Ok(found)
}

/// A program of root's that nobody else can change.
fn check_owner(program: &Path) -> Result<()> {
    let metadata = program
        .metadata()
        .with_context(|| format!("stat {}", program.display()))?;
    let mode = metadata.permissions().mode();
    ensure!(
        metadata.is_file() && metadata.uid() == 0 && mode & 0o022 == 0 && mode & 0o111 != 0,
        "{}: must be a program of root's that nobody else can write to",
        program.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mappings(all: &[(u32, u32, u32)]) -> Vec<LinuxIdMapping> {
        let all = all.iter().map(|(inside, outside, size)| {
            let json = serde_json::json!({"containerID": inside, "hostID": outside, "size": size});
            serde_json::from_value(json).unwrap()
        });
        all.collect()
    }

    #[test]
    fn ids_of_the_host() {
        let map = mappings(&[(0, 4000, 1), (1, 100_000, 999)]);
        for (inside, outside) in [(0, Some(4000)), (1, Some(100_000)), (999, Some(100_998)), (1000, None)] {
            assert_eq!(host_id(&map, inside), outside, "{inside}");
        }
        assert_eq!(lines(&map), "0 4000 1\n1 100000 999\n");
    }

    #[test]
    fn the_own_id_alone() {
        for (map, own) in [
            (&[(0, 4000, 1)][..], true),
            (&[(7, 4000, 1)], true),
            (&[(0, 4000, 2)], false),
            (&[(0, 4001, 1)], false),
            (&[(0, 4000, 1), (1, 100_000, 1)], false),
            (&[], false),
        ] {
            assert_eq!(is_own(&mappings(map), 4000), own, "{map:?}");
        }
    }

    #[test]
    fn whose_program_is_run() {
        let directory = tempfile_directory();
        let program = directory.join("newuidmap");
        std::fs::write(&program, "").unwrap();
        for (mode, good) in [
            (0o4755, true),
            (0o755, true),
            (0o644, false),
            (0o775, false),
            (0o757, false),
        ] {
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(mode)).unwrap();
            let root = program.metadata().unwrap().uid() == 0;
            assert_eq!(check_owner(&program).is_ok(), good && root, "{mode:o}");
        }
        assert!(check_owner(&directory).is_err());
        std::fs::remove_dir_all(directory).unwrap();
    }

    fn tempfile_directory() -> PathBuf {
        let directory = std::env::temp_dir().join(format!("corten-id-map-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        directory
    }
}
