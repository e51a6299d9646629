//! `registry`: serves an image layout (see `mkimage`) over plain HTTP, read-only, until it is ended.
//!
//! ```text
//! registry --listen 127.0.0.1:5000 --dir DIR
//! ```
//! Prints `listening on ADDRESS` once requests are answered; with port 0 the kernel chooses the port.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use corten_tests::registry::Registry;
use lexopt::prelude::*;

fn main() -> Result<()> {
    let mut listen: SocketAddr = ([127, 0, 0, 1], 5000).into();
    let mut dir: Option<PathBuf> = None;
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("listen") => listen = parser.value()?.parse()?,
            Long("dir") => dir = Some(parser.value()?.into()),
            other => return Err(other.unexpected().into()),
        }
    }
    let dir = dir.context("--dir DIR is missing")?;
    let registry = Registry::listen(listen, &dir)?;
    println!("listening on {}", registry.address());
    loop {
        std::thread::park();
    }
}
