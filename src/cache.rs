//! The read path: L1 -> L2 -> Postgres, and the protocol that keeps every answer honest.
//!
//! It knows nothing of replication but the watermark, the fences and the generations, which whoever applies events
//! moves forward:
//!
//! - an **L1** entry is served only if the watermark read before it was fetched is at or after the last event on its
//!   cell of the fence ([`fence`]), in its entity's generation;
//! - an **L2** entry is served only over a connection whose fence shows all that was acknowledged before ([`l2`]);
//! - a **fill** is published only under a lease that no event has voided ([`fill`]);
//! - every answer carries two LSNs: what is certainly in it, and what is certainly not beyond it ([`answer`]).

pub mod answer;
pub mod bound;
pub mod fence;
pub mod fill;

mod hierarchy;
pub mod hot;
pub mod l1;
pub mod l2;
pub mod permits;
pub mod requery;
pub mod rows;
pub mod sweep;
pub mod tally;
pub mod voids;
pub mod warm;
pub mod watermark;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::answer::{Answer, Demand, Outcome, ReadError};

use self::bound::{Belief, Bound, Doubt};
use self::fill::{Fetched, Filler};
pub use self::hierarchy::Hierarchy;
use self::hot::HotSets;
use self::l1::Cached;
use crate::entity::{Entity, EntryKey};
use crate::entry::{self, Due, Stored};
use crate::lsn::Lsn;
use crate::metrics::{Answered, CacheMetrics, Tier};

/// What readers are promised, and how long they wait for it.
#[derive(Debug, Clone)]
pub struct Freshness {
    /// How stale answers may be, by entity.
    pub bounds: Vec<Bound>,
    /// How long a read with a demanded LSN waits for the watermark, unless it says otherwise.
    pub min_lsn_wait: Duration,
    /// The longest that it may say.
    pub min_lsn_wait_max: Duration,
}

/// The cache as readers see it.
pub struct Cache {
    hierarchy: Arc<Hierarchy>,
    by_name: HashMap<String, Arc<Entity>>,
    filler: Arc<Filler>,
    freshness: Freshness,
    hot: Arc<HotSets>,
    metrics: Arc<Vec<CacheMetrics>>,
}

/// Hash of a value's JSON text, equal on every instance.
pub fn etag(value: Option<&[u8]>) -> u64 {
    xxhash_rust::xxh3::xxh3_64(value.unwrap_or(b"null"))
}

impl Cache {
    /// A cache over a hierarchy, which tells the hot sets what is read.
    pub fn new(
        hierarchy: Arc<Hierarchy>,
        filler: Arc<Filler>,
        freshness: Freshness,
        hot: Arc<HotSets>,
        metrics: Arc<Vec<CacheMetrics>>,
    ) -> Self {
        let by_name = hierarchy.entities.iter().map(|e| (e.name.clone(), e.clone())).collect();
        Cache { hierarchy, by_name, filler, freshness, hot, metrics }
    }

    /// The entity of a name.
    pub fn entity(&self, name: &str) -> Option<&Arc<Entity>> {
        self.by_name.get(name)
    }

    /// All entities.
    pub fn entities(&self) -> &[Arc<Entity>] {
        &self.hierarchy.entities
    }

    /// Reads L1 only.
    pub fn read_l1(&self, entity: &Entity, key: &EntryKey, demand: &Demand) -> Option<Answer> {
        let belief = self.belief(entity, demand).ok()?;
        if demand.min_lsn.is_some_and(|min| belief.watermark < min) {
            return None;
        }
        let answer = self.lookup_l1(entity, key, &belief)?;
        self.hot.read(entity.id, key);
        Some(answer)
    }

    /// Reads a value from the first tier that may be believed, else from Postgres. L1 is asked only after a wait for a
    /// demanded LSN: [`Cache::read_l1`] comes first.
    ///
    /// # Errors
    /// If Postgres was needed and did not answer.
    pub async fn read(&self, entity: &Arc<Entity>, key: EntryKey, demand: Demand) -> Result<Answer, ReadError> {
        self.hot.read(entity.id, &key);
        let belief = match self.awaited_belief(entity, &demand).await {
            Ok(belief) => belief,
            Err(doubt) => return self.read_source(entity, key, &demand, doubt).await,
        };
        // Whoever calls has asked L1 before, but not in vain if the watermark had to be waited for.
        if let Some(answer) = demand.min_lsn.and_then(|_| self.lookup_l1(entity, &key, &belief)) {
            return Ok(answer);
        }
        let swept = self.hierarchy.voids.swept(entity);
        if let Some(l2) = &self.hierarchy.l2
            && let Ok(mut found) = l2.get(&[key.redis()]).await
            && let Some(answer) = self.accept(entity, &key, found.pop().flatten(), (&belief, swept)).await
        {
            return Ok(answer);
        }
        self.fill(entity, key, &demand, &belief).await
    }

