//! STATUS and GC: what plugins of version 1.1.0 and later are asked beside the pods (CNI specification, section 4).
//!
//! GC tells plugins which attachments count; they drop everything else, such as addresses whose DEL never came. It must not
//! run beside an ADD, whose attachment it would not know: it takes its turn only when none is under way, and ADDs that
//! come meanwhile wait for it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use corten_proto::id::SandboxId;
use serde_json::{Map, Value, json};
use tokio::sync::{Mutex, RwLock, RwLockReadGuard};

use super::conf::{Network, Plugin};
use super::plugin::{self, Command, Invocation};
use super::{Cni, INTERFACE};

/// How long an answer to STATUS counts: the kubelet asks every few seconds, and each answer is a program per plugin.
const STATUS_AGE: Duration = Duration::from_secs(10);
/// The same of an answer that is no good: one that repeats itself has been asked for again.
const FAILURE_AGE: Duration = Duration::from_millis(500);
/// How long all plugins together may take to answer STATUS: who asks for it waits.
const STATUS_LIMIT: Duration = Duration::from_secs(2);
/// How long all plugins together may take to collect: ADDs wait.
const GC_LIMIT: Duration = Duration::from_secs(10);

/// What the network as a whole is known by.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// Shared by ADDs, exclusive for GC.
    turn: RwLock<()>,
    /// Sandboxes that are attached, or about to be.
    attached: std::sync::Mutex<BTreeSet<SandboxId>>,
    /// The last answer to STATUS.
    status: Mutex<Option<Answer>>,
}

/// What the plugins of a configuration have answered to STATUS.
#[derive(Debug)]
struct Answer {
    when: Instant,
    source: Value,
    ready: Result<(), String>,
}

impl Upkeep {
    /// Notes a sandbox before its ADD; no GC runs while the guard is held.
    pub(super) async fn attaching(&self, id: &SandboxId) -> RwLockReadGuard<'_, ()> {
        let turn = self.turn.read().await;
        self.attached().insert(id.clone());
        turn
    }

    /// Forgets a sandbox whose DEL has succeeded.
    pub(super) fn detached(&self, id: &SandboxId) {
        self.attached().remove(id);
    }

    fn attached(&self) -> std::sync::MutexGuard<'_, BTreeSet<SandboxId>> {
        self.attached.lock().expect("no holder panics")
    }
}

impl Cni {
    /// Notes a sandbox that an earlier server attached.
    pub fn adopt(&self, id: &SandboxId) {
        self.upkeep.attached().insert(id.clone());
    }

    /// Forgets a sandbox whose DEL is still to come: its attachment does not count any more.
    pub fn let_go(&self, id: &SandboxId) {
        self.upkeep.detached(id);
    }

    /// Whether pods can have a network now; else why not.
    pub async fn ready(&self) -> Result<()> {
        let settings = self.settings();
        let network = self
            .read(move |network| {
                let mut kinds = network.plugins.iter().map(|plugin| &plugin.kind);
                kinds.try_for_each(|kind| plugin::find(&settings.bin_dirs, kind).map(|_program| ()))?;
                Ok(network.has_status().then(|| network.clone()))
            })
            .await?;
        let Some(network) = network else {
            return Ok(());
        };
        // One asks, the others wait for its answer.
        let mut status = self.upkeep.status.lock().await;
        if let Some(last) = &*status
            && last.when.elapsed() < if last.ready.is_ok() { STATUS_AGE } else { FAILURE_AGE }
            && last.source == network.source
        {
            return last.ready.clone().map_err(anyhow::Error::msg);
        }
        let ready = self.status(&network).await.map_err(|error| format!("{error:#}"));
        *status = Some(Answer {
            when: Instant::now(),
            source: network.source,
            ready: ready.clone(),
        });
        ready.map_err(anyhow::Error::msg)
    }

    async fn status(&self, network: &Network) -> Result<()> {
        let all = async {
            for plugin in &network.plugins {
                self.ask(Command::Status, network, plugin, &Map::new(), STATUS_LIMIT)
                    .await?;
            }
            Ok(())
        };
        let Ok(answer) = tokio::time::timeout(STATUS_LIMIT, all).await else {
            let limit = STATUS_LIMIT.as_secs();
            bail!("CNI network {}: no answer to STATUS in {limit} s", network.name);
        };
        answer
    }

    /// Has plugins drop what belongs to no sandbox. False if it was put off: an ADD is under way.
    ///
    /// # Errors
    /// The first of the plugins'; the others have been asked all the same, as far as there was time.
    pub async fn collect(&self) -> Result<bool> {
        let Ok(_turn) = self.upkeep.turn.try_write() else {
            return Ok(false);
        };
        let Ok(network) = self.network().await else {
            return Ok(true);
        };
        if !network.collects {
            return Ok(true);
        }
        let valid: Vec<Value> = self
            .upkeep
            .attached()
            .iter()
            .map(|id| json!({ "containerID": id.as_str(), "ifname": INTERFACE }))
            .collect();
        let extra = Map::from_iter([("cni.dev/valid-attachments".to_owned(), Value::Array(valid))]);
        let mut outcome = Ok(());
        let deadline = Instant::now() + self.settings().timeout().min(GC_LIMIT);
        for plugin in &network.plugins {
            let left = deadline.saturating_duration_since(Instant::now());
            let asked = if left.is_zero() {
                let (name, kind) = (&network.name, &plugin.kind);
                Err(anyhow!("CNI network {name}: no time left for plugin {kind} GC"))
            } else {
                self.ask(Command::Gc, &network, plugin, &extra, left).await
            };
            outcome = outcome.and(asked);
        }
        outcome.map(|()| true)
    }

    /// Runs a command that is about the network; `extra` is added to the plugin's configuration.
    async fn ask(
        &self,
        command: Command,
        network: &Network,
        plugin: &Plugin,
        extra: &Map<String, Value>,
        limit: Duration,
    ) -> Result<()> {
        let mut stdin = plugin.stdin(network, &Map::new(), None);
        let config = stdin
            .as_object_mut()
            .ok_or_else(|| anyhow!("a configuration is an object"))?;
        config.extend(extra.clone());
        let settings = self.settings();
        let invocation = Invocation {
            command,
            program: plugin::find(&settings.bin_dirs, &plugin.kind)?,
            pod: None,
            path: &settings.bin_dirs,
            timeout: settings.timeout().min(limit),
        };
        let ran = invocation.run(&stdin).await.map(drop);
        ran.with_context(|| {
            format!(
                "CNI network {}: plugin {} {}",
                network.name,
                plugin.kind,
                command.name()
            )
        })
    }
}
