//! What the values of a configuration must be, beyond their types. Pure.

use std::path::{Component, Path, PathBuf};

use super::{Config, MetricsAddress, OWN_RUNTIME};
use crate::image::reference::{is_registry, short_name};
use crate::image::{MAX_LAYERS, Pins, Reference};
use crate::spec::annotations;

/// Longest path of a unix socket: sun_path without its NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// Least a container may be given to write, in bytes and in inodes: with less its mounts cannot even be prepared.
const MIN_WRITABLE_LAYER: u64 = 1 << 20;
const MIN_WRITABLE_INODES: u64 = 64;

/// Least a log's file may be given, in bytes, and in longest lines.
const MIN_LOG: u64 = 64 << 10;
const MIN_LOG_LINES: u64 = 4;

const PLAIN: &str = "must be an absolute path without ..";

/// A key's path in the file, and what its value must be.
pub(super) type Broken = (Vec<String>, String);

/// Every broken rule.
pub(super) fn broken(config: &Config) -> Vec<Broken> {
    let mut rules = Rules(Vec::new());
    rules.directories(config);
    rules.cgroup_and_threads(config);
    rules.cdi(config);
    rules.runtimes(config);
    config.network.check(&mut rules);
    rules.cni(config);
    rules.streaming(config);
    rules.telemetry(config);
    rules.layers(config);
    rules.pull(config);
    rules.registries(config);
    rules.storage(config);
    rules.0
}

/// The rules that are broken so far.
pub(super) struct Rules(Vec<Broken>);

impl Rules {
    pub(super) fn check(&mut self, holds: bool, key: &[&str], rule: &str) {
        if !holds {
            let key = key.iter().map(|&part| part.to_owned()).collect();
            self.0.push((key, rule.to_owned()));
        }
    }

    fn directories(&mut self, config: &Config) {
        let (root, state) = (&config.root, &config.state);
        self.check(is_plain_absolute(root), &["root"], PLAIN);
        self.check(is_plain_absolute(state), &["state"], PLAIN);
        let import_dir = config.import_dir.as_deref();
        self.check(import_dir.is_none_or(is_plain_absolute), &["import_dir"], PLAIN);
        let criu = config.criu.as_deref();
        self.check(criu.is_none_or(is_plain_absolute), &["criu"], PLAIN);
        let policy = config.image_policy.as_deref();
        self.check(policy.is_none_or(is_plain_absolute), &["image_policy"], PLAIN);
        let nested = root.starts_with(state) || state.starts_with(root);
        self.check(!nested, &["state"], "must be neither inside root nor around it");
        self.check(is_plain_absolute(&config.netns_dir), &["netns_dir"], PLAIN);
        self.check(is_plain_absolute(&config.listen), &["listen"], PLAIN);
        self.check(
            config.listen.as_os_str().len() <= MAX_SOCKET_PATH,
            &["listen"],
            "must be at most 107 bytes long, the kernel's limit for a socket",
        );
    }

    fn cdi(&mut self, config: &Config) {
        let plain = config.cdi_spec_dirs.iter().all(|dir| is_plain_absolute(dir));
        self.check(plain, &["cdi_spec_dirs"], "must be absolute paths without ..");
    }

    fn cgroup_and_threads(&mut self, config: &Config) {
        let parent = Path::new(&config.cgroup_parent);
        self.check(is_plain_absolute(parent), &["cgroup_parent"], PLAIN);
        let threads = (1..=64).contains(&config.worker_threads);
        self.check(threads, &["worker_threads"], "must be 1 to 64");
        let line = (256..=1 << 20).contains(&config.container_log_max_line_bytes);
        let key = &["container_log_max_line_bytes"];
        self.check(line, key, "must be 256 to 1048576");
        if let Some(limit) = config.container_log_limit_bytes {
            let least = MIN_LOG.max(MIN_LOG_LINES * u64::from(config.container_log_max_line_bytes));
            let rule = format!("must be at least {MIN_LOG}, and 4 times container_log_max_line_bytes");
            self.check(limit >= least, &["container_log_limit_bytes"], &rule);
        }
    }

