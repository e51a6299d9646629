//! What other users of the node can reach of a server with pods: modes and owners of everything that it and its shims make,
//! and their sockets.

use std::fs;
use std::os::linux::fs::MetadataExt as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::container;

/// Modes by path below the node's directory; `*` is any one name. A directory is written with a slash. What is not here
/// is 0700 for a directory and 0600 for everything else; what is below a `0000` is the image's and the containers' own.
const TABLE: &[(&str, u32)] = &[
    // For processes of any user in any user namespace; what is above it is private.
    ("lib/pause/", 0o755),
    ("lib/pause/*/", 0o755),
    ("lib/pause/pause", 0o755),
    // Bound into containers, where every user reads them.
    ("run/sandboxes/*/resolv.conf", 0o644),
    ("run/sandboxes/*/hostname", 0o644),
    ("run/sandboxes/*/shm/", 0o1777),
    // ip-netns(8) makes them so; a namespace file has no mode of its own.
    ("run/netns/", 0o755),
    ("run/netns/*", 0o444),
    ("run/containers/*/rootfs/", 0),
    ("lib/containers/*/upper/", 0),
    ("lib/containers/*/work/", 0),
    ("lib/layers/*/", 0),
    ("run/runtime/@seccomp/*", 0o644),
];

fn matches(pattern: &str, path: &str) -> bool {
    let (pattern, path): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), path.split('/').collect());
    pattern.len() == path.len()
        && pattern
            .iter()
            .zip(&path)
            .all(|(part, name)| part == name || *part == "*")
}

/// Walks a directory; every path whose mode or owner is not that of the table.
fn strangers(base: &Path, directory: &Path, found: &mut Vec<String>, seen: &mut usize) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        // A pod may be at work.
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        *seen += 1;
        let kind = if meta.is_dir() { "/" } else { "" };
        let name = format!("{}{kind}", path.strip_prefix(base).unwrap().display());
        let usual = if meta.is_dir() { 0o700 } else { 0o600 };
        let row = TABLE.iter().find(|(pattern, _)| matches(pattern, &name));
        let expected = row.map_or(usual, |&(_, mode)| mode);
        let mode = meta.permissions().mode() & 0o7777;
        let is_right = meta.is_symlink() || mode == expected;
        if expected == 0 {
            continue;
        }
        if !is_right || (meta.uid(), meta.gid()) != (0, 0) {
            found.push(format!(
                "{name} {mode:o} {}:{}, not {expected:o} 0:0",
                meta.st_uid(),
                meta.st_gid()
            ));
        }
        if meta.is_dir() {
            strangers(base, &path, found, seen);
        }
    }
}

/// The node with pods, containers, execs, and terminals.
fn busy() -> Node {
    let node = Node::start();
    let pods = [node.pod("one"), node.pod("two")];
    for pod in &pods {
        let main = pod.start(container("main", &["sleep", "1000"]));
        let mut terminal = container("terminal", &["sleep", "1000"]);
        terminal.tty = true;
        terminal.stdin = true;
        pod.start(terminal);
        pod.sh("ended", "exit 3").wait_exit();
        assert_eq!(main.exec_sh("echo x"), "x\n");
    }
    node.pull(BUSYBOX);
    node
}

#[test]
fn everything_of_a_busy_node_has_the_mode_and_the_owner_it_is_to_have() {
    let node = busy();
    let (mut found, mut seen) = (Vec::new(), 0);
    for name in ["run", "lib"] {
        let directory = node.dir().join(name);
        assert_eq!(
            fs::metadata(&directory).unwrap().permissions().mode() & 0o7777,
            0o700,
            "{name}"
        );
        strangers(node.dir(), &directory, &mut found, &mut seen);
    }
    assert!(seen > 60, "{seen} paths");
    assert!(found.is_empty(), "of {seen} paths:\n  {}", found.join("\n  "));
}

#[test]
fn no_socket_is_abstract_and_every_one_is_for_root_alone() {
    let node = busy();
    let text = node
        .network
        .enter(|| fs::read_to_string("/proc/thread-self/net/unix").unwrap());
    // proc_pid_net(5): the path is the eighth field, with @ for the NUL of an abstract one.
    let paths = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(7));
    let (abstracts, named): (Vec<_>, Vec<_>) = paths.partition(|path| path.starts_with('@'));
    assert!(abstracts.is_empty(), "{abstracts:?}");
    assert!(!named.is_empty(), "the server's own");
    let shims = fs::read_dir(node.dir().join("run/sandboxes")).unwrap();
    let sockets: Vec<PathBuf> = shims.map(|entry| entry.unwrap().path().join("shim.sock")).collect();
    assert_eq!(sockets.len(), 2);
    for socket in sockets.iter().chain([&node.dir().join("run/corten.sock")]) {
        let meta = fs::symlink_metadata(socket).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(
            (meta.permissions().mode() & 0o7777, meta.uid()),
            (0o600, 0),
            "{}",
            socket.display()
        );
    }
}

/// Somebody who comes to the socket in spite of its mode, as through a directory that was bound elsewhere.
#[test]
fn another_user_is_refused_whatever_the_modes() {
    let node = busy();
    // The way to both sockets is opened, as an administrator might.
    let shim = fs::read_dir(node.dir().join("run/sandboxes"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    for path in [
        node.dir().to_owned(),
        node.dir().join("run"),
        node.dir().join("run/sandboxes"),
        shim.clone(),
    ] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // Beside the sockets: what builds it may lie where others have no way.
    let (endpoint, probe) = (node.dir().join("run/corten.sock"), node.dir().join("probe"));
    fs::copy(corten_tests::binary("probe"), &probe).unwrap();
    for path in [&endpoint, &shim.join("shim.sock")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    }
    // HTTP/2's first words for the one, a request without a call for the other.
    let ask = |user: u32, socket: &Path, kind: &str, text: &str| {
        let mut command = Command::new(&probe);
        command
            .arg("connect")
            .arg(socket)
            .args([kind, text])
            .uid(user)
            .gid(user);
        let output = command.output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for (socket, kind, text) in [
        (&endpoint, "bytes", preface),
        (&shim.join("shim.sock"), "packets", "\u{8}\u{1}"),
    ] {
        let own = ask(0, socket, kind, text);
        assert!(own.ends_with(" bytes") && own != "0 bytes", "{own}");
        let other = ask(65_534, socket, kind, text);
        let refused = ["0 bytes", "ECONNRESET", "EPIPE"].iter().any(|it| other.contains(it));
        assert!(refused, "{}: {other}", socket.display());
    }
    assert!(node.server_log().contains("user 65534"), "{}", node.server_log());
}
