//! Plans what a change does to entries: pure, (change, entities) to effects.

pub mod command;
mod rule;

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use crate::change::{Change, Datum, OldTuple, Relation, ReplicaIdentity, Tuple};
use crate::decode::render::{escape, render};
use crate::entity::{Entity, Generation, OnChange};
use crate::entry;
use crate::key::{MAX_KEY_BYTES, push_part};
use crate::sqltype::SqlType;
use crate::void::Void;
use rule::RuleMapping;

/// Why an entry is dropped rather than written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The row was written, and the entity invalidates on change.
    Update,
    /// The row was deleted, and the entity invalidates on change.
    Delete,
    /// An unchanged out-of-line value is not in the stream, and not in what is known of the row before either.
    Toast,
    /// A value cannot be made from its text in the stream.
    Opaque,
    /// The stream's columns are not the entity's: the table's shape has changed, or changes are older than that.
    Shape,
    /// The application said so: see [`command`].
    Command,
    /// The value is larger than what is cached.
    Large,
    /// A rule's lookup found it; or it could not be looked up.
    Lookup,
}

/// What is to be done to an entity's entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Write the row's new image (or that it is absent).
    Put {
        /// The entity.
        entity: usize,
        /// The generation whose shape the image has.
        generation: Generation,
        /// The full key in Redis.
        key: Vec<u8>,
        /// The entry's text, its label still blank.
        text: Vec<u8>,
    },
    /// Write the row's new image, in which unchanged out-of-line values are missing: they are those of the image before
    /// this change. Drop the entry where that is not known.
    Merge {
        /// The entity.
        entity: usize,
        /// The generation whose shape the image has.
        generation: Generation,
        /// The full key in Redis.
        key: Vec<u8>,
        /// The entry's text, its label still blank, its value with gaps: see [`entry::gaps`].
        text: Vec<u8>,
    },
    /// Drop the entry.
    Delete {
        /// The entity.
        entity: usize,
        /// The full key in Redis.
        key: Vec<u8>,
        /// Why.
        cause: Cause,
    },
    /// Drop the entries whose keys a rule's lookup gives for a changed row: see [`crate::entity::query::Via::Lookup`].
    Lookup {
        /// The entity.
        entity: usize,
        /// The position of the rule among the query's.
        rule: usize,
        /// The row's values that the lookup is given, in Postgres' text form; `None` for NULL.
        values: Vec<Option<Vec<u8>>>,
    },
    /// Make all of the entity's entries unservable: a TRUNCATE, or a row whose key the stream does not tell.
    Raise {
        /// The entity.
        entity: usize,
    },
    /// As [`Effect::Raise`], but that the table is not empty now.
    Discard {
        /// The entity.
        entity: usize,
        /// Why.
        cause: Cause,
    },
    /// Make entries unservable by what they have in common.
    Void(Void),
    /// Look up the table's shape: the stream announced another one.
    Reshape {
        /// The entity.
        entity: usize,
    },
    /// Make all of the entity's entries unservable, and look up its table's shape: the table has come under another name,
    /// and what happens to its rows under that is not the entity's.
    Moved {
        /// The entity.
        entity: usize,
    },
    /// Look which tables' shapes have changed: the stream announced DDL.
    LookAround,
}

/// A rendered image.
enum Image {
    /// All of it.
    Whole(Vec<u8>),
    /// Without the unchanged values that the stream leaves out.
    Gaps(Vec<u8>),
}

/// How one entity reads tuples of one relation.
#[derive(Debug)]
struct Mapping {
    entity: Arc<Entity>,
    generation: Generation,
    /// Whether the relation is the entity's table, and not one of the same name.
    is_table: bool,
    /// Positions of the key's columns; `None` if the relation lacks one.
    key: Option<Vec<usize>>,
    /// Whether an update that tells nothing of the old row has left the key as it was.
    key_in_identity: bool,
    /// For each value column: its position, its type, and the text before its value. `None` if shapes differ.
    value: Option<Vec<(usize, SqlType, Vec<u8>)>>,
    /// The length of the last text, which the next one's buffer is made for.
    last_length: Cell<usize>,
    /// Bytes of the largest value that is cached.
    max_value: usize,
}

/// The relations of the stream and the entities that are made of them.
#[derive(Debug)]
pub struct Planner {
    entities: Vec<Arc<Entity>>,
    relations: HashMap<u32, Mapped>,
    max_value: usize,
}

