//! Composes the stages: starts them, keeps the stream going, and ends them in order.
//!
//! ```text
//! start: listeners bound -> catalog inspected -> tiers -> [replicate | keep L2 connected | serve | upkeep]
//! stop:  not ready -> last batch applied and confirmed -> requests drained, within the grace period
//! ```

mod commanded;
mod commands;
mod error;
mod follow;
mod housekeeping;
mod invalidate;
mod operate;
mod pipeline;
mod replicate;
mod session;
mod slot;
mod start;
mod status;
mod sweep;
mod tap;
mod warmth;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Pool;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::apply::outage::{Bound, Outage};
use crate::audit::{self, Auditor};
use crate::cache::answer::{Answer, Demand, ReadError};
use crate::cache::bound;
use crate::cache::fill::Filler;
use crate::cache::l1::L1;
use crate::cache::l2::{self, L2};
use crate::cache::permits::Permits;
use crate::cache::requery::Requeries;
use crate::cache::rows::Rows;
use crate::cache::voids::Voids;
use crate::cache::warm::Warmer;
use crate::cache::watermark::Watermark;
use crate::cache::{Cache, Freshness, Hierarchy};
use crate::config::{Config, EntityConfig, L2Config};
use crate::entity::{Entity, EntryKey, Resolved, Shape};
use crate::metrics::{
    ApplyMetrics, AuditMetrics, CacheMetrics, CommandMetrics, FillMetrics, InstanceMetrics, ReplicationMetrics,
    SweepMetrics,
};
use crate::serve::{self, Limits, Listener, Reads};
use crate::source::{self, Followed, SourceError};

use commands::Commands;
pub use error::DaemonError;
use operate::{Catalogued, Operator};
use status::Status;
use tap::Tap;

/// How long one statement of the daemon's own may take, in the catalog or for an epoch.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How often histograms are condensed.
const UPKEEP: Duration = Duration::from_secs(5);
/// Connections of the admin listener.
const ADMIN_CONNECTIONS: usize = 64;

/// What the stages share.
struct Context {
    config: Config,
    hierarchy: Arc<Hierarchy>,
    metrics: crate::apply::Metrics,
    instance: Arc<InstanceMetrics>,
    status: Arc<Status>,
    /// Since when L2 fails, across sessions of the stream.
    outage: Arc<Outage>,
    commands: Commands,
    /// Connections for fills.
    pool: Pool,
    /// The server that the stream comes from; nothing is asked of another.
    followed: Arc<Followed>,
    /// What applications' commands are counted by.
    commanded: CommandMetrics,
    /// What applications want to be filled.
    warmer: Arc<Warmer>,
    /// What sweeping reports.
    sweeps: SweepMetrics,
    /// Who watches the stream.
    tap: Arc<Tap>,
    /// What is to be read again after events.
    requeries: Arc<Requeries>,
}

/// A running daemon.
pub struct Daemon {
    /// Where the HTTP API listens.
    pub http: SocketAddr,
    /// Where the admin routes listen.
    pub admin: SocketAddr,
    tasks: JoinSet<Result<(), DaemonError>>,
    stop: CancellationToken,
    /// Cancelled once nothing is applied any more: then connections to the tiers may go.
    grace: Duration,
}

