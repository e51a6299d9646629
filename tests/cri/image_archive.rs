//! Images from archives and to archives; skopeo makes them and reads them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corten_tests::image::{self, Entry, Image, Layer, Packing, blob_path, digest_of};
use corten_tests::image_cli::{run, skopeo_copy};
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::container;
use flate2::{Compression, write::GzEncoder};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tar::EntryType;

/// A file of the node's directory.
pub(crate) fn at(node: &Node, name: &str) -> String {
    node.dir().join(name).display().to_string()
}

/// A layout with one image, and the image's id.
pub(crate) fn layout(node: &Node, name: &str) -> (PathBuf, String) {
    let dir = node.dir().join("layout");
    let built = Image::new()
        .layer(Layer::new().file("a", 0o644, b"lower").file("b", 0o644, b"b"))
        .layer(Layer::new().file("a", 0o644, b"upper"));
    let saved = built.save(&dir, &[name]).unwrap();
    (dir, saved.id.to_string())
}

fn gzip(path: &str) -> String {
    let packed = format!("{path}.gz");
    let mut out = GzEncoder::new(File::create(&packed).unwrap(), Compression::fast());
    std::io::copy(&mut File::open(path).unwrap(), &mut out).unwrap();
    out.finish().unwrap();
    packed
}

fn list(node: &Node) -> Value {
    serde_json::from_str::<Value>(&node.image(&["list", "--output=json"])).unwrap()["images"].take()
}

