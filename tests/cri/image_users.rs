//! Images whose user database is anything but a file: each container is created as the right user or refused with a
//! reason, at once, whether the user's name comes from the request or from the image.

use std::fs;

use corten_proto::cri;
use corten_tests::image::{Entry, Image, Layer};
use corten_tests::node::Node;
use corten_tests::pod::{container, image};
use serde_json::json;
use tar::EntryType;
use tonic::Code;

const PASSWD: &str = "root:x:0:0::/:\nweb:x:33:34::/:\n";
const GROUP: &str = "root:x:0:\nwww:x:35:web\n";

/// What stands in the place of a file.
type Obstacle = fn(Layer, &str) -> Layer;

/// Obstacles, and what a refusal says; nothing where the file is as good as missing or as good as any.
const OBSTACLES: [(&str, Obstacle, &str); 12] = [
    (
        "fifo",
        |layer, path| special(layer, path, EntryType::Fifo),
        "must be a regular file",
    ),
    (
        "character device",
        |layer, path| special(layer, path, EntryType::Char),
        "must be a regular file",
    ),
    (
        "block device",
        |layer, path| special(layer, path, EntryType::Block),
        "must be a regular file",
    ),
    (
        "directory",
        |layer, path| layer.dir(path, 0o755),
        "must be a regular file",
    ),
    (
        "huge",
        |layer, path| layer.file(path, 0o644, &vec![b'x'; (10 << 20) + 1]),
        "at most 10 MiB",
    ),
    (
        "lines",
        |layer, path| layer.file(path, 0o644, &vec![b'\n'; 100_001]),
        "at most 100000 lines",
    ),
    (
        "loop",
        |layer, path| layer.symlink(path, &format!("/{path}")),
        "leads nowhere",
    ),
    (
        "link to a device",
        |layer, path| special(layer, "etc/null", EntryType::Char).symlink(path, "null"),
        "must be a regular file",
    ),
    (
        "absolute link",
        |layer, path| {
            layer
                .file("other", 0o644, content(path).as_bytes())
                .symlink(path, "/other")
        },
        "",
    ),
    (
        "link with many ways up",
        |layer, path| {
            let up = "../".repeat(40);
            layer
                .file("other", 0o644, content(path).as_bytes())
                .symlink(path, &format!("{up}other"))
        },
        "",
    ),
    (
        "link out of the root",
        |layer, path| layer.symlink(path, "/tmp/../proc/1/environ"),
        "missing",
    ),
    (
        "not text",
        |layer, path| {
            layer.file(
                path,
                0o644,
                &[b"\xff\xfe\x00:\n".as_slice(), content(path).as_bytes()].concat(),
            )
        },
        "",
    ),
];

/// A device that is there on every node, zeros without end, or one that is on none.
fn special(layer: Layer, path: &str, kind: EntryType) -> Layer {
    let device = if kind == EntryType::Block { (7, 4000) } else { (1, 5) };
    layer.entry(&Entry {
        path,
        kind,
        device,
        ..Entry::default()
    })
}

fn content(path: &str) -> &'static str {
    if path.ends_with("passwd") { PASSWD } else { GROUP }
}

/// Serves an image whose user is `user`, with an obstacle at `path` and the other file as it should be.
fn serve(node: &Node, name: &str, user: &str, path: &str, obstacle: Obstacle) {
    let other = if path == "etc/passwd" {
        "etc/group"
    } else {
        "etc/passwd"
    };
    let layer = Layer::new().file("bin", 0o755, b"").dir("etc", 0o755);
    let layer = obstacle(layer.file(other, 0o644, content(other).as_bytes()), path);
    let mut built = Image::new().layer(layer);
    built.config = json!({ "Cmd": ["/bin"], "User": user });
    built.save(&node.dir().join("images"), &[name]).unwrap();
}

/// How many descriptors the server has of files of containers.
fn descriptors(node: &Node) -> usize {
    let open = fs::read_dir(format!("/proc/{}/fd", node.server_pid())).unwrap();
    let containers = node.dir().join("lib/containers");
    let state = node.dir().join("run/containers");
    let links = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    links
        .filter(|to| to.starts_with(&containers) || to.starts_with(&state))
        .count()
}

#[test]
fn a_user_database_that_is_no_file_is_refused_or_read_beneath_the_root() {
    let node = Node::start();
    let pod = node.pod("users");
    for (number, (what, obstacle, says)) in OBSTACLES.into_iter().enumerate() {
        for path in ["etc/passwd", "etc/group"] {
            // By the image's user, and by the request's.
            for by_request in [false, true] {
                let name = format!("users-{number}-{}-{by_request}:1", &path[4..]);
                serve(&node, &name, if by_request { "" } else { "web" }, path, obstacle);
                let mut config = container(&name.replace(':', "-"), &[]);
                config.image = Some(image(&format!("127.0.0.1:5000/{name}")));
                node.pull(&format!("127.0.0.1:5000/{name}"));
                if by_request {
                    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
                    context.run_as_username = "web".to_owned();
                }
                let case = format!("{what} at {path}, by the request: {by_request}");
                check(&node, &pod.create_request(&config), (path, says), &case);
            }
        }
    }
    assert_eq!(descriptors(&node), 0);
}

/// Creates a container; what comes of it is what the table says.
fn check(node: &Node, request: &cri::CreateContainerRequest, (path, says): (&str, &str), case: &str) {
    let created = node.cri.create_container(request.clone());
    // A missing group file is none that the user is in, a missing passwd file has no such user.
    let says = match (says, path) {
        ("missing", "etc/group") => "",
        ("missing", _) => "must be listed in the image's /etc/passwd",
        (says, _) => says,
    };
    match created {
        Ok(reply) => {
            assert_eq!(says, "", "{case}");
            let request = cri::ContainerStatusRequest {
                container_id: reply.container_id.clone(),
                verbose: false,
            };
            let status = node.cri.container_status(request).unwrap().status.unwrap();
            let user = status.user.and_then(|user| user.linux).unwrap();
            assert_eq!((user.uid, user.gid), (33, 34), "{case}");
            let request = cri::RemoveContainerRequest {
                container_id: reply.container_id,
            };
            node.cri.remove_container(request).unwrap();
        }
        Err(error) => {
            assert!(!says.is_empty() && error.message().contains(says), "{case}: {error}");
            assert!(
                error.message().contains("/etc/") && !error.message().contains('\n'),
                "{case}: {error}"
            );
            assert_eq!(error.code(), Code::InvalidArgument, "{case}");
        }
    }
}
