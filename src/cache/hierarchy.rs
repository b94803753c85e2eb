//! The tiers, and how far they may be believed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use bytes::Bytes;

use super::l1::{Cached, Charge, L1};
use super::l2::L2;
use super::voids::Voids;
use super::watermark::Watermark;
use crate::entity::{Entity, EntryKey, Generation};
use crate::entry::Due;
use crate::lsn::Lsn;

/// The tiers and what says how far they may be believed: shared by the read path and whoever applies events.
pub struct Hierarchy {
    /// The configured entities; [`Entity::id`] is the position.
    pub entities: Vec<Arc<Entity>>,
    /// The in-process tier, if configured.
    pub l1: Option<L1>,
    /// The Redis tier, if configured.
    pub l2: Option<Arc<L2>>,
    /// How far everything has been applied.
    pub watermark: Watermark,
    /// What entries must have seen because of tags and patterns that were voided.
    pub voids: Voids,
}

impl Hierarchy {
    /// Goes on at `lsn`. What lies between there and the watermark was applied by others, whose events raised no fence
    /// here: nothing in L1 that was read before is believed any more.
    pub fn take_over(&self, lsn: Lsn) {
        if let Some(l1) = self.l1.as_ref().filter(|_| lsn > self.watermark.load()) {
            l1.fence().raise_all(lsn);
        }
        self.watermark.advance(lsn);
    }

    /// Raises generations and floors to what the fence of an L2 says.
    pub(crate) fn load(&self, fence: &HashMap<String, Vec<u8>>) {
        let number = |field: &str| fence.get(field).and_then(|digits| Generation::from_hex16(digits));
        for entity in &self.entities {
            entity.raise(number("gen").max(number(&format!("gen:{}", entity.name))).unwrap_or_default());
        }
        self.voids.load(&self.entities, fence);
    }

    /// The highest generation of any entity, as far as this process knows.
    pub fn newest_generation(&self) -> Generation {
        self.entities.iter().map(|entity| entity.generation()).max().unwrap_or_default()
    }

    /// Starts over at `lsn`, which may be smaller than before, in a new generation of every entity.
    ///
    /// A watermark of before, which may be larger, must not go with the new generation: that value would seem newer than
    /// all events to come. So whoever fetches a value takes the generation first and then the watermark, and here it is
    /// the other way round. The fence goes last: until then it refuses too much, which does no harm.
    pub fn restart(&self, lsn: Lsn, generation: Generation) {
        self.watermark.restart(lsn);
        for entity in &self.entities {
            entity.raise(generation);
        }
        if let Some(l1) = &self.l1 {
            l1.fence().clear();
        }
        self.voids.clear();
    }

    /// Puts a value into L1 that was fetched after the generation and then the watermark were taken. Whatever its due time
    /// is by another clock, it lives no longer there than a new entry would.
    pub async fn keep(
        &self,
        entity: &Entity,
        key: &EntryKey,
        value: Option<Bytes>,
        etag: u64,
        (generation, as_of): (Generation, Lsn),
        (hi, due): (Lsn, Due),
    ) {
        let Some(l1) = self.l1.as_ref().filter(|_| entity.is_servable()) else { return };
        let tags = entity.cells(key.redis(), value.as_deref());
        let longest = entity.longest(value.as_deref());
        let life = due.from(Due::now()).map_or(longest, |life| life.min(longest));
        if life.is_zero() {
            return;
        }
        let expires = Instant::now() + life;
        let cached = Cached {
            key: key.redis().into(),
            value,
            etag,
            as_of,
            hi,
            generation,
            due,
            expires,
            over: expires + entity.lifetime.stale,
            tags,
            checked: AtomicU64::new(0),
            charge: Charge::default(),
        };
        l1.insert(entity.id, key.hash, cached);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::entity::{Definition, Shape};

    #[test]
    fn a_watermark_of_before_never_goes_with_a_generation_of_after() {
        const TOP: u64 = 1 << 40;
        let entity = Entity::new(0, Definition::rows("row", "public", "rows"), "", Shape::unknown(0));
        let (watermark, voids) = (Watermark::default(), Voids::new(1));
        let hierarchy = Hierarchy { entities: vec![Arc::new(entity)], l1: None, l2: None, watermark, voids };
        hierarchy.restart(Lsn::from_u64(TOP), Generation(0));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Each failover goes to a shorter timeline.
                for n in 1..=200_000 {
                    hierarchy.restart(Lsn::from_u64(TOP - n), Generation(n));
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                let generation = hierarchy.entities[0].generation();
                let watermark = hierarchy.watermark.load();
                assert!(watermark.as_u64() <= TOP - generation.0, "{watermark} of before in {generation:?}");
            }
        });
    }
}
