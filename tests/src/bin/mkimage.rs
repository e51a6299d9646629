//! `mkimage`: writes a busybox image into an image layout that `registry` serves.
//!
//! ```text
//! mkimage --out DIR --name busybox:latest [--name NAME...] [--busybox /bin/busybox] [--format oci|docker]
//!         [--add TREE]... [--entrypoint ARG]... [--cmd ARG]...
//! ```
//! `--add` puts another layer on top, made of a directory tree. Prints the image's id, its config digest.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use corten_tests::image::{self, Format, Layer};
use lexopt::prelude::*;

struct Arguments {
    out: PathBuf,
    names: Vec<String>,
    busybox: PathBuf,
    format: Format,
    trees: Vec<PathBuf>,
    entrypoint: Vec<String>,
    cmd: Vec<String>,
}

fn main() -> Result<()> {
    let arguments = parse()?;
    let mut image = image::busybox(&arguments.busybox)?;
    image.format = arguments.format;
    for tree in &arguments.trees {
        image = image.layer(Layer::new().tree(tree)?);
    }
    if !arguments.entrypoint.is_empty() {
        image.config["Entrypoint"] = arguments.entrypoint.into();
    }
    if !arguments.cmd.is_empty() {
        image.config["Cmd"] = arguments.cmd.into();
    }
    let names: Vec<&str> = arguments.names.iter().map(String::as_str).collect();
    println!("{}", image.save(&arguments.out, &names)?.id);
    Ok(())
}

fn parse() -> Result<Arguments> {
    let mut out = None;
    let mut arguments = Arguments {
        out: PathBuf::new(),
        names: Vec::new(),
        busybox: "/bin/busybox".into(),
        format: Format::Oci,
        trees: Vec::new(),
        entrypoint: Vec::new(),
        cmd: Vec::new(),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("out") => out = Some(parser.value()?.into()),
            Long("name") => arguments.names.push(parser.value()?.string()?),
            Long("busybox") => arguments.busybox = parser.value()?.into(),
            Long("add") => arguments.trees.push(parser.value()?.into()),
            Long("entrypoint") => arguments.entrypoint.push(parser.value()?.string()?),
            Long("cmd") => arguments.cmd.push(parser.value()?.string()?),
            Long("format") => {
                arguments.format = match parser.value()?.string()?.as_str() {
                    "oci" => Format::Oci,
                    "docker" => Format::Docker,
                    other => bail!("--format {other:?}: oci or docker"),
                }
            }
            other => return Err(other.unexpected().into()),
        }
    }
    arguments.out = out.context("--out DIR is missing")?;
    ensure!(!arguments.names.is_empty(), "--name NAME:TAG is missing");
    Ok(arguments)
}
