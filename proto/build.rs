//! Compiles the `.proto` files with protox, so that a build machine needs no `protoc`.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use tonic_prost_build::FileDescriptorSet;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=cri/api.proto");
    println!("cargo::rerun-if-changed=exits/exits.proto");
    println!("cargo::rerun-if-changed=images/images.proto");
    println!("cargo::rerun-if-changed=networks/networks.proto");
    println!("cargo::rerun-if-changed=otlp/trace.proto");
    println!("cargo::rerun-if-changed=shim/shim.proto");

    let shim = protox::compile(["shim/shim.proto"], ["shim"])?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_server(false)
        .compile_fds(shim)?;

    // Records and `crictl inspect` hold CRI messages as JSON, in the field names of the .proto file; a record
    // written by an older version lacks the newer fields, hence the defaults.
    let cri = protox::compile(["cri/api.proto"], ["cri"])?;
    let methods = methods(&cri);
    tonic_prost_build::configure()
        .message_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]")
        .enum_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .compile_fds(cri)?;

    let images = protox::compile(["images/images.proto"], ["images"])?;
    let methods = [methods, self::methods(&images)].concat();
    tonic_prost_build::configure().compile_fds(images)?;

    let exits = protox::compile(["exits/exits.proto"], ["exits"])?;
    let methods = [methods, self::methods(&exits)].concat();
    tonic_prost_build::configure().compile_fds(exits)?;

    let networks = protox::compile(["networks/networks.proto"], ["networks"])?;
    let methods = [methods, self::methods(&networks)].concat();
    tonic_prost_build::configure().compile_fds(networks)?;

    let file = PathBuf::from(env::var("OUT_DIR")?).join("methods.rs");
    fs::write(file, format!("&{methods:?}"))?;

    let otlp = protox::compile(["otlp/trace.proto"], ["otlp"])?;
    tonic_prost_build::configure().compile_fds(otlp)?;
    Ok(())
}

/// The names of all methods of all services.
fn methods(set: &FileDescriptorSet) -> Vec<String> {
    let services = set.file.iter().flat_map(|file| &file.service);
    let methods = services.flat_map(|service| &service.method);
    methods.map(|method| method.name().to_owned()).collect()
}
