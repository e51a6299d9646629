//! An ordinary user that runtimes are run as, and what bundles look like for such a user.
//!
//! The user is no account of this machine: the program `as-user` gives it one where only the commands under test see
//! it, together with ids for containers. These ids belong to nobody else on the machine.

use std::fs;
use std::io;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

/// The user's id, and its group's.
pub const ID: u32 = 44_001;

/// The first of the ids it may give to containers.
pub const FIRST_SUB_ID: u32 = 4_400_000;

/// How many it has of them.
pub const SUB_IDS: u32 = 65_536;

/// The files of /etc that know the user.
pub const FILES: [&str; 3] = ["passwd", "subuid", "subgid"];

/// In the place of a directory with these files: the user is root of a user namespace with no other id.
pub const ROOT_OF_ITS_OWN: &str = "self";

/// Which user runs the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Root.
    Root,
    /// An ordinary user.
    User,
    /// The same, as root of a user namespace that was made before the runtime was started.
    RootOfItsOwn,
}

/// The user's files.
#[derive(Debug)]
pub(super) struct Home {
    directory: TempDir,
    caller: Caller,
}

impl Home {
    /// Makes the files; `None` for root.
    pub(super) fn new(caller: Caller, marker: &str) -> io::Result<Option<Home>> {
        if caller == Caller::Root {
            return Ok(None);
        }
        let directory = tempfile::Builder::new().prefix(marker).tempdir()?;
        let known = fs::read_to_string("/etc/passwd")?;
        let account = format!("{known}corten-test:x:{ID}:{ID}::/nonexistent:/bin/false\n");
        let sub_ids = format!("corten-test:{FIRST_SUB_ID}:{SUB_IDS}\n");
        for (name, text) in FILES.iter().zip([&account, &sub_ids, &sub_ids]) {
            fs::write(directory.path().join(name), text)?;
        }
        Ok(Some(Home { directory, caller }))
    }

    /// Starts `program` as the user.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(crate::binary("as-user"));
        match self.caller {
            Caller::RootOfItsOwn => command.arg(ROOT_OF_ITS_OWN),
            _ => command.arg(self.directory.path()),
        };
        command.arg(program).env_remove("XDG_RUNTIME_DIR");
        command
    }

    /// What `runc spec --rootless` changes in a specification, with more ids than it maps.
    pub(super) fn adapt(&self, spec: &mut Value) {
        let linux = &mut spec["linux"];
        // Neither is to be had without root.
        linux.as_object_mut().expect("linux is an object").remove("cgroupsPath");
        linux.as_object_mut().expect("linux is an object").remove("resources");
        if self.caller == Caller::RootOfItsOwn {
            return adapt_mounts(spec);
        }
        let namespaces = linux["namespaces"].as_array_mut().expect("namespaces are a list");
        namespaces.push(json!({ "type": "user" }));
        let all = json!([
            { "containerID": 0, "hostID": ID, "size": 1 },
            { "containerID": 1, "hostID": FIRST_SUB_ID, "size": SUB_IDS },
        ]);
        linux["uidMappings"] = all.clone();
        linux["gidMappings"] = all;
    }
}

/// Without the group of terminals, which a single mapping does not have.
fn adapt_mounts(spec: &mut Value) {
    for mount in spec["mounts"].as_array_mut().expect("mounts are a list") {
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| !option.as_str().is_some_and(|option| option.starts_with("gid=")));
        }
    }
}

/// Gives a tree to the user; not the probe in it, which is a link to a file of the build.
pub(super) fn give(path: &Path) -> io::Result<()> {
    let mut pending: Vec<PathBuf> = vec![path.to_owned()];
    while let Some(path) = pending.pop() {
        if path.file_name().is_some_and(|name| name == "probe") {
            continue;
        }
        if path.symlink_metadata()?.is_dir() {
            for entry in fs::read_dir(&path)? {
                pending.push(entry?.path());
            }
        }
        lchown(&path, Some(ID), Some(ID))?;
    }
    Ok(())
}
