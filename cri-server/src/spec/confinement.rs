//! What confines a process beyond its capabilities: the seccomp filter and the AppArmor profile, resolved against the
//! node.
//!
//! | asked for | seccomp | AppArmor, where it is enabled |
//! |---|---|---|
//! | nothing | none (`security.unset_seccomp_profile`) | RuntimeDefault |
//! | RuntimeDefault | `seccomp/default.toml` | `corten-default` |
//! | Localhost | that file; an error if it is no profile | that profile; an error if it is not loaded |
//! | Unconfined | none | `unconfined` |
//! | privileged | none | `unconfined`, but for Localhost |
//!
//! Where AppArmor is not enabled Localhost is refused and everything else has no effect, as with the peers. SELinux labels
//! have no effect where SELinux is off; where it is on they are refused ([`security`]).

use corten_proto::cri::{ContainerConfig, PodSandboxConfig, SecurityProfile};
use oci_spec::runtime::LinuxSeccomp;

use super::profile::Profile;
use super::{Host, SpecError, capabilities, seccomp, security};
use crate::apparmor;
use crate::config::{Security, UnsetSeccompProfile};

const APPARMOR: &str = "linux.security_context.apparmor";

impl From<UnsetSeccompProfile> for Profile {
    fn from(unset: UnsetSeccompProfile) -> Profile {
        match unset {
            UnsetSeccompProfile::Unconfined => Profile::Unconfined,
            UnsetSeccompProfile::RuntimeDefault => Profile::RuntimeDefault,
        }
    }
}

/// What a spec's process is confined by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Confinement {
    /// The filter; none for every call.
    pub seccomp: Option<LinuxSeccomp>,
    /// Name of the AppArmor profile; none where AppArmor is off.
    pub apparmor: Option<String>,
}

impl Confinement {
    /// A container's. Reads profiles of the node. Blocks.
    pub fn of_container(config: &ContainerConfig, host: &Host, defaults: &Security) -> Result<Confinement, SpecError> {
        let context = security::context(config).cloned().unwrap_or_default();
        let (seccomp_string, apparmor_string) = security::deprecated(&context);
        let seccomp = match context.privileged {
            true => None,
            false => {
                let absent = defaults.unset_seccomp_profile.into();
                let asked = Profile::asked(seccomp::FIELD, context.seccomp.as_ref(), seccomp_string, absent)?;
                seccomp_filter(asked, || capabilities::bounding(config, host))?
            }
        };
        Ok(Confinement {
            seccomp,
            apparmor: apparmor_profile(context.apparmor.as_ref(), apparmor_string, context.privileged, host)?,
        })
    }

    /// That of a sandbox's infra container, which has no capabilities.
    pub fn of_sandbox(config: &PodSandboxConfig, host: &Host, defaults: &Security) -> Result<Confinement, SpecError> {
        let context = security::sandbox_context(config).cloned().unwrap_or_default();
        #[expect(deprecated, reason = "it stands where the message is absent")]
        let seccomp_string = &context.seccomp_profile_path;
        let seccomp = match context.privileged {
            true => None,
            false => {
                let absent = defaults.unset_seccomp_profile.into();
                let asked = Profile::asked(seccomp::FIELD, context.seccomp.as_ref(), seccomp_string, absent)?;
                seccomp_filter(asked, || Ok(Default::default()))?
            }
        };
        Ok(Confinement {
            seccomp,
            apparmor: apparmor_profile(context.apparmor.as_ref(), "", context.privileged, host)?,
        })
    }
}

/// Refuses by the request alone.
pub(super) fn check(
    seccomp: (Option<&SecurityProfile>, &str),
    apparmor: (Option<&SecurityProfile>, &str),
    privileged: bool,
) -> Result<(), SpecError> {
    Profile::asked(APPARMOR, apparmor.0, apparmor.1, Profile::RuntimeDefault)?;
    if privileged {
        // Whatever the field says (api.proto, privileged).
        return Ok(());
    }
    match Profile::asked(seccomp::FIELD, seccomp.0, seccomp.1, Profile::Unconfined)? {
        Profile::Localhost(path) => seccomp::check_reference(&path),
        _ => Ok(()),
    }
}

type Bounding = std::collections::BTreeSet<super::CapabilityName>;

fn seccomp_filter(
    asked: Profile,
    bounding: impl FnOnce() -> Result<Bounding, SpecError>,
) -> Result<Option<LinuxSeccomp>, SpecError> {
    match asked {
        Profile::Unconfined => Ok(None),
        Profile::RuntimeDefault => Ok(Some(seccomp::runtime_default(&bounding()?))),
        Profile::Localhost(path) => seccomp::read(&path).map(Some),
    }
}

