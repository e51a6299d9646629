//! A checkpoint that somebody has written: an archive of this node, or the one layer of an image. Nothing in it is followed,
//! and nothing of it is used before [`Source::check`] has looked.

use std::fs::{DirBuilder, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat2, statat};
use rustix::io::Errno;
use serde::de::DeserializeOwned;

use super::documents::Config;
use super::{BIND_MOUNTS, CONFIG, DELETED, IMAGES, LOG, MAX_DOCUMENT, MAX_IMAGES, NETWORK, ROOT_DIFF, SPEC, STATUS};
use crate::image::snapshot::Changes;
use crate::image::snapshot::changes::unpack_file;

/// The image without which CRIU does nothing.
const INVENTORY: &str = "inventory.img";
/// Everything that is a file, where it is there.
const FILES: [&str; 8] = [CONFIG, SPEC, STATUS, BIND_MOUNTS, NETWORK, ROOT_DIFF, DELETED, LOG];

/// An unpacked checkpoint.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    directory: OwnedFd,
}

/// What of a checkpoint counts.
#[derive(Debug)]
pub(crate) struct Checked {
    /// Which image its root is made of.
    pub(crate) config: Config,
    /// What is to come over that.
    pub(crate) changes: Changes,
    /// CRIU's images.
    pub(crate) images: PathBuf,
}

impl Source {
    /// Unpacks the plain archive at `path` into `into`, which is made. Bounded as an image's layer is.
    pub(crate) fn unpack(path: &Path, into: &Path) -> Result<Source> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let archive = rustix::fs::open(path, flags, Mode::empty()).context("open the archive")?;
        let archive = File::from(archive);
        ensure!(archive.metadata()?.is_file(), "the archive must be a regular file");
        let made = DirBuilder::new().mode(0o700).create(into);
        made.with_context(|| format!("create {}", into.display()))?;
        unpack_file(&archive, into).context("unpack the archive")?;
        Source::open(into)
    }

    /// The checkpoint whose files are in a directory.
    pub(crate) fn open(path: &Path) -> Result<Source> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty());
        Ok(Source {
            path: path.to_owned(),
            directory: directory.with_context(|| format!("open {}", path.display()))?,
        })
    }

    /// Looks at all of it; what counts. An error says what is wrong with the checkpoint.
    pub(crate) fn check(&self) -> Result<Checked> {
        for name in FILES {
            match statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {}
                found => check_regular(found.with_context(|| name.to_owned())?.st_mode, name)?,
            }
        }
        self.check_images()?;
        let config: Config = self.document(CONFIG)?.with_context(|| format!("{CONFIG}: missing"))?;
        ensure!(config.image_names().next().is_some(), "{CONFIG}: names no image");
        Ok(Checked {
            config,
            changes: Changes {
                archive: self.file(ROOT_DIFF)?,
                deleted: self.document(DELETED)?.unwrap_or_default(),
            },
            images: self.path.join(IMAGES),
        })
    }

    /// CRIU opens its images by name and follows links: each must be a file of this directory.
    fn check_images(&self) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let images = self
            .open_beneath(IMAGES, flags)?
            .with_context(|| format!("{IMAGES}: missing"))?;
        let mut count = 0;
        let mut complete = false;
        for entry in Dir::read_from(&images).with_context(|| format!("read {IMAGES}"))? {
            let entry = entry.with_context(|| format!("read {IMAGES}"))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let shown = format!("{IMAGES}/{}", name.to_string_lossy());
            let stat = statat(&images, name, AtFlags::SYMLINK_NOFOLLOW).with_context(|| shown.clone())?;
            check_regular(stat.st_mode, &shown)?;
            complete |= name.to_bytes() == INVENTORY.as_bytes();
            count += 1;
            ensure!(count <= MAX_IMAGES, "{IMAGES}: more than {MAX_IMAGES} images");
        }
        ensure!(complete, "{IMAGES}/{INVENTORY}: missing");
        Ok(())
    }

    /// A JSON document; none where there is no such file.
    fn document<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(file) = self.file(name)? else {
            return Ok(None);
        };
        decode(file, name, MAX_DOCUMENT).map(Some)
    }

    fn file(&self, name: &str) -> Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Some(file) = self.open_beneath(name, flags)? else {
            return Ok(None);
        };
        check_regular(fstat(&file).with_context(|| name.to_owned())?.st_mode, name)?;
        Ok(Some(file.into()))
    }

    fn open_beneath(&self, name: &str, flags: OFlags) -> Result<Option<OwnedFd>> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        match openat2(self.directory.as_fd(), name, flags, Mode::empty(), resolve) {
            Err(Errno::NOENT) => Ok(None),
            opened => opened.map(Some).with_context(|| format!("open {name}")),
        }
    }
}

