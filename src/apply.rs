//! Applies batches: raises the fences of L1, writes L2, then moves the watermark, then lets capture confirm.
//!
//! Scripts that may touch the same key go through one ordered connection. What fails ends the stream, which starts
//! again after what is done, under a new claim: scripts tell by the entries' labels what was applied already.

pub mod batch;
pub mod claim;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::Cmd;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::batch::{Batch, HashedKey, Op};
use self::claim::{Claim, Position, Scripts, draw};
use crate::cache::Hierarchy;
use crate::entity::{Entity, Generation, Shape};
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
    /// The daemon is stopping.
    #[error("cancelled")]
    Cancelled,
}

/// Looks up the shape of an entity's table in the catalog as it is now.
pub trait LookUpShape: Send + Sync {
    /// The shape; or, as the inner error, why the table cannot be served any more.
    ///
    /// # Errors
    /// If the catalog cannot be read.
    fn look_up(
        &self,
        source: &Client,
        entity: &Entity,
    ) -> impl Future<Output = Result<Result<Shape, String>, SourceError>> + Send;
}

/// Writes batches to the tiers, as the one leader.
pub struct Applier<L> {
    hierarchy: Arc<Hierarchy>,
    scripts: Scripts,
    config: Config,
    gate: Gate,
    source: Arc<Client>,
    shapes: L,
    claim: Claim,
    /// The high-water mark in L2.
    hw: Lsn,
    /// What L2 has acknowledged as done.
    done: Lsn,
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

/// One command of a batch.
enum Call<'a> {
    /// Put the newest images of an entity's keys.
    Put(usize, Vec<Put<'a>>),
    /// Drop keys.
    Drop(Vec<&'a [u8]>),
}

/// A key's newest image.
#[derive(Clone, Copy)]
struct Put<'a> {
    key: &'a HashedKey,
    lsn: Lsn,
    generation: Generation,
    text: &'a [u8],
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
    /// Where to report.
    pub metrics: Metrics,
    /// Ends retries.
    pub cancel: CancellationToken,
}

impl<L: LookUpShape> Applier<L> {
    /// Claims L2, which may take until Redis is back. The slot must be held already: of two leaders the one that
    /// streams has the higher epoch.
    ///
    /// # Errors
    /// If another leads, the source fails, or the daemon stops.
    pub async fn start(start: Start<'_, L>) -> Result<Self, ApplyError> {
        let scripts = Scripts::default();
        let claim = claim_until(&start.hierarchy, &scripts, &start.source, &start.position, &start.cancel).await?;
        Ok(Applier {
            hw: claim.takeover,
            done: claim.done,
            hierarchy: start.hierarchy,
            scripts,
            config: start.config,
            gate: start.gate,
            source: start.source,
            shapes: start.shapes,
            claim,
            metrics: start.metrics,
            cancel: start.cancel,
        })
    }

    /// Applies a batch: on return its progress may be confirmed.
    ///
    /// # Errors
    /// If another leads, the source fails, or the daemon stops. What was not confirmed then comes again.
    pub async fn apply(&mut self, batch: Batch) -> Result<(), ApplyError> {
        if !batch.xids.is_empty() {
            let cancel = self.cancel.clone();
            let began = Instant::now();
            tokio::select! {
                passed = self.gate.pass(&batch.xids) => passed?,
                () = cancel.cancelled() => return Err(ApplyError::Cancelled),
            }
            self.metrics.replication.gate_wait(began.elapsed());
        }
        let began = Instant::now();
        if let Some(l1) = &self.hierarchy.l1 {
            // Before L2: whatever is read from L2 from now on is kept in L1 only as long as this allows.
            for (key, op) in &batch.ops {
                l1.fence().raise(key.hash, op.lsn);
            }
        }
        if let Err(e) = self.write(&batch).await {
            match e {
                ApplyError::WentBack => {
                    self.metrics.apply.fenced(Fenced::Lost);
                    self.hierarchy.l2.distrust();
                }
                ApplyError::Fenced => self.metrics.apply.fenced(Fenced::Epoch),
                // The readers' connection may lead to the same server: one that failed over, or has become a replica.
                ApplyError::L2(_) => self.hierarchy.l2.give_up(),
                _ => {}
            }
            return Err(e);
        }
        if let Some(lsn) = batch.progress {
            self.hierarchy.l2.acknowledge(self.done);
            self.hierarchy.watermark.advance(lsn);
        }
        self.observe(&batch, began);
        Ok(())
    }

    /// Writes everything, and at last that it is done.
    async fn write(&mut self, batch: &Batch) -> Result<(), ApplyError> {
        self.hw = batch.progress.unwrap_or_default().max(batch.high).max(self.hw);
        let done = batch.progress.filter(|lsn| *lsn > self.done);
        for id in &batch.reshape {
            self.reshape(*id).await?;
        }
        for id in &batch.raise {
            let generation = draw(&self.source).await?;
            let entity = self.hierarchy.entities[*id].clone();
            self.claim.raise(&self.hierarchy, &self.scripts, &entity, generation).await?;
            info!(
                entity = entity.name,
                generation = generation.0,
                "starting a new generation: the table was truncated"
            );
        }
        let calls = self.calls(batch);
        if let (Some(lsn), [call @ Call::Put(..)]) = (done, &calls[..]) {
            // The usual small batch: its one script says itself that it is done.
            self.send(self.command(call, Some(lsn))).await?;
        } else {
            // Their order does not matter: each key is in one of them.
            let mut sent = FuturesUnordered::new();
            for call in &calls {
                if sent.len() >= self.config.in_flight {
                    sent.next().await.transpose()?;
                }
                sent.push(self.send(self.command(call, None)));
            }
            while let Some(written) = sent.next().await {
                written?;
            }
            drop(sent);
            if let Some(lsn) = done {
                // Only when all else was acknowledged.
                let fields = [("hw", self.hw), ("done", lsn)].map(|(f, lsn)| (f.to_owned(), lsn.hex16().to_vec()));
                self.claim.set(&self.hierarchy, &self.scripts, Some(self.done), &fields).await?;
            }
        }
        self.done = done.unwrap_or(self.done);
        Ok(())
    }

