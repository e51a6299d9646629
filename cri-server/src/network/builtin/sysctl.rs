//! Kernel parameters of the network that the calling thread is in.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const IPV4: &str = "/proc/sys/net/ipv4";
const IPV6: &str = "/proc/sys/net/ipv6";

/// Whether the kernel has IPv6.
pub(super) fn has_ipv6() -> bool {
    Path::new(IPV6).exists()
}

/// What holds for a pod's interface from its first moment: called in the pod's namespace before the interface is there.
///
/// Router advertisements are not listened to (CVE-2020-10749, CVE-2020-13401), addresses are used at once, and neighbours
/// are told when they are.
pub(super) fn prepare_pod() -> Result<()> {
    set(IPV4, "conf/default/arp_notify", "1")?;
    if has_ipv6() {
        set(IPV6, "conf/default/accept_ra", "0")?;
        set(IPV6, "conf/default/accept_dad", "0")?;
        set(IPV6, "conf/default/ndisc_notify", "1")?;
    }
    Ok(())
}

/// What the node needs to route between the bridge and the rest.
///
/// `learners` are the links whose router has told the node its way.
pub(super) fn prepare_node(bridge: &str, ipv4: bool, ipv6: bool, learners: &[&str]) -> Result<()> {
    if has_ipv6() {
        // A pod could make itself the node's router.
        set(IPV6, &format!("conf/{bridge}/accept_ra"), "0")?;
        set(IPV6, &format!("conf/{bridge}/accept_dad"), "0")?;
    }
    if ipv4 {
        set(IPV4, "ip_forward", "1")?;
    }
    if ipv6 {
        set(IPV6, &format!("conf/{bridge}/disable_ipv6"), "0")?;
        forward_ipv6(learners)?;
    }
    Ok(())
}

/// Whether the node still forwards for pods.
pub(super) fn forwards(ipv4: bool, ipv6: bool) -> Result<bool> {
    Ok((!ipv4 || is(IPV4, "ip_forward", "1")?) && (!ipv6 || is(IPV6, "conf/all/forwarding", "1")?))
}

/// Lets host ports on 127.0.0.1 lead to pods, or not. Only while the rules are there, which keep all others from the
/// loopback (CVE-2020-8558).
pub(super) fn route_localnet(bridge: &str, on: bool) -> Result<()> {
    set(
        IPV4,
        &format!("conf/{bridge}/route_localnet"),
        if on { "1" } else { "0" },
    )
}

/// Turns forwarding on for all interfaces: one alone can be told only since Linux 6.17, and both sides must be. An interface
/// that forwards does not listen to its router any more unless it is told to (accept_ra 2): the node keeps the routes that
/// it has learned. Links that have none, and those to come, do not listen: a pod's could be among them.
fn forward_ipv6(learners: &[&str]) -> Result<()> {
    if is(IPV6, "conf/all/forwarding", "1")? {
        return Ok(());
    }
    for link in learners {
        let parameter = format!("conf/{link}/accept_ra");
        if is(IPV6, &parameter, "1")? {
            set(IPV6, &parameter, "2")?;
        }
    }
    set(IPV6, "conf/all/forwarding", "1")
}

fn is(family: &str, name: &str, value: &str) -> Result<bool> {
    let path = path(family, name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim() == value),
        // An interface that has just gone.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Writes a parameter that does not have the value yet: where /proc/sys is read-only, one that does is good enough.
fn set(family: &str, name: &str, value: &str) -> Result<()> {
    if is(family, name, value)? {
        return Ok(());
    }
    let path = path(family, name);
    fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display()))
}

fn path(family: &str, name: &str) -> PathBuf {
    Path::new(family).join(name)
}
