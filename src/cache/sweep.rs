//! Sweeping: what patterns have voided is removed in the background, and then the patterns are matched no more.
//!
//! A sweep takes the patterns that stand, walks through L2 and L1 once, and retires exactly those patterns. Why nothing that
//! they void is served afterwards:
//!
//! - **L2.** The void of `c` came into the fence together with a high-water mark of at least `c`, before the sweep began. So
//!   every lease that was given since is of `lo >= c`, and what could still be stored with `lo < c` needs a lease that stood
//!   before the walk began. Such a key is there all the time, lease or entry, until it is gone for good, so the walk meets it:
//!   a lease is removed, and the fill that it was given for is not stored; an entry with `lo < c` is removed, and with it
//!   the right of whoever renews it. Images of
//!   events are no other way: a replayed one with a label below `c` lies at or below the takeover of its claim, and is
//!   written over an entry that stands there and is older still, but never where nothing stands.
//! - **L1.** A flight that began before `c` may bring its value at any time, also after the walk. So what L1 holds from before
//!   `c` must bear the mark that a walk has compared it with these patterns, or it is not served: see
//!   [`Cached::seen`](super::l1::Cached::seen).
//!
//! A walk of L2 that is cut off, by a connection that broke or that readers do not trust any more, retires nothing: the
//! patterns stand, in the fence, too, and are swept again, by whichever process. Nor does one whose connection is not
//! trusted any more when it comes to that: what a walk has removed is gone from that server alone. The same after a
//! restart, or another that takes its place, may have lost the last removals, and show as done all that was acknowledged,
//! for nothing but removals came after. But it has the pattern in its fence: removed there after the entries were, it is
//! lost no later than they are. What readers trust after the retiring is looked at first, and its patterns stand again.
//!
//! Only what a matcher of our own says is removed: Redis is asked for keys by their beginning alone.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{MissedTickBehavior, interval};

use super::Hierarchy;
use super::l1::Place;
use super::l2::{L2Error, Way};
use super::voids::{Field, Pattern, full};
use crate::entity::Entity;
use crate::failpoint::{self, Point};
use crate::lsn::Lsn;

/// Keys that are looked at by one step, at most.
const STEP: usize = 500;

/// The patterns of an entity that are swept together.
#[derive(Debug, Clone)]
pub struct ToSweep {
    /// The entity.
    pub entity: Arc<Entity>,
    /// Its patterns, the oldest first; at least one.
    pub patterns: Vec<Pattern>,
}

/// What a sweep has removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries and leases of L2.
    pub l2: u64,
    /// Entries of L1.
    pub l1: u64,
}

/// What was swept, and may be retired: only a sweep makes one.
pub struct Sweep {
    due: Vec<ToSweep>,
    /// How L2 was reached, if there is one.
    way: Option<Way>,
    /// What it has removed.
    pub removed: Swept,
}

impl ToSweep {
    /// What a key's entry must have seen; `None` if no pattern matches it.
    fn floor(&self, redis_key: &str) -> Option<Lsn> {
        let key = full(&self.entity, redis_key);
        self.patterns.iter().rev().find(|(glob, _)| glob.matches(key)).map(|(_, c)| *c)
    }

    fn newest(&self) -> Lsn {
        self.patterns.last().map(|(_, c)| *c).unwrap_or_default()
    }
}

/// The bytes that all keys begin with that are due.
fn start(due: &[ToSweep]) -> Vec<u8> {
    let mut starts = due.iter().flat_map(|due| {
        let prefix = due.entity.redis_prefix.as_bytes();
        let own = prefix.len() - due.entity.name.len() - 1;
        due.patterns.iter().map(move |(glob, _)| [&prefix[..own], &glob.literal_start()].concat())
    });
    let mut common = starts.next().unwrap_or_default();
    for start in starts {
        let same = common.iter().zip(&start).take_while(|(a, b)| a == b).count();
        common.truncate(same);
    }
    common
}

