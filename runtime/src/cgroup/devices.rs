//! Which devices a container may use: the spec's rules as a policy, and the policy as v1 lines or as a v2 program.
//! All pure; `mod.rs` writes the lines and attaches the program.
//!
//! The policy has the kernel's own form: a default and exceptions from it. It begins as "nothing is allowed", whatever
//! the spec says or leaves out (a list of rules read as a list of denials was a hole of runc, GHSA-g54h-m393-cpwq). The
//! spec's rules change it in their order; then the devices every container has are allowed (config-linux.md, default
//! devices). What `linux.devices` names is made, but not allowed: that takes a rule.

use anyhow::{Result, bail, ensure};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::sys::bpf::Instruction;

/// Ways to use a device, with the kernel's bits (`BPF_DEVCG_ACC_*`).
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// Kinds of device node, with the kernel's numbers (`BPF_DEVCG_DEV_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Block = 1,
    Char = 2,
}

/// A set of devices and ways to use them. `None` is every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Exception {
    kind: Kind,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

/// What the container may do with devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// What holds for a device that no exception names.
    default_allow: bool,
    exceptions: Vec<Exception>,
}

const fn char_device(major: u32, minor: Option<u32>) -> Exception {
    Exception {
        kind: Kind::Char,
        major: Some(major),
        minor,
        access: ALL,
    }
}

/// What every container may use. Making nodes is allowed for all: a node alone opens nothing.
const DEFAULT: [Exception; 10] = [
    Exception {
        kind: Kind::Char,
        major: None,
        minor: None,
        access: MKNOD,
    },
    Exception {
        kind: Kind::Block,
        major: None,
        minor: None,
        access: MKNOD,
    },
    char_device(1, Some(3)), // null
    char_device(1, Some(5)), // zero
    char_device(1, Some(7)), // full
    char_device(1, Some(8)), // random
    char_device(1, Some(9)), // urandom
    char_device(5, Some(0)), // tty
    char_device(5, Some(2)), // ptmx
    char_device(136, None),  // pts/N
];

impl Policy {
    /// The policy of a container, from `linux.resources.devices`.
    pub(super) fn new(rules: &[LinuxDeviceCgroup]) -> Result<Policy> {
        let mut policy = Policy {
            default_allow: false,
            exceptions: Vec::new(),
        };
        for (index, rule) in rules.iter().enumerate() {
            let path = format!("linux.resources.devices[{index}]");
            match parse_rule(rule, &path)? {
                None => {
                    policy = Policy {
                        default_allow: rule.allow(),
                        exceptions: Vec::new(),
                    }
                }
                Some(exception) => policy.change(rule.allow(), exception, &path)?,
            }
        }
        for exception in DEFAULT {
            policy.change(true, exception, "the default devices")?;
        }
        policy.prune();
        Ok(policy)
    }

    /// Everything is allowed: there is nothing to confine.
    pub(super) fn allows_all(&self) -> bool {
        self.default_allow && self.exceptions.is_empty()
    }

    /// Allows or denies what `rule` names.
    fn change(&mut self, allow: bool, rule: Exception, path: &str) -> Result<()> {
        if allow != self.default_allow {
            let same = |e: &&mut Exception| (e.kind, e.major, e.minor) == (rule.kind, rule.major, rule.minor);
            match self.exceptions.iter_mut().find(same) {
                Some(exception) => exception.access |= rule.access,
                None => self.exceptions.push(rule),
            }
            return Ok(());
        }
        // Back to the default: take it out of the exceptions. One that reaches further than the rule cannot have a hole.
        for exception in &mut self.exceptions {
            let common = exception.access & rule.access;
            if rule.covers(exception) {
                exception.access &= !common;
            } else if common != 0 && rule.overlaps(exception) {
                bail!(
                    "{path}: a part of \"{}\", which an earlier rule names as a whole: neither kernel interface can say that",
                    exception.line()
                );
            }
        }
        self.exceptions.retain(|exception| exception.access != 0);
        Ok(())
    }

    /// Leaves out exceptions that others contain: each costs a system call or five instructions per access.
    fn prune(&mut self) {
        let all = self.exceptions.clone();
        self.exceptions.retain(|one| {
            !all.iter()
                .any(|other| other != one && other.covers(one) && one.access & !other.access == 0)
        });
    }

    /// The policy as (file, line) writes of a v1 devices cgroup that has no children.
    pub(super) fn v1_lines(&self) -> (&'static str, &'static str, Vec<String>) {
        let (default, exceptions) = if self.default_allow {
            ("devices.allow", "devices.deny")
        } else {
            ("devices.deny", "devices.allow")
        };
        (
            default,
            exceptions,
            self.exceptions.iter().map(Exception::line).collect(),
        )
    }

