//! RuntimeConfig and UpdateRuntimeConfig: what kubelet and runtime tell each other once.

use std::net::IpAddr;

use corten_proto::cri::{
    CgroupDriver, LinuxRuntimeConfiguration, RuntimeConfigResponse, UpdateRuntimeConfigRequest,
    UpdateRuntimeConfigResponse,
};

use crate::error::Error;
use crate::node::{Node, blocking};
use crate::record;
use crate::spec;

impl Node {
    /// RuntimeConfig.
    pub(super) fn runtime_config(&self) -> RuntimeConfigResponse {
        let cgroup_driver = self.cgroup_driver().into();
        RuntimeConfigResponse {
            linux: Some(LinuxRuntimeConfiguration { cgroup_driver }),
        }
    }

    /// Who makes the cgroups. The kubelet asks at its start and does the same; it must not change under it.
    fn cgroup_driver(&self) -> CgroupDriver {
        match self.config.cgroup_driver {
            spec::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
            spec::CgroupDriver::Systemd => CgroupDriver::Systemd,
        }
    }

    /// UpdateRuntimeConfig: the ranges of the pods' addresses, for the built-in network and for CNI plugins that declare `ipRanges`; Status shows them. On
    /// disk too: the kubelet says them at its own start only.
    pub(super) async fn update_runtime_config(
        &self,
        request: UpdateRuntimeConfigRequest,
    ) -> Result<UpdateRuntimeConfigResponse, Error> {
        let network = request.runtime_config.and_then(|config| config.network_config);
        let cidrs = cidrs(&network.unwrap_or_default().pod_cidr)?;
        let _alone = self.runtime_config.lock().await;
        if self.cni.pod_cidrs() != cidrs {
            tracing::info!(?cidrs, "the kubelet's ranges of pod addresses");
            let (path, kept) = (self.paths.pod_cidrs(), cidrs.clone());
            blocking(move || record::write(&path, &kept)).await?;
            self.builtin.set_pod_cidrs(&cidrs);
            self.cni.set_pod_cidrs(cidrs);
        }
        Ok(UpdateRuntimeConfigResponse {})
    }
}

/// The ranges of a list with commas: one for each address family, as the kubelet gives them; none for an empty text.
fn cidrs(text: &str) -> Result<Vec<String>, Error> {
    let parts = text.split(',').map(str::trim);
    let parts: Vec<String> = parts.filter(|_| !text.is_empty()).map(str::to_owned).collect();
    for part in &parts {
        if !is_cidr(part) {
            let rule = "must be address ranges like 10.1.2.0/24 or fd00::/64, separated by commas";
            return Err(Error::invalid("runtime_config.network_config.pod_cidr", text, rule));
        }
    }
    Ok(parts)
}

fn is_cidr(text: &str) -> bool {
    let Some((address, prefix)) = text.split_once('/') else {
        return false;
    };
    let (Ok(address), Ok(prefix)) = (address.parse::<IpAddr>(), prefix.parse::<u8>()) else {
        return false;
    };
    prefix <= if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_ranges() {
        let table: [(&str, Option<&[&str]>); 9] = [
            ("", Some(&[])),
            ("10.1.0.0/16", Some(&["10.1.0.0/16"])),
            ("10.1.0.0/16, fd00::/64", Some(&["10.1.0.0/16", "fd00::/64"])),
            ("10.1.0.0", None),
            ("10.1.0.0/33", None),
            ("fd00::/129", None),
            ("10.1.0.0/16,", None),
            ("pods/16", None),
            ("/", None),
        ];
        for (text, expected) in table {
            assert_eq!(
                cidrs(text).ok(),
                expected.map(|list| list.iter().map(|&it| it.to_owned()).collect()),
                "{text:?}"
            );
        }
    }
}
