//! Audits: whether what the tiers hold is what Postgres says.
//!
//! A check reads an entry E, then its row P as a fill does (one statement, which also gives `hi`: nothing committed
//! after `hi` is in P). If they are equal, the entry is right. If they differ, a change may be on its way to the entry,
//! so the check waits until the watermark W has reached `hi`, and then looks again. It is a finding only if
//!
//! - the very same entry still stands: in L2 the same bytes, which include its labels; in L1 the same allocation;
//! - it may still be served: L2 is trusted; the fence of L1 admits it;
//! - a heartbeat has come back through the stream that was sent after P was read;
//! - the entity's generation and shape are those from before E was read, and the shape is the catalog's, too;
//! - of an entry that was written in pieces, W has reached `lo`.
//!
//! **A healthy system has no findings.** Let c be a commit on the row's key.
//!
//! - *c in P is in E.* P holds nothing beyond `hi`, so `c <= hi <= W`. Whatever is servable once W has reached c contains
//!   c: by then the event has replaced, dropped or voided what stood in L2 before, and has raised the fence of L1 above
//!   the `as_of` of all that was fetched before. E was servable after W had reached `hi`.
//! - *c in E is in P.* E stood before P's snapshot was taken. A tier never holds what is not visible on the primary yet:
//!   events pass the gate first, and fills come from snapshots. What is visible to one snapshot of the primary is
//!   visible to all later ones. (Of a transaction that was applied in pieces, the whole is visible then, and E is its
//!   last image: a later piece would have changed E before W came to the transaction's end.)
//!
//! So both hold the same commits on that key, and one state of a row has one text: `row_to_json`'s, which is what events
//! render, too. A type for which they differ is a defect, and shows as a finding.
//!
//! What has no events: TRUNCATE and `resync` raise the generation before W moves on; so does a take-over after a
//! crash or failover of Postgres, or after writes that L2 lost. A server that was promoted may be at smaller LSNs, so
//! `hi <= W` may hold before its failover is noticed: but then no heartbeat comes back until it is. DDL may change what P
//! reads as without an event: that is why the shape is compared with the catalog before a finding is stated.
//!
//! Everything else is `changed` or `inconclusive`. A finding is counted, logged with both images' labels, and repaired
//! by invalidation; a miss is always right.

mod check;
pub mod explain;
mod finding;
mod sample;
pub mod verify;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::cache::Hierarchy;
use crate::cache::fill::Filler;
use crate::entity::Entity;
use crate::metrics::AuditMetrics;

pub use finding::{Finding, Labels, RowLabels};
use sample::Sampler;

/// Keys of one query at most, in the background.
const BATCH: u32 = 100;
/// What values are taken to measure before the first was seen, in bytes.
const LARGEST_AT_FIRST: usize = 256 << 10;

/// How much is checked, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Entries checked in a second in the background, at most; 0: none.
    pub rate: u32,
    /// How long a check that found a difference waits for the watermark.
    pub wait: Duration,
    /// How long a check waits for readers of Postgres to be done, before it gives up.
    pub patience: Duration,
}

/// Compares an entity's shape with the catalog.
pub trait Shapes: Send + Sync + 'static {
    /// Whether the table is in the catalog now what [`Entity::shape`] says; `None` if the catalog cannot be read.
    fn are_current(&self, entity: &Entity) -> impl Future<Output = Option<bool>> + Send;
}

/// Which tier an entry is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// In-process memory.
    L1,
    /// Redis.
    L2,
}

impl Tier {
    /// As it is written in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Tier::L1 => "l1",
            Tier::L2 => "l2",
        }
    }
}

/// Checks entries against Postgres.
pub struct Auditor<S> {
    hierarchy: Arc<Hierarchy>,
    filler: Arc<Filler>,
    shapes: S,
    config: Config,
    metrics: AuditMetrics,
    /// By entity, the largest value of the last step: so many fit into the next one.
    largest: Vec<AtomicUsize>,
    /// One query at a time, whoever asks.
    turn: Mutex<()>,
    sampler: Mutex<Sampler>,
}

impl<S: Shapes> Auditor<S> {
    /// An auditor of a hierarchy, which reads rows through the filler.
    pub fn new(
        hierarchy: Arc<Hierarchy>,
        filler: Arc<Filler>,
        shapes: S,
        config: Config,
        metrics: AuditMetrics,
    ) -> Arc<Self> {
        let sampler = Mutex::new(Sampler::new(hierarchy.entities.len()));
        let largest = hierarchy.entities.iter().map(|_| AtomicUsize::new(LARGEST_AT_FIRST)).collect();
        Arc::new(Auditor { largest, hierarchy, filler, shapes, config, metrics, turn: Mutex::default(), sampler })
    }

    /// Checks samples of both tiers in turn, at the configured rate, until stopped.
    pub async fn run(&self, stop: CancellationToken) {
        if self.config.rate == 0 {
            info!("audit.rate is 0: nothing is compared with Postgres in the background");
            return;
        }
        let batch = self.config.rate.min(BATCH);
        let mut ticks = interval(Duration::from_secs(1).mul_f64(f64::from(batch) / f64::from(self.config.rate)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.check_next(batch as usize) => {}
            }
        }
    }

    /// Checks up to `count` entries of the entity and tier whose turn it is.
    async fn check_next(&self, count: usize) {
        if self.hierarchy.watermark.staleness().is_none() {
            // Nothing is served from the tiers either.
            return;
        }
        let turns = 2 * self.hierarchy.entities.len();
        for _ in 0..turns {
            let (entity, tier) = self.sampler.lock().await.turn();
            let Some(entity) = self.hierarchy.entities.get(entity) else { continue };
            match self.sample(entity, tier, count).await {
                Ok(keys) if keys.is_empty() => {}
                Ok(keys) => {
                    self.check(entity, tier, keys, true).await;
                    return;
                }
                Err(error) => debug!(%error, tier = tier.as_str(), "sample entries"),
            }
        }
    }
}
