//! Compiles the entry of `corten`, which runs before libc does, and makes it the program's entry point.
//!
//! It is no module of the crate: what is compiled with the standard library may call libc wherever the compiler likes.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=entry/entry.rs");
    let object = PathBuf::from(env::var("OUT_DIR")?).join("entry.o");
    let status = Command::new(env::var("RUSTC")?)
        .args([
            "--crate-name",
            "entry",
            "--crate-type",
            "lib",
            "--edition",
            "2024",
            "--emit",
            "obj",
        ])
        .args(["--target", &env::var("TARGET")?])
        .args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "codegen-units=1"])
        .args(["-C", "relocation-model=static", "-C", "overflow-checks=off"])
        .arg("-o")
        .arg(&object)
        .arg("entry/entry.rs")
        .status()?;
    if !status.success() {
        return Err(format!("compiling entry/entry.rs: {status}").into());
    }
    println!("cargo::rustc-link-arg-bin=corten={}", object.display());
    println!("cargo::rustc-link-arg-bin=corten=-Wl,--entry=corten_entry");
    Ok(())
}
