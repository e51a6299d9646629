//! Signatures and the policy that demands them. Keys and signatures are openssl's, in cosign's form.

use std::fs;
use std::path::{Path, PathBuf};

use corten_proto::cri;
use corten_proto::id::Digest;
use corten_tests::image::{self, Image, Layer, Saved, descriptor, save_document, write_blob};
use corten_tests::image_cli::run;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{container, image as spec};
use serde_json::{Value, json};
use tonic::{Code, Status};

const REPOSITORY: &str = "127.0.0.1:5000/app";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const PREFIX: &str = "SignatureValidationFailed: ";

/// A node with a policy, which the tests write.
fn node() -> Node {
    let node = Node::with(|config| {
        let root = config["root"].as_str().unwrap().to_owned();
        let policy = Path::new(&root).with_file_name("policy.toml");
        config.insert("image_policy".into(), policy.to_str().unwrap().into());
        let pull = config["pull"].as_table_mut().expect("a table");
        let alias = toml::Table::from_iter([("strict".to_owned(), "127.0.0.1:5000/mirror/app".into())]);
        pull.insert("short_names".to_owned(), alias.into());
    });
    for (name, algorithm) in [("one", "EC"), ("two", "EC"), ("edwards", "ED25519")] {
        let file = path(&node, &format!("{name}.key"));
        let mut arguments = vec!["genpkey", "-algorithm", algorithm, "-out", &file];
        if algorithm == "EC" {
            arguments.extend(["-pkeyopt", "ec_paramgen_curve:P-256"]);
        }
        run("openssl", &arguments);
        run(
            "openssl",
            &[
                "pkey",
                "-in",
                &file,
                "-pubout",
                "-out",
                &path(&node, &format!("{name}.pub")),
            ],
        );
    }
    node
}

fn path(node: &Node, name: &str) -> String {
    node.dir().join(name).display().to_string()
}

/// Writes the policy: everything is rejected but `rule` for this registry's `app`.
fn rule(node: &Node, rule: &str) {
    let text = format!("[rules.\"*\"]\naction = \"reject\"\n[rules.\"{REPOSITORY}\"]\n{rule}\n");
    fs::write(node.dir().join("policy.toml"), text).unwrap();
}

fn signed_by(key: &str) -> String {
    format!("action = \"signed\"\nkeys = [\"{key}.pub\"]")
}

/// Serves an image of its own as `app:TAG`.
fn serve(node: &Node, tag: &str) -> Saved {
    let built = Image::new().layer(Layer::new().file("tag", 0o644, tag.as_bytes()));
    built.save(&images(node), &[&format!("app:{tag}")]).unwrap()
}

fn images(node: &Node) -> PathBuf {
    node.dir().join("images")
}

/// What cosign signs.
fn payload(repository: &str, digest: &Digest) -> Vec<u8> {
    let payload = json!({
        "critical": {
            "identity": { "docker-reference": repository },
            "image": { "docker-manifest-digest": digest },
            "type": "cosign container image signature",
        },
        "optional": null,
    });
    payload.to_string().into_bytes()
}

/// `payload` signed with a key of the node, base64.
fn sign(node: &Node, key: &str, payload: &[u8]) -> String {
    let (input, output) = (path(node, "payload"), path(node, "signature"));
    fs::write(&input, payload).unwrap();
    let file = path(node, &format!("{key}.key"));
    match key {
        "edwards" => run(
            "openssl",
            &[
                "pkeyutl", "-sign", "-inkey", &file, "-rawin", "-in", &input, "-out", &output,
            ],
        ),
        _ => run("openssl", &["dgst", "-sha256", "-sign", &file, "-out", &output, &input]),
    };
    run("openssl", &["base64", "-A", "-in", &output])
}