fn apparmor_profile(
    message: Option<&SecurityProfile>,
    deprecated: &str,
    privileged: bool,
    host: &Host,
) -> Result<Option<String>, SpecError> {
    let asked = Profile::asked(APPARMOR, message, deprecated, Profile::RuntimeDefault)?;
    if !host.apparmor {
        return match asked {
            Profile::Localhost(name) => {
                let rule = "AppArmor is not enabled on this node, so that no profile of it can be used";
                Err(SpecError::invalid(APPARMOR, name, rule))
            }
            Profile::RuntimeDefault | Profile::Unconfined => Ok(None),
        };
    }
    let failed = |name: &str, error: anyhow::Error| SpecError::failed(APPARMOR, name, format!("{error:#}"));
    match asked {
        Profile::Localhost(name) => match apparmor::is_loaded(&name).map_err(|error| failed(&name, error))? {
            true => Ok(Some(name)),
            false => Err(SpecError::invalid(
                APPARMOR,
                name,
                "the profile must be loaded on this node",
            )),
        },
        Profile::RuntimeDefault if !privileged => {
            apparmor::ensure_default().map_err(|error| failed(apparmor::DEFAULT, error))?;
            Ok(Some(apparmor::DEFAULT.to_owned()))
        }
        Profile::RuntimeDefault | Profile::Unconfined => Ok(Some(apparmor::UNCONFINED.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use corten_proto::cri::security_profile::ProfileType;
    use corten_proto::cri::{LinuxContainerConfig, LinuxContainerSecurityContext};

    use super::super::host::tests::host;
    use super::super::profile::tests::message;
    use super::*;

    fn of(context: LinuxContainerSecurityContext, defaults: &Security) -> Result<Confinement, SpecError> {
        let config = ContainerConfig {
            linux: Some(LinuxContainerConfig {
                security_context: Some(context),
                ..Default::default()
            }),
            ..Default::default()
        };
        Confinement::of_container(&config, &host(), defaults)
    }

    #[test]
    fn seccomp() {
        let with = |kind: Option<ProfileType>, privileged| LinuxContainerSecurityContext {
            seccomp: kind.map(|kind| message(kind, "/none.json")),
            privileged,
            ..Default::default()
        };
        let filtered = |context| of(context, &Security::default()).map(|it| it.seccomp.is_some());
        assert_eq!(filtered(with(None, false)), Ok(false));
        assert_eq!(filtered(with(Some(ProfileType::RuntimeDefault), false)), Ok(true));
        assert_eq!(filtered(with(Some(ProfileType::Unconfined), false)), Ok(false));
        assert_eq!(filtered(with(Some(ProfileType::RuntimeDefault), true)), Ok(false));
        assert_eq!(
            filtered(with(Some(ProfileType::Localhost), true)),
            Ok(false),
            "never read"
        );
        assert_eq!(
            filtered(with(Some(ProfileType::Localhost), false)).unwrap_err().field,
            seccomp::FIELD
        );
    }

    #[test]
    fn what_an_absent_seccomp_profile_means_is_configured() {
        let defaults = Security {
            unset_seccomp_profile: UnsetSeccompProfile::RuntimeDefault,
            ..Default::default()
        };
        let filtered = |context| of(context, &defaults).unwrap().seccomp.is_some();
        assert!(filtered(LinuxContainerSecurityContext::default()));
        assert!(!filtered(LinuxContainerSecurityContext {
            seccomp: Some(message(ProfileType::Unconfined, "")),
            ..Default::default()
        }));
        assert!(!filtered(LinuxContainerSecurityContext {
            privileged: true,
            ..Default::default()
        }));
    }

    #[test]
    fn a_profile_s_calls_follow_the_capabilities() {
        let with = |add: &[&str]| LinuxContainerSecurityContext {
            seccomp: Some(SecurityProfile::default()),
            capabilities: Some(corten_proto::cri::Capability {
                add_capabilities: add.iter().map(|&name| name.to_owned()).collect(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let text = |add: &[&str]| serde_json::to_string(&of(with(add), &Security::default()).unwrap().seccomp).unwrap();
        assert!(!text(&[]).contains("\"umount2\"") && text(&["SYS_ADMIN"]).contains("\"umount2\""));
        assert!(text(&[]).contains("\"chroot\""), "one of the fourteen");
    }

    #[test]
    fn apparmor_where_it_is_off() {
        let with = |kind: Option<ProfileType>, name: &str, privileged| LinuxContainerSecurityContext {
            apparmor: kind.map(|kind| message(kind, name)),
            privileged,
            ..Default::default()
        };
        let name = |context| of(context, &Security::default()).map(|it| it.apparmor);
        for kind in [None, Some(ProfileType::RuntimeDefault), Some(ProfileType::Unconfined)] {
            assert_eq!(name(with(kind, "", false)), Ok(None));
        }
        for privileged in [false, true] {
            let error = name(with(Some(ProfileType::Localhost), "mine", privileged)).unwrap_err();
            assert_eq!((error.field.as_str(), error.value.as_str()), (APPARMOR, "mine"));
        }
        #[expect(deprecated, reason = "older clients send nothing else")]
        let deprecated = LinuxContainerSecurityContext {
            apparmor_profile: "localhost/mine".into(),
            ..Default::default()
        };
        assert!(name(deprecated).is_err());
    }
}
