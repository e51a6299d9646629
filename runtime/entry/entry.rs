//! Where `corten` begins, before libc does: a command that puts a process of ours into a container is executed again at
//! once, from an overlay that nobody can write to. `src/sealed.rs` says why, and does what is not done here.
//!
//! ```text
//!   kernel --> corten_entry --> create, run, exec? --> overlay of the program's directory --> execveat: begins anew
//!                                      | no, or it is sealed, or that failed
//!                                      '--> _start: libc, main, where a copy is made if it must
//! ```
//! Here, because the start of libc and of Rust's runtime would be thrown away at once, and is most of what a second start
//! costs: 0.4 of 0.5 ms in a virtual machine, where libc's questions to the processor each leave the machine.
//!
//! There is no libc yet: no thread-local storage, no allocation, and no function that libc chooses when it starts
//! (`memcpy`). `build.rs` compiles this file alone; `no_builtins` keeps the compiler from making such calls of loops.
//! Whatever fails here is no error: the program then starts as any other.
#![no_std]
#![no_builtins]

/// The numbers of the system calls, and the instructions that make them.
#[cfg(target_arch = "x86_64")]
mod arch {
    pub const CLOSE: usize = 3;
    pub const EXECVEAT: usize = 322;
    pub const FCNTL: usize = 72;
    pub const OPENAT: usize = 257;
    pub const READLINKAT: usize = 267;
    pub const STATX: usize = 332;

    pub const O_DIRECTORY: usize = 0o200_000;
    pub const O_NOFOLLOW: usize = 0o400_000;

    // rdx holds a function for libc; the stack is aligned to 16 bytes, and must be at the call.
    core::arch::global_asm!(
        ".globl corten_entry", "corten_entry:", "mov rdi, rsp", "push rdx", "push rdx", "call {begin}", "pop rdx", "pop rdx",
        "xor ebp, ebp", "jmp _start", begin = sym super::begin
    );

    /// One system call.
    ///
    /// # Safety
    /// Pointers among the arguments are valid for what the call reads and writes through them.
    pub unsafe fn syscall(number: usize, [a, b, c, d, e]: [usize; 5]) -> isize {
        let result: isize;
        // SAFETY: `syscall` clobbers rcx and r11 only, both declared; memory is touched as the caller vouches for.
        unsafe {
            core::arch::asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b,
                in("rdx") c, in("r10") d, in("r8") e, lateout("rcx") _, lateout("r11") _, options(nostack));
        }
        result
    }
}

/// The numbers of the system calls, and the instructions that make them.
#[cfg(target_arch = "aarch64")]
mod arch {
    pub const CLOSE: usize = 57;
    pub const EXECVEAT: usize = 281;
    pub const FCNTL: usize = 25;
    pub const OPENAT: usize = 56;
    pub const READLINKAT: usize = 78;
    pub const STATX: usize = 291;

    pub const O_DIRECTORY: usize = 0o40_000;
    pub const O_NOFOLLOW: usize = 0o100_000;

    // x0 holds a function for libc.
    core::arch::global_asm!(
        ".globl corten_entry", "corten_entry:", "stp x0, xzr, [sp, #-16]!", "add x0, sp, #16", "bl {begin}",
        "ldp x0, xzr, [sp], #16", "mov x29, xzr", "mov x30, xzr", "b _start", begin = sym super::begin
    );

    /// One system call.
    ///
    /// # Safety
    /// Pointers among the arguments are valid for what the call reads and writes through them.
    pub unsafe fn syscall(number: usize, [a, b, c, d, e]: [usize; 5]) -> isize {
        let result: isize;
        // SAFETY: `svc` preserves every register but x0, which is declared; memory is touched as the caller vouches for.
        unsafe {
            core::arch::asm!("svc #0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c,
                in("x3") d, in("x4") e, options(nostack));
        }
        result
    }
}

// The newer calls have the same numbers everywhere.
const FSOPEN: usize = 430;
const FSCONFIG: usize = 431;
const FSMOUNT: usize = 432;