/// A relation, and what reads it.
#[derive(Debug)]
struct Mapped {
    relation: Arc<Relation>,
    rows: Vec<Mapping>,
    rules: Vec<RuleMapping>,
}

impl Planner {
    /// A planner for these entities, whose values may be of any size.
    pub fn new(entities: Vec<Arc<Entity>>) -> Self {
        Planner { entities, relations: HashMap::new(), max_value: usize::MAX }
    }

    /// Drops the entries of values of more than so many bytes, rather than to write them.
    pub fn max_value(self, max_value: usize) -> Self {
        Planner { max_value, ..self }
    }

    /// Takes note of a relation's shape as the stream announces it.
    pub fn announce(&mut self, relation: &Arc<Relation>, effects: &mut Vec<Effect>) {
        let mapped = map(&self.entities, relation, self.max_value);
        // Perhaps it will have its name back before anybody looks.
        let moved = |e: &&Arc<Entity>| {
            let shape = e.shape();
            let has_moved = |schema: &str, table: &str, oid: u32| {
                oid == relation.oid && oid != 0 && (schema != relation.schema || table != relation.name)
            };
            let rules = e.query.iter().flat_map(|query| &query.rules).zip(shape.depends());
            has_moved(&e.schema, &e.table, shape.table_oid)
                || rules.into_iter().any(|(rule, of)| has_moved(&rule.schema, &rule.table, of.table_oid))
        };
        effects.extend(self.entities.iter().filter(moved).map(|e| Effect::Moved { entity: e.id }));
        // Announced again within a session, it has been altered, perhaps in a way that does not show here.
        let again = self.relations.contains_key(&relation.oid);
        let rows = mapped.rows.iter().filter(|m| again || m.value.is_none()).map(|m| &m.entity);
        let rules = mapped.rules.iter().filter(|m| again || m.is_altered()).map(|m| &m.entity);
        effects.extend(rows.chain(rules).map(|entity| Effect::Reshape { entity: entity.id }));
        self.relations.insert(relation.oid, mapped);
    }

    /// Appends what a change does. The relation has been announced before.
    pub fn plan(&mut self, change: &Change<'_>, effects: &mut Vec<Effect>) {
        match change {
            Change::Insert { relation, .. }
            | Change::Update { relation, .. }
            | Change::Delete { relation, .. }
            | Change::Untold { relation } => self.plan_for(relation, change, effects),
            Change::Truncate { relations } => {
                relations.iter().for_each(|relation| self.plan_for(relation, change, effects));
            }
        }
    }

    fn plan_for(&mut self, relation: &Arc<Relation>, change: &Change<'_>, effects: &mut Vec<Effect>) {
        let Some(mapped) = self.mapped(relation) else { return };
        mapped.rows.iter().for_each(|mapping| mapping.plan(change, effects));
        mapped.rules.iter().for_each(|rule| rule.plan(change, effects));
    }

    /// The entities that are made of a relation that was announced; one with several rules for it comes once for each.
    pub fn entities_of(&self, relation: &Relation) -> impl Iterator<Item = usize> {
        let mapped = self.relations.get(&relation.oid).into_iter();
        mapped.flat_map(|m| m.rows.iter().map(|m| m.entity.id).chain(m.rules.iter().map(|m| m.entity.id)))
    }

    /// Appends what a change of some row of a table does, of which nothing else is known.
    pub fn plan_unknown(&self, relation: &Relation, effects: &mut Vec<Effect>) {
        let entities = self.entities_of(relation);
        effects.extend(entities.map(|entity| Effect::Discard { entity, cause: Cause::Large }));
    }

    /// A table was changed of which only the names of the partitioned tables that it belongs to are known, itself
    /// among them; none, if it is gone. Says whether that concerns any entity.
    pub fn place(&self, of: &[(String, String)], effects: &mut Vec<Effect>) -> bool {
        let before = effects.len();
        for entity in &self.entities {
            if of.is_empty() {
                // Whose it was cannot be known any more.
                if entity.shape().is_partitioned() {
                    effects.push(Effect::Raise { entity: entity.id });
                }
            } else if entity.tables().any(|table| of.iter().any(|(schema, name)| table == (schema, name))) {
                effects.push(Effect::Reshape { entity: entity.id });
            }
        }
        effects.len() > before
    }

