//! What holds of everything that parsers of registries' texts accept, for the fuzz targets of `tests/fuzz`: compiled for
//! these only.

use std::path::Path;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};

use super::challenge::Challenge;
use super::hosts_toml;

/// A hosts.toml that is accepted names hosts by addresses of the two known schemes, the registry itself last, and no
/// text of ours, about the hosts or about what is wrong, repeats a secret.
pub fn hosts_toml(text: &str) {
    let secrets = secrets(text);
    let hide = |shown: String| {
        for secret in &secrets {
            assert!(!shown.contains(secret.as_str()), "{shown} tells {secret}");
        }
    };
    let hosts = match hosts_toml::parse(Path::new("/etc/hosts.d/hosts.toml"), text, "r.example:5000") {
        Err(problem) => return hide(problem.to_string()),
        Ok(hosts) => hosts,
    };
    hide(format!("{hosts:?}"));
    assert!((1..=33).contains(&hosts.len()), "{} hosts", hosts.len());
    assert!(hosts.last().is_some_and(|last| last.is_upstream));
    for host in &hosts {
        let api = &host.api;
        assert!(
            matches!(api.scheme(), "http" | "https") && api.path().ends_with('/'),
            "{api}"
        );
        let more = !api.username().is_empty() || api.password().is_some() || api.query().is_some();
        assert!(!more && api.fragment().is_none() && api.host_str().is_some(), "{api}");
        assert_eq!(host.transport.plain_http, api.scheme() == "http");
        let dial = host.transport.dial_timeout;
        assert!(
            (Duration::from_millis(1)..=Duration::from_secs(300)).contains(&dial),
            "{dial:?}"
        );
        let files = host
            .transport
            .ca
            .iter()
            .chain(host.transport.identity.iter().map(|it| &it.certificate));
        assert!(files.into_iter().all(|file| file.is_absolute()));
    }
}

/// Values of passwords and headers, as another parser of TOML finds them, that stand nowhere else in the text.
fn secrets(text: &str) -> Vec<String> {
    let Ok(table) = text.parse::<toml::Table>() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut waiting: Vec<(bool, &str, &toml::Value)> = Vec::new();
    let of = |table: &toml::Table| {
        table
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect::<Vec<_>>()
    };
    let top = of(&table);
    waiting.extend(top.iter().map(|(key, value)| (false, key.as_str(), value)));
    while let Some((in_header, key, value)) = waiting.pop() {
        let is_secret = in_header || key == "password";
        match value {
            toml::Value::Table(table) => {
                let is_header = in_header || key == "header";
                waiting.extend(table.iter().map(|(key, value)| (is_header, key.as_str(), value)));
            }
            toml::Value::Array(values) => waiting.extend(values.iter().map(|value| (is_secret, key, value))),
            toml::Value::String(text) if is_secret => found.push(text.clone()),
            _ => {}
        }
    }
    found.retain(|secret| secret.len() >= 8 && text.matches(secret.as_str()).count() == 1);
    found
}

/// A demand that is understood means the same when it is written in the usual form; a header's bytes may be any.
pub fn www_authenticate(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(WWW_AUTHENTICATE, value);
        }
    }
    let Some(challenge) = Challenge::of(&headers) else {
        return;
    };
    let Challenge::Bearer { realm, service, scope } = &challenge else {
        return;
    };
    let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let mut written = format!("Bearer realm=\"{}\"", quote(realm));
    for (name, value) in [("service", service), ("scope", scope)] {
        if let Some(value) = value {
            written.push_str(&format!(",{name}=\"{}\"", quote(value)));
        }
    }
    assert!(!written.contains(|c: char| c.is_control() && c != '\t'), "{written:?}");
    if written.len() <= 8 << 10 {
        assert_eq!(Challenge::parse(&written), Some(challenge), "{written}");
    }
}
