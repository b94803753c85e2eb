//! What must hold: O1 to O4 of the failure table, judged at every answer, every confirmation and every state.

use std::fmt;

use crate::leader::Phase;
use crate::reader;
use crate::redis::Cell;
use crate::scenario::{Lsn, Scenario, Value, end, is_committed};
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
    /// An answer shows what no transaction left behind.
    NeverCommitted { value: Value },
    /// O4: the slot has confirmed what was not applied.
    ConfirmedUnapplied { confirmed: u8, applied: u8 },
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
    pub demanded: Value,
    pub seen: Value,
}

impl Answer {
    /// O2 and O3. Values of one key are ordered as the transactions that left them.
    pub fn judge(&self, s: &Scenario, key: usize) -> Result<(), Violation> {
        let Answer { value, applied, demanded, seen } = *self;
        let newest = s.value(key, applied / 2, !0);
        if !is_committed(value) {
            Err(Violation::NeverCommitted { value })
        } else if value < newest {
            Err(Violation::StalerThanAdmitted { value, applied, newest })
        } else if value < demanded {
            Err(Violation::StalerThanDemanded { value, demanded })
        } else if value < seen {
            Err(Violation::Backwards { value, seen })
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
        && w.leader.is_some_and(|l| l.phase == Phase::Idle && l.next == s.count())
        && w.instances[..s.instances].iter().all(|i| i.has_read_all(&w.redis))
        && w.readers.iter().all(|r| r.phase == reader::Phase::Idle)
}

/// O1.
pub fn judge_state(w: &World, s: &Scenario) -> Result<(), Violation> {
    if !is_quiescent(w, s) {
        return Ok(());
    }
    for key in 0..s.keys {
        let truth = w.on_primary(s, key);
        if let (Cell::Entry(e), Some(fence)) = (w.redis.cells[key], w.redis.fence)
            && e.generation == fence.generation
            && e.value != truth
        {
            return Err(Violation::Stale { key, value: e.value, truth, tier: "L2" });
        }
        for instance in &w.instances[..s.instances] {
            if let Some(e) = instance.servable(key)
                && e.value != truth
            {
                return Err(Violation::Stale { key, value: e.value, truth, tier: "L1" });
            }
        }
    }
    for (i, instance) in w.instances[..s.instances].iter().enumerate() {
        let watermark = instance.watermark();
        if s.must_arrive && watermark != end(s.count()) {
            return Err(Violation::WatermarkStuck { instance: i, watermark });
        }
        if !instance.can_trust(&w.redis, s) {
            return Err(Violation::DistrustForever { instance: i });
        }
    }
    Ok(())
}
