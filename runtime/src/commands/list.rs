//! `corten state` and `corten list`: what containers there are, in runc's form.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use corten_proto::id::ContainerId;
use oci_spec::runtime::ContainerState;
use serde::Serialize;

use super::print;
use crate::cli::List;
use crate::log;
use crate::state::{self, Directory};

/// The OCI state, and what runc adds to it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    oci_version: String,
    id: String,
    /// 0 where there is no process.
    pid: i32,
    status: ContainerState,
    bundle: String,
    rootfs: String,
    created: String,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    annotations: HashMap<String, String>,
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
    let owner = std::fs::metadata(root.join(id.as_str())).context("stat")?.uid();
    let has_process = matches!(status, ContainerState::Created | ContainerState::Running);
    Ok(Shown {
        oci_version: state.oci_version,
        id: state.id.to_string(),
        pid: if has_process { state.pid } else { 0 },
        status,
        bundle: state.bundle.display().to_string(),
        rootfs: state.rootfs.display().to_string(),
        created: state.created,
        annotations: state.annotations,
        // A name other than root's would need the host's user database.
        owner: if owner == 0 {
            "root".to_owned()
        } else {
            format!("#{owner}")
        },
    })
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
