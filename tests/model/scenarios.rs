//! The bounded worlds that are explored in full.

pub mod gaps;
pub mod links;
pub mod renewals;
pub mod voids;

use crate::explorer::{explore_all, print_table};
use crate::scenario::Change::{Delete, Put, Truncate};
use crate::scenario::{OnChange, Scenario, Transaction};

const A: usize = 0;
const B: usize = 1;

/// Two readers race their fills with two commits of the row and with evictions.
pub const FILLS: Scenario = Scenario {
    name: "fills",
    transactions: &[Transaction::small(&[Put(A)]), Transaction::small(&[Put(A)])],
    readers: 2,
    reads: 2,
    own_writes: true,
    batch: 2,
    ..Scenario::PLAIN
};

/// Events refresh what fills have put there, while leaders crash, replay, and come back to life.
pub const REFRESH: Scenario = Scenario { name: "refresh", readers: 1, crashes: 1, ..FILLS };

/// Events write what is absent, too.
pub const POPULATE: Scenario = Scenario { name: "populate", on_change: OnChange::Populate, ..REFRESH };

/// Events only delete.
pub const INVALIDATE: Scenario = Scenario { name: "invalidate", on_change: OnChange::Invalidate, ..REFRESH };

/// The row is deleted and comes back.
pub const DELETE: Scenario = Scenario {
    name: "delete",
    transactions: &[Transaction::small(&[Delete(A)]), Transaction::small(&[Put(A)])],
    on_change: OnChange::Populate,
    ..REFRESH
};

/// Two keys, changed together and alone.
pub const TWO_KEYS: Scenario = Scenario {
    name: "two keys",
    transactions: &[Transaction::small(&[Put(A), Put(B)]), Transaction::small(&[Put(B)])],
    keys: 2,
    own_writes: false,
    ..REFRESH
};

/// One transaction changes a row three times and is applied in pieces, or whole, or first so and then so.
pub const PIECES: Scenario = Scenario {
    name: "pieces",
    transactions: &[Transaction::large(&[Put(A), Put(A), Put(A)]), Transaction::small(&[Put(A)])],
    on_change: OnChange::Populate,
    reads: 2,
    crashes: 1,
    ..Scenario::PLAIN
};

/// The same where events only refresh what fills have put there.
pub const PIECES_OVER_FILLS: Scenario = Scenario {
    name: "pieces over fills",
    transactions: &[Transaction::large(&[Put(A), Put(A)]), Transaction::large(&[Put(A), Put(A)])],
    on_change: OnChange::Refresh,
    ..PIECES
};

/// Pieces, and a Redis that goes back to what it held between two of them.
pub const PIECES_LOST: Scenario = Scenario {
    name: "pieces lost",
    transactions: &[Transaction::large(&[Put(A), Put(A)]), Transaction::small(&[Put(A)])],
    reads: 1,
    crashes: 0,
    restarts: 1,
    ..PIECES
};

/// Two readers share an L1.
pub const L1: Scenario = Scenario { name: "l1", l1: true, readers: 2, reads: 1, ..FILLS };

/// One reader goes from instance to instance.
pub const TWO_INSTANCES: Scenario =
    Scenario { name: "two instances", l1: true, readers: 1, own_writes: false, instances: 2, batch: 1, ..FILLS };

/// Two readers fill at once, each through whichever instance, with an L1 in both.
pub const TWO_FILLERS: Scenario = Scenario { name: "two fillers", readers: 2, reads: 1, batch: 2, ..TWO_INSTANCES };

/// Redis comes back empty or as it was, between the scripts of one transaction too.
pub const LOSSES: Scenario = Scenario {
    name: "losses",
    transactions: &[Transaction::small(&[Put(A), Put(B)]), Transaction::small(&[Put(A)])],
    keys: 2,
    restarts: 1,
    ..Scenario::PLAIN
};

/// The same with the feed, which is lost too, and an L1.
pub const LOSSES_L1: Scenario = Scenario {
    name: "losses with l1",
    transactions: &[Transaction::small(&[Put(A)]), Transaction::small(&[Put(B)])],
    keys: 1,
    l1: true,
    reads: 2,
    ..LOSSES
};

/// The feed is trimmed before the instance has read it.
pub const TRIMS: Scenario = Scenario { name: "trims", keys: 2, restarts: 0, trims: true, batch: 2, ..LOSSES_L1 };

/// TRUNCATE alone, and in the midst of a transaction.
pub const TRUNCATE: Scenario = Scenario {
    name: "truncate",
    transactions: &[Transaction::large(&[Put(A), Truncate(0), Put(A)]), Transaction::small(&[Truncate(0)])],
    reads: 1,
    crashes: 1,
    ..Scenario::PLAIN
};

/// An instance that hears of TRUNCATE only by the feed.
pub const TRUNCATE_FEED: Scenario = Scenario {
    name: "truncate by feed",
    transactions: &[Transaction::small(&[Put(A), Truncate(0)]), Transaction::small(&[Put(A)])],
    reads: 2,
    l1: true,
    crashes: 0,
    ..TRUNCATE
};

