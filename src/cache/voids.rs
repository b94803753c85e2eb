//! The floors that voids leave: what an entry must have seen at least to be served.
//!
//! A void at the end LSN `c` raises a floor to `c`: of a tag's cell, of a pattern of keys, or of all of an entity. An
//! entry below a floor that concerns it is not served, and counts as absent to whoever would lease its key:
//!
//! - **L2**: an entry with `lo < c`. Nothing that was read before `c` was applied has a higher `lo`: whoever took a lease
//!   then was given a high-water mark below `c`. So a fill that is under way needs not be stopped; what it stores is below
//!   the floor. Everything that is read from Postgres after `c` was applied bears `lo >= c`, and so does the image of every
//!   later event. What the void's own transaction writes bears `c` itself, and is the state of that very commit.
//! - **L1**: an entry with `as_of < c`: this instance's watermark stood below `c` when it was fetched.
//!
//! A transaction that is applied in pieces labels its voids as its images, with the position after the first byte of its
//! commit record. Every high-water mark that was given before its first piece lies below that, and every fill that is given
//! one at or above it reads after the transaction has passed the gate: so the label divides what its end would divide.
//!
//! Floors are raised in this process before anything of their batch is written, and the watermark moves after: a reader
//! that finds the watermark at `c` finds the floor, too. They are written to the fence of L2, with the high-water mark,
//! before their batch is done: so whoever claims L2 next has them. Where writing fails, the batch comes again.
//!
//! Patterns are few, and each is matched by every read of their entity that is below the newest of them. One too many
//! turns the oldest into a floor of the whole entity, which is right, and more than is needed. The sweep ends them sooner:
//! see [`super::sweep`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Hierarchy;
use super::l1::Cached;
use crate::entity::{Entity, EntryKey};
use crate::lsn::Lsn;
use crate::void::glob::Glob;
use crate::void::tag::{self, Cell};
use crate::void::{MAX_PATTERNS, Void};

/// The beginnings of the fence's fields that hold floors.
const TAG: &str = "tag:";
const ENTITY: &str = "void:";
const PATTERN: &str = "glob:";

/// How long it is tried to match a key with one pattern, in steps of nanoseconds: odd patterns, of which anybody may give many
/// who can write to the database, would else keep the readers of long keys waiting.
const MAX_STEPS: usize = 1 << 16;

/// A pattern, and the end LSN of the transaction that voided what matches it.
pub type Pattern = (Arc<Glob>, Lsn);

/// A field of L2's fence and its value; an empty one removes it.
pub type Field = (String, Vec<u8>);

/// All floors of this process.
pub struct Voids {
    /// By cell; made when a tag is first voided.
    tags: OnceLock<Box<[AtomicU64]>>,
    entities: Box<[EntityVoids]>,
    added: Notify,
}

#[derive(Default)]
struct EntityVoids {
    /// The highest of the floor and all patterns: at or above it, nothing need be matched.
    top: AtomicU64,
    /// Of all entries.
    floor: AtomicU64,
    patterns: ArcSwap<Vec<Pattern>>,
    /// Patterns up to here have been swept and are matched no more. What L1 holds from before must have been looked at
    /// by the sweep.
    swept: AtomicU64,
    /// Held while any of these is changed.
    turn: Mutex<()>,
}

impl EntityVoids {
    /// After the patterns were replaced, or the floor was raised.
    fn set_top(&self) {
        let patterns = self.patterns.load();
        let highest = patterns.iter().map(|(_, c)| c.as_u64()).max().unwrap_or(0);
        self.top.store(highest.max(self.floor.load(Ordering::Acquire)), Ordering::Release);
    }

    fn raise_floor(&self, lsn: Lsn) {
        let _turn = self.turn.lock();
        self.floor.fetch_max(lsn.as_u64(), Ordering::AcqRel);
        self.set_top();
    }

