//! Import: the archive comes in with the call.

use std::sync::Arc;

use bytes::Bytes;
use corten_proto::images::import_request::Part;
use corten_proto::images::{Done, ImportRequest, ImportStart, MAX_PIECE};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::image::{ArchiveSource, ImageStore, Imported, Progress, PullError};
use crate::image_service::image_pull::status;

/// Pieces that may wait to be written.
const WAITING: usize = 4;

/// Receives an archive and imports what is in it.
pub(super) async fn import(
    images: &Arc<ImageStore>,
    mut requests: Streaming<ImportRequest>,
    progress: &Arc<Progress>,
) -> Result<Vec<Done>, Status> {
    let name = match requests.message().await?.and_then(|request| request.part) {
        Some(Part::Start(ImportStart { name })) => name,
        _ => return Err(Status::invalid_argument("start: must come first")),
    };
    let (sender, receiver) = mpsc::channel(WAITING);
    let importing = images.import(ArchiveSource::Pieces(receiver), &name, progress);
    let (sent, imported) = tokio::join!(forward(requests, sender), importing);
    match (sent, imported) {
        // Where the import failed, the receiver left early, which is no failure of its own.
        (_, Err(error)) => Err(status(error)),
        (Err(status), Ok(_)) => Err(status),
        (Ok(()), Ok(imported)) => Ok(imported.iter().map(done).collect()),
    }
}

fn done(imported: &Imported) -> Done {
    Done {
        id: imported.image.id.to_string(),
        names: imported.names.clone(),
    }
}

/// Passes the pieces on. A call that breaks off is an error to the import too: half an archive is none.
async fn forward(
    mut requests: Streaming<ImportRequest>,
    sender: mpsc::Sender<Result<Bytes, PullError>>,
) -> Result<(), Status> {
    loop {
        let problem = match requests.message().await {
            Ok(None) => return Ok(()),
            Ok(Some(request)) => match request.part {
                Some(Part::Data(data)) if data.len() <= MAX_PIECE => {
                    if sender.send(Ok(data.into())).await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
                Some(Part::Data(data)) => {
                    Status::invalid_argument(format!("data: {} bytes, at most {MAX_PIECE}", data.len()))
                }
                Some(Part::Start(_)) | None => Status::invalid_argument("data: must follow start"),
            },
            Err(status) => status,
        };
        let broken = PullError::broken_off(problem.message());
        drop(sender.send(Err(broken)).await);
        return Err(problem);
    }
}
