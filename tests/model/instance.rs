//! An instance: its watermark, its generations, its L1 with the fence cells, its place in the feed, its trust in L2.

use crate::redis::{Feed, Redis};
use crate::rule::Rule;
use crate::scenario::{ENTITIES, Generation, KEYS, Lsn, Scenario, Value, count_at, end};
use crate::voids::Floors;

/// A value in L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct L1Entry {
    pub value: Value,
    pub hi: Lsn,
    /// The instance's watermark before the value was fetched.
    pub as_of: Lsn,
    pub generation: Generation,
    /// It was looked at by a sweep of patterns up to here.
    pub checked: Lsn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance {
    /// Transactions up to the watermark.
    applied: u8,
    /// What it has read from the feed and worked in by half.
    pending: Option<Pending>,
    fences: [Lsn; KEYS],
    pub floors: Floors,
    /// Patterns up to here have been swept, and are forgotten.
    pub swept: [Lsn; ENTITIES],
    pub l1: [Option<L1Entry>; KEYS],
    /// The generation of each entity, as this process knows it.
    pub generations: [Generation; ENTITIES],
    pub trusts_l2: bool,
    /// Without a feed: whether it has claimed L2, and not found since that L2 lost writes.
    claimed: bool,
    /// Without a feed: what L2 has acknowledged to it as done.
    acknowledged: Lsn,
    /// With a feed: the generation of all that the feed began with when this instance last read it.
    feed_began: Generation,
}

/// A message of the feed of which one half (fences or watermark) was worked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Pending {
    to: u8,
    /// Messages were missed (the feed started anew with another generation, or was trimmed): any key may have changed.
    missed: bool,
    generations: [Generation; ENTITIES],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceStep {
    /// Reads the feed's next message: raises generations and fences.
    RaiseFences,
    /// Then raises the watermark.
    RaiseWatermark,
    /// After a reconnect to Redis: finds there what it must find.
    TrustL2,
}

impl Instance {
    /// A process that has just started.
    pub const FRESH: Instance = Instance {
        applied: 0,
        pending: None,
        fences: [0; KEYS],
        floors: Floors::NONE,
        swept: [0; ENTITIES],
        l1: [None; KEYS],
        generations: [0; ENTITIES],
        trusts_l2: false,
        claimed: false,
        acknowledged: 0,
        feed_began: 0,
    };

    /// One that knows of the first claim, in `generation`: it has led, or read the feed, from the beginning.
    pub const fn first(generation: Generation) -> Self {
        Instance {
            generations: [generation; ENTITIES],
            trusts_l2: true,
            claimed: true,
            feed_began: generation,
            ..Self::FRESH
        }
    }

    /// W.
    pub fn watermark(&self) -> Lsn {
        end(self.applied)
    }

    /// The L1 entry, if the fence, the generation and what was voided let it pass.
    pub fn servable(&self, key: usize, s: &Scenario) -> Option<L1Entry> {
        let swept = self.swept[s.entity(key)];
        self.unfenced(key, s)
            .filter(|e| self.floors.admit_in_l1(key, e, s))
            .filter(|e| e.as_of.max(e.checked) >= swept || !s.keeps(Rule::SweptInL1))
    }

    /// The L1 entry, if the fence and the generation let it pass.
    fn unfenced(&self, key: usize, s: &Scenario) -> Option<L1Entry> {
        let stands = self.generations[s.entity(key)];
        self.l1[key]
            .filter(|e| e.as_of >= self.fences[key] || !s.keeps(Rule::L1Fence))
            .filter(|e| e.generation >= stands || !s.keeps(Rule::GenerationChecked))
    }

    /// Forgets what can never be served again.
    pub fn forget(&mut self, s: &Scenario) {
        if s.keeps(Rule::L1Fence) && s.keeps(Rule::GenerationChecked) {
            let rules = [Rule::FloorInL1, Rule::FloorComparesAsOf];
            let voided =
                |key: usize, e: &L1Entry| e.as_of < self.floors.of_tag(key) && rules.map(|r| s.keeps(r)) == [true; 2];
            for key in 0..s.keys {
                self.l1[key] = self.unfenced(key, s).filter(|e| !voided(key, e));
            }
        }
    }

    /// Whether what was fetched from L2 while patterns were `swept` up to there was swept out since, perhaps.
    pub fn was_swept_since(&self, entity: usize, lo: Lsn, swept: Lsn) -> bool {
        let now = self.swept[entity];
        now != swept && lo < now
    }

    /// A sweep of these patterns looks at a key.
    pub fn sweep(&mut self, key: usize, patterns: [Lsn; KEYS], s: &Scenario) {
        let swept = self.swept[s.entity(key)];
        let newest = patterns.into_iter().max().unwrap_or(0);
        let Some(e) = self.l1[key].as_mut().filter(|e| e.as_of < newest) else { return };
        let missed = e.as_of.max(e.checked) < swept && s.keeps(Rule::MissedRemovedLater);
        if e.as_of < patterns[key] || missed {
            self.l1[key] = None;
        } else {
            e.checked = e.checked.max(newest);
        }
    }

    // --- What a leader does to its own instance.

    pub fn raise_fence(&mut self, key: usize, label: Lsn) {
        self.fences[key] = self.fences[key].max(label);
    }

    pub fn raise_generation(&mut self, entity: usize, to: Generation) {
        self.generations[entity] = self.generations[entity].max(to);
    }

    pub fn raise_generations(&mut self, to: [Generation; ENTITIES]) {
        to.into_iter().enumerate().for_each(|(entity, to)| self.raise_generation(entity, to));
    }

