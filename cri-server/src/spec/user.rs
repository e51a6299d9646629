//! Which uid, gid and groups a container's process gets, out of the request and the image's own files.
//!
//! `/etc/passwd` and `/etc/group` of the image are a stranger's: they may be links out of the root, devices, fifos or
//! endless. They are looked up beneath the root (openat2, Linux 5.6), must be regular files of at most 10 MiB before they
//! are opened, and a missing one counts as empty. They are read line by line and once per question, so that the work is linear in their
//! size; the lines of a file and the groups of a user are bounded. A numeric string is a number and is never looked up as a name: an image could
//! otherwise map "1000" to root behind the back of whoever checked it.
//!
//! The host's files and the C library's lookups (NSS) take no part.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;

use corten_proto::cri::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::SpecError;

/// Most bytes of a passwd or group file that are read; an image with more is refused.
const MAX_FILE: u64 = 10 << 20;
/// Most lines of a passwd or group file; an image with more is refused.
const MAX_LINES: usize = 100_000;
/// Most groups of a user: NGROUPS_MAX, beyond which setgroups(2) answers EINVAL.
const MAX_GROUPS: usize = 65_536;
/// Largest id: 2^32 - 1 means "no change" to the kernel's calls.
const MAX_ID: u32 = u32::MAX - 1;

/// Field names as they stand in errors.
const RUN_AS_USER: &str = "linux.security_context.run_as_user";
const RUN_AS_USERNAME: &str = "linux.security_context.run_as_username";
const RUN_AS_GROUP: &str = "linux.security_context.run_as_group";
const SUPPLEMENTAL: &str = "linux.security_context.supplemental_groups";
const IMAGE_USER: &str = "image config.User";

/// A resolved user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups, the primary one included, each once.
    pub additional_gids: Vec<u32>,
}

/// Resolves the user of a container whose root filesystem is mounted at `rootfs`.
pub fn resolve(
    rootfs: &Path,
    context: Option<&LinuxContainerSecurityContext>,
    image_user: Option<&str>,
) -> Result<User, SpecError> {
    let request = Request::parse(context, image_user)?;
    let files = Files {
        passwd: read(rootfs, "etc/passwd")?,
        group: read(rootfs, "etc/group")?,
    };
    request.resolve(&files)
}

/// Refuses what can be refused without the image: a group without a user, ids out of range.
pub(super) fn check(context: Option<&LinuxContainerSecurityContext>) -> Result<(), SpecError> {
    Request::parse(context, None).map(|_| ())
}

/// A uid or gid out of a CRI message.
pub(super) fn id(field: &str, value: i64) -> Result<u32, SpecError> {
    u32::try_from(value)
        .ok()
        .filter(|&id| id <= MAX_ID)
        .ok_or_else(|| SpecError::invalid(field, value, "must be from 0 to 4294967294"))
}

/// Ids out of a CRI message.
pub(super) fn ids(field: &str, values: &[i64]) -> Result<Vec<u32>, SpecError> {
    values.iter().map(|&value| id(field, value)).collect()
}

/// A user or a group, by number or by name, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Id(u32),
    Name { field: &'static str, name: String },
}

impl Wanted {
    /// Digits make an id, anything else a name.
    fn parse(field: &'static str, text: &str) -> Result<Self, SpecError> {
        if text.is_empty() || text.contains(['\0', '\n', ':']) {
            return Err(SpecError::invalid(field, text, "must be a name or a number"));
        }
        // "+0", "-0" and the like are numbers to some parsers and names to others: refused.
        let numeric = text.trim_start_matches(['+', '-']);
        if numeric.is_empty() || !numeric.chars().all(char::is_numeric) {
            return Ok(Wanted::Name {
                field,
                name: text.to_owned(),
            });
        }
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(SpecError::invalid(field, text, "a number must be decimal digits"));
        }
        let value = text.parse().unwrap_or(i64::MAX);
        id(field, value).map(Wanted::Id)
    }
}

/// What is asked for, before any file was read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Request {
    user: Wanted,
    group: Option<Wanted>,
    supplemental: Vec<u32>,
    merge: bool,
}

