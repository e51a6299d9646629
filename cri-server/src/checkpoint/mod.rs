//! Checkpoints of containers as archives: what is in one, how it is written, and what of one is believed at a restore.
//!
//! ```text
//! checkpoint/          CRIU's images
//! config.dump          id, name, image, runtime, times
//! spec.dump            the OCI specification the container ran with
//! status.dump          its status
//! bind.mounts          its bind mounts
//! network.status       what CNI said of the pod's network; not with the node's
//! rootfs-diff.tar      the files it has changed of its root; plain files, no whiteouts
//! deleted.files        the files it has removed of its image
//! container.log        its log so far; not where it has none
//! dump.log stats-dump  CRIU's own
//! ```
//! This is the layout that checkpointctl shows and that Podman, CRI-O and containerd share; a plain tar, mode 0600, for
//! memory holds secrets.
//!
//! | module | owns |
//! |---|---|
//! | `documents` | the JSON documents of an archive; pure |
//! | `capture` | a container that is held, into a directory |
//! | `dumping` | the end of a dump that nobody waits for |
//! | `archive` | that directory as one file, which appears whole or not at all |
//! | `source` | an archive that somebody has written: what is looked at before anything of it is used |
//!
//! # What is believed
//!
//! An image is taken for a checkpoint only where the configuration has it (`checkpoint.restore_from_images`), every
//! manifest it came by says so, and the image under it is named by a digest. An archive comes from wherever the request
//! says, so it is treated as an image of a stranger is. Of its documents the name of the image is read, and nothing else
//! counts: mounts, capabilities, seccomp, devices, limits, user, annotations and names are the request's (CVE-2024-8676,
//! CVE-2026-95837, CVE-2026-92574, CVE-2026-53492). The image must be on the node, and no name of it changes
//! (CVE-2026-50195). The archive's log is not read (CVE-2026-53489). The images must be plain files in one directory,
//! because CRIU follows links; what they say is held against the new container's specification by the runtime, before and
//! after CRIU has worked (`corten-runtime`, `checkpoint`).

pub(crate) mod archive;
pub(crate) mod capture;
pub(crate) mod documents;
pub(crate) mod dumping;
pub(crate) mod source;

/// CRIU's images.
pub(crate) const IMAGES: &str = "checkpoint";
/// [`documents::Config`].
pub(crate) const CONFIG: &str = "config.dump";
/// The OCI specification.
pub(crate) const SPEC: &str = "spec.dump";
/// [`documents::Status`].
pub(crate) const STATUS: &str = "status.dump";
/// A list of [`documents::BindMount`].
pub(crate) const BIND_MOUNTS: &str = "bind.mounts";
/// A CNI result.
pub(crate) const NETWORK: &str = "network.status";
/// Changed files.
pub(crate) const ROOT_DIFF: &str = "rootfs-diff.tar";
/// A list of paths.
pub(crate) const DELETED: &str = "deleted.files";
/// The log.
pub(crate) const LOG: &str = "container.log";
/// What a restore reads of the documents.
pub(crate) const READ: [&str; 2] = [CONFIG, DELETED];
/// The longest document that is read at a restore, and is written of those, in bytes.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// Most images of CRIU's in a checkpoint: it writes some ten for every process.
pub(crate) const MAX_IMAGES: usize = 100_000;
/// CRIU's log, and its numbers.
pub(crate) const CRIU_FILES: [&str; 2] = ["dump.log", "stats-dump"];
