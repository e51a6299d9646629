//! A container's root: what shows through the layers, and how many there may be.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use corten_cri::image::Image;
use corten_cri::image::snapshot::{self, LayerLimits, Snapshots, Snapshotter, Volume};
use corten_tests::image::{self, Layer};

use crate::{Lab, dig, names, small_layer, wait_for};

/// Every way to make a root.
pub(crate) const WAYS: [Snapshotter; 2] = [Snapshotter::Overlayfs, Snapshotter::Native];

/// A mounted root, unmounted and removed at the end.
pub(crate) struct Root {
    pub(crate) target: PathBuf,
    dir: PathBuf,
    snapshots: Arc<Snapshots>,
}

impl Root {
    fn mount(lab: &Lab, image: &Arc<Image>) -> Root {
        Root::mount_by(lab, image, Snapshotter::Overlayfs, None)
    }

    pub(crate) fn mount_by(lab: &Lab, image: &Arc<Image>, way: Snapshotter, user_namespace: Option<&fs::File>) -> Root {
        let root = Root {
            target: lab.dir.path().join("rootfs"),
            dir: lab.dir.path().join("containers/c"),
            snapshots: snapshots(lab, way),
        };
        for dir in [&root.target, &root.dir] {
            fs::create_dir_all(dir).unwrap();
        }
        let wanted = snapshot::Root {
            layers: &image.layers,
            dir: &root.dir,
            target: &root.target,
            user_namespace: user_namespace.map(AsFd::as_fd),
        };
        root.snapshots.mount(&wanted).unwrap();
        root
    }
}

pub(crate) fn snapshots(lab: &Lab, way: Snapshotter) -> Arc<Snapshots> {
    let containers = lab.dir.path().join("containers");
    fs::create_dir_all(&containers).unwrap();
    Snapshots::open(lab.store().clone(), &containers, way, LayerLimits::default()).unwrap()
}

