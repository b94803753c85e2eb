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
/// Bytes of keys of one entity that are given, or taken, at most.
pub const MAX_BYTES: usize = 4 << 20;
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

    /// The keys that were read most, most first, each with its weight: at most as many as are to be remembered, and
    /// [`MAX_BYTES`] of them.
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
        let mut size = 0;
        let fits = found.iter().take_while(|(key, _)| {
            size += key.len();
            size <= MAX_BYTES
        });
        let fits = fits.count();
        found.truncate(fits);
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
        if self.places.len() < self.wanted.saturating_mul(PLACES) {
            self.by_hash.insert(hash, self.places.len());
            self.places.push(Place { hash, key: key.into(), weight, inherited: 0.0 });
            return;
        }
        let at = self.rare();
        let place = &mut self.places[at];
        self.by_hash.remove(&place.hash);
        self.by_hash.insert(hash, at);
        *place = Place { hash, key: key.into(), weight: place.weight + weight, inherited: place.weight };
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
        let left = 0.5_f32.powf(half_lives);
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
    fn a_read_costs_nanoseconds() {
        let (entity, sets, off) = (entity(), HotSets::new([1000]), HotSets::new([0]));
        let all: Vec<EntryKey> = (0..10_000).map(|n| entity.key(&n.to_string()).unwrap()).collect();
        let time = |sets: &HotSets| {
            let started = Instant::now();
            for _ in 0..100 {
                all.iter().for_each(|key| sets.read(std::hint::black_box(0), key));
            }
            started.elapsed().as_secs_f64() * 1e9 / 1e6
        };
        let (without, with) = (time(&off), time(&sets));
        println!("a read that is not counted: {without:.1} ns; one that is: {with:.1} ns");
        // Without optimization, on a busy machine: a lock and an allocation for each read would take longer.
        assert!(with < 2000.0, "{with} ns");
    }
}
