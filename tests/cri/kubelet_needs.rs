//! What a kubelet relies on without asking, so that a runtime without it works with crictl and fails a node: what no other
//! test of this suite looks at. The tests' names say what would go wrong.

use corten_proto::cri;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{container, image, map};
use tonic::Code;

use crate::service::condition;

fn sandbox_network(node: &Node, id: &str) -> (cri::NamespaceMode, String) {
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: id.to_owned(),
        verbose: false,
    };
    let status = node.cri.pod_sandbox_status(request).unwrap().status.unwrap();
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    (options.network(), status.network.unwrap_or_default().ip)
}

/// The kubelet makes a sandbox anew whose network mode is not the pod's, or that has a network and no address.
#[test]
fn a_sandbox_is_not_made_anew_for_its_network() {
    let node = Node::start();
    let pod = node.pod("own");
    let mut config = node.pod_config("of-the-node");
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security
        .namespace_options
        .as_mut()
        .unwrap()
        .set_network(cri::NamespaceMode::Node);
    let of_node = node.run_pod(config);
    let check = || {
        let (mode, ip) = sandbox_network(&node, &pod.id);
        assert_eq!((mode, ip.is_empty()), (cri::NamespaceMode::Pod, false));
        assert_eq!(sandbox_network(&node, &of_node.id).0, cri::NamespaceMode::Node);
    };
    check();
    node.kill_server();
    node.launch().unwrap();
    check();
    let filter = Some(cri::PodSandboxFilter {
        state: Some(cri::PodSandboxStateValue {
            state: cri::PodSandboxState::SandboxReady.into(),
        }),
        ..Default::default()
    });
    let ready = node
        .cri
        .list_pod_sandbox(cri::ListPodSandboxRequest { filter })
        .unwrap()
        .items;
    assert_eq!(ready.len(), 2, "one of each pod: two would be killed");
}

