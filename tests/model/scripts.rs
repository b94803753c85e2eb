//! The scripts of leaders: what writes L2 under an epoch. Each function here is one atomic step of Redis.

use crate::properties::Violation;
use crate::redis::{Cell, Entry, Feed, Fence, Redis};
use crate::rule::Rule;
use crate::scenario::{Generation, Lsn, OnChange, PLANTED, Scenario, Value, is_committed};
use crate::voids::Floors;

/// The identity under which a leader writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    pub epoch: Generation,
    /// The `hw` that stood when this epoch began: events up to there may be replays.
    pub takeover: Lsn,
    /// What L2 has acknowledged as done.
    pub done: Lsn,
    /// Its connection is broken, which it has not found out yet.
    pub broken: bool,
}

/// The newest image of a key, as the leader planned it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    pub value: Value,
    /// `c`.
    pub label: Lsn,
    /// The largest label in its batch, which the script sets `hw` to.
    pub high: Lsn,
    /// The label is that of a piece.
    pub split: bool,
    /// The generation that the process knew when it planned this, which may have been raised since.
    pub generation: Generation,
}

/// Why a script did not do what it should.
#[derive(Debug)]
pub enum Failed {
    /// Another epoch stands, or less is done than was acknowledged (or nothing, for want of a fence); or it was not reached.
    Refused,
    Violated(Violation),
}

impl Redis {
    /// The fence, if it lets this leader write.
    pub fn fence_for(&mut self, by: Authority, s: &Scenario) -> Result<&mut Fence, Failed> {
        let fence = self.fence.as_mut().filter(|f| !by.broken && (f.epoch == by.epoch || !s.keeps(Rule::Epoch)));
        fence.filter(|f| f.hw.is_some() && f.done >= by.done).ok_or(Failed::Refused)
    }

    /// `apply.lua` for one key.
    pub fn put(&mut self, key: usize, image: Image, by: Authority, s: &Scenario) -> Result<(), Failed> {
        let Image { value, label: c, high, split, generation } = image;
        let fence = self.fence_for(by, s)?;
        fence.hw = fence.hw.max(Some(high));
        let filled = fence.filled;
        let written = Cell::Entry(Entry { lo: c, hi: c, value, generation, split });
        let populate = s.on_change == OnChange::Populate;
        let is_new = c > by.takeover;
        let beyond_fills = c > filled || !s.keeps(Rule::FastBeyondFilled);
        let before = self.cells[key];
        self.cells[key] = if (is_new || !s.keeps(Rule::FastBeyondTakeover)) && beyond_fills && !populate {
            // New, and in no fill: whatever stands there is older, and replacing a lease voids it.
            match before {
                Cell::Absent => Cell::Absent,
                lease @ Cell::Lease(_) if !s.keeps(Rule::LeaseVoided) => lease,
                Cell::Lease(_) | Cell::Entry(_) => written,
            }
        } else {
            match before {
                Cell::Absent if populate && (is_new || !s.keeps(Rule::PopulateBeyondTakeover)) => written,
                Cell::Absent => Cell::Absent,
                lease @ Cell::Lease(_) if !s.keeps(Rule::LeaseVoided) => lease,
                Cell::Lease(_) => Cell::Absent,
                Cell::Entry(e) if e.generation < generation && is_new => written,
                Cell::Entry(e) if e.generation < generation => Cell::Absent,
                Cell::Entry(e) if c > e.hi => written,
                Cell::Entry(e) if c > e.lo => Cell::Absent,
                Cell::Entry(e) if split && c == e.lo && s.keeps(Rule::PieceOverwritesPiece) => {
                    if is_new || !s.keeps(Rule::PieceBeyondTakeover) { written } else { Cell::Absent }
                }
                newer => newer,
            }
        };
        match (before, self.cells[key]) {
            (Cell::Entry(old), Cell::Entry(new))
                if s.entries_monotone && !new.split && old.generation == new.generation && new.value < old.value =>
            {
                let judged = is_committed(old.value) && is_committed(new.value) && old.value != PLANTED;
                let (old, new) = (old.value, new.value);
                if judged { Err(Failed::Violated(Violation::EntryBackwards { old, new })) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    /// UNLINK, which needs no script: a miss is always right, whoever causes it. Where a standby may be read the script
    /// must raise `hw`, too, so that nobody fills from one that has not replayed the event.
    pub fn drop(&mut self, key: usize, c: Lsn, by: Authority, s: &Scenario) -> Result<(), Failed> {
        if by.broken {
            return Err(Failed::Refused);
        }
        if s.standby && s.keeps(Rule::EveryEffectRaisesHighWater) {
            let fence = self.fence_for(by, s)?;
            fence.hw = fence.hw.max(Some(c));
        }
        let keeps_lease = matches!(self.cells[key], Cell::Lease(_)) && !s.keeps(Rule::LeaseVoided);
        if !keeps_lease {
            self.cells[key] = Cell::Absent;
        }
        Ok(())
    }

    /// `fence.lua`: raises the generation of an entity, or of all; because of an event `c`, if there is one.
    pub fn raise(
        &mut self,
        entity: Option<usize>,
        to: Generation,
        c: Option<Lsn>,
        by: Authority,
        s: &Scenario,
    ) -> Result<(), Failed> {
        let fence = self.fence_for(Authority { done: 0, ..by }, s)?;
        if s.standby && s.keeps(Rule::EveryEffectRaisesHighWater) {
            fence.hw = fence.hw.max(c);
        }
        match entity {
            Some(entity) => fence.generations[entity] = fence.generations[entity].max(to),
            None => fence.generation = fence.generation.max(to),
        }
        Ok(())
    }

    /// `fence.lua` at the end of a batch: everything up to `end` was applied.
    pub fn mark_done(&mut self, end: Lsn, by: Authority, s: &Scenario) -> Result<(), Failed> {
        let fence = self.fence_for(by, s)?;
        fence.hw = fence.hw.max(Some(end));
        fence.done = fence.done.max(end);
        Ok(())
    }

    /// `claim.lua`: sets the epoch, and says what stood there.
    pub fn claim(&mut self, epoch: Generation) -> Option<Fence> {
        let before = self.fence;
        self.fence = Some(Fence { epoch, ..before.unwrap_or(Fence::BLANK) });
        before.filter(|fence| fence.hw.is_some())
    }

    /// `fence.lua` at the end of a claim: begins a new generation of everything at `at`, or takes the process's
    /// generations over.
    pub fn settle_claim(&mut self, claim: Claimed, by: Authority, s: &Scenario) -> Result<Fence, Failed> {
        let fence = self.fence.as_mut().filter(|f| f.epoch == by.epoch).ok_or(Failed::Refused)?;
        match claim {
            Claimed::Lost { at } => {
                (fence.hw, fence.done, fence.filled) = (Some(at), at, 0);
                fence.generation = by.epoch;
                fence.floors = Floors::NONE;
            }
            Claimed::Sound { known } => {
                for (entity, known) in known.into_iter().enumerate() {
                    if known > fence.generation_of(entity, s) {
                        fence.generations[entity] = known;
                    }
                }
            }
        }
        let settled = *fence;
        if let Claimed::Lost { at } = claim
            && s.feed
        {
            let base = crate::scenario::count_at(at);
            self.feed = Feed { base, began: by.epoch, ..Feed::EMPTY };
        }
        Ok(settled)
    }
}

/// What a claim found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// L2 does not hold all that was applied up to `at`.
    Lost { at: Lsn },
    /// It does; the process knows these generations.
    Sound { known: [Generation; crate::scenario::ENTITIES] },
}
