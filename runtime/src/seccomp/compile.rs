//! A profile as a BPF program, by libseccomp.
//!
//! As runc does it, because profiles were written against it: a rule with the default action is left out, names that
//! libseccomp does not know are passed over (the call is then the default action's, or the stub's), and a rule that
//! compares one argument twice becomes one rule per comparison. The result does not depend on the kernel.
//!
//! The kernel cannot look behind a pointer, so that for 32-bit x86 libseccomp lets `socketcall` make every socket once
//! a rule allows some by `socket`; a profile that means to keep families away denies `socketcall` itself.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use libc::sock_filter;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompOperator as Operator, LinuxSyscall,
};
use rustix::fs::MemfdFlags;

use super::{MAX_ARGUMENTS, rules, stub};
use crate::sys::seccomp::MAX_INSTRUCTIONS;

/// What libseccomp may take for granted of the kernel, seccomp_api_set(3): all that Linux 5.7 has. Without it the library
/// asks the kernel.
const API_LEVEL: u32 = 6;

/// More system calls than this are looked up in a tree.
const LONG_PROFILE: usize = 32;

/// What an architecture may be.
const UNKNOWN: &str = "is not known to the libseccomp in this runtime";

/// Compiles a profile that has been checked.
pub(super) fn compile(profile: &LinuxSeccomp) -> Result<Vec<sock_filter>> {
    libseccomp::set_api(API_LEVEL).context("seccomp_api_set")?;
    let default = action(profile.default_action(), profile.default_errno_ret());
    let mut filter = ScmpFilterContext::new(default).with_context(|| format!("seccomp_init({default:?})"))?;
    let mut architectures = vec![ScmpArch::native()];
    for (index, arch) in profile.architectures().iter().flatten().enumerate() {
        let at = || format!("architectures[{index}]: {arch}");
        let arch = architecture(*arch).with_context(at)?;
        filter.add_arch(arch).context(UNKNOWN).with_context(at)?;
        if !architectures.contains(&arch) {
            architectures.push(arch);
        }
    }
    for (index, rule) in rules(profile).iter().enumerate() {
        add_rule(&mut filter, rule, default).with_context(|| format!("syscalls[{index}]"))?;
    }
    if rules(profile).iter().map(|rule| rule.names().len()).sum::<usize>() > LONG_PROFILE {
        filter.set_ctl_optimize(2).context("seccomp_attr_set(CTL_OPTIMIZE)")?;
    }
    let mut program = match answers_itself(profile) {
        true => Vec::new(),
        false => stub::stub(&highest(profile, &architectures)),
    };
    program.extend(export(&filter)?);
    ensure!(
        program.len() <= MAX_INSTRUCTIONS,
        "the profile makes {} instructions: the kernel takes {MAX_INSTRUCTIONS}",
        program.len()
    );
    Ok(program)
}

/// No stub is needed: what is new is allowed, left to a tracer who sees it, or answered with ENOSYS anyway.
fn answers_itself(profile: &LinuxSeccomp) -> bool {
    match profile.default_action() {
        Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace => true,
        Action::ScmpActErrno => profile.default_errno_ret() == Some(libc::ENOSYS.cast_unsigned()),
        _ => false,
    }
}

fn action(action: Action, errno: Option<u32>) -> ScmpAction {
    let errno = errno.unwrap_or(libc::EPERM.cast_unsigned());
    match action {
        Action::ScmpActKill | Action::ScmpActKillThread => ScmpAction::KillThread,
        Action::ScmpActKillProcess => ScmpAction::KillProcess,
        Action::ScmpActTrap => ScmpAction::Trap,
        Action::ScmpActErrno => ScmpAction::Errno(errno.cast_signed()),
        Action::ScmpActTrace => ScmpAction::Trace(u16::try_from(errno).unwrap_or(u16::MAX)),
        Action::ScmpActAllow => ScmpAction::Allow,
        Action::ScmpActLog => ScmpAction::Log,
        Action::ScmpActNotify => ScmpAction::Notify,
    }
}

fn architecture(arch: Arch) -> Result<ScmpArch> {
    let name = arch.to_string();
    name.parse().context(UNKNOWN)
}

/// Whether a profile can name this architecture.
pub(super) fn knows(arch: Arch) -> bool {
    let filter = ScmpFilterContext::new(ScmpAction::Allow);
    filter.is_ok_and(|mut filter| architecture(arch).is_ok_and(|arch| filter.add_arch(arch).is_ok()))
}

