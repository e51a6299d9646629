//! ImageStatus, and an image in the CRI's form.

use std::collections::{BTreeMap, HashMap};

use corten_proto::cri;
use tonic::Status;

use crate::image::{Image, ImageStore, Pins};

/// The answer about one image; an unknown one is an empty answer and no error. Verbose, it tells of a pull of that name
/// too, whether or not the image is here.
pub(super) fn response(
    images: &ImageStore,
    name: &str,
    image: Option<&Image>,
    pins: &Pins,
    verbose: bool,
) -> Result<cri::ImageStatusResponse, Status> {
    let mut info = HashMap::new();
    if verbose {
        if let Some(image) = image {
            info.insert("info".to_owned(), details(images, image).to_string());
        }
        let names = images.candidates(name).unwrap_or_default();
        if let Some(progress) = names.iter().find_map(|reference| images.progress(reference)) {
            let text = serde_json::to_string(&progress.snapshot());
            info.insert(
                "progress".to_owned(),
                text.map_err(|error| Status::internal(error.to_string()))?,
            );
        }
    }
    Ok(cri::ImageStatusResponse {
        image: image.map(|image| to_cri(image, pins)),
        info,
    })
}

/// The image's config, and its layers, bottom first, with what each takes on disk.
fn details(images: &ImageStore, image: &Image) -> serde_json::Value {
    let layers = image.layers.iter().map(|layer| {
        let size = images.layers_size(std::slice::from_ref(layer));
        serde_json::json!({ "diffID": layer, "size": size, "path": images.layer_path(layer) })
    });
    let policy = image
        .admissions
        .iter()
        .map(|(name, admission)| (name.as_str(), admission.verdict.as_str()));
    serde_json::json!({
        "size": image.size,
        "policy": policy.collect::<BTreeMap<_, _>>(),
        "layers": layers.collect::<Vec<_>>(),
        "imageSpec": image.config,
    })
}

/// An image as the CRI shows it.
pub(crate) fn to_cri(image: &Image, pins: &Pins) -> cri::Image {
    let user = image
        .config
        .config()
        .as_ref()
        .and_then(|config| config.user().as_deref())
        .unwrap_or_default();
    let (uid, username) = split_user(user);
    cri::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        // The kubelet takes an image of size 0 for a broken answer.
        size: image.size.max(1),
        uid: uid.map(|value| cri::Int64Value { value }),
        username,
        pinned: pins.hold(image),
        ..cri::Image::default()
    }
}

/// What the kubelet's runAsNonRoot needs of `USER`: a number, or a name that it cannot check. The group does not matter.
fn split_user(user: &str) -> (Option<i64>, String) {
    let user = user.split(':').next().unwrap_or_default();
    // All digits: i64's parser would take a sign.
    if !user.is_empty()
        && user.bytes().all(|byte| byte.is_ascii_digit())
        && let Ok(uid) = user.parse()
    {
        return (Some(uid), String::new());
    }
    (None, user.to_owned())
}

#[cfg(test)]
mod tests {
    use super::split_user;

    #[test]
    fn users() {
        let table = [
            ("", None, ""),
            ("0", Some(0), ""),
            ("1003:1004", Some(1003), ""),
            ("www-data", None, "www-data"),
            ("www-data:1004", None, "www-data"),
            ("+5", None, "+5"),
            ("99999999999999999999", None, "99999999999999999999"),
        ];
        for (user, uid, name) in table {
            assert_eq!(split_user(user), (uid, name.to_owned()), "{user}");
        }
    }
}
