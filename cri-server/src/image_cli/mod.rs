//! `corten-cri image`: the images of the running server, from the command line.
//!
//! ```text
//! image list | inspect | remove      the CRI's calls
//! image pull                         with its progress
//! image import | export              archives, for nodes without a registry
//! image check | prune                upkeep
//! ```
//! It talks to the server's socket and reads no file of the store. What a caller may want to use goes to stdout, what is
//! for a person to stderr.

mod archive;
mod bars;
mod show;
mod upkeep;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use corten_proto::cri::image_service_client::ImageServiceClient;
use corten_proto::images::images_client::ImagesClient;
use corten_proto::images::{Progress, PullRequest};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use self::bars::Bars;
use crate::client::no_server;

/// Largest answer to a list of images; the server sends no larger one.
const MAX_MESSAGE: usize = 16 << 20;

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum ImageCommand {
    /// Pulls an image and prints its id
    Pull(Pull),
    /// Lists the images
    List(List),
    /// Prints everything about an image
    Inspect(Inspect),
    /// Removes images, each under all of its names
    Remove {
        /// Names or ids
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Imports an OCI layout (a directory or an archive) or what `docker save` wrote; archives may be packed with gzip or
    /// zstd
    Import(Import),
    /// Writes an image as an archive of an OCI layout
    ///
    /// Layers are kept unpacked and are archived anew: the exported image has the same content, but another id.
    Export(Export),
    /// Compares the records of images and layers with what is on disk; fails if something is wrong
    Check {
        /// Form of the result
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Removes images that have no tag and that no container uses
    Prune(Prune),
}

/// See [`ImageCommand::Pull`].
#[derive(Args, Clone, Debug)]
pub struct Pull {
    /// As in a pod: `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`
    image: String,
    /// User to log in as; the password is read from stdin
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

/// See [`ImageCommand::List`].
#[derive(Args, Clone, Debug)]
pub struct List {
    /// Only the image of this name or id
    image: Option<String>,
    /// Form of the list
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// See [`ImageCommand::Inspect`].
#[derive(Args, Clone, Debug)]
pub struct Inspect {
    /// Name or id
    image: String,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Output::Json)]
    output: Output,
}

/// See [`ImageCommand::Import`].
#[derive(Args, Clone, Debug)]
pub struct Import {
    /// The archive or directory; - is an archive from stdin
    source: PathBuf,
    /// Name of its only image, instead of the names the archive gives
    #[arg(long)]
    name: Option<String>,
}

/// See [`ImageCommand::Export`].
#[derive(Args, Clone, Debug)]
pub struct Export {
    /// Name or id
    image: String,
    /// The file to write; - is stdout
    file: PathBuf,
}

/// See [`ImageCommand::Prune`].
#[derive(Args, Clone, Debug)]
pub struct Prune {
    /// Images with a tag too
    #[arg(long)]
    all: bool,
    /// Only print what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// Forms of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// One document, in the field names of the CRI.
    Json,
}

/// The clients of one server.
struct Server {
    cri: ImageServiceClient<Channel>,
    images: ImagesClient<Channel>,
}

/// Runs a command against the server that listens at `socket`.
///
/// # Errors
/// Whatever the server answers, or that it does not.
pub fn run(socket: &Path, command: ImageCommand) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start the async runtime")?;
    let done = runtime.block_on(async {
        let server = Server::connect(socket).await?;
        server.run(command).await
    });
    // A thread may sit in a read of stdin, which nothing but its end ends.
    runtime.shutdown_background();
    done
}

impl Server {
    async fn connect(socket: &Path) -> Result<Server> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
        let endpoint = endpoint.with_context(|| format!("{}: no address of a socket", socket.display()))?;
        let channel = endpoint.connect().await.map_err(|error| no_server(socket, &error))?;
        Ok(Server {
            cri: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            images: ImagesClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
        })
    }

    async fn run(self, command: ImageCommand) -> Result<()> {
        match command {
            ImageCommand::Pull(pull) => self.pull(pull).await,
            ImageCommand::List(list) => self.list(list).await,
            ImageCommand::Inspect(inspect) => self.inspect(inspect).await,
            ImageCommand::Remove { images } => self.remove(images).await,
            ImageCommand::Import(import) => self.import(import).await,
            ImageCommand::Export(export) => self.export(export).await,
            ImageCommand::Check { output } => self.check(output).await,
            ImageCommand::Prune(prune) => self.prune(prune).await,
        }
    }

    async fn pull(mut self, pull: Pull) -> Result<()> {
        let password = match &pull.user {
            Some(_) => read_password()?,
            None => String::new(),
        };
        let request = PullRequest {
            image: pull.image,
            username: pull.user.unwrap_or_default(),
            password,
        };
        let answers = self.images.pull(request).await.map_err(refused)?.into_inner();
        finish(answers, &mut Bars::new()).await
    }
}

/// Shows the progress of a call to its end, and prints the ids that came of it.
async fn finish(mut answers: Streaming<Progress>, bars: &mut Bars) -> Result<()> {
    let mut done = Vec::new();
    while let Some(progress) = answers.message().await.map_err(refused)? {
        bars.show(&progress);
        done.extend(progress.done);
    }
    bars.clear();
    if done.is_empty() {
        bail!("the server ended the call without a result");
    }
    for image in done {
        if image.names.is_empty() {
            print(&format!("{}\n", image.id))?;
        }
        for name in &image.names {
            print(&format!("{} {name}\n", image.id))?;
        }
    }
    Ok(())
}

fn read_password() -> Result<String> {
    let mut password = String::new();
    std::io::stdin().read_line(&mut password).context("read the password")?;
    Ok(password.trim_end_matches(['\r', '\n']).to_owned())
}

/// Prints to stdout; a reader that has left is an error like any other.
fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("print")
}

/// The server's answer, without the decoration of gRPC.
#[expect(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn refused(status: tonic::Status) -> anyhow::Error {
    anyhow!("{}", status.message())
}
