//! The checks of `process`, for create and exec alike.

use anyhow::{Result, bail, ensure};
use oci_spec::runtime::{PosixRlimit, Process, User};

use super::{absolute, environment_entry, without_nul};

/// The checks of a process. Answers with warnings.
pub fn validate_process(process: &Process) -> Result<Vec<String>> {
    let args = process.args().as_deref().unwrap_or_default();
    ensure!(
        args.first().is_some_and(|program| !program.is_empty()),
        "process.args: {args:?}: must name a program"
    );
    args.iter()
        .try_for_each(|argument| without_nul(argument, "process.args"))?;
    process
        .env()
        .iter()
        .flatten()
        .try_for_each(|entry| environment_entry(entry, "process.env"))?;
    absolute(process.cwd(), "process.cwd")?;
    user(process.user())?;
    rlimits(process.rlimits().as_deref().unwrap_or_default())?;
    if let Some(adjustment) = process.oom_score_adj() {
        ensure!(
            (-1000..=1000).contains(&adjustment),
            "process.oomScoreAdj: {adjustment}: must be -1000 to 1000"
        );
    }
    crate::scheduling::check(process)?;
    crate::lsm::check(process)?;
    let mut warnings = Vec::new();
    if let Some(size) = process.console_size() {
        if process.terminal() != Some(true) {
            warnings.push("process.consoleSize: ignored without process.terminal".to_owned());
        }
        for (field, cells) in [("height", size.height()), ("width", size.width())] {
            // struct winsize.
            ensure!(
                u16::try_from(cells).is_ok(),
                "process.consoleSize.{field}: {cells}: must be 0 to {}",
                u16::MAX
            );
        }
    }
    Ok(warnings)
}

fn user(user: &User) -> Result<()> {
    let groups = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|&gid| ("additionalGids", gid));
    for (field, id) in [("uid", user.uid()), ("gid", user.gid())].into_iter().chain(groups) {
        // (uid_t)-1 means "leave it as it is" to setresuid and its like.
        ensure!(
            id != u32::MAX,
            "process.user.{field}: {id}: must be 0 to {}",
            u32::MAX - 1
        );
    }
    if let Some(umask) = user.umask() {
        ensure!(
            umask <= 0o777,
            "process.user.umask: {umask}: must be 0 to {} (0777)",
            0o777
        );
    }
    if let Some(name) = user.username().as_ref().filter(|name| !name.is_empty()) {
        bail!("process.user.username: {name:?}: is for Windows; users here have numbers");
    }
    Ok(())
}

