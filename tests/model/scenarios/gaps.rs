//! Changes whose images have gaps.

use super::{A, OUTAGE, REFRESH};
use crate::scenario::Change::{Gaps, Put, Tag};
use crate::scenario::{OnChange, Scenario, Transaction};

/// Gaps are filled from fills, and from images before, in one batch and in several; the leader crashes, and replays.
pub const GAPS: Scenario = Scenario {
    name: "gaps",
    transactions: &[Transaction::small(&[Gaps(A)]), Transaction::small(&[Gaps(A)])],
    readers: 1,
    reads: 2,
    own_writes: false,
    feed: false,
    crashes: 1,
    batch: 2,
    ..REFRESH
};

/// After a change that tells all, and before one.
pub const GAPS_AMID: Scenario = Scenario {
    name: "gaps amid",
    transactions: &[Transaction::small(&[Put(A)]), Transaction::small(&[Gaps(A)]), Transaction::small(&[Put(A)])],
    reads: 1,
    ..GAPS
};

/// Images are written where nothing stands, too.
pub const GAPS_POPULATE: Scenario =
    Scenario { name: "gaps, populate", on_change: OnChange::Populate, crashes: 0, ..GAPS };

/// What is voided has values that nothing tells of.
pub const GAPS_VOID: Scenario = Scenario {
    name: "gaps, void",
    transactions: &[Transaction::small(&[Tag(A)]), Transaction::small(&[Gaps(A)])],
    ..GAPS
};

/// In a transaction that is applied in pieces, or whole.
pub const GAPS_PIECES: Scenario = Scenario {
    name: "gaps, pieces",
    transactions: &[Transaction::large(&[Gaps(A), Gaps(A)]), Transaction::small(&[Gaps(A)])],
    batch: 1,
    ..GAPS
};

/// L2 misses changes while it is away.
pub const GAPS_OUTAGE: Scenario = Scenario {
    name: "gaps, outage",
    transactions: &[Transaction::small(&[Put(A)]), Transaction::small(&[Gaps(A)])],
    l1: false,
    restarts: 0,
    reads: 2,
    ..OUTAGE
};

pub const ALL: &[Scenario] = &[GAPS, GAPS_AMID, GAPS_POPULATE, GAPS_PIECES, GAPS_VOID, GAPS_OUTAGE];

pub const WIDE: &[Scenario] = &[
    Scenario { name: "gaps, 2 crashes", crashes: 2, ..GAPS },
    Scenario { name: "gaps, three", transactions: &[Transaction::small(&[Gaps(A)]); 3], batch: 3, ..GAPS },
    Scenario { name: "gaps amid, populate", on_change: OnChange::Populate, ..GAPS_AMID },
];
