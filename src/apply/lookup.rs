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
mod rounds;
mod run;
mod spent;
mod statement;
mod void;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use indexmap::IndexMap;

pub use self::connection::LookupError;
use self::connection::{Connection, LOCK_PATIENCE, Reach, View};
pub(super) use self::rounds::until;
pub use self::run::MAX_KEYS;
use self::spent::Spent;
pub use self::statement::{key, statement};
use self::void::Voiding;
use super::batch::{Asked, Batch, Lookup};
use crate::cache::Hierarchy;
use crate::config::SourceConfig;
use crate::entity::EntryKey;
use crate::failpoint::{self, Rule};
use crate::lsn::Lsn;
use crate::metrics::{ApplyMetrics, LookupVoid as Why};
use crate::source::Server;

/// What has taken time in vain is not tried again for so many times as long: at most a tenth of the time is lost so.
const REST: u32 = 10;
const LONGEST_REST: Duration = Duration::from_secs(60);

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
    /// Bytes of lookups that wait, or that a round has answered.
    pub max_bytes: usize,
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

/// Is given what lookups have found: the entity, where the change's transaction ends, and the entry that is dropped.
pub type Witness = Box<dyn Fn(&[(usize, Lsn, EntryKey)]) + Send + Sync>;

/// Runs lookups, for one session.
pub struct Lookups {
    limits: Limits,
    reach: Reach,
    witness: Witness,
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
    /// Entities whose lookups are not run before that time.
    resting: HashMap<usize, Instant>,
    /// The database is not asked before that time.
    away_until: Option<Instant>,
}

struct Round {
    view: View,
    since: Instant,
    /// Whether the stream was moved on.
    nudged: bool,
    /// Whether everything is applied that it sees, or nothing depends on it any more.
    over: bool,
    /// What need not be asked again in it. Each was asked for the smallest label that wanted it then: that is enough for later
    /// ones only because entries are dropped whatever their labels (`UNLINK`, not the script that compares), and because W
    /// stays below that label, and so do the fetches of what L1 holds, until the round is over. Whatever is read after the
    /// drop has all that the round sees.
    answered: HashSet<Lookup>,
    /// How many bytes these are.
    answered_bytes: usize,
    /// How many lookups were answered, of each entity that was not voided.
    entities: HashMap<usize, usize>,
}

impl Lookups {
    /// For a session whose stream comes from `server`, where that tells.
    pub fn new(limits: Limits, source: SourceConfig, server: Option<Server>, witness: Witness) -> Self {
        Lookups {
            limits,
            reach: Reach { source, server, timeout: limits.timeout },
            witness,
            connection: None,
            round: None,
            deferred: IndexMap::new(),
            answered: Lsn::ZERO,
            applied: Lsn::ZERO,
            spared: Vec::new(),
            commits: VecDeque::new(),
            said: HashMap::new(),
            resting: HashMap::new(),
            away_until: None,
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
        let resting = self.resting(&asked);
        self.void(&resting, Why::Resting, None, &mut batch);
        asked.retain(|lookup, _| !resting.contains(&lookup.entity));
        if self.round.is_none() && !(asked.is_empty() && self.deferred.is_empty()) {
            let at = progress.unwrap_or_default().max(batch.batch.high).max(self.applied);
            let entities = asked.keys().chain(self.deferred.keys()).map(|lookup| lookup.entity).collect();
            let began = Instant::now();
            let opened =
                if self.away_until.is_some_and(|until| began < until) { None } else { Some(self.open().await) };
            match opened {
                None => {
                    self.void(&entities, Why::Resting, None, &mut batch);
                    asked.clear();
                }
                Some(Ok(view)) if view.end.bytes_since(at) <= self.limits.max_distance => {
                    self.round = Some(Round::new(view));
                    now.extend(std::mem::take(&mut self.deferred));
                }
                Some(Ok(view)) => {
                    self.round = Some(Round::new(view));
                    self.void(&entities, Why::Distance, None, &mut batch);
                    asked.clear();
                }
                Some(Err(error)) => {
                    self.connection = None;
                    self.away_until = Some(Instant::now() + (REST * began.elapsed()).min(LONGEST_REST));
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
        let held: usize = self.deferred.keys().chain(now.iter().map(|(lookup, _)| lookup)).map(Lookup::held).sum();
        let is_too_much = round.answered_bytes + held > self.limits.max_bytes;
        let too_many: Vec<usize> = waiting
            .into_iter()
            .filter(|(_, count)| is_too_much || *count > self.limits.max_lookups)
            .map(|(entity, _)| entity)
            .collect();
        if is_too_much {
            crowded.extend(round.entities.keys().copied());
            // All entities of the round are voided: nothing more is asked in it.
            round.answered = HashSet::new();
            round.answered_bytes = 0;
        }
        if !too_many.is_empty() {
            // More of them may be to come, of a transaction that this round does not see: only a round that sees it can
            // spare them.
            crowded.extend(too_many.into_iter().chain(round.entities.keys().copied()));
        }
        self.void(&crowded, Why::Many, None, batch);
        now.retain(|(lookup, _)| !crowded.contains(&lookup.entity));
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

    /// Those of the entities whose lookups have taken time in vain not long ago.
    fn resting(&mut self, asked: &IndexMap<Lookup, Asked>) -> BTreeSet<usize> {
        if self.resting.is_empty() {
            return BTreeSet::new();
        }
        let now = Instant::now();
        self.resting.retain(|_, until| now < *until);
        asked.keys().map(|lookup| lookup.entity).filter(|entity| self.resting.contains_key(entity)).collect()
    }

    fn is_spared(&self, entity: usize, xid: u32) -> bool {
        self.spared.iter().any(|(id, view)| *id == entity && view.snapshot.sees(xid))
    }
}

impl Round {
    fn new(view: View) -> Self {
        Round {
            view,
            since: Instant::now(),
            nudged: false,
            over: false,
            answered: HashSet::new(),
            answered_bytes: 0,
            entities: HashMap::new(),
        }
    }
}

impl Limits {
    /// Which entity has cost everybody how much time by an error of a lookup of `in_flight`. Where all lookups together were too
    /// slow, that is the one that has taken most of the time, not the one whose turn it was in the end.
    fn lost(&self, error: &LookupError, in_flight: usize, spent: &Spent) -> Option<(usize, Duration)> {
        match error {
            LookupError::Late(_) => spent.most(),
            error => self.lost_by(error).map(|lost| (in_flight, lost)),
        }
    }

    /// How much time one statement that has failed has cost. What is refused at once costs none.
    fn lost_by(&self, error: &LookupError) -> Option<Duration> {
        match error {
            error if error.is_late() => Some(self.timeout),
            error if error.is_locked() => Some(LOCK_PATIENCE),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
