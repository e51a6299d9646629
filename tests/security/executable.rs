//! The runtime's own program, of which a container sees a process now and then: it is on an overlay that nobody can write
//! to, or a sealed copy in memory, whose pages are not the host's file's (CVE-2019-5736, CVE-2022-0847).

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use corten_tests::bundle::{Bundle, Container, Runtime, finish, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{SealFlags, fcntl_get_seals};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// statfs(2).
const OVERLAYFS_MAGIC: i64 = 0x794c_7630;

tests! {
    a_created_container_shows_a_program_on_an_overlay_without_an_upper_layer,
    a_program_on_a_tmpfs_is_shown_on_an_overlay_too,
    a_created_container_shows_a_sealed_copy_where_that_is_asked_for,
    a_program_that_only_claims_to_be_sealed_makes_a_copy,
    an_unknown_way_to_seal_is_refused,
    a_program_that_is_the_runtime_itself_is_harmless,
    a_container_that_may_trace_finds_no_file_of_the_host_s,
}

fn runtime_binary(runtime: &Runtime) -> PathBuf {
    PathBuf::from(runtime.command().get_program())
}

/// Everything about the binary on the host that a change shows in.
fn fingerprint(runtime: &Runtime) -> (u64, i64, i64, u32, Vec<u8>) {
    let path = runtime_binary(runtime);
    let meta = fs::metadata(&path).expect("stat the runtime");
    let digest = Sha256::digest(fs::read(&path).expect("read the runtime"));
    (
        meta.ino(),
        meta.ctime(),
        meta.ctime_nsec(),
        meta.mode(),
        digest.to_vec(),
    )
}

fn a_created_container_shows_a_program_on_an_overlay_without_an_upper_layer(runtime: &Runtime) {
    let before = fingerprint(runtime);
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "0"]);
    let container = bundle.create();
    let program = shown(&container);
    let file = assert_on_overlay(container.pid);
    assert_ne!(
        fs::metadata(&program).expect("init runs").dev(),
        fs::metadata(runtime_binary(runtime)).expect("stat").dev()
    );
    assert_out_of_reach(&container);
    // Once nobody runs it, only the filesystem is in the way.
    let _deleted = bundle.call("delete", &["--force"]).success();
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    let error = fs::OpenOptions::new()
        .write(true)
        .open(&again)
        .expect_err("nothing can be written");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{error}");
    drop(file);
    assert_eq!(fingerprint(runtime), before);
}

/// The program that this process runs, which is on an overlay.
#[track_caller]
fn assert_on_overlay(pid: Pid) -> fs::File {
    let program = format!("/proc/{pid}/exe");
    let file = fs::File::open(&program).expect("root may read it");
    let kind = rustix::fs::fstatfs(&file).expect("fstatfs").f_type;
    assert_eq!(kind, OVERLAYFS_MAGIC, "{:?}", fs::read_link(&program));
    file
}

/// Its files have seals, as those in memory that are mounted nowhere.
fn a_program_on_a_tmpfs_is_shown_on_an_overlay_too(runtime: &Runtime) {
    let directory = tempfile::tempdir_in("/dev/shm").expect("make a directory of the test");
    let program = directory.path().join("corten");
    fs::copy(runtime_binary(runtime), &program).expect("copy the runtime");
    let file = fs::File::open(&program).expect("open the copy");
    if fcntl_get_seals(&file).is_err() {
        eprintln!("SKIP: /dev/shm is no tmpfs");
        return;
    }
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "0"]);
    let pid_file = bundle.path().join("pid");
    let create = bundle.command("create");
    let mut command = Command::new(&program);
    command.args(create.get_args()).arg("--pid-file").arg(&pid_file);
    let _created = finish(command.arg(&bundle.id)).success();
    assert_on_overlay(bundle.adopt(&pid_file));
}

fn a_created_container_shows_a_sealed_copy_where_that_is_asked_for(runtime: &Runtime) {
    assert_sealed_copy(runtime, "CORTEN_SEAL", "copy");
}

/// The variable by which the program's entry tells it of the overlay it runs from.
fn a_program_that_only_claims_to_be_sealed_makes_a_copy(runtime: &Runtime) {
    assert_sealed_copy(runtime, "_CORTEN_SEALED_MOUNT", "1");
}

