//! The leader: passes the gate, works a batch in step by step, confirms; or goes on without L2. How one comes to lead
//! is in [`crate::claim`].

use crate::claim;
use crate::gaps::{self, Gaps};
use crate::lookups::{self, Lookups};
use crate::properties::Violation;
use crate::rule::Rule;
use crate::scenario::{ENTITIES, Generation, Lsn, Scenario, end};
use crate::scripts::{Authority, Failed, Image};
use crate::voids::Floors;
use crate::work::{Work, work};
use crate::world::World;

/// A leader process. What it knows, it knows since it took over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Leader {
    /// The instance that it lives in and moves on; `None` where all follow a feed, and for what an ended session has
    /// left on its way to Redis.
    pub home: Option<u8>,
    pub authority: Authority,
    /// Whether it writes L2; else it goes on without.
    pub with_l2: bool,
    /// The generations that the process knows.
    pub generations: [Generation; ENTITIES],
    /// Those that its planner has seen: images bear them.
    pub planned: [Generation; ENTITIES],
    /// A generation drawn for an entity, or for all, and set in L2: the process is still to follow.
    pub raising: Option<(Option<u8>, Generation)>,
    /// Transactions received and applied: the index of the next one.
    pub next: u8,
    pub lookups: Lookups,
    pub phase: Phase,
}

/// Where a leader stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Its epoch stands in L2's fence; what it found there is still to be settled. It streams from `from`.
    Claiming {
        lost: bool,
        from: Lsn,
    },
    Idle,
    /// In its batch, which reaches up to `to` (exclusive), before step `at` of the work.
    Working {
        to: u8,
        cut: bool,
        /// All entries are voided, instead of those that lookups would find.
        void: bool,
        at: u8,
        drawn: Generation,
        /// Bit `i`: the lookups of transaction `i` have found the entry.
        found: u8,
        /// What has become of the gaps of its image (the model has one such image in a batch).
        gaps: Gaps,
    },
}

impl Phase {
    /// At the beginning of a batch.
    pub const fn working(to: u8, cut: bool, void: bool) -> Self {
        Phase::Working { to, cut, void, at: 0, drawn: 0, found: 0, gaps: Gaps::Left }
    }
}

/// Which leader takes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The one that holds the slot.
    Current,
    /// One that was paused, lost the slot, and now goes on with its batch; or what an ended session has sent.
    Resumed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaderStep {
    Claim(claim::ClaimStep),
    /// The batch passes the gate: up to `to`, in pieces or whole.
    Receive {
        to: u8,
        cut: bool,
    },
    /// The planner looks at the generations.
    Replan,
    Work(Work),
    Confirm,
    /// Voids all entries instead of waiting for a round's end.
    Void,
    /// Draws a generation with no event, for an entity or for all, and sets it in L2.
    Resync(Option<u8>),
    /// Sets it in the process.
    ResyncLocal,
    /// L2 was away for too long: goes on without. What was sent to Redis may still arrive there.
    LoseL2 {
        in_flight: bool,
    },
    /// It finds out that its connection to L2 is broken.
    Notice,
    /// The process ends.
    Crash,
    Pause,
    /// The stream broke. What was sent to Redis may still arrive there.
    EndSession {
        in_flight: bool,
    },
}

