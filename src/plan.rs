//! Plans what a change does to entries: pure, (change, entities) to effects.

pub mod command;
mod effect;
mod row;
mod rule;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

pub use self::effect::{Cause, Effect};
use self::row::Mapping;
use self::rule::RuleMapping;
use crate::change::{Change, Relation};
use crate::entity::Entity;

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
