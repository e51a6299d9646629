//! The mounts of a container: the kernel's filesystems, the sandbox's files, the request's. Pure.
//!
//! One list, ordered by depth of the mount point, so that no mount hides one made before it. A mount of the request
//! replaces the default at the same place; one on `/dev` or `/sys` also replaces the defaults below.
//! `/etc/hosts` is not among the defaults: the kubelet mounts its own.

use std::path::{Path, PathBuf};

use corten_proto::cri::{ContainerConfig, IdMapping, Mount as Requested, MountPropagation, NamespaceMode};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount, MountBuilder};

use super::host_paths::MountSource;
use super::mountinfo::Propagation;
use super::{ContainerSpecInput, SpecError, namespaces, security};

/// Refuses mounts that break a rule, or that need what is not built.
pub(super) fn check(config: &ContainerConfig) -> Result<(), SpecError> {
    let mut mounts = config.mounts.iter().enumerate();
    mounts.try_for_each(|(index, mount)| check_one(index, mount))
}

fn check_one(index: usize, mount: &Requested) -> Result<(), SpecError> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    let place = super::absolute(&field("container_path"), &mount.container_path)?;
    if place == Path::new("/") {
        let rule = "must not be the root itself";
        return Err(SpecError::invalid(field("container_path"), &mount.container_path, rule));
    }
    match &mount.image {
        Some(image) => check_image(mount, &image.image, field)?,
        None if !mount.image_sub_path.is_empty() => {
            let rule = "must be empty without image";
            return Err(SpecError::invalid(field("image_sub_path"), &mount.image_sub_path, rule));
        }
        None => drop(super::absolute(&field("host_path"), &mount.host_path)?),
    }
    id_mappings(mount, field)?;
    restrictions(mount, field)?;
    let propagation = propagation(index, mount)?;
    let alone = mount.readonly && propagation == MountPropagation::PropagationPrivate;
    if mount.recursive_read_only && !alone {
        let rule = "needs readonly, and propagation PRIVATE";
        return Err(SpecError::invalid(field("recursive_read_only"), true, rule));
    }
    Ok(())
}

/// The rules of an image volume.
fn check_image(mount: &Requested, image: &str, field: impl Fn(&str) -> String) -> Result<(), SpecError> {
    if image.is_empty() {
        return Err(SpecError::invalid(field("image.image"), image, "must name an image"));
    }
    if !mount.host_path.is_empty() {
        let rule = "must be empty with image";
        return Err(SpecError::invalid(field("host_path"), &mount.host_path, rule));
    }
    if !mount.readonly {
        return Err(SpecError::invalid(field("readonly"), false, "must be true with image"));
    }
    let sub_path = &mount.image_sub_path;
    if sub_path.contains('\0') || sub_path.split('/').any(|part| part == "..") {
        let rule = "must be a path without .. and NUL";
        return Err(SpecError::invalid(field("image_sub_path"), sub_path, rule));
    }
    Ok(())
}

/// Options that take something away, and those that would give it back.
const RESTRICTIONS: [(&str, &str); 3] = [("noexec", "exec"), ("nodev", "dev"), ("nosuid", "suid")];

/// The mount options of the request, each once. One that contradicts another is dropped in favour of the stricter; alone it
/// is refused: a bind has its source's restrictions, and a request must not lift them.
fn restrictions(mount: &Requested, field: impl Fn(&str) -> String) -> Result<Vec<&'static str>, SpecError> {
    let asked = |option: &str| mount.mount_options.iter().any(|it| it == option);
    let known = |option: &String| {
        let loosens = RESTRICTIONS.iter().find(|(_, loose)| option == loose);
        RESTRICTIONS.iter().any(|(strict, _)| option == strict) || loosens.is_some_and(|(strict, _)| asked(strict))
    };
    if let Some(option) = mount.mount_options.iter().find(|option| !known(option)) {
        let rule = "must be noexec, nodev or nosuid";
        return Err(SpecError::invalid(field("mount_options"), option, rule));
    }
    let strict = RESTRICTIONS.iter().map(|(strict, _)| *strict);
    Ok(strict.filter(|strict| asked(strict)).collect())
}

/// Mappings of users and of groups, neither of them empty.
type IdMappings = (Vec<LinuxIdMapping>, Vec<LinuxIdMapping>);

