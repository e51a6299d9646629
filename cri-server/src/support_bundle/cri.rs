//! What the server says of itself and of everything it keeps, as `crictl inspect` would show it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use corten_proto::cri::{
    ContainerStatusRequest, ImageSpec, ImageStatusRequest, ListContainersRequest, ListImagesRequest,
    ListPodSandboxRequest, PodSandboxStatusRequest, StatusRequest,
};
use serde::Serialize;
use tonic::{Response, Status};

use super::entry::{Entry, MAX_FILES, within_part};
use crate::client::Client;
use crate::config::Config;

/// How long the server may take for everything.
const LIMIT: Duration = Duration::from_secs(30);
/// How long it may take for one answer: a lock that is held holds up one object, and not the others.
const CALL: Duration = Duration::from_secs(4);

/// What has been answered so far: kept where the time is over.
#[derive(Clone, Default)]
struct Answers(Arc<Mutex<Vec<Entry>>>);

pub(super) fn collect(config: &Config) -> Vec<Entry> {
    let answers = Answers::default();
    let asking = answers.clone();
    if let Err(error) = Client::block_on(&config.listen, LIMIT, |client| ask(client, asking)) {
        answers.push(Entry::text("cri/error.txt", &format!("{error:#}\n")));
    }
    within_part("cri", answers.take().into_iter())
}

impl Answers {
    fn push(&self, entry: Entry) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds an answer, or why there is none: an object may have gone since it was listed.
    async fn add<T: Serialize>(&self, name: String, call: impl Future<Output = Result<Response<T>, Status>>) {
        self.push(match in_time(call).await {
            Ok(answer) => Entry::json(name, &answer),
            Err(error) => Entry::text(name, &format!("{error:#}\n")),
        });
    }
}

async fn in_time<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T> {
    let answer = tokio::time::timeout(CALL, call).await;
    let answer = answer.with_context(|| format!("no answer in {} s", CALL.as_secs()))??;
    Ok(answer.into_inner())
}

/// One kind of objects after the other; one whose list cannot be had does not keep the others.
async fn ask(mut client: Client, answers: Answers) -> Result<()> {
    let status = client.runtime.status(StatusRequest { verbose: true });
    answers.add("cri/status.json".to_owned(), status).await;
    for (name, outcome) in [
        ("pods", pods(&mut client, &answers).await),
        ("containers", containers(&mut client, &answers).await),
        ("images", images(&mut client, &answers).await),
    ] {
        if let Err(error) = outcome {
            answers.push(Entry::text(format!("cri/{name}-error.txt"), &format!("{error:#}\n")));
        }
    }
    Ok(())
}

async fn pods(client: &mut Client, answers: &Answers) -> Result<()> {
    let list = in_time(client.runtime.list_pod_sandbox(ListPodSandboxRequest::default())).await?;
    answers.push(Entry::json("cri/pods.json", &list.items));
    for pod in list.items.iter().take(MAX_FILES) {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: pod.id.clone(),
            verbose: true,
        };
        let name = format!("cri/pod-{}.json", pod.id);
        answers.add(name, client.runtime.pod_sandbox_status(request)).await;
    }
    Ok(())
}

async fn containers(client: &mut Client, answers: &Answers) -> Result<()> {
    let list = in_time(client.runtime.list_containers(ListContainersRequest::default())).await?;
    answers.push(Entry::json("cri/containers.json", &list.containers));
    for container in list.containers.iter().take(MAX_FILES) {
        let request = ContainerStatusRequest {
            container_id: container.id.clone(),
            verbose: true,
        };
        let name = format!("cri/container-{}.json", container.id);
        answers.add(name, client.runtime.container_status(request)).await;
    }
    Ok(())
}

async fn images(client: &mut Client, answers: &Answers) -> Result<()> {
    let list = in_time(client.images.list_images(ListImagesRequest::default())).await?;
    answers.push(Entry::json("cri/images.json", &list.images));
    for image in list.images.iter().take(MAX_FILES) {
        let spec = ImageSpec {
            image: image.id.clone(),
            ..ImageSpec::default()
        };
        let request = ImageStatusRequest {
            image: Some(spec),
            verbose: true,
        };
        let name = format!("cri/image-{}.json", image.id.replace(':', "-"));
        answers.add(name, client.images.image_status(request)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_that_does_not_come_keeps_those_that_came() {
        let answers = Answers::default();
        let here = async { Ok(Response::new(7)) };
        answers.add("a".to_owned(), here).await;
        let never = std::future::pending::<Result<Response<u8>, Status>>();
        answers.add("b".to_owned(), never).await;
        let contents = answers
            .take()
            .into_iter()
            .map(|it| String::from_utf8(it.content).unwrap());
        assert_eq!(
            contents.collect::<Vec<_>>(),
            ["7\n", "no answer in 4 s: deadline has elapsed\n"]
        );
    }
}
