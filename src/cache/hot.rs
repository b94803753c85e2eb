//! What is read most: a small sketch of each entity's reads, in process.
//!
//! About one read in sixteen is looked at, by a counter of each thread's own; the others cost that counter and nothing
//! else. What is looked at is counted as Space-Saving does (Metwally, Agrawal, El Abbadi: Efficient computation of
//! frequent and top-k elements in data streams, 2005): a key that has no place takes that of a rare one, and inherits
//! its count, so that a key that is read often is never long without a place. The rare one is the least of a few that
//! are picked by chance, rather than the least of all. Counts fade, so that what was hot yesterday is not for ever.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::entity::{Entity, EntryKey};

/// Of so many reads one is looked at, on average. A power of two.
const SAMPLED: u32 = 16;
/// Places for each key that is to be remembered: with fewer, newcomers would push each other, and others, out.
const PLACES: usize = 4;
/// Places that are looked at for the one to give up.
const CANDIDATES: usize = 8;
/// Counts are halved in this time.
pub const HALF_LIFE: Duration = Duration::from_secs(3600);
/// Bytes of keys of one entity that have places at most.
const MAX_BYTES: usize = 4 << 20;
/// Half-lives by which weights fade at a time, at most: after a long time in which nobody looked they keep their order.
const MOST_HALF_LIVES: f32 = 24.0;
/// A weight that is taken from elsewhere is at most this: it fades within days.
const MAX_WEIGHT: f32 = 1e6;

thread_local! {
    /// Reads until one is looked at, and the state of a generator of random numbers, which is never 0.
    static TURN: Cell<(u32, u32)> = const { Cell::new((0, 0x9E37_79B9)) };
}

/// Whether it is this read's turn. Steps are of random length, so that no rhythm of the reads hides a key.
#[inline]
fn is_sampled() -> bool {
    TURN.with(|turn| {
        let (left, mut random) = turn.get();
        if left > 0 {
            turn.set((left - 1, random));
            return false;
        }
        // Marsaglia's xorshift.
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        // From 0 to 30, so 16 reads a step on average.
        turn.set(((random >> 8) % (2 * SAMPLED - 1), random));
        true
    })
}

/// What is read most of each entity.
#[derive(Debug)]
pub struct HotSets {
    sets: Vec<Option<Mutex<Sketch>>>,
    began: Instant,
}

#[derive(Debug)]
struct Sketch {
    /// Keys that are to be remembered.
    wanted: usize,
    places: Vec<Place>,
    /// Bytes of their keys, [`MAX_BYTES`] at most.
    bytes: usize,
    /// By hash of the full key.
    by_hash: HashMap<u64, usize>,
    /// When counts were faded last, since the sets were made.
    faded: Duration,
    random: u64,
}

#[derive(Debug)]
struct Place {
    hash: u64,
    /// The key within its entity.
    key: Box<str>,
    weight: f32,
    /// What of the weight was inherited.
    inherited: f32,
}

impl HotSets {
    /// Remembers so many keys of each entity, in the order of their ids; none where that is 0.
    pub fn new(wanted: impl IntoIterator<Item = usize>) -> Self {
        let sketch = |wanted: usize| {
            (wanted > 0).then(|| {
                Mutex::new(Sketch {
                    wanted,
                    places: Vec::new(),
                    bytes: 0,
                    by_hash: HashMap::new(),
                    faded: Duration::ZERO,
                    random: 0x2545_F491_4F6C_DD1D,
                })
            })
        };
        HotSets { sets: wanted.into_iter().map(sketch).collect(), began: Instant::now() }
    }

    /// A key was read.
    #[inline]
    pub fn read(&self, entity: usize, key: &EntryKey) {
        let Some(Some(sketch)) = self.sets.get(entity) else { return };
        if is_sampled()
            // Never waited for: somebody else counts in its stead.
            && let Some(mut sketch) = sketch.try_lock()
        {
            sketch.count(key.hash, key.key(), 1.0);
        }
    }

    /// Whether an entity's reads are counted.
    pub fn counts(&self, entity: usize) -> bool {
        self.sets.get(entity).is_some_and(Option::is_some)
    }

    /// Brings all weights to what they are worth now: to be called every now and then.
    pub fn fade(&self) {
        for sketch in self.sets.iter().flatten() {
            sketch.lock().fade(self.began.elapsed());
        }
    }

    /// The keys that were read most, most first, each with its weight: at most as many as are to be remembered.
    pub fn most_read(&self, entity: usize) -> Vec<(Box<str>, f32)> {
        let Some(Some(sketch)) = self.sets.get(entity) else { return Vec::new() };
        let mut sketch = sketch.lock();
        sketch.fade(self.began.elapsed());
        let mut found: Vec<(Box<str>, f32)> =
            sketch.places.iter().map(|place| (place.key.clone(), place.weight - place.inherited)).collect();
        let wanted = sketch.wanted;
        drop(sketch);
        found.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        found.truncate(wanted);
        found
    }

