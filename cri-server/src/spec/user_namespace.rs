//! The ids of a pod with a user namespace of its own: one range of the node's users and one of its groups, from the
//! pod's 0 on. Pure.

use corten_proto::cri::{IdMapping, NamespaceMode, UserNamespace};

use super::{Host, SpecError, User};

const FIELD: &str = "linux.security_context.namespace_options.userns_options";

/// A pod's ids, which are 0 to `length` - 1 inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// The node's uid that is the pod's root.
    pub uid: u32,
    /// The node's gid that is the pod's group 0.
    pub gid: u32,
    /// How many of each; at least one.
    pub length: u32,
}

/// The map of a request; none for the node's user namespace. An absent message means that too, whatever its default mode
/// says: the kubelet and both peers read it so.
pub(super) fn parse(options: Option<&UserNamespace>) -> Result<Option<IdMap>, SpecError> {
    let Some(options) = options else {
        return Ok(None);
    };
    let mode = |value: &str, rule: &str| Err(SpecError::invalid(format!("{FIELD}.mode"), value, rule));
    match NamespaceMode::try_from(options.mode) {
        Ok(NamespaceMode::Node) if options.uids.is_empty() && options.gids.is_empty() => Ok(None),
        Ok(NamespaceMode::Node) => mode("NODE", "excludes uid and gid mappings"),
        Ok(NamespaceMode::Pod) => pod(options).map(Some),
        Ok(other) => mode(other.as_str_name(), "must be POD or NODE"),
        Err(_unknown) => mode(&options.mode.to_string(), "must be POD or NODE"),
    }
}

fn pod(options: &UserNamespace) -> Result<IdMap, SpecError> {
    let (uids, gids) = (single("uids", &options.uids)?, single("gids", &options.gids)?);
    if uids.length != gids.length {
        let rule = format!("must be as long as that of uids, {}", uids.length);
        return Err(SpecError::invalid(format!("{FIELD}.gids[0].length"), gids.length, rule));
    }
    Ok(IdMap {
        uid: uids.host_id,
        gid: gids.host_id,
        length: uids.length,
    })
}

/// The one mapping of a list.
fn single(name: &str, mappings: &[IdMapping]) -> Result<IdMapping, SpecError> {
    let &[mapping] = mappings else {
        let rule = "must be exactly one mapping";
        return Err(SpecError::invalid(format!("{FIELD}.{name}"), mappings.len(), rule));
    };
    let invalid = |field: &str, value: u32, rule: &str| {
        Err(SpecError::invalid(format!("{FIELD}.{name}[0].{field}"), value, rule))
    };
    if mapping.container_id != 0 {
        return invalid("container_id", mapping.container_id, "must be 0: the pod needs a root");
    }
    // The highest id, 2^32 - 1, means "no change" to the kernel's calls.
    match mapping.host_id.checked_add(mapping.length) {
        Some(_) if mapping.length > 0 => Ok(mapping),
        _ => invalid(
            "length",
            mapping.length,
            "must be at least 1, and all ids below 4294967295",
        ),
    }
}

/// Refuses a pod with ids of its own on a node that cannot have them.
pub fn check_node(host: &Host) -> Result<(), SpecError> {
    if host.user_namespaces {
        return Ok(());
    }
    let rule = "needs Linux 5.19, and sysctl user.max_user_namespaces above 0";
    Err(SpecError::unimplemented(format!("{FIELD}.mode"), "POD", rule))
}

/// Refuses a process whose user or groups have no id on the node.
pub(super) fn check_user(map: Option<IdMap>, user: &User) -> Result<(), SpecError> {
    let Some(map) = map else {
        return Ok(());
    };
    let groups = std::iter::once(&user.gid).chain(&user.additional_gids);
    let highest = groups.chain([&user.uid]).copied().max().unwrap_or_default();
    if highest < map.length {
        return Ok(());
    }
    let rule = format!(
        "users and groups of a pod with a user namespace must be below its length, {}",
        map.length
    );
    Err(SpecError::invalid("the process's user", highest, rule))
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::*;

    fn mapping(container_id: u32, host_id: u32, length: u32) -> IdMapping {
        IdMapping {
            host_id,
            container_id,
            length,
        }
    }

    #[test]
    fn maps() {
        let of = |mode: NamespaceMode, uids: &[IdMapping], gids: &[IdMapping]| {
            let options = UserNamespace {
                mode: mode.into(),
                uids: uids.to_vec(),
                gids: gids.to_vec(),
            };
            parse(Some(&options)).map_err(|error| (error.field.replace(FIELD, ""), error.kind))
        };
        use NamespaceMode::{Container, Node, Pod, Target};
        let good = mapping(0, 65536, 65536);
        let map = |uid, gid, length| Ok(Some(IdMap { uid, gid, length }));
        let wrong = |field: &str| Err((field.to_owned(), Kind::Invalid));
        for (mode, uids, gids, expected) in [
            (Node, &[][..], &[][..], Ok(None)),
            (Node, &[good], &[good], wrong(".mode")),
            (Pod, &[good], &[good], map(65536, 65536, 65536)),
            (Pod, &[mapping(0, 1, 9)], &[mapping(0, 2, 9)], map(1, 2, 9)),
            (Pod, &[], &[], wrong(".uids")),
            (Pod, &[good], &[], wrong(".gids")),
            (Pod, &[good, good], &[good], wrong(".uids")),
            (
                Pod,
                &[mapping(1, 65536, 65536)],
                &[good],
                wrong(".uids[0].container_id"),
            ),
            (Pod, &[good], &[mapping(0, 65536, 65535)], wrong(".gids[0].length")),
            (Pod, &[mapping(0, 65536, 0)], &[good], wrong(".uids[0].length")),
            (Pod, &[mapping(0, u32::MAX, 1)], &[good], wrong(".uids[0].length")),
            (Container, &[good], &[good], wrong(".mode")),
            (Target, &[], &[], wrong(".mode")),
        ] {
            assert_eq!(of(mode, uids, gids), expected, "{mode:?} {uids:?} {gids:?}");
        }
        assert_eq!(parse(None), Ok(None));
    }

    #[test]
    fn nodes() {
        let node = super::super::host::tests::host();
        assert_eq!(check_node(&node), Ok(()));
        let old = Host {
            user_namespaces: false,
            ..node
        };
        assert_eq!(check_node(&old).unwrap_err().kind, Kind::Unimplemented);
    }

    #[test]
    fn users_outside() {
        let map = Some(IdMap {
            uid: 65536,
            gid: 65536,
            length: 1000,
        });
        let user = |uid, gid, group| User {
            uid,
            gid,
            additional_gids: vec![group],
        };
        for (user, good) in [
            (user(0, 0, 0), true),
            (user(999, 999, 999), true),
            (user(1000, 0, 0), false),
            (user(0, 1000, 0), false),
            (user(0, 0, 1000), false),
        ] {
            assert_eq!(check_user(map, &user).is_ok(), good, "{user:?}");
            assert_eq!(check_user(None, &user), Ok(()));
        }
    }
}