/// The steps that leaders can take in this state.
pub fn steps(w: &World, s: &Scenario, mut found: impl FnMut(Who, LeaderStep)) {
    if let Some(leader) = &w.resumed
        && let Some(next) = next_work(leader, s)
    {
        found(Who::Resumed, LeaderStep::Work(next));
    }
    claim::steps(w, s, |step| found(Who::Current, LeaderStep::Claim(step)));
    let Some(leader) = &w.leader else { return };
    let mut found = |step| found(Who::Current, step);
    match leader.phase {
        Phase::Claiming { .. } => {}
        Phase::Idle if w.sweeper.keeps_busy(leader, s) => {}
        Phase::Idle if leader.lookups.are_due() => found(LeaderStep::Receive { to: leader.next, cut: false }),
        Phase::Idle => {
            let most = (leader.next + s.batch).min(w.committed);
            for to in leader.next + 1..=most {
                if s.keeps(Rule::Gate) && s.keeps(Rule::LookupAfterGate) && w.visible & 1 << (to - 1) == 0 {
                    break;
                }
                found(LeaderStep::Receive { to, cut: false });
                if to == leader.next + 1 && s.transactions[leader.next as usize].large {
                    found(LeaderStep::Receive { to, cut: true });
                }
            }
        }
        Phase::Working { to, at, .. } => {
            // Where lookups come before the gate, this is the gate.
            let passed =
                s.keeps(Rule::LookupAfterGate) || at == 0 || (leader.next..to).all(|i| w.visible & 1 << i != 0);
            if let Some(next) = next_work(leader, s).filter(|_| passed) {
                found(LeaderStep::Work(next));
            }
        }
    }
    if leader.planned != leader.generations && !matches!(leader.phase, Phase::Working { cut: false, .. }) {
        found(LeaderStep::Replan);
    }
    if w.voids > 0 && leader.phase == Phase::Idle && !leader.lookups.are_over() {
        found(LeaderStep::Void);
    }
    if confirmable(leader, s) > w.confirmed && w.may_fail() {
        found(LeaderStep::Confirm);
    }
    if leader.raising.is_some() {
        found(LeaderStep::ResyncLocal);
    } else if w.resyncs > 0 && !matches!(leader.phase, Phase::Claiming { .. }) && !w.sweeper.keeps_busy(leader, s) {
        found(LeaderStep::Resync(None));
        if s.entities > 1 {
            (0..s.entities as u8).for_each(|entity| found(LeaderStep::Resync(Some(entity))));
        }
    }
    let working = matches!(leader.phase, Phase::Working { .. });
    let leaves_behind = working && leader.with_l2 && w.resumed.is_none();
    if w.outages > 0 && leader.with_l2 {
        found(LeaderStep::LoseL2 { in_flight: false });
        if leaves_behind {
            found(LeaderStep::LoseL2 { in_flight: true });
        }
    }
    if leader.authority.broken {
        found(LeaderStep::Notice);
    }
    if w.crashes > 0 {
        found(LeaderStep::Crash);
        if w.resumed.is_none() && working {
            found(LeaderStep::Pause);
        }
        if leader.home.is_some() || !s.keeps(Rule::TakeoverPerStream) {
            found(LeaderStep::EndSession { in_flight: false });
        }
        if leader.home.is_some() && leaves_behind {
            found(LeaderStep::EndSession { in_flight: true });
        }
    }
}

/// What the leader does next to its batch.
fn next_work(leader: &Leader, s: &Scenario) -> Option<Work> {
    let Phase::Working { at, .. } = leader.phase else { return None };
    work(s, leader).get(at as usize).copied()
}

/// How many transactions the leader would confirm.
fn confirmable(leader: &Leader, s: &Scenario) -> u8 {
    match leader.phase {
        Phase::Working { to, .. } if !s.keeps(Rule::ConfirmAfterApply) => to,
        Phase::Working { to, at, .. }
            if !s.keeps(Rule::GenerationBeforeConfirm) || !s.keeps(Rule::FloorBeforeConfirm) =>
        {
            let rest = &work(s, leader)[at as usize..];
            let is_late = |w: &Work| matches!(w, Work::RaiseGeneration { .. } | Work::SetFloor(..));
            if rest.iter().all(is_late) { to } else { leader.next }
        }
        _ => leader.lookups.published,
    }
}

/// Takes one step of a leader.
pub fn take(w: &mut World, s: &Scenario, who: Who, step: LeaderStep) -> Result<(), Violation> {
    let mine = match who {
        Who::Current => w.leader.take(),
        Who::Resumed => w.resumed.take(),
    };
    let outcome = match (mine, step) {
        (mine, LeaderStep::Claim(step)) => claim::take(w, s, mine, step),
        (None, _) => Ok(None),
        (Some(leader), step) => act(w, s, leader, step),
    };
    let after = match outcome {
        Ok(after) => after,
        // A refused leader is one no more: it stops.
        Err(Failed::Refused) => {
            if let Some(leader) = mine {
                w.dismiss(&leader, s);
            }
            None
        }
        Err(Failed::Violated(violation)) => return Err(violation),
    };
    match who {
        Who::Current => w.leader = after,
        // What a resumed leader had received beyond this batch does not matter: it is at its end.
        Who::Resumed => w.resumed = after.filter(|l| l.phase != Phase::Idle),
    }
    if step == LeaderStep::Confirm { Violation::if_unapplied_confirmed(w) } else { Ok(()) }
}

