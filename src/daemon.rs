//! Composes the stages: starts them, keeps the stream going, and ends them in order.
//!
//! ```text
//! start: listeners bound -> catalog inspected -> tiers -> [replicate | watch the slot | keep L2 connected | sweep | expire
//!        | requery | warm | fill for commands | audit | serve | upkeep]
//! stop:  not ready -> last batch applied and confirmed -> requests drained, within the grace period
//! ```

mod commands;
mod context;
mod error;
mod follow;
mod housekeeping;
mod idle;
mod inspect;
mod invalidate;
mod operate;
mod orders;
mod pipeline;
mod replicate;
mod session;
mod settings;
mod shapes;
mod slot;
mod status;
mod sweep;
mod tap;
mod upkeep;
mod warmth;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::context::{Context, context};
pub use self::error::DaemonError;
use self::operate::{Catalogued, Operator};
use self::settings::{bytes, freshness, http_limits};
use self::status::Status;
use crate::audit::{self, Auditor};
use crate::cache::Cache;
use crate::cache::fill::Filler;
use crate::cache::permits::Permits;
use crate::cache::rows::Rows;
use crate::config::Config;
use crate::metrics::{AuditMetrics, CacheMetrics, FillMetrics};
use crate::serve::{self, Limits, Listener};

/// How long one statement of the daemon's own may take, in the catalog or for an epoch.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections of the admin listener.
const ADMIN_CONNECTIONS: usize = 64;

/// A running daemon.
pub struct Daemon {
    /// Where the HTTP API listens.
    pub http: SocketAddr,
    /// Where the admin routes listen.
    pub admin: SocketAddr,
    tasks: JoinSet<Result<(), DaemonError>>,
    stop: CancellationToken,
    /// How long stopping may take.
    grace: Duration,
}

