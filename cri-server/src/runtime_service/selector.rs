//! The filters of the list calls: every part that is given must match.

use std::collections::HashMap;

use corten_proto::cri::{ContainerFilter, PodSandboxFilter};

use crate::container::Container;
use crate::sandbox::Sandbox;

/// Whether a sandbox passes the filter.
pub(super) fn sandbox(filter: &PodSandboxFilter, sandbox: &Sandbox) -> bool {
    let state = filter.state.map(|state| state.state());
    sandbox.id().as_str().starts_with(&filter.id)
        && state.is_none_or(|state| state == sandbox.status().state())
        && labels(&filter.label_selector, &sandbox.metadata.config.labels)
}

/// Whether a container passes the filter.
pub(super) fn container(filter: &ContainerFilter, container: &Container) -> bool {
    let state = filter.state.map(|state| state.state());
    let metadata = &container.metadata;
    metadata.id.as_str().starts_with(&filter.id)
        && metadata.sandbox.as_str().starts_with(&filter.pod_sandbox_id)
        && state.is_none_or(|state| state == container.status.borrow().state())
        && labels(&filter.label_selector, &metadata.config.labels)
}

fn labels(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_asked_for_must_be_there() {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect()
        };
        let own = map(&[("a", "1"), ("b", "2")]);
        let table = [
            (map(&[]), true),
            (map(&[("a", "1")]), true),
            (map(&[("a", "1"), ("b", "2")]), true),
            (map(&[("a", "2")]), false),
            (map(&[("a", "1"), ("c", "3")]), false),
        ];
        for (selector, expected) in table {
            assert_eq!(labels(&selector, &own), expected, "{selector:?}");
        }
    }
}
