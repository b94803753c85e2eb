//! How much is read from Postgres at a time: after a new generation thousands of keys miss at once.
//!
//! Every key that is read needs a permit. Where there are several entities, none gets all of them, so that one whose
//! table is locked, or very slow, does not keep the others from Postgres. Permits are given in the order in which they
//! were asked for.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::FillMetrics;

/// A fill waits for so many permits, if it wants that many, before it takes what else there is: else the fills would be
/// as small as what others happen to give back.
const LEAST: usize = 32;

/// Permits to read keys, for all entities together.
pub struct Permits {
    all: Arc<Semaphore>,
    shares: Vec<Arc<Semaphore>>,
    max: usize,
    share: usize,
    pub(super) metrics: FillMetrics,
}

/// The permission to read some keys; given back when dropped.
pub struct Permit {
    all: OwnedSemaphorePermit,
    /// Of an entity's share; spare ones count for none.
    share: Option<OwnedSemaphorePermit>,
    metrics: FillMetrics,
}

/// How much of something one of `parties` may take: all, or three quarters where there are others.
pub(super) fn share(all: usize, parties: usize) -> usize {
    if parties > 1 { (all - all.div_ceil(4)).max(1) } else { all }
}

impl Permits {
    /// `max` permits for so many entities.
    pub fn new(max: usize, entities: usize, metrics: FillMetrics) -> Self {
        let max = max.min(Semaphore::MAX_PERMITS);
        let share = share(max, entities);
        let shares = (0..entities).map(|_| Arc::new(Semaphore::new(share))).collect();
        Permits { all: Arc::new(Semaphore::new(max)), shares, max, share, metrics }
    }

    /// How many entities share them.
    pub fn entities(&self) -> usize {
        self.shares.len()
    }

    /// Waits for permits to read keys of an entity: at least one, at most `wanted`.
    pub(super) async fn take(&self, entity: usize, wanted: usize) -> Permit {
        let wanted = wanted.clamp(1, self.share);
        let least = count(wanted.min(LEAST).min((self.share / 4).max(1)));
        let own = &self.shares[entity];
        // The share first: whoever waits for that must not keep what others could use.
        let (share, all) = (acquire(own, least).await, acquire(&self.all, least).await);
        let mut permit = Permit { all, share: Some(share), metrics: self.metrics.clone() };
        let mut more = wanted - least as usize;
        while more > 0 {
            more = more.min(own.available_permits()).min(self.all.available_permits());
            let taken =
                (own.clone().try_acquire_many_owned(count(more)), self.all.clone().try_acquire_many_owned(count(more)));
            if let (Ok(share), Ok(all)) = taken {
                permit.merge(all, share);
                break;
            }
            // Somebody was faster: half of it, then.
            more /= 2;
        }
        self.metrics.running.increment(permit.keys() as f64);
        permit
    }

    /// How many keys [`Permits::spare`] may ever be asked for.
    pub(super) fn most_spare(&self) -> usize {
        (self.max / 2).max(1)
    }

    /// Permits to read `keys` keys for a purpose that nobody waits for; `None` unless no more than half of all permits
    /// are in use then.
    pub(super) fn spare(&self, keys: usize) -> Option<Permit> {
        let all = self.all.clone().try_acquire_many_owned(u32::try_from(keys).ok()?).ok()?;
        if self.all.available_permits() < self.max / 2 {
            return None;
        }
        self.metrics.running.increment(keys as f64);
        Some(Permit { all, share: None, metrics: self.metrics.clone() })
    }
}

/// Semaphores count in `usize`, but give out `u32`.
fn count(permits: usize) -> u32 {
    u32::try_from(permits).unwrap_or(u32::MAX)
}

async fn acquire(semaphore: &Arc<Semaphore>, permits: u32) -> OwnedSemaphorePermit {
    match semaphore.clone().acquire_many_owned(permits).await {
        Ok(permit) => permit,
        // Nobody ever closes them.
        Err(_closed) => std::future::pending().await,
    }
}

