//! /dev of a container: the device nodes every container has, those of the specification, and the links.
//!
//! A node is made with mknod, or, in a user namespace, where that is forbidden, by binding the host's. What stands
//! in the way at a node's path is not replaced: the same device is taken, anything else is an error.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, makedev, mknodat, openat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::options::Bind;
use super::resolve::Root;
use super::{mount, spec_mounts};

/// The devices of every container: path, major, minor. OCI runtime-spec, config-linux.md, "Default Devices".
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The links in /dev: name and target.
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// A device node to be.
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    kind: FileType,
    number: u64,
    mode: u32,
    owner: (u32, u32),
    /// The host's node, detached, where mknod is not to be had.
    host: Option<OwnedFd>,
}

/// The devices of a container; none where /dev is bound from elsewhere and therefore not ours to furnish. In a user
/// namespace the host's nodes are opened here, by the host's root, before it is entered.
pub fn devices(spec: &Spec, user_namespace: bool) -> Result<Vec<Device>> {
    if !furnished(spec) {
        return Ok(Vec::new());
    }
    let declared = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.devices().as_deref())
        .unwrap_or_default();
    let mut devices: Vec<Device> = declared.iter().map(Device::declared).collect::<Result<_>>()?;
    for (path, major, minor) in DEFAULT_DEVICES {
        if !devices.iter().any(|device| device.path == Path::new(path)) {
            let number = makedev(major, minor);
            let kind = FileType::CharacterDevice;
            devices.push(Device {
                path: path.into(),
                kind,
                number,
                mode: 0o666,
                owner: (0, 0),
                host: None,
            });
        }
    }
    if user_namespace {
        for device in &mut devices {
            device.host = Some(device.open_host()?);
        }
    }
    Ok(devices)
}

/// Where the devices of a container are.
pub fn paths(spec: &Spec) -> Result<Vec<PathBuf>> {
    let devices = devices(spec, false)?;
    Ok(devices.into_iter().map(|device| device.path).collect())
}

/// /dev is the container's own.
pub fn furnished(spec: &Spec) -> bool {
    !spec_mounts(spec).iter().any(|mount| {
        let bound = |option: &String| option == "bind" || option == "rbind";
        super::destination(mount) == Path::new("/dev")
            && (mount.typ().as_deref() == Some("bind") || mount.options().iter().flatten().any(bound))
    })
}

impl Device {
    fn declared(device: &LinuxDevice) -> Result<Device> {
        let kind = match device.typ() {
            LinuxDeviceType::B => FileType::BlockDevice,
            LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
            LinuxDeviceType::P => FileType::Fifo,
            LinuxDeviceType::A => {
                anyhow::bail!(
                    "linux.devices: {}: type \"a\" is no type of a device",
                    device.path().display()
                )
            }
        };
        let number = |value: i64| u32::try_from(value).with_context(|| format!("linux.devices: number {value}"));
        Ok(Device {
            path: device.path().clone(),
            kind,
            number: if kind == FileType::Fifo {
                0
            } else {
                makedev(number(device.major())?, number(device.minor())?)
            },
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
            host: None,
        })
    }

    fn open_host(&self) -> Result<OwnedFd> {
        let host = mount::copy_path(&self.path, Bind::One)?;
        let stat = fstat(&host).with_context(|| format!("fstat({})", self.path.display()))?;
        ensure!(
            self.is(&stat),
            "{}: the host has another device there",
            self.path.display()
        );
        Ok(host)
    }

    fn is(&self, stat: &rustix::fs::Stat) -> bool {
        FileType::from_raw_mode(stat.st_mode) == self.kind && stat.st_rdev == self.number
    }

    /// Makes the node in the root.
    pub fn make(&self, root: &Root) -> Result<()> {
        let what = || format!("make the device {}", self.path.display());
        match &self.host {
            Some(host) => mount::attach(host, root.file(&self.path).with_context(what)?).with_context(what),
            None => match self.make_node(root) {
                // Root of a user namespace that was there before the runtime.
                Err(error) if error.downcast_ref() == Some(&Errno::PERM) => self.open_host().and_then(|host| {
                    let place = root.file(&self.path)?;
                    mount::attach(host, place)
                }),
                made => made,
            }
            .with_context(what),
        }
    }

    fn make_node(&self, root: &Root) -> Result<()> {
        let (parent, name) = root.parent(&self.path)?;
        let mode = Mode::from_raw_mode(self.mode);
        match mknodat(&parent, name, self.kind, mode, self.number) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).context("fstatat")?;
                ensure!(self.is(&stat), "something else is there");
                return Ok(());
            }
            Err(error) => {
                return Err(error).with_context(|| format!("mknodat({:#x})", self.number));
            }
        }
        if self.owner == (0, 0) {
            return Ok(());
        }
        self.give(&parent, name)
    }

    /// Gives the node just made to its owner: that very node, and nothing that has been put in its place meanwhile.
    ///
    /// This clears the set-id bits, which mean nothing for a device; there is no way to set a mode by descriptor that
    /// does not follow what may now be a link.
    fn give(&self, parent: &OwnedFd, name: &OsStr) -> Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = openat(parent, name, flags, Mode::empty()).context("openat(O_PATH | O_NOFOLLOW)")?;
        ensure!(self.is(&fstat(&node).context("fstat")?), "something else is there");
        let (uid, gid) = self.owner;
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        chownat(&node, "", owner.0, owner.1, AtFlags::EMPTY_PATH).with_context(|| format!("fchownat({uid}, {gid})"))
    }
}

/// Makes the links; `ptmx` leads to the container's own devpts.
pub fn make_links(dev: &OwnedFd) -> Result<()> {
    for (name, target) in LINKS {
        link(dev, name, target)?;
    }
    if Path::new("/proc/kcore").exists() {
        link(dev, "core", "/proc/kcore")?;
    }
    // An image may bring a node here that is the host's multiplexer.
    match unlinkat(dev, "ptmx", AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error).context("remove /dev/ptmx"),
    }
    link(dev, "ptmx", "pts/ptmx")
}

/// Makes a link, where the same one is not there already. Whatever else an image has under that name stays.
fn link(dev: &OwnedFd, name: &str, target: &str) -> Result<()> {
    match symlinkat(target, dev, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("symlinkat({target}, /dev/{name})")),
    }
}
