//! Credentials of the node: a file of the form of docker's `config.json`, and the helper programs it names.
//!
//! ```json
//! { "auths":       { "registry.example": { "auth": "base64 of user:password" },
//!                    "registry.example/team": { "username": "u", "password": "p" } },
//!   "credHelpers": { "ecr.example": "ecr-login" },
//!   "credsStore":  "pass" }
//! ```
//! For a registry count, first found: its helper, its entry in `auths`, the store. Keys may be addresses
//! (`https://index.docker.io/v1/`), and name a repository or what its name begins with: the longest counts. The file is
//! read when a registry asks for credentials; one that is not there holds none.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::super::auth::{Credentials, canonical, decode_login};
use super::credential_helper;
use crate::node::blocking;

/// Largest file, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// What of the file concerns credentials.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct DockerConfig {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl DockerConfig {
    /// Reads `file`; none where there is none.
    pub(super) async fn read(file: &Path) -> Result<Option<DockerConfig>> {
        let path = file.to_owned();
        blocking(move || read(&path)).await
    }

    /// What it has for a repository of `registry`.
    pub(super) async fn credentials(
        &self,
        registry: &str,
        repository: &str,
        helper_dirs: &[PathBuf],
    ) -> Result<Credentials> {
        if let Some((_, helper)) = best(&self.cred_helpers, registry, repository) {
            return credential_helper::get(helper, registry, helper_dirs).await;
        }
        if let Some((key, entry)) = best(&self.auths, registry, repository) {
            let credentials = entry.credentials().with_context(|| format!("auths.{key}"))?;
            if credentials != Credentials::Anonymous {
                return Ok(credentials);
            }
        }
        match &self.creds_store {
            Some(helper) => credential_helper::get(helper, registry, helper_dirs).await,
            None => Ok(Credentials::Anonymous),
        }
    }
}

fn read(file: &Path) -> Result<Option<DockerConfig>> {
    let reading = || format!("read the credentials in {}", file.display());
    let opened = match std::fs::File::open(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.with_context(reading)?,
    };
    let mut content = Vec::new();
    opened
        .take(MAX_FILE + 1)
        .read_to_end(&mut content)
        .with_context(reading)?;
    if content.len() as u64 > MAX_FILE {
        bail!("{}: larger than {MAX_FILE} bytes", reading());
    }
    match serde_json::from_slice(&content) {
        Ok(config) => Ok(Some(config)),
        // Its own text repeats values, which are secrets here.
        Err(error) => bail!(
            "{}: line {}, column {}: not of the form of docker's config.json",
            reading(),
            error.line(),
            error.column()
        ),
    }
}

/// The entry whose key says most about the repository.
fn best<'a, T>(entries: &'a BTreeMap<String, T>, registry: &str, repository: &str) -> Option<(&'a str, &'a T)> {
    let matching = entries.iter().filter_map(|(key, value)| {
        let (host, path) = split(key);
        let rest = repository.strip_prefix(path)?;
        let is_whole = path.is_empty() || rest.is_empty() || rest.starts_with('/');
        (canonical(host) == canonical(registry) && is_whole).then_some((path.len(), key.as_str(), value))
    });
    let longest = matching.max_by_key(|(length, ..)| *length);
    longest.map(|(_, key, value)| (key, value))
}

/// Host and repository of a key. The path of an address with a scheme is the API's and no repository.
fn split(key: &str) -> (&str, &str) {
    let (rest, is_address) = match key.split_once("://") {
        Some((_, rest)) => (rest, true),
        None => (key, false),
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = path.trim_end_matches('/');
    if is_address || matches!(path, "v1" | "v2") {
        return (host, "");
    }
    (host, path)
}

impl Entry {
    fn credentials(&self) -> Result<Credentials> {
        if !self.identitytoken.is_empty() {
            return Ok(Credentials::Identity(self.identitytoken.clone()));
        }
        if !self.registrytoken.is_empty() {
            return Ok(Credentials::Bearer(self.registrytoken.clone()));
        }
        if !self.username.is_empty() || !self.password.is_empty() {
            return Ok(Credentials::Basic {
                user: self.username.clone(),
                password: self.password.clone(),
            });
        }
        if self.auth.is_empty() {
            return Ok(Credentials::Anonymous);
        }
        decode_login(&self.auth).context("auth: must be the base64 form of user:password")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> DockerConfig {
        serde_json::from_str(text).unwrap()
    }

    async fn user(config: &DockerConfig, registry: &str, repository: &str) -> String {
        match config.credentials(registry, repository, &[]).await {
            Ok(Credentials::Basic { user, .. }) => user,
            Ok(other) => format!("{other:?}"),
            Err(error) => format!("{error:#}"),
        }
    }

    #[tokio::test]
    async fn the_entry_that_says_most_counts() {
        let config = parse(
            r#"{ "auths": {
                "https://index.docker.io/v1/": { "auth": "aHViOnA=" },
                "a.example": { "username": "a", "password": "p" },
                "a.example/team": { "username": "team", "password": "p" },
                "a.example/team/app": { "username": "app", "password": "p" },
                "http://b.example:5000/v2/": { "username": "b", "password": "p" },
                "t.example": { "identitytoken": "t" },
                "r.example": { "registrytoken": "t" },
                "empty.example": {},
                "bad.example": { "auth": "!!!" }
            }, "HttpHeaders": { "x": "y" } }"#,
        );
        for (registry, repository, expected) in [
            ("docker.io", "library/busybox", "hub"),
            ("a.example", "other", "a"),
            ("a.example", "team", "team"),
            ("a.example", "team/other", "team"),
            ("a.example", "team/app", "app"),
            ("a.example", "teams/app", "a"),
            ("a.example:5000", "team", "Anonymous"),
            ("b.example:5000", "x", "b"),
            ("t.example", "x", "Identity(..)"),
            ("r.example", "x", "Bearer(..)"),
            ("empty.example", "x", "Anonymous"),
            ("none.example", "x", "Anonymous"),
        ] {
            assert_eq!(
                user(&config, registry, repository).await,
                expected,
                "{registry}/{repository}"
            );
        }
        let error = user(&config, "bad.example", "x").await;
        assert!(error.contains("auths.bad.example: auth: must be the base64"), "{error}");
    }

    #[tokio::test]
    async fn files_that_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        assert!(DockerConfig::read(&file).await.unwrap().is_none());
        std::fs::write(&file, "{}").unwrap();
        assert!(DockerConfig::read(&file).await.unwrap().is_some());
        for content in [
            r#"{"auths":{"a":{"auth":"c2VjcmV0","password":424242}}}"#,
            "secret",
            "17",
        ] {
            std::fs::write(&file, content).unwrap();
            let error = DockerConfig::read(&file).await.err().unwrap();
            let error = format!("{error:#}");
            assert!(error.contains("auth.json") && error.contains("line 1"), "{error}");
            assert!(!error.contains("secret") && !error.contains("424242"), "{error}");
        }
    }
}
