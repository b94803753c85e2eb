//! The leader: takes over, passes the gate, applies a batch script by script, tells the feed, marks, confirms.

use crate::properties::Violation;
use crate::redis::{Authority, Effect, Refused, Script};
use crate::scenario::{Change, Rule, Scenario, Value, end, piece_label, uncommitted};
use crate::world::World;

/// A leader process. What it knows, it knows since it took over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Leader {
    pub authority: Authority,
    /// Transactions received and applied: the index of the next one.
    pub next: u8,
    pub phase: Phase,
}

/// Where a leader stands in its batch, which reaches up to `to` (exclusive).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    Idle,
    Applying {
        to: u8,
        cut: bool,
        script: u8,
    },
    /// Every script was run.
    Applied {
        to: u8,
    },
    /// The first of telling the feed and marking `done` was done.
    Finishing {
        to: u8,
    },
}

/// Which leader takes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The one that holds the slot.
    Current,
    /// One that was paused, lost the slot, and now goes on with its batch.
    Resumed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaderStep {
    TakeOver,
    /// Where the takeover is not atomic: its first half.
    ReadHighWater,
    /// The batch passes the gate: up to `to`, in pieces or whole.
    Receive {
        to: u8,
        cut: bool,
    },
    Script,
    Feed,
    MarkDone,
    Confirm,
    Crash,
    Pause,
    /// The stream broke; the same process reads again from the confirmed LSN.
    Reconnect,
}

/// The scripts of a batch: per change if cut, else the last effect on each key.
pub fn scripts(s: &Scenario, from: u8, to: u8, cut: bool) -> Vec<Script> {
    let mut scripts: Vec<Script> = Vec::new();
    for i in from..to {
        let changes = s.transactions[i as usize].changes;
        for (n, &change) in changes.iter().enumerate() {
            let label = if cut { piece_label(i) } else { end(i + 1) };
            if !cut && s.keeps(Rule::Coalesced) {
                // Coalesced: only the last effect on a key counts, and none before TRUNCATE.
                scripts.retain(|before| match before.effect {
                    Effect::Put(key, _) => !change.touches(key),
                    Effect::RaiseGeneration => true,
                });
            }
            let effect = match change {
                Change::Put(key) => Effect::Put(key, value_after(changes, i, n, key)),
                Change::Truncate => Effect::RaiseGeneration,
            };
            scripts.push(Script { effect, label, split: cut });
        }
    }
    scripts
}

/// What change `n` of transaction `i` wrote: committed only if no later change of it touches the key.
fn value_after(changes: &[Change], i: u8, n: usize, key: usize) -> Value {
    if changes[n + 1..].iter().any(|c| c.touches(key)) { uncommitted(i, n) } else { i + 1 }
}

/// The steps that leaders can take in this state.
pub fn steps(w: &World, s: &Scenario, mut found: impl FnMut(Who, LeaderStep)) {
    if let Some(leader) = &w.resumed
        && leader.phase != Phase::Idle
    {
        found(Who::Resumed, work(leader, s));
    }
    let Some(leader) = &w.leader else {
        if !s.keeps(Rule::TakeoverAtomic) && w.peeked.is_none() {
            found(Who::Current, LeaderStep::ReadHighWater);
        }
        return found(Who::Current, LeaderStep::TakeOver);
    };
    if leader.phase == Phase::Idle {
        let most = (leader.next + s.batch).min(w.committed);
        for to in leader.next + 1..=most {
            if s.keeps(Rule::Gate) && w.visible & 1 << (to - 1) == 0 {
                break;
            }
            found(Who::Current, LeaderStep::Receive { to, cut: false });
            if to == leader.next + 1 && s.transactions[leader.next as usize].large {
                found(Who::Current, LeaderStep::Receive { to, cut: true });
            }
        }
    } else {
        found(Who::Current, work(leader, s));
    }
    if confirmable(leader, s) > w.confirmed && w.may_fail() {
        found(Who::Current, LeaderStep::Confirm);
    }
    if w.crashes > 0 {
        found(Who::Current, LeaderStep::Crash);
        if w.resumed.is_none() && leader.phase != Phase::Idle {
            found(Who::Current, LeaderStep::Pause);
        }
        if !s.keeps(Rule::TakeoverPerStream) {
            found(Who::Current, LeaderStep::Reconnect);
        }
    }
}

