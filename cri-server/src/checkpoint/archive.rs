//! A captured container as one file: written beside its final name, which it gets when it is whole.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};

use super::IMAGES;
use crate::image::check_space;
use crate::recover::entries;

/// How many bytes may be written between two looks at what is free.
const CHECK_EVERY: u64 = 64 << 20;

/// Writes what is in the directory `from` to `partial`, a new file in the same filesystem as `to`, and renames it. `partial`
/// is the caller's to remove after an error.
pub(crate) fn write(from: &Path, partial: &Path, to: &Path) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(partial, flags, Mode::RUSR | Mode::WUSR);
    let file = file.with_context(|| format!("create {}", partial.display()))?;
    let mut archive = tar::Builder::new(Careful::new(file));
    append_all(&mut archive, from)?;
    let mut written = archive.into_inner().context("end the archive")?;
    written.flush().context("end the archive")?;
    // The name says that it is whole, after a power cut too.
    written.file.sync_all().context("fsync the archive")?;
    fs::rename(partial, to).with_context(|| format!("rename {} to {}", partial.display(), to.display()))
}

fn append_all(archive: &mut tar::Builder<impl Write>, from: &Path) -> Result<()> {
    let mut all = entries(from)?;
    // The images last: whoever looks for the documents need not read all of them.
    all.sort_by_key(|path| (path.is_dir(), path.clone()));
    for path in all {
        let name = file_name(&path)?;
        if path.is_dir() {
            ensure!(
                name == Path::new(IMAGES),
                "{}: not a directory of a checkpoint",
                path.display()
            );
            append_directory(archive, &path)?;
        } else {
            append(archive, &path, &name)?;
        }
    }
    Ok(())
}

fn append_directory(archive: &mut tar::Builder<impl Write>, path: &Path) -> Result<()> {
    let mut header = header(tar::EntryType::Directory, 0o700, 0);
    let added = archive.append_data(&mut header, format!("{IMAGES}/"), io::empty());
    added.with_context(|| format!("write {IMAGES}"))?;
    let mut images = entries(path)?;
    images.sort();
    for image in images {
        append(archive, &image, &Path::new(IMAGES).join(file_name(&image)?))?;
    }
    Ok(())
}

fn append(archive: &mut tar::Builder<impl Write>, path: &Path, name: &Path) -> Result<()> {
    let writing = || format!("write {}", name.display());
    let file: OwnedFd = rustix::fs::open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .with_context(writing)?;
    let file = File::from(file);
    let metadata = file.metadata().with_context(writing)?;
    ensure!(metadata.is_file(), "{}: not a regular file", path.display());
    let mut header = header(tar::EntryType::Regular, 0o600, metadata.len());
    // One that grows meanwhile, as a log does, has the length it had.
    let content = file.take(metadata.len());
    archive.append_data(&mut header, name, content).with_context(writing)
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header
}

fn file_name(path: &Path) -> Result<PathBuf> {
    path.file_name()
        .map(PathBuf::from)
        .context("an entry of a directory has a name")
}

/// A file that is not written to its disk's last tenths: checkpoints are as large as memory, and a full disk costs a node
/// its pods.
pub(crate) struct Careful {
    file: File,
    unchecked: u64,
    /// Nothing more is written.
    stopped: Arc<AtomicBool>,
}

impl Careful {
    pub(crate) fn new(file: impl Into<File>) -> Careful {
        Careful::until(file, &Arc::default())
    }

    /// One that is not written any more once `stopped` is set.
    pub(crate) fn until(file: impl Into<File>, stopped: &Arc<AtomicBool>) -> Careful {
        Careful {
            file: file.into(),
            unchecked: 0,
            stopped: stopped.clone(),
        }
    }
}

impl Write for Careful {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(io::Error::other("nobody waits for it any more"));
        }
        if self.unchecked >= CHECK_EVERY {
            self.unchecked = 0;
            check_space(&self.file).map_err(io::Error::other)?;
        }
        let written = self.file.write(bytes)?;
        self.unchecked += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn captured(dir: &Path) -> PathBuf {
        let from = dir.join("from");
        fs::create_dir_all(from.join(IMAGES)).unwrap();
        fs::write(from.join("config.dump"), "{}").unwrap();
        fs::write(from.join(IMAGES).join("inventory.img"), "x").unwrap();
        from
    }

    #[test]
    fn nothing_is_written_once_nobody_waits() {
        let dir = tempfile::tempdir().unwrap();
        let stopped = Arc::default();
        let mut file = Careful::until(File::create(dir.path().join("file")).unwrap(), &stopped);
        file.write_all(b"x").unwrap();
        stopped.store(true, Ordering::Relaxed);
        assert!(file.write_all(b"y").is_err());
        assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"x");
    }

    #[test]
    fn an_archive_is_private_and_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let from = captured(dir.path());
        let (partial, to) = (dir.path().join("partial"), dir.path().join("to.tar"));
        fs::write(&to, vec![b'x'; 1 << 20]).unwrap();
        write(&from, &partial, &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
        let mut archive = tar::Archive::new(File::open(&to).unwrap());
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["config.dump", "checkpoint/", "checkpoint/inventory.img"]);
        assert!(
            fs::metadata(&to).unwrap().len() < 1 << 20,
            "nothing of the older file is left"
        );
        assert!(!partial.exists());
        // A name that is taken, and a file that is none.
        fs::write(&partial, "mine").unwrap();
        assert!(write(&from, &partial, &to).is_err());
        assert_eq!(fs::read(&partial).unwrap(), b"mine");
        fs::remove_file(&partial).unwrap();
        symlink("/etc/passwd", from.join("container.log")).unwrap();
        let before = fs::read(&to).unwrap();
        assert!(write(&from, &partial, &to).is_err());
        assert_eq!(fs::read(&to).unwrap(), before, "the older one stands");
    }
}