/// Fills from a standby that shows commits before the primary does.
pub const STANDBY: Scenario =
    Scenario { name: "standby", standby: true, readers: 2, reads: 2, own_writes: false, batch: 1, ..FILLS };

/// The same where events drop entries and raise generations.
pub const STANDBY_DROPS: Scenario = Scenario {
    name: "standby, drops",
    transactions: &[Transaction::small(&[Delete(A)]), Transaction::small(&[Truncate(0)])],
    readers: 1,
    ..STANDBY
};

/// No feed: one instance leads, and moves its own L1 and watermark on. Its process crashes, or its stream breaks.
pub const ALONE: Scenario = Scenario { name: "alone", feed: false, l1: true, readers: 1, crashes: 1, ..FILLS };

/// One instance, TRUNCATE among the changes.
pub const ALONE_TRUNCATE: Scenario = Scenario {
    name: "alone, truncate",
    transactions: &[Transaction::small(&[Truncate(0)]), Transaction::small(&[Put(A), Truncate(0)])],
    own_writes: false,
    batch: 1,
    ..ALONE
};

/// One instance, and Redis restarts, or is emptied.
pub const ALONE_LOSSES: Scenario =
    Scenario { name: "alone, losses", crashes: 0, restarts: 1, flushes: true, batch: 1, own_writes: false, ..ALONE };

/// The lead goes from one instance to the other while the first is paused, and goes on serving.
pub const HANDOVER: Scenario = Scenario { name: "handover", feed: false, l1: true, crashes: 1, ..TWO_INSTANCES };

/// The same while Redis restarts.
pub const HANDOVER_LOSSES: Scenario = Scenario {
    name: "handover, losses",
    transactions: &[Transaction::small(&[Put(A)])],
    crashes: 0,
    restarts: 1,
    ..HANDOVER
};

/// L2 is away: the leader goes on without, and finds L2 as it was, or emptied, or set back.
pub const OUTAGE: Scenario = Scenario {
    name: "outage",
    transactions: &[Transaction::small(&[Put(A)])],
    feed: false,
    l1: true,
    readers: 1,
    outages: 1,
    restarts: 1,
    batch: 1,
    own_writes: false,
    ..FILLS
};

/// L2 is away for one leader, and the paused one before it can still reach it.
pub const OUTAGE_HANDOVER: Scenario =
    Scenario { name: "outage, handover", l1: false, restarts: 0, instances: 2, crashes: 1, ..OUTAGE };

/// L2 is away, and the process crashes or its stream breaks.
pub const OUTAGE_CRASH: Scenario = Scenario { name: "outage, crash", crashes: 1, restarts: 0, ..OUTAGE };

/// TRUNCATE while L2 is away.
pub const OUTAGE_TRUNCATE: Scenario = Scenario {
    name: "outage, truncate",
    transactions: &[Transaction::small(&[Truncate(0)]), Transaction::small(&[Put(A)])],
    restarts: 0,
    ..OUTAGE
};

/// Generations are raised at any time, of one of two entities or of both.
pub const RESYNC: Scenario = Scenario {
    name: "resync",
    transactions: &[Transaction::small(&[Put(A)]), Transaction::small(&[Truncate(0)])],
    keys: 2,
    entities: 2,
    resyncs: 1,
    reads: 2,
    crashes: 0,
    own_writes: false,
    batch: 1,
    ..ALONE
};

/// The same for one entity, with crashes, and events that write what is absent.
pub const RESYNC_CRASH: Scenario = Scenario {
    name: "resync, crash",
    transactions: &[Transaction::small(&[Put(A)])],
    on_change: OnChange::Populate,
    keys: 1,
    entities: 1,
    crashes: 1,
    ..RESYNC
};

/// An audit amid commits, fills, and a crash.
pub const AUDIT: Scenario = Scenario { name: "audit", audits: 1, reads: 1, own_writes: false, ..ALONE };

/// An audit while L2 is away.
pub const AUDIT_OUTAGE: Scenario = Scenario { name: "audit, outage", audits: 1, restarts: 0, ..OUTAGE };

/// An audit while a generation is raised.
pub const AUDIT_RESYNC: Scenario = Scenario {
    name: "audit, resync",
    transactions: &[Transaction::small(&[Put(A)])],
    crashes: 0,
    reads: 2,
    resyncs: 1,
    ..AUDIT
};

/// An audit where somebody has planted a wrong value.
pub const AUDIT_PLANT: Scenario = Scenario { name: "audit, plant", plants: 1, crashes: 0, reads: 1, ..AUDIT };

