//! Privilege, SELinux labels, and the paths hidden from a container. Pure. Profiles are `confinement`'s.
//!
//! SELinux labels have no effect on a node without SELinux, as with the peers. With it they are refused: a label of the
//! process alone, without one of the root filesystem, would give a container that can read nothing.

use corten_proto::cri::{
    ContainerConfig, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, PodSandboxConfig, SeLinuxOption,
};

use super::{Host, SpecError, confinement};
use crate::config::Security;

const PRIVILEGED: &str = "linux.security_context.privileged";
const SELINUX: &str = "linux.security_context.selinux_options";

/// What the infra container does not see, and what it sees read-only: the lists the kubelet sends for a container with
/// the default procMount, and the energy counters, which tell of others' secrets (CVE-2020-8694).
pub(super) const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
pub(super) const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A container's security context, if the request has one.
pub(super) fn context(config: &ContainerConfig) -> Option<&LinuxContainerSecurityContext> {
    config.linux.as_ref()?.security_context.as_ref()
}

/// A sandbox's security context, if the request has one.
pub(super) fn sandbox_context(config: &PodSandboxConfig) -> Option<&LinuxSandboxSecurityContext> {
    config.linux.as_ref()?.security_context.as_ref()
}

/// The container runs with all the node's rights.
pub(super) fn is_privileged(config: &ContainerConfig) -> bool {
    context(config).is_some_and(|context| context.privileged)
}

/// Refuses what the container's context may not ask for, or what is not built.
pub(super) fn check_container(config: &ContainerConfig, sandbox: &PodSandboxConfig) -> Result<(), SpecError> {
    let Some(context) = context(config) else {
        return Ok(());
    };
    let allowed = sandbox_context(sandbox).is_some_and(|context| context.privileged);
    if context.privileged && !allowed {
        let rule = "is for sandboxes that are privileged themselves";
        return Err(SpecError::invalid(PRIVILEGED, true, rule));
    }
    check_paths("linux.security_context.masked_paths", &context.masked_paths)?;
    check_paths("linux.security_context.readonly_paths", &context.readonly_paths)?;
    let (seccomp_string, apparmor_string) = deprecated(context);
    let seccomp = (context.seccomp.as_ref(), seccomp_string);
    confinement::check(
        seccomp,
        (context.apparmor.as_ref(), apparmor_string),
        context.privileged,
    )
}

/// Refuses what the sandbox's context may not ask for, or what is not built.
pub(super) fn check_sandbox(config: &PodSandboxConfig) -> Result<(), SpecError> {
    let Some(context) = sandbox_context(config) else {
        return Ok(());
    };
    #[expect(deprecated, reason = "it stands where the message is absent")]
    let seccomp_string = &context.seccomp_profile_path;
    let seccomp = (context.seccomp.as_ref(), seccomp_string.as_str());
    confinement::check(seccomp, (context.apparmor.as_ref(), ""), context.privileged)
}

/// The container's masked and read-only paths, as the request lists them: a kubelet sends the defaults, or nothing for
/// procMount Unmasked, and the two cannot be told from a client that forgot; `defaults` decides. A privileged container
/// has none.
pub(super) fn hidden_paths(config: &ContainerConfig, defaults: &Security) -> (Vec<String>, Vec<String>) {
    let asked = context(config);
    if asked.is_some_and(|context| context.privileged) {
        return (Vec::new(), Vec::new());
    }
    let (masked, readonly) = asked.map_or((&[][..], &[][..]), |context| {
        (context.masked_paths.as_slice(), context.readonly_paths.as_slice())
    });
    if defaults.mask_paths_by_default && masked.is_empty() && readonly.is_empty() {
        return (strings(MASKED_PATHS), strings(READONLY_PATHS));
    }
    (masked.to_vec(), readonly.to_vec())
}

/// Owned, for oci-spec.
pub(super) fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// The strings for seccomp and AppArmor that stand where the messages are absent.
#[expect(deprecated, reason = "older clients send nothing else")]
pub(super) fn deprecated(context: &LinuxContainerSecurityContext) -> (&str, &str) {
    (&context.seccomp_profile_path, &context.apparmor_profile)
}

fn check_paths(field: &str, paths: &[String]) -> Result<(), SpecError> {
    paths
        .iter()
        .try_for_each(|path| super::absolute(field, path).map(|_| ()))
}

