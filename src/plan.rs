//! Plans what a change does to entries: pure, (change, entities) to effects.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use crate::change::{Change, Datum, OldTuple, Relation, ReplicaIdentity, Tuple};
use crate::decode::render::{escape, render};
use crate::entity::{Entity, Generation, OnChange};
use crate::entry;
use crate::key::{MAX_KEY_BYTES, push_part};
use crate::sqltype::SqlType;

/// Why an entry is dropped rather than written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The row was written, and the entity invalidates on change.
    Update,
    /// The row was deleted, and the entity invalidates on change.
    Delete,
    /// An unchanged out-of-line value is not in the stream.
    Toast,
    /// A value cannot be made from its text in the stream.
    Opaque,
    /// The stream's columns are not the entity's: the table's shape has changed, or changes are older than that.
    Shape,
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
    /// Drop the entry.
    Delete {
        /// The entity.
        entity: usize,
        /// The full key in Redis.
        key: Vec<u8>,
        /// Why.
        cause: Cause,
    },
    /// Make all of the entity's entries unservable: a TRUNCATE, or a row whose key the stream does not tell.
    Raise {
        /// The entity.
        entity: usize,
    },
    /// Look up the table's shape: the stream announced another one.
    Reshape {
        /// The entity.
        entity: usize,
    },
}

/// How one entity reads tuples of one relation.
#[derive(Debug)]
struct Mapping {
    entity: Arc<Entity>,
    generation: Generation,
    /// Positions of the key's columns; `None` if the relation lacks one.
    key: Option<Vec<usize>>,
    /// Whether an update that tells nothing of the old row has left the key as it was.
    key_in_identity: bool,
    /// For each value column: its position, its type, and the text before its value. `None` if shapes differ.
    value: Option<Vec<(usize, SqlType, Vec<u8>)>>,
    /// The length of the last text, which the next one's buffer is made for.
    last_length: Cell<usize>,
}

/// The relations of the stream and the entities that are made of them.
#[derive(Debug)]
pub struct Planner {
    entities: Vec<Arc<Entity>>,
    relations: HashMap<u32, (Arc<Relation>, Vec<Mapping>)>,
}

impl Planner {
    /// A planner for these entities.
    pub fn new(entities: Vec<Arc<Entity>>) -> Self {
        Planner { entities, relations: HashMap::new() }
    }

    /// Takes note of a relation's shape as the stream announces it.
    pub fn announce(&mut self, relation: &Arc<Relation>, effects: &mut Vec<Effect>) {
        let mappings: Vec<Mapping> = self
            .entities
            .iter()
            .filter(|e| e.schema == relation.schema && e.table == relation.name)
            .map(|e| Mapping::new(e, relation))
            .collect();
        // Announced again within a session, it has been altered, perhaps in a way that does not show here.
        let again = self.relations.contains_key(&relation.oid);
        let altered = mappings.iter().filter(|m| again || m.value.is_none());
        effects.extend(altered.map(|m| Effect::Reshape { entity: m.entity.id }));
        self.relations.insert(relation.oid, (relation.clone(), mappings));
    }

    /// Appends what a change does. The relation has been announced before.
    pub fn plan(&mut self, change: &Change<'_>, effects: &mut Vec<Effect>) {
        match change {
            Change::Insert { relation, new } => {
                for mapping in self.mappings(relation) {
                    mapping.write(new, &OldTuple::None, effects);
                }
            }
            Change::Update { relation, old, new } => {
                for mapping in self.mappings(relation) {
                    mapping.update(old, new, effects);
                }
            }
            Change::Delete { relation, old } => {
                for mapping in self.mappings(relation) {
                    match mapping.old_key(old) {
                        Some(key) => mapping.absent(key, effects),
                        None => effects.push(Effect::Raise { entity: mapping.entity.id }),
                    }
                }
            }
            Change::Truncate { relations } => {
                for relation in relations {
                    let raised = self.mappings(relation).iter().map(|m| Effect::Raise { entity: m.entity.id });
                    effects.extend(raised);
                }
            }
        }
    }

    /// The entities that are made of a relation that was announced.
    pub fn entities_of(&self, relation: &Relation) -> impl Iterator<Item = usize> {
        self.relations.get(&relation.oid).into_iter().flat_map(|(_, mappings)| mappings).map(|m| m.entity.id)
    }

    fn mappings(&mut self, relation: &Arc<Relation>) -> &[Mapping] {
        let Some((announced, mappings)) = self.relations.get_mut(&relation.oid) else { return &[] };
        for mapping in mappings.iter_mut() {
            // A raised generation may stand for another shape.
            if mapping.generation != mapping.entity.generation() {
                *mapping = Mapping::new(&mapping.entity, announced);
            }
        }
        mappings
    }
}

