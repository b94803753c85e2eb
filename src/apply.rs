//! Applies batches: raises the fences of L1, writes L2, then moves the watermark, then lets capture confirm.
//!
//! Scripts that may touch the same key go through one ordered connection. What fails ends the stream, which starts
//! again after what is done, under a new claim: scripts tell by the entries' labels what was applied already.

pub mod batch;
pub mod claim;
mod error;
pub mod joining;
pub mod lookup;
mod observe;
pub mod outage;
mod predecessors;
pub mod reshape;
mod seal;
mod second;
mod write;
mod writer;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use redis::aio::MultiplexedConnection;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::batch::Batch;
use self::claim::{Position, draw};
pub use self::error::ApplyError;
use self::joining::{Joining, hold_back, is_joining};
use self::lookup::Lookups;
pub use self::observe::Metrics;
use self::outage::Outage;
use self::second::Second;
use crate::cache::Hierarchy;
use crate::cache::requery::{Dropped, Requeries};
use crate::entity::{Entity, Generation, Published, Resolved, Standing};
use crate::failpoint::{self, Point, Rule};
use crate::gate::Gate;
use crate::lsn::Lsn;
use crate::source::SourceError;

/// How L2 is written.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Keys of one script call.
    pub script_keys: usize,
    /// Script calls under way at a time.
    pub in_flight: usize,
    /// Bytes of the largest value that is written.
    pub max_value: usize,
}

/// Looks up the shapes of entities in the catalog as it is now.
pub trait LookUpShape: Send + Sync {
    /// These entities as the catalog has them, in their order: all in one pass.
    ///
    /// # Errors
    /// If the catalog cannot be read.
    fn look_up(
        &self,
        source: &Client,
        entities: &[usize],
    ) -> impl Future<Output = Result<Vec<Resolved>, SourceError>> + Send;

    /// The entities that a look may find changed since the last one.
    ///
    /// # Errors
    /// If the catalog cannot be read.
    fn changed(
        &self,
        source: &Client,
        entities: &[Arc<Entity>],
    ) -> impl Future<Output = Result<Vec<usize>, SourceError>> + Send;
}

/// Writes batches to the tiers, as the one leader.
pub struct Applier<L> {
    hierarchy: Arc<Hierarchy>,
    second: Second,
    config: Config,
    gate: Gate,
    source: Arc<Client>,
    /// Cluster, timeline, database and slot.
    source_id: String,
    shapes: L,
    joining: Joining,
    /// Entities whose generation was raised while they were out of the tiers. A look that takes one out raises it, too, so
    /// what was in the tiers meanwhile may stay among them.
    out: HashSet<usize>,
    lookups: Lookups,
    outage: Arc<Outage>,
    requeries: Arc<Requeries>,
    /// Whether any entity is to be read again.
    requeries_any: bool,
    metrics: Metrics,
    cancel: CancellationToken,
}

/// What a leader needs to start.
pub struct Start<'a, L> {
    /// The tiers.
    pub hierarchy: Arc<Hierarchy>,
    /// How L2 is written.
    pub config: Config,
    /// The gate.
    pub gate: Gate,
    /// A connection to the source database.
    pub source: Arc<Client>,
    /// Where the stream continues.
    pub position: Position<'a>,
    /// The catalog.
    pub shapes: L,
    /// What runs lookups.
    pub lookups: Lookups,
    /// How long L2 may be away.
    pub outage: Arc<Outage>,
    /// What is to be read again.
    pub requeries: Arc<Requeries>,
    /// Where to report.
    pub metrics: Metrics,
    /// Ends retries.
    pub cancel: CancellationToken,
}

impl<L: LookUpShape> Applier<L> {
    /// Claims L2. While Redis is away, that takes as long as is tolerated; then the leader goes on without it. The slot
    /// must be held already: of two leaders the one that streams has the higher epoch.
    ///
    /// # Errors
    /// If another leads, the source fails, or the daemon stops.
    pub async fn start(start: Start<'_, L>) -> Result<Self, ApplyError> {
        let is_new = |entity: &Arc<Entity>| entity.generation() == Generation::default();
        let new: Vec<Arc<Entity>> = start.hierarchy.entities.iter().filter(|e| is_new(e)).cloned().collect();
        if start.hierarchy.l2.is_none() && start.position.broken.is_none() {
            // Nothing tells which of them were published before.
            new.iter().for_each(|entity| hold_back(entity));
        }
        let second = Second::open(&start).await?;
        if second.started_over() {
            start.metrics.new_generation(&start.hierarchy);
        }
        if let (Some(why), false) = (start.position.broken, second.is_claimed()) {
            let generation = draw(&start.source, start.hierarchy.newest_generation()).await?;
            warn!(generation = generation.0, reason = why, "starting a new generation of what is cached in process");
            start.hierarchy.restart(start.position.applied, generation);
            start.metrics.new_generation(&start.hierarchy);
        }
        let requeries_any = start.hierarchy.entities.iter().any(|entity| entity.is_requeried());
        let mut applier = Applier {
            requeries_any,
            hierarchy: start.hierarchy,
            second,
            config: start.config,
            gate: start.gate,
            source: start.source,
            source_id: start.position.source.to_owned(),
            shapes: start.shapes,
            joining: Joining::default(),
            out: HashSet::new(),
            lookups: start.lookups,
            outage: start.outage,
            requeries: start.requeries,
            metrics: start.metrics,
            cancel: start.cancel,
        };
        let held: Vec<(usize, Published)> = (new.iter().filter(|entity| is_joining(entity)))
            .map(|entity| (entity.id, entity.shape().published.clone()))
            .collect();
        let joined = applier.joined(&held).await?;
        let known: Vec<&Entity> = joined.iter().map(|id| &*applier.hierarchy.entities[*id]).collect();
        applier.second.have_joined(&known).await?;
        for id in joined {
            // See `claim`. What was read meanwhile was read before the watermark moved to where
            // the stream begins, so it is not believed.
            applier.hierarchy.entities[id].set_standing(Standing::Cached);
        }
        for entity in &new {
            applier.metrics.apply.servable(entity.id, entity.is_servable());
        }
        // What has changed since the last session looked: before anything of this one is applied.
        applier.look_around().await?;
        Ok(applier)
    }

