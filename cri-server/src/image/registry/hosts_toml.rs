//! The text of a hosts.toml. Pure.
//!
//! The format is containerd's. At the top stand `server`, the registry itself, and what concerns it; each
//! `[host."https://mirror"]` is a mirror, asked in the order of the file before the server is:
//!
//! ```toml
//! server = "https://registry-1.docker.io"
//! [host."https://mirror.example:5000"]
//!   capabilities = ["pull", "resolve"]     # default: all, "push" too, which means nothing here
//!   ca = "mirror.pem"                      # or a list; relative to the file
//!   client = [["own.cert", "own.key"]]     # or one file that holds both
//!   skip_verify = false
//!   override_path = false                  # true: the address is the API's root itself, "/v2" is not added
//!   dial_timeout = "5s"
//!   username = "user"                      # these three are ours, not containerd's
//!   password = "secret"
//!   credentials_file = "auth.json"         # of docker's config.json form, instead of a login
//!   [host."https://mirror.example:5000".header]
//!     x-custom = "value"                   # or a list
//! ```
//! Anything else in a file is an error that names file, line, key and rule, because a misspelt `skip_verify` that counts
//! for nothing is worse than none. The value is named too, unless it may be a secret.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use toml::Spanned;

use super::super::auth::Credentials;
use super::client::{ClientCertificate, DIAL_TIMEOUT, Transport};
use super::hosts::{Capabilities, Host, Login, api_host};
use crate::config::{Problem, Source};

/// Mirrors of one registry.
const MAX_HOSTS: usize = 32;

/// Longest `dial_timeout`.
const MAX_DIAL_TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Deserialize)]
struct File {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, Table>,
    #[serde(flatten)]
    own: Table,
}

/// What a host's table holds, and the top of the file for the server.
#[derive(Default, Deserialize)]
struct Table {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    skip_verify: Option<bool>,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
    override_path: Option<bool>,
    dial_timeout: Option<String>,
    username: Option<String>,
    password: Option<String>,
    credentials_file: Option<PathBuf>,
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a string or a list of strings")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "must be a file, a list of files, or a list of pairs of certificate and key"
)]
enum Client {
    One(PathBuf),
    Files(Vec<PathBuf>),
    Pairs(Vec<Vec<PathBuf>>),
}

impl OneOrMany {
    fn values(&self) -> &[String] {
        match self {
            OneOrMany::One(value) => std::slice::from_ref(value),
            OneOrMany::Many(values) => values,
        }
    }
}

/// A key of a table and the rule it breaks.
struct Broken {
    key: Vec<String>,
    rule: String,
}

fn broken<T>(key: &[&str], rule: impl Into<String>) -> Result<T, Broken> {
    Err(Broken {
        key: key.iter().map(|&part| part.to_owned()).collect(),
        rule: rule.into(),
    })
}

/// The hosts of `registry` as `text`, the content of `file`, has them.
pub(super) fn parse(file: &Path, text: &str, registry: &str) -> Result<Vec<Host>, Problem> {
    let source = Source {
        file: file.to_owned(),
        text: text.to_owned(),
    };
    let parsed: File = source.parse().map_err(without_secret)?;
    let dir = file.parent().unwrap_or(Path::new("/"));
    let locate = |under: &[&str], broken: Broken| {
        let mut key: Vec<String> = under.iter().map(|&part| part.to_owned()).collect();
        key.extend(broken.key);
        source.problem(&key, broken.rule)
    };
    let mut tables: Vec<(&Spanned<String>, &Table)> = parsed.host.iter().collect();
    tables.sort_by_key(|(name, _)| name.span().start);
    if tables.len() > MAX_HOSTS {
        return Err(source.problem(&["host".to_owned()], format!("at most {MAX_HOSTS} mirrors")));
    }
    let mut hosts = Vec::new();
    for (name, table) in tables {
        let name = name.get_ref().as_str();
        let made = host(registry, name, table, dir);
        hosts.push(made.map_err(|broken| locate(&["host", name], broken))?);
    }
    let own = format!("https://{}", api_host(registry));
    let server = parsed.server.as_deref().unwrap_or(&own);
    let mut upstream = host(registry, server, &parsed.own, dir).map_err(|mut broken| {
        if broken.key.is_empty() {
            broken.key.push("server".to_owned());
        }
        locate(&[], broken)
    })?;
    upstream.is_upstream = true;
    // The registry itself may be among the mirrors, to be asked in another order.
    for mirror in &mut hosts {
        mirror.is_upstream = mirror.api.origin() == upstream.api.origin();
    }
    hosts.push(upstream);
    Ok(hosts)
}

/// A type's error repeats the value it found.
fn without_secret(problem: Problem) -> Problem {
    let key = problem.key.as_deref().unwrap_or_default();
    let is_secret = key.ends_with("password") || key.contains(".header") || key.starts_with("header");
    if is_secret {
        return Problem {
            rule: "must be a string".to_owned(),
            value: None,
            ..problem
        };
    }
    problem
}

