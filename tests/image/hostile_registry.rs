//! Registries that mean harm by what they answer: without end, to other places, and to get hold of credentials.

use std::time::{Duration, Instant};

use corten_cri::image::{Cause, Credentials, RegistryConfig};
use corten_tests::image::Image;
use corten_tests::registry::{Access, Fault, Registry};

use crate::{Lab, small_layer};

const SECRET: &str = "the-secret-word";

fn login() -> Credentials {
    Credentials::Basic {
        user: "user".into(),
        password: SECRET.into(),
    }
}

/// A lab with an image as `a:1`.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    lab
}

/// What this process takes of memory at most, in KiB, from now on.
fn reset_peak() -> impl Fn() -> u64 {
    let read = |field: &str| -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // 5: the peak starts anew (proc(5)).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    move || read("VmHWM:")
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_without_end_are_given_up() {
    let lab = lab();
    let chunk = "x".repeat(1 << 20);
    let endless_header = format!("HTTP/1.1 200 OK\r\nX-Long: {chunk}").into_bytes();
    let mut many_headers = b"HTTP/1.1 200 OK\r\n".to_vec();
    for number in 0..50_000 {
        many_headers.extend(format!("x-{number}: 1\r\n").into_bytes());
    }
    let endless_body =
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n\r\n{chunk}");
    let endless_body = endless_body.into_bytes();
    let table = [
        ("/manifests/", endless_header.clone(), Cause::Unreachable, ""),
        ("/manifests/", many_headers, Cause::Unreachable, ""),
        (
            "/manifests/",
            endless_body.clone(),
            Cause::Refused,
            "larger than 4194304 bytes",
        ),
        ("/blobs/", endless_body.clone(), Cause::Refused, "larger than"),
        ("/token", endless_header, Cause::Unreachable, ""),
        ("/token", endless_body, Cause::Denied, "larger than 1048576 bytes"),
        (
            "/manifests/",
            b"not HTTP at all\r\n\r\n".to_vec(),
            Cause::Unreachable,
            "",
        ),
    ];
    lab.registry.require(Access::Token);
    let peak = reset_peak();
    let before = peak();
    for (number, (part, raw, cause, says)) in table.into_iter().enumerate() {
        lab.registry.fail(part, Some(Fault::Raw(raw)));
        lab.registry.renew_tokens(300);
        let began = Instant::now();
        let error = lab.pull("a:1").await.unwrap_err();
        lab.registry.fail(part, None);
        let text = error.to_string();
        assert_eq!(error.cause, cause, "{number}: {text}");
        assert!(text.contains(says), "{number}: {text}");
        assert!(
            began.elapsed() < Duration::from_secs(20) && text.len() < 1000,
            "{number}: {text}"
        );
        lab.assert_empty();
    }
    // Tests beside this one take memory too; what must not happen is 1 GiB of one reply.
    let grown = peak().saturating_sub(before);
    assert!(grown < 200 << 10, "{grown} KiB");
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_that_lead_astray_are_not_followed() {
    let lab = lab();
    let own = format!("http://{}/v2/a/manifests/1", lab.registry.address());
    let bad = format!("http://user:pw@{}/v2/a/manifests/1", lab.registry.address());
    let table = [
        (own.as_str(), "more than 5 redirects"),
        (bad.as_str(), "brings credentials along"),
        ("file:///etc/passwd", "neither HTTP nor HTTPS"),
        ("http://169.254.169.254/latest/meta-data/", "link-local"),
        ("http://[fe80::1]/", "link-local"),
        ("http://0.0.0.0/", "link-local"),
        ("http://[", "no valid address"),
    ];
    for (target, says) in table {
        lab.registry
            .fail("/manifests/", Some(Fault::Redirect(target.to_owned())));
        let error = lab.pull("a:1").await.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.cause, Cause::Unreachable, "{text}");
        assert!(text.contains(says) && !text.contains("user:pw"), "{target}: {text}");
    }
    lab.registry
        .fail("/manifests/", Some(Fault::StatusWith(302, "X-Nothing", "1".into())));
    let error = lab.pull("a:1").await.unwrap_err();
    assert!(error.to_string().contains("names no place"), "{error}");
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn realms_that_lead_astray_are_not_asked() {
    let lab = lab();
    let reference = lab.registry.reference("a:1");
    lab.registry
        .require(Access::TokenForLogin("user".into(), SECRET.into()));
    for (realm, says) in [
        ("file:///etc/passwd", "neither HTTP nor HTTPS"),
        ("http://169.254.169.254/token", "link-local"),
        ("http://user:pw@127.0.0.1/token", "credentials along"),
        ("token", "no valid address"),
        ("", "no valid address"),
        ("gopher://a/", "neither HTTP"),
    ] {
        lab.registry.set_realm(realm);
        let error = lab.store().pull(&reference, login()).await.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.cause, Cause::Denied, "{text}");
        assert!(
            text.contains("its token service") && text.contains(says),
            "{realm}: {text}"
        );
        assert!(!text.contains("user:pw"), "{text}");
    }
    // A token service that sends the login on to somebody else.
    let thief = Registry::start(&lab.served()).unwrap();
    let target = format!("http://{}/token?x=1", thief.address());
    lab.registry
        .set_realm(&format!("http://{}/token", lab.registry.address()));
    lab.registry.fail("/token", Some(Fault::Redirect(target)));
    lab.store().pull(&reference, login()).await.unwrap_err();
    let requests = thief.requests();
    assert!(!requests.is_empty() && requests.iter().all(|it| it.authorization.is_none()));
    // An identity token is in the form itself, which is not sent twice.
    let identity = Credentials::Identity(SECRET.into());
    let error = lab.store().pull(&reference, identity).await.unwrap_err();
    assert!(error.to_string().contains("307"), "{error}");
    assert_eq!(thief.count("/"), requests.len());
    lab.finish_with(thief);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_secret_leaves_https() {
    let lab = lab();
    let (secure, _) = Registry::start_tls(&lab.served()).unwrap();
    let trusting = RegistryConfig {
        skip_verify: true,
        ..RegistryConfig::default()
    };
    let store = lab.store_with("store-1", [(secure.address().to_string(), trusting)].into());
    let clear = format!("http://{}", lab.registry.address());
    let reference = secure.reference("a:1");
    secure.require(Access::TokenForLogin("user".into(), SECRET.into()));
    // Its realm is in the clear unless another one is set.
    let error = store.pull(&reference, login()).await.unwrap_err();
    assert!(error.to_string().contains("leads from HTTPS to HTTP"), "{error}");
    secure.require(Access::Login("user".into(), SECRET.into()));
    secure.fail(
        "/manifests/",
        Some(Fault::Redirect(format!("{clear}/v2/a/manifests/1"))),
    );
    let error = store.pull(&reference, login()).await.unwrap_err();
    assert!(error.to_string().contains("leads from HTTPS to HTTP"), "{error}");
    assert_eq!(lab.registry.count("/"), 0);
    lab.finish_with((secure, store));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_repeats_is_not_told_on() {
    let lab = lab();
    let reference = lab.registry.reference("a:1");
    let encoded = "dXNlcjp0aGUtc2VjcmV0LXdvcmQ=";
    let raw = |head: &str, body: &str| {
        let text = format!(
            "HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        Fault::Raw(text.into_bytes())
    };
    let echo =
        format!("{{\"errors\":[{{\"code\":\"DENIED\",\"message\":\"{SECRET} {encoded}\"}}],\"token\":[\"{SECRET}\"]}}");
    lab.registry.require(Access::Login("user".into(), SECRET.into()));
    for (part, fault) in [
        ("/manifests/", raw(&format!("403 {SECRET}"), &echo)),
        ("/manifests/", raw(&format!("429 Slow\r\nRetry-After: {SECRET}"), &echo)),
        ("/manifests/", Fault::Redirect(format!("file:///{SECRET}"))),
        ("/manifests/", Fault::Redirect(format!("http://169.254.1.1/{SECRET}"))),
        (
            "/manifests/",
            Fault::Redirect(format!("http://127.0.0.1:1/{SECRET}?{SECRET}")),
        ),
        (
            "/manifests/",
            raw(
                &format!("401 No\r\nWWW-Authenticate: Bearer realm=\"ftp://{SECRET}/\""),
                &echo,
            ),
        ),
        (
            "/manifests/",
            raw(
                &format!("401 No\r\nWWW-Authenticate: Bearer realm=\"http://127.0.0.1:1/{SECRET}\""),
                &echo,
            ),
        ),
    ] {
        lab.registry.fail(part, Some(fault.clone()));
        let error = lab.store().pull(&reference, login()).await.unwrap_err().to_string();
        assert!(!error.contains(SECRET) && !error.contains(encoded), "{error}");
    }
    lab.registry.fail("/manifests/", None);
    lab.registry
        .require(Access::TokenForLogin("user".into(), SECRET.into()));
    for fault in [
        raw("200 OK", &echo),
        raw(&format!("500 {SECRET}"), &echo),
        raw("200 OK", &format!("{{\"token\":\"{SECRET}\\u0000\"}}")),
    ] {
        lab.registry.renew_tokens(300);
        lab.registry.fail("/token", Some(fault.clone()));
        let error = lab.store().pull(&reference, login()).await.unwrap_err().to_string();
        assert!(!error.contains(SECRET) && !error.contains(encoded), "{error}");
    }
    lab.finish();
}