    fn runtimes(&mut self, config: &Config) {
        if let Some(shim) = &config.shim {
            self.check(is_plain_absolute(shim), &["shim"], PLAIN);
        }
        let name = &config.default_runtime;
        self.check(
            name == OWN_RUNTIME || config.runtimes.contains_key(name),
            &["default_runtime"],
            "must be the name of an entry of [runtimes], or corten",
        );
        for (name, runtime) in &config.runtimes {
            self.check(is_plain_absolute(&runtime.path), &["runtimes", name, "path"], PLAIN);
            let rule = "must be named by a-z, 0-9, - and ., as a RuntimeClass's handler";
            self.check(is_handler(name), &["runtimes", name], rule);
            for (key, list) in [
                ("pod_annotations", &runtime.pod_annotations),
                ("container_annotations", &runtime.container_annotations),
            ] {
                let entries = list.iter().all(|entry| annotations::is_entry(entry));
                self.check(entries, &["runtimes", name, key], annotations::RULE);
            }
        }
    }

    fn cni(&mut self, config: &Config) {
        let cni = &config.cni;
        self.check(is_plain_absolute(&cni.conf_dir), &["cni", "conf_dir"], PLAIN);
        self.check(
            !cni.bin_dirs.is_empty() && cni.bin_dirs.iter().all(|dir| is_plain_absolute(dir)),
            &["cni", "bin_dirs"],
            "must be one or more absolute paths without ..",
        );
        self.check(
            (1..=600).contains(&cni.timeout_s),
            &["cni", "timeout_s"],
            "must be 1 to 600",
        );
        self.check(
            cni.stop_patience_s <= 3600,
            &["cni", "stop_patience_s"],
            "must be 0 to 3600",
        );
    }

    fn streaming(&mut self, config: &Config) {
        let streaming = &config.streaming;
        let files = [
            ("tls_cert", &streaming.tls_cert),
            ("tls_key", &streaming.tls_key),
            ("client_ca", &streaming.client_ca),
        ];
        for (name, file) in files {
            let plain = file.as_deref().is_none_or(is_plain_absolute);
            self.check(plain, &["streaming", name], PLAIN);
        }
        let (certificate, key) = (streaming.tls_cert.is_some(), streaming.tls_key.is_some());
        self.check(
            certificate || !key,
            &["streaming", "tls_key"],
            "must have tls_cert beside it",
        );
        self.check(
            key || !certificate,
            &["streaming", "tls_cert"],
            "must have tls_key beside it",
        );
        let has_ca = streaming.client_ca.is_some();
        let rule = "must have tls_cert and tls_key beside it";
        self.check(certificate || !has_ca, &["streaming", "client_ca"], rule);
        let safe = streaming.address.is_loopback() || certificate;
        let rule = "must be a loopback address, or tls_cert must be set: URLs are secrets";
        self.check(safe, &["streaming", "address"], rule);
        let idle = (1..=604_800).contains(&streaming.idle_timeout_s);
        self.check(idle, &["streaming", "idle_timeout_s"], "must be 1 to 604800");
    }

    fn telemetry(&mut self, config: &Config) {
        let key = ["metrics", "listen"];
        match &config.metrics.listen {
            Some(MetricsAddress::Socket(path)) => {
                self.check(is_plain_absolute(path), &key, PLAIN);
                let short = path.as_os_str().len() <= MAX_SOCKET_PATH;
                let rule = "must be at most 107 bytes long, the kernel's limit for a socket";
                self.check(short, &key, rule);
                self.check(
                    *path != config.listen,
                    &key,
                    "must not be the socket of the CRI services",
                );
            }
            Some(MetricsAddress::Tcp(address)) => {
                self.check(
                    address.port() > 0,
                    &key,
                    "must have a port that whoever scrapes can know",
                );
            }
            None => {}
        }
        if let Some(collector) = config.tracing.otlp_endpoint {
            let reachable = collector.0.port() > 0 && !collector.0.ip().is_unspecified();
            let rule = "must be the address and port of a collector";
            self.check(reachable, &["tracing", "otlp_endpoint"], rule);
        }
        let ratio = (0.0..=1.0).contains(&config.tracing.sample_ratio);
        self.check(ratio, &["tracing", "sample_ratio"], "must be 0 to 1");
    }

