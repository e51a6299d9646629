//! The bundle that every runtime gets: what `runc spec` would write, with busybox in its root.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use corten_tests::bundle::default_spec;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

/// Where Debian's busybox-static puts it.
const BUSYBOX: &str = "/bin/busybox";

/// A directory with config.json and a root.
pub(crate) struct Bundle {
    /// What sets it apart.
    pub(crate) name: &'static str,
    /// The bundle directory.
    pub(crate) path: PathBuf,
    spec: Value,
    mounted: bool,
}

impl Bundle {
    /// A bundle that runs `/bin/true`.
    pub(crate) fn new(dir: &Path, name: &'static str) -> Result<Bundle> {
        let path = dir.join(name.replace(' ', "-"));
        let root = path.join("rootfs");
        for directory in ["bin", "dev", "proc", "sys", "tmp"] {
            fs::create_dir_all(root.join(directory)).with_context(|| format!("mkdir {directory}"))?;
        }
        fs::copy(BUSYBOX, root.join("bin/busybox")).with_context(|| format!("copy {BUSYBOX}"))?;
        for applet in ["true", "sleep"] {
            fs::hard_link(root.join("bin/busybox"), root.join("bin").join(applet)).context("link busybox")?;
        }
        let mark = dir.file_name().unwrap_or_default().to_string_lossy();
        let mut spec = default_spec(&mark);
        // The runtimes append the id, so that containers of one bundle do not meet.
        spec["process"]["args"] = json!(["/bin/true"]);
        let bundle = Bundle {
            name,
            path,
            spec,
            mounted: false,
        };
        Ok(bundle)
    }

    /// With this `linux.seccomp`.
    pub(crate) fn with_seccomp(mut self, profile: Value) -> Result<Bundle> {
        self.spec["linux"]["seccomp"] = profile;
        Ok(self)
    }

    /// With a root that is an overlay of so many layers, busybox in the lowest.
    pub(crate) fn on_overlay(mut self, layers: usize) -> Result<Bundle> {
        let root = self.path.join("rootfs");
        let lowest = self.path.join("l0");
        fs::rename(&root, &lowest).context("rename the root")?;
        fs::create_dir(&root).context("mkdir rootfs")?;
        let mut lower = vec![lowest.display().to_string()];
        for layer in 1..layers {
            let path = self.path.join(format!("l{layer}"));
            fs::create_dir(&path).context("mkdir a layer")?;
            fs::write(path.join(format!("file-{layer}")), "of this layer\n").context("write a file")?;
            lower.insert(0, path.display().to_string());
        }
        let (upper, work) = (self.path.join("upper"), self.path.join("work"));
        fs::create_dir(&upper).context("mkdir upper")?;
        fs::create_dir(&work).context("mkdir work")?;
        let (upper, work) = (upper.display(), work.display());
        let options = format!("lowerdir={},upperdir={upper},workdir={work}", lower.join(":"));
        mount(
            Some("overlay"),
            &root,
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .with_context(|| format!("mount(overlay, {options})"))?;
        self.mounted = true;
        Ok(self)
    }

    /// Writes config.json for the container `id` with these arguments, and a memory limit in bytes if there is one.
    pub(crate) fn write(&self, id: &str, args: &[&str], limit: Option<u64>) -> Result<()> {
        let mut spec = self.spec.clone();
        let parent = spec["linux"]["cgroupsPath"].as_str().unwrap_or_default();
        spec["linux"]["cgroupsPath"] = json!(format!("{parent}/{id}"));
        spec["process"]["args"] = json!(args);
        if let Some(limit) = limit {
            spec["linux"]["resources"]["memory"] = json!({ "limit": limit });
        }
        let path = self.path.join("config.json");
        fs::write(&path, spec.to_string()).with_context(|| format!("write {}", path.display()))
    }

    /// A copy of this bundle's directory entry by another name: the same root, a config.json of its own.
    pub(crate) fn twin(&self, name: &str) -> Result<Bundle> {
        let path = self.path.with_file_name(name);
        fs::create_dir(&path).with_context(|| format!("mkdir {}", path.display()))?;
        let mut spec = self.spec.clone();
        spec["root"]["path"] = json!(self.path.join("rootfs"));
        Ok(Bundle {
            name: self.name,
            path,
            spec,
            mounted: false,
        })
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if self.mounted
            && let Err(error) = umount2(&self.path.join("rootfs"), MntFlags::MNT_DETACH)
        {
            eprintln!("unmount {}: {error}", self.path.display());
        }
    }
}
