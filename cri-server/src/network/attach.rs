//! Which network a pod gets, and which one takes it back.
//!
//! A CNI configuration wins, also one that is wrong: pods on the wrong network would be worse than none. Without any the
//! built-in network serves, unless the configuration says that it must not. Each pod's record says which it was, and that
//! one takes it back, whatever is configured by then.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Builtin, PodNetwork, builtin, cni};
use crate::error::Error;
use crate::node::Node;

/// What attaching came to: part of the sandbox's record, and all that detaching needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Attachment {
    /// By CNI plugins.
    Cni(cni::Attachment),
    /// By the built-in network.
    Builtin(builtin::Attachment),
}

impl Attachment {
    /// The pod's addresses, the primary one first.
    #[must_use]
    pub fn ips(&self) -> Vec<IpAddr> {
        match self {
            Attachment::Cni(attachment) => attachment.ips.clone(),
            Attachment::Builtin(attachment) => attachment.addresses.iter().map(|prefix| prefix.address).collect(),
        }
    }

    /// The last plugin's result, as it gave it; none of the built-in network.
    #[must_use]
    pub fn cni_result(&self) -> Option<&Value> {
        match self {
            Attachment::Cni(attachment) => Some(attachment.result()),
            Attachment::Builtin(_) => None,
        }
    }
}

impl Node {
    /// Attaches a pod to the network that the node has now.
    pub(crate) async fn attach(&self, pod: &PodNetwork) -> Result<Attachment, Error> {
        match self.builtin_in_use().await? {
            Some(builtin) => builtin.add(pod).await.map(Attachment::Builtin),
            None => Ok(self.cni.add(pod).await.map(Attachment::Cni)?),
        }
    }

    /// Detaches a pod from its network. Without an attachment whatever a run that failed or was killed has left is removed,
    /// of either network.
    pub(crate) async fn detach(&self, pod: &PodNetwork, attachment: Option<&Attachment>) -> Result<()> {
        match attachment {
            Some(Attachment::Cni(attachment)) => self.cni.remove(pod, Some(attachment)).await,
            Some(Attachment::Builtin(_)) => self.builtin.remove(&pod.id).await,
            None => {
                self.builtin.remove(&pod.id).await?;
                self.cni.remove(pod, None).await
            }
        }
    }

    /// Notes a pod that an earlier server attached.
    pub(crate) fn adopt_network(&self, pod: &PodNetwork, attachment: &Attachment) {
        match attachment {
            Attachment::Cni(_) => self.cni.adopt(&pod.id),
            Attachment::Builtin(attachment) => self.builtin.adopt(pod, attachment),
        }
    }

    /// Whether pods can have a network now; else why not.
    pub(crate) async fn network_ready(&self) -> Result<()> {
        match self.builtin_in_use().await? {
            Some(builtin) => builtin.ready().await,
            None => self.cni.ready().await,
        }
    }

    /// The built-in network, if new pods get it.
    pub(crate) async fn builtin_in_use(&self) -> Result<Option<&Arc<Builtin>>> {
        let wanted = self.config.network.builtin && !self.cni.is_configured().await?;
        Ok(wanted.then_some(&self.builtin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_say_which_network_it_was() {
        let builtin = r#"{"link":"veth0","addresses":["10.87.0.2/16","fd00::2/64"]}"#;
        let cni = r#"{"ips":["10.88.0.2"],"network":{},"result":{"ips":[]}}"#;
        let read = |text: &str| serde_json::from_str::<Attachment>(text).unwrap();
        let attachment = read(builtin);
        assert_eq!(
            attachment.ips(),
            ["10.87.0.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]
        );
        assert_eq!(attachment.cni_result(), None);
        assert_eq!(serde_json::to_string(&attachment).unwrap(), builtin);
        let attachment = read(cni);
        assert!(matches!(attachment, Attachment::Cni(_)));
        assert_eq!(attachment.ips().len(), 1);
        assert!(serde_json::from_str::<Attachment>("{}").is_err());
    }
}
