//! Images for the tests and the quick start: layers built entry by entry, configs and manifests in OCI or Docker form.
//!
//! The same input always gives the same digests: no clock, no directory order, no user of the machine enters a layer.
//! A [`Layer`] takes whatever it is told, `..` in a name included, because hostile archives are half of its purpose.
//!
//! On disk an image is an OCI image layout, which [`crate::registry`] serves:
//!
//! ```text
//! DIR/oci-layout
//!     index.json              one descriptor per name; annotation org.opencontainers.image.ref.name = "busybox:latest"
//!     blobs/sha256/HEX        manifests, configs, layers; sha512/HEX where an image is digested so
//! ```
//! Left out: signing, and anything that only a push needs.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use corten_proto::id::{Algorithm, Digest};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};
use tar::EntryType;

/// Every entry's time of modification unless it says otherwise, in seconds since 1970.
pub const MTIME: u64 = 1_700_000_000;

/// The annotation by which an image layout names an image.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// One entry of a layer, as a tar header says it.
#[derive(Clone)]
pub struct Entry<'a> {
    /// The name, byte for byte as it enters the archive.
    pub path: &'a str,
    /// The type flag.
    pub kind: EntryType,
    /// Permission bits, set-id bits included.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Target of a symbolic or hard link; empty for other types.
    pub link: &'a str,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Content of a regular file.
    pub data: &'a [u8],
    /// PAX records that precede the entry, for example `("SCHILY.xattr.user.a", b"1")` or `("mtime", b"1.5")`.
    pub pax: &'a [(&'a str, &'a [u8])],
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Entry {
            path: "",
            kind: EntryType::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            link: "",
            device: (0, 0),
            data: b"",
            pax: &[],
        }
    }
}

/// A layer under construction: an archive in memory.
pub struct Layer(tar::Builder<Vec<u8>>);

impl Default for Layer {
    fn default() -> Self {
        Layer::new()
    }
}

/// Every method that adds an entry panics only on what an in-memory archive cannot refuse: nothing.
impl Layer {
    /// A layer without entries.
    #[must_use]
    pub fn new() -> Self {
        Layer(tar::Builder::new(Vec::new()))
    }

    /// Adds one entry exactly as given. Names longer than a header holds go into PAX records.
    #[must_use]
    pub fn entry(mut self, entry: &Entry<'_>) -> Self {
        let mut pax: Vec<(&str, &[u8])> = entry.pax.to_vec();
        let mut header = tar::Header::new_ustar();
        let fields = header.as_ustar_mut().expect("the header was made as ustar");
        if !put(&mut fields.name, entry.path) {
            pax.push(("path", entry.path.as_bytes()));
        }
        if !put(&mut fields.linkname, entry.link) {
            pax.push(("linkpath", entry.link.as_bytes()));
        }
        fields.set_device_major(entry.device.0);
        fields.set_device_minor(entry.device.1);
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_uid(entry.uid);
        header.set_gid(entry.gid);
        header.set_mtime(MTIME);
        header.set_size(entry.data.len() as u64);
        header.set_cksum();
        let in_memory = "a Vec takes every write";
        self.0.append_pax_extensions(pax).expect(in_memory);
        self.0.append(&header, entry.data).expect(in_memory);
        self
    }