    /// Takes what another process remembered. What can be no key of the entity is left out; says how many were taken.
    pub fn learn(&self, entity: &Entity, keys: impl IntoIterator<Item = (String, f32)>) -> usize {
        let Some(Some(sketch)) = self.sets.get(entity.id) else { return 0 };
        let mut sketch = sketch.lock();
        let mut taken = 0;
        for (key, weight) in keys.into_iter().take(sketch.wanted) {
            let Some(key) = entity.stored_key(&format!("{}{key}", entity.redis_prefix)) else { continue };
            if weight.is_finite() && weight > 0.0 {
                taken += 1;
                match sketch.by_hash.get(&key.hash).copied() {
                    // It may be what this process itself has kept before.
                    Some(at) => sketch.places[at].weight = sketch.places[at].weight.max(weight.min(MAX_WEIGHT)),
                    None => sketch.count(key.hash, key.key(), weight.min(MAX_WEIGHT)),
                }
            }
        }
        taken
    }
}

impl Sketch {
    fn count(&mut self, hash: u64, key: &str, weight: f32) {
        if let Some(at) = self.by_hash.get(&hash) {
            self.places[*at].weight += weight;
            return;
        }
        let has_room = self.bytes + key.len() <= MAX_BYTES;
        if has_room && self.places.len() < self.wanted.saturating_mul(PLACES) {
            self.by_hash.insert(hash, self.places.len());
            self.bytes += key.len();
            self.places.push(Place { hash, key: key.into(), weight, inherited: 0.0 });
            return;
        }
        if self.places.is_empty() {
            return;
        }
        let at = self.rare();
        let left = self.bytes - self.places[at].key.len();
        if left + key.len() > MAX_BYTES {
            // Of a long key one read makes room for a part: it costs as many rare ones as it takes the room of.
            return self.forget(at);
        }
        self.bytes = left + key.len();
        let place = &mut self.places[at];
        self.by_hash.remove(&place.hash);
        self.by_hash.insert(hash, at);
        *place = Place { hash, key: key.into(), weight: place.weight + weight, inherited: place.weight };
    }

    /// Gives up a place.
    fn forget(&mut self, at: usize) {
        let place = self.places.swap_remove(at);
        self.by_hash.remove(&place.hash);
        self.bytes -= place.key.len();
        if let Some(moved) = self.places.get(at) {
            self.by_hash.insert(moved.hash, at);
        }
    }

    /// The least of a few places.
    fn rare(&mut self) -> usize {
        let mut least = 0;
        for n in 0..CANDIDATES {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let at = (self.random % self.places.len() as u64) as usize;
            if n == 0 || self.places[at].weight < self.places[least].weight {
                least = at;
            }
        }
        least
    }

    /// Brings all weights to what they are worth `now`.
    fn fade(&mut self, now: Duration) {
        let half_lives = now.saturating_sub(self.faded).as_secs_f32() / HALF_LIFE.as_secs_f32();
        // Not for every look: what is left of a moment is lost in rounding.
        if half_lives < 0.001 {
            return;
        }
        self.faded = now;
        let left = 0.5_f32.powf(half_lives.min(MOST_HALF_LIVES));
        for place in &mut self.places {
            place.weight *= left;
            place.inherited *= left;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity::{Definition, Shape};
    use crate::key::{KeyColumn, KeyType};

    fn entity() -> Entity {
        let key = KeyColumn {
            name: "id".into(),
            type_oid: 20,
            key_type: KeyType::Integer(0, i64::MAX),
            cast: "pg_catalog.int8".into(),
        };
        let shape = Shape { key: vec![key], ..Shape::unknown(0) };
        Entity::new(0, Definition::rows("row", "public", "rows"), "p:", shape)
    }

    fn keys(sets: &HotSets) -> Vec<String> {
        sets.most_read(0).into_iter().map(|(key, _)| key.into()).collect()
    }

    /// Numbers without end, always the same ones.
    fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
        let mut state = seed;
        move |below| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        }
    }

    #[test]
    fn what_is_read_most_is_known_among_very_many() {
        let (entity, sets) = (entity(), HotSets::new([100]));
        let hot: Vec<EntryKey> = (0..50).map(|n| entity.key(&n.to_string()).unwrap()).collect();
        let mut random = numbers(7);
        for n in 0..1_000_000_u64 {
            // A third of all reads is of fifty keys, two thirds are of a million keys.
            if n % 3 == 0 {
                sets.read(0, &hot[random(50) as usize]);
            } else {
                sets.read(0, &entity.key(&(1000 + random(1_000_000)).to_string()).unwrap());
            }
        }
        let found = keys(&sets);
        let known = hot.iter().filter(|key| found[..50].iter().any(|found| found == key.key())).count();
        assert!(known >= 48, "{known} of 50 hot keys are among the first 50");
        assert_eq!(found.len(), 100);
    }

