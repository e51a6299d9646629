//! The programs that are kept: a profile is compiled once.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use corten_tests::bundle::{Bundle, Runtime};
use serde_json::json;

use super::{GETPPID, but, calls, under};

/// The files of the cache.
fn kept(runtime: &Runtime) -> Vec<PathBuf> {
    let entries = fs::read_dir(runtime.root().join("@seccomp"));
    entries.map_or_else(
        |_| Vec::new(),
        |entries| entries.flatten().map(|entry| entry.path()).collect(),
    )
}

fn is_filtered(bundle: &mut Bundle<'_>) {
    let result = calls(bundle, &["call", &GETPPID.to_string()]);
    assert_eq!(result, (0, "EXDEV".to_owned()));
}

fn filtering(runtime: &Runtime) -> Bundle<'_> {
    let rule = json!({ "names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EXDEV });
    under(runtime, but(json!([rule])))
}

pub(super) fn a_program_is_kept_and_used_again(runtime: &Runtime) {
    let mut bundle = filtering(runtime);
    is_filtered(&mut bundle);
    let [file] = &kept(runtime)[..] else {
        panic!("one file: {:?}", kept(runtime))
    };
    let directory = fs::metadata(runtime.root().join("@seccomp")).expect("the cache is there");
    assert_eq!((directory.mode() & 0o7777, directory.uid()), (0o700, 0));
    let first = fs::metadata(file).expect("stat a file");
    assert_eq!(first.mode() & 0o7777, 0o600);
    is_filtered(&mut bundle);
    let second = fs::metadata(file).expect("stat a file");
    assert_eq!(
        (first.ino(), first.mtime_nsec()),
        (second.ino(), second.mtime_nsec()),
        "it was not written again"
    );
    assert!(runtime.list().is_empty(), "the cache is no container");

    // The proof that it is read: another profile's program in its place, with the sum set right, has its effect.
    let mut other = under(
        runtime,
        but(json!([{ "names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }])),
    );
    assert_eq!(
        calls(&mut other, &["call", &GETPPID.to_string()]),
        (0, "EOPNOTSUPP".to_owned())
    );
    let theirs = kept(runtime)
        .into_iter()
        .find(|path| path != file)
        .expect("a second file");
    let (own, theirs) = (fs::read(file).expect("read"), fs::read(theirs).expect("read"));
    fs::write(file, [&own[..40], &theirs[40..]].concat()).expect("write a file of the cache");
    assert_eq!(
        calls(&mut bundle, &["call", &GETPPID.to_string()]),
        (0, "EOPNOTSUPP".to_owned())
    );
}

pub(super) fn a_damaged_program_is_made_anew(runtime: &Runtime) {
    let mut bundle = filtering(runtime);
    is_filtered(&mut bundle);
    let file = kept(runtime).pop().expect("one file");
    let whole = fs::read(&file).expect("read a file of the cache");
    let mut bent = whole.clone();
    *bent.last_mut().expect("it is not empty") ^= 1;
    for bytes in [
        &whole[..whole.len() - 8],
        &bent,
        b"",
        &[whole.as_slice(), &whole].concat(),
    ] {
        fs::write(&file, bytes).expect("write a file of the cache");
        is_filtered(&mut bundle);
        assert_eq!(fs::read(&file).expect("read a file of the cache"), whole);
    }
    // Whose file it is counts, too.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).expect("chmod a file");
    is_filtered(&mut bundle);
    assert_eq!(fs::metadata(&file).expect("stat a file").mode() & 0o7777, 0o600);
    fs::remove_file(&file).expect("remove a file");
    std::os::unix::fs::symlink("/etc/passwd", &file).expect("make a link");
    is_filtered(&mut bundle);
    assert!(fs::symlink_metadata(&file).expect("stat a file").is_file());
}

pub(super) fn a_cache_that_others_can_write_is_not_used(runtime: &Runtime) {
    let cache = runtime.root().join("@seccomp");
    fs::create_dir(&cache).expect("make a directory");
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o777)).expect("chmod a directory");
    is_filtered(&mut filtering(runtime));
    assert!(kept(runtime).is_empty(), "nothing is put where others write");
}

pub(super) fn the_cache_is_bounded(runtime: &Runtime) {
    let mut bundle = filtering(runtime);
    is_filtered(&mut bundle);
    let first = kept(runtime);
    let cache = runtime.root().join("@seccomp");
    thread::sleep(Duration::from_millis(20));
    for number in 0..80 {
        fs::write(cache.join(format!("{number:064}")), "x").expect("fill the cache");
    }
    let rule = json!({ "names": ["getsid"], "action": "SCMP_ACT_ERRNO" });
    let _ran = calls(&mut under(runtime, but(json!([rule]))), &["call", "39"]);
    let left = kept(runtime);
    assert_eq!(left.len(), 64);
    assert!(!left.contains(&first[0]), "the oldest went");
    is_filtered(&mut bundle);
}
