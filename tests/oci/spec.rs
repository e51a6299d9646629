//! `spec`: a configuration to start from, that of runc, and one that runs.

use std::fs;
use std::path::{Path, PathBuf};

use corten_tests::bundle::{Runtime, finish};
use serde_json::{Value, json};

each_runtime! {
    it_is_written_to_the_bundle,
    it_is_written_to_the_working_directory,
    a_file_that_is_there_is_kept,
    the_configuration_runs,
    rootless_is_the_caller_s_user,
}

corten_only! {
    it_is_runc_s: "it is compared with what runc writes",
}

fn written(runtime: &Runtime, directory: &Path, args: &[&str]) -> String {
    let mut command = runtime.command();
    command.arg("spec").arg("--bundle").arg(directory).args(args);
    let _written = finish(&mut command).success();
    fs::read_to_string(directory.join("config.json")).expect("read what was written")
}

fn directory(runtime: &Runtime) -> tempfile::TempDir {
    let prefix = corten_tests::bundle::unique(runtime.marker());
    tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir()
        .expect("make a directory")
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).expect("the configuration is JSON")
}

fn it_is_written_to_the_bundle(runtime: &Runtime) {
    let directory = directory(runtime);
    let spec = parse(&written(runtime, directory.path(), &[]));
    assert_eq!(spec["process"]["args"], json!(["sh"]));
    assert_eq!(spec["process"]["terminal"], true);
    assert_eq!(spec["root"], json!({ "path": "rootfs", "readonly": true }));
}

fn it_is_written_to_the_working_directory(runtime: &Runtime) {
    let directory = directory(runtime);
    let _written = finish(runtime.command().arg("spec").current_dir(directory.path())).success();
    assert!(directory.path().join("config.json").is_file());
}

fn a_file_that_is_there_is_kept(runtime: &Runtime) {
    let directory = directory(runtime);
    let file: PathBuf = directory.path().join("config.json");
    fs::write(&file, "mine").expect("write a file of the test");
    let error = finish(runtime.command().arg("spec").arg("-b").arg(directory.path())).failure();
    assert!(error.contains("config.json"), "{error}");
    assert_eq!(fs::read_to_string(&file).expect("read it"), "mine");
}

fn the_configuration_runs(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec = parse(&written(runtime, bundle.path(), &[]));
    bundle.spec["process"]["terminal"] = json!(false);
    bundle.spec["linux"]["cgroupsPath"] = json!(format!("/{}", bundle.id));
    let report = bundle.report(&[]);
    assert_eq!(report["hostname"], if runtime.is("runc") { "runc" } else { "corten" });
    assert_eq!(report.status("CapEff"), "0000000020000420");
    assert_eq!(report.status("NoNewPrivs"), "1");
}

fn rootless_is_the_caller_s_user(runtime: &Runtime) {
    let directory = directory(runtime);
    let spec = parse(&written(runtime, directory.path(), &["--rootless"]));
    let mapping = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
    assert_eq!(spec["linux"]["uidMappings"], mapping);
    assert_eq!(spec["linux"]["gidMappings"], mapping);
    let namespaces = spec["linux"]["namespaces"].as_array().expect("a list");
    let kinds: Vec<&str> = namespaces
        .iter()
        .filter_map(|namespace| namespace["type"].as_str())
        .collect();
    assert!(kinds.contains(&"user") && !kinds.contains(&"network"), "{kinds:?}");
    assert_eq!(spec["linux"]["resources"], Value::Null);
}

/// Byte for byte, but for what `commands/spec.rs` says it does otherwise.
fn it_is_runc_s(runtime: &Runtime) {
    let Some(runc) = Runtime::find("runc") else {
        eprintln!("SKIP: runc is not installed");
        return;
    };
    for args in [&[][..], &["--rootless"]] {
        let (ours, theirs) = (directory(runtime), directory(runtime));
        let ours = written(runtime, ours.path(), args);
        let theirs = written(&runc, theirs.path(), args);
        let ambient = theirs
            .find(",\n\t\t\t\"ambient\": [")
            .expect("runc 1.1 has ambient capabilities");
        let end = ambient + theirs[ambient..].find(']').expect("a list ends") + 1;
        let version = parse(&theirs)["ociVersion"].as_str().unwrap_or_default().to_owned();
        let expected = format!("{}{}", &theirs[..ambient], &theirs[end..])
            .replace(&format!("\"{version}\""), "\"1.3.0\"")
            .replace("\"hostname\": \"runc\"", "\"hostname\": \"corten\"");
        assert_eq!(ours, expected);
    }
}
