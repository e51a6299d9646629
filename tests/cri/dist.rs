//! The files of `hack/dist`: units that systemd takes, samples that name what the server has, a page for the shim. Manual
//! pages and completions are held against the command lines where they are made (`examples` of both crates).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use corten_tests::binary;

fn dist(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/dist").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(dist(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn systemd_takes_the_units() {
    let dir = tempfile::tempdir().unwrap();
    // Where they are installed there are binaries, which systemd looks for.
    let installed = binary("corten-cri").display().to_string();
    let units = ["corten-cri.service", "corten-cri.socket"].map(|name| {
        let path = dir.path().join(name);
        let text = read(&format!("systemd/{name}"));
        fs::write(&path, text.replace("/usr/local/bin/corten-cri", &installed)).unwrap();
        path
    });
    let mut verify = Command::new("systemd-analyze");
    verify
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args(&units);
    let output = match verify.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("SKIP: systemd-analyze is not installed");
            return;
        }
        output => output.unwrap(),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    // Where the machine itself is not run by systemd it has complaints of its own.
    let ours: Vec<_> = said.lines().filter(|line| line.contains("corten-cri")).collect();
    assert!(ours.is_empty() && output.status.success(), "{said}");
}

#[test]
fn samples_name_the_socket_and_the_runtimes_that_there_are() {
    let output = Command::new(binary("corten-cri"))
        .args(["config", "default"])
        .output()
        .unwrap();
    let default: toml::Table = toml::from_str(std::str::from_utf8(&output.stdout).unwrap()).unwrap();
    let socket = default["listen"].as_str().unwrap();
    let endpoint = format!("unix://{socket}");
    assert!(read("systemd/corten-cri.socket").contains(&format!("\nListenStream={socket}\n")));
    assert!(read("kubernetes/kubelet.yaml").contains(&format!("\ncontainerRuntimeEndpoint: {endpoint}\n")));
    for key in ["runtime-endpoint", "image-endpoint"] {
        assert!(read("crictl.yaml").contains(&format!("\n{key}: {endpoint}\n")), "{key}");
    }
    let classes = read("kubernetes/runtimeclasses.yaml");
    assert!(classes.contains(&format!(
        "\nhandler: {}\n",
        default["default_runtime"].as_str().unwrap()
    )));
}

#[test]
fn the_shims_page_has_its_options() {
    let output = Command::new(binary("corten-shim")).arg("--help").output().unwrap();
    let usage = String::from_utf8(output.stdout).unwrap();
    let page = read("man/corten-shim.8");
    let options: Vec<_> = usage.split_whitespace().filter(|word| word.starts_with("--")).collect();
    assert!(options.len() > 5, "{usage}");
    for option in &options {
        assert!(page.contains(&option.replace('-', "\\-")), "{option}");
    }
    let described = page.matches("\n\\fB\\-\\-").count();
    assert!(described >= options.len() - 1, "{described} of {options:?}");
}
