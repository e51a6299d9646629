//! What of a container comes from outside and is therefore in no image: binds, cgroups, covers, joined namespaces.
//!
//! CRIU is told by name. At a dump `mnt[PLACE]:NAME` says that what is mounted on PLACE is not to be dumped; at a restore
//! `mnt[NAME]:SOURCE` says what to bind in its place. NAME is the destination of the bundle's specification, as with runc
//! and crun, so that the source is always the bundle's. PLACE is where the mount really is, which is not the same where
//! an image has links.
//!
//! A `]` in either could end the name early and let what follows be taken for the value (CVE-2026-115520): refused. A
//! mount whose place on the host's side leads through a link could bind a directory of the host (CVE-2026-119101):
//! every place the images name is looked up in the root without following any link before CRIU goes there.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};

use super::images::Mount;
use crate::cgroup::{self, CgroupPaths};
use crate::mountinfo;
use crate::namespaces;
use crate::rootfs::options::{Bind, Options};
use crate::rootfs::resolve::Root;
use crate::rootfs::{destination, dev, spec_mounts};

/// What masked files are called, all of them.
const NULL: &str = "/dev/null";

/// Namespaces that a restored container can be put into as they are, and what they are called in the images.
const EXTERNAL_NAMESPACES: [(LinuxNamespaceType, &str, &str); 2] = [
    (LinuxNamespaceType::Network, "net", "extRootNetNS"),
    (LinuxNamespaceType::Pid, "pid", "extRootPidNS"),
];

/// A mount that comes from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// Its destination in the specification.
    pub destination: PathBuf,
    /// Its name in the images.
    pub name: String,
    /// A path of the host.
    pub source: PathBuf,
}

impl External {
    fn new(destination: PathBuf, source: PathBuf) -> Result<External> {
        let name = checked(&destination)?.to_owned();
        Ok(External {
            destination,
            name,
            source,
        })
    }
}

/// A path that can be a name in CRIU's option.
fn checked(path: &Path) -> Result<&str> {
    let text = path.to_str().with_context(|| format!("{path:?}: not UTF-8"))?;
    let plain = !text.contains(']') && !text.contains(char::is_control);
    ensure!(
        plain,
        "{text:?}: a bracket or a control character in it: cannot be told to criu"
    );
    Ok(text)
}

/// What a restore would leave out, and the container would then have more than the bundle says.
pub fn check_possible(spec: &Spec) -> Result<()> {
    for (index, mount) in spec_mounts(spec).iter().enumerate() {
        let options = Options::parse(mount.options().as_deref().unwrap_or_default())?;
        let mapped = options.idmap.is_some() || mount.uid_mappings().is_some() || mount.gid_mappings().is_some();
        ensure!(!mapped, "mounts[{index}]: an idmapped mount: criu cannot restore it");
    }
    let Some(linux) = spec.linux() else { return Ok(()) };
    ensure!(linux.intel_rdt().is_none(), "linux.intelRdt: criu does not restore it");
    let devices = linux.net_devices().iter().flatten().next();
    ensure!(
        devices.is_none(),
        "linux.netDevices: criu cannot dump a device of the host's"
    );
    Ok(())
}

/// The mounts of a specification that come from outside, in its order; those below a recursive bind by their place now.
pub fn mounts(spec: &Spec, bundle: &Path, cgroup: &CgroupPaths, user_namespace: bool) -> Result<Vec<External>> {
    let mut found = Vec::new();
    let host = mountinfo::read("self")?;
    let host = mountinfo::parse(&host)?;
    for (index, mount) in spec_mounts(spec).iter().enumerate() {
        let at = || format!("mounts[{index}].destination");
        let options = Options::parse(mount.options().as_deref().unwrap_or_default()).with_context(at)?;
        let kind = mount.typ().as_deref().unwrap_or_default();
        let destination = destination(mount);
        if options.bind.is_some() || kind == "bind" {
            let source = mount.source().as_ref().context("a bind needs a source")?;
            // Mounts are listed by the path that has no links.
            let source =
                std::fs::canonicalize(bundle.join(source)).with_context(|| format!("mounts[{index}].source"))?;
            if options.bind == Some(Bind::Recursive) {
                for place in mountinfo::below(&host, &source) {
                    let rest = place.strip_prefix(&source).expect("it is below");
                    found.push(External::new(destination.join(rest), place.to_owned()).with_context(at)?);
                }
            }
            found.push(External::new(destination, source).with_context(at)?);
        } else if matches!(kind, "cgroup" | "cgroup2") {
            found.extend(cgroups(destination, cgroup, spec).with_context(at)?);
        }
    }
    if user_namespace {
        for device in dev::paths(spec)? {
            found.push(External::new(device.clone(), device)?);
        }
    }
    for path in masked(spec) {
        checked(Path::new(path)).context("linux.maskedPaths")?;
        found.push(External {
            destination: path.into(),
            name: NULL.to_owned(),
            source: NULL.into(),
        });
    }
    Ok(found)
}