    fn layers(&mut self, config: &Config) {
        let (layers, share) = (config.pull.layers_at_once, config.pull.layers_of_a_registry);
        let rule = format!("must be 1 to {MAX_LAYERS}");
        self.check((1..=MAX_LAYERS).contains(&layers), &["pull", "layers_at_once"], &rule);
        let rule = "must be 1 to layers_at_once";
        self.check((1..=layers).contains(&share), &["pull", "layers_of_a_registry"], rule);
    }

    fn pull(&mut self, config: &Config) {
        let pull = &config.pull;
        let all_plain = |dirs: &[PathBuf]| dirs.iter().all(|dir| is_plain_absolute(dir));
        let rule = "must be absolute paths without ..";
        self.check(all_plain(&pull.hosts_dirs), &["pull", "hosts_dirs"], rule);
        let helpers = all_plain(&pull.credential_helper_dirs);
        self.check(helpers, &["pull", "credential_helper_dirs"], rule);
        let file = &pull.auth_file;
        self.check(
            file.as_os_str().is_empty() || is_plain_absolute(file),
            &["pull", "auth_file"],
            "must be an absolute path without .., or empty for none",
        );
        self.check(
            (1..=3600).contains(&pull.progress_timeout_s),
            &["pull", "progress_timeout_s"],
            "must be 1 to 3600",
        );
        let registries = &pull.short_name_registries;
        self.check(
            !registries.is_empty() && registries.iter().all(|it| is_registry(it)),
            &["pull", "short_name_registries"],
            "must be one or more of HOST.DOMAIN, HOST:PORT or localhost, as they begin an image's name",
        );
        for (name, full) in &pull.short_names {
            let key = ["pull", "short_names", name];
            let is_short = short_name(name) == Some(name.as_str()) && name.parse::<Reference>().is_ok();
            self.check(is_short, &key, "must name an image without registry, tag and digest");
            let is_full = full.split_once('/').is_some_and(|(first, _)| is_registry(first))
                && format!("{full}:tag").parse::<Reference>().is_ok();
            self.check(
                is_full,
                &key,
                "must stand for an image with registry, without tag and digest",
            );
        }
    }

    fn storage(&mut self, config: &Config) {
        let storage = &config.storage;
        if let Some(images) = &storage.image_root {
            let key = ["storage", "image_root"];
            self.check(is_plain_absolute(images), &key, PLAIN);
            let nested = |other: &Path| images.starts_with(other) || other.starts_with(images);
            let apart = !nested(&config.root) && !nested(&config.state);
            self.check(apart, &key, "must be neither inside root or state nor around them");
        }
        let patterns = storage.pinned_images.iter().map(|pattern| Pins::check(pattern));
        for rule in patterns.filter_map(Result::err) {
            self.check(false, &["storage", "pinned_images"], &rule);
        }
        if let Some(limit) = storage.writable_layer_limit_bytes {
            let rule = format!("must be at least {MIN_WRITABLE_LAYER}");
            let key = ["storage", "writable_layer_limit_bytes"];
            self.check(limit >= MIN_WRITABLE_LAYER, &key, &rule);
        }
        if let Some(limit) = storage.writable_layer_limit_inodes {
            let rule = format!("must be at least {MIN_WRITABLE_INODES}");
            let key = ["storage", "writable_layer_limit_inodes"];
            self.check(limit >= MIN_WRITABLE_INODES, &key, &rule);
        }
    }

    fn registries(&mut self, config: &Config) {
        for (host, registry) in &config.registries {
            if let Some(endpoint) = &registry.endpoint {
                let rule = "must be HOST or HOST:PORT, without scheme and path";
                self.check(is_host(endpoint), &["registries", host, "endpoint"], rule);
            }
            if let Some(ca) = &registry.ca {
                self.check(is_plain_absolute(ca), &["registries", host, "ca"], PLAIN);
            }
            let rule = "must be named by HOST or HOST:PORT, or * for every other";
            self.check(host == "*" || is_host(host), &["registries", host], rule);
        }
    }
}

