//! What the daemon says of itself on the admin listener.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::watch;
use crate::apply::outage::Outage;
use crate::cache::Hierarchy;
use crate::capture::stream::Progress;
use crate::config::{Config, Publications};
use crate::entity::PastBound;
use crate::lsn::Lsn;
use crate::metrics::ReplicationMetrics;
use crate::serve::admin::Health;

/// The daemon's standing.
pub(super) struct Status {
    prometheus: PrometheusHandle,
    started: Instant,
    slot: String,
    publication: Publications,
    /// When replication is so far behind, hits are not given any more; never, if the configuration says so.
    max_staleness: Option<Duration>,
    hierarchy: OnceLock<Arc<Hierarchy>>,
    replication: OnceLock<Arc<ReplicationMetrics>>,
    outage: OnceLock<Arc<Outage>>,
    connected: AtomicBool,
    source_lsn: AtomicU64,
    stream: Mutex<Option<(Arc<Progress>, String)>>,
    /// What the server says of the slot; `None` while it cannot be asked.
    slot_health: Mutex<Option<watch::Health>>,
    problem: Mutex<Option<String>>,
    stop: CancellationToken,
}

impl Status {
    /// Of a daemon that is not ready any more once `stop` is cancelled.
    pub(super) fn new(prometheus: PrometheusHandle, config: &Config, stop: CancellationToken) -> Self {
        Status {
            prometheus,
            started: Instant::now(),
            slot: config.source.slot.clone(),
            publication: config.source.publication.clone(),
            max_staleness: (config.freshness.past_max_staleness == PastBound::Bypass)
                .then_some(config.freshness.max_staleness),
            hierarchy: OnceLock::new(),
            replication: OnceLock::new(),
            outage: OnceLock::new(),
            connected: AtomicBool::new(false),
            source_lsn: AtomicU64::new(0),
            stream: Mutex::new(None),
            slot_health: Mutex::new(None),
            problem: Mutex::new(None),
            stop,
        }
    }

    /// The tiers are there, the metrics of the stream that feeds them, and since when L2 fails.
    pub(super) fn attach(&self, hierarchy: Arc<Hierarchy>, replication: Arc<ReplicationMetrics>, outage: Arc<Outage>) {
        // Attached once, at the start.
        let _ = self.hierarchy.set(hierarchy);
        let _ = self.replication.set(replication);
        let _ = self.outage.set(outage);
    }

    pub(super) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Release);
    }

    pub(super) fn set_source_lsn(&self, lsn: Lsn) {
        self.source_lsn.store(lsn.as_u64(), Ordering::Release);
    }

    pub(super) fn set_progress(&self, progress: Arc<Progress>, source_id: &str) {
        *self.stream.lock() = Some((progress, source_id.to_owned()));
    }

    pub(super) fn set_slot(&self, health: Option<watch::Health>) {
        *self.slot_health.lock() = health;
    }

    /// That L2 keeps changes from being applied, if it does.
    pub(super) fn held_up(&self) -> Option<String> {
        let seconds = self.outage.get()?.holds_up()?.as_secs();
        let until = "nothing is applied until it is back, or l2.max_backlog_age or l2.max_backlog is exceeded";
        Some(format!("Redis (l2.url) has not answered for {seconds} s: {until}"))
    }

    /// What ended the last session, or holds up this one.
    fn problem(&self) -> Option<String> {
        self.held_up().or_else(|| self.problem.lock().clone())
    }

    /// What ended the last session, while there is no new one.
    pub(super) fn set_problem(&self, problem: Option<String>) {
        *self.problem.lock() = problem;
    }
}