/// The cgroup directories that a mount of type cgroup shows.
fn cgroups(destination: PathBuf, cgroup: &CgroupPaths, spec: &Spec) -> Result<Vec<External>> {
    match cgroup {
        CgroupPaths::V1(directories) => directories
            .iter()
            .map(|(name, path)| External::new(destination.join(name.trim_start_matches("name=")), path.clone()))
            .collect(),
        CgroupPaths::V2(path) if namespaces::declares(spec, LinuxNamespaceType::Cgroup) => {
            Ok(vec![External::new(destination, path.clone())?])
        }
        CgroupPaths::V2(_) => Ok(vec![External::new(destination, cgroup::unified()?.to_owned())?]),
    }
}

/// `linux.maskedPaths`.
pub fn masked(spec: &Spec) -> &[String] {
    let linux = spec.linux().as_ref();
    linux
        .and_then(|linux| linux.masked_paths().as_deref())
        .unwrap_or_default()
}

/// What CRIU is told at a dump, for those of the mounts that are there. `root` is the container's root directory.
pub fn at_dump(externals: &[External], root: &Root, mounts: &[mountinfo::Line]) -> Result<Vec<String>> {
    let mut options = Vec::new();
    for external in externals {
        let what = || format!("the mount on {}", external.destination.display());
        let Some(there) = root.find(&external.destination).with_context(what)? else {
            continue;
        };
        let Some(id) = mountinfo::mounted_at(&there).with_context(what)? else {
            continue;
        };
        let directory = is_directory(&there).with_context(what)?;
        // A masked directory is under a tmpfs, which is dumped.
        if external.name == NULL && directory {
            continue;
        }
        let line = mountinfo::find(mounts, id).with_context(what)?;
        let place = checked(&line.place).with_context(what)?;
        options.push(format!("mnt[{place}]:{}", external.name));
    }
    Ok(options)
}

/// What CRIU is told at a restore. A name the images do not have does no harm.
pub fn at_restore(externals: &[External]) -> Vec<String> {
    let option = |external: &External| format!("mnt[{}]:{}", external.name, external.source.display());
    externals.iter().map(option).collect()
}

/// Looks at every place the images mount something on, in the bundle's root: makes what is missing, and refuses names
/// that the bundle does not have, links on the way, and a directory for a file.
pub fn prepare(images: &[Mount], externals: &[External], root: &Root) -> Result<()> {
    let places: Vec<PathBuf> = images.iter().map(Mount::path).collect::<Result<_>>()?;
    for (mount, place) in images.iter().zip(&places) {
        let what = || format!("the images have a mount on {}", place.display());
        let external = match mount.key.as_deref() {
            None | Some("") => None,
            Some(key) => Some(by_name(externals, key).with_context(what)?),
        };
        let above = |other: &PathBuf| *other != *place && other != Path::new("/") && place.starts_with(other);
        // What lies in another mount is not of the root; the mount that it is in comes before it.
        if *place == Path::new("/") || places.iter().any(above) {
            continue;
        }
        place_for(external, place, root).with_context(what)?;
    }
    Ok(())
}

fn by_name<'a>(externals: &'a [External], key: &str) -> Result<&'a External> {
    let found = externals.iter().find(|external| external.name == key);
    found.with_context(|| format!("from outside, called {key:?}: the bundle has no such mount"))
}