/// A host name, an IPv4 address or an IPv6 one in brackets, with or without a port.
fn is_host(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-.:[]_".contains(&b);
    !text.is_empty() && text.bytes().all(allowed)
}

fn is_plain_absolute(path: &Path) -> bool {
    path.is_absolute()
        && path
            .components()
            .all(|it| matches!(it, Component::Normal(_) | Component::RootDir))
}

/// What Kubernetes takes as a RuntimeClass handler: a DNS label or subdomain.
fn is_handler(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    bytes.iter().all(|&b| inner(b)) && edge(bytes.first()) && edge(bytes.last())
}

#[cfg(test)]
mod tests {
    use super::super::{RegistryConfig, Runtime};
    use super::*;

    fn registry(config: &mut Config, host: &str, change: impl FnOnce(&mut RegistryConfig)) {
        change(config.registries.entry(host.to_owned()).or_default());
    }

    fn alias(config: &mut Config, name: &str, full: &str) {
        config.pull.short_names.insert(name.into(), full.into());
    }

    fn runtime(pod_annotations: &[&str], container_annotations: &[&str]) -> Runtime {
        let strings = |list: &[&str]| list.iter().map(|&entry| entry.to_owned()).collect();
        Runtime {
            path: "/x".into(),
            pod_annotations: strings(pod_annotations),
            container_annotations: strings(container_annotations),
        }
    }

    type Change = fn(&mut Config);

