//! Published holes of CRI servers that no feature's tests try; `../security/README.md` has the whole table.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;

use corten_proto::cri;
use corten_tests::image::busybox;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{container, image};
use serde_json::{Value, json};

use crate::abuse::count;

/// The variables of one container were once those of another of the same image (CVE-2021-21334).
#[test]
fn environments_of_one_image_do_not_mix() {
    let node = Node::start();
    let pods = [node.pod("one"), node.pod("two")];
    let own = |pod: usize, number: usize| format!("{pod}-{number}");
    let seen: BTreeSet<String> = thread::scope(|scope| {
        let calls: Vec<_> = (0..2 * count(16))
            .map(|call| {
                let (pods, number) = (&pods, call / 2);
                scope.spawn(move || {
                    let mut config = container(
                        &format!("c{number}"),
                        &["sh", "-c", "env | grep ^OWN | sort | tr '\\n' ' '"],
                    );
                    let value = own(call % 2, number);
                    config.envs = vec![
                        cri::KeyValue {
                            key: format!("OWN_{}", value.replace('-', "_")),
                            value: value.clone().into(),
                        },
                        cri::KeyValue {
                            key: "OWN".to_owned(),
                            value: value.into(),
                        },
                    ];
                    let container = pods[call % 2].start(config);
                    container.wait_exit();
                    (container.output("stdout"), own(call % 2, number))
                })
            })
            .collect();
        let results = calls.into_iter().map(|call| call.join().unwrap());
        results
            .map(|(output, value)| {
                let expected = format!("OWN={value} OWN_{}={value} ", value.replace('-', "_"));
                assert_eq!(output, expected);
                value
            })
            .collect()
    });
    assert_eq!(seen.len(), 2 * count(16));
}

/// Serves busybox with this configuration beside its own.
fn serve(node: &Node, name: &str, config: &[(&str, Value)]) -> String {
    let mut built = busybox(Path::new("/bin/busybox")).unwrap();
    for (key, value) in config {
        built.config[key] = value.clone();
    }
    built.save(&node.dir().join("images"), &[name]).unwrap();
    let reference = BUSYBOX.replace("busybox:latest", name);
    node.pull(&reference);
    reference
}

/// An image's labels once reached what the server takes its orders from (CVE-2026-53488), and unknown keys of its
/// configuration what the container may do (CVE-2014-6408).
#[test]
fn an_image_steers_nothing_by_labels_and_unknown_keys() {
    let node = Node::start();
    let labels = json!({
        "containerd.io/restart.loguri": "binary:///bin/touch?/tmp/evil",
        "io.containerd.image.venc": "x",
        "io.kubernetes.cri.container-type": "sandbox",
        "run.oci.hooks.stderr": "/tmp/evil",
        "org.systemd.property.MemoryMax": "1",
        "cdi.k8s.io/x": "vendor.com/device=all",
        "kubernetes.io/ingress-bandwidth": "1",
    });
    let host = json!({ "Privileged": true, "CapAdd": ["ALL"], "Binds": ["/:/host"] });
    let reference = serve(
        &node,
        "steering:latest",
        &[
            ("Labels", labels.clone()),
            ("HostConfig", host),
            ("Privileged", json!(true)),
        ],
    );
    let pod = node.pod("web");
    let of = |name: &str, reference: &str| -> Value {
        let mut config = container(name, &["sleep", "1000"]);
        config.image = Some(image(reference));
        let made = pod.start(config);
        assert!(made.status().annotations.is_empty() && made.status().labels.is_empty());
        let path = node.dir().join("run/containers").join(&made.id).join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let text = spec.to_string();
        assert!(
            labels
                .as_object()
                .unwrap()
                .values()
                .all(|it| *it == "x" || *it == "1" || *it == "sandbox" || !text.contains(it.as_str().unwrap()))
        );
        for own in ["io.kubernetes.cri.container-name", "io.kubernetes.cri.image-name"] {
            spec["annotations"].as_object_mut().unwrap().remove(own).unwrap();
        }
        for own in ["/root/path", "/linux/cgroupsPath"] {
            *spec.pointer_mut(own).unwrap() = Value::Null;
        }
        // Sets, in any order.
        for set in spec["process"]["capabilities"].as_object_mut().unwrap().values_mut() {
            set.as_array_mut().unwrap().sort_by_key(Value::to_string);
        }
        spec
    };
    assert_eq!(of("plain", BUSYBOX), of("steering", &reference));
}

/// Files of the node were once copied to the volumes of an image that names them by `..` (CVE-2022-23648).
#[test]
fn an_image_s_volumes_bring_nothing_of_the_node() {
    let node = Node::start();
    let marker = node.dir().join("of-the-node");
    fs::write(&marker, "secret").unwrap();
    let climbing = format!("/../../../../../..{}", node.dir().display());
    let volumes = json!({ &climbing: {}, "/../../etc": {}, "/proc/self/fd/3": {}, "/link/../..": {}, "..": {} });
    let reference = serve(&node, "volumes:latest", &[("Volumes", volumes)]);
    let pod = node.pod("web");
    let mut config = container("main", &["sleep", "1000"]);
    config.image = Some(image(&reference));
    let main = pod.start(config);
    let found = main.exec_sh("find / -xdev -name of-the-node 2>/dev/null; grep -c of-the-node /proc/mounts; true");
    assert_eq!(found, "0\n");
    assert_eq!(
        main.exec_sh("cat /etc/shadow 2>/dev/null | wc -c"),
        "0\n",
        "the node's /etc"
    );
    assert_eq!(fs::read_to_string(marker).unwrap(), "secret");
}
