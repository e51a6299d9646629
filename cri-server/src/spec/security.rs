//! Privilege, profiles of the security modules, and the paths hidden from a container. Pure.

use corten_proto::cri::security_profile::ProfileType;
use corten_proto::cri::{
    ContainerConfig, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, PodSandboxConfig, SeLinuxOption,
    SecurityProfile,
};

use super::SpecError;

const PRIVILEGED: &str = "linux.security_context.privileged";
const SECCOMP: &str = "linux.security_context.seccomp";
const APPARMOR: &str = "linux.security_context.apparmor";
const SELINUX: &str = "linux.security_context.selinux_options";

/// What the infra container does not see, and what it sees read-only: the lists the kubelet sends for a container with
/// the default procMount.
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
    check_selinux(context.selinux_options.as_ref())?;
    let (seccomp_string, apparmor_string) = deprecated(context);
    check_apparmor(context.apparmor.as_ref(), apparmor_string)?;
    if context.privileged {
        // A privileged container runs unconfined whatever the field says (api.proto, privileged).
        return Ok(());
    }
    match seccomp(context.seccomp.as_ref(), seccomp_string)? {
        Profile::Unconfined => Ok(()),
        profile => Err(profile.not_built(SECCOMP)),
    }
}

/// Refuses what the sandbox's context may not ask for, or what is not built.
///
/// RuntimeDefault seccomp is accepted: it is what the kubelet asks for with every pod, and it speaks of the infra
/// container alone, whose one process is our own pause program without capabilities and with no_new_privs.
pub(super) fn check_sandbox(config: &PodSandboxConfig) -> Result<(), SpecError> {
    let Some(context) = sandbox_context(config) else {
        return Ok(());
    };
    check_selinux(context.selinux_options.as_ref())?;
    check_apparmor(context.apparmor.as_ref(), "")?;
    #[expect(deprecated, reason = "it stands where the message is absent")]
    let seccomp_string = &context.seccomp_profile_path;
    match seccomp(context.seccomp.as_ref(), seccomp_string)? {
        Profile::Localhost(path) if !context.privileged => Err(Profile::Localhost(path).not_built(SECCOMP)),
        _ => Ok(()),
    }
}

/// The strings for seccomp and AppArmor that stand where the messages are absent.
#[expect(deprecated, reason = "older clients send nothing else")]
fn deprecated(context: &LinuxContainerSecurityContext) -> (&str, &str) {
    (&context.seccomp_profile_path, &context.apparmor_profile)
}

fn check_paths(field: &str, paths: &[String]) -> Result<(), SpecError> {
    paths
        .iter()
        .try_for_each(|path| super::absolute(field, path).map(|_| ()))
}

fn check_selinux(options: Option<&SeLinuxOption>) -> Result<(), SpecError> {
    let Some(options) = options else {
        return Ok(());
    };
    let label = [&options.user, &options.role, &options.r#type, &options.level];
    if label.iter().all(|part| part.is_empty()) {
        return Ok(());
    }
    let label = label.map(String::as_str).join(":");
    Err(SpecError::unimplemented(
        SELINUX,
        label,
        "SELinux labels are not supported yet",
    ))
}

/// Nothing asked for means no profile; so does Unconfined.
fn check_apparmor(profile: Option<&SecurityProfile>, deprecated: &str) -> Result<(), SpecError> {
    let profile = match profile {
        Some(profile) => Profile::parse(APPARMOR, profile)?,
        None => Profile::parse_deprecated(APPARMOR, deprecated)?,
    };
    match profile {
        Profile::Unconfined => Ok(()),
        profile => Err(profile.not_built(APPARMOR)),
    }
}

fn seccomp(profile: Option<&SecurityProfile>, deprecated: &str) -> Result<Profile, SpecError> {
    match profile {
        Some(profile) => Profile::parse(SECCOMP, profile),
        None => Profile::parse_deprecated(SECCOMP, deprecated),
    }
}

/// A seccomp or AppArmor profile as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Profile {
    RuntimeDefault,
    Unconfined,
    Localhost(String),
}

impl Profile {
    fn parse(field: &str, profile: &SecurityProfile) -> Result<Self, SpecError> {
        match ProfileType::try_from(profile.profile_type) {
            Ok(ProfileType::RuntimeDefault) => Ok(Profile::RuntimeDefault),
            Ok(ProfileType::Unconfined) => Ok(Profile::Unconfined),
            Ok(ProfileType::Localhost) => Self::localhost(field, &profile.localhost_ref),
            Err(_unknown) => {
                let rule = "profile_type must be a value of its enum";
                Err(SpecError::invalid(field, profile.profile_type, rule))
            }
        }
    }

    /// The string form of before the SecurityProfile message, which stands where that message is absent.
    fn parse_deprecated(field: &str, profile: &str) -> Result<Self, SpecError> {
        match profile {
            "" | "unconfined" => Ok(Profile::Unconfined),
            "runtime/default" | "docker/default" => Ok(Profile::RuntimeDefault),
            other => match other.strip_prefix("localhost/") {
                Some(reference) => Self::localhost(field, reference),
                None => Err(SpecError::invalid(
                    field,
                    other,
                    "must be unconfined, runtime/default or localhost/PROFILE",
                )),
            },
        }
    }