impl Drop for Root {
    fn drop(&mut self) {
        snapshot::unmount(&self.target).unwrap();
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

/// A process in a user namespace that maps its ids to 100000 and on; ended at the end.
pub(crate) struct Mapped(Child);

impl Mapped {
    pub(crate) fn start() -> Mapped {
        let mut command = Command::new("unshare");
        let child = command
            .args(["--user", "sleep", "1000"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mapped = Mapped(child);
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/user"));
        let process = mapped.0.id().to_string();
        let own = namespace("self").unwrap();
        wait_for("the namespace", || namespace(&process).is_ok_and(|it| it != own));
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{process}/{map}"), "0 100000 65536").unwrap();
        }
        mapped
    }

    pub(crate) fn namespace(&self) -> fs::File {
        fs::File::open(format!("/proc/{}/ns/user", self.0.id())).unwrap()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What a tree holds: type, mode, owner, size, links, modification time and content or target, by path.
fn contents(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let at = root.join(&path);
        let metadata = at.symlink_metadata().unwrap();
        let kind = metadata.file_type();
        let content = match kind {
            _ if kind.is_dir() => {
                pending.extend(names(&at).iter().map(|name| path.join(name)));
                String::new()
            }
            _ if kind.is_symlink() => fs::read_link(&at).unwrap().display().to_string(),
            _ if kind.is_file() => String::from_utf8_lossy(&fs::read(&at).unwrap()).into_owned(),
            _ => format!("fifo {} device {}", kind.is_fifo(), metadata.rdev()),
        };
        // A directory's own links and times are the filesystem's.
        let (links, modified) = match kind.is_dir() {
            true => (0, 0),
            false => (metadata.nlink(), metadata.mtime()),
        };
        let described = format!(
            "{:o} {}:{} {links} {modified} {content}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid()
        );
        found.insert(path, described);
    }
    found
}

/// An image in which every layer undoes something of the one below.
fn awkward() -> image::Image {
    let bottom = Layer::new()
        .dir("./", 0o755)
        .file("kept", 0o4755, b"kept")
        .hard_link("kept-too", "kept")
        .file("changed", 0o644, b"bottom")
        .file("deleted", 0o644, b"bottom")
        .dir("opaque", 0o755)
        .file("opaque/below", 0o644, b"bottom")
        .dir("to-file", 0o755)
        .file("to-file/x", 0o644, b"bottom")
        .file("to-dir", 0o644, b"bottom")
        .symlink("to-link-dir", "/etc")
        .dir("merged", 0o711)
        .file("merged/below", 0o600, b"bottom");
    let middle = Layer::new()
        .entry(&image::Entry {
            path: "changed",
            mode: 0o600,
            uid: 7,
            gid: 8,
            data: b"middle",
            ..image::Entry::default()
        })
        .whiteout("", "deleted")
        .opaque("opaque")
        .file("opaque/above", 0o644, b"middle")
        .file("to-file", 0o644, b"middle")
        .dir("to-dir", 0o755)
        .file("to-dir/x", 0o644, b"middle")
        .dir("to-link-dir", 0o755)
        .file("to-link-dir/passwd", 0o644, b"middle");
    let top = Layer::new()
        .dir("merged", 0o755)
        .file("merged/above", 0o644, b"top")
        .symlink("link", "merged/above")
        .entry(&image::Entry {
            path: "fifo",
            kind: tar::EntryType::Fifo,
            mode: 0o644,
            ..image::Entry::default()
        });
    image::Image::new().layer(bottom).layer(middle).layer(top)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_shows_what_overlayfs_shows() {
    let lab = Lab::new();
    lab.serve(&awkward(), &["a:1"]);
    let image = lab.pull("a:1").await.unwrap();
    let seen = WAYS.map(|way| {
        let root = Root::mount_by(&lab, &image, way, None);
        let seen = contents(&root.target);
        fs::write(root.target.join("kept"), "changed").unwrap();
        fs::remove_dir_all(root.target.join("merged")).unwrap();
        seen
    });
    assert_eq!(seen[0], seen[1]);
    assert!(!seen[0].contains_key(Path::new("deleted")), "{seen:?}");
    assert!(seen[0][Path::new("to-link-dir/passwd")].ends_with("middle"));
    let layer = lab.store().layer_path(&image.layers[0]);
    assert_eq!(fs::read(layer.join("kept")).unwrap(), b"kept", "layers never change");
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_overlayfs_cannot_be_mounted_a_copy_is_made() {
    let lab = Lab::new();
    lab.serve(&awkward(), &["a:1"]);
    let image = lab.pull("a:1").await.unwrap();
    // Containers' directories on an overlay: overlayfs refuses to write to one.
    let at = |name: &str| lab.dir.path().join(name);
    for name in ["lower", "upper", "work", "containers"] {
        fs::create_dir(at(name)).unwrap();
    }
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| at(name).display().to_string());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let mut mount = Command::new("mount");
    mount.args(["-t", "overlay", "overlay", "-o", &options]);
    assert!(mount.arg(at("containers")).status().unwrap().success());
    let open = |way| Snapshots::open(lab.store().clone(), &at("containers"), way, LayerLimits::default());
    let error = format!("{:#}", open(Snapshotter::Overlayfs).err().expect("no overlayfs there"));
    assert!(error.contains("storage.snapshotter"), "{error}");
    {
        let root = Root::mount_by(&lab, &image, Snapshotter::Auto, None);
        assert_eq!(fs::read(root.target.join("changed")).unwrap(), b"middle");
        assert!(root.dir.join("root/changed").is_file(), "a copy");
        assert_eq!(names(&at("containers")), ["c"], "nothing is left of the trial");
    }
    snapshot::unmount(&at("containers")).unwrap();
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_namespace_sees_its_own_ids_in_every_layer() {
    let lab = Lab::new();
    let mut built = awkward();
    for number in 0..60 {
        built = built.layer(small_layer(&format!("file-{number:03}")));
    }
    lab.serve(&built, &["a:1"]);
    let image = lab.pull("a:1").await.unwrap();
    let process = Mapped::start();
    for way in WAYS {
        let before = mounts(&lab).len();
        let root = Root::mount_by(&lab, &image, way, Some(&process.namespace()));
        assert_eq!(
            mounts(&lab).len(),
            before + 1,
            "{way:?}: the layers' mount is nowhere in the tree"
        );
        let owner = |name: &str| {
            let metadata = root.target.join(name).symlink_metadata().unwrap();
            (metadata.uid(), metadata.gid())
        };
        assert_eq!(owner(""), (100_000, 100_000), "{way:?}");
        assert_eq!(owner("file-000"), (100_000, 100_000), "{way:?}");
        assert_eq!(owner("changed"), (100_007, 100_008), "{way:?}");
        let namespace = process.namespace();
        let volume = Volume {
            layers: &image.layers,
            dir: &lab.dir.path().join("view"),
            sub_path: "changed",
            user_namespace: Some(namespace.as_fd()),
        };
        let viewed = fs::metadata(root.snapshots.view(&volume).unwrap()).unwrap();
        assert_eq!((viewed.uid(), viewed.gid()), (100_007, 100_008), "{way:?}");
        snapshot::unmount(&volume.dir.join("mount")).unwrap();
        fs::remove_dir_all(volume.dir).unwrap();
        // A change copies the file up: with the same owner.
        fs::write(root.target.join("changed"), "by the node").unwrap();
        assert_eq!(owner("changed"), (100_007, 100_008), "{way:?}");
    }
    let layer = lab.store().layer_path(&image.layers[1]);
    assert_eq!(
        fs::metadata(layer.join("changed")).unwrap().uid(),
        7,
        "on the disk nothing changes"
    );
    drop(process);
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_shows_an_image_or_a_part_of_it_and_takes_no_write() {
    let lab = Lab::new();
    let layer = || {
        Layer::new()
            .dir("./", 0o755)
            .dir("models", 0o755)
            .file("models/weights", 0o644, b"weights")
            .symlink("latest", "/models")
            .symlink("out", "../../../../../../etc")
            .symlink("loop", "loop")
    };
    lab.serve(&image::Image::new().layer(layer()), &["one:1"]);
    lab.serve(
        &image::Image::new().layer(layer()).layer(small_layer("more")),
        &["two:1"],
    );
    lab.serve(&image::Image::new(), &["none:1"]);
    let images = [
        lab.pull("one:1").await,
        lab.pull("two:1").await,
        lab.pull("none:1").await,
    ];
    let images = images.map(Result::unwrap);
    let views = lab.dir.path().join("views");
    for way in WAYS {
        fs::create_dir(&views).unwrap();
        let snapshots = snapshots(&lab, way);
        let view = |image: usize, name: &str, sub_path: &str| {
            let dir = views.join(name);
            snapshots.view(&Volume {
                layers: &images[image].layers,
                dir: &dir,
                sub_path,
                user_namespace: None,
            })
        };
        let whole = view(0, "whole", "").unwrap();
        assert_eq!(fs::read(whole.join("models/weights")).unwrap(), b"weights");
        let error = fs::write(whole.join("new"), "").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{way:?}");
        assert_eq!(names(&view(1, "two", "").unwrap()).len(), 5);
        assert!(names(&view(2, "none", "").unwrap()).is_empty());
        for (number, sub_path) in ["models", "/models/", "latest", "./latest/."].into_iter().enumerate() {
            let part = view(0, &format!("part-{number}"), sub_path).unwrap();
            assert_eq!(names(&part), ["weights"], "{sub_path}");
            assert!(fs::write(part.join("new"), "").is_err(), "{sub_path}");
        }
        let file = view(0, "file", "latest/weights").unwrap();
        assert_eq!(fs::read(file).unwrap(), b"weights");
        for (number, bad) in ["absent", "models/weights/x", "../etc", "models/../..", "out", "loop"]
            .into_iter()
            .enumerate()
        {
            let error = view(0, &format!("bad-{number}"), bad).unwrap_err();
            assert!(format!("{error:#}").contains(bad), "{error:#}");
        }
        snapshot::unmount_volumes(&views).unwrap();
        fs::remove_dir_all(&views).unwrap();
    }
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_writes_is_counted() {
    let lab = Lab::new();
    lab.serve(&image::Image::new().layer(small_layer("a")), &["a:1"]);
    let image = lab.pull("a:1").await.unwrap();
    let root = Root::mount(&lab, &image);
    fs::write(root.target.join("written"), vec![1; 3 << 20]).unwrap();
    // As after a restart: the first round of the walk begins at once.
    let restarted = snapshots(&lab, Snapshotter::Auto);
    let counted = || restarted.usage(&root.dir).map(|(usage, _)| usage).unwrap_or_default();
    // A few files are counted when they are asked for, all containers by the walk.
    wait_for("the first round", || restarted.total_usage().0.bytes >= 3 << 20);
    assert_eq!(counted().inodes, 2, "the root and the file");
    assert_eq!(restarted.total_usage().0, counted());
    drop(restarted);
    drop(root);
    lab.finish();
}

/// The mounts below a test's directory.
fn mounts(lab: &Lab) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let marker = lab.dir.path().to_str().unwrap();
    let marked = table.lines().filter(|line| line.contains(marker));
    marked.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn upper_layers_hide_lower_ones() {
    let lab = Lab::new();
    let bottom = Layer::new()
        .dir("./", 0o755)
        .file("both", 0o644, b"bottom")
        .file("deleted", 0o644, b"bottom")
        .dir("opaque", 0o755)
        .file("opaque/below", 0o644, b"bottom")
        .dir("replaced", 0o755)
        .file("replaced/below", 0o644, b"bottom")
        .dir("merged", 0o755)
        .file("merged/below", 0o644, b"bottom");
    let top = Layer::new()
        .entry(&image::Entry {
            path: "./",
            kind: tar::EntryType::Directory,
            mode: 0o751,
            uid: 5,
            gid: 6,
            ..image::Entry::default()
        })
        .file("both", 0o644, b"top")
        .whiteout("", "deleted")
        .opaque("opaque")
        .file("opaque/above", 0o644, b"top")
        .whiteout("", "replaced")
        .dir("replaced", 0o755)
        .file("merged/above", 0o644, b"top");
    lab.serve(&image::Image::new().layer(bottom).layer(top), &["a:1"]);
    let image = lab.pull("a:1").await.unwrap();
    {
        let root = Root::mount(&lab, &image);
        let list = |dir: &str| names(&root.target.join(dir));
        assert_eq!(list(""), ["both", "merged", "opaque", "replaced"]);
        assert_eq!(fs::read(root.target.join("both")).unwrap(), b"top");
        assert_eq!(list("opaque"), ["above"]);
        assert!(
            list("replaced").is_empty(),
            "a whiteout before its directory hides what was below"
        );
        assert_eq!(list("merged"), ["above", "below"]);
        let top = fs::metadata(&root.target).unwrap();
        assert_eq!((top.mode() & 0o7777, top.uid(), top.gid()), (0o751, 5, 6));
        fs::write(root.target.join("both"), "container").unwrap();
        fs::remove_file(root.target.join("merged/below")).unwrap();
        assert_eq!(fs::read(root.dir.join("upper/both")).unwrap(), b"container");
    }
    let layer = lab.store().layer_path(&image.layers[1]);
    assert_eq!(fs::read(layer.join("both")).unwrap(), b"top", "layers never change");
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_may_have_127_layers_some_alike_or_none() {
    let lab = Lab::new();
    let mut image = image::Image::new();
    for number in 0..126 {
        image = image.layer(small_layer(&format!("file-{number:03}")));
    }
    // The first once more: overlayfs takes no directory twice.
    image = image.layer(small_layer("file-000"));
    lab.serve(&image, &["many:1"]);
    let many = lab.pull("many:1").await.unwrap();
    assert_eq!(many.layers.len(), 127);
    {
        let root = Root::mount(&lab, &many);
        assert_eq!(names(&root.target).len(), 126);
    }
    lab.serve(&image::Image::new(), &["none:1"]);
    let none = lab.pull("none:1").await.unwrap();
    assert!(none.layers.is_empty() && none.size > 0);
    {
        let root = Root::mount(&lab, &none);
        assert!(names(&root.target).is_empty());
        fs::write(root.target.join("new"), "").unwrap();
    }
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_layer_mounts_nothing() {
    let lab = Lab::new();
    let image = {
        lab.serve(&image::Image::new().layer(small_layer("a")), &["a:1"]);
        lab.pull("a:1").await.unwrap()
    };
    fs::remove_dir_all(lab.store().layer_path(&image.layers[0])).unwrap();
    let base = lab.dir.path().join("containers/c");
    for dir in ["rootfs", "dir"] {
        fs::create_dir_all(base.join(dir)).unwrap();
    }
    let snapshots = snapshots(&lab, Snapshotter::Auto);
    let root = snapshot::Root {
        layers: &image.layers,
        dir: &base.join("dir"),
        target: &base.join("rootfs"),
        user_namespace: None,
    };
    let error = snapshots.mount(&root).unwrap_err();
    assert!(format!("{error:#}").contains(image.layers[0].hex()), "{error:#}");
    drop(snapshots);
    lab.finish();
}

/// mkdir and chdir are all it takes to make it, from within any container.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_has_dug_is_removed_however_deep() {
    let lab = Lab::new();
    let snapshots = snapshots(&lab, Snapshotter::Overlayfs);
    let dir = lab.dir.path().join("containers/c");
    fs::create_dir(&dir).unwrap();
    dig(&dir.join("upper"), 20_000);
    // On a thread as the server's for blocking work.
    let removing = tokio::task::spawn_blocking(move || snapshots.remove(&dir).map(|()| dir));
    let dir = removing.await.unwrap().unwrap();
    assert!(!dir.exists());
    lab.finish();
}
