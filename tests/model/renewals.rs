//! Renewals: entries that are filled anew while they stand and are served. The entry's head takes the part of a lease.
//!
//! One script reads `hw` and remembers the head of the entry; the row is read after that; another script stores what was read
//! only where an entry with the very same head stands. That an entry is due, and by whose clock, makes no difference:
//! any that stands may be renewed at any time. (What marks the renewals under way in L2 is for thrift only: there is none
//! here.) An entry that is over is as good as evicted, which happens at any time, too.

use crate::instance::L1Entry;
use crate::redis::{Cell, Entry, Redis};
use crate::rule::Rule;
use crate::scenario::{Generation, Lsn, Scenario, Value, end};
use crate::world::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Renewer {
    pub phase: Phase,
}

/// What a renewal is judged by: taken before anything is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Basis {
    key: u8,
    instance: u8,
    generation: Generation,
    /// The watermark.
    as_of: Lsn,
}

/// What of an entry is compared: all but its value. (There is its due time, too.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Head {
    lo: Lsn,
    hi: Lsn,
    generation: Generation,
    split: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    Idle,
    /// Has read the row, and `hi`, before the claim (which is wrong).
    ReadEarly(Basis, Value, Lsn),
    /// Has claimed the entry with this head, when `hw` stood there.
    Claimed(Basis, Head, Lsn),
    /// Has read the row: `lo`, the value, `hi`.
    Read(Basis, Head, Lsn, Value, Lsn),
    /// May put the value, and `hi`, into L1 some time.
    Replaced(Basis, Value, Lsn),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenewalStep {
    /// `renew/claim.lua`.
    Claim {
        key: u8,
        instance: u8,
    },
    ReadEarly {
        key: u8,
        instance: u8,
    },
    ReadRow,
    /// `renew/replace.lua`.
    Replace,
    PutL1,
    SkipL1,
}

fn head(e: &Entry) -> Head {
    Head { lo: e.lo, hi: e.hi, generation: e.generation, split: e.split }
}

impl Renewer {
    pub const IDLE: Renewer = Renewer { phase: Phase::Idle };

    fn basis(&mut self) -> Option<&mut Basis> {
        match &mut self.phase {
            Phase::Idle => None,
            Phase::ReadEarly(basis, ..)
            | Phase::Claimed(basis, ..)
            | Phase::Read(basis, ..)
            | Phase::Replaced(basis, ..) => Some(basis),
        }
    }

    /// Takes each instance for the other.
    pub fn swap_instances(&mut self) {
        if let Some(basis) = self.basis() {
            basis.instance ^= 1;
        }
    }

    /// The instance is gone, and what it was at.
    pub fn lose_instance(&mut self, number: u8) {
        if self.basis().is_some_and(|basis| basis.instance == number) {
            self.phase = Phase::Idle;
        }
    }

    pub fn steps(&self, w: &World, s: &Scenario, mut found: impl FnMut(RenewalStep)) {
        match self.phase {
            Phase::Idle if w.renewals > 0 => {
                for key in 0..s.keys as u8 {
                    for instance in 0..s.instances as u8 {
                        if !claimable(w, s, key, instance) {
                        } else if s.keeps(Rule::RenewalReadsAfterClaim) {
                            found(RenewalStep::Claim { key, instance });
                        } else {
                            found(RenewalStep::ReadEarly { key, instance });
                        }
                    }
                }
            }
            Phase::Idle => {}
            Phase::ReadEarly(Basis { key, instance, .. }, ..) => found(RenewalStep::Claim { key, instance }),
            Phase::Claimed(..) => found(RenewalStep::ReadRow),
            Phase::Read(..) => found(RenewalStep::Replace),
            Phase::Replaced(basis, ..) => {
                found(RenewalStep::PutL1);
                if w.instances[basis.instance as usize].l1[basis.key as usize].is_some() {
                    found(RenewalStep::SkipL1);
                }
            }
        }
    }
}

