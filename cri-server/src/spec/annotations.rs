//! The annotations of config.json: ours, and those of the request that the runtime's configuration lets through. Pure.
//!
//! Runtimes act on annotations: crun and kata take cgroup settings, hooks, images and hypervisors from them, systemd's
//! cgroup driver takes unit properties. Whoever may write a pod may write its annotations, so that none of them reaches a
//! runtime unless the configuration names it (CVE-2023-6476, CVE-2024-3154).
//!
//! What this server itself makes of annotations is no more than this:
//!
//! | annotation | of | does |
//! |---|---|---|
//! | `kubernetes.io/ingress-bandwidth`, `egress-bandwidth` | pods | limits the pod's network (`network::cni`) |
//! | `cdi.k8s.io/*` | containers | names devices that the node's CDI files describe (`cdi`) |

use std::collections::HashMap;

use super::SpecError;

/// Which annotations of requests a runtime gets: names, or beginnings of names with `*` behind them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed<'a> {
    /// Of pods.
    pub pod: &'a [String],
    /// Of containers.
    pub container: &'a [String],
}

/// What an entry of a list of allowed annotations must be.
pub(crate) const RULE: &str = "must be names of annotations, or beginnings of names with * behind them";

/// Whether an entry follows [`RULE`]. One that allowed everything would be no list.
pub(crate) fn is_entry(entry: &str) -> bool {
    let name = entry.strip_suffix('*').unwrap_or(entry);
    !name.is_empty() && !name.contains(|c: char| c == '*' || c.is_whitespace() || c.is_control())
}

/// Those of `annotations` that `allowed` names. They are what a runtime acts on, so that they have to be plain text.
pub(crate) fn passed(
    field: &str,
    annotations: &HashMap<String, String>,
    allowed: &[String],
) -> Result<HashMap<String, String>, SpecError> {
    let is_allowed = |name: &str| {
        allowed.iter().any(|entry| match entry.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == entry,
        })
    };
    let mut all = HashMap::new();
    for (name, value) in annotations.iter().filter(|(name, _)| is_allowed(name)) {
        if name.chars().chain(value.chars()).any(char::is_control) {
            let rule = "goes to the runtime and must hold no control characters";
            return Err(SpecError::invalid(format!("{field}[{name:?}]"), value, rule));
        }
        all.insert(name.clone(), value.clone());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn entries() {
        for good in ["a", "io.katacontainers.*", "a/b-c_d"] {
            assert!(is_entry(good), "{good}");
        }
        for bad in ["", "*", "**", "a*b", "a b", "a\n", "a**"] {
            assert!(!is_entry(bad), "{bad:?}");
        }
    }

    #[test]
    fn only_what_is_named_is_passed() {
        let names = ["run.oci.hooks", "io.kata.a", "io.katab", "io.kubernetes.cri.sandbox-id"];
        let annotations = names.map(|name| (name.to_owned(), "v".to_owned())).into();
        for (allowed, expected) in [
            (&[][..], &[][..]),
            (&["io.kata.*"], &["io.kata.a"]),
            (&["io.kata"], &[]),
            (
                &["run.oci.hooks", "io.kata*"],
                &["io.kata.a", "io.katab", "run.oci.hooks"],
            ),
        ] {
            let passed = passed("annotations", &annotations, &strings(allowed)).unwrap();
            let mut passed: Vec<_> = passed.into_keys().collect();
            passed.sort();
            assert_eq!(passed, expected, "{allowed:?}");
        }
    }

    #[test]
    fn what_a_runtime_acts_on_is_plain() {
        for (name, value, good) in [
            ("a", "b\nc", false),
            ("a", "\0", false),
            ("a\n", "b", false),
            ("b", "\n", true),
        ] {
            let annotations = HashMap::from([(name.to_owned(), value.to_owned())]);
            let passed = passed("annotations", &annotations, &strings(&["a*"]));
            assert_eq!(passed.is_ok(), good, "{name:?} {value:?}");
        }
    }
}