    /// Adds a pattern; gives those that became the floor instead.
    fn add(&self, glob: &Arc<Glob>, lsn: Lsn) -> Vec<Pattern> {
        let _turn = self.turn.lock();
        let mut patterns = Vec::clone(&self.patterns.load());
        match patterns.iter_mut().find(|(known, _)| known == glob) {
            Some((_, c)) => *c = lsn.max(*c),
            None => patterns.push((glob.clone(), lsn)),
        }
        // The oldest first.
        patterns.sort_by_key(|(_, c)| *c);
        let surplus = patterns.len().saturating_sub(MAX_PATTERNS);
        let replaced: Vec<Pattern> = patterns.drain(..surplus).collect();
        if let Some((_, c)) = replaced.last() {
            // Before they are gone from the list: a reader looks at the list first.
            self.floor.fetch_max(c.as_u64(), Ordering::AcqRel);
        }
        self.patterns.store(Arc::new(patterns));
        self.set_top();
        replaced
    }

    /// What a key's entry must have seen at least.
    fn floor(&self, full: &[u8]) -> Lsn {
        // In this order: see `add`.
        let patterns = self.patterns.load();
        let mut floor = self.floor.load(Ordering::Acquire);
        for (glob, c) in patterns.iter() {
            // What takes too long is voided: that costs a miss.
            if c.as_u64() > floor && glob.matches_within(full, MAX_STEPS).unwrap_or(true) {
                floor = c.as_u64();
            }
        }
        Lsn::from_u64(floor)
    }
}

/// `entity:key`, what patterns are matched with: the key in Redis without the prefix of all.
pub(super) fn full<'k>(entity: &Entity, key: &'k str) -> &'k [u8] {
    // The entity's prefix is `{prefix}{entity}:`.
    &key.as_bytes()[entity.redis_prefix.len() - entity.name.len() - 1..]
}

impl Voids {
    /// No floors, for so many entities.
    pub fn new(entities: usize) -> Self {
        let entities = (0..entities).map(|_| EntityVoids::default()).collect();
        Voids { tags: OnceLock::new(), entities, added: Notify::new() }
    }

    fn tags(&self) -> &[AtomicU64] {
        self.tags.get_or_init(|| (0..tag::CELLS).map(|_| AtomicU64::new(0)).collect())
    }

    /// Whether an entry that has seen everything up to `seen` is above all floors of its entity and key. `key` is the key
    /// in Redis. Tags are a matter of their own.
    pub fn admits(&self, entity: &Entity, key: &str, seen: Lsn) -> bool {
        let of = &self.entities[entity.id];
        seen.as_u64() >= of.top.load(Ordering::Acquire) || seen >= of.floor(full(entity, key))
    }

    /// What an entry of a key must have seen at least, tags aside.
    pub fn floor(&self, entity: &Entity, key: &str) -> Lsn {
        let of = &self.entities[entity.id];
        if of.top.load(Ordering::Acquire) == 0 { Lsn::ZERO } else { of.floor(full(entity, key)) }
    }

    /// What an entry that bears these tags must have seen at least.
    pub fn tag_floor(&self, cells: &[Cell]) -> Lsn {
        let floor = |tags: &[AtomicU64]| cells.iter().map(|c| tags[c.index()].load(Ordering::Acquire)).max();
        // Most entities have no tags.
        if cells.is_empty() {
            return Lsn::ZERO;
        }
        Lsn::from_u64(self.tags.get().and_then(|tags| floor(tags)).unwrap_or(0))
    }