    fn mapped(&mut self, relation: &Arc<Relation>) -> Option<&Mapped> {
        let max_value = self.max_value;
        let mapped = self.relations.get_mut(&relation.oid)?;
        if !Arc::ptr_eq(&mapped.relation, relation) {
            // Tables that do not look as the catalog says share an oid.
            *mapped = map(&self.entities, relation, max_value);
        }
        for mapping in mapped.rows.iter_mut() {
            // A raised generation may stand for another shape.
            if mapping.generation != mapping.entity.generation() {
                *mapping = Mapping::new(&mapping.entity, &mapped.relation, max_value);
            }
        }
        for mapping in mapped.rules.iter_mut().filter(|mapping| mapping.generation != mapping.entity.generation()) {
            *mapping = mapping.renewed(&mapped.relation);
        }
        Some(mapped)
    }
}

/// What reads a relation, and how.
fn map(entities: &[Arc<Entity>], relation: &Arc<Relation>, max_value: usize) -> Mapped {
    let of = entities.iter().filter(|e| e.schema == relation.schema && e.table == relation.name);
    Mapped {
        relation: relation.clone(),
        rows: of.map(|e| Mapping::new(e, relation, max_value)).collect(),
        rules: entities.iter().flat_map(|e| RuleMapping::of(e, relation)).collect(),
    }
}

impl Mapping {
    fn new(entity: &Arc<Entity>, relation: &Relation, max_value: usize) -> Mapping {
        // Before the shape: see `Entity::reshape`.
        let generation = entity.generation();
        let shape = entity.shape();
        let find =
            |name: &str, type_oid: u32| relation.columns.iter().position(|c| c.name == name && c.type_oid == type_oid);
        let key: Option<Vec<usize>> = shape.key.iter().map(|k| find(&k.name, k.type_oid)).collect();
        // A partitioned table's own identity may differ from its partitions': those are left to the check of the catalog.
        let key_in_identity = (relation.identity != ReplicaIdentity::Index && shape.partitioned)
            || key.iter().flatten().all(|position| relation.columns[*position].in_identity);
        // Not another table of that name: one that was dropped, or renamed, or is not known yet.
        let is_table = shape.table_oid == relation.oid;
        let same = is_table && (!shape.whole_row || shape.columns.len() == relation.columns.len());
        let column = |(i, c): (usize, &crate::entity::ValueColumn)| {
            let mut before = vec![if i == 0 { b'{' } else { b',' }];
            escape(&mut before, &c.name);
            before.push(b':');
            Some((find(&c.name, c.type_oid)?, c.sql_type.clone(), before))
        };
        let value = shape.columns.iter().enumerate().map(column).collect::<Option<_>>().filter(|_| same);
        let last_length = Cell::new(entry::HEAD);
        Mapping { entity: entity.clone(), generation, is_table, key, key_in_identity, value, last_length, max_value }
    }

    /// Appends what a change does.
    fn plan(&self, change: &Change<'_>, effects: &mut Vec<Effect>) {
        match change {
            Change::Insert { new, .. } => self.write(new, &OldTuple::None, false, effects),
            Change::Update { old, new, .. } => self.update(old, new, effects),
            Change::Delete { old, .. } => match self.old_key(old) {
                Some(key) => self.absent(key, effects),
                None => effects.push(Effect::Raise { entity: self.entity.id }),
            },
            Change::Truncate { .. } | Change::Untold { .. } => effects.push(Effect::Raise { entity: self.entity.id }),
        }
    }

    /// The key of a row; a value that one tuple leaves out is looked for in the other.
    fn key(&self, tuple: &Tuple<'_>, other: Option<&Tuple<'_>>) -> Option<Vec<u8>> {
        let mut key = Vec::with_capacity(self.entity.redis_prefix.len() + 24);
        key.extend_from_slice(self.entity.redis_prefix.as_bytes());
        for (i, position) in self.key.as_ref()?.iter().enumerate() {
            let mut datum = tuple.get(*position)?;
            if let (Datum::Unchanged, Some(other)) = (datum, other) {
                datum = other.get(*position)?;
            }
            let Datum::Text(text) = datum else { return None };
            if i > 0 {
                key.push(b',');
            }
            push_part(&mut key, text);
        }
        Some(key)
    }

    fn old_key(&self, old: &OldTuple<'_>) -> Option<Vec<u8>> {
        match old {
            OldTuple::None => None,
            OldTuple::Key(tuple) | OldTuple::Full(tuple) => self.key(tuple, None),
        }
    }

