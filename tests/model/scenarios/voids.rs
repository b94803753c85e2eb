//! Voids by tags and patterns, and sweeping.

use super::{A, ALONE, B, FILLS, HANDOVER, OUTAGE, links};
use crate::scenario::Change::{Pattern, Put, Tag};
use crate::scenario::{OnChange, Scenario, Transaction};

/// A tag is voided while readers fill, and leaders crash: what it concerns has changed unseen.
pub const VOID: Scenario = Scenario {
    name: "void",
    transactions: &[Transaction::small(&[Tag(A)]), Transaction::small(&[Put(A)])],
    on_change: OnChange::Invalidate,
    many: true,
    own_writes: false,
    reads: 2,
    ..ALONE
};

/// The same where events write what they tell, over what was voided, too.
pub const VOID_IMAGES: Scenario = Scenario {
    name: "void, images",
    transactions: &[Transaction::small(&[Tag(A), Put(A)]), Transaction::small(&[Tag(A)])],
    on_change: OnChange::Populate,
    many: false,
    l1: false,
    ..VOID
};

/// A transaction that voids is applied in pieces.
pub const VOID_PIECES: Scenario = Scenario {
    name: "void, pieces",
    transactions: &[Transaction::large(&[Put(A), Tag(A), Put(A)]), Transaction::small(&[Tag(A)])],
    ..VOID_IMAGES
};

/// The lead goes from one instance to the other.
pub const VOID_HANDOVER: Scenario =
    Scenario { name: "void, handover", transactions: &[Transaction::small(&[Tag(A)])], many: false, ..HANDOVER };

/// Voids while L2 is away, which may come back as it was.
pub const VOID_OUTAGE: Scenario =
    Scenario { name: "void, outage", transactions: &[Transaction::small(&[Tag(A)])], many: false, ..OUTAGE };

/// A pattern is voided and swept, while two readers are on their way; the leader crashes, or its stream breaks.
pub const SWEEP: Scenario = Scenario {
    name: "sweep",
    transactions: &[Transaction::small(&[Pattern(A)])],
    sweeps: 1,
    readers: 2,
    reads: 1,
    own_writes: false,
    crashes: 1,
    ..ALONE
};

/// The same, of one reader that reads twice.
pub const SWEEP_REREAD: Scenario = Scenario { name: "sweep, read twice", readers: 1, reads: 2, ..SWEEP };

/// Redis restarts, as it once was, or empty.
pub const SWEEP_LOSSES: Scenario = Scenario { name: "sweep, losses", crashes: 0, restarts: 1, ..SWEEP_REREAD };

/// The lead goes from one instance to the other.
pub const SWEEP_HANDOVER: Scenario = Scenario { name: "sweep, handover", instances: 2, ..SWEEP_REREAD };

/// The pattern comes again while it is swept.
pub const SWEEP_AGAIN: Scenario = Scenario {
    name: "sweep, again",
    transactions: &[Transaction::small(&[Pattern(A)]), Transaction::small(&[Pattern(A)])],
    readers: 1,
    reads: 2,
    crashes: 0,
    ..SWEEP
};

/// Two patterns of one entity, swept one after the other, or together.
pub const SWEEP_TWO: Scenario = Scenario {
    name: "sweep, two patterns",
    transactions: &[Transaction::small(&[Pattern(A)]), Transaction::small(&[Pattern(B)])],
    keys: 2,
    readers: 1,
    reads: 2,
    sweeps: 2,
    crashes: 0,
    ..SWEEP
};

/// An audit of what is voided.
pub const VOID_AUDIT: Scenario = Scenario {
    name: "void, audit",
    transactions: &[Transaction::small(&[Tag(A)])],
    many: false,
    audits: 1,
    reads: 1,
    ..VOID
};

/// A pattern is voided while a round of lookups holds the watermark back.
pub const VOID_LINKED: Scenario = Scenario {
    name: "void, linked",
    transactions: &[links::LINKED.transactions[0], Transaction::small(&[Pattern(A)])],
    sweeps: 1,
    crashes: 0,
    ..links::LINKED
};

pub const ALL: &[Scenario] = &[
    VOID_AUDIT,
    VOID_LINKED,
    VOID,
    VOID_IMAGES,
    VOID_PIECES,
    VOID_HANDOVER,
    VOID_OUTAGE,
    SWEEP,
    SWEEP_REREAD,
    SWEEP_LOSSES,
    SWEEP_HANDOVER,
    SWEEP_AGAIN,
    SWEEP_TWO,
];

pub const WIDE: &[Scenario] = &[
    Scenario { name: "void, 2 crashes", crashes: 2, ..VOID },
    Scenario { name: "void, handover, 2 transactions", transactions: VOID.transactions, ..VOID_HANDOVER },
    Scenario { name: "void, outage, 2 transactions", transactions: VOID.transactions, ..VOID_OUTAGE },
    Scenario { name: "sweep, again, crash", crashes: 1, sweeps: 2, ..SWEEP_AGAIN },
    Scenario {
        name: "sweep, then a change",
        transactions: &[SWEEP.transactions[0], FILLS.transactions[0]],
        ..SWEEP_REREAD
    },
];
