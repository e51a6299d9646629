//! import and export: archives between a file and the server.
//!
//! An archive is sent in pieces while it is read, by a thread of its own. If reading fails, the call is given up rather than
//! ended: the server must not take what came for the whole.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use corten_proto::images::import_request::Part;
use corten_proto::images::{ExportRequest, ImportRequest, ImportStart, MAX_PIECE};
use indicatif::ProgressBar;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::bars::Bars;
use super::{Export, Import, Server, finish, refused};

/// Pieces that may wait to be sent.
const WAITING: usize = 4;

impl Server {
    pub(super) async fn import(mut self, import: Import) -> Result<()> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let name = import.name.unwrap_or_default();
        sender.send(part(Part::Start(ImportStart { name }))).await?;
        let source = Source::open(&import.source)?;
        let mut bars = Bars::new();
        let sending = bars.sending(source.length());
        let pieces = PieceWriter {
            // This function keeps the other one: while it lives the call does not end.
            sender: sender.clone(),
            sending,
        };
        let reading = tokio::task::spawn_blocking(move || source.send(pieces));
        let call = async {
            let answers = self
                .images
                .import(ReceiverStream::new(receiver))
                .await
                .map_err(refused)?;
            finish(answers.into_inner(), &mut bars).await
        };
        tokio::pin!(call);
        tokio::select! {
            done = &mut call => return done,
            read = reading => match read.context("reading the archive ended early")? {
                // The server has ended the call and says why.
                Err(_) if sender.is_closed() => return call.await,
                read => read?,
            },
        }
        drop(sender);
        call.await
    }

    pub(super) async fn export(mut self, export: Export) -> Result<()> {
        let request = ExportRequest { image: export.image };
        let mut pieces = self.images.export(request).await.map_err(refused)?.into_inner();
        if export.file == Path::new("-") {
            let mut stdout = io::stdout().lock();
            while let Some(piece) = pieces.message().await.map_err(refused)? {
                stdout.write_all(&piece.data).context("write to stdout")?;
            }
            return stdout.flush().context("write to stdout");
        }
        let mut target = Target::create(&export.file)?;
        while let Some(piece) = pieces.message().await.map_err(refused)? {
            target.write(&piece.data)?;
        }
        target.finish()
    }
}

fn part(part: Part) -> ImportRequest {
    ImportRequest { part: Some(part) }
}

/// What is imported.
enum Source {
    Stdin,
    File(File, PathBuf),
    /// An OCI layout.
    Directory(PathBuf),
}

impl Source {
    fn open(path: &Path) -> Result<Source> {
        if path == Path::new("-") {
            return Ok(Source::Stdin);
        }
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        if !file.metadata()?.is_dir() {
            return Ok(Source::File(file, path.to_owned()));
        }
        let is_layout = path.join("oci-layout").is_file() && path.join("index.json").is_file();
        ensure!(
            is_layout,
            "{}: no OCI layout: oci-layout and index.json must be in it",
            path.display()
        );
        Ok(Source::Directory(path.to_owned()))
    }

    /// In bytes; 0 if it is not known.
    fn length(&self) -> u64 {
        match self {
            Source::File(file, _) => file.metadata().map_or(0, |metadata| metadata.len()),
            Source::Stdin | Source::Directory(_) => 0,
        }
    }

    /// Blocks.
    fn send(self, pieces: PieceWriter) -> Result<()> {
        match self {
            Source::Stdin => copy(io::stdin().lock(), pieces).context("send stdin"),
            Source::File(file, path) => copy(file, pieces).with_context(|| format!("send {}", path.display())),
            Source::Directory(path) => send_layout(&path, pieces).with_context(|| format!("send {}", path.display())),
        }
    }
}

fn copy(mut from: impl Read, mut to: PieceWriter) -> Result<()> {
    let mut buffer = vec![0; MAX_PIECE];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends the files of a layout as an archive; what else lies in the directory is none of it.
fn send_layout(dir: &Path, pieces: PieceWriter) -> Result<()> {
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(MAX_PIECE, pieces));
    for name in ["oci-layout", "index.json"] {
        archive.append_path_with_name(dir.join(name), name).context(name)?;
    }
    for algorithm in entries(&dir.join("blobs"))? {
        for blob in entries(&dir.join("blobs").join(&algorithm))? {
            let name = Path::new("blobs").join(&algorithm).join(blob);
            if dir.join(&name).is_file() {
                let appended = archive.append_path_with_name(dir.join(&name), &name);
                appended.with_context(|| name.display().to_string())?;
            }
        }
    }
    archive.into_inner()?.flush()?;
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<std::ffi::OsString>> {
    let names: io::Result<Vec<_>> =
        fs::read_dir(dir).and_then(|entries| entries.map(|entry| entry.map(|found| found.file_name())).collect());
    let mut names = names.with_context(|| format!("read {}", dir.display()))?;
    names.sort();
    Ok(names)
}

/// Sends what is written to it. Blocks while the server is slow.
struct PieceWriter {
    sender: mpsc::Sender<ImportRequest>,
    sending: ProgressBar,
}

impl Write for PieceWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let piece = &buffer[..buffer.len().min(MAX_PIECE)];
        let sent = self.sender.blocking_send(part(Part::Data(piece.to_vec())));
        sent.map_err(|_ended| io::Error::other("the server ended the call"))?;
        self.sending.inc(piece.len() as u64);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The file of an export, under another name until it is whole; removed unless it was finished.
struct Target {
    file: File,
    partial: PathBuf,
    path: PathBuf,
    finished: bool,
}

impl Target {
    fn create(path: &Path) -> Result<Target> {
        let mut name = path.file_name().context("the file needs a name")?.to_owned();
        name.push(".partial");
        let partial = path.with_file_name(name);
        let file = File::create(&partial).with_context(|| format!("create {}", partial.display()))?;
        Ok(Target {
            file,
            partial,
            path: path.to_owned(),
            finished: false,
        })
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        let written = self.file.write_all(data);
        written.with_context(|| format!("write {}", self.partial.display()))
    }

    fn finish(mut self) -> Result<()> {
        let renamed = fs::rename(&self.partial, &self.path);
        renamed.with_context(|| format!("rename {} to {}", self.partial.display(), self.path.display()))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.finished {
            // The failure that brought us here is what the caller is told.
            drop(fs::remove_file(&self.partial));
        }
    }
}
