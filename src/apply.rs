//! Applies batches: raises the fences of L1, writes L2, then moves the watermark, then lets capture confirm.
//!
//! Scripts that may touch the same key go through one ordered connection. What fails ends the stream, which starts
//! again after what is done, under a new claim: scripts tell by the entries' labels what was applied already.

pub mod batch;
pub mod claim;
mod joining;
pub mod lookup;
pub mod outage;
mod predecessors;
pub mod reshape;
mod seal;
mod second;
mod writer;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use redis::aio::MultiplexedConnection;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::batch::Batch;
use self::claim::{Position, draw};
use self::joining::Joining;
use self::lookup::Lookups;
use self::outage::Outage;
use self::reshape::JOINING;
use self::second::Second;
use crate::cache::Hierarchy;
use crate::cache::requery::{Dropped, Requeries};
use crate::cache::sweep::Due;
use crate::cache::voids::Field;
use crate::entity::{Entity, Generation, Resolved, Standing};
use crate::failpoint::{self, Point, Rule};
use crate::gate::{Gate, GateError};
use crate::lsn::Lsn;
use crate::metrics::{ApplyMetrics, Cause, Fenced, ReplicationMetrics};
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

/// Why a batch was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Another instance leads.
    #[error("another instance has taken over: a higher epoch stands in L2")]
    Fenced,
    /// L2 shows less than it had acknowledged.
    #[error("L2 lost writes that it had acknowledged")]
    WentBack,
    /// Redis or the way there.
    #[error("write L2: {0}")]
    L2(#[source] redis::RedisError),
    /// The source database.
    #[error("ask the source database: {0}")]
    Source(#[source] tokio_postgres::Error),
    /// The gate.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The catalog of the source database.
    #[error(transparent)]
    Catalog(#[from] SourceError),
    /// The table's partitions are others than before: the stream starts again, so that it knows their names. What was
    /// not confirmed comes again under them.
    #[error("the rows of entity {0} are streamed under other names than before")]
    Repartitioned(String),
    /// The daemon is stopping.
    #[error("cancelled")]
    Cancelled,
}

/// Looks up the shape of an entity's table in the catalog as it is now.
pub trait LookUpShape: Send + Sync {
    /// The entity as the catalog has it.
    ///
    /// # Errors
    /// If the catalog cannot be read.
    fn look_up(&self, source: &Client, entity: &Entity) -> impl Future<Output = Result<Resolved, SourceError>> + Send;

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
    lookups: Lookups,
    outage: Arc<Outage>,
    requeries: Arc<Requeries>,
    /// Whether any entity is to be read again.
    requeries_any: bool,
    metrics: Metrics,
    cancel: CancellationToken,
}

/// Where applying reports.
#[derive(Clone)]
pub struct Metrics {
    /// Of the writes.
    pub apply: Arc<ApplyMetrics>,
    /// Of the stream.
    pub replication: Arc<ReplicationMetrics>,
}

impl Metrics {
    /// Everything cached became unservable.
    fn new_generation(&self, hierarchy: &Hierarchy) {
        for entity in &hierarchy.entities {
            self.apply.invalidations(entity.id, Cause::Generation, 1);
        }
    }
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

/// Why a query's generation is raised for a row.
const DEPENDED_ON: &str = "a row was changed that any of its entries may depend on";

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
            new.iter().for_each(|entity| reshape::hold_back(entity));
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
            lookups: start.lookups,
            outage: start.outage,
            requeries: start.requeries,
            metrics: start.metrics,
            cancel: start.cancel,
        };
        for entity in new.iter().filter(|entity| entity.standing().cause() == Some(JOINING)) {
            // See `claim`. What was read meanwhile was read before the watermark moved to where
            // the stream begins, so it is not believed.
            if applier.has_joined(entity.id, &entity.shape().published).await? {
                entity.set_standing(Standing::Cached);
            }
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
        if let Some(lsn) = batch.progress {
            if self.second.acknowledge() {
                self.outage.over();
            }
            self.hierarchy.watermark.advance(lsn);
        }
        if !requeried.is_empty() {
            self.requeries.add(requeried.into_iter());
        }
        self.observe(batch, began);
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

    async fn write(&mut self, batch: &mut Batch, floors: Vec<Field>) -> Result<Vec<usize>, ApplyError> {
        if batch.look_around {
            self.look_around_now().await?;
        }
        for id in &batch.moved {
            self.raise(*id, "the table has come under another name").await?;
            self.metrics.apply.invalidations(*id, Cause::Ddl, 1);
        }
        for id in batch.moved.iter().chain(&batch.reshape) {
            self.reshape_now(*id).await?;
        }
        for id in &batch.raise {
            self.raise(*id, "the table was truncated").await?;
        }
        for (id, cause) in batch.discard.iter().filter(|(id, _)| !batch.raise.contains(id)) {
            let reason = match cause {
                crate::plan::Cause::Large => "a row was too large to be received",
                crate::plan::Cause::Command => "the application said so",
                crate::plan::Cause::Shape => "a row was changed that cannot be read as the catalog says",
                crate::plan::Cause::Lookup => "which entries are concerned was not looked up",
                _ => DEPENDED_ON,
            };
            self.raise(*id, reason).await?;
        }
        if !floors.is_empty() {
            self.second.set_floors(&floors, batch.high).await?;
        }
        if batch.gaps > 0 {
            self.second.fill_gaps(&self.hierarchy, batch).await?;
        }
        self.second.write(&self.hierarchy.entities, batch).await
    }

    async fn raise(&mut self, id: usize, reason: &str) -> Result<(), ApplyError> {
        let generation = draw(&self.source, self.hierarchy.newest_generation()).await?;
        let entity = self.hierarchy.entities[id].clone();
        self.second.raise(&entity, generation).await?;
        if reason == DEPENDED_ON {
            // With each transaction, as it may be.
            debug!(entity = entity.name, generation = generation.0, "starting a new generation: {reason}");
        } else {
            info!(entity = entity.name, generation = generation.0, "starting a new generation: {reason}");
        }
        Ok(())
    }

    /// What a failed write says of L2.
    fn note(&self, error: &ApplyError) {
        let Some(l2) = &self.hierarchy.l2 else { return };
        match error {
            ApplyError::WentBack => {
                self.metrics.apply.fenced(Fenced::Lost);
                l2.distrust();
            }
            ApplyError::Fenced => {
                self.metrics.apply.fenced(Fenced::Epoch);
                // Another leads, and tells nobody of the generations that it starts.
                l2.distrust();
            }
            ApplyError::L2(_) => {
                self.outage.failed();
                // The readers' connection may lead to the same server: one that failed over, or has become a replica.
                l2.give_up();
            }
            _ => {}
        }
    }

    /// Makes everything unservable that is cached of an entity, or of all; says in which generation they are now.
    ///
    /// # Errors
    /// As [`Applier::apply`].
    pub async fn resync(&mut self, entity: Option<usize>) -> Result<Generation, ApplyError> {
        let generation = draw(&self.source, self.hierarchy.newest_generation()).await?;
        let entities = match entity {
            Some(id) => &self.hierarchy.entities[id..=id],
            None => &self.hierarchy.entities[..],
        };
        let raised = match entity {
            Some(id) => self.second.raise(&self.hierarchy.entities[id], generation).await,
            None => self.second.raise_all(entities, generation).await,
        };
        raised.inspect_err(|e| self.note(e))?;
        for entity in entities {
            self.metrics.apply.invalidations(entity.id, Cause::Generation, 1);
        }
        let name = entity.map(|id| self.hierarchy.entities[id].name.as_str());
        info!(entity = name, generation = generation.0, "starting a new generation: an operator asked for it");
        Ok(generation)
    }

    /// Takes patterns that were swept off the list, and off the fence.
    ///
    /// # Errors
    /// As [`Applier::apply`]. Then they may still be in the fence, and are swept again.
    pub async fn retire(&mut self, swept: &[Due]) -> Result<(), ApplyError> {
        let retire = |due: &Due| self.hierarchy.voids.retire(&due.entity, &due.patterns);
        let fields: Vec<Field> = swept.iter().flat_map(retire).collect();
        if fields.is_empty() {
            return Ok(());
        }
        self.second.unset(&fields).await.inspect_err(|e| self.note(e))
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

    fn observe(&self, batch: &Batch, began: Instant) {
        self.metrics.apply.batch(batch.ops.len(), began.elapsed());
        for (entity, cause) in &batch.invalidations {
            self.metrics.apply.invalidations(*entity, label(*cause), 1);
        }
        for entity in &batch.raise {
            self.metrics.apply.invalidations(*entity, Cause::Truncate, 1);
        }
        for (entity, cause) in &batch.discard {
            self.metrics.apply.invalidations(*entity, label(*cause), 1);
        }
        self.metrics.replication.transactions.increment(batch.commits.len() as u64);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros() as i64;
        for commit_micros in &batch.commits {
            // The server's clock may be ahead of ours: never negative.
            let micros = now.saturating_sub(*commit_micros).max(0) as u64;
            self.metrics.replication.commit_to_visible(Duration::from_micros(micros));
        }
    }
}

fn label(cause: crate::plan::Cause) -> Cause {
    match cause {
        crate::plan::Cause::Update => Cause::Update,
        crate::plan::Cause::Delete => Cause::Delete,
        crate::plan::Cause::Toast => Cause::Toast,
        crate::plan::Cause::Opaque => Cause::Opaque,
        crate::plan::Cause::Shape => Cause::Ddl,
        crate::plan::Cause::Command => Cause::Command,
        crate::plan::Cause::Large => Cause::Large,
        crate::plan::Cause::Lookup => Cause::Lookup,
    }
}