fn work(leader: &Leader, s: &Scenario) -> LeaderStep {
    let feed_first = s.keeps(Rule::FeedBeforeDone);
    match leader.phase {
        Phase::Idle | Phase::Applying { .. } => LeaderStep::Script,
        Phase::Applied { .. } if feed_first => LeaderStep::Feed,
        Phase::Finishing { .. } if !feed_first => LeaderStep::Feed,
        Phase::Applied { .. } | Phase::Finishing { .. } => LeaderStep::MarkDone,
    }
}

/// How many transactions the leader would confirm.
fn confirmable(leader: &Leader, s: &Scenario) -> u8 {
    match leader.phase {
        Phase::Applying { to, .. } if !s.keeps(Rule::ConfirmAfterApply) => to,
        _ => leader.next,
    }
}

/// Takes one step of a leader.
pub fn take(w: &mut World, s: &Scenario, who: Who, step: LeaderStep) -> Result<(), Violation> {
    match step {
        LeaderStep::TakeOver => {
            let mut authority = w.redis.take_over(w.confirmed, &mut w.sequence, s);
            authority.takeover = w.peeked.take().unwrap_or(authority.takeover);
            w.leader = Some(Leader { authority, next: w.confirmed, phase: Phase::Idle });
        }
        LeaderStep::ReadHighWater => w.peeked = w.redis.fence.map(|f| f.hw),
        LeaderStep::Receive { to, cut } => {
            if let Some(leader) = &mut w.leader {
                leader.phase = Phase::Applying { to, cut, script: 0 };
            }
        }
        LeaderStep::Script | LeaderStep::Feed | LeaderStep::MarkDone => {
            let mine = match who {
                Who::Current => w.leader.take(),
                Who::Resumed => w.resumed.take(),
            };
            let Some(mut leader) = mine else { return Ok(()) };
            // A refused leader is one no more: it stops.
            let after = run(w, s, &mut leader, step).ok().map(|()| leader);
            match who {
                Who::Current => w.leader = after,
                // What a resumed leader had received beyond this batch does not matter: it is at its end.
                Who::Resumed => w.resumed = after.filter(|l| l.phase != Phase::Idle),
            }
        }
        LeaderStep::Confirm => {
            let Some(leader) = &w.leader else { return Ok(()) };
            w.confirmed = confirmable(leader, s);
            return Violation::if_unapplied_confirmed(w);
        }
        LeaderStep::Crash => {
            w.crashes -= 1;
            w.leader = None;
        }
        LeaderStep::Pause => {
            w.crashes -= 1;
            w.resumed = w.leader.take();
        }
        LeaderStep::Reconnect => {
            w.crashes -= 1;
            let next = w.confirmed;
            w.leader = w.leader.map(|l| Leader { next, phase: Phase::Idle, ..l });
        }
    }
    Ok(())
}

/// Runs the leader's next script, or what ends its batch.
fn run(w: &mut World, s: &Scenario, leader: &mut Leader, step: LeaderStep) -> Result<(), Refused> {
    match (leader.phase, step) {
        (Phase::Applying { to, cut, script }, LeaderStep::Script) => {
            let all = scripts(s, leader.next, to, cut);
            w.redis.apply(all[script as usize], leader.authority, &mut w.sequence, s)?;
            let script = script + 1;
            leader.phase = if (script as usize) < all.len() {
                Phase::Applying { to, cut, script }
            } else {
                w.applied = w.applied.max(to);
                Phase::Applied { to }
            };
        }
        (Phase::Applied { to } | Phase::Finishing { to }, step) => {
            if step == LeaderStep::Feed {
                w.redis.append_feed(leader.next, to);
            } else {
                w.redis.mark_done(end(to), leader.authority, s)?;
            }
            if matches!(leader.phase, Phase::Applied { .. }) {
                leader.phase = Phase::Finishing { to };
            } else {
                leader.next = to;
                leader.phase = Phase::Idle;
            }
        }
        _ => {}
    }
    Ok(())
}