/// Restart counts, hashes and grace periods are in labels and annotations; the newest attempt is found by its time.
#[test]
fn a_container_is_not_restarted_for_its_annotations_or_its_time() {
    let node = Node::start();
    let pod = node.pod("times");
    let labels = map(&[("io.kubernetes.container.name", "main"), ("ünï", "ä\n\"\\ "), ("", "")]);
    let annotations = map(&[
        ("io.kubernetes.container.hash", "c0ffee"),
        ("io.kubernetes.container.ports", r#"[{"name":"a","containerPort":1}]"#),
    ]);
    for attempt in 0..4 {
        let mut config = container("main", &["true"]);
        config.metadata.as_mut().unwrap().attempt = attempt;
        (config.labels, config.annotations) = (labels.clone(), annotations.clone());
        pod.start(config).wait_exit();
    }
    let check = || {
        let listed = node
            .cri
            .list_containers(cri::ListContainersRequest::default())
            .unwrap()
            .containers;
        let attempts: Vec<_> = listed
            .iter()
            .map(|one| one.metadata.as_ref().unwrap().attempt)
            .collect();
        assert_eq!(attempts, [0, 1, 2, 3], "oldest first");
        assert!(listed.windows(2).all(|pair| pair[0].created_at < pair[1].created_at));
        for one in &listed {
            assert_eq!((&one.labels, &one.annotations), (&labels, &annotations));
            let request = cri::ContainerStatusRequest {
                container_id: one.id.clone(),
                verbose: false,
            };
            let status = node.cri.container_status(request).unwrap().status.unwrap();
            assert_eq!((&status.labels, &status.annotations), (&labels, &annotations));
            assert_eq!(
                (status.created_at, status.metadata.as_ref()),
                (one.created_at, one.metadata.as_ref())
            );
        }
    };
    check();
    node.kill_server();
    node.launch().unwrap();
    check();
}

/// The kubelet reads the message of a container's end from the host's side of this mount, and its log from `log_path`.
#[test]
fn the_termination_log_and_the_log_are_found() {
    let node = Node::start();
    let pod = node.pod("message");
    let host_path = node.dir().join("termination-log").display().to_string();
    std::fs::write(&host_path, "").unwrap();
    let mut config = container("main", &["sh", "-c", "echo last words > /dev/termination-log"]);
    config.mounts = vec![cri::Mount {
        container_path: "/dev/termination-log".to_owned(),
        host_path: host_path.clone(),
        ..Default::default()
    }];
    let main = pod.start(config);
    let status = main.wait_exit();
    assert_eq!(
        (status.exit_code, &status.mounts),
        (0, &main.config.mounts),
        "as they were asked for"
    );
    assert_eq!(std::fs::read_to_string(host_path).unwrap(), "last words\n");
    assert!(
        status.log_path.starts_with('/') && status.log_path.ends_with("/main/0.log"),
        "{}",
        status.log_path
    );
}

/// The conformance tests compare a status with the name that the pod has, whatever other names the image has.
#[test]
fn an_image_with_two_names_is_told_by_the_one_asked_for() {
    let node = Node::start();
    let pod = node.pod("names");
    let images = node.dir().join("images");
    let built = corten_tests::image::busybox(std::path::Path::new("/bin/busybox")).unwrap();
    built.save(&images, &["busybox:a-first", "busybox:z-last"]).unwrap();
    let names = ["a-first", "z-last", "latest"].map(|tag| format!("127.0.0.1:5000/busybox:{tag}"));
    let ids: std::collections::BTreeSet<_> = names.iter().map(|name| node.pull(name)).collect();
    assert_eq!(ids.len(), 1, "one image");
    let id = ids.first().unwrap();
    for (number, name) in names.iter().enumerate() {
        let mut config = container(&format!("c{number}"), &["true"]);
        config.image = Some(cri::ImageSpec {
            image: id.clone(),
            user_specified_image: name.clone(),
            ..Default::default()
        });
        let made = pod.create(config);
        let status = made.status();
        assert_eq!((&status.image.unwrap().image, &status.image_id), (name, id));
        let listed = node
            .cri
            .list_containers(cri::ListContainersRequest::default())
            .unwrap()
            .containers;
        let item = listed.into_iter().find(|item| item.id == made.id).unwrap();
        assert_eq!((&item.image.unwrap().image, &item.image_id), (name, id));
    }
}

/// Garbage collection of images compares the ids of containers and images as text.
#[test]
fn an_image_in_use_is_recognized_by_its_id_in_every_call() {
    let node = Node::start();
    let pod = node.pod("ids");
    let pulled = node.pull(BUSYBOX);
    let used = pod.create(container("main", &["true"])).status();
    let listed = node
        .cri
        .list_images(cri::ListImagesRequest::default())
        .unwrap()
        .images
        .remove(0);
    assert_eq!((&pulled, &used.image_id), (&listed.id, &listed.id));
    let bare = listed.id.trim_start_matches("sha256:");
    for name in [&listed.id, bare, BUSYBOX, &listed.repo_digests[0], &used.image_ref] {
        let request = cri::ImageStatusRequest {
            image: Some(image(name)),
            verbose: false,
        };
        let found = node.cri.image_status(request).unwrap().image;
        assert_eq!(found.as_ref().map(|image| &image.id), Some(&listed.id), "{name}");
    }
    let request = cri::ImageStatusRequest {
        image: Some(image("127.0.0.1:5000/no-such-image:1")),
        verbose: false,
    };
    assert!(node.cri.image_status(request).unwrap().image.is_none(), "no error");
}

/// Gone is what NOT_FOUND says, and nothing else.
#[test]
fn what_was_removed_is_not_found() {
    let node = Node::start();
    let pod = node.pod("gone");
    let main = pod.sh("main", "true");
    main.wait_exit();
    main.remove();
    main.remove();
    main.stop(1);
    let status = cri::ContainerStatusRequest {
        container_id: main.id.clone(),
        verbose: true,
    };
    let exec = node.cri.exec_sync(main.exec_request(&["true"], 1)).unwrap_err();
    let start = cri::StartContainerRequest {
        container_id: main.id.clone(),
    };
    for error in [
        node.cri.container_status(status).unwrap_err(),
        exec,
        node.cri.start_container(start).unwrap_err(),
    ] {
        assert_eq!(error.code(), Code::NotFound, "{error}");
    }
}

/// Back-off, restart policy and the pod's phase hang on these.
#[test]
fn reasons_of_ends_and_times_are_those_the_kubelet_knows() {
    let node = Node::start();
    let pod = node.pod("reasons");
    let stopped = pod.sh("stopped", "sleep 1000");
    stopped.stop(0);
    let polite = pod.sh(
        "polite",
        "trap 'exit 0' TERM; echo ready; while :; do usleep 20000; done",
    );
    polite.wait_output("ready");
    polite.stop(20);
    let table = [
        (pod.sh("done", "exit 0").wait_exit(), 0, "Completed"),
        (pod.sh("failed", "exit 1").wait_exit(), 1, "Error"),
        (stopped.status(), 137, "Error"),
        (polite.status(), 0, "Completed"),
    ];
    for (status, code, reason) in table {
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{status:?}");
        assert_eq!(status.state(), cri::ContainerState::ContainerExited);
        assert!(
            status.started_at > 0 && status.finished_at >= status.started_at,
            "{status:?}"
        );
    }
}

/// A node without these starts nothing, or no pod with a RuntimeClass or with user groups.
#[test]
fn the_nodes_status_is_complete_and_its_name_stays() {
    let node = Node::start();
    let reply = node.cri.status(cri::StatusRequest::default()).unwrap();
    for kind in ["RuntimeReady", "NetworkReady"] {
        assert!(condition(&reply, kind).status);
    }
    assert_eq!(reply.runtime_handlers[0].name, "", "the default handler");
    assert!(reply.features.unwrap().supplemental_groups_policy);
    let name = || node.cri.version(cri::VersionRequest::default()).unwrap().runtime_name;
    assert_eq!(
        name(),
        "corten",
        "the scheme of the container ids in every pod's status"
    );
}
