//! Proxies by environment. The environment is a process's, so each case runs in a process of its own: this test again.

use std::process::Command;

use corten_cri::image::{Credentials, ImageStore, RegistryConfig, RegistryConfigs};
use corten_tests::image::Image;
use corten_tests::proxy::Proxy;
use corten_tests::registry::Registry;

use crate::{Lab, small_layer};

/// What the process of one case is to pull, and into which directory.
const REFERENCE: &str = "CORTEN_TEST_REFERENCE";
const ROOT: &str = "CORTEN_TEST_ROOT";
const CA: &str = "CORTEN_TEST_CA";

/// The registry that only a proxy finds.
const HIDDEN: &str = "registry.test";

/// What is pulled with which environment; whether that succeeds, and how many requests each of the two proxies sees.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], bool, usize, usize);

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_through_the_proxy_of_the_environment() {
    if let Ok(reference) = std::env::var(REFERENCE) {
        return pull(&reference).await;
    }
    let lab = Lab::new();
    lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    let (secure, authority) = Registry::start_tls(&lab.served()).unwrap();
    let ca = lab.dir.path().join("ca.pem");
    std::fs::write(&ca, authority).unwrap();
    let plain_proxy = Proxy::start(lab.registry.address()).unwrap();
    let secure_proxy = Proxy::start(secure.address()).unwrap();
    let (http, https) = (plain_proxy.url(), secure_proxy.url());
    let plain = format!("{HIDDEN}:5000/a:1");
    let tls = format!("{HIDDEN}/a:1");
    let direct = lab.registry.reference("a:1");
    let table: [Case; 8] = [
        (&plain, &[("HTTP_PROXY", &http)], true, 3, 0),
        (&plain, &[("http_proxy", &http)], true, 3, 0),
        (&tls, &[("HTTPS_PROXY", &https), ("HTTP_PROXY", &http)], true, 0, 1),
        (&tls, &[("ALL_PROXY", &https)], true, 0, 1),
        (
            &plain,
            &[("HTTP_PROXY", &http), ("NO_PROXY", "other, registry.test")],
            false,
            0,
            0,
        ),
        (&tls, &[("HTTPS_PROXY", &https), ("no_proxy", ".test")], false, 0, 0),
        (&direct, &[("HTTP_PROXY", &http)], true, 0, 0),
        (&plain, &[("HTTP_PROXY", "http://127.0.0.1:1")], false, 0, 0),
    ];
    for (number, (reference, environment, is_pulled, http_lines, https_lines)) in table.into_iter().enumerate() {
        let before = (plain_proxy.lines().len(), secure_proxy.lines().len());
        let mut case = Command::new(std::env::current_exe().unwrap());
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"] {
            case.env_remove(name).env_remove(name.to_lowercase());
        }
        case.args(["--exact", "proxy::requests_go_through_the_proxy_of_the_environment"])
            .envs(environment.iter().copied())
            .env(REFERENCE, reference)
            .env(CA, &ca)
            .env(ROOT, lab.dir.path().join(format!("case-{number}")));
        let output = case.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            output.status.success(),
            is_pulled,
            "{reference} {environment:?}: {text}"
        );
        let http_count = plain_proxy.lines().len() - before.0;
        let https_count = secure_proxy.lines().len() - before.1;
        assert_eq!(
            http_count,
            http_lines,
            "{reference} {environment:?}: {:?}",
            plain_proxy.lines()
        );
        assert!(
            https_count >= https_lines && (https_lines > 0 || https_count == 0),
            "{environment:?}"
        );
    }
    assert!(plain_proxy.lines()[0].starts_with("GET http://registry.test:5000/v2/a/manifests/1 "));
    assert_eq!(secure_proxy.lines()[0], "CONNECT registry.test:443 HTTP/1.1");
    lab.finish_with((secure, plain_proxy, secure_proxy));
}

/// The process of one case.
async fn pull(reference: &str) {
    let plain = RegistryConfig {
        plain_http: true,
        ..RegistryConfig::default()
    };
    let tls = RegistryConfig {
        ca: std::env::var(CA).ok().map(Into::into),
        ..RegistryConfig::default()
    };
    let host = reference.split('/').next().unwrap().to_owned();
    let config = if host == HIDDEN { tls } else { plain };
    let root = std::env::var(ROOT).unwrap();
    let store = ImageStore::open(root.as_ref(), RegistryConfigs::from([(host, config)])).unwrap();
    store.pull(reference, Credentials::Anonymous).await.unwrap();
}
