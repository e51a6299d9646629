//! Pulls: forms of images, what is shared, and how a registry or a network can fail.

use std::sync::Arc;
use std::time::Duration;

use corten_cri::image::{Cause, Credentials, ImageStore, RegistryConfig};
use corten_tests::image::{self, Format, Image, Layer, Packing};
use corten_tests::registry::{Access, Fault, Registry};
use serde_json::json;

use crate::{Lab, large_layer, small_layer, wait_for};

fn login(user: &str, password: &str) -> Credentials {
    Credentials::Basic {
        user: user.into(),
        password: password.into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_every_form() {
    let lab = Lab::new();
    for (number, (format, packing)) in [
        (Format::Oci, Packing::Gzip),
        (Format::Oci, Packing::Plain),
        (Format::Docker, Packing::Gzip),
        (Format::Docker, Packing::Plain),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("form-{number}");
        let mut image = Image::new().layer(small_layer(&name));
        (image.format, image.packing) = (format, packing);
        image.config = json!({ "Cmd": ["/bin/true"], "User": "7:8" });
        let saved = lab.serve(&image, &[&format!("{name}:1")]);
        let pulled = lab.pull(&format!("{name}:1")).await.unwrap();
        assert_eq!((&pulled.id, &pulled.layers), (&saved.id, &saved.diff_ids));
        let config = pulled.config.config().as_ref().unwrap();
        assert_eq!(config.cmd().as_deref(), Some(["/bin/true".to_owned()].as_slice()));
        assert!(lab.store().layer_path(&saved.diff_ids[0]).join(&name).is_file());
    }
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_gives_this_machines_image() {
    let lab = Lab::new();
    let own = lab.serve(&Image::new().layer(small_layer("own")), &[]);
    let mut foreign = Image::new().layer(small_layer("foreign"));
    foreign.architecture = "s390x".into();
    let foreign = lab.serve(&foreign, &["foreign:1"]);
    let both = [("s390x", &foreign), (image::architecture(), &own)];
    let index = image::save_index(&lab.served(), &both, &["both:1"]).unwrap();
    let pulled = lab.pull("both:1").await.unwrap();
    assert_eq!(pulled.id, own.id);
    assert_eq!(pulled.repo_digests, [lab.registry.reference(&format!("both@{index}"))]);
    image::save_index(&lab.served(), &both[..1], &["other:1"]).unwrap();
    for (name, says) in [("other:1", "there is linux/s390x"), ("foreign:1", "is for linux/s390x")] {
        let error = lab.pull(name).await.unwrap_err();
        assert_eq!(error.cause, Cause::Refused);
        assert!(error.to_string().contains(says), "{error}");
    }
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn by_digest_the_content_must_be_the_digests() {
    let lab = Lab::new();
    let saved = lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    let pulled = lab.pull(&format!("a@{}", saved.manifest)).await.unwrap();
    assert!(pulled.repo_tags.is_empty());
    assert_eq!(
        pulled.repo_digests,
        [lab.registry.reference(&format!("a@{}", saved.manifest))]
    );
    lab.store().remove(saved.id.as_str()).await.unwrap();
    lab.registry.fail("/manifests/", Some(Fault::Corrupt));
    let error = lab.pull(&format!("a@{}", saved.manifest)).await.unwrap_err();
    assert!(
        error.to_string().contains("manifest: its content has the digest"),
        "{error}"
    );
    lab.assert_empty();
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_tag_moves_here_too() {
    let lab = Lab::new();
    let first = lab.serve(&Image::new().layer(small_layer("first")), &["a:1", "a:old"]);
    lab.pull("a:1").await.unwrap();
    lab.pull("a:old").await.unwrap();
    let second = lab.serve(&Image::new().layer(small_layer("second")), &["a:1"]);
    assert_eq!(lab.pull("a:1").await.unwrap().id, second.id);
    let tag = lab.registry.reference("a:1");
    assert_eq!(lab.store().find(&tag).unwrap().unwrap().id, second.id);
    let first = lab.store().find(first.id.as_str()).unwrap().unwrap();
    assert_eq!(first.repo_tags, [lab.registry.reference("a:old")]);
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_is_not_fetched_again() {
    let lab = Lab::new();
    let saved = lab.serve(
        &Image::new().layer(small_layer("base")).layer(small_layer("a")),
        &["a:1", "a:2"],
    );
    lab.serve(
        &Image::new().layer(small_layer("base")).layer(small_layer("b")),
        &["b:1"],
    );
    for name in ["a:1", "a:1", "a:2", "b:1"] {
        lab.pull(name).await.unwrap();
    }
    for blob in saved.blobs.iter().chain([&saved.id]) {
        assert_eq!(lab.registry.count(&format!("/blobs/{blob}")), 1, "{blob}");
    }
    assert_eq!(
        lab.registry.count("/a/manifests/1"),
        2,
        "the registry is asked whether the tag moved"
    );
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_pulls_share_their_work() {
    let lab = Lab::new();
    let base = || large_layer("base", 2);
    lab.serve(&Image::new().layer(base()).layer(small_layer("a")), &["a:1"]);
    let saved = lab.serve(&Image::new().layer(base()).layer(small_layer("b")), &["b:1"]);
    lab.registry
        .fail(saved.blobs[0].as_str(), Some(Fault::Slow(Duration::from_millis(3))));
    let pulls = (0..12).map(|number| {
        let (store, name) = (Arc::clone(lab.store()), if number % 3 == 0 { "b:1" } else { "a:1" });
        let reference = lab.registry.reference(name);
        tokio::spawn(async move { store.pull(&reference, Credentials::Anonymous).await })
    });
    for pull in pulls.collect::<Vec<_>>() {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(
        lab.registry.count(saved.blobs[0].as_str()),
        1,
        "one layer, one download"
    );
    assert_eq!(lab.registry.count("/manifests/"), 2, "one image, one pull");
    assert_eq!(lab.names("layers").len(), 3);
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_nobody_waits_for_ends_and_leaves_nothing() {
    let lab = Lab::new();
    let saved = lab.serve(&Image::new().layer(large_layer("large", 4)), &["a:1"]);
    lab.registry
        .fail(saved.blobs[0].as_str(), Some(Fault::Slow(Duration::from_millis(20))));
    let given_up = tokio::time::timeout(Duration::from_millis(300), lab.pull("a:1")).await;
    assert!(given_up.is_err(), "the registry is slow");
    lab.assert_empty();
    // One of two leaves: the other gets its image, from the download that was under way.
    let before = lab.registry.count(saved.blobs[0].as_str());
    lab.registry
        .fail(saved.blobs[0].as_str(), Some(Fault::Slow(Duration::from_millis(4))));
    let (store, reference) = (Arc::clone(lab.store()), lab.registry.reference("a:1"));
    let stays = tokio::spawn(async move { store.pull(&reference, Credentials::Anonymous).await });
    wait_for("the download", || lab.registry.count(saved.blobs[0].as_str()) > before);
    assert!(
        tokio::time::timeout(Duration::from_millis(30), lab.pull("a:1"))
            .await
            .is_err()
    );
    assert_eq!(stays.await.unwrap().unwrap().id, saved.id);
    assert_eq!(lab.registry.count(saved.blobs[0].as_str()), before + 1);
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_content_is_refused_and_nothing_kept() {
    use Cause::{NotFound, Refused, Unreachable};
    let lab = Lab::new();
    let layers = Image::new().layer(large_layer("layer", 1)).layer(small_layer("small"));
    let saved = lab.serve(&layers, &["a:1"]);
    let (layer, config) = (saved.blobs[0].as_str(), saved.id.as_str());
    let manifest = "/manifests/";
    let wrong = "its content has the digest";
    let index = "application/vnd.oci.image.index.v1+json";
    let table = [
        (layer, Fault::Corrupt, Refused, wrong),
        (layer, Fault::Truncate(100_000), Unreachable, "registry"),
        (layer, Fault::Truncate(0), Unreachable, "registry"),
        (layer, Fault::Status(404), NotFound, "404"),
        (layer, Fault::Status(500), Unreachable, "500"),
        (config, Fault::Corrupt, Refused, wrong),
        (config, Fault::Truncate(10), Unreachable, "registry"),
        (manifest, Fault::Status(404), NotFound, "404"),
        (manifest, Fault::Status(503), Unreachable, "503"),
        (manifest, Fault::Truncate(10), Unreachable, "registry"),
        (manifest, Fault::ContentType("text/html".into()), Refused, "text/html"),
        (manifest, Fault::ContentType(index.into()), Refused, "mediaType"),
    ];
    let host = lab.registry.address().to_string();
    for (part, fault, cause, says) in table {
        lab.registry.fail(part, Some(fault.clone()));
        let error = lab.pull("a:1").await.unwrap_err();
        lab.registry.fail(part, None);
        let text = error.to_string();
        assert_eq!(error.cause, cause, "{fault:?} of {part}: {text}");
        assert!(
            text.contains(says) && text.contains(&host),
            "{fault:?} of {part}: {text}"
        );
        lab.assert_empty();
    }
    let pulled = lab.pull("a:1").await.unwrap();
    assert_eq!(pulled.id, saved.id, "and afterwards it works");
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_costs_one_layer_one_more_request() {
    let lab = Lab::new();
    let image = Image::new().layer(large_layer("layer", 1)).layer(small_layer("small"));
    let saved = lab.serve(&image, &["a:1"]);
    let (large, small) = (saved.blobs[0].as_str(), saved.blobs[1].as_str());
    lab.registry.fail(large, Some(Fault::Truncate(1000)));
    let (store, reference) = (Arc::clone(lab.store()), lab.registry.reference("a:1"));
    let pull = tokio::spawn(async move { store.pull(&reference, Credentials::Anonymous).await });
    wait_for("the second attempt", || lab.registry.count(large) == 2);
    lab.registry.fail(large, None);
    assert_eq!(pull.await.unwrap().unwrap().id, saved.id);
    assert_eq!((lab.registry.count(large), lab.registry.count(small)), (3, 1));
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_contradict_themselves_are_refused() {
    let lab = Lab::new();
    let saved = lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    let content = std::fs::read(image::blob_path(&lab.served(), &saved.manifest)).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&content).unwrap();
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut changed = manifest.clone();
        change(&mut changed);
        changed
    };
    let table = [
        (with(&|document| document["manifests"] = json!([])), "neither has both"),
        (
            with(&|document| document["layers"] = json!([])),
            "1 diff_ids for 0 layers",
        ),
        (
            with(&|document| document["layers"][0]["size"] = 10.into()),
            "larger than the 10 bytes",
        ),
        (
            with(&|document| document["layers"][0]["size"] = 1_000_000.into()),
            "bytes before the 1000000",
        ),
        (
            with(&|document| document["config"]["size"] = 10.into()),
            "larger than 10 bytes",
        ),
        (
            with(&|document| document["config"]["size"] = (1u64 << 40).into()),
            "at most",
        ),
        (
            with(&|document| document["layers"][0]["urls"] = json!(["http://127.0.0.1:1/"])),
            "kept elsewhere",
        ),
    ];
    for (document, says) in table {
        let media_type = manifest["mediaType"].as_str().unwrap();
        image::save_document(&lab.served(), &document, media_type, &["odd:1"]).unwrap();
        let error = lab.pull("odd:1").await.unwrap_err();
        assert_eq!(error.cause, Cause::Refused, "{error}");
        assert!(error.to_string().contains(says), "{error} should say {says:?}");
        lab.assert_empty();
    }
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_whose_config_lies_about_it_is_refused() {
    let lab = Lab::new();
    let first = lab.serve(&Image::new().layer(small_layer("first")), &["a:1"]);
    let second = lab.serve(&Image::new().layer(small_layer("second")), &["b:1"]);
    // The config of one image with the layer of the other: both digests hold, together they lie.
    let read = |digest| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(image::blob_path(&lab.served(), digest)).unwrap()).unwrap()
    };
    let mut manifest = read(&first.manifest);
    manifest["layers"] = read(&second.manifest)["layers"].clone();
    let media_type = manifest["mediaType"].as_str().unwrap().to_owned();
    image::save_document(&lab.served(), &manifest, &media_type, &["odd:1"]).unwrap();
    let error = lab.pull("odd:1").await.unwrap_err();
    assert!(error.to_string().contains("unpacked it has the digest"), "{error}");
    lab.assert_empty();
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_registry_is_named_with_the_cause() {
    let lab = Lab::new();
    // Port 1 of loopback: nobody listens there.
    let error = lab
        .store()
        .pull("127.0.0.1:1/a:1", Credentials::Anonymous)
        .await
        .unwrap_err();
    let text = error.to_string();
    assert_eq!(error.cause, Cause::Unreachable);
    assert!(text.contains("127.0.0.1:1") && text.contains("refused"), "{text}");
    let error = lab
        .store()
        .pull("no-such-host.invalid/a:1", Credentials::Anonymous)
        .await
        .unwrap_err();
    assert_eq!(error.cause, Cause::Unreachable);
    assert!(error.to_string().contains("no-such-host.invalid"), "{error}");
    let error = lab.store().pull("UPPER", Credentials::Anonymous).await.unwrap_err();
    assert_eq!(error.cause, Cause::Invalid);
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_spoken_only_where_it_is_allowed() {
    let lab = Lab::new();
    lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    let strict = ImageStore::open(&lab.dir.path().join("strict"), Default::default()).unwrap();
    let error = strict
        .pull(&lab.registry.reference("a:1"), Credentials::Anonymous)
        .await
        .unwrap_err();
    assert_eq!(error.cause, Cause::Unreachable, "{error}");
    assert_eq!(lab.registry.count("/v2/"), 0, "nothing was asked in the clear");
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn https_needs_a_certificate_that_is_trusted() {
    let lab = Lab::new();
    lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    let (secure, authority) = Registry::start_tls(&lab.served()).unwrap();
    let ca = lab.dir.path().join("ca.pem");
    std::fs::write(&ca, authority).unwrap();
    let reference = secure.reference("a:1");
    let default = RegistryConfig::default;
    let table = [
        ("unknown authority", default(), false),
        (
            "authority configured",
            RegistryConfig {
                ca: Some(ca.clone()),
                ..default()
            },
            true,
        ),
        (
            "check switched off",
            RegistryConfig {
                skip_verify: true,
                ..default()
            },
            true,
        ),
        (
            "no such file",
            RegistryConfig {
                ca: Some("/nowhere/ca.pem".into()),
                ..default()
            },
            false,
        ),
    ];
    for (name, config, trusted) in table {
        let root = lab.dir.path().join(name);
        let store = ImageStore::open(&root, [(secure.address().to_string(), config)].into()).unwrap();
        let pulled = store.pull(&reference, Credentials::Anonymous).await;
        assert_eq!(pulled.is_ok(), trusted, "{name}: {pulled:?}");
        let text = pulled.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(trusted || text.contains("certificate"), "{name}: {text}");
    }
    // From HTTPS to HTTP there is no way, not even by redirect.
    let clear = format!("http://{}/v2/a/manifests/1", lab.registry.address());
    secure.fail("/manifests/", Some(Fault::Redirect(clear)));
    let config = RegistryConfig {
        ca: Some(ca),
        ..default()
    };
    let root = lab.dir.path().join("downgrade");
    let store = ImageStore::open(&root, [(secure.address().to_string(), config)].into()).unwrap();
    store.pull(&reference, Credentials::Anonymous).await.unwrap_err();
    assert_eq!(lab.registry.count("/"), 0, "nothing was asked in the clear");
    drop((secure, store));
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_answers_for_the_registry_it_stands_for() {
    let lab = Lab::new();
    lab.serve(&Image::new().layer(small_layer("a")), &["library/a:latest", "team/b:1"]);
    let mirror = RegistryConfig {
        plain_http: true,
        endpoint: Some(lab.registry.address().to_string()),
        ..RegistryConfig::default()
    };
    let configs = [("docker.io".to_owned(), mirror.clone()), ("*".to_owned(), mirror)].into();
    let store = ImageStore::open(&lab.dir.path().join("mirrored"), configs).unwrap();
    let image = store.pull("a", Credentials::Anonymous).await.unwrap();
    assert_eq!(image.repo_tags, ["docker.io/library/a:latest"]);
    let image = store
        .pull("registry.example.com/team/b:1", Credentials::Anonymous)
        .await
        .unwrap();
    assert!(image.repo_tags.contains(&"registry.example.com/team/b:1".to_owned()));
    drop(store);
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_shown_when_they_are_asked_for() {
    let lab = Lab::new();
    lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    let user = || ("user".to_owned(), "pass:word".to_owned());
    let right = || login("user", "pass:word");
    let token = || Credentials::Bearer("a-token-for-tests".into());
    let wrong = || login("user", "wrong");
    let table = [
        (Access::Token, Credentials::Anonymous, true),
        (Access::Token, token(), true),
        (Access::TokenForLogin(user().0, user().1), right(), true),
        (Access::TokenForLogin(user().0, user().1), wrong(), false),
        (Access::TokenForLogin(user().0, user().1), Credentials::Anonymous, false),
        (Access::Login(user().0, user().1), right(), true),
        (Access::Login(user().0, user().1), wrong(), false),
        (Access::Login(user().0, user().1), Credentials::Anonymous, false),
        (Access::Login(user().0, user().1), token(), false),
    ];
    for (access, credentials, allowed) in table {
        lab.registry.require(access.clone());
        let pulled = lab
            .store()
            .pull(&lab.registry.reference("a:1"), credentials.clone())
            .await;
        match pulled {
            Ok(_) => assert!(allowed, "{access:?} with {credentials:?}"),
            Err(error) => {
                assert!(
                    !allowed && error.cause == Cause::Denied,
                    "{access:?} with {credentials:?}: {error}"
                );
                assert!(!error.to_string().contains("wrong"), "{error}");
            }
        }
    }
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_another_host_takes_no_credentials_along() {
    let lab = Lab::new();
    let saved = lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    let elsewhere = Registry::start(&lab.served()).unwrap();
    let blob = saved.blobs[0].as_str();
    let target = format!("http://{}/v2/a/blobs/{blob}", elsewhere.address());
    lab.registry.require(Access::Login("user".into(), "secret".into()));
    lab.registry.fail(blob, Some(Fault::Redirect(target)));
    let reference = lab.registry.reference("a:1");
    lab.store().pull(&reference, login("user", "secret")).await.unwrap();
    let requests = elsewhere.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].authorization, None);
    drop(elsewhere);
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_busybox_image_is_whole() {
    let lab = Lab::new();
    lab.serve(&image::busybox("/bin/busybox".as_ref()).unwrap(), &["busybox:latest"]);
    let image = lab.pull("busybox").await.unwrap();
    let root = lab.store().layer_path(&image.layers[0]);
    let output = std::process::Command::new(root.join("bin/echo"))
        .arg("hello")
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"hello\n");
    assert!(image.size > 1_000_000 && root.join("etc/passwd").is_file());
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_archive_is_a_layer() {
    let lab = Lab::new();
    lab.serve(&Image::new().layer(Layer::new()).archive(Vec::new()), &["empty:1"]);
    assert_eq!(lab.pull("empty:1").await.unwrap().layers.len(), 2);
    lab.finish();
}
