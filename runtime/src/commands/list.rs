//! `corten state` and `corten list`: what containers there are, in runc's form.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use corten_proto::id::ContainerId;
use serde::Serialize;

use super::print;
use crate::cli::List;
use crate::log;
use crate::state::{self, Directory, Status};

/// The OCI state, and what runc adds to it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    oci_version: String,
    id: String,
    /// 0 where there is no process.
    pid: i32,
    status: Status,
    bundle: String,
    rootfs: String,
    created: String,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    annotations: HashMap<String, String>,
    /// Whose the container's directory is: whoever created it.
    owner: String,
}

/// Prints the state of one container.
pub(super) fn state(root: &Path, id: &ContainerId) -> Result<()> {
    let text = serde_json::to_string_pretty(&look(root, id)?).context("encode the state")?;
    print(&format!("{text}\n"))
}

/// Prints all containers.
pub(super) fn list(root: &Path, list: &List) -> Result<()> {
    let ids = state::list(root)?;
    if list.quiet {
        return print(&ids.iter().map(|id| format!("{id}\n")).collect::<String>());
    }
    // One that is being created or deleted just now has nothing to show.
    let look = |id| log::best_effort("list", look(root, id));
    let shown: Vec<Shown> = ids.iter().filter_map(look).collect();
    if list.json {
        let text = serde_json::to_string(&shown).context("encode the list")?;
        return print(&format!("{text}\n"));
    }
    print(&table(&shown))
}

fn look(root: &Path, id: &ContainerId) -> Result<Shown> {
    let directory = Directory::open(root, id)?;
    let state = directory.state()?;
    let status = directory.status(&state);
    let uid = fs::metadata(root.join(id.as_str())).context("stat")?.uid();
    let has_process = !matches!(status, Status::Creating | Status::Stopped);
    Ok(Shown {
        oci_version: state.oci_version,
        id: state.id.to_string(),
        pid: if has_process { state.pid } else { 0 },
        status,
        bundle: state.bundle.display().to_string(),
        rootfs: state.rootfs.display().to_string(),
        created: state.created,
        annotations: state.annotations,
        owner: user_name(uid),
    })
}

/// The name of a user of the host; `#UID` for one that /etc/passwd does not have. A statically linked program has no other
/// user database.
fn user_name(uid: u32) -> String {
    let number = || format!("#{uid}");
    // Nearly always; and the file may be large.
    if uid == 0 {
        return "root".to_owned();
    }
    fs::read_to_string("/etc/passwd").map_or_else(|_| number(), |passwd| name_in(&passwd, uid).unwrap_or_else(number))
}

/// The first field of the first line whose third is `uid`.
fn name_in(passwd: &str, uid: u32) -> Option<String> {
    let mut lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let line = lines.find(|fields| fields.get(2).is_some_and(|field| field.parse() == Ok(uid)))?;
    Some(line[0].to_owned())
}

/// Columns as wide as their widest cell, three blanks between them.
fn table(shown: &[Shown]) -> String {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    rows.extend(shown.iter().map(|one| {
        let (pid, status) = (one.pid.to_string(), one.status.to_string());
        [
            one.id.clone(),
            pid,
            status,
            one.bundle.clone(),
            one.created.clone(),
            one.owner.clone(),
        ]
    }));
    let widths: [usize; 6] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0).max(9) + 3);
    let line = |row: &[String; 6]| {
        let cells: String = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}\n", cells.trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_owners() {
        let passwd = "root:x:0:0::/:\n\nbad\nadm:x:3:4::/:\nalso:x:3:5::/:\nodd:x:x:1::/:\n";
        for (uid, name) in [(0, Some("root")), (3, Some("adm")), (4, None)] {
            assert_eq!(name_in(passwd, uid).as_deref(), name, "{uid}");
        }
        assert_eq!(user_name(u32::MAX - 7), format!("#{}", u32::MAX - 7));
    }
}
