//! What a row change does to a query's entries: by the rule that names its table.
//!
//! A rule reads some of the row's columns, before the change and after it: a row that moves from one key to another voids
//! both. Whatever the query reads besides is not analysed, so an update that leaves these columns alone voids, too. Where a
//! value is not told that may matter, the whole entity is voided.

use std::sync::Arc;

use super::{Cause, Effect};
use crate::change::{Change, Datum, OldTuple, Relation, ReplicaIdentity, Tuple};
use crate::entity::query::Via;
use crate::entity::{Entity, Generation};
use crate::key::{KeyType, MAX_KEY_BYTES, push_part};

/// How one rule reads tuples of one relation.
#[derive(Debug)]
pub(super) struct RuleMapping {
    pub(super) entity: Arc<Entity>,
    pub(super) generation: Generation,
    /// The position of the rule among the query's.
    rule: usize,
    reads: Reads,
}

/// What a rule reads.
#[derive(Debug)]
enum Reads {
    /// Nothing: it voids all entries.
    Nothing,
    /// The key's parts, each with its column's place and the parameter's type.
    Key(Vec<(Column, KeyType)>),
    /// What a lookup is given.
    Lookup(Vec<Column>),
    /// Columns that the relation lacks, or has of another type: which entries are meant cannot be told.
    Unknown,
}

/// A column's place in the relation.
#[derive(Debug, Clone, Copy)]
struct Column {
    position: usize,
    /// Whether an update that tells nothing of the old row has left it as it was.
    in_identity: bool,
}

/// A value that is not told.
struct Untold;

/// What a value is at one side of a change: a NULL is `None`.
type Told<'a> = Result<Option<&'a [u8]>, Untold>;

/// The values of some columns.
type Values<'a> = Vec<Option<&'a [u8]>>;

/// A row before a change and after it.
enum Sides<'c, 'a> {
    Insert(&'c Tuple<'a>),
    Update(&'c OldTuple<'a>, &'c Tuple<'a>),
    Delete(&'c OldTuple<'a>),
}

impl RuleMapping {
    /// Those of an entity's rules that name the relation's table.
    pub(super) fn of<'e>(entity: &'e Arc<Entity>, relation: &'e Relation) -> impl Iterator<Item = RuleMapping> + 'e {
        let rules = entity.query.iter().flat_map(|query| query.rules.iter().enumerate());
        let ours = rules.filter(|(_, rule)| rule.schema == relation.schema && rule.table == relation.name);
        ours.map(|(rule, _)| RuleMapping::new(entity, rule, relation))
    }

    /// How it reads the relation as it is now.
    pub(super) fn renewed(&self, relation: &Relation) -> RuleMapping {
        RuleMapping::new(&self.entity, self.rule, relation)
    }

    fn new(entity: &Arc<Entity>, rule: usize, relation: &Relation) -> RuleMapping {
        // Before the shape: see `Entity::reshape`.
        let generation = entity.generation();
        let shape = entity.shape();
        let via = entity.query.as_ref().and_then(|query| query.rules.get(rule)).map(|rule| &rule.via);
        // Not another table of that name, nor one whose columns are others than the catalog has been seen with.
        let dependency = shape.depends().get(rule).filter(|dependency| dependency.table_oid == relation.oid);
        let columns = || -> Option<Vec<Column>> {
            let dependency = dependency?;
            let place = |wanted: &crate::entity::query::RuleColumn| {
                let same = |c: &crate::change::RelationColumn| c.name == wanted.name && c.type_oid == wanted.type_oid;
                let position = relation.columns.iter().position(same)?;
                // Partitions have identities of their own, which are left to the check of the catalog.
                let in_identity = (relation.identity != ReplicaIdentity::Index && dependency.partitioned)
                    || relation.columns[position].in_identity;
                Some(Column { position, in_identity })
            };
            dependency.columns.as_ref()?.iter().map(place).collect()
        };
        let reads = match via {
            Some(Via::Key(_)) => columns().filter(|columns| columns.len() == shape.key.len()).map(|columns| {
                Reads::Key(columns.into_iter().zip(shape.key.iter().map(|k| k.key_type.clone())).collect())
            }),
            Some(Via::Lookup { .. }) => columns().map(Reads::Lookup),
            Some(Via::All) => Some(Reads::Nothing),
            None => None,
        };
        RuleMapping { entity: entity.clone(), generation, rule, reads: reads.unwrap_or(Reads::Unknown) }
    }

    /// Whether the relation is not what the catalog was seen to say.
    pub(super) fn is_altered(&self) -> bool {
        matches!(self.reads, Reads::Unknown)
    }

    /// Appends what a change of a row does.
    pub(super) fn plan(&self, change: &Change<'_>, effects: &mut Vec<Effect>) {
        match change {
            Change::Insert { new, .. } => self.void(&Sides::Insert(new), Cause::Update, effects),
            Change::Update { old, new, .. } => self.void(&Sides::Update(old, new), Cause::Update, effects),
            Change::Delete { old, .. } => self.void(&Sides::Delete(old), Cause::Delete, effects),
            Change::Truncate { .. } => effects.push(Effect::Raise { entity: self.entity.id }),
            Change::Untold { .. } => self.discard(Cause::Update, effects),
        }
    }

