//! The service behind `corten-cri image`: what the CRI has no call for (`proto/images/images.proto`).
//!
//! A call lasts as long as its caller: a pull or an import whose caller goes away ends, unless a kubelet waits for the
//! same pull.

mod follow;
mod import;
mod prune;

use std::io::BufWriter;
use std::sync::Arc;

use corten_proto::cri::AuthConfig;
use corten_proto::images::images_server::Images;
use corten_proto::images::{
    CheckRequest, CheckResponse, Done, ExportRequest, Finding, ImportRequest, MAX_PIECE, Piece, Progress, PruneRequest,
    PruneResponse, PullRequest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use self::follow::follow;
use crate::image::Report;
use crate::image_service::image_pull;
use crate::node::{Node, blocking};

/// Messages that may wait for the caller to read them.
const WAITING: usize = 8;

/// The service.
pub struct ImageAdmin {
    node: Arc<Node>,
}

impl ImageAdmin {
    /// A service for the images of one node.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        ImageAdmin { node }
    }
}

/// Messages on their way to the caller.
type Answers<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl Images for ImageAdmin {
    type PullStream = Answers<Progress>;
    type ImportStream = Answers<Progress>;
    type ExportStream = Answers<Piece>;

    async fn pull(&self, request: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let request = request.into_inner();
        let images = self.node.images.clone();
        // Refused before there is a stream.
        let candidates = images.candidates(&request.image);
        let candidates = candidates.map_err(|error| Status::invalid_argument(format!("image: {error}")))?;
        let auth = (!request.username.is_empty()).then(|| AuthConfig {
            username: request.username.clone(),
            password: request.password.clone(),
            ..AuthConfig::default()
        });
        let (sender, receiver) = mpsc::channel(WAITING);
        self.node.work.spawn(async move {
            let pulled = async {
                let pulled = image_pull::pull(&images, &request.image, auth.as_ref()).await?;
                Ok(vec![Done {
                    id: pulled.id,
                    names: vec![pulled.name.to_string()],
                }])
            };
            // One after the other is tried: the one under way is whose progress there is.
            let progress = || candidates.iter().find_map(|reference| images.progress(reference));
            follow(pulled, progress, sender).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn import(&self, request: Request<Streaming<ImportRequest>>) -> Result<Response<Self::ImportStream>, Status> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let images = self.node.images.clone();
        let requests = request.into_inner();
        self.node.work.spawn(async move {
            let progress = Arc::default();
            let imported = import::import(&images, requests, &progress);
            follow(imported, || Some(Arc::clone(&progress)), sender).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn export(&self, request: Request<ExportRequest>) -> Result<Response<Self::ExportStream>, Status> {
        let name = request.into_inner().image;
        let found = self.node.images.find(&name);
        let found = found.map_err(|error| Status::invalid_argument(format!("image: {error}")))?;
        let image = found.ok_or_else(|| Status::not_found(format!("image {name:?}: no such image")))?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let images = self.node.images.clone();
        self.node.work.spawn(async move {
            let pieces = BufWriter::with_capacity(MAX_PIECE, PieceWriter(sender.clone()));
            let caller = sender.clone();
            let exported = blocking(move || images.export(&image, pieces, || caller.is_closed())).await;
            if let Err(error) = exported {
                // A caller that has gone needs no answer.
                drop(
                    sender
                        .send(Err(Status::internal(format!("export {name:?}: {error:#}"))))
                        .await,
                );
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn check(&self, _request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let images = self.node.images.clone();
        let checked = blocking(move || images.check()).await;
        let report = checked.map_err(|error| Status::internal(format!("check the images: {error:#}")))?;
        Ok(Response::new(response(report)))
    }

    async fn prune(&self, request: Request<PruneRequest>) -> Result<Response<PruneResponse>, Status> {
        prune::prune(&self.node, &request.into_inner()).await.map(Response::new)
    }
}

fn response(report: Report) -> CheckResponse {
    let findings = report.findings.into_iter().map(|finding| Finding {
        is_error: finding.is_error,
        subject: finding.subject,
        text: finding.text,
    });
    CheckResponse {
        findings: findings.collect(),
        images: report.images,
        layers: report.layers,
        bytes: report.bytes,
        inodes: report.inodes,
    }
}

/// Sends what is written to it in pieces. Blocks while the caller is slow.
struct PieceWriter(mpsc::Sender<Result<Piece, Status>>);

impl std::io::Write for PieceWriter {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let data = buffer[..buffer.len().min(MAX_PIECE)].to_vec();
        let count = data.len();
        let sent = self.0.blocking_send(Ok(Piece { data }));
        sent.map_err(|_gone| std::io::Error::other("the caller has gone"))?;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
