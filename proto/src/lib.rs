//! Every format that crosses a process boundary in Corten.
//!
//! | module | between | form |
//! |---|---|---|
//! | [`cri`] (feature `cri`) | kubelet, crictl and `corten-cri` | gRPC, `cri/api.proto` |
//! | [`images`] (feature `cri`) | `corten-cri image` and the server | gRPC, `images/images.proto` |
//! | [`exits`] (feature `cri`) | `corten-cri why` and the server | gRPC, `exits/exits.proto` |
//! | [`networks`] (feature `cri`) | `corten-cri network` and the server | gRPC, `networks/networks.proto` |
//! | [`otlp`] (feature `cri`) | the server and a collector of traces | OTLP, `otlp/trace.proto` |
//! | [`shim`] | `corten-cri` and `corten-shim` | packets, `shim/shim.proto` |
//! | [`exit`] | `corten-shim` and whoever reads the disk later | one JSON file a container |
//! | [`log`] | `corten-cri` and `corten-shim` | a path's rule |
//! | [`id`] | all of them | ids and digests, parsed once |
//!
//! What stays out: the OCI documents (crate `oci-spec`) and what one binary alone reads and writes.

pub mod exit;
pub mod id;
pub mod log;

/// CRI v1 as of Kubernetes 1.37: `runtime.v1.RuntimeService` and `runtime.v1.ImageService`.
#[cfg(feature = "cri")]
#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub, rustdoc::all)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// What `corten-cri image` asks of the server beyond the CRI; `images/images.proto` draws it.
#[cfg(feature = "cri")]
#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub, rustdoc::all)]
pub mod images {
    /// Most bytes of an archive in one message.
    pub const MAX_PIECE: usize = 1 << 20;

    tonic::include_proto!("corten.images.v1");
}

/// What `corten-cri why` asks of the server; `exits/exits.proto` draws it.
#[cfg(feature = "cri")]
#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub, rustdoc::all)]
pub mod exits {
    tonic::include_proto!("corten.exits.v1");
}

/// What `corten-cri network` asks of the server; `networks/networks.proto` draws it.
#[cfg(feature = "cri")]
#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub, rustdoc::all)]
pub mod networks {
    tonic::include_proto!("corten.networks.v1");
}
/// Traces, as a collector takes them; `otlp/trace.proto` draws it.
#[cfg(feature = "cri")]
#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub, rustdoc::all)]
pub mod otlp {
    tonic::include_proto!("opentelemetry.proto.collector.trace.v1");
}

/// The names of all methods that the server serves, of all its services.
#[cfg(feature = "cri")]
pub const METHODS: &[&str] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// The protocol between `corten-cri` and `corten-shim`; `shim/shim.proto` draws it.
#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub, rustdoc::all)]
pub mod shim {
    /// Largest packet either side sends or accepts, in bytes.
    pub const MAX_PACKET: usize = 64 * 1024;

    include!(concat!(env!("OUT_DIR"), "/corten.shim.v1.rs"));
}