const AT_FDCWD: usize = -100_isize as usize;
const AT_EMPTY_PATH: usize = 0x1000;
const O_CLOEXEC: usize = 0o2_000_000;
const O_PATH: usize = 0o10_000_000;
const F_GET_SEALS: usize = 1034;
/// F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_WRITE.
const ALL_SEALS: usize = 0xf;
const FSCONFIG_SET_STRING: usize = 1;
const FSCONFIG_CMD_CREATE: usize = 6;
const MOUNT_ATTR_RDONLY: usize = 1;
const MOUNT_ATTR_NODEV: usize = 4;
/// FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC.
const CLOEXEC: usize = 1;
const STATX_BASIC_STATS: usize = 0x7ff;
/// STATX_MNT_ID (Linux 5.8) and STATX_MNT_ID_UNIQUE (6.8), whichever there is.
const STATX_ANY_MNT_ID: usize = 0x1000 | 0x4000;

/// The commands that put a process of ours into a container.
const COMMANDS: [&[u8]; 3] = [b"create", b"exec", b"run"];

/// What the next start knows the overlay's mount by: `src/sealed.rs` checks it.
const MOUNT: &[u8] = b"_CORTEN_SEALED_MOUNT=";

/// The administrator wants a copy, which this is not the place for.
const COPY: &[u8] = b"CORTEN_SEAL=copy";

/// An overlay without an upper layer needs two others. This one is there on every machine, on a filesystem of its own,
/// and has no program that could be taken for ours.
const SECOND_LAYER: &[u8] = b"/sys\0";

/// A null-terminated array of C strings.
type Strings = *mut *const u8;

/// Called with the stack as the kernel made it: a count, that many arguments, null, the environment, null, and the
/// auxiliary vector, of pairs of words.
///
/// # Safety
/// By `corten_entry` alone, first of all, with the stack pointer.
unsafe extern "C" fn begin(stack: *mut usize) {
    // SAFETY: the count is the first word.
    let count = unsafe { *stack };
    // SAFETY: the arguments follow it.
    let arguments: Strings = unsafe { stack.add(1) }.cast();
    // SAFETY: the environment follows the null after them.
    let environment: Strings = unsafe { stack.add(count + 2) }.cast();
    let named = |text: *const u8| COMMANDS.iter().any(|command| begins(text, command) == Some(Rest::Nothing));
    // SAFETY: a null-terminated array of C strings, as the kernel made it.
    let is_command = unsafe { find(arguments, |argument| named(argument)) }.1;
    let settled = |variable| {
        begins(variable, MOUNT).is_some() || begins(variable, COPY) == Some(Rest::Nothing)
    };
    // SAFETY: as above.
    let (variables, is_settled) = unsafe { find(environment, |variable| settled(variable)) };
    if is_command && !is_settled {
        let _failure_is_no_error = seal(arguments, environment, variables);
    }
}

/// The number of strings before the one sought, or of all, and whether there is one.
///
/// # Safety
/// `strings` is a null-terminated array of C strings.
unsafe fn find(strings: Strings, sought: impl Fn(*const u8) -> bool) -> (usize, bool) {
    let mut number = 0;
    loop {
        // SAFETY: the null that ends the array has not been passed.
        let text = unsafe { *strings.add(number) };
        if text.is_null() {
            return (number, false);
        }
        if sought(text) {
            return (number, true);
        }
        number += 1;
    }
}

/// What follows the beginning of a text.
#[derive(PartialEq)]
enum Rest {
    Nothing,
    Something,
}

/// What follows `prefix` in the C string; `None` where it does not begin with it.
fn begins(mut text: *const u8, prefix: &[u8]) -> Option<Rest> {
    for byte in prefix {
        // SAFETY: a byte of a C string, whose end compares unequal to every byte of a prefix.
        if unsafe { *text } != *byte {
            return None;
        }
        // SAFETY: at most the null behind the last byte, which was none.
        text = unsafe { text.add(1) };
    }
    // SAFETY: as above.
    let end = unsafe { *text } == 0;
    Some(if end { Rest::Nothing } else { Rest::Something })
}

