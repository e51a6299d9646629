//! Which images may be used: a file of rules by registry and repository.
//!
//! ```toml
//! # What archives bring in: "rules", the default, judges them like a pull, where they never have a signature; "accept"
//! # trusts whoever imports where a signature would be needed.
//! imports = "rules"
//!
//! [rules."*"]                              # for everything else; must be there
//! action = "reject"                        # accept, reject or signed
//!
//! [rules."registry.example.com/team"]      # a registry, or a path in it; the longest that fits counts
//! action = "signed"                        # by cosign, with one of these keys (see `signature`)
//! keys = ["/etc/corten/team.pub"]          # PEM files; relative ones are relative to this file
//! identity = "registry.example.com/app"    # repository that signatures must name; "*": any; absent: the image's own
//! ```
//! The file is read at every pull and every creation of a container, so a change counts at once. One that cannot be read
//! lets nothing pass. What a pull saw is kept in the image's record: a container is judged by it, without the registry.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use anyhow::Context;
use corten_proto::id::Digest;
use serde::{Deserialize, Serialize};

use super::error::PullError;
use super::record::Image;
use super::reference::Reference;
use super::registry::Repository;
use super::signature::{self, Key, Signature, Subject};
use super::store::ImageStore;
use crate::node::blocking;

/// Largest policy or key file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Most keys of a rule.
const MAX_KEYS: usize = 16;

/// The rule for everything that no other fits.
const EVERYTHING: &str = "*";

/// How an image came in under one name, and what the policy needs to judge it once more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admission {
    /// By an archive; otherwise from the registry.
    pub imported: bool,
    /// Which rule let it in.
    pub verdict: String,
    /// The signatures there were, whether or not they held.
    pub signatures: Vec<Signature>,
}

/// Where the rules are.
#[derive(Clone, Debug)]
pub struct Policy {
    file: PathBuf,
}

/// What a rule demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Accept,
    Reject,
    Signed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Imports {
    #[default]
    Rules,
    Accept,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    action: Action,
    #[serde(default)]
    keys: Vec<PathBuf>,
    #[serde(default)]
    identity: Option<String>,
}

/// The rules as they stand in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rules {
    #[serde(default)]
    imports: Imports,
    rules: BTreeMap<String, Rule>,
    #[serde(skip)]
    file: PathBuf,
}

impl Policy {
    /// The policy that stands in `file`, which need not be readable yet.
    #[must_use]
    pub fn of(file: &Path) -> Policy {
        Policy { file: file.to_owned() }
    }

    /// Says what is wrong with the file, if something is. Blocks.
    pub fn check(&self) -> anyhow::Result<()> {
        let rules = Rules::read(&self.file)?;
        rules.rules.values().try_for_each(|rule| rules.keys(rule).map(drop))
    }

    async fn rules(&self) -> Result<Rules, PullError> {
        let file = self.file.clone();
        let read = blocking(move || Rules::read(&file)).await;
        read.map_err(|error| PullError::untrusted(format!("policy: {error:#}")))
    }
}

