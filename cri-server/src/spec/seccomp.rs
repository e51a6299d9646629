//! Seccomp filters: the profile RuntimeDefault, and profiles of the node's files.
//!
//! What RuntimeDefault allows is data (`seccomp/default.toml`). It is resolved against the container's bounding set: what
//! no process of the container can ever be privileged for, it cannot call either. The same request gives the same
//! profile to the byte, because the runtime keeps compiled filters by it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::LazyLock;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use serde_json::Value;

use super::{CapabilityName, SpecError};

/// The request's field.
pub(super) const FIELD: &str = "linux.security_context.seccomp";
/// Most bytes of a profile's file: some ten times the largest that exist.
const MAX_FILE: u64 = 1 << 20;
/// What a call gets that no rule speaks of.
const DEFAULT_ERRNO: u32 = nix::libc::EPERM.unsigned_abs();

/// `seccomp/default.toml`, which explains the fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    allow: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    #[serde(rename = "what")]
    _what: String,
    calls: Vec<String>,
    capability: Option<String>,
    without: Option<String>,
    #[serde(default)]
    architecture: Vec<String>,
    #[serde(default)]
    when: Vec<Condition>,
    errno: Option<u32>,
}

/// Holds where the argument, of which only the bits of `mask` count, is `is`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    argument: usize,
    mask: Option<u64>,
    is: u64,
}

static LIST: LazyLock<List> = LazyLock::new(|| {
    toml::from_str(include_str!("seccomp/default.toml")).expect("the file is ours, and a test reads it")
});

/// RuntimeDefault for a process with this bounding set.
pub(super) fn runtime_default(bounding: &BTreeSet<CapabilityName>) -> LinuxSeccomp {
    let groups = LIST.allow.iter().filter(|group| group.applies(bounding));
    let (plain, special): (Vec<_>, Vec<_>) = groups.partition(|group| group.when.is_empty() && group.errno.is_none());
    // One rule for all that is allowed as it is: the file is for readers, the profile for the runtime.
    let calls: BTreeSet<&String> = plain.iter().flat_map(|group| &group.calls).collect();
    let mut rules = vec![rule(calls.into_iter().cloned().collect(), None, None)];
    rules.extend(special.iter().flat_map(|group| group.rules()));
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(DEFAULT_ERRNO)
        .architectures(architectures())
        .syscalls(rules)
        .build()
        .expect("every field of the builder has a default")
}

impl Group {
    fn applies(&self, bounding: &BTreeSet<CapabilityName>) -> bool {
        let has = |name: &String| bounding.contains(name.as_str());
        let here = self.architecture.is_empty() || self.architecture.iter().any(|name| name == std::env::consts::ARCH);
        here && self.capability.as_ref().is_none_or(has) && !self.without.as_ref().is_some_and(has)
    }

    /// One rule for each condition: any of them suffices.
    fn rules(&self) -> Vec<LinuxSyscall> {
        let rule = |condition| rule(self.calls.clone(), condition, self.errno);
        match self.when.is_empty() {
            true => vec![rule(None)],
            false => self.when.iter().map(|condition| rule(Some(*condition))).collect(),
        }
    }
}

fn rule(calls: Vec<String>, condition: Option<Condition>, errno: Option<u32>) -> LinuxSyscall {
    let action = match errno {
        Some(_) => LinuxSeccompAction::ScmpActErrno,
        None => LinuxSeccompAction::ScmpActAllow,
    };
    let mut rule = LinuxSyscallBuilder::default()
        .names(calls)
        .action(action)
        .build()
        .expect("every field of the builder has a default");
    rule.set_errno_ret(errno)
        .set_args(condition.map(|condition| vec![condition.argument()]));
    rule
}

impl Condition {
    fn argument(self) -> LinuxSeccompArg {
        let argument = LinuxSeccompArgBuilder::default().index(self.argument);
        let argument = match self.mask {
            Some(mask) => argument
                .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
                .value(mask)
                .value_two(self.is),
            None => argument.op(LinuxSeccompOperator::ScmpCmpEq).value(self.is),
        };
        argument.build().expect("every field of the builder has a default")
    }
}

/// This machine's, with those of the programs of other widths that it runs.
fn architectures() -> Vec<Arch> {
    match std::env::consts::ARCH {
        "x86_64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        _ => vec![Arch::ScmpArchNative],
    }
}

/// Refuses a reference that is not a path of the node. `field` is in the words of whoever asked.
pub(super) fn check_reference(path: &str) -> Result<(), SpecError> {
    if path.starts_with('/') {
        return Ok(());
    }
    let rule = "localhost_ref must be the absolute path of a profile";
    Err(SpecError::invalid(FIELD, path, rule))
}

