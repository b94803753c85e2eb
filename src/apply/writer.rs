//! Writes batches to L2 under a claim.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use indexmap::IndexMap;
use redis::Cmd;

use super::batch::{Batch, HashedKey, Op};
use super::claim::{Claim, Scripts};
use super::joining::is_joining;
use super::{ApplyError, Config};
use crate::cache::l2::L2;
use crate::cache::voids::Field;
use crate::entity::lifetime::Replaced;
use crate::entity::{Entity, Generation};
use crate::entry::Due;
use crate::failpoint::{self, Point};
use crate::lsn::Lsn;

/// Fields of the fence that are set by one call.
const FIELDS: usize = 1024;

/// The leader's hand on L2.
pub struct Writer {
    pub(super) l2: Arc<L2>,
    pub(super) scripts: Arc<Scripts>,
    pub(super) config: Config,
    pub(super) claim: Claim,
    /// The high-water mark in L2.
    hw: Lsn,
    /// What L2 has acknowledged as done.
    pub(super) done: Lsn,
}

/// One command of a batch.
enum Call<'a> {
    /// Put the newest images of keys.
    Put(Terms, &'a [Put<'a>]),
    /// Drop keys.
    Drop(&'a [&'a [u8]]),
}

/// A key's newest image.
#[derive(Clone, Copy)]
struct Put<'a> {
    key: &'a HashedKey,
    lsn: Lsn,
    text: &'a [u8],
}

/// What one call says of all of its images. Entities that are configured alike share it: what a call costs is paid once for
/// them all, however many they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Terms {
    generation: Generation,
    stale: Duration,
    populate: bool,
    replaced: Replaced,
}

/// A batch's entries, by what is done with them.
#[derive(Default)]
struct Sorted<'a> {
    puts: IndexMap<Terms, Vec<Put<'a>>>,
    drops: Vec<&'a [u8]>,
    /// To be dropped and read again, by position.
    requeried: Vec<usize>,
}

impl Writer {
    /// Writes under this claim.
    pub fn new(l2: Arc<L2>, scripts: Arc<Scripts>, config: Config, claim: Claim) -> Self {
        Writer { hw: claim.takeover, done: claim.done, l2, scripts, config, claim }
    }

    /// Whether a new generation of everything began with the claim.
    pub fn started_over(&self) -> bool {
        self.claim.started_over
    }

    /// Lets readers' connections count on what was written.
    pub fn acknowledge(&self) {
        self.l2.acknowledge(self.done);
    }

    /// Writes a batch's entries, and at last that it is done. Gives those of its dropped keys, by position, at which something
    /// stood, of entities that are to be read again.
    ///
    /// # Errors
    /// If another leads, L2 lost writes, or Redis fails.
    pub async fn write(&mut self, entities: &[Arc<Entity>], batch: &mut Batch) -> Result<Vec<usize>, ApplyError> {
        let now = Due::now();
        batch.seal(entities, self.config.max_value, now).await;
        let batch = &*batch;
        self.hw = batch.progress.unwrap_or_default().max(batch.high).max(self.hw);
        let done = batch.progress.filter(|lsn| *lsn > self.done);
        let sorted = Sorted::new(entities, batch);
        let calls = sorted.calls(self.config.script_keys);
        let mut stood = Vec::new();
        for keys in sorted.requeried.chunks(self.config.script_keys) {
            stood.extend(self.drop_each(batch, keys).await?);
        }
        if let (Some(lsn), [call @ Call::Put(..)]) = (done, &calls[..]) {
            // The usual small batch: its one script says itself that it is done.
            self.send(self.command(call, now, Some(lsn))).await?;
        } else {
            // Their order does not matter: each key is in one of them.
            let mut sent = FuturesUnordered::new();
            for call in &calls {
                if sent.len() >= self.config.in_flight {
                    sent.next().await.transpose()?;
                    failpoint::reached(Point::BetweenScripts);
                }
                sent.push(self.send(self.command(call, now, None)));
            }
            while let Some(written) = sent.next().await {
                written?;
            }
            drop(sent);
            if let Some(lsn) = done {
                failpoint::reached(Point::BeforeDone);
                // Only when all else was acknowledged.
                let fields = [("hw", self.hw), ("done", lsn)].map(|(f, lsn)| (f.to_owned(), lsn.hex16().to_vec()));
                self.claim.set(&self.l2, &self.scripts, Some(self.done), &fields).await?;
            }
        }
        self.done = done.unwrap_or(self.done);
        Ok(stood)
    }

    /// Drops keys one by one, and gives those at which something stood: an entry, or the lease of somebody who reads it.
    async fn drop_each(&self, batch: &Batch, keys: &[usize]) -> Result<Vec<usize>, ApplyError> {
        let mut pipe = redis::pipe();
        for (key, _) in keys.iter().filter_map(|at| batch.ops.get_index(*at)) {
            pipe.cmd("UNLINK").arg(&key.key);
        }
        let mut connection = self.claim.connection.clone();
        let dropped: Vec<u64> = pipe.query_async(&mut connection).await?;
        Ok(keys.iter().zip(dropped).filter(|(_, count)| *count > 0).map(|(at, _)| *at).collect())
    }

