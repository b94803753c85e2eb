//! Lookups: which entries a changed row belongs to, where the row does not name their keys.
//!
//! A rule's lookup is run on the primary after the gate, so it sees what the event did. But it may see later
//! transactions, too; one of those may have cut the link by which it would have found an entry. That transaction's own
//! rules void the entry, but only once it is applied. So lookups are run in *rounds*:
//!
//! - A round is one snapshot. All lookups of transactions that it sees are run in it, those of later batches, too. What
//!   they find is dropped like any other entry.
//! - Until everything that the snapshot sees has been applied, nothing is published: neither W, nor `done`, nor what the
//!   slot may confirm. The high-water mark goes on, as with transactions in pieces.
//! - Lookups of transactions that it does not see wait for the next round, which opens when this one is over, and sees
//!   them all. What is published until then ends before their batch.
//!
//! Each round publishes the batch that has opened it, so W does not starve. Where a round would cost too much, or a lookup
//! fails, all of the entity's entries are voided instead: a miss is always right. Whatever its transactions changed
//! before, as far as the snapshot sees it, needs no lookup any more.
//!
//! Why one snapshot: let `c` look up an entry, `d` cut the link to it, and find it by another link, and `e` cut that. A
//! lookup for `c` that sees `d` finds nothing; one for `d` that sees `e`, neither. Were `d` asked later than `c`, and
//! published what `c`'s snapshot sees, the entry would still stand, for `e` is still to come.

mod connection;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use tokio::time::timeout;
use tracing::warn;

use self::connection::{Connection, Reach, View};
pub use self::connection::{LookupError, Text, key, statement};
use super::batch::{Asked, Batch, Lookup};
use super::{Applier, ApplyError, LookUpShape};
use crate::cache::Hierarchy;
use crate::config::SourceConfig;
use crate::entity::EntryKey;
use crate::failpoint::{self, Point, Rule};
use crate::lsn::Lsn;
use crate::metrics::{ApplyMetrics, LookupVoid as Why};
use crate::plan::Cause;
use crate::source::Server;

/// Keys that the lookups of one entity may find for a batch.
const MAX_KEYS: usize = 10_000;

/// How often it is said of an entity that its lookups have failed.
const SAY: Duration = Duration::from_secs(10);

/// How far lookups may go.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Different lookups of one entity in a round.
    pub max_lookups: usize,
    /// Bytes of log between a batch and the end of what a round's snapshot sees.
    pub max_distance: u64,
    /// How long one lookup may take; and all of a batch, twice that.
    pub timeout: Duration,
    /// How long a round may be open.
    pub hold: Duration,
}

/// When a round wants something without a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Never.
    Never,
    /// At once: the stream is to be moved on to the end of what it sees.
    Nudge,
    /// Then it is given up.
    Until(Instant),
}

/// Waits for ever where there is no such time.
pub(super) async fn until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then.into()).await,
        None => std::future::pending().await,
    }
}

/// Runs lookups, for one session.
pub struct Lookups {
    limits: Limits,
    reach: Reach,
    connection: Option<Connection>,
    round: Option<Round>,
    /// Waiting for the next round, with the smallest label of each.
    deferred: IndexMap<Lookup, Lsn>,
    /// Up to here nothing waits, once the batch in hand is written.
    answered: Lsn,
    /// Up to here everything is applied but for what waits, once the batch in hand is written.
    applied: Lsn,
    /// Entities that were voided: what this view sees of them needs no lookup.
    spared: Vec<(usize, View)>,
    /// Commit times of what is not published yet, and up to where it goes.
    commits: VecDeque<(Lsn, Vec<i64>)>,
    said: HashMap<usize, Instant>,
}

struct Round {
    view: View,
    since: Instant,
    /// Whether the stream was moved on.
    nudged: bool,
    /// Whether everything is applied that it sees, or nothing depends on it any more.
    over: bool,
    answered: HashSet<Lookup>,
    /// How many lookups were answered, of each entity that was not voided.
    entities: HashMap<usize, usize>,
}

impl Lookups {
    /// For a session whose stream comes from `server`, where that tells.
    pub fn new(limits: Limits, source: SourceConfig, server: Option<Server>) -> Self {
        Lookups {
            limits,
            reach: Reach { source, server, timeout: limits.timeout },
            connection: None,
            round: None,
            deferred: IndexMap::new(),
            answered: Lsn::ZERO,
            applied: Lsn::ZERO,
            spared: Vec::new(),
            commits: VecDeque::new(),
            said: HashMap::new(),
        }
    }