/// The profile in a file of the node. Blocks.
pub(super) fn read(path: &str) -> Result<LinuxSeccomp, SpecError> {
    check_reference(path)?;
    let text = read_file(Path::new(path)).map_err(|rule| SpecError::invalid(FIELD, path, rule))?;
    parse(&text).map_err(|rule| SpecError::invalid(FIELD, path, rule))
}

fn read_file(path: &Path) -> Result<String, String> {
    // NONBLOCK: a fifo in this place must not hold the caller up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| format!("open the profile: {errno}"))?;
    let file = File::from(file);
    let meta = file.metadata().map_err(|error| format!("fstat: {error}"))?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(format!(
            "the profile must be a regular file of at most {MAX_FILE} bytes"
        ));
    }
    let mut text = String::new();
    // Bounded again: the file may grow while it is read.
    file.take(MAX_FILE)
        .read_to_string(&mut text)
        .map_err(|error| format!("read the profile: {error}"))?;
    Ok(text)
}

/// A profile in the form of the OCI's specification.
fn parse(text: &str) -> Result<LinuxSeccomp, String> {
    let wrong =
        |error: serde_json::Error| format!("must be a seccomp profile of the OCI runtime specification: {error}");
    let document: Value = serde_json::from_str(text).map_err(wrong)?;
    if let Some(condition) = foreign_condition(&document) {
        let rule = "is Docker's form of a profile; conditions that were passed over would allow too much";
        return Err(format!("{condition} {rule}"));
    }
    serde_json::from_value(document).map_err(wrong)
}

