//! Lookups: how a leader finds the entries that a changed row belongs to when the row does not name their key.
//!
//! A lookup is run on the primary after the gate, so it sees what the event did; but it may see later transactions,
//! too, and one of those may have cut the link by which an entry would have been found. That transaction's own rules
//! void the entry, once it is applied. So a *round* is one snapshot, in which all lookups of transactions that it shows
//! are run; nothing is published before everything that the snapshot shows has been applied. Transactions that it does
//! not show wait for the next round.

use crate::leader::Leader;
use crate::rule::Rule;
use crate::scenario::{Change, Lsn, Scenario, end, piece_label};
use crate::world::World;

/// One snapshot, in which lookups are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Round {
    /// Bit `i`: it shows transaction `i`.
    pub sees: u8,
    /// How many transactions were in the WAL after it was taken: it shows none beyond.
    pub upto: u8,
}

/// What a leader has looked up, and what not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lookups {
    pub round: Option<Round>,
    /// Bit `i`: transaction `i` was applied but for its lookups, which wait for the next round.
    pub deferred: u8,
    /// Up to here nothing waits.
    answered: u8,
    /// Up to here everything was published, and may be confirmed.
    pub published: u8,
    /// Bit `i`: transaction `i` was visible before all entries were voided, so it has no lookups.
    spared: u8,
}

impl Lookups {
    /// Of a leader that begins after the first `count` transactions.
    pub const fn from(count: u8) -> Self {
        Lookups { round: None, deferred: 0, answered: count, published: count, spared: 0 }
    }

    /// Whether a new round must be opened before anything else.
    pub fn are_due(&self) -> bool {
        self.round.is_none() && self.deferred != 0
    }

    /// Whether everything is answered and published.
    pub fn are_over(&self) -> bool {
        self.round.is_none() && self.deferred == 0
    }
}

/// Without any of these, no lookup waits for another round.
const WAITING: [Rule; 3] = [Rule::LookupAfterGate, Rule::LookupSeesItsTransaction, Rule::OneSnapshotARound];

impl Leader {
    /// The transactions that need lookups with a batch up to `to`: its own, and those that waited.
    fn wanted(&self, s: &Scenario, to: u8) -> u8 {
        let own = (self.next..to).filter(|&i| s.is_looked_up(i)).fold(0, |mask, i| mask | 1 << i);
        (own | self.lookups.deferred) & !self.lookups.spared
    }

    /// Whether a batch up to `to` needs lookups.
    pub fn looks_up(&self, s: &Scenario, to: u8) -> bool {
        self.wanted(s, to) != 0
    }

    /// The transactions of a batch up to `to` whose lookups must wait for the next round.
    fn waiting(&self, s: &Scenario, to: u8) -> u8 {
        match self.lookups.round {
            Some(round) if WAITING.iter().all(|&rule| s.keeps(rule)) => self.wanted(s, to) & !round.sees,
            _ => 0,
        }
    }

    /// What may be published once a batch up to `to` is in the tiers.
    pub fn publishable(&self, s: &Scenario, to: u8) -> Option<u8> {
        let held = self.lookups.round.is_some_and(|round| to < round.upto) && s.keeps(Rule::HeldUntilSeen);
        let answered = if self.waiting(s, to) == 0 { to } else { self.lookups.answered };
        (!held).then_some(answered)
    }

    /// A batch up to `to` is in the tiers.
    pub fn finish(&mut self, s: &Scenario, to: u8) {
        let published = self.publishable(s, to);
        let waiting = self.waiting(s, to);
        if waiting == 0 {
            self.lookups.answered = to;
        }
        self.lookups.deferred = waiting;
        if self.lookups.round.is_some_and(|round| to >= round.upto) {
            self.lookups.round = None;
        }
        self.lookups.published = self.lookups.published.max(published.unwrap_or(0));
        self.next = to;
    }

    /// All entries were voided: whatever was visible before needs no lookup.
    pub fn void(&mut self) {
        let spared = self.lookups.spared | self.lookups.deferred | self.lookups.round.map_or(0, |round| round.sees);
        self.lookups = Lookups { spared, ..Lookups::from(self.next) };
    }
}

/// Runs the lookups of a batch up to `to`, in the round that is open or a new one; gives the transactions whose lookups
/// find the entry.
pub fn look(w: &World, s: &Scenario, leader: &mut Leader, to: u8) -> u8 {
    let now = Round { sees: w.visible, upto: w.committed };
    let round = *leader.lookups.round.get_or_insert(now);
    let wanted = leader.wanted(s, to);
    let sees = if s.keeps(Rule::OneSnapshotARound) { round.sees } else { now.sees };
    let links = s.links(s.count(), sees);
    let finds = |i: &u8| {
        let found = |change: &Change| matches!(change, Change::Linked { through, .. } if links & through == *through);
        s.transactions[*i as usize].changes.iter().any(found)
    };
    let answered = wanted & !leader.waiting(s, to);
    (0..s.count()).filter(|i| answered & 1 << i != 0).filter(finds).fold(0, |mask, i| mask | 1 << i)
}

/// The smallest label of the transactions whose lookups found the entry.
pub fn label(found: u8, cut: bool) -> Option<Lsn> {
    let first = (found != 0).then(|| found.trailing_zeros() as u8)?;
    Some(if cut { piece_label(first) } else { end(first + 1) })
}