/// The place of one mount: of the right kind, and where the specification's destination leads, too.
fn place_for(external: Option<&External>, place: &Path, root: &Root) -> Result<()> {
    let directory = match external {
        Some(external) => {
            let stat =
                rustix::fs::stat(&external.source).with_context(|| format!("stat({})", external.source.display()))?;
            FileType::from_raw_mode(stat.st_mode) == FileType::Directory
        }
        None => match root.find(place)? {
            Some(there) => is_directory(&there)?,
            None => true,
        },
    };
    let there = if directory {
        root.directory(place, false)?
    } else {
        file(root, place)?
    };
    ensure!(
        is_directory(&there)? == directory,
        "a directory and a file cannot be mounted on each other"
    );
    let Some(external) = external.filter(|external| external.name != NULL) else {
        return Ok(());
    };
    let meant = root.find(&external.destination)?;
    let meant = meant.with_context(|| format!("{} is not there", external.destination.display()))?;
    let (a, b) = (fstat(&there).context("fstat")?, fstat(&meant).context("fstat")?);
    ensure!(
        (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        "the bundle has it on {}, which is another place",
        external.destination.display()
    );
    Ok(())
}

/// The file at a path that has no link in it, made where it is missing.
fn file(root: &Root, path: &Path) -> Result<OwnedFd> {
    let name = path.file_name().context("not the name of a file")?;
    let above = root.directory(path.parent().unwrap_or(Path::new("/")), false)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    match openat(&above, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error).context("openat(O_CREAT | O_EXCL)"),
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let there = openat(&above, name, flags, Mode::empty()).context("openat(O_NOFOLLOW)")?;
    let kind = FileType::from_raw_mode(fstat(&there).context("fstat")?.st_mode);
    ensure!(kind != FileType::Symlink, "a symbolic link is there");
    Ok(there)
}

fn is_directory(file: impl AsFd) -> Result<bool> {
    let stat = fstat(file).context("fstat")?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// The namespaces of a specification that exist already: kind, its name in /proc, path.
pub fn joined(spec: &Spec) -> Vec<(LinuxNamespaceType, &'static str, PathBuf)> {
    let all = namespaces::declared(spec).iter();
    all.filter_map(|namespace| {
        let path = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty())?;
        Some((namespace.typ(), namespaces::proc_name(namespace.typ()), path.clone()))
    })
    .collect()
}

/// What joined namespaces are to CRIU.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// Told by inode at a dump; by descriptor at a restore.
    pub external: Vec<(&'static str, &'static str, PathBuf)>,
    /// In the images with all that is in them, but joined by path at a restore.
    pub joined: Vec<(&'static str, PathBuf)>,
}

/// Sorts the joined namespaces of a specification by what can be done with them.
pub fn namespaces(spec: &Spec) -> Result<Namespaces> {
    let mut sorted = Namespaces::default();
    for (kind, name, path) in joined(spec) {
        let external = EXTERNAL_NAMESPACES.iter().find(|(external, ..)| *external == kind);
        match (external, kind) {
            (Some((_, name, key)), _) => sorted.external.push((name, key, path)),
            (None, LinuxNamespaceType::Ipc | LinuxNamespaceType::Uts) => sorted.joined.push((name, path)),
            (None, kind) => bail!(
                "linux.namespaces: {kind} with the path {}: criu can neither leave it out nor join it",
                path.display()
            ),
        }
    }
    Ok(sorted)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn names_that_would_end_early_are_refused() {
        for (path, good) in [("/a/b c", true), ("/a]:/etc", false), ("/a]", false), ("/a\nb", false)] {
            assert_eq!(External::new(path.into(), "/x".into()).is_ok(), good, "{path}");
        }
    }

    #[test]
    fn places_of_the_images() {
        let base = std::env::temp_dir().join(format!("corten-places-{}", std::process::id()));
        let rootfs = base.join("root");
        fs::create_dir_all(rootfs.join("run")).unwrap();
        fs::create_dir_all(base.join("source")).unwrap();
        std::os::unix::fs::symlink("run", rootfs.join("link")).unwrap();
        std::os::unix::fs::symlink(base.join("source"), rootfs.join("evil")).unwrap();
        let root = Root::new(fs::File::open(&rootfs).unwrap().into());
        let external = |destination: &str| External::new(destination.into(), base.join("source")).unwrap();
        let externals = [
            external("/data"),
            external("/link/x"),
            external("/evil"),
            external("/plain"),
        ];
        let mount = |place: &str, key: Option<&str>| Mount {
            place: place.to_owned(),
            key: key.map(str::to_owned),
        };
        for (place, key, error) in [
            ("/data", Some("/data"), None),
            // Where the link leads, under the name of the link; and the link itself.
            ("/run/x", Some("/link/x"), None),
            ("/link/x", Some("/link/x"), Some("in the root")),
            ("/evil", Some("/evil"), Some("in the root")),
            ("/run", Some("/plain"), Some("not there")),
            ("/data", Some("/nobody"), Some("no such mount")),
            ("/new/tmpfs", None, None),
            ("/../etc", None, Some("plain path")),
        ] {
            fs::create_dir_all(rootfs.join("run/x")).unwrap();
            let result = prepare(&[mount("/", None), mount(place, key)], &externals, &root);
            match (result, error) {
                (Ok(()), None) => assert!(rootfs.join(place.trim_start_matches('/')).is_dir(), "{place}"),
                (Err(found), Some(error)) => {
                    let found = format!("{found:#}");
                    assert!(found.contains(error), "{place}: {found}");
                }
                (result, error) => panic!("{place}: {result:?}, {error:?}"),
            }
        }
        fs::remove_dir_all(base).unwrap();
    }
}
