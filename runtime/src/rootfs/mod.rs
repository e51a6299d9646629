//! The root filesystem of a container: mounts, devices, masks, and becoming `/`.
//!
//! In order, and in whose hands:
//!
//! | step | who | why there |
//! |---|---|---|
//! | [`Sources::open`]: copies of the root, and in a user namespace of everything to be bound | the parent | as the host's root: a user namespace's root may not be able to reach the paths |
//! | [`Rootfs::attach`]: cut the propagation, put the root over `/` | init | it is reachable by descriptor only; the host's paths still lead to the host |
//! | [`Rootfs::mount_all`] | init | /proc, mqueue and sysfs show the namespaces of who mounts them |
//! | [`Rootfs::furnish`], `/dev/console`, [`Rootfs::seal`] | init | after the mounts they lie on; what makes read-only comes last |
//! | [`Rootfs::relocate`] into a mount namespace that is joined | init | until here it has seen nothing of all this |
//! | [`pivot::pivot`], [`Rootfs::share`] | init | a shared mount cannot become the root |
//!
//! Every mount is made detached and attached by descriptor; see [`mount`] and [`resolve`]. Nothing is ever mounted
//! where the host could see it, so that there is nothing to unmount when a container ends or a create fails.
//!
//! Where the specification is silent we do as runc does: mount points that are missing are made in the root filesystem and
//! stay there; a tmpfs keeps the mode of the directory it covers; a bind that names no propagation is a slave. Where we
//! differ: a remount follows a link only to the mount that the specification has made of the same destination, because a
//! link of the image could choose the mount that is changed (that of /run/x cannot be named /var/run/x, as with runc). And
//! on a host whose mounts are shared: runc makes private whichever mount holds the root filesystem, and with it, by chance,
//! binds from that one mount; or, as 1.1.5 does, leaves the root a slave. Here the root is private and every bind a slave,
//! wherever the two lie. `rootfsPropagation` is for all binds that name none, in its recursive
//! form: runc leaves them shared with the host, so that what the container mounts there appears outside.

pub mod copy_up;
pub mod dev;
pub mod idmap;
pub mod mask;
pub mod mount;
pub mod options;
pub mod pivot;
pub mod resolve;
mod source;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{Linux, Mount, Spec};
use rustix::fs::{CWD, FileType, Mode, fstat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};

use crate::log;
use crate::lsm;
use options::{Bind, Options};
use resolve::Root;
pub use source::Sources;
use source::{Source, bind_place, root_propagation};

/// Files of a procfs that may be covered, usually by lxcfs; runc allows the same.
const OVER_PROC: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// The mounts of a specification.
pub fn spec_mounts(spec: &Spec) -> &[Mount] {
    spec.mounts().as_deref().unwrap_or_default()
}

/// Where the host has the one instance of a filesystem that only the owner of the network or ipc namespace it shows may
/// mount.
fn host_instance(kind: &str) -> Option<&'static Path> {
    match kind {
        "sysfs" => Some(Path::new("/sys")),
        "mqueue" => Some(Path::new("/dev/mqueue")),
        _ => None,
    }
}

/// Where a mount goes, as a path of the container; one that is not absolute is taken as from its root.
pub fn destination(mount: &Mount) -> PathBuf {
    let mut path = PathBuf::from("/");
    for component in mount.destination().components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => drop(path.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    path
}

/// Nothing but a procfs may be /proc, and in a procfs only what shows facts about the machine may be covered: a program
/// writes its security attributes there and must reach the kernel with them (CVE-2019-16884).
fn check_proc(mount: &OwnedFd, place: &OwnedFd, destination: &Path) -> Result<()> {
    let is_proc = |fd: &OwnedFd| -> Result<bool> {
        let kind = rustix::fs::fstatfs(fd).context("fstatfs")?.f_type;
        Ok(i128::from(kind) == i128::from(libc::PROC_SUPER_MAGIC))
    };
    if destination == Path::new("/proc") {
        ensure!(is_proc(mount)?, "only a procfs can be mounted there");
        return Ok(());
    }
    let allowed = OVER_PROC.iter().any(|path| destination == Path::new(path));
    ensure!(
        allowed || !is_proc(place)?,
        "inside a procfs this cannot be mounted over"
    );
    Ok(())
}

fn mount_options(mount: &Mount) -> Result<Options> {
    Options::parse(mount.options().as_deref().unwrap_or_default())
}

fn linux(spec: &Spec) -> Option<&Linux> {
    spec.linux().as_ref()
}

/// The root under construction, in init.
#[derive(Debug)]
pub struct Rootfs<'a> {
    /// The root directory, from which every path is resolved.
    pub root: Root,
    spec: &'a Spec,
    sources: &'a Sources,
    /// For each mount of a [`Source::Path`] what is at that path, opened while paths still led to the host alone.
    places: Vec<Option<OwnedFd>>,
    /// Where on the host the root comes from, opened as early for the same reason.
    own_place: Option<OwnedFd>,
    /// Mounts to be made read-only once everything below them exists.
    readonly: Vec<OwnedFd>,
    /// The root's mount and inode.
    id: (u64, u64),
    /// The ids of the mounts that are binds.
    bound: Vec<u64>,
    /// The destination and the id of every mount made so far.
    made: Vec<(PathBuf, u64)>,
}