    /// Reads many values of one entity; the results are in the order of the keys.
    ///
    /// # Errors
    /// As [`Cache::read`], for each key.
    pub async fn read_many(
        &self,
        entity: &Arc<Entity>,
        keys: Vec<EntryKey>,
        demand: Demand,
    ) -> Vec<Result<Answer, ReadError>> {
        keys.iter().for_each(|key| self.hot.read(entity.id, key));
        let belief = match self.awaited_belief(entity, &demand).await {
            Ok(belief) => belief,
            Err(doubt) => {
                let reads = keys.into_iter().map(|key| self.read_source(entity, key, &demand, doubt));
                return futures_util::future::join_all(reads).await;
            }
        };
        let mut answers: Vec<Option<Answer>> = keys.iter().map(|k| self.lookup_l1(entity, k, &belief)).collect();
        let missing: Vec<usize> = (0..keys.len()).filter(|i| answers[*i].is_none()).collect();
        if let Some(l2) = self.hierarchy.l2.as_ref().filter(|_| !missing.is_empty()) {
            let names: Vec<&str> = missing.iter().map(|i| keys[*i].redis()).collect();
            let swept = self.hierarchy.voids.swept(entity);
            if let Ok(found) = l2.get(&names).await {
                for (i, stored) in missing.into_iter().zip(found) {
                    answers[i] = self.accept(entity, &keys[i], stored, (&belief, swept)).await;
                }
            }
        }
        // What is still missing goes to Postgres together.
        let reads = answers.into_iter().zip(keys).map(async |(answer, key)| match answer {
            Some(answer) => Ok(answer),
            None => self.fill(entity, key, &demand, &belief).await,
        });
        futures_util::future::join_all(reads).await
    }

    /// Why the tiers must not be asked, or how far what they have may be believed.
    fn belief(&self, entity: &Entity, demand: &Demand) -> Result<Belief, Doubt> {
        if demand.fresh {
            return Err(Doubt::Asked);
        }
        if !entity.is_servable() {
            return Err(Doubt::Unservable);
        }
        let bound = &self.freshness.bounds[entity.id];
        // The generation first: see `Hierarchy::restart`.
        Belief::new(entity.generation(), &self.hierarchy.watermark, bound, demand)
    }

    /// As [`Cache::belief`], after waiting for the demanded LSN.
    async fn awaited_belief(&self, entity: &Entity, demand: &Demand) -> Result<Belief, Doubt> {
        let belief = self.belief(entity, demand)?;
        let Some(min) = demand.min_lsn.filter(|min| belief.watermark < *min) else { return Ok(belief) };
        let patience = demand.wait.unwrap_or(self.freshness.min_lsn_wait).min(self.freshness.min_lsn_wait_max);
        if !self.hierarchy.watermark.reached(min, patience).await {
            return Err(Doubt::Behind);
        }
        let belief = self.belief(entity, demand)?;
        // LSNs may have started over meanwhile.
        if belief.watermark >= min { Ok(belief) } else { Err(Doubt::Behind) }
    }

    fn lookup_l1(&self, entity: &Entity, key: &EntryKey, belief: &Belief) -> Option<Answer> {
        self.hierarchy.l1.as_ref()?;
        let cached = self.hierarchy.cached(entity, key);
        let mut stale = belief.stale;
        let cached = match cached {
            // Else none is held past its due time.
            Some(cached) if entity.lifetime.renews() => self.look_after(entity, key, cached, &mut stale),
            cached => cached,
        };
        let result = match (&cached, stale) {
            (None, _) => Answered::Miss,
            (Some(_), Some(_)) => Answered::Stale,
            (Some(_), None) => Answered::Hit,
        };
        self.metrics[entity.id].lookup(Tier::L1, result);
        let cached = cached?;
        Some(Answer {
            value: cached.value.clone(),
            etag: cached.etag,
            outcome: Outcome::HitL1,
            stale,
            applied: belief.watermark,
            read: belief.watermark.max(cached.hi),
        })
    }

    /// Sees to it that an entry of L1 is renewed that is due, or soon will be. One that is due is served from here, as stale,
    /// only where there is no L2: there a newer one may stand, or at least others learn when it does.
    fn look_after(
        &self,
        entity: &Entity,
        key: &EntryKey,
        cached: Arc<Cached>,
        stale: &mut Option<Duration>,
    ) -> Option<Arc<Cached>> {
        let now = Instant::now();
        if now >= cached.expires {
            if self.hierarchy.l2.as_ref().is_some_and(|l2| l2.is_trusted()) {
                return None;
            }
            *stale = (*stale).max(Some(now - cached.expires));
            self.metrics[entity.id].lifetime.overdue();
        } else if cached.expires - now > entity.ahead(cached.value.as_deref()) {
            return Some(cached);
        }
        self.filler.renew(&self.hierarchy.entities[entity.id], key, cached.due);
        Some(cached)
    }

