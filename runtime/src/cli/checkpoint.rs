//! `checkpoint` and `restore`: what CRIU is to do.

use std::path::PathBuf;

use anyhow::Result;
use corten_proto::id::ContainerId;

use super::arguments::Arguments;
use super::create::{BUNDLE, CONSOLE_SOCKET, DETACH, NO_PIVOT, NO_SUBREAPER, PID_FILE};
use super::definition::{Definition, Flag, Operand};

/// What both directions take.
const BOTH: &[Flag] = &[
    Flag::directory("image-path", "where the images are (default: checkpoint)"),
    Flag::directory("work-path", "where CRIU puts its log and other files of its own"),
    Flag::switch("tcp-established", "with open TCP connections"),
    Flag::switch("ext-unix-sk", "with unix sockets whose other end is outside"),
    Flag::switch("shell-job", "with a session whose leader is outside"),
    Flag::switch("lazy-pages", "restore memory when it is needed, by userfaultfd"),
    Flag::switch("file-locks", "with file locks"),
    Flag::words(
        "manage-cgroups-mode",
        "MODE",
        &["soft", "full", "strict", "ignore"],
        "what happens to the properties of cgroups (default: soft)",
    ),
    Flag::words(
        "empty-ns",
        "NAMESPACE",
        &["network"],
        "a namespace that is made but not filled",
    ),
    Flag::switch("auto-dedup", "take pages out of older images that newer ones have"),
];

pub(super) const CHECKPOINT: Definition = Definition {
    name: "checkpoint",
    about: "save the state of a running container",
    details: "Writes the processes of a container to images, by CRIU, and ends them.",
    flags: &[
        BOTH,
        &[
            Flag::directory(
                "parent-path",
                "the images of an earlier --pre-dump, relative to --image-path",
            ),
            Flag::switch("leave-running", "do not end the processes"),
            Flag::switch(
                "tcp-skip-in-flight",
                "without TCP connections that are not established yet",
            ),
            Flag::switch("link-remap", "with files that have been removed, by linking them back"),
            Flag::text(
                "status-fd",
                "N",
                "the descriptor that gets a NUL once --lazy-pages can be served",
            ),
            Flag::text("page-server", "ADDRESS:PORT", "where memory pages are sent to"),
            Flag::switch("pre-dump", "save the memory only, and let the processes run on"),
        ],
    ],
    operands: &[Operand::ID],
    ends_options: false,
};

pub(super) const RESTORE: Definition = Definition {
    name: "restore",
    about: "make a container from the images of a checkpoint",
    details: "Makes a container of a bundle with the processes of a checkpoint, and waits for its end as run does.",
    flags: &[
        &[BUNDLE],
        BOTH,
        &[
            CONSOLE_SOCKET,
            DETACH,
            PID_FILE,
            NO_SUBREAPER,
            NO_PIVOT,
            Flag::text(
                "lsm-profile",
                "TYPE:NAME",
                "the profile of the processes, of apparmor or selinux",
            ),
            Flag::text("lsm-mount-context", "CONTEXT", "the SELinux label of the mounts"),
        ],
    ],
    operands: &[Operand::ID],
    ends_options: false,
};

/// What both directions take.
#[derive(Debug, PartialEq, Eq)]
pub struct Images {
    /// Where the images are.
    pub image_path: PathBuf,
    /// Where CRIU's own files go; with the images if nobody says.
    pub work_path: Option<PathBuf>,
    /// With open TCP connections.
    pub tcp_established: bool,
    /// With unix sockets whose other end is outside.
    pub ext_unix_sk: bool,
    /// With a session whose leader is outside.
    pub shell_job: bool,
    /// Restore memory when it is needed.
    pub lazy_pages: bool,
    /// With file locks.
    pub file_locks: bool,
    /// What happens to the properties of cgroups.
    pub manage_cgroups_mode: CgroupsMode,
    /// The network namespace is made but not filled.
    pub empty_network: bool,
    /// Take pages out of older images that newer ones have.
    pub auto_dedup: bool,
}

