//! The OCI runtime as its specification describes it, tested from outside: a bundle goes in, and the probe inside the
//! container says what it sees.
//!
//! Every test runs against `corten` and, as the control, against runc: a test that fails with both is wrong about the
//! specification. Where runc deviates or lacks a feature the test is listed under `corten_only`, with the reason.
//! Each test uses ids, cgroups and directories of its own and leaves nothing behind, which is checked after it.

use corten_tests::bundle::Runtime;
use corten_tests::bundle::user::Caller;
use corten_tests::leak;

/// Makes one `#[test]` per runtime of each named `fn(&Runtime)`: `corten::NAME` and `runc::NAME`.
macro_rules! each_runtime {
    ($($(#[$meta:meta])* $name:ident),* $(,)?) => {
        mod corten {
            $($(#[$meta])* #[test] fn $name() { crate::on("corten", super::$name) })*
        }
        mod runc {
            $($(#[$meta])* #[test] fn $name() { crate::on("runc", super::$name) })*
        }
    };
}

/// The same for what runc gets wrong or does not have; the reason stands beside each name.
macro_rules! corten_only {
    ($($name:ident: $reason:literal),* $(,)?) => {
        mod corten_alone {
            $(#[doc = $reason] #[test] fn $name() { crate::on("corten", super::$name) })*
        }
    };
}

/// The same, run by an ordinary user with ids for containers: `rootless::corten::NAME` and `rootless::runc::NAME`.
macro_rules! rootless {
    ($($name:ident),* $(,)?) => {
        mod rootless {
            mod corten {
                $(#[test] fn $name() { crate::run_as(Caller::User, "corten", super::super::$name) })*
                use corten_tests::bundle::user::Caller;
            }
            mod runc {
                $(#[test] fn $name() { crate::run_as(Caller::User, "runc", super::super::$name) })*
                use corten_tests::bundle::user::Caller;
            }
        }
    };
}

mod attacks;
mod cgroup;
mod checkpoint;
mod copy_up;
mod errors;
mod events;
mod exec;
mod features;
mod files;
mod hooks;
mod idmap;
mod killed;
mod labels;
mod lifecycle;
mod mount_options;
mod mounts;
mod namespaces;
mod netdev;
mod no_pivot;
mod notify;
mod pause;
mod process;
mod ps;
mod rdt;
mod recovery;
mod resources;
mod rootfs;
mod rootless;
mod run;
mod same_result;
mod scheduling;
mod seccomp;
mod spec;
mod state;
mod sysctl;
mod systemd;
mod terminal;
mod time;
mod update;

/// Runs one test with one runtime, and checks that nothing is left.
fn on(name: &'static str, test: fn(&Runtime)) {
    run_as(Caller::Root, name, test);
}

/// The same, as this user.
fn run_as(caller: Caller, name: &'static str, test: fn(&Runtime)) {
    let Some(runtime) = Runtime::find_as(caller, name) else {
        eprintln!("SKIP: {name} is not installed");
        return;
    };
    let watch = leak::Watch::new([runtime.marker()]);
    test(&runtime);
    drop(runtime);
    watch.assert_clean();
}