fn an_unknown_way_to_seal_is_refused(runtime: &Runtime) {
    let bundle = runtime.bundle();
    let mut command = bundle.command("create");
    let error = finish(command.env("CORTEN_SEAL", "never").arg(&bundle.id)).failure();
    assert!(
        error.contains("CORTEN_SEAL=\"never\": must be copy or overlay"),
        "{error}"
    );
}

fn assert_sealed_copy(runtime: &Runtime, variable: &str, value: &str) {
    let before = fingerprint(runtime);
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "0"]);
    let container = bundle.launch_in(&[(variable, value)], "create", &[]);
    let program = shown(&container);
    let name = fs::read_link(&program).expect("init runs");
    assert!(name.to_string_lossy().starts_with("/memfd:"), "{}", name.display());
    let file = fs::File::open(&program).expect("root may read it");
    let seals = fcntl_get_seals(&file).expect("a memory file has seals");
    let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    assert!(seals.contains(all), "{seals:?}");
    assert_out_of_reach(&container);
    drop(file);
    assert_eq!(fingerprint(runtime), before);
}

/// The program of a created container's init.
fn shown(container: &Container) -> PathBuf {
    PathBuf::from(format!("/proc/{}/exe", container.pid))
}

fn assert_out_of_reach(container: &Container) {
    assert!(
        fs::OpenOptions::new().write(true).open(shown(container)).is_err(),
        "it cannot be opened for writing as it runs"
    );
    // Not dumpable: all that is in its directory of /proc is root's and out of reach from the container.
    let owner = fs::metadata(format!("/proc/{}/fd", container.pid)).expect("init runs");
    assert_eq!(owner.uid(), 0);
}

/// The attack of CVE-2019-5736: the program to be executed is, or asks for, /proc/self/exe.
fn a_program_that_is_the_runtime_itself_is_harmless(runtime: &Runtime) {
    let before = fingerprint(runtime);
    let running = snooping(runtime, &[]);
    let container = running.start();
    let script = |bundle: &Bundle<'_>| {
        let path = bundle.rootfs("script");
        fs::write(&path, "#!/proc/self/exe\n").expect("write a file of the image");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
    };
    script(&running);
    for program in ["/proc/self/exe", "/script"] {
        let mut bundle = runtime.bundle();
        script(&bundle);
        bundle.spec["process"]["args"] = json!([program, "--version"]);
        let _either = bundle.run();
        for _ in 0..10 {
            let _either = running.exec(&[], &[program, "--version"]);
        }
    }
    kill(container.pid, Signal::SIGTERM).expect("the container waits for it");
    container.wait();
    assert_harmless(&container.stdout());
    assert_eq!(fingerprint(runtime), before);
}

/// With CAP_SYS_PTRACE, in the host's user namespace, not even non-dumpable processes are closed to it.
fn a_container_that_may_trace_finds_no_file_of_the_host_s(runtime: &Runtime) {
    let before = fingerprint(runtime);
    let bundle = snooping(runtime, &["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]);
    let container = bundle.start();
    let sleeper = bundle.exec_detached(&[], &["/probe", "sleep"]);
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        let _output = bundle.exec(&[], &["/probe", "exit", "0"]).success();
    }
    kill(sleeper, Signal::SIGKILL).expect("kill a process of this test");
    wait_for(sleeper);
    kill(container.pid, Signal::SIGTERM).expect("the container waits for it");
    container.wait();
    assert_harmless(&container.stdout());
    assert_eq!(fingerprint(runtime), before);
}

/// A container that looks at all its other processes until it is told to end.
fn snooping<'r>(runtime: &'r Runtime, capabilities: &[&str]) -> Bundle<'r> {
    let mut bundle = runtime.bundle();
    for set in ["bounding", "effective", "permitted"] {
        bundle.spec["process"]["capabilities"][set] = json!(capabilities);
    }
    bundle.probe(&["snoop", "300"]);
    bundle
}

fn assert_harmless(stdout: &str) {
    let seen: Value = serde_json::from_str(stdout).expect("the probe prints JSON");
    // The runtime's by its path on the overlay, whose root is the directory that it is in.
    let own = |path: &Value| path == "/probe" || path == "/corten";
    let programs = seen["programs"].as_array().expect("programs are a list");
    assert!(programs.iter().all(own), "{seen}");
    let writable = seen["writable"].as_array().expect("programs are a list");
    // The image's own programs are the container's to write, and nothing else.
    assert!(writable.iter().all(|path| path == "/probe"), "{seen}");
}
