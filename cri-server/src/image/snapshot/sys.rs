//! The system calls of project quotas: `quotactl_fd` and the attributes of a directory.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::ioctl::{Getter, Setter, ioctl, opcode};

/// `PRJQUOTA`: quotas by project (include/uapi/linux/quota.h).
const PROJECT: libc::c_int = 2;
/// `Q_XGETQSTATV` (include/uapi/linux/dqblk_xfs.h).
const GET_STATE: libc::c_int = 0x5808;
/// Q_SETQUOTA's unit of a limit, in bytes (`QIF_DQBLKSIZE`).
const LIMIT_UNIT: u64 = 1024;

/// What a directory's files inherit: `struct fsxattr` (include/uapi/linux/fs.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attributes {
    pub(super) flags: u32,
    extent_size: u32,
    extents: u32,
    /// The project that pays for the file.
    pub(super) project: u32,
    copy_extent_size: u32,
    padding: [u8; 8],
}

/// New files in the directory belong to its project (`FS_XFLAG_PROJINHERIT`).
pub(super) const PROJECT_INHERITED: u32 = 0x200;

/// Reads a file's attributes. ENOTTY where the filesystem has none.
pub(super) fn attributes(file: BorrowedFd<'_>) -> io::Result<Attributes> {
    // SAFETY: FS_IOC_FSGETXATTR writes one struct fsxattr, which `Attributes` is, field by field.
    let get = unsafe { Getter::<{ opcode::read::<Attributes>(b'X', 31) }, Attributes>::new() };
    // SAFETY: the descriptor is open, and the ioctl does nothing but fill in the value above.
    let read = unsafe { ioctl(file, get) };
    Ok(read?)
}

/// Writes a file's attributes.
pub(super) fn set_attributes(file: BorrowedFd<'_>, attributes: Attributes) -> io::Result<()> {
    // SAFETY: FS_IOC_FSSETXATTR reads one struct fsxattr, which `Attributes` is, field by field.
    let set = unsafe { Setter::<{ opcode::write::<Attributes>(b'X', 32) }, Attributes>::new(attributes) };
    // SAFETY: the descriptor is open, and the ioctl only reads the value above.
    let written = unsafe { ioctl(file, set) };
    Ok(written?)
}

/// `struct fs_qfilestatv` (include/uapi/linux/dqblk_xfs.h).
#[repr(C)]
#[derive(Default)]
struct QuotaFile {
    inode: u64,
    blocks: u64,
    extents: u32,
    padding: u32,
}

/// `struct fs_quota_statv` (include/uapi/linux/dqblk_xfs.h).
#[repr(C)]
#[derive(Default)]
struct QuotaState {
    version: i8,
    padding_1: u8,
    flags: u16,
    in_core: u32,
    files: [QuotaFile; 3],
    time_limits: [i32; 3],
    warning_limits: [u16; 3],
    padding_3: u16,
    padding_4: u32,
    padding_2: [u64; 7],
}

/// What a filesystem does about projects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProjectQuotas {
    /// It counts what each uses (`FS_QUOTA_PDQ_ACCT`).
    pub(super) counted: bool,
    /// It refuses what goes beyond a limit (`FS_QUOTA_PDQ_ENFD`).
    pub(super) enforced: bool,
}

/// Asks the filesystem that holds `file`. An error means that it has no quotas at all, or the kernel lacks the call
/// (Linux 5.14).
pub(super) fn project_quotas(file: BorrowedFd<'_>) -> io::Result<ProjectQuotas> {
    let mut state = QuotaState {
        version: 1,
        ..QuotaState::default()
    };
    quotactl(file, GET_STATE, 0, &mut state)?;
    Ok(ProjectQuotas {
        counted: state.flags & (1 << 4) != 0,
        enforced: state.flags & (1 << 5) != 0,
    })
}

/// What a project uses, bytes and inodes.
pub(super) fn project_usage(file: BorrowedFd<'_>, project: u32) -> io::Result<(u64, u64)> {
    let mut quota = no_quota();
    quotactl(file, libc::Q_GETQUOTA, project, &mut quota)?;
    Ok((quota.dqb_curspace, quota.dqb_curinodes))
}

/// Limits the bytes and the inodes of a project; 0 lifts a limit.
pub(super) fn limit_project(file: BorrowedFd<'_>, project: u32, bytes: u64, inodes: u64) -> io::Result<()> {
    let mut quota = libc::dqblk {
        dqb_bhardlimit: bytes.div_ceil(LIMIT_UNIT),
        dqb_ihardlimit: inodes,
        dqb_valid: libc::QIF_LIMITS,
        ..no_quota()
    };
    quotactl(file, libc::Q_SETQUOTA, project, &mut quota)
}

fn no_quota() -> libc::dqblk {
    libc::dqblk {
        dqb_bhardlimit: 0,
        dqb_bsoftlimit: 0,
        dqb_curspace: 0,
        dqb_ihardlimit: 0,
        dqb_isoftlimit: 0,
        dqb_curinodes: 0,
        dqb_btime: 0,
        dqb_itime: 0,
        dqb_valid: 0,
    }
}

/// `quotactl_fd` (Linux 5.14) for projects. `data` is the structure that `command` takes.
fn quotactl<T>(file: BorrowedFd<'_>, command: libc::c_int, project: u32, data: &mut T) -> io::Result<()> {
    // QCMD of include/uapi/linux/quota.h.
    let command = command << 8 | PROJECT;
    // SAFETY: the callers above pair each command with its own structure, which is valid for reads and writes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            file.as_fd().as_raw_fd(),
            command,
            project,
            std::ptr::from_mut(data),
        )
    };
    if result == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}