    /// Cuts a batch into calls of a bounded number of keys.
    fn calls<'b>(&self, batch: &'b Batch) -> Vec<Call<'b>> {
        let mut puts: Vec<Vec<Put<'_>>> = vec![Vec::new(); self.hierarchy.entities.len()];
        let mut drops: Vec<&[u8]> = Vec::new();
        for (key, Op { entity, lsn, image }) in &batch.ops {
            match image {
                Some((generation, text)) => puts[*entity].push(Put { key, lsn: *lsn, generation: *generation, text }),
                None => drops.push(&key.key),
            }
        }
        let size = self.config.script_keys;
        let mut calls: Vec<Call<'_>> = drops.chunks(size).map(|keys| Call::Drop(keys.to_vec())).collect();
        for (entity, puts) in puts.iter().enumerate() {
            // One call is of one generation; it rarely changes within a batch.
            for puts in puts.chunk_by(|a, b| a.generation == b.generation) {
                calls.extend(puts.chunks(size).map(|puts| Call::Put(entity, puts.to_vec())));
            }
        }
        calls
    }

    fn command(&self, call: &Call<'_>, done: Option<Lsn>) -> Cmd {
        match call {
            Call::Put(entity, puts) => self.put(*entity, puts, done),
            // An invalidation needs no script: a miss is always right, whoever causes it.
            Call::Drop(keys) => redis::cmd("UNLINK").arg(keys).take(),
        }
    }

    fn put(&self, entity: usize, puts: &[Put<'_>], done: Option<Lsn>) -> Cmd {
        let entity = &self.hierarchy.entities[entity];
        let mut cmd = self.scripts.apply.command(puts.len() + 1);
        cmd.arg(&self.hierarchy.l2.fence_key);
        for put in puts {
            cmd.arg(&put.key.key);
        }
        cmd.arg(&self.claim.epoch).arg(&self.done.hex16()).arg(&self.hw.hex16()).arg(&self.claim.takeover.hex16());
        cmd.arg(entity.ttl.as_millis() as u64).arg(u8::from(entity.populate));
        match done {
            Some(lsn) => cmd.arg(&lsn.hex16()),
            None => cmd.arg(""),
        };
        // All of one generation: see `calls`.
        let generation = puts.first().map(|put| put.generation).unwrap_or_default();
        let least = puts.iter().map(|put| put.lsn).min().unwrap_or_default();
        cmd.arg(&generation.hex16()).arg(&least.hex16());
        for put in puts {
            cmd.arg(put.text);
        }
        cmd
    }

    async fn send(&self, cmd: Cmd) -> Result<(), ApplyError> {
        let mut connection = self.claim.connection.clone();
        self.scripts.apply.run(&mut connection, &cmd).await?;
        Ok(())
    }

    /// Looks an entity's shape up; if it has changed, everything cached of the old one becomes unservable.
    ///
    /// # Errors
    /// If L2 or the source fails.
    pub async fn reshape(&mut self, id: usize) -> Result<(), ApplyError> {
        let entity = self.hierarchy.entities[id].clone();
        let shape = match self.shapes.look_up(&self.source, &entity).await? {
            Ok(shape) if entity.is_servable() && shape == *entity.shape() => return Ok(()),
            Ok(shape) => shape,
            Err(_) if !entity.is_servable() => return Ok(()),
            Err(why) => {
                // Its reads go to the database from now on, and nothing that is cached is served again.
                entity.set_servable(false);
                let generation = draw(&self.source).await?;
                self.claim.raise(&self.hierarchy, &self.scripts, &entity, generation).await?;
                error!(entity = entity.name, %why, "the entity is not cached any more; run `walcache check`");
                return Ok(());
            }
        };
        let generation = draw(&self.source).await?;
        // The shape first: see `Entity::reshape`.
        entity.reshape(shape);
        self.claim.raise(&self.hierarchy, &self.scripts, &entity, generation).await?;
        entity.set_servable(true);
        info!(
            entity = entity.name,
            generation = generation.0,
            "starting a new generation: the table's shape has changed"
        );
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
    }
}

/// Claims L2, again and again while Redis is away.
async fn claim_until(
    hierarchy: &Hierarchy,
    scripts: &Scripts,
    source: &Client,
    position: &Position<'_>,
    cancel: &CancellationToken,
) -> Result<Claim, ApplyError> {
    let mut backoff = crate::retry::forever(Duration::from_millis(50), Duration::from_secs(2));
    let mut said = false;
    loop {
        let attempt = tokio::select! {
            attempt = claim::claim(hierarchy, scripts, source, position) => attempt,
            () = cancel.cancelled() => return Err(ApplyError::Cancelled),
        };
        match attempt {
            Err(ApplyError::L2(e)) => {
                if !said {
                    warn!(error = %e, "claim L2: trying again until it answers");
                    said = true;
                }
                tokio::select! {
                    () = tokio::time::sleep(backoff.next()) => {}
                    () = cancel.cancelled() => return Err(ApplyError::Cancelled),
                }
            }
            other => return other,
        }
    }
}