/// The request's mappings of the ids in the files; none for an image volume, whose files have the pod's ids already.
fn id_mappings(mount: &Requested, field: impl Fn(&str) -> String) -> Result<Option<IdMappings>, SpecError> {
    let (uids, gids) = (&mount.uid_mappings, &mount.gid_mappings);
    if mount.image.is_some() || (uids.is_empty() && gids.is_empty()) {
        return Ok(None);
    }
    for (name, own, other) in [
        ("uidMappings", uids, "gidMappings"),
        ("gidMappings", gids, "uidMappings"),
    ] {
        if own.is_empty() {
            let rule = format!("must be there beside {other}");
            return Err(SpecError::invalid(field(name), "", rule));
        }
        let past_the_end = |from: u32, length: u32| from.checked_add(length).is_none();
        let broken = |it: &&IdMapping| {
            it.length == 0 || past_the_end(it.host_id, it.length) || past_the_end(it.container_id, it.length)
        };
        if let Some(mapping) = own.iter().find(broken) {
            let rule = "each must have a length, and end below 2^32";
            return Err(SpecError::invalid(field(name), format!("{mapping:?}"), rule));
        }
    }
    Ok(Some((oci_mappings(uids), oci_mappings(gids))))
}

fn oci_mappings(mappings: &[IdMapping]) -> Vec<LinuxIdMapping> {
    let mapping = |it: &IdMapping| {
        LinuxIdMappingBuilder::default()
            .host_id(it.host_id)
            .container_id(it.container_id)
            .size(it.length)
            .build()
            .expect("every field of the builder has a default")
    };
    mappings.iter().map(mapping).collect()
}

fn propagation(index: usize, mount: &Requested) -> Result<MountPropagation, SpecError> {
    MountPropagation::try_from(mount.propagation).map_err(|_unknown| {
        let field = format!("mounts[{index}].propagation");
        SpecError::invalid(field, mount.propagation, "must be a value of the enum MountPropagation")
    })
}

/// The whole list.
pub(super) fn of(input: &ContainerSpecInput<'_>) -> Result<Vec<Mount>, SpecError> {
    let requested = input
        .config
        .mounts
        .iter()
        .zip(&input.sources.mounts)
        .enumerate()
        .map(|(index, (mount, source))| one(index, mount, source, input))
        .collect::<Result<Vec<_>, _>>()?;
    let mut all = defaults(input)?;
    all.retain(|default| {
        !requested
            .iter()
            .any(|mount| replaces(mount.destination(), default.destination()))
    });
    all.extend(requested);
    // Stable: of two mounts at one depth the earlier stays first.
    all.sort_by_key(|mount| mount.destination().components().count());
    Ok(all)
}

/// A mount of the request at `place` takes the part of the default mount at `default`.
fn replaces(place: &Path, default: &Path) -> bool {
    let whole = [Path::new("/dev"), Path::new("/sys")].contains(&place);
    place == default || (whole && default.starts_with(place))
}

/// What `linux.rootfsPropagation` must be for the mounts to propagate: a mount can receive and send only inside a
/// tree that does.
pub(super) fn rootfs_propagation(config: &ContainerConfig) -> Option<&'static str> {
    let any = |wanted: MountPropagation| config.mounts.iter().any(|mount| mount.propagation == i32::from(wanted));
    if any(MountPropagation::PropagationBidirectional) {
        return Some("rshared");
    }
    any(MountPropagation::PropagationHostToContainer).then_some("rslave")
}

fn one(
    index: usize,
    mount: &Requested,
    source: &MountSource,
    input: &ContainerSpecInput<'_>,
) -> Result<Mount, SpecError> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    let propagation = propagation_option(propagation(index, mount)?, source.propagation)
        .map_err(|(mode, rule)| SpecError::invalid(field("propagation"), mode, rule))?;
    if mount.selinux_relabel && input.host.selinux {
        let rule = "SELinux labels are not supported yet";
        return Err(SpecError::unimplemented(field("selinux_relabel"), true, rule));
    }
    let access = match (mount.recursive_read_only, mount.readonly) {
        (true, _) if !input.host.recursive_read_only || !input.features.recursive_read_only => {
            let rule = "RROUnsupported: needs Linux 5.12, and a runtime that knows the mount option rro";
            return Err(SpecError::unimplemented(field("recursive_read_only"), true, rule));
        }
        (true, _) => "rro",
        (false, true) => "ro",
        (false, false) => "rw",
    };
    let place = super::absolute(&field("container_path"), &mount.container_path)?;
    let mut options = vec![propagation, access];
    options.extend(restrictions(mount, field)?);
    let mut result = bind(&source.path, &place, &options);
    if let Some((uids, gids)) = id_mappings(mount, field)? {
        if !input.features.idmapped_mounts {
            let rule = "the runtime of the pod's handler does not map the ids of mounts";
            return Err(SpecError::unimplemented(field("uidMappings"), uids.len(), rule));
        }
        result.set_uid_mappings(Some(uids)).set_gid_mappings(Some(gids));
    }
    Ok(result)
}

