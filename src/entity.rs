//! Entities: the configured kinds of cached things, as resolved against the source's catalog.

mod entry_key;
pub mod lifetime;
pub mod query;
mod shape;
mod standing;
pub mod warming;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

pub use self::entry_key::EntryKey;
use self::lifetime::Lifetime;
use self::query::Query;
pub use self::shape::{Published, Shape, StreamedColumn, StreamedTable, ValueColumn};
pub use self::standing::{QUERY_LOCKED, Resolved, Standing, TABLE_LOCKED};
pub use crate::generation::Generation;
use crate::key::Key;
pub use crate::key::hash;
use crate::lsn::Lsn;
use crate::void::tag::{self, Cell, Template};

/// What a change does to an entry in L2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnChange {
    /// Writes the row's new image; the result of a query is dropped, and read again.
    #[default]
    Refresh,
    /// Deletes the entry; the next read fills it again.
    Invalidate,
}

/// What becomes of hits while replication is further behind than the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PastBound {
    /// They are not given: Postgres is read.
    #[default]
    Bypass,
    /// They are given, and marked as stale.
    Serve,
}

/// A configured kind of cached thing: the rows of one table, or the results of a query. What the configuration says of it,
/// its [`Definition`], reads as its own.
#[derive(Debug)]
pub struct Entity {
    /// Position in the configuration, and in every table that is kept by entity.
    pub id: usize,
    definition: Definition,
    /// `{prefix}{entity}:`, what the entity's keys in Redis begin with.
    pub redis_prefix: String,
    shape: ArcSwap<Shape>,
    generation: AtomicU64,
    /// Whether it stands as cached: what every read looks at.
    servable: AtomicBool,
    standing: ArcSwap<Standing>,
    seen: AtomicU64,
    reshaping: AtomicBool,
    images_after: AtomicU64,
}

impl Deref for Entity {
    type Target = Definition;

    fn deref(&self) -> &Definition {
        &self.definition
    }
}

/// How long an entry may live where the configuration is silent.
pub const DEFAULT_TTL: Duration = Duration::from_secs(3600);

/// What the configuration says of an entity.
#[derive(Debug, Clone)]
pub struct Definition {
    /// The name in URLs, keys and metrics: `[a-z][a-z0-9_-]*`.
    pub name: String,
    /// The table's schema.
    pub schema: String,
    /// The table's name.
    pub table: String,
    /// What a change does to an entry.
    pub on_change: OnChange,
    /// How long an entry may live, in both tiers together.
    pub ttl: Duration,
    /// What else is said of entries' lives.
    pub lifetime: Lifetime,
    /// Values of more than so many bytes are compressed in L2; `None`: none are.
    pub compress_above: Option<usize>,
    /// Whether changes also write entries that nobody has read.
    pub populate: bool,
    /// What its entries are the results of; `None` where they are the rows of its table. With a query it has no table.
    pub query: Option<Query>,
    /// What the tags of its entries are made of.
    pub tags: Vec<Template>,
}

impl Definition {
    /// The rows of a table, with what holds where the configuration is silent.
    pub fn rows(name: &str, schema: &str, table: &str) -> Self {
        Definition {
            name: name.to_owned(),
            schema: schema.to_owned(),
            table: table.to_owned(),
            on_change: OnChange::default(),
            ttl: DEFAULT_TTL,
            lifetime: Lifetime::default(),
            compress_above: None,
            populate: false,
            query: None,
            tags: Vec::new(),
        }
    }
}

impl Entity {
    /// An entity with the shape that the catalog gave; `prefix` is what all keys in Redis begin with.
    pub fn new(id: usize, definition: Definition, prefix: &str, shape: Shape) -> Self {
        Entity {
            id,
            redis_prefix: format!("{prefix}{}:", definition.name),
            definition,
            shape: ArcSwap::from_pointee(shape),
            generation: AtomicU64::new(0),
            servable: AtomicBool::new(true),
            standing: ArcSwap::from_pointee(Standing::Cached),
            seen: AtomicU64::new(0),
            reshaping: AtomicBool::new(false),
            images_after: AtomicU64::new(0),
        }
    }

    /// The shape that stands now.
    pub fn shape(&self) -> Arc<Shape> {
        self.shape.load_full()
    }

    /// Replaces the shape after DDL. The generation is raised afterwards, and whoever makes a value reads the
    /// generation before the shape: so a value of the old shape never bears the new generation.
    pub fn reshape(&self, shape: Shape) {
        self.reshaping.store(true, Ordering::Release);
        self.shape.store(Arc::new(shape));
    }

    /// Whether the shape was replaced and the generation does not stand for it yet: values of the old shape are still
    /// served, while Postgres is asked for the new one.
    pub fn is_reshaping(&self) -> bool {
        self.reshaping.load(Ordering::Acquire)
    }

