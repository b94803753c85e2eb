//! Entities: the configured kinds of cached things, as resolved against the source's catalog.

pub mod lifetime;
pub mod query;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use self::lifetime::Lifetime;
use self::query::{Dependency, Query, QueryFacts};
use crate::key::{Key, KeyColumn};
use crate::lsn::Lsn;
use crate::sqltype::SqlType;
use crate::void::tag::{self, Cell, Template};

/// What a change of a row does to its entry in L2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnChange {
    /// Writes the new image.
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

/// A generation of an entity's entries: those of an older one than the entity's are never served. Drawn from the
/// sequence `walcache.epoch`, which outlives any Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Generation(pub u64);

impl Generation {
    /// The form in Redis, compared as a string.
    pub fn hex16(self) -> [u8; 16] {
        Lsn::from_u64(self.0).hex16()
    }

    /// Reads back what [`Generation::hex16`] wrote.
    pub fn from_hex16(digits: &[u8]) -> Option<Self> {
        Lsn::from_hex16(digits).map(|n| Generation(n.as_u64()))
    }
}

/// A column of an entity's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueColumn {
    /// The column's name, which is its name in the JSON object.
    pub name: String,
    /// `pg_type.oid` of its type.
    pub type_oid: u32,
    /// How its text becomes JSON.
    pub sql_type: SqlType,
}

/// What of a table reaches the stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Published {
    /// The publications' row filter, in SQL over the table's columns: other rows are none of the entity's. `None`: all rows
    /// are.
    pub row_filter: Option<String>,
    /// Differs after a time out of the publications, and whenever they were altered.
    pub version: u64,
}

/// The columns of an entity as the catalog has them now; replaced as a whole when the table's shape changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// `pg_class.oid` of the table.
    pub table_oid: u32,
    /// The value's columns, in the order of the JSON object.
    pub columns: Vec<ValueColumn>,
    /// The key's columns, in key order.
    pub key: Vec<KeyColumn>,
    /// Whether the value is the whole row, so that a column that is added to the table belongs to it, too.
    pub whole_row: bool,
    /// Whether it is the root of partitions, which have replica identities of their own.
    pub partitioned: bool,
    /// Stands for whatever else decides what its values read as: it differs after an ALTER TABLE that rewrote values in
    /// place, a renamed enum label, a partition that came or went, or a time out of the publication; also where all of that
    /// was undone.
    pub version: u64,
    /// Which of its rows are streamed.
    pub published: Published,
    /// The tables under whose names its rows are streamed: the table itself, then its partitions of every level. Empty
    /// where the stream announces tables by itself, as pgoutput's does; from Postgres 15 on also which partitions are its.
    pub tables: Vec<StreamedTable>,
    /// What the catalog says of its query, if it has one.
    pub query: Option<QueryFacts>,
}

/// What the catalog says of a table that the stream knows by its name only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamedTable {
    /// `pg_class.oid`.
    pub oid: u32,
    /// The table's schema.
    pub schema: String,
    /// The table's name.
    pub name: String,
    /// Its columns, by position.
    pub columns: Vec<StreamedColumn>,
    /// Differs after a change of its name, its schema's name, or its replica identity, also if that was taken back.
    pub version: String,
}

/// A column of a [`StreamedTable`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamedColumn {
    /// The column's name.
    pub name: String,
    /// `pg_type.oid` of its type.
    pub type_oid: u32,
    /// `pg_attribute.attnum`.
    pub position: i16,
    /// Whether its values may lie out of line, so that an update that leaves one as it was does not carry it.
    pub out_of_line: bool,
    /// Whether it is computed when it is read, and therefore in no row that is streamed.
    pub computed: bool,
}

/// What may be done with an entity, by the source's catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Its changes come through the stream: reads are answered from the tiers.
    Cached,
    /// They do not, or not as they must, and why: reads are answered from Postgres.
    Uncached(String),
    /// Its rows cannot be read as it is configured, and why: reads are refused.
    Unreadable(String),
}

impl Standing {
    /// Its name in the status.
    pub fn name(&self) -> &'static str {
        match self {
            Standing::Cached => "cached",
            Standing::Uncached(_) => "uncached",
            Standing::Unreadable(_) => "unreadable",
        }
    }

    /// Why it is not cached.
    pub fn cause(&self) -> Option<&str> {
        match self {
            Standing::Cached => None,
            Standing::Uncached(why) | Standing::Unreadable(why) => Some(why),
        }
    }
}

