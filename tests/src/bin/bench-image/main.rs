//! `bench-image`: the images that hack/bench-image.sh pulls, and the measuring of one pull.
//!
//! ```text
//! bench-image make --dir DIR [--scale PERCENT]      writes the images large:1 and small:1 into an image layout
//! bench-image limit --blob FILE                     inflates and hashes one layer in memory
//! bench-image measure [--daemon PID] -- COMMAND...  runs a command and prints what it took, on one line
//! ```
//! The line is `WALL CPU RSS WRITTEN`: seconds, seconds of processor, peak KiB of memory, MiB sent to the disk. With a
//! daemon the last three are its own, between the command's start and end; else they are the command's and its
//! children's.

mod content;
mod measure;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use corten_tests::image::Image;
use lexopt::prelude::*;

fn main() -> Result<()> {
    let mut parser = lexopt::Parser::from_env();
    match parser.next()? {
        Some(Value(command)) if command == "make" => make(parser),
        Some(Value(command)) if command == "measure" => measure(parser),
        Some(Value(command)) if command == "limit" => limit(parser),
        _ => bail!("make, limit or measure comes first"),
    }
}

fn limit(mut parser: lexopt::Parser) -> Result<()> {
    match parser.next()? {
        Some(Long("blob")) => measure::limit(Path::new(&parser.value()?)),
        _ => bail!("--blob FILE is missing"),
    }
}

fn make(mut parser: lexopt::Parser) -> Result<()> {
    let mut dir: Option<PathBuf> = None;
    let mut percent = 100;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("dir") => dir = Some(parser.value()?.into()),
            Long("scale") => percent = parser.value()?.parse()?,
            other => return Err(other.unexpected().into()),
        }
    }
    let dir = dir.context("--dir DIR is missing")?;
    save(&dir, "large:1", 10, |layer| {
        content::large_layer(layer, (105 << 20) / 100 * percent)
    })?;
    save(&dir, "small:1", 3, |layer| {
        content::small_layer(layer, 10_000 * percent / 100)
    })
}

fn save(dir: &Path, name: &str, layers: u64, layer: impl Fn(u64) -> corten_tests::image::Layer) -> Result<()> {
    let image = (0..layers).fold(Image::new(), |image, number| image.layer(layer(number)));
    let saved = image.save(dir, &[name])?;
    let mut packed = 0;
    for blob in &saved.blobs {
        packed += corten_tests::image::blob_path(dir, blob).metadata()?.len();
    }
    println!("{name}: {layers} layers, {} MiB packed", packed >> 20);
    Ok(())
}

fn measure(mut parser: lexopt::Parser) -> Result<()> {
    let mut daemon = None;
    let mut command = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("daemon") => daemon = Some(parser.value()?.parse()?),
            Value(word) => {
                command.push(word);
                command.extend(parser.raw_args()?);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    ensure!(!command.is_empty(), "-- COMMAND is missing");
    println!("{}", measure::run(&command, daemon)?);
    Ok(())
}