/// A field that is not empty by which Docker's profiles make rules depend on the container.
fn foreign_condition(profile: &Value) -> Option<&'static str> {
    const OF_RULES: [&str; 2] = ["includes", "excludes"];
    let is_set = |value: &Value| match value {
        Value::Null => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    };
    if profile.get("archMap").is_some_and(is_set) {
        return Some("archMap");
    }
    let rules = profile.get("syscalls").and_then(Value::as_array);
    let set = |name: &'static str| {
        rules
            .into_iter()
            .flatten()
            .any(|rule| rule.get(name).is_some_and(is_set))
    };
    OF_RULES.into_iter().find(|&name| set(name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::super::host::tests::host;
    use super::*;

    /// The unconditional part of Docker's profile, with which the runtime is tested.
    const DOCKER: &str = include_str!("../../../tests/oci/seccomp/docker.json");

    fn profile(capabilities: &[CapabilityName]) -> Value {
        serde_json::to_value(runtime_default(&capabilities.iter().copied().collect())).unwrap()
    }

    /// The rules of each call: whether it is allowed, and under which condition.
    fn rules(profile: &Value) -> BTreeMap<String, Vec<(bool, Value)>> {
        let mut all: BTreeMap<String, Vec<(bool, Value)>> = BTreeMap::new();
        for rule in profile["syscalls"].as_array().unwrap() {
            for name in rule["names"].as_array().unwrap() {
                let allowed = rule["action"] == "SCMP_ACT_ALLOW";
                let args = rule.get("args").cloned().unwrap_or_default();
                all.entry(name.as_str().unwrap().to_owned())
                    .or_default()
                    .push((allowed, args));
            }
        }
        all
    }

    fn allows(profile: &Value, call: &str) -> bool {
        rules(profile)
            .get(call)
            .is_some_and(|rules| rules.iter().any(|rule| rule.0))
    }

    #[test]
    fn nothing_is_allowed_that_docker_refuses() {
        let docker: Value = serde_json::from_str(DOCKER).unwrap();
        let (docker, ours) = (rules(&docker), rules(&profile(&[])));
        for (call, rules) in &ours {
            if call == "socket" {
                // In blocks of domains; its own test.
                continue;
            }
            for rule in rules.iter().filter(|rule| rule.0) {
                let same = docker.get(call).is_some_and(|theirs| theirs.contains(rule));
                let unconditional = docker
                    .get(call)
                    .is_some_and(|theirs| theirs.contains(&(true, Value::Null)));
                assert!(same || unconditional, "{call}: {rule:?} against {:?}", docker.get(call));
            }
        }
        let missing: Vec<_> = docker.keys().filter(|call| !ours.contains_key(*call)).collect();
        assert!(missing.is_empty(), "{missing:?}: programs would miss them");
    }

    /// The kernel takes the domain for 32 bits.
    #[test]
    fn domains_of_sockets() {
        let profile = profile(&[]);
        let rules = rules(&profile);
        let allowed = |domain: u64| {
            rules["socket"].iter().any(|(allowed, args)| {
                let (mask, is) = (
                    args[0]["value"].as_u64().unwrap(),
                    args[0]["valueTwo"].as_u64().unwrap(),
                );
                assert!(*allowed && args[0]["op"] == "SCMP_CMP_MASKED_EQ" && args[0]["index"] == 0);
                domain & mask == is
            })
        };
        for domain in 0..64 {
            let expected = domain < 48 && ![38, 40].contains(&domain);
            for high in [0, 1 << 32, 1 << 63] {
                assert_eq!(allowed(domain | high), expected, "{domain} {high:#x}");
            }
        }
    }

    #[test]
    fn calls_by_capability() {
        for (capability, call) in [
            ("CAP_SYS_ADMIN", "mount"),
            ("CAP_SYS_ADMIN", "unshare"),
            ("CAP_SYS_CHROOT", "chroot"),
            ("CAP_SYS_PTRACE", "pidfd_getfd"),
            ("CAP_BPF", "bpf"),
            ("CAP_PERFMON", "perf_event_open"),
            ("CAP_SYSLOG", "syslog"),
            ("CAP_SYS_BOOT", "reboot"),
            ("CAP_SYS_MODULE", "init_module"),
            ("CAP_SYS_TIME", "clock_settime"),
            ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
        ] {
            assert!(!allows(&profile(&[]), call), "{call}");
            assert!(allows(&profile(&[capability]), call), "{call} with {capability}");
        }
        // Whoever may make namespaces makes processes in any way.
        let clone = |capabilities: &[CapabilityName]| rules(&profile(capabilities))["clone"].clone();
        assert!(clone(&[]).iter().all(|rule| rule.1 != Value::Null));
        assert!(clone(&["CAP_SYS_ADMIN"]).contains(&(true, Value::Null)));
        assert!(!allows(&profile(&[]), "clone3") && allows(&profile(&["CAP_SYS_ADMIN"]), "clone3"));
        for never in ["keyctl", "io_uring_setup", "userfaultfd", "kexec_load", "swapon"] {
            let all: Vec<_> = host().capabilities.into_iter().collect();
            assert!(!allows(&profile(&all), never), "{never}");
        }
    }

    #[test]
    fn every_capability_of_the_list_exists() {
        let known = super::super::capabilities::from_status("CapBnd:\tffffffffffffffff", "CapBnd");
        for group in &LIST.allow {
            for name in group.capability.iter().chain(&group.without) {
                assert!(known.contains(name.as_str()), "{name}");
            }
            assert!(!group._what.is_empty() && !group.calls.is_empty(), "{group:?}");
        }
    }

    #[test]
    fn the_same_set_gives_the_same_bytes() {
        let bytes = || serde_json::to_vec(&runtime_default(&host().capabilities)).unwrap();
        assert_eq!(bytes(), bytes());
    }

    #[test]
    fn profiles_of_files() {
        let rule = |more: Value| {
            let mut rule = json!({ "names": ["chmod"], "action": "SCMP_ACT_ERRNO" });
            rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }).to_string()
        };
        for (text, error) in [
            (rule(json!({})), None),
            (rule(json!({ "includes": {}, "comment": "x" })), None),
            (
                rule(json!({ "includes": { "caps": ["CAP_SYS_ADMIN"] } })),
                Some("includes"),
            ),
            (rule(json!({ "excludes": { "arches": ["s390"] } })), Some("excludes")),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{}]}"#.to_owned(),
                Some("archMap"),
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_NONSENSE"}"#.to_owned(),
                Some("SCMP_ACT_NONSENSE"),
            ),
            ("{}".to_owned(), Some("defaultAction")),
            ("defaultAction".to_owned(), Some("line 1")),
        ] {
            match (parse(&text), error) {
                (Ok(_), None) => {}
                (Err(rule), Some(word)) => assert!(rule.contains(word), "{text}: {rule}"),
                (result, _) => panic!("{text}: {result:?}"),
            }
        }
    }

    #[test]
    fn files_that_are_no_profiles() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let big = File::create(path("big")).unwrap();
        big.set_len(MAX_FILE + 1).unwrap();
        nix::unistd::mkfifo(path("fifo").as_str(), nix::sys::stat::Mode::S_IRUSR).unwrap();
        for (path, word) in [
            (path("none"), "open"),
            (path("big"), "regular file"),
            (path("fifo"), "regular file"),
            (path("."), "regular file"),
            ("/dev/zero".to_owned(), "regular file"),
            ("x.json".to_owned(), "absolute"),
        ] {
            let error = read(&path).unwrap_err();
            assert!(error.rule.contains(word) && error.value == path, "{error}");
        }
    }
}
