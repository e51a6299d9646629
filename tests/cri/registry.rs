//! Pulls from registries that fail: the error says why, and nothing is kept.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::image;
use corten_tests::registry::{Access, Fault};
use tonic::{Code, Status};

fn pull(node: &Node, reference: &str) -> Result<String, Status> {
    let request = cri::PullImageRequest {
        image: Some(image(reference)),
        ..Default::default()
    };
    node.cri.pull_image(request).map(|reply| reply.image_ref)
}

/// Nothing of any image is on the disk, or soon will not be: removal frees space in the background.
#[track_caller]
fn assert_nothing_kept(node: &Node) {
    let listed = node.cri.list_images(cri::ListImagesRequest::default()).unwrap().images;
    assert!(listed.is_empty(), "{listed:?}");
    let kept = || -> Vec<_> {
        let dirs = ["images", "layers"].map(|name| fs::read_dir(node.dir().join("lib").join(name)));
        dirs.into_iter()
            .flatten()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect()
    };
    let deadline = Instant::now() + Duration::from_secs(2);
    while !kept().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", kept());
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_blob_that_is_not_its_digest_is_refused() {
    let node = Node::start();
    node.registry().fail("/blobs/", Some(Fault::Corrupt));
    let error = pull(&node, BUSYBOX).unwrap_err();
    assert!(error.message().contains("sha256:"), "names the digest: {error}");
    assert_nothing_kept(&node);
    node.registry().fail("/blobs/", None);
    pull(&node, BUSYBOX).expect("the same pull once the registry is honest");
}

#[test]
fn a_manifest_that_is_not_its_digest_is_refused() {
    let node = Node::start();
    pull(&node, BUSYBOX).unwrap();
    let listed = node.cri.list_images(cri::ListImagesRequest::default()).unwrap().images;
    let by_digest = listed[0].repo_digests[0].clone();
    node.cri
        .remove_image(cri::RemoveImageRequest {
            image: Some(image(BUSYBOX)),
        })
        .unwrap();
    node.registry().fail("/manifests/", Some(Fault::Corrupt));
    let error = pull(&node, &by_digest).unwrap_err();
    assert!(error.message().contains("sha256:"), "{error}");
    assert_nothing_kept(&node);
}

#[test]
fn a_stream_that_breaks_off_leaves_nothing() {
    let node = Node::start();
    node.registry().fail("/blobs/", Some(Fault::Truncate(1000)));
    let error = pull(&node, BUSYBOX).unwrap_err();
    assert!(error.message().contains("127.0.0.1:5000"), "{error}");
    assert_nothing_kept(&node);
}

#[test]
fn an_unreachable_registry_is_named_with_the_cause() {
    let node = Node::with(|config| {
        let registries = config["registries"].as_table_mut().expect("a table");
        let plain = toml::Table::from_iter([("plain_http".to_owned(), true.into())]);
        registries.insert("127.0.0.1:5999".to_owned(), plain.into());
    });
    let error = pull(&node, "127.0.0.1:5999/busybox:latest").unwrap_err();
    assert!(error.message().contains("127.0.0.1:5999"), "the host: {error}");
    assert!(
        error.message().to_lowercase().contains("connection refused"),
        "the cause: {error}"
    );
    let error = pull(&node, "no-such-host.invalid/busybox:latest").unwrap_err();
    assert!(error.message().contains("no-such-host.invalid"), "the host: {error}");
    assert_nothing_kept(&node);
}

#[test]
fn an_absent_image_and_a_failing_server_are_told_apart() {
    let node = Node::start();
    let error = pull(&node, "127.0.0.1:5000/absent:1").unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert!(error.message().contains("127.0.0.1:5000/absent:1"), "{error}");
    node.registry().fail("/manifests/", Some(Fault::Status(503)));
    let error = pull(&node, BUSYBOX).unwrap_err();
    assert!(error.message().contains("503"), "{error}");
    // What the kubelet looks for (kubernetes' pkg/kubelet/images).
    assert_eq!(error.code(), Code::Unknown, "{error}");
    assert!(error.message().starts_with("RegistryUnavailable: "), "{error}");
    assert_nothing_kept(&node);
}

#[test]
fn an_anonymous_token_is_fetched_where_the_registry_asks_for_one() {
    let node = Node::start();
    node.registry().require(Access::Token);
    pull(&node, BUSYBOX).expect("the token service gives a token to everybody");
}

#[test]
fn a_pull_that_its_caller_gives_up_is_cleaned_up() {
    let node = Node::start();
    node.registry()
        .fail("/blobs/", Some(Fault::Slow(Duration::from_millis(300))));
    let request = cri::PullImageRequest {
        image: Some(image(BUSYBOX)),
        ..Default::default()
    };
    let error = node
        .cri
        .pull_image_within(request, Duration::from_millis(500))
        .unwrap_err();
    assert!(
        matches!(error.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{error}"
    );
    node.registry().fail("/blobs/", None);
    // The abandoned download ends by itself or is joined; either way the next pull is not in its way.
    let began = Instant::now();
    pull(&node, BUSYBOX).expect("the next pull");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let partial = fs::read_dir(node.dir().join("lib/layers")).unwrap().flatten();
    let partial: Vec<_> = partial
        .map(|e| e.file_name())
        .filter(|n| n.to_string_lossy().contains("partial"))
        .collect();
    assert!(partial.is_empty(), "{partial:?}");
}

/// A node that looks for short names at its registry, and then at one that is not there.
fn node_with_short_names() -> Node {
    Node::with(|config| {
        let pull = config["pull"].as_table_mut().expect("a table");
        let registries = ["127.0.0.1:5000", "127.0.0.1:5999"].map(toml::Value::from);
        pull.insert("short_name_registries".to_owned(), registries.to_vec().into());
        let alias = toml::Table::from_iter([("base/tool".to_owned(), "127.0.0.1:5000/busybox".into())]);
        pull.insert("short_names".to_owned(), alias.into());
    })
}

#[test]
fn names_without_a_registry_are_looked_for_where_the_configuration_says() {
    let node = node_with_short_names();
    let id = pull(&node, "busybox").unwrap();
    let status = |name: &str| {
        let request = cri::ImageStatusRequest {
            image: Some(image(name)),
            ..Default::default()
        };
        node.cri.image_status(request).unwrap().image
    };
    for name in ["busybox", "busybox:latest", "base/tool", BUSYBOX] {
        let found = status(name).unwrap_or_else(|| panic!("{name} is not here"));
        assert_eq!(
            (found.id.as_str(), found.repo_tags[0].as_str()),
            (id.as_str(), BUSYBOX),
            "{name}"
        );
        assert_eq!(pull(&node, name).unwrap(), id, "{name}");
    }
    assert!(status("docker.io/library/busybox").is_none(), "that is another image");
    // A registry that has not got it leads to the next, one that does not answer to none.
    let error = pull(&node, "absent").unwrap_err();
    let hosts = ["127.0.0.1:5000/absent:latest", "127.0.0.1:5999/absent:latest"];
    assert!(hosts.iter().all(|host| error.message().contains(host)), "{error}");
    assert!(error.message().starts_with("RegistryUnavailable: "), "{error}");
    node.registry().fail("/manifests/", Some(Fault::Status(503)));
    let error = pull(&node, "busybox").unwrap_err();
    assert!(!error.message().contains("5999"), "{error}");
}

#[test]
fn the_callers_credentials_of_every_form() {
    let node = node_with_short_names();
    let auth = |server: &str| cri::AuthConfig {
        server_address: server.into(),
        ..Default::default()
    };
    let login = |server: &str| cri::AuthConfig {
        username: "user".into(),
        password: "the-secret".into(),
        ..auth(server)
    };
    let encoded = cri::AuthConfig {
        auth: "dXNlcjp0aGUtc2VjcmV0".into(),
        ..auth("http://127.0.0.1:5000/v2/")
    };
    let identity = cri::AuthConfig {
        identity_token: "an-identity".into(),
        ..auth("")
    };
    let token = cri::AuthConfig {
        registry_token: "a-token-for-tests".into(),
        ..auth("")
    };
    let basic = Access::Login("user".into(), "the-secret".into());
    let exchange = Access::TokenForLogin("user".into(), "the-secret".into());
    let by_identity = Access::TokenForIdentity("an-identity".into());
    let table = [
        (&basic, login(""), BUSYBOX, None),
        (&basic, login("127.0.0.1:5000"), BUSYBOX, None),
        (&basic, login("127.0.0.1:5000"), "busybox", None),
        (&exchange, encoded, BUSYBOX, None),
        (&by_identity, identity.clone(), BUSYBOX, None),
        (&Access::Token, token.clone(), BUSYBOX, None),
        (&basic, login("other.test"), BUSYBOX, Some(Code::InvalidArgument)),
        (&basic, token, BUSYBOX, Some(Code::PermissionDenied)),
        (&exchange, identity, BUSYBOX, Some(Code::PermissionDenied)),
        // Of several registries they are nobody's who is not named; the next one does not answer.
        (&basic, login(""), "busybox", Some(Code::Unknown)),
    ];
    for (access, auth, name, code) in table {
        node.registry().require(access.clone());
        let request = cri::PullImageRequest {
            image: Some(image(name)),
            auth: Some(auth),
            ..Default::default()
        };
        let pulled = node.cri.pull_image(request);
        assert_eq!(
            pulled.as_ref().err().map(Status::code),
            code,
            "{access:?} {name}: {pulled:?}"
        );
        let text = pulled.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(!text.contains("the-secret") && !text.contains("an-identity"), "{text}");
    }
    let log = fs::read_to_string(node.dir().join("cri.log")).unwrap();
    assert!(!log.contains("the-secret") && !log.contains("an-identity"), "{log}");
}
