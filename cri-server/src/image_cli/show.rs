//! list and inspect.

use anyhow::{Context, Result, bail};
use corten_proto::cri::{Image, ImageFilter, ImageSpec, ImageStatusRequest, ListImagesRequest};
use indicatif::DecimalBytes;
use serde_json::{Value, json};

use super::bars::short;
use super::{Inspect, List, Output, Server, print, refused};

/// What stands where an image has no name.
const NONE: &str = "<none>";

impl Server {
    pub(super) async fn list(mut self, list: List) -> Result<()> {
        let filter = list.image.map(|image| ImageFilter {
            image: Some(spec(image)),
        });
        let answer = self.cri.list_images(ListImagesRequest { filter }).await;
        let mut images = answer.map_err(refused)?.into_inner().images;
        images.sort_by(|one, other| one.repo_tags.cmp(&other.repo_tags).then_with(|| one.id.cmp(&other.id)));
        match list.output {
            Output::Table => print(&table(&images)),
            Output::Json => print_json(&json!({ "images": images })),
        }
    }

    pub(super) async fn inspect(mut self, inspect: Inspect) -> Result<()> {
        let request = ImageStatusRequest {
            image: Some(spec(inspect.image.clone())),
            verbose: true,
        };
        let answer = self.cri.image_status(request).await.map_err(refused)?.into_inner();
        let Some(image) = answer.image else {
            bail!("image {:?}: no such image", inspect.image);
        };
        let mut info = serde_json::Map::new();
        for (key, text) in answer.info {
            let value = serde_json::from_str(&text).with_context(|| format!("info {key:?}"))?;
            info.insert(key, value);
        }
        match inspect.output {
            Output::Table => print(&page(&image, &info.into())),
            Output::Json => print_json(&json!({ "status": image, "info": info })),
        }
    }
}

/// An image as the CRI names one.
pub(super) fn spec(image: String) -> ImageSpec {
    ImageSpec {
        image,
        ..ImageSpec::default()
    }
}

pub(super) fn print_json(document: &Value) -> Result<()> {
    print(&format!("{document:#}\n"))
}

/// A line for each tag; for an image without one, its digest's.
fn table(images: &[Image]) -> String {
    let mut rows = vec![["IMAGE".to_owned(), "ID".to_owned(), "SIZE".to_owned()]];
    for image in images {
        let names = match (image.repo_tags.as_slice(), image.repo_digests.first()) {
            ([], Some(digest)) => std::slice::from_ref(digest),
            (tags, _) => tags,
        };
        let row = |name: &str| {
            let size = DecimalBytes(image.size).to_string();
            [name.to_owned(), short(&image.id).to_owned(), size]
        };
        match names {
            [] => rows.push(row(NONE)),
            names => rows.extend(names.iter().map(|name| row(name))),
        }
    }
    columns(&rows)
}

/// The rows, each column as wide as its widest cell.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// One thing a line.
fn page(image: &Image, info: &Value) -> String {
    let mut rows = vec![["id".to_owned(), image.id.clone()]];
    let mut row = |key: &str, value: String| rows.push([key.to_owned(), value]);
    image.repo_tags.iter().for_each(|tag| row("tag", tag.clone()));
    image
        .repo_digests
        .iter()
        .for_each(|digest| row("digest", digest.clone()));
    row("size", DecimalBytes(image.size).to_string());
    row("pinned", image.pinned.to_string());
    let spec = &info["info"]["imageSpec"];
    for key in ["architecture", "os", "created"] {
        if let Some(value) = spec[key].as_str() {
            row(key, value.to_owned());
        }
    }
    for key in ["Entrypoint", "Cmd", "User", "WorkingDir"] {
        match &spec["config"][key] {
            Value::Null => {}
            Value::String(text) => row(&key.to_lowercase(), text.clone()),
            other => row(&key.to_lowercase(), other.to_string()),
        }
    }
    for layer in info["info"]["layers"].as_array().into_iter().flatten() {
        let size = layer["size"].as_u64().unwrap_or_default();
        let diff_id = layer["diffID"].as_str().unwrap_or_default();
        row("layer", format!("{diff_id} {}", DecimalBytes(size)));
    }
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_line() {
        let image = |id: &str, tags: &[&str], digests: &[&str]| Image {
            id: format!("sha256:{}", id.repeat(32)),
            repo_tags: tags.iter().map(ToString::to_string).collect(),
            repo_digests: digests.iter().map(ToString::to_string).collect(),
            size: 1_500_000,
            ..Image::default()
        };
        let text = table(&[
            image("ab", &["a.example/a:1", "a.example/a:2"], &["a.example/a@sha256:00"]),
            image("cd", &[], &["a.example/b@sha256:00"]),
            image("ef", &[], &[]),
        ]);
        let expected = "\
IMAGE                  ID            SIZE
a.example/a:1          abababababab  1.50 MB
a.example/a:2          abababababab  1.50 MB
a.example/b@sha256:00  cdcdcdcdcdcd  1.50 MB
<none>                 efefefefefef  1.50 MB
";
        assert_eq!(text, expected);
    }
}
