//! A container that is held still, into a directory: CRIU's images, its changed files, and the documents about it.
//!
//! Two parts, because a container is held no longer than it must: [`images_and_root`] while no process of it runs, so that
//! memory and files are of one moment, and [`documents`] after that.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use corten_proto::id::Digest;
use oci_spec::runtime::Spec;
use rustix::fs::OFlags;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::archive::Careful;
use super::documents::{self, Config};
use super::{
    BIND_MOUNTS, CONFIG, CRIU_FILES, DELETED, IMAGES, LOG, MAX_DOCUMENT, MAX_IMAGES, NETWORK, READ, ROOT_DIFF, SPEC,
    STATUS,
};
use crate::container::{self, Container};
use crate::image::snapshot::Snapshots;
use crate::tree;

/// The longest log that is taken along, in bytes; of a longer one its end is missing.
const MAX_LOG: u64 = 64 << 20;

/// Where CRIU works: beside what becomes the archive.
pub(crate) const WORK: &str = "work";
/// What becomes the archive.
pub(crate) const CONTENT: &str = "content";

/// The directories of one capture, all in one that is the caller's to remove.
#[derive(Clone, Debug)]
pub(crate) struct Capture {
    directory: PathBuf,
    /// Nobody waits for it any more.
    stopped: Arc<AtomicBool>,
    /// Held by whoever writes to it.
    busy: Arc<Mutex<()>>,
}

impl Capture {
    /// Makes them in `directory`, which is made too, readable to nobody else. What a killed server has left there goes.
    pub(crate) fn begin(directory: &Path) -> Result<Capture> {
        tree::remove(directory)?;
        let capture = Capture {
            directory: directory.to_owned(),
            stopped: Arc::default(),
            busy: Arc::default(),
        };
        for path in [directory, &capture.work(), &capture.content(), &capture.images()] {
            let made = DirBuilder::new().mode(0o700).create(path);
            made.with_context(|| format!("create {}", path.display()))?;
        }
        Ok(capture)
    }

    /// A guard for whoever writes to it.
    pub(crate) async fn busy(&self) -> OwnedMutexGuard<()> {
        self.busy.clone().lock_owned().await
    }

    /// Has [`Capture::root`] fail, and waits until nobody writes to it.
    pub(crate) async fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        let _written = self.busy().await;
    }

    /// What becomes the archive.
    pub(crate) fn content(&self) -> PathBuf {
        self.directory.join(CONTENT)
    }

    /// CRIU's images.
    pub(crate) fn images(&self) -> PathBuf {
        self.content().join(IMAGES)
    }

    /// CRIU's other files.
    pub(crate) fn work(&self) -> PathBuf {
        self.directory.join(WORK)
    }

    /// The files that the container in `dir` has changed of `layers`.
    pub(crate) fn root(&self, snapshots: &Snapshots, dir: &Path, layers: &[Digest]) -> Result<()> {
        let file = create(&self.content().join(ROOT_DIFF))?;
        let deleted = snapshots.save_changes(dir, layers, io::BufWriter::new(Careful::until(file, &self.stopped)))?;
        self.document(DELETED, &deleted)
    }

    /// Everything about the container, once it runs again.
    pub(crate) fn documents(&self, about: &About) -> Result<()> {
        for name in CRIU_FILES {
            // Which of them CRIU has written, and where, depends on its version.
            let path = self.work().join(name);
            if path.is_file() {
                fs::rename(&path, self.content().join(name)).with_context(|| format!("move {name}"))?;
            }
        }
        self.check_images()?;
        let spec = read_spec(&about.spec)?;
        self.document(CONFIG, &about.config)?;
        self.document(SPEC, &spec)?;
        self.document(STATUS, &about.status)?;
        self.document(BIND_MOUNTS, &documents::bind_mounts(&spec))?;
        if let Some(network) = &about.network {
            self.document(NETWORK, network)?;
        }
        about.log.as_ref().map_or(Ok(()), |log| self.log(log))
    }

    /// What no restore would take need not be written.
    fn check_images(&self) -> Result<()> {
        let images = fs::read_dir(self.images()).with_context(|| format!("read {IMAGES}"))?;
        let count = images.count();
        ensure!(
            count <= MAX_IMAGES,
            "{IMAGES}: {count} images, and a restore takes at most {MAX_IMAGES}"
        );
        Ok(())
    }

    fn document(&self, name: &str, document: &impl Serialize) -> Result<()> {
        let text = serde_json::to_vec_pretty(document).with_context(|| format!("encode {name}"))?;
        ensure!(
            !READ.contains(&name) || text.len() as u64 <= MAX_DOCUMENT,
            "{name}: {} bytes, and a restore reads at most {MAX_DOCUMENT}",
            text.len()
        );
        let mut file = create(&self.content().join(name))?;
        io::Write::write_all(&mut file, &text).with_context(|| format!("write {name}"))
    }

    /// The log, if it is a file: its directory is the kubelet's, and what is in there may have been exchanged.
    fn log(&self, path: &Path) -> Result<()> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).context("flags of open(2)")?;
        let opened = File::options().read(true).custom_flags(flags).open(path);
        let log = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.with_context(|| format!("open {}", path.display()))?,
        };
        ensure!(log.metadata()?.is_file(), "{}: not a regular file", path.display());
        let mut copy = Careful::new(create(&self.content().join(LOG))?);
        let copied = io::copy(&mut log.take(MAX_LOG), &mut copy);
        copied.map(drop).with_context(|| format!("copy {}", path.display()))
    }
}