/// Executes this program from an overlay; returns where that fails.
fn seal(arguments: Strings, environment: Strings, variables: usize) -> Option<()> {
    let own = open(AT_FDCWD, b"/proc/self/exe\0".as_ptr(), 0)?;
    // A memory file that is sealed. Files of a tmpfs have seals too, but not all of them.
    // SAFETY: the call takes no pointer.
    let seals = check(unsafe { arch::syscall(arch::FCNTL, [own.0, F_GET_SEALS, 0, 0, 0]) });
    if seals.is_some_and(|seals| seals & ALL_SEALS == ALL_SEALS) {
        return None;
    }
    let sealed = on_overlay(&own)?;
    let mut marker = Text::new();
    marker.push(MOUNT);
    marker.push_number(statx(&sealed, STATX_ANY_MNT_ID)?.mount);
    // The first pair of the auxiliary vector makes room for one more variable; the new program gets its own.
    let slots = [variables, variables + 1];
    // SAFETY: the null that ends the environment, and the first word of the vector behind it.
    let saved = slots.map(|slot| unsafe { *environment.add(slot) });
    for (slot, text) in slots.into_iter().zip([marker.pointer(), core::ptr::null()]) {
        // SAFETY: as above.
        unsafe { *environment.add(slot) = text };
    }
    let (argv, envp, empty) = (arguments as usize, environment as usize, c"".as_ptr() as usize);
    // SAFETY: a descriptor, an empty C string, and two null-terminated arrays of C strings.
    unsafe { arch::syscall(arch::EXECVEAT, [sealed.0, empty, argv, envp, AT_EMPTY_PATH]) };
    for (slot, text) in slots.into_iter().zip(saved) {
        // SAFETY: what was there before.
        unsafe { *environment.add(slot) = text };
    }
    None
}

/// The same file as `own`, in a read-only overlay of its directory that is mounted nowhere, and is gone with the last
/// process that runs from it.
fn on_overlay(own: &Descriptor) -> Option<Descriptor> {
    let mut path = Text::new();
    path.read_own()?;
    let slash = path.last_slash()?;
    let directory = if slash == 0 {
        open(AT_FDCWD, b"/\0".as_ptr(), O_PATH | arch::O_DIRECTORY)?
    } else {
        path.end_at(slash);
        open(AT_FDCWD, path.pointer(), O_PATH | arch::O_DIRECTORY)?
    };
    // After the path has been changed for the last time.
    // SAFETY: `slash` is an index of the path, behind which there is at least the null.
    let name = unsafe { path.pointer().add(slash + 1) };
    let second = open(AT_FDCWD, SECOND_LAYER.as_ptr(), O_PATH | arch::O_DIRECTORY)?;
    let mut layers = Text::new();
    layers.push(b"/proc/self/fd/");
    layers.push_number(directory.0 as u64);
    layers.push(b":/proc/self/fd/");
    layers.push_number(second.0 as u64);
    let overlay = b"overlay\0".as_ptr() as usize;
    // SAFETY: a C string.
    let context = Descriptor::new(unsafe { arch::syscall(FSOPEN, [overlay, CLOEXEC, 0, 0, 0]) })?;
    // Without xino the files keep their inode numbers, by which ours is recognised below; on some hosts it is the default.
    for (key, value) in [(&b"lowerdir\0"[..], layers.pointer()), (b"xino\0", b"off\0".as_ptr())] {
        let (key, value) = (key.as_ptr() as usize, value as usize);
        // SAFETY: two C strings.
        check(unsafe { arch::syscall(FSCONFIG, [context.0, FSCONFIG_SET_STRING, key, value, 0]) })?;
    }
    // SAFETY: this command takes neither key nor value.
    check(unsafe { arch::syscall(FSCONFIG, [context.0, FSCONFIG_CMD_CREATE, 0, 0, 0]) })?;
    let attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV;
    // SAFETY: the call takes no pointer.
    let mount = Descriptor::new(unsafe { arch::syscall(FSMOUNT, [context.0, CLOEXEC, attributes, 0, 0]) })?;
    let sealed = open(mount.0, name, arch::O_NOFOLLOW)?;
    // The name may be another file's by now, as when the runtime is upgraded.
    let same = statx(own, STATX_BASIC_STATS)?.file == statx(&sealed, STATX_BASIC_STATS)?.file;
    same.then_some(sealed)
}