fn rlimits(rlimits: &[PosixRlimit]) -> Result<()> {
    for (index, limit) in rlimits.iter().enumerate() {
        let (kind, soft, hard) = (limit.typ(), limit.soft(), limit.hard());
        ensure!(
            soft <= hard,
            "process.rlimits[{index}]: {kind} {soft}: the soft limit must not exceed the hard one, {hard}"
        );
        let earlier = rlimits[..index].iter().any(|other| other.typ() == kind);
        ensure!(!earlier, "process.rlimits[{index}].type: {kind}: must not appear twice");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{check, refused};

    #[test]
    fn processes() {
        for (pointer, value) in [
            ("/process/env", json!(["A=", "B=c=d"])),
            ("/process/cwd", json!("/no/such/directory")),
            (
                "/process/user",
                json!({"uid": 4_294_967_294_u32, "gid": 1, "umask": 0o777, "additionalGids": [0, 5]}),
            ),
            (
                "/process/rlimits",
                json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": u64::MAX},
                                        {"type": "RLIMIT_NOFILE", "soft": 5, "hard": 5}]),
            ),
            ("/process/oomScoreAdj", json!(-1000)),
        ] {
            assert_eq!(check(&[(pointer, value.clone())]), Ok(vec![]), "{pointer} {value}");
        }
    }

    #[test]
    fn a_size_is_for_a_terminal() {
        let size = ("/process/consoleSize", json!({"height": 24, "width": 65535}));
        assert_eq!(check(&[size.clone(), ("/process/terminal", json!(true))]), Ok(vec![]));
        assert_eq!(check(&[size]).unwrap().len(), 1);
    }

    #[test]
    fn processes_refused() {
        refused(
            r#"
            /process/args                | []                | process.args               | program
            /process/args                | null              | process.args               | program
            /process/args                | [""]              | process.args               | program
            /process/args                | ["a", "b\u0000"]  | process.args               | NUL
            /process/env                 | ["A"]             | process.env: "A"           | NAME=VALUE
            /process/env                 | ["=x"]            | process.env                | NAME=VALUE
            /process/env                 | ["A=\u0000"]      | process.env                | NUL
            /process/cwd                 | ""                | process.cwd                | absolute
            /process/cwd                 | "tmp"             | process.cwd: "tmp"         | absolute
            /process/cwd                 | "../tmp"          | process.cwd                | absolute
            /process/cwd                 | null              | process                    | missing field `cwd`
            /process/user                | null              | process                    | missing field `user`
            /process/user/uid            | 4294967295        | process.user.uid           | 4294967294
            /process/user/gid            | 4294967295        | process.user.gid           | 4294967294
            /process/user/additionalGids | [1, 4294967295]   | process.user.additionalGids | 4294967294
            /process/user/umask          | 512               | process.user.umask: 512    | 0777
            /process/user/username       | "root"            | process.user.username      | Windows
            /process/oomScoreAdj         | 1001              | process.oomScoreAdj: 1001  | -1000 to 1000
            /process/oomScoreAdj         | -1001             | process.oomScoreAdj: -1001 | -1000 to 1000
            /process/scheduler           | {"policy": "SCHED_X"} | process.scheduler.policy | unknown variant
            /process/scheduler           | {"policy": "SCHED_ISO"} | process.scheduler.policy | no such policy
            /process/scheduler           | {"nice": 1}       | process.scheduler          | missing field `policy`
            /process/scheduler           | {"policy": "SCHED_OTHER", "nice": 20} | process.scheduler.nice: 20 | -20 to 19
            /process/scheduler           | {"policy": "SCHED_BATCH", "nice": -21} | process.scheduler.nice | -20 to 19
            /process/scheduler           | {"policy": "SCHED_IDLE", "priority": 1} | process.scheduler.priority: 1 | SCHED_FIFO
            /process/scheduler           | {"policy": "SCHED_FIFO"} | process.scheduler.priority: 0 | 1 to 99
            /process/scheduler           | {"policy": "SCHED_RR", "priority": 100} | process.scheduler.priority: 100 | 1 to 99
            /process/scheduler           | {"policy": "SCHED_OTHER", "period": 1} | process.scheduler.period: 1 | SCHED_DEADLINE
            /process/scheduler           | {"policy": "SCHED_DEADLINE", "runtime": 1023} | process.scheduler.runtime | 1024
            /process/scheduler           | {"policy": "SCHED_DEADLINE", "runtime": 2000, "deadline": 1999} | process.scheduler.deadline | 2000
            /process/scheduler           | {"policy": "SCHED_DEADLINE", "runtime": 2000, "deadline": 3000, "period": 2999} | process.scheduler.period | 3000
            /process/scheduler           | {"policy": "SCHED_OTHER", "flags": ["X"]} | process.scheduler.flags[0] | unknown variant
            /process/ioPriority          | {"class": "IOPRIO_CLASS_BE", "priority": 8} | process.ioPriority.priority: 8 | 0 to 7
            /process/ioPriority          | {"class": "IOPRIO_CLASS_X"} | process.ioPriority.class | unknown variant
            /process/execCPUAffinity     | {"initial": "1-"} | process.execCPUAffinity.initial | 1-
            /process/execCPUAffinity     | {"final": "5-3"}  | process.execCPUAffinity.final: "5-3" | 0-3,7
            /process/execCPUAffinity     | {"final": "1024"} | process.execCPUAffinity.final: "1024" | 1024
            /process/apparmorProfile     | "no\nprofile"     | process.apparmorProfile    | newline
            /process/selinuxLabel        | "no\u0000label"   | process.selinuxLabel       | NUL
            /process/consoleSize         | {"height": 65536} | process.consoleSize.height | 65535
            "#,
        );
    }

    #[test]
    fn limits_refused() {
        let core = |soft: u32, hard: u32| json!({"type": "RLIMIT_CORE", "soft": soft, "hard": hard});
        for (limits, words) in [
            (json!([core(2, 1)]), "process.rlimits[0]: RLIMIT_CORE 2: the soft limit"),
            (
                json!([core(1, 1), core(1, 2)]),
                "process.rlimits[1].type: RLIMIT_CORE: must not appear twice",
            ),
        ] {
            let error = check(&[("/process/rlimits", limits)]).unwrap_err();
            assert!(error.starts_with(words), "{error}");
        }
    }
}