/// What is said of a container beside its images.
pub(crate) struct About {
    config: Config,
    status: documents::Status,
    /// Its `config.json`.
    spec: PathBuf,
    network: Option<Value>,
    log: Option<PathBuf>,
}

impl About {
    /// Of a container that has this status, runs by `runtime` and has its specification at `spec`.
    pub(crate) fn new(
        container: &Container,
        status: &container::Status,
        runtime: &str,
        spec: PathBuf,
        network: Option<Value>,
    ) -> About {
        let log = &container.metadata.log_path;
        About {
            config: Config::of(container, runtime, SystemTime::now()),
            status: documents::Status::of(container, status),
            spec,
            network,
            log: (!log.is_empty()).then(|| PathBuf::from(log)),
        }
    }
}

fn read_spec(path: &Path) -> Result<Spec> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("decode {}", path.display()))
}

fn create(path: &Path) -> Result<File> {
    let opened = File::options().write(true).create_new(true).mode(0o600).open(path);
    opened.with_context(|| format!("create {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::source::Source;
    use super::*;

    #[test]
    fn no_more_images_than_a_restore_takes() {
        let dir = tempfile::tempdir().unwrap();
        let capture = Capture::begin(&dir.path().join("capture")).unwrap();
        let image = |number| File::create(capture.images().join(format!("{number}.img"))).unwrap();
        (0..MAX_IMAGES).for_each(|number| drop(image(number)));
        capture.check_images().unwrap();
        image(MAX_IMAGES);
        assert!(capture.check_images().is_err());
    }

    #[test]
    fn what_is_saved_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let limit = usize::try_from(MAX_DOCUMENT).unwrap();
        // Quotes, brackets, a newline and two blanks around it.
        for (length, taken) in [(limit - 8, true), (limit - 7, false)] {
            let capture = Capture::begin(&dir.path().join("capture")).unwrap();
            fs::write(capture.images().join("inventory.img"), "x").unwrap();
            let config = Config {
                rootfs_image: "a".to_owned(),
                ..Config::default()
            };
            capture.document(CONFIG, &config).unwrap();
            let written = capture.document(DELETED, &["x".repeat(length)]);
            assert_eq!(written.is_ok(), taken, "{length}: {written:?}");
            if taken {
                let checked = Source::open(&capture.content()).unwrap().check().unwrap();
                assert_eq!(checked.changes.deleted[0].len(), length);
            }
        }
    }
}
