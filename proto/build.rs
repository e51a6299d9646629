//! Compiles the `.proto` files with protox, so that a build machine needs no `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=config/config.proto");
    println!("cargo::rerun-if-changed=cri/api.proto");
    println!("cargo::rerun-if-changed=images/images.proto");
    println!("cargo::rerun-if-changed=shim/shim.proto");

    let shim = protox::compile(["shim/shim.proto"], ["shim"])?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_server(false)
        .compile_fds(shim)?;

    // Records and `crictl inspect` hold CRI messages as JSON, in the field names of the .proto file; a record
    // written by an older version lacks the newer fields, hence the defaults.
    let cri = protox::compile(["cri/api.proto"], ["cri"])?;
    tonic_prost_build::configure()
        .message_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]")
        .enum_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .compile_fds(cri)?;

    let images = protox::compile(["images/images.proto"], ["images"])?;
    tonic_prost_build::configure().compile_fds(images)?;

    let config = protox::compile(["config/config.proto"], ["config"])?;
    tonic_prost_build::configure().compile_fds(config)?;
    Ok(())
}
