//! System calls as they are told, without a C library in between.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use std::arch::asm;
use std::io;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Any system call; a negative result is an errno.
pub(crate) fn native(number: u64, args: [u64; 6]) -> i64 {
    let number = number.cast_signed();
    // SAFETY: the tests pass calls that touch no memory of this process, or fail before they would.
    let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4], args[5]) };
    if result == -1 {
        let errno = io::Error::last_os_error().raw_os_error();
        return -i64::from(errno.expect("the C library has just set it"));
    }
    result
}

/// The same by the numbers of 32-bit x86.
#[cfg(target_arch = "x86_64")]
pub(crate) fn i386(number: u64, args: [u64; 6]) -> i64 {
    let result: i32;
    // SAFETY: the tests pass calls that touch no memory but that of `i386_socketcall`. The kernel keeps all registers but
    // eax and, before Linux 4.17, r8 to r11; rbx cannot be named, so that it is exchanged for the time of the call.
    unsafe {
        asm!(
            "xchg {first}, rbx",
            "int 0x80",
            "xchg {first}, rbx",
            first = inout(reg) args[0] => _,
            inlateout("eax") low(number) => result,
            in("ecx") low(args[1]),
            in("edx") low(args[2]),
            in("esi") low(args[3]),
            in("edi") low(args[4]),
            lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
        );
    }
    i64::from(result)
}

/// There is no such entry.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn i386(_: u64, _: [u64; 6]) -> i64 {
    -i64::from(libc::ENOSYS)
}

/// socketcall(2): the number of the call, and where its arguments are.
pub(crate) fn i386_socketcall(call: u64, args: [u64; 6]) -> i64 {
    const SOCKETCALL: u64 = 102;
    // On the heap of a program linked at a fixed address: below 4 GiB, where 32 bits reach.
    let memory: Box<[u32; 6]> = Box::new(args.map(low));
    let address = memory.as_ptr().expose_provenance() as u64;
    assert!(
        u32::try_from(address).is_ok(),
        "{address:#x} is out of reach for 32 bits"
    );
    i386(SOCKETCALL, [call, address, 0, 0, 0, 0])
}

/// What 32 bits hold of a number.
fn low(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).expect("the rest is masked out")
}

/// Answers SIGSYS with a word and the end.
pub(crate) fn say_when_trapped() -> nix::Result<()> {
    extern "C" fn trapped(_: libc::c_int) {
        let word = b"trapped\n";
        // SAFETY: write is async-signal-safe, and the word outlives the call.
        unsafe { libc::write(1, word.as_ptr().cast(), word.len()) };
        // SAFETY: so is _exit, which takes any code.
        unsafe { libc::_exit(0) };
    }
    let action = SigAction::new(SigHandler::Handler(trapped), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler calls what is async-signal-safe alone.
    unsafe { sigaction(Signal::SIGSYS, &action) }.map(drop)
}