fn host(registry: &str, address: &str, table: &Table, dir: &Path) -> Result<Host, Broken> {
    if let Some(key) = table.unknown.keys().next() {
        return broken(&[key], "is not a key of hosts.toml");
    }
    let api = api(address, table.override_path.unwrap_or(false))?;
    let own = api_host(registry);
    let is_own = api.host_str().is_some_and(|host| match api.port() {
        Some(port) => format!("{host}:{port}") == own,
        None => host == own,
    });
    Ok(Host {
        registry: registry.to_owned(),
        capabilities: capabilities(table)?,
        transport: Transport {
            plain_http: api.scheme() == "http",
            ca: table
                .ca
                .iter()
                .flat_map(OneOrMany::values)
                .map(|file| dir.join(file))
                .collect(),
            identity: table.client.as_ref().map(|client| identity(client, dir)).transpose()?,
            skip_verify: table.skip_verify.unwrap_or(false),
            dial_timeout: dial_timeout(table)?,
        },
        headers: headers(&table.header)?,
        login: login(table, dir)?,
        is_upstream: false,
        namespace: (!is_own).then(|| registry.to_owned()),
        api,
    })
}

/// `https://host/v2/` of `host`, `https://host`, `https://host/v2`; with `override_path` as it is.
fn api(address: &str, override_path: bool) -> Result<Url, Broken> {
    let with_scheme = if address.contains("://") {
        address.to_owned()
    } else {
        format!("https://{address}")
    };
    let rule = "must be http:// or https://, a host, and perhaps a port and a path";
    let Ok(mut url) = Url::parse(&with_scheme) else {
        return broken(&[], rule);
    };
    if !url.username().is_empty() || url.password().is_some() {
        // Not repeated: it holds a secret.
        return broken(
            &[],
            "must not hold credentials; there are username and password for them",
        );
    }
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || url.query().is_some() {
        return broken(&[], format!("{address:?} {rule}"));
    }
    let path = url.path().trim_end_matches('/').to_owned();
    let is_root = override_path || path.ends_with("/v2");
    url.set_path(&format!("{path}{}", if is_root { "/" } else { "/v2/" }));
    url.set_fragment(None);
    Ok(url)
}

fn capabilities(table: &Table) -> Result<Capabilities, Broken> {
    let Some(names) = &table.capabilities else {
        return Ok(Capabilities::default());
    };
    if let Some(unknown) = names
        .iter()
        .find(|name| !matches!(name.as_str(), "pull" | "resolve" | "push"))
    {
        return broken(&["capabilities"], format!("{unknown:?} is none of pull, resolve, push"));
    }
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    Ok(Capabilities {
        pull: has("pull"),
        resolve: has("resolve"),
    })
}

fn identity(client: &Client, dir: &Path) -> Result<ClientCertificate, Broken> {
    let (certificate, key) = match client {
        Client::One(file) => (file, None),
        Client::Files(files) => match files.as_slice() {
            [file] => (file, None),
            _ => return broken(&["client"], "must be one certificate: a file, or a pair in a list"),
        },
        Client::Pairs(pairs) => match pairs.as_slice() {
            [pair] if pair.len() == 1 => (&pair[0], None),
            [pair] if pair.len() == 2 => (&pair[0], Some(&pair[1]).filter(|key| !key.as_os_str().is_empty())),
            _ => return broken(&["client"], "must be one pair of certificate and key"),
        },
    };
    Ok(ClientCertificate {
        certificate: dir.join(certificate),
        key: key.map(|key| dir.join(key)),
    })
}

fn dial_timeout(table: &Table) -> Result<Duration, Broken> {
    let Some(text) = &table.dial_timeout else {
        return Ok(DIAL_TIMEOUT);
    };
    let allowed = Duration::from_millis(1)..=MAX_DIAL_TIMEOUT;
    match humantime::parse_duration(text) {
        Ok(timeout) if allowed.contains(&timeout) => Ok(timeout),
        _ => broken(
            &["dial_timeout"],
            format!("{text:?} must be a time like 500ms, 5s or 1m30s, 1 ms to 5 min"),
        ),
    }
}

fn headers(table: &BTreeMap<String, OneOrMany>) -> Result<HeaderMap, Broken> {
    let mut headers = HeaderMap::new();
    for (name, values) in table {
        let Ok(parsed) = HeaderName::try_from(name.as_str()) else {
            return broken(&["header", name], "is not the name of a header");
        };
        for value in values.values() {
            let Ok(mut value) = HeaderValue::from_str(value) else {
                return broken(&["header", name], "must not hold control characters");
            };
            value.set_sensitive(true);
            headers.append(parsed.clone(), value);
        }
    }
    Ok(headers)
}

fn login(table: &Table, dir: &Path) -> Result<Option<Login>, Broken> {
    match (&table.username, &table.password, &table.credentials_file) {
        (None, None, None) => Ok(None),
        (None, None, Some(file)) => Ok(Some(Login::File(dir.join(file)))),
        (Some(user), Some(password), None) => Ok(Some(Login::Given(Credentials::Basic {
            user: user.clone(),
            password: password.clone(),
        }))),
        (_, _, Some(_)) => broken(&["credentials_file"], "must not stand beside username or password"),
        (Some(_), None, None) => broken(&["username"], "needs a password"),
        (None, Some(_), None) => broken(&["password"], "needs a username"),
    }
}

#[cfg(test)]
mod tests;
