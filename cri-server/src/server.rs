//! The process: directories and their locks, the endpoint, and an end that leaves the pods alone.
//!
//! ```text
//! locks --> directories --> images, node --> recover --> endpoint --> serve --> SIGTERM, SIGINT --> finish --> remove the socket
//!                                                                        SIGHUP: reload, watchdog: beat
//! ```

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use corten_proto::config::configuration_server::ConfigurationServer;
use corten_proto::cri::image_service_server::ImageServiceServer;
use corten_proto::cri::runtime_service_server::RuntimeServiceServer;
use corten_proto::exits::exits_server::ExitsServer;
use corten_proto::images::images_server::ImagesServer;
use corten_proto::networks::networks_server::NetworksServer;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, umask};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tonic::transport::Server;

use crate::apparmor;
use crate::config::{Config, Files, Live, Loaded};
use crate::deadline::Deadline;
use crate::drop_in;
use crate::image::snapshot::{self, Snapshots};
use crate::image::{ImageStore, Policy};
use crate::image_admin::ImageAdmin;
use crate::image_service::ImageService;
use crate::incoming::connections;
use crate::limits::Limits;
use crate::network::teardown;
use crate::network_admin::NetworkAdmin;
use crate::node::{Node, blocking, remove_file};
use crate::own_process;
use crate::paths::Paths;
use crate::recover::{entries, recover};
use crate::reload::{ConfigService, Reload, SetLogLevel};
use crate::runtime_service::RuntimeService;
use crate::streaming;
use crate::systemd::Systemd;
use crate::telemetry::Telemetry;
use crate::telemetry::rpc::Observed;
use crate::watchdog;
use crate::why::{self, ExitsService};

/// Largest answer: what the kubelet's client takes.
const MAX_ANSWER: usize = 16 << 20;
/// Largest request. A process can be started with 2 MiB of arguments and variables, and Kubernetes' objects hold less.
const MAX_REQUEST: usize = 4 << 20;
/// Most calls of one connection, of all kinds; there are more places than `limits` gives, so that a call that has none is told so.
const MAX_STREAMS: u32 = 4096;
/// Longest headers of one call.
const MAX_HEADERS: u32 = 16 << 10;
/// Silence after which a client is asked whether it is still there, and how long it may take to answer.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// How long calls under way may take after the server was told to end.
const FINISH_LIMIT: Duration = Duration::from_secs(5);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Serves until SIGTERM or SIGINT. Pods go on running.
pub async fn serve(files: Files, loaded: Loaded, mut systemd: Systemd, set_log_level: SetLogLevel) -> Result<()> {
    // From the first moment: whoever sends it now means a reload, and the default is to die of it.
    let hang_up = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    // The modes asked for below, and by CNI plugins, are the modes got, whoever started this.
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    own_process::lower_oom_score();
    let mut telemetry = Telemetry::start(&loaded.config)?;
    let passed = systemd.take_listener(&loaded.config.listen)?;
    let systemd = Arc::new(systemd);
    let paths = Paths::new(&loaded.config.root, &loaded.config.state);
    let _locks = [take(paths.root())?, take(paths.state())?];
    let _image_lock = take_images(&loaded.config)?;
    make_directories(&paths)?;
    clear_consoles(&paths.consoles())?;
    why::tidy(&paths.exits())?;
    let (images, snapshots) = open_storage(&loaded.config, &paths)?;
    let node = Node::new(Live::new(files, loaded), images.clone(), snapshots)?;
    load_apparmor(&node);
    node.probe_criu();
    systemd.status("recovering the pods");
    recover(&node).await?;
    teardown::resume(&node).await?;
    let builtin = node.builtin.clone();
    if let Err(error) = blocking(move || builtin.resume()).await {
        tracing::error!("repair the built-in network: {error:#}");
    }
    // Only now does every container hold its layers.
    images.sweep();
    let config = node.config();
    let streams = streaming::Server::listen(&config.streaming, &node.tokens).await?;
    let listener = match passed {
        Some(listener) => Endpoint::passed(listener, &config.listen)?,
        None => Endpoint::open(&config.listen)?,
    };
    tracing::info!(url = streams.url(), "serving streams");
    telemetry.serve(&node)?;
    let (stop_streams, stopping) = watch::channel(false);
    let streams = tokio::spawn(streams.serve(node.clone(), stopping));
    let status = format!("serving at {}", config.listen.display());
    let reload = Reload::new(&node, &systemd, set_log_level, status);
    // Beside the calls: what lies there may be many gigabytes.
    let importing = tokio::spawn(drop_in::import_all(images, config.import_dir()));
    drop(config);
    let served = tokio::select! {
        served = serve_on(&listener, &node, &reload, &systemd) => served,
        () = reload.at(hang_up) => bail!("SIGHUP is not told any more"),
        never = watchdog::watch(node.clone(), systemd.clone()) => never,
    };
    importing.abort();
    stop_streams.send_replace(true);
    if tokio::time::timeout(FINISH_LIMIT, streams).await.is_err() {
        tracing::warn!("ending with streams under way");
    }
    node.work.finish(FINISH_LIMIT).await;
    // What a checkpoint held that was among the work.
    node.release_held().await;
    node.supervisors.abort().await;
    telemetry.finish().await;
    served
}

