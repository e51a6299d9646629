//! Idmapped mounts: `idmap` and `ridmap`, with mappings of their own and with the container's.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use corten_tests::bundle::{Bundle, Report, Runtime};
use serde_json::{Value, json};

use crate::mounts::{bind, host_directory, run_in_mounts};
use crate::namespaces::map_ids;

corten_only! {
    ids_are_mapped_by_the_mount_s_own_mappings: "runc has idmapped mounts from 1.2 on",
    mappings_alone_stand_for_idmap: "runc has idmapped mounts from 1.2 on",
    ids_are_mapped_by_the_container_s_mappings: "runc has idmapped mounts from 1.2 on",
    own_mappings_beside_a_user_namespace: "runc has idmapped mounts from 1.2 on",
    ids_are_mapped_by_a_joined_user_namespace: "runc has idmapped mounts from 1.2 on",
    idmap_is_of_one_mount_and_ridmap_of_all_below: "runc has idmapped mounts from 1.2 on",
    a_file_is_idmapped: "runc has idmapped mounts from 1.2 on",
    a_filesystem_that_cannot_be_idmapped_is_refused: "runc has idmapped mounts from 1.2 on",
    idmap_without_any_mapping_is_refused: "runc has idmapped mounts from 1.2 on",
    mappings_for_what_is_no_bind_are_refused: "runc has idmapped mounts from 1.2 on",
    paths_of_a_joined_mount_namespace_are_idmapped: "runc has idmapped mounts from 1.2 on",
}

fn map(container: u32, host: u32, size: u32) -> Value {
    json!([{ "containerID": container, "hostID": host, "size": size }])
}

fn idmapped(source: &str, options: &[&str], mapping: &Value) -> Value {
    let mut mount = bind(source, "/mnt", options);
    mount["uidMappings"] = mapping.clone();
    mount["gidMappings"] = mapping.clone();
    mount
}

/// A directory of the host with a file of user 3 and group 4 in it.
fn data(bundle: &Bundle<'_>) -> String {
    let source = host_directory(bundle, "data");
    chown(format!("{source}/inside"), Some(3), Some(4)).expect("chown a file of the test");
    // The root of a user namespace could not make them: the image is not its own.
    for mount_point in ["/mnt", "/srv"] {
        fs::create_dir(bundle.rootfs(mount_point)).expect("make a directory of the image");
    }
    source
}

#[track_caller]
fn assert_owner(report: &Report, path: &str, uid: u32, gid: u32) {
    let (is, path) = (report.path(path), path);
    assert_eq!((&is["uid"], &is["gid"]), (&json!(uid), &json!(gid)), "{path}: {is}");
}

fn ids_are_mapped_by_the_mount_s_own_mappings(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let source = data(&bundle);
    bundle.add_mount(idmapped(&source, &["bind", "idmap"], &map(3, 5000, 10)));
    let report = bundle.report(&["/mnt", "/mnt/inside"]);
    assert_owner(&report, "/mnt/inside", 5000, 5001);
    assert_owner(&report, "/mnt", 65534, 65534);
    assert!(report.has_option("/mnt", "idmapped"), "{}", report.mount("/mnt"));
    assert_eq!(report.path("/mnt")["write"], "EOVERFLOW", "root has no id on the disk");
}

fn mappings_alone_stand_for_idmap(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let source = data(&bundle);
    bundle.add_mount(idmapped(&source, &["bind"], &map(3, 5000, 10)));
    assert_owner(&bundle.report(&["/mnt/inside"]), "/mnt/inside", 5000, 5001);
}

fn ids_are_mapped_by_the_container_s_mappings(runtime: &Runtime) {
    for option in ["idmap", "ridmap"] {
        let mut bundle = runtime.bundle();
        let source = data(&bundle);
        map_ids(&mut bundle);
        bundle.add_mount(bind(&source, "/mnt", &["rbind", option]));
        let report = bundle.report(&["/mnt", "/mnt/inside"]);
        assert_owner(&report, "/mnt/inside", 3, 4);
        assert_owner(&report, "/mnt", 0, 0);
        assert_eq!(report.path("/mnt")["write"], Value::Null);
        bundle.probe(&["write", "/mnt/new", "text"]);
        let _written = bundle.run().success();
        let new = fs::metadata(format!("{source}/new")).expect("the container wrote it");
        assert_eq!((new.uid(), new.gid()), (0, 0), "on the disk it is root's");
    }
}