fn check_regular(mode: u32, name: &str) -> Result<()> {
    let kind = FileType::from_raw_mode(mode);
    ensure!(
        kind == FileType::RegularFile,
        "{name}: must be a regular file, and is {kind:?}"
    );
    Ok(())
}

/// The JSON document `name` in `file`, of at most `longest` bytes.
pub(crate) fn decode<T: DeserializeOwned>(file: File, name: &str, longest: u64) -> Result<T> {
    let mut text = Vec::new();
    let read = file.take(longest + 1).read_to_end(&mut text);
    read.with_context(|| format!("read {name}"))?;
    ensure!(text.len() as u64 <= longest, "{name}: more than {longest} bytes");
    serde_json::from_slice(&text).with_context(|| format!("decode {name}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn checkpoint(change: impl FnOnce(&Path)) -> Result<Checked> {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(IMAGES)).unwrap();
        fs::write(dir.path().join(IMAGES).join(INVENTORY), "x").unwrap();
        fs::write(dir.path().join(CONFIG), r#"{"rootfsImageName":"a"}"#).unwrap();
        change(dir.path());
        Source::open(dir.path()).unwrap().check()
    }

    #[test]
    fn a_small_checkpoint_is_enough() {
        let checked = checkpoint(|_| {}).unwrap();
        assert!(checked.changes.archive.is_none() && checked.changes.deleted.is_empty());
        assert_eq!(checked.config.rootfs_image_name, "a");
    }

    #[test]
    fn what_is_no_plain_file_is_refused_by_name() {
        type Change = fn(&Path);
        let table: [(&str, Change); 10] = [
            ("config.dump", |dir| link(&dir.join(CONFIG))),
            ("spec.dump", |dir| link(&dir.join(SPEC))),
            ("container.log", |dir| link(&dir.join(LOG))),
            ("container.log", |dir| {
                let mode = Mode::RUSR;
                rustix::fs::mknodat(rustix::fs::CWD, dir.join(LOG), FileType::Fifo, mode, 0).unwrap();
            }),
            ("rootfs-diff.tar", |dir| fs::create_dir(dir.join(ROOT_DIFF)).unwrap()),
            ("checkpoint/pages-1.img", |dir| {
                link(&dir.join(IMAGES).join("pages-1.img"))
            }),
            ("checkpoint/parent", |dir| {
                fs::create_dir(dir.join(IMAGES).join("parent")).unwrap()
            }),
            ("checkpoint/inventory.img: missing", |dir| {
                fs::remove_file(dir.join(IMAGES).join(INVENTORY)).unwrap();
            }),
            ("names no image", |dir| fs::write(dir.join(CONFIG), "{}").unwrap()),
            ("config.dump: more than", |dir| {
                fs::write(dir.join(CONFIG), vec![b' '; (4 << 20) + 1]).unwrap();
            }),
        ];
        for (words, change) in table {
            let error = checkpoint(change).err().unwrap_or_else(|| panic!("{words}: taken"));
            assert!(format!("{error:#}").contains(words), "{words}: {error:#}");
        }
        let error = checkpoint(|dir| {
            fs::rename(dir.join(IMAGES), dir.join("elsewhere")).unwrap();
            symlink("elsewhere", dir.join(IMAGES)).unwrap();
        });
        assert!(error.is_err(), "the directory itself is a link");
    }

    fn link(path: &Path) {
        fs::remove_file(path).ok();
        symlink("/etc/passwd", path).unwrap();
    }
}
