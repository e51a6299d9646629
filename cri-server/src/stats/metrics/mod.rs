//! ListPodSandboxMetrics: what cAdvisor would say of pods and containers, under its names.
//!
//! A pod has the metrics of its interfaces and, where it has a cgroup of its own, of that; each running container those of
//! its cgroup, processes and writable layer. A pod that is not ready has none. `table` lists them all. Without a value:
//!
//! | metric | where |
//! |---|---|
//! | `pressure_*` | on v1, and where the kernel keeps no pressure |
//! | `hugetlb_*` | where the controller is not in use; `max_usage` on v2, which does not count it |
//! | `spec_cpu_quota` | without a quota |
//! | `memory_max_usage_bytes`, `memory_kernel_usage` | on v2 before Linux 5.19, 5.18 |
//! | `fs_reads_*`, `fs_writes_*`, `blkio_*` | without the controller for block devices |
//! | `sockets` | of a container with more than 16,384 open files |
//! | `network_*` | of pods that have the node's network |

mod container;
mod pod;
mod table;

use std::path::Path;

use corten_proto::cri;

use self::table::Descriptor;
use super::parse::UNLIMITED;
use crate::store::now;

pub(crate) use self::table::descriptors;

/// The metrics of one pod or container as they are collected.
struct Collector {
    /// Values of the labels that all have, in the order of [`table::LABELS`].
    labels: [String; table::LABELS.len()],
    at: i64,
    metrics: Vec<cri::Metric>,
}

impl Collector {
    /// For a container of this name, image and id in this pod; all three are empty for the pod itself.
    fn new(cgroup: &Path, [container, image, name]: [&str; 3], pod: Option<&cri::PodSandboxMetadata>) -> Self {
        let (namespace, pod) = pod.map_or(("", ""), |pod| (&pod.namespace, &pod.name));
        let id = cgroup.to_string_lossy();
        Collector {
            labels: [container, &id, image, name, namespace, pod].map(str::to_owned),
            at: now(),
            metrics: Vec::with_capacity(64),
        }
    }

    /// Adds one that has no more labels; nothing without a value.
    fn add(&mut self, descriptor: &Descriptor, value: Option<u64>) {
        self.add_with(descriptor, &[], value);
    }

    /// Adds one that has more labels, in the order of its descriptor.
    fn add_with(&mut self, descriptor: &Descriptor, extra: &[&str], value: Option<u64>) {
        assert_eq!(extra.len(), descriptor.extra.len(), "labels of {}", descriptor.name);
        let Some(value) = value else { return };
        let extra = extra.iter().map(|&label| label.to_owned());
        self.metrics.push(cri::Metric {
            name: descriptor.name.to_owned(),
            timestamp: self.at,
            metric_type: descriptor.kind.into(),
            label_values: self.labels.iter().cloned().chain(extra).collect(),
            value: Some(cri::UInt64Value { value }),
        });
    }
}

/// Nanoseconds as whole seconds.
fn seconds(ns: Option<u64>) -> Option<u64> {
    ns.map(|ns| ns / 1_000_000_000)
}

/// A limit, where 0 stands for none.
fn or_zero(limit: Option<u64>) -> Option<u64> {
    limit.map(|limit| if limit == UNLIMITED { 0 } else { limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_values() {
        let pod = cri::PodSandboxMetadata {
            name: "web".into(),
            namespace: "shop".into(),
            ..Default::default()
        };
        let mut collector = Collector::new(Path::new("/p/c"), ["main", "image:1", "c"], Some(&pod));
        collector.add(&table::THREADS, Some(5));
        collector.add(&table::PROCESSES, None);
        collector.add_with(&table::ULIMITS_SOFT, &["max_open_files"], Some(7));
        let [threads, limits] = collector.metrics.as_slice() else {
            panic!("{:?}", collector.metrics);
        };
        assert_eq!(threads.label_values, ["main", "/p/c", "image:1", "c", "shop", "web"]);
        assert_eq!(
            (threads.metric_type(), threads.value.unwrap().value),
            (cri::MetricType::Gauge, 5)
        );
        assert_eq!(limits.label_values.last().unwrap(), "max_open_files");
    }

    #[test]
    fn limits_and_seconds() {
        let table = [(Some(UNLIMITED), Some(0)), (Some(5), Some(5)), (None, None)];
        for (limit, expected) in table {
            assert_eq!(or_zero(limit), expected, "{limit:?}");
        }
        assert_eq!(seconds(Some(1_999_999_999)), Some(1));
    }
}
