//! Namespaces that a container joins: after a restore they are those of the bundle, not those of the images.

use std::fs;
use std::process::Command;

use corten_tests::bundle::{Runtime, wait_until};

use super::{assert_goes_on, count, counting, criu_works, dump, restore, start};

/// A namespace that lives as long as its process.
struct Namespace {
    holder: std::process::Child,
    /// As /proc has it.
    kind: &'static str,
}

impl Namespace {
    fn new(kind: &'static str) -> Namespace {
        let holder = Command::new("unshare")
            .args([&format!("--{kind}"), "sleep", "1000"])
            .spawn()
            .expect("start unshare");
        let namespace = Namespace { holder, kind };
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).expect("read a link");
        let made = wait_until(|| fs::read_link(namespace.path()).ok().filter(|link| *link != own));
        assert!(made.is_some(), "no namespace was made");
        namespace
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/{}", self.holder.id(), self.kind)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.holder.kill().expect("kill a child");
        self.holder.wait().expect("reap a child");
    }
}

pub(super) fn a_joined_network_is_the_bundles(runtime: &Runtime) {
    if !criu_works() {
        return;
    }
    let (first, second) = (Namespace::new("net"), Namespace::new("net"));
    let mut bundle = counting(runtime);
    bundle.namespace("network", Some(&first.path()));
    start(&bundle);
    count(&bundle);
    dump(&bundle, "images", &[]);
    let before = count(&bundle);
    bundle.namespace("network", Some(&second.path()));
    let pid = restore(&bundle, "images");
    assert_goes_on(&bundle, &before);
    let link = |path: &str| fs::read_link(path).expect("read a link");
    assert_eq!(link(&format!("/proc/{pid}/ns/net")), link(&second.path()));
}

pub(super) fn joined_names_and_queues_are_the_bundles(runtime: &Runtime) {
    if !criu_works() {
        return;
    }
    for kind in ["ipc", "uts"] {
        let (first, second) = (Namespace::new(kind), Namespace::new(kind));
        let mut bundle = counting(runtime);
        if let Some(spec) = bundle.spec.as_object_mut() {
            spec.remove("hostname");
        }
        bundle.namespace(kind, Some(&first.path()));
        start(&bundle);
        count(&bundle);
        dump(&bundle, "images", &[]);
        let before = count(&bundle);
        bundle.namespace(kind, Some(&second.path()));
        let pid = restore(&bundle, "images");
        assert_goes_on(&bundle, &before);
        let link = |path: &str| fs::read_link(path).expect("read a link");
        assert_eq!(link(&format!("/proc/{pid}/ns/{kind}")), link(&second.path()), "{kind}");
    }
}
