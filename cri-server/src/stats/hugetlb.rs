//! Huge pages.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use super::cgroups::Cgroups;
use super::parse;

/// Pages of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HugePages {
    /// As the kernel names it: `2MB`.
    pub(super) page_size: &'static str,
    /// Bytes in use, and the most that ever were, which v2 does not say.
    pub(super) usage: u64,
    pub(super) max_usage: Option<u64>,
}

/// Those of every size that the kernel counts; none without the controller.
pub(super) fn huge_pages(cgroups: &Cgroups) -> Vec<HugePages> {
    let number = |file: &str| cgroups.text("hugetlb", file).and_then(|text| parse::number(&text));
    let of_size = |page_size: &'static str| {
        let (usage, max_usage) = match cgroups.is_v2() {
            true => (number(&format!("hugetlb.{page_size}.current")), None),
            false => (
                number(&format!("hugetlb.{page_size}.usage_in_bytes")),
                number(&format!("hugetlb.{page_size}.max_usage_in_bytes")),
            ),
        };
        Some(HugePages {
            page_size,
            usage: usage?,
            max_usage,
        })
    };
    page_sizes().iter().filter_map(|size| of_size(size)).collect()
}

/// The machine's page sizes, which do not change.
fn page_sizes() -> &'static [String] {
    static SIZES: OnceLock<Vec<String>> = OnceLock::new();
    SIZES.get_or_init(|| read_page_sizes(Path::new("/sys/kernel/mm/hugepages")))
}

/// From a directory with an entry for each: `hugepages-2048kB`.
fn read_page_sizes(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut sizes: Vec<String> = entries
        .filter_map(|entry| page_size(entry.file_name().to_str()?))
        .collect();
    sizes.sort();
    sizes
}

/// The control files' name of it (hugetlb_cgroup.c, mem_fmt).
fn page_size(entry: &str) -> Option<String> {
    let kib: u64 = entry.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Some(match kib {
        kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        kib => format!("{kib}KB"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::cgroups::tests::{v1, v2};
    use super::*;

    #[test]
    fn names_of_sizes() {
        let table = [
            ("hugepages-64kB", Some("64KB")),
            ("hugepages-2048kB", Some("2MB")),
            ("hugepages-1048576kB", Some("1GB")),
            ("hugepages-xkB", None),
            ("other", None),
        ];
        for (entry, expected) in table {
            assert_eq!(page_size(entry).as_deref(), expected, "{entry}");
        }
    }

    #[test]
    fn v1_and_v2() {
        let Some(size) = page_sizes().first() else {
            // A kernel without huge pages has nothing to be read.
            return;
        };
        let names = ["current", "usage_in_bytes", "max_usage_in_bytes"].map(|name| format!("hugetlb.{size}.{name}"));
        let (_dir, cgroups) = v2(&[(&names[0], "4096\n")]);
        let pages = |usage, max_usage| HugePages {
            page_size: size,
            usage,
            max_usage,
        };
        assert_eq!(huge_pages(&cgroups), [pages(4096, None)]);
        let files = [format!("hugetlb/{}", names[1]), format!("hugetlb/{}", names[2])];
        let (_dir, cgroups) = v1(&[(&files[0], "4096\n"), (&files[1], "8192\n")]);
        assert_eq!(huge_pages(&cgroups), [pages(4096, Some(8192))]);
        let (_dir, cgroups) = v1(&[]);
        assert_eq!(huge_pages(&cgroups), []);
    }
}
