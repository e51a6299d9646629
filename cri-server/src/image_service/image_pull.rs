//! PullImage: credentials and the codes of failures.

use std::sync::Arc;

use corten_proto::cri::AuthConfig;
use tonic::{Code, Status};

use crate::image::{Cause, Credentials, ImageStore, PullError, Reference};

/// What the kubelet knows an image by that the policy does not let pass.
pub(crate) const UNTRUSTED: &str = "SignatureValidationFailed: ";

/// Pulls and returns the image's id, which the kubelet compares with what ListImages and ContainerStatus say.
pub(crate) async fn pull(images: &Arc<ImageStore>, name: &str, auth: Option<&AuthConfig>) -> Result<String, Status> {
    let parsed = name.parse::<Reference>();
    let reference = parsed.map_err(|error| super::invalid(name, &error))?;
    let credentials = Credentials::from_cri(auth, &reference.registry).map_err(status)?;
    let image = images.pull(name, credentials).await.map_err(status)?;
    Ok(image.id.to_string())
}

/// A failed pull or import, as the CRI tells it.
pub(crate) fn status(error: PullError) -> Status {
    let (code, prefix) = match error.cause {
        Cause::Invalid => (Code::InvalidArgument, ""),
        Cause::NotFound => (Code::NotFound, ""),
        Cause::Denied => (Code::PermissionDenied, ""),
        // The kubelet looks for these words at the beginning of an error of code Unknown (kubernetes' pkg/kubelet/images).
        Cause::Unreachable => (Code::Unknown, "RegistryUnavailable: "),
        Cause::Untrusted => (Code::Unknown, UNTRUSTED),
        Cause::Refused => (Code::FailedPrecondition, ""),
        Cause::Local => (Code::Internal, ""),
    };
    Status::new(code, format!("{prefix}{error}"))
}
