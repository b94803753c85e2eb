//! One check: see the argument in the module above.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::{error, warn};

use super::finding::{Finding, Labels, RowLabels};
use super::{Auditor, Shapes, Tier};
use crate::cache::answer::ReadError;
use crate::cache::etag;
use crate::cache::l1::Cached;
use crate::entity::{Entity, EntryKey, Generation, Shape};
use crate::entry::{self, Label, Stored};
use crate::lsn::Lsn;
use crate::metrics::{Audit, Tier as TierLabel};

/// How often it is looked whether a heartbeat has come back.
const POLL: Duration = Duration::from_millis(10);
/// Why a check has no verdict that is not made again at once: it has waited long enough.
pub(super) const LATE: &str = "replication did not come to where the row was read, in time";
/// Bytes of values that one step of a check holds, as far as sizes can be told beforehand.
const HELD_BYTES: usize = 4 << 20;
/// How often a repair is tried.
const REPAIRS: usize = 3;

/// An error with what caused it.
pub(super) fn said(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// What became of a check.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    /// Equal.
    Ok,
    /// See [`Finding`].
    Finding(Box<Finding>),
    /// It differed, and was changed or dropped meanwhile.
    Changed,
    /// It differed, and it cannot be told why.
    Inconclusive(&'static str),
    /// The row or the entry could not be read.
    Error(String),
}

impl Outcome {
    fn label(&self) -> Audit {
        match self {
            Outcome::Ok => Audit::Ok,
            Outcome::Finding(_) => Audit::Finding,
            Outcome::Changed => Audit::Changed,
            Outcome::Inconclusive(_) => Audit::Inconclusive,
            Outcome::Error(_) => Audit::Error,
        }
    }
}

/// A servable entry as it was found.
pub(super) enum Held {
    L1(Arc<Cached>),
    L2 { text: Bytes, label: Label, value: Option<Bytes> },
}

impl Held {
    pub(super) fn tier(&self) -> Tier {
        match self {
            Held::L1(_) => Tier::L1,
            Held::L2 { .. } => Tier::L2,
        }
    }

    pub(super) fn value(&self) -> Option<&Bytes> {
        match self {
            Held::L1(cached) => cached.value.as_ref(),
            Held::L2 { value, .. } => value.as_ref(),
        }
    }

    pub(super) fn labels(&self) -> Labels {
        let absent = self.value().is_none();
        match self {
            Held::L1(c) => Labels { lo: c.as_of, hi: c.hi, generation: c.generation.0, etag: c.etag, absent },
            Held::L2 { label: l, value, .. } => {
                Labels { lo: l.lo, hi: l.hi, generation: l.generation.0, etag: etag(value.as_deref()), absent }
            }
        }
    }
}

/// What must not change under a check.
pub(super) struct Before {
    pub(super) generation: Generation,
    shape: Arc<Shape>,
}

impl Before {
    /// Before anything is read; `None` while the entity's entries are not served, or about to be voided.
    pub(super) fn of(entity: &Entity) -> Option<Before> {
        let before = Before { generation: entity.generation(), shape: entity.shape() };
        (entity.is_servable() && !entity.is_reshaping()).then_some(before)
    }

    /// Whether all is as it was. A new shape is there before its generation: in between the entity says so.
    pub(super) fn stands(&self, entity: &Entity) -> bool {
        entity.is_servable()
            && !entity.is_reshaping()
            && Arc::ptr_eq(&self.shape, &entity.shape())
            && self.generation == entity.generation()
    }
}

/// An entry that differs from its row.
pub(super) struct Doubt {
    pub(super) key: EntryKey,
    pub(super) held: Held,
    pub(super) row: RowLabels,
}

impl<S: Shapes> Auditor<S> {
    /// Checks what a tier holds at these keys; counts, logs, and repairs if it is to. What is not there, or not
    /// servable, is passed over.
    pub(super) async fn check(
        &self,
        entity: &Arc<Entity>,
        tier: Tier,
        keys: Vec<EntryKey>,
        repair: bool,
    ) -> Vec<(EntryKey, Outcome)> {
        let Some(before) = Before::of(entity) else {
            let why = Outcome::Inconclusive("the entity is not cached, or its shape is just changing");
            return keys.into_iter().map(|key| (key, why.clone())).collect();
        };
        if entity.shape().query.as_ref().is_some_and(|query| !query.is_steady) {
            let why = Outcome::Inconclusive("the query's result changes by itself");
            return keys.into_iter().map(|key| (key, why.clone())).collect();
        }
        // Of all steps together.
        let deadline = Instant::now() + self.config.wait;
        let mut checked = Vec::with_capacity(keys.len());
        let mut keys = &keys[..];
        while !keys.is_empty() {
            // Few at a time where values are large: several copies of each are held until it is settled.
            let largest = self.largest[entity.id].load(Ordering::Relaxed).max(1);
            let count = (HELD_BYTES / largest).clamp(1, self.filler.most_behind()).min(keys.len());
            let (now, later) = keys.split_at(count);
            keys = later;
            match self.hold(entity, tier, now, before.generation).await {
                Ok(held) => {
                    let largest = held.iter().map(|(_, held)| held.value().map_or(0, Bytes::len)).max();
                    self.largest[entity.id].store(largest.unwrap_or(super::LARGEST_AT_FIRST), Ordering::Relaxed);
                    let mut doubts = Vec::new();
                    self.compare(entity, held, &mut checked, &mut doubts).await;
                    checked.extend(self.settle(entity, &before, doubts, repair, deadline).await);
                }
                Err(error) => checked.extend(now.iter().map(|key| (key.clone(), Outcome::Error(error.clone())))),
            }
        }
        let tier = match tier {
            Tier::L1 => TierLabel::L1,
            Tier::L2 => TierLabel::L2,
        };
        for (_, outcome) in &checked {
            self.metrics.check(tier, outcome.label());
        }
        checked
    }

    /// The servable entries at keys.
    async fn hold(
        &self,
        entity: &Entity,
        tier: Tier,
        keys: &[EntryKey],
        generation: Generation,
    ) -> Result<Vec<(EntryKey, Held)>, String> {
        let mut held = Vec::with_capacity(keys.len());
        match tier {
            Tier::L1 => held.extend(keys.iter().filter_map(|key| {
                let cached = self.hierarchy.cached(entity, key)?;
                Some((key.clone(), Held::L1(cached)))
            })),
            Tier::L2 => {
                let Some(l2) = &self.hierarchy.l2 else { return Ok(held) };
                let names: Vec<&str> = keys.iter().map(EntryKey::redis).collect();
                let texts = l2.texts(&names).await.map_err(|e| said(&e))?;
                held.extend(keys.iter().zip(texts).filter_map(|(key, text)| {
                    let text = text?;
                    match entry::decode(text.clone(), self.filler.max_value()) {
                        Stored::Entry(label, value)
                            if label.generation >= generation
                                && self.hierarchy.stands(
                                    entity,
                                    key.redis(),
                                    label.lo,
                                    value.as_deref(),
                                    self.hierarchy.voids.swept(entity),
                                ) =>
                        {
                            Some((key.clone(), Held::L2 { text, label, value }))
                        }
                        _ => None,
                    }
                }));
            }
        }
        Ok(held)
    }

    /// Reads the rows, one query at a time and behind all readers.
    pub(super) async fn rows(
        &self,
        entity: &Entity,
        keys: &[&EntryKey],
    ) -> Result<(Lsn, Vec<Option<Bytes>>), ReadError> {
        let turn = self.turn.lock().await;
        let found = self.filler.read_behind(entity, keys, self.config.patience).await?;
        drop(turn);
        Ok((found.hi, found.values))
    }

    async fn compare(
        &self,
        entity: &Arc<Entity>,
        held: Vec<(EntryKey, Held)>,
        checked: &mut Vec<(EntryKey, Outcome)>,
        doubts: &mut Vec<Doubt>,
    ) {
        if held.is_empty() {
            return;
        }
        let keys: Vec<&EntryKey> = held.iter().map(|(key, _)| key).collect();
        match self.rows(entity, &keys).await {
            Ok((hi, values)) => {
                for ((key, held), value) in held.into_iter().zip(values) {
                    if held.value() == value.as_ref() {
                        checked.push((key, Outcome::Ok));
                    } else {
                        doubts.push(Doubt { key, held, row: RowLabels::new(hi, value.as_ref()) });
                    }
                }
            }
            Err(ReadError::Overloaded) => {
                let why = "readers were waiting for Postgres all the time";
                checked.extend(held.into_iter().map(|(key, _)| (key, Outcome::Inconclusive(why))));
            }
            Err(error) => {
                let why = error.to_string();
                checked.extend(held.into_iter().map(|(key, _)| (key, Outcome::Error(why.clone()))));
            }
        }
    }

    /// Waits for the events that may be on their way, and judges what still differs.
    async fn settle(
        &self,
        entity: &Arc<Entity>,
        before: &Before,
        doubts: Vec<Doubt>,
        repair: bool,
        deadline: Instant,
    ) -> Vec<(EntryKey, Outcome)> {
        let Some(hi) = doubts.iter().map(|doubt| doubt.row.hi).max() else { return Vec::new() };
        let rows_read = Instant::now();
        let all = |doubts: Vec<Doubt>, outcome: Outcome| {
            doubts.into_iter().map(|doubt| (doubt.key, outcome.clone())).collect::<Vec<_>>()
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if !self.hierarchy.watermark.reached(hi, left).await {
            return all(doubts, Outcome::Inconclusive(LATE));
        }
        let standing = match self.still_stand(entity, &doubts).await {
            Ok(standing) => standing,
            Err(error) => return all(doubts, Outcome::Error(error)),
        };
        let (standing, gone): (Vec<_>, Vec<_>) = doubts.into_iter().zip(standing).partition(|(_, stands)| *stands);
        let unpaired = |pairs: Vec<(Doubt, bool)>| pairs.into_iter().map(|(doubt, _)| doubt).collect::<Vec<_>>();
        let (standing, mut settled) = (unpaired(standing), all(unpaired(gone), Outcome::Changed));
        if standing.is_empty() {
            return settled;
        }
        if !self.is_current_since(rows_read).await {
            settled.extend(all(standing, Outcome::Inconclusive(LATE)));
            return settled;
        }
        let current = self.shapes.are_current(entity).await;
        // Last of all: nothing that was read before may have been of another generation or shape.
        match (before.stands(entity), current) {
            (false, _) | (_, Some(false)) => settled.extend(all(standing, Outcome::Changed)),
            (true, None) => {
                settled.extend(all(standing, Outcome::Inconclusive("the table's shape could not be looked up")));
            }
            (true, Some(true)) => {
                for doubt in standing {
                    let finding = self.state(entity, &doubt, repair).await;
                    settled.push((doubt.key, Outcome::Finding(Box::new(finding))));
                }
            }
        }
        settled
    }

    /// Waits until a heartbeat has come back that was sent after `since`; says whether one has, in time. So the rows were
    /// read from the server whose log is followed, or a new generation has begun: see the module above.
    pub(super) async fn is_current_since(&self, since: Instant) -> bool {
        let current = async {
            while self.hierarchy.watermark.current_at().is_none_or(|at| at < since) {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(self.config.wait, current).await.is_ok()
    }

    /// Whether each entry is still the very same, and servable. The watermark has reached all the rows' `hi`.
    pub(super) async fn still_stand(&self, entity: &Entity, doubts: &[Doubt]) -> Result<Vec<bool>, String> {
        let in_l2 = || doubts.iter().filter(|doubt| doubt.held.tier() == Tier::L2);
        let names: Vec<&str> = in_l2().map(|doubt| doubt.key.redis()).collect();
        let mut texts = match &self.hierarchy.l2 {
            Some(l2) => l2.texts(&names).await.map_err(|e| said(&e))?,
            None => Vec::new(),
        }
        .into_iter();
        let watermark = self.hierarchy.watermark.load();
        Ok(doubts
            .iter()
            .map(|doubt| match &doubt.held {
                Held::L1(cached) => {
                    self.hierarchy.cached(entity, &doubt.key).is_some_and(|now| Arc::ptr_eq(&now, cached))
                }
                Held::L2 { text, label, value } => {
                    let now = texts.next().flatten();
                    now.is_some_and(|now| now == *text)
                        && (!label.split || watermark >= label.lo)
                        && self.hierarchy.stands(
                            entity,
                            doubt.key.redis(),
                            label.lo,
                            value.as_deref(),
                            self.hierarchy.voids.swept(entity),
                        )
                }
            })
            .collect())
    }

    /// States a finding, and repairs it if it is to.
    async fn state(&self, entity: &Arc<Entity>, doubt: &Doubt, repair: bool) -> Finding {
        let repaired = if repair { Some(self.repair(entity, doubt).await) } else { None };
        let (tier, cached, row) = (doubt.held.tier(), doubt.held.labels(), doubt.row);
        error!(
            entity = entity.name,
            key = doubt.key.key(),
            tier = tier.as_str(),
            cached_lo = %cached.lo,
            cached_hi = %cached.hi,
            cached_generation = cached.generation,
            cached_etag = format!("{:016x}", cached.etag),
            row_hi = %row.hi,
            row_etag = format!("{:016x}", row.etag),
            repaired,
            "an entry differs from Postgres, and no change is on its way that would explain it"
        );
        Finding { entity: entity.name.clone(), key: doubt.key.key().to_owned(), tier, cached, row, repaired }
    }

    /// Makes an entry unservable.
    async fn repair(&self, entity: &Entity, doubt: &Doubt) -> bool {
        if let (Held::L2 { text, .. }, Some(l2)) = (&doubt.held, &self.hierarchy.l2) {
            let mut dropped = false;
            for _ in 0..REPAIRS {
                match l2.drop_same(doubt.key.redis(), text).await {
                    // If other bytes stand there, the entry is gone all the same.
                    Ok(_) => dropped = true,
                    Err(error) => warn!(%error, key = doubt.key.redis(), "drop an entry from L2"),
                }
                if dropped {
                    break;
                }
            }
            if !dropped {
                return false;
            }
        }
        // For an entry of L2, too: a reader may have taken it just before it was dropped, and put it into L1 only now.
        // That reader has looked at the watermark before, so the fence that is raised here refuses what it brings.
        if let Some(l1) = &self.hierarchy.l1 {
            l1.invalidate(entity.id, doubt.key.hash, self.hierarchy.watermark.load()).await;
        }
        true
    }
}
