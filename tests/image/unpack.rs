//! What a layer's archive becomes on disk.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use corten_tests::image::{Entry, Layer, MTIME};
use tar::EntryType;

use crate::{Lab, names};

/// A file capability (linux/capability.h, revision 2): cap_net_raw, effective.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// An extended attribute of `path` itself; `None` where it has none.
fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0u8; 256];
    let name = CString::new(name).unwrap();
    match rustix::fs::lgetxattr(path, name.as_c_str(), &mut value) {
        Ok(length) => Some(value[..length].to_vec()),
        Err(rustix::io::Errno::NODATA) => None,
        Err(errno) => panic!("lgetxattr {}: {errno}", path.display()),
    }
}

fn is_whiteout(path: &Path) -> bool {
    let metadata = fs::symlink_metadata(path).unwrap();
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

fn is_opaque(path: &Path) -> bool {
    xattr(path, "trusted.overlay.opaque").as_deref() == Some(b"y")
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_modes_and_times_are_the_archives() {
    let lab = Lab::new();
    let layer = Layer::new()
        .dir("./", 0o711)
        .entry(&Entry {
            path: "d",
            kind: EntryType::Directory,
            mode: 0o2751,
            uid: 3,
            gid: 4,
            pax: &[("mtime", b"100.000000007")],
            ..Entry::default()
        })
        .entry(&Entry {
            path: "d/setuid",
            mode: 0o4755,
            uid: 1000,
            gid: 4_000_000,
            data: b"x",
            pax: &[("mtime", b"5.25"), ("gid", b"4000000000")],
            ..Entry::default()
        })
        .entry(&Entry {
            path: "d/link",
            kind: EntryType::Symlink,
            uid: 7,
            gid: 8,
            link: "nowhere/at all",
            ..Entry::default()
        })
        .dir("tmp", 0o1777)
        .file("implied/parents/file", 0o600, b"abc");
    let root = lab.unpack(layer).await;
    let stat = |path: &str| {
        let found = fs::symlink_metadata(root.join(path)).unwrap();
        (
            found.mode() & 0o7777,
            found.uid(),
            found.gid(),
            found.mtime(),
            found.mtime_nsec(),
        )
    };
    let default = i64::try_from(MTIME).unwrap();
    assert_eq!(stat("."), (0o711, 0, 0, default, 0));
    assert_eq!(
        stat("d"),
        (0o2751, 3, 4, 100, 7),
        "an entry made later inside does not change it"
    );
    assert_eq!(stat("d/setuid"), (0o4755, 1000, 4_000_000_000, 5, 250_000_000));
    assert_eq!(stat("d/link"), (0o777, 7, 8, default, 0));
    assert_eq!(stat("tmp").0, 0o1777);
    assert_eq!(stat("implied/parents").0, 0o755);
    assert_eq!(fs::read(root.join("implied/parents/file")).unwrap(), b"abc");
    assert_eq!(fs::read_link(root.join("d/link")).unwrap(), Path::new("nowhere/at all"));
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_of_file() {
    let lab = Lab::new();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let special = |path, kind, device| Entry {
        path,
        kind,
        mode: 0o620,
        uid: 1,
        gid: 5,
        device,
        ..Entry::default()
    };
    let layer = Layer::new()
        .file("file", 0o644, b"content")
        .hard_link("hard", "./file")
        .symlink("soft", "file")
        .hard_link("hard-to-soft", "soft")
        .entry(&special("char", EntryType::Char, (1, 3)))
        .entry(&special("block", EntryType::Block, (7, 0)))
        .entry(&special("fifo", EntryType::Fifo, (0, 0)))
        .file(&long, 0o644, b"long")
        .file("empty", 0o644, b"");
    let root = lab.unpack(layer).await;
    let stat = |path: &str| fs::symlink_metadata(root.join(path)).unwrap();
    assert_eq!(stat("file").ino(), stat("hard").ino());
    assert_eq!(
        stat("soft").ino(),
        stat("hard-to-soft").ino(),
        "a link is linked, not what it leads to"
    );
    let device = |path: &str| {
        (
            stat(path).rdev(),
            stat(path).mode() & 0o7777,
            stat(path).uid(),
            stat(path).gid(),
        )
    };
    assert!(stat("char").file_type().is_char_device() && stat("block").file_type().is_block_device());
    assert_eq!(device("char"), (libc::makedev(1, 3), 0o620, 1, 5));
    assert_eq!(device("block"), (libc::makedev(7, 0), 0o620, 1, 5));
    assert!(stat("fifo").file_type().is_fifo());
    assert_eq!(stat("fifo").permissions().mode() & 0o7777, 0o620);
    assert_eq!(fs::read(root.join(&long)).unwrap(), b"long");
    assert_eq!(stat("empty").len(), 0);
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn extended_attributes() {
    let lab = Lab::new();
    let with = |path, kind, pax| Entry {
        path,
        kind,
        mode: 0o755,
        link: "x",
        pax,
        ..Entry::default()
    };
    let layer = Layer::new()
        .entry(&Entry {
            link: "",
            ..with(
                "file",
                EntryType::Regular,
                &[
                    ("SCHILY.xattr.security.capability", CAPABILITY),
                    ("SCHILY.xattr.user.a", b"\0\xff"),
                    ("SCHILY.xattr.security.selinux", b"label"),
                ],
            )
        })
        .entry(&Entry {
            link: "",
            ..with("dir", EntryType::Directory, &[("SCHILY.xattr.user.b", b"1")])
        })
        .entry(&with("soft", EntryType::Symlink, &[("SCHILY.xattr.trusted.c", b"2")]));
    let root = lab.unpack(layer).await;
    assert_eq!(
        xattr(&root.join("file"), "security.capability").as_deref(),
        Some(CAPABILITY)
    );
    assert_eq!(
        xattr(&root.join("file"), "user.a").as_deref(),
        Some(b"\0\xff".as_slice())
    );
    assert_eq!(
        xattr(&root.join("file"), "security.selinux"),
        None,
        "the node's to choose"
    );
    assert_eq!(xattr(&root.join("dir"), "user.b").as_deref(), Some(b"1".as_slice()));
    assert_eq!(xattr(&root.join("soft"), "trusted.c").as_deref(), Some(b"2".as_slice()));
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn whiteouts_are_overlayfs_whiteouts() {
    let lab = Lab::new();
    let layer = Layer::new()
        .whiteout("", "gone")
        .whiteout("new/parent", "gone")
        .dir("cleared", 0o755)
        .file("cleared/before", 0o644, b"")
        .opaque("cleared")
        .file("cleared/after", 0o644, b"")
        // Of what the same layer holds, nothing is hidden: whiteouts speak of the layers below.
        .file("file-then-whiteout", 0o644, b"stays")
        .whiteout("", "file-then-whiteout")
        .whiteout("", "whiteout-then-file")
        .file("whiteout-then-file", 0o644, b"stays")
        .dir("dir-then-whiteout", 0o755)
        .file("dir-then-whiteout/f", 0o644, b"stays")
        .whiteout("", "dir-then-whiteout")
        .whiteout("", "whiteout-then-dir")
        .dir("whiteout-then-dir", 0o755);
    let root = lab.unpack(layer).await;
    assert!(is_whiteout(&root.join("gone")) && is_whiteout(&root.join("new/parent/gone")));
    assert!(is_opaque(&root.join("cleared")));
    assert_eq!(names(&root.join("cleared")), ["after", "before"]);
    for file in ["file-then-whiteout", "whiteout-then-file", "dir-then-whiteout/f"] {
        assert_eq!(fs::read(root.join(file)).unwrap(), b"stays", "{file}");
    }
    assert!(is_opaque(&root.join("dir-then-whiteout")) && is_opaque(&root.join("whiteout-then-dir")));
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_entries_with_one_name_the_later_stands() {
    let lab = Lab::new();
    let layer = Layer::new()
        .file("a", 0o644, b"first")
        .file("a", 0o600, b"second")
        .dir("d", 0o700)
        .file("d/kept", 0o644, b"")
        .dir("d", 0o755)
        .dir("tree/below", 0o755)
        .file("tree/below/f", 0o644, b"")
        .file("tree", 0o644, b"file now")
        .symlink("link", "a")
        .file("link", 0o644, b"not through the link")
        .symlink("dirlink", "d")
        .dir("dirlink", 0o755);
    let root = lab.unpack(layer).await;
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    assert_eq!(
        (read("a"), read("tree"), read("link")),
        ("second".into(), "file now".into(), "not through the link".into())
    );
    assert_eq!(
        names(&root.join("d")),
        ["kept"],
        "a directory named again keeps what is inside"
    );
    assert_eq!(fs::metadata(root.join("d")).unwrap().mode() & 0o777, 0o755);
    assert!(fs::symlink_metadata(root.join("dirlink")).unwrap().is_dir());
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn links_inside_a_layer_lead_inside_it() {
    let lab = Lab::new();
    let tripwire = lab.dir.path().join("tripwire");
    fs::create_dir(&tripwire).unwrap();
    let outside = tripwire.to_str().unwrap();
    let layer = Layer::new()
        .dir("usr/lib", 0o755)
        .symlink("lib", "usr/lib")
        .file("lib/a", 0o644, b"through a relative link")
        .symlink("abs", "/usr/lib")
        .file("abs/b", 0o644, b"through an absolute link")
        .symlink("up", "../../../../usr/lib")
        .file("up/c", 0o644, b"as far up as the layer's root")
        .dir(outside, 0o700)
        .symlink("out", outside)
        .file("out/d", 0o644, b"an absolute name of the layer")
        .file("/rooted", 0o644, b"an absolute entry");
    let root = lab.unpack(layer).await;
    assert_eq!(names(&root.join("usr/lib")), ["a", "b", "c"]);
    assert!(root.join("rooted").is_file());
    assert!(root.join(outside.trim_start_matches('/')).join("d").is_file());
    assert!(names(&tripwire).is_empty(), "nothing outside was touched");
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_accounted() {
    let lab = Lab::new();
    lab.unpack(
        Layer::new()
            .dir("d", 0o755)
            .file("d/f", 0o644, &[1; 5000])
            .symlink("l", "d")
            .hard_link("h", "d/f"),
    )
    .await;
    assert_eq!(
        lab.store().usage(),
        (2 * 4096 + 8192, 4),
        "root, d, f in two blocks, l; a hard link is no inode"
    );
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_replaced_leaves_the_file_under_its_other_names() {
    let lab = Lab::new();
    let layer = Layer::new().file("a", 0o644, b"old").hard_link("b", "a");
    let root = lab.unpack(layer.file("a", 0o644, b"new")).await;
    assert_eq!(fs::read(root.join("a")).unwrap(), b"new");
    assert_eq!(fs::read(root.join("b")).unwrap(), b"old");
    assert_eq!(lab.store().usage().1, 3, "root, a, b");
    lab.finish();
}

/// Everything about a tree that an archive carries, by path.
fn describe(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        let content = if kind.is_file() {
            format!("{:?}", fs::read(&path).unwrap())
        } else if kind.is_symlink() {
            format!("{:?}", fs::read_link(&path).unwrap())
        } else {
            String::new()
        };
        if kind.is_dir() {
            pending.extend(names(&path).iter().map(|name| path.join(name)));
        }
        let times = (metadata.mtime(), metadata.mtime_nsec());
        let owner = (metadata.uid(), metadata.gid());
        // A directory's number of links depends on the filesystem.
        let links = if kind.is_dir() { 0 } else { metadata.nlink() };
        found.push(format!(
            "{:?} {:o} {owner:?} {times:?} {links} {:x} {:?} {content}",
            path.strip_prefix(root).unwrap(),
            metadata.mode(),
            metadata.rdev(),
            xattr(&path, "user.note"),
        ));
    }
    found.sort();
    found
}

/// Makes a tree of everything that tar can hold.
fn plant(tree: &Path) {
    let deep = tree.join("d".repeat(90)).join("e".repeat(90)).join("f".repeat(120));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), b"deep").unwrap();
    fs::write(tree.join("a"), vec![7; 100_000]).unwrap();
    fs::hard_link(tree.join("a"), tree.join("b")).unwrap();
    std::os::unix::fs::symlink("x".repeat(300), tree.join("long link")).unwrap();
    fs::write(tree.join("umlaut \u{e4}"), b"").unwrap();
    fs::set_permissions(tree.join("a"), fs::Permissions::from_mode(0o6751)).unwrap();
    std::os::unix::fs::chown(tree.join("a"), Some(70_000), Some(3_000_000_000)).unwrap();
    fs::set_permissions(tree.join("a"), fs::Permissions::from_mode(0o6751)).unwrap();
    let device = libc::makedev(240, 300_000);
    let kind = rustix::fs::FileType::CharacterDevice;
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(rustix::fs::CWD, tree.join("device"), kind, mode, device).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(tree.join("a"), "user.note", b"\0=\n", flags).unwrap();
}

/// The archives of the field's tools come out as they went in.
#[tokio::test(flavor = "multi_thread")]
async fn archives_of_gnu_tar_come_out_as_they_went_in() {
    let lab = Lab::new();
    let tree = lab.dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    plant(&tree);
    for (format, keeps) in [
        ("posix", ["--xattrs", "--format=posix"]),
        ("gnu", ["--no-xattrs", "--format=gnu"]),
    ] {
        let output = std::process::Command::new("tar")
            .args(keeps)
            .args(["--numeric-owner", "-c", "-C"])
            .args([tree.as_path(), Path::new(".")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let saved = lab.serve(&corten_tests::image::Image::new().archive(output.stdout), &["tar:1"]);
        lab.pull("tar:1").await.unwrap();
        let unpacked = describe(&lab.store().layer_path(&saved.diff_ids[0]));
        let (mut expected, mut found) = (describe(&tree), unpacked);
        if format == "gnu" {
            // This format has whole seconds and no xattrs.
            (expected, found) = (coarse(expected), coarse(found));
        }
        assert_eq!(found, expected, "{format}");
    }
    lab.finish();
}

/// A description without nanoseconds and xattrs.
fn coarse(description: Vec<String>) -> Vec<String> {
    let cut = |line: String| {
        let (head, tail) = line.split_once("), (").or_else(|| line.split_once(") (")).unwrap();
        let (time, rest) = tail.split_once(')').unwrap();
        let seconds = time.split(',').next().unwrap();
        let rest = rest.split_once(" Some(").map_or(rest, |(before, _)| before);
        format!("{head} {seconds} {}", rest.split(" None").next().unwrap())
    };
    description.into_iter().map(cut).collect()
}
