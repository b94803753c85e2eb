//! Entities that are the rows of a table: which entry a change of a row is of, and how it reads after that.

use std::cell::Cell;
use std::sync::Arc;

use super::{Cause, Effect};
use crate::change::{Change, Datum, OldTuple, Relation, ReplicaIdentity, Tuple};
use crate::entity::{Entity, Generation, OnChange};
use crate::entry;
use crate::key::{MAX_KEY_BYTES, push_part};
use crate::render::{escape, render};
use crate::sqltype::SqlType;

/// A rendered image.
enum Image {
    /// All of it.
    Whole(Vec<u8>),
    /// Without the unchanged values that the stream leaves out.
    Gaps(Vec<u8>),
}

/// How one entity reads tuples of one relation.
#[derive(Debug)]
pub(super) struct Mapping {
    pub(super) entity: Arc<Entity>,
    pub(super) generation: Generation,
    /// Whether the relation is the entity's table, and not one of the same name.
    is_table: bool,
    /// Positions of the key's columns; `None` if the relation lacks one.
    key: Option<Vec<usize>>,
    /// Whether an update that tells nothing of the old row has left the key as it was.
    key_in_identity: bool,
    /// For each value column: its position, its type, and the text before its value. `None` if shapes differ.
    pub(super) value: Option<Vec<(usize, SqlType, Vec<u8>)>>,
    /// The length of the last text, which the next one's buffer is made for.
    last_length: Cell<usize>,
    /// Bytes of the largest value that is cached.
    max_value: usize,
}

impl Mapping {
    pub(super) fn new(entity: &Arc<Entity>, relation: &Relation, max_value: usize) -> Mapping {
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
    pub(super) fn plan(&self, change: &Change<'_>, effects: &mut Vec<Effect>) {
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
