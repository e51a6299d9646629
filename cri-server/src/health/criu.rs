//! Whether containers can be saved and restored here: what `criu check` says of CRIU and this kernel.
//!
//! Asked once, beside the start of the server, which does not wait for it: CRIU tries a hundred things and takes its time.
//! Kernels and CRIU change with the machine or the package, and then the server is started again. Whether a handler's
//! runtime knows how to use CRIU is a feature of that handler (`features`).

use std::sync::Arc;

use tokio::sync::watch;

use crate::node::Node;
use crate::oci;
use crate::stage::stage;

/// What `criu check` has said; nothing before it has.
#[derive(Default)]
pub(crate) struct Criu {
    verdict: watch::Sender<Option<Result<(), String>>>,
}

impl Criu {
    /// The verdict so far.
    pub(crate) fn known(&self) -> Option<Result<(), String>> {
        self.verdict.borrow().clone()
    }

    /// The verdict, once there is one; why CRIU cannot work.
    pub(crate) async fn works(&self) -> Result<(), String> {
        let _stage = stage(|| "what criu check says".to_owned());
        let mut verdict = self.verdict.subscribe();
        let known = verdict.wait_for(Option::is_some).await;
        let known = known.expect("the sender is a field of this");
        known.clone().expect("waited for it")
    }
}

impl Node {
    /// Asks, beside everything else.
    pub(crate) fn probe_criu(self: &Arc<Self>) {
        let node = self.clone();
        self.supervisors.spawn(async move {
            let verdict = oci::criu_check(node.config().criu.as_deref()).await;
            let verdict = verdict.map_err(|error| format!("{error:#}"));
            match &verdict {
                Ok(()) => tracing::info!("criu works here: containers can be checkpointed and restored"),
                Err(problem) => tracing::info!("no checkpoint, no restore: {problem}"),
            }
            node.health.criu.verdict.send_replace(Some(verdict));
        });
    }
}
