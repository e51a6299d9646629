//! Block devices: blkio on v1, `io.stat` on v2.

use corten_proto::cri;

use super::cgroups::Cgroups;
use super::parse::{self, Devices};

/// v1's pairs of files, of bytes and of operations, the one with most in it first: what is below is counted with it, or
/// not (before Linux 5.4); the last is CFQ's, which went with Linux 5.0.
const V1_FILES: [(&str, &str); 3] = [
    (
        "blkio.throttle.io_service_bytes_recursive",
        "blkio.throttle.io_serviced_recursive",
    ),
    ("blkio.throttle.io_service_bytes", "blkio.throttle.io_serviced"),
    ("blkio.io_service_bytes_recursive", "blkio.io_serviced_recursive"),
];

/// What each device did; none where nothing counts.
pub(super) fn devices(cgroups: &Cgroups) -> Option<Devices> {
    if cgroups.is_v2() {
        return cgroups.text("io", "io.stat").map(|text| parse::io_stat(&text));
    }
    V1_FILES.iter().find_map(|(bytes, operations)| {
        let bytes = cgroups.text("blkio", bytes)?;
        let operations = cgroups.text("blkio", operations).unwrap_or_default();
        Some(parse::blkio(&bytes, &operations))
    })
}

/// Pressure; v1 has none.
pub(super) fn pressure(cgroups: &Cgroups) -> Option<cri::PsiStats> {
    parse::pressure(&cgroups.text("io", "io.pressure").filter(|_| cgroups.is_v2())?)
}

#[cfg(test)]
mod tests {
    use super::super::cgroups::tests::{v1, v2};
    use super::*;

    #[test]
    fn the_first_pair_of_files_that_is_there() {
        let (_dir, cgroups) = v1(&[
            ("blkio/blkio.throttle.io_service_bytes", "254:0 Read 5\nTotal 5\n"),
            ("blkio/blkio.throttle.io_serviced", "254:0 Read 1\nTotal 1\n"),
            ("blkio/blkio.io_service_bytes_recursive", "254:0 Read 9\nTotal 9\n"),
        ]);
        let found = devices(&cgroups).unwrap();
        assert_eq!((found[&(254, 0)].read_bytes, found[&(254, 0)].reads), (5, 1));
        let (_dir, cgroups) = v1(&[]);
        assert_eq!(devices(&cgroups), None);
    }

    #[test]
    fn on_v2() {
        let (_dir, cgroups) = v2(&[("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n")]);
        assert_eq!(devices(&cgroups).unwrap()[&(8, 0)].writes, 4);
        assert_eq!(pressure(&cgroups), None);
        let (_dir, cgroups) = v2(&[]);
        assert_eq!(devices(&cgroups), None);
    }
}
