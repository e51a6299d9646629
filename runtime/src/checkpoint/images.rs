//! What the images say that is looked at before CRIU acts on it. They are untrusted: anybody may have written them.
//!
//! An image file is two magic numbers, then entries: a length and a protobuf message each, all numbers little-endian
//! (CRIU, "Images"). Of mountpoints-N.img (images/mnt.proto) only where mounts go and what they are called is read; of
//! seccomp.img (images/seccomp.proto) the filters.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
use prost::Message;
use rustix::fs::{Dir, FileType, Mode, OFlags, fstat, openat};

/// The first number of every image file.
const COMMON: u32 = 0x5456_4319;
/// The second number of a table of mounts.
const MOUNTS: u32 = 0x5556_3928;
/// The second number of a table of filters.
const SECCOMP: u32 = 0x6441_3049;

/// The longest of these files that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;
/// What the standard streams of a dumped init were; runc's name and form.
const DESCRIPTORS: &str = "descriptors.json";

/// A mount as the images have it.
#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    /// Where it goes, from the container's root, without the first slash or with it.
    #[prost(string, required, tag = "7")]
    pub place: String,
    /// What it was called when it was dumped as external.
    #[prost(string, optional, tag = "18")]
    pub key: Option<String>,
}

/// `seccomp_filter`: a program of the kernel's, 8 bytes an instruction.
#[derive(Clone, PartialEq, Message)]
pub struct Filter {
    /// The instructions.
    #[prost(bytes = "vec", required, tag = "1")]
    pub program: Vec<u8>,
    /// The one that was there before, for a program that has confined itself further.
    #[prost(uint32, optional, tag = "2")]
    pub before: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct Filters {
    #[prost(message, repeated, tag = "1")]
    all: Vec<Filter>,
}

impl Mount {
    /// Where it goes, as a path from the container's root with nothing in it that could lead elsewhere.
    pub fn path(&self) -> Result<PathBuf> {
        let mut path = PathBuf::from("/");
        for component in Path::new(&self.place).components() {
            match component {
                Component::Normal(name) => path.push(name),
                Component::RootDir | Component::CurDir => {}
                _ => anyhow::bail!("the images have a mount on {:?}: not a plain path", self.place),
            }
        }
        Ok(path)
    }
}

/// Every mount of every mount namespace in the images.
pub fn mounts(images: BorrowedFd<'_>) -> Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    for entry in Dir::read_from(images).context("read the images' directory")? {
        let entry = entry.context("read the images' directory")?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("mountpoints-") {
            let text = read(images, &name)?.with_context(|| format!("{name} has gone"))?;
            mounts.extend(entries::<Mount>(&text, MOUNTS).with_context(|| name.clone())?);
        }
    }
    Ok(mounts)
}

/// The seccomp filters of all tasks.
pub fn filters(images: BorrowedFd<'_>) -> Result<Vec<Filter>> {
    let Some(text) = read(images, "seccomp.img")? else {
        return Ok(Vec::new());
    };
    let tables = entries::<Filters>(&text, SECCOMP).context("seccomp.img")?;
    Ok(tables.into_iter().flat_map(|table| table.all).collect())
}

/// Writes down what init's standard streams are, as links of /proc/PID/fd name them.
pub fn write_descriptors(images: BorrowedFd<'_>, names: &[String]) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(images, DESCRIPTORS, flags, Mode::from_raw_mode(0o600));
    let file = file.with_context(|| format!("create {DESCRIPTORS}"))?;
    serde_json::to_writer(File::from(file), names).with_context(|| format!("write {DESCRIPTORS}"))
}

/// The pipes among init's standard streams: their number and their name in the images. Whatever else is there is left
/// out: it would let the images give any name to a descriptor of ours.
pub fn pipes(images: BorrowedFd<'_>) -> Result<Vec<(i32, String)>> {
    let Some(text) = read(images, DESCRIPTORS)? else {
        return Ok(Vec::new());
    };
    let names: Vec<String> = serde_json::from_slice(&text).with_context(|| format!("decode {DESCRIPTORS}"))?;
    Ok((0..3).zip(names).filter(|(_, name)| is_pipe(name)).collect())
}