/// An entity as the source's catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// What may be done with it.
    pub standing: Standing,
    /// Its shape; where it is unreadable, there may be none.
    pub shape: Option<Shape>,
    /// Stands for everything in the catalog that a look at the entity sees, see `catalog::Signatures`.
    pub signature: u64,
}

impl Shape {
    /// Of a table that cannot be read: without columns, and no key is one of its keys.
    pub fn unknown(version: u64) -> Self {
        Shape {
            table_oid: 0,
            columns: Vec::new(),
            key: Vec::new(),
            whole_row: false,
            partitioned: false,
            version,
            published: Published::default(),
            tables: Vec::new(),
            query: None,
        }
    }

    /// Whether what it is made of is streamed under the same names in both.
    pub fn is_streamed_as(&self, other: &Shape) -> bool {
        let names = |shape: &Shape| -> std::collections::BTreeSet<(String, String)> {
            shape.streamed().flatten().map(|table| (table.schema.clone(), table.name.clone())).collect()
        };
        self.is_partitioned() == other.is_partitioned() && names(self) == names(other)
    }

    /// The tables that it is made of, each with its partitions: see [`Shape::tables`].
    pub fn streamed(&self) -> impl Iterator<Item = &[StreamedTable]> {
        std::iter::once(&self.tables[..]).chain(self.depends().iter().map(|dependency| &dependency.tables[..]))
    }

    /// Whether any table that it is made of is the root of partitions.
    pub fn is_partitioned(&self) -> bool {
        self.partitioned || self.depends().iter().any(|dependency| dependency.partitioned)
    }

    /// Of a query, the tables of its rules, in their order.
    pub fn depends(&self) -> &[Dependency] {
        self.query.as_ref().map_or(&[], |query| &query.depends)
    }

    /// Tells shapes apart across restarts: whatever decides how a value reads, as a hash.
    pub fn signature(&self) -> u64 {
        hash(format!("{self:?}").as_bytes())
    }
}

/// A configured kind of cached thing: the rows of one table, or the results of a query.
#[derive(Debug)]
pub struct Entity {
    /// Position in the configuration, and in every table that is kept by entity.
    pub id: usize,
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

/// What the configuration says of an entity.
#[derive(Debug, Clone)]
pub struct Definition {
    /// As [`Entity::name`].
    pub name: String,
    /// As [`Entity::schema`].
    pub schema: String,
    /// As [`Entity::table`].
    pub table: String,
    /// As [`Entity::on_change`].
    pub on_change: OnChange,
    /// As [`Entity::ttl`].
    pub ttl: Duration,
    /// As [`Entity::lifetime`].
    pub lifetime: Lifetime,
    /// As [`Entity::compress_above`].
    pub compress_above: Option<usize>,
    /// As [`Entity::populate`].
    pub populate: bool,
    /// As [`Entity::query`].
    pub query: Option<Query>,
    /// As [`Entity::tags`].
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
            ttl: Duration::from_secs(3600),
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
        let Definition { name, schema, table, on_change, ttl, lifetime, compress_above, populate, query, tags } =
            definition;
        let redis_prefix = format!("{prefix}{name}:");
        Entity {
            id,
            name,
            schema,
            table,
            on_change,
            ttl,
            lifetime,
            compress_above,
            populate,
            query,
            tags,
            redis_prefix,
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
        tag::tags(&self.tags, &self.shape.load(), redis.get(self.redis_prefix.len()..).unwrap_or_default(), value)
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
        let mut redis = String::with_capacity(self.redis_prefix.len() + key.as_str().len());
        redis.push_str(&self.redis_prefix);
        redis.push_str(key.as_str());
        EntryKey { hash: hash(redis.as_bytes()), redis: redis.into_boxed_str(), start: self.redis_prefix.len() }
    }
}

/// The full key of an entry, with its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryKey {
    /// [`hash`] of the full key.
    pub hash: u64,
    redis: Box<str>,
    start: usize,
}

impl EntryKey {
    /// The key in Redis: `{prefix}{entity}:{key}`.
    pub fn redis(&self) -> &str {
        &self.redis
    }

    /// The key within its entity.
    pub fn key(&self) -> &str {
        &self.redis[self.start..]
    }
}

/// The hash of a full key: it chooses the cell of the L1 fence and the shard of L1, on every instance alike.
pub fn hash(redis_key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(redis_key)
}
