//! `linux.memoryPolicy` (1.3): from which NUMA nodes the processes of a container get their memory.
//!
//! Set by init and by every exec for itself, in the container's cgroup: the kernel takes nodes of its cpuset only. The
//! policy is kept across execve and by children.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{LinuxMemoryPolicy, MemoryPolicyFlagType as Flag, MemoryPolicyModeType as Mode};

use crate::scheduling::numbers;
use crate::sys::sched::{MAX_NODES, set_mempolicy};

/// The checks of the policy, and that there are such nodes.
pub fn check(policy: &LinuxMemoryPolicy) -> Result<()> {
    let (mode, nodes) = (policy.mode(), nodes(policy)?);
    let list = policy.nodes().as_deref().unwrap_or_default();
    match mode {
        Mode::MpolDefault | Mode::MpolLocal => {
            ensure!(
                nodes.is_empty(),
                "linux.memoryPolicy.nodes: {list:?}: must be absent for {mode}"
            );
        }
        // Without nodes it is the local one.
        Mode::MpolPreferred => {}
        Mode::MpolBind | Mode::MpolInterleave | Mode::MpolWeightedInterleave | Mode::MpolPreferredMany => {
            ensure!(!nodes.is_empty(), "linux.memoryPolicy.nodes: missing for {mode}");
        }
    }
    check_flags(policy)?;
    if nodes.is_empty() {
        return Ok(());
    }
    let there = fs::read_to_string("/sys/devices/system/node/online")
        .context("linux.memoryPolicy: this kernel has no NUMA nodes")?;
    let online = numbers(there.trim(), MAX_NODES).context("/sys/devices/system/node/online")?;
    match nodes.iter().find(|node| !online.contains(node)) {
        Some(node) => bail!(
            "linux.memoryPolicy.nodes: {list:?}: there is no node {node}, only {}",
            there.trim()
        ),
        None => Ok(()),
    }
}

/// What set_mempolicy(2) says of its flags.
fn check_flags(policy: &LinuxMemoryPolicy) -> Result<()> {
    let flags = policy.flags().as_deref().unwrap_or_default();
    let has = |flag| flags.contains(&flag);
    ensure!(
        !(has(Flag::MpolFStaticNodes) && has(Flag::MpolFRelativeNodes)),
        "linux.memoryPolicy.flags: MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other"
    );
    ensure!(
        !has(Flag::MpolFNumaBalancing) || matches!(policy.mode(), Mode::MpolBind | Mode::MpolPreferredMany),
        "linux.memoryPolicy.flags: MPOL_F_NUMA_BALANCING: is not for {}",
        policy.mode()
    );
    let no_nodes = policy.nodes().as_ref().is_none_or(String::is_empty);
    ensure!(
        flags.is_empty() || !no_nodes,
        "linux.memoryPolicy.flags: {flags:?}: need linux.memoryPolicy.nodes"
    );
    Ok(())
}

fn nodes(policy: &LinuxMemoryPolicy) -> Result<Vec<usize>> {
    match policy.nodes().as_deref() {
        None | Some("") => Ok(Vec::new()),
        Some(list) => numbers(list, MAX_NODES).context("linux.memoryPolicy.nodes"),
    }
}

/// Gives this process the policy.
pub fn set(policy: &LinuxMemoryPolicy) -> Result<()> {
    // linux/mempolicy.h.
    let mode = match policy.mode() {
        Mode::MpolDefault => 0,
        Mode::MpolPreferred => 1,
        Mode::MpolBind => 2,
        Mode::MpolInterleave => 3,
        Mode::MpolLocal => 4,
        Mode::MpolPreferredMany => 5,
        Mode::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                Flag::MpolFNumaBalancing => 1 << 13,
                Flag::MpolFRelativeNodes => 1 << 14,
                Flag::MpolFStaticNodes => 1 << 15,
            }
    });
    let nodes = nodes(policy)?;
    set_mempolicy(mode | flags, &nodes).with_context(|| {
        format!(
            "linux.memoryPolicy: set_mempolicy({} | {flags:#x}, {nodes:?})",
            policy.mode()
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn policies() {
        for (policy, refusal) in [
            (json!({"mode": "MPOL_DEFAULT"}), None),
            (json!({"mode": "MPOL_DEFAULT", "nodes": ""}), None),
            (json!({"mode": "MPOL_PREFERRED"}), None),
            (
                json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_NUMA_BALANCING"]}),
                None,
            ),
            (
                json!({"mode": "MPOL_LOCAL", "nodes": "0"}),
                Some("nodes: \"0\": must be absent for MPOL_LOCAL"),
            ),
            (json!({"mode": "MPOL_BIND"}), Some("nodes: missing for MPOL_BIND")),
            (json!({"mode": "MPOL_INTERLEAVE", "nodes": ""}), Some("nodes: missing")),
            (
                json!({"mode": "MPOL_BIND", "nodes": "x"}),
                Some("nodes: \"x\": must be numbers"),
            ),
            (
                json!({"mode": "MPOL_BIND", "nodes": "0-1023"}),
                Some("nodes: \"0-1023\": there is no node"),
            ),
            (
                json!({"mode": "MPOL_BIND", "nodes": "1024"}),
                Some("nodes: \"1024\": must be numbers"),
            ),
            (
                json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]}),
                Some("flags: MPOL_F_STATIC_NODES"),
            ),
            (
                json!({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_NUMA_BALANCING"]}),
                Some("flags: MPOL_F_NUMA_BALANCING"),
            ),
            (
                json!({"mode": "MPOL_DEFAULT", "flags": ["MPOL_F_STATIC_NODES"]}),
                Some("flags: "),
            ),
        ] {
            let outcome = check_json(&policy);
            match refusal {
                None => assert_eq!(outcome, Ok(()), "{policy}"),
                Some(words) => {
                    let error = outcome.unwrap_err();
                    assert!(
                        error.starts_with(&format!("linux.memoryPolicy.{words}")) || error.contains(words),
                        "{error}"
                    );
                }
            }
        }
    }

    fn check_json(policy: &Value) -> Result<(), String> {
        check(&serde_json::from_value(policy.clone()).unwrap()).map_err(|error| format!("{error:#}"))
    }
}
