//! Mount options as the specification spells them, sorted into what each kernel call takes. Pure.

use anyhow::{Result, bail, ensure};
use libc::{MS_PRIVATE, MS_SHARED, MS_SLAVE, MS_UNBINDABLE};

use crate::sys::mount::Attributes;

const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const ATIME: u64 = libc::MOUNT_ATTR__ATIME;
const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
const RELATIME: u64 = libc::MOUNT_ATTR_RELATIME;
const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;

/// The options of one mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `bind` or `rbind`; the second includes what is mounted below.
    pub bind: Option<Bind>,
    /// Of this mount alone.
    pub attributes: Attributes,
    /// Of this mount and all below it: the `r...` forms.
    pub recursive: Attributes,
    /// The propagation, and whether it is set on the mounts below too.
    pub propagation: Option<Propagation>,
    /// Flags of the filesystem itself, and its own options with their values.
    pub filesystem: Vec<(String, Option<String>)>,
    /// `idmap` or `ridmap`: the ids of the files are mapped, with the second on all mounts below too.
    pub idmap: Option<Bind>,
    /// `tmpcopyup`: what the image has at the destination is copied into the new tmpfs.
    pub copy_up: bool,
    /// `remount`: nothing is mounted; what is mounted at the destination is changed.
    pub remount: bool,
}

/// Which mounts a bind takes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// The one mount.
    One,
    /// Everything below it too.
    Recursive,
}

