//! PullImage: what a name means, whose the credentials are, and the codes of failures.

use std::sync::Arc;

use corten_proto::cri::AuthConfig;
use tonic::{Code, Status};

use crate::error::cut;
use crate::image::{Cause, Credentials, ImageStore, PullError, Reference};

/// What the kubelet knows an image by that the policy does not let pass.
pub(crate) const UNTRUSTED: &str = "SignatureValidationFailed: ";

/// An image that was pulled.
pub(crate) struct Pulled {
    /// Its id, which the kubelet compares with what ListImages and ContainerStatus say.
    pub(crate) id: String,
    /// What the name turned out to mean.
    pub(crate) name: Reference,
}

/// Pulls what `name` means: the first of its references that there is.
pub(crate) async fn pull(images: &Arc<ImageStore>, name: &str, auth: Option<&AuthConfig>) -> Result<Pulled, Status> {
    let candidates = images.candidates(name);
    let candidates = candidates.map_err(|error| super::invalid(name, &error))?;
    let mut failed: Option<PullError> = None;
    for reference in &candidates {
        let credentials = match candidates.as_slice() {
            [_only] => Credentials::from_cri(auth, &reference.registry),
            _several => Credentials::for_one_of_several(auth, &reference.registry),
        };
        let credentials = credentials.map_err(status)?;
        let error = match images.pull(&reference.to_string(), credentials).await {
            Ok(image) => {
                tracing::info!(image = %reference, id = %image.id, "pulled");
                return Ok(Pulled {
                    id: image.id.to_string(),
                    name: reference.clone(),
                });
            }
            Err(error) => error,
        };
        // Only a registry's answer leads to the next: whoever can silence one must not choose the image.
        let is_answer = matches!(error.cause, Cause::NotFound | Cause::Denied);
        let error = PullError::after(failed.take(), error);
        if !is_answer {
            return Err(status(error));
        }
        failed = Some(error);
    }
    Err(failed.map_or_else(|| Status::internal("no registry is configured for short names"), status))
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
    Status::new(code, cut(format!("{prefix}{error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::MAX_TEXT;

    #[test]
    fn a_text_fits_into_the_answers_headers() {
        let long = status(PullError::broken_off(&"ä".repeat(9000)));
        assert!(long.message().len() <= MAX_TEXT + '…'.len_utf8());
        assert!(long.message().starts_with("archive: it broke off: ää") && long.message().ends_with("ä…"));
    }
}