impl Daemon {
    /// Starts a daemon. Waits until the source database has been inspected, however long that takes.
    ///
    /// # Errors
    /// Whatever an operator must mend: an address in use, a finding of the catalog, a refused login.
    pub async fn start(
        config: Config,
        prometheus: PrometheusHandle,
        stop: CancellationToken,
    ) -> Result<Daemon, DaemonError> {
        let http = Listener::bind(&config.http.listen.to_string(), "http").await?;
        let admin = Listener::bind(&config.admin.listen.to_string(), "admin").await?;
        let addresses = (http.address(), admin.address());
        let status = Arc::new(Status::new(prometheus.clone(), &config, stop.clone()));
        let grace = config.http.grace;
        let mut tasks = JoinSet::new();
        let limits = limits(&config);
        let admin_limits = Limits { max_connections: ADMIN_CONNECTIONS, ..limits };
        // First, so that probes are answered while the source is waited for; and last to go.
        let admin_stop = CancellationToken::new();
        let operator = Arc::new(Operator::default());
        let admin_task = tokio::spawn({
            let (routes, stop) =
                (serve::admin::Admin::new(status.clone(), operator.clone(), limits), admin_stop.clone());
            async move { admin.serve(move || serve::admin::service(&routes), admin_limits, stop).await }
        });
        let entities = start::inspect(&config, &stop).await?;
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
            let (stop, instance) = (stop.clone(), context.instance.clone());
            async move {
                let mut tick = tokio::time::interval(UPKEEP);
                loop {
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        _ = tick.tick() => {
                            prometheus.run_upkeep();
                            instance.db_pool_available(pool.status().available);
                            for (entity, l1) in hierarchy.l1.iter().flat_map(L1::fullness) {
                                let name = entity.map(|id| hierarchy.entities[id].name.as_str());
                                instance.l1(name, l1.entries, (l1.size, l1.max_size));
                            }
                        }
                    }
                }
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

fn context(config: Config, resolved: Vec<Resolved>, status: Arc<Status>) -> Result<Context, DaemonError> {
    let entities: Vec<Arc<Entity>> = (config.entities.iter().zip(resolved).enumerate())
        .map(|(id, (e, resolved))| {
            let prefix = config.l2.as_ref().map_or("", |l2| &l2.prefix);
            let shape = resolved.shape.unwrap_or_else(|| Shape::unknown(resolved.signature));
            let entity = Entity::new(id, e.definition(), prefix, shape);
            entity.set_standing(resolved.standing);
            entity.set_seen(resolved.signature);
            Arc::new(entity)
        })
        .collect();
    let l2 = match &config.l2 {
        Some(l2) => Some(Arc::new(L2::new(connection(l2)).map_err(DaemonError::L2Url)?)),
        None => None,
    };
    // Without L2 it is never looked at.
    let backlog = config.l2.clone().unwrap_or_default();
    let outage = Outage::new(Bound { max_backlog: backlog.max_backlog, max_backlog_age: backlog.max_backlog_age });
    let own: Vec<Option<u64>> = config.entities.iter().map(|e| e.l1_size).collect();
    let l1 = config.l1.enabled.then(|| L1::with_parts(config.l1.max_size, &own));
    let names = || config.entities.iter().map(|e| e.name.as_str());
    let metrics = crate::apply::Metrics {
        apply: Arc::new(ApplyMetrics::new(names())),
        replication: Arc::new(ReplicationMetrics::new(names())),
    };
    entities.iter().for_each(|entity| metrics.apply.servable(entity.id, entity.is_servable()));
    let voids = Voids::new(entities.len());
    let hierarchy = Arc::new(Hierarchy { entities, l1, l2, watermark: Watermark::default(), voids });
    let followed = Arc::new(Followed::default());
    let pool = source::pool(&config.source, followed.clone())?;
    let commanded = CommandMetrics::new();
    Ok(Context {
        config,
        hierarchy,
        metrics,
        instance: Arc::new(InstanceMetrics::new()),
        status,
        outage: Arc::new(outage),
        commands: Commands::default(),
        pool,
        followed,
        warmer: Arc::new(Warmer::new(commanded.clone())),
        requeries: Arc::default(),
        commanded,
        sweeps: SweepMetrics::new(),
        tap: Arc::default(),
    })
}

fn connection(l2: &L2Config) -> l2::Config {
    l2::Config {
        url: l2.url.expose().to_owned(),
        prefix: l2.prefix.clone(),
        response_timeout: l2.response_timeout,
        connect_timeout: l2.connect_timeout,
        lease_ttl: l2.lease_ttl,
        lease_wait: l2.lease_wait,
    }
}

/// A size of the configuration, as far as this machine can count.
fn bytes(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

fn limits(config: &Config) -> Limits {
    Limits {
        max_body: bytes(config.http.max_body),
        max_batch: config.http.max_batch,
        header_timeout: config.http.header_timeout,
        max_connections: config.http.max_connections,
        grace: config.http.grace,
    }
}

fn freshness(config: &Config) -> Freshness {
    let f = &config.freshness;
    let of = |entity: &EntityConfig| {
        let max_staleness = entity.max_staleness.unwrap_or(f.max_staleness);
        bound::Bound::new(f.stale_after, max_staleness, entity.past_max_staleness.unwrap_or(f.past_max_staleness))
    };
    Freshness {
        bounds: config.entities.iter().map(of).collect(),
        min_lsn_wait: f.min_lsn_wait,
        min_lsn_wait_max: f.min_lsn_wait_max,
    }
}

impl Reads for Cache {
    fn entity(&self, name: &str) -> Option<&Arc<Entity>> {
        Cache::entity(self, name)
    }

    fn read_l1(&self, entity: &Entity, key: &EntryKey, demand: &Demand) -> Option<Answer> {
        Cache::read_l1(self, entity, key, demand)
    }

    fn read(
        &self,
        entity: &Arc<Entity>,
        key: EntryKey,
        demand: Demand,
    ) -> impl Future<Output = Result<Answer, ReadError>> + Send {
        Cache::read(self, entity, key, demand)
    }

    fn read_many(
        &self,
        entity: &Arc<Entity>,
        keys: Vec<EntryKey>,
        demand: Demand,
    ) -> impl Future<Output = Vec<Result<Answer, ReadError>>> + Send {
        Cache::read_many(self, entity, keys, demand)
    }
}

impl From<SourceError> for DaemonError {
    fn from(error: SourceError) -> Self {
        DaemonError::Source(error)
    }
}