    /// A change that breaks one rule, and the key that is to blame.
    const BREACHES: &[(Change, &str)] = &[
        (|c| c.root = "var".into(), "root"),
        (|c| c.root = "/var/../etc".into(), "root"),
        (|c| c.state = "/var/lib/corten/state".into(), "state"),
        (|c| c.root = c.state.clone(), "state"),
        (|c| c.listen = format!("/{}", "x".repeat(107)).into(), "listen"),
        (|c| c.import_dir = Some("import".into()), "import_dir"),
        (|c| c.image_policy = Some("p".into()), "image_policy"),
        (|c| c.criu = Some("criu".into()), "criu"),
        (|c| c.worker_threads = 0, "worker_threads"),
        (|c| c.container_log_max_line_bytes = 255, "container_log_max_line_bytes"),
        (|c| c.default_runtime = "none".into(), "default_runtime"),
        (|c| c.cgroup_parent = "../x".into(), "cgroup_parent"),
        (|c| c.cdi_spec_dirs = vec!["cdi".into()], "cdi_spec_dirs"),
        (|c| c.network.bridge = "corten0123456789".into(), "network.bridge"),
        (|c| c.network.bridge = "..".into(), "network.bridge"),
        (|c| c.network.subnets.clear(), "network.subnets"),
        (|c| c.network.subnets[0].length = 31, "network.subnets"),
        (|c| c.network.mtu = 576, "network.mtu"),
        (|c| c.cni.bin_dirs.clear(), "cni.bin_dirs"),
        (|c| c.cni.timeout_s = 0, "cni.timeout_s"),
        (|c| c.cni.stop_patience_s = 3601, "cni.stop_patience_s"),
        (|c| c.streaming.tls_cert = Some("/c".into()), "streaming.tls_cert"),
        (|c| c.streaming.tls_key = Some("/k".into()), "streaming.tls_key"),
        (|c| c.streaming.client_ca = Some("/ca".into()), "streaming.client_ca"),
        (
            |c| c.streaming.address = std::net::Ipv4Addr::UNSPECIFIED.into(),
            "streaming.address",
        ),
        (|c| c.streaming.idle_timeout_s = 0, "streaming.idle_timeout_s"),
        (
            |c| c.metrics.listen = Some(MetricsAddress::Socket("/run/../m".into())),
            "metrics.listen",
        ),
        (
            |c| c.metrics.listen = Some(MetricsAddress::Socket(format!("/{}", "x".repeat(107)).into())),
            "metrics.listen",
        ),
        (
            |c| c.metrics.listen = Some(MetricsAddress::Socket(c.listen.clone())),
            "metrics.listen",
        ),
        (|c| c.metrics.listen = "127.0.0.1:0".parse().ok(), "metrics.listen"),
        (
            |c| c.tracing.otlp_endpoint = "http://0.0.0.0:4317".parse().ok(),
            "tracing.otlp_endpoint",
        ),
        (|c| c.tracing.sample_ratio = 1.5, "tracing.sample_ratio"),
        (|c| c.tracing.sample_ratio = f64::NAN, "tracing.sample_ratio"),
        (|c| c.shim = Some("shim".into()), "shim"),
        (
            |c| {
                c.runtimes.insert("Bad_Name".into(), runtime(&[], &[]));
            },
            "runtimes.Bad_Name",
        ),
        (
            |c| {
                c.runtimes.insert("a".into(), runtime(&["*"], &["x"]));
            },
            "runtimes.a.pod_annotations",
        ),
        (
            |c| {
                c.runtimes.insert("a".into(), runtime(&["x.*"], &["x y"]));
            },
            "runtimes.a.container_annotations",
        ),
        (|c| c.pull.layers_at_once = MAX_LAYERS + 1, "pull.layers_at_once"),
        (
            |c| c.pull.layers_of_a_registry = c.pull.layers_at_once + 1,
            "pull.layers_of_a_registry",
        ),
        (|c| c.pull.hosts_dirs = vec!["certs.d".into()], "pull.hosts_dirs"),
        (|c| c.pull.auth_file = "../auth.json".into(), "pull.auth_file"),
        (
            |c| c.pull.credential_helper_dirs = vec!["bin".into()],
            "pull.credential_helper_dirs",
        ),
        (|c| c.pull.progress_timeout_s = 0, "pull.progress_timeout_s"),
        (|c| c.pull.short_name_registries.clear(), "pull.short_name_registries"),
        (
            |c| c.pull.short_name_registries.push("https://r.example".into()),
            "pull.short_name_registries",
        ),
        (
            |c| alias(c, "r.example/a", "r.example/b"),
            "pull.short_names.r.example/a",
        ),
        (|c| alias(c, "a:1", "r.example/b"), "pull.short_names.a:1"),
        (|c| alias(c, "a", "b"), "pull.short_names.a"),
        (|c| alias(c, "a", "r.example/b:1"), "pull.short_names.a"),
        (|c| c.storage.image_root = Some("images".into()), "storage.image_root"),
        (
            |c| c.storage.image_root = Some(c.root.join("images")),
            "storage.image_root",
        ),
        (|c| c.storage.image_root = Some("/var".into()), "storage.image_root"),
        (
            |c| c.storage.pinned_images = vec!["a/***".into()],
            "storage.pinned_images",
        ),
        (
            |c| c.storage.writable_layer_limit_bytes = Some(4096),
            "storage.writable_layer_limit_bytes",
        ),
        (
            |c| c.storage.writable_layer_limit_inodes = Some(63),
            "storage.writable_layer_limit_inodes",
        ),
        (
            |c| c.container_log_limit_bytes = Some((64 << 10) - 1),
            "container_log_limit_bytes",
        ),
        (
            |c| {
                c.container_log_max_line_bytes = 1 << 20;
                c.container_log_limit_bytes = Some(1 << 20);
            },
            "container_log_limit_bytes",
        ),
        (|c| registry(c, "https://a", |_| {}), "registries.https://a"),
        (|c| registry(c, "a", |it| it.ca = Some("b".into())), "registries.a.ca"),
        (
            |c| registry(c, "*", |it| it.endpoint = Some("http://b/".into())),
            "registries.*.endpoint",
        ),
    ];

    #[test]
    fn each_rule_blames_its_key() {
        for (change, key) in BREACHES {
            let mut config = Config::default();
            change(&mut config);
            let keys: Vec<_> = broken(&config).into_iter().map(|(key, _)| key.join(".")).collect();
            assert_eq!(keys, [*key]);
        }
    }
}
