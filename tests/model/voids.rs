//! Voids: floors, below which entries are not served.
//!
//! A transaction that voids a tag or a pattern raises a floor to its end: first in the process, then in L2's fence with
//! `hw`. An entry below it, by its `lo` or in L1 by its `as_of`, is not served, and counts as absent to whoever would lease
//! its key. The floor of a tag stays. What a pattern has voided is swept out of both tiers; then the pattern goes: see
//! [`crate::sweep`].
//!
//! In the model each key has a tag and a pattern of its own, and what is voided has changed by something that no event
//! tells of.

use crate::instance::L1Entry;
use crate::redis::{Entry, Redis};
use crate::rule::Rule;
use crate::scenario::{KEYS, Lsn, Scenario};
use crate::scripts::{Authority, Failed};

/// What entries must have seen at least, by key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Floors {
    tags: [Lsn; KEYS],
    /// Of patterns.
    pub patterns: [Lsn; KEYS],
}

/// One number instead of many: hashing takes most of the time.
impl std::hash::Hash for Floors {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let [a, b] = self.tags;
        let [c, d] = self.patterns;
        state.write_u64(u64::from(u32::from_le_bytes([a, b, c, d])));
    }
}

/// A floor that a void raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Void {
    pub key: usize,
    pub pattern: bool,
    pub label: Lsn,
}

impl Floors {
    pub const NONE: Floors = Floors { tags: [0; KEYS], patterns: [0; KEYS] };

    pub fn raise(&mut self, void: Void) {
        let floors = if void.pattern { &mut self.patterns } else { &mut self.tags };
        floors[void.key] = floors[void.key].max(void.label);
    }

    /// Takes over what stands elsewhere.
    pub fn raise_to(&mut self, other: Floors) {
        for key in 0..KEYS {
            self.tags[key] = self.tags[key].max(other.tags[key]);
            self.patterns[key] = self.patterns[key].max(other.patterns[key]);
        }
    }

    /// What an entry of the key must have seen.
    pub fn of(&self, key: usize) -> Lsn {
        self.tags[key].max(self.patterns[key])
    }

    /// What it must have seen because of what is never forgotten.
    pub fn of_tag(&self, key: usize) -> Lsn {
        self.tags[key]
    }

    /// Whether an entry of L2 is above the floors of its key.
    pub fn admit(&self, key: usize, e: &Entry, s: &Scenario) -> bool {
        let seen = if s.keeps(Rule::FloorComparesLo) { e.lo } else { e.hi };
        seen >= self.of(key) || !s.keeps(Rule::FloorInL2)
    }

    /// Whether an entry of L1 is.
    pub fn admit_in_l1(&self, key: usize, e: &L1Entry, s: &Scenario) -> bool {
        let seen = if s.keeps(Rule::FloorComparesAsOf) { e.as_of } else { e.hi };
        seen >= self.of(key) || !s.keeps(Rule::FloorInL1)
    }

    /// The voids of these that still stand as they were swept, or under whatever label.
    pub fn standing(&self, swept: [Lsn; KEYS], s: &Scenario) -> [Lsn; KEYS] {
        let same = |key: usize| self.patterns[key] == swept[key] || !s.keeps(Rule::RetiredAsSwept);
        std::array::from_fn(|key| if same(key) { swept[key] } else { 0 })
    }

    pub fn forget(&mut self, gone: [Lsn; KEYS]) {
        for key in (0..KEYS).filter(|&key| gone[key] != 0) {
            self.patterns[key] = 0;
        }
    }
}

impl Redis {
    /// `fence.lua` with floors: they go with the high-water mark.
    pub fn set_floor(&mut self, void: Void, high: Lsn, by: Authority, s: &Scenario) -> Result<(), Failed> {
        let fence = self.fence_for(by, s)?;
        fence.hw = fence.hw.max(Some(high));
        fence.floors.raise(void);
        Ok(())
    }
}
