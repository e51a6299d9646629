//! `bpf(2)`: loading a program for a cgroup's devices and attaching it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One instruction, `struct bpf_insn` of linux/bpf.h. Operations on 32 bits clear the upper half of their register.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation and class.
    pub code: u8,
    /// Destination and source, four bits each; a C bit field, so that their order follows the machine's.
    registers: u8,
    /// How far to jump from the next instruction, or where to load from.
    pub offset: i16,
    /// The constant.
    pub immediate: i32,
}

// Classes and operations, linux/bpf_common.h and linux/bpf.h.
const LDX_MEM_W: u8 = 0x61;
const ALU32_MOV_X: u8 = 0xbc;
const ALU32_MOV_K: u8 = 0xb4;
const ALU32_AND_K: u8 = 0x54;
const ALU32_RSH_K: u8 = 0x74;
const JMP32_JNE_K: u8 = 0x56;
const JMP32_JEQ_K: u8 = 0x16;
const JMP32_JNE_X: u8 = 0x5e;
const EXIT: u8 = 0x95;

impl Instruction {
    const fn new(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
        let registers = if cfg!(target_endian = "little") {
            to | from << 4
        } else {
            to << 4 | from
        };
        Instruction {
            code,
            registers,
            offset,
            immediate,
        }
    }

    /// `to = *(u32 *)(from + offset)`
    pub const fn load32(to: u8, from: u8, offset: i16) -> Instruction {
        Instruction::new(LDX_MEM_W, to, from, offset, 0)
    }

    /// `to = from`
    pub const fn copy32(to: u8, from: u8) -> Instruction {
        Instruction::new(ALU32_MOV_X, to, from, 0, 0)
    }

    /// `to = value`
    pub const fn set32(to: u8, value: i32) -> Instruction {
        Instruction::new(ALU32_MOV_K, to, 0, 0, value)
    }

    /// `to &= mask`
    pub const fn and32(to: u8, mask: i32) -> Instruction {
        Instruction::new(ALU32_AND_K, to, 0, 0, mask)
    }

    /// `to >>= bits`
    pub const fn shift_right32(to: u8, bits: i32) -> Instruction {
        Instruction::new(ALU32_RSH_K, to, 0, 0, bits)
    }

    /// Jumps unless `register == value`; see [`Instruction::skipping`]. The 32-bit jumps are of Linux 5.1.
    pub const fn skip_unless_equal(register: u8, value: i32) -> Instruction {
        Instruction::new(JMP32_JNE_K, register, 0, 0, value)
    }

    /// Jumps if `register == value`.
    pub const fn skip_if_equal(register: u8, value: i32) -> Instruction {
        Instruction::new(JMP32_JEQ_K, register, 0, 0, value)
    }

    /// Jumps unless the registers are the same.
    pub const fn skip_unless_same(a: u8, b: u8) -> Instruction {
        Instruction::new(JMP32_JNE_X, a, b, 0, 0)
    }

    /// Ends the program; its answer is in register 0.
    pub const fn exit() -> Instruction {
        Instruction::new(EXIT, 0, 0, 0, 0)
    }

    /// A jump with its distance, in instructions after it; any other instruction as it is.
    pub fn skipping(mut self, distance: usize) -> Instruction {
        if matches!(self.code, JMP32_JNE_K | JMP32_JEQ_K | JMP32_JNE_X) {
            self.offset = i16::try_from(distance).expect("a program's blocks are short");
        }
        self
    }

    /// Destination and source.
    pub fn registers(self) -> (usize, usize) {
        let (low, high) = (usize::from(self.registers & 15), usize::from(self.registers >> 4));
        if cfg!(target_endian = "little") {
            (low, high)
        } else {
            (high, low)
        }
    }
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// A program further down does not replace this one: all of them must agree to an access.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The size we give every `union bpf_attr`: more than any kernel's, because since Linux 6.17 some commands write past a
/// shorter one. Older kernels demand only that what they do not know is zero.
const ATTR_SIZE: usize = 256;

/// `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C, align(8))]
struct LoadAttr {
    prog_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    rest: [u8; ATTR_SIZE - 24],
}

/// `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C, align(8))]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    rest: [u8; ATTR_SIZE - 16],
}

const _: () = assert!(size_of::<LoadAttr>() == ATTR_SIZE && size_of::<AttachAttr>() == ATTR_SIZE);

/// Loads a program of type BPF_PROG_TYPE_CGROUP_DEVICE. Linux 4.15; the kernel's verifier refuses a bad one with EINVAL
/// or EACCES.
pub fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr().expose_provenance() as u64,
        // The kernel wants a licence to decide which helpers may be called. We call none.
        license: c"Apache-2.0".as_ptr().expose_provenance() as u64,
        rest: [0; ATTR_SIZE - 24],
    };
    // SAFETY: `attr` is a whole attr for this command, larger than the kernel's; the program and the licence it points
    // to outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw mut attr, ATTR_SIZE) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).expect("a descriptor is an int");
    // SAFETY: on success the call has made this descriptor (close-on-exec, as all of bpf's) and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a device program to a v2 cgroup; it stays until the cgroup goes.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = AttachAttr {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_bpf_fd: program.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
        rest: [0; ATTR_SIZE - 16],
    };
    // SAFETY: `attr` is a whole attr for this command, larger than the kernel's, and holds no pointer.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw mut attr, ATTR_SIZE) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