fn act(w: &mut World, s: &Scenario, mut leader: Leader, step: LeaderStep) -> Result<Option<Leader>, Failed> {
    match step {
        LeaderStep::Receive { to, cut } => {
            leader.phase = Phase::working(to, cut, false);
        }
        LeaderStep::Void => {
            w.voids -= 1;
            leader.phase = Phase::working(leader.next, false, true);
        }
        LeaderStep::Replan => leader.planned = leader.generations,
        LeaderStep::Work(step) => run(w, s, &mut leader, step)?,
        LeaderStep::Confirm => w.confirmed = w.confirmed.max(confirmable(&leader, s)),
        LeaderStep::Resync(entity) => {
            w.resyncs -= 1;
            let drawn = w.draw();
            if leader.with_l2 {
                w.redis.raise(entity.map(usize::from), drawn, None, leader.authority, s)?;
            }
            leader.raising = Some((entity, drawn));
        }
        LeaderStep::ResyncLocal => {
            if let Some((which, drawn)) = leader.raising.take() {
                for entity in (0..s.entities).filter(|&e| which.is_none_or(|only| only as usize == e)) {
                    raise_local(w, &mut leader, entity, drawn);
                    w.resynced[entity] = drawn;
                }
            }
        }
        LeaderStep::LoseL2 { in_flight } => {
            w.outages -= 1;
            if in_flight {
                w.resumed = Some(Leader { home: None, ..leader });
            }
            claim::go_without_l2(w, s, &mut leader);
        }
        LeaderStep::Crash => {
            w.crashes -= 1;
            if let Some(home) = leader.home {
                w.crash_instance(home);
            }
            return Ok(None);
        }
        LeaderStep::Pause => {
            w.crashes -= 1;
            w.resumed = Some(leader);
            return Ok(None);
        }
        LeaderStep::EndSession { in_flight } => {
            w.crashes -= 1;
            if in_flight {
                w.resumed = Some(Leader { home: None, ..leader });
            }
            if s.keeps(Rule::TakeoverPerStream) {
                return Ok(None);
            }
            (leader.next, leader.phase) = (w.confirmed, Phase::Idle);
            leader.lookups = Lookups::from(w.confirmed);
        }
        LeaderStep::Notice => return Err(Failed::Refused),
        LeaderStep::Claim(_) => {}
    }
    Ok(Some(leader))
}

/// Raises a generation in the process.
fn raise_local(w: &mut World, leader: &mut Leader, entity: usize, to: Generation) {
    leader.generations[entity] = leader.generations[entity].max(to);
    if let Some(home) = leader.home {
        w.instances[home as usize].raise_generation(entity, to);
    }
}

/// Does the next thing that is to be done to the batch.
fn run(w: &mut World, s: &Scenario, leader: &mut Leader, step: Work) -> Result<(), Failed> {
    let Phase::Working { to, cut, void, at, mut drawn, mut found, mut gaps } = leader.phase else { return Ok(()) };
    let by = leader.authority;
    let draw = |w: &mut World| if drawn == 0 { w.draw() } else { drawn };
    // As things stood before this step.
    let published = if void { Some(to) } else { leader.publishable(s, to) };
    match step {
        Work::Look => found = lookups::look(w, s, leader, to),
        Work::Hold => {}
        Work::RaiseFence { key, label } => {
            if let Some(home) = leader.home {
                w.instances[home as usize].raise_fence(key, label);
            }
        }
        Work::RaiseGeneration { entity, label } => {
            drawn = draw(w);
            w.redis.raise(Some(entity), drawn, Some(label), by, s)?;
        }
        Work::RaiseLocal { entity } => {
            let generation = draw(w);
            raise_local(w, leader, entity, generation);
            drawn = 0;
        }
        Work::Put { key, value, label, high, split } => {
            let generation = leader.planned[s.entity(key)];
            w.redis.put(key, Image { value, label, high, split, generation }, by, s)?;
        }
        Work::RaiseFloor(void) => {
            if let Some(home) = leader.home {
                w.instances[home as usize].floors.raise(void);
            }
        }
        Work::SetFloor(void, high) => w.redis.set_floor(void, high, by, s)?,
        Work::FillGaps(image) => {
            let in_fence = w.redis.fence.map_or(Floors::NONE, |fence| fence.floors);
            let floors = leader.home.map_or(in_fence, |home| w.instances[home as usize].floors);
            gaps = w.redis.fill_gaps(image, leader.planned[s.entity(image.key)], floors, by, s)?;
        }
        Work::PutFilled(gaps::Image { key, label, high, piece, .. }) => match gaps {
            Gaps::Left => w.redis.drop(key, label, by, s)?,
            Gaps::Filled(value) => {
                let generation = leader.planned[s.entity(key)];
                w.redis.put(key, Image { value, label, high, split: piece.is_some(), generation }, by, s)?;
            }
            Gaps::Contained => {}
        },
        Work::Drop { key, label } => w.redis.drop(key, label, by, s)?,
        Work::Feed => w.redis.feed.append(leader.next, to, leader.generations),
        Work::MarkDone => {
            let done = end(published.unwrap_or(0));
            w.redis.mark_done(done, by, s)?;
            leader.authority.done = leader.authority.done.max(done);
        }
        Work::Advance => {
            if let Some(home) = leader.home {
                let to = published.unwrap_or(0);
                w.instances[home as usize].advance(to, leader.with_l2.then_some(leader.authority.done));
            }
        }
    }
    leader.phase = Phase::Working { to, cut, void, at: at + 1, drawn, found, gaps };
    let all = work(s, leader);
    let rest = &all[at as usize + 1..];
    if !rest.iter().any(|w| w.is_effect()) {
        let applied = if void { Some(to) } else { leader.publishable(s, to) };
        w.applied = w.applied.max(applied.unwrap_or(0));
    }
    if rest.is_empty() {
        if void {
            leader.void();
        } else {
            leader.finish(s, to);
        }
        leader.phase = Phase::Idle;
    }
    Ok(())
}
