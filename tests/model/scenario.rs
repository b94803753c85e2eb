//! What one run of the checker is bounded by: the transactions, the readers, the faults, and the rule left out.

/// The model has at most this many cached keys.
pub const KEYS: usize = 2;
/// The model has at most this many readers.
pub const READERS: usize = 2;
/// The model has at most this many instances (each with an L1 and a watermark of its own).
pub const INSTANCES: usize = 2;

/// A WAL position. Transaction `i` (from 0) ends at `2(i + 1)`; its commit record starts where the one before ended,
/// which is the tightest case, so that the label of its pieces is `2i + 1`.
pub type Lsn = u8;

/// What a key's value is: 0 at first, `i + 1` as transaction `i` left it, [`uncommitted`] for what never was committed.
pub type Value = u8;

/// The end LSN of the last of the first `count` transactions.
pub fn end(count: u8) -> Lsn {
    2 * count
}

/// The label of every piece of transaction `i`: its commit record's start and one.
pub fn piece_label(i: u8) -> Lsn {
    2 * i + 1
}

/// The value that change `change` of transaction `i` gave a key before the same transaction changed it again.
pub fn uncommitted(i: u8, change: usize) -> Value {
    0x80 | i << 4 | change as u8
}

/// Whether the value was left by a transaction, or stood at the beginning.
pub fn is_committed(value: Value) -> bool {
    value & 0x80 == 0
}

/// One change of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The row of this key was inserted, updated or deleted (absent is a value like any other).
    Put(usize),
    /// All rows went.
    Truncate,
}

impl Change {
    pub fn touches(self, key: usize) -> bool {
        self == Change::Put(key) || self == Change::Truncate
    }
}

/// A transaction that will be committed, in this order.
#[derive(Clone, Copy, Debug)]
pub struct Transaction {
    pub changes: &'static [Change],
    /// Too big to hold: it may be applied in pieces, one for every change. Whether it is, is open at every delivery.
    pub large: bool,
}

impl Transaction {
    pub const fn small(changes: &'static [Change]) -> Self {
        Transaction { changes, large: false }
    }

    pub const fn large(changes: &'static [Change]) -> Self {
        Transaction { changes, large: true }
    }

    pub fn touches(&self, key: usize) -> bool {
        self.changes.iter().any(|c| c.touches(key))
    }
}

/// What an event does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnChange {
    /// An entry gets the new image; what is absent stays absent.
    Refresh,
    /// As refresh, and what is absent is written.
    Populate,
    /// Whatever is there is deleted.
    Invalidate,
}

/// A rule of the protocol. Leaving one out must make the check fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A transaction is applied only when new snapshots see it.
    Gate,
    /// An event deletes a lease on its key.
    LeaseVoided,
    /// A fill's `lo` is the `hw` that came with its lease; left out: the insert position at the read.
    LoIsHighWater,
    /// A fill's `hi` is the insert position at the read; left out: the reader's watermark.
    HiIsInsertPosition,
    /// Of a whole transaction only the last effect on each key is applied; left out: one script for each change.
    Coalesced,
    /// Populate writes only events beyond the `hw` of the takeover.
    PopulateBeyondTakeover,
    /// An entry written by a piece is served only to a reader whose watermark, read before, has reached it.
    PieceServedFromWatermark,
    /// A piece overwrites an entry with its own label only beyond the `hw` of the takeover, and deletes it otherwise.
    PieceBeyondTakeover,
    /// A piece overwrites an entry with its own label at all; left out: `c <= lo` does nothing, as for whole ones.
    PieceOverwritesPiece,
    /// A script with a lower epoch than the fence's is refused.
    Epoch,
    /// Whoever reads the stream again has taken over anew; left out: a leader whose stream broke goes back to the
    /// confirmed LSN with the takeover that it had.
    TakeoverPerStream,
    /// The takeover's `hw` is read in the script that sets the epoch; left out: some time before.
    TakeoverAtomic,
    /// `as_of` is the watermark before the fetch; left out: when the entry is put.
    AsOfBeforeFetch,
    /// An instance raises the L1 fences first and then its watermark.
    FencesBeforeWatermark,
    /// An instance that starts on a new generation raises all L1 fences; left out: it empties L1.
    FloorOnReset,
    /// `X-Read-LSN` is no lower than the value's `hi`.
    ReadLsnCoversHi,
    /// An instance that misses a message of the feed raises all L1 fences; left out: it works in what comes next.
    GapNoticed,
    /// Trust in L2 is judged by `done`, raised when all of a batch was applied; left out: by `hw`.
    TrustByDone,
    /// A message of the feed that is being worked in counts as known when L2 is judged; left out: only the watermark.
    TrustCountsPending,
    /// `done` is raised after the batch was appended to the feed (or with it).
    FeedBeforeDone,
    /// A leader whose connection to Redis broke takes over anew; left out: it goes on if the fence looks right.
    TakeoverPerConnection,
    /// The slot is confirmed after the batch was applied.
    ConfirmAfterApply,
    /// The generation is raised by TRUNCATE.
    TruncateRaisesGeneration,
    /// With fills from a standby: a read whose `X-Min-LSN` is ahead of the watermark goes to a standby that has
    /// replayed it; left out: to the primary, which may not show yet what the standby does.
    MinLsnFromStandby,
    /// A standby is read only once it has replayed the `hw` of the lease.
    StandbyHasHighWater,
}

/// One bounded world to explore.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub transactions: &'static [Transaction],
    pub on_change: OnChange,
    pub keys: usize,
    pub readers: usize,
    /// Reads each reader makes, one after the other, passing `X-Read-LSN` on.
    pub reads: u8,
    /// Whether readers may demand what is committed when they begin, as a client does that has just written.
    pub own_writes: bool,
    pub instances: usize,
    /// Whether instances have an L1.
    pub l1: bool,
    /// Transactions a batch may hold.
    pub batch: u8,
    /// Crashes and pauses of leaders.
    pub crashes: u8,
    /// Times that Redis comes back empty or with the state that it once saved.
    pub restarts: u8,
    /// Whether the feed may be trimmed before an instance has read it.
    pub trims: bool,
    /// Whether fills may go to a standby.
    pub standby: bool,
    /// Whether every watermark must arrive in the end (there is no heartbeat in the model that would mend it).
    pub must_arrive: bool,
    /// The rule left out.
    pub without: Option<Rule>,
}

impl Scenario {
    /// Nothing but commits, one reader and one instance; the others are made from it.
    pub const PLAIN: Scenario = Scenario {
        name: "plain",
        transactions: &[],
        on_change: OnChange::Refresh,
        keys: 1,
        readers: 1,
        reads: 1,
        own_writes: false,
        instances: 1,
        l1: false,
        batch: 1,
        crashes: 0,
        restarts: 0,
        trims: false,
        standby: false,
        must_arrive: true,
        without: None,
    };

    pub fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// How many transactions there are.
    pub fn count(&self) -> u8 {
        self.transactions.len() as u8
    }

    /// The key's value once those of the first `count` transactions that are in `mask` took effect.
    pub fn value(&self, key: usize, count: u8, mask: u8) -> Value {
        (0..count)
            .rev()
            .find(|&i| mask & 1 << i != 0 && self.transactions[i as usize].touches(key))
            .map_or(0, |i| i + 1)
    }
}
