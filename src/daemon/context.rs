//! What the stages share.

use std::sync::Arc;

use deadpool_postgres::Pool;

use super::error::DaemonError;
use super::orders::Orders;
use super::settings::l2_config;
use super::status::Status;
use super::tap::Tap;
use crate::apply::outage::{Outage, Tolerance};
use crate::cache::Hierarchy;
use crate::cache::l1::L1;
use crate::cache::l2::L2;
use crate::cache::requery::Requeries;
use crate::cache::voids::Voids;
use crate::cache::warm::Warmer;
use crate::cache::watermark::Watermark;
use crate::config::Config;
use crate::entity::{Entity, Resolved, Shape};
use crate::metrics::{ApplyMetrics, CommandMetrics, InstanceMetrics, ReplicationMetrics, RequeryMetrics, SweepMetrics};
use crate::source::{self, Followed};

/// What the stages share.
pub(super) struct Context {
    pub(super) config: Config,
    pub(super) hierarchy: Arc<Hierarchy>,
    pub(super) metrics: crate::apply::Metrics,
    pub(super) instance: Arc<InstanceMetrics>,
    pub(super) status: Arc<Status>,
    /// Since when L2 fails, across sessions of the stream.
    pub(super) outage: Arc<Outage>,
    pub(super) orders: Orders,
    /// Connections for fills.
    pub(super) pool: Pool,
    /// The server that the stream comes from; nothing is asked of another.
    pub(super) followed: Arc<Followed>,
    /// What applications' commands are counted by.
    pub(super) commanded: CommandMetrics,
    /// What applications want to be filled.
    pub(super) warmer: Arc<Warmer>,
    /// What sweeping reports.
    pub(super) sweeps: SweepMetrics,
    /// Who watches the stream.
    pub(super) tap: Arc<Tap>,
    /// What is to be read again after events.
    pub(super) requeries: Arc<Requeries>,
}

pub(super) fn context(config: Config, resolved: Vec<Resolved>, status: Arc<Status>) -> Result<Context, DaemonError> {
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
        Some(l2) => Some(Arc::new(L2::new(l2_config(l2)).map_err(DaemonError::L2Url)?)),
        None => None,
    };
    // Without L2 it is never looked at.
    let backlog = config.l2.clone().unwrap_or_default();
    let outage = Outage::new(Tolerance { max_backlog: backlog.max_backlog, max_backlog_age: backlog.max_backlog_age });
    let own: Vec<Option<u64>> = config.entities.iter().map(|e| e.l1_size).collect();
    let l1 = config.l1.enabled.then(|| L1::with_parts(config.l1.max_size, &own));
    let names = || config.entities.iter().map(|e| e.name.as_str());
    let metrics = crate::apply::Metrics {
        apply: Arc::new(ApplyMetrics::new(names())),
        replication: Arc::new(ReplicationMetrics::new(names())),
    };
    let requery_metrics = RequeryMetrics::new(names());
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
        orders: Orders::default(),
        pool,
        followed,
        warmer: Arc::new(Warmer::new(commanded.clone())),
        requeries: Arc::new(Requeries::new(requery_metrics)),
        commanded,
        sweeps: SweepMetrics::new(),
        tap: Arc::default(),
    })
}
