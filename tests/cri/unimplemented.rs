//! What is not built yet says so: UNIMPLEMENTED with the RPC's name, never success.

use corten_proto::cri;
use corten_tests::cri::Cri;
use corten_tests::node::Node;
use tonic::{Code, Status};

/// An RPC's name and its answer to an empty request.
type Answer = (&'static str, Result<(), Status>);

fn of_checkpoints(cri: &Cri) -> [Answer; 3] {
    [
        (
            "CheckpointContainer",
            cri.checkpoint_container(cri::CheckpointContainerRequest::default())
                .map(drop),
        ),
        (
            "CheckpointPod",
            cri.checkpoint_pod(cri::CheckpointPodRequest::default()).map(drop),
        ),
        (
            "RestorePod",
            cri.restore_pod(cri::RestorePodRequest::default()).map(drop),
        ),
    ]
}

#[test]
fn every_rpc_that_is_not_built_says_so_by_name() {
    let node = Node::start();
    for (name, answer) in of_checkpoints(&node.cri) {
        let status = answer.expect_err(name);
        assert_eq!(status.code(), Code::Unimplemented, "{name}: {status}");
        assert!(status.message().contains(name), "{name}: {status}");
    }
    node.assert_no_pods_left();
}