    /// What is allowed, as systemd names it: `("/dev/char/1:3", "rwm")`, `("char-pts", "rwm")`; and whether that is all.
    /// `None` where all is allowed that is not denied, which systemd cannot say. `groups` is /proc/devices: what has no
    /// minor number goes by its name there.
    pub(super) fn allowed(&self, groups: &str) -> Option<(Vec<(String, String)>, bool)> {
        if self.default_allow {
            return None;
        }
        let named: Vec<_> = self.exceptions.iter().filter_map(|one| one.unit_rule(groups)).collect();
        let all = named.len() == self.exceptions.len();
        Some((named, all))
    }

    /// The policy as a program of type BPF_PROG_TYPE_CGROUP_DEVICE: the kernel runs it at each use of a device and takes
    /// 0 for no.
    pub(super) fn program(&self) -> Vec<Instruction> {
        use Instruction as I;
        // The context, struct bpf_cgroup_dev_ctx: access << 16 | kind, then major, then minor; 32 bits each.
        let mut program = vec![
            I::load32(KIND, CONTEXT, 0),
            I::copy32(ACCESS, KIND),
            I::and32(KIND, 0xffff),
            I::shift_right32(ACCESS, 16),
            I::load32(MAJOR, CONTEXT, 4),
            I::load32(MINOR, CONTEXT, 8),
        ];
        for exception in &self.exceptions {
            program.extend(exception.block(self.default_allow));
        }
        program.extend([I::set32(RESULT, i32::from(self.default_allow)), I::exit()]);
        program
    }
}

/// Registers of the program. The kernel passes the context in the second; the first is the result.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

impl Exception {
    /// Whether every device of `other` is one of this.
    fn covers(&self, other: &Exception) -> bool {
        let wider = |a: Option<u32>, b: Option<u32>| a.is_none() || a == b;
        self.kind == other.kind && wider(self.major, other.major) && wider(self.minor, other.minor)
    }

    /// Whether some device is in both.
    fn overlaps(&self, other: &Exception) -> bool {
        let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind && meet(self.major, other.major) && meet(self.minor, other.minor)
    }

    /// `c 1:3 rwm`, cgroup-v1/devices.rst.
    fn line(&self) -> String {
        let kind = if self.kind == Kind::Block { 'b' } else { 'c' };
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        format!(
            "{kind} {}:{} {}",
            number(self.major),
            number(self.minor),
            self.letters()
        )
    }

