//! The auditor: compares what a tier holds with the row, and allows for events in flight.
//!
//! It reads the entry, then the row on the primary with the insert position `hi`, waits until the watermark has reached
//! `hi`, and looks again. Whatever was committed before the row was read has been applied by then: an entry that is
//! still there as it was, and servable, must equal the row.

use crate::instance::L1Entry;
use crate::properties::Violation;
use crate::redis::{Cell, Entry};
use crate::rule::Rule;
use crate::scenario::{Lsn, PLANTED, Scenario, Value, end};
use crate::world::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Auditor {
    pub audits_left: u8,
    phase: Phase,
}

/// The entry to be audited: whether in L1, of which instance, under which key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub l1: bool,
    pub instance: u8,
    pub key: u8,
}

/// An entry with its labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Held {
    L1(L1Entry),
    L2(Entry),
}

impl Held {
    fn value(self) -> Value {
        match self {
            Held::L1(e) => e.value,
            Held::L2(e) => e.value,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    /// The entry was read, when the watermark stood there.
    Looked(Target, Held, Lsn),
    /// The row was read first (which is wrong).
    Compared(Target, Value, Lsn),
    /// Both were: the entry, the watermark, the row, `hi`.
    Both(Target, Held, Lsn, Value, Lsn),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditStep {
    Begin(Target),
    ReadRow,
    Look,
    LookAgain,
}

/// What a tier holds for the target, if it would be served.
fn held(w: &World, s: &Scenario, target: Target) -> Option<Held> {
    let (instance, key) = (&w.instances[target.instance as usize], target.key as usize);
    if target.l1 {
        return instance.servable(key, s).map(Held::L1);
    }
    let Cell::Entry(e) = w.redis.cells[key] else { return None };
    let stands = e.generation >= instance.generations[s.entity(key)] && instance.floors.admit(key, &e, s);
    let servable = stands && (!e.split || instance.watermark() >= e.lo);
    (instance.trusts_l2 && servable).then_some(Held::L2(e))
}

impl Auditor {
    pub const fn new(audits: u8) -> Self {
        Auditor { audits_left: audits, phase: Phase::Idle }
    }

    /// The instance is gone, and what was audited there.
    pub fn lose_instance(&mut self, number: u8) {
        match self.phase {
            Phase::Looked(t, ..) | Phase::Compared(t, ..) | Phase::Both(t, ..) if t.instance == number => {
                *self = Auditor::new(self.audits_left - 1);
            }
            _ => {}
        }
    }

    /// Takes each instance for the other.
    pub fn swap_instances(&mut self) {
        match &mut self.phase {
            Phase::Idle => {}
            Phase::Looked(t, ..) | Phase::Compared(t, ..) | Phase::Both(t, ..) => t.instance ^= 1,
        }
    }

    pub fn steps(&self, w: &World, s: &Scenario, mut found: impl FnMut(AuditStep)) {
        match self.phase {
            Phase::Idle if self.audits_left > 0 => {
                for key in 0..s.keys as u8 {
                    for instance in 0..s.instances as u8 {
                        for l1 in [false, true] {
                            let target = Target { l1, instance, key };
                            if held(w, s, target).is_some() || !s.keeps(Rule::AuditEntryBeforeRow) {
                                found(AuditStep::Begin(target));
                            }
                        }
                    }
                }
            }
            Phase::Idle => {}
            Phase::Looked(..) => found(AuditStep::ReadRow),
            Phase::Compared(target, ..) => {
                if held(w, s, target).is_some() {
                    found(AuditStep::Look);
                }
            }
            Phase::Both(target, .., hi) => {
                let watermark = w.instances[target.instance as usize].watermark();
                if watermark >= hi || !s.keeps(Rule::AuditWaits) {
                    found(AuditStep::LookAgain);
                }
            }
        }
    }
}

/// Takes one step of the auditor.
pub fn take(w: &mut World, s: &Scenario, step: AuditStep) -> Result<(), Violation> {
    let watermark = |target: Target| w.instances[target.instance as usize].watermark();
    let row = |target: Target| (w.on_primary(s, target.key as usize), end(w.committed));
    let phase = match (w.auditor.phase, step) {
        (Phase::Idle, AuditStep::Begin(target)) if s.keeps(Rule::AuditEntryBeforeRow) => match held(w, s, target) {
            Some(held) => Phase::Looked(target, held, watermark(target)),
            None => Phase::Idle,
        },
        (Phase::Idle, AuditStep::Begin(target)) => {
            let (row, hi) = row(target);
            Phase::Compared(target, row, hi)
        }
        (Phase::Looked(target, held, at), AuditStep::ReadRow) => {
            let (row, hi) = row(target);
            Phase::Both(target, held, at, row, hi)
        }
        (Phase::Compared(target, row, hi), AuditStep::Look) => match held(w, s, target) {
            Some(held) => Phase::Both(target, held, watermark(target), row, hi),
            None => Phase::Idle,
        },
        (Phase::Both(target, seen, at, row, _), AuditStep::LookAgain) => {
            let unchanged = held(w, s, target) == Some(seen);
            let looks_again = s.keeps(Rule::AuditLooksAgain);
            let excused = !s.keeps(Rule::AuditExcusesOnlyChange) && watermark(target) != at;
            let finding = seen.value() != row && (unchanged || !looks_again) && !excused;
            w.auditor = Auditor::new(w.auditor.audits_left - 1);
            return match seen.value() {
                PLANTED if unchanged && !finding => Err(Violation::MissedFinding),
                value if value != PLANTED && finding => Err(Violation::FalseFinding { value, row }),
                _ => Ok(()),
            };
        }
        (_, _) => Phase::Idle,
    };
    w.auditor.phase = phase;
    Ok(())
}
