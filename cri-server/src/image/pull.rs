//! The order of a pull, and what concurrent pulls share.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use corten_proto::id::Digest;
use oci_spec::image::ImageConfiguration;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tracing::Instrument as _;

use super::auth::Credentials;
use super::error::{Cause, PullError};
use super::hash;
use super::in_flight::InFlight;
use super::layer::{self, Expected};
use super::manifest::{self, Descriptor, Document, Manifest};
use super::platform::Platform;
use super::policy::Policy;
use super::progress::{Board, Progress};
use super::record::Image;
use super::reference::{Reference, ReferenceError, Version};
use super::registry::{Body, Registries, RegistryConfigs, Repository};
use super::short_name;
use super::slots::{Slot, Slots};
use super::store::{ImageStore, LayerLease};
use crate::telemetry::metrics::{LayerFrom, PullObservation, layer_came, metrics};

/// Largest image config, in bytes.
pub(super) const MAX_CONFIG: u64 = 4 << 20;

/// Pieces of a download that may wait for the unpacker. One is as much as the connection had ready, up to 400 KiB; what
/// is not taken waits in the socket.
const CHUNKS_WAITING: usize = 3;

pub(super) type LayerResult = Result<Arc<LayerLease>, PullError>;

/// What makes two downloads the same: what is fetched, what it is to become, where from and with which rights. The diff id
/// alone is the claim of an image, which may not deliver.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct LayerKey {
    diff_id: Digest,
    blob: Digest,
    registry: String,
    credentials: Credentials,
}

/// The pulls under way.
pub(super) struct Pulls {
    registries: RwLock<Arc<Registries>>,
    images: InFlight<(Reference, Credentials), Result<Arc<Image>, PullError>>,
    layers: InFlight<LayerKey, LayerResult>,
    pub(super) slots: Slots,
    pub(super) board: Board,
    pub(super) policy: RwLock<Option<Policy>>,
}

impl Pulls {
    pub(super) fn new(registries: RegistryConfigs) -> Self {
        let limits = registries.pull.limits();
        Pulls {
            registries: RwLock::new(Arc::new(Registries::new(registries))),
            images: InFlight::new(),
            layers: InFlight::new(),
            slots: Slots::new(limits),
            board: Board::default(),
            policy: RwLock::default(),
        }
    }

