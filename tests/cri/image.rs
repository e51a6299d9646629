//! PullImage, ListImages, ImageStatus, RemoveImage, ImageFsInfo.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_tests::image::{Format, Image, Layer};
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{container, image};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

fn status(node: &Node, reference: &str) -> Option<cri::Image> {
    let request = cri::ImageStatusRequest {
        image: Some(image(reference)),
        verbose: false,
    };
    node.cri.image_status(request).expect("ImageStatus").image
}

fn list(node: &Node) -> Vec<cri::Image> {
    node.cri
        .list_images(cri::ListImagesRequest::default())
        .expect("ListImages")
        .images
}

fn remove(node: &Node, reference: &str) {
    let request = cri::RemoveImageRequest {
        image: Some(image(reference)),
    };
    node.cri.remove_image(request).expect("RemoveImage");
}

fn used_bytes(node: &Node) -> u64 {
    let reply = node.cri.image_fs_info(cri::ImageFsInfoRequest {}).expect("ImageFsInfo");
    let filesystem = reply.image_filesystems.first().expect("an image filesystem");
    filesystem.used_bytes.expect("kubelet dereferences used_bytes").value
}

#[test]
fn a_pulled_image_is_known_by_every_name() {
    let node = Node::start();
    assert_eq!(
        status(&node, BUSYBOX),
        None,
        "an unknown image is an empty answer, not an error"
    );
    let id = node.pull(BUSYBOX);
    let found = status(&node, BUSYBOX).expect("it is here now");
    assert_eq!(found.id, id);
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(found.repo_tags, [BUSYBOX]);
    assert_eq!(found.repo_digests.len(), 1);
    assert!(
        found.repo_digests[0].starts_with("127.0.0.1:5000/busybox@sha256:"),
        "{found:?}"
    );
    assert!(found.size > 100_000, "{}", found.size);
    let bare = id.trim_start_matches("sha256:");
    for name in [
        id.as_str(),
        bare,
        &bare[..12],
        &found.repo_digests[0],
        "127.0.0.1:5000/busybox",
    ] {
        assert_eq!(status(&node, name).map(|image| image.id), Some(id.clone()), "{name}");
    }
    assert_eq!(list(&node).len(), 1);
    assert_eq!(node.pull(BUSYBOX), id, "a second pull finds the same");
    assert_eq!(node.pull(&found.repo_digests[0]), id, "by digest too");
}

#[test]
fn both_forms_of_manifest_are_understood() {
    let node = Node::start();
    let images = node.dir().join("images");
    for (name, format) in [("oci:1", Format::Oci), ("docker:1", Format::Docker)] {
        let mut built = Image::new().layer(Layer::new().file("name", 0o644, name.as_bytes()));
        built.format = format;
        built.config = serde_json::json!({ "User": "1000:1000", "Cmd": ["/name"] });
        let saved = built.save(&images, &[name]).unwrap();
        let reference = format!("127.0.0.1:5000/{name}");
        assert_eq!(node.pull(&reference), saved.id.to_string());
        let found = status(&node, &reference).expect("pulled");
        assert_eq!(found.uid.expect("User is a number").value, 1000);
    }
    assert_eq!(list(&node).len(), 2);
}

#[test]
fn the_list_can_be_filtered() {
    let node = Node::start();
    let images = node.dir().join("images");
    let other = Image::new().layer(Layer::new().file("x", 0o644, b"x"));
    other.save(&images, &["other:1"]).unwrap();
    node.pull(BUSYBOX);
    let other = node.pull("127.0.0.1:5000/other:1");
    let filter = Some(cri::ImageFilter {
        image: Some(image("127.0.0.1:5000/other:1")),
    });
    let found = node.cri.list_images(cri::ListImagesRequest { filter }).unwrap().images;
    assert_eq!(found.iter().map(|image| image.id.as_str()).collect::<Vec<_>>(), [other]);
    let filter = Some(cri::ImageFilter {
        image: Some(image("127.0.0.1:5000/absent:1")),
    });
    assert!(
        node.cri
            .list_images(cri::ListImagesRequest { filter })
            .unwrap()
            .images
            .is_empty()
    );
}