fn own_mappings_beside_a_user_namespace(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let source = data(&bundle);
    map_ids(&mut bundle);
    // Disk 3 is 200_007 on the host, which is 7 inside.
    bundle.add_mount(idmapped(&source, &["bind", "idmap"], &map(3, 200_007, 10)));
    // And a second mount of another mapping.
    let mut other = idmapped(&source, &["bind", "idmap"], &map(0, 200_100, 10));
    other["destination"] = json!("/srv");
    bundle.add_mount(other);
    let report = bundle.report(&["/mnt/inside", "/srv/inside"]);
    assert_owner(&report, "/mnt/inside", 7, 8);
    assert_owner(&report, "/srv/inside", 103, 104);
}

fn ids_are_mapped_by_a_joined_user_namespace(runtime: &Runtime) {
    let mut first = runtime.bundle();
    map_ids(&mut first);
    first.probe(&["sleep"]);
    let target = first.start();
    let mut bundle = runtime.bundle();
    let source = data(&bundle);
    for (name, link) in [("user", "user"), ("network", "net"), ("ipc", "ipc")] {
        bundle.namespace(name, Some(&format!("/proc/{}/ns/{link}", target.pid)));
    }
    bundle.add_mount(bind(&source, "/mnt", &["bind", "idmap"]));
    assert_owner(&bundle.report(&["/mnt/inside"]), "/mnt/inside", 3, 4);
}

fn idmap_is_of_one_mount_and_ridmap_of_all_below(runtime: &Runtime) {
    for (option, below) in [("idmap", 0), ("ridmap", 5000)] {
        let mut bundle = runtime.bundle();
        let source = data(&bundle);
        bundle.add_mount(idmapped(&source, &["rbind", option], &map(0, 5000, 10)));
        bundle.probe(&["report", "/mnt", "/mnt/sub"]);
        let script = format!("mkdir {source}/sub; mount -t tmpfs y {source}/sub");
        let report = Report::parse(&run_in_mounts(&bundle, "private", &script).success().stdout);
        assert_owner(&report, "/mnt", 5000, 5000);
        assert_owner(&report, "/mnt/sub", below, below);
    }
}

fn a_file_is_idmapped(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let source = data(&bundle);
    fs::remove_dir(bundle.rootfs("/mnt")).expect("remove an empty directory");
    bundle.add_mount(idmapped(
        &format!("{source}/inside"),
        &["bind", "idmap", "ro"],
        &map(3, 70, 5),
    ));
    let report = bundle.report(&["/mnt"]);
    assert_owner(&report, "/mnt", 70, 71);
    assert!(report.has_option("/mnt", "ro"));
}

fn a_filesystem_that_cannot_be_idmapped_is_refused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.add_mount(idmapped("/sys", &["bind", "idmap"], &map(0, 5000, 10)));
    let error = bundle.run().failure();
    for word in ["/mnt", "/sys", "does not support idmapped mounts"] {
        assert!(error.contains(word), "{error}");
    }
    bundle.assert_nothing_left();
}

fn idmap_without_any_mapping_is_refused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let source = data(&bundle);
    bundle.add_mount(bind(&source, "/mnt", &["bind", "idmap"]));
    let error = bundle.run().failure();
    assert!(error.contains("options: idmap: needs uidMappings"), "{error}");
    bundle.assert_nothing_left();
}

fn mappings_for_what_is_no_bind_are_refused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let mut mount = idmapped("tmpfs", &["idmap"], &map(0, 5000, 10));
    mount["type"] = json!("tmpfs");
    bundle.add_mount(mount);
    let error = bundle.run().failure();
    assert!(error.contains("only a bind can be idmapped"), "{error}");
    bundle.assert_nothing_left();
}

/// The user namespace of the mapping is made where pids and /proc are the runtime's.
fn paths_of_a_joined_mount_namespace_are_idmapped(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let source = data(&bundle);
    let holder =
        crate::namespaces::Holder::new("private", &format!("mount -t tmpfs none {source}; touch {source}/own"));
    bundle.namespace("mount", Some(&holder.path()));
    bundle.add_mount(idmapped(&source, &["bind", "idmap"], &map(0, 5000, 10)));
    assert_owner(&bundle.report(&["/mnt/own"]), "/mnt/own", 5000, 5000);
}