const ALL: &[Scenario] = &[
    FILLS,
    REFRESH,
    POPULATE,
    INVALIDATE,
    DELETE,
    TWO_KEYS,
    PIECES,
    PIECES_OVER_FILLS,
    PIECES_LOST,
    L1,
    TWO_INSTANCES,
    TWO_FILLERS,
    LOSSES,
    LOSSES_L1,
    TRIMS,
    TRUNCATE,
    TRUNCATE_FEED,
    STANDBY,
    STANDBY_DROPS,
    ALONE,
    ALONE_TRUNCATE,
    ALONE_LOSSES,
    HANDOVER,
    HANDOVER_LOSSES,
    OUTAGE,
    OUTAGE_HANDOVER,
    OUTAGE_CRASH,
    OUTAGE_TRUNCATE,
    RESYNC,
    RESYNC_CRASH,
    AUDIT,
    AUDIT_OUTAGE,
    AUDIT_RESYNC,
    AUDIT_PLANT,
];

/// Wider bounds: minutes and some gigabytes of memory.
const WIDE: &[Scenario] = &[
    Scenario { name: "populate, 2 crashes", crashes: 2, ..POPULATE },
    Scenario { name: "pieces, 2 crashes", crashes: 2, own_writes: true, ..PIECES },
    Scenario { name: "pieces, 2 readers", readers: 2, reads: 1, ..PIECES },
    Scenario { name: "pieces over fills, 2 crashes", crashes: 2, ..PIECES_OVER_FILLS },
    Scenario { name: "pieces over fills, 2 readers", readers: 2, reads: 1, ..PIECES_OVER_FILLS },
    Scenario { name: "pieces, l1", l1: true, ..PIECES_OVER_FILLS },
    Scenario {
        name: "pieces of two keys",
        transactions: &[Transaction::large(&[Put(A), Put(B), Put(A)]), Transaction::small(&[Put(B)])],
        keys: 2,
        reads: 1,
        ..PIECES
    },
    Scenario { name: "pieces lost, 1 crash", crashes: 1, ..PIECES_LOST },
    Scenario { name: "pieces lost, 2 restarts", restarts: 2, ..PIECES_LOST },
    Scenario { name: "losses, 1 crash", crashes: 1, ..LOSSES },
    Scenario { name: "losses, 2 restarts", restarts: 2, ..LOSSES },
    Scenario { name: "losses with l1, 2 keys", keys: 2, ..LOSSES_L1 },
    Scenario { name: "losses with l1, 1 crash", crashes: 1, ..LOSSES_L1 },
    Scenario { name: "losses of truncate", restarts: 1, crashes: 0, on_change: OnChange::Populate, ..TRUNCATE },
    Scenario { name: "three transactions", transactions: &[Transaction::small(&[Put(A)]); 3], crashes: 1, ..POPULATE },
    Scenario { name: "standby, own writes", own_writes: true, ..STANDBY },
    Scenario { name: "standby, pieces", transactions: PIECES_OVER_FILLS.transactions, readers: 1, ..STANDBY },
    Scenario { name: "standby, drops, 1 crash", crashes: 1, ..STANDBY_DROPS },
    Scenario { name: "standby, two instances", readers: 1, l1: true, instances: 2, ..STANDBY },
    Scenario { name: "two fillers, 2 reads of one", reads: 2, transactions: OUTAGE.transactions, ..TWO_FILLERS },
    Scenario { name: "handover, losses, 2 transactions", transactions: FILLS.transactions, ..HANDOVER_LOSSES },
    Scenario { name: "outage, 2 transactions", transactions: FILLS.transactions, ..OUTAGE },
    Scenario { name: "outage, crash, 2 transactions", transactions: FILLS.transactions, ..OUTAGE_CRASH },
    Scenario { name: "outage, handover, l1", l1: true, ..OUTAGE_HANDOVER },
    Scenario { name: "outage, truncate, crash", crashes: 1, ..OUTAGE_TRUNCATE },
    Scenario { name: "resync, crash, 2 transactions", transactions: FILLS.transactions, ..RESYNC_CRASH },
    Scenario { name: "audit, 2 reads", reads: 2, ..AUDIT },
    Scenario { name: "audit, outage, 1 restart", restarts: 1, ..AUDIT_OUTAGE },
];

fn hold(title: &str, scenarios: &[Scenario]) {
    let reports = explore_all(scenarios);
    print_table(title, scenarios, &reports);
    let mut violated = String::new();
    for (s, report) in scenarios.iter().zip(reports) {
        if let Some(found) = report.found {
            violated += &found.print(s);
        }
    }
    assert!(violated.is_empty(), "{violated}");
}

#[test]
fn the_protocol_holds() {
    hold("the protocol", &[ALL, links::ALL, voids::ALL, renewals::ALL, gaps::ALL].concat());
}

#[test]
#[ignore = "minutes, and gigabytes of memory: for changes of the protocol"]
fn the_protocol_holds_in_wider_bounds() {
    hold("the protocol in wider bounds", &[WIDE, links::WIDE, voids::WIDE, renewals::WIDE, gaps::WIDE].concat());
}
