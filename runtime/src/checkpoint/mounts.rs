//! The mounts of a restored container: are they those of the bundle? By what the kernel says of them, for CRIU makes them
//! by paths, in a tree that others may have changed meanwhile, and the images name what it mounts.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{FileType, fstat, makedev};

use super::dump::{root_of, user_namespace};
use super::external::{self, External};
use crate::bundle::Bundle;
use crate::mountinfo::{self, Line};
use crate::namespaces;
use crate::rootfs::options::Options;
use crate::rootfs::resolve::Root;
use crate::rootfs::{destination, dev, spec_mounts};

/// Kinds of filesystem that are the host's own where the namespace they show is shared with it.
const SHOWS: [(&str, LinuxNamespaceType); 4] = [
    ("proc", LinuxNamespaceType::Pid),
    ("mqueue", LinuxNamespaceType::Ipc),
    ("sysfs", LinuxNamespaceType::Network),
    ("cgroup2", LinuxNamespaceType::Cgroup),
];

/// The mounts are those of the bundle, with its flags, and no others.
pub fn check(pid: i32, bundle: &Bundle, externals: &[External]) -> Result<()> {
    let (text, host) = (mountinfo::read(&pid.to_string())?, mountinfo::read("self")?);
    let (lines, host) = (mountinfo::parse(&text)?, mountinfo::parse(&host)?);
    let view = View {
        root: root_of(pid)?,
        spec: &bundle.spec,
        lines: &lines,
        host: host.iter().map(|line| line.device).collect(),
    };
    let mut known: HashSet<PathBuf> = HashSet::from(["/".into()]);
    view.check_root(&bundle.rootfs).context("the root filesystem")?;
    let all = spec_mounts(&bundle.spec);
    for (index, mount) in all.iter().enumerate() {
        let path = destination(mount);
        // Only what was mounted last can be seen.
        if all[index + 1..].iter().any(|later| destination(later) == path) {
            continue;
        }
        let what = || format!("mounts[{index}]: {}", path.display());
        known.insert(view.check_mount(mount, &path, externals).with_context(what)?);
    }
    known.extend(view.covers()?);
    let devices = if user_namespace(&bundle.spec) {
        dev::paths(&bundle.spec)?
    } else {
        Vec::new()
    };
    let places = externals.iter().map(|external| external.destination.clone());
    for path in places.chain(devices).chain(["/dev/console".into()]) {
        known.extend(view.at(&path)?.map(|line| line.place.clone().into_owned()));
    }
    let foreign = lines.iter().find(|line| !known.contains(&*line.place));
    match foreign {
        Some(line) => bail!(
            "a {} is mounted on {}: the bundle has no such mount",
            line.kind,
            line.place.display()
        ),
        None => Ok(()),
    }
}

/// The container's mounts, as they are and as they should be.
struct View<'a> {
    root: Root,
    spec: &'a Spec,
    lines: &'a [Line<'a>],
    /// Devices of the filesystems that are mounted on the host.
    host: HashSet<&'a str>,
}

impl View<'_> {
    /// The mount whose root is at this path, if one is.
    fn at(&self, path: &Path) -> Result<Option<&Line<'_>>> {
        let Some(there) = self.root.find(path)? else {
            return Ok(None);
        };
        let id = mountinfo::mounted_at(there)?;
        id.map(|id| mountinfo::find(self.lines, id)).transpose()
    }

    fn check_root(&self, rootfs: &Path) -> Result<()> {
        let own = fstat(&self.root).context("fstat")?;
        let meant = rustix::fs::stat(rootfs).with_context(|| format!("stat({})", rootfs.display()))?;
        ensure!(
            (own.st_dev, own.st_ino) == (meant.st_dev, meant.st_ino),
            "it is another directory than the bundle's"
        );
        let id = mountinfo::mounted_at(self.root.as_fd())?.context("nothing is mounted there")?;
        let readonly = self.spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly) == Some(true);
        let writable = !mountinfo::find(self.lines, id)?.has("ro");
        ensure!(!(readonly && writable), "root.readonly: it can be written to");
        Ok(())
    }

    /// One mount of the specification; answers with where it really is.
    fn check_mount(&self, mount: &oci_spec::runtime::Mount, path: &Path, externals: &[External]) -> Result<PathBuf> {
        let line = self.at(path)?.context("nothing is mounted there")?;
        let options = Options::parse(mount.options().as_deref().unwrap_or_default())?;
        let kind = mount.typ().as_deref().unwrap_or_default();
        let external = externals.iter().find(|external| external.destination == path);
        match external {
            Some(external) => self.same_file(path, &external.source)?,
            None => {
                // The v1 hierarchies lie in a tmpfs of their own.
                let expected = if kind == "cgroup" { "tmpfs" } else { kind };
                ensure!(line.kind == expected, "a {} is mounted there", line.kind);
                let shared = SHOWS.iter().any(|(shows, namespace)| {
                    let own = namespaces::declares(self.spec, *namespace);
                    kind == *shows
                        && (!own
                            || external::joined(self.spec)
                                .iter()
                                .any(|(joined, ..)| joined == namespace))
                });
                ensure!(
                    shared || !self.host.contains(line.device),
                    "a {kind} of the host is mounted there"
                );
            }
        }
        for (flag, name) in [
            (libc::MOUNT_ATTR_RDONLY, "ro"),
            (libc::MOUNT_ATTR_NOSUID, "nosuid"),
            (libc::MOUNT_ATTR_NODEV, "nodev"),
            (libc::MOUNT_ATTR_NOEXEC, "noexec"),
        ] {
            let wanted = (options.attributes.set | options.recursive.set) & flag != 0;
            ensure!(!wanted || line.has(name), "it is not {name}");
        }
        Ok(line.place.clone().into_owned())
    }

    fn same_file(&self, path: &Path, source: &Path) -> Result<()> {
        let own = fstat(self.root.find(path)?.context("it has gone")?).context("fstat")?;
        let meant = rustix::fs::stat(source).with_context(|| format!("stat({})", source.display()))?;
        ensure!(
            (own.st_dev, own.st_ino) == (meant.st_dev, meant.st_ino),
            "it is not {}",
            source.display()
        );
        Ok(())
    }

    /// Masked and read-only paths: all that exist are covered. Answers with where.
    fn covers(&self) -> Result<Vec<PathBuf>> {
        let mut places = Vec::new();
        for path in external::masked(self.spec) {
            let what = || format!("linux.maskedPaths: {path}");
            let Some(there) = self.root.find(Path::new(path)).with_context(what)? else {
                continue;
            };
            let stat = fstat(&there).with_context(what)?;
            let line = self.at(Path::new(path)).with_context(what)?;
            let covered = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    line.is_some_and(|line| line.kind == "tmpfs" && line.has("ro") && !self.host.contains(line.device))
                }
                kind => line.is_some() && kind == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3),
            };
            ensure!(covered, "{}: it is not masked", what());
            places.extend(line.map(|line| line.place.clone().into_owned()));
        }
        let linux = self.spec.linux().as_ref();
        let readonly = linux
            .and_then(|linux| linux.readonly_paths().as_deref())
            .unwrap_or_default();
        for path in readonly {
            let what = || format!("linux.readonlyPaths: {path}");
            if self.root.find(Path::new(path)).with_context(what)?.is_none() {
                continue;
            }
            let line = self.at(Path::new(path)).with_context(what)?;
            let line = line
                .filter(|line| line.has("ro"))
                .with_context(|| format!("{}: it can be written to", what()))?;
            places.push(line.place.clone().into_owned());
        }
        Ok(places)
    }
}
