//! `linux.netDevices`: devices of the host that the container gets, and gives back when it is deleted.
//!
//! A device keeps its addresses on the way, and is up when the container starts (config-linux.md, "Network Devices"). The
//! way back is the runtime's too: a container that takes a device, renames it and ends must be able to be created again.
//! For that the container's network namespace is kept, by a mount on `netns` in the container's directory, until delete
//! has moved the devices out; without it the namespace would end with its last process, and the kernel take virtual
//! devices with it and return the others under the name they had inside, or another.
//!
//! What is to be moved is in the state before the first move, so that delete undoes a create that was killed. Given back
//! is what has the number that the device got inside, or before that is known its name there, and is of its kind: a
//! container that may change its network could put a virtual device of its own in the place of a physical one. Its
//! addresses on the host are those it had before, never those the container has given it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};
use oci_spec::runtime::{Linux, Spec};
use serde::{Deserialize, Serialize};

use crate::log;
use crate::netlink::{Address, Socket};
use crate::rootfs::mount;
use crate::rootfs::options::Bind;
use crate::state::{Directory, State};

/// Where in the container's directory its network namespace is kept.
const NETWORK: &str = "netns";

/// A device on its way, or in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetDevice {
    /// Its name on the host.
    pub host: String,
    /// Its name inside.
    pub name: String,
    /// Its number inside, once it is there.
    pub index: Option<i32>,
    /// It was up on the host.
    pub up: bool,
    /// What kind of virtual device it is; empty for a physical one.
    pub kind: String,
    /// The addresses it had on the host.
    pub addresses: Vec<Address>,
}

/// The devices that a specification asks for: the host's names and those inside, in order of the former.
pub fn wanted(linux: &Linux) -> Vec<(&str, &str)> {
    let mut wanted: Vec<(&str, &str)> = linux
        .net_devices()
        .iter()
        .flatten()
        .map(|(host, device)| {
            // An empty name is one that a Go program did not set.
            let name = device.name().as_deref().filter(|name| !name.is_empty());
            (host.as_str(), name.unwrap_or(host))
        })
        .collect();
    wanted.sort_unstable();
    wanted
}

/// Devices that have been moved: moved back on drop.
#[derive(Debug)]
pub struct Moved<'a> {
    directory: &'a Directory,
    devices: Vec<NetDevice>,
}

impl Moved<'_> {
    /// They stay where they are.
    pub fn keep(mut self) {
        self.devices.clear();
    }
}

impl Drop for Moved<'_> {
    fn drop(&mut self) {
        give_back(self.directory, &self.devices);
    }
}

/// Moves the devices that the specification asks for into a network namespace, and notes them in the state.
pub fn take<'a>(
    spec: &Spec,
    directory: &'a Directory,
    state: &mut State,
    namespace: impl FnOnce() -> Result<OwnedFd>,
) -> Result<Moved<'a>> {
    let mut moved = Moved {
        directory,
        devices: Vec::new(),
    };
    let wanted = spec.linux().as_ref().map(wanted).unwrap_or_default();
    if wanted.is_empty() {
        return Ok(moved);
    }
    let namespace = namespace()?;
    let ways = Ways::open(namespace.as_fd())?;
    for (host, name) in &wanted {
        let device = ways.look(host, name);
        let device = device.with_context(|| format!("linux.netDevices.{host:?}"))?;
        state.net_devices.push(device);
    }
    directory.write(state)?;
    moved.devices.clone_from(&state.net_devices);
    keep_namespace(directory, namespace.as_fd()).context("keep the network namespace")?;
    for (device, guarded) in state.net_devices.iter_mut().zip(&mut moved.devices) {
        let index = ways.take(device, namespace.as_fd());
        device.index = Some(index.with_context(|| format!("linux.netDevices.{:?}", device.host))?);
        guarded.index = device.index;
    }
    Ok(moved)
}