    /// Adds a directory.
    #[must_use]
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(&Entry {
            path,
            kind: EntryType::Directory,
            mode,
            ..Entry::default()
        })
    }

    /// Adds a regular file.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, data: &[u8]) -> Self {
        self.entry(&Entry {
            path,
            mode,
            data,
            ..Entry::default()
        })
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, link: &str) -> Self {
        self.entry(&Entry {
            path,
            kind: EntryType::Symlink,
            mode: 0o777,
            link,
            ..Entry::default()
        })
    }

    /// Adds a hard link to the earlier entry `link`.
    #[must_use]
    pub fn hard_link(self, path: &str, link: &str) -> Self {
        self.entry(&Entry {
            path,
            kind: EntryType::Link,
            link,
            ..Entry::default()
        })
    }

    /// Adds the OCI whiteout of `name` in directory `dir` (which may be empty: the root).
    #[must_use]
    pub fn whiteout(self, dir: &str, name: &str) -> Self {
        self.file(&join(dir, &format!(".wh.{name}")), 0o644, b"")
    }

    /// Marks directory `dir` as opaque: nothing of it shows through from the layers below.
    #[must_use]
    pub fn opaque(self, dir: &str) -> Self {
        self.file(&join(dir, ".wh..wh..opq"), 0o644, b"")
    }

    /// Adds everything below the directory `tree`, in order of name: files, directories and symbolic links, owned by
    /// root.
    pub fn tree(self, tree: &Path) -> Result<Self> {
        self.subtree(tree, "")
    }

    fn subtree(mut self, dir: &Path, prefix: &str) -> Result<Self> {
        let reading = || format!("read {}", dir.display());
        let mut entries: Vec<_> = fs::read_dir(dir).and_then(Iterator::collect).with_context(reading)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for found in entries {
            let path = found.path();
            let name = join(prefix, std::str::from_utf8(found.file_name().as_bytes())?);
            let metadata = fs::symlink_metadata(&path).with_context(reading)?;
            let mode = metadata.mode() & 0o7777;
            let kind = metadata.file_type();
            self = if kind.is_dir() {
                self.dir(&name, mode).subtree(&path, &name)?
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).with_context(reading)?;
                self.symlink(&name, std::str::from_utf8(target.as_os_str().as_bytes())?)
            } else {
                ensure!(kind.is_file(), "{}: neither file, directory nor link", path.display());
                self.file(&name, mode, &fs::read(&path).with_context(reading)?)
            };
        }
        Ok(self)
    }

    /// The finished archive.
    #[must_use]
    pub fn into_tar(self) -> Vec<u8> {
        self.0.into_inner().expect("a Vec takes every write")
    }
}

/// The form of an image's manifest and config.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OCI image-spec 1.0.
    Oci,
    /// Docker's schema 2, which most registries still hold.
    Docker,
}

/// How the layers are packed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Plain tar.
    Plain,
    /// Gzip, the usual one.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// An image under construction.
pub struct Image {
    layers: Vec<Vec<u8>>,
    /// The `config` object of the image's configuration: `Cmd`, `Env`, `User`, ...
    pub config: Value,
    /// The form of the documents.
    pub format: Format,
    /// How layers are packed.
    pub packing: Packing,
    /// How everything is digested.
    pub algorithm: Algorithm,
    /// The architecture the config names; this machine's unless changed.
    pub architecture: String,
}

/// What [`Image::save`] wrote.
#[derive(Clone, Debug)]
pub struct Saved {
    /// Digest of the configuration: the image's id.
    pub id: Digest,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Digests of the layers as served, bottom first.
    pub blobs: Vec<Digest>,
    /// Digests of the unpacked layers, bottom first.
    pub diff_ids: Vec<Digest>,
}

impl Default for Image {
    fn default() -> Self {
        Image::new()
    }
}

impl Image {
    /// An image without layers, in OCI form, gzip-packed.
    #[must_use]
    pub fn new() -> Self {
        Image {
            layers: Vec::new(),
            config: json!({}),
            format: Format::Oci,
            packing: Packing::Gzip,
            algorithm: Algorithm::Sha256,
            architecture: architecture().to_owned(),
        }
    }

    /// Puts a layer on top.
    #[must_use]
    pub fn layer(self, layer: Layer) -> Self {
        self.archive(layer.into_tar())
    }

    /// Puts an archive on top that was made elsewhere, whatever it holds.
    #[must_use]
    pub fn archive(mut self, tar: Vec<u8>) -> Self {
        self.layers.push(tar);
        self
    }