    /// Raises entities' generations in L2. Takes their present shapes for what the generation stands for; but for entities that
    /// have not joined yet, which whoever claims L2 next is not to take for known.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub async fn raise(&mut self, entities: &[&Entity], generation: Generation) -> Result<(), ApplyError> {
        let fields = |entity: &&Entity| {
            let shape = if is_joining(entity) { Vec::new() } else { super::claim::fingerprint(entity) };
            [(format!("gen:{}", entity.name), generation.hex16().to_vec()), (format!("shape:{}", entity.name), shape)]
        };
        let fields: Vec<Field> = entities.iter().flat_map(fields).collect();
        failpoint::reached(Point::BeforeRaise);
        for fields in fields.chunks(FIELDS) {
            self.claim.set(&self.l2, &self.scripts, None, fields).await?;
        }
        failpoint::reached(Point::AfterRaise);
        Ok(())
    }

    /// Takes the present shapes of entities that have joined for what their generations stand for.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub async fn have_joined(&mut self, entities: &[&Entity]) -> Result<(), ApplyError> {
        let field = |entity: &&Entity| (format!("shape:{}", entity.name), super::claim::fingerprint(entity));
        let fields: Vec<Field> = entities.iter().map(field).collect();
        for fields in fields.chunks(FIELDS) {
            self.claim.set(&self.l2, &self.scripts, None, fields).await?;
        }
        Ok(())
    }

    /// Raises the generation of all entities in L2.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub async fn raise_all(&mut self, generation: Generation) -> Result<(), ApplyError> {
        self.claim.set(&self.l2, &self.scripts, None, &[("gen".to_owned(), generation.hex16().to_vec())]).await
    }

    /// Writes floors of entries to the fence, and with them the high-water mark, at least `high`: who takes a lease from
    /// then on reads what is above them.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub async fn set_floors(&mut self, floors: &[Field], high: Lsn) -> Result<(), ApplyError> {
        self.hw = self.hw.max(high);
        for floors in floors.chunks(FIELDS) {
            let mut fields = floors.to_vec();
            fields.push(("hw".to_owned(), self.hw.hex16().to_vec()));
            self.claim.set(&self.l2, &self.scripts, Some(self.done), &fields).await?;
        }
        failpoint::reached(Point::Voided);
        Ok(())
    }

    /// Removes fields of the fence.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub async fn unset(&mut self, fields: &[Field]) -> Result<(), ApplyError> {
        for fields in fields.chunks(FIELDS) {
            self.claim.set(&self.l2, &self.scripts, Some(self.done), fields).await?;
        }
        Ok(())
    }

    fn command(&self, call: &Call<'_>, now: Due, done: Option<Lsn>) -> Cmd {
        match call {
            Call::Put(terms, puts) => self.put(terms, puts, now, done),
            // An invalidation needs no script: a miss is always right, whoever causes it.
            Call::Drop(keys) => redis::cmd("UNLINK").arg(keys).take(),
        }
    }

    fn put(&self, terms: &Terms, puts: &[Put<'_>], now: Due, done: Option<Lsn>) -> Cmd {
        let mut cmd = self.scripts.apply.command(puts.len() + 1);
        cmd.arg(&self.l2.fence_key);
        for put in puts {
            cmd.arg(&put.key.key);
        }
        cmd.arg(&self.claim.epoch).arg(&self.done.hex16()).arg(&self.hw.hex16()).arg(&self.claim.takeover.hex16());
        cmd.arg(now.before(terms.stale).as_millis()).arg(u8::from(terms.populate));
        match done {
            Some(lsn) => cmd.arg(&lsn.hex16()),
            None => cmd.arg(""),
        };
        let least = puts.iter().map(|put| put.lsn).min().unwrap_or_default();
        cmd.arg(&terms.generation.hex16()).arg(&least.hex16()).arg(match terms.replaced {
            Replaced::KeepsExpiry => "expiry",
            Replaced::KeepsDue => "due",
            Replaced::Own => "own",
        });
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
}

impl<'a> Sorted<'a> {
    fn new(entities: &[Arc<Entity>], batch: &'a Batch) -> Self {
        let mut sorted = Sorted::default();
        // Where an entity's images go: its generation rarely changes within a batch.
        let mut places: Vec<Option<(Generation, usize)>> = vec![None; entities.len()];
        for (at, (key, Op { entity: id, lsn, image, gaps, since })) in batch.ops.iter().enumerate() {
            let entity = &entities[*id];
            match image {
                Some((generation, text)) if *since > entity.images_after() && !gaps => {
                    let place = match places[*id] {
                        Some((of, place)) if of == *generation => place,
                        _ => {
                            let entry = sorted.puts.entry(Terms::of(entity, *generation));
                            let place = entry.index();
                            entry.or_default();
                            places[*id] = Some((*generation, place));
                            place
                        }
                    };
                    sorted.puts[place].push(Put { key, lsn: *lsn, text });
                }
                _ if entity.is_requeried() => sorted.requeried.push(at),
                _ => sorted.drops.push(&key.key),
            }
        }
        sorted
    }

    /// The commands that do it, each for a bounded number of keys.
    fn calls(&self, keys: usize) -> Vec<Call<'_>> {
        let drops = self.drops.chunks(keys).map(Call::Drop);
        let puts = self.puts.iter().flat_map(|(terms, puts)| puts.chunks(keys).map(|puts| Call::Put(*terms, puts)));
        drops.chain(puts).collect()
    }
}

impl Terms {
    fn of(entity: &Entity, generation: Generation) -> Self {
        let lifetime = &entity.lifetime;
        Terms { generation, stale: lifetime.stale, populate: entity.populate, replaced: lifetime.replaced() }
    }
}

#[cfg(test)]
mod tests;