fn add_rule(filter: &mut ScmpFilterContext, rule: &LinuxSyscall, default: ScmpAction) -> Result<()> {
    let action = action(rule.action(), rule.errno_ret());
    if action == default {
        return Ok(());
    }
    let args = rule.args().as_deref().unwrap_or_default();
    let compared: Vec<ScmpArgCompare> = args.iter().map(comparison).collect::<Result<_>>()?;
    let twice = (0..MAX_ARGUMENTS).any(|index| args.iter().filter(|arg| arg.index() == index).count() > 1);
    for name in rule.names() {
        let Ok(syscall) = ScmpSyscall::from_name(name) else {
            crate::log::debug(format_args!(
                "linux.seccomp: {name:?}: not known to libseccomp: passed over"
            ));
            continue;
        };
        let added = if compared.is_empty() {
            filter.add_rule(action, syscall).map(drop)
        } else if twice {
            let mut each = compared.chunks(1);
            each.try_for_each(|one| filter.add_rule_conditional(action, syscall, one).map(drop))
        } else {
            filter.add_rule_conditional(action, syscall, &compared).map(drop)
        };
        added.with_context(|| format!("seccomp_rule_add({action:?}, {name:?}, {compared:?})"))?;
    }
    Ok(())
}

fn comparison(arg: &LinuxSeccompArg) -> Result<ScmpArgCompare> {
    let (op, value) = match arg.op() {
        Operator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        Operator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        Operator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        Operator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        Operator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        Operator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        // `value` is the mask and `valueTwo` what must be left under it (config-linux.md, "Seccomp").
        Operator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0)),
    };
    let index = u32::try_from(arg.index()).context("args.index")?;
    Ok(ScmpArgCompare::new(index, op, value))
}

/// The highest number that the profile names, for each architecture for which it names any.
fn highest(profile: &LinuxSeccomp, architectures: &[ScmpArch]) -> Vec<stub::Highest> {
    let named = |arch: ScmpArch| {
        let names = rules(profile).iter().flat_map(LinuxSyscall::names);
        let numbers = names.filter_map(move |name| ScmpSyscall::from_name_by_arch(name, arch).ok());
        // A negative one stands for a call that the architecture does not have.
        numbers
            .filter_map(|syscall| u32::try_from(syscall.as_raw_syscall()).ok())
            .max()
    };
    let highest = |&arch: &ScmpArch| {
        let number = named(arch)?;
        Some(stub::Highest {
            architecture: audit_architecture(arch)?,
            number,
        })
    };
    architectures.iter().filter_map(highest).collect()
}

/// `AUDIT_ARCH_*` of linux/audit.h; the specification's types have libseccomp's numbers, which are these but for x32.
fn audit_architecture(arch: ScmpArch) -> Option<u32> {
    Some(match arch {
        ScmpArch::X8664 | ScmpArch::X32 => Arch::ScmpArchX86_64,
        ScmpArch::X86 => Arch::ScmpArchX86,
        ScmpArch::Arm => Arch::ScmpArchArm,
        ScmpArch::Aarch64 => Arch::ScmpArchAarch64,
        ScmpArch::Mips => Arch::ScmpArchMips,
        ScmpArch::Mips64 => Arch::ScmpArchMips64,
        ScmpArch::Mips64N32 => Arch::ScmpArchMips64n32,
        ScmpArch::Mipsel => Arch::ScmpArchMipsel,
        ScmpArch::Mipsel64 => Arch::ScmpArchMipsel64,
        ScmpArch::Mipsel64N32 => Arch::ScmpArchMipsel64n32,
        ScmpArch::Ppc => Arch::ScmpArchPpc,
        ScmpArch::Ppc64 => Arch::ScmpArchPpc64,
        ScmpArch::Ppc64Le => Arch::ScmpArchPpc64le,
        ScmpArch::S390 => Arch::ScmpArchS390,
        ScmpArch::S390X => Arch::ScmpArchS390x,
        ScmpArch::Parisc => Arch::ScmpArchParisc,
        ScmpArch::Parisc64 => Arch::ScmpArchParisc64,
        ScmpArch::Riscv64 => Arch::ScmpArchRiscv64,
        _ => return None,
    } as u32)
}