/// Nothing came in, and nothing of it is left.
pub(crate) fn assert_empty(node: &Node) {
    assert_eq!(list(node), json!([]));
    let deadline = Instant::now() + Duration::from_secs(5);
    let left = || fs::read_dir(node.dir().join("lib/layers")).unwrap().count();
    while left() > 0 {
        assert!(Instant::now() < deadline, "layers are left");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn every_form_of_archive_gives_the_same_image() {
    let node = Node::start();
    let name = "registry.example/team/app:1";
    let (dir, id) = layout(&node, name);
    let from = format!("oci:{}:{name}", dir.display());
    let (oci, docker) = (at(&node, "oci.tar"), at(&node, "docker.tar"));
    skopeo_copy(&from, &format!("oci-archive:{oci}:{name}"));
    skopeo_copy(&from, &format!("docker-archive:{docker}:{name}"));
    let packed = [gzip(&oci), gzip(&docker)];
    for source in [dir.to_str().unwrap(), &oci, &docker, &packed[0], &packed[1]] {
        assert_eq!(node.image(&["import", source]), format!("{id} {name}\n"), "{source}");
        let images = list(&node);
        assert_eq!(images[0]["repo_tags"], json!([name]), "{source}");
        let digests = images[0]["repo_digests"].as_array().unwrap();
        assert_eq!(
            digests.len(),
            usize::from(!source.contains("docker")),
            "{source}: {images}"
        );
        assert_eq!(node.image(&["check"]).lines().count(), 1, "{source}");
        node.image(&["remove", name]);
        let stdin = File::open(source).unwrap();
        if stdin.metadata().unwrap().is_file() {
            let named = node.image_from(&["import", "-", "--name", "other.example/x"], stdin);
            assert_eq!(named, format!("{id} other.example/x:latest\n"), "{source}");
            node.image(&["remove", &id]);
        }
    }
    assert_empty(&node);
}

#[test]
fn docker_archives_and_their_layers_may_be_packed_with_zstd() {
    let node = Node::start();
    let dir = node.dir().join("layout");
    let mut built = Image::new().layer(Layer::new().file("a", 0o644, b"content"));
    built.packing = Packing::Zstd;
    let saved = built.save(&dir, &["a.example/a:1"]).unwrap();
    let blob = |digest| fs::read(blob_path(&dir, digest)).unwrap();
    let list = json!([{ "Config": "config", "RepoTags": ["a.example/a:1"], "Layers": ["layer"] }]).to_string();
    let archive = Layer::new()
        .file("manifest.json", 0o644, list.as_bytes())
        .file("config", 0o644, &blob(&saved.id))
        .file("layer", 0o644, &blob(&saved.blobs[0]))
        .into_tar();
    let packed = zstd::encode_all(archive.as_slice(), 1).unwrap();
    for (name, content) in [("plain.tar", archive), ("packed.tar.zst", packed)] {
        fs::write(at(&node, name), content).unwrap();
        let imported = node.image(&["import", &at(&node, name)]);
        assert_eq!(imported, format!("{} a.example/a:1\n", saved.id), "{name}");
        node.image(&["remove", "a.example/a:1"]);
    }
}

#[test]
fn an_imported_image_runs() {
    let node = Node::start();
    let file = at(&node, "busybox.tar");
    let from = format!("oci:{}:busybox:latest", node.dir().join("images").display());
    skopeo_copy(&from, &format!("docker-archive:{file}:{BUSYBOX}"));
    let imported = node.image(&["import", &file]);
    assert!(imported.ends_with(&format!(" {BUSYBOX}\n")), "{imported}");
    // What the pod needs is here: the registry is not asked for a layer.
    node.registry()
        .fail("/blobs/", Some(corten_tests::registry::Fault::Status(500)));
    let pod = node.pod("imported");
    let running = pod.start(container("main", &["sleep", "1000"]));
    assert_eq!(running.exec_sh("cat /etc/hostname").trim(), "imported");
    running.stop(0);
    running.remove();
}

#[test]
fn several_images_of_one_archive() {
    let node = Node::start();
    let dir = node.dir().join("layout");
    let build = |name: &str| Image::new().layer(Layer::new().file("name", 0o644, name.as_bytes()));
    let one = build("one")
        .save(&dir, &["a.example/one:1", "a.example/one:2"])
        .unwrap();
    // A bare tag is no name.
    let two = build("two").save(&dir, &["v2"]).unwrap();
    let mut foreign = build("foreign");
    foreign.architecture = "s390x".into();
    let foreign = foreign.save(&dir, &["x"]).unwrap();
    let index = image::save_index(
        &dir,
        &[("s390x", &foreign), (image::architecture(), &two)],
        &["a.example/many:1"],
    );
    index.unwrap();
    let mut list: Value = serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
    for entry in list["manifests"].as_array_mut().unwrap() {
        if entry["digest"] == foreign.manifest.as_str() {
            entry["platform"] = json!({ "os": "linux", "architecture": "s390x" });
        }
    }
    fs::write(dir.join("index.json"), list.to_string()).unwrap();
    let imported = node.image(&["import", dir.to_str().unwrap()]);
    let mut lines: Vec<&str> = imported.lines().collect();
    lines.sort_unstable();
    let mut expected = [
        format!("{} a.example/one:1", one.id),
        format!("{} a.example/one:2", one.id),
        two.id.to_string(),
        format!("{} a.example/many:1", two.id),
    ];
    expected.sort();
    assert_eq!(lines, expected);
    let refusal = node.image_refused(&["import", "--name", "a:1", dir.to_str().unwrap()]);
    assert!(refusal.contains("a name can be given to one only"), "{refusal}");
}

/// Every file of a tree, as everything that a layer keeps of it.
fn describe(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut links: BTreeMap<u64, String> = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let metadata = path.symlink_metadata().unwrap();
        if metadata.mode() & 0o170_000 == 0o020_000 && metadata.rdev() == 0 {
            // Owner and time of what only hides are nobody's.
            found.insert(name, "whiteout".to_owned());
            continue;
        }
        let content = if metadata.is_file() {
            digest_of(&fs::read(&path).unwrap()).to_string()
        } else if metadata.is_symlink() {
            path.read_link().unwrap().display().to_string()
        } else {
            String::new()
        };
        if metadata.is_dir() {
            let mut names: Vec<_> = path.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
            names.sort();
            waiting.extend(names.into_iter().rev());
        }
        let first = links.entry(metadata.ino()).or_insert_with(|| name.clone()).clone();
        let text = format!(
            "{:o} {}:{} rdev {} size {} time {}.{} link {first} {:?} {content}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.rdev(),
            if metadata.is_dir() { 0 } else { metadata.size() },
            metadata.mtime(),
            metadata.mtime_nsec(),
            xattrs(&path),
        );
        found.insert(name, text);
    }
    found
}

fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = String::from_utf8(names[..length].to_vec()).unwrap();
    let mut all: Vec<_> = names
        .split_terminator('\0')
        .map(|name| {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_owned(), value[..length].to_vec())
        })
        .collect();
    all.sort();
    all
}