/// Moves devices back to the host. What cannot be moved is no reason not to delete the container: the container may have
/// removed it, and the host may have another of that name by now.
pub fn give_back(directory: &Directory, devices: &[NetDevice]) {
    if devices.is_empty() {
        return;
    }
    let ways = || {
        let namespace = kept_namespace(directory)?;
        namespace.map(|namespace| Ways::open(namespace.as_fd())).transpose()
    };
    let Some(Some(ways)) = log::best_effort("open the container's network namespace", ways()) else {
        return;
    };
    for device in devices {
        let back = ways.back(device).with_context(|| device.host.clone());
        log::best_effort("give a network device back", back);
    }
}

fn kept_path(directory: &Directory) -> PathBuf {
    directory.path().join(NETWORK)
}

/// Mounts a network namespace in the container's directory.
fn keep_namespace(directory: &Directory, namespace: BorrowedFd<'_>) -> Result<()> {
    let path = kept_path(directory);
    let place = File::create_new(&path).with_context(|| format!("create {}", path.display()))?;
    let copy = mount::copy_as_peer(namespace, Bind::One)?;
    mount::attach(copy, place)
}

/// The namespace that was mounted there, if a create came as far as that. It is no longer mounted then, and lives as long
/// as the descriptor: the directory can be removed whatever happens next.
fn kept_namespace(directory: &Directory) -> Result<Option<OwnedFd>> {
    let path = kept_path(directory);
    let file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.with_context(|| format!("open {}", path.display()))?,
    };
    let kind = rustix::fs::fstatfs(&file)
        .with_context(|| format!("fstatfs({})", path.display()))?
        .f_type;
    if i128::from(kind) != i128::from(libc::NSFS_MAGIC) {
        return Ok(None);
    }
    umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
        .with_context(|| format!("umount2({}, MNT_DETACH)", path.display()))?;
    Ok(Some(file.into()))
}

/// The two ends of a move.
struct Ways {
    own: OwnedFd,
    host: Socket,
    container: Socket,
}

impl Ways {
    fn open(namespace: BorrowedFd<'_>) -> Result<Ways> {
        let path = "/proc/self/ns/net";
        let own: OwnedFd = File::open(path).with_context(|| format!("open {path}"))?.into();
        Ok(Ways {
            host: Socket::open()?,
            container: Socket::inside(namespace, own.as_fd())?,
            own,
        })
    }

    /// What there is to know of a device before it is moved.
    fn look(&self, host: &str, name: &str) -> Result<NetDevice> {
        let link = self.host.link(host)?.context("no such network device")?;
        Ok(NetDevice {
            host: host.to_owned(),
            name: name.to_owned(),
            index: None,
            up: link.up,
            kind: link.kind,
            addresses: self.host.addresses(link.index)?,
        })
    }

    /// Moves a device into the container. Its number there.
    fn take(&self, device: &NetDevice, namespace: BorrowedFd<'_>) -> Result<i32> {
        let link = self.host.link(&device.host)?.context("no such network device")?;
        self.host.move_link(link.index, namespace, &device.name)?;
        let inside = self.container.link(&device.name)?.context("it is not there")?;
        for address in &device.addresses {
            self.container.add_address(inside.index, address)?;
        }
        self.container.set_up(inside.index)?;
        Ok(inside.index)
    }

    /// Moves a device back to the host. Nothing is done where it has never left, or has been removed inside.
    fn back(&self, device: &NetDevice) -> Result<()> {
        let inside = match device.index {
            Some(index) => self.container.link_by_index(index)?,
            None => self.container.link(&device.name)?,
        };
        let Some(inside) = inside else {
            return Ok(());
        };
        ensure!(
            inside.kind == device.kind,
            "a device of another kind is in its place: {:?}",
            inside.kind
        );
        self.container.move_link(inside.index, self.own.as_fd(), &device.host)?;
        let link = self.host.link(&device.host)?.context("it is not there")?;
        for address in &device.addresses {
            self.host.add_address(link.index, address)?;
        }
        if device.up {
            self.host.set_up(link.index)?;
        }
        Ok(())
    }
}
