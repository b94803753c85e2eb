//! L2: what it holds, and the scripts of readers. Each function here is one atomic step of Redis.

use crate::rule::Rule;
use crate::scenario::{ENTITIES, Generation, KEYS, Lsn, Scenario, TRANSACTIONS, Value};
use crate::voids::Floors;

/// What is stored under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cell {
    Absent,
    /// Somebody fills it: the token is unique to one read of one reader.
    Lease(u8),
    Entry(Entry),
}

/// A cached value: it holds every event up to `lo`, none beyond `hi`, and between them nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    pub lo: Lsn,
    pub hi: Lsn,
    pub value: Value,
    pub generation: Generation,
    /// Written by a piece of a transaction.
    pub split: bool,
}

/// The fence of the (one) Redis slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fence {
    /// Largest label of any script: raised together with the first write of a transaction. `None` while a leader has
    /// claimed an emptied Redis and not set the fields yet.
    pub hw: Option<Lsn>,
    /// Everything up to here was applied: raised after the last write of a batch.
    pub done: Lsn,
    /// The largest `hi` of any published fill.
    pub filled: Lsn,
    pub epoch: Generation,
    /// Of all entities.
    pub generation: Generation,
    /// Of each.
    pub generations: [Generation; ENTITIES],
    pub floors: Floors,
}

impl Fence {
    /// What a claim finds where nothing is.
    pub const BLANK: Fence = Fence {
        hw: None,
        done: 0,
        filled: 0,
        epoch: 0,
        generation: 0,
        generations: [0; ENTITIES],
        floors: Floors::NONE,
    };

    /// The generation that stands for an entity.
    pub fn generation_of(&self, entity: usize, s: &Scenario) -> Generation {
        let own = if s.keeps(Rule::EntityGenerationTaken) { self.generations[entity] } else { 0 };
        self.generation.max(own)
    }
}

/// All that Redis holds, hence all that it loses or takes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Redis {
    pub fence: Option<Fence>,
    pub cells: [Cell; KEYS],
    pub feed: Feed,
}

/// The feed that the leader appends to, and that other instances follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Feed {
    /// Bit `i`: there is a message that tells of transaction `i`, and of the watermark after it.
    pub messages: u8,
    /// The generations that each message tells of.
    pub generations: [[Generation; ENTITIES]; TRANSACTIONS],
    /// The transactions up to its beginning, and the generation of all that it began with.
    pub base: u8,
    pub began: Generation,
}

impl Feed {
    pub const EMPTY: Feed = Feed { messages: 0, generations: [[0; ENTITIES]; TRANSACTIONS], base: 0, began: 0 };

    /// Tells of the transactions `from..to`.
    pub fn append(&mut self, from: u8, to: u8, generations: [Generation; ENTITIES]) {
        for i in from..to {
            self.messages |= 1 << i;
            for (told, new) in self.generations[i as usize].iter_mut().zip(generations) {
                *told = (*told).max(new);
            }
        }
    }

    /// The first transaction from `from` on that it tells of.
    pub fn next_message(&self, from: u8) -> Option<u8> {
        let rest = self.messages >> from;
        (rest != 0).then(|| from + rest.trailing_zeros() as u8)
    }
}

/// What the lookup script answers.
#[derive(Clone, Copy, Debug)]
pub enum Found {
    Entry(Entry),
    /// The caller may fill: its `lo`.
    Lease(Lsn),
    /// Another fill is under way, or L2 has no fence.
    Nothing,
}

impl Redis {
    pub const EMPTY: Redis = Redis { fence: None, cells: [Cell::Absent; KEYS], feed: Feed::EMPTY };

    /// Up to where this Redis can be shown to hold what was applied; `None` if its fence does not say.
    pub fn proven(&self, s: &Scenario) -> Option<Lsn> {
        let fence = self.fence?;
        let hw = fence.hw?;
        Some(if s.keeps(Rule::TrustByDone) { fence.done } else { hw })
    }

    /// `lease.lua`: the entry, unless its generation is older than what the caller knows or it is below the floors that the
    /// caller knows; or a lease if there is neither entry nor lease.
    pub fn look_up(&mut self, key: usize, token: u8, generation: Generation, floors: Floors, s: &Scenario) -> Found {
        let Some(hw) = self.fence.and_then(|fence| fence.hw) else { return Found::Nothing };
        let stands = |e: &Entry| e.generation >= generation || !s.keeps(Rule::GenerationChecked);
        match self.cells[key] {
            Cell::Entry(e) if stands(&e) && floors.admit(key, &e, s) => Found::Entry(e),
            Cell::Lease(_) => Found::Nothing,
            Cell::Absent | Cell::Entry(_) => {
                self.cells[key] = Cell::Lease(token);
                Found::Lease(hw)
            }
        }
    }

    /// `publish.lua`: stores the fill, if its lease still stands, and raises `filled`.
    pub fn publish_fill(&mut self, key: usize, token: u8, entry: Entry, s: &Scenario) {
        if self.cells[key] != Cell::Lease(token) && s.keeps(Rule::LeaseRequired) {
            return;
        }
        self.cells[key] = Cell::Entry(entry);
        if let Some(fence) = &mut self.fence
            && s.keeps(Rule::PublishRaisesFilled)
        {
            fence.filled = fence.filled.max(entry.hi);
        }
    }
}
