//! `corten ps`: the processes of a container, as the host's `ps` shows them.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::print;
use crate::cgroup::Cgroup;
use crate::cli;
use crate::state::Directory;

/// What `ps` is asked for unless somebody says: every process, in full.
const DEFAULT_OPTION: &str = "-ef";

/// Prints the processes of a container: their pids as JSON, or a table.
pub(super) fn ps(root: &Path, flags: &cli::Ps) -> Result<()> {
    let state = Directory::open(root, &flags.id)?.state()?;
    let pids = Cgroup::open(state.cgroup).processes()?;
    if flags.json {
        let text = serde_json::to_string(&pids).context("encode the pids")?;
        return print(&format!("{text}\n"));
    }
    let mut command = Command::new("ps");
    if flags.options.is_empty() {
        command.arg(DEFAULT_OPTION);
    }
    command.args(&flags.options).stdin(Stdio::null());
    let output = command.output().context("run ps")?;
    ensure!(
        output.status.success(),
        "ps: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    print(&selected(&String::from_utf8_lossy(&output.stdout), &pids)?)
}

/// The heading of a table, and those of its lines that are about `pids`.
fn selected(table: &str, pids: &[i32]) -> Result<String> {
    let heading = table.lines().next().unwrap_or_default();
    let Some(column) = heading.split_ascii_whitespace().position(|title| title == "PID") else {
        bail!("ps: its table has no column PID: {heading:?}");
    };
    let mut kept = format!("{heading}\n");
    for line in table.lines().skip(1) {
        // With wrapped lines, or a column before it that has blanks in it, this is not the pid: to leave the line out would
        // be to leave out a process.
        let field = line.split_ascii_whitespace().nth(column).unwrap_or_default();
        let pid: i32 = field
            .parse()
            .with_context(|| format!("ps: {line:?}: {field:?} is not a pid"))?;
        if pids.contains(&pid) {
            kept += line;
            kept.push('\n');
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_container() {
        let table = "UID   PID  PPID CMD\nroot    1     0 init\nroot   12     1 sh -c 7\nadm   712     1 x\n";
        let kept = selected(table, &[12, 712]).unwrap();
        assert_eq!(
            kept,
            "UID   PID  PPID CMD\nroot   12     1 sh -c 7\nadm   712     1 x\n"
        );
        assert_eq!(selected(table, &[]).unwrap(), "UID   PID  PPID CMD\n");
        for bad in ["", "UID CMD\n", "STARTED PID\nMon Nov 12\n", "PID\n\n"] {
            assert!(selected(bad, &[12]).is_err(), "{bad:?}");
        }
    }
}