/// Whether an entry stands that this instance would renew: of the generation that it knows.
fn claimable(w: &World, s: &Scenario, key: u8, instance: u8) -> bool {
    let at = &w.instances[instance as usize];
    let known = at.generations[s.entity(key as usize)];
    at.trusts_l2 && matches!(w.redis.cells[key as usize], Cell::Entry(e) if e.generation == known)
}

/// Takes one step of renewal `number`.
pub fn take(w: &mut World, s: &Scenario, number: usize, step: RenewalStep) {
    let basis = |w: &World, key: u8, instance: u8| {
        let at = &w.instances[instance as usize];
        Basis { key, instance, generation: at.generations[s.entity(key as usize)], as_of: at.watermark() }
    };
    let phase = match (w.renewers[number].phase, step) {
        (Phase::Idle, RenewalStep::ReadEarly { key, instance }) => {
            w.renewals -= 1;
            Phase::ReadEarly(basis(w, key, instance), w.on_primary(s, key as usize), end(w.committed))
        }
        (before @ (Phase::Idle | Phase::ReadEarly(..)), RenewalStep::Claim { key, instance }) => {
            let claimed = match (w.redis.fence.and_then(|fence| fence.hw), w.redis.cells[key as usize]) {
                (Some(hw), Cell::Entry(e)) if claimable(w, s, key, instance) => Some((hw, head(&e))),
                _ => None,
            };
            match (before, claimed) {
                (_, None) => Phase::Idle,
                (Phase::ReadEarly(basis, value, hi), Some((hw, head))) => Phase::Read(basis, head, hw, value, hi),
                (_, Some((hw, head))) => {
                    w.renewals -= 1;
                    Phase::Claimed(basis(w, key, instance), head, hw)
                }
            }
        }
        (Phase::Claimed(basis, head, hw), RenewalStep::ReadRow) => {
            let hi = if s.keeps(Rule::RenewalHiIsInsertPosition) { end(w.committed) } else { hw };
            let lo = if s.keeps(Rule::RenewalLoIsHighWater) { hw } else { hi };
            Phase::Read(basis, head, lo, w.on_primary(s, basis.key as usize), hi)
        }
        (Phase::Read(basis, head, lo, value, hi), RenewalStep::Replace) => {
            let now = w.instances[basis.instance as usize].generations[s.entity(basis.key as usize)];
            let generation = if s.keeps(Rule::RenewalGenerationBeforeRow) { basis.generation } else { now };
            w.redis.replace(basis.key as usize, head, Entry { lo, hi, value, generation, split: false }, s);
            if s.l1 { Phase::Replaced(basis, value, hi) } else { Phase::Idle }
        }
        (Phase::Replaced(Basis { key, instance, generation, as_of }, value, hi), RenewalStep::PutL1) => {
            let instance = &mut w.instances[instance as usize];
            let as_of = if s.keeps(Rule::RenewalAsOfBeforeRow) { as_of } else { instance.watermark() };
            instance.l1[key as usize] = Some(L1Entry { value, hi, as_of, generation, checked: 0 });
            Phase::Idle
        }
        (_, _) => Phase::Idle,
    };
    w.renewers[number].phase = phase;
}

impl Redis {
    /// `renew/replace.lua`.
    fn replace(&mut self, key: usize, claimed: Head, entry: Entry, s: &Scenario) {
        let stands = match self.cells[key] {
            Cell::Entry(e) => head(&e) == claimed || !s.keeps(Rule::RenewsSameHead),
            Cell::Absent => !s.keeps(Rule::RenewsWhatStands),
            Cell::Lease(_) => false,
        };
        if !stands {
            return;
        }
        self.cells[key] = Cell::Entry(entry);
        if let Some(fence) = &mut self.fence
            && s.keeps(Rule::RenewalRaisesFilled)
        {
            fence.filled = fence.filled.max(entry.hi);
        }
    }
}