/// What a restore does with the cgroups of an image (criu(8), `--manage-cgroups`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupsMode {
    /// Properties of cgroups it makes itself.
    Soft,
    /// Properties of all.
    Full,
    /// As full, and none may exist.
    Strict,
    /// Nothing.
    Ignore,
}

/// `checkpoint`.
#[derive(Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which container.
    pub id: ContainerId,
    /// What both directions take.
    pub images: Images,
    /// An earlier pre-dump, relative to the images.
    pub parent_path: Option<PathBuf>,
    /// Do not end the processes.
    pub leave_running: bool,
    /// Without connections that are not established yet.
    pub tcp_skip_in_flight: bool,
    /// With files that have been removed.
    pub link_remap: bool,
    /// The descriptor that gets a NUL once pages can be served.
    pub status_fd: Option<i32>,
    /// `ADDRESS:PORT` of where memory pages are sent to.
    pub page_server: Option<String>,
    /// Save the memory only.
    pub pre_dump: bool,
}

/// `restore`.
#[derive(Debug, PartialEq, Eq)]
pub struct Restore {
    /// The new container's id.
    pub id: ContainerId,
    /// The bundle directory.
    pub bundle: PathBuf,
    /// What both directions take.
    pub images: Images,
    /// The unix socket that gets the terminal.
    pub console_socket: Option<PathBuf>,
    /// Do not wait for its end.
    pub detach: bool,
    /// Where the pid is written.
    pub pid_file: Option<PathBuf>,
    /// Whether the root is moved over `/` rather than pivoted to.
    pub no_pivot: bool,
    /// `TYPE:NAME` of the processes' profile.
    pub lsm_profile: Option<String>,
    /// The SELinux label of the mounts.
    pub lsm_mount_context: Option<String>,
}

impl Images {
    fn new(arguments: &Arguments) -> Result<Images> {
        Ok(Images {
            image_path: arguments.path("image-path").unwrap_or_else(|| "checkpoint".into()),
            work_path: arguments.path("work-path"),
            tcp_established: arguments.has("tcp-established"),
            ext_unix_sk: arguments.has("ext-unix-sk"),
            shell_job: arguments.has("shell-job"),
            lazy_pages: arguments.has("lazy-pages"),
            file_locks: arguments.has("file-locks"),
            manage_cgroups_mode: match arguments.text("manage-cgroups-mode")?.as_deref() {
                Some("full") => CgroupsMode::Full,
                Some("strict") => CgroupsMode::Strict,
                Some("ignore") => CgroupsMode::Ignore,
                _ => CgroupsMode::Soft,
            },
            empty_network: arguments.is("empty-ns", "network"),
            auto_dedup: arguments.has("auto-dedup"),
        })
    }
}

impl Checkpoint {
    pub(super) fn new(arguments: &Arguments) -> Result<Checkpoint> {
        Ok(Checkpoint {
            id: arguments.id()?,
            images: Images::new(arguments)?,
            parent_path: arguments.path("parent-path"),
            leave_running: arguments.has("leave-running"),
            tcp_skip_in_flight: arguments.has("tcp-skip-in-flight"),
            link_remap: arguments.has("link-remap"),
            status_fd: arguments.parsed("status-fd")?.filter(|&fd: &i32| fd >= 0),
            page_server: arguments.text("page-server")?,
            pre_dump: arguments.has("pre-dump"),
        })
    }
}

impl Restore {
    pub(super) fn new(arguments: &Arguments) -> Result<Restore> {
        Ok(Restore {
            id: arguments.id()?,
            bundle: arguments.path("bundle").unwrap_or_else(|| ".".into()),
            images: Images::new(arguments)?,
            console_socket: arguments.path("console-socket"),
            detach: arguments.has("detach"),
            pid_file: arguments.path("pid-file"),
            no_pivot: arguments.has("no-pivot"),
            lsm_profile: arguments.text("lsm-profile")?,
            lsm_mount_context: arguments.text("lsm-mount-context")?,
        })
    }
}
