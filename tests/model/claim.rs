//! How an instance comes to lead, and how a leader parts with L2 and comes back to it.
//!
//! Whoever holds the slot draws an epoch and claims L2's fence with it. Up to where everything was applied before, it
//! knows from the slot and from its own watermark: if the fence shows less as done, L2 lacks something that nobody will
//! send again, and a new generation of everything begins. So the slot is also the durable record that L2 is
//! distrusted: a leader that goes on without L2 confirms beyond what the fence shows as done.

use crate::leader::{Leader, Phase};
use crate::lookups::Lookups;
use crate::rule::Rule;
use crate::scenario::{ENTITIES, Generation, Scenario, count_at, end};
use crate::scripts::{Authority, Claimed, Failed};
use crate::world::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimStep {
    /// An instance holds the slot, and claims L2: the first of two scripts.
    TakeOver { instance: u8 },
    /// An instance holds the slot, and cannot reach L2.
    TakeOverWithoutL2 { instance: u8 },
    /// The second script of a claim, and what the process does on its return.
    Settle,
    /// A leader without L2 claims it again.
    ReturnToL2,
    /// Where the takeover is not atomic: its first half.
    ReadHighWater,
    /// Where the slot's position is not read by whoever holds it: somebody reads it before.
    ReadConfirmed { instance: u8 },
}

/// The steps to leadership in this state.
pub fn steps(w: &World, s: &Scenario, mut found: impl FnMut(ClaimStep)) {
    if !s.keeps(Rule::ConfirmedReadHoldingSlot) && w.read_confirmed.is_none() {
        (0..s.instances as u8).for_each(|instance| found(ClaimStep::ReadConfirmed { instance }));
    }
    match &w.leader {
        None => {
            if !s.keeps(Rule::TakeoverAtomic) && w.peeked.is_none() {
                found(ClaimStep::ReadHighWater);
            }
            let candidates = if s.feed { 1 } else { s.instances as u8 };
            // A paused process does not lead; what an ended session has sent does not keep its process from leading.
            let paused = |i: u8| !s.feed && w.resumed.is_some_and(|r| r.home == Some(i));
            for instance in (0..candidates).filter(|&i| !paused(i) && !w.sweeper.is_forgetting(i)) {
                found(ClaimStep::TakeOver { instance });
                if w.outages > 0 {
                    found(ClaimStep::TakeOverWithoutL2 { instance });
                }
            }
        }
        Some(Leader { phase: Phase::Claiming { .. }, .. }) => found(ClaimStep::Settle),
        Some(Leader { phase: Phase::Idle, with_l2: false, raising: None, .. }) => found(ClaimStep::ReturnToL2),
        Some(_) => {}
    }
}

/// Takes one step to leadership.
pub fn take(w: &mut World, s: &Scenario, leader: Option<Leader>, step: ClaimStep) -> Result<Option<Leader>, Failed> {
    match (step, leader) {
        (ClaimStep::TakeOver { instance }, _) => {
            let leader = hold_slot(w, s, instance);
            Ok(Some(claim(w, s, leader)))
        }
        (ClaimStep::TakeOverWithoutL2 { instance }, _) => {
            w.outages -= 1;
            let mut leader = hold_slot(w, s, instance);
            go_without_l2(w, s, &mut leader);
            Ok(Some(leader))
        }
        (ClaimStep::ReturnToL2, Some(leader)) => {
            let from = end(leader.lookups.published);
            Ok(Some(claim(w, s, Leader { phase: Phase::Claiming { lost: false, from }, ..leader })))
        }
        (ClaimStep::Settle, Some(leader)) => settle(w, s, leader).map(Some),
        (ClaimStep::ReadHighWater, leader) => {
            w.peeked = w.redis.fence.and_then(|f| f.hw);
            Ok(leader)
        }
        (ClaimStep::ReadConfirmed { instance }, leader) => {
            w.read_confirmed = Some((instance, w.confirmed));
            Ok(leader)
        }
        (_, leader) => Ok(leader),
    }
}

/// The stream begins, after what the slot has confirmed, or after what this process has applied beyond that.
fn hold_slot(w: &mut World, s: &Scenario, instance: u8) -> Leader {
    let home = (!s.feed).then_some(instance);
    let confirmed = match w.read_confirmed.take() {
        Some((by, confirmed)) if by == instance => confirmed,
        _ => w.confirmed,
    };
    let own = if s.feed { 0 } else { w.instances[instance as usize].watermark() };
    let from = end(confirmed).max(own);
    let generations = home.map_or([0; ENTITIES], |_| w.instances[instance as usize].generations);
    Leader {
        home,
        authority: Authority { epoch: 0, takeover: 0, done: 0, broken: false },
        with_l2: true,
        generations,
        planned: generations,
        raising: None,
        // The server never sends again what was confirmed, whatever it is asked for.
        next: count_at(from).max(w.confirmed),
        lookups: Lookups::from(count_at(from).max(w.confirmed)),
        phase: Phase::Claiming { lost: false, from },
    }
}