    /// Takes what L2 has, if it may be served; `swept` was read before it was fetched.
    async fn accept(
        &self,
        entity: &Entity,
        key: &EntryKey,
        stored: Option<bytes::Bytes>,
        (belief, swept): (&Belief, Lsn),
    ) -> Option<Answer> {
        let generation = entity.generation();
        let decode = |stored| entry::decode(stored, self.filler.max_value());
        let Some(Stored::Entry(label, value)) = stored.map(decode) else {
            self.metrics[entity.id].lookup(Tier::L2, Answered::Miss);
            return None;
        };
        // See `entry`: a value of a transaction that is still being applied may be one that was never committed.
        if label.generation != generation
            || (label.split && belief.watermark < label.lo)
            || !self.hierarchy.stands(entity, key.redis(), label.lo, value.as_deref(), swept)
        {
            self.metrics[entity.id].lookup(Tier::L2, Answered::Miss);
            return None;
        }
        let now = Due::now();
        let overdue = label.due.since(now);
        if overdue.is_some_and(|past| past >= entity.lifetime.stale) {
            // By this clock; Redis has not expired it yet, or an event has written it that lives shorter.
            self.metrics[entity.id].lifetime.expired(Tier::L2, 1);
            self.metrics[entity.id].lookup(Tier::L2, Answered::Miss);
            return None;
        }
        let Ok(stale) = belief.judge() else {
            // L2 has taken its time.
            self.metrics[entity.id].lookup(Tier::L2, Answered::Miss);
            return None;
        };
        let stale = stale.max(overdue);
        if overdue.is_some() {
            self.metrics[entity.id].lifetime.overdue();
        }
        if entity.lifetime.renews() && label.due.from(now).is_some_and(|left| left <= entity.ahead(value.as_deref())) {
            self.filler.renew(&self.hierarchy.entities[entity.id], key, label.due);
        }
        let result = if stale.is_some() { Answered::Stale } else { Answered::Hit };
        self.metrics[entity.id].lookup(Tier::L2, result);
        let etag = etag(value.as_deref());
        let basis = (belief.generation, belief.watermark);
        self.hierarchy.keep(entity, key, value.clone(), etag, basis, (label.hi, label.due)).await;
        Some(Answer {
            value,
            etag,
            outcome: Outcome::HitL2,
            stale,
            applied: belief.watermark,
            read: belief.watermark.max(label.hi),
        })
    }

    async fn fill(
        &self,
        entity: &Arc<Entity>,
        key: EntryKey,
        demand: &Demand,
        belief: &Belief,
    ) -> Result<Answer, ReadError> {
        let fetched = self.filler.fetch(entity, key.clone(), false, belief.watermark).await?;
        if fetched.outcome != Outcome::HitL2 {
            self.metrics[entity.id].lookup(Tier::Source, Answered::Hit);
            return Ok(answer(fetched, None));
        }
        // L2 had it after all.
        match belief.judge() {
            Ok(stale) => Ok(answer(fetched, stale)),
            Err(doubt) => self.read_source(entity, key, demand, doubt).await,
        }
    }

    /// Reads Postgres itself.
    async fn read_source(
        &self,
        entity: &Arc<Entity>,
        key: EntryKey,
        demand: &Demand,
        doubt: Doubt,
    ) -> Result<Answer, ReadError> {
        self.metrics[entity.id].lookup(Tier::Source, Answered::Bypass);
        // No flight that has already started may be joined: the row's newest state is wanted.
        let fetched = self.filler.fetch(entity, key, true, Lsn::from_u64(u64::MAX)).await;
        let fetched = fetched.map_err(|error| match (error, doubt) {
            (
                error @ (ReadError::SourceUnavailable | ReadError::SourceTimeout(_) | ReadError::Contended(_)),
                Doubt::TooStale { age, limit },
            ) => ReadError::TooStale { age, limit, why: Box::new(error) },
            (error, _) => error,
        })?;
        match demand.min_lsn.filter(|min| fetched.hi < *min) {
            Some(demanded) => Err(ReadError::LsnAhead { demanded, current: fetched.hi }),
            // What came from Postgres just now is not stale, however far replication is behind.
            None => Ok(answer(fetched, None)),
        }
    }
}

fn answer(fetched: Fetched, stale: Option<Duration>) -> Answer {
    Answer {
        value: fetched.value,
        etag: fetched.etag,
        outcome: fetched.outcome,
        stale,
        applied: fetched.as_of,
        read: fetched.as_of.max(fetched.hi),
    }
}
