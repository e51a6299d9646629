//! A client of the running server, for the commands that report on it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use corten_proto::cri::image_service_client::ImageServiceClient;
use corten_proto::cri::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint};

/// Largest answer; the server sends no larger one.
const MAX_MESSAGE: usize = 16 << 20;

/// The CRI services of one server.
pub(crate) struct Client {
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    pub(crate) images: ImageServiceClient<Channel>,
}

impl Client {
    /// Connects to the server at `socket` and does `work` with it, which has until `limit` for all of it. Blocks.
    ///
    /// # Errors
    /// Those of `work`; that nobody answers; that it took too long.
    pub(crate) fn block_on<T, W>(socket: &Path, limit: Duration, work: impl FnOnce(Client) -> W) -> Result<T>
    where
        W: Future<Output = Result<T>>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("start the async runtime")?;
        let all = async { work(Client::connect(socket).await?).await };
        let done = runtime.block_on(async { tokio::time::timeout(limit, all).await });
        done.with_context(|| format!("no answer from {} in {} s", socket.display(), limit.as_secs()))?
    }

    async fn connect(socket: &Path) -> Result<Client> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
        let endpoint = endpoint.with_context(|| format!("{}: no address of a socket", socket.display()))?;
        let channel = endpoint.connect().await.map_err(|error| no_server(socket, &error))?;
        Ok(Client {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
        })
    }
}

/// The innermost cause: what is around it is the library's.
pub(crate) fn no_server(socket: &Path, error: &tonic::transport::Error) -> anyhow::Error {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    anyhow!("no server answers at {}: {cause}", socket.display())
}
