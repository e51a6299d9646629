//! What containers may write, on a filesystem with project quotas: an ext4 image on a loop device.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use corten_cri::image::snapshot::{self, LayerLimits, Snapshots, Snapshotter};
use corten_tests::image::Image;

use crate::{Lab, small_layer, wait_for};

const LIMIT: u64 = 8 << 20;
const INODES: u64 = 100;

const BYTES: LayerLimits = LayerLimits {
    bytes: Some(LIMIT),
    inodes: None,
};

/// A mounted filesystem of 64 MiB; unmounted at the end.
struct Disk(PathBuf);

impl Disk {
    /// None where this kernel has no such quotas.
    fn mount(lab: &Lab, options: &str) -> Option<Disk> {
        let (file, at) = (lab.dir.path().join("disk.img"), lab.dir.path().join("disk"));
        fs::create_dir(&at).unwrap();
        fs::File::create(&file).unwrap().set_len(64 << 20).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            let output = command.args(arguments).arg(&file).stdin(Stdio::null());
            output
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap()
                .success()
        };
        assert!(run("mkfs.ext4", &["-q", "-O", "quota,project"]));
        let mut mount = Command::new("mount");
        mount.args(["-o", options]).arg(&file).arg(&at).stderr(Stdio::null());
        mount.status().unwrap().success().then(|| Disk(at))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Nobody holds it any more: the loop device goes with it.
        let unmounted = Command::new("umount").arg(&self.0).status().unwrap();
        assert!(unmounted.success() || std::thread::panicking());
    }
}

/// Writes until it is refused; how many bytes there was room for, and how it was refused. Without CAP_SYS_RESOURCE, as a
/// container is: ext4 holds nobody to a limit who has it. An overlay's own writes never do.
fn fill(path: &Path) -> (u64, String) {
    let mut command = Command::new("setpriv");
    command.args([
        "--bounding-set",
        "-sys_resource",
        "dd",
        "if=/dev/zero",
        "bs=1M",
        "oflag=dsync",
    ]);
    let output = command.arg(format!("of={}", path.display())).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (fs::metadata(path).unwrap().len(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_counted_and_limited_by_its_filesystem() {
    let lab = Lab::new();
    lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    let image = lab.pull("a:1").await.unwrap();
    let Some(disk) = Disk::mount(&lab, "loop,prjquota") else {
        println!("SKIP: this kernel mounts no ext4 with project quotas");
        return lab.finish();
    };
    for way in [Snapshotter::Overlayfs, Snapshotter::Native] {
        let open = || Snapshots::open(lab.store().clone(), &disk.0, way, BYTES).unwrap();
        let mut snapshots = open();
        let mount = |snapshots: &Snapshots, name: &str| {
            let (dir, target) = (disk.0.join(name), lab.dir.path().join(name));
            fs::create_dir(&dir).unwrap();
            fs::create_dir(&target).unwrap();
            let root = snapshot::Root {
                layers: &image.layers,
                dir: &dir,
                target: &target,
                user_namespace: None,
            };
            snapshots.mount(&root).unwrap();
            (dir, target)
        };
        let (greedy, greedy_root) = mount(&snapshots, "greedy");
        // The numbers that are taken are known again after a restart.
        snapshots = open();
        let (modest, modest_root) = mount(&snapshots, "modest");
        let (room, refused) = fill(&greedy_root.join("file"));
        assert!((LIMIT / 2..=LIMIT).contains(&room), "{way:?}: {room}");
        assert!(refused.contains("quota exceeded"), "{way:?}: {refused}");
        fs::write(modest_root.join("file"), vec![1; 1 << 20]).unwrap();
        let used = |dir: &Path| snapshots.usage(dir).unwrap().0;
        // Without any delay but the filesystem's own.
        wait_for("the blocks", || used(&modest).bytes >= 1 << 20);
        assert!(used(&modest).bytes < 2 << 20, "{:?}", used(&modest));
        assert!(
            (LIMIT / 2..=LIMIT).contains(&used(&greedy).bytes),
            "{:?}",
            used(&greedy)
        );
        let total = snapshots.total_usage().0.bytes;
        assert_eq!(total, used(&modest).bytes + used(&greedy).bytes);
        for (dir, target) in [(greedy, greedy_root), (modest, modest_root)] {
            snapshot::unmount(&target).unwrap();
            snapshots.remove(&dir).unwrap();
            fs::remove_dir(&target).unwrap();
        }
        drop(snapshots);
        // An overlay's files are given back when its last user in the kernel has gone.
        wait_for("an empty disk", || fs::read_dir(&disk.0).unwrap().count() == 1);
    }
    drop(disk);
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_limited_too() {
    let lab = Lab::new();
    lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    let image = lab.pull("a:1").await.unwrap();
    let Some(disk) = Disk::mount(&lab, "loop,prjquota") else {
        println!("SKIP: this kernel mounts no ext4 with project quotas");
        return lab.finish();
    };
    let limits = LayerLimits {
        inodes: Some(INODES),
        ..LayerLimits::default()
    };
    let snapshots = Snapshots::open(lab.store().clone(), &disk.0, Snapshotter::Overlayfs, limits).unwrap();
    let (dir, target) = (disk.0.join("c"), lab.dir.path().join("c"));
    fs::create_dir(&dir).unwrap();
    fs::create_dir(&target).unwrap();
    let root = snapshot::Root {
        layers: &image.layers,
        dir: &dir,
        target: &target,
        user_namespace: None,
    };
    snapshots.mount(&root).unwrap();
    let made = (0..2 * INODES).map_while(|n| fs::write(target.join(format!("file-{n}")), "").ok());
    let made = u64::try_from(made.count()).unwrap();
    assert!((INODES / 2..INODES).contains(&made), "{made}");
    let error = fs::write(target.join("one-more"), "").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EDQUOT), "{error}");
    assert!(snapshots.usage(&dir).unwrap().0.inodes <= INODES);
    snapshot::unmount(&target).unwrap();
    snapshots.remove(&dir).unwrap();
    fs::remove_dir(&target).unwrap();
    drop(snapshots);
    wait_for("an empty disk", || fs::read_dir(&disk.0).unwrap().count() == 1);
    drop(disk);
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_needs_quotas_that_are_enforced() {
    let lab = Lab::new();
    let open = |dir: &Path, limits| Snapshots::open(lab.store().clone(), dir, Snapshotter::Auto, limits);
    let refused = |dir: &Path| format!("{:#}", open(dir, BYTES).err().expect("no quotas"));
    let error = refused(lab.dir.path());
    assert!(
        error.contains("storage.writable_layer_limit_bytes") && error.contains("prjquota"),
        "{error}"
    );
    let inodes = LayerLimits {
        inodes: Some(INODES),
        ..LayerLimits::default()
    };
    let error = format!("{:#}", open(lab.dir.path(), inodes).err().expect("no quotas"));
    assert!(error.contains("storage.writable_layer_limit_inodes"), "{error}");
    // Quotas in the filesystem, and not in the mount: counted, not enforced.
    let Some(disk) = Disk::mount(&lab, "loop") else {
        println!("SKIP: this kernel mounts no ext4 with project quotas");
        return lab.finish();
    };
    let error = refused(&disk.0);
    assert!(error.contains("enforce"), "{error}");
    assert!(open(&disk.0, LayerLimits::default()).is_ok());
    drop(disk);
    lab.finish();
}
