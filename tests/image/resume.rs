//! Connections that break, registries that ask to wait or say nothing: what is tried again, and where it goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use corten_cri::image::{Cause, Credentials, ImageStore};
use corten_tests::image::{Image, Saved};
use corten_tests::registry::Fault;

use crate::{Lab, large_layer, small_layer};

/// Serves an image with a layer of so many mebibytes as `a:1`.
fn serve(lab: &Lab, mebibytes: usize) -> Saved {
    lab.serve(&Image::new().layer(large_layer("layer", mebibytes)), &["a:1"])
}

fn times(count: usize, fault: Fault) -> Option<Fault> {
    Some(Fault::Times(count, Box::new(fault)))
}

/// The `Range` headers of the requests for a blob.
fn ranges(lab: &Lab, blob: &str) -> Vec<Option<String>> {
    let requests = lab.registry.requests();
    let of_blob = requests.iter().filter(|request| request.path.contains(blob));
    of_blob
        .map(|request| request.header("range").map(str::to_owned))
        .collect()
}

/// A store that waits three seconds for a byte, one in each of three tries.
fn impatient(lab: &Lab) -> Arc<ImageStore> {
    let mut configs = lab.configs();
    configs.pull.progress_timeout_s = 3;
    lab.store_with("impatient", configs)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_goes_on_where_it_was() {
    let lab = Lab::new();
    let saved = serve(&lab, 4);
    let blob = saved.blobs[0].as_str();
    lab.registry.fail(blob, times(1, Fault::Truncate(3_000_000)));
    assert_eq!(lab.pull("a:1").await.unwrap().id, saved.id);
    assert_eq!(ranges(&lab, blob), [None, Some("bytes=3000000-".to_owned())]);
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_ranges_sends_it_all_again() {
    let lab = Lab::new();
    let saved = serve(&lab, 2);
    let blob = saved.blobs[0].as_str();
    lab.registry.ignore_ranges();
    lab.registry.fail(blob, times(2, Fault::Truncate(1_000_000)));
    assert_eq!(lab.pull("a:1").await.unwrap().id, saved.id);
    let asked = Some("bytes=1000000-".to_owned());
    assert_eq!(
        ranges(&lab, blob),
        [None, asked.clone(), asked],
        "the second try brought nothing new"
    );
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_breaks_often_is_no_broken_registry() {
    let lab = Lab::new();
    let saved = serve(&lab, 8);
    let blob = saved.blobs[0].as_str();
    lab.registry.fail(blob, Some(Fault::Truncate(1_500_000)));
    assert_eq!(lab.pull("a:1").await.unwrap().id, saved.id);
    assert_eq!(lab.registry.count(blob), 6, "more than the tries of one request");
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_were_not_asked_for_are_not_taken() {
    let lab = Lab::new();
    let saved = serve(&lab, 1);
    let blob = saved.blobs[0].as_str();
    lab.registry.fail(blob, times(1, Fault::Truncate(500_000)));
    lab.registry.fail("/blobs/", Some(Fault::Shift(7)));
    let error = lab.pull("a:1").await.unwrap_err();
    assert!(error.to_string().contains("a part that was not asked for"), "{error}");
    assert_eq!(error.cause, Cause::Unreachable);
    lab.assert_empty();
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_that_are_wrong_are_found_out() {
    let lab = Lab::new();
    let saved = serve(&lab, 1);
    let blob = saved.blobs[0].as_str();
    for (fault, cause, says) in [
        // The connection closes before the length that was said: what is missing is asked for, and is not there.
        (Fault::Length(10), Cause::Unreachable, "416"),
        (Fault::Length(-10), Cause::Refused, "ends 10 bytes before"),
    ] {
        lab.registry.fail(blob, Some(fault.clone()));
        let error = lab.pull("a:1").await.unwrap_err();
        assert_eq!(error.cause, cause, "{fault:?}: {error}");
        let text = error.to_string();
        let host = lab.registry.address().to_string();
        assert!(
            text.contains(says) && text.contains(blob) && text.contains(&host),
            "{fault:?}: {text}"
        );
        lab.assert_empty();
    }
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_overburdened_is_asked_again() {
    let lab = Lab::new();
    let wait = |seconds: &str| Fault::StatusWith(429, "Retry-After", seconds.to_owned());
    let table = [
        ("/manifests/", Fault::Status(503), 2, 1.0),
        ("/manifests/", wait("2"), 1, 2.0),
        ("/manifests/", Fault::Truncate(10), 1, 0.2),
        ("/blobs/", Fault::Status(502), 1, 0.2),
        ("/blobs/", wait("1"), 1, 1.0),
        ("/blobs/", Fault::Status(500), 2, 1.0),
    ];
    for (number, (part, fault, count, at_least)) in table.into_iter().enumerate() {
        let name = format!("a:{number}");
        let saved = lab.serve(&Image::new().layer(small_layer(&name)), &[&name]);
        lab.registry.fail(part, times(count, fault.clone()));
        let began = Instant::now();
        let pulled = lab.pull(&name).await;
        lab.registry.fail(part, None);
        assert_eq!(pulled.unwrap().id, saved.id, "{part} {fault:?}");
        assert!(
            began.elapsed().as_secs_f64() >= at_least,
            "{part} {fault:?}: {:?}",
            began.elapsed()
        );
    }
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn tries_and_waits_have_an_end() {
    let lab = Lab::new();
    serve(&lab, 1);
    let table = [
        (
            Fault::StatusWith(429, "Retry-After", "86400".into()),
            1,
            "to be asked again in 86400 s",
        ),
        (Fault::StatusWith(503, "Retry-After", "x".into()), 3, "503"),
        (Fault::Status(501), 1, "501"),
        (Fault::Status(429), 3, "429"),
    ];
    for (fault, requests, says) in table {
        let before = lab.registry.count("/manifests/");
        lab.registry.fail("/manifests/", Some(fault.clone()));
        let began = Instant::now();
        let error = lab.pull("a:1").await.unwrap_err();
        assert_eq!(error.cause, Cause::Unreachable);
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(lab.registry.count("/manifests/") - before, requests, "{fault:?}");
        assert!(began.elapsed().as_secs() < 10, "{fault:?}");
    }
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_registry_is_asked_again_and_then_given_up() {
    let lab = Lab::new();
    let saved = serve(&lab, 1);
    let blob = saved.blobs[0].as_str();
    let store = impatient(&lab);
    let reference = lab.registry.reference("a:1");
    lab.registry.fail(blob, Some(Fault::Stall(0)));
    let error = store.pull(&reference, Credentials::Anonymous).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("no byte in 1 s") && text.contains(blob), "{text}");
    assert_eq!((error.cause, lab.registry.count(blob)), (Cause::Unreachable, 3));
    lab.registry.fail(blob, times(1, Fault::Stall(100_000)));
    store.pull(&reference, Credentials::Anonymous).await.unwrap();
    assert_eq!(ranges(&lab, blob).last().unwrap().as_deref(), Some("bytes=100000-"));
    lab.finish_with(store);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_away_while_it_waits_ends_it() {
    let lab = Lab::new();
    let saved = serve(&lab, 1);
    let blob = saved.blobs[0].as_str();
    for fault in [
        Fault::StatusWith(429, "Retry-After", "2".into()),
        Fault::Stall(1000),
        Fault::Truncate(1000),
    ] {
        lab.registry.fail(blob, Some(fault.clone()));
        let before = lab.registry.count(blob);
        let given_up = tokio::time::timeout(Duration::from_millis(200), lab.pull("a:1")).await;
        assert!(given_up.is_err(), "{fault:?} holds it up");
        let asked = lab.registry.count(blob);
        assert!(asked > before);
        lab.assert_empty();
        tokio::time::sleep(Duration::from_millis(2200)).await;
        assert_eq!(lab.registry.count(blob), asked, "{fault:?}: nobody asks any more");
    }
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_several_wait_for_breaks_for_all_and_goes_on_for_all() {
    let lab = Lab::new();
    let saved = lab.serve(&Image::new().layer(large_layer("layer", 4)), &["a:1", "b:1"]);
    let blob = saved.blobs[0].as_str();
    lab.registry.fail(blob, times(1, Fault::Truncate(2_000_000)));
    let (first, same, other) = tokio::join!(lab.pull("a:1"), lab.pull("a:1"), lab.pull("b:1"));
    for pulled in [first, same, other] {
        assert_eq!(pulled.unwrap().id, saved.id);
    }
    assert_eq!(lab.registry.count(blob), 2);
    lab.finish();
}
