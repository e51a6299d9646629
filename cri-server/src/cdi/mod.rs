//! CDI, the container device interface: devices that vendors describe in files on the node.
//!
//! ```text
//! /etc/cdi/*.{json,yaml}  /var/run/cdi/*.{json,yaml}      document.rs   one file: its form and its rules
//!        `───── a later directory counts before ─────'    registry.rs   all of them: which file has a device
//!                             │
//! CDI_devices, cdi.k8s.io/* ──┴─> Edits ──> config.json   edits.rs      what they make of a container's specification
//! ```
//! The files are read whenever a container asks for a device, and at no other time: what is read is what is there now, and
//! a node without such devices has no work with them. They are the administrator's and trusted in what they say; a file
//! that breaks a rule is passed over with a warning, one for each of its changes, and named to whoever asks for a device that nobody else has.
//!
//! Specifications from version 0.3.0 to 1.1.0 are understood. Not built: `netDevices` (1.1.0), which is refused.

mod document;
mod edits;
mod name;
mod registry;

use std::path::PathBuf;

use corten_proto::cri::ContainerConfig;

pub use edits::Edits;

use crate::spec::SpecError;
use registry::Registry;

/// What annotations begin with that name devices; from before the CRI had a field for them.
const ANNOTATION: &str = "cdi.k8s.io/";

/// Refuses what names no device. Pure.
pub fn check(config: &ContainerConfig) -> Result<(), SpecError> {
    requested(config).map(drop)
}

/// Looks the request's devices up in the files below `dirs`. Blocks.
pub fn resolve(config: &ContainerConfig, dirs: &[PathBuf]) -> Result<Edits, SpecError> {
    let names = requested(config)?;
    if names.is_empty() {
        return Ok(Edits::default());
    }
    Registry::read(dirs).edits(&names)
}

/// The request's devices, each once, and the field that names it first. Pure.
fn requested(config: &ContainerConfig) -> Result<Vec<(String, String)>, SpecError> {
    let by_field = config
        .cdi_devices
        .iter()
        .enumerate()
        .map(|(index, device)| (format!("CDI_devices[{index}].name"), device.name.clone()));
    let mut annotations: Vec<_> = config
        .annotations
        .iter()
        .filter(|(key, _)| key.starts_with(ANNOTATION))
        .collect();
    annotations.sort();
    let by_annotation = annotations.into_iter().flat_map(|(key, value)| {
        let names = value.split(',').map(str::trim);
        names.map(move |name| (format!("annotations[{key:?}]"), name.to_owned()))
    });
    let mut all: Vec<(String, String)> = Vec::new();
    for (field, name) in by_field.chain(by_annotation) {
        if let Err(rule) = name::check(&name) {
            return Err(SpecError::invalid(field, name, rule));
        }
        if all.iter().all(|(_, other)| *other != name) {
            all.push((field, name));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use corten_proto::cri::CdiDevice;

    use super::*;

    fn config(devices: &[&str], annotations: &[(&str, &str)]) -> ContainerConfig {
        ContainerConfig {
            cdi_devices: devices.iter().map(|&name| CdiDevice { name: name.into() }).collect(),
            annotations: annotations
                .iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            ..Default::default()
        }
    }

    #[test]
    fn devices_by_field_and_by_annotation() {
        let config = config(
            &["a.com/gpu=0", "a.com/gpu=1"],
            &[
                ("cdi.k8s.io/x", "a.com/gpu=1, a.com/gpu=2"),
                ("cdi.k8s.io/a", "b.com/nic=0"),
                ("other", "no device"),
            ],
        );
        let names: Vec<_> = requested(&config).unwrap().into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["a.com/gpu=0", "a.com/gpu=1", "b.com/nic=0", "a.com/gpu=2"]);
    }

    #[test]
    fn what_names_no_device_is_refused_by_its_field() {
        for (config, field) in [
            (config(&["a.com/gpu"], &[]), "CDI_devices[0].name"),
            (config(&[""], &[]), "CDI_devices[0].name"),
            (
                config(&[], &[("cdi.k8s.io/x", "a.com/gpu=0,")]),
                "annotations[\"cdi.k8s.io/x\"]",
            ),
        ] {
            assert_eq!(requested(&config).unwrap_err().field, field);
        }
        assert_eq!(requested(&ContainerConfig::default()), Ok(Vec::new()));
    }
}
