//! Archives that are wrong in ways nobody thought of, against GNU tar: what we take, it takes too, and both make the same
//! of it; nothing outside the layer is touched, and the server lives.
//!
//! The corpus is made here: one archive of every feature, changed by a generator with a seed, one to three changes each:
//! fields of headers (with a checksum that fits again), PAX records, blocks that are missing, twice or swapped, cuts.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use corten_cri::image::Cause;
use corten_tests::image::{Entry, Image, Layer};
use tar::EntryType;

use crate::Lab;

/// How many archives are tried.
const COUNT: u64 = 400;

const BLOCK: usize = 512;

/// Offset and length of a header's fields.
const FIELDS: [(usize, usize); 12] = [
    (0, 100),
    (100, 8),
    (108, 8),
    (116, 8),
    (124, 12),
    (136, 12),
    (156, 1),
    (157, 100),
    (257, 8),
    (329, 8),
    (337, 8),
    (345, 155),
];

/// What fields are set to.
const VALUES: [&[u8]; 24] = [
    b"",
    b"..",
    b"../up",
    b"/",
    b"/absolute/name",
    b"./",
    b"dir/../../up",
    b"link/through",
    b"out/through",
    b"dir",
    b"file",
    b"file/below",
    b"0000000\0",
    b"7777777\0",
    b"77777777777\0",
    b"-1",
    b"        ",
    b"12 34",
    b"99999999",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x80\0\0\0\0\0\0\0\0\0\0\x01",
    b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"ustar\x0000",
];

const FLAGS: &[u8] = b"\x00012345679ABDKLMNSVXgx";

/// What GNU tar complains of where we do not.
const EXCUSED: [&str; 2] = [
    // A field of blanks is 0, as to the readers of Go.
    "Blanks in header where numeric",
    // Of two entries with one name the later stands, also where the earlier is a directory that is not empty.
    "File exists",
];

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 1).unwrap() % end
    }

    fn pick<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len())]
    }
}

/// An archive of every feature.
fn base() -> Vec<u8> {
    let special = |path, kind| Entry {
        path,
        kind,
        device: (1, 3),
        ..Entry::default()
    };
    let long = "n".repeat(180);
    Layer::new()
        .dir("dir", 0o2755)
        .file("dir/inside", 0o640, &[7; 700])
        .file("file", 0o4755, b"content")
        .hard_link("hard", "file")
        .symlink("link", "dir")
        .symlink("out", "/tmp")
        .file("link-not/through", 0o644, b"x")
        .entry(&special("char", EntryType::Char))
        .entry(&special("fifo", EntryType::Fifo))
        .file(&long, 0o644, b"long")
        .entry(&Entry {
            path: "timed",
            pax: &[("mtime", b"5.25"), ("uid", b"7"), ("SCHILY.xattr.user.a", b"1\n2")],
            ..Entry::default()
        })
        .file("last", 0o600, &[9; 1500])
        .into_tar()
}

/// The archive number `number`.
fn changed(number: u64) -> Vec<u8> {
    let mut random = Random(number * 2 + 0x9e37_79b9);
    let mut archive = base();
    for _ in 0..=random.below(3) {
        let blocks = archive.len() / BLOCK;
        let place = random.below(blocks) * BLOCK;
        match random.below(10) {
            0 => archive.truncate(random.below(archive.len()) + 1),
            1 => drop(archive.drain(place..place + BLOCK)),
            2 => {
                let block = archive[place..place + BLOCK].to_vec();
                archive.splice(place..place, block);
            }
            3 => {
                let at = random.below(archive.len());
                archive[at] = archive[at].wrapping_add(1 + u8::try_from(random.below(255)).unwrap());
            }
            _ => change_field(&mut archive, &mut random),
        }
        if archive.len() < BLOCK {
            break;
        }
    }
    archive
}