    /// The generation that stands.
    pub fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    /// Whether the tiers may be used for it: its table exists, and its changes come through the stream.
    pub fn is_servable(&self) -> bool {
        self.servable.load(Ordering::Acquire)
    }

    /// What may be done with it.
    pub fn standing(&self) -> Arc<Standing> {
        self.standing.load_full()
    }

    /// Takes the entity out of the tiers, before its generation is raised; or lets it back in, after that.
    pub fn set_standing(&self, standing: Standing) {
        let servable = standing == Standing::Cached;
        self.standing.store(Arc::new(standing));
        self.servable.store(servable, Ordering::Release);
    }

    /// Why its rows cannot be read, if they cannot.
    pub fn unreadable(&self) -> Option<String> {
        if self.is_servable() {
            return None;
        }
        match &**self.standing.load() {
            Standing::Unreadable(why) => Some(why.clone()),
            // What could not be looked at yet has no key that a request could be judged by.
            Standing::Uncached(why) if self.shape.load().key.is_empty() => Some(why.clone()),
            _ => None,
        }
    }

    /// The signature of the catalog when it was last looked up: see [`Resolved::signature`].
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Acquire)
    }

    /// Takes note of what a look that is done stands for.
    pub fn set_seen(&self, signature: u64) {
        self.seen.store(signature, Ordering::Release);
    }

    /// Events up to here may be of a shape before this one, whose values read otherwise: they drop entries, and do not
    /// refresh them.
    pub fn images_after(&self) -> Lsn {
        Lsn::from_u64(self.images_after.load(Ordering::Acquire))
    }

    /// Sets [`Entity::images_after`] to where the log ended after the shape was looked up, before the generation that
    /// stands for the shape is raised.
    pub fn set_images_after(&self, lsn: Lsn) {
        self.images_after.store(lsn.as_u64(), Ordering::Release);
    }

    /// Raises the generation, which makes all older entries unservable here at once.
    pub fn raise(&self, generation: Generation) {
        self.generation.fetch_max(generation.0, Ordering::AcqRel);
        self.reshaping.store(false, Ordering::Release);
    }

    /// Whether entries that an event has dropped are to be read again.
    pub fn is_requeried(&self) -> bool {
        self.query.is_some() && self.on_change == OnChange::Refresh
    }

    /// The tables that its entries are made of, by schema and name: its own, or those that its query depends on.
    pub fn tables(&self) -> impl Iterator<Item = (&str, &str)> {
        let own = self.query.is_none().then_some((self.schema.as_str(), self.table.as_str()));
        let rules = self.query.iter().flat_map(|query| &query.rules);
        own.into_iter().chain(rules.map(|rule| (rule.schema.as_str(), rule.table.as_str())))
    }

    /// What it is made of, in words.
    pub fn made_of(&self) -> String {
        let mut tables: Vec<String> = self.tables().map(|(schema, table)| format!("{schema}.{table}")).collect();
        tables.dedup();
        match self.query {
            Some(_) => format!("a query of {}", tables.join(", ")),
            None => tables.join(", "),
        }
    }

    /// Reads a key as a request spells it.
    ///
    /// # Errors
    /// See [`Key::from_request`].
    pub fn key(&self, segment: &str) -> Result<EntryKey, crate::key::KeyError> {
        Key::from_request(segment, &self.shape.load().key).map(|key| self.entry_key(key))
    }

    /// Makes a key of the values of its columns, as they are.
    ///
    /// # Errors
    /// See [`Key::from_values`].
    pub fn key_of(&self, values: &[std::borrow::Cow<'_, str>]) -> Result<EntryKey, crate::key::KeyError> {
        Key::from_values(values, &self.shape.load().key).map(|key| self.entry_key(key))
    }

    /// The tags that an entry bears, by its key in Redis and its value; `None` is a row that is known to be absent.
    pub fn tags_of(&self, redis: &str, value: Option<&[u8]>) -> Vec<String> {
        tag::tags(&self.tags, &self.shape.load().key, redis.get(self.redis_prefix.len()..).unwrap_or_default(), value)
    }

    /// The cells of those tags.
    pub fn cells(&self, redis: &str, value: Option<&[u8]>) -> Box<[Cell]> {
        if self.tags.is_empty() {
            return Box::default();
        }
        self.tags_of(redis, value).iter().map(|tag| Cell::of(tag)).collect()
    }

    /// The entry whose full key in Redis this is; `None` if no read can reach it: the key is another's, or none that
    /// this entity's keys are spelled as.
    pub fn stored_key(&self, redis: &str) -> Option<EntryKey> {
        let key = redis.strip_prefix(&self.redis_prefix)?;
        Key::from_stored(key, &self.shape.load().key).map(|key| self.entry_key(key))
    }

    /// The entry of a canonical key.
    pub fn entry_key(&self, key: Key) -> EntryKey {
        EntryKey::new(&self.redis_prefix, &key)
    }
}