/// The images, judged as the configuration says, and the containers' roots.
fn open_storage(config: &Config, paths: &Paths) -> Result<(Arc<ImageStore>, Arc<Snapshots>)> {
    let image_root = config.image_root();
    let images = ImageStore::open(image_root, config.registries())
        .with_context(|| format!("open the images in {}", image_root.display()))?;
    let limits = snapshot::LayerLimits {
        bytes: config.storage.writable_layer_limit_bytes,
        inodes: config.storage.writable_layer_limit_inodes,
    };
    let wanted = config.storage.snapshotter;
    let snapshots = Snapshots::open(images.clone(), &paths.containers(), wanted, limits)?;
    if let Some(file) = &config.image_policy {
        let policy = Policy::of(file);
        if let Err(error) = policy.check() {
            tracing::error!("image policy: {error:#}; no image can be used until this is mended");
        }
        images.enforce(Some(policy));
    }
    Ok((images, snapshots))
}

fn load_apparmor(node: &Node) {
    if node.host.apparmor
        && let Err(error) = apparmor::load_default()
    {
        tracing::error!("AppArmor: {error:#}; containers that do not name another profile cannot be created");
    }
}

async fn serve_on(endpoint: &Endpoint, node: &Arc<Node>, reload: &Arc<Reload>, systemd: &Systemd) -> Result<()> {
    let listener = endpoint
        .listener
        .try_clone()
        .context("duplicate the endpoint's descriptor")?;
    let incoming = tokio::net::UnixListener::from_std(listener).context("watch the endpoint")?;
    let runtime = RuntimeServiceServer::new(RuntimeService::new(node.clone()))
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_ANSWER);
    let image = ImageServiceServer::new(ImageService::new(node))
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_ANSWER);
    let admin = ImagesServer::new(ImageAdmin::new(node.clone()));
    let exits = ExitsServer::new(ExitsService::new(node.clone()));
    let network = NetworksServer::new(NetworkAdmin::new(node.clone()));
    let (stop, stopping) = watch::channel(false);
    let told = |mut stopping: watch::Receiver<bool>| async move {
        // An error means that the sender has gone, which is as good.
        drop(stopping.wait_for(|stop| *stop).await);
    };
    let limits = Arc::<Limits>::default();
    let serving = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_keepalive_interval(Some(PING.0))
        .http2_keepalive_timeout(Some(PING.1))
        .add_service(Observed(limits.on(Deadline(runtime))))
        .add_service(Observed(limits.on(Deadline(image))))
        .add_service(Observed(limits.on(admin)))
        .add_service(Observed(limits.on(exits)))
        .add_service(Observed(limits.on(network)))
        .add_service(Observed(
            limits.on(ConfigurationServer::new(ConfigService(reload.clone()))),
        ))
        .serve_with_incoming_shutdown(connections(incoming, limits), told(stopping.clone()));
    tracing::info!(endpoint = %endpoint.path.display(), version = env!("CARGO_PKG_VERSION"), "serving");
    systemd.ready(reload.status());
    tokio::select! {
        result = serving => result.context("serve"),
        () = async {
            wait_for_signal().await;
            systemd.stopping();
            node.events.stop();
            stop.send_replace(true);
            tokio::time::sleep(FINISH_LIMIT).await;
        } => Ok(()),
    }
}

async fn wait_for_signal() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("no signal handlers: only SIGKILL ends this server");
        return std::future::pending().await;
    };
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!("{name}: ending; pods go on");
}

