//! ImageStatus, and an image in the CRI's form.

use std::collections::HashMap;

use corten_proto::cri;
use tonic::Status;

use crate::image::{Image, Pins};

/// The answer about one image; an unknown one is an empty answer and no error.
pub(super) fn response(image: Option<&Image>, pins: &Pins, verbose: bool) -> Result<cri::ImageStatusResponse, Status> {
    let Some(image) = image else {
        return Ok(cri::ImageStatusResponse::default());
    };
    let mut info = HashMap::new();
    if verbose {
        let details = serde_json::json!({ "layers": image.layers, "imageSpec": image.config });
        info.insert("info".to_owned(), details.to_string());
    }
    Ok(cri::ImageStatusResponse {
        image: Some(to_cri(image, pins)),
        info,
    })
}

/// An image as the CRI shows it.
pub(super) fn to_cri(image: &Image, pins: &Pins) -> cri::Image {
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
