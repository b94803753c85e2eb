//! Entries of many rows, and lookups.

use super::{A, ALONE, B};
use crate::scenario::Change::{Linked, Move, Put, Untie};
use crate::scenario::{OnChange, Scenario, Transaction};

/// Entries of many rows: a row moves from one to the other, while another row of the first is changed.
pub const MANY: Scenario = Scenario {
    name: "many rows",
    transactions: &[Transaction::small(&[Move(A, B)]), Transaction::small(&[Put(A)])],
    on_change: OnChange::Invalidate,
    many: true,
    keys: 2,
    own_writes: false,
    reads: 2,
    crashes: 0,
    ..ALONE
};

/// The two links by which a product leads to an order, and the order to a customer's entry.
const LINKS: u8 = 0b11;
const LAST_LINK: u8 = 0b10;

/// The product changes; then it leaves the order, which a lookup by the order finds; then the order leaves the customer.
const UNDONE: [Transaction; 3] = [
    Transaction::small(&[Linked { through: LINKS, makes: 0, cuts: 0 }]),
    Transaction::small(&[Linked { through: LAST_LINK, makes: 0, cuts: 0b01 }]),
    Transaction::small(&[Untie(LAST_LINK)]),
];

/// A lookup finds no more what a later transaction has cut off.
pub const LINKED: Scenario =
    Scenario { name: "linked", transactions: &[UNDONE[0], UNDONE[2]], links: LINKS, keys: 1, crashes: 1, ..MANY };

/// What has cut it off was found by a lookup itself, and by another link, that is cut, too.
pub const CHAINED: Scenario = Scenario { name: "chained", transactions: &UNDONE, crashes: 0, ..LINKED };

/// A lookup finds only with its own transaction what it is to find.
pub const TIED: Scenario = Scenario {
    name: "tied",
    transactions: &[
        Transaction::small(&[Linked { through: LAST_LINK, makes: 0, cuts: 0 }]),
        Transaction::small(&[Linked { through: LINKS, makes: 0b01, cuts: 0 }]),
    ],
    links: LAST_LINK,
    own_writes: true,
    crashes: 0,
    ..LINKED
};

/// All entries are voided where lookups would take too long.
pub const LINKED_VOID: Scenario = Scenario { name: "chained, voided", voids: 1, ..CHAINED };

/// Lookups while L2 is away.
pub const LINKED_OUTAGE: Scenario = Scenario { name: "linked, outage", crashes: 0, outages: 1, ..LINKED };

pub const ALL: &[Scenario] = &[MANY, LINKED, CHAINED, TIED, LINKED_VOID, LINKED_OUTAGE];

const CHAINED_PIECES: [Transaction; 3] =
    [Transaction::large(UNDONE[0].changes), Transaction::large(UNDONE[1].changes), UNDONE[2]];

pub const WIDE: &[Scenario] = &[
    Scenario { name: "chained, own writes", own_writes: true, ..CHAINED },
    Scenario { name: "tied, 1 crash", crashes: 1, ..TIED },
    Scenario { name: "chained, 1 crash", crashes: 1, ..CHAINED },
    Scenario { name: "chained, pieces", transactions: &CHAINED_PIECES, ..CHAINED },
];
