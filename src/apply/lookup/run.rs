//! Running lookups, in the round that is open.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::connection::{Connection, LookupError, View};
use super::spent::Spent;
use super::void::Voiding;
use super::{LONGEST_REST, Lookups, REST};
use crate::apply::batch::Lookup;
use crate::entity::EntryKey;
use crate::lsn::Lsn;
use crate::metrics::{ApplyMetrics, LookupVoid as Why};
use crate::plan::Cause;

/// Rows of keys that the lookups of one entity may find for a batch. Those of no key count, too: whatever lies beyond the last
/// row that is read may be one.
pub const MAX_KEYS: usize = 10_000;

impl Lookups {
    /// Runs lookups in the round that is open.
    pub(super) async fn run(&mut self, mut now: Vec<(Lookup, Lsn)>, batch: &mut Voiding<'_>) {
        let mut totals: HashMap<usize, usize> = HashMap::new();
        let mut found: Vec<(usize, Lsn, EntryKey)> = Vec::new();
        let began = Instant::now();
        let mut spent = Spent::default();
        while let (false, Some(round), Some(connection)) = (now.is_empty(), &mut self.round, &mut self.connection) {
            let mut over = None;
            let mut done = 0;
            spent.go_on(Instant::now());
            let each = |i: usize, rows: usize, keys: Vec<EntryKey>| {
                let (lookup, lsn) = &now[i];
                spent.on(lookup.entity, Instant::now());
                let total = totals.entry(lookup.entity).or_default();
                *total += rows;
                found.extend(keys.into_iter().map(|key| (lookup.entity, *lsn, key)));
                done = i + 1;
                over = (*total > MAX_KEYS).then_some(lookup.entity);
                over.is_none()
            };
            let left = (self.limits.timeout * 2).saturating_sub(began.elapsed());
            let ran = connection.run(&batch.hierarchy.entities, &now, MAX_KEYS + 1, left, each).await;
            let failed = ran.err().map(|(at, error)| (now[at.min(now.len() - 1)].0.entity, error));
            round.answered_bytes += now[..done].iter().map(|(lookup, _)| lookup.held()).sum::<usize>();
            round.answered.extend(now.drain(..done).map(|(lookup, _)| lookup));
            if let Some((entity, error)) = &failed {
                spent.on(*entity, Instant::now());
                if let Some((entity, lost)) = self.limits.lost(error, *entity, &spent) {
                    rest(&mut self.resting, entity, lost);
                }
            }
            let voided = match (over, failed) {
                (Some(entity), _) => self.void(&BTreeSet::from([entity]), Why::Keys, None, batch),
                (None, None) => continue,
                (None, Some((entity, error)))
                    if error.is_refusal()
                        && matches!(timeout(self.reach.timeout, connection.mend(&error)).await, Ok(Ok(()))) =>
                {
                    self.void(&BTreeSet::from([entity]), Why::of(&error), Some(&error), batch)
                }
                (None, Some((_, error))) => {
                    // Whatever was answered so far counts on lookups that will not be.
                    let all = round.entities.keys().copied().collect();
                    self.connection = None;
                    self.void(&all, Why::of(&error), Some(&error), batch)
                }
            };
            now.retain(|(lookup, _)| !voided.contains(&lookup.entity));
            found.retain(|(entity, ..)| !voided.contains(entity));
        }
        let emptied = self.void_emptied(totals.into_keys(), batch).await;
        found.retain(|(entity, ..)| !emptied.contains(entity));
        (self.witness)(&found);
        for (entity, lsn, key) in found {
            batch.batch.drop_found(entity, lsn, &key, Cause::Lookup);
        }
    }

    /// Voids those of these entities whose lookups were just answered by tables that look empty to the round's snapshot, and
    /// are not: once for a batch, however many lookups it has.
    async fn void_emptied(&mut self, asked: impl Iterator<Item = usize>, batch: &mut Voiding<'_>) -> BTreeSet<usize> {
        let (Some(round), Some(connection)) = (&self.round, &self.connection) else { return BTreeSet::new() };
        let mut readers: BTreeMap<u32, BTreeSet<usize>> = BTreeMap::new();
        for id in asked.filter(|id| round.entities.contains_key(id)) {
            for table in batch.hierarchy.entities[id].shape().read_by_lookups() {
                readers.entry(table).or_default().insert(id);
            }
        }
        if readers.is_empty() {
            return BTreeSet::new();
        }
        let tables: Vec<u32> = readers.keys().copied().collect();
        let late = |_| Err(LookupError::Late(self.reach.timeout));
        let told = timeout(self.reach.timeout, connection.emptied(&tables)).await.unwrap_or_else(late);
        match told {
            Ok(emptied) => {
                let entities = emptied.iter().filter_map(|table| readers.get(table)).flatten().copied().collect();
                self.void(&entities, Why::Emptied, None, batch)
            }
            Err(error) => {
                // Nothing that was answered can be relied on.
                let all: BTreeSet<usize> = round.entities.keys().copied().collect();
                self.connection = None;
                if let Some(lost) = self.limits.lost_by(&error) {
                    all.iter().for_each(|entity| rest(&mut self.resting, *entity, lost));
                }
                self.void(&all, Why::of(&error), Some(&error), batch)
            }
        }
    }

    pub(super) async fn open(&mut self) -> Result<View, LookupError> {
        let late = |_| LookupError::Late(self.reach.timeout);
        if self.connection.as_ref().is_none_or(Connection::is_closed) {
            // In bounded time: see there.
            self.connection = Some(Connection::open(&self.reach).await?);
        }
        let Some(connection) = &mut self.connection else { return Err(LookupError::Elsewhere) };
        timeout(self.reach.timeout, connection.begin()).await.map_err(late)?
    }

    /// Ends the round's transaction if the round is over.
    pub(super) async fn close(&mut self, metrics: &ApplyMetrics) {
        if let Some(round) = self.round.take_if(|round| round.over) {
            metrics.lookup_round(round.since.elapsed());
            if let Some(connection) = &self.connection
                && !matches!(timeout(self.reach.timeout, connection.end()).await, Ok(Ok(())))
            {
                self.connection = None;
            }
        }
    }
}

/// An entity's lookups are not run for some time, after so much was lost.
fn rest(resting: &mut HashMap<usize, Instant>, entity: usize, lost: Duration) {
    resting.insert(entity, Instant::now() + (REST * lost).min(LONGEST_REST));
}
