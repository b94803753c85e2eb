//! The bounded worlds that are explored in full.

use crate::explorer::explore;
use crate::scenario::Change::{Put, Truncate};
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

/// Events write what is absent, while leaders crash, replay, and come back to life.
pub const POPULATE: Scenario =
    Scenario { name: "populate", on_change: OnChange::Populate, readers: 1, crashes: 1, ..FILLS };

/// Events only delete.
pub const INVALIDATE: Scenario =
    Scenario { name: "invalidate", on_change: OnChange::Invalidate, readers: 1, crashes: 1, ..FILLS };

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
    transactions: &[Transaction::large(&[Put(A), Truncate, Put(A)]), Transaction::small(&[Truncate])],
    reads: 2,
    crashes: 1,
    ..Scenario::PLAIN
};

/// Fills from a standby that shows commits before the primary does.
pub const STANDBY: Scenario =
    Scenario { name: "standby", standby: true, readers: 2, reads: 2, own_writes: false, batch: 1, ..FILLS };

const ALL: &[Scenario] = &[
    FILLS,
    POPULATE,
    INVALIDATE,
    PIECES,
    PIECES_OVER_FILLS,
    PIECES_LOST,
    L1,
    TWO_INSTANCES,
    LOSSES,
    LOSSES_L1,
    TRIMS,
    TRUNCATE,
    STANDBY,
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
];

fn hold(scenarios: &[Scenario]) {
    for s in scenarios {
        let started = std::time::Instant::now();
        let report = explore(s);
        println!("{:30} {:9} states {:10} steps {:.1?}", s.name, report.states, report.steps, started.elapsed());
        if let Some(found) = report.found {
            panic!("{}", found.print(s));
        }
    }
}

#[test]
fn the_protocol_holds() {
    hold(ALL);
}

#[test]
#[ignore = "minutes, and gigabytes of memory: for changes of the protocol"]
fn the_protocol_holds_in_wider_bounds() {
    hold(WIDE);
}