    fn registries(&self) -> Arc<Registries> {
        let registries = self.registries.read();
        registries.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ImageStore {
    /// Pulls that begin from now on go by `registries`, with connections and tokens of their own; those under way end as they
    /// began.
    pub fn reach(&self, registries: RegistryConfigs) {
        self.pulls.slots.resize(registries.pull.limits());
        let registries = Arc::new(Registries::new(registries));
        *self.pulls.registries.write().unwrap_or_else(PoisonError::into_inner) = registries;
    }

    /// What a name may mean, in the order to try: one reference, unless it names no registry.
    pub fn candidates(&self, name: &str) -> Result<Vec<Reference>, ReferenceError> {
        short_name::candidates(name, &self.pulls.registries().configs.pull)
    }

    /// Makes the image of `reference` present and returns it. The registry is always asked, so a moved tag is noticed
    /// and the credentials are checked; content that is here is not fetched again.
    ///
    /// Dropping the future ends the pull, unless another caller waits for the same, and removes what it had begun.
    pub async fn pull(self: &Arc<Self>, reference: &str, credentials: Credentials) -> Result<Arc<Image>, PullError> {
        let reference: Reference = reference.parse()?;
        let key = (reference.clone(), credentials.clone());
        let store = Arc::clone(self);
        let pulled = self.pulls.images.join(key, || {
            // Listed before the caller can ask for it.
            let progress = store.pulls.board.start(&reference);
            let observation = PullObservation::begin();
            async move {
                let pulled = store.pull_now(&reference, credentials, &progress).await;
                progress.log_end("pull", &reference.to_string(), pulled.as_ref().map(|image| &image.id));
                observation.end(pulled.as_ref().err().map(|error| error.cause));
                pulled.map_err(|error| error.context(format!("pull {reference}")))
            }
        });
        pulled.await.unwrap_or_else(|| Err(ended("the pull")))
    }

    /// How many layers are fetched or unpacked now, by pulls and imports.
    #[must_use]
    pub fn layers_in_flight(&self) -> usize {
        self.pulls.slots.taken()
    }

    /// How far the pull of `reference` is; `None` where there is none.
    #[must_use]
    pub fn progress(&self, reference: &Reference) -> Option<Arc<Progress>> {
        self.pulls.board.find(reference)
    }

    async fn pull_now(
        self: &Arc<Self>,
        reference: &Reference,
        credentials: Credentials,
        progress: &Progress,
    ) -> Result<Arc<Image>, PullError> {
        tracing::info!(image = %reference, "pull begins");
        self.may_pull(reference).await?;
        progress.stage("manifest");
        let registries = self.pulls.registries();
        let repository = Arc::new(registries.repository(reference, credentials).await?);
        let platform = Platform::host();
        let (digest, manifest) = resolve(&repository, reference, &platform).await?;
        progress.stage("policy");
        let admission = self.admit(&repository, reference, &digest).await?;
        progress.stage("config");
        let (config, config_size) = self.config(&repository, &manifest.config).await?;
        let layers = manifest::diff_ids(&config, &manifest, &platform)?;
        progress.stage("layers");
        // Held until the record names the layers: a removal meanwhile must not free them.
        let leases = self.layers(&repository, &manifest, &layers, progress).await?;
        progress.stage("record");
        let image = Image {
            id: manifest.config.digest,
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size: self.layers_size(&layers).saturating_add(config_size),
            config,
            layers,
            admissions: BTreeMap::from([(reference.at(&digest), admission)]),
            checkpoint: manifest.checkpoint,
        };
        let (store, reference) = (Arc::clone(self), reference.clone());
        let publishing = tokio::task::spawn_blocking(move || {
            let published = store.publish(image, &reference, &digest);
            drop(leases);
            published.map_err(|error| PullError::local(&error))
        });
        publishing
            .await
            .unwrap_or_else(|_panic| Err(ended("recording the image")))
    }

    /// The image's config and its size: from the image that has the same, else from the registry.
    async fn config(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
    ) -> Result<(ImageConfiguration, u64), PullError> {
        let failed = |error: PullError| error.context(format!("config {}", descriptor.digest));
        // First of all: the size is the manifest's word, whether or not the config is here already.
        if descriptor.size > MAX_CONFIG {
            return Err(failed(PullError::refused(format!(
                "{} bytes, at most {MAX_CONFIG}",
                descriptor.size
            ))));
        }
        if let Ok(Some(known)) = self.find(descriptor.digest.as_str()) {
            return Ok((known.config.clone(), descriptor.size));
        }
        let limit = usize::try_from(descriptor.size).unwrap_or(usize::MAX);
        let content = repository
            .whole(&descriptor.digest, limit, |content| check(content, descriptor))
            .await
            .map_err(failed)?;
        let config = manifest::parse_config(&content).map_err(failed)?;
        Ok((config, descriptor.size))
    }

    /// Makes all layers present, several at a time, and keeps them with leases.
    async fn layers(
        self: &Arc<Self>,
        repository: &Arc<Repository>,
        manifest: &Manifest,
        diff_ids: &[Digest],
        progress: &Progress,
    ) -> Result<Vec<Arc<LayerLease>>, PullError> {
        let counter = |(blob, _): &(Descriptor, _)| self.pulls.board.layer(&blob.digest, blob.size);
        progress.layers(manifest.layers.iter().map(counter).collect());
        let wanted: BTreeMap<&Digest, &(Descriptor, manifest::Packing)> =
            diff_ids.iter().zip(&manifest.layers).collect();
        let mut tasks = tokio::task::JoinSet::new();
        for (diff_id, (blob, packing)) in wanted {
            let expected = Expected {
                blob: blob.clone(),
                packing: *packing,
                diff_id: diff_id.clone(),
            };
            let (store, repository) = (Arc::clone(self), Arc::clone(repository));
            let image = progress.image().to_owned();
            let work = async move {
                let counter = store.pulls.board.layer(&expected.blob.digest, expected.blob.size);
                let layer = store.layer(repository, expected).await?;
                counter.finish(&image);
                Ok(layer)
            };
            tasks.spawn(work.in_current_span());
        }
        let mut leases = Vec::new();
        // The first failure ends the others: dropping the set aborts its tasks.
        while let Some(layer) = tasks.join_next().await {
            leases.push(layer.unwrap_or_else(|_panic| Err(ended("a layer")))?);
        }
        // Those too that were not fetched, because another blob has the same content.
        self.pulls
            .board
            .finish(manifest.layers.iter().map(|(blob, _)| blob), progress.image());
        Ok(leases)
    }

    /// Makes one layer present: it is here, or another pull is at the same, or it is fetched.
    async fn layer(self: &Arc<Self>, repository: Arc<Repository>, expected: Expected) -> LayerResult {
        if let Some(lease) = self.present(&expected) {
            layer_came(LayerFrom::Here);
            return Ok(lease);
        }
        let key = LayerKey {
            diff_id: expected.diff_id.clone(),
            blob: expected.blob.digest.clone(),
            registry: repository.registry.clone(),
            credentials: repository.credentials.clone(),
        };
        let (store, from, wanted) = (Arc::clone(self), Arc::clone(&repository), expected.clone());
        let mut own = false;
        let fetched = self.pulls.layers.join(key, || {
            own = true;
            async move { store.fetch(&from, wanted).await }
        });
        match fetched.await.unwrap_or_else(|| Err(ended("a layer"))) {
            // Another pull's failure may be its own doing: a repository without the blob, a wrong size in its manifest.
            Err(_theirs) if !own => self.fetch(&repository, expected).await,
            fetched => fetched,
        }
    }

    /// The layer, if it is here.
    pub(super) fn present(&self, expected: &Expected) -> Option<Arc<LayerLease>> {
        let lease = self.lease(std::slice::from_ref(&expected.diff_id));
        lease.ok().map(Arc::new)
    }

    /// Fetches a layer, from one host after the other where what they send is wrong.
    async fn fetch(self: &Arc<Self>, repository: &Repository, expected: Expected) -> LayerResult {
        let layer = expected.blob.digest.clone();
        let mut was_mixed = false;
        loop {
            let slot = self.pulls.slots.take(&repository.registry).await;
            // A download from elsewhere may have brought it meanwhile.
            if let Some(lease) = self.present(&expected) {
                return Ok(lease);
            }
            let asked = repository.blob(expected.blob.digest.as_str()).await;
            let mut body = asked.map_err(|error| error.context(format!("layer {layer}")))?;
            let error = match self.receive(repository, &mut body, slot, expected.clone()).await {
                Ok(lease) => {
                    layer_came(LayerFrom::Registry);
                    return Ok(lease);
                }
                Err(error) if error.cause != Cause::Refused => return Err(error.context(format!("layer {layer}"))),
                Err(error) => error.context(format!("layer {layer} from {}", repository.host(body.endpoint))),
            };
            if !repository.ask_again(&body, &mut was_mixed) {
                return Err(error);
            }
            tracing::warn!(%error, "what was sent is not the layer, asking for all of it again");
        }
    }

    /// Unpacks what comes while it comes.
    async fn receive(
        self: &Arc<Self>,
        repository: &Repository,
        body: &mut Body,
        slot: Slot,
        expected: Expected,
    ) -> LayerResult {
        let counter = self.pulls.board.layer(&expected.blob.digest, expected.blob.size);
        let mut received = 0;
        let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
        let store = Arc::clone(self);
        let unpacking = tokio::task::spawn_blocking(move || {
            let unpacked = store.unpack(receiver, &expected);
            drop(slot);
            unpacked
        });
        loop {
            let chunk = match repository.chunk(body).await {
                Ok(Some(chunk)) => Ok(chunk),
                Ok(None) => break,
                Err(error) => Err(error),
            };
            let bytes = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
            received += bytes;
            if let Some(metrics) = metrics() {
                metrics.pulls.bytes.inc_by(bytes);
            }
            counter.received(received);
            let broken = chunk.is_err();
            // A closed channel is an unpacker that has failed; its result says why.
            if sender.send(chunk).await.is_err() || broken {
                break;
            }
        }
        drop(sender);
        let unpacked = unpacking.await;
        unpacked.unwrap_or_else(|_panic| Err(ended("unpacking"))).map(Arc::new)
    }

    /// Blocks; for a thread of its own.
    pub(super) fn unpack(
        &self,
        receiver: mpsc::Receiver<Result<bytes::Bytes, PullError>>,
        expected: &Expected,
    ) -> Result<LayerLease, PullError> {
        let partial = self
            .partial(&expected.diff_id)
            .map_err(|error| PullError::local(&error))?;
        let usage = layer::unpack(receiver, expected, &partial)?;
        self.commit(&expected.diff_id, &partial, usage)
            .map_err(|error| PullError::local(&error))
    }
}

/// Finds the image's manifest. The digest returned is that of the document the reference itself names: for an image of
/// several platforms, the index's.
async fn resolve(
    repository: &Repository,
    reference: &Reference,
    platform: &Platform,
) -> Result<(Digest, Manifest), PullError> {
    let version = match &reference.version {
        Version::Tag(tag) => tag.as_str(),
        Version::Digest(digest) => digest.as_str(),
    };
    // A tag is whatever a host that may say so says; what is asked for by its digest may come from any.
    let is_asked = |_: &str, content: &[u8]| match &reference.version {
        Version::Digest(asked) => hash::check(content, asked),
        Version::Tag(_) => Ok(()),
    };
    let (content_type, content) = repository.manifest(version, is_asked).await?;
    let digest = match &reference.version {
        Version::Digest(asked) => asked.clone(),
        Version::Tag(_) => Digest::from_sha256(&Sha256::digest(&content).into()),
    };
    let index = match manifest::parse(&content, &content_type)? {
        Document::Image(manifest) => return Ok((digest, manifest)),
        Document::Index(index) => index,
    };
    let chosen = manifest::choose(index, platform)?;
    let is_chosen = |content_type: &str, content: &[u8]| {
        check(content, &chosen)?;
        if content_type.split(';').next().map(str::trim) == Some(chosen.media_type.as_str()) {
            return Ok(());
        }
        let expected = &chosen.media_type;
        Err(PullError::refused(format!(
            "manifest sent as {content_type:?}, its index says {expected:?}"
        )))
    };
    let (content_type, content) = repository.manifest(chosen.digest.as_str(), is_chosen).await?;
    match manifest::parse(&content, &content_type)? {
        Document::Image(manifest) => Ok((digest, manifest)),
        Document::Index(_) => Err(PullError::refused("index within an index: not supported")),
    }
}

/// Checks that `content` is what a descriptor speaks of.
fn check(content: &[u8], descriptor: &Descriptor) -> Result<(), PullError> {
    hash::check(content, &descriptor.digest)?;
    if content.len() as u64 == descriptor.size {
        return Ok(());
    }
    let (length, size) = (content.len(), descriptor.size);
    Err(PullError::refused(format!(
        "{length} bytes, its descriptor says {size}"
    )))
}

/// What callers are told where a task of ours panicked; the panic itself is in the log.
pub(super) fn ended(what: &str) -> PullError {
    PullError::local(&anyhow::anyhow!("{what} ended without a result"))
}
