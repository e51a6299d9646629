//! Records: one JSON file for each sandbox and container, replaced by rename.
//!
//! A reader sees a whole record or none. Nothing is synced: a server that is killed needs no sync to be consistent, and
//! after a power cut the containers are dead anyway. A record that makes no sense is moved to `quarantine/` alone;
//! the others are served.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use corten_proto::cri::LinuxContainerResources;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{container, sandbox};

/// The version of the records' form that this server writes. A reader refuses a later one.
const VERSION: u32 = 1;

/// A record: what it is about, and the boot it was written in.
#[derive(Serialize, Deserialize)]
pub struct Record<Metadata, Status, Resources> {
    /// Version of the form.
    pub version: u32,
    /// `/proc/sys/kernel/random/boot_id`: tells a reboot from a restart of the server.
    pub boot_id: String,
    /// What never changes.
    pub metadata: Metadata,
    /// The status when it was written.
    pub status: Status,
    /// What updates have made of the resources; none while they are those of the metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

/// A sandbox's record.
pub type SandboxRecord = Record<sandbox::Metadata, sandbox::Status, sandbox::Resources>;
/// A container's record.
pub type ContainerRecord = Record<container::Metadata, container::Status, LinuxContainerResources>;

impl<M, S, R> Record<M, S, R> {
    /// A record of this boot.
    pub fn new(boot_id: &str, metadata: M, status: S, resources: Option<R>) -> Self {
        Record {
            version: VERSION,
            boot_id: boot_id.to_owned(),
            metadata,
            status,
            resources,
        }
    }
}

/// This boot's id.
pub fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    Ok(text.trim().to_owned())
}

/// Writes `value` as JSON to `path`, mode 0600, by rename.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec(value).with_context(|| format!("encode {}", path.display()))?;
    replace(path, &text, 0o600)
}

/// Puts `content` at `path` by rename. Two writers of one path must be ordered by their callers.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let partial = path.with_extension("partial");
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&partial)?;
        // Whatever the umask says: containers of any user read some of these files.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        fs::rename(&partial, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// Why there is no record.
#[derive(Debug)]
pub enum ReadError {
    /// Its content makes no sense, and will not another time.
    Bad(anyhow::Error),
    /// It could not be read, or it is a later server's: nothing is known of its content.
    Failed(anyhow::Error),
}

/// Reads the record at `path`.
pub fn read<M, S, R>(path: &Path) -> Result<Record<M, S, R>, ReadError>
where
    M: DeserializeOwned,
    S: DeserializeOwned,
    R: DeserializeOwned,
{
    /// All that is common to every version.
    #[derive(Deserialize)]
    struct Form {
        version: u32,
    }
    let name = path.display();
    let text = fs::read(path).with_context(|| format!("read {name}"));
    let text = text.map_err(ReadError::Failed)?;
    let decode = || format!("decode {name}");
    let form: Result<Form> = serde_json::from_slice(&text).with_context(decode);
    let Form { version } = form.map_err(ReadError::Bad)?;
    if version > VERSION {
        let error = anyhow!("{name}: version {version} is newer than this server's {VERSION}");
        return Err(ReadError::Failed(error));
    }
    let record = serde_json::from_slice(&text).with_context(decode);
    record.map_err(ReadError::Bad)
}

/// Reads a JSON document; none where there is no file.
pub fn read_optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let value = serde_json::from_slice(&text).with_context(|| format!("decode {}", path.display()))?;
    Ok(Some(value))
}

/// Moves the file or directory at `path` to `quarantine` under a name that is free there; where it went.
pub fn quarantine(path: &Path, quarantine: &Path) -> Result<PathBuf> {
    let name = path
        .file_name()
        .context("a record has a name")?
        .to_string_lossy()
        .into_owned();
    let target = (0..)
        .map(|n| quarantine.join(format!("{name}.{n}")))
        .find(|target| !target.exists())
        .expect("the numbers do not end");
    fs::rename(path, &target).with_context(|| format!("move {} to {}", path.display(), target.display()))?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write(&path, &Record::new("boot", "metadata".to_owned(), 7, Some(8))).unwrap();
        let back: Record<String, i32, i32> = read(&path).unwrap();
        assert_eq!(
            (
                back.boot_id.as_str(),
                back.metadata.as_str(),
                back.status,
                back.resources
            ),
            ("boot", "metadata", 7, Some(8))
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no partial file stays");
    }

    #[test]
    fn a_bad_or_newer_record_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let table = [
            ("{", true),
            (r#"{"version":1,"boot_id":"","metadata":"x","status":0}"#, true),
            (r#"{"version":2,"form":"of its own"}"#, false),
        ];
        for (text, is_bad) in table {
            fs::write(&path, text).unwrap();
            let (found_bad, error) = match read::<i32, i32, i32>(&path).err().expect("refused") {
                ReadError::Bad(error) => (true, error),
                ReadError::Failed(error) => (false, error),
            };
            assert_eq!(found_bad, is_bad, "{text}");
            assert!(format!("{error:#}").contains("a.json"), "{error:#}");
        }
    }

    #[test]
    fn quarantine_keeps_every_one() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..2 {
            let path = dir.path().join("a.json");
            fs::write(&path, "x").unwrap();
            assert_eq!(
                quarantine(&path, dir.path()).unwrap(),
                dir.path().join(format!("a.json.{n}"))
            );
        }
    }
}
