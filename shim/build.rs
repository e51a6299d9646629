//! Compiles the pause program for the target, with the compiler that builds the shim.
//!
//! It is not a crate of the workspace: it must be linked without libc and start-up files, which cargo cannot be told
//! for one binary, and it must exist before the shim is compiled, which embeds it.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

/// Link arguments: no libc, no start-up files, and one segment of one page, for each page is memory a pod.
const LINK_ARGS: [&str; 8] = [
    "-nostdlib",
    "-nostartfiles",
    "-static",
    "-no-pie",
    "-Wl,-z,noseparate-code,-z,norelro,-z,max-page-size=4096",
    "-Wl,--build-id=none",
    "-Wl,--gc-sections",
    "-Wl,--no-eh-frame-hdr",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=pause/pause.rs");
    let output = PathBuf::from(env::var("OUT_DIR")?).join("pause");
    let mut rustc = Command::new(env::var("RUSTC")?);
    rustc
        .args(["--crate-name", "pause", "--crate-type", "bin", "--edition", "2024"])
        .args(["--target", &env::var("TARGET")?])
        .args([
            "-C",
            "panic=abort",
            "-C",
            "opt-level=s",
            "-C",
            "codegen-units=1",
            "-C",
            "strip=symbols",
        ])
        .args(["-C", "relocation-model=static", "-C", "target-feature=+crt-static"])
        .arg("-o")
        .arg(&output)
        .arg("pause/pause.rs");
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.args(["-C", &format!("linker={linker}")]);
    }
    for arg in LINK_ARGS {
        rustc.args(["-C", &format!("link-arg={arg}")]);
    }
    let status = rustc.status()?;
    if !status.success() {
        return Err(format!("compiling pause/pause.rs: {status}").into());
    }
    Ok(())
}