/// A layer with everything that a layer can hold.
fn awkward() -> Layer {
    let entry = |path, kind| Entry {
        path,
        kind,
        ..Entry::default()
    };
    let long = "long/".to_owned() + &"n".repeat(150);
    let far = "/".to_owned() + &"t".repeat(150);
    Layer::new()
        .dir("./", 0o711)
        .entry(&Entry {
            mode: 0o2750,
            uid: 7,
            gid: 3_000_000_000,
            pax: &[
                ("mtime", b"-5.25"),
                ("gid", b"3000000000"),
                ("SCHILY.xattr.user.d", b"\0\xff"),
            ],
            ..entry("dir", EntryType::Directory)
        })
        .entry(&Entry {
            mode: 0o4755,
            data: b"content",
            pax: &[("mtime", b"100.000000007"), ("SCHILY.xattr.user.f", b"=\n")],
            ..entry("dir/file", EntryType::Regular)
        })
        .hard_link("dir/again", "dir/file")
        .symlink("dir/soft", "file")
        .entry(&Entry {
            link: &far,
            pax: &[("SCHILY.xattr.trusted.s", b"1")],
            ..entry("dir/far", EntryType::Symlink)
        })
        .entry(&entry("fifo", EntryType::Fifo))
        .entry(&Entry {
            device: (1, 3),
            mode: 0o666,
            ..entry("null", EntryType::Char)
        })
        .entry(&Entry {
            device: (259, 70_000),
            ..entry("disk", EntryType::Block)
        })
        .dir("long", 0o755)
        .file(&long, 0o600, b"x")
        .dir("hidden", 0o755)
        .opaque("hidden")
        .whiteout("dir", "gone")
        .file("empty", 0o644, b"")
}

#[test]
fn an_exported_image_has_the_same_content() {
    let node = Node::start();
    let name = "registry.example/awkward:1";
    let dir = node.dir().join("layout");
    let mut built = Image::new()
        .layer(
            Layer::new()
                .dir("dir", 0o755)
                .file("dir/gone", 0o644, b"")
                .file("hidden/x", 0o644, b""),
        )
        .layer(awkward());
    built.config = json!({ "Cmd": ["/x"], "Env": ["A=1"] });
    built.save(&dir, &[name]).unwrap();
    node.image(&["import", dir.to_str().unwrap()]);
    let layers = || -> Vec<PathBuf> {
        let shown: Value = serde_json::from_str(&node.image(&["inspect", name])).unwrap();
        let layers = shown["info"]["info"]["layers"].as_array().unwrap().clone();
        layers
            .iter()
            .map(|layer| PathBuf::from(layer["path"].as_str().unwrap()))
            .collect()
    };
    let before: Vec<_> = layers().iter().map(|path| describe(path)).collect();
    assert!(
        before[1].contains_key("dir/gone") && before[1].len() == 14,
        "{before:?}"
    );
    let (first, second) = (at(&node, "first.tar"), at(&node, "second.tar"));
    node.image(&["export", name, &first]);
    node.image(&["remove", name]);
    assert_empty(&node);
    let imported = node.image(&["import", &first]);
    let after: Vec<_> = layers().iter().map(|path| describe(path)).collect();
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before, after);
    }
    // Again, and through stdout: now it is byte for byte the same.
    let output = node
        .image_command(&["export", name, "-"])
        .stdout(File::create(&second).unwrap())
        .status();
    assert!(output.unwrap().success());
    assert_eq!(
        digest_of(&fs::read(&first).unwrap()),
        digest_of(&fs::read(&second).unwrap())
    );
    assert!(
        node.image(&["import", &second])
            .starts_with(imported.split(' ').next().unwrap())
    );

    let shown = run("skopeo", &["inspect", "--config", &format!("oci-archive:{first}")]);
    let config: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        (&config["config"]["Cmd"], &config["config"]["Env"]),
        (&json!(["/x"]), &json!(["A=1"]))
    );
    // It checks every digest on its way.
    skopeo_copy(
        &format!("oci-archive:{first}"),
        &format!("docker-archive:{}:a:1", at(&node, "third.tar")),
    );
    let refusal = node.image_refused(&["export", "absent:1", &at(&node, "absent.tar")]);
    assert!(refusal.contains("no such image"), "{refusal}");
    assert!(!node.dir().join("absent.tar").exists() && !node.dir().join("absent.tar.partial").exists());
}