impl Mapping {
    fn new(entity: &Arc<Entity>, relation: &Relation) -> Mapping {
        // Before the shape: see `Entity::reshape`.
        let generation = entity.generation();
        let shape = entity.shape();
        let find =
            |name: &str, type_oid: u32| relation.columns.iter().position(|c| c.name == name && c.type_oid == type_oid);
        let key: Option<Vec<usize>> = shape.key.iter().map(|k| find(&k.name, k.type_oid)).collect();
        // Other identities are left to the check of the catalog: a partitioned table's own may differ from its partitions'.
        let key_in_identity = relation.identity != ReplicaIdentity::Index
            || key.iter().flatten().all(|position| relation.columns[*position].in_identity);
        let same =
            shape.table_oid == relation.oid && (!shape.whole_row || shape.columns.len() == relation.columns.len());
        let column = |(i, c): (usize, &crate::entity::ValueColumn)| {
            let mut before = vec![if i == 0 { b'{' } else { b',' }];
            escape(&mut before, &c.name);
            before.push(b':');
            Some((find(&c.name, c.type_oid)?, c.sql_type.clone(), before))
        };
        let value = shape.columns.iter().enumerate().map(column).collect::<Option<_>>().filter(|_| same);
        Mapping { entity: entity.clone(), generation, key, key_in_identity, value, last_length: Cell::new(entry::HEAD) }
    }

    /// The key of a row; a value that one tuple leaves out is looked for in the other.
    fn key(&self, tuple: &Tuple<'_>, other: Option<&Tuple<'_>>) -> Option<Vec<u8>> {
        let mut key = Vec::with_capacity(self.entity.redis_prefix.len() + 24);
        key.extend_from_slice(self.entity.redis_prefix.as_bytes());
        for (i, position) in self.key.as_ref()?.iter().enumerate() {
            let text = [Some(tuple), other].into_iter().flatten().find_map(|tuple| match tuple.get(*position) {
                Some(Datum::Text(text)) => Some(*text),
                _ => None,
            })?;
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
        if !matches!(old, OldTuple::None) {
            match self.old_key(old) {
                Some(before) if self.key(new, old.tuple()).is_some_and(|after| after == before) => {}
                Some(before) => self.absent(before, effects),
                None => effects.push(Effect::Raise { entity: self.entity.id }),
            }
        } else if !self.key_in_identity {
            // The key may have been another one: the table's replica identity was changed under way.
            effects.push(Effect::Raise { entity: self.entity.id });
        }
        self.write(new, old, effects);
    }

    /// The row is not there any more.
    fn absent(&self, key: Vec<u8>, effects: &mut Vec<Effect>) {
        let text = match self.entity.on_change {
            OnChange::Refresh => Ok([&entry::BLANK_HEAD[..], b"null}"].concat()),
            OnChange::Invalidate => Err(Cause::Delete),
        };
        self.put(key, text, effects);
    }

    /// The row reads as `new` now.
    fn write(&self, new: &Tuple<'_>, old: &OldTuple<'_>, effects: &mut Vec<Effect>) {
        match self.key(new, old.tuple()) {
            Some(key) => {
                let text = match self.entity.on_change {
                    OnChange::Refresh => self.render(new, old),
                    OnChange::Invalidate => Err(Cause::Update),
                };
                self.put(key, text, effects);
            }
            // The row's key is not told: any entry may be meant.
            None => effects.push(Effect::Raise { entity: self.entity.id }),
        }
    }

    fn put(&self, key: Vec<u8>, text: Result<Vec<u8>, Cause>, effects: &mut Vec<Effect>) {
        if key.len() - self.entity.redis_prefix.len() > MAX_KEY_BYTES {
            // No entry has such a key: requests for it are refused.
            return;
        }
        effects.push(match text {
            Ok(text) => Effect::Put { entity: self.entity.id, generation: self.generation, key, text },
            Err(cause) => Effect::Delete { entity: self.entity.id, key, cause },
        });
    }

    fn render(&self, new: &Tuple<'_>, old: &OldTuple<'_>) -> Result<Vec<u8>, Cause> {
        let columns = self.value.as_ref().ok_or(Cause::Shape)?;
        let mut text = Vec::with_capacity(self.last_length.get() + 16);
        text.extend_from_slice(entry::BLANK_HEAD);
        for (position, sql_type, before) in columns {
            text.extend_from_slice(before);
            let mut datum = new.get(*position).ok_or(Cause::Shape)?;
            if let (Datum::Unchanged, OldTuple::Full(old)) = (datum, old) {
                // The old row is there as a whole, and this value has not changed.
                datum = old.get(*position).ok_or(Cause::Shape)?;
            }
            match datum {
                Datum::Null => text.extend_from_slice(b"null"),
                Datum::Unchanged => return Err(Cause::Toast),
                Datum::Text(value) => render(&mut text, sql_type, value).map_err(|_| Cause::Opaque)?,
            }
        }
        text.extend_from_slice(if columns.is_empty() { b"{}}" } else { b"}}" });
        self.last_length.set(text.len());
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