/// How mounts made below travel between copies of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagation {
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE` or `MS_UNBINDABLE`.
    pub kind: u64,
    /// On every mount below too.
    pub recursive: bool,
}

impl Propagation {
    /// A propagation's name, with an `r` before it for the recursive form.
    pub fn parse(name: &str) -> Option<Propagation> {
        let kind = |name| {
            Some(match name {
                "shared" => MS_SHARED,
                "slave" => MS_SLAVE,
                "private" => MS_PRIVATE,
                "unbindable" => MS_UNBINDABLE,
                _ => return None,
            })
        };
        let one = kind(name).map(|kind| Propagation { kind, recursive: false });
        one.or_else(|| kind(name.strip_prefix('r')?).map(|kind| Propagation { kind, recursive: true }))
    }
}

impl Options {
    /// Sorts the options; the later of two that contradict each other counts.
    pub fn parse<S: AsRef<str>>(options: &[S]) -> Result<Options> {
        let mut parsed = Options::default();
        for option in options {
            parsed.take(option.as_ref())?;
        }
        let own_filesystem = parsed.bind.is_none();
        // A filesystem's options mean nothing to a bind, which has the filesystem of its source. mount(2) ignores them
        // there, and specifications contain them.
        if !own_filesystem {
            parsed.filesystem.clear();
        }
        Ok(parsed)
    }

    fn take(&mut self, option: &str) -> Result<()> {
        if let Some(propagation) = Propagation::parse(option) {
            self.propagation = Some(propagation);
        } else if let Some((set, clear)) = attribute(option) {
            change(&mut self.attributes, set, clear);
        } else if let Some((set, clear)) = option.strip_prefix('r').and_then(attribute) {
            change(&mut self.recursive, set, clear);
        } else {
            self.take_other(option)?;
        }
        Ok(())
    }

    fn take_other(&mut self, option: &str) -> Result<()> {
        match option {
            "bind" => self.bind = Some(Bind::One),
            "rbind" => self.bind = Some(Bind::Recursive),
            "idmap" => self.idmap = Some(Bind::One),
            "ridmap" => self.idmap = Some(Bind::Recursive),
            "tmpcopyup" => self.copy_up = true,
            "remount" => self.remount = true,
            "copy-symlink" => bail!("option {option:?} is not supported"),
            // crun's own form, with the mappings in the option; a bind would pass over it like any filesystem's option.
            _ if option.starts_with("idmap=") || option.starts_with("ridmap=") => {
                bail!("option {option:?} is not supported: the mappings are the mount's uidMappings and gidMappings")
            }
            // Nothing that fstab decides. A devpts is always a new instance (Linux 4.7).
            "defaults" | "newinstance" | "auto" | "noauto" | "user" | "nouser" | "_netdev" => {}
            // Flags of mount(2) that say nothing to the filesystems of today: how much is logged, ACLs, and the version
            // of an inode, which whoever keeps one keeps always. The mount API by descriptor does not have them.
            "silent" | "loud" | "acl" | "noacl" | "iversion" | "noiversion" => {}
            option => {
                let (key, value) = match option.split_once('=') {
                    Some((key, value)) => (key, Some(value.to_owned())),
                    None => (option, None),
                };
                ensure!(
                    !key.is_empty() && !option.contains('\0'),
                    "option {option:?} is not a mount option"
                );
                self.filesystem.push((key.to_owned(), value));
            }
        }
        Ok(())
    }
}

/// The attribute bits an option sets and clears.
fn attribute(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (RDONLY, 0),
        "rw" => (0, RDONLY),
        "nosuid" => (NOSUID, 0),
        "suid" => (0, NOSUID),
        "nodev" => (NODEV, 0),
        "dev" => (0, NODEV),
        "noexec" => (NOEXEC, 0),
        "exec" => (0, NOEXEC),
        "nosymfollow" => (NOSYMFOLLOW, 0),
        "symfollow" => (0, NOSYMFOLLOW),
        "nodiratime" => (NODIRATIME, 0),
        "diratime" => (0, NODIRATIME),
        // One field, not bits: whoever sets it must clear all of it. relatime is the value 0.
        "noatime" => (NOATIME, ATIME),
        "strictatime" => (STRICTATIME, ATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => (RELATIME, ATIME),
        _ => return None,
    })
}

fn change(attributes: &mut Attributes, set: u64, clear: u64) {
    attributes.set = (attributes.set & !clear) | set;
    // The kernel wants the whole atime field in the mask, even where a value of it is set; of other attributes a bit is
    // in one of the masks only.
    attributes.clear = (attributes.clear & !(set & !ATIME)) | clear;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Options {
        let options: Vec<&str> = text.split(',').filter(|option| !option.is_empty()).collect();
        Options::parse(&options).unwrap()
    }

    #[test]
    fn attributes() {
        for (text, set, clear) in [
            ("", 0, 0),
            ("ro,nosuid,nodev,noexec", RDONLY | NOSUID | NODEV | NOEXEC, 0),
            ("ro,rw", 0, RDONLY),
            ("rw,ro", RDONLY, 0),
            ("noatime", NOATIME, ATIME),
            ("noatime,strictatime", STRICTATIME, ATIME),
            ("strictatime,relatime", 0, ATIME),
            ("nodiratime,nosymfollow", NODIRATIME | NOSYMFOLLOW, 0),
        ] {
            let wanted = Attributes {
                set,
                clear,
                propagation: 0,
            };
            assert_eq!(parse(text).attributes, wanted, "{text}");
        }
    }

    #[test]
    fn recursive_forms_and_propagation() {
        let options = parse("rbind,rro,rnosuid,rprivate");
        assert_eq!(options.bind, Some(Bind::Recursive));
        assert_eq!(options.recursive.set, RDONLY | NOSUID);
        assert!(options.attributes.is_empty());
        assert_eq!(
            options.propagation,
            Some(Propagation {
                kind: MS_PRIVATE,
                recursive: true
            })
        );
        // These begin with an r and are not recursive forms.
        assert_eq!(parse("relatime").recursive, Attributes::default());
        assert_eq!(parse("rw").recursive, Attributes::default());
        assert_eq!(Propagation::parse("rslave").map(|p| p.kind), Some(MS_SLAVE));
        assert_eq!(Propagation::parse("rr"), None);
    }

    #[test]
    fn filesystem_options() {
        let options = parse("nosuid,mode=755,size=65536k,newinstance,sync");
        let text: Vec<String> = options
            .filesystem
            .iter()
            .map(|(key, value)| format!("{key}:{value:?}"))
            .collect();
        assert_eq!(text, [r#"mode:Some("755")"#, r#"size:Some("65536k")"#, "sync:None"]);
        assert!(parse("bind,mode=755").filesystem.is_empty());
        assert!(
            parse("silent,loud,iversion,noiversion,acl,defaults")
                .filesystem
                .is_empty()
        );
        for bad in ["copy-symlink", "idmap=uids=0-1-1", "ridmap=", "=x", "a\0b"] {
            assert!(Options::parse(&[bad]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_done_beside_mounting() {
        assert_eq!(parse("bind,idmap").idmap, Some(Bind::One));
        assert_eq!(parse("rbind,idmap,ridmap").idmap, Some(Bind::Recursive));
        assert!(parse("tmpcopyup").copy_up && !parse("").copy_up);
        assert!(parse("remount,ro").remount);
        assert!(parse("tmpcopyup,remount,idmap").filesystem.is_empty());
    }

    /// Every option of config.md, "Linux mount options" (1.3), is known to be one, so that none of them reaches a
    /// filesystem that does not have it; the last five are the filesystem's (or the superblock's) to take.
    #[test]
    fn every_option_of_the_specification() {
        let ours = "atime bind defaults dev diratime exec idmap iversion loud noatime nodev nodiratime noexec \
            noiversion norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev rdiratime relatime remount \
            rexec ridmap rnoatime rnodev rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow ro rprivate \
            rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared silent slave \
            strictatime suid symfollow tmpcopyup unbindable";
        for option in ours.split_whitespace() {
            assert!(parse(option).filesystem.is_empty(), "{option}");
            let named = matches!(option, "defaults" | "iversion" | "loud" | "noiversion" | "silent");
            assert_eq!(parse(option) == Options::default(), named, "{option}");
        }
        for option in "async dirsync lazytime mand nolazytime nomand sync".split_whitespace() {
            assert_eq!(parse(option).filesystem, [(option.to_owned(), None)], "{option}");
        }
    }
}