impl<'a> Rootfs<'a> {
    /// Cuts this mount namespace off from the host's and puts the container's root over `/`.
    ///
    /// `own_path`: where on the host the root is to be shown later.
    pub fn attach(spec: &'a Spec, sources: &'a Sources, own_path: Option<&Path>) -> Result<Rootfs<'a>> {
        cut_propagation()?;
        let places = spec_mounts(spec).iter().zip(&sources.mounts);
        let places = places
            .map(|(mount, source)| {
                let place = source.place();
                place.with_context(|| format!("mount on {}", mount.destination().display()))
            })
            .collect::<Result<_>>()?;
        let own_place = own_path.map(mount::open_path).transpose()?;
        let root = sources.root.try_clone().context("dup the root")?;
        put_over_root(&root)?;
        let id = mount::id(&root)?;
        Ok(Rootfs {
            root: Root::new(root),
            spec,
            sources,
            places,
            own_place,
            readonly: Vec::new(),
            id,
            bound: Vec::new(),
            made: Vec::new(),
        })
    }

    /// Makes the mounts of the specification, in its order.
    pub fn mount_all(&mut self) -> Result<()> {
        let places = std::mem::take(&mut self.places);
        for ((mount, source), place) in spec_mounts(self.spec).iter().zip(&self.sources.mounts).zip(&places) {
            self.mount(mount, source, place.as_ref())
                .with_context(|| format!("mount on {}", mount.destination().display()))?;
        }
        Ok(())
    }

    fn mount(&mut self, mount: &Mount, source: &Source, place: Option<&OwnedFd>) -> Result<()> {
        match source {
            Source::Path(_, bind, options) => {
                let place = place.context("nobody has opened the source")?;
                self.mount_bind(mount, &bind_place(place, *bind, options)?)
            }
            Source::Bind(copy) => self.mount_bind(mount, copy),
            Source::Filesystem(kind) => self.mount_filesystem(mount, kind),
            Source::Cgroups(directories) => self.mount_cgroups(mount, directories),
            Source::Remount(options) => self.remount(mount, options),
        }
    }

    fn mount_bind(&mut self, mount: &Mount, copy: &OwnedFd) -> Result<()> {
        let stat = fstat(copy).context("fstat of the source")?;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let destination = destination(mount);
        let place = if is_directory {
            self.root.directory(&destination, true)?
        } else {
            self.root.file(&destination)?
        };
        self.check_not_root(&place)?;
        check_proc(copy, &place, &destination)?;
        mount::attach(copy, place)?;
        let id = mount::id(copy)?.0;
        self.bound.push(id);
        self.made.push((destination, id));
        Ok(())
    }

    fn mount_filesystem(&mut self, mount: &Mount, kind: &str) -> Result<()> {
        let mut options = mount_options(mount)?;
        options.filesystem.extend(lsm::mount_option(linux(self.spec), kind));
        let destination = destination(mount);
        // The root of a tmpfs whose owner or mode is named is not to look like the directory it covers.
        let named = options
            .filesystem
            .iter()
            .any(|(key, _)| matches!(key.as_str(), "mode" | "uid" | "gid"));
        if kind == "tmpfs" {
            self.keep_mode(&destination, &mut options)?;
        }
        let made = self.make_filesystem(mount, kind, &mut options)?;
        lsm::label_mount(linux(self.spec), kind, made.as_fd())?;
        // Later mounts and devices may need directories in it.
        let later = if kind == "tmpfs" { libc::MOUNT_ATTR_RDONLY } else { 0 };
        mount::set_options(made.as_fd(), &options, later)?;
        let links = !matches!(kind, "proc" | "sysfs") && destination != Path::new("/dev");
        let place = self.root.directory(&destination, links)?;
        self.check_not_root(&place)?;
        check_proc(&made, &place, &destination)?;
        if options.copy_up {
            copy_up::copy_up(&place, &made, !named, self.sources.user_namespace)?;
        }
        mount::attach(&made, place)?;
        self.made.push((destination, mount::id(&made)?.0));
        if options.attributes.set & later != 0 {
            self.readonly.push(made);
        }
        Ok(())
    }

    /// A mount over the root would be the root for whoever enters this mount namespace later, as exec does, but not for
    /// init.
    fn check_not_root(&self, place: &OwnedFd) -> Result<()> {
        ensure!(mount::id(place)? != self.id, "a link leads to the root itself");
        Ok(())
    }

    /// Makes a filesystem, or, where that is refused, takes the host's instance of it.
    fn make_filesystem(&self, mount: &Mount, kind: &str, options: &mut Options) -> Result<OwnedFd> {
        let source = mount.source().as_ref().map(|source| source.to_string_lossy());
        let refused = match mount::filesystem(kind, source.as_deref(), &options.filesystem) {
            Err(error) if error.downcast_ref() == Some(&Errno::PERM) => error,
            made => return made,
        };
        match host_instance(kind) {
            Some(path) => {
                log::debug(format_args!("{} is bound from the host: {refused:#}", path.display()));
                // With all that is mounted below, which must not be less read-only: there are cgroups (CVE-2023-25809).
                options.recursive = options.attributes;
                mount::copy_path(path, Bind::Recursive)
            }
            _ => Err(refused),
        }
    }

    /// A tmpfs that is not given a mode has that of the directory it covers, as with runc. Its own default is 1777.
    fn keep_mode(&self, destination: &Path, options: &mut Options) -> Result<()> {
        if options.filesystem.iter().any(|(key, _)| key == "mode") {
            return Ok(());
        }
        if let Some(covered) = self.root.find(destination)? {
            let mode = fstat(&covered).context("fstat")?.st_mode & 0o7777;
            options.filesystem.push(("mode".to_owned(), Some(format!("{mode:o}"))));
        }
        Ok(())
    }

    /// Changes what an earlier mount of the specification, or the image's mount, has put at the destination.
    ///
    /// Not where a link of the image or of a volume leads to: it would choose which mount is changed, and could turn options
    /// that are meant for a volume on /sys. Unless it leads to what has been mounted by this very name: a link may have led
    /// that mount too.
    fn remount(&mut self, mount: &Mount, options: &Options) -> Result<()> {
        let destination = destination(mount);
        let place = match self.root.find_plain(&destination)? {
            Some(place) => place,
            None => self.find_made(&destination)?,
        };
        self.check_not_root(&place)?;
        mount::remount(&place, options)?;
        if options.attributes.set & libc::MOUNT_ATTR_RDONLY != 0 {
            self.readonly.push(place);
        }
        Ok(())
    }

    /// The mount that has been made of this destination, if its path still leads there.
    fn find_made(&self, destination: &Path) -> Result<OwnedFd> {
        let place = self.root.find(destination)?.context("remount: nothing is there")?;
        let id = mount::id(&place)?.0;
        ensure!(
            self.made.iter().any(|(path, made)| path == destination && *made == id),
            "remount: {}: a link of the image leads to the mount",
            destination.display()
        );
        Ok(place)
    }

    /// The v1 layout: a tmpfs with a directory for each hierarchy, and a link for each controller of several.
    fn mount_cgroups(&mut self, mount: &Mount, directories: &[(String, OwnedFd)]) -> Result<()> {
        let mut options = mount_options(mount)?;
        options.filesystem = vec![("mode".to_owned(), Some("755".to_owned()))];
        let made = mount::filesystem("tmpfs", Some("tmpfs"), &options.filesystem)?;
        mount::set_options(made.as_fd(), &options, libc::MOUNT_ATTR_RDONLY)?;
        let destination = destination(mount);
        let place = self.root.directory(&destination, true)?;
        self.check_not_root(&place)?;
        check_proc(&made, &place, &destination)?;
        mount::attach(&made, place)?;
        self.made.push((destination, mount::id(&made)?.0));
        let tmpfs = Root::new(made);
        for (name, copy) in directories {
            mount::attach(copy, tmpfs.directory(Path::new(name), false)?).with_context(|| name.clone())?;
            for controller in name.split(',').filter(|controller| controller != name) {
                rustix::fs::symlinkat(name.as_str(), &tmpfs, controller)
                    .with_context(|| format!("link {controller}"))?;
            }
        }
        if options.attributes.set & libc::MOUNT_ATTR_RDONLY != 0 {
            self.readonly.push(tmpfs.as_fd().try_clone_to_owned().context("dup")?);
        }
        Ok(())
    }

    /// Devices and links of /dev, and the working directory.
    pub fn furnish(&self, cwd: &Path) -> Result<()> {
        // Modes are as given, whatever the caller's umask.
        let umask = rustix::process::umask(Mode::empty());
        let dev = dev::furnished(self.spec).then(|| self.dev()).transpose()?;
        for device in &self.sources.devices {
            device.make(&self.root)?;
        }
        rustix::process::umask(umask);
        dev.as_ref().map_or(Ok(()), dev::make_links)?;
        self.root.directory(cwd, true).context("process.cwd")?;
        Ok(())
    }

    /// The /dev to be furnished. It is the root's or a filesystem of its own: a bind that an image's link has led there
    /// holds files of somebody else, whose `ptmx` would be replaced and who would get our links (CVE-2026-41579).
    fn dev(&self) -> Result<OwnedFd> {
        let dev = self.root.directory(Path::new("/dev"), false)?;
        let bound = !self.bound.is_empty() && self.bound.contains(&mount::id(&dev)?.0);
        ensure!(!bound, "/dev: a link has led the bind of another destination there");
        Ok(dev)
    }

    /// Masks and makes read-only: from here on nothing more can be put into the root.
    pub fn seal(&self) -> Result<()> {
        let paths = |of: Option<&'a Option<Vec<String>>>| of.and_then(|paths| paths.as_deref()).unwrap_or_default();
        mask::readonly(&self.root, paths(linux(self.spec).map(Linux::readonly_paths)))?;
        mask::mask(
            &self.root,
            paths(linux(self.spec).map(Linux::masked_paths)),
            &self.sources.null,
        )?;
        for mount in &self.readonly {
            mount::set_readonly(mount.as_fd(), false)?;
        }
        if self.spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly) == Some(true) {
            mount::set_readonly(self.root.as_fd(), false).context("make the root read-only")?;
        }
        Ok(())
    }

    /// Moves the root to its own path, for hooks that look for it there.
    pub fn show(&self) -> Result<()> {
        let place = self
            .own_place
            .as_ref()
            .context("nobody has opened the root's own path")?;
        mount::attach(&self.root, place).context("show the root at its own path")
    }

    /// Takes the finished root along into the mount namespace that `enter` enters, over its `/`.
    ///
    /// A copy of it: mounts of one namespace cannot be moved to another. What is mounted there must not reach the
    /// namespaces it shares mounts with, nor may the end of its old root, so that its propagation is cut first, as runc
    /// does.
    pub fn relocate(&mut self, enter: impl FnOnce() -> Result<()>) -> Result<()> {
        let copy = mount::copy(&self.root).context("copy the finished root")?;
        enter()?;
        cut_propagation()?;
        put_over_root(&copy)?;
        self.root = Root::new(copy);
        Ok(())
    }

    /// Sets the root's propagation, once it is the root: pivot_root takes no shared mount.
    pub fn share(&self) -> Result<()> {
        root_propagation(self.spec).map_or(Ok(()), |propagation| {
            mount::set_propagation(self.root.as_fd(), propagation).context("linux.rootfsPropagation")
        })
    }
}

/// Nothing that is mounted or unmounted in this mount namespace reaches another from here on.
fn cut_propagation() -> Result<()> {
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::DOWNSTREAM | rustix::mount::MountPropagationFlags::REC,
    )
    .context("mount(/, MS_REC | MS_SLAVE)")
}

fn put_over_root(root: &OwnedFd) -> Result<()> {
    move_mount(root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).context("move_mount over /")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        for (given, path) in [
            ("/a/b", "/a/b"),
            ("a", "/a"),
            ("/proc/", "/proc"),
            ("/../a/./../b", "/b"),
            ("..", "/"),
        ] {
            let mut mount = Mount::default();
            mount.set_destination(given.into());
            assert_eq!(destination(&mount), Path::new(path), "{given}");
        }
    }
}