impl Request {
    fn parse(context: Option<&LinuxContainerSecurityContext>, image_user: Option<&str>) -> Result<Self, SpecError> {
        let default = LinuxContainerSecurityContext::default();
        let context = context.unwrap_or(&default);
        let (user, image_group) = Self::user(context, image_user)?;
        let group = match &context.run_as_group {
            Some(group) => Some(Wanted::Id(id(RUN_AS_GROUP, group.value)?)),
            None => image_group,
        };
        let policy = SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy).map_err(|_unknown| {
            SpecError::invalid(
                "linux.security_context.supplemental_groups_policy",
                context.supplemental_groups_policy,
                "must be Merge or Strict",
            )
        })?;
        Ok(Request {
            user,
            group,
            supplemental: ids(SUPPLEMENTAL, &context.supplemental_groups)?,
            merge: policy == SupplementalGroupsPolicy::Merge,
        })
    }

    /// The user, and the group that the image's USER names beside it. The request's user goes before the image's, and
    /// takes the image's group out of play: that group belongs to the image's user.
    fn user(
        context: &LinuxContainerSecurityContext,
        image_user: Option<&str>,
    ) -> Result<(Wanted, Option<Wanted>), SpecError> {
        let by_name = !context.run_as_username.is_empty();
        match (&context.run_as_user, by_name) {
            (Some(user), true) => Err(SpecError::invalid(
                RUN_AS_USERNAME,
                &context.run_as_username,
                format!("excludes run_as_user, which is {}", user.value),
            )),
            (Some(user), false) => Ok((Wanted::Id(id(RUN_AS_USER, user.value)?), None)),
            (None, true) => Ok((Wanted::parse(RUN_AS_USERNAME, &context.run_as_username)?, None)),
            (None, false) => match &context.run_as_group {
                Some(group) => Err(SpecError::invalid(
                    RUN_AS_GROUP,
                    group.value,
                    "needs run_as_user or run_as_username beside it",
                )),
                None => Self::image_user(image_user.unwrap_or_default()),
            },
        }
    }

    /// `USER` of the image: empty, `user` or `user:group`, each a name or a number (OCI image-spec, config.md).
    fn image_user(text: &str) -> Result<(Wanted, Option<Wanted>), SpecError> {
        let (user, group) = match text.split_once(':') {
            None => (text, None),
            Some((user, group)) => (user, Some(group)),
        };
        let user = match user {
            "" => Wanted::Id(0),
            user => Wanted::parse(IMAGE_USER, user)?,
        };
        let group = match group {
            None | Some("") => None,
            Some(group) => Some(Wanted::parse(IMAGE_USER, group)?),
        };
        Ok((user, group))
    }

    fn resolve(&self, files: &Files) -> Result<User, SpecError> {
        let (uid, entry) = match &self.user {
            Wanted::Id(uid) => (*uid, files.users().find(|entry| entry.uid == *uid)),
            Wanted::Name { field, name } => {
                let entry = files.users().find(|entry| entry.name == name);
                let entry = entry.ok_or_else(|| not_found(field, name, "/etc/passwd"))?;
                (entry.uid, Some(entry))
            }
        };
        let gid = match &self.group {
            None => entry.as_ref().map_or(0, |entry| entry.gid),
            Some(Wanted::Id(gid)) => *gid,
            Some(Wanted::Name { field, name }) => {
                let group = files.groups().find(|group| group.name == name);
                group.ok_or_else(|| not_found(field, name, "/etc/group"))?.gid
            }
        };
        Ok(User {
            uid,
            gid,
            additional_gids: self.groups(files, entry.as_ref(), gid)?,
        })
    }

    /// Primary group first, then the image's groups of the user (Merge only), then the requested ones.
    fn groups(&self, files: &Files, user: Option<&UserEntry<'_>>, gid: u32) -> Result<Vec<u32>, SpecError> {
        let of_image = user.filter(|_| self.merge).into_iter().flat_map(|user| {
            let groups = files.groups().filter(|group| group.has(user.name));
            groups.map(|group| group.gid)
        });
        let requested = self.supplemental.iter().copied();
        let mut seen = HashSet::new();
        // One beyond the bound tells that it is broken, and ends the search there.
        let ids: Vec<u32> = std::iter::once(gid)
            .chain(of_image)
            .chain(requested)
            .filter(|&id| seen.insert(id))
            .take(MAX_GROUPS + 1)
            .collect();
        if ids.len() > MAX_GROUPS {
            let rule = format!("with the image's /etc/group, at most {MAX_GROUPS} groups");
            let requested = format!("{} requested", self.supplemental.len());
            return Err(SpecError::invalid(SUPPLEMENTAL, requested, rule));
        }
        Ok(ids)
    }
}

fn not_found(field: &str, name: &str, file: &str) -> SpecError {
    SpecError::invalid(field, name, format!("must be listed in the image's {file}"))
}

/// The image's user database. Lines that do not parse are skipped, as every C library does.
#[derive(Clone, Debug, Default)]
struct Files {
    passwd: String,
    group: String,
}