impl Health for Status {
    fn ready(&self) -> Result<(), Vec<String>> {
        if self.stop.is_cancelled() {
            return Err(vec!["stopping".into()]);
        }
        let Some(hierarchy) = self.hierarchy.get() else {
            return Err(vec!["the source database has not been inspected yet".into()]);
        };
        let mut reasons = Vec::new();
        match hierarchy.watermark.staleness() {
            None => reasons.push("replication has not caught up since the start".to_owned()),
            Some(behind) if self.max_staleness.is_some_and(|bound| behind > bound) => {
                reasons.push(format!("replication was last current {} s ago", behind.as_secs()));
            }
            Some(_) => {}
        }
        if let (false, Some(problem)) = (reasons.is_empty(), self.problem()) {
            reasons.push(problem);
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    fn status(&self) -> Value {
        let stream = self.stream.lock().clone();
        let source_lsn = Lsn::from_u64(self.source_lsn.load(Ordering::Acquire));
        let hierarchy = self.hierarchy.get();
        let applied = hierarchy.map(|h| h.watermark.load()).unwrap_or_default();
        let lag = hierarchy.and_then(|h| h.watermark.staleness()).map(|s| s.as_secs_f64());
        let entities = hierarchy.iter().flat_map(|h| &h.entities).map(|e| {
            json!({
                "name": e.name,
                "table": e.query.is_none().then(|| format!("{}.{}", e.schema, e.table)),
                "depends_on": e.query.is_some().then(|| e.tables().map(|(s, t)| format!("{s}.{t}")).collect::<Vec<_>>()),
                "on_change": e.on_change,
                "generation": e.generation().0,
                "state": e.standing().name(),
                "cause": e.standing().cause(),
            })
        });
        // The first is shared by all entities that have none of their own.
        let parts = hierarchy.iter().flat_map(|h| {
            let fullness = h.l1.as_ref().map(|l1| l1.fullness()).unwrap_or_default();
            fullness.into_iter().map(|(entity, part)| {
                json!({
                    "entity": entity.map(|id| &h.entities[id].name),
                    "entries": part.entries,
                    "bytes": part.size,
                    "max_bytes": part.max_size,
                })
            })
        });
        let slot_health = self.slot_health.lock().as_ref().map(|health| {
            json!({
                "status": health.status.name(),
                "retained_bytes": health.retained,
                "safe_bytes": health.safe,
                "invalidation_reason": health.invalidated,
            })
        });
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "ready": self.ready().is_ok(),
            "problem": self.problem(),
            "applied_lsn": applied,
            "lag_seconds": lag,
            "replication": {
                "connected": self.connected.load(Ordering::Acquire),
                "slot": self.slot,
                "slot_health": slot_health,
                "publication": self.publication,
                "source": stream.as_ref().map(|(_, id)| id),
                "source_lsn": source_lsn,
                "received_lsn": stream.as_ref().map(|(p, _)| p.received()),
                "applied_lsn": applied,
                "confirmed_lsn": stream.as_ref().map(|(p, _)| p.confirmed()),
                "lag_bytes": source_lsn.bytes_since(applied),
            },
            "l1": {
                "entries": hierarchy.and_then(|h| h.l1.as_ref()).map(|l1| l1.len()),
                "parts": parts.collect::<Vec<_>>(),
            },
            "l2": {
                "configured": hierarchy.is_some_and(|h| h.l2.is_some()),
                "trusted": hierarchy.and_then(|h| h.l2.as_ref()).is_some_and(|l2| l2.is_trusted()),
                // Distrusted until it is back and a new generation has begun.
                "going_on_without": self.outage.get().is_some_and(|outage| outage.goes_without()),
                // Since when it does not take what is written.
                "failing_seconds": self.outage.get().and_then(|outage| outage.lasts()).map(|lasts| lasts.as_secs_f64()),
            },
            "entities": entities.collect::<Vec<_>>(),
        })
    }

    fn metrics(&self) -> String {
        // The lag grows while nothing happens: it is taken when it is asked for.
        if let (Some(hierarchy), Some(replication)) = (self.hierarchy.get(), self.replication.get()) {
            replication.lag(hierarchy.watermark.staleness());
        }
        self.prometheus.render()
    }
}
