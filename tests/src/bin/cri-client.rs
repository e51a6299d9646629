//! `cri-client`: the steps of the quick start without crictl, where Go cannot be had.
//!
//! ```text
//! cri-client --runtime-endpoint unix:///run/corten/corten.sock COMMAND
//!
//!   version                                images        pods        ps [-a]
//!   pull IMAGE                             runp POD.json              create POD CONTAINER.json POD.json
//!   start CONTAINER                        exec --sync CONTAINER COMMAND [ARG]...
//!   logs CONTAINER                         stop CONTAINER             rm CONTAINER
//!   stopp POD                              rmp POD | rmp --all --force
//! ```
//! Commands, arguments and JSON files are crictl's, so that one script drives either; what is printed is not promised
//! to be. Everything else of crictl is left to crictl.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use corten_proto::cri;
use corten_tests::cri::Cri;
use corten_tests::pod::{image, parse_log};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cri-client: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let ["--runtime-endpoint", endpoint, command @ ..] = words.as_slice() else {
        bail!("--runtime-endpoint unix://SOCKET comes first");
    };
    let socket = endpoint
        .strip_prefix("unix://")
        .context("the endpoint is a unix:// socket")?;
    let cri = Cri::new(Path::new(socket))?;
    if let ["exec", "--sync", container, command @ ..] = command {
        return exec(&cri, container, command);
    }
    let printed = match command {
        ["version"] => version(&cri)?,
        ["images"] => images(&cri)?,
        ["pods"] => pods(&cri)?,
        ["ps"] => containers(&cri, false)?,
        ["ps", "-a"] => containers(&cri, true)?,
        ["logs", container] => logs(&cri, container)?,
        ["pull", reference] => pull(&cri, reference)?,
        ["runp", pod] => run_pod(&cri, pod)?,
        ["create", pod, container, config] => create(&cri, pod, container, config)?,
        ["rmp", "--all", "--force"] => remove_all(&cri)?,
        [command, id] => act(&cri, command, id)?,
        other => bail!("no such command: {}", other.join(" ")),
    };
    io::stdout().write_all(printed.as_bytes()).context("write to stdout")?;
    Ok(ExitCode::SUCCESS)
}

/// The commands that have an id and an empty answer.
fn act(cri: &Cri, command: &str, id: &str) -> Result<String> {
    let (container_id, pod_sandbox_id) = (id.to_owned(), id.to_owned());
    match command {
        "start" => drop(cri.start_container(cri::StartContainerRequest { container_id })?),
        "stop" => drop(cri.stop_container(cri::StopContainerRequest {
            container_id,
            timeout: 0,
        })?),
        "rm" => drop(cri.remove_container(cri::RemoveContainerRequest { container_id })?),
        "stopp" => drop(cri.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id })?),
        "rmp" => drop(cri.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id })?),
        _ => bail!("no such command: {command} {id}"),
    }
    Ok(format!("{id}\n"))
}

fn version(cri: &Cri) -> Result<String> {
    let version = cri.version(cri::VersionRequest::default())?;
    Ok(format!(
        "{} {}, CRI {}\n",
        version.runtime_name, version.runtime_version, version.runtime_api_version
    ))
}

fn pull(cri: &Cri, reference: &str) -> Result<String> {
    let request = cri::PullImageRequest {
        image: Some(image(reference)),
        ..Default::default()
    };
    Ok(format!(
        "image is up to date for {}\n",
        cri.pull_image(request)?.image_ref
    ))
}

fn images(cri: &Cri) -> Result<String> {
    let images = cri.list_images(cri::ListImagesRequest::default())?.images;
    let line = |image: cri::Image| format!("{}  {}  {} bytes\n", image.repo_tags.join(" "), image.id, image.size);
    Ok(images.into_iter().map(line).collect())
}

fn run_pod(cri: &Cri, path: &str) -> Result<String> {
    let request = cri::RunPodSandboxRequest {
        config: Some(read(path)?),
        runtime_handler: String::new(),
    };
    Ok(format!("{}\n", cri.run_pod_sandbox(request)?.pod_sandbox_id))
}

fn create(cri: &Cri, pod: &str, container: &str, config: &str) -> Result<String> {
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod.to_owned(),
        config: Some(read(container)?),
        sandbox_config: Some(read(config)?),
    };
    Ok(format!("{}\n", cri.create_container(request)?.container_id))
}

fn pods(cri: &Cri) -> Result<String> {
    let pods = cri.list_pod_sandbox(cri::ListPodSandboxRequest::default())?.items;
    let line = |pod: cri::PodSandbox| {
        let state = pod.state();
        format!(
            "{}  {}  {}\n",
            pod.id,
            pod.metadata.unwrap_or_default().name,
            state.as_str_name()
        )
    };
    Ok(pods.into_iter().map(line).collect())
}

fn containers(cri: &Cri, all: bool) -> Result<String> {
    let containers = cri.list_containers(cri::ListContainersRequest::default())?.containers;
    let shown = containers
        .into_iter()
        .filter(|it| all || it.state() == cri::ContainerState::ContainerRunning);
    let line = |container: cri::Container| {
        let state = container.state();
        format!(
            "{}  {}  {}\n",
            container.id,
            container.metadata.unwrap_or_default().name,
            state.as_str_name()
        )
    };
    Ok(shown.map(line).collect())
}

/// The log as the container wrote it, both streams in their order.
fn logs(cri: &Cri, id: &str) -> Result<String> {
    let request = cri::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: false,
    };
    let status = cri.container_status(request)?.status.context("a status")?;
    let bytes = fs::read(&status.log_path).with_context(|| format!("read {}", status.log_path))?;
    let lines = parse_log(&bytes).into_iter();
    let text = lines.map(|line| (String::from_utf8_lossy(&line.content).into_owned(), line.partial));
    Ok(text
        .map(|(text, partial)| if partial { text } else { text + "\n" })
        .collect())
}

/// Prints what the command printed; its exit code is ours.
fn exec(cri: &Cri, id: &str, command: &[&str]) -> Result<ExitCode> {
    let reply = cri.exec_sync(cri::ExecSyncRequest {
        container_id: id.to_owned(),
        cmd: command.iter().map(|&word| word.to_owned()).collect(),
        timeout: 0,
    })?;
    io::stdout().write_all(&reply.stdout).context("write to stdout")?;
    io::stderr().write_all(&reply.stderr).context("write to stderr")?;
    Ok(ExitCode::from(u8::try_from(reply.exit_code).unwrap_or(u8::MAX)))
}

fn remove_all(cri: &Cri) -> Result<String> {
    let pods = cri.list_pod_sandbox(cri::ListPodSandboxRequest::default())?.items;
    let removed: Result<String> = pods
        .iter()
        .map(|pod| act(cri, "stopp", &pod.id).and_then(|_| act(cri, "rmp", &pod.id)))
        .collect();
    removed
}

/// A CRI message in a JSON file, by the field names of the API.
fn read<T: serde::de::DeserializeOwned>(path: &str) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    serde_json::from_str(&text).with_context(|| format!("parse {path}"))
}