    /// Writes the image into the layout at `dir` under every name of `names` (`busybox:latest`), replacing what had
    /// these names.
    pub fn save(&self, dir: &Path, names: &[&str]) -> Result<Saved> {
        let mut diff_ids = Vec::new();
        let mut blobs = Vec::new();
        let mut layers = Vec::new();
        for tar in &self.layers {
            let blob = self.pack(tar)?;
            let digest = self.write(dir, &blob)?;
            layers.push(descriptor(self.layer_type(), &digest, blob.len()));
            blobs.push(digest);
            diff_ids.push(digest_by(self.algorithm, tar));
        }
        let config = json!({
            "created": "1970-01-01T00:00:00Z",
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = serde_json::to_vec(&config)?;
        let id = self.write(dir, &config)?;
        let (manifest_type, config_type) = self.document_types();
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": descriptor(config_type, &id, config.len()),
            "layers": layers,
        }))?;
        let digest = self.write(dir, &manifest)?;
        name_manifest(dir, &descriptor(manifest_type, &digest, manifest.len()), names)?;
        Ok(Saved {
            id,
            manifest: digest,
            blobs,
            diff_ids,
        })
    }

    fn write(&self, dir: &Path, content: &[u8]) -> Result<Digest> {
        let digest = digest_by(self.algorithm, content);
        write_as(dir, &digest, content)?;
        Ok(digest)
    }

    fn pack(&self, tar: &[u8]) -> Result<Vec<u8>> {
        match self.packing {
            Packing::Plain => Ok(tar.to_vec()),
            Packing::Gzip => {
                let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast());
                gzip.write_all(tar)?;
                Ok(gzip.finish()?)
            }
            Packing::Zstd => {
                let mut zstd = zstd::Encoder::new(Vec::new(), 1)?;
                // The largest window that is accepted, also of a small layer: what costs a decoder most.
                zstd.window_log(23)?;
                zstd.include_contentsize(false)?;
                zstd.write_all(tar)?;
                Ok(zstd.finish()?)
            }
        }
    }

    fn layer_type(&self) -> &'static str {
        match (self.format, self.packing) {
            (Format::Oci, Packing::Plain) => "application/vnd.oci.image.layer.v1.tar",
            (Format::Oci, Packing::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Format::Oci, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Format::Docker, Packing::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
            (Format::Docker, Packing::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Format::Docker, Packing::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
        }
    }

    /// Media types of the manifest and of the config.
    fn document_types(&self) -> (&'static str, &'static str) {
        match self.format {
            Format::Oci => (
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.oci.image.config.v1+json",
            ),
            Format::Docker => (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
            ),
        }
    }
}

/// An image of Debian's static busybox: every applet a hard link in `/bin`, users root, daemon, www-data and nobody.
/// Its command is `sh`.
///
/// `busybox` is the program's path, `/bin/busybox` where the package busybox-static put it.
pub fn busybox(busybox: &Path) -> Result<Image> {
    let running = || format!("run {} --list", busybox.display());
    let program = fs::read(busybox).with_context(|| format!("read {}", busybox.display()))?;
    let list = Command::new(busybox).arg("--list").output().with_context(running)?;
    ensure!(list.status.success(), "{}: {}", running(), list.status);
    let mut layer = Layer::new().dir("./", 0o755);
    for dir in [
        "bin", "dev", "etc", "home", "proc", "run", "sys", "usr", "var", "var/log",
    ] {
        layer = layer.dir(dir, 0o755);
    }
    layer = layer
        .dir("root", 0o700)
        .dir("tmp", 0o1777)
        .symlink("sbin", "bin")
        .symlink("usr/bin", "../bin")
        .symlink("var/run", "../run")
        .file("etc/passwd", 0o644, PASSWD)
        .file("etc/group", 0o644, GROUP)
        .file("bin/busybox", 0o755, &program);
    let applets = String::from_utf8(list.stdout).context("names of applets")?;
    for applet in applets.lines().filter(|name| *name != "busybox") {
        // tar gives a hard link the mode of its file, and containerd applies it to the file once more.
        layer = layer.entry(&Entry {
            path: &format!("bin/{applet}"),
            kind: EntryType::Link,
            mode: 0o755,
            link: "bin/busybox",
            ..Entry::default()
        });
    }
    let mut image = Image::new().layer(layer);
    image.config = json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "Cmd": ["sh"],
    });
    Ok(image)
}

