//! An instance: its watermark, its L1 with the fence cells, its place in the feed, and its trust in L2.

use crate::redis::Redis;
use crate::scenario::{KEYS, Lsn, Rule, Scenario, Value, end};

/// A value in L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct L1Entry {
    pub value: Value,
    pub hi: Lsn,
    /// The instance's watermark before the value was fetched.
    pub as_of: Lsn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Instance {
    /// Transactions up to the watermark.
    applied: u8,
    /// What it has read from the feed and worked in by half.
    pending: Option<Pending>,
    pub fences: [Lsn; KEYS],
    pub l1: [Option<L1Entry>; KEYS],
    pub trusts_l2: bool,
    feed_generation: u8,
}

/// A message of the feed of which one half (fences or watermark) was worked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Pending {
    to: u8,
    /// Messages were missed (the feed started anew with another generation, or was trimmed): any key may have changed.
    missed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceStep {
    /// Reads the feed's next message: raises fences.
    RaiseFences,
    /// Then raises the watermark.
    RaiseWatermark,
    /// After a reconnect to Redis: finds there what it must find.
    TrustL2,
    EvictL1(usize),
}

impl Instance {
    /// An instance that has seen the feed from its beginning.
    pub const fn new(feed_generation: u8) -> Self {
        Instance { applied: 0, pending: None, fences: [0; KEYS], l1: [None; KEYS], trusts_l2: true, feed_generation }
    }

    /// W.
    pub fn watermark(&self) -> Lsn {
        end(self.applied)
    }

    /// The L1 entry, if the fence lets it pass.
    pub fn servable(&self, key: usize) -> Option<L1Entry> {
        self.l1[key].filter(|e| e.as_of >= self.fences[key])
    }

    /// Whether the feed has nothing more for it.
    pub fn has_read_all(&self, redis: &Redis) -> bool {
        self.pending.is_none() && self.message(redis).is_none()
    }

    /// What the feed has next, as far as this instance can tell.
    fn message(&self, redis: &Redis) -> Option<Pending> {
        if redis.feed_generation > self.feed_generation {
            return Some(Pending { to: self.applied.max(redis.feed_base), missed: true });
        }
        let next = redis.next_message(self.applied).filter(|_| redis.feed_generation == self.feed_generation)?;
        Some(Pending { to: next + 1, missed: next > self.applied })
    }

    /// Whether L2 can be shown to hold all that this instance knows to have been applied.
    pub fn can_trust(&self, redis: &Redis, s: &Scenario) -> bool {
        let known = redis.feed_generation >= self.feed_generation;
        let pending = self.pending.map_or(0, |p| if s.keeps(Rule::TrustCountsPending) { p.to } else { 0 });
        known && redis.proven(s).is_some_and(|proven| proven >= end(self.applied.max(pending)))
    }

    pub fn steps(&self, redis: &Redis, s: &Scenario, mut found: impl FnMut(InstanceStep)) {
        if self.pending.is_some() {
            found(InstanceStep::RaiseWatermark);
        } else if self.message(redis).is_some() {
            found(InstanceStep::RaiseFences);
        }
        if !self.trusts_l2 && self.can_trust(redis, s) {
            found(InstanceStep::TrustL2);
        }
        for key in 0..s.keys {
            if self.l1[key].is_some() {
                found(InstanceStep::EvictL1(key));
            }
        }
    }

    pub fn take(&mut self, redis: &Redis, s: &Scenario, step: InstanceStep) {
        match step {
            InstanceStep::RaiseFences => {
                let Some(mut message) = self.message(redis) else { return };
                if redis.feed_generation == self.feed_generation {
                    message.missed &= s.keeps(Rule::GapNoticed);
                }
                self.feed_generation = redis.feed_generation;
                self.pending = Some(message);
                if s.keeps(Rule::FencesBeforeWatermark) {
                    self.raise_fences(message, s);
                } else {
                    self.applied = message.to;
                }
            }
            InstanceStep::RaiseWatermark => {
                let Some(message) = self.pending.take() else { return };
                if s.keeps(Rule::FencesBeforeWatermark) {
                    self.applied = message.to;
                } else {
                    self.raise_fences(message, s);
                }
            }
            InstanceStep::TrustL2 => self.trusts_l2 = true,
            InstanceStep::EvictL1(key) => self.l1[key] = None,
        }
    }

    fn raise_fences(&mut self, message: Pending, s: &Scenario) {
        if message.missed && !s.keeps(Rule::FloorOnReset) {
            self.l1 = [None; KEYS];
            return;
        }
        for key in 0..s.keys {
            if message.missed || s.transactions[message.to as usize - 1].touches(key) {
                self.fences[key] = self.fences[key].max(end(message.to));
            }
        }
    }
}
