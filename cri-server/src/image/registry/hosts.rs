//! Which hosts serve a registry's images: mirrors in order, then the registry itself.
//!
//! ```text
//! DIR/docker.io/hosts.toml                 for the references that name docker.io
//! DIR/registry.example_5000_/hosts.toml    for registry.example:5000; DIR/registry.example:5000/ does too
//! DIR/_default/hosts.toml                  for every registry that has neither directory nor entry of its own
//! DIR/HOST/{*.crt,*.cert,*.key}            without a hosts.toml: authorities, and a client certificate with its key
//! ```
//! The layout is containerd's, and so is the file's format (`hosts_toml`). What counts, first found: the registry's own
//! directory in the order of the configured DIRs; its entry in `[registries]` of config.toml; `_default`; the entry `*`;
//! HTTPS to the host that references name. Read again at every pull: files are small, and what was changed counts at once.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use reqwest::Url;
use reqwest::header::HeaderMap;

use super::super::auth::Credentials;
use super::client::{ClientCertificate, Transport};
use super::{RegistryConfig, RegistryConfigs, hosts_toml};

/// Largest hosts.toml, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The directory of registries without one of their own.
const DEFAULT_DIRECTORY: &str = "_default";

/// A host, and how it is reached.
#[derive(Clone, Debug)]
pub(super) struct Host {
    /// The registry that references name.
    pub(super) registry: String,
    /// `https://registry-1.docker.io/v2/`
    pub(super) api: Url,
    pub(super) capabilities: Capabilities,
    pub(super) transport: Transport,
    /// Added to every request to this host.
    pub(super) headers: HeaderMap,
    pub(super) login: Option<Login>,
    /// The registry itself and no mirror: the caller's credentials are for it.
    pub(super) is_upstream: bool,
    /// Told to mirrors, which may stand for several registries.
    pub(super) namespace: Option<String>,
}

/// What a host is trusted to do. Pushing is the third of the format and nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// To serve content by digest.
    pub(super) pull: bool,
    /// To say which content a tag is.
    pub(super) resolve: bool,
}

/// A host's credentials by configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Login {
    /// These.
    Given(Credentials),
    /// Those of a file of docker's form.
    File(PathBuf),
}

impl Default for Capabilities {
    fn default() -> Self {
        Capabilities {
            pull: true,
            resolve: true,
        }
    }
}

/// The hosts of `registry` in the order in which they are asked. Blocks: reads files.
pub(super) fn of(registry: &str, configs: &RegistryConfigs) -> Result<Vec<Host>> {
    let names = own_directories(registry);
    if let Some(hosts) = in_directories(registry, &configs.pull.hosts_dirs, &names)? {
        return Ok(hosts);
    }
    let entry = configs.by_name.get(registry);
    if entry.is_none()
        && let Some(hosts) = in_directories(registry, &configs.pull.hosts_dirs, &[DEFAULT_DIRECTORY.into()])?
    {
        return Ok(hosts);
    }
    let entry = entry.or_else(|| configs.by_name.get("*")).cloned().unwrap_or_default();
    Ok(vec![of_entry(registry, &entry)?])
}

/// The registry itself as config.toml has it.
fn of_entry(registry: &str, entry: &RegistryConfig) -> Result<Host> {
    let host = entry.endpoint.as_deref().unwrap_or_else(|| api_host(registry));
    let scheme = if entry.plain_http { "http" } else { "https" };
    let address = format!("{scheme}://{host}/v2/");
    let api = Url::parse(&address).with_context(|| format!("registry address {address:?}"))?;
    let transport = Transport {
        plain_http: entry.plain_http,
        ca: entry.ca.iter().cloned().collect(),
        skip_verify: entry.skip_verify,
        ..Transport::default()
    };
    Ok(upstream(registry, api, transport))
}

/// The registry itself, reached like this and with nothing else configured.
pub(super) fn upstream(registry: &str, api: Url, transport: Transport) -> Host {
    Host {
        registry: registry.to_owned(),
        api,
        capabilities: Capabilities::default(),
        transport,
        headers: HeaderMap::new(),
        login: None,
        is_upstream: true,
        namespace: None,
    }
}

/// The host that answers for a registry. Docker Hub answers its API under another name than its references have.
pub(super) fn api_host(registry: &str) -> &str {
    match registry {
        "docker.io" => "registry-1.docker.io",
        registry => registry,
    }
}

/// The names that a registry's directory can have, best first.
fn own_directories(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    // A colon within brackets is an IPv6 address's.
    let host_and_port = registry.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
    if let Some((host, port)) = host_and_port {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names
}

fn in_directories(registry: &str, dirs: &[PathBuf], names: &[String]) -> Result<Option<Vec<Host>>> {
    for dir in dirs {
        for name in names {
            let dir = dir.join(name);
            if dir.is_dir() {
                return in_directory(registry, &dir).map(Some);
            }
        }
    }
    Ok(None)
}

fn in_directory(registry: &str, dir: &Path) -> Result<Vec<Host>> {
    let file = dir.join("hosts.toml");
    let opened = match std::fs::File::open(&file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![of_certificates(registry, dir)?]),
        opened => opened.with_context(|| format!("open {}", file.display()))?,
    };
    let mut text = String::new();
    let read = opened.take(MAX_FILE + 1).read_to_string(&mut text);
    read.with_context(|| format!("read {}", file.display()))?;
    anyhow::ensure!(
        text.len() as u64 <= MAX_FILE,
        "{}: larger than {MAX_FILE} bytes",
        file.display()
    );
    Ok(hosts_toml::parse(&file, &text, registry)?)
}