/// Refuses labels that would have an effect. The container's go before the sandbox's, which hold for all of the pod.
pub(super) fn check_selinux(options: [Option<&SeLinuxOption>; 2], host: &Host) -> Result<(), SpecError> {
    let Some(options) = options.into_iter().flatten().next().filter(|_| host.selinux) else {
        return Ok(());
    };
    let label = [&options.user, &options.role, &options.r#type, &options.level];
    if label.iter().all(|part| part.is_empty()) {
        return Ok(());
    }
    let label = label.map(String::as_str).join(":");
    let rule = "SELinux is enabled on this node, and labels are not supported yet";
    Err(SpecError::unimplemented(SELINUX, label, rule))
}

#[cfg(test)]
mod tests {
    use corten_proto::cri::security_profile::ProfileType;
    use corten_proto::cri::{LinuxContainerConfig, LinuxPodSandboxConfig, SecurityProfile};

    use super::super::Kind;
    use super::super::host::tests::host;
    use super::super::profile::tests::message;
    use super::*;

    fn container(context: LinuxContainerSecurityContext) -> ContainerConfig {
        ContainerConfig {
            linux: Some(LinuxContainerConfig {
                security_context: Some(context),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn sandbox(context: LinuxSandboxSecurityContext) -> PodSandboxConfig {
        PodSandboxConfig {
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(context),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Field and kind of the refusal.
    fn refused(context: LinuxContainerSecurityContext) -> Option<(String, Kind)> {
        let sandbox = sandbox(LinuxSandboxSecurityContext::default());
        check_container(&container(context), &sandbox)
            .err()
            .map(|e| (e.field, e.kind))
    }

    #[test]
    fn profiles_that_are_none() {
        let profiles = [
            message(ProfileType::Localhost, ""),
            SecurityProfile {
                profile_type: 9,
                ..Default::default()
            },
        ];
        for profile in profiles {
            let seccomp = LinuxContainerSecurityContext {
                seccomp: Some(profile.clone()),
                ..Default::default()
            };
            let apparmor = LinuxContainerSecurityContext {
                apparmor: Some(profile),
                ..Default::default()
            };
            for (context, field) in [(seccomp, "seccomp"), (apparmor, "apparmor")] {
                let field = format!("linux.security_context.{field}");
                assert_eq!(refused(context), Some((field, Kind::Invalid)));
            }
        }
        let relative = LinuxContainerSecurityContext {
            seccomp: Some(message(ProfileType::Localhost, "localhost/x.json")),
            ..Default::default()
        };
        assert_eq!(refused(relative).map(|it| it.1), Some(Kind::Invalid));
        let named = LinuxContainerSecurityContext {
            apparmor: Some(message(ProfileType::Localhost, "some-profile")),
            ..Default::default()
        };
        assert_eq!(refused(named), None, "whether it is loaded is seen later");
    }

    #[test]
    fn sandboxes() {
        let with = |profile: SecurityProfile, privileged| {
            check_sandbox(&sandbox(LinuxSandboxSecurityContext {
                seccomp: Some(profile),
                privileged,
                ..Default::default()
            }))
        };
        assert_eq!(with(SecurityProfile::default(), false), Ok(()));
        assert_eq!(with(message(ProfileType::Localhost, "/x.json"), false), Ok(()));
        assert!(with(message(ProfileType::Localhost, "x.json"), false).is_err());
        assert_eq!(
            with(message(ProfileType::Localhost, "x.json"), true),
            Ok(()),
            "never read"
        );
    }

    #[test]
    fn selinux_labels_where_they_would_have_an_effect() {
        let label = |r#type: &str| SeLinuxOption {
            r#type: r#type.into(),
            ..Default::default()
        };
        let (off, on) = (
            host(),
            Host {
                selinux: true,
                ..host()
            },
        );
        let (spc, none) = (label("spc_t"), label(""));
        assert_eq!(check_selinux([Some(&spc), None], &off), Ok(()));
        assert_eq!(check_selinux([None, None], &on), Ok(()));
        for options in [[Some(&spc), None], [None, Some(&spc)], [Some(&spc), Some(&none)]] {
            let error = check_selinux(options, &on).unwrap_err();
            assert_eq!((error.field.as_str(), error.kind), (SELINUX, Kind::Unimplemented));
        }
        assert_eq!(
            check_selinux([Some(&none), Some(&spc)], &on),
            Ok(()),
            "the container's go first"
        );
    }

    #[test]
    fn paths_that_are_hidden() {
        let with = |masked: &[&str], privileged| {
            container(LinuxContainerSecurityContext {
                masked_paths: strings(masked),
                privileged,
                ..Default::default()
            })
        };
        let on = Security {
            mask_paths_by_default: true,
            ..Default::default()
        };
        for (config, defaults, masked, readonly) in [
            (with(&["/proc/kcore"], false), Security::default(), 1, 0),
            (with(&[], false), Security::default(), 0, 0),
            (ContainerConfig::default(), Security::default(), 0, 0),
            (with(&["/proc/kcore"], false), on.clone(), 1, 0),
            (with(&[], false), on.clone(), MASKED_PATHS.len(), READONLY_PATHS.len()),
            (
                ContainerConfig::default(),
                on.clone(),
                MASKED_PATHS.len(),
                READONLY_PATHS.len(),
            ),
            (with(&["/proc/kcore"], true), on, 0, 0),
        ] {
            let found = hidden_paths(&config, &defaults);
            assert_eq!(
                (found.0.len(), found.1.len()),
                (masked, readonly),
                "{config:?} {defaults:?}"
            );
        }
    }
}
