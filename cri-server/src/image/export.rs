//! An image as a file: an OCI image layout in an archive.
//!
//! Layers are kept unpacked, without the archives they came from. They are written anew (`layer_tar`), so layers, config and
//! manifest have other digests than what was pulled, and a node that imports the file knows the image by another id. Their
//! content is the same, holes included, and exporting again gives the same digests.
//!
//! ```text
//! blobs/sha256/HEX      each layer, unpacked; config; manifest
//! index.json            one entry a name
//! oci-layout
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, Result};
use corten_proto::id::Digest;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::archive::{CHECK_EVERY, check_space};
use super::layer_tar;
use super::manifest::{OCI_INDEX, OCI_MANIFEST};
use super::record::Image;
use super::store::ImageStore;

impl ImageStore {
    /// Writes `image` to `out`. Blocks. Its layers stay while this runs, whatever becomes of the image. Ends early once
    /// `gone` says that nobody wants it any more: nothing is written to `out` while a layer is made ready.
    pub fn export(&self, image: &Image, out: impl Write, gone: impl Fn() -> bool) -> Result<()> {
        let _lease = self.lease(&image.layers)?;
        let mut layout = Layout(tar::Builder::new(out));
        let mut written: HashMap<&Digest, Value> = HashMap::new();
        for layer in &image.layers {
            if !written.contains_key(layer) {
                let descriptor = layout.layer(&self.layer_path(layer), self.root(), &gone);
                written.insert(layer, descriptor.with_context(|| format!("layer {layer}"))?);
            }
        }
        let layers: Vec<&Value> = image.layers.iter().map(|layer| &written[layer]).collect();
        let mut config = serde_json::to_value(&image.config).context("encode the config")?;
        // They are not packed, so their digests are their diff ids.
        let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        config["rootfs"]["diff_ids"] = json!(diff_ids);
        let config = layout.document("application/vnd.oci.image.config.v1+json", &config)?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers,
        });
        let manifest = layout.document(OCI_MANIFEST, &manifest)?;
        layout.index(&manifest, &image.repo_tags)?;
        layout.finish()
    }
}

/// The layout under construction.
struct Layout<W: Write>(tar::Builder<W>);

impl<W: Write> Layout<W> {
    /// Adds a layer; its descriptor. Its archive is written to a file without a name first: what comes before it in the
    /// layout, its size and its digest, is known afterwards only.
    fn layer(&mut self, files: &Path, root: &Path, gone: &dyn Fn() -> bool) -> Result<Value> {
        let file = tempfile::tempfile_in(root).with_context(|| format!("make a file in {}", root.display()))?;
        let mut spool = Spool::new(file, gone);
        layer_tar::write(files, &mut spool)?;
        let (digest, size) = (Digest::from_sha256(&spool.hash.finalize().into()), spool.size);
        let mut file: File = spool.inner.into_inner().context("write the layer")?;
        file.rewind().context("rewind the layer")?;
        self.add(&blob_name(&digest), size, file)?;
        Ok(descriptor("application/vnd.oci.image.layer.v1.tar", &digest, size))
    }

    /// Adds a JSON document as a blob; its descriptor.
    fn document(&mut self, media_type: &str, document: &Value) -> Result<Value> {
        let content = serde_json::to_vec(document)?;
        let digest = Digest::from_sha256(&Sha256::digest(&content).into());
        let size = content.len() as u64;
        self.add(&blob_name(&digest), size, content.as_slice())?;
        Ok(descriptor(media_type, &digest, size))
    }

    fn index(&mut self, manifest: &Value, names: &[String]) -> Result<()> {
        let named = |name: &String| {
            let mut entry = manifest.clone();
            entry["annotations"] = json!({
                "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name,
            });
            entry
        };
        let mut entries: Vec<Value> = names.iter().map(named).collect();
        if entries.is_empty() {
            entries.push(manifest.clone());
        }
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
        let content = serde_json::to_vec(&index)?;
        self.add("index.json", content.len() as u64, content.as_slice())?;
        let version = br#"{"imageLayoutVersion":"1.0.0"}"#;
        self.add("oci-layout", version.len() as u64, version.as_slice())
    }

    fn add(&mut self, name: &str, size: u64, content: impl Read) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o644);
        let added = self.0.append_data(&mut header, name, content);
        added.with_context(|| format!("write {name}"))
    }

    fn finish(self) -> Result<()> {
        let mut out = self.0.into_inner().context("end the archive")?;
        out.flush().context("end the archive")
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}", digest.as_str().replacen(':', "/", 1))
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

/// A layer's archive under construction: hashed and counted, while there is room for it and somebody wants it.
struct Spool<'a> {
    inner: io::BufWriter<File>,
    hash: Sha256,
    size: u64,
    /// Bytes since the last look at the room that is left.
    unchecked: u64,
    gone: &'a dyn Fn() -> bool,
}

impl<'a> Spool<'a> {
    fn new(file: File, gone: &'a dyn Fn() -> bool) -> Self {
        Spool {
            inner: io::BufWriter::with_capacity(256 << 10, file),
            hash: Sha256::new(),
            size: 0,
            unchecked: 0,
            gone,
        }
    }
}

impl Write for Spool<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if (self.gone)() {
            return Err(io::Error::other("the caller has gone"));
        }
        let count = self.inner.write(buffer)?;
        self.hash.update(&buffer[..count]);
        self.size += count as u64;
        self.unchecked += count as u64;
        if self.unchecked >= CHECK_EVERY {
            self.unchecked = 0;
            check_space(self.inner.get_ref()).map_err(|error| io::Error::other(error.to_string()))?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn nothing_more_is_written_for_a_caller_that_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        let large = File::create(dir.path().join("large")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&large, &vec![1; 8 << 20], 0).unwrap();
        let writes = Cell::new(0);
        let gone = || writes.replace(writes.get() + 1) >= 100;
        let mut spool = Spool::new(tempfile::tempfile().unwrap(), &gone);
        let error = layer_tar::write(dir.path(), &mut spool).unwrap_err();
        assert!(format!("{error:#}").contains("the caller has gone"), "{error:#}");
        assert!(spool.size < 1 << 20, "{} bytes", spool.size);
    }
}