    /// Applies a batch; gives what may be confirmed from then on. That may be less than what the batch reaches, while a
    /// [`lookup`] waits.
    ///
    /// # Errors
    /// If another leads, the source fails, or the daemon stops. What was not confirmed then comes again.
    pub async fn apply(&mut self, mut batch: Batch) -> Result<Option<Lsn>, ApplyError> {
        let mut published = None;
        if !batch.xids.is_empty() && !failpoint::is_off(Rule::Gate) {
            let cancel = self.cancel.clone();
            let began = Instant::now();
            loop {
                let given_up = lookup::until(self.lookups.deadline());
                tokio::select! {
                    biased;
                    passed = self.gate.pass(&batch.xids) => break passed?,
                    () = cancel.cancelled() => return Err(ApplyError::Cancelled),
                    // Others must not wait for these.
                    () = given_up => published = self.give_up_round().await?.or(published),
                }
            }
            self.metrics.replication.gate_wait(began.elapsed());
        }
        let own = if batch.lookups.is_empty() && !self.lookups.are_open() {
            self.perform(&mut batch).await?
        } else {
            self.apply_in_round(batch).await?
        };
        Ok(own.or(published))
    }

    /// Writes what has passed the gate, and publishes the batch's progress.
    async fn perform(&mut self, batch: &mut Batch) -> Result<Option<Lsn>, ApplyError> {
        let began = Instant::now();
        let mut requeried = self.in_l1(batch);
        if let Some(l1) = &self.hierarchy.l1 {
            // Before L2: whatever is read from L2 from now on is kept in L1 only as long as this allows.
            for (key, op) in &batch.ops {
                l1.fence().raise(key.hash, op.lsn);
            }
        }
        let voids = batch.voids.iter().map(|(void, lsn)| (void, *lsn));
        let floors = self.hierarchy.voids.raise(&self.hierarchy.entities, voids);
        failpoint::reached(Point::BeforeWrite);
        match self.write(batch, floors).await {
            Ok(in_l2) => requeried.extend(in_l2.into_iter().filter_map(|at| self.dropped(batch, at))),
            Err(e) => {
                self.note(&e);
                return Err(e);
            }
        }
        failpoint::reached(Point::BeforeConfirm);
        // Whoever has waited for a position finds counted what came before it.
        self.count(batch);
        if let Some(lsn) = batch.progress {
            if self.second.acknowledge() {
                self.outage.over();
            }
            self.hierarchy.watermark.advance(lsn);
        }
        if !requeried.is_empty() {
            self.requeries.add(requeried.into_iter());
        }
        self.time(batch, began);
        Ok(batch.progress)
    }

    /// Those of a batch's keys that L1 has, of entities that are to be read again.
    fn in_l1(&self, batch: &Batch) -> Vec<Dropped> {
        let Some(l1) = self.hierarchy.l1.as_ref().filter(|_| self.requeries_any) else { return Vec::new() };
        let dropped = (0..batch.ops.len()).filter_map(|at| self.dropped(batch, at));
        let stands = |dropped: &Dropped| {
            l1.get(dropped.entity, &dropped.key, self.hierarchy.entities[dropped.entity].generation()).is_some()
        };
        dropped.filter(stands).collect()
    }

    /// A key of a batch, by position, if it is to be read again.
    fn dropped(&self, batch: &Batch, at: usize) -> Option<Dropped> {
        let (key, op) = batch.ops.get_index(at)?;
        let entity = self.hierarchy.entities.get(op.entity).filter(|entity| entity.is_requeried())?;
        let key = entity.stored_key(std::str::from_utf8(&key.key).ok()?)?;
        Some(Dropped { entity: op.entity, key, lsn: op.lsn })
    }

    /// Waits until an L2 that was away can be connected to; for ever if it is not away.
    pub async fn l2_returned(&mut self) -> MultiplexedConnection {
        self.second.returned().await
    }

    /// Claims an L2 that is back.
    ///
    /// # Errors
    /// If another leads, or the source fails.
    pub async fn rejoin(&mut self, connection: MultiplexedConnection) -> Result<(), ApplyError> {
        let position = Position {
            source: &self.source_id,
            applied: self.hierarchy.watermark.load(),
            broken: None,
            missed: self.second.missed(),
        };
        if self.second.rejoin(connection, &self.hierarchy, &self.source, self.config, &position).await? {
            self.outage.claimed();
            if self.second.started_over() {
                self.metrics.new_generation(&self.hierarchy);
            }
        }
        Ok(())
    }
}
