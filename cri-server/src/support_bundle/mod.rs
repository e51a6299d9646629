//! `corten-cri support-bundle`: one archive of all that helps to find a fault, without secrets.
//!
//! ```text
//! corten-support-HOST-TIME/
//!   MANIFEST            what is in it, what was cut short, what could not be had
//!   doctor.txt  status.txt
//!   config/             the effective configuration, CNI's files
//!   cri/                verbose infos of the server, its pods, containers and images
//!   records/            records and exit records, the shims' logs
//!   process/            the server's and the shims': status, limits, what each thread waits for and its kernel stack
//!   kernel/             version, cgroups, mounts, settings of the network; what ip, nft and journalctl print
//! ```
//! Everything passes `mask` before it is written. Left out altogether: environments of processes, credentials and
//! hosts.toml files, containers' logs, whatever containers write, and records that are no documents: nobody could say what in
//! them is a secret.
//!
//! A part that hangs is left out after [`LIMIT`], and what does not fit into [`MAX_TOTAL`]; MANIFEST says so. What a part
//! or a file may have at most is in `entry`. The file has mode 0600 and appears under its name when it is whole.

mod cri;
mod entry;
mod files;
mod mask;
mod process;
mod programs;

use std::io::{BufWriter, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;

use self::entry::Entry;
use crate::bounded::{Look, run_all};
use crate::config::{Config, Problems};
use crate::{doctor, status_cli};

/// How long all parts but the doctor's, which has its own limit, may take together.
const LIMIT: Duration = Duration::from_secs(40);
/// Most bytes of all files together, before they are packed.
const MAX_TOTAL: usize = 64 << 20;

/// What `corten-cri support-bundle` is asked for.
#[derive(Args, Clone, Debug)]
pub struct SupportBundle {
    /// The archive to write [default: corten-support-HOST-TIME.tar.gz in the current directory]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// The parts, by the directory they fill; first what says why a server is stuck, last what grows with the node.
const PARTS: &[Look<Vec<Entry>>] = &[
    ("status", status),
    ("process", process::collect),
    ("kernel", files::kernel),
    ("programs", programs::collect),
    ("config", files::config),
    ("records", files::records),
    ("cri", cri::collect),
];

/// Writes the archive and prints its name. 0: written; 1: not.
pub fn run(config: Result<Config, Problems>, wanted: &SupportBundle) -> ExitCode {
    let written = pack(config, wanted.output.as_deref());
    // Where stdout or stderr is closed, the exit code has to do.
    match written {
        Ok(path) => {
            drop(writeln!(std::io::stdout(), "{}", path.display()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            drop(writeln!(std::io::stderr(), "corten-cri: support-bundle: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn pack(config: Result<Config, Problems>, output: Option<&Path>) -> Result<PathBuf> {
    if !nix::unistd::geteuid().is_root() {
        bail!("must be root, as the server is");
    }
    let name = name();
    let path = output.map_or_else(|| PathBuf::from(format!("{name}.tar.gz")), Path::to_owned);
    let path = std::path::absolute(&path).with_context(|| format!("{}", path.display()))?;
    check_place(&path)?;
    let mut entries = vec![doctor_entry(config.clone())];
    let config = config.unwrap_or_default();
    let mut missing = Vec::new();
    for (part, found) in run_all(&config, PARTS, LIMIT) {
        match found {
            Some(found) => entries.extend(found),
            None => missing.push(part),
        }
    }
    let (mut entries, dropped) = within(entries, MAX_TOTAL);
    entries.push(manifest(&entries, &missing, &dropped));
    write(&path, &name, &entries)?;
    Ok(path)
}

/// Only a file is written over: a device node or a link would be replaced by the archive.
fn check_place(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => bail!("{}: exists and is no regular file", path.display()),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{}", path.display())),
    }
}

/// What the archive and the directory in it are called.
fn name() -> String {
    let host = crate::network::dns::node_hostname();
    let time = humantime::format_rfc3339_seconds(SystemTime::now())
        .to_string()
        .replace(':', "");
    format!("corten-support-{host}-{time}")
}

fn doctor_entry(config: Result<Config, Problems>) -> Entry {
    let checks = doctor::examine(config);
    Entry::text("doctor.txt", &doctor::check::text(&checks, true, false))
}

fn status(config: &Config) -> Vec<Entry> {
    let text = match status_cli::gather(config) {
        Ok(overview) => overview.text(),
        Err(error) => format!("{error:#}\n"),
    };
    vec![Entry::text("status.txt", &text)]
}

/// The first files that have room, and the names of the others.
fn within(entries: Vec<Entry>, limit: usize) -> (Vec<Entry>, Vec<String>) {
    let mut total = 0;
    let (kept, dropped): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(|entry| {
        let fits = total + entry.content.len() <= limit;
        total += if fits { entry.content.len() } else { 0 };
        fits
    });
    (kept, dropped.into_iter().map(|entry| entry.name).collect())
}

fn manifest(entries: &[Entry], missing: &[&str], dropped: &[String]) -> Entry {
    let mut text = format!("corten-cri {}\n", env!("CARGO_PKG_VERSION"));
    for part in missing {
        text += &format!("{part}: left out: not done in {} s\n", LIMIT.as_secs());
    }
    for name in dropped {
        text += &format!("{name}: left out: more than {MAX_TOTAL} bytes in all\n");
    }
    for entry in entries {
        text += &format!("{}: {} bytes{}\n", entry.name, entry.content.len(), entry.note());
    }
    Entry::text("MANIFEST", &text)
}

/// Writes the archive beside its place, and gives it its name when it is whole.
fn write(path: &Path, name: &str, entries: &[Entry]) -> Result<()> {
    let directory = path.parent().context("the archive must be in a directory")?;
    let file = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o600))
        .tempfile_in(directory)
        .with_context(|| format!("make a file in {}", directory.display()))?;
    let packed = GzEncoder::new(BufWriter::new(file), Compression::default());
    let mut archive = tar::Builder::new(packed);
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(entry.content.len() as u64);
        let appended = archive.append_data(&mut header, format!("{name}/{}", entry.name), entry.content.as_slice());
        appended.with_context(|| format!("add {}", entry.name))?;
    }
    let packed = archive.into_inner().context("end the archive")?;
    let file = packed.finish().context("pack the archive")?;
    let file = file.into_inner().context("write the archive")?;
    file.persist(path)
        .with_context(|| format!("write {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_are_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, dir.path().join("link")).unwrap();
        assert!(check_place(&file).is_ok() && check_place(&dir.path().join("new")).is_ok());
        for place in ["/dev/null", "/dev", dir.path().join("link").to_str().unwrap()] {
            let error = check_place(Path::new(place)).unwrap_err().to_string();
            assert!(error.contains("no regular file"), "{error}");
        }
    }

    #[test]
    fn what_has_no_room_is_named() {
        let entry = |name: &str| Entry::text(name, "12345");
        let (kept, dropped) = within(vec![entry("a"), entry("b"), entry("c")], 11);
        assert_eq!(kept.len(), 2);
        assert_eq!(dropped, ["c"]);
        let text = String::from_utf8(manifest(&kept, &["kernel"], &dropped).content).unwrap();
        for line in ["kernel: left out: not done", "c: left out: more than", "a: 5 bytes\n"] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