/// Makes `directory` (mode 0700) and locks it for this process: two servers must never share one.
fn take(directory: &Path) -> Result<Flock<File>> {
    private_directory(directory)?;
    let path = directory.join("lock");
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .mode(0o600)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    // For whoever looks at it; the lock itself is the kernel's and ends with the process.
    let held = match Flock::lock(file.try_clone()?, FlockArg::LockExclusiveNonblock) {
        Ok(held) => held,
        Err(_) => bail!("{}: another server uses this directory", path.display()),
    };
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))?;
    Ok(held)
}

/// Takes the directory of the images where it is one of its own. Images in the server's root are not looked at then; they
/// are left where they are, and reported.
fn take_images(config: &Config) -> Result<Option<Flock<File>>> {
    let Some(own) = &config.storage.image_root else {
        return Ok(None);
    };
    let unused = config.root.join("layers");
    if fs::read_dir(&unused).is_ok_and(|mut entries| entries.next().is_some()) {
        tracing::warn!(directory = %unused.display(), "layers that are not used any more, with image_root: remove them");
    }
    take(own).map(Some)
}

/// Makes a directory and its parents; it is 0700 afterwards, whatever it was before.
fn private_directory(path: &Path) -> Result<()> {
    directory(path, 0o700)
}

fn directory(path: &Path, mode: u32) -> Result<()> {
    let make = || {
        fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    make().with_context(|| format!("make {}", path.display()))
}

fn make_directories(paths: &Paths) -> Result<()> {
    let all = [
        paths.sandbox_records(),
        paths.containers(),
        paths.exits(),
        paths.quarantine(),
        paths.networks(),
        paths.sandboxes(),
        paths.bundles(),
        paths.consoles(),
    ];
    all.iter().try_for_each(|directory| private_directory(directory))?;
    // The root directory of processes with any user, in any user namespace; what is above it is private.
    directory(&paths.pause_rootfs(), 0o755)
}

/// Removes the sockets of a server that was killed: nobody listens there any more.
fn clear_consoles(directory: &Path) -> Result<()> {
    entries(directory)?.iter().try_for_each(|path| remove_file(path))
}

/// The listening socket; its file goes with it, if it is ours.
struct Endpoint {
    listener: UnixListener,
    path: PathBuf,
    /// systemd listens there, before the server does and after it.
    passed: bool,
}

impl Endpoint {
    /// Listens at `path`, mode 0600. The file of a server that has gone is replaced; one that answers is not.
    fn open(path: &Path) -> Result<Self> {
        match UnixStream::connect(path) {
            Ok(_) => bail!("{}: another server listens there", path.display()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => remove_file(path)?,
            Err(error) => return Err(error).with_context(|| format!("look at {}", path.display())),
        }
        let parent = path.parent().context("the endpoint has a directory")?;
        if !parent.exists() {
            private_directory(parent)?;
        }
        let context = || format!("listen at {}", path.display());
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).with_context(context)?;
        let address = UnixAddr::new(path).with_context(context)?;
        bind(fd.as_raw_fd(), &address).with_context(context)?;
        // Before it listens: nobody can have connected under the mode that the umask gave it.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(context)?;
        let backlog = Backlog::new(BACKLOG).with_context(context)?;
        listen(&fd, backlog).with_context(context)?;
        Ok(Endpoint {
            listener: fd.into(),
            path: path.to_owned(),
            passed: false,
        })
    }

    /// Takes a socket over that systemd listens at: mode and owner are its unit's.
    fn passed(listener: UnixListener, path: &Path) -> Result<Self> {
        listener.set_nonblocking(true).context("watch the passed endpoint")?;
        Ok(Endpoint {
            listener,
            path: path.to_owned(),
            passed: true,
        })
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if self.passed {
            return;
        }
        if let Err(error) = remove_file(&self.path) {
            tracing::warn!("{error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        drop(UnixListener::bind(&path).unwrap());
        let endpoint = Endpoint::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Endpoint::open(&path).is_err());
        drop(endpoint);
        assert!(!path.exists());
    }

    #[test]
    fn sockets_of_a_killed_server_are_cleared_away() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            drop(UnixListener::bind(directory.path().join(name)).unwrap());
        }
        clear_consoles(directory.path()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(clear_consoles(&directory.path().join("none")).is_err());
    }

    #[test]
    fn a_directory_is_taken_once() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        let held = take(&root).unwrap();
        let error = take(&root).expect_err("taken").to_string();
        assert!(error.contains("another server"), "{error}");
        drop(held);
        assert!(take(&root).is_ok());
        assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
