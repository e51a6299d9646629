//! What the kernel has against what the records say: what nobody owns goes, what a pod has lost comes back.
//!
//! At the start of a server, after everything was killed at any moment; and whenever `corten-cri network repair` asks.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use corten_proto::networks::Repaired;
use nix::errno::Errno;

use super::link;
use super::netlink::{Socket, is_refusal};
use super::prepare::check_owner;
use super::{Attached, Builtin, mark_of, ruleset};
use crate::error::Error;
use crate::network::netns;

impl Builtin {
    /// Repairs what an earlier server has left, if there is anything of it.
    pub(crate) fn resume(&self) -> Result<()> {
        if self.state().attached.is_empty() {
            let links = link::list(&Socket::route()?)?;
            let bridge = &self.config.bridge;
            let is_ours = |link: &link::Link| link.name == *bridge || link.owner(bridge).is_some();
            let left = links.iter().any(is_ours) || ruleset::is_installed(bridge).unwrap_or(false);
            if !left || !self.config.builtin {
                return Ok(());
            }
        }
        let repaired = self.repair()?;
        for name in &repaired.removed {
            tracing::info!(link = name, "removed: no pod has it");
        }
        for problem in &repaired.problems {
            tracing::warn!("{problem}");
        }
        Ok(())
    }

    /// Puts the node's side and every pod's right. Blocks.
    ///
    /// # Errors
    /// If the node's side cannot be made; what is wrong with a pod is told in the result.
    pub(crate) fn repair(&self) -> Result<Repaired> {
        let _turn = self.turn.write().expect("no holder panics");
        let bridge = self.prepare_anew()?;
        let mut repaired = Repaired {
            removed: self.remove_strangers()?,
            ..Repaired::default()
        };
        let pods: Vec<Attached> = self.state().attached.values().cloned().collect();
        for pod in pods {
            repaired.pods += 1;
            // Of one that was let go because it could not be taken down there may be no namespace any more.
            if !netns::is_namespace(&pod.netns) {
                continue;
            }
            if let Err(error) = pod.connect(&bridge) {
                let Attached { owner, .. } = &pod;
                repaired
                    .problems
                    .push(format!("pod {} (sandbox {}): {error:#}", owner.name, owner.id));
            }
        }
        Ok(repaired)
    }

    /// Removes the links that were made for pods of this bridge and that none has.
    fn remove_strangers(&self) -> Result<Vec<String>> {
        let socket = Socket::route()?;
        let mut removed = Vec::new();
        for link in link::list(&socket)? {
            let owner = link.owner(&self.config.bridge);
            if owner.is_some_and(|id| !self.state().attached.contains_key(&id)) {
                link::remove(&socket, &link.name)?;
                removed.push(link.name);
            }
        }
        Ok(removed)
    }

    /// Takes bridge and table away; with `force` also while pods use them. Blocks.
    pub(crate) fn remove_all(&self, force: bool) -> Result<(), Error> {
        let mut prepared = self.prepared.lock().expect("no holder panics");
        let pods = self.state().attached.len();
        if pods > 0 && !force {
            let bridge = &self.config.bridge;
            let text = format!("bridge {bridge} is in use by {pods} pods: stop them first, or use --force");
            return Err(Error::State(text));
        }
        *prepared = None;
        // No pod has a link there, or it does not matter.
        Ok(remove_marked(&self.config.bridge, &self.mark, true)?)
    }
}

/// Takes a bridge and its table away.
///
/// # Errors
/// If it has ports, unless `force`; if the link of this name is no bridge, or not of the server with this root.
pub(crate) fn remove(bridge: &str, root: &Path, force: bool) -> Result<()> {
    remove_marked(bridge, &mark_of(root), force)
}

fn remove_marked(bridge: &str, mark: &str, force: bool) -> Result<()> {
    let socket = Socket::route()?;
    if let Some(found) = link::find(&socket, bridge)? {
        check_owner(&socket, &found, mark).with_context(|| format!("remove bridge {bridge}"))?;
        let ports = link::list(&socket)?
            .into_iter()
            .filter(|link| link.master == found.index);
        let ports = ports.count();
        ensure!(
            force || ports == 0,
            "bridge {bridge} has {ports} ports: stop the pods first, or use --force"
        );
        link::remove(&socket, bridge).with_context(|| format!("remove bridge {bridge}"))?;
    }
    match ruleset::remove(bridge) {
        // A kernel without nf_tables has no table.
        Err(error) if is_refusal(&error, Errno::EOPNOTSUPP) => Ok(()),
        removed => removed,
    }
}
