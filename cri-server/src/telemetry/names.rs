//! Whom a call is about: in every log line of it, and in its span.
//!
//! ```text
//! text   WARN call{method="StartContainer" pod_namespace="default" pod_name="web" ...}: corten_cri::...: what happened
//! JSON   {"timestamp":..,"level":"WARN","fields":{"message":..},"span":{"method":"StartContainer","pod_name":"web",..}}
//! ```
//!
//! The keys are the same everywhere: `method`, `pod_namespace`, `pod_name`, `pod_uid`, `sandbox_id`, `container_name`,
//! `container_id`. A call is about the first object that it asks the node for; those that make one name it before it is
//! there. What is not done for a call, such as hearing of an exit, has a span of its own ([`of_sandbox`], [`of_container`]).
//!
//! All spans are of level ERROR, lest a log of errors only have none.

use std::sync::atomic::{AtomicU8, Ordering};

use corten_proto::cri::PodSandboxMetadata;
use tracing::field::Empty;
use tracing::{Span, error_span};

use super::call::Call;
use crate::container::Container;
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::store::Lookup;

/// Longest name in a log line or a span, in bytes: Kubernetes has none above 253, and whoever else calls may send anything.
const MAX_NAME: usize = 256;

const POD: u8 = 1;
const SANDBOX: u8 = 2;
const CONTAINER_NAME: u8 = 4;
const CONTAINER: u8 = 8;
const IMAGE: u8 = 16;

/// Which names of a call are known; each is told once.
#[derive(Default)]
pub(super) struct Names(AtomicU8);

impl Names {
    /// Whether this kind is told for the first time.
    fn first(&self, kind: u8) -> bool {
        self.0.fetch_or(kind, Ordering::Relaxed) & kind == 0
    }

    fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

/// The span of a call's log lines.
pub(super) fn call_span(method: &'static str) -> Span {
    error_span!(
        "call",
        method,
        pod_namespace = Empty,
        pod_name = Empty,
        pod_uid = Empty,
        sandbox_id = Empty,
        container_name = Empty,
        container_id = Empty,
    )
}

/// The present call is about this pod.
pub(crate) fn about_pod(pod: &PodSandboxMetadata) {
    if let Some(call) = Call::current() {
        call.pod(pod);
    }
}

/// The present call is about this sandbox.
pub(crate) fn about_sandbox(sandbox: &Sandbox) {
    if let Some(call) = Call::current() {
        call.sandbox(sandbox);
    }
}

/// The present call has asked for this sandbox: it is about it, unless it is about something already.
pub(crate) fn asked_for_sandbox(sandbox: &Sandbox) {
    if let Some(call) = Call::current().filter(|call| call.names.is_empty()) {
        call.sandbox(sandbox);
    }
}

/// The present call has asked for this container: it is about it, unless it is about something already.
pub(crate) fn asked_for_container(container: &Container, sandbox: impl FnOnce() -> Option<std::sync::Arc<Sandbox>>) {
    let Some(call) = Call::current().filter(|call| call.names.is_empty()) else {
        return;
    };
    if let Some(sandbox) = sandbox() {
        call.sandbox(&sandbox);
    }
    call.container_name(name_of(container));
    call.container_id(container.id().as_str());
    call.image(&container.metadata.image_ref);
}

/// The present call makes a container of this name.
pub(crate) fn about_new_container(name: &str, image: &str) {
    if let Some(call) = Call::current() {
        call.container_name(name);
        call.image(image);
    }
}

/// The container that the present call makes has got this id.
pub(crate) fn about_container_id(id: &str) {
    if let Some(call) = Call::current() {
        call.container_id(id);
    }
}

/// The present call is about this image.
pub(crate) fn about_image(name: &str) {
    if let Some(call) = Call::current() {
        call.image(name);
    }
}

impl Call {
    fn pod(&self, pod: &PodSandboxMetadata) {
        if !self.names.first(POD) {
            return;
        }
        self.tell("pod_namespace", "k8s.namespace.name", &pod.namespace);
        self.tell("pod_name", "k8s.pod.name", &pod.name);
        self.tell("pod_uid", "k8s.pod.uid", &pod.uid);
    }

    fn sandbox(&self, sandbox: &Sandbox) {
        if let Some(pod) = &sandbox.metadata.config.metadata {
            self.pod(pod);
        }
        if self.names.first(SANDBOX) {
            self.tell("sandbox_id", "corten.sandbox.id", sandbox.id().as_str());
        }
    }

    fn container_name(&self, name: &str) {
        if self.names.first(CONTAINER_NAME) {
            self.tell("container_name", "k8s.container.name", name);
        }
    }

    fn container_id(&self, id: &str) {
        if self.names.first(CONTAINER) {
            self.tell("container_id", "container.id", id);
        }
    }

    /// In the span only: what is logged of an image names it already.
    fn image(&self, name: &str) {
        if self.names.first(IMAGE)
            && let Some(trace) = &self.trace
        {
            trace.attribute("container.image.name", cut(name));
        }
    }

    /// A name, by its key in the log and by that of a span.
    fn tell(&self, key: &str, attribute: &'static str, name: &str) {
        let name = cut(name);
        self.span.record(key, name);
        if let Some(trace) = &self.trace {
            trace.attribute(attribute, name);
        }
    }
}

/// A span for what becomes of a sandbox, whoever asked for it.
pub(crate) fn of_sandbox(sandbox: &Sandbox) -> Span {
    let pod = sandbox.metadata.config.metadata.as_ref();
    error_span!(
        "pod",
        pod_namespace = pod.map(|pod| cut(&pod.namespace)),
        pod_name = pod.map(|pod| cut(&pod.name)),
        pod_uid = pod.map(|pod| cut(&pod.uid)),
        sandbox_id = sandbox.id().as_str(),
    )
}

/// A span for what becomes of a container, whoever asked for it.
pub(crate) fn of_container(container: &Container, sandbox: &Sandbox) -> Span {
    let pod = sandbox.metadata.config.metadata.as_ref();
    error_span!(
        "container",
        method = Call::current().map(|call| call.method),
        pod_namespace = pod.map(|pod| cut(&pod.namespace)),
        pod_name = pod.map(|pod| cut(&pod.name)),
        pod_uid = pod.map(|pod| cut(&pod.uid)),
        sandbox_id = sandbox.id().as_str(),
        container_name = cut(name_of(container)),
        container_id = container.id().as_str(),
    )
}

/// A span for what is done in a container or a sandbox, by its full id.
pub(crate) fn of_id(node: &Node, id: &str) -> Span {
    if let Lookup::Found(container) = node.store.container(id)
        && let Lookup::Found(sandbox) = node.store.sandbox(container.metadata.sandbox.as_str())
    {
        return of_container(&container, &sandbox);
    }
    match node.store.sandbox(id) {
        Lookup::Found(sandbox) => of_sandbox(&sandbox),
        _ => Span::none(),
    }
}

fn name_of(container: &Container) -> &str {
    let metadata = container.metadata.config.metadata.as_ref();
    metadata.map_or("", |metadata| metadata.name.as_str())
}

/// A text of bounded length.
pub(super) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_NAME)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_told_once() {
        let names = Names::default();
        assert!(names.is_empty() && names.first(POD) && !names.first(POD));
        assert!(names.first(CONTAINER) && !names.is_empty());
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        assert_eq!(cut("web"), "web");
        assert_eq!(cut(&"ä".repeat(300)).len(), MAX_NAME);
        assert_eq!(cut(&format!("x{}", "ä".repeat(300))).len(), MAX_NAME - 1);
    }
}