    #[test]
    fn one_read_in_sixteen_is_looked_at_whatever_the_rhythm() {
        let (entity, sets) = (entity(), HotSets::new([1000]));
        let all: Vec<EntryKey> = (0..16).map(|n| entity.key(&n.to_string()).unwrap()).collect();
        for _ in 0..10_000 {
            all.iter().for_each(|key| sets.read(0, key));
        }
        let weights = sets.most_read(0);
        let total: f32 = weights.iter().map(|(_, weight)| weight).sum();
        assert!((9_000.0..=11_000.0).contains(&total), "{total} of 160000");
        assert_eq!(weights.len(), 16);
        assert!(weights[15].1 * 2.0 > weights[0].1, "{weights:?}");
    }

    #[test]
    fn counts_fade() {
        let (entity, sets) = (entity(), HotSets::new([2]));
        sets.learn(&entity, [("1".to_owned(), 8.0), ("2".to_owned(), 5.0)]);
        let sketch = sets.sets[0].as_ref().unwrap();
        sketch.lock().fade(HALF_LIFE);
        sketch.lock().count(entity.key("2").unwrap().hash, "2", 3.0);
        let weights: Vec<f32> = sets.most_read(0).into_iter().map(|(_, weight)| weight.round()).collect();
        assert_eq!((keys(&sets), weights), (vec!["2".to_owned(), "1".to_owned()], vec![6.0, 4.0]));
    }

    #[test]
    fn what_others_remember_is_checked() {
        let (entity, sets) = (entity(), HotSets::new([3]));
        let given = [("5", 2.0), ("05", 9.0), ("x", 9.0), ("-1", 9.0), ("6", f32::NAN), ("7", 9.0)];
        let given = given.map(|(key, weight)| (key.to_owned(), weight));
        assert_eq!(sets.learn(&entity, given.clone()), 1, "not more than are wanted are looked at");
        assert_eq!(sets.learn(&entity, given.into_iter().rev()), 1);
        assert_eq!(keys(&sets), ["7", "5"]);
        let none = HotSets::new([0]);
        assert_eq!(none.learn(&entity, [("1".to_owned(), 1.0)]), 0);
        none.read(0, &entity.key("1").unwrap());
        assert!(none.most_read(0).is_empty() && !none.counts(0) && sets.counts(0));
    }

    #[test]
    fn weights_keep_their_order_however_late_they_fade() {
        let (entity, sets) = (entity(), HotSets::new([3]));
        let given = [("1", 9.0), ("2", 5.0), ("3", 7.0)].map(|(key, weight)| (key.to_owned(), weight));
        sets.learn(&entity, given);
        let sketch = sets.sets[0].as_ref().unwrap();
        // Half a year in which nobody has looked.
        sketch.lock().fade(HALF_LIFE * 4000);
        assert_eq!(keys(&sets), ["1", "3", "2"]);
        assert!(sets.most_read(0).iter().all(|(_, weight)| *weight > 0.0 && *weight < 1e-3));
    }

    #[test]
    fn keys_have_a_budget_of_bytes() {
        let key = KeyColumn { name: "k".into(), type_oid: 25, key_type: KeyType::Text, cast: "pg_catalog.text".into() };
        let shape = Shape { key: vec![key], ..Shape::unknown(0) };
        let entity = Entity::new(0, Definition::rows("row", "public", "rows"), "p:", shape);
        let sets = HotSets::new([10_000]);
        let sketch = sets.sets[0].as_ref().unwrap();
        let long = |n: usize| entity.key(&format!("{n}{}", "x".repeat(8000))).unwrap();
        let count = |key: &EntryKey| sketch.lock().count(key.hash, key.key(), 1.0);
        let check = || {
            let sketch = sketch.lock();
            let bytes: usize = sketch.places.iter().map(|place| place.key.len()).sum();
            assert!(bytes == sketch.bytes && bytes <= MAX_BYTES, "{bytes} of {}", sketch.bytes);
            let found = |(at, place): (usize, &Place)| sketch.by_hash.get(&place.hash) == Some(&at);
            assert!(sketch.places.iter().enumerate().all(found) && sketch.by_hash.len() == sketch.places.len());
        };
        (0..1000).for_each(|n| count(&long(n)));
        check();
        assert!((500..530).contains(&sketch.lock().places.len()), "{}", sketch.lock().places.len());
        // Short ones take the places of long ones; and a long one that is read often gets in again.
        (0..50_000).for_each(|n| count(&entity.key(&n.to_string()).unwrap()));
        check();
        let hot = long(7);
        (0..10_000).for_each(|_| count(&hot));
        check();
        assert_eq!(keys(&sets)[0], hot.key());
    }
}
