//! Renewals of entries that stand.

use super::links::LINKED;
use super::{A, PIECES_OVER_FILLS, REFRESH};
use crate::scenario::Change::{Delete, Pattern, Put, Truncate};
use crate::scenario::{OnChange, Scenario, Transaction};

/// Two renewals amid commits, a fill, and a crash; events refresh what stands.
pub const RENEW: Scenario = Scenario {
    name: "renew",
    renewals: 2,
    readers: 1,
    reads: 1,
    own_writes: false,
    feed: false,
    crashes: 1,
    ..REFRESH
};

/// Two renewals of one entry at once.
pub const RENEW_TWICE: Scenario =
    Scenario { name: "renew twice", renewers: 2, transactions: &[RENEW.transactions[0]], reads: 2, ..RENEW };

/// Events write what is absent, too.
pub const RENEW_POPULATE: Scenario = Scenario {
    name: "renew, populate",
    transactions: &[Transaction::small(&[Delete(A)]), Transaction::small(&[Put(A)])],
    on_change: OnChange::Populate,
    renewals: 1,
    ..RENEW
};

/// Events only delete; with an L1.
pub const RENEW_L1: Scenario = Scenario {
    name: "renew, l1",
    on_change: OnChange::Invalidate,
    l1: true,
    renewals: 1,
    crashes: 0,
    reads: 2,
    ..RENEW
};

/// Entries that pieces have written.
pub const RENEW_PIECES: Scenario =
    Scenario { name: "renew, pieces", transactions: PIECES_OVER_FILLS.transactions, renewals: 1, reads: 1, ..RENEW };

/// A generation is raised meanwhile.
pub const RENEW_TRUNCATE: Scenario = Scenario {
    name: "renew, truncate",
    transactions: &[Transaction::small(&[Put(A)]), Transaction::small(&[Truncate(0)])],
    renewals: 1,
    crashes: 0,
    reads: 2,
    ..RENEW
};

/// Entries that are found by lookups.
pub const RENEW_LINKED: Scenario = Scenario { name: "renew, linked", renewals: 1, crashes: 0, ..LINKED };

/// Redis restarts meanwhile.
pub const RENEW_LOSSES: Scenario = Scenario {
    name: "renew, losses",
    transactions: &[RENEW.transactions[0]],
    renewals: 1,
    crashes: 0,
    restarts: 1,
    reads: 2,
    ..RENEW
};

/// What is renewed is voided, and swept; the leader crashes, or its stream breaks.
pub const RENEW_SWEEP: Scenario = Scenario {
    name: "renew, sweep",
    transactions: &[Transaction::small(&[Pattern(A)])],
    renewals: 1,
    sweeps: 1,
    l1: true,
    reads: 2,
    crashes: 1,
    ..RENEW
};

/// The lead goes from one instance to the other, which both renew.
pub const RENEW_HANDOVER: Scenario =
    Scenario { name: "renew, handover", transactions: &[RENEW.transactions[0]], instances: 2, crashes: 1, ..RENEW_L1 };

pub const ALL: &[Scenario] = &[
    RENEW,
    RENEW_TWICE,
    RENEW_POPULATE,
    RENEW_L1,
    RENEW_HANDOVER,
    RENEW_PIECES,
    RENEW_TRUNCATE,
    RENEW_LINKED,
    RENEW_LOSSES,
    RENEW_SWEEP,
];

pub const WIDE: &[Scenario] = &[
    Scenario { name: "renew, 2 reads", own_writes: true, reads: 2, ..RENEW },
    Scenario { name: "renew twice, 2 transactions", transactions: RENEW.transactions, ..RENEW_TWICE },
    Scenario { name: "renew, l1, crash", crashes: 1, ..RENEW_L1 },
    Scenario { name: "renew, pieces, 2 reads", reads: 2, ..RENEW_PIECES },
];