/// The first script: the epoch. What stood there is compared with what was applied.
fn claim(w: &mut World, s: &Scenario, leader: Leader) -> Leader {
    let Phase::Claiming { from, .. } = leader.phase else { return leader };
    let proven = w.redis.proven(s);
    let epoch = w.draw();
    let before = w.redis.claim(epoch);
    let own = leader.home.map_or(0, |home| w.instances[home as usize].watermark());
    let applied = match (s.keeps(Rule::ClaimComparesConfirmed), s.keeps(Rule::ClaimComparesWatermark)) {
        (true, true) => from,
        (true, false) => end(w.confirmed),
        (false, _) => own,
    };
    let lost = proven.is_none_or(|proven| proven < applied);
    let (hw, done) = match before {
        Some(fence) if !lost => (fence.hw.unwrap_or(from), fence.done),
        _ => (from, from),
    };
    if let Some(home) = leader.home {
        w.sweeper.lose_connection(home, s);
    }
    let takeover = w.peeked.take().unwrap_or(hw);
    let mut leader = Leader {
        authority: Authority { epoch, takeover, done, broken: false },
        with_l2: true,
        phase: Phase::Claiming { lost, from },
        ..leader
    };
    if lost {
        leader.generations = [epoch; ENTITIES];
        if let Some(home) = leader.home {
            let instance = &mut w.instances[home as usize];
            instance.distrust();
            instance.raise_generations([epoch; ENTITIES]);
        }
    }
    leader
}

/// The second script: what the fence is to show. Then the process may believe L2, and its watermark moves on.
fn settle(w: &mut World, s: &Scenario, mut leader: Leader) -> Result<Leader, Failed> {
    let Phase::Claiming { lost, from } = leader.phase else { return Ok(leader) };
    let claimed = if lost { Claimed::Lost { at: from } } else { Claimed::Sound { known: leader.generations } };
    let fence = w.redis.settle_claim(claimed, leader.authority, s)?;
    let stands: [Generation; ENTITIES] = std::array::from_fn(|entity| fence.generation_of(entity, s));
    for (known, stands) in leader.generations.iter_mut().zip(stands) {
        *known = (*known).max(stands);
    }
    leader.planned = leader.generations;
    if let Some(home) = leader.home {
        let instance = &mut w.instances[home as usize];
        instance.raise_generations(stands);
        if s.keeps(Rule::FloorsTaken) {
            instance.floors.raise_to(fence.floors);
        }
        instance.claimed(leader.authority.done);
        instance.take_over(count_at(from), s);
    }
    leader.phase = Phase::Idle;
    Ok(leader)
}

/// L2 is distrusted until it is claimed again. A batch in hand begins again, in this instance only.
pub fn go_without_l2(w: &mut World, s: &Scenario, leader: &mut Leader) {
    leader.with_l2 = false;
    if let Some(home) = leader.home {
        w.sweeper.lose_connection(home, s);
        let instance = &mut w.instances[home as usize];
        if s.keeps(Rule::OutageDistrusts) {
            instance.distrust();
        } else {
            instance.lose_connection();
        }
        if let Phase::Claiming { from, .. } = leader.phase {
            instance.take_over(count_at(from), s);
        }
    }
    leader.phase = match leader.phase {
        Phase::Claiming { .. } | Phase::Idle => Phase::Idle,
        Phase::Working { to, cut, void, .. } => Phase::working(to, cut, void),
    };
}

impl World {
    /// Draws from the sequence in the source database.
    pub fn draw(&mut self) -> Generation {
        self.sequence += 1;
        self.sequence
    }

    /// A process is gone, with its L1, its watermark and what its readers were at.
    pub fn crash_instance(&mut self, number: u8) {
        self.instances[number as usize] = crate::instance::Instance::FRESH;
        for reader in &mut self.readers {
            reader.lose_instance(number);
        }
        for renewer in &mut self.renewers {
            renewer.lose_instance(number);
        }
        self.sweeper.lose_instance(number);
        self.auditor.lose_instance(number);
    }

    /// The leader was refused, or did not reach L2: it leads no more.
    pub fn dismiss(&mut self, leader: &Leader, s: &Scenario) {
        let Some(home) = leader.home else { return };
        if leader.authority.broken {
            self.instances[home as usize].lose_connection();
        } else {
            self.instances[home as usize].distrust();
        }
        self.sweeper.lose_connection(home, s);
    }
}