/// Serves signatures of `digest`: payloads, and what is said to be their signatures.
fn attach(node: &Node, digest: &Digest, signatures: &[(Vec<u8>, String)]) {
    let layers: Vec<Value> = signatures
        .iter()
        .map(|(payload, signature)| {
            let blob = write_blob(&images(node), payload).unwrap();
            let mut layer = descriptor("application/vnd.dev.cosign.simplesigning.v1+json", &blob, payload.len());
            layer["annotations"] = json!({ "dev.cosignproject.cosign/signature": signature });
            layer
        })
        .collect();
    let config = write_blob(&images(node), b"{}").unwrap();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config, 2),
        "layers": layers,
    });
    let tag = format!("app:sha256-{}.sig", digest.hex());
    save_document(&images(node), &manifest, OCI_MANIFEST, &[&tag]).unwrap();
}

/// Signs the image as it should be.
fn attach_good(node: &Node, digest: &Digest, key: &str) {
    let payload = payload(REPOSITORY, digest);
    let signature = sign(node, key, &payload);
    attach(node, digest, &[(payload, signature)]);
}

fn pull(node: &Node, name: &str) -> Result<String, Status> {
    let request = cri::PullImageRequest {
        image: Some(spec(name)),
        ..cri::PullImageRequest::default()
    };
    node.cri.pull_image(request).map(|answer| answer.image_ref)
}

/// Expects that the policy refuses `app:TAG`, for a reason that says `says`.
#[track_caller]
fn assert_refused(node: &Node, tag: &str, says: &str) {
    let status = pull(node, &format!("{REPOSITORY}:{tag}")).expect_err(says);
    assert_eq!(status.code(), Code::Unknown, "{status}");
    let text = status.message();
    assert!(text.starts_with(PREFIX) && text.contains(REPOSITORY), "{text}");
    assert!(text.contains(says), "{text} should say {says:?}");
}

#[test]
fn a_pull_needs_a_signature_that_holds() {
    let node = node();
    rule(&node, &signed_by("one"));
    let saved = serve(&node, "1");
    let digest = &saved.manifest;
    assert_refused(&node, "1", "has no signature");
    let good = payload(REPOSITORY, digest);
    let other = payload(REPOSITORY, &saved.id);
    let elsewhere = payload("127.0.0.1:5000/other", digest);
    let cases = [
        (good.clone(), sign(&node, "two", &good), "made with none of the keys"),
        (
            good.clone(),
            sign(&node, "edwards", &good),
            "made with none of the keys",
        ),
        (good.clone(), sign(&node, "one", &other), "made with none of the keys"),
        (good.clone(), "not base64".to_owned(), "signature: "),
        (other.clone(), sign(&node, "one", &other), "it is for"),
        (
            elsewhere.clone(),
            sign(&node, "one", &elsewhere),
            "and not 127.0.0.1:5000/app",
        ),
        (b"{}".to_vec(), sign(&node, "one", b"{}"), "payload: "),
    ];
    for (payload, signature, says) in &cases {
        attach(&node, digest, &[(payload.clone(), signature.clone())]);
        assert_refused(&node, "1", says);
    }
    assert_eq!(
        node.registry().count(saved.blobs[0].as_str()),
        0,
        "no layer was asked for"
    );
    // Among others that do not hold one is enough.
    let mut all: Vec<_> = cases
        .iter()
        .map(|(payload, signature, _)| (payload.clone(), signature.clone()))
        .collect();
    all.push((good.clone(), sign(&node, "one", &good)));
    attach(&node, digest, &all);
    assert_eq!(pull(&node, "127.0.0.1:5000/app:1").unwrap(), saved.id.to_string());
    // An Ed25519 key, and another name in the signature.
    rule(
        &node,
        "action = \"signed\"\nkeys = [\"two.pub\", \"edwards.pub\"]\nidentity = \"*\"",
    );
    attach(
        &node,
        digest,
        &[(elsewhere.clone(), sign(&node, "edwards", &elsewhere))],
    );
    pull(&node, "127.0.0.1:5000/app:1").unwrap();
    rule(&node, &(signed_by("edwards") + "\nidentity = \"127.0.0.1:5000/other\""));
    pull(&node, "127.0.0.1:5000/app:1").unwrap();
    let shown: Value = serde_json::from_str(&node.image(&["inspect", "127.0.0.1:5000/app:1"])).unwrap();
    let verdict = &shown["info"]["info"]["policy"][format!("{REPOSITORY}@{digest}")];
    assert_eq!(*verdict, format!("signed as rule \"{REPOSITORY}\" demands"));
}