    /// Raises floors to the LSNs of voids; gives what L2's fence is to hold of that. Before the watermark reaches any of
    /// them.
    pub fn raise<'v>(&self, entities: &[Arc<Entity>], voids: impl Iterator<Item = (&'v Void, Lsn)>) -> Vec<Field> {
        let mut fields = Vec::new();
        for (void, lsn) in voids {
            match void {
                Void::Tag(cell) => {
                    let before = self.tags()[cell.index()].fetch_max(lsn.as_u64(), Ordering::AcqRel);
                    fields.push((format!("{TAG}{:04x}", cell.index()), Lsn::from_u64(before).max(lsn)));
                }
                Void::Entity { entity } => {
                    self.entities[*entity].raise_floor(lsn);
                    fields.push((format!("{ENTITY}{}", entities[*entity].name), self.whole(*entity)));
                }
                Void::Pattern { entity, glob } => {
                    let name = &entities[*entity].name;
                    fields.push((field(name, glob), lsn));
                    self.added.notify_one();
                    for (replaced, _) in self.entities[*entity].add(glob, lsn) {
                        fields.push((format!("{ENTITY}{name}"), self.whole(*entity)));
                        fields.push((field(name, &replaced), Lsn::ZERO));
                    }
                }
            }
        }
        let value = |lsn: Lsn| if lsn == Lsn::ZERO { Vec::new() } else { lsn.hex16().to_vec() };
        fields.into_iter().map(|(field, lsn)| (field, value(lsn))).collect()
    }

    fn whole(&self, entity: usize) -> Lsn {
        Lsn::from_u64(self.entities[entity].floor.load(Ordering::Acquire))
    }

    /// Raises floors to what the fence of an L2 says.
    pub fn load(&self, entities: &[Arc<Entity>], fence: &HashMap<String, Vec<u8>>) {
        for (field, value) in fence {
            let Some(lsn) = Lsn::from_hex16(value) else { continue };
            let named = |name: &str| entities.iter().find(|entity| entity.name == name).map(|entity| entity.id);
            if let Some(cell) = field.strip_prefix(TAG) {
                let cell = usize::from_str_radix(cell, 16).ok().and_then(Cell::at);
                if let Some(cell) = cell {
                    self.tags()[cell.index()].fetch_max(lsn.as_u64(), Ordering::AcqRel);
                }
            } else if let Some(entity) = field.strip_prefix(ENTITY).and_then(named) {
                self.entities[entity].raise_floor(lsn);
            } else if let Some((name, text)) = field.strip_prefix(PATTERN).and_then(|rest| rest.split_once(':'))
                && let (Some(entity), Ok(glob)) = (named(name), Glob::parse(text))
            {
                self.entities[entity].add(&Arc::new(glob), lsn);
            }
        }
    }

    /// The fields of a fence that hold floors: of all, or of entities that are not there any more.
    pub fn fields<'f>(
        fence: &'f HashMap<String, Vec<u8>>,
        entities: Option<&'f [Arc<Entity>]>,
    ) -> impl Iterator<Item = Field> {
        let held = move |field: &&String| {
            let entity = field.strip_prefix(ENTITY).or_else(|| Some(field.strip_prefix(PATTERN)?.split_once(':')?.0));
            match (entities, entity) {
                (None, Some(_)) => true,
                (None, None) => field.starts_with(TAG),
                (Some(known), Some(name)) => !known.iter().any(|entity| entity.name == name),
                (Some(_), None) => false,
            }
        };
        fence.keys().filter(held).map(|field| (field.clone(), Vec::new()))
    }

    /// Forgets all. Only after every entity's generation was raised.
    pub fn clear(&self) {
        self.tags.get().into_iter().flat_map(|tags| tags.iter()).for_each(|cell| cell.store(0, Ordering::Release));
        for of in &self.entities {
            let _turn = of.turn.lock();
            of.patterns.store(Arc::default());
            for lsn in [&of.floor, &of.top, &of.swept] {
                lsn.store(0, Ordering::Release);
            }
        }
    }

    /// The patterns of an entity that are matched now, the oldest first.
    pub fn patterns(&self, entity: usize) -> Vec<Pattern> {
        Vec::clone(&self.entities[entity].patterns.load())
    }

    /// Waits until a pattern is added.
    pub async fn added(&self) {
        self.added.notified().await;
    }

    /// How many patterns are matched now, of all entities.
    pub fn active(&self) -> usize {
        self.entities.iter().map(|of| of.patterns.load().len()).sum()
    }

    /// Patterns up to here have been swept, and what L1 holds from before must have been compared with them.
    pub fn swept(&self, entity: &Entity) -> Lsn {
        Lsn::from_u64(self.entities[entity.id].swept.load(Ordering::Acquire))
    }

    /// Drops patterns that have been swept; gives what is to go from L2's fence. One that came again since stays.
    pub(super) fn retire(&self, entity: &Entity, swept: &[Pattern]) -> Vec<Field> {
        let of = &self.entities[entity.id];
        let _turn = of.turn.lock();
        let (gone, left) = of.patterns.load().iter().cloned().partition::<Vec<_>, _>(|held| swept.contains(held));
        if let Some(newest) = gone.iter().map(|(_, c)| c.as_u64()).max() {
            // Before they are gone from the list: a reader looks at the list first.
            of.swept.fetch_max(newest, Ordering::AcqRel);
        }
        of.patterns.store(Arc::new(left));
        of.set_top();
        gone.iter().map(|(glob, _)| (field(&entity.name, glob), Vec::new())).collect()
    }
}

