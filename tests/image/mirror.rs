//! hosts.toml: which hosts are asked, in which order, and what each of them is shown.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use corten_cri::image::{Cause, Credentials, Image as Stored, ImageStore, PullError, RegistryConfig};
use corten_tests::image::{Image, Packing, Saved, blob_path, save_document};
use corten_tests::registry::{Access, Fault, Registry};
use serde_json::json;

use crate::{Lab, large_layer, small_layer};

/// A registry that no resolver knows: whatever is pulled from it comes from where a hosts.toml says.
const REGISTRY: &str = "registry.test:5000";

async fn pull(store: &Arc<ImageStore>, name: &str) -> Result<Arc<Stored>, PullError> {
    store.pull(&format!("{REGISTRY}/{name}"), Credentials::Anonymous).await
}

/// A registry with a layout of its own.
fn other(lab: &Lab, name: &str, image: Option<&Image>) -> (Registry, Option<Saved>) {
    let dir = lab.dir.path().join(name);
    fs::create_dir(&dir).unwrap();
    let saved = image.map(|image| image.save(&dir, &["a:1"]).unwrap());
    (Registry::start(&dir).unwrap(), saved)
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_in_order_and_then_the_registry() {
    let lab = Lab::new();
    let image = Image::new().layer(small_layer("a"));
    let saved = lab.serve(&image, &["a:1"]);
    let (empty, _) = other(&lab, "empty", None);
    let (full, _) = other(&lab, "full", Some(&image));
    let text = format!(
        "server = 'http://{}'\n[host.'http://{}']\n[host.'http://{}']\n",
        lab.registry.address(),
        empty.address(),
        full.address()
    );
    lab.write_hosts("registry.test_5000_", &text);
    let store = lab.store_with("store-1", lab.hosts_dir());
    let pulled = pull(&store, "a:1").await.unwrap();
    assert_eq!(
        (&pulled.id, pulled.repo_tags[0].as_str()),
        (&saved.id, "registry.test:5000/a:1")
    );
    assert_eq!(empty.count("/manifests/"), 1);
    assert_eq!((full.count("/manifests/"), full.count("/blobs/")), (1, 2));
    assert_eq!(lab.registry.count("/"), 0, "nobody had to ask the registry itself");
    assert!(
        full.requests()
            .iter()
            .all(|it| it.path.ends_with("?ns=registry.test%3A5000"))
    );

    // Without the second mirror the registry answers; the file is read again without any restart.
    lab.write_hosts(
        "registry.test_5000_",
        &text.replace(&full.address().to_string(), "127.0.0.1:1"),
    );
    let store = lab.store_with("store-2", lab.hosts_dir());
    pull(&store, "a:1").await.unwrap();
    assert_eq!(
        (lab.registry.count("/manifests/"), lab.registry.count("/blobs/")),
        (1, 2)
    );
    let gone = text.replace(&lab.registry.address().to_string(), "127.0.0.1:1");
    lab.write_hosts(
        "registry.test_5000_",
        &gone.replace(&full.address().to_string(), "127.0.0.1:1"),
    );
    let error = pull(&store, "a:1").await.unwrap_err();
    let says = error.to_string();
    assert_eq!(error.cause, Cause::Unreachable, "the last one's: {says}");
    let hosts = [
        empty.address().to_string(),
        "127.0.0.1:1".to_owned(),
        REGISTRY.to_owned(),
    ];
    assert!(hosts.iter().all(|host| says.contains(host.as_str())), "{says}");
    lab.finish_with((empty, full, store));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_does_what_it_may() {
    let lab = Lab::new();
    let image = Image::new().layer(small_layer("a"));
    let saved = lab.serve(&image, &["a:1"]);
    let (mirror, _) = other(&lab, "mirror", Some(&image));
    let hosts = |capabilities: &str| {
        let (server, mirror) = (lab.registry.address(), mirror.address());
        let text = format!("server='http://{server}'\n[host.'http://{mirror}']\ncapabilities = {capabilities}\n");
        lab.write_hosts(REGISTRY, &text);
    };
    // What a mirror without "resolve" says about tags does not count, content by digest does.
    hosts("['pull']");
    let store = lab.store_with("store-1", lab.hosts_dir());
    pull(&store, "a:1").await.unwrap();
    assert_eq!((mirror.count("/manifests/"), mirror.count("/blobs/")), (0, 2));
    assert_eq!(
        (lab.registry.count("/manifests/"), lab.registry.count("/blobs/")),
        (1, 0)
    );
    pull(&store, &format!("a@{}", saved.manifest)).await.unwrap();
    assert_eq!(mirror.count("/manifests/"), 1);
    hosts("['push']");
    let store = lab.store_with("store-2", lab.hosts_dir());
    pull(&store, "a:1").await.unwrap();
    assert_eq!((mirror.count("/"), lab.registry.count("/blobs/")), (3, 2));
    // Nobody left to ask.
    lab.write_hosts(REGISTRY, "capabilities = ['push']");
    let error = pull(&store, "a:1").await.unwrap_err();
    assert!(
        error.to_string().contains("no host of its hosts.toml may do this"),
        "{error}"
    );
    lab.finish_with((mirror, store));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_mirror_sends_wrong_comes_from_the_next() {
    let lab = Lab::new();
    let image = Image::new().layer(large_layer("a", 1)).layer(small_layer("b"));
    let saved = lab.serve(&image, &["a:1"]);
    let (mirror, _) = other(&lab, "mirror", Some(&image));
    let blob = saved.blobs[0].as_str();
    let text = format!(
        "server='http://{}'\n[host.'http://{}']",
        lab.registry.address(),
        mirror.address()
    );
    lab.write_hosts(REGISTRY, &text);
    for (number, fault) in [
        Fault::Corrupt,
        Fault::Truncate(1000),
        Fault::Status(500),
        Fault::Status(401),
        Fault::Length(-5),
        Fault::StatusWith(429, "Retry-After", "3600".into()),
    ]
    .into_iter()
    .enumerate()
    {
        mirror.fail(blob, Some(fault.clone()));
        let store = lab.store_with(&format!("store-{number}"), lab.hosts_dir());
        let pulled = pull(&store, "a:1").await;
        assert_eq!(
            pulled.map(|it| it.id.clone()).map_err(|it| it.to_string()),
            Ok(saved.id.clone()),
            "{fault:?}"
        );
        assert_eq!(lab.registry.count(blob), number + 1, "{fault:?}");
    }
    lab.finish_with(mirror);
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_a_mirror_sends_wrong_come_from_the_next() {
    let lab = Lab::new();
    let image = Image::new().layer(small_layer("a"));
    let saved = lab.serve(&image, &["a:1"]);
    let entry = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": saved.manifest, "size": fs::read(blob_path(&lab.served(), &saved.manifest)).unwrap().len(),
        "platform": { "os": "linux", "architecture": image.architecture },
    });
    let of_index = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": of_index, "manifests": [entry] });
    save_document(&lab.served(), &index, of_index, &["index:1"]).unwrap();
    let (mirror, _) = other(&lab, "mirror", Some(&image));
    // Tags are the registry's to tell, content by digest may come from either.
    let text = |first: &Registry| {
        let server = lab.registry.address();
        format!(
            "server='http://{server}'\n[host.'http://{}']\ncapabilities=['pull']",
            first.address()
        )
    };
    let by_digest = format!("a@{}", saved.manifest);
    let faults = [Fault::Corrupt, Fault::Length(-5)];
    let table = [
        (by_digest.as_str(), &saved.manifest),
        ("index:1", &saved.manifest),
        ("a:1", &saved.id),
    ];
    for (number, (fault, (name, wrong))) in faults
        .iter()
        .flat_map(|fault| table.map(|row| (fault, row)))
        .enumerate()
    {
        lab.write_hosts(REGISTRY, &text(&mirror));
        mirror.fail(wrong.as_str(), Some(fault.clone()));
        let before = (mirror.count(wrong.as_str()), lab.registry.count(wrong.as_str()));
        let store = lab.store_with(&format!("store-{number}"), lab.hosts_dir());
        let pulled = pull(&store, name).await;
        let pulled = pulled.map(|it| it.id.clone()).map_err(|it| it.to_string());
        assert_eq!(pulled, Ok(saved.id.clone()), "{name} {fault:?}");
        let after = (mirror.count(wrong.as_str()), lab.registry.count(wrong.as_str()));
        assert_eq!(
            after,
            (before.0 + 1, before.1 + 1),
            "{name} {fault:?}: each is asked once"
        );

        // Where there is nobody else the error tells who it was.
        lab.write_hosts(REGISTRY, &format!("server='http://{}'", mirror.address()));
        let store = lab.store_with(&format!("alone-{number}"), lab.hosts_dir());
        let error = pull(&store, if name == "index:1" { &by_digest } else { name })
            .await
            .unwrap_err();
        assert_eq!(error.cause, Cause::Refused, "{error}");
        assert!(error.to_string().contains(&mirror.address().to_string()), "{error}");
        mirror.fail(wrong.as_str(), None);
    }
    lab.finish_with(mirror);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_on_from_wrong_bytes_is_not_to_blame() {
    let lab = Lab::new();
    let mut image = Image::new().layer(large_layer("a", 1));
    image.packing = Packing::Plain;
    let saved = lab.serve(&image, &["a:1"]);
    let (mirror, _) = other(&lab, "mirror", Some(&image));
    let blob = &saved.blobs[0];
    let path = lab.dir.path().join("mirror/blobs/sha256").join(blob.hex());
    let mut content = fs::read(&path).unwrap();
    content[5000] ^= 1;
    fs::write(&path, content).unwrap();
    let (server, first) = (lab.registry.address(), mirror.address());
    lab.write_hosts(REGISTRY, &format!("server='http://{server}'\n[host.'http://{first}']"));
    mirror.fail(blob.as_str(), Some(Fault::Times(1, Box::new(Fault::Truncate(10_000)))));
    let store = lab.store_with("store-1", lab.hosts_dir());
    assert_eq!(pull(&store, "a:1").await.unwrap().id, saved.id);
    assert_eq!((mirror.count(blob.as_str()), lab.registry.count(blob.as_str())), (1, 2));
    lab.finish_with((mirror, store));
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_the_hosts_own() {
    let lab = Lab::new();
    let image = Image::new().layer(small_layer("a"));
    lab.serve(&image, &["a:1"]);
    let (mirror, _) = other(&lab, "mirror", Some(&image));
    mirror.require(Access::Login("mirror".into(), "its-own".into()));
    lab.registry.require(Access::Login("user".into(), "the-callers".into()));
    let reference = format!("{REGISTRY}/a:1");
    let callers = || Credentials::Basic {
        user: "user".into(),
        password: "the-callers".into(),
    };
    let hosts = |login: &str| {
        let (server, mirror) = (lab.registry.address(), mirror.address());
        let text = format!("server='http://{server}'\n[host.'http://{mirror}']\n{login}");
        lab.write_hosts(REGISTRY, &text);
    };
    // The caller's are for the registry, wherever it is, and not for a mirror.
    hosts("");
    let store = lab.store_with("store-1", lab.hosts_dir());
    store.pull(&reference, callers()).await.unwrap();
    assert!(mirror.requests().iter().all(|it| it.authorization.is_none()));
    assert_eq!(
        lab.registry
            .requests()
            .iter()
            .filter(|it| it.authorization.is_some())
            .count(),
        3
    );

    let file = lab.dir.path().join("certs.d").join(REGISTRY).join("auth.json");
    let auths = format!(
        r#"{{"auths":{{"{}":{{"auth":"bWlycm9yOml0cy1vd24="}}}}}}"#,
        mirror.address()
    );
    fs::write(&file, auths).unwrap();
    for (number, login) in ["username='mirror'\npassword='its-own'", "credentials_file='auth.json'"]
        .iter()
        .enumerate()
    {
        hosts(login);
        let before = lab.registry.count("/");
        let store = lab.store_with(&format!("store-2{number}"), lab.hosts_dir());
        store.pull(&reference, callers()).await.unwrap();
        assert_eq!(lab.registry.count("/"), before, "{login}: the mirror served it");
    }
    let callers = Credentials::Basic {
        user: "user".into(),
        password: "wrong-secret".into(),
    };
    hosts("username='mirror'\npassword='wrong-too'");
    let error = store.pull(&reference, callers).await.unwrap_err();
    let says = error.to_string();
    assert_eq!(error.cause, Cause::Denied, "{says}");
    assert!(!says.contains("wrong"), "{says}");
    lab.finish_with((mirror, store));
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_paths_are_the_files() {
    let lab = Lab::new();
    lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    let address = lab.registry.address();
    let text = format!(
        "server='http://{address}/v2'\noverride_path = true\n[header]\nx-one = 'own'\nx-many = ['1', '2']\n\
         [host.'http://{address}/proxy']\n[host.'http://{address}/root']\noverride_path = true"
    );
    lab.write_hosts(REGISTRY, &text);
    let store = lab.store_with("store-1", lab.hosts_dir());
    pull(&store, "a:1").await.unwrap();
    let requests = lab.registry.requests();
    let paths: Vec<_> = requests
        .iter()
        .take(3)
        .map(|it| it.path.split('?').next().unwrap())
        .collect();
    assert_eq!(
        paths,
        ["/proxy/v2/a/manifests/1", "/root/a/manifests/1", "/v2/a/manifests/1"]
    );
    assert_eq!(
        (requests[0].header("x-one"), requests[2].header("x-one")),
        (None, Some("own"))
    );
    assert_eq!(
        requests[2].headers.iter().filter(|(name, _)| name == "x-many").count(),
        2
    );
    lab.finish_with(store);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_both_sides() {
    let lab = Lab::new();
    lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    let (secure, files) = Registry::start_mutual_tls(&lab.served()).unwrap();
    let dir = lab.dir.path().join("certs.d").join(REGISTRY);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("ca.pem"), &files.authority).unwrap();
    fs::write(dir.join("own.cert"), &files.certificate).unwrap();
    fs::write(dir.join("own.key"), &files.key).unwrap();
    fs::write(dir.join("both.pem"), format!("{}{}", files.certificate, files.key)).unwrap();
    let table = [
        ("ca = 'ca.pem'\nclient = [['own.cert', 'own.key']]", ""),
        ("ca = ['ca.pem']\nclient = 'both.pem'", ""),
        ("skip_verify = true\nclient = 'both.pem'", ""),
        ("ca = 'ca.pem'", "certificate"),
        ("client = 'both.pem'", "certificate"),
        ("ca = 'ca.pem'\nclient = 'own.cert'", "own.cert"),
        ("ca = 'missing.pem'", "missing.pem"),
    ];
    for (number, (keys, says)) in table.into_iter().enumerate() {
        lab.write_hosts(REGISTRY, &format!("server = 'https://{}'\n{keys}", secure.address()));
        let store = lab.store_with(&format!("store-{number}"), lab.hosts_dir());
        let error = pull(&store, "a:1")
            .await
            .err()
            .map(|it| it.to_string())
            .unwrap_or_default();
        assert_eq!(error.is_empty(), says.is_empty(), "{keys}: {error}");
        assert!(error.to_lowercase().contains(says), "{keys}: {error}");
    }
    // Another key in the same file counts at the next pull.
    let store = lab.store_with("store-again", lab.hosts_dir());
    lab.write_hosts(
        REGISTRY,
        &format!(
            "server = 'https://{}'\nca = 'ca.pem'\nclient = 'both.pem'",
            secure.address()
        ),
    );
    fs::write(dir.join("both.pem"), &files.certificate).unwrap();
    pull(&store, "a:1").await.unwrap_err();
    fs::write(dir.join("both.pem"), format!("{}{}", files.certificate, files.key)).unwrap();
    pull(&store, "a:1").await.unwrap();
    lab.finish_with((secure, store));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_wrong_ends_the_pull_and_is_named() {
    let lab = Lab::new();
    lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    let store = lab.store_with("store-1", lab.hosts_dir());
    let server = format!("server = 'http://{}'\n", lab.registry.address());
    lab.write_hosts("_default", &server);
    pull(&store, "a:1").await.unwrap();
    lab.write_hosts(REGISTRY, &format!("{server}capabilites = ['pull']\n"));
    let error = pull(&store, "a:1").await.unwrap_err();
    let file = Path::new("certs.d")
        .join(REGISTRY)
        .join("hosts.toml:2: capabilites: is not a key");
    assert_eq!(error.cause, Cause::Local);
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    lab.finish_with(store);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_dead_is_waited_for_once() {
    let lab = Lab::new();
    let mut image = Image::new();
    for number in 0..8 {
        image = image.layer(small_layer(&format!("layer-{number}")));
    }
    lab.serve(&image, &["a:1"]);
    // An address that takes connections and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = format!(
        "server='http://{}'\n[host.'http://{}']",
        lab.registry.address(),
        silent.local_addr().unwrap()
    );
    lab.write_hosts(REGISTRY, &text);
    let mut configs = lab.hosts_dir();
    configs.pull.progress_timeout_s = 1;
    let store = lab.store_with("store-1", configs);
    let began = std::time::Instant::now();
    pull(&store, "a:1").await.unwrap();
    assert!(began.elapsed().as_secs() < 3, "{:?} for ten requests", began.elapsed());
    lab.finish_with((silent, store));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_at_an_ipv6_address() {
    let lab = Lab::new();
    let saved = lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    let Ok(registry) = Registry::listen("[::1]:0".parse().unwrap(), &lab.served()) else {
        println!("SKIP: this machine has no IPv6 loopback");
        return lab.finish();
    };
    let plain = RegistryConfig {
        plain_http: true,
        ..RegistryConfig::default()
    };
    let host = registry.address().to_string();
    let store = lab.store_with("other", [(host.clone(), plain)].into());
    assert!(host.starts_with("[::1]:"), "{host}");
    // With tag and digest together the digest counts.
    for name in [
        "a:1".to_owned(),
        format!("a@{}", saved.manifest),
        format!("a:2@{}", saved.manifest),
    ] {
        let pulled = store
            .pull(&format!("{host}/{name}"), Credentials::Anonymous)
            .await
            .unwrap();
        assert_eq!(pulled.id, saved.id, "{name}");
        assert!(pulled.repo_digests[0].starts_with(&host));
    }
    lab.finish_with((registry, store));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_waited_for_as_long_as_the_file_says() {
    let lab = Lab::new();
    lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    // Room for one connection that nobody accepts: the kernel answers no more of them.
    let full = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    nix::sys::socket::listen(&full, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let address = full.local_addr().unwrap();
    let connect = || std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(100));
    let taken: Vec<_> = std::iter::from_fn(|| connect().ok()).take(10).collect();
    assert!(taken.len() < 10, "the queue is full");
    let text = format!(
        "server='http://{}'\n[host.'http://{address}']\ndial_timeout='300ms'",
        lab.registry.address()
    );
    lab.write_hosts(REGISTRY, &text);
    let store = lab.store_with("store-1", lab.hosts_dir());
    let began = std::time::Instant::now();
    pull(&store, "a:1").await.unwrap();
    let took = began.elapsed().as_millis();
    assert!((300..2000).contains(&took), "{took} ms");
    lab.write_hosts(REGISTRY, &format!("server='http://{address}'\ndial_timeout='100ms'"));
    let error = pull(&store, "a:1").await.unwrap_err();
    assert_eq!(error.cause, Cause::Unreachable);
    assert!(error.to_string().contains("no answer in time"), "{error}");
    lab.finish_with((full, taken, store));
}