    fn letters(&self) -> String {
        [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
            .into_iter()
            .filter(|(bit, _)| self.access & bit != 0)
            .map(|(_, letter)| letter)
            .collect()
    }

    /// As `DeviceAllow=` has it, systemd.resource-control(5).
    fn unit_rule(&self, groups: &str) -> Option<(String, String)> {
        let kind = if self.kind == Kind::Block { "block" } else { "char" };
        let device = match (self.major, self.minor) {
            (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
            (Some(major), None) => format!("{kind}-{}", group_name(groups, self.kind, major)?),
            (None, None) => format!("{kind}-*"),
            (None, Some(_)) => return None,
        };
        Some((device, self.letters()))
    }

    /// The instructions that answer for this exception, or fall through to the next.
    ///
    /// Where nothing is allowed, an exception must allow all that is asked for at once; where everything is, it denies if
    /// it has any of it. So v1 does it too.
    fn block(&self, default_allow: bool) -> Vec<Instruction> {
        use Instruction as I;
        // Each test skips the rest of the block; how far that is is known when the block is whole.
        let mut tests = vec![I::skip_unless_equal(KIND, self.kind as i32)];
        if self.access != ALL {
            let (access, result) = (i32::from(self.access), [I::copy32(SCRATCH, ACCESS)]);
            tests.extend(result);
            tests.push(I::and32(SCRATCH, access));
            tests.push(if default_allow {
                I::skip_if_equal(SCRATCH, 0)
            } else {
                I::skip_unless_same(SCRATCH, ACCESS)
            });
        }
        // The kernel's numbers have 12 and 20 bits, so that the cast keeps them; larger ones match nothing either way.
        tests.extend(self.major.map(|major| I::skip_unless_equal(MAJOR, major.cast_signed())));
        tests.extend(self.minor.map(|minor| I::skip_unless_equal(MINOR, minor.cast_signed())));
        let length = tests.len() + 2;
        let mut block: Vec<I> = tests
            .into_iter()
            .enumerate()
            .map(|(at, test)| test.skipping(length - at - 1))
            .collect();
        block.extend([I::set32(RESULT, i32::from(!default_allow)), I::exit()]);
        block
    }
}

/// What /proc/devices calls the devices with this major number.
fn group_name(groups: &str, kind: Kind, major: u32) -> Option<&str> {
    let (characters, blocks) = groups.split_once("Block devices:")?;
    let part = if kind == Kind::Block { blocks } else { characters };
    let mut lines = part.lines().filter_map(|line| line.trim().split_once(' '));
    // Names like /dev/tty stand for one device more often than for the group.
    lines.find_map(|(number, name)| (number.parse() == Ok(major) && !name.contains('/')).then_some(name))
}

/// A rule of the spec; `None` for one about every device, which the kernel knows only with every access.
fn parse_rule(rule: &LinuxDeviceCgroup, path: &str) -> Result<Option<Exception>> {
    let major = number(rule.major(), &format!("{path}.major"))?;
    let minor = number(rule.minor(), &format!("{path}.minor"))?;
    let access = parse_access(rule.access().as_deref().unwrap_or_default(), path)?;
    let kind = match rule.typ().unwrap_or_default() {
        LinuxDeviceType::A => {
            let everything = major.is_none() && minor.is_none() && (access == ALL || access == 0);
            ensure!(
                everything,
                "{path}: \"{rule}\": a rule of type a is about every device and access"
            );
            return Ok(None);
        }
        LinuxDeviceType::B => Kind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => Kind::Char,
        LinuxDeviceType::P => bail!("{path}.type: \"p\": a fifo is no device"),
    };
    ensure!(access != 0, "{path}.access: \"\": must name r, w or m");
    Ok(Some(Exception {
        kind,
        major,
        minor,
        access,
    }))
}

/// A device number; -1, which runc writes for "any", and nothing are `None`.
fn number(value: Option<i64>, path: &str) -> Result<Option<u32>> {
    match value {
        None | Some(-1) => Ok(None),
        Some(value) => match u32::try_from(value) {
            Ok(value) => Ok(Some(value)),
            Err(_) => bail!("{path}: {value}: not a device number"),
        },
    }
}

fn parse_access(letters: &str, path: &str) -> Result<u8> {
    letters.chars().try_fold(0, |access, letter| match letter {
        'r' => Ok(access | READ),
        'w' => Ok(access | WRITE),
        'm' => Ok(access | MKNOD),
        _ => bail!("{path}.access: {letters:?}: {letter:?} is none of r, w, m"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Rules as text: `+` or `-`, then type, numbers and access; a number `?` is left out.
    fn policy(rules: &str) -> Result<Policy> {
        let rule = |text: &str| -> LinuxDeviceCgroup {
            let mut fields = text[1..].split([' ', ':']);
            let mut rule = json!({"allow": text.starts_with('+'), "type": fields.next()});
            for name in ["major", "minor"] {
                let number = fields.next().and_then(|number| number.parse::<i64>().ok());
                rule[name] = json!(number);
            }
            rule["access"] = json!(fields.next());
            serde_json::from_value(rule).unwrap()
        };
        let rules: Vec<_> = rules.split_terminator(", ").map(rule).collect();
        Policy::new(&rules)
    }

    /// The policy without the default devices, as text.
    fn own_lines(policy: &Policy) -> String {
        let defaults: Vec<String> = DEFAULT.iter().map(Exception::line).collect();
        let (default, _, lines) = policy.v1_lines();
        let own = lines.into_iter().filter(|line| !defaults.contains(line));
        let all: Vec<String> = std::iter::once(default.to_owned()).chain(own).collect();
        all.join(", ")
    }

    #[test]
    fn rules_in_order() {
        for (rules, lines) in [
            ("", "devices.deny"),
            ("-a ?:? rwm", "devices.deny"),
            ("+a ?:? rwm", "devices.allow"),
            ("+a -1:-1 rwm", "devices.allow"),
            ("+c 10:229 rw, +c 10:229 m", "devices.deny, c 10:229 rwm"),
            ("+u 10:229 rw", "devices.deny, c 10:229 rw"),
            ("+b 8:? rw, -b 8:? w", "devices.deny, b 8:* r"),
            ("+b 8:1 rw, -b ?:? rwm", "devices.deny"),
            ("+b 8:1 r, +b 8:? rw", "devices.deny, b 8:* rw"),
            ("+a ?:? rwm, -b 8:? rw", "devices.allow, b 8:* rw"),
            ("+a ?:? rwm, -b 8:? rw, -a ?:? rwm", "devices.deny"),
            ("-c 1:3 rwm", "devices.deny"),
        ] {
            assert_eq!(own_lines(&policy(rules).unwrap()), lines, "{rules}");
        }
        assert!(policy("+a ?:? rwm").unwrap().allows_all());
        assert!(!policy("").unwrap().allows_all());
    }

    #[test]
    fn rules_refused() {
        for (rule, words) in [
            ("+a ?:? r", "every device"),
            ("+a 1:? rwm", "every device"),
            ("+c ?:?", ".access"),
            ("+c ?:? rx", "'x'"),
            ("+p ?:? r", "fifo"),
            ("+c -2:? r", ".major: -2"),
            ("+c ?:4294967296 r", ".minor: 4294967296"),
        ] {
            let error = policy(rule).unwrap_err().to_string();
            let place = error.starts_with("linux.resources.devices[0]");
            assert!(place && error.contains(words), "{rule}: {error}");
        }
        let error = policy("+c 10:? rwm, -c 10:1 w").unwrap_err().to_string();
        assert!(
            error.starts_with("linux.resources.devices[1]: a part of \"c 10:* rwm\""),
            "{error}"
        );
    }

    /// Runs a program as the kernel would. Enough of the machine for what `program` makes; anything else panics.
    fn run(program: &[Instruction], kind: u32, major: u32, minor: u32, access: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u32; 7];
        let mut at = 0;
        loop {
            let Instruction {
                code,
                offset,
                immediate,
                ..
            } = program[at];
            let (to, from) = program[at].registers();
            let value = immediate.cast_unsigned();
            at += 1;
            let mut skip_if = |condition: bool| at += if condition { usize::try_from(offset).unwrap() } else { 0 };
            match code {
                0x61 => registers[to] = context[usize::try_from(offset).unwrap() / 4],
                0xbc => registers[to] = registers[from],
                0xb4 => registers[to] = value,
                0x54 => registers[to] &= value,
                0x74 => registers[to] >>= value,
                0x56 => skip_if(registers[to] != value),
                0x16 => skip_if(registers[to] == value),
                0x5e => skip_if(registers[to] != registers[from]),
                0x95 => return registers[usize::from(RESULT)] == 1,
                _ => panic!("no such instruction: {code:#x}"),
            }
        }
    }

    #[test]
    fn programs_decide() {
        const C: u32 = Kind::Char as u32;
        const B: u32 = Kind::Block as u32;
        let (r, w, m) = (u32::from(READ), u32::from(WRITE), u32::from(MKNOD));
        let confined = policy("+b 8:? r, +c ?:200 rw");
        let open = policy("+a ?:? rwm, -b 8:0 w");
        for (policy, cases) in [
            (
                confined.unwrap(),
                vec![
                    ((C, 1, 3, r | w), true),    // null
                    ((C, 1, 1, r), false),       // mem
                    ((C, 1, 1, m), true),        // its node
                    ((C, 1, 1, m | r), false),   // both at once: no exception has both
                    ((C, 136, 77, r | w), true), // a terminal
                    ((B, 8, 5, r), true),
                    ((B, 8, 5, r | w), false),
                    ((B, 9, 5, r), false),
                    ((C, 10, 200, r | w), true),
                    ((B, 10, 200, r), false),
                ],
            ),
            (
                open.unwrap(),
                vec![
                    ((B, 8, 0, r), true),
                    ((B, 8, 0, w), false),
                    ((B, 8, 0, r | w), false), // any of it is denied
                    ((B, 8, 1, w), true),
                    ((C, 8, 0, w), true),
                ],
            ),
        ] {
            let program = policy.program();
            for ((kind, major, minor, access), allowed) in cases {
                let is = run(&program, kind, major, minor, access);
                assert_eq!(is, allowed, "{policy:?}: kind {kind} {major}:{minor} access {access}");
            }
        }
    }

    #[test]
    fn the_smallest_programs() {
        let all = policy("+a ?:? rwm").unwrap().program();
        assert_eq!(all.len(), 8);
        assert!(run(&all, 1, 8, 0, 7));
        let nothing = Policy {
            default_allow: false,
            exceptions: Vec::new(),
        }
        .program();
        assert!(!run(&nothing, 2, 1, 3, 2));
    }

    /// The kernel's own word on a program: its verifier takes it. Where bpf(2) is not allowed there is none.
    #[test]
    fn the_verifier_accepts() {
        let (confined, open) = (policy("+b ?:? r"), policy("+a ?:? rwm, -c 9:? w"));
        for policy in [confined.unwrap(), open.unwrap()] {
            match crate::sys::bpf::load_device_program(&policy.program()) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    println!("skipped: bpf(2) is not allowed here: {error}");
                }
                Err(error) => panic!("{policy:?}: {error}"),
            }
        }
    }
}
