//! What an answer has to have in common with the recorded one: every field that kubelet was given, with its value.

use serde_json::Value;

/// Fields whose value is each runtime's, moment's or machine's own; something has to be there.
const OWN: &[&str] = &[
    "containers.image.image", // in lists kubelet reads image_id
    "created_at",
    "finished_at",
    "image_ref", // ours is name@digest, which kubelet shows; image_id is what it compares
    "ip",
    "mountpoint",
    "runtime_name",
    "runtime_version",
    "size",
    "started_at",
    "timestamp",
    "help",
    "label_keys", // ours has cAdvisor's, which are more
    "label_values",
];

/// Fields that need not be there, or not so.
const LEFT_OUT: &[&str] = &[
    "info",                          // for people; empty there
    "resources.linux.oom_score_adj", // this machine's score may not go so low
    "runtime_handlers",              // the other runtime's names
    "interfaces",                    // kubelet reads the default one
    "available_bytes",               // without a limit there is none; the other runtime said 0
    "major_page_faults",
    "value", // of statistics and metrics; that there is one is said by what it is in
];

/// What lists are told by.
const KEYS: &[&str] = &["id", "container_id", "pod_sandbox_id", "container_path", "type", "name"];

/// Adds to `differences` what `ours` lacks of `recorded`.
pub(super) fn compare(path: &str, recorded: &Value, ours: &Value, differences: &mut Vec<String>) {
    let is_of = |names: &[&str]| {
        names
            .iter()
            .any(|name| path == *name || path.ends_with(&format!(".{name}")))
    };
    if is_of(LEFT_OUT) {
        return;
    }
    match (recorded, ours) {
        (_, Value::Null) => differences.push(format!("{path}: nothing, not {recorded}")),
        _ if is_of(OWN) => {}
        (Value::Object(recorded), Value::Object(ours)) => {
            for (name, value) in recorded {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                compare(&path, value, ours.get(name).unwrap_or(&Value::Null), differences);
            }
        }
        (Value::Array(recorded), Value::Array(ours)) => lists(path, recorded, ours, differences),
        _ if recorded == ours => {}
        _ => differences.push(format!("{path}: {ours}, not {recorded}")),
    }
}

fn lists(path: &str, recorded: &[Value], ours: &[Value], differences: &mut Vec<String>) {
    for (position, element) in recorded.iter().enumerate() {
        if is_of_its_own(element) {
            continue;
        }
        match key(element) {
            Some(known) => match ours.iter().find(|candidate| key(candidate) == Some(known)) {
                Some(found) => compare(path, element, found, differences),
                None => differences.push(format!("{path}: no {known}")),
            },
            None if element.is_object() => {
                compare(path, element, ours.get(position).unwrap_or(&Value::Null), differences);
            }
            None if ours.contains(element) => {}
            None => differences.push(format!("{path}: no {element}")),
        }
    }
}

/// What one element of a list is told by.
fn key(element: &Value) -> Option<&str> {
    let direct = KEYS.iter().find_map(|key| element[*key].as_str());
    direct.or_else(|| KEYS.iter().find_map(|key| element["attributes"][*key].as_str()))
}

/// What only the other runtime had: images and conditions of its own, and two metrics that are none of cAdvisor's.
fn is_of_its_own(element: &Value) -> bool {
    let text = element.as_str().or_else(|| key(element)).unwrap_or_default();
    let own = [
        "docker.io/",
        "registry.k8s.io/",
        "sha256:33de",
        "Containerd",
        "container_memory_total_",
    ];
    own.iter().any(|prefix| text.starts_with(prefix))
}