/// The mount option of a mode, for a source in a mount that propagates so; else the mode's name and its rule.
fn propagation_option(
    mode: MountPropagation,
    source: Propagation,
) -> Result<&'static str, (&'static str, &'static str)> {
    use MountPropagation::{PropagationBidirectional, PropagationHostToContainer};
    match (mode, source) {
        (MountPropagation::PropagationPrivate, _) => Ok("rprivate"),
        (PropagationHostToContainer, Propagation::Shared | Propagation::Slave) => Ok("rslave"),
        (PropagationBidirectional, Propagation::Shared) => Ok("rshared"),
        (PropagationHostToContainer, Propagation::Private) => {
            let rule = "the mount that holds host_path must be shared or slave";
            Err((mode.as_str_name(), rule))
        }
        (PropagationBidirectional, _) => Err((mode.as_str_name(), "the mount that holds host_path must be shared")),
    }
}

/// What every container has.
fn defaults(input: &ContainerSpecInput<'_>) -> Result<Vec<Mount>, SpecError> {
    let privileged = security::is_privileged(input.config);
    // A privileged container may write to both (api.proto, privileged).
    let system = if privileged { "rw" } else { "ro" };
    // The sandbox's files follow the root: read-only with it.
    let access = if security::context(input.config).is_some_and(|it| it.readonly_rootfs) {
        "ro"
    } else {
        "rw"
    };
    let modes = namespaces::of_container(input.config, input.sandbox_config)?;
    // The memory belongs to the ipc namespace: whoever has the node's has the node's /dev/shm.
    let shm = match modes.ipc {
        NamespaceMode::Node => PathBuf::from("/dev/shm"),
        _ => input.sandbox_dir.join("shm"),
    };
    let file = |name: &str| input.sandbox_dir.join(name);
    let mut mounts = kernel_filesystems(system);
    if modes.user.is_some() && modes.has_node_network() {
        mounts.retain(|mount| mount.destination() != Path::new("/sys"));
        mounts.push(node_sys());
    }
    mounts.extend([
        bind(&shm, Path::new("/dev/shm"), &["rprivate", "rw"]),
        bind(&file("hostname"), Path::new("/etc/hostname"), &["rprivate", access]),
        bind(
            &file("resolv.conf"),
            Path::new("/etc/resolv.conf"),
            &["rprivate", access],
        ),
    ]);
    Ok(mounts)
}

/// `/proc`, `/dev` and `/sys` with what lies in them, as runc's own default spec has them.
fn kernel_filesystems(system: &str) -> Vec<Mount> {
    vec![
        filesystem("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"]),
        dev(),
        filesystem("sysfs", "sysfs", "/sys", &["nosuid", "noexec", "nodev", system]),
        filesystem(
            "devpts",
            "devpts",
            "/dev/pts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        filesystem("mqueue", "mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        filesystem(
            "cgroup",
            "cgroup",
            "/sys/fs/cgroup",
            &["nosuid", "noexec", "nodev", "relatime", system],
        ),
    ]
}

/// The node's `/sys`, for a pod with the node's network and a user namespace of its own: nobody but the network's owner may
/// mount one. With all that is mounted below read-only too, as only the node's root may change it (KEP-5607).
fn node_sys() -> Mount {
    let options = &["rprivate", "rro", "rnosuid", "rnodev", "rnoexec"];
    bind(Path::new("/sys"), Path::new("/sys"), options)
}

/// The two filesystems the infra container has: no more, for each costs every pod a mount.
pub(super) fn infra() -> Vec<Mount> {
    vec![
        filesystem("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"]),
        dev(),
    ]
}

fn dev() -> Mount {
    let options = &["nosuid", "strictatime", "mode=755", "size=65536k"];
    filesystem("tmpfs", "tmpfs", "/dev", options)
}

fn filesystem(typ: &str, source: &str, place: &str, options: &[&str]) -> Mount {
    mount(typ, Path::new(source), Path::new(place), options.iter().copied())
}

fn bind(source: &Path, place: &Path, options: &[&str]) -> Mount {
    mount(
        "bind",
        source,
        place,
        ["rbind"].into_iter().chain(options.iter().copied()),
    )
}

fn mount<'a>(typ: &str, source: &Path, place: &Path, options: impl Iterator<Item = &'a str>) -> Mount {
    MountBuilder::default()
        .destination(place)
        .typ(typ)
        .source(source)
        .options(options.map(str::to_owned).collect::<Vec<_>>())
        .build()
        .expect("every field of the builder has a default")
}