fn field(entity: &str, glob: &Glob) -> String {
    format!("{PATTERN}{entity}:{}", glob.text())
}

/// The void that keeps an entry from being served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Voided {
    /// Of one of its tags, at this LSN.
    Tag(String, Lsn),
    /// Of its key or of its entity, at this LSN.
    Key(Lsn),
    /// It may have come into L1 after what matches a pattern was swept out, up to this LSN.
    Unswept(Lsn),
}

impl Hierarchy {
    /// Whether an entry of L2 is above all floors that concern it; `key` is its key in Redis. `swept` is what
    /// [`Voids::swept`] said before the entry was fetched: the sweep may have come to it since, and ended its pattern.
    pub fn stands(&self, entity: &Entity, key: &str, lo: Lsn, value: Option<&[u8]>, swept: Lsn) -> bool {
        // In this order: see `retire`.
        let admitted = self.voids.admits(entity, key, lo) && lo >= self.tag_floor(entity, key, value);
        let now = self.voids.swept(entity);
        admitted && (now == swept || lo >= now)
    }

    /// What an entry must have seen at least by its tags.
    pub fn tag_floor(&self, entity: &Entity, key: &str, value: Option<&[u8]>) -> Lsn {
        if entity.tags.is_empty() { Lsn::ZERO } else { self.voids.tag_floor(&entity.cells(key, value)) }
    }

    /// Whether an entry of L1 is above all floors that concern it.
    pub fn stands_in_l1(&self, entity: &Entity, cached: &Cached) -> bool {
        // In this order: see `retire`.
        self.voids.admits(entity, &cached.key, cached.as_of)
            && cached.seen() >= self.voids.swept(entity)
            && (cached.tags.is_empty() || cached.as_of >= self.voids.tag_floor(&cached.tags))
    }

    /// The value of a key in L1, if it may still be served.
    pub fn cached(&self, entity: &Entity, key: &EntryKey) -> Option<Arc<Cached>> {
        let cached = self.l1.as_ref()?.get(entity.id, key, entity.generation())?;
        self.stands_in_l1(entity, &cached).then_some(cached)
    }