impl Permit {
    /// For how many keys.
    pub fn keys(&self) -> usize {
        self.all.num_permits()
    }

    fn merge(&mut self, all: OwnedSemaphorePermit, share: OwnedSemaphorePermit) {
        self.all.merge(all);
        match &mut self.share {
            Some(own) => own.merge(share),
            none => *none = Some(share),
        }
    }

    /// Gives back what is not needed to read `keys` keys.
    pub(super) fn shrink(&mut self, keys: usize) {
        let surplus = self.keys().saturating_sub(keys);
        if self.all.split(surplus).is_some() {
            self.metrics.running.decrement(surplus as f64);
        }
        if let Some(share) = &mut self.share {
            drop(share.split(surplus));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.metrics.running.decrement(self.keys() as f64);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn permits(max: usize, entities: usize) -> Permits {
        Permits::new(max, entities, FillMetrics::new())
    }

    #[test]
    fn one_of_several_entities_cannot_take_all() {
        let permits = permits(100, 2);
        let first = permits.take(0, 60).now_or_never().unwrap();
        let second = permits.take(0, 60).now_or_never();
        // Fewer than it waits for are left of the entity's share, which is 75: it has to wait.
        assert_eq!((first.keys(), second.is_none()), (60, true));
        let other = permits.take(1, 60).now_or_never().unwrap();
        assert_eq!(other.keys(), 40);
        assert!(permits.take(1, 1).now_or_never().is_none(), "none is left");
        drop(first);
        assert_eq!(permits.take(0, 1000).now_or_never().unwrap().keys(), 60);
        drop(other);
        assert_eq!(permits.take(0, 1000).now_or_never().unwrap().keys(), 75);
        let alone = Permits::new(100, 1, FillMetrics::new());
        assert_eq!(alone.take(0, 1000).now_or_never().unwrap().keys(), 100);
        for max in 1..5 {
            let tight = Permits::new(max, 2, FillMetrics::new());
            assert_eq!(tight.take(0, 9).now_or_never().unwrap().keys(), (max - 1).max(1), "of {max}");
        }
    }

    #[test]
    fn what_is_not_needed_is_given_back() {
        let permits = permits(10, 1);
        let mut permit = permits.take(0, 10).now_or_never().unwrap();
        assert!(permits.take(0, 1).now_or_never().is_none());
        permit.shrink(4);
        assert_eq!(permit.keys(), 4);
        permit.shrink(7);
        assert_eq!(permit.keys(), 4);
        assert_eq!(permits.take(0, 10).now_or_never().unwrap().keys(), 6);
        permit.shrink(0);
        assert_eq!(permits.take(0, 10).now_or_never().unwrap().keys(), 10);
    }

    #[tokio::test]
    async fn who_waits_gets_it_in_turn() {
        let permits = Arc::new(permits(4, 1));
        let held = permits.take(0, 4).await;
        let waiter = tokio::spawn({
            let permits = permits.clone();
            async move { permits.take(0, 4).await.keys() }
        });
        tokio::task::yield_now().await;
        // Somebody who asks and gives up loses nothing for the others.
        assert!(permits.take(0, 1).now_or_never().is_none());
        drop(held);
        assert!(waiter.await.unwrap() >= 1);
        assert_eq!(permits.take(0, 4).await.keys(), 4);
    }

    #[test]
    fn spare_permits_leave_half() {
        let permits = permits(10, 2);
        let held = permits.take(0, 3).now_or_never().unwrap();
        assert!(permits.spare(3).is_none());
        let spare = permits.spare(2).unwrap();
        assert!(permits.spare(1).is_none());
        assert_eq!(permits.take(0, 7).now_or_never().unwrap().keys(), 4, "spare ones count for no entity");
        drop((held, spare));
        assert!(permits.spare(6).is_none());
        assert_eq!(permits.spare(5).unwrap().keys(), 5);
    }
}
