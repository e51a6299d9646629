//! Images built by umoci, unpacked by umoci and by us: both trees are the same in every respect an archive can hold.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use corten_cri::image::snapshot::{self, LayerLimits, Snapshots, Snapshotter};
use corten_tests::image::{Entry, Layer};
use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use tar::EntryType;

use crate::{Lab, names};

/// cap_net_raw, permitted and effective (linux/capability.h, revision 2).
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} (a Debian package): {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

/// A file's extended attributes, by name.
fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = vec![0u8; 4096];
    let length = rustix::fs::llistxattr(path, &mut list).unwrap();
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let read = |name: &[u8]| {
        let mut value = vec![0u8; 65536];
        let length = rustix::fs::lgetxattr(path, CString::new(name).unwrap().as_c_str(), &mut value).unwrap();
        value.truncate(length);
        (String::from_utf8(name.to_vec()).unwrap(), value)
    };
    names.map(read).filter(|(name, _)| name != "security.selinux").collect()
}

/// Everything about the files below `root`, each by its path. Hard links name the first of their names.
fn describe(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut first_names: BTreeMap<u64, String> = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(dir) = pending.pop() {
        let mut entries = names_of(&root.join(&dir));
        entries.sort();
        for name in entries {
            let (short, path) = (dir.join(&name), root.join(&dir).join(&name));
            let shown = format!("{short:?}");
            let metadata = fs::symlink_metadata(&path).unwrap();
            let kind = metadata.file_type();
            let content = if kind.is_file() {
                format!("{:?}", corten_tests::image::digest_of(&fs::read(&path).unwrap()))
            } else if kind.is_symlink() {
                format!("{:?}", fs::read_link(&path).unwrap())
            } else {
                String::new()
            };
            let mut links = String::new();
            if kind.is_dir() {
                pending.push(short);
            } else {
                let first = first_names.entry(metadata.ino()).or_insert_with(|| shown.clone());
                links = format!("{} of {first}", metadata.nlink());
            }
            let (owner, device) = ((metadata.uid(), metadata.gid()), metadata.rdev());
            let size = if kind.is_dir() { 0 } else { metadata.size() };
            let description = format!(
                "{:o} {owner:?} {device:x} {size} {}.{:09} {links} {:?} {content}",
                metadata.mode(),
                metadata.mtime(),
                metadata.mtime_nsec(),
                xattrs(&path),
            );
            found.insert(shown, description);
        }
    }
    found
}

