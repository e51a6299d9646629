//! Work with its progress told to a caller.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use corten_proto::images::{Done, Layer, Progress};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tonic::Status;

use crate::image;

/// Between two looks at how far the work is.
const TICK: Duration = Duration::from_millis(100);

/// Runs `work` and sends what `progress` shows whenever it has changed, and at last what came of it. Ends with the work, or
/// when nobody listens any more: then the work is dropped.
pub(super) async fn follow(
    work: impl Future<Output = Result<Vec<Done>, Status>>,
    progress: impl Fn() -> Option<Arc<image::Progress>>,
    sender: mpsc::Sender<Result<Progress, Status>>,
) {
    let mut work = pin!(work);
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Kept from the first look on: the last message tells of every layer, also of work that ends between two looks.
    let mut seen: Option<Arc<image::Progress>> = None;
    let mut told = Progress::default();
    loop {
        tokio::select! {
            // The work first: it makes the progress that is looked at next.
            biased;
            outcome = &mut work => {
                let last = outcome.map(|done| message(seen.as_deref(), done));
                // A caller that has gone needs no answer.
                drop(sender.send(last).await);
                return;
            }
            () = sender.closed() => return,
            _ = ticks.tick() => {
                seen = seen.or_else(&progress);
                let now = message(seen.as_deref(), Vec::new());
                // One that does not keep up gets the next.
                if now != told && sender.try_send(Ok(now.clone())).is_ok() {
                    told = now;
                }
            }
        }
    }
}

fn message(progress: Option<&image::Progress>, done: Vec<Done>) -> Progress {
    let Some(snapshot) = progress.map(image::Progress::snapshot) else {
        return Progress {
            done,
            ..Progress::default()
        };
    };
    let layers = snapshot.layers.into_iter().map(|layer| Layer {
        digest: layer.digest.to_string(),
        size: layer.size,
        received: layer.received,
        done: layer.done,
        present: layer.present,
    });
    Progress {
        stage: snapshot.stage.to_owned(),
        layers: layers.collect(),
        done,
    }
}
