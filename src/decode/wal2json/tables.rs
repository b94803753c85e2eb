//! Which tables are entities', by the names that messages bear.

use std::sync::Arc;

use super::row::Table;
use super::{Decoder, Each, Located};
use crate::change::Event;
use crate::decode::Problem;

#[derive(Debug)]
pub(super) enum Place {
    Ours(Box<Table>),
    Elsewhere,
}

impl Decoder {
    /// Takes note that a table is no entity's: see [`Event::Unplaced`].
    pub fn set_elsewhere(&mut self, schema: &str, name: &str) {
        self.tables.entry(table_key(schema, name)).or_insert(Place::Elsewhere);
    }

    /// Whether the table that was just named is an entity's; says so where it is not, or not known.
    pub(super) fn is_ours(&mut self, at: usize, each: Each<'_>) -> Result<bool, Located> {
        if matches!(self.tables.get(&self.name), Some(Place::Ours(table)) if table.is_outdated()) {
            self.look_up_tables();
        }
        match self.tables.get(&self.name) {
            Some(Place::Ours(_)) => return Ok(true),
            Some(Place::Elsewhere) => each(Event::Elsewhere),
            None => {
                let names = std::str::from_utf8(&self.name).map_err(|_| (Problem::InvalidUtf8, at))?;
                let (schema, name) = names.split_once('\0').unwrap_or_default();
                each(Event::Unplaced { schema, name });
            }
        }
        Ok(false)
    }

    pub(super) fn look_up_tables(&mut self) {
        let before = std::mem::take(&mut self.tables);
        for entity in &self.entities {
            // Before the shape: see `Entity::reshape`.
            let generation = entity.generation();
            let shape = entity.shape();
            for tables in shape.streamed() {
                let Some(root) = tables.first() else { continue };
                let relation = Table::relation(root);
                let key = table_key(&root.schema, &root.name);
                let same = |place: &Place| match place {
                    Place::Ours(table) if *table.relation == relation => {
                        Some((table.relation.clone(), table.announced.clone()))
                    }
                    _ => None,
                };
                let known = self.tables.get(&key).or_else(|| before.get(&key)).and_then(same);
                let (relation, announced) = known.unwrap_or_else(|| (Arc::new(relation), Arc::default()));
                for facts in tables {
                    let of = (entity.clone(), generation);
                    let table = Table::new(facts.clone(), relation.clone(), announced.clone(), of);
                    self.tables.insert(table_key(&facts.schema, &facts.name), Place::Ours(Box::new(table)));
                }
            }
        }
        for (key, place) in before {
            if matches!(place, Place::Elsewhere) {
                self.tables.entry(key).or_insert(place);
            }
        }
    }
}

pub(super) fn table_key(schema: &str, name: &str) -> Vec<u8> {
    [schema.as_bytes(), b"\0", name.as_bytes()].concat()
}
