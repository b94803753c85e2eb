//! L2 and its scripts: each function here is one atomic step of Redis.

use crate::scenario::{KEYS, Lsn, OnChange, Rule, Scenario, Value};

/// What is stored under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cell {
    Absent,
    /// Somebody fills it: the token is unique to one read of one reader.
    Lease(u8),
    Entry(Entry),
}

/// A cached value: it holds every event up to `lo`, none beyond `hi`, and between them nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub lo: Lsn,
    pub hi: Lsn,
    pub value: Value,
    pub generation: u8,
    /// Written by a piece of a transaction.
    pub split: bool,
}

/// The fence of the (one) Redis slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fence {
    /// Largest label of any script: raised together with the first write of a transaction.
    pub hw: Lsn,
    /// Everything up to here was applied: raised after the last write of a batch.
    pub done: Lsn,
    pub epoch: u8,
    pub generation: u8,
}

/// All that Redis holds, hence all that it loses or takes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Redis {
    pub fence: Option<Fence>,
    pub cells: [Cell; KEYS],
    /// Bit `i`: the feed holds the message that tells of transaction `i` (and of the watermark after it).
    pub feed: u8,
    /// The watermark and the generation that the feed started with.
    pub feed_base: u8,
    pub feed_generation: u8,
}

impl Redis {
    pub const EMPTY: Redis =
        Redis { fence: None, cells: [Cell::Absent; KEYS], feed: 0, feed_base: 0, feed_generation: 0 };
}

/// What one apply script does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Put(usize, Value),
    /// The generation is raised, to the number drawn by whoever runs the script.
    RaiseGeneration,
}

/// One apply script: an effect, its label `c`, and who sends it.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    pub effect: Effect,
    pub label: Lsn,
    /// The label is that of a piece.
    pub split: bool,
}

/// The identity under which a leader writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    pub epoch: u8,
    /// The `hw` that stood when this epoch began.
    pub takeover: Lsn,
}

/// The script was not run: a newer epoch stands, or there is no fence.
#[derive(Debug)]
pub struct Refused;

/// What the lookup script answers.
#[derive(Clone, Copy, Debug)]
pub enum Found {
    Entry(Entry),
    /// The caller may fill: its `lo` and its generation.
    Lease(Lsn, u8),
    /// Another fill is under way, or L2 has no fence.
    Nothing,
}

impl Redis {
    fn fence_for(&mut self, epoch: u8, s: &Scenario) -> Result<&mut Fence, Refused> {
        self.fence.as_mut().filter(|f| f.epoch <= epoch || !s.keeps(Rule::Epoch)).ok_or(Refused)
    }

    /// The apply script for one key (`sequence` is where a new generation is drawn).
    pub fn apply(&mut self, script: Script, by: Authority, sequence: &mut u8, s: &Scenario) -> Result<(), Refused> {
        let c = script.label;
        let fence = self.fence_for(by.epoch, s)?;
        fence.hw = fence.hw.max(c);
        let (key, value) = match script.effect {
            Effect::Put(key, value) => (key, value),
            Effect::RaiseGeneration => {
                if s.keeps(Rule::TruncateRaisesGeneration) {
                    *sequence += 1;
                    fence.generation = *sequence;
                }
                return Ok(());
            }
        };
        let generation = fence.generation;
        let written = Cell::Entry(Entry { lo: c, hi: c, value, generation, split: script.split });
        let is_new = c > by.takeover;
        self.cells[key] = match self.cells[key] {
            Cell::Absent if s.on_change == OnChange::Populate && (is_new || !s.keeps(Rule::PopulateBeyondTakeover)) => {
                written
            }
            Cell::Absent => Cell::Absent,
            lease @ Cell::Lease(_) if !s.keeps(Rule::LeaseVoided) => lease,
            Cell::Lease(_) => Cell::Absent,
            Cell::Entry(_) if s.on_change == OnChange::Invalidate => Cell::Absent,
            Cell::Entry(e) if e.generation < generation && is_new => written,
            Cell::Entry(e) if e.generation < generation => Cell::Absent,
            Cell::Entry(e) if c > e.hi => written,
            Cell::Entry(e) if c > e.lo => Cell::Absent,
            Cell::Entry(e) if script.split && c == e.lo && s.keeps(Rule::PieceOverwritesPiece) => {
                if is_new || !s.keeps(Rule::PieceBeyondTakeover) { written } else { Cell::Absent }
            }
            newer => newer,
        };
        Ok(())
    }

    /// The script that ends a batch: everything up to `end` was applied.
    pub fn mark_done(&mut self, end: Lsn, by: Authority, s: &Scenario) -> Result<(), Refused> {
        let fence = self.fence_for(by.epoch, s)?;
        fence.hw = fence.hw.max(end);
        fence.done = fence.done.max(end);
        Ok(())
    }

    /// The feed tells of the transactions `from..to`.
    pub fn append_feed(&mut self, from: u8, to: u8) {
        for i in from..to {
            self.feed |= 1 << i;
        }
    }

    /// The first transaction from `from` on that the feed tells of.
    pub fn next_message(&self, from: u8) -> Option<u8> {
        let rest = self.feed >> from;
        (rest != 0).then(|| from + rest.trailing_zeros() as u8)
    }

    /// Up to where this Redis can be shown to hold what was applied; `None` if it has no fence.
    pub fn proven(&self, s: &Scenario) -> Option<Lsn> {
        self.fence.map(|f| if s.keeps(Rule::TrustByDone) { f.done } else { f.hw })
    }

    /// A new leader's first script: its epoch, and a new generation if less is there than was `confirmed`.
    pub fn take_over(&mut self, confirmed: u8, sequence: &mut u8, s: &Scenario) -> Authority {
        let confirmed_end = crate::scenario::end(confirmed);
        *sequence += 1;
        let epoch = *sequence;
        if self.proven(s).is_none_or(|proven| proven < confirmed_end) {
            *sequence += 1;
            let hw = self.fence.map_or(0, |f| f.hw).max(confirmed_end);
            self.fence = Some(Fence { hw, done: confirmed_end, epoch, generation: *sequence });
            self.feed = 0;
            self.feed_base = confirmed;
            self.feed_generation = *sequence;
        }
        let takeover = self.fence.as_mut().map_or(0, |f| {
            f.epoch = epoch;
            f.hw
        });
        Authority { epoch, takeover }
    }

    /// A reader's lookup: the entry, or a lease if there is neither entry nor lease.
    pub fn look_up(&mut self, key: usize, token: u8) -> Found {
        let Some(fence) = self.fence else { return Found::Nothing };
        match self.cells[key] {
            Cell::Entry(e) if e.generation == fence.generation => Found::Entry(e),
            Cell::Lease(_) => Found::Nothing,
            Cell::Absent | Cell::Entry(_) => {
                self.cells[key] = Cell::Lease(token);
                Found::Lease(fence.hw, fence.generation)
            }
        }
    }

    /// A reader publishes its fill, if its lease still stands.
    pub fn publish_fill(&mut self, key: usize, token: u8, entry: Entry) {
        if self.cells[key] == Cell::Lease(token) {
            self.cells[key] = Cell::Entry(entry);
        }
    }
}