    /// The void that keeps an entry from being served that has seen everything up to `seen`, if one does.
    pub fn voided(&self, entity: &Entity, key: &str, seen: Lsn, value: Option<&[u8]>) -> Option<Voided> {
        let floor = self.voids.floor(entity, key);
        if seen < floor {
            return Some(Voided::Key(floor));
        }
        entity.tags_of(key, value).into_iter().find_map(|tag| {
            let floor = self.voids.tag_floor(&[Cell::of(&tag)]);
            (seen < floor).then_some(Voided::Tag(tag, floor))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::watermark::Watermark;
    use crate::entity::{Definition, Shape};

    #[test]
    fn a_text_that_was_fetched_before_the_sweep_came_by_is_not_served() {
        let entity = Arc::new(Entity::new(0, Definition::rows("item", "public", "items"), "p:", Shape::unknown(0)));
        let (watermark, voids) = (Watermark::default(), Voids::new(1));
        let hierarchy = Hierarchy { entities: vec![entity.clone()], l1: None, l2: None, watermark, voids };
        let voids = &hierarchy.voids;
        let (old, c, new) = (Lsn::from_u64(10), Lsn::from_u64(20), Lsn::from_u64(30));
        let stands = |lo, swept| hierarchy.stands(&entity, "p:item:1", lo, Some(b"{}"), swept);
        // The reader looks before it fetches.
        let before = voids.swept(&entity);
        let glob = Arc::new(Glob::parse("item:*1").unwrap());
        voids.raise(&hierarchy.entities, [(&Void::Pattern { entity: 0, glob }, c)].into_iter());
        assert!(!stands(old, before) && stands(c, before) && stands(new, before));
        voids.retire(&entity, &voids.patterns(0));
        assert!(voids.patterns(0).is_empty());
        assert!(!stands(old, before), "the pattern is forgotten, and the text is still of before");
        assert!(stands(c, before) && stands(new, before));
        // What is fetched from now on, the sweep has left there.
        let after = voids.swept(&entity);
        assert!(stands(old, after));
    }

    /// A pattern that gives way to newer ones is the floor before it is gone from the list: no reader misses it in between.
    #[test]
    fn a_pattern_that_becomes_the_floor_is_not_missed() {
        const ROUNDS: usize = 2000;
        let (of, added) = (EntityVoids::default(), AtomicU64::new(0));
        let glob = |text: String| Arc::new(Glob::parse(&text).unwrap());
        let others: Vec<_> = (0..MAX_PATTERNS).map(|n| glob(format!("item:other{n}"))).collect();
        std::thread::scope(|scope| {
            let adding = scope.spawn(|| {
                let (own, mut lsns) = (glob("item:1".to_owned()), (1..).map(Lsn::from_u64));
                for _ in 0..ROUNDS {
                    let c = lsns.next().unwrap();
                    of.add(&own, c);
                    added.store(c.as_u64(), Ordering::Release);
                    for other in &others {
                        of.add(other, lsns.next().unwrap());
                    }
                }
            });
            while !adding.is_finished() {
                let seen = Lsn::from_u64(added.load(Ordering::Acquire));
                let floor = of.floor(b"item:1");
                assert!(floor >= seen, "{floor} is below {seen}");
            }
        });
    }

    #[test]
    fn odd_patterns_keep_no_reader_waiting() {
        let entity = Arc::new(Entity::new(0, Definition::rows("doc", "public", "docs"), "p:", Shape::unknown(0)));
        let (entities, voids, c) = (vec![entity.clone()], Voids::new(1), Lsn::from_u64(20));
        for n in 0..MAX_PATTERNS {
            let glob = Arc::new(Glob::parse(&format!("doc:*{}b{n}", "a".repeat(900))).unwrap());
            voids.raise(&entities, [(&Void::Pattern { entity: 0, glob }, c)].into_iter());
        }
        let key = format!("p:doc:{}", "a".repeat(16 * 1024));
        let began = std::time::Instant::now();
        assert_eq!(voids.floor(&entity, &key), c, "what takes too long is voided");
        // Less than for one of them to its end, and 64 were tried.
        assert!(began.elapsed() < std::time::Duration::from_secs(2), "{:?}", began.elapsed());
        assert_eq!(voids.floor(&entity, "p:doc:b"), Lsn::ZERO);
    }
}