/// libseccomp writes its program to a descriptor; before 2.6 there is no other way.
fn export(filter: &ScmpFilterContext) -> Result<Vec<sock_filter>> {
    let memory: OwnedFd = rustix::fs::memfd_create("seccomp", MemfdFlags::CLOEXEC).context("memfd_create")?;
    filter.export_bpf(&memory).context("seccomp_export_bpf")?;
    let mut file = File::from(memory);
    let mut bytes = Vec::new();
    file.rewind().context("seek in a memory file")?;
    file.read_to_end(&mut bytes).context("read a memory file")?;
    decode(&bytes).context("seccomp_export_bpf: no whole program")
}

/// Instructions as the kernel takes them: `struct sock_filter` of linux/filter.h.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<sock_filter>> {
    let (instructions, rest) = bytes.as_chunks::<{ size_of::<sock_filter>() }>();
    let one = |&[c0, c1, jt, jf, k0, k1, k2, k3]: &[u8; 8]| sock_filter {
        code: u16::from_ne_bytes([c0, c1]),
        jt,
        jf,
        k: u32::from_ne_bytes([k0, k1, k2, k3]),
    };
    rest.is_empty().then(|| instructions.iter().map(one).collect())
}

/// The reverse of [`decode`].
pub(super) fn encode(program: &[sock_filter]) -> Vec<u8> {
    let one = |one: &sock_filter| {
        let ([c0, c1], [k0, k1, k2, k3]) = (one.code.to_ne_bytes(), one.k.to_ne_bytes());
        [c0, c1, one.jt, one.jf, k0, k1, k2, k3]
    };
    program.iter().flat_map(one).collect()
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use serde_json::{Value, json};

    use super::super::stub::tests::run;
    use super::*;

    const X86_64: u32 = 0xc000_003e;
    const I386: u32 = 0x4000_0003;
    const ALLOW: u32 = 0x7fff_0000;
    const KILL_THREAD: u32 = 0;
    const MKDIR: u32 = 83;

    fn errno(errno: u32) -> u32 {
        0x0005_0000 | errno
    }

    fn compiled(profile: Value) -> Vec<sock_filter> {
        compile(&serde_json::from_value(profile).unwrap()).unwrap()
    }

    #[test]
    fn actions() {
        for (action, number, result) in [
            ("SCMP_ACT_KILL", None, KILL_THREAD),
            ("SCMP_ACT_KILL_THREAD", None, KILL_THREAD),
            ("SCMP_ACT_KILL_PROCESS", None, 0x8000_0000),
            ("SCMP_ACT_TRAP", None, 0x0003_0000),
            ("SCMP_ACT_ERRNO", None, errno(1)),
            ("SCMP_ACT_ERRNO", Some(0), errno(0)),
            ("SCMP_ACT_ERRNO", Some(4094), errno(4094)),
            ("SCMP_ACT_TRACE", None, 0x7ff0_0001),
            ("SCMP_ACT_TRACE", Some(77), 0x7ff0_004d),
            ("SCMP_ACT_LOG", None, 0x7ffc_0000),
            ("SCMP_ACT_NOTIFY", None, 0x7fc0_0000),
        ] {
            let rule = json!({"names": ["mkdir", "no_such_call"], "action": action, "errnoRet": number});
            let program = compiled(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}));
            assert_eq!(run(&program, X86_64, MKDIR, [0; 6]), result, "{action} {number:?}");
            assert_eq!(run(&program, X86_64, MKDIR + 1, [0; 6]), ALLOW, "{action}");
            assert_eq!(run(&program, I386, 39, [0; 6]), KILL_THREAD, "another architecture");
            if action != "SCMP_ACT_NOTIFY" {
                let default = json!({"defaultAction": action, "defaultErrnoRet": number});
                assert_eq!(
                    run(&compiled(default), X86_64, MKDIR, [0; 6]),
                    result,
                    "{action} as default"
                );
            }
        }
    }

    #[test]
    fn operators() {
        const BIG: u64 = 5 << 32;
        for (op, value, two, matching, other) in [
            ("SCMP_CMP_NE", 7, 0, vec![6, 8, BIG | 7], vec![7]),
            ("SCMP_CMP_LT", BIG, 0, vec![0, BIG - 1], vec![BIG, BIG + 1]),
            ("SCMP_CMP_LE", BIG, 0, vec![0, BIG], vec![BIG + 1]),
            ("SCMP_CMP_EQ", BIG | 7, 0, vec![BIG | 7], vec![7, BIG]),
            ("SCMP_CMP_GE", BIG, 0, vec![BIG, u64::MAX], vec![BIG - 1]),
            ("SCMP_CMP_GT", BIG, 0, vec![BIG + 1], vec![BIG, 9]),
            (
                "SCMP_CMP_MASKED_EQ",
                0xf0,
                0x50,
                vec![0x50, 0x5f, 0xf50],
                vec![0x40, 0x60],
            ),
        ] {
            let arg = json!({"index": 2, "value": value, "valueTwo": two, "op": op});
            let rule = json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 9, "args": [arg]});
            let program = compiled(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}));
            let with = |argument| run(&program, X86_64, MKDIR, [0, 0, argument, 0, 0, 0]);
            assert!(matching.iter().all(|&argument| with(argument) == errno(9)), "{op}");
            assert!(other.iter().all(|&argument| with(argument) == ALLOW), "{op}");
        }
    }

    #[test]
    fn comparisons_together() {
        let rule = |args: &[(u32, &str, u64)]| {
            let args: Vec<Value> = args
                .iter()
                .map(|(index, op, value)| json!({"index": index, "op": op, "value": value}))
                .collect();
            let rule = json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 9, "args": args});
            compiled(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
        };
        let both = rule(&[(0, "SCMP_CMP_EQ", 1), (1, "SCMP_CMP_EQ", 2)]);
        let either = rule(&[(0, "SCMP_CMP_EQ", 1), (0, "SCMP_CMP_EQ", 2)]);
        for (program, a, b, matches) in [
            (&both, 1, 2, true),
            (&both, 1, 0, false),
            (&both, 0, 2, false),
            (&either, 1, 0, true),
            (&either, 2, 0, true),
            (&either, 3, 0, false),
        ] {
            let result = run(program, X86_64, MKDIR, [a, b, 0, 0, 0, 0]);
            assert_eq!(result == errno(9), matches, "{a} {b}");
        }
    }

    #[test]
    fn architectures_and_what_is_newer() {
        let program = compiled(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            // 83, 39, and x32's 83.
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ALLOW"},
                         {"names": ["rmdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
        }));
        let x32 = stub::X32_BIT;
        for (architecture, number, result) in [
            (X86_64, 83, ALLOW),
            (X86_64, 82, errno(1)),
            (X86_64, 84, errno(1)),
            (X86_64, 85, errno(38)),
            (I386, 39, ALLOW),
            (I386, 38, errno(1)),
            (I386, 41, errno(38)),
            (X86_64, x32 | 83, ALLOW),
            (X86_64, x32 | 85, errno(38)),
            (0x4000_0028, 39, KILL_THREAD),
        ] {
            assert_eq!(
                run(&program, architecture, number, [0; 6]),
                result,
                "{architecture:#x} {number:#x}"
            );
        }
        for (default, number) in [
            ("SCMP_ACT_ERRNO", Some(38)),
            ("SCMP_ACT_TRACE", Some(5)),
            ("SCMP_ACT_LOG", None),
        ] {
            let profile = json!({"defaultAction": default, "defaultErrnoRet": number,
                "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ALLOW"}]});
            let own = run(&compiled(profile.clone()), X86_64, 82, [0; 6]);
            assert_eq!(run(&compiled(profile), X86_64, 9999, [0; 6]), own, "{default}");
        }
    }

    #[test]
    fn what_libseccomp_refuses() {
        for (profile, words) in [
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_M68K"]}),
                "architectures[0]",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                    {"names": ["mkdir"], "action": "SCMP_ACT_KILL", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
                    {"names": ["mkdir"], "action": "SCMP_ACT_TRAP", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
                ]}),
                "syscalls[1]: seccomp_rule_add(Trap, \"mkdir\"",
            ),
        ] {
            let error = format!("{:#}", compile(&serde_json::from_value(profile).unwrap()).unwrap_err());
            assert!(error.starts_with(words), "{error}");
        }
    }

    #[test]
    fn bytes_and_back() {
        let program = compiled(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 7}));
        let bytes = encode(&program);
        let again = decode(&bytes).unwrap();
        assert_eq!(encode(&again), bytes);
        assert_eq!(run(&again, X86_64, 0, [0; 6]), errno(7));
        assert!(decode(&bytes[1..]).is_none());
    }
}