#[test]
fn holes_stay_holes() {
    let node = Node::start();
    let dir = node.dir().join("layout");
    let mut content = b"2\n0\n4096\n6442450944\n0\n".to_vec();
    content.resize(512, 0);
    content.resize(512 + 4096, b'x');
    let layer = Layer::new().entry(&Entry {
        path: "sparse",
        data: &content,
        pax: &[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"6442450944"),
        ],
        ..Entry::default()
    });
    let name = "a.example/sparse:1";
    Image::new().layer(layer).save(&dir, &[name]).unwrap();
    node.image(&["import", dir.to_str().unwrap()]);
    assert_eq!(node.image(&["check"]).lines().count(), 1, "counted as it was unpacked");
    let file = at(&node, "sparse.tar");
    node.image(&["export", name, &file]);
    let size = fs::metadata(&file).unwrap().len();
    assert!(size < 1 << 20, "{size} bytes");
    node.image(&["remove", name]);
    node.image(&["import", &file]);
    assert_eq!(node.image(&["check"]).lines().count(), 1);
    let shown: Value = serde_json::from_str(&node.image(&["inspect", name])).unwrap();
    let files = PathBuf::from(shown["info"]["info"]["layers"][0]["path"].as_str().unwrap());
    let metadata = files.join("sparse").metadata().unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (6 << 30, 8));
    let layers = at(&node, "layers.tar");
    run(
        "skopeo",
        &["copy", &format!("oci-archive:{file}"), &format!("dir:{layers}")],
    );
    // Other readers know the form.
    let layer = fs::read_dir(&layers).unwrap().map(|entry| entry.unwrap().path());
    let layer = layer.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let listed = run("tar", &["-tvf", layer.to_str().unwrap()]);
    assert!(
        listed.contains("6442450944") && listed.ends_with(" sparse\n"),
        "{listed}"
    );
}

#[test]
fn an_export_leaves_room_on_the_disk() {
    let small = SmallDisk::new(260);
    let node = Node::with(|config| {
        let root = ("image_root".to_owned(), small.0.path().to_str().unwrap().into());
        config.insert("storage".to_owned(), toml::Table::from_iter([root]).into());
    });
    let mut built = Image::new().layer(Layer::new().file("zeros", 0o644, &vec![0; 190 << 20]));
    built.packing = Packing::Gzip;
    let dir = node.dir().join("layout");
    built.save(&dir, &["a.example/large:1"]).unwrap();
    node.image(&["import", dir.to_str().unwrap()]);
    let refusal = node.image_refused(&["export", "a.example/large:1", &at(&node, "large.tar")]);
    assert!(refusal.contains("20th of the disk free"), "{refusal}");
}

/// A filesystem of some mebibytes.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(mebibytes: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={mebibytes}m");
        mount(
            Some("small"),
            dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(size.as_str()),
        )
        .unwrap();
        SmallDisk(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn archives_in_a_directory_are_imported_at_the_start() {
    let node = Node::start();
    node.stop_server();
    let name = "a.example/dropped:1";
    let (dir, id) = layout(&node, name);
    let import = node.dir().join("lib/import");
    fs::create_dir(&import).unwrap();
    let tar = import.join("app.tar");
    run("tar", &["-C", dir.to_str().unwrap(), "-cf", tar.to_str().unwrap(), "."]);
    fs::write(import.join("bad.tar"), "no archive").unwrap();
    fs::write(import.join(".copying"), "no archive").unwrap();
    let wait = |what: &str, text: &str, count: usize| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while node.server_log().matches(text).count() < count {
            assert!(Instant::now() < deadline, "{what}: {}", node.server_log());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    node.launch().unwrap();
    wait("imported", " imported ", 1);
    wait("refused", "drop_in: import: archive: ", 1);
    assert_eq!(list(&node)[0]["id"], id);
    assert!(!node.server_log().contains(".copying"));

    // Once: what was removed stays removed, and what failed is tried again.
    node.image(&["remove", name]);
    node.stop_server();
    node.launch().unwrap();
    wait("refused again", "drop_in: import: archive: ", 2);
    assert_eq!(list(&node), json!([]));

    // And again when it has changed, packed this time.
    fs::remove_file(import.join("bad.tar")).unwrap();
    let packed = gzip(tar.to_str().unwrap());
    fs::rename(packed, &tar).unwrap();
    node.stop_server();
    node.launch().unwrap();
    wait("imported again", " imported ", 2);
    assert_eq!(list(&node)[0]["repo_tags"], json!([name]));
}