fn names_of(dir: &Path) -> Vec<std::ffi::OsString> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn set_time(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Makes a tree of everything that a filesystem can hold and a layer has to keep.
fn plant(tree: &Path) {
    let at = |name: &str| tree.join(name);
    let deep = at(&"d".repeat(90)).join("e".repeat(90)).join("f".repeat(120));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), b"deep").unwrap();
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/inside"), b"inside").unwrap();
    fs::write(at("owned"), vec![7; 100_000]).unwrap();
    chown(at("owned"), Some(70_000), Some(3_000_000_000)).unwrap();
    fs::set_permissions(at("owned"), fs::Permissions::from_mode(0o6751)).unwrap();
    fs::hard_link(at("owned"), at("second-name")).unwrap();
    fs::hard_link(at("owned"), at("dir/third-name")).unwrap();
    symlink("x".repeat(300), at("long-link")).unwrap();
    symlink("dir", at("link-to-dir")).unwrap();
    symlink("/etc/passwd", at("link-out")).unwrap();
    let odd = std::ffi::OsString::from_vec(b"not \xff utf-8 \n * \\".to_vec());
    fs::write(tree.join(odd), b"odd").unwrap();
    fs::write(at("empty"), b"").unwrap();
    fs::write(at("capable"), b"#!").unwrap();
    set_xattr(&at("capable"), "security.capability", CAPABILITY);
    set_xattr(&at("capable"), "user.binary", b"\0=\n\xff");
    set_xattr(&at("dir"), "trusted.dir", b"1");
    set_xattr(&at("long-link"), "trusted.link", b"2");
    fs::create_dir(at("sticky")).unwrap();
    fs::set_permissions(at("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::create_dir(at("setgid")).unwrap();
    chown(at("setgid"), Some(5), Some(50)).unwrap();
    fs::set_permissions(at("setgid"), fs::Permissions::from_mode(0o2770)).unwrap();
    fs::write(at("setgid/inherits-not"), b"").unwrap();
    for (name, kind, device) in [
        ("char", FileType::CharacterDevice, libc::makedev(240, 300_000)),
        ("block", FileType::BlockDevice, libc::makedev(7, 1)),
        ("fifo", FileType::Fifo, 0),
    ] {
        rustix::fs::mknodat(CWD, at(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    }
    plant_holes(tree);
    set_time(&at("owned"), 1_000_000_000, 123_456_789);
    set_time(&at("empty"), -5, 250_000_000);
    set_time(&at("long-link"), 7, 7);
    set_time(&at("fifo"), 8, 8);
    set_time(&at("dir"), 1_234_567_890, 999_999_999);
    set_time(&deep, 9, 9);
}

/// Files with holes at the beginning, at the end, everywhere and only.
fn plant_holes(tree: &Path) {
    use std::os::unix::fs::FileExt;
    for (name, size, pieces) in [
        ("hole-first", 5 << 20, &[((5u64 << 20) - 5, 5usize)][..]),
        ("hole-last", 3 << 20, &[(0, 4096)]),
        ("hole-only", 1 << 20, &[]),
        (
            "many-holes",
            8 << 20,
            &[(0, 1), (1 << 20, 4096), (2 << 20, 70_000), (6 << 20, 9)],
        ),
    ] {
        let file = fs::File::create(tree.join(name)).unwrap();
        file.set_len(size).unwrap();
        for (offset, length) in pieces {
            file.write_all_at(&vec![b'h'; *length], *offset).unwrap();
        }
    }
    let file = fs::File::create(tree.join("thirty-holes")).unwrap();
    for place in 0..30 {
        file.write_all_at(&[b'x'; 100], place << 16).unwrap();
    }
}

/// What no filesystem hands to an archiver, but archives hold: replacements, whiteouts, odd names of one place.
fn awkward() -> Layer {
    let (file, dir) = (EntryType::Regular, EntryType::Directory);
    Layer::new()
        .dir("./later", 0o750)
        .file("./later//a", 0o644, b"first")
        .file("later/a", 0o600, b"second")
        .dir("swap", 0o755)
        .file("swap/in", 0o644, b"gone")
        .file("swap", 0o644, b"a file now")
        .file("back", 0o644, b"gone")
        .dir("back", 0o711)
        .file("back/in", 0o644, b"in a directory")
        .symlink("sym", "later")
        .file("sym", 0o644, b"no link now")
        .whiteout("", "hole-last")
        .whiteout("dir", "inside")
        .dir("setgid", 0o700)
        .opaque("setgid")
        .file("setgid/above", 0o644, b"above")
        .entry(&Entry {
            path: "times",
            kind: dir,
            mode: 0o755,
            pax: &[("mtime", b"55.000000005")],
            ..Entry::default()
        })
        .entry(&Entry {
            path: "times/before-1970",
            kind: file,
            pax: &[("mtime", b"-1.25")],
            uid: 9,
            ..Entry::default()
        })
        .hard_link("times/link", "times/before-1970")
        .dir("dir", 0o755)
}

/// An archive of `tree` in one of GNU tar's formats.
fn gnu_tar(tree: &Path, format: &[&str], archive: &Path) {
    let (tree, archive) = (tree.to_str().unwrap(), archive.to_str().unwrap());
    let fixed = ["--numeric-owner", "-C", tree, "-cf", archive, "."];
    run("tar", &[format, &fixed].concat());
}

/// Builds the image `image:1` of the layout `layout`: a layer that umoci wrote itself, then `archives` as they are.
fn build(dir: &Path, layout: &str, archives: &[PathBuf]) {
    let (image, bundle) = (format!("{layout}:1"), dir.join("bundle"));
    run("umoci", &["init", "--layout", layout]);
    run("umoci", &["new", "--image", &image]);
    run("umoci", &["unpack", "--image", &image, bundle.to_str().unwrap()]);
    plant(&bundle.join("rootfs"));
    run("umoci", &["repack", "--image", &image, bundle.to_str().unwrap()]);
    for archive in archives {
        run(
            "umoci",
            &["raw", "add-layer", "--image", &image, archive.to_str().unwrap()],
        );
    }
}

/// Serves what umoci has in `layout` as `umoci:1`.
fn serve(lab: &Lab, layout: &Path) {
    let read = |path: PathBuf| -> serde_json::Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let blobs = lab.served().join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    for name in names(&layout.join("blobs/sha256")) {
        fs::copy(layout.join("blobs/sha256").join(&name), blobs.join(&name)).unwrap();
    }
    let digest = read(layout.join("index.json"))["manifests"][0]["digest"].clone();
    let mut manifest = read(corten_tests::image::blob_path(
        layout,
        &digest.as_str().unwrap().parse().unwrap(),
    ));
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    manifest["mediaType"] = media_type.into();
    corten_tests::image::save_document(&lab.served(), &manifest, media_type, &["umoci:1"]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_every_awkward_feature_comes_out_as_from_umoci() {
    let lab = Lab::new();
    let work = lab.dir.path().join("umoci");
    let (posix, gnu) = (work.join("posix"), work.join("gnu"));
    for tree in [&posix, &gnu] {
        fs::create_dir_all(tree.join("tree")).unwrap();
        plant(&tree.join("tree"));
        set_time(tree, 11, 11);
    }
    let archives = ["posix.tar", "gnu.tar", "awkward.tar"].map(|name| work.join(name));
    gnu_tar(
        &posix,
        &["--format=posix", "--sparse", "--xattrs", "--xattrs-include=*"],
        &archives[0],
    );
    gnu_tar(&gnu, &["--format=gnu"], &archives[1]);
    fs::write(&archives[2], awkward().into_tar()).unwrap();
    let layout = work.join("layout");
    build(&work, layout.to_str().unwrap(), &archives);
    let theirs = work.join("unpacked");
    let image = format!("{}:1", layout.display());
    run("umoci", &["unpack", "--image", &image, theirs.to_str().unwrap()]);

    serve(&lab, &layout);
    let pulled = lab.pull("umoci:1").await.unwrap();
    let (ours, dir) = (work.join("root"), work.join("snapshot"));
    for made in [&ours, &dir] {
        fs::create_dir(made).unwrap();
    }
    let snapshots = Snapshots::open(
        lab.store().clone(),
        &work,
        Snapshotter::Overlayfs,
        LayerLimits::default(),
    )
    .unwrap();
    let root = snapshot::Root {
        layers: &pulled.layers,
        dir: &dir,
        target: &ours,
        user_namespace: None,
    };
    snapshots.mount(&root).unwrap();
    let (expected, found) = (describe(&theirs.join("rootfs")), describe(&ours));
    snapshot::unmount(&ours).unwrap();
    assert!(expected.len() > 50, "{} files", expected.len());
    let paths: std::collections::BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    let differ = paths.into_iter().filter(|path| expected.get(*path) != found.get(*path));
    let shown: Vec<String> = differ
        .map(|path| {
            format!(
                "{path}\n  umoci {:?}\n  ours  {:?}",
                expected.get(path),
                found.get(path)
            )
        })
        .collect();
    assert!(shown.is_empty(), "{}", shown.join("\n"));
    lab.finish();
}

/// Holes stay holes: a sparse file takes what it holds, not what it is long.
#[tokio::test(flavor = "multi_thread")]
async fn holes_stay_holes() {
    let lab = Lab::new();
    let tree = lab.dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    plant_holes(&tree);
    let huge = fs::File::create(tree.join("huge"));
    huge.and_then(|file| file.set_len(1 << 40)).unwrap();
    let archive = lab.dir.path().join("holes.tar");
    for format in [
        ["--format=gnu", "--sparse"],
        ["--format=posix", "--sparse-version=0.0"],
        ["--format=posix", "--sparse-version=0.1"],
        ["--format=posix", "--sparse-version=1.0"],
    ] {
        gnu_tar(&tree, &format, &archive);
        let image = corten_tests::image::Image::new().archive(fs::read(&archive).unwrap());
        let saved = lab.serve(&image, &["holes:1"]);
        lab.pull("holes:1").await.unwrap();
        let root = lab.store().layer_path(&saved.diff_ids[0]);
        for name in names(&tree) {
            let (was, is) = (
                fs::metadata(tree.join(&name)).unwrap(),
                fs::metadata(root.join(&name)).unwrap(),
            );
            assert_eq!(is.len(), was.len(), "{format:?} {name}");
            assert!(
                is.blocks() <= was.blocks() + 16,
                "{format:?} {name}: {} blocks",
                is.blocks()
            );
            if name != "huge" {
                let same = fs::read(root.join(&name)).unwrap() == fs::read(tree.join(&name)).unwrap();
                assert!(same, "{format:?} {name}");
            }
        }
        lab.store().remove(saved.id.as_str()).await.unwrap();
    }
    lab.finish();
}
