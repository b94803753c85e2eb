//! What one run of the checker is bounded by: the transactions, the readers, the faults, and the rule left out.

use crate::rule::Rule;

/// The model has at most this many cached keys.
pub const KEYS: usize = 2;
/// The model has at most this many entities: one for all keys, or one for each.
pub const ENTITIES: usize = 2;
/// The model has at most this many transactions.
pub const TRANSACTIONS: usize = 3;
/// The model has at most this many readers.
pub const READERS: usize = 2;
/// The model has at most this many instances (each with an L1 and a watermark of its own).
pub const INSTANCES: usize = 2;
/// The model has at most this many renewals under way.
pub const RENEWERS: usize = 2;

/// A WAL position. Transaction `i` (from 0) ends at `2(i + 1)`; its commit record starts where the one before ended,
/// which is the tightest case, so that the label of its pieces is `2i + 1`.
pub type Lsn = u8;

/// What a key's value is: 0 at first, `i + 1` as transaction `i` left it, [`uncommitted`] for what never was committed. Of
/// an entry that is made of many rows: bit `i` for each transaction `i` that the snapshot showed and that may matter.
pub type Value = u8;

/// A generation, and also an epoch: both are drawn from one sequence.
pub type Generation = u8;

/// What somebody wrote into a tier behind the protocol's back, for the auditor to find.
pub const PLANTED: Value = 0x7F;

/// The end LSN of the last of the first `count` transactions.
pub fn end(count: u8) -> Lsn {
    2 * count
}

/// How many transactions end at or before `lsn`.
pub fn count_at(lsn: Lsn) -> u8 {
    lsn / 2
}

/// The label of every piece of transaction `i`: its commit record's start and one.
pub fn piece_label(i: u8) -> Lsn {
    2 * i + 1
}

/// The value that change `change` of transaction `i` gave a key before the same transaction changed it again.
pub fn uncommitted(i: u8, change: usize) -> Value {
    0x80 | i << 4 | change as u8
}

/// Whether the value was left by a transaction, or stood at the beginning.
pub fn is_committed(value: Value) -> bool {
    value & 0x80 == 0
}

/// One change of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The row of this key was inserted or updated.
    Put(usize),
    /// The row of this key was deleted; that it is absent is a value like any other.
    Delete(usize),
    /// All rows of the entity went.
    Truncate(usize),
    /// A row left the entry of the first key for that of the second.
    Move(usize, usize),
    /// A row changed that does not name the first key: a lookup finds its entry, through these links. The row may itself
    /// be a link, that is there from now on, or no more.
    Linked { through: u8, makes: u8, cuts: u8 },
    /// A link went whose row names the first key.
    Untie(u8),
    /// The key's value changed by something that no event tells of; the transaction voids a tag that its entry bears.
    Tag(usize),
    /// The same; the transaction voids a pattern, which the key matches.
    Pattern(usize),
    /// As [`Change::Put`], but what the stream tells of the row has gaps: what it left alone.
    Gaps(usize),
}

/// A transaction that will be committed, in this order.
#[derive(Clone, Copy, Debug)]
pub struct Transaction {
    pub changes: &'static [Change],
    /// Too big to hold: it may be applied in pieces, one for every change. Whether it is, is open at every delivery.
    pub large: bool,
}

impl Transaction {
    pub const fn small(changes: &'static [Change]) -> Self {
        Transaction { changes, large: false }
    }

    pub const fn large(changes: &'static [Change]) -> Self {
        Transaction { changes, large: true }
    }
}

/// What an event does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnChange {
    /// An entry gets the new image; what is absent stays absent.
    Refresh,
    /// As refresh, and what is absent is written.
    Populate,
    /// Whatever is there is deleted.
    Invalidate,
}

/// One bounded world to explore.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub transactions: &'static [Transaction],
    pub on_change: OnChange,
    /// Whether an entry is made of many rows: then transactions that change it do not wait for one another.
    pub many: bool,
    /// The links to the first key's entry that stand at first.
    pub links: u8,
    pub keys: usize,
    /// One for all keys, or one for each.
    pub entities: usize,
    pub readers: usize,
    /// Reads each reader makes, one after the other, passing `X-Read-LSN` on.
    pub reads: u8,
    /// Whether readers may demand what is committed when they begin, as a client does that has just written.
    pub own_writes: bool,
    pub instances: usize,
    /// Whether instances have an L1.
    pub l1: bool,
    /// Whether all instances follow a feed that the leader writes; else a leader moves its own instance on, and another
    /// one stands still until it leads.
    pub feed: bool,
    /// Transactions a batch may hold.
    pub batch: u8,
    /// Crashes and pauses of leaders, and breaks of their stream.
    pub crashes: u8,
    /// Times that Redis comes back empty or with the state that it once saved.
    pub restarts: u8,
    /// Whether Redis may also be emptied with its connections left standing.
    pub flushes: bool,
    /// Times that a leader goes on without L2.
    pub outages: u8,
    /// Times that a leader voids all entries instead of what lookups would find.
    pub voids: u8,
    /// Sweeps of what patterns have voided.
    pub sweeps: u8,
    /// Renewals of entries that stand, of either key; and how many may be under way at a time.
    pub renewals: u8,
    pub renewers: usize,
    /// Times that a generation is raised without an event.
    pub resyncs: u8,
    /// Audits of one entry.
    pub audits: u8,
    /// Values that somebody plants in a tier.
    pub plants: u8,
    /// Whether the feed may be trimmed before an instance has read it.
    pub trims: bool,
    /// Whether fills may go to a standby.
    pub standby: bool,
    /// Whether every watermark must arrive in the end (there is no heartbeat in the model that would mend it).
    pub must_arrive: bool,
    /// Whether it also counts as a violation that a script puts an older value over a newer one in L2: more than O1 to
    /// O4 ask for.
    pub entries_monotone: bool,
    /// The rule left out.
    pub without: Option<Rule>,
}