    fn update(&self, old: &OldTuple<'_>, new: &Tuple<'_>, effects: &mut Vec<Effect>) {
        let mut same_key = false;
        if !matches!(old, OldTuple::None) {
            match self.old_key(old) {
                Some(before) if self.key(new, old.tuple()).is_some_and(|after| after == before) => same_key = true,
                Some(before) => self.absent(before, effects),
                None => effects.push(Effect::Raise { entity: self.entity.id }),
            }
        } else if self.key_in_identity {
            same_key = true;
        } else {
            // The key may have been another one: the table's replica identity was changed under way.
            effects.push(Effect::Raise { entity: self.entity.id });
        }
        self.write(new, old, same_key, effects);
    }

    /// The row is not there any more.
    fn absent(&self, key: Vec<u8>, effects: &mut Vec<Effect>) {
        let text = match self.entity.on_change {
            OnChange::Refresh if !self.is_table => Err(Cause::Shape),
            OnChange::Refresh => Ok(Image::Whole([&entry::BLANK_HEAD[..], b"null}"].concat())),
            OnChange::Invalidate => Err(Cause::Delete),
        };
        self.put(key, text, effects);
    }

    /// The row reads as `new` now. With `same_key` the entry at its key is of this very row: keys are unique at any moment,
    /// see `catalog::identity`. Else what stands there says nothing of the values that `new` leaves out.
    fn write(&self, new: &Tuple<'_>, old: &OldTuple<'_>, same_key: bool, effects: &mut Vec<Effect>) {
        match self.key(new, old.tuple()) {
            Some(key) => {
                let text = match self.entity.on_change {
                    OnChange::Refresh => self.render(new, old).and_then(|image| match image {
                        Image::Gaps(_) if !same_key => Err(Cause::Toast),
                        image => Ok(image),
                    }),
                    OnChange::Invalidate => Err(Cause::Update),
                };
                self.put(key, text, effects);
            }
            // The row's key is not told: any entry may be meant.
            None => effects.push(Effect::Raise { entity: self.entity.id }),
        }
    }

    fn put(&self, key: Vec<u8>, image: Result<Image, Cause>, effects: &mut Vec<Effect>) {
        if key.len() - self.entity.redis_prefix.len() > MAX_KEY_BYTES {
            // No entry has such a key: requests for it are refused.
            return;
        }
        // After the generation: whoever makes the entity servable again raises it before.
        let image = if self.entity.is_servable() { image } else { Err(Cause::Shape) };
        effects.push(match image {
            Ok(Image::Whole(text)) => Effect::Put { entity: self.entity.id, generation: self.generation, key, text },
            Ok(Image::Gaps(text)) => Effect::Merge { entity: self.entity.id, generation: self.generation, key, text },
            Err(cause) => Effect::Delete { entity: self.entity.id, key, cause },
        });
    }

    fn render(&self, new: &Tuple<'_>, old: &OldTuple<'_>) -> Result<Image, Cause> {
        let columns = self.value.as_ref().ok_or(Cause::Shape)?;
        let mut text = Vec::with_capacity(self.last_length.get() + 16);
        text.extend_from_slice(entry::BLANK_HEAD);
        let mut gaps = false;
        for (position, sql_type, before) in columns {
            text.extend_from_slice(before);
            let mut datum = new.get(*position).ok_or(Cause::Shape)?;
            if let (Datum::Unchanged, OldTuple::Full(old)) = (datum, old) {
                // The old row is there as a whole, and this value has not changed.
                datum = old.get(*position).ok_or(Cause::Shape)?;
            }
            match datum {
                Datum::Null => text.extend_from_slice(b"null"),
                Datum::Untold => return Err(Cause::Opaque),
                Datum::Unchanged => gaps = true,
                // Its JSON is hardly ever shorter than its text.
                Datum::Text(value) if value.len() > self.max_value => return Err(Cause::Large),
                Datum::Text(value) => render(&mut text, sql_type, value).map_err(|_| Cause::Opaque)?,
            }
            // As soon as it is known: what is not to be kept is not to be made.
            if text.len() - entry::HEAD >= self.max_value {
                return Err(Cause::Large);
            }
        }
        text.extend_from_slice(if columns.is_empty() { b"{}}" } else { b"}}" });
        self.last_length.set(text.len());
        Ok(if gaps { Image::Gaps(text) } else { Image::Whole(text) })
    }
}

#[cfg(test)]
mod tests;