    /// An empty reference must never come to mean unconfined (CVE-2023-2431).
    fn localhost(field: &str, reference: &str) -> Result<Self, SpecError> {
        if reference.is_empty() {
            return Err(SpecError::invalid(field, reference, "Localhost needs a localhost_ref"));
        }
        Ok(Profile::Localhost(reference.to_owned()))
    }

    fn not_built(self, field: &str) -> SpecError {
        let value = match self {
            Profile::RuntimeDefault => "RuntimeDefault".to_owned(),
            Profile::Unconfined => "Unconfined".to_owned(),
            Profile::Localhost(reference) => format!("Localhost {reference}"),
        };
        SpecError::unimplemented(field, value, "profiles other than Unconfined are not supported yet")
    }
}

#[cfg(test)]
mod tests {
    use corten_proto::cri::{LinuxContainerConfig, LinuxPodSandboxConfig};

    use super::super::Kind;
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

    fn profile(kind: ProfileType, reference: &str) -> Option<SecurityProfile> {
        Some(SecurityProfile {
            profile_type: kind.into(),
            localhost_ref: reference.into(),
        })
    }

    /// Field and kind of the refusal.
    fn refused(context: LinuxContainerSecurityContext) -> Option<(String, Kind)> {
        let sandbox = sandbox(LinuxSandboxSecurityContext::default());
        check_container(&container(context), &sandbox)
            .err()
            .map(|e| (e.field, e.kind))
    }

    #[test]
    fn seccomp_profiles() {
        let seccomp = |seccomp| LinuxContainerSecurityContext {
            seccomp,
            ..Default::default()
        };
        let kind = |kind| Some((SECCOMP.to_owned(), kind));
        assert_eq!(refused(seccomp(None)), None);
        assert_eq!(refused(seccomp(profile(ProfileType::Unconfined, ""))), None);
        for (seccomp_profile, expected) in [
            (profile(ProfileType::RuntimeDefault, ""), Kind::Unimplemented),
            (profile(ProfileType::Localhost, "/x.json"), Kind::Unimplemented),
            (profile(ProfileType::Localhost, ""), Kind::Invalid),
            (
                Some(SecurityProfile {
                    profile_type: 9,
                    ..Default::default()
                }),
                Kind::Invalid,
            ),
        ] {
            assert_eq!(refused(seccomp(seccomp_profile)), kind(expected));
        }
    }

    #[test]
    #[expect(deprecated, reason = "the strings stand where the messages are absent")]
    fn deprecated_strings() {
        for (text, expected) in [
            ("", None),
            ("unconfined", None),
            ("runtime/default", Some(Kind::Unimplemented)),
            ("docker/default", Some(Kind::Unimplemented)),
            ("localhost//x.json", Some(Kind::Unimplemented)),
            ("localhost/", Some(Kind::Invalid)),
            ("other", Some(Kind::Invalid)),
        ] {
            let seccomp = LinuxContainerSecurityContext {
                seccomp_profile_path: text.into(),
                ..Default::default()
            };
            let apparmor = LinuxContainerSecurityContext {
                apparmor_profile: text.into(),
                ..Default::default()
            };
            let newer = LinuxContainerSecurityContext {
                seccomp: profile(ProfileType::Unconfined, ""),
                ..seccomp.clone()
            };
            assert_eq!(refused(seccomp).map(|(_, kind)| kind), expected, "{text}");
            assert_eq!(refused(apparmor).map(|(_, kind)| kind), expected, "{text}");
            assert_eq!(refused(newer), None, "the message goes before the string");
        }
    }

    #[test]
    fn privileged_needs_a_privileged_sandbox_and_ignores_seccomp() {
        let context = LinuxContainerSecurityContext {
            privileged: true,
            seccomp: profile(ProfileType::RuntimeDefault, ""),
            ..Default::default()
        };
        assert_eq!(refused(context.clone()), Some((PRIVILEGED.into(), Kind::Invalid)));
        let privileged = sandbox(LinuxSandboxSecurityContext {
            privileged: true,
            ..Default::default()
        });
        assert_eq!(check_container(&container(context), &privileged), Ok(()));
    }

    #[test]
    fn labels_and_paths() {
        let labels = LinuxContainerSecurityContext {
            selinux_options: Some(SeLinuxOption {
                level: "s0".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(refused(labels), Some((SELINUX.into(), Kind::Unimplemented)));
        let empty = LinuxContainerSecurityContext {
            selinux_options: Some(SeLinuxOption::default()),
            ..Default::default()
        };
        assert_eq!(refused(empty), None);
        let relative = LinuxContainerSecurityContext {
            masked_paths: vec!["proc/kcore".into()],
            ..Default::default()
        };
        assert_eq!(refused(relative).map(|(_, kind)| kind), Some(Kind::Invalid));
    }

    #[test]
    fn a_sandbox_takes_the_default_profile_for_its_infra_container() {
        let seccomp = |seccomp| LinuxSandboxSecurityContext {
            seccomp,
            ..Default::default()
        };
        let default = profile(ProfileType::RuntimeDefault, "");
        assert_eq!(check_sandbox(&sandbox(seccomp(default))), Ok(()));
        let local = profile(ProfileType::Localhost, "/x.json");
        let error = check_sandbox(&sandbox(seccomp(local))).unwrap_err();
        assert_eq!(error.kind, Kind::Unimplemented);
    }
}
