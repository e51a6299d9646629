//! The check of `linux.netDevices`.

use anyhow::{Result, ensure};
use oci_spec::runtime::{Linux, LinuxNamespaceType};

use super::linux::private;
use crate::netlink::Socket;

/// The host's network devices: they exist, and their new names can be those of devices in the new namespace.
pub(super) fn devices(linux: &Linux) -> Result<()> {
    let wanted = crate::netdev::wanted(linux);
    for (index, &(host, name)) in wanted.iter().enumerate() {
        let at = format!("linux.netDevices.{host:?}");
        for name in [host, name] {
            ensure!(device_name(name), "{at}: {name:?}: is not the name of a network device");
        }
        let twice = wanted[..index].iter().any(|(_, other)| *other == name);
        ensure!(
            !twice && name != "lo",
            "{at}.name: {name:?}: the namespace has another device of this name"
        );
        let own = private(linux, LinuxNamespaceType::Network)?;
        ensure!(own, "{at}: needs a network namespace that is not the host's");
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let network = Socket::open()?;
    for (host, _) in wanted {
        let there = network.link(host)?.is_some();
        ensure!(there, "linux.netDevices.{host:?}: the host has no such network device");
    }
    Ok(())
}

/// What the kernel takes, `dev_valid_name`; and no `%`, for which it would put a number.
fn device_name(name: &str) -> bool {
    let legal = |byte: u8| !byte.is_ascii_whitespace() && !matches!(byte, b'/' | b':' | b'%' | 0 | 0x0b);
    (1..16).contains(&name.len()) && !matches!(name, "." | "..") && name.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::linux::tests::namespaces;
    use super::super::tests::check;

    #[test]
    fn names_of_network_devices() {
        let net = json!({"type": "network"});
        for (devices, words) in [
            (
                json!({"no-such-device": {}}),
                "linux.netDevices.\"no-such-device\": the host has no",
            ),
            (
                json!({"lo": {}}),
                "linux.netDevices.\"lo\".name: \"lo\": the namespace has",
            ),
            (
                json!({"lo": {"name": "a b"}}),
                "linux.netDevices.\"lo\": \"a b\": is not",
            ),
            (
                json!({"lo": {"name": "eth%d"}}),
                "linux.netDevices.\"lo\": \"eth%d\": is not",
            ),
            (
                json!({"0123456789abcdef": {}}),
                "linux.netDevices.\"0123456789abcdef\": \"0123456789abcdef\": is not",
            ),
            (
                json!({"lo": {"name": "x"}, "no": {"name": "x"}}),
                "linux.netDevices.\"no\".name: \"x\"",
            ),
        ] {
            let error = check(&[
                namespaces(std::slice::from_ref(&net)),
                ("/linux/netDevices", devices.clone()),
            ])
            .unwrap_err();
            assert!(error.starts_with(words), "{devices}: {error}");
        }
        assert_eq!(
            check(&[namespaces(&[net]), ("/linux/netDevices", json!({"lo": {"name": "x"}}))]),
            Ok(vec![])
        );
    }
}
