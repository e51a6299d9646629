//! Requests for what is not built, each refused by name before anything is touched. Pure.
//!
//! Refusals that belong to one subject stand with it (`security`, `namespaces`, `mounts`, `resources`); here is what has
//! no other home. An entry goes when the feature comes.

use corten_proto::cri::ContainerConfig;

use super::SpecError;

/// Device requests from before the CRI had a field for them.
const CDI_ANNOTATION: &str = "cdi.k8s.io/";

/// Refuses what is not built of a container.
pub(super) fn check_container(config: &ContainerConfig) -> Result<(), SpecError> {
    let not_yet = "CDI devices are not supported yet";
    if let Some(device) = config.cdi_devices.first() {
        return Err(SpecError::unimplemented("CDI_devices[0].name", &device.name, not_yet));
    }
    if let Some(key) = config.annotations.keys().find(|key| key.starts_with(CDI_ANNOTATION)) {
        return Err(SpecError::unimplemented("annotations", key, not_yet));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use corten_proto::cri::CdiDevice;

    use super::super::Kind;
    use super::*;

    #[test]
    fn cdi_by_field_and_by_annotation() {
        let by_field = ContainerConfig {
            cdi_devices: vec![CdiDevice {
                name: "vendor.com/gpu=0".into(),
            }],
            ..Default::default()
        };
        let by_annotation = ContainerConfig {
            annotations: [("cdi.k8s.io/x".into(), "vendor.com/gpu=0".into())].into(),
            ..Default::default()
        };
        for config in [by_field, by_annotation] {
            assert_eq!(check_container(&config).unwrap_err().kind, Kind::Unimplemented);
        }
        assert_eq!(check_container(&ContainerConfig::default()), Ok(()));
    }
}