impl Hierarchy {
    /// The patterns that may be swept now: all that they void is applied.
    pub fn due(&self) -> Vec<ToSweep> {
        let applied = self.watermark.load();
        let of = |entity: &Arc<Entity>| {
            let mut patterns = self.voids.patterns(entity.id);
            patterns.retain(|(_, c)| *c <= applied);
            (!patterns.is_empty()).then(|| ToSweep { entity: entity.clone(), patterns })
        };
        self.entities.iter().filter_map(of).collect()
    }

    /// Sweeps both tiers, looking at no more than about `rate` keys of L2 in a second.
    ///
    /// # Errors
    /// If L2 is away or not trusted, or has become so: then nothing may be retired.
    pub async fn sweep(&self, due: Vec<ToSweep>, rate: u32) -> Result<Sweep, L2Error> {
        failpoint::reached(Point::BeforeSweep);
        let (l2, way) = self.sweep_l2(&due, rate).await?;
        failpoint::reached(Point::Swept);
        let removed = Swept { l2, l1: self.sweep_l1(&due).await };
        Ok(Sweep { due, way, removed })
    }

    /// Drops patterns that have been swept; gives what is to go from L2's fence. `None` if L2 may be another than the one that
    /// was swept: then they stand.
    pub fn retire(&self, sweep: &Sweep) -> Option<Vec<Field>> {
        let retire = || sweep.due.iter().flat_map(|due| self.voids.retire(&due.entity, &due.patterns)).collect();
        match (&self.l2, &sweep.way) {
            (None, _) => Some(retire()),
            (Some(l2), Some(way)) => l2.if_trusted(way, retire),
            (Some(_), None) => None,
        }
    }

    async fn sweep_l2(&self, due: &[ToSweep], rate: u32) -> Result<(u64, Option<Way>), L2Error> {
        let Some(l2) = &self.l2 else { return Ok((0, None)) };
        let mut walk = l2.walk(&start(due))?;
        let count = STEP.min(usize::try_from(rate / 10).unwrap_or(STEP)).max(1);
        let mut pace = interval(Duration::from_secs_f64(count as f64 / f64::from(rate.max(1))));
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut removed = 0;
        loop {
            pace.tick().await;
            let (keys, more) = walk.step(count).await?;
            let floor = |key: Bytes| {
                let text = std::str::from_utf8(&key).ok()?;
                let due = due.iter().find(|due| text.starts_with(&due.entity.redis_prefix))?;
                let floor = due.floor(text)?;
                Some((key, floor))
            };
            let voided: Vec<(Bytes, Lsn)> = keys.into_iter().filter_map(floor).collect();
            removed += walk.unlink_below(&voided).await?;
            if !more {
                return Ok((removed, Some(walk.way())));
            }
        }
    }

    async fn sweep_l1(&self, due: &[ToSweep]) -> u64 {
        let Some(l1) = &self.l1 else { return 0 };
        let mut removed = 0;
        for due in due {
            let mut place = Some(Place::default());
            while let Some(from) = place {
                let (hashes, next) = l1.page(due.entity.id, from, STEP);
                place = next;
                for hash in hashes {
                    let Some(cached) = l1.peek(due.entity.id, hash) else { continue };
                    if cached.as_of >= due.newest() || !cached.key.starts_with(&due.entity.redis_prefix) {
                        continue;
                    }
                    let voided = due.floor(&cached.key).is_some_and(|floor| cached.as_of < floor);
                    // One that an earlier sweep has missed must not pass for compared with its patterns.
                    if voided || cached.seen() < self.voids.swept(&due.entity) {
                        l1.remove(due.entity.id, hash).await;
                        removed += 1;
                    } else {
                        cached.checked.fetch_max(due.newest().as_u64(), Ordering::AcqRel);
                    }
                }
                tokio::task::yield_now().await;
            }
        }
        removed
    }
}