fn is_pipe(name: &str) -> bool {
    let number = name.strip_prefix("pipe:[").and_then(|rest| rest.strip_suffix(']'));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A regular file of the directory itself, not too long; `None` where there is none.
fn read(images: BorrowedFd<'_>, name: &str) -> Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(images, name, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        file => file.with_context(|| format!("open {name} of the images"))?,
    };
    let stat = fstat(&file).with_context(|| format!("fstat({name})"))?;
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    ensure!(regular, "{name} of the images: not a regular file");
    let mut text = Vec::new();
    let mut file = File::from(file).take(MAX_FILE + 1);
    file.read_to_end(&mut text).with_context(|| format!("read {name}"))?;
    ensure!(
        text.len() as u64 <= MAX_FILE,
        "{name} of the images: more than {MAX_FILE} bytes"
    );
    Ok(Some(text))
}

/// The messages of a file.
fn entries<T: Message + Default>(text: &[u8], magic: u32) -> Result<Vec<T>> {
    let (first, text) = number(text)?;
    let (second, mut text) = number(text)?;
    ensure!(
        (first, second) == (COMMON, magic),
        "not an image of the kind its name says"
    );
    let mut entries = Vec::new();
    while !text.is_empty() {
        let (length, rest) = number(text)?;
        let (entry, rest) = rest.split_at_checked(length as usize).context("cut short")?;
        entries.push(T::decode(entry).context("decode an entry")?);
        text = rest;
    }
    Ok(entries)
}

fn number(text: &[u8]) -> Result<(u32, &[u8])> {
    let (bytes, rest) = text.split_first_chunk::<4>().context("cut short")?;
    Ok((u32::from_le_bytes(*bytes), rest))
}

/// The directory of images, or of CRIU's other files, by descriptor.
pub fn open(path: &Path) -> Result<std::os::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("open {}", path.display()))
}

/// Something that may hold images: a dump of which nothing is there has failed, or has been tampered with.
pub fn check_present(images: impl AsFd) -> Result<()> {
    let found = rustix::fs::statat(&images, "inventory.img", rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
    found.map(drop).context("no checkpoint is there: inventory.img")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(magic: u32, messages: &[&[u8]]) -> Vec<u8> {
        let mut text = [COMMON.to_le_bytes(), magic.to_le_bytes()].concat();
        for message in messages {
            text.extend(u32::try_from(message.len()).unwrap().to_le_bytes());
            text.extend_from_slice(message);
        }
        text
    }

    #[test]
    fn tables_of_mounts() {
        // fstype 5, mountpoint /a, ext_key k.
        let entry = b"\x08\x05\x3a\x02/a\x92\x01\x01k";
        let mounts = entries::<Mount>(&file(MOUNTS, &[entry, b"\x3a\x02./"]), MOUNTS).unwrap();
        assert_eq!((mounts[0].place.as_str(), mounts[0].key.as_deref()), ("/a", Some("k")));
        assert_eq!(mounts[1].path().unwrap(), Path::new("/"));
        for bad in ["../x", "/a/../../b"] {
            let mount = Mount {
                place: bad.to_owned(),
                key: None,
            };
            assert!(mount.path().is_err(), "{bad}");
        }
        let cut = &file(MOUNTS, &[entry])[..12];
        for bad in [
            &b""[..],
            b"12345678",
            cut,
            &file(SECCOMP, &[entry]),
            &file(MOUNTS, &[b"\xff"]),
        ] {
            assert!(entries::<Mount>(bad, MOUNTS).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_of_pipes() {
        for (name, pipe) in [
            ("pipe:[17]", true),
            ("pipe:[]", false),
            ("pipe:[1]:[2]", false),
            ("/dev/null", false),
            ("extRootNetNS", false),
            ("pipe:[1x]", false),
        ] {
            assert_eq!(is_pipe(name), pipe, "{name}");
        }
    }
}
