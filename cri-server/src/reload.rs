//! Reload: the files are read again, and what can change in a running server does.
//!
//! ```text
//! SIGHUP, config reload --> read, check --> refuse, or put in force: settings, images, network, log --> say what changed
//! ```
//! All or nothing: a mistake anywhere, and everything stays as it was. Calls in flight go on with what they began with, by
//! one `Arc` of the whole configuration.

use std::sync::Arc;

use anyhow::Result;
use corten_proto::config::configuration_server::Configuration;
use corten_proto::config::{ReloadRequest, ReloadResponse, ShowRequest, ShowResponse};
use tokio::signal::unix::Signal;
use tonic::{Request, Response, Status};

use crate::config::{Difference, LogLevel, Plan, Problem, Problems};
use crate::image::Policy;
use crate::node::{Node, blocking};
use crate::systemd::Systemd;

/// Sets the level of the server's own log.
pub type SetLogLevel = Box<dyn Fn(LogLevel) -> Result<()> + Send + Sync>;

/// What a reload has to do with.
pub(crate) struct Reload {
    node: Arc<Node>,
    systemd: Arc<Systemd>,
    set_log_level: SetLogLevel,
    status: String,
    /// Held by a reload: one after the other.
    turn: tokio::sync::Mutex<()>,
}

impl Reload {
    /// Nothing has been reloaded yet.
    pub(crate) fn new(
        node: &Arc<Node>,
        systemd: &Arc<Systemd>,
        set_log_level: SetLogLevel,
        status: String,
    ) -> Arc<Self> {
        Arc::new(Reload {
            node: node.clone(),
            systemd: systemd.clone(),
            set_log_level,
            status,
            turn: tokio::sync::Mutex::default(),
        })
    }

    /// Where the calls are served, for systemd.
    pub(crate) fn status(&self) -> &str {
        &self.status
    }

    /// Reloads at every signal; for ever.
    pub(crate) async fn at(&self, mut hang_up: Signal) {
        while hang_up.recv().await.is_some() {
            tracing::info!("SIGHUP: reading the configuration");
            // It has been logged.
            drop(self.run().await);
        }
    }

    /// Reads the files and puts them in force; what has changed, and what waits for a restart. What is wrong is logged, each
    /// on a line of its own.
    async fn run(&self) -> Result<(Vec<Difference>, Vec<Difference>), Problems> {
        let _turn = self.turn.lock().await;
        self.systemd.reloading();
        let outcome = self.read_and_apply().await;
        self.systemd.ready(&self.status);
        match &outcome {
            Ok((changed, waiting)) => {
                changed.iter().for_each(|it| tracing::info!("configuration: {it}"));
                waiting
                    .iter()
                    .for_each(|it| tracing::warn!("configuration: needs a restart: {it}"));
                tracing::info!(
                    changed = changed.len(),
                    restart = waiting.len(),
                    "configuration reloaded"
                );
            }
            Err(problems) => {
                problems.0.iter().for_each(|it| tracing::error!("configuration: {it}"));
                tracing::error!("the configuration is not reloaded: all of it stays as it was");
            }
        }
        outcome
    }

    async fn read_and_apply(&self) -> Result<(Vec<Difference>, Vec<Difference>), Problems> {
        let node = self.node.clone();
        let read = blocking(move || Ok(node.settings.plan()));
        let plan = read
            .await
            .unwrap_or_else(|error| Err(problem(None, format!("{error:#}"))))?;
        self.check_runtimes(&plan)?;
        self.apply(&plan).map_err(|error| problem(None, format!("{error:#}")))?;
        let differences = (plan.changed.clone(), plan.waiting.clone());
        self.node.settings.set(plan);
        Ok(differences)
    }

    /// A pod cannot be stopped without its runtime: one that pods have stays.
    fn check_runtimes(&self, plan: &Plan) -> Result<(), Problems> {
        let sandboxes = self.node.store.sandboxes();
        let missing = sandboxes.iter().find_map(|sandbox| {
            let name = &sandbox.metadata.runtime;
            // One that was missing before this is not for the reload to refuse.
            let goes = self.node.config().runtime(name).is_some() && plan.loaded.config.runtime(name).is_none();
            goes.then(|| (name.clone(), sandbox.id().clone()))
        });
        let Some((name, id)) = missing else {
            return Ok(());
        };
        let rule = format!("must stay: pod sandbox {id} has this runtime");
        Err(problem(Some(format!("runtimes.{name}")), rule))
    }

    /// Tells whoever keeps a part of the configuration of its own. Fails before it has told anybody.
    fn apply(&self, plan: &Plan) -> Result<()> {
        let config = &plan.loaded.config;
        let changes = |table: &str| plan.changed.iter().any(|it| it.key[0] == table);
        if changes("log") {
            (self.set_log_level)(config.log.level)?;
        }
        if changes("pull") || changes("registries") {
            self.node.images.reach(config.registries());
        }
        if changes("image_policy") {
            self.node.images.enforce(config.image_policy.as_deref().map(Policy::of));
        }
        if changes("cni") {
            self.node.cni.configure(&config.cni);
        }
        Ok(())
    }
}

fn problem(key: Option<String>, rule: String) -> Problems {
    Problems(vec![Problem {
        file: None,
        line: None,
        key,
        rule,
        value: None,
    }])
}

/// The service behind `corten-cri config show --running` and `config reload`.
pub(crate) struct ConfigService(pub(crate) Arc<Reload>);

#[tonic::async_trait]
impl Configuration for ConfigService {
    async fn show(&self, _request: Request<ShowRequest>) -> Result<Response<ShowResponse>, Status> {
        let (loaded, waiting) = self.0.node.settings.whole();
        let settings = serde_json::to_string(&loaded.settings(&waiting));
        let settings = settings.map_err(|error| Status::internal(format!("encode the configuration: {error}")))?;
        Ok(Response::new(ShowResponse { settings }))
    }

    async fn reload(&self, _request: Request<ReloadRequest>) -> Result<Response<ReloadResponse>, Status> {
        let reload = self.0.clone();
        // To its end, whoever waits for it.
        let ran = self.0.node.work.run(async move { reload.run().await }).await?;
        let (changed, waiting) = ran.map_err(|problems| Status::failed_precondition(problems.to_string()))?;
        let lines = |differences: Vec<Difference>| differences.iter().map(ToString::to_string).collect();
        Ok(Response::new(ReloadResponse {
            changed: lines(changed),
            waiting: lines(waiting),
        }))
    }
}
