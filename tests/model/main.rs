//! An exhaustive check, within bounds, of the consistency protocol: every interleaving of the steps below is visited,
//! and every answer, confirmation and state is judged by the four oracles (O1 to O4, see [`properties`]).
//!
//! # What is modelled
//!
//! - **Postgres** ([`world`]): transactions commit in WAL order and become visible later, in any order that row locks
//!   allow; a snapshot shows what is visible, the insert position is that of the last commit record. A standby replays
//!   in order and shows what it replayed, be it visible on the primary or not. Epochs and generations come from one
//!   sequence there; the slot keeps what was confirmed, and never sends that again.
//! - **Redis** ([`redis`], [`scripts`]): cells that are absent, leased or entries `{lo, hi, value, generation,
//!   split}`; the fence `{hw, done, filled, epoch, generation of all, generation of each entity}`; the feed. Every
//!   script is one step: `lease.lua`, `publish.lua`, `apply.lua` (for one key a time, with the way that does not look
//!   at what it replaces), `claim.lua`, `fence.lua`, and UNLINK, which is none. Anything may be evicted at any time;
//!   Redis may come back empty, or as it once was, or be emptied behind connections that stand.
//! - **Leaders** ([`leader`], [`claim`], [`work`]): hold the slot, claim L2 in two scripts, pass the gate, work a
//!   batch in step by step (whole, or a transaction in pieces), confirm. A process may crash between any two steps;
//!   its stream may break; it may be paused, replaced and resumed; what it had sent may arrive later. The next one
//!   replays from the confirmed LSN, or from its own watermark, and may cut batches and transactions otherwise.
//! - **Without L2** ([`claim::go_without_l2`]): a leader goes on with the fences, generations and watermark of its own
//!   process only, confirms, and claims L2 again some time.
//! - **Instances** ([`instance`]): either all work in the feed (generations and fences, then the watermark), or one
//!   leads and moves its own L1 on, while the other stands still and still serves. They decide when to trust Redis.
//! - **Readers** ([`reader`]): read the watermark, then the generation, then L1, then L2; fill on a lease, or read
//!   through; put the value into L1 at any later time; and pass `X-Read-LSN` on as `X-Min-LSN`, to the same instance
//!   or another.
//! - **Generations**: raised by TRUNCATE, by a claim that finds L2 wanting, and by a resync at any time; in the fence
//!   first, then in the process. Images bear the generation that the planner knew, which may be an older one. (The
//!   daemon raises them in the process first, and its readers take the generation before the watermark: entries are
//!   void sooner than here, never later. It also refuses entries of a newer generation than it knows.)
//! - **Lookups** ([`lookups`]): an entry is made of many rows, one of which moves to another entry, or leads to it only by
//!   links that other transactions make and cut. Rounds are opened, held, closed, and given up for a new generation.
//! - **Voids** ([`voids`], [`sweep`]): of a tag or a pattern of each key, whose value has changed by something that no event
//!   tells of. Floors in the process and in L2's fence; what a new leader takes over; the sweep, step by step, through a
//!   walk that finds only what stands all the time, L1, and the forgetting in two halves; readers that have an entry in
//!   hand meanwhile. Without a feed only: instances that do not lead hear of voids when they claim L2.
//! - **Renewals** ([`renewals`]): of any entry that stands, at any time, one or two at once. An entry that is over is as
//!   good as evicted; that it is due makes no difference to what is right.
//! - **Changes with gaps** ([`gaps`]): filled from the batch, or from the entry that is looked up; whole and in pieces.
//! - **The auditor** ([`auditor`]): entry, row, wait, entry. It must never accuse an entry that is right, and never
//!   pass one that somebody has planted.
//!
//! Not modelled: Redis Cluster (one fence here), two Redis servers that both answer, failover of Postgres, DDL, a
//! resync told by the feed, time (hence `max_staleness`, due times, and whose clock says what), and readers that share a
//! flight. Of voids: two tags or keys in one cell and tags that an entry bears by its value (both only void more, or the
//! same), patterns that become a floor of the entity, and LSNs that start over. Of gaps: rows that change their key.
//! Waiting for a watermark, or for somebody else's fill, is the same as beginning, or looking, later. Steps that commute
//! are not merged: the bounds are small enough.
//!
//! # Transactions in pieces
//!
//! `Begin` tells where a commit record starts (`s`), only `Commit` where it ends (`e`). A transaction too big to hold
//! is applied in pieces before its `Commit` has come. All of them are labelled `c = s + 1`, so that `previous e < c <=
//! e`, and mark what they write as `split`: it may be a value that was never committed. The rules: a piece overwrites
//! an entry with `lo = c` if `c` lies beyond the takeover's `hw`, else deletes it; a reader uses a `split` entry only
//! if its watermark, read before the lookup, is at least `lo`, which is so only when the last piece has been applied.
//! A replay may cut otherwise, or not at all.
//!
//! # What the check has taught
//!
//! Every [`rule::Rule`] is needed: [`mutants`] leaves each out and demands a counter-example (`--nocapture` prints
//! them all). Some are easily overlooked:
//!
//! - `hw` cannot tell whether Redis lost writes: it is raised with a transaction's first script, so that a Redis that
//!   comes back as it was between two scripts of one transaction shows the right `hw`. `done` is raised after the
//!   last. What the watermark, the confirmed LSN and trust depend on is `done`. (And `hw` cannot be raised later
//!   instead: a standby that had not replayed the event would be read.)
//! - A leader whose connection to Redis or whose stream broke is a new leader: new epoch, new takeover, replay from
//!   the confirmed LSN. And the takeover's `hw` is read in the script that sets the epoch.
//! - What the slot has confirmed must be read by whoever holds the slot. Read before, it may be less than what the
//!   stream will begin with; then a claim takes an L2 for sound that lacks what a leader before has confirmed without
//!   it, and the L1 of a process that has led before is not told of what others applied.
//! - `done` alone does not make L2 trustworthy for a process that has not heard of a new generation: the new leader
//!   has set `done` anew. Whoever comes to trust L2 takes the fence's generations on.
//! - A reader that began in one generation may look in L2 in the next one. Whether what it finds is too old must be
//!   judged by what the process knows then; what it fills bears the generation from before.
//! - What a batch would have written before a TRUNCATE must not be written, be it in the old generation: an instance
//!   that has not heard of the new one would serve what was never committed.
//! - Emptying L1 does not help against a value that is still on its way into it; raising all of its fences does.
//! - An instance must count what it is just working in when it decides whether Redis has all that it knows of.
//! - Where fills may come from a standby, the primary is no refuge for an `X-Min-LSN` that is ahead of the watermark:
//!   it may not show yet what the standby has shown already. And every effect must raise `hw`: a plain UNLINK, or a
//!   raised generation, lets a fill from a standby in that has not replayed the event. (Fills from the primary do not
//!   need it: the gate has seen to that.)
//! - That a pattern was swept says something of the L2 that was swept, and of no other. One that comes back as it was before
//!   has the pattern in its fence again, and that must not be forgotten on the strength of the old sweep.
//! - What was swept while a reader has an entry of L2 in hand concerns that entry, too; so does, in L1, what comes there after
//!   the walk. And what one sweep has missed in L1 must not pass for looked at because the next one, of another
//!   pattern, comes by.
//! - That only voids are swept that are applied is not needed for any of the oracles, within these bounds: who takes a lease once
//!   the process knows of the void reads after the gate.
//! - Gaps may be filled from an entry that contains later events wherever writing it looks at what stands then; but not
//!   where what is absent is written, for the entry may go in between.
//! - `filled` is needed only for that entries in L2 never go back ([`properties::Violation::EntryBackwards`]). O1 to
//!   O4 hold without: an event that is not replayed may overwrite a newer fill, since the events that the fill was
//!   ahead of are still to come, and no watermark has passed them.
//!
//! # Bounds
//!
//! One or two transactions of one to three changes, one or two keys, one or two readers with one or two reads each,
//! one fault or two: see [`scenarios`]. In all 69 scenarios with 12 million states and 45 million steps, and 84
//! mutants. Each state is kept and compared in full, none is merged by its hash; but states that differ only in which
//! reader or instance is which, or in what can make no difference any more, count as one. Wider bounds are in an
//! ignored test: `cargo test --release --test model -- --ignored --nocapture`.

mod auditor;
mod claim;
mod explorer;
mod gaps;
mod instance;
mod leader;
mod lookups;
mod mutants;
mod properties;
mod reader;
mod redis;
mod renewals;
mod rule;
mod scenario;
mod scenarios;
mod scripts;
mod sweep;
mod voids;
mod work;
mod world;
