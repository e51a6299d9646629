//! Compiles the entry of `corten`, which runs before libc does, and makes it the program's entry point.
//!
//! It is no module of the crate: what is compiled with the standard library may call libc wherever the compiler likes.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

/// The flag, however it is joined with its `-C`; flags are separated by U+001F.
const FIXED: &str = "relocation-model=static";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=entry/entry.rs");
    // Fuzzers link the library alone, with flags of their own: tests/fuzz.
    if env::var_os("CARGO_CFG_FUZZING").is_some() {
        return Ok(());
    }
    check_flags()?;
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

/// The entry holds addresses that nobody relocates before it runs, so that the program has to be linked to where it will
/// be. `.cargo/config.toml` sees to that, unless RUSTFLAGS in the environment take the place of its flags.
fn check_flags() -> Result<(), Box<dyn Error>> {
    // In this order they take the place of the file's; cargo by itself does not ask again when they change.
    for variable in ["CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let is_static = features.split(',').any(|feature| feature == "crt-static");
    let is_fixed = flags.ends_with(FIXED) || flags.contains(&format!("{FIXED}\u{1f}"));
    if is_static && is_fixed {
        return Ok(());
    }
    let needed = "-C target-feature=+crt-static -C relocation-model=static";
    Err(format!("corten must be compiled with `{needed}`: are there RUSTFLAGS in the environment without them?").into())
}