#[test]
fn the_signature_of_an_index_is_one_of_its_images() {
    let node = node();
    rule(&node, &signed_by("one"));
    let saved = serve(&node, "plain");
    let index = image::save_index(&images(&node), &[(image::architecture(), &saved)], &["app:many"]).unwrap();
    attach_good(&node, &saved.manifest, "one");
    assert_refused(&node, "many", "has no signature");
    attach_good(&node, &index, "one");
    assert_eq!(pull(&node, "127.0.0.1:5000/app:many").unwrap(), saved.id.to_string());
}

#[test]
fn signatures_are_bounded() {
    let node = node();
    rule(&node, &signed_by("one"));
    let saved = serve(&node, "1");
    let good = payload(REPOSITORY, &saved.manifest);
    let signature = sign(&node, "one", &good);
    attach(&node, &saved.manifest, &vec![(good.clone(), signature.clone()); 33]);
    assert_refused(&node, "1", "33 of them, at most 32");
    attach(&node, &saved.manifest, &[(good, "A".repeat(20_000))]);
    assert_refused(&node, "1", "too long");
    attach(&node, &saved.manifest, &[(vec![b' '; 20_000], signature)]);
    let status = pull(&node, "127.0.0.1:5000/app:1").unwrap_err();
    assert!(status.message().contains("larger than 16384 bytes"), "{status}");
}

#[test]
fn what_is_rejected_is_not_asked_for() {
    let node = node();
    rule(&node, "action = \"reject\"");
    serve(&node, "1");
    let before = node.registry().requests().len();
    assert_refused(&node, "1", "rejects 127.0.0.1:5000/app");
    let status = pull(&node, BUSYBOX).unwrap_err();
    assert!(
        status.message().starts_with(PREFIX) && status.message().contains("rule \"*\""),
        "{status}"
    );
    fs::remove_file(node.dir().join("policy.toml")).unwrap();
    assert_refused(&node, "1", "policy.toml");
    fs::write(node.dir().join("policy.toml"), "rules = 1").unwrap();
    assert_refused(&node, "1", "policy.toml:1: ");
    assert_eq!(node.registry().requests().len(), before);
    assert!(
        node.server_log().contains("no image can be used until this is mended"),
        "told at the start"
    );
}

/// Creates a container of `app:1` and removes it.
fn create(node: &Node, pod: &corten_tests::pod::Pod<'_>, asked: &str) -> Result<(), Status> {
    let mut config = container("main", &["true"]);
    let id = node.cri.image_status(cri::ImageStatusRequest {
        image: Some(spec("127.0.0.1:5000/app:1")),
        verbose: false,
    });
    // As the kubelet does: the id, and what the pod says.
    config.image = Some(cri::ImageSpec {
        image: id.unwrap().image.expect("pulled").id,
        user_specified_image: asked.to_owned(),
        ..cri::ImageSpec::default()
    });
    let answer = node.cri.create_container(pod.create_request(&config))?;
    let container_id = answer.container_id;
    node.cri
        .remove_container(cri::RemoveContainerRequest { container_id })
        .map(drop)
}

#[test]
fn a_container_is_judged_by_the_policy_of_its_time() {
    let node = node();
    let app = "127.0.0.1:5000/app:1";
    rule(&node, "action = \"accept\"");
    let busybox = image::busybox(Path::new("/bin/busybox")).unwrap();
    let saved = busybox.save(&images(&node), &["app:1"]).unwrap();
    let pod = node.run_pod(node.pod_config("judged"));
    pull(&node, app).unwrap();
    create(&node, &pod, app).unwrap();

    let refused = |says: &str| {
        let status = create(&node, &pod, app).expect_err(says);
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(
            status.message().starts_with(PREFIX) && status.message().contains(says),
            "{status}"
        );
    };
    rule(&node, "action = \"reject\"");
    refused("rejects 127.0.0.1:5000/app");
    rule(&node, &signed_by("one"));
    refused("has no signature");
    // The pull sees the signature, the record keeps it: neither a restart nor a registry that has gone matters.
    attach_good(&node, &saved.manifest, "one");
    pull(&node, app).unwrap();
    create(&node, &pod, app).unwrap();
    node.stop_server();
    node.launch().unwrap();
    node.registry()
        .fail("/v2/", Some(corten_tests::registry::Fault::Status(500)));
    create(&node, &pod, app).unwrap();
    // By its id alone too, and by a name that is none of its own.
    create(&node, &pod, "").unwrap();
    create(&node, &pod, "short-name").unwrap();
    rule(&node, &signed_by("two"));
    refused("made with none of the keys");
    fs::remove_file(node.dir().join("policy.toml")).unwrap();
    refused("policy.toml");
}