/// An open descriptor, closed with this value.
struct Descriptor(usize);

impl Descriptor {
    fn new(result: isize) -> Option<Descriptor> {
        check(result).map(Descriptor)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: the call takes no pointer; the descriptor is this value's alone.
        unsafe { arch::syscall(arch::CLOSE, [self.0, 0, 0, 0, 0]) };
    }
}

fn check(result: isize) -> Option<usize> {
    usize::try_from(result).ok()
}

/// `path` is a C string.
fn open(directory: usize, path: *const u8, flags: usize) -> Option<Descriptor> {
    // SAFETY: a C string.
    Descriptor::new(unsafe { arch::syscall(arch::OPENAT, [directory, path as usize, flags | O_CLOEXEC, 0, 0]) })
}

/// What statx(2) says, as words of eight bytes.
struct Stat {
    /// Inode number, size, time of the last change: together they name the file, the device aside, which an overlay has
    /// one of its own of.
    file: (u64, u64, u64, u64),
    mount: u64,
}

fn statx(file: &Descriptor, wanted: usize) -> Option<Stat> {
    let mut words = core::mem::MaybeUninit::<[u64; 32]>::uninit();
    let (empty, buffer) = (c"".as_ptr() as usize, words.as_mut_ptr() as usize);
    // SAFETY: an empty C string, and room for a struct statx, of 256 bytes.
    check(unsafe { arch::syscall(arch::STATX, [file.0, empty, AT_EMPTY_PATH, wanted, buffer]) })?;
    // SAFETY: the kernel has written all of it.
    let words = unsafe { words.assume_init_ref() };
    let [_, _, _, _, inode, size, _, _, _, _, _, _, seconds, nanoseconds, _, _, _, _, mount, ..] = words;
    Some(Stat {
        file: (*inode, *size, *seconds, *nanoseconds),
        mount: *mount,
    })
}

/// Room for a C string, the null included.
const CAPACITY: usize = 1024;

/// A C string that is being written.
struct Text {
    bytes: [core::mem::MaybeUninit<u8>; CAPACITY],
    length: usize,
}

impl Text {
    fn new() -> Text {
        Text {
            bytes: [const { core::mem::MaybeUninit::uninit() }; CAPACITY],
            length: 0,
        }
    }

    /// The C string; whoever writes to it ends it with a null.
    fn pointer(&self) -> *const u8 {
        self.bytes.as_ptr().cast()
    }

    fn push(&mut self, text: &[u8]) {
        for byte in text {
            self.write(*byte);
        }
        self.end_at(self.length);
    }

    /// In decimal digits.
    fn push_number(&mut self, number: u64) {
        if number >= 10 {
            self.push_number(number / 10);
        }
        self.write(b'0' + (number % 10) as u8);
        self.end_at(self.length);
    }

    fn write(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.length) {
            place.write(byte);
            self.length += 1;
        }
    }

    fn end_at(&mut self, length: usize) {
        if let Some(place) = self.bytes.get_mut(length) {
            place.write(0);
        }
    }

    /// Reads the path of the program that runs; nothing where it is as long as the room.
    fn read_own(&mut self) -> Option<()> {
        let (link, room) = (b"/proc/self/exe\0".as_ptr() as usize, self.bytes.as_mut_ptr() as usize);
        // SAFETY: a C string, and room of this size.
        let result = unsafe { arch::syscall(arch::READLINKAT, [AT_FDCWD, link, room, CAPACITY, 0]) };
        self.length = check(result).filter(|length| *length < CAPACITY)?;
        self.end_at(self.length);
        Some(())
    }

    fn last_slash(&self) -> Option<usize> {
        let written = self.bytes.iter().take(self.length);
        // SAFETY: the first `length` bytes have been written.
        written.rev().position(|byte| unsafe { byte.assume_init() } == b'/').map(|behind| self.length - 1 - behind)
    }
}