const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
daemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
www-data:x:33:33:www-data:/var/www:/bin/false\n\
nobody:x:65534:65534:nobody:/home:/bin/false\n";

const GROUP: &[u8] = b"root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nusers:x:100:www-data\nnogroup:x:65534:\n";

/// Writes an index of the named manifests and gives it `names`. Each platform is `(architecture, manifest)`.
pub fn save_index(dir: &Path, platforms: &[(&str, &Saved)], names: &[&str]) -> Result<Digest> {
    let manifests: Result<Vec<Value>> = platforms
        .iter()
        .map(|(architecture, image)| {
            let content = fs::read(blob_path(dir, &image.manifest))?;
            let document: Value = serde_json::from_slice(&content)?;
            let media_type = document["mediaType"].as_str().context("a manifest's mediaType")?;
            let mut entry = descriptor(media_type, &image.manifest, content.len());
            entry["platform"] = json!({ "architecture": architecture, "os": "linux" });
            Ok(entry)
        })
        .collect();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests? });
    save_document(dir, &index, media_type, names)
}

/// Stores any JSON document as a manifest of type `media_type` under `names`: for documents no builder would make.
pub fn save_document(dir: &Path, document: &Value, media_type: &str, names: &[&str]) -> Result<Digest> {
    let content = serde_json::to_vec(document)?;
    let digest = write_blob(dir, &content)?;
    name_manifest(dir, &descriptor(media_type, &digest, content.len()), names)?;
    Ok(digest)
}

/// Where the layout at `dir` keeps a blob.
#[must_use]
pub fn blob_path(dir: &Path, digest: &Digest) -> std::path::PathBuf {
    dir.join("blobs").join(digest.algorithm().name()).join(digest.hex())
}

/// Stores `content` in the layout at `dir`.
pub fn write_blob(dir: &Path, content: &[u8]) -> Result<Digest> {
    let digest = digest_of(content);
    write_as(dir, &digest, content)?;
    Ok(digest)
}

fn write_as(dir: &Path, digest: &Digest, content: &[u8]) -> Result<()> {
    let path = blob_path(dir, digest);
    let parent = path.parent().expect("a blob's path has a directory");
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    fs::write(&path, content).with_context(|| format!("write {}", path.display()))
}

/// The SHA-256 of `content`.
#[must_use]
pub fn digest_of(content: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(content).into())
}

/// The digest of `content` by either algorithm.
#[must_use]
pub fn digest_by(algorithm: Algorithm, content: &[u8]) -> Digest {
    match algorithm {
        Algorithm::Sha256 => digest_of(content),
        Algorithm::Sha512 => Digest::from_sha512(&Sha512::digest(content).into()),
    }
}

/// A descriptor (OCI image-spec, descriptor.md).
#[must_use]
pub fn descriptor(media_type: &str, digest: &Digest, size: usize) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

/// This machine's architecture as images name it.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Lists `manifest` in the layout's index under every name, in place of what had the name.
fn name_manifest(dir: &Path, manifest: &Value, names: &[&str]) -> Result<()> {
    let path = dir.join("index.json");
    let mut index: Value = match fs::read(&path) {
        Ok(content) => serde_json::from_slice(&content).with_context(|| format!("parse {}", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            json!({ "schemaVersion": 2, "manifests": [] })
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let listed = index["manifests"]
        .as_array_mut()
        .context("index.json: manifests is no list")?;
    for name in names {
        listed.retain(|entry| entry["annotations"][REF_NAME] != **name);
        let mut entry = manifest.clone();
        entry["annotations"] = json!({ REF_NAME: name });
        listed.push(entry);
    }
    let partial = dir.join("index.json.partial");
    fs::write(&partial, serde_json::to_vec_pretty(&index)?)?;
    fs::rename(&partial, &path)?;
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

/// Copies `text` into a header's field; false where it does not fit.
fn put(field: &mut [u8], text: &str) -> bool {
    let fits = text.len() <= field.len();
    let end = text.len().min(field.len());
    field[..end].copy_from_slice(&text.as_bytes()[..end]);
    fits
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() {
        name.to_owned()
    } else {
        format!("{dir}/{name}")
    }
}