#[test]
fn the_name_that_a_pod_has_counts() {
    let node = node();
    let built = image::busybox(Path::new("/bin/busybox")).unwrap();
    built.save(&images(&node), &["app:1", "mirror/app:1"]).unwrap();
    fs::write(node.dir().join("policy.toml"), "[rules.\"*\"]\naction = \"accept\"\n").unwrap();
    for name in ["127.0.0.1:5000/app:1", "127.0.0.1:5000/mirror/app:1"] {
        pull(&node, name).unwrap();
    }
    rule(&node, "action = \"accept\"");
    let pod = node.run_pod(node.pod_config("names"));
    create(&node, &pod, "127.0.0.1:5000/app:1").unwrap();
    create(&node, &pod, "").unwrap();
    for name in ["127.0.0.1:5000/mirror/app:1", "strict:1"] {
        let status = create(&node, &pod, name).unwrap_err();
        let says = "rejects 127.0.0.1:5000/mirror/app";
        assert!(status.message().contains(says), "{name}: {status}");
    }
}

#[test]
fn image_volumes_are_judged_too() {
    let node = node();
    let name = "127.0.0.1:5000/models:1";
    let data = Image::new().layer(Layer::new().file("weights", 0o644, b"weights"));
    data.save(&images(&node), &["models:1"]).unwrap();
    let accept = "[rules.\"*\"]\naction = \"accept\"\n";
    fs::write(node.dir().join("policy.toml"), accept).unwrap();
    pull(&node, name).unwrap();
    let pod = node.pod("volumes");
    let mut config = container("main", &["true"]);
    config.mounts = vec![cri::Mount {
        container_path: "/models".to_owned(),
        readonly: true,
        image: Some(spec(name)),
        ..cri::Mount::default()
    }];
    let create = || node.cri.create_container(pod.create_request(&config));
    let container_id = create().unwrap().container_id;
    let remove = cri::RemoveContainerRequest { container_id };
    node.cri.remove_container(remove).unwrap();
    let reject = "[rules.\"127.0.0.1:5000/models\"]\naction = \"reject\"\n";
    fs::write(node.dir().join("policy.toml"), format!("{accept}{reject}")).unwrap();
    let status = create().unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(
        status.message().starts_with(PREFIX) && status.message().contains("rejects 127.0.0.1:5000/models"),
        "{status}"
    );
}

#[test]
fn archives_are_judged_too() {
    let node = node();
    let dir = node.dir().join("layout");
    let built = Image::new().layer(Layer::new().file("f", 0o644, b"x"));
    let name = format!("{REPOSITORY}:1");
    built.save(&dir, &[&name]).unwrap();
    let source = dir.to_str().unwrap();
    rule(&node, &signed_by("one"));
    let refusal = node.image_refused(&["import", source]);
    assert!(
        refusal.contains(PREFIX) && refusal.contains("an archive, which has no signatures"),
        "{refusal}"
    );
    rule(&node, "action = \"accept\"");
    node.image(&["import", source]);
    assert!(
        node.image_refused(&["import", source, "--name", "a.example/b"])
            .contains("rejects a.example/b")
    );
    rule(&node, &signed_by("one"));
    let signed = fs::read_to_string(node.dir().join("policy.toml")).unwrap();
    fs::write(
        node.dir().join("policy.toml"),
        format!("imports = \"accept\"\n{signed}"),
    )
    .unwrap();
    node.image(&["remove", &name]);
    node.image(&["import", source]);
}