/// Docker's way: the directory holds certificates and nothing else.
fn of_certificates(registry: &str, dir: &Path) -> Result<Host> {
    let reading = || format!("read {}", dir.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(reading)? {
        files.push(entry.with_context(reading)?.path());
    }
    files.sort();
    let with = |extension: &str| {
        let mut found = files.clone();
        found.retain(|file| file.extension().is_some_and(|it| it == extension));
        found
    };
    let identity = with("cert").into_iter().next().map(|certificate| {
        let key = certificate.with_extension("key");
        ClientCertificate {
            key: key.exists().then_some(key),
            certificate,
        }
    });
    let transport = Transport {
        ca: with("crt"),
        identity,
        ..Transport::default()
    };
    let address = format!("https://{}/v2/", api_host(registry));
    let api = Url::parse(&address).with_context(|| format!("registry address {address:?}"))?;
    Ok(upstream(registry, api, transport))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_named_as_containerd_names_them() {
        for (registry, names) in [
            ("docker.io", vec!["docker.io"]),
            ("a.b:5000", vec!["a.b_5000_", "a.b:5000"]),
            ("[::1]:5000", vec!["[::1]_5000_", "[::1]:5000"]),
            ("[::1]", vec!["[::1]"]),
        ] {
            assert_eq!(own_directories(registry), names);
        }
    }

    /// A node's configuration: files of its directories `first` and `second`, and entries of config.toml.
    struct Etc {
        dir: tempfile::TempDir,
        configs: RegistryConfigs,
    }

    impl Etc {
        fn new() -> Etc {
            let dir = tempfile::tempdir().unwrap();
            let mut configs = RegistryConfigs::from([]);
            configs.pull.hosts_dirs = vec![dir.path().join("first"), dir.path().join("second")];
            Etc { dir, configs }
        }

        fn write(&self, file: &str, text: &str) {
            let path = self.dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn hosts(&self, registry: &str) -> Vec<String> {
            let hosts = of(registry, &self.configs).unwrap();
            hosts.iter().map(|host| host.api.to_string()).collect()
        }
    }

    #[test]
    fn what_is_more_about_a_registry_counts_first() {
        let mut etc = Etc::new();
        assert_eq!(etc.hosts("a.b:5000"), ["https://a.b:5000/v2/"]);
        assert_eq!(etc.hosts("docker.io"), ["https://registry-1.docker.io/v2/"]);
        assert_eq!(etc.hosts("[::1]:5000"), ["https://[::1]:5000/v2/"]);
        let plain = RegistryConfig {
            plain_http: true,
            ..RegistryConfig::default()
        };
        etc.configs.by_name.insert("*".into(), plain.clone());
        assert_eq!(etc.hosts("a.b:5000"), ["http://a.b:5000/v2/"]);
        etc.write("second/_default/hosts.toml", "server = 'https://default'");
        assert_eq!(etc.hosts("a.b:5000"), ["https://default/v2/"]);
        let elsewhere = RegistryConfig {
            endpoint: Some("entry:1".into()),
            ..plain
        };
        etc.configs.by_name.insert("a.b:5000".into(), elsewhere);
        assert_eq!(etc.hosts("a.b:5000"), ["http://entry:1/v2/"]);
        etc.write("second/a.b:5000/hosts.toml", "server = 'https://second'");
        assert_eq!(etc.hosts("a.b:5000"), ["https://second/v2/"]);
        etc.write("second/a.b_5000_/hosts.toml", "server = 'https://underscores'");
        assert_eq!(etc.hosts("a.b:5000"), ["https://underscores/v2/"]);
        etc.write("first/a.b:5000/hosts.toml", "server = 'https://first'");
        assert_eq!(etc.hosts("a.b:5000"), ["https://first/v2/"]);
        assert_eq!(etc.hosts("a.b:5001"), ["https://default/v2/"]);
    }

    #[test]
    fn a_directory_of_certificates() {
        let etc = Etc::new();
        for file in ["ca.crt", "own.cert", "own.key", "other.txt"] {
            etc.write(&format!("first/a.b/{file}"), "");
        }
        let hosts = of("a.b", &etc.configs).unwrap();
        let transport = &hosts[0].transport;
        let at = |name: &str| etc.dir.path().join("first/a.b").join(name);
        assert_eq!(transport.ca, [at("ca.crt")]);
        let identity = transport.identity.as_ref().unwrap();
        assert_eq!(
            (&identity.certificate, &identity.key),
            (&at("own.cert"), &Some(at("own.key")))
        );
    }

    #[test]
    fn a_file_that_is_wrong_is_named_and_nothing_else_is_taken_for_it() {
        let etc = Etc::new();
        etc.write("first/a.b/hosts.toml", "server = 5");
        etc.write("second/a.b/hosts.toml", "");
        let error = format!("{:#}", of("a.b", &etc.configs).unwrap_err());
        assert!(error.contains("first/a.b/hosts.toml:1: server:"), "{error}");
        etc.write("first/a.b/hosts.toml", &"#".repeat(2 << 20));
        let error = format!("{:#}", of("a.b", &etc.configs).unwrap_err());
        assert!(error.contains("larger than"), "{error}");
    }
}