#[test]
fn removal_takes_every_name_and_the_space() {
    let node = Node::start();
    let images = node.dir().join("images");
    let built = Image::new().layer(Layer::new().file("zeros", 0o644, &vec![0; 1 << 20]));
    built.save(&images, &["twice:1", "twice:2"]).unwrap();
    let before = used_bytes(&node);
    let id = node.pull("127.0.0.1:5000/twice:1");
    assert_eq!(node.pull("127.0.0.1:5000/twice:2"), id);
    let found = status(&node, &id).expect("pulled");
    assert_eq!(found.repo_tags.len(), 2, "{found:?}");
    assert!(used_bytes(&node) >= before + (1 << 20));
    remove(&node, "127.0.0.1:5000/twice:1");
    assert!(list(&node).is_empty(), "kubelet expects one removal to take all tags");
    assert_eq!(status(&node, "127.0.0.1:5000/twice:2"), None);
    assert_eq!(used_bytes(&node), before);
    remove(&node, "127.0.0.1:5000/twice:1");
    let layers = fs::read_dir(node.dir().join("lib/layers")).unwrap();
    assert_eq!(layers.count(), 0, "no layer stays behind");
}

#[test]
fn an_image_in_use_can_be_removed_and_its_container_runs_on() {
    let node = Node::start();
    let layers = || fs::read_dir(node.dir().join("lib/layers")).unwrap().count();
    let pod = node.pod("in-use");
    let container = pod.start(container("main", &["sleep", "1000"]));
    remove(&node, BUSYBOX);
    assert!(list(&node).is_empty(), "it is gone for everybody who asks");
    assert_eq!(status(&node, BUSYBOX), None);
    assert!(used_bytes(&node) > 100_000, "what a container needs counts as used");
    assert_eq!(container.exec_sh("cat /etc/hostname").trim(), "in-use");
    node.kill_server();
    node.launch().unwrap();
    assert_eq!(container.exec_sh("ls /bin/sh").trim(), "/bin/sh", "after a restart too");
    assert_eq!(layers(), 1);
    let before = node.registry().count("/blobs/");
    let id = node.pull(BUSYBOX);
    assert_eq!(
        node.registry().count("/blobs/"),
        before + 1,
        "the config: its layer is here"
    );
    remove(&node, &id);
    container.stop(0);
    container.remove();
    let end = Instant::now() + Duration::from_secs(5);
    while layers() > 0 {
        assert!(Instant::now() < end, "the last container has gone");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(used_bytes(&node), 0);
}

#[test]
fn pinned_images_are_marked_and_can_be_removed() {
    let node = Node::with(|config| {
        let storage = toml::Table::from_iter([("pinned_images".to_owned(), vec!["127.0.0.1:5000/busy*"].into())]);
        config.insert("storage".to_owned(), storage.into());
    });
    let other = Image::new().layer(Layer::new().file("x", 0o644, b"x"));
    other.save(&node.dir().join("images"), &["other:1"]).unwrap();
    let pinned = node.pull(BUSYBOX);
    node.pull("127.0.0.1:5000/other:1");
    for image in list(&node) {
        assert_eq!(image.pinned, image.id == pinned, "{image:?}");
        assert_eq!(status(&node, &image.id), Some(image));
    }
    remove(&node, BUSYBOX);
    assert_eq!(list(&node).len(), 1, "an explicit removal is obeyed");
}

#[test]
fn leftovers_of_a_killed_server_are_removed_and_reported() {
    let node = Node::start();
    let id = node.pull(BUSYBOX);
    node.kill_server();
    let lib = node.dir().join("lib");
    fs::create_dir_all(lib.join("layers/00.7.partial/fs/half")).unwrap();
    fs::write(lib.join("images/x.json.partial"), "{").unwrap();
    fs::create_dir_all(lib.join("containers/stray/upper")).unwrap();
    fs::create_dir_all(lib.join("containers/.trial/upper")).unwrap();
    // The layer of an image whose record never came.
    let record = lib.join(format!("images/{}.json", id.trim_start_matches("sha256:")));
    fs::remove_file(record).unwrap();
    node.launch().unwrap();
    let names = |dir: &str| fs::read_dir(lib.join(dir)).unwrap().count();
    let end = Instant::now() + Duration::from_secs(5);
    while names("layers") > 0 {
        assert!(Instant::now() < end, "a layer that nobody has");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!((names("images"), names("containers")), (0, 0));
    let log = node.server_log();
    for said in [
        "00.7.partial",
        "x.json.partial",
        "leftovers=2",
        "no image and no container has",
        "stray",
    ] {
        assert!(log.contains(said), "{said:?} in:\n{log}");
    }
}

#[test]
fn an_image_that_lost_a_layer_is_put_aside_and_pulled_again() {
    let node = Node::start();
    let id = node.pull(BUSYBOX);
    node.stop_server();
    let layers = node.dir().join("lib/layers");
    fs::remove_dir_all(&layers).unwrap();
    node.launch().unwrap();
    assert_eq!(status(&node, BUSYBOX), None, "the kubelet pulls what is not here");
    let aside = fs::read_dir(node.dir().join("lib/quarantine")).unwrap().count();
    assert_eq!(aside, 1, "its record");
    assert_eq!(node.pull(BUSYBOX), id);
    let pod = node.pod("again");
    assert_eq!(pod.sh("main", "exit 3").wait_exit().exit_code, 3);
}

#[test]
fn images_on_a_disk_of_their_own() {
    let mut disk = None;
    let node = Node::with(|config| {
        let path = Path::new(config["root"].as_str().unwrap()).with_file_name("disk");
        fs::create_dir(&path).unwrap();
        mount(Some("none"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let root = path.join("images").display().to_string();
        let storage = toml::Table::from_iter([("image_root".to_owned(), root.into())]);
        config.insert("storage".to_owned(), storage.into());
        disk = Some(path);
    });
    let disk = disk.unwrap();
    let pod = node.pod("apart");
    let container = pod.start(container("main", &["sleep", "1000"]));
    assert_eq!(container.exec_sh("echo written >/new && cat /new"), "written\n");
    let reply = node.cri.image_fs_info(cri::ImageFsInfoRequest {}).unwrap();
    let at = |filesystems: &[cri::FilesystemUsage]| filesystems[0].fs_id.clone().unwrap().mountpoint;
    assert_eq!(at(&reply.image_filesystems), disk.display().to_string());
    assert_ne!(at(&reply.container_filesystems), at(&reply.image_filesystems));
    assert_eq!(fs::read_dir(disk.join("images/layers")).unwrap().count(), 1);
    assert!(!node.dir().join("lib/layers").exists());
    pod.remove();
    node.stop_server();
    umount2(&disk, MntFlags::empty()).unwrap();
}

#[test]
fn containers_with_a_copy_of_their_image() {
    let node = Node::with(|config| {
        let storage = toml::Table::from_iter([("snapshotter".to_owned(), "native".into())]);
        config.insert("storage".to_owned(), storage.into());
    });
    let pod = node.pod("copies");
    let [first, second] = ["first", "second"].map(|name| pod.start(container(name, &["sleep", "1000"])));
    first.exec_sh("rm /bin/ls; echo mine >/etc/mine");
    assert_eq!(
        second.exec_sh("ls /bin/ls; ls /etc/mine 2>&1 || true").lines().count(),
        2
    );
    pod.remove();
    node.assert_no_pods_left();
}

#[test]
fn a_limit_that_the_filesystem_cannot_hold_is_refused_at_the_start() {
    let node = Node::start();
    node.stop_server();
    let path = node.dir().join("config.toml");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        format!("{config}\n[storage]\nwritable_layer_limit_bytes = 1073741824\n"),
    )
    .unwrap();
    let error = format!("{:#}", node.launch().unwrap_err());
    for said in ["storage.writable_layer_limit_bytes", "prjquota", "lib/containers"] {
        assert!(error.contains(said), "{error}");
    }
    fs::write(&path, config).unwrap();
    node.launch().unwrap();
}

#[test]
fn what_containers_write_is_in_the_container_filesystem() {
    let node = Node::start();
    let pod = node.pod("writer");
    let container = pod.start(container("main", &["sleep", "1000"]));
    container.exec_sh("dd if=/dev/zero of=/data bs=1048576 count=3 2>/dev/null");
    // The first round of a new server comes at once.
    node.kill_server();
    node.launch().unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let reply = node.cri.image_fs_info(cri::ImageFsInfoRequest {}).unwrap();
        let used = reply.container_filesystems[0].used_bytes.unwrap().value;
        if (3 << 20..4 << 20).contains(&used) {
            break;
        }
        assert!(Instant::now() < end, "{used} bytes");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn image_filesystem_usage_has_all_that_kubelet_reads() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let reply = node.cri.image_fs_info(cri::ImageFsInfoRequest {}).unwrap();
    for filesystem in reply.image_filesystems.iter().chain(&reply.container_filesystems) {
        assert!(
            filesystem.timestamp > 1_600_000_000_000_000_000,
            "nanoseconds: {filesystem:?}"
        );
        let mountpoint = &filesystem.fs_id.as_ref().expect("fs_id").mountpoint;
        assert!(std::path::Path::new(mountpoint).is_dir(), "{filesystem:?}");
        assert!(filesystem.used_bytes.is_some() && filesystem.inodes_used.is_some());
    }
    assert!(used_bytes(&node) > 100_000);
    assert!(!reply.container_filesystems.is_empty(), "kubelet wants both lists");
}

#[test]
fn images_survive_a_restart() {
    let node = Node::start();
    let id = node.pull(BUSYBOX);
    let before = list(&node);
    let used = used_bytes(&node);
    node.stop_server();
    node.launch().unwrap();
    assert_eq!(list(&node), before);
    assert_eq!(used_bytes(&node), used);
    assert_eq!(status(&node, &id), before.first().cloned());
}