impl Daemon {
    /// Starts a daemon. Waits until the source database has been inspected, however long that takes.
    ///
    /// # Errors
    /// Whatever an operator must mend: an address in use, a finding of the catalog, a refused login.
    pub async fn start(
        mut config: Config,
        prometheus: PrometheusHandle,
        stop: CancellationToken,
    ) -> Result<Daemon, DaemonError> {
        let http = Listener::bind(&config.http.listen.to_string(), "http").await?;
        let admin = Listener::bind(&config.admin.listen.to_string(), "admin").await?;
        let addresses = (http.address(), admin.address());
        let status = Arc::new(Status::new(prometheus.clone(), &config, stop.clone()));
        let grace = config.http.grace;
        let mut tasks = JoinSet::new();
        let limits = http_limits(&config);
        let admin_limits = Limits { max_connections: ADMIN_CONNECTIONS, ..limits };
        // First, so that probes are answered while the source is waited for; and last to go.
        let admin_stop = CancellationToken::new();
        let operator = Arc::new(Operator::default());
        let admin_task = tokio::spawn({
            let (routes, stop) =
                (serve::admin::Admin::new(status.clone(), operator.clone(), limits), admin_stop.clone());
            async move { admin.serve(move || serve::admin::service(&routes), admin_limits, stop).await }
        });
        let entities = inspect::inspect(&mut config, &stop).await?;
        let context = Arc::new(context(config, entities, status)?);
        let config = &context.config;

        let cache_metrics: Arc<Vec<CacheMetrics>> =
            Arc::new(config.entities.iter().map(|e| CacheMetrics::new(&e.name)).collect());
        let pool = context.pool.clone();
        let permits = Permits::new(config.source.max_fills, config.entities.len(), FillMetrics::new());
        let rows = Rows::new(pool.clone(), permits, config.source.fill_timeout);
        let hierarchy = context.hierarchy.clone();
        let max_value = bytes(config.apply.max_value);
        let filler =
            Filler::new(hierarchy.clone(), rows, config.source.max_waiting_fills, max_value, cache_metrics.clone());
        let auditor = Auditor::new(
            hierarchy.clone(),
            filler.clone(),
            Catalogued::new(context.clone()),
            audit::Config { rate: config.audit.rate, wait: config.audit.wait, patience: config.source.fill_timeout },
            AuditMetrics::new(),
        );
        let hot = warmth::hot_sets(config);
        let warming = warmth::warming(&context, filler.clone(), hot.clone());
        operator.attach(context.clone(), auditor.clone(), warming.clone(), stop.clone());
        let cache = Cache::new(hierarchy.clone(), filler.clone(), freshness(config), hot, cache_metrics.clone());
        context.status.attach(hierarchy.clone(), context.metrics.replication.clone(), context.outage.clone());

        // Connections to L2 stay up until the last batch is applied.
        let l2_stop = CancellationToken::new();
        if let Some(l2) = hierarchy.l2.clone() {
            let (hierarchy, instance, stop) = (hierarchy.clone(), context.instance.clone(), l2_stop.clone());
            tasks.spawn(async move {
                l2.keep_connected(hierarchy, instance, stop).await;
                Ok(())
            });
        } else {
            info!("there is no [l2]: values are cached in this process only");
        }
        tasks.spawn({
            let (context, stop) = (context.clone(), stop.clone());
            async move {
                let ended = replicate::replicate(context, stop).await;
                l2_stop.cancel();
                ended
            }
        });
        tasks.spawn({
            let names = config.entities.iter().map(|e| e.name.clone()).collect();
            let (api, stop) = (serve::api::Api::new(cache, names, limits), stop.clone());
            async move {
                let served = http.serve_on_cores(move || serve::api::service(&api), limits, stop).await;
                admin_stop.cancel();
                // The admin listener drains in its own time; it has nothing to lose.
                let _ = admin_task.await;
                served.map_err(DaemonError::Serve)
            }
        });
        tasks.spawn({
            let (context, stop) = (context.clone(), stop.clone());
            async move {
                watch::watch(&context, &stop).await;
                Ok(())
            }
        });
        tasks.spawn({
            let (context, stop) = (context.clone(), stop.clone());
            async move {
                sweep::run(&context, &stop).await;
                Ok(())
            }
        });
        tasks.spawn({
            let stop = stop.clone();
            async move {
                auditor.run(stop).await;
                Ok(())
            }
        });
        tasks.spawn({
            let stop = stop.clone();
            async move {
                warming.run(stop).await;
                Ok(())
            }
        });
        tasks.spawn({
            let (stop, context, hierarchy) = (stop.clone(), context.clone(), hierarchy.clone());
            async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = context.warmer.run(&hierarchy, &filler) => {}
                    () = context.requeries.run(&hierarchy, &filler) => {}
                }
                Ok(())
            }
        });
        tasks.spawn({
            let (stop, hierarchy) = (stop.clone(), hierarchy.clone());
            async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = hierarchy.expire_l1(cache_metrics) => {}
                }
                Ok(())
            }
        });
        tasks.spawn({
            let (context, stop) = (context.clone(), stop.clone());
            async move {
                upkeep::run(&prometheus, &context, &stop).await;
                Ok(())
            }
        });
        Ok(Daemon { http: addresses.0, admin: addresses.1, tasks, stop, grace })
    }

    /// Runs until stopped, then ends everything in order within the grace period.
    ///
    /// # Errors
    /// What ended a stage for good before that.
    pub async fn run(mut self) -> Result<(), DaemonError> {
        let mut ended = Ok(());
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                done = self.tasks.join_next() => match done {
                    Some(Ok(Ok(()))) => {}
                    Some(Ok(Err(error))) => ended = Err(error),
                    Some(Err(panic)) => ended = Err(DaemonError::Panicked(panic.to_string())),
                    None => return ended,
                },
            }
            if ended.is_err() {
                self.stop.cancel();
            }
        }
        info!("stopping");
        let drained = tokio::time::timeout(self.grace + Duration::from_secs(1), async {
            while let Some(done) = self.tasks.join_next().await {
                if let Ok(Err(error)) = done {
                    warn!(%error, "a stage ended with an error while stopping");
                }
            }
        });
        if drained.await.is_err() {
            warn!("the grace period is over: what is left is cut off; it was not confirmed and comes again");
        }
        ended
    }
}

/// Runs a daemon until SIGTERM or SIGINT.
///
/// # Errors
/// As [`Daemon::start`] and [`Daemon::run`].
pub async fn run(config: Config) -> Result<(), DaemonError> {
    let prometheus = crate::metrics::install().map_err(|e| DaemonError::Metrics(e.to_string()))?;
    let stop = CancellationToken::new();
    let mut terminate =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(DaemonError::Signals)?;
    let mut interrupt =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).map_err(DaemonError::Signals)?;
    tokio::spawn({
        let stop = stop.clone();
        async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.cancel();
        }
    });
    let daemon = tokio::select! {
        daemon = Daemon::start(config, prometheus, stop.clone()) => daemon?,
        () = stop.cancelled() => return Ok(()),
    };
    daemon.run().await?;
    info!("stopped");
    Ok(())
}