impl Rules {
    fn read(file: &Path) -> anyhow::Result<Rules> {
        let reading = || format!("read {}", file.display());
        let text = read_file(file).with_context(reading)?;
        let text = std::str::from_utf8(&text).with_context(reading)?;
        let mut rules: Rules = toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            anyhow::anyhow!("{}:{line}: {}", file.display(), error.message())
        })?;
        rules.file = file.to_owned();
        rules.validate().with_context(|| file.display().to_string())?;
        Ok(rules)
    }

    fn validate(&self) -> anyhow::Result<()> {
        let has_rest = self.rules.contains_key(EVERYTHING);
        anyhow::ensure!(has_rest, "rules: there must be one for {EVERYTHING:?}, everything else");
        for (prefix, rule) in &self.rules {
            anyhow::ensure!(
                prefix == EVERYTHING || is_normal(prefix),
                "rules.{prefix:?}: must be {EVERYTHING:?}, or begin with a registry as in full image names"
            );
            let signed = rule.action == Action::Signed;
            let count = rule.keys.len();
            anyhow::ensure!(
                signed == (count > 0) && count <= MAX_KEYS,
                "rules.{prefix:?}.keys: must have 1 to {MAX_KEYS} files where the action is signed, else none"
            );
            anyhow::ensure!(
                rule.identity.is_none() || signed,
                "rules.{prefix:?}.identity: is for the action signed"
            );
        }
        Ok(())
    }

    /// The rule for a repository, and its name.
    fn of(&self, repository: &str) -> (&str, &Rule) {
        let fits = |prefix: &str| {
            let rest = repository.strip_prefix(prefix);
            prefix == EVERYTHING || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let all = self.rules.iter().filter(|(prefix, _)| fits(prefix));
        // "*" is the shortest there is.
        let longest = all.max_by_key(|(prefix, _)| (*prefix != EVERYTHING, prefix.len()));
        let (prefix, rule) = longest.expect("there is a rule for everything");
        (prefix, rule)
    }

    fn keys(&self, rule: &Rule) -> anyhow::Result<Vec<Key>> {
        let dir = self.file.parent().unwrap_or(Path::new("/"));
        let read = |key: &PathBuf| {
            let path = dir.join(key);
            let content = read_file(&path).with_context(|| format!("read key {}", path.display()))?;
            Key::parse(&content).map_err(|error| anyhow::anyhow!("key {}: {error}", path.display()))
        };
        rule.keys.iter().map(read).collect()
    }

    /// Judges what is known of an image under the name of `repository`. `manifest` is what the name stood for. Blocks.
    fn judge(&self, repository: &str, manifest: Option<&Digest>, seen: &Seen<'_>) -> Result<String, PullError> {
        let (prefix, rule) = self.of(repository);
        let place = || format!("policy {}, rule {prefix:?}", self.file.display());
        match rule.action {
            Action::Accept => return Ok(format!("accepted by rule {prefix:?}")),
            Action::Reject => return Err(PullError::untrusted(format!("{}: rejects {repository}", place()))),
            Action::Signed => {}
        }
        if seen.imported && self.imports == Imports::Accept {
            return Ok(format!("imported, accepted instead of rule {prefix:?}"));
        }
        let verified = || {
            let keys = self.keys(rule).map_err(|error| format!("{error:#}"))?;
            let Some(digest) = manifest else {
                return Err("it came by an archive, which has no signatures".to_owned());
            };
            let identity = match rule.identity.as_deref() {
                Some(EVERYTHING) => None,
                Some(identity) => Some(identity),
                None => Some(repository),
            };
            signature::verify(seen.signatures, &keys, &Subject { digest, identity })
        };
        match verified() {
            Ok(()) => Ok(format!("signed as rule {prefix:?} demands")),
            Err(reason) => Err(PullError::untrusted(format!("{}: {reason}", place()))),
        }
    }
}

/// What there is to judge by.
struct Seen<'a> {
    imported: bool,
    signatures: &'a [Signature],
}

fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut content)?;
    anyhow::ensure!(content.len() as u64 <= MAX_FILE, "more than {MAX_FILE} bytes");
    Ok(content)
}

/// Whether a prefix is written as image names are after their normalisation: otherwise it would never fit.
fn is_normal(prefix: &str) -> bool {
    let inside = format!("{prefix}/a/b");
    inside
        .parse::<Reference>()
        .is_ok_and(|reference| reference.name() == inside)
}

