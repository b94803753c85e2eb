//! The rules of the protocol. Leaving one out must make the check fail: [`crate::mutants`] does that with each.

/// A rule of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    // --- Applying.
    /// A transaction is applied only when new snapshots see it.
    Gate,
    /// An event deletes a lease on its key, or replaces it; left out: the lease stands.
    LeaseVoided,
    /// A fill is published only where its lease stands; left out: whatever stands there.
    LeaseRequired,
    /// Of a whole transaction only the last effect on each key is applied; left out: one script for each change.
    Coalesced,
    /// Populate writes only events beyond the `hw` of the takeover.
    PopulateBeyondTakeover,
    /// A script does not look at what it replaces only if its event lies beyond the takeover.
    FastBeyondTakeover,
    /// A script does not look at what it replaces only if its event lies beyond what any fill has read; left out: of
    /// whatever fills have read.
    FastBeyondFilled,
    /// Publishing a fill raises that mark.
    PublishRaisesFilled,
    /// With fills from a standby: what drops an entry or raises a generation raises `hw`, too; left out: it does not.
    EveryEffectRaisesHighWater,

    // --- Entries of many rows.
    /// A row that moves from one entry to another voids both; left out: that which it has moved to.
    MovedRowVoidsBoth,
    /// A lookup is run after the gate; left out: its snapshot is taken before.
    LookupAfterGate,
    /// A lookup is run in a snapshot that shows its transaction; left out: in that of the round, whatever it shows.
    LookupSeesItsTransaction,
    /// Nothing is published between an event and the end of what its lookup's snapshot shows; left out: it is at once.
    HeldUntilSeen,
    /// Lookups of transactions that a round's snapshot shows are run in that; left out: in one of their own.
    OneSnapshotARound,
    /// What a lookup finds is voided in L1, too.
    FoundRaisesFence,

    // --- Voids.
    /// An entry of L2 below a floor that concerns it is not served.
    FloorInL2,
    /// Nor is one of L1.
    FloorInL1,
    /// What an entry of L2 has seen is its `lo`; left out: its `hi`.
    FloorComparesLo,
    /// What one of L1 has seen is its `as_of`; left out: its `hi`.
    FloorComparesAsOf,
    /// A floor is raised in the process before its watermark passes the void.
    FloorBeforeWatermark,
    /// A floor is raised in L2's fence before the void is confirmed.
    FloorBeforeConfirm,
    /// A new leader takes over the floors that stand in the fence.
    FloorsTaken,
    /// Without L2 floors are raised in the process as ever.
    OutageRaisesFloors,

    // --- Sweeping.
    /// A sweep removes leases, too.
    SweepRemovesLeases,
    /// A pattern is forgotten once it was swept; left out: at any time from the beginning of its sweep on.
    RetiredOnceSwept,
    /// Only the void that was swept is forgotten; left out: a later one of the same pattern, too.
    RetiredAsSwept,
    /// Patterns are forgotten between two batches; left out: at any time.
    RetiredBetweenBatches,
    /// Patterns are forgotten only while L2 is reached over the connection that the sweep began on; left out: whatever
    /// has become of that.
    RetiredOverSameConnection,
    /// That a pattern was swept is noted before it is forgotten; left out: after.
    SweptNotedFirst,
    /// A reader that has an entry of L2 looks at the patterns first and then at what was swept; left out: the other way
    /// round.
    SweptReadLast,
    /// What had been swept is read before the entry of L2 that is judged by that; left out: after.
    SweptReadBeforeEntry,
    /// An entry of L1 from before a void that was swept is served only if the sweep has looked at it.
    SweptInL1,
    /// One that an earlier sweep has missed is removed by the next; left out: passes for looked at.
    MissedRemovedLater,

    // --- Renewals.
    /// A renewed value is stored only where an entry with the very head stands that was claimed; left out: any entry.
    RenewsSameHead,
    /// The same; left out: or nothing.
    RenewsWhatStands,
    /// The row is read after the claim; left out: before.
    RenewalReadsAfterClaim,
    /// A renewed entry's `lo` is the `hw` that came with the claim; left out: the insert position at the read.
    RenewalLoIsHighWater,
    /// Its `hi` is the insert position at the read; left out: that `hw`.
    RenewalHiIsInsertPosition,
    /// It bears the generation from before the claim; left out: the one that stands when it is stored.
    RenewalGenerationBeforeRow,
    /// Storing it raises `filled`.
    RenewalRaisesFilled,
    /// Its `as_of` in L1 is the watermark before the claim; left out: when it is put there.
    RenewalAsOfBeforeRow,

    // --- Changes with gaps.
    /// Gaps are filled from an entry that contains nothing as late as the change; left out: from any.
    PredecessorBeforeChange,
    /// From one of the same generation; left out: of any.
    PredecessorOfGeneration,
    /// Not from one that is below a floor.
    PredecessorNotVoided,

    // --- Transactions in pieces.
    /// An entry written by a piece is served only to a reader whose watermark, read before, has reached it.
    PieceServedFromWatermark,
    /// A piece overwrites an entry with its own label only beyond the `hw` of the takeover, and deletes it otherwise.
    PieceBeyondTakeover,
    /// A piece overwrites an entry with its own label at all; left out: `c <= lo` does nothing, as for whole ones.
    PieceOverwritesPiece,

    // --- Fills and answers.
    /// A fill's `lo` is the `hw` that came with its lease; left out: the insert position at the read.
    LoIsHighWater,
    /// A fill's `hi` is the insert position at the read; left out: the reader's watermark.
    HiIsInsertPosition,
    /// `X-Read-LSN` is no lower than the value's `hi`.
    ReadLsnCoversHi,
    /// A standby is read only once it has replayed the `hw` of the lease.
    StandbyHasHighWater,
    /// With fills from a standby: a read whose `X-Min-LSN` is ahead of the watermark goes to a standby that has
    /// replayed it; left out: to the primary, which may not show yet what the standby does.
    MinLsnFromStandby,

    // --- L1.
    /// An L1 entry is served only if its `as_of` has reached its cell of the fence.
    L1Fence,
    /// `as_of` is the watermark before the fetch; left out: when the entry is put.
    AsOfBeforeFetch,
    /// The L1 fences are raised first and then the watermark.
    FencesBeforeWatermark,
    /// An instance that goes on at what others have applied raises all L1 fences; left out: it empties L1.
    FloorOnReset,

    // --- Leadership.
    /// A script is refused unless its epoch is the fence's; left out: unless there is no fence.
    Epoch,
    /// Whoever reads the stream again has taken over anew; left out: a leader whose stream broke goes back to the
    /// confirmed LSN with the takeover that it had.
    TakeoverPerStream,
    /// The takeover's `hw` is read in the script that sets the epoch; left out: some time before.
    TakeoverAtomic,
    /// A leader whose connection to Redis broke takes over anew; left out: it goes on if the fence looks right.
    TakeoverPerConnection,
    /// What the slot has confirmed is read by whoever holds the slot; left out: some time before.
    ConfirmedReadHoldingSlot,
    /// The slot is confirmed after the batch was applied.
    ConfirmAfterApply,

    // --- The feed.
    /// An instance that misses a message of the feed raises all L1 fences; left out: it works in what comes next.
    GapNoticed,
    /// `done` is raised after the batch was appended to the feed (or with it).
    FeedBeforeDone,

    // --- Trust in L2.
    /// Trust in L2 is judged by `done`, raised when all of a batch was applied; left out: by `hw`.
    TrustByDone,
    /// A message of the feed that is being worked in counts as known when L2 is judged; left out: only the watermark.
    TrustCountsPending,
    /// An instance that comes to trust L2 (again) takes on the generations that stand there.
    TrustAdoptsGenerations,
    /// A claim starts a new generation where `done` is less than what the slot has confirmed.
    ClaimComparesConfirmed,
    /// A claim starts a new generation where `done` is less than the claimant's own watermark, confirmed or not.
    ClaimComparesWatermark,
    /// Without L2 its entries are not served, and come back only with a claim; left out: whenever `done` is as it was.
    OutageDistrusts,
    /// Without L2 the L1 fences are raised as ever.
    OutageRaisesFences,
    /// Without L2 TRUNCATE raises the generation in memory.
    OutageRaisesGeneration,

    // --- Generations.
    /// TRUNCATE raises the generation of its entity.
    TruncateRaisesGeneration,
    /// A generation is raised in the fence before the event is confirmed.
    GenerationBeforeConfirm,
    /// A generation is raised in the process before its watermark passes the event.
    GenerationBeforeWatermark,
    /// A new leader takes on the generation of each entity; left out: only that of all.
    EntityGenerationTaken,
    /// A fill bears the generation that was read before its row; left out: the one after.
    GenerationBeforeRow,
    /// TRUNCATE drops what the same batch would have written before it; left out: it is written, in the generation that
    /// was planned.
    TruncateDropsEarlier,
    /// Whether an entry of L2 is of an older generation is judged by what the process knows once it has the entry; left
    /// out: by what it knew when the read began.
    GenerationAfterEntry,
    /// Entries of an older generation than the process knows are not served.
    GenerationChecked,

    // --- The auditor.
    /// The entry is read before the row; left out: after.
    AuditEntryBeforeRow,
    /// The second look waits until the watermark has reached the row's `hi`.
    AuditWaits,
    /// An entry that differs is looked at again; left out: it is a finding at once.
    AuditLooksAgain,
    /// Only a change of the entry excuses it; left out: that of the watermark does, too.
    AuditExcusesOnlyChange,
}