    /// Everything was applied up to `to`; and what L2 acknowledged, if it is written.
    pub fn advance(&mut self, to: u8, acknowledged: Option<Lsn>) {
        self.acknowledged = self.acknowledged.max(acknowledged.unwrap_or(0));
        self.applied = self.applied.max(to);
    }

    /// Goes on at `from`. What lies between there and the watermark was applied by others, whose events raised no fence
    /// here.
    pub fn take_over(&mut self, from: u8, s: &Scenario) {
        if from > self.applied && s.keeps(Rule::FloorOnReset) {
            (0..s.keys).for_each(|key| self.raise_fence(key, end(from)));
        } else if from > self.applied {
            self.l1 = [None; KEYS];
        }
        self.applied = self.applied.max(from);
    }

    /// It has claimed L2, which shows `done`.
    pub fn claimed(&mut self, done: Lsn) {
        (self.claimed, self.acknowledged) = (true, done);
    }

    /// Nothing in L2 is to be believed until the next claim.
    pub fn distrust(&mut self) {
        (self.claimed, self.trusts_l2) = (false, false);
    }

    /// L2 is not used over this connection any more.
    pub fn lose_connection(&mut self) {
        self.trusts_l2 = false;
    }

    // --- What an instance does by itself.

    /// Whether the feed has nothing more for it.
    pub fn has_read_all(&self, feed: &Feed) -> bool {
        self.pending.is_none() && self.message(feed).is_none()
    }

    /// What the feed has next, as far as this instance can tell.
    fn message(&self, feed: &Feed) -> Option<Pending> {
        if feed.began > self.feed_began {
            let generations = [feed.began; ENTITIES];
            return Some(Pending { to: self.applied.max(feed.base), missed: true, generations });
        }
        let next = feed.next_message(self.applied).filter(|_| feed.began == self.feed_began)?;
        let generations = feed.generations[next as usize];
        Some(Pending { to: next + 1, missed: next > self.applied, generations })
    }

    /// Whether L2 can be shown to hold all that this instance knows to have been applied.
    pub fn can_trust(&self, redis: &Redis, s: &Scenario) -> bool {
        let known = if s.feed {
            let pending = self.pending.map_or(0, |p| if s.keeps(Rule::TrustCountsPending) { p.to } else { 0 });
            end(self.applied.max(pending))
        } else {
            self.acknowledged
        };
        let may = if s.feed { redis.feed.began >= self.feed_began } else { self.claimed };
        may && redis.proven(s).is_some_and(|proven| proven >= known)
    }

    pub fn steps(&self, redis: &Redis, s: &Scenario, mut found: impl FnMut(InstanceStep)) {
        if !s.feed {
        } else if self.pending.is_some() {
            found(InstanceStep::RaiseWatermark);
        } else if self.message(&redis.feed).is_some() {
            found(InstanceStep::RaiseFences);
        }
        if !self.trusts_l2 && self.can_trust(redis, s) {
            found(InstanceStep::TrustL2);
        }
    }

    pub fn take(&mut self, redis: &Redis, s: &Scenario, step: InstanceStep) {
        match step {
            InstanceStep::RaiseFences => {
                let Some(mut message) = self.message(&redis.feed) else { return };
                if redis.feed.began == self.feed_began {
                    message.missed &= s.keeps(Rule::GapNoticed);
                }
                self.feed_began = redis.feed.began;
                self.pending = Some(message);
                if s.keeps(Rule::GenerationBeforeWatermark) {
                    self.raise_generations(message.generations);
                }
                if s.keeps(Rule::FencesBeforeWatermark) {
                    self.raise_fences(message, s);
                }
                if !s.keeps(Rule::FencesBeforeWatermark) || !s.keeps(Rule::GenerationBeforeWatermark) {
                    self.applied = message.to;
                }
            }
            InstanceStep::RaiseWatermark => {
                let Some(message) = self.pending.take() else { return };
                self.applied = message.to;
                self.raise_fences(message, s);
                self.raise_generations(message.generations);
            }
            InstanceStep::TrustL2 => {
                self.trusts_l2 = true;
                if let Some(fence) = redis.fence.filter(|_| s.keeps(Rule::TrustAdoptsGenerations)) {
                    self.raise_generations(std::array::from_fn(|entity| fence.generation_of(entity, s)));
                    if s.keeps(Rule::FloorsTaken) {
                        self.floors.raise_to(fence.floors);
                    }
                }
            }
        }
    }

    fn raise_fences(&mut self, message: Pending, s: &Scenario) {
        if message.missed && !s.keeps(Rule::FloorOnReset) {
            self.l1 = [None; KEYS];
            return;
        }
        for key in 0..s.keys {
            if message.missed || s.has_event_on(message.to - 1, key) {
                self.raise_fence(key, end(message.to));
            }
        }
    }

    /// What to print of it in a trace.
    pub fn describe(&self) -> String {
        let mut out = format!("W={}", self.watermark());
        if !self.trusts_l2 {
            out.push_str(" distrusts");
        }
        for (key, entry) in self.l1.iter().enumerate() {
            if let Some(e) = entry {
                let fence = self.fences[key];
                out += &format!(" l1.k{key}={{v={:x} as_of={} gen={} fence={fence}}}", e.value, e.as_of, e.generation);
            }
        }
        out
    }
}

/// Whether a watermark has reached the end of what there is.
pub fn is_at_end(instance: &Instance, s: &Scenario) -> bool {
    count_at(instance.watermark()) == s.count()
}
