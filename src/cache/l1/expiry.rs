//! Gives the memory of entries back whose life is over. None of them is served; this only makes room.
//!
//! A walk through the index, entity by entity, in steps with pauses between them: at most some 160,000 entries are looked at
//! in a second, which takes a few hundredths of one core, and none where none can be due.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{L1, Place, Unservable};
use crate::cache::Hierarchy;
use crate::entity::Entity;
use crate::metrics::{CacheMetrics, Tier};

/// Entries of one step.
const STEP: usize = 4096;
/// The pause after a step.
const PAUSE: Duration = Duration::from_millis(25);
/// The pause between looks whether a walk is due.
const IDLE: Duration = Duration::from_millis(250);
/// The longest and the shortest time between two walks through an entity's entries.
const EVERY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// How often an entity's entries are walked through: a quarter of a life is what memory is held for too long, at most.
fn interval(entity: &Entity) -> Duration {
    let shortest = match entity.lifetime.column {
        // Some may be due soon, whatever the ttl is.
        Some(_) => Duration::from_secs(20),
        None => Duration::MAX,
    };
    (entity.longest(None).min(entity.ttl).min(shortest) / 4).clamp(EVERY.0, EVERY.1)
}

impl Hierarchy {
    /// Removes what is over from L1, for ever.
    pub async fn expire_l1(&self, metrics: Arc<Vec<CacheMetrics>>) {
        let Some(l1) = &self.l1 else { return };
        let mut walked = vec![Instant::now(); self.entities.len()];
        loop {
            tokio::time::sleep(IDLE).await;
            for (entity, walked) in self.entities.iter().zip(&mut walked) {
                if walked.elapsed() < interval(entity) {
                    continue;
                }
                *walked = Instant::now();
                let mut place = Some(Place::default());
                while let Some(from) = place {
                    let (expired, next) = l1.expire(entity, from, STEP).await;
                    metrics[entity.id].lifetime.expired(Tier::L1, expired);
                    place = next;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

impl L1 {
    /// Removes those of up to `limit` entries that are never served again; says how many lives were over, and where to go
    /// on.
    pub async fn expire(&self, entity: &Entity, from: Place, limit: usize) -> (u64, Option<Place>) {
        let (page, next) = self.page(entity.id, from, limit);
        let mut expired = 0;
        for hash in page {
            let Some(cached) = self.peek(entity.id, hash) else { continue };
            // Should another be put there between the look and the removal, that is a miss more.
            match self.judge(hash, &cached, entity.generation()) {
                Ok(()) => continue,
                Err(Unservable::Expired) => expired += 1,
                Err(Unservable::Generation | Unservable::Fenced) => {}
            }
            self.part(entity.id).remove(hash).await;
        }
        (expired, next)
    }
}