    /// Whether batches without lookups must go through here, too.
    pub(super) fn are_open(&self) -> bool {
        self.round.is_some() || !self.deferred.is_empty()
    }

    /// Whether a new round must be opened.
    fn are_due(&self) -> bool {
        self.round.is_none() && !self.deferred.is_empty()
    }

    fn hold(&self) -> Hold {
        match (&self.round, self.deadline()) {
            (Some(round), _) if !round.nudged => Hold::Nudge,
            (_, Some(then)) => Hold::Until(then),
            (_, None) => Hold::Never,
        }
    }

    /// When the round that is open is given up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.round.as_ref().map(|round| round.since + self.limits.hold)
    }

    /// Runs a batch's lookups, and those that have waited if a round begins; adds what is to be dropped to the batch, and
    /// sets its progress to what may be published once it is written.
    async fn answer(&mut self, batch: &mut Batch, hierarchy: &Hierarchy, metrics: &ApplyMetrics) {
        let published = hierarchy.watermark.load();
        (self.answered, self.applied) = (self.answered.max(published), self.applied.max(published));
        let progress = batch.progress.take();
        let mut asked = std::mem::take(&mut batch.lookups);
        // An entity that is not cached is let back into the tiers by a new generation, and what is read then has all that has
        // passed the gate by now.
        asked.retain(|lookup, _| hierarchy.entities[lookup.entity].is_servable());
        asked.retain(|lookup, asked| {
            asked.xids.retain(|xid| !self.is_spared(lookup.entity, *xid));
            !asked.xids.is_empty()
        });
        let mut batch = Voiding { batch, hierarchy, metrics };
        let mut now = Vec::new();
        if self.round.is_none() && !(asked.is_empty() && self.deferred.is_empty()) {
            let at = progress.unwrap_or_default().max(batch.batch.high).max(self.applied);
            let entities = asked.keys().chain(self.deferred.keys()).map(|lookup| lookup.entity).collect();
            match self.open().await {
                Ok(view) if view.end.bytes_since(at) <= self.limits.max_distance => {
                    self.round = Some(Round::new(view));
                    now.extend(std::mem::take(&mut self.deferred));
                }
                Ok(view) => {
                    self.round = Some(Round::new(view));
                    self.void(&entities, Why::Distance, None, &mut batch);
                    asked.clear();
                }
                Err(error) => {
                    self.connection = None;
                    self.void(&entities, Why::of(&error), Some(&error), &mut batch);
                    asked.clear();
                }
            }
        }
        self.sort(asked, &mut now, &mut batch);
        self.run(now, &mut batch).await;
        self.conclude(progress, published, batch.batch);
    }

    /// Which lookups are for this round, and which for the next.
    fn sort(&mut self, asked: IndexMap<Lookup, Asked>, now: &mut Vec<(Lookup, Lsn)>, batch: &mut Voiding<'_>) {
        let Some(round) = &mut self.round else { return };
        let mut crowded = BTreeSet::new();
        for (lookup, Asked { lsn, xids }) in asked {
            let seen = xids.iter().filter(|xid| round.view.snapshot.sees(**xid)).count();
            if seen < xids.len() {
                let before = self.deferred.entry(lookup.clone()).or_insert(lsn);
                *before = lsn.min(*before);
            }
            if seen > 0 {
                now.push((lookup, lsn));
            }
        }
        now.retain(|(lookup, _)| !round.answered.contains(lookup));
        for (lookup, _) in now.iter() {
            let count = round.entities.entry(lookup.entity).or_default();
            *count += 1;
            if *count > self.limits.max_lookups {
                crowded.insert(lookup.entity);
            }
        }
        let mut waiting: HashMap<usize, usize> = HashMap::new();
        for lookup in self.deferred.keys() {
            *waiting.entry(lookup.entity).or_default() += 1;
        }
        let too_many: Vec<usize> = waiting
            .into_iter()
            .filter(|(_, count)| *count > self.limits.max_lookups)
            .map(|(entity, _)| entity)
            .collect();
        if !too_many.is_empty() {
            // More of them may be to come, of a transaction that this round does not see: only a round that sees it can
            // spare them.
            crowded.extend(too_many.into_iter().chain(round.entities.keys().copied()));
        }
        self.void(&crowded, Why::Many, None, batch);
        now.retain(|(lookup, _)| !crowded.contains(&lookup.entity));
    }

    /// Runs lookups in the round that is open.
    async fn run(&mut self, mut now: Vec<(Lookup, Lsn)>, batch: &mut Voiding<'_>) {
        let mut totals: HashMap<usize, usize> = HashMap::new();
        let mut found: Vec<(usize, Lsn, EntryKey)> = Vec::new();
        let began = Instant::now();
        while let (false, Some(round), Some(connection)) = (now.is_empty(), &mut self.round, &mut self.connection) {
            let mut over = None;
            let mut done = 0;
            let each = |i: usize, keys: Vec<EntryKey>| {
                let (lookup, lsn) = &now[i];
                let total = totals.entry(lookup.entity).or_default();
                *total += keys.len();
                found.extend(keys.into_iter().map(|key| (lookup.entity, *lsn, key)));
                done = i + 1;
                over = (*total > MAX_KEYS).then_some(lookup.entity);
                over.is_none()
            };
            let left = (self.limits.timeout * 2).saturating_sub(began.elapsed());
            let ran = connection.run(&batch.hierarchy.entities, &now, MAX_KEYS + 1, left, each).await;
            let failed = ran.err().map(|(at, error)| (now[at.min(now.len() - 1)].0.entity, error));
            round.answered.extend(now.drain(..done).map(|(lookup, _)| lookup));
            let voided = match (over, failed) {
                (Some(entity), _) => self.void(&BTreeSet::from([entity]), Why::Keys, None, batch),
                (None, None) => continue,
                (None, Some((entity, error)))
                    if error.is_refusal()
                        && matches!(timeout(self.reach.timeout, connection.mend()).await, Ok(Ok(()))) =>
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
        for (entity, lsn, key) in found {
            batch.batch.void(entity, lsn, &key, Cause::Lookup);
        }
    }

    /// Voids all that depends on the round that is open, so that it need not be held any longer.
    fn void_round(&mut self, batch: &mut Batch, hierarchy: &Hierarchy, metrics: &ApplyMetrics) {
        let Some(round) = &self.round else { return };
        let entities = round.entities.keys().copied().collect();
        self.void(&entities, Why::Held, None, &mut Voiding { batch, hierarchy, metrics });
    }

    /// What may be published once the batch is written.
    fn conclude(&mut self, progress: Option<Lsn>, published: Lsn, batch: &mut Batch) {
        self.applied = self.applied.max(progress.unwrap_or_default());
        if self.deferred.is_empty() {
            self.answered = self.applied;
        }
        if let Some(round) = &mut self.round {
            round.over = self.applied >= round.view.end || round.entities.is_empty();
        }
        let held = self.round.as_ref().is_some_and(|round| !round.over) && !failpoint::is_off(Rule::Hold);
        batch.progress = (!held && self.answered > published).then_some(self.answered);
        if failpoint::is_off(Rule::Hold) {
            batch.progress = progress;
        }
        self.spared.retain(|(_, view)| self.applied < view.end);
        self.commits.push_back((self.applied, std::mem::take(&mut batch.commits)));
        while self.commits.front().is_some_and(|(lsn, _)| batch.progress >= Some(*lsn)) {
            batch.commits.extend(self.commits.pop_front().into_iter().flat_map(|(_, commits)| commits));
        }
    }

    fn is_spared(&self, entity: usize, xid: u32) -> bool {
        self.spared.iter().any(|(id, view)| *id == entity && view.snapshot.sees(xid))
    }

    async fn open(&mut self) -> Result<View, LookupError> {
        let late = |_| LookupError::Late(self.reach.timeout);
        if self.connection.as_ref().is_none_or(Connection::is_closed) {
            // In bounded time: see there.
            self.connection = Some(Connection::open(&self.reach).await?);
        }
        let Some(connection) = &self.connection else { return Err(LookupError::Elsewhere) };
        timeout(self.reach.timeout, connection.begin()).await.map_err(late)?
    }

    /// Ends the round's transaction if the round is over.
    async fn close(&mut self, metrics: &ApplyMetrics) {
        if let Some(round) = self.round.take_if(|round| round.over) {
            metrics.lookup_round(round.since.elapsed());
            if let Some(connection) = &self.connection
                && !matches!(timeout(self.reach.timeout, connection.end()).await, Ok(Ok(())))
            {
                self.connection = None;
            }
        }
    }

    /// All entries of these entities are voided with the batch. From then on whatever is read has all that has passed the gate,
    /// and all that the round sees: neither needs a lookup.
    fn void(
        &mut self,
        entities: &BTreeSet<usize>,
        why: Why,
        error: Option<&LookupError>,
        to: &mut Voiding<'_>,
    ) -> BTreeSet<usize> {
        for &id in entities {
            if let Some(round) = &mut self.round {
                round.entities.remove(&id);
                self.spared.push((id, round.view.clone()));
            }
            self.deferred.retain(|lookup, _| lookup.entity != id);
            to.batch.discard_entity(id, Cause::Lookup);
            to.metrics.lookup_void(id, why);
            let now = Instant::now();
            if self.said.get(&id).is_none_or(|said| now.duration_since(*said) >= SAY) {
                self.said.insert(id, now);
                let error = error.map(tracing::field::display);
                let entity = to.hierarchy.entities[id].name.as_str();
                warn!(entity, error, "voiding all entries instead of looking up which are concerned: {}", why.text());
            }
        }
        entities.clone()
    }
}

/// A batch to which is added what is voided.
struct Voiding<'a> {
    batch: &'a mut Batch,
    hierarchy: &'a Hierarchy,
    metrics: &'a ApplyMetrics,
}