#[cfg(test)]
mod tests {
    use corten_proto::cri::ImageSpec;

    use super::super::Kind;
    use super::*;

    fn requested(host: &str, container: &str) -> Requested {
        Requested {
            host_path: host.into(),
            container_path: container.into(),
            ..Default::default()
        }
    }

    #[test]
    fn refusals_name_the_field() {
        let good = requested("/data", "/data");
        for (mount, field, kind) in [
            (requested("/data", "data"), "container_path", Kind::Invalid),
            (requested("/data", "/x/.."), "container_path", Kind::Invalid),
            (requested("data", "/data"), "host_path", Kind::Invalid),
            (requested("", "/data"), "host_path", Kind::Invalid),
            (
                Requested {
                    uid_mappings: vec![IdMapping::default()],
                    ..good.clone()
                },
                "uidMappings",
                Kind::Invalid,
            ),
            (
                Requested {
                    uid_mappings: vec![IdMapping {
                        host_id: 1,
                        container_id: 0,
                        length: 1,
                    }],
                    ..good.clone()
                },
                "gidMappings",
                Kind::Invalid,
            ),
            (
                Requested {
                    mount_options: vec!["noexec".into(), "sync".into()],
                    ..good.clone()
                },
                "mount_options",
                Kind::Invalid,
            ),
            (
                Requested {
                    propagation: 7,
                    ..good.clone()
                },
                "propagation",
                Kind::Invalid,
            ),
            (
                Requested {
                    recursive_read_only: true,
                    ..good.clone()
                },
                "recursive_read_only",
                Kind::Invalid,
            ),
        ] {
            let error = check_one(3, &mount).unwrap_err();
            assert_eq!((error.field, error.kind), (format!("mounts[3].{field}"), kind));
        }
        assert_eq!(check_one(0, &good), Ok(()));
        let rro = Requested {
            readonly: true,
            recursive_read_only: true,
            ..good
        };
        assert_eq!(check_one(0, &rro), Ok(()));
    }

    #[test]
    fn options_restrict_and_never_loosen() {
        for (asked, expected) in [
            (&[][..], Some(&[][..])),
            (&["nosuid", "noexec"], Some(&["noexec", "nosuid"])),
            (&["exec", "noexec", "noexec"], Some(&["noexec"])),
            (&["nodev", "dev", "suid"], None),
            (&["exec"], None),
            (&["ro"], None),
            (&[""], None),
        ] {
            let mount = Requested {
                mount_options: asked.iter().map(|&option| option.to_owned()).collect(),
                ..requested("/data", "/data")
            };
            let found = restrictions(&mount, str::to_owned).ok();
            assert_eq!(found.as_deref(), expected, "{asked:?}");
        }
    }

    #[test]
    fn image_volumes_are_read_only_and_their_paths_stay_inside() {
        let good = requested("", "/volume");
        let volume = Requested {
            image: Some(ImageSpec {
                image: "sha256:0".into(),
                ..Default::default()
            }),
            image_sub_path: "a/b..c".into(),
            readonly: true,
            ..good.clone()
        };
        assert_eq!(check_one(0, &volume), Ok(()));
        for (mount, field) in [
            (
                Requested {
                    image: Some(ImageSpec::default()),
                    ..good.clone()
                },
                "image.image",
            ),
            (
                Requested {
                    host_path: "/data".into(),
                    ..volume.clone()
                },
                "host_path",
            ),
            (
                Requested {
                    readonly: false,
                    ..volume.clone()
                },
                "readonly",
            ),
            (
                Requested {
                    image_sub_path: "a/../../b".into(),
                    ..volume.clone()
                },
                "image_sub_path",
            ),
            (
                Requested {
                    image_sub_path: "a".into(),
                    ..good.clone()
                },
                "image_sub_path",
            ),
        ] {
            let error = check_one(0, &mount).unwrap_err();
            assert_eq!((error.field, error.kind), (format!("mounts[0].{field}"), Kind::Invalid));
        }
    }

    #[test]
    fn a_mount_takes_the_place_of_defaults() {
        for (place, default, expected) in [
            ("/dev/shm", "/dev/shm", true),
            ("/dev", "/dev/pts", true),
            ("/sys", "/sys/fs/cgroup", true),
            ("/etc", "/etc/hostname", false),
            ("/dev/shm/x", "/dev/shm", false),
        ] {
            assert_eq!(replaces(Path::new(place), Path::new(default)), expected, "{place}");
        }
    }
}
