//! Which seccomp or AppArmor profile is asked for: the message, or the string from before it. Pure.

use corten_proto::cri::SecurityProfile;
use corten_proto::cri::security_profile::ProfileType;

use super::SpecError;

/// A profile as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Profile {
    /// The one of ours.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// The node's: a file for seccomp, a loaded profile's name for AppArmor; not empty.
    Localhost(String),
}

impl Profile {
    /// The message's, and where that is absent the deprecated string's. `absent` is what an empty string means.
    pub(super) fn asked(
        field: &str,
        message: Option<&SecurityProfile>,
        deprecated: &str,
        absent: Profile,
    ) -> Result<Profile, SpecError> {
        match message {
            Some(message) => Self::parse(field, message),
            None if deprecated.is_empty() => Ok(absent),
            None => Self::parse_deprecated(field, deprecated),
        }
    }

    fn parse(field: &str, message: &SecurityProfile) -> Result<Profile, SpecError> {
        match ProfileType::try_from(message.profile_type) {
            Ok(ProfileType::RuntimeDefault) => Ok(Profile::RuntimeDefault),
            Ok(ProfileType::Unconfined) => Ok(Profile::Unconfined),
            Ok(ProfileType::Localhost) => Self::localhost(field, &message.localhost_ref),
            Err(_unknown) => {
                let rule = "profile_type must be a value of its enum";
                Err(SpecError::invalid(field, message.profile_type, rule))
            }
        }
    }

    fn parse_deprecated(field: &str, profile: &str) -> Result<Profile, SpecError> {
        match (profile, profile.strip_prefix("localhost/")) {
            ("unconfined", _) => Ok(Profile::Unconfined),
            ("runtime/default" | "docker/default", _) => Ok(Profile::RuntimeDefault),
            (_, Some(reference)) => Self::localhost(field, reference),
            (other, None) => {
                let rule = "must be unconfined, runtime/default or localhost/PROFILE";
                Err(SpecError::invalid(field, other, rule))
            }
        }
    }

    /// An empty reference must never come to mean unconfined (CVE-2023-2431).
    fn localhost(field: &str, reference: &str) -> Result<Profile, SpecError> {
        if reference.is_empty() || reference.contains(['\0', '\n']) {
            let rule = "Localhost needs a localhost_ref of one line";
            return Err(SpecError::invalid(field, reference, rule));
        }
        Ok(Profile::Localhost(reference.to_owned()))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Kind;
    use super::*;

    /// A message of this type.
    pub(in crate::spec) fn message(kind: ProfileType, reference: &str) -> SecurityProfile {
        SecurityProfile {
            profile_type: kind.into(),
            localhost_ref: reference.into(),
        }
    }

    #[test]
    fn messages_go_before_strings() {
        let asked = |message: Option<SecurityProfile>, deprecated: &str| {
            Profile::asked("f", message.as_ref(), deprecated, Profile::Unconfined).map_err(|error| error.kind)
        };
        let localhost = |name: &str| Ok(Profile::Localhost(name.into()));
        for (profile, deprecated, expected) in [
            (None, "", Ok(Profile::Unconfined)),
            (None, "unconfined", Ok(Profile::Unconfined)),
            (None, "runtime/default", Ok(Profile::RuntimeDefault)),
            (None, "docker/default", Ok(Profile::RuntimeDefault)),
            (None, "localhost//x.json", localhost("/x.json")),
            (None, "localhost/mine", localhost("mine")),
            (None, "localhost/", Err(Kind::Invalid)),
            (None, "localhost/a\nb", Err(Kind::Invalid)),
            (None, "default", Err(Kind::Invalid)),
            (
                Some(SecurityProfile::default()),
                "unconfined",
                Ok(Profile::RuntimeDefault),
            ),
            (
                Some(message(ProfileType::Unconfined, "")),
                "runtime/default",
                Ok(Profile::Unconfined),
            ),
            (Some(message(ProfileType::Localhost, "a")), "", localhost("a")),
            (
                Some(message(ProfileType::Localhost, "")),
                "unconfined",
                Err(Kind::Invalid),
            ),
            (
                Some(SecurityProfile {
                    profile_type: 9,
                    ..Default::default()
                }),
                "",
                Err(Kind::Invalid),
            ),
        ] {
            assert_eq!(
                asked(profile.clone(), deprecated),
                expected,
                "{profile:?} {deprecated:?}"
            );
        }
    }

    #[test]
    fn what_an_empty_string_means_is_the_callers() {
        let default = Profile::asked("f", None, "", Profile::RuntimeDefault);
        assert_eq!(default, Ok(Profile::RuntimeDefault));
    }
}