struct UserEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl GroupEntry<'_> {
    fn has(&self, user: &str) -> bool {
        self.members.split(',').any(|member| member == user)
    }
}

impl Files {
    /// `name:password:uid:gid:gecos:home:shell`, passwd(5).
    fn users(&self) -> impl Iterator<Item = UserEntry<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let mut ids = fields.skip(1).map(parse_id);
            Some(UserEntry {
                name,
                uid: ids.next()??,
                gid: ids.next()??,
            })
        })
    }

    /// `name:password:gid:member,member`, group(5).
    fn groups(&self) -> impl Iterator<Item = GroupEntry<'_>> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let gid = parse_id(fields.nth(1)?)?;
            Some(GroupEntry {
                name,
                gid,
                members: fields.next().unwrap_or_default(),
            })
        })
    }
}

fn parse_id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|&id| id <= MAX_ID)
}

/// The text of a file of the image; empty if there is none.
fn read(rootfs: &Path, path: &str) -> Result<String, SpecError> {
    let field = format!("image file /{path}");
    let failed = |what: &str, errno: &dyn std::fmt::Display| {
        SpecError::failed(&field, rootfs.display(), format!("{what}: {errno}"))
    };
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs, directory, Mode::empty())
        .map_err(|errno| failed("open the root filesystem", &errno))?;
    let refused = |rule: &str| Err(SpecError::invalid(&field, rootfs.display(), rule));
    // PATH: to open a device is to act on it, a watchdog starts to count, and a fifo would hold the server up.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = match rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve) {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(Errno::LOOP) => return refused("must not be a link that leads nowhere"),
        Err(errno) => return Err(failed("openat2 beneath the root filesystem", &errno)),
    };
    let stat = rustix::fs::fstat(&found).map_err(|errno| failed("fstat", &errno))?;
    let is_small = u64::try_from(stat.st_size).is_ok_and(|size| size <= MAX_FILE);
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || !is_small {
        return refused("must be a regular file of at most 10 MiB");
    }
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(|error| failed("open", &error))?;
    let mut bytes = Vec::new();
    // Bounded again: the file may grow while it is read.
    file.take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(|error| failed("read", &error))?;
    if bytes.iter().filter(|&&byte| byte == b'\n').count() > MAX_LINES {
        let rule = format!("must have at most {MAX_LINES} lines");
        return refused(&rule);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use corten_proto::cri::Int64Value;

    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nbroken\nalice:x:1000:1001::/:/bin/sh\n\
                          1000:x:0:0::/:/bin/sh\nweb:x:33:33::/:/bin/sh\nbad:x:-1:0::/:\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:alice,web\nalice:x:1001:\nwww:x:33:\n\
                         10:x:0:alicex\nstaff:x:50:bob,alice\n";

    fn files() -> Files {
        Files {
            passwd: PASSWD.into(),
            group: GROUP.into(),
        }
    }

    fn user(uid: u32, gid: u32, additional_gids: &[u32]) -> User {
        User {
            uid,
            gid,
            additional_gids: additional_gids.to_vec(),
        }
    }

    fn of_image(text: &str) -> Result<User, SpecError> {
        Request::parse(None, Some(text))?.resolve(&files())
    }

    #[test]
    fn the_user_of_the_image() {
        for (text, expected) in [
            ("", user(0, 0, &[0])),
            ("0", user(0, 0, &[0])),
            ("alice", user(1000, 1001, &[1001, 10, 50])),
            ("1000", user(1000, 1001, &[1001, 10, 50])),
            ("1000:2000", user(1000, 2000, &[2000, 10, 50])),
            ("alice:www", user(1000, 33, &[33, 10, 50])),
            ("4242", user(4242, 0, &[0])),
            ("4242:4243", user(4242, 4243, &[4243])),
            ("web:", user(33, 33, &[33, 10])),
            (":33", user(0, 33, &[33])),
            ("4294967294", user(4_294_967_294, 0, &[0])),
        ] {
            assert_eq!(of_image(text), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn numbers_are_never_names_and_names_must_exist() {
        for text in [
            "4294967295",
            "4294967296",
            "18446744073709551616",
            "+0",
            "-0",
            "-1",
            "٠",
            "0:٠",
            "nobody",
            "alice:nogroup",
            "1x",
            "0x0",
            " 0",
            "root\n",
            "a:b:c",
            "bad",
        ] {
            assert!(of_image(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_request_goes_before_the_image() {
        let context = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: 1000 }),
            run_as_group: Some(Int64Value { value: 7 }),
            supplemental_groups: vec![3000, 10],
            ..Default::default()
        };
        let resolve =
            |context: &LinuxContainerSecurityContext| Request::parse(Some(context), Some("web:www"))?.resolve(&files());
        assert_eq!(resolve(&context), Ok(user(1000, 7, &[7, 10, 50, 3000])));

        let strict = LinuxContainerSecurityContext {
            supplemental_groups_policy: SupplementalGroupsPolicy::Strict.into(),
            ..context.clone()
        };
        assert_eq!(resolve(&strict), Ok(user(1000, 7, &[7, 3000, 10])));

        let named = LinuxContainerSecurityContext {
            run_as_username: "web".into(),
            ..Default::default()
        };
        assert_eq!(resolve(&named), Ok(user(33, 33, &[33, 10])));
    }

    #[test]
    fn a_user_of_many_groups_is_cheap_and_bounded() {
        let of_groups = |count: u32| {
            let group: String = (1..=count).map(|gid| format!("a::{gid}:u\n")).collect();
            let files = Files {
                passwd: "u:x:1:1::/:\n".into(),
                group,
            };
            Request::parse(None, Some("u"))?.resolve(&files)
        };
        assert_eq!(of_groups(65_536).unwrap().additional_gids.len(), 65_536);
        // Linear: a search of the list for every group would take minutes.
        let started = std::time::Instant::now();
        let error = of_groups(800_000).unwrap_err();
        assert!(started.elapsed().as_secs() < 10);
        assert!(error.to_string().contains("at most 65536"), "{error}");
    }

    #[test]
    fn requests_that_break_a_rule_name_the_field() {
        let value = |value| Some(Int64Value { value });
        for (context, field) in [
            (
                LinuxContainerSecurityContext {
                    run_as_group: value(1),
                    ..Default::default()
                },
                RUN_AS_GROUP,
            ),
            (
                LinuxContainerSecurityContext {
                    run_as_user: value(-1),
                    ..Default::default()
                },
                RUN_AS_USER,
            ),
            (
                LinuxContainerSecurityContext {
                    run_as_user: value(1),
                    run_as_username: "a".into(),
                    ..Default::default()
                },
                RUN_AS_USERNAME,
            ),
            (
                LinuxContainerSecurityContext {
                    supplemental_groups: vec![1 << 32],
                    ..Default::default()
                },
                SUPPLEMENTAL,
            ),
        ] {
            let error = check(Some(&context)).unwrap_err();
            assert_eq!((error.field.as_str(), error.kind), (field, super::super::Kind::Invalid));
        }
        assert_eq!(check(None), Ok(()));
    }

    #[test]
    fn files_are_read_beneath_the_root() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("passwd"), "evil:x:0:0::/:\n").unwrap();
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        let passwd = root.path().join("etc/passwd");

        assert_eq!(read(root.path(), "etc/passwd"), Ok(String::new()));

        symlink(outside.path().join("passwd"), &passwd).unwrap();
        assert_eq!(
            read(root.path(), "etc/passwd"),
            Ok(String::new()),
            "no file beneath the root"
        );

        std::fs::write(root.path().join("inner"), "ok").unwrap();
        std::fs::remove_file(&passwd).unwrap();
        symlink("/inner", &passwd).unwrap();
        assert_eq!(
            read(root.path(), "etc/passwd"),
            Ok("ok".into()),
            "absolute links stay inside"
        );

        std::fs::remove_file(&passwd).unwrap();
        symlink("/proc/self/environ", &passwd).unwrap();
        assert_eq!(read(root.path(), "etc/passwd"), Ok(String::new()));
    }

    #[test]
    fn only_a_bounded_regular_file_is_read() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("passwd");
        std::fs::create_dir(&path).unwrap();
        assert!(read(root.path(), "passwd").is_err(), "a directory");
        std::fs::remove_dir(&path).unwrap();

        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(root.path(), "passwd").is_err(), "a fifo");
        std::fs::remove_file(&path).unwrap();

        let file = File::create(&path).unwrap();
        file.set_len(MAX_FILE + 1).unwrap();
        assert!(read(root.path(), "passwd").is_err(), "too large");

        std::fs::write(&path, "\n".repeat(MAX_LINES)).unwrap();
        assert!(read(root.path(), "passwd").is_ok());
        std::fs::write(&path, "\n".repeat(MAX_LINES + 1)).unwrap();
        let error = read(root.path(), "passwd").unwrap_err().to_string();
        assert!(error.contains("100000 lines"), "{error}");
    }
}
