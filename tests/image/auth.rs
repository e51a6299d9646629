//! Credentials: whose they are, where they are got, what they are shown to, and that nobody reads them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use corten_cri::image::{Cause, Credentials, ImageStore};
use corten_tests::image::{self, Image};
use corten_tests::registry::{Access, Fault, Registry};
use serde_json::{Value, json};

use crate::{Lab, small_layer};

/// A lab with an image of two layers as `a:1`.
fn lab() -> Lab {
    let lab = Lab::new();
    let image = Image::new().layer(small_layer("a")).layer(small_layer("b"));
    lab.serve(&image, &["a:1", "b:1"]);
    lab
}

fn login(user: &str, password: &str) -> Credentials {
    Credentials::Basic {
        user: user.into(),
        password: password.into(),
    }
}

/// A store of a node with credentials in this file, and this program as helper `test`.
fn node(lab: &Lab, name: &str, auth: &Value, helper: &str) -> Arc<ImageStore> {
    let file = lab.dir.path().join("auth.json");
    fs::write(&file, auth.to_string()).unwrap();
    let program = lab.dir.path().join("docker-credential-test");
    fs::write(&program, format!("#!/bin/sh\n{helper}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut configs = lab.configs();
    configs.pull.auth_file = file;
    configs.pull.credential_helper_dirs = vec![lab.dir.path().to_owned()];
    lab.store_with(name, configs)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_got_once_and_again_when_it_is_refused_or_old() {
    let lab = lab();
    lab.registry.require(Access::Token);
    for _ in 0..3 {
        lab.pull("a:1").await.unwrap();
    }
    assert_eq!(lab.registry.count("/token"), 1, "it lives five minutes");
    lab.pull("b:1").await.unwrap();
    assert_eq!(lab.registry.count("/token"), 2, "for another repository another one");
    // Refused: the registry forgot it.
    lab.registry.renew_tokens(300);
    lab.pull("a:1").await.unwrap();
    assert_eq!(lab.registry.count("/token"), 3);
    // Old at once: every request gets its own.
    lab.registry.renew_tokens(1);
    let store = lab.store_with("other", lab.configs());
    store
        .pull(&lab.registry.reference("a:1"), Credentials::Anonymous)
        .await
        .unwrap();
    assert!(
        lab.registry.count("/token") >= 3 + 3,
        "{}",
        lab.registry.count("/token")
    );
    // Another caller's token is not this one's.
    lab.registry.require(Access::TokenForLogin("user".into(), "pw".into()));
    lab.registry.renew_tokens(300);
    let reference = lab.registry.reference("a:1");
    lab.store().pull(&reference, login("user", "pw")).await.unwrap();
    lab.pull("a:1").await.unwrap_err();
    lab.finish_with(store);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_is_exchanged() {
    let lab = lab();
    lab.registry.require(Access::TokenForIdentity("an-identity".into()));
    let identity = |token: &str| Credentials::Identity(token.into());
    let reference = lab.registry.reference("a:1");
    lab.store().pull(&reference, identity("an-identity")).await.unwrap();
    let requests = lab.registry.requests();
    let exchange = requests.iter().find(|it| it.path.starts_with("/token")).unwrap();
    assert_eq!((exchange.method.as_str(), exchange.path.as_str()), ("POST", "/token"));
    assert!(
        exchange.body.contains("scope=repository%3Aa%3Apull"),
        "{}",
        exchange.body
    );
    let shown = |it: &&corten_tests::registry::Request| format!("{it:?}").contains("an-identity");
    assert_eq!(
        requests.iter().filter(shown).count(),
        1,
        "the token service alone sees it"
    );
    for wrong in [
        identity("wrong-identity"),
        login("user", "wrong-identity"),
        Credentials::Anonymous,
    ] {
        let error = lab.store().pull(&reference, wrong).await.unwrap_err();
        assert_eq!(error.cause, Cause::Denied, "{error}");
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
    // Where a login is asked for it is of no use, and stays here.
    lab.registry.require(Access::Login("user".into(), "pw".into()));
    let error = lab.store().pull(&reference, identity("an-identity")).await.unwrap_err();
    assert_eq!(error.cause, Cause::Denied, "{error}");
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_credentials_are_for_pulls_that_bring_none() {
    let lab = lab();
    let host = lab.registry.address().to_string();
    let right = r#"echo '{"Username":"user","Secret":"pw"}'"#;
    let echo = r#"read server; echo "{\"Username\":\"user\",\"Secret\":\"pw\",\"ServerURL\":\"$server\"}""#;
    let identity = r#"echo '{"Username":"<token>","Secret":"an-identity"}'"#;
    let unknown = "echo 'credentials not found in native keychain'; exit 1";
    let auth = |entry: Value| json!({ "auths": { &host: entry } });
    let helpers = json!({ "credHelpers": { &host: "test" } });
    let login_token = || Access::TokenForLogin("user".into(), "pw".into());
    let basic = || Access::Login("user".into(), "pw".into());
    let table = [
        (basic(), auth(json!({ "auth": "dXNlcjpwdw==" })), "exit 1", true),
        (
            login_token(),
            auth(json!({ "username": "user", "password": "pw" })),
            "exit 1",
            true,
        ),
        (
            Access::TokenForIdentity("an-identity".into()),
            auth(json!({ "identitytoken": "an-identity" })),
            "exit 1",
            true,
        ),
        (
            Access::Token,
            auth(json!({ "registrytoken": "a-token-for-tests" })),
            "exit 1",
            true,
        ),
        (login_token(), helpers.clone(), right, true),
        (basic(), helpers.clone(), echo, true),
        (
            Access::TokenForIdentity("an-identity".into()),
            helpers.clone(),
            identity,
            true,
        ),
        (basic(), json!({ "credsStore": "test" }), right, true),
        (
            basic(),
            json!({ "auths": { &host: {} }, "credsStore": "test" }),
            right,
            true,
        ),
        (
            basic(),
            json!({ "auths": { "other.test": { "auth": "dXNlcjpwdw==" } } }),
            "exit 1",
            false,
        ),
        (basic(), helpers.clone(), unknown, false),
        (Access::Open, helpers.clone(), "exit 1", true),
    ];
    for (number, (access, auth, helper, is_allowed)) in table.into_iter().enumerate() {
        lab.registry.require(access.clone());
        let store = node(&lab, &format!("node-{number}"), &auth, helper);
        let pulled = store.pull(&lab.registry.reference("a:1"), Credentials::Anonymous).await;
        assert_eq!(pulled.is_ok(), is_allowed, "{access:?} {auth}: {pulled:?}");
        if let Err(error) = pulled {
            assert_eq!(error.cause, Cause::Denied, "{error}");
        }
    }
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_credentials_count_before_the_nodes() {
    let lab = lab();
    lab.registry.require(Access::Login("user".into(), "pw".into()));
    let host = lab.registry.address().to_string();
    let auth = json!({ "auths": { host: { "auth": "dXNlcjpwdw==" } } });
    let store = node(&lab, "node", &auth, "exit 1");
    let reference = lab.registry.reference("a:1");
    let error = store.pull(&reference, login("user", "wrong")).await.unwrap_err();
    assert_eq!(error.cause, Cause::Denied, "{error}");
    store.pull(&reference, Credentials::Anonymous).await.unwrap();
    // What breaks at the node is the node's failure, and says where.
    for (auth, helper, says) in [
        (json!({ "auths": 5 }), "exit 1", "auth.json: line 1"),
        (
            json!({ "credsStore": "test" }),
            "echo secret; exit 1",
            "credential helper \"test\"",
        ),
        (
            json!({ "credsStore": "absent" }),
            "",
            "docker-credential-absent is not in",
        ),
    ] {
        let store = node(&lab, says.split(' ').next().unwrap(), &auth, helper);
        let error = store.pull(&reference, Credentials::Anonymous).await.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.cause, Cause::Local, "{text}");
        assert!(text.contains(says) && !text.contains("secret"), "{text}");
    }
    lab.finish_with(store);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_along_to_another_host() {
    let lab = Lab::new();
    let saved = lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    let elsewhere = Registry::start(&lab.served()).unwrap();
    let blob = saved.blobs[0].as_str();
    let target = format!("http://{}/v2/a/blobs/{blob}", elsewhere.address());
    lab.registry.fail(blob, Some(Fault::Redirect(target)));
    let text = format!(
        "server = 'http://{}'\n[header]\nx-secret = 'configured'",
        lab.registry.address()
    );
    lab.write_hosts("_default", &text);
    let accesses = [
        (Access::Token, Credentials::Bearer("a-token-for-tests".into())),
        (Access::Login("user".into(), "pw".into()), login("user", "pw")),
        (Access::TokenForLogin("user".into(), "pw".into()), login("user", "pw")),
        (
            Access::TokenForIdentity("an-identity".into()),
            Credentials::Identity("an-identity".into()),
        ),
    ];
    // Open, and asking for a login of its own, which is not to be given.
    for (number, (access, credentials)) in accesses.into_iter().enumerate() {
        lab.registry.require(access.clone());
        for (asks, is_pulled) in [(Access::Open, true), (Access::Login("user".into(), "pw".into()), false)] {
            elsewhere.require(asks);
            let store = lab.store_with(&format!("store-{number}-{is_pulled}"), lab.hosts_dir());
            let pulled = store.pull("registry.test/a:1", credentials.clone()).await;
            assert_eq!(pulled.is_ok(), is_pulled, "{access:?}: {pulled:?}");
        }
    }
    let requests = elsewhere.requests();
    assert_eq!(requests.len(), 8);
    assert!(
        requests
            .iter()
            .all(|it| it.authorization.is_none() && it.header("x-secret").is_none())
    );
    assert!(lab.registry.requests().iter().any(|it| it.header("x-secret").is_some()));
    lab.finish_with(elsewhere);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_addresses_of_foreign_layers_are_not_asked() {
    let lab = Lab::new();
    let saved = lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    let elsewhere = Registry::start(&lab.served()).unwrap();
    let content = fs::read(image::blob_path(&lab.served(), &saved.manifest)).unwrap();
    let mut manifest: Value = serde_json::from_slice(&content).unwrap();
    let url = format!("http://{}/v2/a/blobs/{}", elsewhere.address(), saved.blobs[0]);
    manifest["layers"][0]["urls"] = json!([url]);
    let media_type = manifest["mediaType"].as_str().unwrap().to_owned();
    image::save_document(&lab.served(), &manifest, &media_type, &["foreign:1"]).unwrap();
    lab.registry.require(Access::Login("user".into(), "pw".into()));
    let reference = lab.registry.reference("foreign:1");
    let error = lab.store().pull(&reference, login("user", "pw")).await.unwrap_err();
    assert_eq!(error.cause, Cause::Refused, "{error}");
    assert_eq!(elsewhere.count("/"), 0);
    lab.finish_with(elsewhere);
}