impl Round {
    fn new(view: View) -> Self {
        Round {
            view,
            since: Instant::now(),
            nudged: false,
            over: false,
            answered: HashSet::new(),
            entities: HashMap::new(),
        }
    }
}

impl Why {
    fn of(error: &LookupError) -> Why {
        if error.is_late() { Why::Late } else { Why::Failed }
    }
}

impl<L: LookUpShape> Applier<L> {
    /// Applies a batch with lookups, or one while a round is open; gives what may be confirmed.
    pub(super) async fn apply_in_round(&mut self, mut batch: Batch) -> Result<Option<Lsn>, ApplyError> {
        let mut published = None;
        loop {
            let cancel = self.cancel.clone();
            let answer = self.lookups.answer(&mut batch, &self.hierarchy, &self.metrics.apply);
            tokio::select! {
                () = answer => {}
                () = cancel.cancelled() => return Err(ApplyError::Cancelled),
            }
            published = self.perform(&mut batch).await?.or(published);
            failpoint::reached(Point::Held);
            self.lookups.close(&self.metrics.apply).await;
            batch = Batch::default();
            if self.lookups.deadline().is_some_and(|then| then <= Instant::now()) {
                // Batches keep coming, so nobody else looks at the clock.
                self.lookups.void_round(&mut batch, &self.hierarchy, &self.metrics.apply);
            } else if !self.lookups.are_due() {
                return Ok(published);
            }
            // What has waited is visible by now: the next round sees it all.
        }
    }

