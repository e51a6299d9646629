//! What is the ordinary user's alone: who the container's ids are on the host, what is refused, and what there is
//! instead. That the rest is as for root is in the other files, under `rootless!`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use corten_tests::bundle::user::{Caller, FIRST_SUB_ID, ID};
use corten_tests::bundle::{Bundle, Runtime, finish};
use serde_json::json;

rootless! {
    a_single_mapping_needs_no_helper,
    ids_of_others_are_mapped_by_the_helpers,
    ids_that_are_not_the_user_s_are_refused,
    a_user_namespace_is_required,
    an_owner_of_a_mount_must_be_mapped,
    groups_need_more_than_the_own_one,
    limits_need_a_cgroup,
    a_named_cgroup_is_not_done_without,
    cgroups_of_the_caller_are_shown,
}

/// Run by the user, and only with corten; the reason stands beside each.
macro_rules! corten_as {
    ($caller:ident { $($name:ident: $reason:literal),* $(,)? }) => {
        $(#[doc = $reason] #[test] fn $name() { crate::run_as(Caller::$caller, "corten", tests::$name) })*
    };
}

mod corten_alone {
    use super::{Caller, tests};

    corten_as!(User {
        groups_can_be_had_with_the_helpers: "runc 1.1 refuses groups to every user who is not root",
        helpers_are_run_clean: "runc 1.1 hands its environment and working directory on",
        a_helper_of_another_user_is_not_run: "runc 1.1 runs what it finds",
        states_are_kept_in_the_runtime_directory: "of corten, which has a directory of its own name",
        without_a_network_namespace_sys_is_the_host_s: "runc 1.1 fails",
        every_process_is_killed_without_a_cgroup: "runc 1.1 succeeds and kills none",
        a_cgroup_can_be_demanded: "runc 1.1 ignores --rootless=false here",
        an_exec_has_the_oom_score: "runc 1.1 sets the score of init alone",
    });
}

mod root_of_its_own {
    macro_rules! each {
        ($($name:ident),* $(,)?) => {
            mod corten {
                $(#[test] fn $name() { crate::run_as(super::super::Caller::RootOfItsOwn, "corten", super::super::tests::$name) })*
            }
            mod runc {
                $(#[test] fn $name() { crate::run_as(super::super::Caller::RootOfItsOwn, "runc", super::super::tests::$name) })*
            }
        };
    }

    each! {
        a_container_lives_in_the_caller_s_user_namespace,
        devices_are_the_host_s,
        a_limit_beyond_the_hard_one_is_an_error_or_less,
    }
}

fn single(bundle: &mut Bundle<'_>) {
    let own = json!([{ "containerID": 0, "hostID": ID, "size": 1 }]);
    bundle.spec["linux"]["uidMappings"] = own.clone();
    bundle.spec["linux"]["gidMappings"] = own;
    // Of the group of terminals, which is not mapped.
    let options = bundle.mount("/dev/pts")["options"]
        .as_array_mut()
        .expect("options are a list");
    options.retain(|option| option != "gid=5");
}

/// What a file of the container says.
fn cat(bundle: &mut Bundle<'_>, path: &str) -> String {
    bundle.probe(&["cat", path]);
    let text = bundle.run().success().stdout;
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn a_single_mapping_needs_no_helper(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    single(&mut bundle);
    for file in ["uid_map", "gid_map"] {
        assert_eq!(cat(&mut bundle, &format!("/proc/self/{file}")), format!("0 {ID} 1"));
    }
    assert_eq!(cat(&mut bundle, "/proc/self/setgroups"), "deny");
}

fn ids_of_others_are_mapped_by_the_helpers(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["root"]["readonly"] = json!(false);
    for (id, host) in [(0, ID), (1000, FIRST_SUB_ID + 999)] {
        bundle.spec["process"]["user"] = json!({ "uid": id, "gid": id });
        let file = format!("/tmp/of-{id}");
        bundle.probe(&["write", &file, "text"]);
        let _written = bundle.run().success();
        let metadata = fs::metadata(bundle.rootfs(&file)).expect("the container wrote it");
        assert_eq!((metadata.uid(), metadata.gid()), (host, host));
    }
}

fn ids_that_are_not_the_user_s_are_refused(runtime: &Runtime) {
    for (field, helper) in [("uidMappings", "newuidmap"), ("gidMappings", "newgidmap")] {
        let mut bundle = runtime.bundle();
        bundle.spec["linux"][field] = json!([
            { "containerID": 0, "hostID": ID, "size": 1 },
            { "containerID": 1, "hostID": 1, "size": 10 },
        ]);
        let output = bundle.call("create", &[]);
        assert_eq!(output.code, 1, "{output:?}");
        assert!(output.stderr.contains(helper), "{output:?}");
        bundle.assert_nothing_left();
    }
}

/// A specification that is refused before anything is done, in words that have this one among them.
fn refused(bundle: &Bundle<'_>, word: &str) {
    let error = bundle.call("create", &[]).failure();
    assert!(error.contains(word), "{word}: {error}");
    bundle.assert_nothing_left();
}

fn a_user_namespace_is_required(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.remove_namespace("user");
    bundle.spec["linux"]["uidMappings"].take();
    bundle.spec["linux"]["gidMappings"].take();
    refused(&bundle, "user namespace");
}

fn an_owner_of_a_mount_must_be_mapped(runtime: &Runtime) {
    for option in ["uid=100000", "gid=100000"] {
        let mut bundle = runtime.bundle();
        bundle.add_mount(json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": [option] }));
        refused(&bundle, &option[..4]);
    }
}

fn groups_need_more_than_the_own_one(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    single(&mut bundle);
    bundle.spec["process"]["user"]["additionalGids"] = json!([0]);
    let output = bundle.call("create", &[]);
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.to_lowercase().contains("additional"), "{output:?}");
    bundle.assert_nothing_left();
}

fn limits_need_a_cgroup(runtime: &Runtime) {
    for (resources, word) in [
        (json!({ "memory": { "limit": 64 << 20 } }), "memory"),
        (json!({ "pids": { "limit": 10 } }), "pids"),
    ] {
        let mut bundle = runtime.bundle();
        bundle.spec["linux"]["resources"] = resources;
        let output = bundle.call("create", &[]);
        assert_eq!(output.code, 1, "{output:?}");
        assert!(output.stderr.contains(word), "{output:?}");
        bundle.assert_nothing_left();
    }
}

fn a_named_cgroup_is_not_done_without(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let path = format!("/{}", bundle.id);
    bundle.spec["linux"]["cgroupsPath"] = json!(path);
    let output = bundle.call("create", &[]);
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains(&path), "{output:?}");
    bundle.assert_nothing_left();
}

fn cgroups_of_the_caller_are_shown(runtime: &Runtime) {
    if corten_tests::cgroup::unified() {
        return;
    }
    let report = runtime.bundle().report(&["/sys/fs/cgroup/memory/cgroup.procs"]);
    assert_eq!(report.path("/sys/fs/cgroup/memory/cgroup.procs")["type"], "file");
    assert!(report.has_option("/sys/fs/cgroup/memory", "ro"));
}

mod tests {
    use super::*;

    pub(super) fn groups_can_be_had_with_the_helpers(runtime: &Runtime) {
        let mut bundle = runtime.bundle();
        bundle.spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000, "additionalGids": [7, 1001] });
        assert_eq!(bundle.report(&[]).status("Groups").trim(), "7 1001");
    }

    /// A directory with a program of this name, which writes down how it was started.
    fn spy(bundle: &Bundle<'_>, name: &str) -> std::path::PathBuf {
        let directory = bundle.path().join("bin");
        fs::create_dir_all(&directory).expect("make a directory");
        let program = directory.join(name);
        let log = bundle.path().join(format!("{name}.log"));
        let text = format!(
            "#!/bin/sh\n{{ tr '\\0' '\\n' </proc/$$/environ | sed 's/^/env /'; echo cwd $(readlink /proc/$$/cwd); \
             for fd in /proc/$$/fd/*; do echo fd $(readlink $fd); done; }} >{}\nexec /usr/bin/{name} \"$@\"\n",
            log.display()
        );
        fs::write(&program, text).expect("write a script");
        fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("make it a program");
        directory
    }

    /// `create` with these programs before those of the machine.
    fn create_with(bundle: &Bundle<'_>, directory: &Path, owner: u32) -> corten_tests::bundle::Output {
        let mut command = bundle.command("create");
        for entry in fs::read_dir(directory).expect("list a directory").flatten() {
            std::os::unix::fs::chown(entry.path(), Some(owner), Some(owner)).expect("give a program away");
        }
        let path = format!("relative:{}:/usr/bin:/bin", directory.display());
        command.env("PATH", path).env("SECRET", "of the caller");
        finish(command.arg("--pid-file").arg(bundle.path().join("pid")).arg(&bundle.id))
    }

    pub(super) fn helpers_are_run_clean(runtime: &Runtime) {
        let bundle = runtime.bundle();
        let mut directory = spy(&bundle, "newuidmap");
        directory.clone_from(&spy(&bundle, "newgidmap"));
        let _created = create_with(&bundle, &directory, 0).success();
        for name in ["newuidmap", "newgidmap"] {
            let log = fs::read_to_string(bundle.path().join(format!("{name}.log"))).expect("it was run");
            let (files, rest): (Vec<&str>, Vec<&str>) = log.lines().partition(|line| line.starts_with("fd "));
            assert_eq!(rest, ["cwd /"], "{name}: {log}");
            // The shell itself has its script open, the log, and the directory that it reads.
            let own = |file: &&str| {
                ["fd /dev/null", "fd pipe:", "fd /proc/"]
                    .iter()
                    .any(|own| file.starts_with(own))
            };
            let left = files
                .iter()
                .filter(|file| !own(file) && !file.contains(name))
                .collect::<Vec<_>>();
            assert!(!files.is_empty() && left.is_empty(), "{name}: {left:?}");
        }
        let _deleted = bundle.call("delete", &["--force"]).success();
    }

    pub(super) fn a_helper_of_another_user_is_not_run(runtime: &Runtime) {
        let bundle = runtime.bundle();
        let directory = spy(&bundle, "newuidmap");
        let error = create_with(&bundle, &directory, ID).failure();
        assert!(error.contains("must be a program of root's"), "{error}");
        assert!(!bundle.path().join("newuidmap.log").exists());
        bundle.assert_nothing_left();
    }

    pub(super) fn states_are_kept_in_the_runtime_directory(runtime: &Runtime) {
        let mut bundle = runtime.bundle();
        bundle.probe(&["sleep"]);
        bundle.write();
        let directory = bundle.path().join("xdg");
        fs::create_dir(&directory).expect("make a directory");
        drop(bundle.command("state"));
        let call = |args: &[&str]| {
            let mut command = runtime.program();
            finish(command.env("XDG_RUNTIME_DIR", &directory).args(args).arg(&bundle.id)).success()
        };
        let _created = call(&["create", "--bundle", &bundle.path().to_string_lossy()]);
        let root = directory.join("corten");
        assert!(root.join(&bundle.id).is_dir());
        let mode = fs::metadata(&root).expect("it is there").mode();
        assert_eq!(mode & 0o7777, 0o1700, "kept from being tidied up");
        let _deleted = call(&["delete", "--force"]);
        assert!(!root.join(&bundle.id).exists());
    }

    pub(super) fn without_a_network_namespace_sys_is_the_host_s(runtime: &Runtime) {
        let mut bundle = runtime.bundle();
        bundle.remove_namespace("network");
        let mounts = bundle.spec["mounts"].as_array_mut().expect("mounts are a list");
        mounts.retain(|mount| mount["type"] != "cgroup");
        let report = bundle.report(&["/sys/class"]);
        assert_eq!(report.path("/sys/class")["type"], "directory");
        for mount in report["mounts"].as_array().expect("mounts are a list") {
            let destination = mount["destination"].as_str().unwrap_or_default();
            if destination.starts_with("/sys") {
                assert!(report.has_option(destination, "ro"), "CVE-2023-25809: {mount}");
            }
        }
    }

    pub(super) fn every_process_is_killed_without_a_cgroup(runtime: &Runtime) {
        let mut bundle = runtime.bundle();
        bundle.probe(&["orphan"]);
        let container = bundle.start();
        container.wait_for("ready");
        let _killed = finish(bundle.command("kill").arg("--all").arg(&bundle.id).arg("KILL")).success();
        assert_eq!(container.wait(), 128 + libc::SIGKILL);
        let _deleted = bundle.call("delete", &[]).success();
    }

    pub(super) fn a_cgroup_can_be_demanded(runtime: &Runtime) {
        let bundle = runtime.bundle();
        bundle.write();
        drop(bundle.command("state"));
        let mut command = runtime.command();
        command
            .arg("--rootless=false")
            .arg("create")
            .arg("--bundle")
            .arg(bundle.path());
        let error = finish(command.arg(&bundle.id)).failure();
        assert!(
            error.contains("make the cgroup") && error.contains("ermission denied"),
            "{error}"
        );
        bundle.assert_nothing_left();
    }

    pub(super) fn an_exec_has_the_oom_score(runtime: &Runtime) {
        let mut bundle = runtime.bundle();
        bundle.spec["process"]["oomScoreAdj"] = json!(777);
        bundle.probe(&["sleep"]);
        let container = bundle.start();
        let text = bundle
            .exec(&[], &["/probe", "cat", "/proc/self/oom_score_adj"])
            .success()
            .stdout;
        assert_eq!(text, "777\n");
        let init = fs::read_to_string(format!("/proc/{}/oom_score_adj", container.pid)).expect("it runs");
        assert_eq!(init, "777\n");
    }

    pub(super) fn a_container_lives_in_the_caller_s_user_namespace(runtime: &Runtime) {
        let mut bundle = runtime.bundle();
        assert_eq!(cat(&mut bundle, "/proc/self/uid_map"), format!("0 {ID} 1"));
        bundle.probe(&["exit", "42"]);
        assert_eq!(bundle.run().code, 42);
        bundle.assert_nothing_left();
    }

    pub(super) fn devices_are_the_host_s(runtime: &Runtime) {
        let report = runtime.bundle().report(&["/dev/null", "/dev/urandom"]);
        for path in ["/dev/null", "/dev/urandom"] {
            assert_eq!(report.path(path)["type"], "character", "{}", report.path(path));
        }
        assert!(
            report.find_mount("/dev/null").is_some(),
            "it cannot be made, so that it is bound"
        );
    }

    /// runc fails where the kernel refuses a limit; corten takes the highest there is.
    pub(super) fn a_limit_beyond_the_hard_one_is_an_error_or_less(runtime: &Runtime) {
        let mut bundle = runtime.bundle();
        let beyond = 1_u64 << 40;
        bundle.spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": beyond, "hard": beyond }]);
        bundle.probe(&["exit", "0"]);
        let output = bundle.run();
        let expected = if runtime.is("corten") { 0 } else { 1 };
        assert_eq!(output.code, expected, "{output:?}");
    }
}
