//! An exhaustive check, within bounds, of the consistency protocol: every interleaving of the steps below is visited,
//! and every answer, confirmation and state is judged by the four oracles (O1 to O4, see [`properties`]).
//!
//! # What is modelled
//!
//! - **Postgres** ([`world`]): transactions commit in WAL order and become visible later, in any order that row locks
//!   allow; a snapshot shows what is visible, the insert position is that of the last commit record. A standby replays
//!   in order and shows what it replayed, be it visible on the primary or not. Epochs and generations come from one
//!   sequence there; the slot keeps what was confirmed.
//! - **Redis** ([`redis`]): cells that are absent, leased or entries `{lo, hi, value, generation, split}`; the fence `{hw,
//!   done, epoch, generation}`; the feed. Every script is one step. Anything may be evicted at any time; Redis may come
//!   back empty, or as it once was.
//! - **Leaders** ([`leader`]): take over, pass the gate, run one script for each key (or for each change of a transaction
//!   applied in pieces), append to the feed, mark `done`, confirm. One may crash between any two of these, or be paused,
//!   replaced and resumed. The next one replays from the confirmed LSN, and may cut batches and transactions otherwise.
//! - **Instances** ([`instance`]): work in the feed (fences, then the watermark), and decide when to trust Redis.
//! - **Readers** ([`reader`]): read the watermark, then L1, then L2; fill on a lease, or read through; put the value into
//!   L1 at any later time; and pass `X-Read-LSN` on as `X-Min-LSN`, to the same instance or another.
//!
//! Not modelled: Redis Cluster (one fence here), failover of Postgres, DDL, and time. Waiting for a watermark is the same
//! as beginning to read later. Steps that commute are not merged: the bounds are small enough.
//!
//! # Transactions in pieces
//!
//! `Begin` tells where a commit record starts (`s`), only `Commit` where it ends (`e`). A transaction too big to hold is
//! applied in pieces before its `Commit` has come. All of them are labelled `c = s + 1`, so that `previous e < c <= e`,
//! and mark what they write as `split`: it may be a value that was never committed. The rules: a piece overwrites an
//! entry with `lo = c` if `c` lies beyond the takeover's `hw`, else deletes it; a reader uses a `split` entry only if its
//! watermark, read before the lookup, is at least `lo`, which is so only when the last piece has been applied. A replay
//! may cut otherwise, or not at all.
//!
//! # What the check has taught
//!
//! Every [`scenario::Rule`] is needed: [`mutants`] leaves each out and demands a counter-example (`--nocapture` prints them
//! all). Some are easily overlooked:
//!
//! - `hw` cannot tell whether Redis lost writes: it is raised with a transaction's first script, so that a Redis that
//!   comes back as it was between two scripts of one transaction shows the right `hw`. `done` is raised after the last.
//!   What the watermark, the confirmed LSN and trust depend on is `done`. (And `hw` cannot be raised later instead: a standby
//!   that had not replayed the event would be read.)
//! - A leader whose connection to Redis or whose stream broke is a new leader: new epoch, new takeover, replay from the
//!   confirmed LSN. And the takeover's `hw` is read in the script that sets the epoch.
//! - Emptying L1 does not help against a value that is still on its way into it; raising all of its fences does.
//! - An instance must count what it is just working in when it decides whether Redis has all that it knows of.
//! - Where fills may come from a standby, the primary is no refuge for an `X-Min-LSN` that is ahead of the watermark: it
//!   may not show yet what the standby has shown already.
//!
//! # Bounds
//!
//! Two transactions of one to three changes, one or two keys, one or two readers with one or two reads each, one crash or
//! one restart of Redis: see [`scenarios`]. In all about 2.8 million states and 11 million steps; each state is kept and
//! compared in full, none is merged by its hash. Wider bounds (two faults, three transactions, about 26 million states)
//! are in an ignored test: `cargo test --release --test model -- --ignored --nocapture`.

mod explorer;
mod instance;
mod leader;
mod mutants;
mod properties;
mod reader;
mod redis;
mod scenario;
mod scenarios;
mod world;
