//! Sweeping: what patterns have voided is removed from both tiers, and then the patterns are matched no more.
//!
//! In L1 the process may find out later what a walk did not: an entry that is put there after the walk bears no mark of it. In L2
//! a reader may have an entry in hand that the walk has removed, and judges it once the pattern is forgotten.

use crate::leader::{Leader, Phase as LeaderPhase};
use crate::redis::{Cell, Redis};
use crate::rule::Rule;
use crate::scenario::{INSTANCES, KEYS, Lsn, Scenario};
use crate::scripts::{Authority, Failed};
use crate::world::World;

/// What sweeps, in the process that leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sweeper {
    pub sweeps_left: u8,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    /// Walks through L2. Bits: keys that SCAN has passed, and those of them that it has returned.
    Walking {
        by: u8,
        patterns: [Lsn; KEYS],
        passed: u8,
        found: u8,
    },
    /// Then through L1. Bits: keys that it has passed.
    InL1 {
        by: u8,
        patterns: [Lsn; KEYS],
        passed: u8,
    },
    /// Everything was swept, and may be forgotten.
    Swept {
        by: u8,
        patterns: [Lsn; KEYS],
    },
    /// One half of what the process does to forget them is done.
    Forgetting {
        by: u8,
        gone: [Lsn; KEYS],
    },
    /// They are to go from L2's fence.
    Forgotten {
        by: u8,
        gone: [Lsn; KEYS],
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepStep {
    /// Takes the patterns that stand.
    Begin,
    /// SCAN passes the key: it returns it if it is there.
    Scan(usize),
    /// `unlink_below.lua`.
    Unlink(usize),
    /// Looks at the key in L1: removes what is voided, and marks the rest.
    InL1(usize),
    /// The process notes up to where patterns were swept.
    Note,
    /// The process forgets them.
    Forget,
    /// So does L2's fence.
    Unset,
}

impl Sweeper {
    pub const fn new(sweeps: u8) -> Self {
        Sweeper { sweeps_left: sweeps, phase: Phase::Idle }
    }

    fn home(&mut self) -> Option<&mut u8> {
        match &mut self.phase {
            Phase::Idle => None,
            Phase::Walking { by, .. }
            | Phase::InL1 { by, .. }
            | Phase::Swept { by, .. }
            | Phase::Forgetting { by, .. }
            | Phase::Forgotten { by, .. } => Some(by),
        }
    }

    /// Takes each instance for the other.
    pub fn swap_instances(&mut self) {
        if let Some(by) = self.home() {
            *by ^= 1;
        }
    }

    /// The instance is gone.
    pub fn lose_instance(&mut self, number: u8) {
        if self.home().is_some_and(|by| *by == number) {
            self.phase = Phase::Idle;
        }
    }

    /// The instance reaches L2 over that connection no more.
    pub fn lose_connection(&mut self, number: u8, s: &Scenario) {
        if self.home().is_none_or(|by| *by != number) {
            return;
        }
        match self.phase {
            Phase::Walking { .. } => self.phase = Phase::Idle,
            Phase::InL1 { .. } | Phase::Swept { .. } if s.keeps(Rule::RetiredOverSameConnection) => {
                self.phase = Phase::Idle;
            }
            // What is in the midst of it goes on, up to where it writes L2.
            _ => {}
        }
    }

    /// Whether the leader is busy with forgetting patterns.
    pub fn keeps_busy(&self, leader: &Leader, s: &Scenario) -> bool {
        let by = match self.phase {
            Phase::Forgetting { by, .. } | Phase::Forgotten { by, .. } => by,
            _ => return false,
        };
        leader.home == Some(by) && s.keeps(Rule::RetiredBetweenBatches)
    }

    /// Whether the instance is about to forget patterns: it does nothing else in between that concerns them.
    pub fn is_forgetting(&self, number: u8) -> bool {
        matches!(self.phase, Phase::Forgetting { by, .. } if by == number)
    }

    /// What is to go from the fence goes only under the claim that it was forgotten under: else it is swept again.
    pub fn forget(&mut self, leader: Option<&Leader>) {
        if let Phase::Forgotten { by, .. } = self.phase
            && leader
                .is_none_or(|l| l.home != Some(by) || !l.with_l2 || matches!(l.phase, LeaderPhase::Claiming { .. }))
        {
            self.phase = Phase::Idle;
        }
    }
}

/// The keys in a set of bits.
fn keys(s: &Scenario, of: impl Fn(usize) -> bool) -> impl Iterator<Item = usize> {
    (0..s.keys).filter(move |&key| of(key))
}

/// The steps of a sweep in this state.
pub fn steps(w: &World, s: &Scenario, mut found: impl FnMut(SweepStep)) {
    let retires = |leader: &Leader| leader.phase == LeaderPhase::Idle || !s.keeps(Rule::RetiredBetweenBatches);
    let leads = |by: u8| w.leader.is_some_and(|l| l.home == Some(by) && l.with_l2 && retires(&l)) && w.leads(by);
    match w.sweeper.phase {
        Phase::Idle if w.sweeper.sweeps_left > 0 => {
            let home = (0..INSTANCES as u8).find(|&i| w.leads(i));
            if home.is_some_and(|home| w.instances[home as usize].trusts_l2 && due(w, home) != [0; KEYS]) {
                found(SweepStep::Begin);
            }
        }
        Phase::Idle => {}
        Phase::Walking { by, patterns, passed, found: returned } => {
            keys(s, |key| patterns[key] != 0 && passed & 1 << key == 0).for_each(|key| found(SweepStep::Scan(key)));
            keys(s, |key| returned & 1 << key != 0).for_each(|key| found(SweepStep::Unlink(key)));
            if !s.keeps(Rule::RetiredOnceSwept) && leads(by) {
                found(SweepStep::Note);
            }
        }
        Phase::InL1 { passed, .. } => {
            keys(s, |key| passed & 1 << key == 0).for_each(|key| found(SweepStep::InL1(key)));
        }
        Phase::Swept { by, .. } if leads(by) => found(SweepStep::Note),
        Phase::Swept { .. } => {}
        Phase::Forgetting { .. } => found(SweepStep::Forget),
        Phase::Forgotten { by, .. } if leads(by) => found(SweepStep::Unset),
        Phase::Forgotten { .. } => {}
    }
}

/// The patterns that may be swept.
fn due(w: &World, by: u8) -> [Lsn; KEYS] {
    let instance = &w.instances[by as usize];
    let applied = |c: Lsn| c <= instance.watermark();
    instance.floors.patterns.map(|c| if applied(c) { c } else { 0 })
}

/// Takes one step of a sweep.
pub fn take(w: &mut World, s: &Scenario, step: SweepStep) {
    let phase = match (w.sweeper.phase, step) {
        (Phase::Idle, SweepStep::Begin) => {
            w.sweeper.sweeps_left -= 1;
            let by = (0..INSTANCES as u8).find(|&i| w.leads(i)).unwrap_or(0);
            Phase::Walking { by, patterns: due(w, by), passed: 0, found: 0 }
        }
        (Phase::Walking { by, patterns, passed, found }, SweepStep::Scan(key)) => {
            let there = w.redis.cells[key] != Cell::Absent;
            walked(s, by, patterns, passed | 1 << key, found | u8::from(there) << key)
        }
        (Phase::Walking { by, patterns, passed, found }, SweepStep::Unlink(key)) => {
            w.redis.unlink_below(key, patterns[key], s);
            walked(s, by, patterns, passed, found & !(1 << key))
        }
        (Phase::InL1 { by, patterns, passed }, SweepStep::InL1(key)) => {
            w.instances[by as usize].sweep(key, patterns, s);
            let passed = passed | 1 << key;
            if keys(s, |key| passed & 1 << key == 0).next().is_none() {
                Phase::Swept { by, patterns }
            } else {
                Phase::InL1 { by, patterns, passed }
            }
        }
        (Phase::Swept { by, patterns } | Phase::Walking { by, patterns, .. }, SweepStep::Note) => {
            let instance = &mut w.instances[by as usize];
            let gone = instance.floors.standing(patterns, s);
            if gone == [0; KEYS] {
                Phase::Idle
            } else {
                halfway(w, s, by, gone, true);
                Phase::Forgetting { by, gone }
            }
        }
        (Phase::Forgetting { by, gone }, SweepStep::Forget) => {
            halfway(w, s, by, gone, false);
            Phase::Forgotten { by, gone }
        }
        (Phase::Forgotten { gone, .. }, SweepStep::Unset) => {
            if let Some(leader) = w.leader
                && w.redis.forget_patterns(gone, leader.authority, s).is_err()
            {
                w.leader = None;
                w.dismiss(&leader, s);
            }
            Phase::Idle
        }
        (_, _) => Phase::Idle,
    };
    w.sweeper.phase = phase;
}

/// Once the walk through L2 is at its end, L1 is next.
fn walked(s: &Scenario, by: u8, patterns: [Lsn; KEYS], passed: u8, found: u8) -> Phase {
    if found != 0 || keys(s, |key| patterns[key] != 0 && passed & 1 << key == 0).next().is_some() {
        Phase::Walking { by, patterns, passed, found }
    } else if s.l1 {
        Phase::InL1 { by, patterns, passed: 0 }
    } else {
        Phase::Swept { by, patterns }
    }
}

/// The two halves of what the process does to forget patterns.
fn halfway(w: &mut World, s: &Scenario, by: u8, gone: [Lsn; KEYS], first: bool) {
    let instance = &mut w.instances[by as usize];
    if first == s.keeps(Rule::SweptNotedFirst) {
        for (key, &c) in gone.iter().enumerate() {
            let swept = &mut instance.swept[s.entity(key)];
            *swept = (*swept).max(c);
        }
    } else {
        instance.floors.forget(gone);
    }
}

impl Redis {
    /// `fence.lua` that removes them.
    fn forget_patterns(&mut self, gone: [Lsn; KEYS], by: Authority, s: &Scenario) -> Result<(), Failed> {
        self.fence_for(by, s)?.floors.forget(gone);
        Ok(())
    }

    /// `unlink_below.lua`.
    fn unlink_below(&mut self, key: usize, floor: Lsn, s: &Scenario) {
        let goes = match self.cells[key] {
            Cell::Absent => false,
            Cell::Lease(_) => s.keeps(Rule::SweepRemovesLeases),
            Cell::Entry(e) => e.lo < floor,
        };
        if goes {
            self.cells[key] = Cell::Absent;
        }
    }
}
