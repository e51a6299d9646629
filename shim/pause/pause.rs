//! The pause program: the init of every pod's infra container.
//!
//! It holds the pod's namespaces and waits. Where the pod shares one pid namespace it is that namespace's pid 1, and
//! therefore also reaps every orphan of the pod. SIGTERM and SIGINT end it with exit code 0.
//!
//! Invariant: all signals are blocked before the first wait, so that none is lost. A blocked signal is queued even for
//! a pid 1, whose unblocked signals of default disposition the kernel discards (`sig_ignored` in kernel/signal.c).
//!
//! There is no libc and no heap: the process costs its text page, its stack page and what the kernel needs. All code
//! that is unsafe is the three instructions at the end of the file; `build.rs` compiles this file alone.
#![no_std]
#![no_main]

/// The numbers of the four system calls, and the instructions that make them.
#[cfg(target_arch = "x86_64")]
mod arch {
    pub const RT_SIGPROCMASK: usize = 14;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const WAIT4: usize = 61;
    pub const EXIT_GROUP: usize = 231;

    // The psABI leaves the frame pointer unspecified at the entry and aligns the stack to 16 bytes, as `call` wants.
    core::arch::global_asm!(".globl _start", "_start:", "xor ebp, ebp", "call {main}", "ud2", main = sym super::main);

    /// One system call.
    ///
    /// # Safety
    /// Pointers among the arguments are valid for what the call reads and writes through them.
    pub unsafe fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
        let result: isize;
        // SAFETY: `syscall` clobbers rcx and r11 only, both declared; memory is touched as the caller vouches for.
        unsafe {
            core::arch::asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b,
                in("rdx") c, in("r10") d, lateout("rcx") _, lateout("r11") _, options(nostack));
        }
        result
    }
}

/// The numbers of the four system calls, and the instructions that make them.
#[cfg(target_arch = "aarch64")]
mod arch {
    pub const RT_SIGPROCMASK: usize = 135;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const WAIT4: usize = 260;
    pub const EXIT_GROUP: usize = 94;

    // The frame and link registers end the call chain; the kernel aligns the stack to 16 bytes.
    core::arch::global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x30, xzr", "b {main}", main = sym super::main);

    /// One system call.
    ///
    /// # Safety
    /// Pointers among the arguments are valid for what the call reads and writes through them.
    pub unsafe fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
        let result: isize;
        // SAFETY: `svc` preserves every register but x0, which is declared; memory is touched as the caller vouches for.
        unsafe {
            core::arch::asm!("svc #0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c,
                in("x3") d, options(nostack));
        }
        result
    }
}

const SIGINT: isize = 2;
const SIGTERM: isize = 15;
const SIG_SETMASK: usize = 2;
const WNOHANG: usize = 1;

/// The kernel's signal set: one bit a signal. Its size is an argument of the calls that take one.
type SignalSet = u64;
const SIGNAL_SET_BYTES: usize = size_of::<SignalSet>();

extern "C" fn main() -> ! {
    let all: SignalSet = !0;
    let set = &raw const all as usize;
    // SAFETY: the kernel reads one signal set through the pointer to `all`, which outlives the call.
    unsafe { arch::syscall(arch::RT_SIGPROCMASK, SIG_SETMASK, set, 0, SIGNAL_SET_BYTES) };
    loop {
        // SAFETY: as above; no information and no timeout are asked for, hence the null pointers.
        let signal = unsafe { arch::syscall(arch::RT_SIGTIMEDWAIT, set, 0, 0, SIGNAL_SET_BYTES) };
        if signal == SIGTERM || signal == SIGINT {
            exit();
        }
        // Whatever else arrived, it may have hidden a SIGCHLD: children are reaped until none is left to reap.
        reap();
    }
}

fn reap() {
    // SAFETY: neither a status nor usage is asked for, so the kernel writes nothing.
    while unsafe { arch::syscall(arch::WAIT4, usize::MAX, 0, WNOHANG, 0) } > 0 {}
}

fn exit() -> ! {
    // SAFETY: the call takes no pointer.
    unsafe { arch::syscall(arch::EXIT_GROUP, 0, 0, 0, 0) };
    // `exit_group` does not return.
    loop {}
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    exit()
}
