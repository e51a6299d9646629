//! pid mode TARGET: a container in the pid namespace of another one.

use corten_proto::cri;
use corten_tests::node::Node;
use corten_tests::pod::{Pod, container};
use tonic::Code;

/// A container that waits in the pid namespace of container `target`.
fn guest(name: &str, target: &str) -> cri::ContainerConfig {
    let mut config = container(name, &["sleep", "1000"]);
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    let options = context.namespace_options.as_mut().unwrap();
    options.pid = cri::NamespaceMode::Target.into();
    options.target_id = target.to_owned();
    config
}

#[test]
fn a_container_sees_its_target_and_ends_with_it() {
    let node = Node::start();
    let pod = node.pod("target");
    let target = pod.sh("target", "exec sleep 4321");
    let started = pod.start(guest("started", &target.id));
    assert_eq!(started.exec_sh("tr '\\0' ' ' </proc/1/cmdline"), "sleep 4321 ");
    let created = pod.create(guest("created", &target.id));
    target.stop(0);
    started.wait_exit();
    // Its init has waited inside: there is nothing left that could be started in another's namespace.
    created.wait_exit();
}

#[test]
fn targets_that_are_refused() {
    let node = Node::start();
    let (pod, other) = (node.pod("own"), node.pod("other"));
    let foreign = other.sh("main", "sleep 1000");
    let ended = pod.sh("ended", "true");
    ended.wait_exit();
    let created = pod.create(container("created", &["true"]));
    let refused = |pod: &Pod<'_>, target: &str, code: Code, word: &str| {
        let request = pod.create_request(&guest("guest", target));
        let error = node.cri.create_container(request).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(word), "{error}");
    };
    refused(&pod, &foreign.id, Code::InvalidArgument, "of the same pod");
    refused(&pod, &ended.id, Code::InvalidArgument, "running");
    refused(&pod, &created.id, Code::InvalidArgument, "running");
    refused(&pod, "", Code::InvalidArgument, "target_id");
    refused(&pod, "none", Code::NotFound, "none");
}