impl Scenario {
    /// Nothing but commits, one reader and one instance; the others are made from it.
    pub const PLAIN: Scenario = Scenario {
        name: "plain",
        transactions: &[],
        on_change: OnChange::Refresh,
        many: false,
        links: 0,
        keys: 1,
        entities: 1,
        readers: 1,
        reads: 1,
        own_writes: false,
        instances: 1,
        l1: false,
        feed: true,
        batch: 1,
        crashes: 0,
        restarts: 0,
        flushes: false,
        outages: 0,
        voids: 0,
        sweeps: 0,
        renewals: 0,
        renewers: 1,
        resyncs: 0,
        audits: 0,
        plants: 0,
        trims: false,
        standby: false,
        must_arrive: true,
        entries_monotone: true,
        without: None,
    };

    pub fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// How many transactions there are.
    pub fn count(&self) -> u8 {
        self.transactions.len() as u8
    }

    /// The entity that a key belongs to.
    pub fn entity(&self, key: usize) -> usize {
        if self.entities == 1 { 0 } else { key }
    }

    /// Whether a change changes the value of a key.
    pub fn touches(&self, change: Change, key: usize) -> bool {
        match change {
            Change::Put(k) | Change::Delete(k) | Change::Gaps(k) => k == key,
            Change::Tag(k) | Change::Pattern(k) => k == key,
            Change::Truncate(entity) => entity == self.entity(key),
            Change::Move(from, to) => from == key || to == key,
            Change::Linked { .. } | Change::Untie(_) => key == 0,
        }
    }

    /// Whether transaction `i` changes the value of a key.
    pub fn transaction_touches(&self, i: u8, key: usize) -> bool {
        self.transactions[i as usize].changes.iter().any(|&change| self.touches(change, key))
    }

    /// Whether transaction `i` has an event on the key itself.
    pub fn has_event_on(&self, i: u8, key: usize) -> bool {
        let changes = self.transactions[i as usize].changes;
        changes.contains(&Change::Put(key)) || changes.contains(&Change::Delete(key))
    }

    /// Whether transaction `i` needs a lookup.
    pub fn is_looked_up(&self, i: u8) -> bool {
        self.transactions[i as usize].changes.iter().any(|change| matches!(change, Change::Linked { .. }))
    }

    /// The links that stand once those of the first `count` transactions that are in `mask` took effect.
    pub fn links(&self, count: u8, mask: u8) -> u8 {
        let effective = (0..count).filter(|i| mask & 1 << i != 0);
        effective.flat_map(|i| self.transactions[i as usize].changes).fold(self.links, |links, change| match change {
            Change::Linked { makes, cuts, .. } => (links | makes) & !cuts,
            Change::Untie(link) => links & !link,
            _ => links,
        })
    }

    /// Of an entry that is made of many rows: what can be seen of the transactions in it. What is linked no more cannot.
    fn shown(&self, value: Value) -> Value {
        let links = self.links(self.count(), value);
        let shows = |change: &Change| !matches!(change, Change::Linked { through, .. } if links & through != *through);
        let shows = |i: &u8| self.transactions[*i as usize].changes.iter().any(shows);
        (0..self.count()).filter(|i| value & 1 << i != 0).filter(shows).fold(0, |mask, i| mask | 1 << i)
    }

    /// Whether a value is not what it would be with all that is in the other, too.
    pub fn lacks(&self, value: Value, other: Value) -> bool {
        if self.many { self.shown(value) != self.shown(value | other) } else { value < other }
    }

    /// Whether a value is another than Postgres returns.
    pub fn differs(&self, value: Value, truth: Value) -> bool {
        if self.many { self.shown(value) != self.shown(truth) } else { value != truth }
    }

    /// How many transactions there are up to the last one in a value.
    pub fn last(&self, value: Value) -> u8 {
        if self.many { (Value::BITS - value.leading_zeros()) as u8 } else { value }
    }

    /// The key's value once those of the first `count` transactions that are in `mask` took effect.
    pub fn value(&self, key: usize, count: u8, mask: u8) -> Value {
        if self.many {
            let matters = |i: &u8| mask & 1 << i != 0 && self.transaction_touches(*i, key);
            return (0..count).filter(matters).fold(0, |value, i| value | 1 << i);
        }
        (0..count).rev().find(|&i| mask & 1 << i != 0 && self.transaction_touches(i, key)).map_or(0, |i| i + 1)
    }
}
