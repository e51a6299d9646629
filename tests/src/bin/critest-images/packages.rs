//! Files of Debian packages, unpacked in memory.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::tree::Item;

/// What packages hold, by path. Libraries lie below `lib/`, wherever this release of Debian has them: the loader looks
/// there in every release.
pub(crate) struct Packages(BTreeMap<String, Item>);

impl Packages {
    /// Reads every `*.deb` of a directory.
    pub(crate) fn read(dir: &Path) -> Result<Packages> {
        let reading = || format!("read {}", dir.display());
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(dir).with_context(reading)? {
            let path = entry.with_context(reading)?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                unpack(&path, &mut files).with_context(|| format!("unpack {}", path.display()))?;
            }
        }
        Ok(Packages(files))
    }

    /// The one file at this path.
    pub(crate) fn file(&self, path: &str) -> Result<Item> {
        let item = self.0.get(path).with_context(|| format!("no package has {path}"))?;
        ensure!(matches!(item, Item::File { .. }), "{path} is no regular file");
        Ok(item.clone())
    }

    /// The shared libraries of these names, with whatever version, and the links to them.
    pub(crate) fn libraries(&self, names: &[&str]) -> Result<Vec<(String, Item)>> {
        let mut found = Vec::new();
        for name in names {
            let before = found.len();
            let libraries = self.0.iter().filter(|(path, _)| {
                let in_directory = path.strip_prefix("lib/").or_else(|| path.strip_prefix("lib64/"));
                let file = in_directory.map(|rest| rest.rsplit_once('/').map_or(rest, |(_, file)| file));
                let rest = file.and_then(|file| file.strip_prefix(name));
                rest.is_some_and(|rest| rest.starts_with(['.', '-']) && rest.contains(".so"))
            });
            found.extend(libraries.map(|(path, item)| (path.clone(), item.clone())));
            ensure!(found.len() > before, "no package has a library {name}");
        }
        Ok(found)
    }
}

fn unpack(package: &Path, files: &mut BTreeMap<String, Item>) -> Result<()> {
    let mut program = Command::new("dpkg-deb");
    program.arg("--fsys-tarfile").arg(package).stdout(Stdio::piped());
    let mut program = program.spawn().context("execute dpkg-deb")?;
    let output = program.stdout.take().context("stdout is a pipe")?;
    let mut archive = tar::Archive::new(output);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_str().context("a name that is not UTF-8")?.to_owned();
        let path = placed(path.trim_start_matches("./"));
        let kind = entry.header().entry_type();
        let item = if kind.is_symlink() {
            let target = entry.link_name()?.context("a link without a target")?;
            Item::Symlink(target.to_str().context("a target that is not UTF-8")?.to_owned())
        } else if kind.is_file() {
            let mode = entry.header().mode()? & 0o7777;
            let mut data = Vec::new();
            entry.read_to_end(&mut data)?;
            Item::File { mode, data }
        } else if kind.is_dir() {
            continue;
        } else {
            bail!("{path}: a {kind:?}, which is not expected here");
        };
        files.insert(path, item);
    }
    let status = program.wait()?;
    ensure!(status.success(), "dpkg-deb: {status}");
    Ok(())
}

/// Where a package's file belongs in an image: without the merge of `/usr`, which some releases have and some not.
fn placed(path: &str) -> String {
    let libraries = ["usr/lib/ld-", "usr/lib64/"];
    let of_triplet = path.starts_with("usr/lib/") && path.contains("-linux-gnu/");
    let is_merged = of_triplet || path == "usr/bin/busybox" || libraries.iter().any(|prefix| path.starts_with(prefix));
    let path = if is_merged {
        path.strip_prefix("usr/").unwrap_or(path)
    } else {
        path
    };
    path.to_owned()
}
