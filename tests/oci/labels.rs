//! Security labels on a machine whose kernel enforces none: they are errors. With AppArmor: `tests/vm`.

use std::path::Path;

use corten_tests::bundle::Runtime;
use serde_json::json;

each_runtime! {
    a_label_that_selinux_would_have_to_enforce_is_refused,
}

corten_only! {
    a_profile_that_apparmor_would_have_to_enforce_is_refused: "runc 1.1 passes over it where AppArmor is off",
    an_exec_with_a_label_is_refused: "runc 1.1 passes over some where the module is off",
    nothing_to_enforce_is_no_error: "runc 1.1 passes over it where AppArmor is off",
}

fn is_on(module: &str) -> bool {
    let on = match module {
        "AppArmor" => Path::new("/sys/kernel/security/apparmor/profiles").exists(),
        _ => Path::new("/sys/fs/selinux/enforce").exists(),
    };
    if on {
        println!("SKIP: {module} is enabled on this machine");
    }
    on
}

const LABEL: &str = "system_u:system_r:container_t:s0:c1,c2";

fn a_label_that_selinux_would_have_to_enforce_is_refused(runtime: &Runtime) {
    if is_on("SELinux") {
        return;
    }
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["selinuxLabel"] = json!(LABEL);
    let error = bundle.call("create", &[]).failure();
    assert!(error.to_lowercase().contains("selinux"), "{error}");
    bundle.assert_nothing_left();
    // Of the label for mounts runc finds out from the kernel, which knows no such option.
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["mountLabel"] = json!(LABEL);
    let error = bundle.call("create", &[]).failure();
    assert!(runtime.is("runc") || error.contains("linux.mountLabel"), "{error}");
    bundle.assert_nothing_left();
}

fn a_profile_that_apparmor_would_have_to_enforce_is_refused(runtime: &Runtime) {
    if is_on("AppArmor") {
        return;
    }
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["apparmorProfile"] = json!("some-profile");
    let error = bundle.call("create", &[]).failure();
    assert!(error.contains("process.apparmorProfile: \"some-profile\""), "{error}");
    bundle.assert_nothing_left();
}

fn an_exec_with_a_label_is_refused(runtime: &Runtime) {
    if is_on("AppArmor") || is_on("SELinux") {
        return;
    }
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    for (flag, value, words) in [
        (
            "--apparmor",
            "some-profile",
            "process.apparmorProfile: \"some-profile\"",
        ),
        ("--process-label", LABEL, "process.selinuxLabel"),
    ] {
        let error = bundle.exec(&[flag, value], &["/probe", "exit", "0"]).failure();
        assert!(error.contains(words), "{error}");
    }
}

fn nothing_to_enforce_is_no_error(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["apparmorProfile"] = json!("unconfined");
    bundle.spec["process"]["selinuxLabel"] = json!("");
    bundle.spec["linux"]["mountLabel"] = json!("");
    bundle.probe(&["exit", "0"]);
    let _output = bundle.run().success();
}