    fn discard(&self, cause: Cause, effects: &mut Vec<Effect>) {
        effects.push(Effect::Discard { entity: self.entity.id, cause });
    }

    fn void(&self, change: &Sides<'_, '_>, cause: Cause, effects: &mut Vec<Effect>) {
        let entity = self.entity.id;
        let planned = match &self.reads {
            Reads::Nothing => return self.discard(cause, effects),
            Reads::Unknown => return self.discard(Cause::Shape, effects),
            Reads::Key(parts) => change.values(|i| parts.get(i).map(|(column, _)| *column)).and_then(|sides| {
                let [before, after] = sides.map(|values| values.map(|values| self.key(parts, &values)).transpose());
                let (before, after) = (before?.flatten(), after?.flatten());
                let after = after.filter(|after| before.as_ref() != Some(after));
                effects.extend([before, after].into_iter().flatten().map(|key| Effect::Delete { entity, key, cause }));
                Ok(())
            }),
            Reads::Lookup(columns) => change.values(|i| columns.get(i).copied()).map(|[before, after]| {
                let after = after.filter(|after| before.as_ref() != Some(after));
                let owned = |values: Values<'_>| values.into_iter().map(|text| text.map(<[u8]>::to_vec)).collect();
                let lookup = |values| Effect::Lookup { entity, rule: self.rule, values: owned(values) };
                effects.extend([before, after].into_iter().flatten().map(lookup));
            }),
        };
        if planned.is_err() {
            self.discard(cause, effects);
        }
    }

    /// The full key in Redis of the entries that such a row is part of; `None` if it can be part of none, because no
    /// request has such a key.
    fn key(&self, parts: &[(Column, KeyType)], values: &Values<'_>) -> Result<Option<Vec<u8>>, Untold> {
        let mut key = Vec::with_capacity(self.entity.redis_prefix.len() + 24);
        key.extend_from_slice(self.entity.redis_prefix.as_bytes());
        for (i, ((_, key_type), value)) in parts.iter().zip(values).enumerate() {
            let Some(text) = value else { return Ok(None) };
            let text = std::str::from_utf8(text).map_err(|_| Untold)?;
            let Some(canonical) = key_type.canonical(text) else { return Ok(None) };
            if i > 0 {
                key.push(b',');
            }
            push_part(&mut key, canonical.as_bytes());
        }
        Ok(Some(key).filter(|key| key.len() - self.entity.redis_prefix.len() <= MAX_KEY_BYTES))
    }
}

impl<'c, 'a> Sides<'c, 'a> {
    /// The values of the columns that `column` gives, before the change and after it; `None` where there was no row, or where
    /// the row had the values that it has now.
    fn values(&self, column: impl Fn(usize) -> Option<Column>) -> Result<[Option<Values<'a>>; 2], Untold> {
        let columns = || (0..).map_while(&column);
        let read = |tell: &dyn Fn(Column) -> Told<'a>| columns().map(tell).collect::<Result<Values<'a>, Untold>>();
        let after = |old: &OldTuple<'a>, new: &Tuple<'a>| read(&|column| column.after(old, new)).map(Some);
        let before = |old: &OldTuple<'a>| read(&|column| column.before(old)).map(Some);
        match *self {
            Sides::Insert(new) => Ok([None, after(&OldTuple::None, new)?]),
            // The old identity is not told where it is the new one.
            Sides::Update(OldTuple::None, new) if columns().all(|column| column.in_identity) => {
                Ok([None, after(&OldTuple::None, new)?])
            }
            Sides::Update(old, new) => Ok([before(old)?, after(old, new)?]),
            Sides::Delete(old) => Ok([before(old)?, None]),
        }
    }
}

impl Column {
    /// The value in the new row.
    fn after<'a>(self, old: &OldTuple<'a>, new: &Tuple<'a>) -> Told<'a> {
        match new.get(self.position) {
            // It has not changed: perhaps the old row tells.
            Some(Datum::Unchanged) => self.before(old),
            datum => told(datum),
        }
    }

    /// The value in the old row.
    fn before<'a>(self, old: &OldTuple<'a>) -> Told<'a> {
        match old {
            OldTuple::None => Err(Untold),
            OldTuple::Full(tuple) => told(tuple.get(self.position)),
            // No column of an identity is null: what reads so is none of its columns.
            OldTuple::Key(tuple) => told(tuple.get(self.position)).and_then(|text| text.map(Some).ok_or(Untold)),
        }
    }
}

fn told<'a>(datum: Option<&Datum<'a>>) -> Told<'a> {
    match datum {
        Some(Datum::Text(text)) => Ok(Some(text)),
        Some(Datum::Null) => Ok(None),
        Some(Datum::Unchanged | Datum::Untold) | None => Err(Untold),
    }
}

#[cfg(test)]
mod tests;
