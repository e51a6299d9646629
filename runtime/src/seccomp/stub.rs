//! The instructions before a compiled profile: system calls newer than the profile are answered with ENOSYS. Pure.
//!
//! A profile lists what it knows and mostly answers EPERM to the rest. A C library that tries a new system call falls back
//! on an older one after ENOSYS only, so that EPERM would break programs whenever their libc is newer than the profile.
//! What is newer: every number beyond the highest one the profile names, per architecture, as runc has it since 1.0-rc93.
//!
//! ```text
//!   A = arch
//!   per architecture:  A != this one: on to the next one
//!                      A = nr
//!                      x86-64: nr with the bit of x32 is compared with x32's highest, if that is filtered
//!                      nr > highest: return ENOSYS
//!                      jump to the profile
//! ```

use libc::sock_filter;

/// `AUDIT_ARCH_X86_64`, linux/audit.h: of two system call tables.
const X86_64: u32 = 0xc000_003e;

/// The bit that tells x32's numbers, asm/unistd.h.
pub(super) const X32_BIT: u32 = 0x4000_0000;

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Where `struct seccomp_data` has the number and the architecture.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

const RETURN_ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;

/// The highest system call a profile names for one architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Highest {
    /// As the kernel tells it to a filter, `AUDIT_ARCH_*`: x32 is x86-64.
    pub(super) architecture: u32,
    /// Its number, with the bit of x32 where it is of that table.
    pub(super) number: u32,
}

/// The program that `profile` continues.
pub(super) fn stub(highest: &[Highest]) -> Vec<sock_filter> {
    let mut architectures: Vec<u32> = highest.iter().map(|one| one.architecture).collect();
    architectures.sort_unstable();
    architectures.dedup();
    let mut program = vec![instruction(LOAD, 0, 0, ARCHITECTURE)];
    for architecture in architectures {
        let block = block(architecture, highest);
        program.push(instruction(JUMP_EQUAL, 0, short(block.len()), architecture));
        program.extend(block);
    }
    let end = program.len();
    for (index, one) in program.iter_mut().enumerate() {
        if one.code == JUMP {
            one.k = u32::try_from(end - index - 1).expect("there are few architectures");
        }
    }
    program
}

/// Everything for one architecture; its jumps to the profile do not know their distance yet.
fn block(architecture: u32, highest: &[Highest]) -> Vec<sock_filter> {
    let of_table = |x32: bool| {
        let mine = highest.iter().filter(|one| one.architecture == architecture);
        let numbers = mine.map(|one| one.number);
        numbers
            .filter(|number| !has_tables(architecture) || (number & X32_BIT != 0) == x32)
            .max()
    };
    let mut block = vec![instruction(LOAD, 0, 0, NUMBER)];
    if has_tables(architecture) {
        let x32 = limit(of_table(true));
        block.push(instruction(JUMP_GREATER_EQUAL, 0, short(x32.len()), X32_BIT));
        block.extend(x32);
    }
    block.extend(limit(of_table(false)));
    block
}

/// ENOSYS beyond `highest`, else on to the profile.
fn limit(highest: Option<u32>) -> Vec<sock_filter> {
    let to_profile = instruction(JUMP, 0, 0, 0);
    let Some(highest) = highest else {
        return vec![to_profile];
    };
    let beyond = instruction(JUMP_GREATER, 0, 1, highest);
    vec![beyond, instruction(RETURN, 0, 0, RETURN_ENOSYS), to_profile]
}

fn has_tables(architecture: u32) -> bool {
    architecture == X86_64
}

fn instruction(code: u16, if_true: u8, if_false: u8, k: u32) -> sock_filter {
    sock_filter {
        code,
        jt: if_true,
        jf: if_false,
        k,
    }
}

fn short(distance: usize) -> u8 {
    u8::try_from(distance).expect("a block is a few instructions")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What the kernel would make of a call: classic BPF, as far as filters of seccomp use it.
    pub(in super::super) fn run(program: &[sock_filter], architecture: u32, number: u32, args: [u64; 6]) -> u32 {
        let mut data = [0u32; 16];
        (data[0], data[1]) = (number, architecture);
        for (index, argument) in args.into_iter().enumerate() {
            data[4 + 2 * index] = u32::try_from(argument & u64::from(u32::MAX)).unwrap();
            data[5 + 2 * index] = u32::try_from(argument >> 32).unwrap();
        }
        let (mut accumulator, mut next) = (0u32, 0usize);
        loop {
            let one = program[next];
            next += 1;
            let branch = |taken: bool| usize::from(if taken { one.jt } else { one.jf });
            match one.code {
                LOAD => accumulator = data[one.k as usize / 4],
                0x54 => accumulator &= one.k,
                JUMP => next += one.k as usize,
                JUMP_EQUAL => next += branch(accumulator == one.k),
                JUMP_GREATER => next += branch(accumulator > one.k),
                JUMP_GREATER_EQUAL => next += branch(accumulator >= one.k),
                0x45 => next += branch(accumulator & one.k != 0),
                RETURN => return one.k,
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn numbers_beyond_the_profile() {
        const I386: u32 = 0x4000_0003;
        let at = |architecture, number| Highest { architecture, number };
        let both = [at(X86_64, 400), at(X86_64, X32_BIT | 300), at(I386, 200)];
        let native = [at(X86_64, 400)];
        for (highest, architecture, number, enosys) in [
            (&both[..], X86_64, 400, false),
            (&both, X86_64, 401, true),
            (&both, X86_64, X32_BIT - 1, true),
            (&both, X86_64, X32_BIT | 300, false),
            (&both, X86_64, X32_BIT | 301, true),
            (&both, X86_64, u32::MAX, true),
            (&both, I386, 200, false),
            (&both, I386, 201, true),
            (&both, 7, 9999, false),
            // What is not filtered is the profile's to judge.
            (&native, X86_64, X32_BIT | 301, false),
            (&native, X86_64, 401, true),
            (&native, I386, 9999, false),
            (&[], X86_64, 9999, false),
        ] {
            let mut program = stub(highest);
            program.push(instruction(RETURN, 0, 0, 1));
            let expected = if enosys { RETURN_ENOSYS } else { 1 };
            let result = run(&program, architecture, number, [0; 6]);
            assert_eq!(result, expected, "{highest:?} {architecture:#x} {number:#x}");
        }
    }
}