/// Sets a field of a header to something else.
fn change_field(archive: &mut [u8], random: &mut Random) {
    let is_header = |block: &[u8]| &block[257..262] == b"ustar";
    let headers: Vec<usize> = (0..archive.len() / BLOCK)
        .map(|number| number * BLOCK)
        .filter(|place| is_header(&archive[*place..place + BLOCK]))
        .collect();
    if headers.is_empty() {
        return;
    }
    let place = headers[random.below(headers.len())];
    let header = &mut archive[place..place + BLOCK];
    let (offset, length) = FIELDS[random.below(FIELDS.len())];
    if offset == 156 {
        header[156] = FLAGS[random.below(FLAGS.len())];
    } else {
        let value = random.pick(&VALUES);
        let value = &value[..value.len().min(length)];
        header[offset..offset + length].fill(0);
        header[offset..offset + value.len()].copy_from_slice(value);
    }
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// What both readers must agree on, by path. Directories that no entry named have times of their own.
fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(root.join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let (path, short) = (entry.path(), dir.join(entry.file_name()));
            let metadata = fs::symlink_metadata(&path).unwrap();
            let kind = metadata.file_type();
            let (mut content, mut time) = (Vec::new(), (metadata.mtime(), metadata.mtime_nsec()));
            if kind.is_dir() {
                pending.push(short.clone());
                time = (0, 0);
            } else if kind.is_file() {
                content = fs::read(&path).unwrap();
            } else if kind.is_symlink() {
                content = fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes();
            }
            let (owner, digest) = (
                (metadata.uid(), metadata.gid()),
                corten_tests::image::digest_of(&content),
            );
            let mode = metadata.mode();
            found.insert(
                short,
                format!("{mode:o} {owner:?} {time:?} {:x} {digest}", metadata.rdev()),
            );
        }
    }
    found
}

/// Unpacks `archive` below `dir` with GNU tar, and returns what it found wrong.
fn gnu_tar(archive: &Path, dir: &Path) -> String {
    let mut tar = Command::new("timeout");
    tar.args(["20", "tar", "--numeric-owner", "--same-permissions", "--same-owner"])
        .args([
            "--delay-directory-restore",
            "--xattrs",
            "--xattrs-include=*",
            "-x",
            "-f",
        ])
        .args([archive.as_os_str(), "-C".as_ref(), dir.as_os_str()]);
    let output = tar.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
    if output.status.success() { String::new() } else { said }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_is_what_gnu_tar_takes() {
    let lab = Lab::new();
    let (archive, theirs) = (lab.dir.path().join("archive.tar"), lab.dir.path().join("theirs"));
    let tripwire = Path::new("/tmp/through");
    assert!(!tripwire.exists(), "{} is in the way", tripwire.display());
    let (mut taken, mut wrong) = (0, Vec::new());
    for number in 0..COUNT {
        let bytes = changed(number);
        fs::write(&archive, &bytes).unwrap();
        let saved = lab.serve(&Image::new().archive(bytes), &["corpus:1"]);
        match lab.pull("corpus:1").await {
            Err(error) => assert_eq!(error.cause, Cause::Refused, "{number}: {error}"),
            Ok(_) => {
                taken += 1;
                fs::create_dir(&theirs).unwrap();
                let says = gnu_tar(&archive, &theirs);
                let (ours, expected) = (describe(&lab.store().layer_path(&saved.diff_ids[0])), describe(&theirs));
                let differ: Vec<_> = ours.keys().chain(expected.keys()).collect();
                let differ = differ.into_iter().find(|path| ours.get(*path) != expected.get(*path));
                let excused = EXCUSED.iter().any(|excuse| says.contains(excuse));
                if !excused && (!says.is_empty() || differ.is_some()) {
                    let pair = differ.map(|path| (path, ours.get(path), expected.get(path)));
                    wrong.push(format!("{number}: {says:?}; ours, theirs: {pair:?}"));
                }
                fs::remove_dir_all(&theirs).unwrap();
                lab.store().remove(saved.id.as_str()).await.unwrap();
            }
        }
        assert!(!tripwire.exists(), "{number} broke out");
    }
    assert!(wrong.is_empty(), "{} of {taken}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(taken > COUNT / 10 && taken < COUNT, "{taken} of {COUNT} taken");
    lab.assert_empty();
    lab.finish();
}
