//! Which container is meant: one that is there, or one that was removed and whose death is kept.
//!
//! | what is asked for | finds |
//! |---|---|
//! | an id | that container |
//! | a name: `NAME`, `POD/NAME`, `NAMESPACE/POD/NAME` | the one that ended last |
//! | the beginning of an id | that container, if no other begins so |
//!
//! The same rules hold for the server, which has the containers in memory, and for the disk of one that is down.

use anyhow::{Result, bail};
use corten_proto::cri;
use corten_proto::exit::ExitRecord;

use super::{Death, kept};
use crate::container::{Metadata, Status};
use crate::paths::Paths;
use crate::record::{ContainerRecord, SandboxRecord, read, read_optional};
use crate::recover::entries;
use crate::spec::shown;

/// A container that is there.
pub(crate) struct Subject {
    pub(crate) metadata: Metadata,
    pub(crate) pod: Option<cri::PodSandboxMetadata>,
    pub(crate) status: Status,
}

/// The death that is asked for. `containers` are those there are.
pub(crate) fn find(paths: &Paths, asked: &str, containers: Vec<Subject>) -> Result<Death> {
    let mut all: Vec<Found> = containers
        .into_iter()
        .filter(|subject| subject.is(asked))
        .map(|subject| subject.found(paths))
        .collect();
    let removed = kept::all(&paths.exits())?.into_iter();
    all.extend(removed.filter(|death| matches(asked, death)).map(Found::of));
    choose(asked, all)
}

/// The containers that a server which is down has left records of.
pub(crate) fn subjects_on_disk(paths: &Paths) -> Result<Vec<Subject>> {
    let mut subjects = Vec::new();
    for directory in entries(&paths.containers())? {
        // What cannot be read is the server's to complain of.
        let Ok(record): Result<ContainerRecord, _> = read(&directory.join("record.json")) else {
            continue;
        };
        let sandbox: Result<SandboxRecord, _> = read(&paths.sandbox_record(&record.metadata.sandbox));
        subjects.push(Subject {
            pod: sandbox.ok().and_then(|sandbox| sandbox.metadata.config.metadata),
            metadata: record.metadata,
            status: record.status,
        });
    }
    Ok(subjects)
}

/// A container that answers to what was asked for.
struct Found {
    id: String,
    /// None while it runs.
    death: Option<Death>,
}

impl Found {
    fn of(death: Death) -> Found {
        Found {
            id: death.id.to_string(),
            death: Some(death),
        }
    }
}

impl Subject {
    fn is(&self, asked: &str) -> bool {
        is_asked_for(asked, &self.metadata, self.pod.as_ref())
    }

    fn found(self, paths: &Paths) -> Found {
        let record = read_optional::<ExitRecord>(&paths.container_exit(&self.metadata.id));
        let record = record.ok().flatten();
        // It may have ended while no server was there to hear of it.
        let status = match &record {
            Some(record) => self.status.recorded(record),
            None => self.status,
        };
        let Status::Exited(exited) = status else {
            return Found {
                id: self.metadata.id.to_string(),
                death: None,
            };
        };
        Found::of(Death::new(&self.metadata, self.pod.as_ref(), &exited, record))
    }
}

/// Whether a container that is there can be meant.
pub(super) fn is_asked_for(asked: &str, metadata: &Metadata, pod: Option<&cri::PodSandboxMetadata>) -> bool {
    let own = metadata.config.metadata.as_ref();
    let names = [
        pod.map_or("", |pod| &pod.namespace),
        pod.map_or("", |pod| &pod.name),
        own.map_or("", |own| &own.name),
    ];
    is_meant(asked, metadata.id.as_str(), names)
}

fn matches(asked: &str, death: &Death) -> bool {
    let names = [&death.pod.namespace, &death.pod.name, &death.name].map(String::as_str);
    is_meant(asked, death.id.as_str(), names)
}

/// Whether a container with this id, in this namespace and pod, by this name, can be meant.
fn is_meant(asked: &str, id: &str, names: [&str; 3]) -> bool {
    !asked.is_empty() && (id.starts_with(asked) || is_name(asked, names))
}

fn is_name(asked: &str, [namespace, pod, name]: [&str; 3]) -> bool {
    asked == name || asked == format!("{pod}/{name}") || asked == format!("{namespace}/{pod}/{name}")
}

/// Chooses among all that can be meant.
fn choose(asked: &str, mut all: Vec<Found>) -> Result<Death> {
    if let Some(exact) = all.iter().position(|found| found.id == asked) {
        all = vec![all.swap_remove(exact)];
    }
    let by_prefix = |found: &Found| found.id.starts_with(asked);
    if !all.is_empty() && all.iter().all(by_prefix) {
        let first = &all[0].id;
        if all.iter().any(|found| found.id != *first) {
            bail!("{:?} is the beginning of more than one id", shown(asked));
        }
    } else {
        // Some have this name, and a name goes before the beginning of an id.
        all.retain(|found| !by_prefix(found));
    }
    let running = all
        .iter()
        .find(|found| found.death.is_none())
        .map(|found| found.id.clone());
    let deaths = all.into_iter().filter_map(|found| found.death);
    match (deaths.max_by_key(|death| death.finished_at), running) {
        (Some(death), _) => Ok(death),
        (None, Some(id)) => bail!("container {id} has not ended"),
        (None, None) => bail!(
            "no container {:?} is known, nor one that was removed lately",
            shown(asked)
        ),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::why::{Cause, Pod};

    pub(in crate::why) fn death(id: &str, name: &str, finished_at: i64) -> Death {
        Death {
            version: 1,
            id: id.parse().unwrap(),
            name: name.to_owned(),
            attempt: 0,
            pod: Pod {
                id: "p".into(),
                name: "pod".into(),
                namespace: "ns".into(),
                uid: "u".into(),
            },
            image: "busybox".into(),
            created_at: 1,
            started_at: 2,
            finished_at,
            exit_code: 3,
            reason: "Error".into(),
            message: String::new(),
            cause: Cause::Exit { after: None },
            summary: "ended by itself with exit code 3".into(),
            record: None,
        }
    }

    fn chosen(asked: &str) -> String {
        let deaths = [
            death("abc1", "web", 10),
            death("abc2", "web", 20),
            death("b1", "abc", 5),
            death("b2", "db", 7),
        ];
        let mut all: Vec<Found> = deaths
            .into_iter()
            .filter(|death| matches(asked, death))
            .map(Found::of)
            .collect();
        if is_meant(asked, "d1", ["ns", "pod", "web"]) {
            all.push(Found {
                id: "d1".into(),
                death: None,
            });
        }
        match choose(asked, all) {
            Ok(death) => death.id.to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn ids_and_names() {
        for (asked, expected) in [
            ("abc1", "abc1"),
            ("web", "abc2"),
            ("pod/web", "abc2"),
            ("ns/pod/web", "abc2"),
            ("abc", "b1"),
            ("b2", "b2"),
            ("db", "b2"),
            ("d1", "container d1 has not ended"),
            ("b", "\"b\" is the beginning of more than one id"),
        ] {
            assert_eq!(chosen(asked), expected, "{asked}");
        }
        for asked in ["", "x", "other/web", "web/", "ns/web"] {
            assert!(chosen(asked).starts_with("no container"), "{asked}");
        }
    }

    /// An answer's text travels in a header.
    #[test]
    fn what_is_not_found_is_repeated_in_part() {
        let error = choose(&"ä".repeat(100_000), Vec::new()).unwrap_err().to_string();
        assert!(error.len() < 512 && error.contains("(200000 bytes)"), "{error}");
    }
}
