//! What must hold: O1 to O4 of the failure table, judged at every answer, every confirmation and every state.

use std::fmt;

use crate::instance::{Instance, is_at_end};
use crate::leader::Phase;
use crate::reader;
use crate::redis::Cell;
use crate::scenario::{Generation, Lsn, PLANTED, Scenario, Value, count_at, end, is_committed};
use crate::world::World;

/// What did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// O1: nothing goes on any more, and an entry that would be served differs from Postgres.
    Stale { key: usize, value: Value, truth: Value, tier: &'static str },
    /// O1, the other half: nothing goes on any more, and an instance can never trust L2 again.
    DistrustForever { instance: usize },
    /// O1, and that half too: an instance's watermark stays behind for ever.
    WatermarkStuck { instance: usize, watermark: Lsn },
    /// O2: the client had seen a newer value.
    Backwards { value: Value, seen: Value },
    /// O3: the answer lacks what was committed up to its `X-Applied-LSN`.
    StalerThanAdmitted { value: Value, applied: Lsn, newest: Value },
    /// O3: the answer lacks what was committed and visible up to the `X-Min-LSN` when the read began.
    StalerThanDemanded { value: Value, demanded: Value },
    /// O4: the slot has confirmed what was not applied.
    ConfirmedUnapplied { confirmed: u8, applied: u8 },
    /// A phantom: an answer shows what no transaction left behind.
    NeverCommitted { value: Value },
    /// A phantom: an answer shows what neither the primary nor, where it may be read, the standby shows yet.
    AheadOfPostgres { value: Value },
    /// A phantom: an answer shows what was committed after its `X-Read-LSN`.
    BeyondReadLsn { value: Value, read: Lsn },
    /// What a resync should have voided was served after it.
    OlderThanResync { generation: Generation, resynced: Generation },
    /// The auditor accuses an entry that is right.
    FalseFinding { value: Value, row: Value },
    /// The auditor passes an entry that is wrong.
    MissedFinding,
    /// No violation of O1 to O4 by itself: a script put an older value over a newer one.
    EntryBackwards { old: Value, new: Value },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Violation {
    /// O4.
    pub fn if_unapplied_confirmed(w: &World) -> Result<(), Violation> {
        let (confirmed, applied) = (w.confirmed, w.applied);
        if confirmed > applied { Err(Violation::ConfirmedUnapplied { confirmed, applied }) } else { Ok(()) }
    }
}

/// An answer, with what its reader knew before.
pub struct Answer {
    pub value: Value,
    /// `X-Applied-LSN`.
    pub applied: Lsn,
    /// `X-Read-LSN`.
    pub read: Lsn,
    pub demanded: Value,
    pub seen: Value,
}

impl Answer {
    /// O2, O3, and that nothing is a phantom. Values of one key are ordered as the transactions that left them.
    pub fn judge(&self, w: &World, s: &Scenario, key: usize) -> Result<(), Violation> {
        let Answer { value, applied, read, demanded, seen } = *self;
        let newest = s.value(key, count_at(applied), !0);
        if !is_committed(value) {
            return Err(Violation::NeverCommitted { value });
        }
        let shown = match value.checked_sub(1) {
            None => true,
            Some(_) if s.many => value & !w.visible == 0,
            Some(i) => w.visible & 1 << i != 0 || (s.standby && i < w.standby),
        };
        if s.lacks(value, newest) {
            Err(Violation::StalerThanAdmitted { value, applied, newest })
        } else if s.lacks(value, demanded) {
            Err(Violation::StalerThanDemanded { value, demanded })
        } else if s.lacks(value, seen) {
            Err(Violation::Backwards { value, seen })
        } else if !shown {
            Err(Violation::AheadOfPostgres { value })
        } else if end(s.last(value)) > read {
            Err(Violation::BeyondReadLsn { value, read })
        } else {
            Ok(())
        }
    }
}

/// Whether writes have stopped, the stream is drained, and no read is in flight.
fn is_quiescent(w: &World, s: &Scenario) -> bool {
    let all_visible = (1u8 << s.count()) - 1;
    w.visible == all_visible
        && w.resumed.is_none()
        && w.leader.is_some_and(|l| {
            l.phase == Phase::Idle
                && l.with_l2
                && !l.authority.broken
                && w.redis.fence.is_some()
                && l.raising.is_none()
                && l.next == s.count()
                && l.lookups.are_over()
        })
        && (!s.feed || w.instances[..s.instances].iter().all(|i| i.has_read_all(&w.redis.feed)))
        && w.readers.iter().all(|r| r.phase == reader::Phase::Idle)
}

/// O1.
pub fn judge_state(w: &World, s: &Scenario) -> Result<(), Violation> {
    if !is_quiescent(w, s) {
        return Ok(());
    }
    for (i, instance) in w.instances[..s.instances].iter().enumerate() {
        // Without a feed, an instance that does not lead says with every answer how far behind it is.
        if !s.feed && !w.leads(i as u8) {
            continue;
        }
        nothing_stale(w, s, instance)?;
        let watermark = instance.watermark();
        if s.must_arrive && !is_at_end(instance, s) {
            return Err(Violation::WatermarkStuck { instance: i, watermark });
        }
        if !instance.can_trust(&w.redis, s) {
            return Err(Violation::DistrustForever { instance: i });
        }
    }
    Ok(())
}

fn nothing_stale(w: &World, s: &Scenario, instance: &Instance) -> Result<(), Violation> {
    for key in 0..s.keys {
        let truth = w.on_primary(s, key);
        let wrong = |value: Value| s.differs(value, truth) && value != PLANTED;
        if let Cell::Entry(e) = w.redis.cells[key]
            && e.generation >= instance.generations[s.entity(key)]
            && instance.floors.admit(key, &e, s)
            && wrong(e.value)
        {
            return Err(Violation::Stale { key, value: e.value, truth, tier: "L2" });
        }
        if let Some(e) = instance.servable(key, s)
            && wrong(e.value)
        {
            return Err(Violation::Stale { key, value: e.value, truth, tier: "L1" });
        }
    }
    Ok(())
}
