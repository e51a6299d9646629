//! Debian's `docker-registry`, with images pushed by `skopeo`: what others implement, and we are to understand.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use corten_cri::image::{Cause, Credentials, RegistryConfigs};
use corten_tests::image::{Format, Image, Packing, Saved};

use crate::{Lab, large_layer, small_layer, wait_for};

/// `user` with the password `password`, as htpasswd writes it.
const HTPASSWD: &str = "user:$2b$05$ynZGZqdACQxE5FkS8B0NIOigHIOskxJNdVqtfK5bRjGxVtUkyr.6e\n";

/// The registry, killed when it goes.
struct DebianRegistry {
    child: Child,
    address: SocketAddr,
}

impl DebianRegistry {
    /// Starts one below `dir`; `None`, and the reason told, where the machine has none.
    fn start(dir: &Path, has_login: bool) -> Option<DebianRegistry> {
        for program in ["docker-registry", "skopeo"] {
            if Command::new(program).arg("--version").output().is_err() {
                println!("SKIP: {program} is not installed");
                return None;
            }
        }
        fs::create_dir(dir).unwrap();
        // Free now; nobody else asks for ports in between but other tests, which bind theirs at once.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
        let dir = dir.display();
        let auth = format!("auth: {{ htpasswd: {{ realm: test, path: {dir}/htpasswd }} }}\n");
        let config = format!(
            "version: 0.1\nstorage: {{ filesystem: {{ rootdirectory: {dir}/data }} }}\nhttp: {{ addr: '{address}' }}\n{}",
            if has_login { auth.as_str() } else { "" }
        );
        let file = format!("{dir}/config.yml");
        fs::write(&file, config).unwrap();
        let log = fs::File::create(format!("{dir}/log")).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", &file])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let registry = DebianRegistry { child, address };
        wait_for("docker-registry", || TcpStream::connect(address).is_ok());
        Some(registry)
    }

    /// Pushes the image of a layout.
    fn push(&self, lab: &Lab, name: &str, arguments: &[&str]) {
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--dest-tls-verify=false"])
            .args(arguments)
            .arg(format!("oci:{}:{name}", lab.served().display()))
            .arg(format!("docker://{}/{name}", self.address))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn configs(&self, lab: &Lab) -> RegistryConfigs {
        lab.write_hosts(
            &self.address.to_string(),
            &format!("server = 'http://{}'", self.address),
        );
        lab.hosts_dir()
    }
}

impl Drop for DebianRegistry {
    fn drop(&mut self) {
        // It may have ended by itself; the wait reaps it either way.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn image(name: &str, format: Format, packing: Packing) -> Image {
    let mut image = Image::new().layer(large_layer(name, 1)).layer(small_layer(name));
    (image.format, image.packing) = (format, packing);
    image
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_skopeo_pushed() {
    let lab = Lab::new();
    let Some(registry) = DebianRegistry::start(&lab.dir.path().join("debian"), false) else {
        return lab.finish();
    };
    let store = lab.store_with("store-1", registry.configs(&lab));
    let table: [(&str, &[&str]); 3] = [
        ("oci:1", &[]),
        ("schema-2:1", &["--format", "v2s2"]),
        ("team/deep/er:x.y-z_1", &["--dest-compress-format", "gzip"]),
    ];
    for (name, arguments) in table {
        let saved: Saved = lab.serve(&image(name, Format::Oci, Packing::Gzip), &[name]);
        registry.push(&lab, name, arguments);
        let reference = format!("{}/{name}", registry.address);
        let pulled = store.pull(&reference, Credentials::Anonymous).await.unwrap();
        assert_eq!(pulled.layers, saved.diff_ids, "{name}");
        let by_digest = pulled.repo_digests[0].clone();
        let again = store.pull(&by_digest, Credentials::Anonymous).await.unwrap();
        assert_eq!(again.id, pulled.id);
    }
    let absent = format!("{}/absent:1", registry.address);
    let error = store.pull(&absent, Credentials::Anonymous).await.unwrap_err();
    assert_eq!(error.cause, Cause::NotFound, "{error}");
    lab.finish_with((registry, store));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_a_login() {
    let lab = Lab::new();
    let Some(registry) = DebianRegistry::start(&lab.dir.path().join("debian"), true) else {
        return lab.finish();
    };
    let saved = lab.serve(&image("a", Format::Oci, Packing::Gzip), &["a:1"]);
    registry.push(&lab, "a:1", &["--dest-creds", "user:password"]);
    let reference = format!("{}/a:1", registry.address);
    let login = |password: &str| Credentials::Basic {
        user: "user".into(),
        password: password.into(),
    };
    for (number, (credentials, is_allowed)) in [
        (login("password"), true),
        (login("wrong"), false),
        (Credentials::Anonymous, false),
        (Credentials::Identity("x".into()), false),
    ]
    .into_iter()
    .enumerate()
    {
        let store = lab.store_with(&format!("store-{number}"), registry.configs(&lab));
        let pulled = store.pull(&reference, credentials.clone()).await;
        match pulled {
            Ok(pulled) => assert!(is_allowed && pulled.id == saved.id, "{credentials:?}"),
            Err(error) => assert!(!is_allowed && error.cause == Cause::Denied, "{credentials:?}: {error}"),
        }
    }
    // The node's own file, as skopeo and docker write it.
    let mut configs = registry.configs(&lab);
    let file = lab.dir.path().join("auth.json");
    let status = Command::new("skopeo")
        .args([
            "login",
            "--tls-verify=false",
            "--username=user",
            "--password=password",
            "--authfile",
        ])
        .arg(&file)
        .arg(registry.address.to_string())
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    configs.pull.auth_file = file;
    let store = lab.store_with("node", configs);
    assert_eq!(
        store.pull(&reference, Credentials::Anonymous).await.unwrap().id,
        saved.id
    );
    lab.finish_with((registry, store));
}