    /// When a round wants something without a batch.
    pub fn hold(&self) -> Hold {
        self.lookups.hold()
    }

    /// Does what a round wants; gives what may be confirmed.
    ///
    /// # Errors
    /// As [`Applier::apply`].
    pub async fn go_on(&mut self, hold: Hold) -> Result<Option<Lsn>, ApplyError> {
        let Some(round) = &mut self.lookups.round else { return Ok(None) };
        match hold {
            Hold::Never => Ok(None),
            Hold::Nudge => {
                round.nudged = true;
                // Else an idle server's stream would reach what the round sees only with the next heartbeat.
                let beat = self.source.query_one(include_str!("../../sql/heartbeat.sql"), &[]);
                if let Ok(Err(e)) = timeout(self.lookups.limits.timeout, beat).await {
                    return Err(ApplyError::Source(e));
                }
                Ok(None)
            }
            Hold::Until(_) => self.give_up_round().await,
        }
    }

    /// Voids what depends on the round that is open, so that it need not be waited for; gives what may be confirmed.
    pub(super) async fn give_up_round(&mut self) -> Result<Option<Lsn>, ApplyError> {
        if self.lookups.round.is_none() {
            return Ok(None);
        }
        let mut batch = Batch::default();
        self.lookups.void_round(&mut batch, &self.hierarchy, &self.metrics.apply);
        self.apply_in_round(batch).await
    }
}