impl ImageStore {
    /// Judges every image by `policy` from now on; without one, as before the first call, every image may be used.
    pub fn enforce(&self, policy: Option<Policy>) {
        *self.pulls.policy.write().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    fn policy(&self) -> Option<Policy> {
        let policy = self.pulls.policy.read();
        policy.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a name may be pulled at all: asked before the registry is.
    pub(super) async fn may_pull(&self, reference: &Reference) -> Result<(), PullError> {
        let Some(policy) = self.policy() else {
            return Ok(());
        };
        let rules = policy.rules().await?;
        let (_, rule) = rules.of(&reference.name());
        match rule.action {
            Action::Reject => rules
                .judge(
                    &reference.name(),
                    None,
                    &Seen {
                        imported: false,
                        signatures: &[],
                    },
                )
                .map(drop),
            Action::Accept | Action::Signed => Ok(()),
        }
    }

    /// Judges what `reference` stands for, by its signatures where the rule demands them.
    pub(super) async fn admit(
        &self,
        repository: &Repository,
        reference: &Reference,
        manifest: &Digest,
    ) -> Result<Admission, PullError> {
        let Some(policy) = self.policy() else {
            return Ok(Admission::without_policy(false));
        };
        let rules = policy.rules().await?;
        let name = reference.name();
        let signatures = match rules.of(&name).1.action {
            Action::Signed => signature::fetch(repository, manifest).await?,
            Action::Accept | Action::Reject => Vec::new(),
        };
        judge_off_thread(rules, name, Some(manifest.clone()), false, signatures).await
    }

    /// Judges an image of an archive under one of its names; the empty one if it has none.
    pub(super) async fn admit_import(&self, name: &str) -> Result<Admission, PullError> {
        let Some(policy) = self.policy() else {
            return Ok(Admission::without_policy(true));
        };
        let rules = policy.rules().await?;
        judge_off_thread(rules, name.to_owned(), None, true, Vec::new()).await
    }

    /// Judges an image that is here by the rules as they are now, by what was seen when it came in. `asked` is the name it was
    /// asked for by, and means what it means to a pull; where that is none of its own, one of its names that passes is enough:
    /// they all are the same content.
    pub async fn may_run(&self, image: &Image, asked: &str) -> Result<(), PullError> {
        let Some(policy) = self.policy() else {
            return Ok(());
        };
        let rules = policy.rules().await?;
        let (image, asked) = (image.clone(), self.candidates(asked).unwrap_or_default());
        let judging = blocking(move || Ok(judge_names(&rules, &image, &asked)));
        judging.await.map_err(|error| PullError::local(&error))?
    }
}

impl Admission {
    fn without_policy(imported: bool) -> Admission {
        Admission {
            imported,
            verdict: "there was no policy".to_owned(),
            signatures: Vec::new(),
        }
    }
}

/// Reads keys, hence not on a thread that serves.
async fn judge_off_thread(
    rules: Rules,
    name: String,
    manifest: Option<Digest>,
    imported: bool,
    signatures: Vec<Signature>,
) -> Result<Admission, PullError> {
    let judging = blocking(move || {
        let seen = Seen {
            imported,
            signatures: &signatures,
        };
        let judged = rules.judge(&name, manifest.as_ref(), &seen);
        Ok(judged.map(|verdict| Admission {
            imported,
            verdict,
            signatures,
        }))
    });
    judging.await.map_err(|error| PullError::local(&error))?
}

/// The repositories an image is known by, each with the digest it stood for there and what was seen.
fn names(image: &Image) -> Vec<(String, Option<Digest>, Option<&Admission>)> {
    let mut names = Vec::new();
    for name in &image.repo_digests {
        if let Some((repository, digest)) = name.split_once('@') {
            names.push((repository.to_owned(), digest.parse().ok(), image.admissions.get(name)));
        }
    }
    for tag in image.repo_tags.iter().filter_map(|tag| tag.parse::<Reference>().ok()) {
        let name = tag.name();
        if !names.iter().any(|(known, ..)| *known == name) {
            let admission = image.admissions.get(&name);
            names.push((name, None, admission));
        }
    }
    if names.is_empty() {
        names.push((String::new(), None, image.admissions.get("")));
    }
    names
}

/// `asked` is what the name may mean, in the order that counts.
fn judge_names(rules: &Rules, image: &Image, asked: &[Reference]) -> Result<(), PullError> {
    let mut names = names(image);
    let is_known = |asked: &String| names.iter().any(|(name, ..)| name == asked);
    if let Some(asked) = asked.iter().map(Reference::name).find(is_known) {
        names.retain(|(name, ..)| *name == asked);
    }
    let mut refusal = None;
    for (name, digest, admission) in names {
        let seen = Seen {
            imported: admission.is_some_and(|admission| admission.imported),
            signatures: admission.map_or(&[], |admission| &admission.signatures),
        };
        match rules.judge(&name, digest.as_ref(), &seen) {
            Ok(_) => return Ok(()),
            Err(error) => refusal = Some(error),
        }
    }
    Err(refusal.expect("an image has a name, if only the empty one"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Rules> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.toml");
        std::fs::write(&file, text).unwrap();
        Rules::read(&file)
    }

    const REST: &str = "[rules.\"*\"]\naction = \"reject\"\n";

    #[test]
    fn the_longest_prefix_counts() {
        let text = format!(
            "{REST}[rules.\"a.example\"]\naction = \"accept\"\n[rules.\"a.example/team\"]\naction = \"reject\"\n\
             [rules.\"a.example/team/app\"]\naction = \"accept\"\n[rules.\"docker.io\"]\naction = \"accept\"\n"
        );
        let rules = read(&text).unwrap();
        for (repository, prefix) in [
            ("a.example/x", "a.example"),
            ("a.example/team/x", "a.example/team"),
            ("a.example/teams/x", "a.example"),
            ("a.example/team/app", "a.example/team/app"),
            ("a.example/team/app/x", "a.example/team/app"),
            ("a.example:5000/x", "*"),
            ("docker.io/library/busybox", "docker.io"),
            ("", "*"),
        ] {
            assert_eq!(rules.of(repository).0, prefix, "{repository}");
        }
    }

    #[test]
    fn files_that_are_refused() {
        for (text, says) in [
            ("", "missing field `rules`"),
            ("[rules]\n", "there must be one for \"*\""),
            (
                "[rules.\"*\"]\naction = \"perhaps\"\n",
                "policy.toml:2: unknown variant",
            ),
            ("x = 1\n", "policy.toml:1: unknown field"),
            (&format!("{REST}keys = [\"a\"]\n"), "else none"),
            ("[rules.\"*\"]\naction = \"signed\"\n", "1 to 16 files"),
            (&format!("{REST}identity = \"a\"\n"), "is for the action signed"),
            (
                &format!("{REST}[rules.busybox]\naction = \"accept\"\n"),
                "begin with a registry",
            ),
            (
                &format!("{REST}[rules.\"a.example/\"]\naction = \"accept\"\n"),
                "begin with a registry",
            ),
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains(says), "{error} should say {says:?}");
        }
        let error = format!("{:#}", Rules::read(Path::new("/nonexistent/policy")).unwrap_err());
        assert!(error.contains("read /nonexistent/policy"), "{error}");
    }

    #[test]
    fn imports_pass_where_the_file_says_so() {
        let signed = "[rules.\"*\"]\naction = \"signed\"\nkeys = [\"absent.pub\"]\n";
        let imported = Seen {
            imported: true,
            signatures: &[],
        };
        let trusting = read(&format!("imports = \"accept\"\n{signed}")).unwrap();
        assert!(trusting.judge("a.example/a", None, &imported).is_ok());
        let pulled = Seen {
            imported: false,
            signatures: &[],
        };
        for (rules, seen) in [(&trusting, &pulled), (&read(signed).unwrap(), &imported)] {
            let error = rules.judge("a.example/a", None, seen).unwrap_err();
            assert!(error.to_string().contains("absent.pub"), "no key, no image: {error}");
        }
        let rejecting = read(&format!("imports = \"accept\"\n{REST}")).unwrap();
        assert!(rejecting.judge("a.example/a", None, &imported).is_err());
    }
}
